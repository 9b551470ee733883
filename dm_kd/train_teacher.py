"""Train a classifier on real images with cross-entropy: a teacher, or a student alone.

    python -m dm_kd.train_teacher --task digits --model cnn_w32 --epochs 60 \\
        --out save/models/digits_cnn_w32

The folder is a Run folder (see run.py); as a --teacher spec it is enough by itself.
"""

import argparse
import dataclasses
import sys
from pathlib import Path

import torch

from dm_kd import dist, engine, models, objectives, run
from dm_kd.errors import UserError
from dm_kd.sources.stored import StoredSource, far_from, gathered, load_judged, resident
from dm_kd.tasks import absent_classes, first_per_class, get_task, load_real


def parse(argv: list[str]) -> argparse.Namespace:
    parser = run.Parser("train_teacher", __doc__)
    run.add_data_arguments(parser)
    parser.add_argument("--model", required=True, metavar="NAME",
                        help=f"one of {', '.join(models.MODELS)}, torchvision:NAME, timm:NAME")
    parser.add_argument("--images-per-class", type=run.positive_int, default=None, metavar="N",
                        help="real images per class (default: all)")
    parser.add_argument("--subset-seed", type=run.nonnegative_int, default=None, metavar="S",
                        help="draw the N images of each class with this seed, fewer within more "
                             "(default: the first)")
    parser.add_argument("--out", type=Path, required=True, metavar="save/models/NAME",
                        help="the run: model, log, metrics, checkpoints")
    engine.add_arguments(parser)
    run.add_common_arguments(parser)
    return run.parse(parser, argv)


def body(argv: list[str]) -> None:
    args = parse(argv)
    task = get_task(args.task, args.data)
    if args.dry_run:
        state = "there already" if (args.out / "config.yaml").exists() else "not made yet"
        with torch.device("meta"):  # its weights are only counted
            count = models.parameter_count(models.build(args.model, task))
        print(f"would train {args.model} ({count:,} parameters) on "
              f"{task.name} for {args.epochs} epochs of {args.batch_size} images a step, in "
              f"{args.out} ({state})")
        return
    torch.manual_seed(args.seed)
    student = models.build(args.model, task)
    run.resume_threads(args)
    device = run.use_device(args)
    args.amp = engine.resolve_amp(args.amp, device)
    args.compile = engine.resolve_compile(args.compile, device)
    engine.check_arguments(args)
    if args.subset_seed is not None and args.images_per_class is None:
        raise UserError("--subset-seed draws the images of --images-per-class",
                        hint="--images-per-class N with it, or leave it out")
    real = load_real(task, "train", args.fold, args.val, args.data)
    if args.images_per_class is not None:
        real = real.chosen(first_per_class(real.labels, args.images_per_class,
                                           args.subset_seed))
    images, digest = gathered(real.images, task, args.cache, False)
    val = load_judged(task, args)
    dist.start(device)
    images, labels = resident(images, real.labels, device)
    val = val and dataclasses.replace(val, images=resident(val.images, val.labels, device)[0])
    source = StoredSource(images, labels, args.batch_size, args.seed, dist.rank(),
                          dist.world_size(), args.steps_per_epoch, far_from(device, images))
    inputs = {"source_images": len(real.labels), **({"source_sha256": digest} if digest else {})}
    card = {"model": args.model, "task": task.name, "num_classes": task.num_classes,
            "class_names": list(task.class_names), "mean": task.mean, "std": task.std,
            "resolution": task.resolution,
            "fold": args.fold, "val": args.val, "seed": args.seed}
    with run.Run(args.out, args, inputs, "model", "train_teacher") as folder:
        if folder.result:
            print(f"{args.out} is finished: {engine.judgement(folder.result)}")
            return
        folder.log(f"{args.model}, {models.parameter_count(student):,} parameters, on "
                   f"{len(real.labels)} real images of {task.name}, {device}, amp {args.amp}")
        for note in (*engine.idle_flags(args), absent_classes(real.labels, task, "training"),
                     val and absent_classes(val.labels, task, "validation")):
            if note:
                folder.log(note)
        engine.fit(folder, args, engine.make_view(task, args, True), student, None, source,
                   objectives.cross_entropy, val, device, card)


def main(argv: list[str] | None = None) -> int:
    return run.main(body, argv)


if __name__ == "__main__":
    sys.exit(main())
