"""Measure an image set: does the teacher see the intended classes, how close is the set to real
images?

    python -m dm_kd.inspect_set --task digits --set syn_dataset/digits \\
        --teacher save/models/digits_cnn_w32 --out save/report/inspect_digits.json

Distances are of at most 10,000 images of each kind. --val none does without real images.
"""

import argparse
import sys
from pathlib import Path

import torch
from torch import Tensor, nn

from dm_kd import augment, data, engine, models, run
from dm_kd.analysis import fidelity
from dm_kd.data import Images
from dm_kd.rivals.terms import recorded
from dm_kd.tasks import Task, get_task

COMPARED = 10_000  # images of the set, and real ones, to measure distances between
NEIGHBOURS = 5  # of precision, recall and coverage


def parse(argv: list[str]) -> argparse.Namespace:
    parser = run.Parser("inspect_set", __doc__)
    run.add_data_arguments(parser)
    parser.add_argument("--set", type=Path, required=True, metavar="PATH", dest="source",
                        help="an image set, a folder of images or a list file")
    parser.add_argument("--teacher", required=True, metavar="SPEC", help="classifies the images")
    parser.add_argument("--features", default=None, metavar="SPEC",
                        help="network of the task's classes in whose last hidden layer distances "
                             "to real images are measured (default: the teacher)")
    parser.add_argument("--out", type=Path, required=True, metavar="FILE.json", help="the record")
    run.add_common_arguments(parser)
    return run.parse(parser, argv)


@run.command
def main(argv: list[str]) -> None:
    args = parse(argv)
    task = get_task(args.task, args.data, args)
    if args.dry_run:
        print(f"would inspect {args.source} with {args.teacher}")
        return
    device = run.use_device(args)
    images = data.load_source(args, task)
    torch.manual_seed(args.seed)  # of NAME@none
    teacher, card = models.load_frozen(args.teacher, task)
    teacher.to(device)
    print(card["assumed"], file=sys.stderr)
    features = models.load_frozen(args.features, task)[0].to(device) if args.features else teacher
    reals = [data.load_real(task, split, args.fold, args.val, args.data)
             for split in ("train", "val")] if args.val != "none" else []
    everything = images.images  # a memory map may be larger than the memory
    if not isinstance(everything, Tensor):
        everything = data.evaluation_crops(images, torch.arange(len(images.labels)), task)
    logits = outputs(teacher, everything, task, device)[0]
    result = {"set": str(args.source), "fold": args.fold, "images": len(images.labels),
              "generator": images.generator, "teacher_agreement": agreement(logits, images.labels)}
    if reals:
        result |= compare(task, images, reals, features, device)
    run.write_json(args.out, result)
    print(args.out)


def compare(task: Task, images: Images, reals: list[Images], network: nn.Module,
            device: torch.device) -> dict:
    """Distances to real images, of training and of validation, in the features of a network."""
    crops = [data.evaluation_crops(images, spread_over_classes(images.labels, COMPARED), task)]
    for real in reals:
        crops.append(data.evaluation_crops(real, spread(len(real.labels), COMPARED), task))
    ours, train, val = (outputs(network, x, task, device)[1] for x in crops)
    result = {}
    if len(ours) > NEIGHBOURS:
        result = {"frechet": fidelity.frechet_distance(ours, val),
                  "frechet_train_to_val": fidelity.frechet_distance(train, val),  # for reference
                  **fidelity.neighbourhoods(val, ours, NEIGHBOURS)}
    return {"compared": {"images": len(ours), "real": len(val)},
            **{name: round(value, 4) for name, value in result.items()}}


def spread(count: int, most: int) -> Tensor:
    """At most `most` of `count` positions, evenly spread."""
    return torch.arange(min(count, most)) * count // min(count, most)


def spread_over_classes(labels: Tensor, most: int) -> Tensor:
    """Rising positions of at most `most` images, as many of each class but for one."""
    return labels.argsort(stable=True)[spread(len(labels), most)].sort().values


def outputs(model: nn.Module, images: Tensor, task: Task, device: torch.device
            ) -> tuple[Tensor, Tensor]:
    """Logits [N, classes], and features float32 [N, D]: the input of the last layer (linear, or a
    1x1 convolution), averaged over height and width."""
    head = [m for m in model.modules() if isinstance(m, (nn.Linear, nn.Conv2d))][-1]
    with recorded([head], lambda _, x: (x.mean((2, 3)) if x.ndim == 4 else x).cpu()) as features:
        logits = engine.predict(model, images, augment.plain_view(task), device, "none")
    return logits, torch.cat(features)


def agreement(logits: Tensor, labels: Tensor) -> float | None:
    """Percent of the labelled images whose class the teacher sees; None without labels."""
    hits = (logits.argmax(1) == labels)[labels >= 0].double()
    return round(100 * float(hits.mean()), 2) if len(hits) else None


if __name__ == "__main__":
    sys.exit(main())
