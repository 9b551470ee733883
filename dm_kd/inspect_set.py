"""Measure an image set: does the teacher see the intended classes, how close is the set to real
images, and are they copies of training images?

    python -m dm_kd.inspect_set --task digits --set syn_dataset/digits \\
        --teacher save/models/digits_cnn_w32 --out save/report/inspect_digits.json

Prints one JSON object, or writes it to --out, and beside it FILE.png: the images that are nearest
to a real training image, each above that one. --val none does without real images.
"""

import argparse
import json
import sys
from pathlib import Path

import torch
from torch import Tensor, nn

from dm_kd import augment, data, engine, image_set, models, run
from dm_kd.analysis import fidelity
from dm_kd.data import Images
from dm_kd.tasks import Task, get_task

NEIGHBOURS = 5  # of precision, recall, density and coverage
SHOWN_PAIRS = 8  # of the picture


def parse(argv: list[str]) -> argparse.Namespace:
    parser = run.Parser("inspect_set", __doc__)
    run.add_data_arguments(parser)
    parser.add_argument("--set", type=Path, required=True, metavar="PATH", dest="source",
                        help="an image set, a folder of images or a list file")
    parser.add_argument("--teacher", default=None, metavar="SPEC", help="classifies the images")
    parser.add_argument("--features", default=None, metavar="SPEC",
                        help="network of the task's classes in whose last hidden layer distances "
                             "to real images are measured (default: the teacher)")
    parser.add_argument("--compare", type=run.positive_int, default=10000, metavar="N",
                        help="number of images of the set, and of real ones, to measure distances "
                             "between (default: %(default)s)")
    parser.add_argument("--out", type=Path, default=None, metavar="FILE.json",
                        help="the record (default: standard output)")
    run.add_common_arguments(parser)
    return run.parse(parser, argv)


def body(argv: list[str]) -> None:
    args = parse(argv)
    task = get_task(args.task, args.data, args)
    if args.dry_run:
        print(f"would inspect {args.source} with {args.teacher}")
        return
    device = run.use_device(args)
    images = data.load_source(args, task)
    torch.manual_seed(args.seed)  # of NAME@none
    teacher, features = (spec and models.load_frozen(spec, task)[0].to(device)
                         for spec in (args.teacher, args.features))
    result = {"set": str(args.source), "fold": args.fold, "images": len(images.labels),
              "generator": images.generator}
    if teacher is not None:
        everything = data.evaluation_crops(images, torch.arange(len(images.labels)), task)
        result |= teacher_view(outputs(teacher, everything, task, device)[0], images.labels)
    pairs = []
    if args.val != "none":
        compared, pairs = compare(args, task, images, features or teacher, device)
        result |= compared
    if args.out is None:
        print(json.dumps(result, indent=1))
        return
    if pairs:
        rows = [list(row) for row in zip(*pairs, strict=True)]
        sheet = image_set.tile(rows, scale=max(1, 32 // task.resolution))
        run.write_file(args.out.with_suffix(".png"), image_set.encode_png(sheet))
    run.write_json(args.out, result)
    print(args.out)


def compare(args: argparse.Namespace, task: Task, images: Images, network: nn.Module | None,
            device: torch.device) -> tuple[dict, list[tuple[Tensor, Tensor]]]:
    """Distances to real images in the features of a network, and copying, in the pixels of small
    images or the features of large ones; and the images that are nearest to a real training image,
    each with that one."""
    chosen = spread_over_classes(images.labels, args.compare)
    sets = {"set": data.evaluation_crops(images, chosen, task)}
    for split in ("train", "val"):
        real = data.load_real(task, split, args.fold, args.val, args.data)
        count = len(real.labels)
        # of a small task all training images: any of them may have been copied
        most = count if split == "train" and not task.large else args.compare
        sets[split] = data.evaluation_crops(real, spread(count, most), task)
    result, points = {}, {}
    if network is not None and min(map(len, sets.values())) > NEIGHBOURS:
        points = {name: outputs(network, x[spread(len(x), args.compare)], task, device)[1]
                  for name, x in sets.items()}
        result = distances(points["set"], points["train"], points["val"])
    if not task.large:
        points = {name: x.flatten(1).float() / 255 for name, x in sets.items()}
    if not points:
        return result, []
    result["copying"], distance, which = fidelity.copying(
        points["set"], points["train"], points["val"])
    nearest = distance.argsort(stable=True)[:SHOWN_PAIRS].tolist()
    return result, [(sets["set"][i], sets["train"][which[i]]) for i in nearest]


def spread(count: int, most: int) -> Tensor:
    """At most `most` of `count` positions, evenly spread."""
    return torch.arange(min(count, most)) * count // min(count, most)


def spread_over_classes(labels: Tensor, most: int) -> Tensor:
    """Rising positions of at most `most` images: equally many of each class, evenly spread."""
    classes = labels.unique()
    classes = classes[spread(len(classes), most)]
    own = [(labels == c).nonzero()[:, 0] for c in classes]
    return torch.cat([p[spread(len(p), most // len(classes))] for p in own]).sort().values


def outputs(model: nn.Module, images: Tensor, task: Task, device: torch.device
            ) -> tuple[Tensor, Tensor]:
    """Logits [N, classes], and features float32 [N, D]: the input of the last layer (linear, or a
    1x1 convolution), averaged over height and width."""
    head = [m for m in model.modules() if isinstance(m, (nn.Linear, nn.Conv2d))][-1]
    features: list[Tensor] = []

    def keep(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        x = inputs[0].detach().float()
        features.append((x.mean((2, 3)) if x.ndim == 4 else x).flatten(1).cpu())

    handle = head.register_forward_pre_hook(keep)
    try:
        logits = engine.predict(model, images, augment.plain_view(task), device, "none")
    finally:
        handle.remove()
    return logits, torch.cat(features)


def teacher_view(logits: Tensor, labels: Tensor) -> dict:
    """The teacher's entropy in nats and, where labels are known, its agreement with them in
    percent, overall and by class."""
    parts = (part.double().log_softmax(1) for part in logits.split(10_000))
    entropy = torch.cat([-(p.exp() * p).sum(1) for p in parts])
    result = {"teacher_entropy": round(float(entropy.mean()), 4)}
    labelled = labels >= 0
    if labelled.any():
        right = (logits.argmax(1) == labels)[labelled].double()
        result["teacher_agreement"] = round(100 * float(right.mean()), 2)
        result["teacher_agreement_by_class"] = {
            int(c): round(100 * float(right[labels[labelled] == c].mean()), 1)
            for c in labels[labelled].unique()}
    return result


def distances(ours: Tensor, train: Tensor, val: Tensor) -> dict:
    """Frechet distance, precision, recall, density and coverage of the set against real validation
    images; for reference also the Frechet distance of real training images to these."""
    result = {"frechet": fidelity.frechet_distance(ours, val),
              "frechet_train_to_val": fidelity.frechet_distance(train, val),
              **fidelity.neighbourhoods(val, ours, NEIGHBOURS)}
    return {"compared": {"images": len(ours), "real": len(val)}, **{
        name: round(value, 4) for name, value in result.items()}}


def main(argv: list[str] | None = None) -> int:
    return run.main(body, argv)


if __name__ == "__main__":
    sys.exit(main())
