"""Measure an image set: does the teacher see the intended classes, how close is the set to real
images, and are they copies of training images?

    python -m dm_kd.inspect_set --task digits --set syn_dataset/digits \\
        --teacher save/models/digits_cnn_w32 --out save/report/inspect_digits.json

One JSON object on standard output, or in --out with a picture beside it. Real images are only
compared with; without them, a teacher or labels, the figures that need them are missing.
"""

import argparse
import dataclasses
import json
import sys
from pathlib import Path

import torch
from torch import Tensor, nn

from dm_kd import augment, data, engine, image_set, models, run
from dm_kd.analysis import fidelity
from dm_kd.data import Images
from dm_kd.run import UserError
from dm_kd.tasks import Task, get_task

THUMBNAIL = 32  # pixels per side of the images whose pixels are compared
SHOWN_CLASSES, SHOWN_IMAGES, SHOWN_PAIRS = 20, 8, 8  # of the picture


def parse(argv: list[str]) -> argparse.Namespace:
    parser = run.Parser("inspect_set", __doc__)
    run.add_data_arguments(parser)
    parser.add_argument("--set", type=Path, required=True, metavar="PATH",
                        help="an image set, a folder of images or a list file")
    parser.add_argument("--teacher", default=None, metavar="SPEC", help="classifies the images")
    parser.add_argument("--features", default=None, metavar="SPEC",
                        help="network of the task's classes in whose last hidden layer distances "
                             "to real images are measured (default: the teacher)")
    parser.add_argument("--compare", type=run.positive_int, default=10000, metavar="N",
                        help="images of the set, and real ones, that distances are measured "
                             "between (default: %(default)s)")
    parser.add_argument("--neighbours", type=run.positive_int, default=5, metavar="K",
                        help="of precision, recall, density and coverage (default: %(default)s)")
    parser.add_argument("--out", type=Path, default=None, metavar="FILE.json",
                        help="where to write it, with FILE.png (default: standard output)")
    run.add_common_arguments(parser)
    return run.parse(parser, argv)


def body(argv: list[str]) -> None:
    args = parse(argv)
    task = get_task(args.task, args.data)
    if args.dry_run:
        print(f"would inspect {args.set} with {args.teacher}")
        return
    device = run.use_device(args)
    args.source = args.set
    images = data.load_source(args, task)
    images = dataclasses.replace(images, images=as_tensor(
        images, torch.arange(len(images.labels)), task))
    result = {"set": str(args.set), "images": len(images.labels), "generator": images.generator}
    measured, pairs = measure(args, task, images, device)
    result |= measured
    if args.out is None:
        print(json.dumps(result, indent=1))
        return
    draw(args.out.with_suffix(".png"), task, images, pairs)
    run.write_json(args.out, result)
    print(args.out)


def measure(args: argparse.Namespace, task: Task, images: Images, device: torch.device
            ) -> tuple[dict, list[tuple[Tensor, Tensor]]]:
    """Every figure that there are means for; and the images nearest to real training images, each
    with that image."""
    torch.manual_seed(args.seed)  # of NAME@none
    chosen = spread_over_classes(images.labels, args.compare)
    train, val = (reference(args, task, split) for split in ("train", "val"))
    result, network = {}, None
    if args.teacher:
        network = models.load_frozen(args.teacher, task)[0].to(device)
        logits, _ = outputs(network, images.images, task, device)
        result |= teacher_view(logits, images.labels)
    if args.features:
        network = models.load_frozen(args.features, task)[0].to(device)
    if train is None or val is None:
        return result, []
    features = {}
    if network is not None:
        few = train[spread(len(train), args.compare)]
        features = {name: outputs(network, x, task, device)[1] for name, x in (
            ("set", images.images[chosen]), ("train", few), ("val", val))}
        result |= distances(features, args.neighbours)
    where = "features" if task.large and features else "pixels"  # pixels of large images say little
    if where == "pixels":
        features = {name: thumbnails(x) for name, x in (
            ("set", images.images[chosen]), ("train", train), ("val", val))}
    result["copying"], distance, which = fidelity.copying(
        features["set"], features["train"], features["val"])
    result["copying"]["measured_in"] = where
    nearest = distance.argsort(stable=True)[:SHOWN_PAIRS].tolist()
    return result, [(images.images[chosen[i]], train[which[i]]) for i in nearest]


def reference(args: argparse.Namespace, task: Task, split: str) -> Tensor | None:
    """Real images uint8 [N, C, H, W]: at most --compare, but all training images of a small task,
    since any of them may have been copied. None where they are not on disk."""
    if args.val == "none":
        return None
    try:
        real = data.load_real(task, split, args.fold, args.val, args.data)
    except UserError as error:
        if args.data is not None:
            raise
        print(f"no real images to compare with: {error}", file=sys.stderr)
        return None
    whole = split == "train" and not task.large
    count = len(real.labels)
    return as_tensor(real, spread(count, count if whole else args.compare), task)


def as_tensor(images: Images, index: Tensor, task: Task) -> Tensor:
    """Those images as uint8 [M, C, H, W]; of files their centre crops."""
    whole = isinstance(images.images, Tensor) and len(index) == len(images.labels)
    return images.images if whole else data.evaluation_crops(images, index, task)


def spread(count: int, most: int) -> Tensor:
    """At most `most` positions among `count`, evenly spread."""
    return torch.arange(min(count, most)) * count // min(count, most)


def spread_over_classes(labels: Tensor, most: int) -> Tensor:
    """Rising positions of at most `most` images: as many of each class, evenly spread."""
    classes = labels.unique()
    classes = classes[spread(len(classes), most)]
    own = [(labels == c).nonzero()[:, 0] for c in classes]
    return torch.cat([p[spread(len(p), most // len(classes))] for p in own]).sort().values


def outputs(model: nn.Module, images: Tensor, task: Task, device: torch.device
            ) -> tuple[Tensor, Tensor]:
    """Logits [N, classes], and features float32 [N, D]: what enters the last layer (linear, or a
    1x1 convolution), maps averaged over their places."""
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


def thumbnails(images: Tensor) -> Tensor:
    """uint8 [N, C, H, W] -> float32 [N, D] in [0, 1]: the pixels, of at most 32 x 32."""
    small = [part if max(part.shape[2:]) <= THUMBNAIL else augment.resize(
        part, THUMBNAIL, THUMBNAIL) for part in images.split(fidelity.CHUNK)]
    return torch.cat([part.flatten(1).float() / 255 for part in small])


def teacher_view(logits: Tensor, labels: Tensor) -> dict:
    """The teacher's entropy in nats and, where labels are known, its agreement with them in
    percent, overall and by class; and the class that it sees most often."""
    parts = (part.double().log_softmax(1) for part in logits.split(10_000))
    entropy = torch.cat([-(p.exp() * p).sum(1) for p in parts])
    seen = logits.argmax(1)
    counts = torch.bincount(seen)
    result = {"teacher_entropy": round(float(entropy.mean()), 4), "commonest_class": {
        "class": int(counts.argmax()), "percent": round(100 * int(counts.max()) / len(seen), 1)}}
    if (labels >= 0).any():
        known = labels >= 0
        right = (seen == labels)[known].double()
        result["teacher_agreement"] = round(100 * float(right.mean()), 2)
        result["teacher_agreement_by_class"] = {
            int(c): round(100 * float(right[labels[known] == c].mean()), 1)
            for c in labels[known].unique()}
    return result


def distances(features: dict[str, Tensor], k: int) -> dict:
    """Frechet distance, precision, recall, density and coverage of the set against real validation
    images; and the Frechet distance of real training images to the same, as a reference."""
    ours, val = features["set"], features["val"]
    result = {"compared": {"images": len(ours), "real": len(val), "neighbours": k}}
    if min(len(ours), len(val), len(features["train"])) > 1:  # one image has no covariance
        result["frechet"] = round(fidelity.frechet_distance(ours, val), 4)
        result["frechet_train_to_val"] = round(
            fidelity.frechet_distance(features["train"], val), 4)
    if k < min(len(ours), len(val)):
        result |= {name: round(value, 4) for name, value in
                   fidelity.neighbourhoods(val, ours, k).items()}
    return result


def draw(path: Path, task: Task, images: Images, pairs: list[tuple[Tensor, Tensor]]) -> None:
    """A line of images for each class (the first 20), and below, in two lines, those nearest to a
    real training image above that image."""
    classes = [c for c in images.labels.unique().tolist() if c >= 0][:SHOWN_CLASSES]
    lines = [[*images.images[(images.labels == c).nonzero()[:SHOWN_IMAGES, 0]]] for c in classes]
    lines = lines or [[*part] for part in images.images[:64].split(SHOWN_IMAGES)]
    if pairs:
        side = images.images.shape[2:]
        lines += [[made for made, _ in pairs],
                  [augment.resize(real[None], *side)[0] for _, real in pairs]]
    sheet = image_set.tile(lines, scale=max(1, 32 // task.resolution))
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(image_set.encode_png(sheet))


def main(argv: list[str] | None = None) -> int:
    return run.main(body, argv)


if __name__ == "__main__":
    sys.exit(main())
