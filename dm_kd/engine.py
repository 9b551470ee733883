"""The training loop of every classifier here: teachers, students alone, students from a teacher.

Read `fit` top to bottom. Every random choice is a function of (seed, epoch, step or image id), so a
checkpoint holds the step and no generator state, and a killed run ends in the same bits.
"""

import argparse
import functools
import importlib.util
import math
import os
import shutil
import time
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dm_kd import augment, dist
from dm_kd.augment import View, make_view, plain_view  # noqa: F401
from dm_kd.errors import DivergedError, Stopped, UserError
from dm_kd.run import (
    Progress,
    Run,
    epoch_list,
    hardware,
    multiplies_bf16,
    nonnegative_float,
    nonnegative_int,
    positive_float,
    positive_int,
    probability,
    read_metrics,
    stoppable,
)

EVAL_BATCH = 512
POLL_STEPS = 50  # ranks agree on saving and stopping each so many steps,
POLL_SECONDS = 3.0  # or seconds: torchrun kills 30 seconds after it asked to stop
NAMED_IMAGES = 16  # in the message that the loss diverged
COMPILER = "inductor"
LR_DECAY_EPOCHS = (30, 60, 90)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The recipe's flags. Defaults: the paper's ImageNet recipe."""
    group = parser.add_argument_group("recipe")
    group.add_argument("--epochs", type=positive_int, default=100, metavar="N",
                       help="default: %(default)s")
    group.add_argument("--steps-per-epoch", type=positive_int, default=None, metavar="N",
                       help="steps that count as an epoch (default: one pass over the images)")
    group.add_argument("--batch-size", type=positive_int, default=256, metavar="N",
                       help="images per step, over all processes (default: %(default)s)")
    group.add_argument("--optimizer", choices=("sgd", "adamw"), default="sgd",
                       help="SGD has momentum 0.9 (default: %(default)s)")
    group.add_argument("--learning-rate", type=positive_float, default=0.1, metavar="X",
                       help="default: %(default)s")
    group.add_argument("--lr-schedule", choices=("step", "cosine"), default="step",
                       help="step: x 0.1 after each of --lr-decay-epochs; cosine: to zero "
                            "(default: %(default)s)")
    group.add_argument("--lr-decay-epochs", type=epoch_list, default=LR_DECAY_EPOCHS,
                       metavar="LIST",
                       help="epochs after which the rate drops (default: 30,60,90)")
    group.add_argument("--warmup-epochs", type=nonnegative_int, default=0, metavar="N",
                       help="epochs in which the rate rises linearly from a hundredth (default: "
                            "%(default)s)")
    group.add_argument("--weight-decay", type=nonnegative_float, default=1e-4, metavar="X",
                       help="on all weights (default: %(default)s)")
    group.add_argument("--augment", choices=("default", "none"), default="default",
                       help="the task's own training augmentation, or none "
                            "(default: %(default)s)")
    group.add_argument("--mixup", type=nonnegative_float, default=0.0, metavar="A",
                       help="Beta(A, A) mixup before both networks; 0 = off")
    group.add_argument("--cutmix", type=nonnegative_float, default=0.0, metavar="A",
                       help="Beta(A, A) cutmix before both networks; 0 = off; beside --mixup each "
                            "takes half of the mixed batches")
    group.add_argument("--mix-share", type=probability, default=1.0, metavar="P",
                       help="share of the batches that --mixup or --cutmix mix (default: "
                            "%(default)s)")
    group.add_argument("--amp", choices=("auto", "bf16", "none"), default="auto",
                       help="bfloat16 autocast; logits and loss stay float32 (default: bf16 where "
                            "the hardware computes it)")
    group.add_argument("--compile", choices=("auto", "on", "off"), default="auto",
                       help="torch.compile of both networks, with CUDA graphs on one GPU (default: "
                            "on for GPUs; on CPUs it gains nothing and takes a minute)")
    group.add_argument("--bn-group", type=positive_int, default=None, metavar="N",
                       help="batch norms of the trained network see groups of N images of the "
                            "batch, as on GPUs with N images each and no SyncBN; the original: 32 "
                            "(default: the batch of each process)")
    group.add_argument("--tensorboard", action="store_true",
                       help="write each epoch's numbers to OUT/tensorboard too (needs the package "
                            "tensorboard)")
    group.add_argument("--checkpoint-seconds", type=positive_float, default=60.0, metavar="S",
                       help="seconds between checkpoints (default: %(default)s)")


def check_arguments(args: argparse.Namespace) -> None:
    """What can be refused before anything is read.

    Raises:
        UserError: the batch divides neither over the ranks nor into --bn-group; warm-up to the end;
            no tensorboard, no C compiler."""
    ranks = dist.world_size()
    if args.batch_size % ranks:
        raise UserError(f"--batch-size {args.batch_size} does not divide over {ranks} processes",
                        hint=f"--batch-size {max(args.batch_size // ranks, 1) * ranks}")
    if args.warmup_epochs >= args.epochs:
        raise UserError(f"--warmup-epochs {args.warmup_epochs} leaves no epoch of --epochs "
                        f"{args.epochs} at the full rate", hint="fewer, or more --epochs")
    share = args.batch_size // ranks
    if args.bn_group and share % args.bn_group:
        raise UserError(f"the {share} images of a process do not divide into groups of "
                        f"{args.bn_group}", hint="a --bn-group that divides --batch-size")
    if args.compile == "on" and COMPILER == "inductor" and not c_compiler():
        raise UserError("--compile on needs a C compiler, and there is none on the PATH",
                        hint="--compile off, or install gcc")
    if args.tensorboard and importlib.util.find_spec("tensorboard") is None:
        raise UserError("--tensorboard needs the package tensorboard",
                        hint="pip install tensorboard")


def idle_flags(args: argparse.Namespace) -> list[str]:
    """Lines for the log about flags of the recipe that do nothing beside the others."""
    notes = []
    if args.mix_share < 1 and not (args.mixup or args.cutmix):
        notes.append(f"note: --mix-share {args.mix_share:g} of no mixing: --mixup and --cutmix "
                     "are 0")
    if args.lr_schedule == "cosine" and args.lr_decay_epochs != LR_DECAY_EPOCHS:
        notes.append("note: --lr-schedule cosine does not look at --lr-decay-epochs")
    return notes


def resolve_amp(choice: str, device: torch.device) -> str:
    """"bf16" or "none". auto: on GPUs, and on CPUs with bfloat16 instructions (without them
    autocast is slower than float32)."""
    if choice != "auto":
        return choice
    return "bf16" if multiplies_bf16(device) else "none"


def autocast(amp: str, device: torch.device) -> torch.autocast:
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=amp == "bf16")


def resolve_compile(choice: str, device: torch.device) -> str:
    """"on" or "off". auto: on for GPUs that Triton compiles for (NVIDIA's from Volta on), where it
    is there, and a C compiler, which it needs."""
    if choice != "auto":
        return choice
    able = (device.type == "cuda" and importlib.util.find_spec("triton") and c_compiler()
            and (torch.version.hip or torch.cuda.get_device_capability(device) >= (7, 0)))
    return "on" if able else "off"


def c_compiler() -> str | None:
    """The C compiler that Triton and inductor would take, None where there is none."""
    return os.environ.get("CC") or shutil.which("gcc") or shutil.which("clang")


def compiled(network: nn.Module, args: argparse.Namespace, device: torch.device) -> nn.Module:
    """What runs the training steps: `network` itself with --compile off. Batches have one shape, so
    on one GPU its kernels are recorded once and replayed (CUDA graphs). Weights, checkpoints and
    judging stay with `network`, whose keys have no prefix. args.compile: "on" or anything else."""
    if args.compile != "on":
        return network
    graphs = device.type == "cuda" and dist.world_size() == 1
    return torch.compile(network, backend=COMPILER, dynamic=False,
                         mode="reduce-overhead" if graphs else None)


class GroupedBatchNorm2d(nn.BatchNorm2d):
    """Batch norm with statistics of each `group` images in turn, as DistributedDataParallel without
    SyncBN has them. The running statistics are the first group's, as they are rank 0's there."""

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, H, W], B a multiple of the group; in eval mode the plain batch norm."""
        if not self.training:
            return super().forward(x)
        first, *others = x.split(self.group)
        return torch.cat([super().forward(first), *(
            F.batch_norm(part, None, None, self.weight, self.bias, True, 0.0, self.eps)
            for part in others)])


def group_batch_norms(network: nn.Module, group: int) -> None:
    """Make the batch norms of `network` grouped ones, in place; its state dict stays as it is.

    Raises:
        UserError: it has none, or some of another kind."""
    norms = [m for m in network.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    other = [type(m).__name__ for m in norms if type(m) is not nn.BatchNorm2d]
    if other or not norms:
        raise UserError(f"--bn-group cannot group {other[0]}" if other else
                        "--bn-group: the network has no batch norm", hint="leave it out")
    for norm in norms:
        norm.__class__, norm.group = GroupedBatchNorm2d, group


def learning_rate(epoch: float, args: argparse.Namespace) -> float:
    """The rate at a moment of training.

    Args:
        epoch: epochs done so far, with its fraction: 0 at the first step.
    """
    if epoch < args.warmup_epochs:
        return args.learning_rate * max(epoch / args.warmup_epochs, 0.01)
    if args.lr_schedule == "cosine":
        done = (epoch - args.warmup_epochs) / max(args.epochs - args.warmup_epochs, 1)
        return args.learning_rate * 0.5 * (1 + math.cos(math.pi * done))
    return args.learning_rate * 0.1 ** sum(epoch >= e for e in args.lr_decay_epochs)


def make_optimizer(model: nn.Module, args: argparse.Namespace) -> torch.optim.Optimizer:
    if args.optimizer == "sgd":
        return torch.optim.SGD(model.parameters(), lr=args.learning_rate, momentum=0.9,
                               weight_decay=args.weight_decay, fused=True)
    return torch.optim.AdamW(model.parameters(), lr=args.learning_rate,
                             weight_decay=args.weight_decay, fused=True)


def train_step(student: nn.Module, teacher: nn.Module | None, optimizer: torch.optim.Optimizer,
               objective: Callable, x: Tensor, labels: Tensor, temperature: float,
               amp: str) -> Tensor:
    """One update; returns the loss without reading it. The teacher sees x under no_grad."""
    optimizer.zero_grad(set_to_none=True)
    teacher_logits = None
    with autocast(amp, x.device):
        if teacher is not None:
            with torch.no_grad():
                teacher_logits = teacher(x)
        student_logits = student(x)
    loss = objective(student_logits, teacher_logits, labels, temperature)
    loss.backward()
    optimizer.step()
    return loss.detach()


def take(images, index: Tensor) -> Tensor | list[Tensor]:
    """Those at the positions `index`, of a tensor or of files, which are decoded."""
    if isinstance(images, Tensor):
        return torch.index_select(images, 0, index.to(images.device))
    return images[index]


@torch.inference_mode()
def predict(model: nn.Module, images, view: View, device: torch.device,
            amp: str) -> Tensor:
    """Float32 logits [N, classes] for uint8 images; each rank computes a share, all get all."""
    was_training = model.training
    model.eval()
    mine = torch.arange(len(images))[dist.rank()::dist.world_size()]
    logits = None
    for chunk in mine.split(EVAL_BATCH):
        x = view.plain(take(images, chunk), device)
        with autocast(amp, device):
            part = model(x).float()
        if logits is None:
            logits = torch.zeros(len(images), part.shape[1], device=device)
        logits[chunk.to(device)] = part
    if logits is None:  # more ranks than images: learn the width from one image
        with autocast(amp, device):
            width = model(view.plain(take(images, torch.arange(1)), device)).shape[1]
        logits = torch.zeros(len(images), width, device=device)
    model.train(was_training)
    return dist.total(logits).cpu()


def accuracy(logits: Tensor, labels: Tensor) -> tuple[float, float]:
    """acc1 and acc5 in percent, each image counted once. logits [N, classes], labels int64 [N]."""
    top = logits.topk(min(5, logits.shape[1])).indices == labels[:, None]
    return (100 * top[:, 0].double().mean().item(), 100 * top.any(1).double().mean().item())


def fit(run: Run, args: argparse.Namespace, view: View, student: nn.Module,
        teacher: nn.Module | None, source, objective: Callable, val, device: torch.device,
        card: dict, cache=None) -> dict:
    """Train `student` to the end of `args.epochs`, from the run's checkpoint if it has one.

    Args:
        source: `batches(epoch, first_step, student)`; `warm_up(student)`, which yields where what
            comes before the first step can be saved; `held_out(student)`, images that it has not
            trained on, or None. See sources/.
        objective: f(student_logits, teacher_logits, labels, temperature) -> scalar.
        val: RealData to judge on after each epoch, or None.
        card: what stands in the weights' card (model, task, ...).
        cache: `logits(teacher, epoch, step, x)` in place of the teacher; see teacher_cache.py.

    Returns:
        The finished run's result.

    Raises:
        DivergedError: a loss is NaN or infinite; the checkpoint before it is kept.
        Stopped: a signal came; the state was saved.
    """
    student = student.to(device, memory_format=torch.channels_last)
    if args.bn_group:
        group_batch_norms(student, args.bn_group)
    teach = None
    if teacher is not None:
        teacher = teacher.to(device, memory_format=torch.channels_last)
        teach = compiled(teacher, args, device)
    optimizer = make_optimizer(student, args)
    state = run.load_checkpoint() or {"epoch": 0, "step": 0, "seconds": 0.0, "best_acc1": -1.0,
                                      "best_epoch": 0, "losses": None, "images_seen": 0}
    if "model" in state:
        student.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        source.load_state_dict(state["source"])
        run.log(f"resumed at epoch {state['epoch'] + 1}, step {state['step']}")
    network = compiled(parallel(student, device), args, device)
    teacher_acc1, teacher_top = None, None
    if teacher is not None and val is not None:
        teacher_logits = predict(teacher, val.images, view, device, args.amp)
        teacher_acc1 = accuracy(teacher_logits, val.labels)[0]
        teacher_top = teacher_logits.argmax(1)
        run.log(f"teacher Acc@1 {teacher_acc1:.2f} on {len(val.labels)} images")

    started = time.monotonic() - state["seconds"]
    board = open_board(run, state["epoch"]) if args.tensorboard and dist.is_main() else None
    logits = None
    with stoppable() as stop:
        for _ in source.warm_up(student):
            if stop() or run.due():
                state["seconds"] = time.monotonic() - started
                save(run, state, student, optimizer, source)
            if stop():
                raise Stopped(stop())
        for epoch in range(state["epoch"], args.epochs):
            losses = train_one_epoch(run, args, view, network, student, teach, cache, optimizer,
                                     source, objective, device, epoch, state, started, stop)
            dist.copy_from_main(student.buffers())  # each rank has its own batch statistics
            state |= {"epoch": epoch + 1, "step": 0, "losses": None,
                      "images_seen": (epoch + 1) * source.steps_per_epoch * args.batch_size}
            row, logits = judge_epoch(run, args, view, student, val, state, losses, device)
            state["seconds"] = time.monotonic() - started
            row |= {"seconds": round(state["seconds"], 3),
                    "images_per_second": round(row["images_seen"] / state["seconds"], 1),
                    **source.budget()}
            run.add_metrics(row)
            if board is not None:
                add_scalars(board, row)
            run.log(epoch_line(row, args.epochs))
            if dist.any_rank(run.due()) or epoch + 1 == args.epochs:
                save(run, state, student, optimizer, source)
            if dist.any_rank(bool(stop())):
                save(run, state, student, optimizer, source)
                raise Stopped(stop() or 15)

    if board is not None:
        board.close()
    if val is not None and logits is None:  # killed between the last checkpoint and the end
        logits = predict(student, val.images, view, device, args.amp)
    used = budget(state, source, teacher is not None)
    blind = blind_agreement(student, teacher, source, view, device, args.amp)
    return finish(run, args, state, student, logits, val, teacher_acc1, teacher_top, device, card,
                  used, blind)


def parallel(student: nn.Module, device: torch.device) -> nn.Module:
    """The student as several processes train it; by itself in one."""
    if dist.world_size() == 1:
        return student
    return nn.parallel.DistributedDataParallel(
        student, device_ids=[device] if device.type == "cuda" else None,
        broadcast_buffers=False)  # all get rank 0's statistics at the end of an epoch


def judge_epoch(run: Run, args: argparse.Namespace, view: View, student: nn.Module, val,
                state: dict, losses: Tensor, device: torch.device) -> tuple[dict, Tensor | None]:
    """The row of metrics.jsonl of the epoch that ended, and the logits on `val` if there is one;
    the best weights so far are kept, and noted in `state`."""
    epoch = state["epoch"]
    row = {"epoch": epoch, "lr": learning_rate(epoch - 1, args),
           "train_loss": losses.double().mean().item(), "val_acc1": None, "val_acc5": None,
           "images_seen": state["images_seen"]}
    if val is None:
        return row, None
    logits = predict(student, val.images, view, device, args.amp)
    row["val_acc1"], row["val_acc5"] = accuracy(logits, val.labels)
    warn_of_one_class(run, logits, val.labels)
    if row["val_acc1"] > state["best_acc1"]:
        state |= {"best_acc1": row["val_acc1"], "best_epoch": epoch}
        save_best(run, student, epoch, row["val_acc1"])
    return row, logits


def warn_of_one_class(run: Run, logits: Tensor, labels: Tensor) -> None:
    """Say it when a network gives all images of several classes one and the same name: without
    batch norms too high a rate leaves units that never answer again."""
    if len(logits.argmax(1).unique()) == 1 and len(labels.unique()) > 1:
        run.log("note: every image is given the same class; if that stays so, a lower "
                "--learning-rate or --warmup-epochs 1, in another --out")


def blind_agreement(student: nn.Module, teacher: nn.Module | None, source, view: View,
                    device: torch.device, amp: str) -> float | None:
    """Percent of the source's images that were held out on which student and teacher name one
    class: what somebody without real images can choose settings by. None where it holds none."""
    images = None if teacher is None else source.held_out(student)
    if images is None or not len(images):
        return None
    top = [predict(model, images, view, device, amp).argmax(1) for model in (student, teacher)]
    return 100 * (top[0] == top[1]).double().mean().item()


def budget(state: dict, source, taught: bool) -> dict:
    """What a run has used, its source included: evaluations and passes in images through a
    network, forward (a backward pass, if any, is part of the same), None where unknown. Logits that
    a cache held count as passes: they were made once."""
    used = source.budget()
    return {"images_kept": used["images_kept"],
            "student_steps": state["epoch"] * source.steps_per_epoch,
            "generator_evaluations": used["generator_evaluations"],
            "teacher_passes": used["teacher_passes"] + state["images_seen"] * taught,
            "student_passes": used["student_passes"] + state["images_seen"],
            **getattr(source, "seconds", {}), "seconds": round(state["seconds"], 3)}


def train_one_epoch(run: Run, args: argparse.Namespace, view: View, network: nn.Module,
                    student: nn.Module, teacher: nn.Module | None, cache,
                    optimizer: torch.optim.Optimizer, source, objective: Callable,
                    device: torch.device, epoch: int, state: dict, started: float,
                    stop: Callable) -> Tensor:
    """The epoch's steps from state["step"] on; nothing is read back from the device until its end
    or a checkpoint, but for logits that a cache keeps. Returns the losses [steps], averaged over
    ranks. network: the student, compiled or in a DDP."""
    network.train()
    steps, first = source.steps_per_epoch, state["step"]
    losses = torch.zeros(steps, device=device)
    if first:
        losses[:first] = state["losses"].to(device)
    bar = Progress(steps, f"epoch {epoch + 1}/{args.epochs}", "steps", done=first)
    batches = source.batches(epoch, first, student)
    stored = len(getattr(source, "images", ()))  # others make theirs, which have no positions
    shown, poll, last, since = {}, first, first, time.monotonic()
    for step, (images, labels, ids) in enumerate(batches, start=first):
        rate = learning_rate(epoch + step / steps, args)
        for group in optimizer.param_groups:
            group["lr"] = rate
        labels, shown[step] = augment.send(labels, device), ids % stored if stored else ids
        x, labels = view.train(images, labels, ids, args.seed, epoch, step)
        if args.compile == "on":
            torch.compiler.cudagraph_mark_step_begin()
        teach = teacher if cache is None else functools.partial(cache.logits, teacher, epoch, step)
        losses[step] = train_step(network, teach, optimizer, objective, x, labels,
                                  getattr(args, "temperature", 1.0), args.amp)
        bar.update()
        if (dist.world_size() == 1 or step == poll) and step + 1 < steps:
            stopping, due, milliseconds = dist.totals(
                int(bool(stop())), int(run.due()), int(1000 * (time.monotonic() - since)))
            poll = step + steps_to_poll(step + 1 - last, milliseconds / 1000 / dist.world_size())
            if stopping or due:
                mean = check_finite(run, losses[:step + 1], student, epoch, args, shown)
                state |= {"step": step + 1, "losses": mean.cpu(),
                          "seconds": time.monotonic() - started}
                save(run, state, student, optimizer, source)
                shown.clear()
            if stopping:
                raise Stopped(stop() or 15)
            last, since = step + 1, time.monotonic()
    bar.close()
    return check_finite(run, losses, student, epoch, args, shown).cpu()


def steps_to_poll(steps: int, seconds: float) -> int:
    """After how many steps the ranks agree again, where the last `steps` took `seconds`; all
    compute it from the same numbers."""
    return max(1, min(POLL_STEPS, int(steps * POLL_SECONDS / max(seconds, 0.001))))


def check_finite(run: Run, losses: Tensor, network: nn.Module, epoch: int,
                 args: argparse.Namespace, shown: dict[int, Tensor]) -> Tensor:
    """Stop before anything is saved, all ranks together; else the losses, averaged over ranks. A
    step with a finite loss can still leave infinite weights.

    Args:
        shown: step -> the ids of its images, of the steps since the last check.

    Raises:
        DivergedError: a loss, weight or BN statistic is NaN or infinite on some rank; names step,
            rate and images."""
    mine, losses = losses, dist.total(losses.clone()) / dist.world_size()
    bad = (~torch.isfinite(losses)).nonzero()
    broken = not all(torch.isfinite(v).all() for v in network.state_dict().values())
    if dist.any_rank(len(bad) > 0 or broken):
        step = int(bad[0]) if len(bad) else len(losses) - 1
        rate = learning_rate(epoch + step / len(losses), args)
        what = f"the loss became {losses[step].item()}" if len(bad) else "weights became infinite"
        here = not torch.isfinite(mine[step]) if len(bad) else broken
        kept = [name for name in ("last.pt", "best.pt") if (run.folder / name).exists()]
        raise DivergedError(
            f"{what} in epoch {epoch + 1} at step {step + 1}",
            rate=f"{rate:g}, batch {args.batch_size}, amp {args.amp}",
            images=name_images(run, shown[step].tolist()) if here else "of another process",
            kept=" and ".join(kept) + ", from before" if kept else "nothing was saved before",
            hint="a lower --learning-rate, --warmup-epochs 5, or --amp none; in another --out")
    return losses


def name_images(run: Run, ids: list[int]) -> str:
    """The first of a batch's images by number; log.txt gets them all."""
    if len(ids) <= NAMED_IMAGES:
        return ", ".join(map(str, ids))
    run.log(f"images of the step that diverged: {', '.join(map(str, ids))}")
    return f"{', '.join(map(str, ids[:NAMED_IMAGES]))} ... ({len(ids)}, all of them in log.txt)"


def save(run: Run, state: dict, student: nn.Module, optimizer: torch.optim.Optimizer,
         source) -> None:
    run.save_checkpoint({**state, "model": student.state_dict(),
                         "optimizer": optimizer.state_dict(), "source": source.state_dict()})


def save_best(run: Run, student: nn.Module, epoch: int, acc1: float) -> None:
    """best.pt: the weights with the highest validation accuracy so far. It picks on the data it is
    judged on; the reported number is the last epoch's."""
    from dm_kd import files

    if dist.is_main():
        files.durable_write(run.folder / "best.pt", files.encode_tensors(
            {"state_dict": student.state_dict(), "epoch": epoch, "acc1": acc1}))


def open_board(run: Run, epochs_done: int):
    """TensorBoard's writer; what it wrote of epochs that are done again is taken out."""
    from torch.utils.tensorboard import SummaryWriter

    return SummaryWriter(run.folder / "tensorboard", purge_step=epochs_done + 1)


def add_scalars(board, row: dict) -> None:
    for name, value in row.items():
        if name != "epoch" and value is not None:
            board.add_scalar(name, value, row["epoch"])
    board.flush()


def epoch_line(row: dict, epochs: int) -> str:
    judged = "" if row["val_acc1"] is None else (
        f"  Acc@1 {row['val_acc1']:.2f}  Acc@5 {row['val_acc5']:.2f}")
    left = row["seconds"] / row["epoch"] * (epochs - row["epoch"])
    return (f"Epoch: [{row['epoch']}/{epochs}]  lr {row['lr']:.4g}  "
            f"loss {row['train_loss']:.4f}{judged}  {row['images_per_second']:.0f} images/s"
            + (f"  {left:.0f} s left" if left else ""))


def finish(run: Run, args: argparse.Namespace, state: dict, student: nn.Module,
           logits: Tensor | None, val, teacher_acc1: float | None, teacher_top: Tensor | None,
           device: torch.device, card: dict, used: dict, blind: float | None) -> dict:
    """Weights of the last epoch, predictions, curve and result.json."""
    from dm_kd import files

    result = {"acc1": None, "acc5": None, "best_acc1": None, "best_epoch": None,
              "teacher_acc1": teacher_acc1, "agreement": None, "blind_agreement": blind,
              "val_images": 0, "budget": used}
    if val is not None:
        top = logits.argmax(1)
        result["acc1"], result["acc5"] = accuracy(logits, val.labels)
        result |= {"best_acc1": state["best_acc1"], "best_epoch": state["best_epoch"],
                   "val_images": len(val.labels)}
        if teacher_top is not None:
            result["agreement"] = 100 * (top == teacher_top).double().mean().item()
        if dist.is_main():
            files.write_json(run.folder / "predictions.json", {
                "ids": val.ids.tolist(), "groups": val.groups.tolist(),
                "labels": val.labels.tolist(), "predictions": top.tolist()})
    if dist.is_main():
        draw_curve(run)
    result |= {"images_seen": state["images_seen"], "seconds": round(state["seconds"], 3),
               "seed": args.seed, "hardware": hardware(device)}
    run.finish(student.state_dict(), card, result)
    best = "" if val is None else (f" (last epoch), best {state['best_acc1']:.2f} in epoch "
                                   f"{state['best_epoch']}")
    run.log(f"finished: {judgement(result)}{best}")
    return result


def judgement(result: dict) -> str:
    """A finished run's accuracy, in words."""
    return "not judged (--val none)" if result["acc1"] is None else f"Acc@1 {result['acc1']:.2f}"


def draw_curve(run: Run) -> None:
    """curve.png: loss and validation accuracy over the epochs."""
    from dm_kd import files

    rows = read_metrics(run.folder)
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, 2, figsize=(8, 3), layout="constrained")
    epochs = [row["epoch"] for row in rows]
    axes[0].plot(epochs, [row["train_loss"] for row in rows])
    axes[0].set(xlabel="epoch", ylabel="training loss", yscale="log")
    if rows and rows[-1]["val_acc1"] is not None:
        axes[1].plot(epochs, [row["val_acc1"] for row in rows])
    axes[1].set(xlabel="epoch", ylabel="validation Acc@1 (%)")
    for axis in axes:
        axis.grid(alpha=0.3)
    files.atomically(lambda path: figure.savefig(path, dpi=110, metadata={"Software": None}),
                     run.folder / "curve.png")
    pyplot.close(figure)
