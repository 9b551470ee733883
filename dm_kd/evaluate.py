"""Judge a model on a task's real validation images; one JSON line on standard output: acc1,
acc5 and ece (expected calibration error), all in percent.

    python -m dm_kd.evaluate --task digits --model save/student_model/digits \\
        [--teacher save/models/digits_cnn_w32] [--confusion confusion.png]
"""

import argparse
import json
import sys
from pathlib import Path

import torch
from torch import Tensor

from dm_kd import dist, engine, files, models, run
from dm_kd.errors import UserError
from dm_kd.sources.stored import load_judged
from dm_kd.tasks import absent_classes, get_task, may_have_seen

SHOWN_CLASSES = 20  # with names and counts in the confusion picture; more are a heat map
CONFUSIONS = 8  # the most frequent ones that the picture lists


def parse(argv: list[str]) -> argparse.Namespace:
    parser = run.Parser("evaluate", __doc__)
    run.add_data_arguments(parser)
    parser.add_argument("--model", required=True, metavar="SPEC",
                        help="a run folder, NAME@FILE, FILE, torchvision:NAME, timm:NAME")
    parser.add_argument("--teacher", default=None, metavar="SPEC",
                        help="also report teacher_acc1 and agreement, in percent of the images to "
                             "which both give the same class")
    parser.add_argument("--confusion", type=Path, default=None, metavar="FILE.png",
                        help="draw which classes are taken for which")
    parser.add_argument("--amp", choices=("auto", "bf16", "none"), default="none",
                        help="bfloat16 autocast (default: %(default)s, float32; training judges by "
                             "its own --amp auto, which may differ in the last digits)")
    run.add_common_arguments(parser)
    return run.parse(parser, argv)


def body(argv: list[str]) -> None:
    args = parse(argv)
    task = get_task(args.task, args.data)
    if args.val == "none":
        raise UserError("--val none leaves nothing to judge on", hint="--val val")
    if args.dry_run:
        print(f"would judge {args.model} on {task.name}, fold {args.fold}", file=sys.stderr)
        return
    dist.refuse_ranks("evaluate")
    device = run.use_device(args)
    amp = engine.resolve_amp(args.amp, device)
    torch.manual_seed(args.seed)  # of NAME@none
    if args.confusion and args.confusion.suffix != ".png":
        raise UserError("the confusion picture is a PNG", file=args.confusion,
                        hint=f"--confusion {args.confusion.stem or 'confusion'}.png")
    model, card = models.load_frozen(args.model, task)
    teacher = models.load_frozen(args.teacher, task)[0] if args.teacher else None
    if may_have_seen(card["fold"], card["val"], args):
        print(f"note: the model was trained for fold {card['fold']} with --val {card['val']}; "
              f"fold {args.fold} with --val {args.val} has images that it may have seen",
              file=sys.stderr)
    val = load_judged(task, args)
    if note := absent_classes(val.labels, task, "validation"):
        print(note, file=sys.stderr)
    view = engine.plain_view(task)
    logits = engine.predict(model.to(device), val.images, view, device, amp)
    acc1, acc5 = engine.accuracy(logits, val.labels)
    result = {"task": task.name, "model": args.model, "images": len(val.labels),
              "acc1": acc1, "acc5": acc5, "ece": calibration_error(logits, val.labels)}
    if teacher is not None:
        teacher_logits = engine.predict(teacher.to(device), val.images, view, device, amp)
        same = teacher_logits.argmax(1) == logits.argmax(1)
        result |= {"teacher_acc1": engine.accuracy(teacher_logits, val.labels)[0],
                   "agreement": 100 * same.double().mean().item()}
    if args.confusion:
        counts = confusion(logits.argmax(1), val.labels, task.num_classes)
        draw_confusion(counts, task.class_names, args.confusion)
    print(json.dumps(result))


def calibration_error(logits, labels) -> float:
    """Expected calibration error in percent, 15 bins of confidence (Guo et al. 2017,
    arXiv 1706.04599). logits [N, classes], labels [N]."""
    from torchmetrics.functional.classification import multiclass_calibration_error

    return 100 * float(multiclass_calibration_error(
        logits.softmax(1), labels, num_classes=logits.shape[1], n_bins=15, norm="l1"))


def confusion(predictions: Tensor, labels: Tensor, num_classes: int) -> Tensor:
    """How often class r is taken for class c: int64 [num_classes, num_classes], rows the truth."""
    flat = torch.bincount(labels * num_classes + predictions, minlength=num_classes ** 2)
    return flat.reshape(num_classes, num_classes)


def top_confusions(counts: Tensor, names: tuple[str, ...]) -> list[str]:
    """The most frequent mistakes in words, such as "8 taken for 1: 12 of 174"."""
    wrong = counts.clone().fill_diagonal_(0)
    order = wrong.flatten().argsort(descending=True, stable=True)[:CONFUSIONS].tolist()
    pairs = [divmod(place, len(counts)) for place in order]
    return [f"{names[r]} taken for {names[c]}: {counts[r, c]} of {counts[r].sum()}"
            for r, c in pairs if wrong[r, c]]


def draw_confusion(counts: Tensor, names: tuple[str, ...], path: Path) -> None:
    """Rows in percent of the class as a heat map; up to SHOWN_CLASSES with names and numbers."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    few = len(counts) <= SHOWN_CLASSES
    side = max(4.5, 0.42 * len(counts) + 2) if few else 8
    figure, axis = pyplot.subplots(figsize=(side + 3, side), layout="constrained")
    percent = 100 * counts / counts.sum(1, keepdim=True).clamp_min(1)
    shown = axis.imshow(percent.numpy(), cmap="Blues", vmin=0, vmax=100 if few else None)
    figure.colorbar(shown, label="% of the class")
    axis.set(xlabel="predicted class", ylabel="true class",
             title=f"{counts.sum()} images, {counts.diagonal().sum()} right")
    if few:
        axis.set_xticks(range(len(names)), names, rotation=90)
        axis.set_yticks(range(len(names)), names)
        for r, c in counts.nonzero().tolist():
            axis.text(c, r, str(int(counts[r, c])), ha="center", va="center", fontsize=8,
                      color="white" if percent[r, c] > 60 else "black")
    words = "\n".join(top_confusions(counts, names)) or "none"
    figure.text(1.04, 0.5, f"most frequent mistakes\n\n{words}",
                ha="left", va="center", fontsize=9)
    files.atomically(lambda p: figure.savefig(p, dpi=110, bbox_inches="tight",
                                              metadata={"Software": None}), path)
    pyplot.close(figure)


def main(argv: list[str] | None = None) -> int:
    return run.main(body, argv)


if __name__ == "__main__":
    sys.exit(main())
