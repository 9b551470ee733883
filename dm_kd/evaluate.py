"""Judge a model on a task's real validation images; one JSON line on standard output.

    python -m dm_kd.evaluate --task digits --model save/student_model/digits
"""

import argparse
import json
import sys

import torch

from dm_kd import engine, models, run
from dm_kd.errors import UserError
from dm_kd.sources.stored import load_judged
from dm_kd.tasks import get_task


def parse(argv: list[str]) -> argparse.Namespace:
    parser = run.Parser("evaluate", __doc__)
    run.add_data_arguments(parser)
    parser.add_argument("--model", required=True, metavar="SPEC",
                        help="a run folder, NAME@FILE, FILE, torchvision:NAME, timm:NAME")
    parser.add_argument("--amp", choices=("auto", "bf16", "none"), default="none",
                        help="bfloat16 autocast (default: %(default)s)")
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
    device = run.use_device(args)
    amp = engine.resolve_amp(args.amp, device)
    torch.manual_seed(args.seed)  # of NAME@none
    model, card = models.load_frozen(args.model, task)
    if card["fold"] not in (None, args.fold):
        print(f"note: the model was trained for fold {card['fold']}; fold {args.fold} has images "
              "that it may have seen", file=sys.stderr)
    val = load_judged(task, args)
    logits = engine.predict(model.to(device), val.images, engine.plain_view(task), device, amp)
    acc1, acc5 = engine.accuracy(logits, val.labels)
    print(json.dumps({"task": task.name, "model": args.model, "images": len(val.labels),
                      "acc1": acc1, "acc5": acc5, "ece": calibration_error(logits, val.labels)}))


def calibration_error(logits, labels) -> float:
    """Expected calibration error in percent, 15 bins of confidence (Guo et al. 2017,
    arXiv 1706.04599). logits [N, classes], labels [N]."""
    from torchmetrics.functional.classification import multiclass_calibration_error

    return 100 * float(multiclass_calibration_error(
        logits.softmax(1), labels, num_classes=logits.shape[1], n_bins=15, norm="l1"))


def main(argv: list[str] | None = None) -> int:
    return run.main(body, argv)


if __name__ == "__main__":
    sys.exit(main())
