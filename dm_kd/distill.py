"""Train a student from a frozen teacher's soft outputs: save/student_model/<run>/.

    python -m dm_kd.distill --task digits --source syn_dataset/digits \\
        --teacher save/models/digits_cnn_w32 --student cnn_w8 --out save/student_model/digits

The student sees the source's images only; real ones are used to judge it after each epoch. The same
command goes on where it stopped, to the same bits. Defaults are the paper's ImageNet recipe.
"""

import argparse
import sys
from pathlib import Path

import torch

from dm_kd import dist, engine, frozen, image_set, models, objectives, run
from dm_kd.errors import UserError, nearest
from dm_kd.sources.stored import StoredSource
from dm_kd.tasks import Task, first_per_class, get_task, load_real

LABEL_CHECK_IMAGES = 1000


def parse(argv: list[str]) -> argparse.Namespace:
    parser = run.Parser("distill", __doc__)
    run.add_data_arguments(parser)
    parser.add_argument("--source", required=True, metavar="SET",
                        help="an image set's folder, or `real` for the real training images")
    parser.add_argument("--teacher", required=True, metavar="SPEC",
                        help="a run folder, NAME@FILE, FILE, torchvision:NAME")
    parser.add_argument("--student", required=True, metavar="NAME",
                        help=f"one of {', '.join(models.MODELS)}, torchvision:NAME")
    parser.add_argument("--objective", choices=objectives.OBJECTIVES, default="kd",
                        help="default: %(default)s")
    parser.add_argument("--temperature", type=run.positive_float, default=10.0, metavar="TAU",
                        help="softens both outputs (default: %(default)s)")
    parser.add_argument("--images-per-class", type=run.positive_int, default=None, metavar="N",
                        help="use the first N images of each class (default: all)")
    parser.add_argument("--no-label-check", action="store_true",
                        help="go on when the teacher disagrees with the images' labels")
    parser.add_argument("--cache", type=Path, default=Path("save/cache"), metavar="DIR",
                        help="where image sets are kept unpacked (default: %(default)s)")
    parser.add_argument("--out", type=Path, required=True, metavar="save/student_model/NAME")
    engine.add_arguments(parser)
    run.add_common_arguments(parser)
    return run.parse(parser, argv)


def body(argv: list[str]) -> None:
    args = parse(argv)
    task = get_task(args.task)
    torch.manual_seed(args.seed)
    student = models.build(args.student, task)
    if args.dry_run:
        dry_run(args, student)
        return
    run.resume_threads(args)
    device = run.use_device(args)
    args.amp = engine.resolve_amp(args.amp, device)
    engine.check_batch(args)
    teacher, teacher_card = models.load_frozen(args.teacher, task)
    images, labels, inputs = load_source(args, task)
    val = load_real(task, "val", args.fold, args.val, args.data)
    dist.start(device)
    if images.numel() < free_bytes(device) // 2:
        images, labels = images.to(device), labels.to(device)
    source = StoredSource(images, labels, args.batch_size, args.seed, dist.rank(),
                          dist.world_size(), args.steps_per_epoch)
    card = {"model": args.student, "task": task.name, "num_classes": task.num_classes,
            "class_names": list(task.class_names), "mean": task.mean, "std": task.std,
            "fold": args.fold, "val": args.val, "teacher": teacher_card, "source": args.source,
            "generator": inputs.pop("generator", None)}
    inputs |= {"teacher_sha256": teacher_card["sha256"]}
    view = engine.make_view(task, args, False)
    with run.Run(args.out, args, inputs, "student", "distill") as folder:
        if folder.result:
            print(f"{args.out} is finished: Acc@1 {folder.result['acc1']}")
            return
        folder.log(f"{args.student}, {models.parameter_count(student):,} parameters, from "
                   f"{teacher_card['name']} on {len(labels)} images of {args.source}, {device}, "
                   f"amp {args.amp}")
        if teacher_card["fold"] not in (None, args.fold):
            folder.log(f"note: the teacher was trained for fold {teacher_card['fold']}; it may "
                       f"have seen images that fold {args.fold} judges on")
        teacher = teacher.to(device, memory_format=torch.channels_last)
        check_teacher(folder, args, task, view, teacher, images, labels, device)
        teacher = frozen.prepare(teacher, view.plain(images[:4].to(device)), args.amp)
        engine.fit(folder, args, view, student, teacher, source,
                   objectives.OBJECTIVES[args.objective], val, device, card)


def free_bytes(device: torch.device) -> int:
    """Memory that a resident data set may take; unbounded on CPUs, where it is mapped."""
    return torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else 1 << 62


def load_source(args: argparse.Namespace, task: Task) -> tuple[torch.Tensor, torch.Tensor, dict]:
    """(images uint8 [N, C, H, W], labels int64 [N], digests and generator of what they are).

    Raises:
        UserError: no such set, another shape, not complete."""
    if args.source == "real":
        real = first_per_class(load_real(task, "train", args.fold, args.val, args.data),
                               args.images_per_class)
        return real.images, real.labels, {"source_images": len(real.labels)}
    if not Path(args.source).exists():
        raise UserError("--source not found", source=args.source,
                        hint=f"a folder that synthesize wrote; {nearest(args.source, ['real'])}")
    images = image_set.open_set(Path(args.source))
    manifest = images.manifest
    for what, here in (("channels", task.channels), ("resolution", task.resolution)):
        if manifest[what] != here:
            raise UserError(f"the set has {what} {manifest[what]}, {task.name} has {here}",
                            source=args.source, hint=f"--task {manifest['task']}")
    bar = run.Progress(images.plan.images, "read images", "images")
    pixels, labels = image_set.packed(images, args.cache, bar.update)
    bar.close()
    if manifest["task"] != task.name:
        labels = torch.full_like(labels, -1)
    if args.images_per_class is not None:
        if args.images_per_class > images.plan.images_per_class:
            raise UserError(f"the set has {images.plan.images_per_class} images per class",
                            hint="synthesize more, or a smaller --images-per-class")
        count = args.images_per_class * len(images.plan.classes)
        pixels, labels = pixels[:count], labels[:count]  # positions run over the classes first
    return pixels, labels, {"source_sha256": images.digest, "source_images": len(labels),
                            "generator": manifest["generator"]}


def check_teacher(folder: run.Run, args: argparse.Namespace, task: Task, view: engine.View,
                  teacher: torch.nn.Module, images: torch.Tensor, labels: torch.Tensor,
                  device: torch.device) -> None:
    """Score the teacher on labelled images of the source before any training.

    Raises:
        UserError: it is right less than twice as often as by chance."""
    known = (labels >= 0).nonzero()[:, 0]
    if args.no_label_check or not len(known):
        return
    mixed = torch.randperm(len(known), generator=torch.Generator().manual_seed(0))
    chosen = known[mixed[:LABEL_CHECK_IMAGES]]
    logits = engine.predict(teacher, images[chosen], view, device, args.amp)
    acc1, _ = engine.accuracy(logits, labels[chosen].cpu())
    folder.log(f"teacher agrees with the labels of {acc1:.1f} % of {len(chosen)} source images")
    if acc1 < 200 / task.num_classes:
        raise UserError(
            f"the teacher agrees with {acc1:.1f} % of the labels, chance is "
            f"{100 / task.num_classes:.1f} %", teacher=args.teacher, source=args.source,
            cause="wrong class order, wrong statistics, or wrong weights",
            hint="the right --teacher; --no-label-check if it is meant")


def dry_run(args: argparse.Namespace, student: torch.nn.Module) -> None:
    state = "there already" if (args.out / "config.yaml").exists() else "not made yet"
    made = {"source": args.source == "real" or Path(args.source).exists(),
            "teacher": "@" in args.teacher or ":" in args.teacher or Path(args.teacher).exists()}
    missing = "".join(f"; {k} {getattr(args, k)} not made yet" for k, ok in made.items() if not ok)
    print(f"would train {args.student} ({models.parameter_count(student):,} parameters) from "
          f"{args.teacher} on {args.source} for {args.epochs} epochs of {args.batch_size} images a "
          f"step, in {args.out} ({state}{missing})")


def main(argv: list[str] | None = None) -> int:
    return run.main(body, argv)


if __name__ == "__main__":
    sys.exit(main())
