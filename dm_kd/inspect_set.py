"""Look at an image set: does the teacher see the intended classes, is the set like real images, and
does the generator copy?

    python -m dm_kd.inspect_set --task digits --set syn_dataset/digits \\
        --teacher save/models/digits_cnn_w32 --out save/report/digits_set.json

One JSON object on standard output, or in --out, with a picture beside it (digits_set.png) and a
sentence about both. Real images are the yardstick only; nothing is tuned on them. Without them, a
teacher or labels, the figures that need them are null.
"""

import argparse
import dataclasses
import json
import sys
from pathlib import Path

import torch
from torch import Tensor

from dm_kd import augment, dist, engine, fidelity, files, image_set, models, run
from dm_kd.errors import UserError
from dm_kd.real_data import RealData
from dm_kd.sources.stored import gathered, seen_note, set_labels
from dm_kd.tasks import Task, get_task, load_real

NEAR_DUPLICATE = 0.02  # root mean square difference, of the grey range, of thumbnails
ENTROPY_BINS = 20
ENTROPY_PART = 10_000  # logits at a time
SHOWN_CLASSES, SHOWN_CONFUSIONS, SHOWN_IMAGES, SHOWN_PAIRS = 20, 6, 8, 8  # of the picture


def parse(argv: list[str]) -> argparse.Namespace:
    parser = run.Parser("inspect_set", __doc__)
    run.add_data_arguments(parser)
    parser.add_argument("--set", type=Path, required=True, metavar="FOLDER", help="an image set")
    parser.add_argument("--teacher", default=None, metavar="SPEC", help="scores the images")
    parser.add_argument("--features", default=None, metavar="SPEC",
                        help="network whose last hidden layer the distances to real images are "
                             "taken in, of the task's classes (default: the teacher)")
    parser.add_argument("--compare", type=run.positive_int, default=10000, metavar="N",
                        help="images of the set, and of the real ones, that distances are taken "
                             "between, evenly spread; copies of small images are looked for among "
                             "all training images (default: %(default)s)")
    parser.add_argument("--neighbours", type=run.positive_int, default=5, metavar="K",
                        help="of precision, recall, density and coverage (default: %(default)s)")
    parser.add_argument("--out", type=Path, default=None, metavar="FILE.json",
                        help="where to write it, the picture beside it as FILE.png (default: "
                             "standard output, no picture)")
    run.add_common_arguments(parser)
    args = run.parse(parser, argv)
    if args.out and args.out.suffix == ".png":
        raise UserError("--out is the record; the picture has its name with .png", given=args.out,
                        hint=f"--out {args.out.with_suffix('.json')}")
    return args


def body(argv: list[str]) -> None:
    args = parse(argv)
    task = get_task(args.task, args.data)
    if args.dry_run:
        state = "" if args.set.exists() else " (not made yet)"
        print(f"would look at {args.set}{state} with {args.teacher}")
        return
    dist.refuse_ranks("inspect_set")
    device = run.use_device(args)
    pixels, labels, manifest = load_set(args, task)
    result, drawn = measure(args, task, pixels, labels, manifest, device)
    result = {"set": str(args.set), "images": len(labels), "generator": manifest["generator"],
              **result}
    if args.out is None:
        print(json.dumps(result, indent=1))
        return
    result["sentence"] = describe(result)
    draw(args.out.with_suffix(".png"), task, pixels, labels, **drawn)
    files.write_json(args.out, result)
    print(result["sentence"])


def measure(args: argparse.Namespace, task: Task, pixels: Tensor, labels: Tensor, manifest: dict,
            device: torch.device) -> tuple[dict, dict]:
    """Every figure that there are means for, and what the picture needs beside the images."""
    view = engine.plain_view(task)
    result, logits, points_of = view_of_nobody(), None, None
    torch.manual_seed(args.seed)  # of NAME@none
    chosen = spread_over(manifest, args.compare)
    if args.teacher:
        points_of = models.load_frozen(args.teacher, task)[0].to(device)
        whole = len(chosen) == len(labels)  # features of a large set would fill the memory
        logits, ours = look(points_of, pixels, view, device) if whole else (
            engine.predict(points_of, pixels, view, device, "none"),
            look(points_of, pixels[chosen], view, device)[1])
        result |= teacher_view(logits, labels)
        result["worst_class"] = worst_class(result["teacher_agreement_by_class"], task)
        result["commonest_class"] = commonest_class(logits.argmax(1), task)
    if args.features:
        points_of = models.load_frozen(args.features, task)[0].to(device)
        ours = look(points_of, pixels[chosen], view, device)[1]
    thumbnails = fidelity.thumbnails(pixels[chosen])
    result |= duplicates(thumbnails)
    train, val = reference(args, task, "train"), reference(args, task, "val")
    real = {}
    if points_of is not None:
        real = {name: look(points_of, data.chosen(spread(len(data.labels), args.compare)).images,
                           view, device)[1]
                for name, data in (("train", train), ("val", val)) if data is not None}
        result |= distances(ours, real, args.neighbours)
    nearest_of = None
    if train is not None and val is not None:
        large = task.crop and points_of is not None  # pixel distances say little about large images
        result["copying"], nearest_of = copying(*(
            (ours, real["train"], real["val"]) if large else
            (thumbnails, fidelity.thumbnails(train.images), fidelity.thumbnails(val.images))))
        result["copying"]["measured_in"] = "features" if large else "pixels"
    return result, {"logits": logits, "chosen": chosen, "train": train, "nearest_of": nearest_of}


def load_set(args: argparse.Namespace, task: Task) -> tuple[Tensor, Tensor, dict]:
    """Images of the task's size (small tasks) or as they are, labels (-1 where the set is of other
    classes), manifest."""
    images = image_set.open_set(args.set)
    manifest = images.manifest
    if manifest["channels"] != task.channels:
        raise UserError(f"the set has {manifest['channels']} channels, {task.name} has "
                        f"{task.channels}", set=args.set, hint=f"--task {manifest['task']}")
    pixels, labels = image_set.packed(images, args.cache, lambda n: None,
                                      None if task.crop else task.resolution)
    if note := seen_note(manifest["generator"], task, args):
        print(note, file=sys.stderr)
    return pixels, set_labels(manifest, labels, task)[0], manifest


def reference(args: argparse.Namespace, task: Task, split: str) -> RealData | None:
    """At most --compare real images of a split, centre crops where the task has them, but all
    training images of a small task, since any of them may have been copied; None with --val none,
    and where the task's images are not at their usual place."""
    if args.val == "none":
        return None
    try:
        real = load_real(task, split, args.fold, args.val, args.data)
    except UserError as error:
        if args.data is not None:
            raise
        print(f"note: no real images to compare with ({split}): "
              f"{str(error).splitlines()[0].removeprefix('error: ')}", file=sys.stderr)
        return None
    if split == "val" or task.crop:
        real = real.chosen(spread(len(real.labels), args.compare))
    return dataclasses.replace(real, images=gathered(real.images, task, args.cache, True)[0])


def spread(count: int, most: int) -> Tensor:
    """At most `most` positions among `count`, evenly spread."""
    return torch.arange(min(count, most)) * count // min(count, most)


def spread_over(manifest: dict, most: int) -> Tensor:
    """Positions of at most `most` of a set's images: as many of each class, or of as many classes
    evenly spread. (In a set's order the classes run first, so a stride that shares a factor with
    their number would leave classes out.)"""
    classes, each = len(manifest["classes"]), manifest["images_per_class"]
    if classes > most:
        return spread(classes, most)
    k = spread(each, most // classes)
    return (k[:, None] * classes + torch.arange(classes)).flatten()


def look(model: torch.nn.Module, images: Tensor, view: engine.View, device: torch.device
         ) -> tuple[Tensor, Tensor]:
    """Logits [N, classes], and features [N, D] of the last hidden layer."""
    with fidelity.penultimate(model) as collected:
        logits = engine.predict(model, images, view, device, "none")
    return logits, torch.cat(collected)


# --- figures --------------------------------------------------------------------------------------

def view_of_nobody() -> dict:
    """Every figure, before anything is measured."""
    return dict.fromkeys((
        "teacher_entropy", "teacher_agreement", "teacher_agreement_by_class", "worst_class",
        "commonest_class", "confusions", "entropy_histogram", "duplicates", "frechet",
        "frechet_train_to_val", "precision", "recall", "density", "coverage", "copying"))


def entropies(logits: Tensor) -> Tensor:
    """Of the softmax, in nats [N]; in parts, since float64 takes the memory of many logits."""
    parts = (part.double().log_softmax(1) for part in logits.split(ENTROPY_PART))
    return torch.cat([-(log_p.exp() * log_p).sum(1) for log_p in parts])


def teacher_view(logits: Tensor, labels: Tensor) -> dict:
    """Agreement with the intended labels in percent (where known), overall and per class, the
    commonest confusions, and the entropy in nats: its mean, and counts in equal bins from 0 to that
    of a uniform guess. logits [N, classes], labels [N]."""
    known, classes = labels >= 0, logits.shape[1]
    entropy = entropies(logits)
    top = float(torch.tensor(float(classes)).log())
    counts = torch.histc(entropy.clamp(0, top).float(), ENTROPY_BINS, 0, top)
    result = {"teacher_entropy": round(float(entropy.mean()), 4),
              "entropy_histogram": {"to": round(top, 4), "counts": [int(c) for c in counts]}}
    if known.any():
        right = (logits.argmax(1) == labels)[known].double()
        result["teacher_agreement"] = round(100 * float(right.mean()), 2)
        result["teacher_agreement_by_class"] = {
            int(c): round(100 * float(right[labels[known] == c].mean()), 1)
            for c in labels[known].unique()}
        result["confusions"] = confusions(logits[known].argmax(1), labels[known], classes)
    return result


def worst_class(agreement: dict[int, float] | None, task: Task) -> dict | None:
    """The class that the teacher sees least often as intended, the first of several; None without
    known labels."""
    if not agreement:
        return None
    c = min(agreement, key=agreement.get)
    return {"class": c, "name": task.class_names[c], "percent": agreement[c]}


def commonest_class(seen: Tensor, task: Task) -> dict:
    """The class that the teacher sees most often, the first of several: images that it takes nearly
    all for one class teach little. seen: of each image [N]."""
    counts = torch.bincount(seen)
    c = int(counts.argmax())
    return {"class": c, "name": task.class_names[c],
            "percent": round(100 * float(counts[c]) / len(seen), 1)}


def confusions(seen: Tensor, labels: Tensor, classes: int, most: int = 20) -> list[dict]:
    """The pairs of (intended, seen) classes that are commonest in percent of the intended class's
    images, at most so many; ties in class order."""
    counts = torch.bincount(labels * classes + seen, minlength=classes ** 2).view(classes, classes)
    share = 100 * counts.double() / counts.sum(1, keepdim=True).clamp_min(1)
    share.fill_diagonal_(0)
    order = share.flatten().argsort(descending=True, stable=True)[:most].tolist()
    return [{"intended": at // classes, "seen": at % classes,
             "percent": round(float(share.flatten()[at]), 1)}
            for at in order if share.flatten()[at] > 0]


def duplicates(thumbnails: Tensor) -> dict:
    """How many images have another of the set so near that it adds next to nothing. thumbnails
    [N, D] in [0, 1]."""
    distance = fidelity.nearest_other(thumbnails)
    return {"duplicates": {
        "exact_percent": round(100 * float((distance == 0).double().mean()), 2),
        "near_percent": round(100 * float((distance < NEAR_DUPLICATE).double().mean()), 2),
        "near_below_rms": NEAR_DUPLICATE, "compared": len(thumbnails)}}


def distances(ours: Tensor, real: dict[str, Tensor], k: int) -> dict:
    """Frechet distance, precision, recall, density and coverage against real validation images,
    and as the yardstick the Frechet distance of real training images to the same. Features [., D];
    {} without validation images."""
    if "val" not in real:
        return {}
    val = real["val"]
    result = {"compared": {"images": len(ours), "real": len(val), "neighbours": k}}
    for name, points in (("frechet", ours), ("frechet_train_to_val", real.get("train", ours[:0]))):
        if min(len(points), len(val)) > 1:  # one image has no covariance
            result[name] = round(fidelity.frechet_distance(points, val), 4)
    if k < min(len(ours), len(val)):
        result |= {name: round(value, 4) for name, value in
                   fidelity.neighbourhoods(val, ours, k).items()}
    return result


def copying(ours: Tensor, train: Tensor, held_out: Tensor) -> tuple[dict, tuple[Tensor, Tensor]]:
    """Does the generator copy its training images? Mean distance of its images to the nearest
    training image over the same for real images it never saw: about 1 = as new as real ones, near
    0 = copies. copies_percent: images nearer than 99 % of the held-out ones are.

    Args:
        ours, train, held_out: float32 [., D], thumbnails or features.

    Returns:
        The figures, and each image's distance and nearest training image.
    """
    distance, which = fidelity.nearest(ours, train)
    real, _ = fidelity.nearest(held_out, train)
    limit = real.quantile(0.01)

    def ratio(ours: Tensor, real: Tensor) -> float | None:  # None: held-out images are copies too
        return round(float(ours / real), 4) if real > 0 else None

    return {"ratio": ratio(distance.mean(), real.mean()),
            "ratio_of_medians": ratio(distance.median(), real.median()),
            "copies_percent": round(100 * float((distance < limit).double().mean()), 2),
            "held_out_images": len(held_out), "training_images": len(train)}, (distance, which)


def describe(result: dict) -> str:
    """The result in one sentence."""
    text = f"{result['set']}: {result['images']} images"
    if result["teacher_agreement"] is not None:
        text += f"; the teacher sees the intended class in {result['teacher_agreement']} %"
    if result["teacher_entropy"] is not None:
        text += f"; its entropy is {result['teacher_entropy']} nats"
    if result["commonest_class"] and result["commonest_class"]["percent"] > 50:
        text += "; it takes {percent} % of them for {name}".format(**result["commonest_class"])
    if result["frechet"] is not None:
        text += f"; Frechet distance {result['frechet']} to real validation images"
        if result["frechet_train_to_val"] is not None:
            text += f" (real training images: {result['frechet_train_to_val']})"
    if result["precision"] is not None:
        text += ", " + ", ".join(f"{name} {result[name]:.3f}" for name in (
            "precision", "recall", "density", "coverage"))
    text += f"; {result['duplicates']['near_percent']} % near-duplicates within the set"
    if result["copying"] is not None and result["copying"]["ratio"] is not None:
        text += (f"; nearest training image at {result['copying']['ratio']} times the distance of "
                 "held-out real images (about 1 = new, near 0 = copies)")
    return text + "."


# --- picture --------------------------------------------------------------------------------------

def draw(path: Path, task: Task, pixels: Tensor, labels: Tensor, logits: Tensor | None,
         chosen: Tensor, train: RealData | None, nearest_of: tuple[Tensor, Tensor] | None) -> None:
    """Images of each class, worst confusions, the histogram of the teacher's entropy, and the
    images nearest to real training ones beside them; what there is of it."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, (sheet, *axes) = pyplot.subplots(1, 4, figsize=(18, 5.5), layout="constrained")
    for axis in axes:
        axis.set_axis_off()
    draw_classes(sheet, task, pixels, labels, logits)
    if logits is not None:
        draw_confusions(axes[0], task, pixels, labels, logits)
        axes[1].set_axis_on()
        axes[1].hist(entropies(logits).numpy(), ENTROPY_BINS)
        axes[1].set(title="Teacher's entropy", xlabel="nats", ylabel="images")
    if nearest_of is not None:
        distance, which = nearest_of
        first = distance.argsort(stable=True)[:SHOWN_PAIRS]
        side = train.images.shape[2:]
        made = augment.resize(pixels[chosen[first]], *side)
        pairs = [list(made), list(train.images[which[first]])]
        show(axes[2], pairs, ["set", "real"], "Nearest to real training images")
    files.atomically(lambda p: figure.savefig(p, dpi=110, metadata={"Software": None}), path)
    pyplot.close(figure)


def shown_classes(labels: Tensor) -> list[int]:
    """The set's classes, evenly spread where there are too many to show; none without labels."""
    known = labels[labels >= 0].unique()
    return known[spread(len(known), SHOWN_CLASSES)].tolist() if len(known) else []


def draw_classes(axis, task: Task, pixels: Tensor, labels: Tensor, logits: Tensor | None) -> None:
    """The contact sheet: a row of each class with the teacher's agreement; images evenly spread
    over the set where their classes are not known."""
    rows, names = [], []
    for c in shown_classes(labels):
        own = (labels == c).nonzero()[:, 0]
        rows.append(list(pixels[own[spread(len(own), SHOWN_IMAGES)]]))
        names.append(task.class_names[c][:14])
        if logits is not None:
            right = (logits[own].argmax(1) == c).double().mean()
            names[-1] += f" {100 * float(right):.0f} %"
    if not rows:
        chosen = pixels[spread(len(pixels), SHOWN_CLASSES * SHOWN_IMAGES // 2)]
        rows = [list(part) for part in chosen.split(SHOWN_IMAGES)]
        names = [""] * len(rows)
    show(axis, rows, names, "Images by class" if names[0] else "Images")


def draw_confusions(axis, task: Task, pixels: Tensor, labels: Tensor, logits: Tensor) -> None:
    known, seen = labels >= 0, logits.argmax(1)
    rows, names = [], []
    if known.any():
        for pair in confusions(seen[known], labels[known], logits.shape[1], SHOWN_CONFUSIONS):
            at = ((labels == pair["intended"]) & (seen == pair["seen"])).nonzero()[:, 0]
            rows.append(list(pixels[at[:SHOWN_IMAGES]]))
            names.append(f"{task.class_names[pair['intended']][:14]}, seen as\n"
                         f"{task.class_names[pair['seen']][:14]} {pair['percent']:.1f} %")
    if rows:
        show(axis, rows, names, "Worst confusions")


def show(axis, rows: list[list[Tensor]], names: list[str], title: str) -> None:
    """Rows of uint8 images with a name each."""
    sheet = image_set.tile(rows, scale=max(1, 32 // rows[0][0].shape[1]))
    axis.set_axis_on()
    axis.imshow(sheet.permute(1, 2, 0).numpy().squeeze(), cmap="gray", vmin=0, vmax=255)
    height = sheet.shape[1] / len(rows)
    axis.set_yticks([height * (r + 0.5) for r in range(len(rows))], names, fontsize=8)
    axis.set_xticks([])
    axis.set_title(title)


def main(argv: list[str] | None = None) -> int:
    return run.main(body, argv)


if __name__ == "__main__":
    sys.exit(main())
