"""Train a small class-conditional generator on a task's real images: save/generators/<name>/.

    python -m dm_kd.train_generator --task digits --out save/generators/digits_dit
    python -m dm_kd.train_generator --kind gan --task digits --out save/generators/digits_gan

--kind dit is the miniature of the paper's DiT-XL/2, on pixels; gan stands in for the table's
BigGAN. A generator trained on the task's own data is not data-free; the student still never sees a
real image. The folder holds dit.safetensors or gan.safetensors (the averaged weights) with its
card, checkpoints, and a grid of samples each so many steps.
"""

import argparse
import dataclasses
import math
import sys
import time
from pathlib import Path

import torch
from torch import Tensor

from dm_kd import augment, dist, engine, files, image_set, run
from dm_kd.errors import DivergedError, Stopped, UserError
from dm_kd.generators import diffusion, dit, gan
from dm_kd.sources.stored import StoredSource, gathered, resident
from dm_kd.tasks import Task, get_task, load_real

LOG_STEPS = 100
GRID_COLUMNS, GRID_STEPS = 8, 20
R1_EVERY = 4  # steps from one penalty to the next, R1_EVERY times its weight (StyleGAN2's lazy
# regularisation, arXiv 1912.04958, takes 16)
NAMES = {"dit": "DiT", "gan": "GAN"}  # --kind; the weights' file has its name


def parse(argv: list[str]) -> argparse.Namespace:
    kind = run.peek(argv, "kind", "dit")
    parser = run.Parser("train_generator", __doc__)
    run.add_data_arguments(parser)
    parser.add_argument("--kind", choices=NAMES, default="dit",
                        help="diffusion transformer or GAN; each has its own flags below "
                             "(default: %(default)s)")
    parser.add_argument("--out", type=Path, required=True, metavar="save/generators/NAME",
                        help="the run: generator, log, sample grids, checkpoints")
    add_gan_arguments(parser) if kind == "gan" else add_dit_arguments(parser)
    add = parser.add_argument_group("both kinds").add_argument
    add("--resolution", type=run.positive_int, default=None, metavar="PIXELS",
        help="for tasks of large images: side that their centres are resized to (small images "
             "keep their own)")
    add("--batch-size", type=run.positive_int, default=64, metavar="N",
        help="images per step (default: %(default)s)")
    add("--ema", type=run.probability, default=0.995, metavar="P",
        help="decay per step of the weights' average (default: %(default)s)")
    add("--sample-every", type=run.positive_int, default=1000, metavar="N",
        help="steps between sample grids (default: %(default)s)")
    add("--checkpoint-seconds", type=run.positive_float, default=60.0, metavar="S",
        help="seconds between checkpoints (default: %(default)s)")
    run.add_common_arguments(parser)
    return run.parse(parser, argv)


def add_gan_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument_group("network").add_argument
    add("--width", type=run.positive_int, default=32, metavar="N",
        help="channels of every map, a multiple of 8 (default: %(default)s)")
    add("--latent-size", type=run.positive_int, default=32, metavar="N",
        help="numbers of noise per image (default: %(default)s)")
    add = parser.add_argument_group("recipe").add_argument
    add("--steps", type=run.positive_int, default=3000, metavar="N",
        help="steps, each one of the discriminator and one of the generator "
             "(default: %(default)s)")
    add("--learning-rate", type=run.positive_float, default=1e-3, metavar="X",
        help="of the generator's Adam, falling linearly to zero over the last half "
             "(default: %(default)s)")
    add("--discriminator-learning-rate", type=run.positive_float, default=1e-3, metavar="X",
        help="of the discriminator's Adam (default: %(default)s)")
    add("--r1-weight", type=run.nonnegative_float, default=1.0, metavar="X",
        help="of the penalty on the discriminator's slope at real images; 0: none "
             "(default: %(default)s)")


def add_dit_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument_group("network").add_argument
    add("--patch-size", type=run.positive_int, default=2, metavar="N",
        help="pixels per token and side (default: %(default)s)")
    add("--width", type=run.positive_int, default=96, metavar="N", help="default: %(default)s")
    add("--depth", type=run.positive_int, default=4, metavar="N", help="default: %(default)s")
    add("--heads", type=run.positive_int, default=4, metavar="N", help="default: %(default)s")
    add("--learn-sigma", action="store_true",
        help="learn the variance too, as DiT-XL/2 does; a small network in a few thousand steps "
             "makes better images without")
    add = parser.add_argument_group("recipe").add_argument
    add("--steps", type=run.positive_int, default=1000, metavar="N",
        help="training steps (default: %(default)s)")
    add("--learning-rate", type=run.positive_float, default=6e-3, metavar="X",
        help="of AdamW; warm-up, then cosine to zero (default: %(default)s)")
    add("--warmup-steps", type=run.nonnegative_int, default=50, metavar="N",
        help="default: %(default)s")
    add("--weight-decay", type=run.nonnegative_float, default=0.0, metavar="X",
        help="default: %(default)s")
    add("--label-dropout", type=run.probability, default=0.1, metavar="P",
        help="share of labels that become the null class, for guidance (default: %(default)s)")
    add("--augment", choices=("default", "none"), default="none",
        help="the task's pad-and-crop and mirroring (default: %(default)s)")
    add("--amp", choices=("auto", "bf16", "none"), default="auto",
        help="bfloat16 autocast (default: on GPUs; it does not pay for tiny transformers on CPUs)")


def at_resolution(task: Task, resolution: int | None) -> Task:
    """The task with images of the generator's size.

    Raises:
        UserError: none given for large images, or one for small ones."""
    if task.crop and resolution is None:
        raise UserError(f"{task.name}'s images are too large for a generator trained here",
                        hint="--resolution 64 --patch-size 4; or synthesize --weights "
                             "facebook/DiT-XL-2-256")
    if not task.crop and resolution not in (None, task.resolution):
        raise UserError(f"{task.name}'s images have {task.resolution} pixels per side",
                        hint="leave out --resolution")
    return dataclasses.replace(task, resolution=resolution or task.resolution)


def build(args: argparse.Namespace, task: Task) -> dit.DiT:
    """The network of the flags, initialised from --seed.

    Raises:
        UserError: sizes that do not fit together."""
    if task.resolution % args.patch_size:
        raise UserError(f"--patch-size {args.patch_size} does not divide {task.resolution} pixels",
                        hint="--patch-size 2")
    if args.width % (4 * args.heads):
        raise UserError(f"--width {args.width} is no multiple of 4 x --heads {args.heads}",
                        hint=f"--width {-(-args.width // (4 * args.heads)) * 4 * args.heads}")
    torch.manual_seed(args.seed)
    model = dit.DiT(task.resolution, args.patch_size, task.channels, args.width, args.depth,
                    args.heads, task.num_classes, learn_sigma=args.learn_sigma)
    # DiT's N(0, 0.02) condition is meant for 400,000 steps: at 800 its samples had no class yet
    # (11 % teacher agreement, against 92 % with a condition of size 1).
    torch.nn.init.normal_(model.y_embedder.embedding_table.weight)
    for layer in (model.t_embedder.mlp[0], model.t_embedder.mlp[2]):
        torch.nn.init.xavier_uniform_(layer.weight)
    return model


def build_gan(args: argparse.Namespace, task: Task) -> gan.Generator:
    """The generator of the flags, initialised from --seed.

    Raises:
        UserError: a width that is no multiple of 8."""
    if args.width % gan.GROUPS:
        raise UserError(f"--width {args.width} is no multiple of {gan.GROUPS}",
                        hint=f"--width {-(-args.width // gan.GROUPS) * gan.GROUPS}")
    torch.manual_seed(args.seed)
    return gan.Generator(task.resolution, task.channels, task.num_classes, args.width,
                         args.latent_size)


def body(argv: list[str]) -> None:
    args = parse(argv)
    task = at_resolution(get_task(args.task, args.data), args.resolution)
    model = build_gan(args, task) if args.kind == "gan" else build(args, task)
    name = NAMES[args.kind]
    count = sum(p.numel() for p in model.parameters())
    if args.dry_run:
        state = "there already" if (args.out / "config.yaml").exists() else "not made yet"
        print(f"would train a {name} of {count:,} parameters on {task.name} for {args.steps} steps "
              f"of {args.batch_size} images, in {args.out} ({state})")
        return
    run.resume_threads(args)
    dist.refuse_ranks("train_generator")
    device = run.use_device(args)
    if args.kind == "dit" and args.amp == "auto":
        args.amp = "bf16" if device.type == "cuda" and run.multiplies_bf16(device) else "none"
    real = load_real(task, "train", args.fold, args.val, args.data)
    images, digest = gathered(real.images, task, args.cache, judged=True)  # centres, of one size
    source = StoredSource(*resident(images, real.labels, device), args.batch_size, args.seed)
    inputs = {"source_images": len(real.labels), **({"source_sha256": digest} if digest else {})}
    with run.Run(args.out, args, inputs, args.kind, "train_generator") as folder:
        if folder.result:
            print(f"{args.out} is finished: {folder.result['steps']} steps")
            return
        folder.log(f"{name}, {count:,} parameters, on {len(real.labels)} real images of "
                   f"{task.name}, {device}, amp {getattr(args, 'amp', 'none')}")
        if args.kind == "gan":
            fit_gan(folder, args, task, model.to(device), source, device)
            return
        fit(folder, args, task, model.to(device), source, device)


def learning_rate(step: int, args: argparse.Namespace) -> float:
    """Linear warm-up, then a cosine to zero."""
    if step < args.warmup_steps:
        return args.learning_rate * (step + 1) / args.warmup_steps
    done = (step - args.warmup_steps) / max(args.steps - args.warmup_steps, 1)
    return args.learning_rate * 0.5 * (1 + math.cos(math.pi * done))


def step_inputs(images: Tensor, labels: Tensor, num_classes: int, step: int,
                args: argparse.Namespace) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """(x0 in [-1, 1], labels with some dropped to the null class, diffusion steps, noise), a
    function of (seed, step). The label is dropped once, for the whole network; the steps are
    spread evenly over the process, one in each of B strata."""
    generator = torch.Generator().manual_seed(image_set.image_seed(args.seed, -1, step))
    b, device = len(images), images.device
    draws = torch.rand(2, b, generator=generator)
    noise = torch.randn(images.shape, generator=generator).to(device)
    strata = (torch.arange(b) + draws[0]) / b
    i = (strata * diffusion.TRAIN_STEPS).long().clamp_max(diffusion.TRAIN_STEPS - 1).to(device)
    dropped = (draws[1] < args.label_dropout).to(device)
    return (images.float() / 127.5 - 1, torch.where(dropped, num_classes, labels), i, noise)


def fit(folder: run.Run, args: argparse.Namespace, task: Task, model: dit.DiT,
        source: StoredSource, device: torch.device) -> None:
    """Train to --steps, from the folder's checkpoint if it has one; read top to bottom."""
    process = diffusion.Diffusion(device=device)
    weights = [p for p in model.parameters() if p.requires_grad]
    average = [p.detach().clone() for p in weights]
    optimizer = torch.optim.AdamW(weights, lr=args.learning_rate, weight_decay=args.weight_decay,
                                  betas=(0.9, 0.99), fused=True)
    state = folder.load_checkpoint() or {"step": 0, "seconds": 0.0, "losses": []}
    if "model" in state:
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        average = [a.to(device) for a in state["average"]]
        folder.log(f"resumed at step {state['step']}")
    started = time.monotonic() - state["seconds"]
    bar = run.Progress(args.steps, "generator", "steps", done=state["step"])
    losses = [torch.tensor(v) for v in state["losses"]]  # since the last row of metrics.jsonl

    def save(step: int) -> None:
        values = [float(v) for v in losses]
        check_finite(values, [*weights, *average], step)
        folder.save_checkpoint({
            "step": step, "seconds": time.monotonic() - started, "losses": values,
            "model": model.state_dict(), "optimizer": optimizer.state_dict(), "average": average})

    with run.stoppable() as stop:
        for step in range(state["step"], args.steps):
            epoch, at = divmod(step, source.steps_per_epoch)
            images, labels, ids = next(source.batches(epoch, at))
            images, labels = images.to(device), labels.to(device)  # where they are not resident
            if args.augment == "default":
                images = augment.pad_crop_flip(
                    images, augment.crop_offsets(args.seed, epoch, ids, task.pad),
                    augment.flips(args.seed, epoch, ids) & task.flip, task.pad)
            for group in optimizer.param_groups:
                group["lr"] = learning_rate(step, args)
            x0, labels, i, noise = step_inputs(images, labels, task.num_classes, step, args)
            with engine.autocast(args.amp, device):
                loss = diffusion.diffusion_loss(model, process, x0, labels, i, noise).mean()
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            decay = min(args.ema, (1 + step) / (10 + step))  # short memory while all is young
            torch._foreach_lerp_(average, [p.detach() for p in weights], 1 - decay)
            losses.append(loss.detach())
            bar.update()
            done = step + 1
            if done % LOG_STEPS == 0 or done == args.steps:
                log_row(folder, args, done, learning_rate(step, args), {"train_loss": losses},
                        time.monotonic() - started)
                losses.clear()
            if done % args.sample_every == 0 or done == args.steps:
                check_finite([], average, done)
                draw_samples(folder, args, task, model, weights, average, done, device)
            if folder.due() or stop() or done == args.steps:
                save(done)
            if stop():
                raise Stopped(stop())
    bar.close()
    finish(folder, args, task, model, weights, average, time.monotonic() - started, device)


def check_finite(losses: list[float], tensors: list[Tensor], step: int) -> None:
    """Stop before anything is saved.

    Raises:
        DivergedError: a loss or a weight is NaN or infinite."""
    if not (all(map(math.isfinite, losses)) and all(torch.isfinite(v).all() for v in tensors)):
        raise DivergedError(f"the loss or weights became NaN or infinite before step {step}",
                            kept="the checkpoint before it (last.pt)",
                            hint="a lower --learning-rate, in another --out")


def gan_rate(step: int, steps: int) -> float:
    """Factor of both learning rates: 1, then linearly to 0 over the last half."""
    return min(1.0, 2 * (1 - step / steps))


def fit_gan(folder: run.Run, args: argparse.Namespace, task: Task, model: gan.Generator,
            source: StoredSource, device: torch.device) -> None:
    """Train to --steps, from the folder's checkpoint if it has one; read top to bottom."""
    torch.manual_seed(args.seed + 1)
    judge = gan.Discriminator(task.resolution, task.channels, task.num_classes, args.width
                              ).to(device)
    weights = list(model.parameters())
    average = [p.detach().clone() for p in weights]
    adam = {"betas": (0.0, 0.99), "fused": True}  # no first moment, as BigGAN
    optimizer = torch.optim.Adam(weights, lr=args.learning_rate, **adam)
    judge_optimizer = torch.optim.Adam(judge.parameters(), lr=args.discriminator_learning_rate,
                                       **adam)
    state = folder.load_checkpoint() or {"step": 0, "seconds": 0.0, "losses": [[], []]}
    if "model" in state:
        for part, key in ((model, "model"), (judge, "judge"), (optimizer, "optimizer"),
                          (judge_optimizer, "judge_optimizer")):
            part.load_state_dict(state[key])
        average = [a.to(device) for a in state["average"]]
        folder.log(f"resumed at step {state['step']}")
    started = time.monotonic() - state["seconds"]
    bar = run.Progress(args.steps, "generator", "steps", done=state["step"])
    losses = [[torch.tensor(v) for v in values] for values in state["losses"]]  # judge's, own

    def save(step: int) -> None:
        values = [[float(v) for v in part] for part in losses]
        check_finite(sum(values, []), [*weights, *judge.parameters(), *average], step)
        folder.save_checkpoint({
            "step": step, "seconds": time.monotonic() - started, "losses": values,
            "model": model.state_dict(), "judge": judge.state_dict(), "average": average,
            "optimizer": optimizer.state_dict(), "judge_optimizer": judge_optimizer.state_dict()})

    with run.stoppable() as stop:
        for step in range(state["step"], args.steps):
            images, labels, _ = next(source.batches(*divmod(step, source.steps_per_epoch)))
            images, labels = images.to(device).float() / 127.5 - 1, labels.to(device)
            draws = torch.Generator().manual_seed(image_set.image_seed(args.seed, -1, step))
            z = torch.randn(2, len(images), args.latent_size, generator=draws).to(device)
            rate = gan_rate(step, args.steps)
            optimizer.param_groups[0]["lr"] = args.learning_rate * rate
            judge_optimizer.param_groups[0]["lr"] = args.discriminator_learning_rate * rate

            r1_weight = args.r1_weight * R1_EVERY if step % R1_EVERY == 0 else 0.0
            found = gan_step(model, judge, optimizer, judge_optimizer, images, labels, z, r1_weight)
            decay = min(args.ema, (1 + step) / (10 + step))
            torch._foreach_lerp_(average, [p.detach() for p in weights], 1 - decay)
            for values, loss in zip(losses, found, strict=True):
                values.append(loss)
            bar.update()
            done = step + 1
            if done % LOG_STEPS == 0 or done == args.steps:
                log_row(folder, args, done, args.learning_rate * rate,
                        {"train_loss": losses[0], "generator_loss": losses[1]},
                        time.monotonic() - started)
                losses = [[], []]
            if done % args.sample_every == 0 or done == args.steps:
                check_finite([], average, done)
                draw_samples(folder, args, task, model, weights, average, done, device)
            if folder.due() or stop() or done == args.steps:
                save(done)
            if stop():
                raise Stopped(stop())
    bar.close()
    finish(folder, args, task, model, weights, average, time.monotonic() - started, device)


def gan_step(model: gan.Generator, judge: gan.Discriminator, optimizer: torch.optim.Optimizer,
             judge_optimizer: torch.optim.Optimizer, images: Tensor, labels: Tensor, z: Tensor,
             r1_weight: float) -> tuple[Tensor, Tensor]:
    """A step of the judge, then one of the generator, from z[0] and z[1]; the losses of both."""
    with torch.no_grad():
        fake = model(z[0], labels)
    real_verdicts = judge(images.requires_grad_(r1_weight > 0), labels)
    judge_loss = gan.discriminator_loss(real_verdicts, judge(fake, labels))
    penalty = gan.r1_penalty(real_verdicts, images) if r1_weight > 0 else 0.0
    judge_optimizer.zero_grad(set_to_none=True)
    (judge_loss + r1_weight * penalty).backward()
    judge_optimizer.step()

    judge.requires_grad_(False)
    loss = gan.generator_loss(judge(model(z[1], labels), labels))
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    optimizer.step()
    judge.requires_grad_(True)
    return judge_loss.detach(), loss.detach()


def log_row(folder: run.Run, args: argparse.Namespace, step: int, lr: float,
            losses: dict[str, list[Tensor]], seconds: float) -> None:
    """A row of metrics.jsonl for each 100 steps; "epoch" counts the rows. losses: by name."""
    means = {name: float(torch.stack([v.cpu() for v in values]).double().mean())
             for name, values in losses.items()}
    folder.add_metrics({"epoch": -(-step // LOG_STEPS), "step": step, "lr": lr,
                        **{k: v if math.isfinite(v) else None for k, v in means.items()},
                        "images_seen": step * args.batch_size, "seconds": round(seconds, 3),
                        "images_per_second": round(step * args.batch_size / seconds, 1)})
    folder.log(f"step {step}/{args.steps}  loss {' '.join(f'{v:.4f}' for v in means.values())}  "
               f"{step * args.batch_size / seconds:.0f} images/s")


def averaged(model: torch.nn.Module, weights: list[Tensor], average: list[Tensor]
             ) -> dict[str, Tensor]:
    """The state dict with the averaged weights in place of the last ones."""
    replaced = {id(p): a for p, a in zip(weights, average, strict=True)}
    return {name: replaced.get(id(p), p.detach()).clone()
            for name, p in model.named_parameters()}


def draw_samples(folder: run.Run, args: argparse.Namespace, task: Task, model: torch.nn.Module,
                 weights: list[Tensor], average: list[Tensor], step: int,
                 device: torch.device) -> None:
    """samples_<step>.png: a row per class (the first 20) from the averaged weights, s = 1."""
    copy = type(model)(**model.config).to(device)
    copy.load_state_dict(averaged(model, weights, average))
    if args.kind == "gan":
        generator = gan.GanGenerator(copy.eval(), {"truncation": 1.0}, device)
    else:
        settings = {"guidance_scale": 1.0, "steps": GRID_STEPS, "sampler": "ddpm",
                    "guided_channels": "all"}
        generator = dit.DiTGenerator(copy.eval(), settings, device, clip=True)
    classes = min(task.num_classes, 20)
    labels = torch.arange(classes).repeat_interleave(GRID_COLUMNS)
    seeds = [image_set.image_seed(args.seed, int(c), n) for n, c in enumerate(labels)]
    images = generator.sample(labels, seeds)
    rows = [list(row) for row in images.split(GRID_COLUMNS)]
    sheet = image_set.tile(rows, scale=max(1, 32 // task.resolution))
    files.durable_write(folder.folder / f"samples_{step:07d}.png", image_set.encode_png(sheet))


def finish(folder: run.Run, args: argparse.Namespace, task: Task, model: torch.nn.Module,
           weights: list[Tensor], average: list[Tensor], seconds: float,
           device: torch.device) -> None:
    card = {"model": args.kind, "task": task.name, "class_names": list(task.class_names),
            "config": model.config, "clip": True,
            "trained_on": f"real training images of {task.name}, fold {args.fold} "
                          f"(--val {args.val})",
            "fold": args.fold, "val": args.val, "licence": "that of the training data and of dm_kd"}
    folder.finish(averaged(model, weights, average), card, {
        "steps": args.steps, "images_seen": args.steps * args.batch_size,
        "seconds": round(seconds, 3), "seed": args.seed, "hardware": run.hardware(device)})
    folder.log(f"finished: {args.steps} steps")


def main(argv: list[str] | None = None) -> int:
    return run.main(body, argv)


if __name__ == "__main__":
    sys.exit(main())
