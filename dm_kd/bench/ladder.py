"""What each approximation of the sampler costs in accuracy: the error ladder of the synthesis
benchmark, on a small DiT that was trained on the digits.

    python -m dm_kd.bench.synthesis --generator-run save/quickstart/generator \\
        --teacher save/quickstart/teacher

Each rung makes the same labels from the same seeds. trajectory error: norm of the difference of the
last states over the exact one's norm, where both take the same noise (for DPM-Solver++ against
itself with 250 steps). Then what the teacher sees: its agreement with the labels,
entropy, KL divergence from its answers on the exact images, and Frechet distances in its features.
Student accuracy is printed beside them where save/results/ holds what
scripts/sweeps/digits_approximations.sh found. Rungs that only show an error and are slow at it take
a quarter of the images; Frechet distances need all.
"""

import argparse
import copy
import time
from pathlib import Path

import torch
from torch import Tensor

from dm_kd import (
    engine,
    fidelity,
    files,
    inspect_set,
    models,
    run,
    train_generator,
    train_teacher,
)
from dm_kd.errors import UserError
from dm_kd.generators import diffusion, dit
from dm_kd.tasks import get_task, load_real

EXACT = "exact: ancestral, fp32"
LIMIT = "DPM-Solver++, 250 steps"
INTERVAL = [0.2, 0.8]
FP8, DPM = "fp8 products in the inner blocks", "DPM-Solver++, 25 steps"
STUDENTS = Path("save/results/digits_approximations/results.json")  # of the sweep, T = 100
SWEPT = {EXACT: "exact", "bf16 network, fp32 state": "bf16", "50 steps": "t50",
         f"guidance in {INTERVAL[0]:g}-{INTERVAL[1]:g} only": "interval", FP8: "fp8", DPM: "dpm25"}
GENERATOR_STEPS, TEACHER_EPOCHS = "600", "10"  # of what is trained here


def add_arguments(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("error ladder")
    group.add_argument("--ladder-images", type=run.nonnegative_int, default=120, metavar="N",
                       help="images per rung; 0 = no ladder (default: %(default)s)")
    group.add_argument("--ladder-steps", type=run.positive_int, default=100, metavar="T",
                       help="of the exact sampler (default: %(default)s)")
    group.add_argument("--generator-run", default=None, metavar="FOLDER",
                       help="a DiT of train_generator on the digits (default: train one, a minute)")
    group.add_argument("--teacher", default=None, metavar="SPEC",
                       help="a digits classifier (default: train one)")


def trained(args: argparse.Namespace, device: torch.device
            ) -> tuple[dit.DiT, bool, torch.nn.Module]:
    """(DiT, whether it makes pixels, teacher), given or trained below args.out, where a second run
    finds them.

    Raises:
        UserError: training failed, or the given ones are not of the digits."""
    task, common = get_task("digits"), ["--task", "digits", "--device", str(device), "--threads",
                                        str(args.threads)]
    generator, teacher = args.generator_run, args.teacher
    if generator is None:
        generator = str(args.out / "ladder_generator")
        if train_generator.main([*common, "--steps", GENERATOR_STEPS, "--out", generator]):
            raise UserError("the ladder's generator could not be trained", folder=generator)
    if teacher is None:
        teacher = str(args.out / "ladder_teacher")
        if train_teacher.main([*common, "--model", "cnn_w16", "--epochs", TEACHER_EPOCHS,
                               "--batch-size", "64", "--lr-schedule", "cosine", "--out", teacher]):
            raise UserError("the ladder's teacher could not be trained", folder=teacher)
    network, card = dit.load(generator)
    if network.num_classes != task.num_classes or network.channels != task.channels:
        raise UserError("the ladder's generator makes no digits", weights=generator)
    return network.to(device), card["clip"], models.load_frozen(teacher, task)[0].to(device)


def rungs(network: dit.DiT, steps: int) -> dict[str, tuple[dit.DiT, dict, str | None]]:
    """name -> (network, settings that differ, the rung whose last state it should reach)."""
    low, device = copy.deepcopy(network).lower_precision(torch.bfloat16), network.pos_embed.device
    made = {EXACT: (network, {}, None),
            "bf16 network, fp32 state": (low, {}, EXACT),
            f"{steps // 2} steps": (network, {"steps": max(1, steps // 2)}, None),
            f"guidance in {INTERVAL[0]:g}-{INTERVAL[1]:g} only": (
                network, {"guidance_interval": INTERVAL}, EXACT)}
    if (len(network.blocks) > 2 and network.config["width"] % 16 == 0
            and (device.type == "cpu" or dit.multiplies_fp8(device))):  # CPUs show the error only
        made[FP8] = (  # of the bf16 network, as GPUs demand
            dit.to_fp8(copy.deepcopy(low)), {}, EXACT)
    try:
        diffusion.make_dpm_scheduler(25)
        made[LIMIT] = (network, {"sampler": "dpm++", "steps": 250}, None)
        made[DPM] = (network, {"sampler": "dpm++", "steps": 25}, LIMIT)
    except UserError:
        print("  diffusers is not installed: no rung for DPM-Solver++")
    return made


def climb(args: argparse.Namespace, device: torch.device) -> list[dict]:
    """The ladder, printed and as rows for the record."""
    network, clip, teacher = trained(args, device)
    labels = torch.arange(args.ladder_images) % network.num_classes
    seeds = list(range(1, args.ladder_images + 1))
    base = {"guidance_scale": 2.0, "steps": args.ladder_steps, "sampler": "ddpm",
            "guided_channels": "all"}
    print(f"\nerror ladder: {args.ladder_images} digits, s = 2, T = {args.ladder_steps}")
    task = get_task("digits")
    view = engine.plain_view(task)
    _, real = inspect_set.look(teacher, load_real(task, "val").images, view, device)
    states, seen, rows = {}, {}, []
    made_rungs = rungs(network, args.ladder_steps)
    accuracies = student_accuracies(args.ladder_steps)
    for name, (model, changes, _) in made_rungs.items():
        few = name == LIMIT or name == FP8 and device.type == "cpu"
        count = max(1, len(labels) // 4) if few else len(labels)
        warm = dit.DiTGenerator(model, base | changes | {"steps": 2}, device, clip)
        warm.finish(warm.latents(labels[:count], seeds[:count]))
        made = dit.DiTGenerator(model, base | changes, device, clip)
        before = time.process_time() if device.type == "cpu" else time.perf_counter()
        states[name] = made.latents(labels[:count], seeds[:count])
        images = made.finish(states[name])
        seconds = (time.process_time() if device.type == "cpu" else time.perf_counter()) - before
        states[name] = states[name][0].cpu()
        seen[name] = inspect_set.look(teacher, images, view, device)
        rows.append({"rung": name, "images": count, "seconds": seconds,
                     "forwards": sum(1 if s == 1 else 2  # two a step where it is guided
                                     for s in made.scales(made.diffusion.timesteps)),
                     "student": accuracies.get(SWEPT.get(name))})
    for row, (_, _, target) in zip(rows, made_rungs.values(), strict=True):
        row |= figures(row["rung"], target, states, seen, labels, real)
    show(rows)
    return rows


def student_accuracies(steps: int) -> dict[str, dict]:
    """{way of the sweep: its students' accuracy}, of the recorded sweep where it is there and made
    its images in as many steps."""
    if steps != 100 or not STUDENTS.exists():
        return {}
    return {row["name"]: {"acc1_mean": row["acc1_mean"], "interval": row.get("interval")}
            for row in files.read_json(STUDENTS).get("rows", []) if row.get("acc1_mean")}


def figures(name: str, target: str | None, states: dict[str, Tensor], seen: dict, labels: Tensor,
            real: Tensor) -> dict:
    """Of the rung's images, against as many of the exact rung and of its target."""
    (logits, features), count = seen[name], len(states[name])
    exact_logits, exact_features = (part[:count] for part in seen[EXACT])
    log_p, exact = logits.double().log_softmax(1), exact_logits.double().log_softmax(1)
    error = None
    if target is not None:
        both = min(count, len(states[target]))
        ours, theirs = states[name][:both], states[target][:both]
        error = float((ours - theirs).norm() / theirs.norm())
    whole = count == len(labels)  # a distance of fewer images is not comparable
    return {"trajectory_error": error,
            "agreement": 100 * float((logits.argmax(1) == labels[:count]).double().mean()),
            "entropy": float(inspect_set.entropies(logits).mean()),
            "kl_to_exact": float((exact.exp() * (exact - log_p)).sum(1).mean()),
            "frechet_to_exact": fidelity.frechet_distance(features, exact_features)
            if whole else None,
            "frechet_to_real": fidelity.frechet_distance(features, real) if whole else None}


def show(rows: list[dict]) -> None:
    print(f"  {'rung':<34} {'images':>6} {'trajectory':>10} {'agrees %':>8} {'entropy':>8} "
          f"{'KL':>7} {'FD exact':>8} {'FD real':>8} {'forwards':>8} {'seconds':>8}  "
          "student acc1 (sweep)")
    for r in rows:
        error = "" if r["trajectory_error"] is None else f"{r['trajectory_error']:.1e}"
        exact, real = ("" if r[k] is None else f"{r[k]:.3f}"
                       for k in ("frechet_to_exact", "frechet_to_real"))
        student = r["student"]
        shown = "" if student is None else f"{student['acc1_mean']:.2f}" + (
            " [{:.2f}, {:.2f}]".format(*student["interval"]) if student["interval"] else "")
        print(f"  {r['rung']:<34} {r['images']:6d} {error:>10} {r['agreement']:8.1f} "
              f"{r['entropy']:8.3f} {r['kl_to_exact']:7.3f} {exact:>8} {real:>8} "
              f"{r['forwards']:8d} {r['seconds']:8.1f}  {shown}")
