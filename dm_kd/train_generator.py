"""Train a small class-conditional generator on a task's real images: save/generators/<name>/.

    python -m dm_kd.train_generator --task digits --out save/generators/digits_dit
    python -m dm_kd.train_generator --kind gan --task digits --out save/generators/digits_gan

--kind dit is the miniature of the paper's DiT-XL/2, on pixels; gan stands in for the table's
BigGAN. A generator trained on the task's own data is not data-free, though the student sees no real
image. The folder holds dit.safetensors or gan.safetensors (the averaged weights) with its card.
"""

import argparse
import copy
import math
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dm_kd import augment, data, image_set, run
from dm_kd.generators import diffusion, dit, gan
from dm_kd.run import UserError
from dm_kd.tasks import Task, get_task

LOG_STEPS = 100  # between rows of metrics.jsonl, whose "epoch" counts them
LABEL_DROPOUT = 0.1  # share of labels that become the null class, for guidance
LATENT_SIZE = 32  # numbers of noise per image of the GAN
R1_EVERY = 4  # the penalty's steps, and its weight (StyleGAN2, arXiv 1912.04958, takes 16)


def parse(argv: list[str]) -> argparse.Namespace:
    is_gan = run.peek(argv, "kind", "dit") == "gan"
    parser = run.Parser("train_generator", __doc__)
    run.add_data_arguments(parser)
    parser.add_argument("--kind", choices=("dit", "gan"), default="dit",
                        help="diffusion transformer or GAN (default: %(default)s)")
    parser.add_argument("--out", type=Path, required=True, metavar="save/generators/NAME",
                        help="the run: generator, log, checkpoint")
    group = parser.add_argument_group("network and training")

    def add(flag: str, kind: Callable, default: object, text: str) -> None:
        group.add_argument(flag, type=kind, default=default, metavar="N",
                           help=f"{text} (default: %(default)s)")

    if not is_gan:
        add("--patch-size", run.positive_int, 2, "pixels per token and side")
        add("--depth", run.positive_int, 4, "blocks")
        add("--heads", run.positive_int, 4, "attention heads")
        add("--warmup-steps", run.nonnegative_int, 50, "steps of linear warm-up")
    add("--width", run.positive_int, 32 if is_gan else 96, "channels")
    add("--steps", run.positive_int, 3000 if is_gan else 1000, "training steps")
    add("--learning-rate", run.positive_float, 1e-3 if is_gan else 6e-3,
        "of AdamW, a cosine to zero; of both Adams of a GAN, linearly to zero over the last half")
    add("--batch-size", run.positive_int, 64, "images per step")
    add("--ema", run.probability, 0.995, "decay per step of the weights' average")
    group.add_argument("--augment", choices=("default", "none"), default="none",
                       help="the task's pad-and-crop and mirroring (default: %(default)s)")
    add("--checkpoint-seconds", run.positive_float, 60.0, "seconds between checkpoints")
    run.add_common_arguments(parser)
    return run.parse(parser, argv)


@run.command
def main(argv: list[str]) -> None:
    args = parse(argv)
    task = get_task(args.task, args.data, args)
    if task.large and not args.resolution:
        raise UserError(f"{task.name}'s images are too large for a generator trained here",
                        "--resolution 64 --patch-size 4")
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


def fit(folder: run.Run, args: argparse.Namespace, task: Task, model: nn.Module,
        source: data.Source, device: torch.device) -> None:
    parts, update = (gan_updates if args.kind == "gan" else dit_updates)(args, task, model, device)
    average = copy.deepcopy(model).eval().requires_grad_(False)
    parts |= {"model": model, "average": average}
    state = folder.load_checkpoint() or {"step": 0, "seconds": 0.0}
    if state["step"]:
        for name, part in parts.items():
            part.load_state_dict(state[name])
        folder.log(f"resumed at step {state['step']}")
    started = time.monotonic() - state["seconds"]

    batches = batches_from(source, state["step"], args, task, device)
    with run.progress(args.steps, "generator", "steps", done=state["step"]) as bar:
        for step in range(state["step"], args.steps):
            draws = torch.Generator().manual_seed(image_set.image_seed(args.seed, -1, step))
            row = update(*next(batches), step, draws)
            done = step + 1
            decay = min(args.ema, done / (done + 9))  # shorter memory in the first steps
            torch._foreach_lerp_(list(average.parameters()),
                                 [p.detach() for p in model.parameters()], 1 - decay)
            log = done % LOG_STEPS == 0 or done == args.steps
            save = folder.due() or done == args.steps
            if (log or save) and not all(p.isfinite().all() for p in average.parameters()):
                raise UserError(f"NaN or infinite loss or weights at step {done}, learning rate "
                                f"{row['lr']:g}", "a lower --learning-rate, in another --out")
            seconds = time.monotonic() - started
            if log:
                row = {name: float(value) for name, value in row.items()}
                folder.add_metrics({"epoch": -(-done // LOG_STEPS), "step": done, **row})
                folder.log(f"step {done}/{args.steps}  loss {row['train_loss']:.4f}  "
                           f"{done * args.batch_size / seconds:.0f} images/s")
            if save:
                folder.save_checkpoint({"step": done, "seconds": seconds, **{
                    name: part.state_dict() for name, part in parts.items()}})
            bar.update(1)

    card = {"model": args.kind, "task": task.name, "class_names": list(task.class_names),
            "config": model.config,
            "epochs": round(args.steps * args.batch_size / len(source.labels), 1),
            "trained_on": f"real training images of {task.name}, fold {args.fold} "
                          f"(--val {args.val})",
            "licence": "that of the training data and of dm_kd"}
    folder.finish(average.state_dict(), card, {
        "steps": args.steps, "seconds": round(time.monotonic() - started, 3), "seed": args.seed,
        "hardware": run.hardware(device)})
    folder.log(f"finished: {args.steps} steps")


def batches_from(source: data.Source, step: int, args: argparse.Namespace, task: Task,
                 device: torch.device) -> Iterator[tuple[Tensor, Tensor]]:
    """(images float32 in [-1, 1], labels) of each training step from `step`, augmented, on the
    device, endlessly."""
    epoch, first_step = divmod(step, source.steps_per_epoch)
    while True:
        for images, labels, ids in source.batches(epoch, first_step):
            images = augment.send(images, device)
            if args.augment == "default":
                images = augment.pad_crop_flip(
                    images, augment.crop_offsets(args.seed, epoch, ids, task.pad),
                    augment.flips(args.seed, epoch, ids) & task.flip, task.pad)
            yield images.float() / 127.5 - 1, augment.send(labels, device)
        epoch, first_step = epoch + 1, 0


def step_along(loss: Tensor, optimizer: torch.optim.Optimizer) -> None:
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    optimizer.step()


def dit_updates(args: argparse.Namespace, task: Task, model: dit.DiT, device: torch.device
                ) -> tuple[dict, Callable]:
    """What a checkpoint holds beside the model, and update(images, labels, step, draws) -> {"lr":
    rate, "train_loss": loss}."""
    process = diffusion.Diffusion(device=device)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad],
                                  weight_decay=0.0, betas=(0.9, 0.99), fused=True)
    # on CPUs bfloat16 does not pay for tiny transformers
    bf16 = device.type == "cuda" and run.multiplies_bf16(device)

    def update(images: Tensor, labels: Tensor, step: int, draws: torch.Generator) -> dict:
        if step < args.warmup_steps:
            rate = args.learning_rate * (step + 1) / args.warmup_steps
        else:  # a cosine to zero
            done = (step - args.warmup_steps) / (args.steps - args.warmup_steps)
            rate = args.learning_rate * 0.5 * (1 + math.cos(math.pi * done))
        optimizer.param_groups[0]["lr"] = rate

        b = len(images)
        uniform = torch.rand(2, b, generator=draws)
        noise = augment.send(torch.randn(images.shape, generator=draws), device)
        # diffusion steps: one in each of B strata of the process
        i = ((torch.arange(b) + uniform[0]) / b * diffusion.TRAIN_STEPS).long()
        i = augment.send(i.clamp_max(diffusion.TRAIN_STEPS - 1), device)
        dropped = augment.send(uniform[1] < LABEL_DROPOUT, device)
        labels = torch.where(dropped, task.num_classes, labels)
        with torch.autocast(device.type, torch.bfloat16, enabled=bf16):
            loss = diffusion.diffusion_loss(model, process, images, labels, i, noise).mean()
        step_along(loss, optimizer)
        return {"lr": rate, "train_loss": loss.detach()}

    return {"optimizer": optimizer}, update


def gan_updates(args: argparse.Namespace, task: Task, model: gan.Generator, device: torch.device
                ) -> tuple[dict, Callable]:
    """As `dit_updates`."""
    torch.manual_seed(args.seed + 1)
    critic = gan.Discriminator(task.resolution, task.channels, task.num_classes, args.width
                              ).to(device)
    optimizer, critic_optimizer = (  # no first moment, as BigGAN
        torch.optim.Adam(network.parameters(), betas=(0.0, 0.99), fused=True)
        for network in (model, critic))

    def update(images: Tensor, labels: Tensor, step: int, draws: torch.Generator) -> dict:
        z = augment.send(torch.randn(2, len(images), LATENT_SIZE, generator=draws), device)
        # full, then linearly to 0 over the last half
        rate = args.learning_rate * min(1.0, 2 * (1 - step / args.steps))
        optimizer.param_groups[0]["lr"] = critic_optimizer.param_groups[0]["lr"] = rate

        # non-saturating losses (Goodfellow et al. 2014, arXiv 1406.2661)
        with torch.no_grad():
            fake = model(z[0], labels)
        penalised = step % R1_EVERY == 0
        real_logits = critic(images.requires_grad_(penalised), labels)
        critic_loss = F.softplus(-real_logits).mean() + F.softplus(critic(fake, labels)).mean()
        penalty = 0.0
        if penalised:  # R1: 1/2 E |grad D|^2 at real images (Mescheder et al., arXiv 1801.04406)
            slopes, = torch.autograd.grad(real_logits.sum(), images, create_graph=True)
            penalty = R1_EVERY * slopes.square().sum((1, 2, 3)).mean() / 2
        step_along(critic_loss + penalty, critic_optimizer)
        critic.requires_grad_(False)
        loss = F.softplus(-critic(model(z[1], labels), labels)).mean()
        step_along(loss, optimizer)
        critic.requires_grad_(True)
        return {"lr": rate, "train_loss": critic_loss.detach(), "generator_loss": loss.detach()}

    return {"optimizer": optimizer, "critic": critic, "critic_optimizer": critic_optimizer}, update


if __name__ == "__main__":
    sys.exit(main())
