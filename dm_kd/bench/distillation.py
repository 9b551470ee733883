"""How fast a distillation step is: WRN-40-2 -> WRN-16-1 on random 3x32x32 images, 100 classes.

    sh scripts/bench.sh distillation --threads 1
    python -m dm_kd.bench.distillation --threads 1

A is the original's step: the teacher keeps its graph, float32, NCHW, three numbers read back each
step. B, C: the best simple loop (no_grad, channels_last; with and without bfloat16 autocast).
Ours: engine.train_step with the view pipeline, from uint8 images; the others get finished inputs
for nothing. Baselines are re-statements. Equivalence is asserted before any speed.
"""

import copy
import sys
import types
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from dm_kd import engine, frozen, models, objectives, run
from dm_kd.bench import measure

TEMPERATURE = 10.0
ORIGINAL, OURS = "A original: teacher's graph, fp32, NCHW", "ours"
SIMPLE = "simple: no_grad, channels_last, "
CALIBRATION_IMAGES = 64  # to give the random teacher batch norm statistics


def make_networks(teacher: str, student: str, classes: int) -> tuple[nn.Module, nn.Module]:
    """Random networks for 3-channel images; the teacher's batch norms know its activations."""
    task = types.SimpleNamespace(name="random", num_classes=classes, channels=3)
    teacher, student = models.build(teacher, task), models.build(student, task)
    with torch.no_grad():
        for _ in range(3):
            teacher(torch.randn(CALIBRATION_IMAGES, 3, 32, 32))
    return teacher.eval(), student.train()


def original_step(student: nn.Module, teacher: nn.Module, optimizer: torch.optim.Optimizer,
                  x: Tensor, labels: Tensor, teacher_grad: bool = True) -> None:
    """DM-KD's step. teacher_grad: its logits stay in the graph and its weights get gradients."""
    with torch.set_grad_enabled(teacher_grad):
        teacher_logits = teacher(x)
    student_logits = student(x)
    loss = objectives.kd(student_logits, teacher_logits, labels, TEMPERATURE)
    loss.item()
    hits = student_logits.topk(5).indices == labels[:, None]
    hits[:, 0].sum().item(), hits.sum().item()
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()


def simple_step(student: nn.Module, teacher: nn.Module, optimizer: torch.optim.Optimizer,
                x: Tensor, labels: Tensor, bf16: bool) -> None:
    """What a good programmer writes in five minutes."""
    with torch.autocast(x.device.type, dtype=torch.bfloat16, enabled=bf16):
        with torch.no_grad():
            teacher_logits = teacher(x)
        student_logits = student(x)
    loss = objectives.kd(student_logits, teacher_logits, labels, TEMPERATURE)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()


def make_variants(teacher: nn.Module, student: nn.Module, batch: int, classes: int, amp: str,
                  device: torch.device) -> tuple[dict[str, Callable], dict[str, nn.Module]]:
    """{name: step} on the same batch, and each step's own student (all begin alike)."""
    images = torch.randint(0, 256, (batch, 3, 32, 32), dtype=torch.uint8).to(device)
    labels = torch.randint(0, classes, (batch,)).to(device)
    view = engine.View((0.5071, 0.4867, 0.4408), (0.2675, 0.2565, 0.2761), pad=4, flip=True)
    ids = torch.arange(batch)
    x_nhwc, _ = view.train(images, labels, ids, 0, 0, 0)
    x_nchw = x_nhwc.contiguous()
    steps, students = {}, {}

    def add(name: str, step: Callable, teacher: nn.Module, nhwc: bool, fused: bool = False):
        mine = copy.deepcopy(student).to(device, memory_format=torch.channels_last if nhwc else
                                         torch.contiguous_format)
        sgd = torch.optim.SGD(mine.parameters(), lr=0.1, momentum=0.9, weight_decay=1e-4,
                              fused=fused)
        students[name], steps[name] = mine, lambda: step(mine, teacher, sgd)

    with_graph = copy.deepcopy(teacher).to(device)
    plain = copy.deepcopy(teacher).requires_grad_(False).to(device)
    nhwc = copy.deepcopy(plain).to(memory_format=torch.channels_last)
    fast = frozen.prepare(nhwc, view.plain(images[:4]), amp)

    def ours(s: nn.Module, t: nn.Module, o: torch.optim.Optimizer) -> None:
        x, _ = view.train(images, labels, ids, 0, 0, 0)
        engine.train_step(s, t, o, objectives.kd, x, labels, TEMPERATURE, amp)

    add(ORIGINAL, lambda s, t, o: original_step(s, t, o, x_nchw, labels), with_graph, False)
    add("A with only no_grad changed",
        lambda s, t, o: original_step(s, t, o, x_nchw, labels, False), plain, False)
    for name, bf16 in (("fp32", False), ("bf16 autocast", True)):
        add(SIMPLE + name, lambda s, t, o, bf16=bf16: simple_step(s, t, o, x_nhwc, labels, bf16),
            nhwc, True)
    add("ours without the fused teacher", ours, nhwc, True, fused=True)
    add(OURS, ours, fast, True, fused=True)
    return steps, students


def gradients(step: Callable, student: nn.Module) -> Tensor:
    """The student's gradients of one step, in one vector; the student is left as it was."""
    state = copy.deepcopy(student.state_dict())
    step()
    vector = torch.cat([p.grad.flatten().double() for p in student.parameters()])
    student.load_state_dict(state)
    return vector


def equivalence(steps: dict[str, Callable], students: dict[str, nn.Module], amp: str) -> dict:
    """Each variant's student gradients against the original's."""
    expected = gradients(steps[ORIGINAL], students[ORIGINAL])
    checks = {}
    for name in (n for n in steps if n != ORIGINAL):
        got = gradients(steps[name], students[name])
        rounded = "bf16" in name or (name.startswith("ours") and amp == "bf16")
        limit = None if rounded else 1e-6 if "only no_grad" in name else 1e-2
        checks[f"{name}: gradient error"] = {
            "value": measure.relative_error(got, expected), "limit": limit}
        cosine = torch.nn.functional.cosine_similarity(got, expected, 0).item()
        checks[f"{name}: 1 - cosine"] = {"value": 1 - cosine, "limit": 1e-3 if rounded else 1e-5}
    return checks


def needed_flops(teacher: nn.Module, student: nn.Module, batch: int) -> float:
    """Of one step: the teacher forward, the student forward and backward. One FMA = 2."""
    x = torch.randn(batch, 3, 32, 32)
    with FlopCounterMode(display=False) as counter:
        with torch.no_grad():
            teacher(x)
        copy.deepcopy(student)(x).sum().backward()
    return float(counter.get_total_flops())


def add_arguments(parser) -> None:
    parser.add_argument("--teacher", default="wrn_40_2", metavar="NAME",
                        help="default: %(default)s")
    parser.add_argument("--student", default="wrn_16_1", metavar="NAME",
                        help="default: %(default)s")
    parser.add_argument("--batch-size", type=run.positive_int, default=128, metavar="N",
                        help="default: %(default)s")
    parser.add_argument("--classes", type=run.positive_int, default=100, metavar="N",
                        help="default: %(default)s")


def body(argv: list[str]) -> None:
    args = measure.parse("distillation", __doc__, 1, 7, argv, add_arguments)
    if args.dry_run:
        print(f"would time {args.repeats} rounds of a {args.teacher} -> {args.student} step, "
              f"batch {args.batch_size}, about 80 s, into {args.out}")
        return
    device = run.use_device(args)
    torch.manual_seed(args.seed)
    amp = engine.resolve_amp("auto", device)
    teacher, student = make_networks(args.teacher, args.student, args.classes)
    steps, students = make_variants(teacher, student, args.batch_size, args.classes, amp, device)
    print(f"distillation step, {args.teacher} -> {args.student}, batch {args.batch_size}, "
          f"{device}, {args.threads} threads, our amp {amp}")
    checks = equivalence(steps, students, amp)
    measure.require(checks)

    steps["ceiling"], roof = measure.ceiling(
        device, torch.bfloat16 if amp == "bf16" else torch.float32)
    times = measure.interleave(steps, args.repeats, device)
    clock = measure.choose_clock(device, args.threads)
    needed = needed_flops(teacher, student, args.batch_size)
    flops = dict.fromkeys(steps, needed) | {"ceiling": roof}
    rows = measure.table(times, ORIGINAL, clock, args.batch_size, flops, "ceiling")
    roofline = measure.spread(original_over_ceiling(times, needed / roof, clock))
    print(f"  all needed FLOPs at the ceiling's speed would be {roofline['median']:.2f}x")
    rival = min((n for n in steps if n.startswith(SIMPLE)),
                key=lambda n: measure.spread(times[n][clock])["median"])
    verdicts = [measure.verdict(f"ours against the original's step ({c} time)",
                                measure.ratio(times, ORIGINAL, OURS, c), 5.0)
                for c in ("cpu", "wall")]
    verdicts.append(measure.verdict(f"ours against {rival} ({clock} time)",
                                    measure.ratio(times, rival, OURS, clock), 0.95))
    measure.record(args, "distillation", device, {
        "amp": amp, "dtype": "bfloat16" if amp == "bf16" else "float32", "clock": clock,
        "equivalence": checks, "flops_per_step": needed, "best_simple": rival, "rows": rows,
        "ceiling_gflops": roof / measure.spread(times["ceiling"][clock])["median"] / 1e9,
        "ratio_at_ceiling": roofline,
        "ratios": verdicts})


def original_over_ceiling(times: dict, share: float, clock: str) -> list[float]:
    """A's time over that of the needed FLOPs at the ceiling's speed, in each round."""
    return [a / (c * share) for a, c in zip(times[ORIGINAL][clock], times["ceiling"][clock],
                                            strict=True)]


def main(argv: list[str] | None = None) -> int:
    return run.main(body, argv)


if __name__ == "__main__":
    sys.exit(main())
