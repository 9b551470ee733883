"""Evaluate a model on a task's real validation images. Prints one JSON line: acc1, acc5 and ece
(expected calibration error) in percent, with --teacher also teacher_acc1 and agreement.

    python -m dm_kd.evaluate --task digits --model save/student_model/digits \\
        [--teacher save/models/digits_cnn_w32]
"""

import argparse
import json
import sys

import torch
from torch import Tensor

from dm_kd import augment, data, dist, engine, models, run
from dm_kd.run import UserError
from dm_kd.tasks import get_task

BINS = 15  # of the calibration error


def parse(argv: list[str]) -> argparse.Namespace:
    parser = run.Parser("evaluate", __doc__)
    run.add_data_arguments(parser)
    parser.add_argument("--model", required=True, metavar="SPEC",
                        help="a run folder, NAME@FILE, torchvision:NAME, timm:NAME")
    parser.add_argument("--teacher", default=None, metavar="SPEC",
                        help="also report teacher_acc1, and agreement: the percentage of images "
                             "for which both predict the same class")
    run.add_common_arguments(parser)
    return run.parse(parser, argv)


def body(argv: list[str]) -> None:
    args = parse(argv)
    task = get_task(args.task, args.data, args)
    if args.val == "none":
        raise UserError("--val none leaves no images to evaluate on", "--val val")
    if args.dry_run:
        print(f"would evaluate {args.model} on {task.name}, fold {args.fold}")
        return
    device = run.use_device(args)
    torch.manual_seed(args.seed)  # of NAME@none
    model, card = models.load_frozen(args.model, task)
    teacher = models.load_frozen(args.teacher, task)[0] if args.teacher else None
    for note in models.seen_note(card, args):
        print(note, file=sys.stderr)
    val = data.load_validation(task, args)
    dist.start(device)  # each process evaluates a share
    view = augment.plain_view(task)
    logits = engine.predict(model.to(device), val.images, view, device, "none")
    acc1, acc5 = engine.accuracy(logits, val.labels)
    result = {"task": task.name, "model": args.model, "images": len(val.labels),
              "acc1": acc1, "acc5": acc5, "ece": calibration_error(logits, val.labels)}
    if teacher is not None:
        teacher_logits = engine.predict(teacher.to(device), val.images, view, device, "none")
        same = teacher_logits.argmax(1) == logits.argmax(1)
        result |= {"teacher_acc1": engine.accuracy(teacher_logits, val.labels)[0],
                   "agreement": 100 * same.double().mean().item()}
    if dist.is_main():
        print(json.dumps(result))


def calibration_error(logits: Tensor, labels: Tensor) -> float:
    """Expected calibration error in percent, 15 bins of equal width (Guo et al. 2017,
    arXiv 1706.04599). logits [N, classes], labels [N]."""
    confidence, predictions = logits.double().softmax(1).max(1)
    gap = (predictions == labels).double() - confidence
    bins = (confidence * BINS).long().clamp_max(BINS - 1)
    return 100 * float(torch.zeros(BINS).double().index_add_(0, bins, gap).abs().sum()) / len(gap)


def main(argv: list[str] | None = None) -> int:
    return run.main(body, argv)


if __name__ == "__main__":
    sys.exit(main())
