"""Evaluate a model on a task's real validation images. Prints one JSON line: acc1 and acc5 in
percent, with --teacher also teacher_acc1 and agreement.

    python -m dm_kd.evaluate --task digits --model save/student_model/digits \\
        [--teacher save/models/digits_cnn_w32]
"""

import argparse
import dataclasses
import json
import sys

import torch
from torch import Tensor

from dm_kd import augment, data, dist, engine, models, preprocessing, run
from dm_kd.run import UserError
from dm_kd.tasks import Task, get_task


def parse(argv: list[str]) -> argparse.Namespace:
    parser = run.Parser("evaluate", __doc__)
    run.add_data_arguments(parser)
    parser.add_argument("--model", required=True, metavar="SPEC",
                        help="a run folder, NAME@FILE, torchvision:NAME, timm:NAME, or your own "
                             "FILE.py:FUNCTION@FILE with FUNCTION(num_classes) -> nn.Module")
    parser.add_argument("--teacher", default=None, metavar="SPEC",
                        help="also report teacher_acc1, and agreement: the percentage of images "
                             "for which both predict the same class")
    preprocessing.add_arguments(parser, evaluates=True)
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
    logits, labels, notes = outputs(args.model, task, args, device)
    acc1, acc5 = engine.accuracy(logits, labels)
    result = {"task": task.name, "model": args.model, "images": len(labels),
              "acc1": acc1, "acc5": acc5}
    if args.teacher:
        teacher_logits, _, more = outputs(args.teacher, task, args, device)
        same = teacher_logits.argmax(1) == logits.argmax(1)
        result |= {"teacher_acc1": engine.accuracy(teacher_logits, labels)[0],
                   "agreement": 100 * same.double().mean().item()}
        notes += more
    if dist.is_main():
        print("\n".join(notes), file=sys.stderr)
        print(json.dumps(result))


def outputs(spec: str, task: Task, args: argparse.Namespace, device: torch.device
            ) -> tuple[Tensor, Tensor, list[str]]:
    """A network's logits [N, classes] of the validation images, which are resized and cropped in
    its own way; their labels [N]; lines for standard error."""
    model, card = models.load_frozen(spec, task, args)
    own = task
    if task.large:
        size = {key: card["input"][key] for key in ("resolution", "resize")}
        own = dataclasses.replace(task, **size)
    val = data.load_validation(own, args)
    dist.start(device)  # each process evaluates a share
    logits = engine.predict(model.to(device), val.images, augment.plain_view(own), device, "none")
    doubt = models.doubt(logits, val.labels)
    return logits, val.labels, [card["assumed"], *models.seen_note(card, args), *val.notes,
                                *([f"note: {doubt}"] if doubt else [])]


def main(argv: list[str] | None = None) -> int:
    return run.main(body, argv)


if __name__ == "__main__":
    sys.exit(main())
