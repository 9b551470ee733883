"""Train a small class-conditional generator on a task's real images: save/generators/<name>/.

    python -m dm_kd.train_generator --task digits --out save/generators/digits_dit
    python -m dm_kd.train_generator --kind gan --task digits --out save/generators/digits_gan

--kind dit is the miniature of the paper's DiT-XL/2, on pixels; gan stands in for the table's
BigGAN. A generator trained on the task's own data is not data-free, though the student sees no real
image. The folder holds dit.safetensors or gan.safetensors (the averaged weights) with its card.
"""

import argparse
import copy
import dataclasses
import itertools
import math
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from torch import Tensor, nn

from dm_kd import augment, data, image_set, run
from dm_kd.generators import diffusion, dit, gan
from dm_kd.run import UserError
from dm_kd.tasks import Task, get_task

LOG_STEPS = 100  # between rows of metrics.jsonl, whose "epoch" counts them
GRID_COLUMNS, GRID_STEPS = 8, 20
LABEL_DROPOUT = 0.1  # share of labels that become the null class, for guidance
LATENT_SIZE = 32  # numbers of noise per image of the GAN
R1_EVERY = 4  # the penalty's steps, and its weight (StyleGAN2, arXiv 1912.04958, takes 16)
# defaults of each --kind, which is also the name of the weights' file
DEFAULTS = {"dit": {"width": 96, "steps": 1000, "learning_rate": 6e-3},
            "gan": {"width": 32, "steps": 3000, "learning_rate": 1e-3}}


def parse(argv: list[str]) -> argparse.Namespace:
    kind = run.peek(argv, "kind", "dit")
    parser = run.Parser("train_generator", __doc__)
    run.add_data_arguments(parser)
    parser.add_argument("--kind", choices=DEFAULTS, default="dit",
                        help="diffusion transformer or GAN (default: %(default)s)")
    parser.add_argument("--out", type=Path, required=True, metavar="save/generators/NAME",
                        help="the run: generator, log, sample grids, checkpoint")

    def add(flag: str, kind: Callable, default: object, text: str) -> None:
        group.add_argument(flag, type=kind, default=default, metavar="N",
                           help=f"{text} (default: %(default)s)")

    group = parser.add_argument_group("network and training")
    if kind != "gan":
        add("--patch-size", run.positive_int, 2, "pixels per token and side")
        add("--depth", run.positive_int, 4, "blocks")
        add("--heads", run.positive_int, 4, "attention heads")
        add("--warmup-steps", run.nonnegative_int, 50, "steps of linear warm-up")
        group.add_argument("--augment", choices=("default", "none"), default="none",
                           help="the task's pad-and-crop and mirroring (default: %(default)s)")
    add("--width", run.positive_int, None, "channels")
    add("--steps", run.positive_int, None, "training steps")
    add("--learning-rate", run.positive_float, None,
        "of AdamW, a cosine to zero; of both Adams of a GAN, linearly to zero over the last half")
    add("--batch-size", run.positive_int, 64, "images per step")
    add("--ema", run.probability, 0.995, "decay per step of the weights' average")
    add("--sample-every", run.positive_int, 1000, "steps between sample grids")
    add("--checkpoint-seconds", run.positive_float, 60.0, "seconds between checkpoints")
    parser.set_defaults(**DEFAULTS.get(kind, {}))
    run.add_common_arguments(parser)
    return run.parse(parser, argv)


def body(argv: list[str]) -> None:
    args = parse(argv)
    task = get_task(args.task, args.data, args)
    if task.large and not args.resolution:
        raise UserError(f"{task.name}'s images are too large for a generator trained here",
                        "--resolution 64 --patch-size 4")
    task = dataclasses.replace(task, resolution=args.resolution or task.resolution)
    model = build(args, task)
    count = sum(p.numel() for p in model.parameters())
    if args.dry_run:
        print(f"would train a {args.kind} of {count:,} parameters on {task.name} for "
              f"{args.steps} steps of {args.batch_size} images, in {args.out}")
        return
    device = run.use_device(args)
    real = data.load_real(task, "train", args.fold, args.val, args.data)
    real = data.pack(real, task, args.cache, crops=True)
    source = data.Source(real, augment.plain_view(task), args.batch_size, args.seed, device=device)
    inputs = {"source_images": len(real.labels), "source_sha256": real.sha256}
    with run.Run(args.out, args, inputs, args.kind) as folder:
        if folder.result:
            print(f"{args.out} is finished: {folder.result['steps']} steps")
            return
        folder.log(f"{args.kind}, {count:,} parameters, on {len(real.labels)} real images of "
                   f"{task.name}, {device}")
        fit(folder, args, task, model.to(device), source, device)


def build(args: argparse.Namespace, task: Task) -> nn.Module:
    """The network of the flags, initialised from --seed."""
    torch.manual_seed(args.seed)
    if args.kind == "gan":
        return gan.Generator(task.resolution, task.channels, task.num_classes, args.width,
                             LATENT_SIZE)
    model = dit.DiT(task.resolution, args.patch_size, task.channels, args.width, args.depth,
                    args.heads, task.num_classes, learn_sigma=False)  # better in few steps
    # DiT's N(0, 0.02) condition is meant for 400,000 steps: at 800 its samples had no class yet
    # (11 % teacher agreement, against 92 % with a condition of size 1).
    nn.init.normal_(model.y_embedder.embedding_table.weight)
    for layer in (model.t_embedder.mlp[0], model.t_embedder.mlp[2]):
        nn.init.xavier_uniform_(layer.weight)
    return model


# --- the loop -------------------------------------------------------------------------------------

def fit(folder: run.Run, args: argparse.Namespace, task: Task, model: nn.Module,
        source: data.Source, device: torch.device) -> None:
    """Train to --steps, from the folder's checkpoint if it has one."""
    parts, update = (gan_updates if args.kind == "gan" else dit_updates)(args, task, model, device)
    average = copy.deepcopy(model).eval().requires_grad_(False)
    parts["average"] = average
    state = folder.load_checkpoint() or {"step": 0, "seconds": 0.0}
    if state["step"]:
        for name, part in parts.items():
            part.load_state_dict(state[name])
        folder.log(f"resumed at step {state['step']}")
    started = time.monotonic() - state["seconds"]
    bar = run.progress(args.steps, "generator", "steps", done=state["step"])
    batches = batches_from(source, state["step"])

    with run.stoppable() as stop:
        for step in range(state["step"], args.steps):
            images, labels, *key = next(batches)
            row = update(augment.send(images, device), augment.send(labels, device), *key, step)
            decay = min(args.ema, (1 + step) / (10 + step))  # shorter memory in the first steps
            torch._foreach_lerp_(list(average.parameters()),
                                 [p.detach() for p in model.parameters()], 1 - decay)
            bar.update()
            done = step + 1
            last, seconds = done == args.steps, time.monotonic() - started
            log, draw = done % LOG_STEPS == 0 or last, done % args.sample_every == 0 or last
            save = folder.due() or stop() or last
            if (log or draw or save) and not all(p.isfinite().all() for p in average.parameters()):
                raise UserError(f"NaN or infinite loss or weights at step {done}, learning rate "
                                f"{row['lr']:g}", "a lower --learning-rate, in another --out")
            if log:
                log_step(folder, args, done, row, seconds)
            if draw:
                draw_samples(folder, args, task, average, done, device)
            if save:
                folder.save_checkpoint({"step": done, "seconds": seconds, **{
                    name: part.state_dict() for name, part in parts.items()}})
            if stop():
                raise run.Stopped(stop())
    bar.close()
    card = {"model": args.kind, "task": task.name, "class_names": list(task.class_names),
            "config": model.config, "fold": args.fold, "val": args.val,
            "trained_on": f"real training images of {task.name}, fold {args.fold} "
                          f"(--val {args.val})",
            "licence": "that of the training data and of dm_kd"}
    folder.finish(average.state_dict(), card, {
        "steps": args.steps, "images_seen": args.steps * args.batch_size,
        "seconds": round(time.monotonic() - started, 3), "seed": args.seed,
        "hardware": run.hardware(device)})
    folder.log(f"finished: {args.steps} steps")


def log_step(folder: run.Run, args: argparse.Namespace, step: int, row: dict, seconds: float
             ) -> None:
    row = {name: float(value) for name, value in row.items()}
    images = step * args.batch_size
    folder.add_metrics({"epoch": -(-step // LOG_STEPS), "step": step, **row, "images_seen": images,
                        "seconds": round(seconds, 3)})
    folder.log(f"step {step}/{args.steps}  loss {row['train_loss']:.4f}  "
               f"{images / seconds:.0f} images/s")


def batches_from(source: data.Source, step: int) -> Iterator[tuple[Tensor, Tensor, Tensor, int]]:
    """(images, labels, ids, epoch) of each training step from `step`, endlessly."""
    first_epoch, first_step = divmod(step, source.steps_per_epoch)
    for epoch in itertools.count(first_epoch):
        for batch in source.batches(epoch, first_step if epoch == first_epoch else 0):
            yield *batch, epoch


def draw_samples(folder: run.Run, args: argparse.Namespace, task: Task, model: nn.Module, step: int,
                 device: torch.device) -> None:
    """samples_<step>.png: a row for each of the first 20 classes, without guidance."""
    if args.kind == "gan":
        generator = gan.GanGenerator(model, {"truncation": 1.0}, device)
    else:
        settings = {"guidance_scale": 1.0, "steps": GRID_STEPS, "sampler": "ddpm",
                    "guided_channels": "all"}
        generator = dit.DiTGenerator(model, settings, device, clip=True)
    labels = torch.arange(min(task.num_classes, 20)).repeat_interleave(GRID_COLUMNS)
    seeds = [image_set.image_seed(args.seed, int(c), n) for n, c in enumerate(labels)]
    rows = [list(row) for row in generator.sample(labels, seeds).split(GRID_COLUMNS)]
    sheet = image_set.tile(rows, scale=max(1, 32 // task.resolution))
    run.write_file(folder.folder / f"samples_{step:07d}.png", image_set.encode_png(sheet))


# --- DiT ------------------------------------------------------------------------------------------

def dit_updates(args: argparse.Namespace, task: Task, model: dit.DiT, device: torch.device
                ) -> tuple[dict, Callable]:
    """What a checkpoint holds, and update(images, labels, ids, epoch, step) -> {"lr": rate,
    "train_loss": loss}."""
    process = diffusion.Diffusion(device=device)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad],
                                  lr=args.learning_rate, weight_decay=0.0, betas=(0.9, 0.99),
                                  fused=True)
    # on CPUs bfloat16 does not pay for tiny transformers
    bf16 = device.type == "cuda" and run.multiplies_bf16(device)

    def update(images: Tensor, labels: Tensor, ids: Tensor, epoch: int, step: int) -> dict:
        if args.augment == "default":
            images = augment.pad_crop_flip(
                images, augment.crop_offsets(args.seed, epoch, ids, task.pad),
                augment.flips(args.seed, epoch, ids) & task.flip, task.pad)
        optimizer.param_groups[0]["lr"] = rate = learning_rate(step, args)
        x0, labels, i, noise = step_inputs(images, labels, task.num_classes, args.seed, step)
        with torch.autocast(device.type, torch.bfloat16, enabled=bf16):
            loss = diffusion.diffusion_loss(model, process, x0, labels, i, noise).mean()
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        return {"lr": rate, "train_loss": loss.detach()}

    return {"model": model, "optimizer": optimizer}, update


def learning_rate(step: int, args: argparse.Namespace) -> float:
    """Linear warm-up, then a cosine to zero."""
    if step < args.warmup_steps:
        return args.learning_rate * (step + 1) / args.warmup_steps
    done = (step - args.warmup_steps) / max(args.steps - args.warmup_steps, 1)
    return args.learning_rate * 0.5 * (1 + math.cos(math.pi * done))


def step_inputs(images: Tensor, labels: Tensor, num_classes: int, seed: int, step: int
                ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """(x0 in [-1, 1], labels with some dropped to the null class, diffusion steps, noise), a
    function of (seed, step). The steps are spread evenly over the process, one in each of B
    strata."""
    generator = torch.Generator().manual_seed(image_set.image_seed(seed, -1, step))
    b, device = len(images), images.device
    draws = torch.rand(2, b, generator=generator)
    noise = torch.randn(images.shape, generator=generator).to(device)
    strata = (torch.arange(b) + draws[0]) / b
    i = (strata * diffusion.TRAIN_STEPS).long().clamp_max(diffusion.TRAIN_STEPS - 1).to(device)
    dropped = (draws[1] < LABEL_DROPOUT).to(device)
    return images.float() / 127.5 - 1, torch.where(dropped, num_classes, labels), i, noise


# --- GAN ------------------------------------------------------------------------------------------

def gan_updates(args: argparse.Namespace, task: Task, model: gan.Generator, device: torch.device
                ) -> tuple[dict, Callable]:
    """As `dit_updates`."""
    torch.manual_seed(args.seed + 1)
    critic = gan.Discriminator(task.resolution, task.channels, task.num_classes, args.width
                              ).to(device)
    adam = {"betas": (0.0, 0.99), "fused": True}  # no first moment, as BigGAN
    optimizer = torch.optim.Adam(model.parameters(), lr=args.learning_rate, **adam)
    critic_optimizer = torch.optim.Adam(critic.parameters(), lr=args.learning_rate, **adam)

    def update(images: Tensor, labels: Tensor, ids: Tensor, epoch: int, step: int) -> dict:
        images = images.float() / 127.5 - 1
        draws = torch.Generator().manual_seed(image_set.image_seed(args.seed, -1, step))
        z = torch.randn(2, len(images), LATENT_SIZE, generator=draws).to(device)
        # full, then linearly to 0 over the last half
        rate = args.learning_rate * min(1.0, 2 * (1 - step / args.steps))
        optimizer.param_groups[0]["lr"] = critic_optimizer.param_groups[0]["lr"] = rate

        penalised = step % R1_EVERY == 0
        with torch.no_grad():
            fake = model(z[0], labels)
        real_logits = critic(images.requires_grad_(penalised), labels)
        critic_loss = gan.discriminator_loss(real_logits, critic(fake, labels))
        penalty = R1_EVERY * gan.r1_penalty(real_logits, images) if penalised else 0.0
        critic_optimizer.zero_grad(set_to_none=True)
        (critic_loss + penalty).backward()
        critic_optimizer.step()

        critic.requires_grad_(False)
        loss = gan.generator_loss(critic(model(z[1], labels), labels))
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        critic.requires_grad_(True)
        return {"lr": rate, "train_loss": critic_loss.detach(), "generator_loss": loss.detach()}

    return {"model": model, "optimizer": optimizer, "critic": critic,
            "critic_optimizer": critic_optimizer}, update


def main(argv: list[str] | None = None) -> int:
    return run.main(body, argv)


if __name__ == "__main__":
    sys.exit(main())
