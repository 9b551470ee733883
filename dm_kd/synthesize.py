"""Make a synthetic image set with a generator: syn_dataset/<set>/.

    python -m dm_kd.synthesize --task digits --generator dit --weights save/generators/digits_dit \\
        --guidance-scale 2 --steps 100 --images-per-class 200 --out syn_dataset/digits

The same command resumes where it stopped, on any number of processes: torchrun, or one command per
machine with --rank R --world-size W. A larger --images-per-class extends the set. The bytes are the
same in every case.
"""

import argparse
import importlib
import sys
from pathlib import Path

import torch

from dm_kd import dist, image_set, run
from dm_kd.run import UserError
from dm_kd.tasks import Task, get_task

GENERATORS = (  # modules of generators/ with add_arguments(parser) and build(args, task, device)
    "dit", "sit", "gan", "imf", "biggan", "text_to_image", "one_image", "noise", "deepinversion")


def class_list(text: str) -> tuple[int, ...]:
    """'0-99,207' -> sorted class indices."""
    classes = set()
    for part in text.split(","):
        first, _, last = part.partition("-")
        classes.update(range(run.nonnegative_int(first), run.nonnegative_int(last or first) + 1))
    return tuple(sorted(classes))


def parse(argv: list[str]) -> argparse.Namespace:
    """The flags; those of the chosen generator come from its module."""
    name = run.peek(argv, "generator", "dit")
    parser = run.Parser("synthesize", __doc__)
    parser.usage = "python -m dm_kd.synthesize --task NAME --generator KIND --out SET [flags]"
    run.add_task_arguments(parser)
    add = parser.add_argument
    add("--generator", choices=GENERATORS, default="dit", metavar="KIND",
        help=f"one of {', '.join(GENERATORS)} (default: %(default)s); --generator KIND --help "
             "shows its flags")
    add("--images-per-class", type=run.positive_int, default=200, metavar="N",
        help="may grow later (default: %(default)s)")
    add("--classes", type=class_list, metavar="0-99,207", help="class indices (default: all)")
    add("--batch-size", type=run.positive_int, default=100, metavar="B",
        help="images per network batch and per shard (default: %(default)s)")
    add("--out", type=Path, required=True, metavar="SET", help="such as syn_dataset/NAME")
    add("--shared-noise", action="store_true",
        help="the same noise for every class, as in the original DM-KD")
    add("--rank", type=run.nonnegative_int, default=dist.rank(), metavar="R",
        help="this process's number, 0 to W-1 (default: torchrun's)")
    add("--world-size", type=run.positive_int, default=dist.world_size(), metavar="W",
        help="number of processes (default: torchrun's, else 1)")
    add("--verify", action="store_true",
        help="only compare the set's files with their digests, and name the damaged ones")
    name = name if name in GENERATORS else "dit"
    importlib.import_module(f"dm_kd.generators.{name}").add_arguments(parser)
    run.add_compile_argument(parser)
    run.add_common_arguments(parser)
    return run.parse(parser, argv)


def make_manifest(args: argparse.Namespace, task: Task, generator, device: torch.device) -> dict:
    """All settings that determine the bytes; no dates or paths, so it is the same anywhere."""
    classes = list(args.classes or range(task.num_classes))
    if getattr(generator, "mixes_classes", False) and len(classes) > args.batch_size:
        # a generator that reads batch statistics gets classes in random order, not neighbours
        classes = sorted(classes, key=lambda c: image_set.image_seed(args.seed, c, 0))
    hardware = run.hardware(device)
    return {"format_version": image_set.FORMAT_VERSION, "task": task.name,
            "num_classes": task.num_classes, "classes": classes,
            "class_names": [task.class_names[c] for c in classes],
            "images_per_class": args.images_per_class, "resolution": generator.resolution,
            "channels": generator.channels, "labels_known": generator.labels_known,
            "generator": generator.settings, "shared_noise": args.shared_noise,
            "base_seed": args.seed, "shard_size": args.batch_size, "device": device.type,
            "threads": torch.get_num_threads(), "versions": run.versions(),
            "made_on": hardware.get("gpu") or hardware["cpu"]}


@run.command
def main(argv: list[str]) -> None:
    args = parse(argv)
    if args.verify:
        verify(args.out)
        return
    task = get_task(args.task, args.data, args)
    if args.classes and args.classes[-1] >= task.num_classes:
        raise UserError(f"--classes {args.classes[-1]}: {task.name} has classes 0 to "
                        f"{task.num_classes - 1}")
    if args.rank >= args.world_size:
        raise UserError(f"--rank {args.rank} must be less than --world-size {args.world_size}")
    if args.dry_run:
        count = len(args.classes or range(task.num_classes)) * args.images_per_class
        print(f"would make {count} images in {-(-count // args.batch_size)} shards of "
              f"{args.batch_size}, in {args.out}")
        return
    device = run.use_device(args)
    torch.manual_seed(args.seed)  # a teacher NAME@none is the same in each process
    module = importlib.import_module(f"dm_kd.generators.{args.generator}")
    generator = module.build(args, task, device)
    images = image_set.begin(args.out, make_manifest(args, task, generator, device))
    run.write_file(args.out / "command.txt", args.command + "\n")
    own = [j for j in images.missing() if j % args.world_size == args.rank]
    with run.progress(sum(map(images.kept, own)), f"synthesize {args.out.name}", "images") as bar:
        image_set.make(images, generator.sample, own, bar.update)
    left = len(images.missing())
    print(f"{args.out}: {images.images} images, {len(own)} shards made, "
          + (f"{left} shards are left to other ranks" if left else "complete"))


def verify(folder: Path) -> None:
    """Compare every file of a set with its digest; a UserError names all that differ."""
    images = image_set.ImageSet(folder)
    wrong = []
    with run.progress(images.shards, "verify", "shards") as bar:
        for j in range(images.shards):
            files = [(folder / row["path"], row["sha256"]) for row in images.rows(j)]
            wrong += [f"shards/{images.table(j).name}: {path}" for path, digest in files
                      if not path.exists() or run.sha256_file(path) != digest]
            bar.update()
    if wrong:
        raise UserError("\n".join(["images are damaged or missing:", *wrong]),
                        "delete these CSV files and run the same command without --verify")
    print(f"{folder}: no image is damaged; {len(images.missing())} of {images.shards} shards "
          "are not made yet")


if __name__ == "__main__":
    sys.exit(main())
