"""What each approximation of the sampler costs in accuracy: the error ladder of the synthesis
benchmark, on a small DiT that was trained on the digits.

    python -m dm_kd.bench.synthesis --generator-run save/quickstart/generator \\
        --teacher save/quickstart/teacher

Each rung makes the same labels from the same seeds. trajectory error: norm of the difference of the
last states over the exact one's norm, where both take the same noise (for DPM-Solver++ against
itself with 250 steps). Then what the teacher sees: its agreement with the labels,
entropy, KL divergence from its answers on the exact images, and Frechet distances in its features.
Student accuracy: scripts/sweeps/digits_approximations.sh.
"""

import argparse
import copy
import time

import torch
from torch import Tensor

from dm_kd import engine, fidelity, inspect_set, models, run, train_generator, train_teacher
from dm_kd.errors import UserError
from dm_kd.generators import diffusion, dit
from dm_kd.tasks import get_task, load_real

EXACT = "exact: ancestral, fp32"
LIMIT = "DPM-Solver++, 250 steps"
INTERVAL = [0.2, 0.8]
GENERATOR_STEPS, TEACHER_EPOCHS = "600", "10"  # of what is trained here


def add_arguments(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("error ladder")
    group.add_argument("--ladder-images", type=run.nonnegative_int, default=200, metavar="N",
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
        made["fp8 products in the inner blocks"] = (  # of the bf16 network, as GPUs demand
            dit.to_fp8(copy.deepcopy(low)), {}, EXACT)
    try:
        diffusion.make_dpm_scheduler(25)
        made[LIMIT] = (network, {"sampler": "dpm++", "steps": 250}, None)
        made["DPM-Solver++, 25 steps"] = (network, {"sampler": "dpm++", "steps": 25}, LIMIT)
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
    for name, (model, changes, _) in made_rungs.items():
        made = dit.DiTGenerator(model, base | changes, device, clip)
        before = time.process_time() if device.type == "cpu" else time.perf_counter()
        states[name] = made.latents(labels, seeds)
        images = made.finish(states[name])
        seconds = (time.process_time() if device.type == "cpu" else time.perf_counter()) - before
        states[name] = states[name][0].cpu()
        seen[name] = inspect_set.look(teacher, images, view, device)
        rows.append({"rung": name, "seconds": seconds,  # two forwards a step where it is guided
                     "forwards": sum(1 if s == 1 else 2
                                     for s in made.scales(made.diffusion.timesteps))})
    for row, (_, _, target) in zip(rows, made_rungs.values(), strict=True):
        row |= figures(row["rung"], target, states, seen, labels, real)
    show(rows)
    return rows


def figures(name: str, target: str | None, states: dict[str, Tensor], seen: dict, labels: Tensor,
            real: Tensor) -> dict:
    (logits, features), (exact_logits, exact_features) = seen[name], seen[EXACT]
    log_p, exact = logits.double().log_softmax(1), exact_logits.double().log_softmax(1)
    error = None
    if target is not None:
        error = float((states[name] - states[target]).norm() / states[target].norm())
    return {"trajectory_error": error,
            "agreement": 100 * float((logits.argmax(1) == labels).double().mean()),
            "entropy": float(inspect_set.entropies(logits).mean()),
            "kl_to_exact": float((exact.exp() * (exact - log_p)).sum(1).mean()),
            "frechet_to_exact": fidelity.frechet_distance(features, exact_features),
            "frechet_to_real": fidelity.frechet_distance(features, real)}


def show(rows: list[dict]) -> None:
    print(f"  {'rung':<46} {'trajectory':>10} {'agrees %':>8} {'entropy':>8} {'KL':>7}"
          f" {'FD exact':>8} {'FD real':>8} {'forwards':>8} {'seconds':>8}")
    for r in rows:
        error = "" if r["trajectory_error"] is None else f"{r['trajectory_error']:.1e}"
        print(f"  {r['rung']:<46} {error:>10} {r['agreement']:8.1f} {r['entropy']:8.3f} "
              f"{r['kl_to_exact']:7.3f} {r['frechet_to_exact']:8.3f} {r['frechet_to_real']:8.3f} "
              f"{r['forwards']:8d} {r['seconds']:8.1f}")
