"""Look at an image set: does the teacher see the intended classes, and does the generator copy?

    python -m dm_kd.inspect_set --task digits --set syn_dataset/digits \\
        --teacher save/models/digits_cnn_w32 --out save/report/digits_set.json

One JSON object on standard output, or in --out and a sentence about it. Real validation images
serve as the yardstick for copying only; nothing is tuned on them.
"""

import argparse
import json
import sys
from pathlib import Path

import torch
from torch import Tensor

from dm_kd import engine, files, image_set, models, run
from dm_kd.tasks import get_task, load_real


def parse(argv: list[str]) -> argparse.Namespace:
    parser = run.Parser("inspect_set", __doc__)
    run.add_data_arguments(parser)
    parser.add_argument("--set", type=Path, required=True, metavar="FOLDER", help="an image set")
    parser.add_argument("--teacher", default=None, metavar="SPEC", help="scores the images")
    parser.add_argument("--out", type=Path, default=None, metavar="FILE.json",
                        help="where to write it (default: standard output)")
    run.add_common_arguments(parser)
    return run.parse(parser, argv)


def body(argv: list[str]) -> None:
    args = parse(argv)
    task = get_task(args.task, args.data)
    if args.dry_run:
        state = "" if args.set.exists() else " (not made yet)"
        print(f"would look at {args.set}{state} with {args.teacher}")
        return
    device = run.use_device(args)
    images = image_set.open_set(args.set)
    pixels, labels = image_set.packed(images, args.cache, lambda n: None)
    result = {"set": str(args.set), "images": len(labels),
              "generator": images.manifest["generator"]}
    if args.teacher:
        torch.manual_seed(args.seed)  # of NAME@none
        teacher, _ = models.load_frozen(args.teacher, task)
        result |= teacher_view(engine.predict(
            teacher.to(device), pixels, engine.plain_view(task), device, "none"), labels)
    if args.val != "none" and not task.crop:  # pixel distances say little about large images
        train = load_real(task, "train", args.fold, args.val, args.data)
        val = load_real(task, "val", args.fold, args.val, args.data)
        result["copying"] = copying(pixels, train.images, val.images)
    if args.out is None:
        print(json.dumps(result, indent=1))
        return
    result["sentence"] = describe(result)
    files.write_json(args.out, result)
    print(result["sentence"])


def describe(result: dict) -> str:
    """The result in one sentence."""
    text = f"{result['set']}: {result['images']} images"
    if "teacher_agreement" in result:
        text += f"; the teacher sees the intended class in {result['teacher_agreement']} %"
    if "copying" in result:
        text += (f"; nearest training image at {result['copying']['ratio']} times the distance of "
                 "held-out real images (about 1 = new, near 0 = copies)")
    return text + "."


def teacher_view(logits: Tensor, labels: Tensor) -> dict:
    """Agreement with the intended labels in percent (where known), overall and per class, and the
    mean entropy in nats. logits [N, classes], labels [N]."""
    known = labels >= 0
    log_p = logits.log_softmax(1)
    result = {"teacher_entropy": round(float(-(log_p.exp() * log_p).sum(1).mean()), 4)}
    if known.any():
        right = (logits.argmax(1) == labels)[known].double()
        result["teacher_agreement"] = round(100 * float(right.mean()), 2)
        result["teacher_agreement_by_class"] = {
            int(c): round(100 * float(right[labels[known] == c].mean()), 1)
            for c in labels[known].unique()}
    return result


def nearest_distances(images: Tensor, others: Tensor, chunk: int = 500) -> Tensor:
    """Root mean square pixel distance, in [0, 1], of each image to its nearest of `others`.
    Both uint8 [., C, H, W]."""
    flat = others.flatten(1).float() / 255
    exact = "donot_use_mm_for_euclid_dist"  # the product's rounding would hide exact copies
    found = [torch.cdist(part.flatten(1).float() / 255, flat, compute_mode=exact).min(1).values
             for part in images.split(chunk)]
    return torch.cat(found) / flat.shape[1] ** 0.5


def copying(images: Tensor, train: Tensor, held_out: Tensor) -> dict:
    """Does the generator copy its training images? Mean distance of its images to the nearest
    training image over the same for real images it never saw: about 1 = as new as real ones, near
    0 = copies. copies_percent: images nearer than 99 % of the held-out ones are."""
    ours, real = nearest_distances(images, train), nearest_distances(held_out, train)
    limit = real.quantile(0.01)
    return {"ratio": round(float(ours.mean() / real.mean()), 4),
            "ratio_of_medians": round(float(ours.median() / real.median()), 4),
            "copies_percent": round(100 * float((ours < limit).double().mean()), 2),
            "held_out_images": len(held_out), "training_images": len(train)}


def main(argv: list[str] | None = None) -> int:
    return run.main(body, argv)


if __name__ == "__main__":
    sys.exit(main())
