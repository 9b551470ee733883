"""Evaluate a model on a task's real validation images; prints acc1 and acc5 in percent, as JSON.

    python -m dm_kd.evaluate --task digits --model save/student_model/digits
"""

import argparse
import dataclasses
import json
import sys

import torch

from dm_kd import augment, data, dist, engine, models, preprocessing, run
from dm_kd.run import UserError
from dm_kd.tasks import get_task


def parse(argv: list[str]) -> argparse.Namespace:
    parser = run.Parser("evaluate", __doc__)
    run.add_data_arguments(parser)
    parser.add_argument("--model", required=True, metavar="SPEC",
                        help="a run folder, NAME@FILE, torchvision:NAME, timm:NAME, or your own "
                             "FILE.py:FUNCTION@FILE with FUNCTION(num_classes) -> nn.Module")
    preprocessing.add_arguments(parser, evaluates=True)
    run.add_common_arguments(parser)
    return run.parse(parser, argv)


@run.command
def main(argv: list[str]) -> None:
    args = parse(argv)
    task = get_task(args.task, args.data, args)
    if args.val == "none":
        raise UserError("--val none leaves no images to evaluate on", "--val val")
    if args.dry_run:
        print(f"would evaluate {args.model} on {task.name}, fold {args.fold}")
        return
    device = run.use_device(args)
    torch.manual_seed(args.seed)  # of NAME@none
    model, card = models.load_frozen(args.model, task, args)
    if task.large:  # resize and crop in the model's own way
        size = {key: card["input"][key] for key in ("resolution", "resize")}
        task = dataclasses.replace(task, **size)
    val = data.load_validation(task, args)
    dist.start(device)  # each process evaluates a share
    logits = engine.predict(model.to(device), val.images, augment.plain_view(task), device, "none")
    doubt = models.doubt(logits, val.labels)
    if dist.is_main():
        print(card["assumed"], *models.seen_note(card, args), *val.notes,
              *([f"note: {doubt}"] if doubt else []), sep="\n", file=sys.stderr)
        acc1, acc5 = engine.accuracy(logits, val.labels)
        print(json.dumps({"task": task.name, "model": args.model, "images": len(val.labels),
                          "acc1": acc1, "acc5": acc5}))


if __name__ == "__main__":
    sys.exit(main())
