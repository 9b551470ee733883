"""The training loop of every classifier: teachers, students alone, students of a teacher.

Read `fit` top to bottom. Every random choice is a function of (seed, epoch, step or image id), so a
checkpoint holds the step and no generator state, and a run that was killed ends in the same bits.
"""

import argparse
import math
import time
from collections.abc import Callable, Iterable

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dm_kd import dist, models, run
from dm_kd.augment import View, send
from dm_kd.run import Run, UserError
from dm_kd.tasks import Task

EVAL_BATCH = 512
POLL_STEPS = 20  # several processes agree on saving and stopping every so many steps


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The recipe's flags; the defaults are the paper's ImageNet recipe."""
    group = parser.add_argument_group("recipe")
    add = group.add_argument
    add("--epochs", type=run.positive_int, default=100, metavar="N", help="default: %(default)s")
    add("--steps-per-epoch", type=run.positive_int, metavar="N",
        help="default: one pass over the images")
    add("--batch-size", type=run.positive_int, default=256, metavar="N",
        help="images per step, over all processes (default: %(default)s)")
    add("--optimizer", choices=("sgd", "adamw"), default="sgd",
        help="sgd has momentum 0.9 (default: %(default)s)")
    add("--learning-rate", type=run.positive_float, default=0.1, metavar="X",
        help="default: %(default)s")
    add("--lr-schedule", choices=("step", "cosine"), default="step",
        help="step: x 0.1 at each of --lr-decay-epochs; cosine: to 0 (default: %(default)s)")
    add("--lr-decay-epochs", type=run.epoch_list, default=(30, 60, 90), metavar="LIST",
        help="default: 30,60,90")
    add("--warmup-epochs", type=run.nonnegative_int, default=0, metavar="N",
        help="linear warm-up from 1/100 of the rate (default: %(default)s)")
    add("--weight-decay", type=run.nonnegative_float, default=1e-4, metavar="X",
        help="default: %(default)s")
    add("--augment", choices=("default", "none"), default="default",
        help="the task's augmentation, or none")
    add("--mixup", type=run.nonnegative_float, default=0.0, metavar="A",
        help="Beta(A, A) mixup of what both networks see (default: off)")
    add("--cutmix", type=run.nonnegative_float, default=0.0, metavar="A",
        help="Beta(A, A) cutmix; with --mixup, each in half of the mixed batches")
    add("--mix-share", type=run.probability, default=1.0, metavar="P",
        help="share of batches that are mixed (default: %(default)s)")
    add("--amp", choices=("auto", "bf16", "none"), default="auto",
        help="bfloat16 autocast; logits and loss stay float32 (default: where the hardware has it)")
    add("--bn-group", type=run.positive_int, metavar="N",
        help="batch norm over groups of N images; the original: 32 (default: a process's batch)")
    add("--checkpoint-seconds", type=run.positive_float, default=60.0, metavar="S",
        help="seconds between checkpoints (default: %(default)s)")
    run.add_compile_argument(group)
    add("--deterministic", action="store_true",
        help="deterministic kernels on a GPU too, so that a resumed run ends in the same bits, as "
             "it always does on a CPU; slower")


def prepare(args: argparse.Namespace, name: str, task: Task) -> tuple[torch.device, nn.Module]:
    """Check the recipe, resolve --amp and --compile in place, seed torch; returns the device and
    the new network `name`, on the CPU."""
    ranks = dist.world_size()
    share = args.batch_size // ranks
    if args.batch_size % ranks or share % (args.bn_group or 1):
        raise UserError(f"--batch-size {args.batch_size} does not divide over {ranks} processes "
                        "and groups of --bn-group")
    if args.warmup_epochs >= args.epochs:
        raise UserError(f"--warmup-epochs {args.warmup_epochs} must be less than --epochs "
                        f"{args.epochs}")
    device = run.use_device(args)
    args.amp = resolve_amp(args.amp, device)
    args.compile = run.resolve_compile(args.compile, device)
    torch.manual_seed(args.seed)
    network = models.build(name, task)
    if (args.bn_group or share) == 1:
        models.refuse_single_values(network, task)
    return device, network


def dry_run(args: argparse.Namespace, name: str, task: Task, images: str) -> None:
    with torch.device("meta"):  # the weights are only counted
        count = models.parameter_count(models.build(name, task))
    print(f"would train {name} ({count:,} parameters) for {task.name} on {images}, {args.epochs} "
          f"epochs of {args.batch_size} images a step, in {args.out}")


def resolve_amp(choice: str, device: torch.device) -> str:
    """"bf16" or "none"; auto is bf16 where the hardware multiplies it."""
    auto = "bf16" if run.multiplies_bf16(device) else "none"
    return auto if choice == "auto" else choice


def autocast(amp: str, device: torch.device) -> torch.autocast:
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=amp == "bf16")


# --- ghost batch norm -----------------------------------------------------------------------------

class GroupedBatchNorm2d(nn.BatchNorm2d):
    """Batch norm with the statistics of each group of images, as DistributedDataParallel without
    SyncBN computes them; the running statistics are those of the first group, as rank 0's there."""

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return super().forward(x)
        first, *others = x.split(self.group)
        return torch.cat([super().forward(first), *(
            F.batch_norm(part, None, None, self.weight, self.bias, True, 0.0, self.eps)
            for part in others)])


def group_batch_norms(network: nn.Module, group: int) -> None:
    for norm in network.modules():
        if isinstance(norm, nn.BatchNorm2d):
            if type(norm) is not nn.BatchNorm2d:  # timm's have the activation in them
                raise UserError(f"--bn-group does not know {type(norm)}", "leave it out")
            norm.__class__, norm.group = GroupedBatchNorm2d, group


# --- one step, one evaluation ---------------------------------------------------------------------

def learning_rate(epoch: float, args: argparse.Namespace) -> float:
    """The rate after so many epochs, with their fraction: 0 at the first step."""
    if epoch < args.warmup_epochs:
        return args.learning_rate * max(epoch / args.warmup_epochs, 0.01)
    if args.lr_schedule == "cosine":
        share = (epoch - args.warmup_epochs) / (args.epochs - args.warmup_epochs)
        return args.learning_rate * 0.5 * (1 + math.cos(math.pi * share))
    return args.learning_rate * 0.1 ** sum(epoch >= e for e in args.lr_decay_epochs)


def make_optimizer(model: nn.Module, args: argparse.Namespace) -> torch.optim.Optimizer:
    common = {"lr": args.learning_rate, "weight_decay": args.weight_decay, "fused": True}
    if args.optimizer == "adamw":
        return torch.optim.AdamW(model.parameters(), **common)
    return torch.optim.SGD(model.parameters(), momentum=0.9, **common)


def loss_function(view: View, student: nn.Module, teacher: nn.Module | None, objective: Callable,
                  args: argparse.Namespace) -> Callable:
    """Returns f(images, labels, draws, teacher_logits=None) -> (loss, teacher_logits), which is the
    augmentation, both networks and the objective, as one compiled function with --compile on; on a
    GPU CUDA graphs replay its kernels. Given `teacher_logits` replace the teacher's forward pass.
    images uint8 [B, C, H, W]; labels int64 [B]; draws: of view.draw, on the same device."""
    temperature, half = getattr(args, "temperature", 1.0), getattr(args, "cache_teacher", False)

    def loss_of(images: Tensor, labels: Tensor, draws: dict, teacher_logits: Tensor | None = None
                ) -> tuple[Tensor, Tensor | None]:
        x, labels = view.apply(images, labels, draws)
        with autocast(args.amp, x.device):
            if teacher is not None and teacher_logits is None:
                with torch.no_grad():
                    teacher_logits = teacher(x)
                if half:  # as --cache-teacher keeps them, so that a resumed run has the same bits
                    teacher_logits = teacher_logits.half().float()
            student_logits = student(x)
        return objective(student_logits, teacher_logits, labels, temperature), teacher_logits

    if args.compile != "on":
        return loss_of
    graphs = next(student.parameters()).is_cuda
    return torch.compile(loss_of, dynamic=False, mode="reduce-overhead" if graphs else None)


def train_step(loss_of: Callable, student: nn.Module, optimizer: torch.optim.Optimizer,
               *batch: object) -> tuple[Tensor, Tensor | None]:
    """One update of the student; returns the loss, on the device, and the teacher's logits."""
    optimizer.zero_grad(set_to_none=True)
    loss, teacher_logits = loss_of(*batch)
    loss.backward()
    dist.average([p.grad for p in student.parameters() if p.grad is not None])
    optimizer.step()
    return loss.detach(), teacher_logits


@torch.inference_mode()
def predict(model: nn.Module, images: Tensor, view: View, device: torch.device,
            amp: str) -> Tensor:
    """Float32 logits [N, classes] of uint8 images; each rank computes a share, all get all."""
    was_training = model.training
    model.eval()
    mine = torch.arange(len(images))[dist.rank()::dist.world_size()]
    parts = []
    for chunk in mine.split(EVAL_BATCH) if len(mine) else [torch.tensor([0])]:  # of many ranks
        x = send(torch.index_select(images, 0, chunk.to(images.device)), device)
        x, _ = view.apply(x, None, {})
        with autocast(amp, device):
            parts.append(model(x).float())
    logits = torch.zeros(len(images), parts[0].shape[1], device=device)
    logits[mine.to(device)] = torch.cat(parts)[:len(mine)]
    model.train(was_training)
    return dist.total(logits).cpu()


def accuracy(logits: Tensor, labels: Tensor) -> tuple[float, float]:
    """(acc1, acc5) in percent. logits [N, classes], labels int64 [N]."""
    top = logits.topk(min(5, logits.shape[1])).indices == labels.to(logits.device)[:, None]
    return (100 * top[:, 0].double().mean().item(), 100 * top.any(1).double().mean().item())


# --- training -------------------------------------------------------------------------------------

def fit(folder: Run, args: argparse.Namespace, view: View, student: nn.Module,
        teacher: nn.Module | None, source, objective: Callable, val, device: torch.device,
        card: dict, notes: Iterable[str] = (), cache=None) -> dict:
    """Train `student` for args.epochs, from the run folder's checkpoint if there is one; returns
    the run's result, as in result.json. A finished run is only reported.

    source: `steps_per_epoch` and `batches(epoch, first_step, student)`; a source that learns also
    has `state_dict()` and `load_state_dict()`.  val: Images to evaluate on after each epoch, or
    None.  notes: lines for the log.  cache: the teacher's kept logits, see distill.TeacherCache.
    """
    if folder.result:
        print(f"{folder.folder} is finished: {summary(folder.result)}")
        return folder.result
    for note in notes:
        folder.log(note)
    student = student.to(device, memory_format=torch.channels_last)
    dist.copy_from_main(student.state_dict().values())
    if args.bn_group:
        group_batch_norms(student, args.bn_group)
    optimizer = make_optimizer(student, args)
    state = restore(folder, student, optimizer, source)
    clock = time.monotonic() - state["seconds"]
    update = make_update(args, view, student, teacher, optimizer, source, objective, device, cache)

    def save() -> None:
        state["seconds"] = time.monotonic() - clock
        learns = hasattr(source, "state_dict")
        folder.save_checkpoint({**state, "model": student.state_dict(),
                                "optimizer": optimizer.state_dict(),
                                "source": source.state_dict() if learns else None})

    logits = None
    with run.stoppable() as stop:
        def pause(count: Callable[[], None] = lambda: None, last: bool = False) -> None:
            """Save if it is time to, after `count` has brought the state up to date; stop after a
            signal. All ranks together."""
            stopping, due = dist.totals(int(bool(stop())), int(folder.due()))
            if stopping or due or last:
                count()
                save()
            if stopping:
                raise run.Stopped(stop() or 15)

        source.pause = pause  # for sources that make many images before the first step
        for epoch in range(state["epoch"], args.epochs):
            losses = train_one_epoch(args, source, student, update, epoch, state, pause)
            dist.copy_from_main(student.buffers())  # each rank has its own batch statistics
            state |= {"epoch": epoch + 1, "step": 0, "losses": [],
                      "seconds": time.monotonic() - clock}
            logits = evaluate_epoch(folder, args, view, student, val, source, state, losses, device)
            pause(last=epoch + 1 == args.epochs)
    if val is not None and logits is None:  # killed between the last checkpoint and the end
        logits = predict(student, val.images, view, device, args.amp)
    return finish(folder, args, view, state, student, teacher, source, logits, val, device, card)


def restore(folder: Run, student: nn.Module, optimizer: torch.optim.Optimizer, source) -> dict:
    """Load the checkpoint, if there is one; returns what `fit` counts."""
    state = folder.load_checkpoint()
    if state is None:
        return {"epoch": 0, "step": 0, "seconds": 0.0, "losses": [], "best_acc1": -1.0,
                "best_epoch": 0}
    student.load_state_dict(state.pop("model"))
    optimizer.load_state_dict(state.pop("optimizer"))
    if (source_state := state.pop("source")) is not None:
        source.load_state_dict(source_state)
    folder.log(f"resumed at epoch {state['epoch'] + 1}, step {state['step']}")
    return state


def make_update(args: argparse.Namespace, view: View, student: nn.Module,
                teacher: nn.Module | None, optimizer: torch.optim.Optimizer, source,
                objective: Callable, device: torch.device, cache) -> Callable:
    """Returns f(epoch, step, images, labels, ids) -> loss, one step of training at its learning
    rate, with dropout that is a function of (seed, epoch, step, rank)."""
    loss_of = loss_function(view, student, teacher, objective, args)

    def update(epoch: int, step: int, images: Tensor, labels: Tensor, ids: Tensor) -> Tensor:
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(epoch + step / source.steps_per_epoch, args)
        key = np.random.SeedSequence([args.seed, epoch, step, dist.rank()])
        torch.manual_seed(int(key.generate_state(1)[0]))
        draws = view.draw(images, ids, args.seed, epoch, step)
        draws = {name: send(value, device) for name, value in draws.items()}
        known = cache and cache.read(epoch, step, device)
        if args.compile == "on":
            torch.compiler.cudagraph_mark_step_begin()
        loss, logits = train_step(loss_of, student, optimizer, send(images, device),
                                  send(labels, device), draws, known)
        if cache and known is None:
            cache.write(epoch, step, logits)
        return loss

    return update


def train_one_epoch(args: argparse.Namespace, source, student: nn.Module, update: Callable,
                    epoch: int, state: dict, pause: Callable) -> Tensor:
    """Train from state["step"] to the end of the epoch; nothing is read back from the device
    before a checkpoint. Returns the losses [steps], averaged over the ranks."""
    student.train()
    steps, first = source.steps_per_epoch, state["step"]
    losses = torch.zeros(steps, device=next(student.parameters()).device)
    losses[:first] = torch.tensor(state["losses"])
    with run.progress(steps, f"epoch {epoch + 1}/{args.epochs}", "steps", done=first) as bar:
        for step, batch in enumerate(source.batches(epoch, first, student), first):
            losses[step] = update(epoch, step, *batch)
            bar.update(1)
            if step + 1 < steps and (dist.world_size() == 1 or step % POLL_STEPS == 0):
                pause(lambda done=step + 1: state.update(step=done, losses=mean_losses(
                    losses[:done], student, epoch, steps, args).tolist()))
    return mean_losses(losses, student, epoch, steps, args)


def mean_losses(losses: Tensor, student: nn.Module, epoch: int, steps: int,
                args: argparse.Namespace) -> Tensor:
    """The losses averaged over the ranks, on the CPU. Raises UserError, on all ranks together,
    where one or a weight is NaN or infinite (a step with a finite loss can leave such weights)."""
    losses = dist.total(losses.clone()).cpu() / dist.world_size()
    bad = (~torch.isfinite(losses)).nonzero()[:, 0].tolist()
    broken = not all(torch.isfinite(v).all() for v in student.state_dict().values())
    if dist.totals(int(bool(bad) or broken))[0]:
        step = bad[0] if bad else len(losses) - 1
        raise UserError(
            f"NaN or infinite {'loss' if bad else 'weights'} in epoch {epoch + 1} at step "
            f"{step + 1}, learning rate {learning_rate(epoch + step / steps, args):g}, amp "
            f"{args.amp}",
            "a lower --learning-rate, --warmup-epochs 5 or --amp none, with another --out")
    return losses


def evaluate_epoch(folder: Run, args: argparse.Namespace, view: View, student: nn.Module, val,
                   source, state: dict, losses: Tensor, device: torch.device) -> Tensor | None:
    """Returns the logits on `val`."""
    epoch, logits = state["epoch"], None
    row = {"epoch": epoch, "lr": learning_rate(epoch - 1, args),
           "train_loss": losses.double().mean().item(), "val_acc1": None, "val_acc5": None,
           "images_seen": epoch * source.steps_per_epoch * args.batch_size,
           "seconds": round(state["seconds"], 3)}
    text = f"Epoch: [{epoch}/{args.epochs}]  lr {row['lr']:.4g}  loss {row['train_loss']:.4f}"
    if val is not None:
        logits = predict(student, val.images, view, device, args.amp)
        row["val_acc1"], row["val_acc5"] = accuracy(logits, val.labels)
        text += f"  Acc@1 {row['val_acc1']:.2f}  Acc@5 {row['val_acc5']:.2f}"
        if row["val_acc1"] > state["best_acc1"]:
            state |= {"best_acc1": row["val_acc1"], "best_epoch": epoch}
            folder.save_best(student.state_dict())
    folder.add_metrics(row)
    folder.log(f"{text}  {row['images_seen'] / state['seconds']:.0f} images/s")
    return logits


def finish(folder: Run, args: argparse.Namespace, view: View, state: dict, student: nn.Module,
           teacher: nn.Module | None, source, logits: Tensor | None, val, device: torch.device,
           card: dict) -> dict:
    """Write the weights of the last epoch, the learning curve and result.json."""
    result = dict.fromkeys(("acc1", "acc5", "best_acc1", "best_epoch", "teacher_acc1", "agreement"))
    if val is not None:
        result["acc1"], result["acc5"] = accuracy(logits, val.labels)
        result |= {"best_acc1": state["best_acc1"], "best_epoch": state["best_epoch"]}
        if teacher is not None:
            teacher_logits = predict(teacher, val.images, view, device, args.amp)
            result["teacher_acc1"] = accuracy(teacher_logits, val.labels)[0]
            result["agreement"] = accuracy(logits, teacher_logits.argmax(1))[0]
    result |= {"val_images": len(val.labels) if val else 0,
               "images_seen": args.epochs * source.steps_per_epoch * args.batch_size,
               "seconds": round(state["seconds"], 3), "seed": args.seed,
               "hardware": run.hardware(device)}
    if dist.is_main():
        draw_curve(folder)
    folder.finish(student.state_dict(), card, result)
    folder.log(f"finished: {summary(result)}")
    return result


def summary(result: dict) -> str:
    if result["acc1"] is None:
        return "not evaluated (--val none)"
    return (f"Acc@1 {result['acc1']:.2f} after the last epoch, best {result['best_acc1']:.2f} in "
            f"epoch {result['best_epoch']}")


def draw_curve(folder: Run) -> None:
    """curve.png: training loss and validation accuracy over the epochs."""
    from matplotlib.figure import Figure  # needs no display

    rows = run.read_metrics(folder.folder)
    figure = Figure((8, 3), layout="constrained")
    for axis, key, label in zip(figure.subplots(1, 2), ("train_loss", "val_acc1"),
                                ("training loss", "validation Acc@1 (%)"), strict=True):
        if rows[-1][key] is not None:
            axis.plot([row["epoch"] for row in rows], [row[key] for row in rows])
        axis.set(xlabel="epoch", ylabel=label, yscale="log" if key == "train_loss" else "linear")
        axis.grid(alpha=0.3)
    figure.savefig(folder.folder / "curve.png", dpi=110)
