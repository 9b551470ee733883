"""Make a synthetic image set with a generator: syn_dataset/<set>/.

    python -m dm_kd.synthesize --task digits --generator dit --weights save/generators/digits_dit \\
        --guidance-scale 2 --steps 100 --images-per-class 200 --out syn_dataset/digits

The same command goes on where it stopped, on any number of processes: torchrun, or one command per
machine with --rank R --world-size W. A larger --images-per-class extends the set. Every route gives
the same bytes. --import PATH makes a set of somebody's images, --export DIR copies one to the names
of the original DM-KD.
"""

import argparse
import contextlib
import importlib
import sys
from pathlib import Path

import torch

from dm_kd import dist, files, image_set, import_export, run
from dm_kd.errors import DamagedError, StorageError, UserError, nearest
from dm_kd.tasks import Task, get_task

GENERATORS = {  # name -> module with add_arguments(parser) and build(args, task, device)
    "dit": "dm_kd.generators.dit",
    "sit": "dm_kd.generators.sit",
    "gan": "dm_kd.generators.gan",
    "imf": "dm_kd.generators.imf",
    "biggan": "dm_kd.generators.biggan",
    "text_to_image": "dm_kd.generators.text_to_image",
    "one_image": "dm_kd.generators.one_image",
    "noise": "dm_kd.generators.noise",
    "deepinversion": "dm_kd.generators.deepinversion",
}
IMAGES_PER_CLASS = 200


def class_list(text: str) -> tuple[int, ...]:
    """'0-99,207' or a file of such lines -> sorted class indices."""
    if set(text) - set("0123456789,- ") and Path(text).is_file():
        text = ",".join(Path(text).read_text().split())
    classes = set()
    for part in text.split(","):
        first, dash, last = part.strip().partition("-")
        low = run.nonnegative_int(first)
        high = run.nonnegative_int(last) if dash else low
        if high < low or high > 10 ** 6:
            raise argparse.ArgumentTypeError(f"'{part}' is no range of classes")
        classes.update(range(low, high + 1))
    return tuple(sorted(classes))


def parse(argv: list[str]) -> argparse.Namespace:
    """The flags; those of the chosen generator come from its module."""
    name = run.peek(argv, "generator", "dit")
    if name not in GENERATORS:
        raise UserError(f"unknown generator '{name}'",
                        hint=f"--generator: {nearest(name, GENERATORS)}")
    parser = run.Parser("synthesize", __doc__)
    parser.add_argument("--task", required=True, metavar="NAME",
                        help="label space, e.g. digits; --verify and --export need none")
    parser.add_argument("--data", type=Path, default=None, metavar="PATH",
                        help="for --task folder: the folder whose class folders name the classes; "
                             "with --import: one more place that images may lie below, beside the "
                             "working directory, the folder or list, and the list's parent folder")
    parser.add_argument("--generator", choices=GENERATORS, default="dit",
                        help="default: %(default)s")
    parser.add_argument("--images-per-class", type=run.positive_int, default=None, metavar="N",
                        help=f"default: {IMAGES_PER_CLASS}, with --import as many as each class "
                             "has; may grow later")
    parser.add_argument("--classes", type=class_list, default=None, metavar="0-99,207|FILE",
                        help="class indices (default: all)")
    parser.add_argument("--batch-size", type=run.positive_int, default=100, metavar="B",
                        help="images per network batch and per shard (default: %(default)s)")
    parser.add_argument("--out", type=Path, required=True, metavar="syn_dataset/NAME",
                        help="the set; the same command goes on, a larger "
                             "--images-per-class extends it")
    parser.add_argument("--shared-noise", action="store_true",
                        help="the same noise for every class, as in the original DM-KD")
    parser.add_argument("--rank", type=run.nonnegative_int, default=None, metavar="R",
                        help="this process's number, 0 to W-1 (default: torchrun's)")
    parser.add_argument("--world-size", type=run.positive_int, default=None, metavar="W",
                        help="number of processes (default: torchrun's, else 1)")
    parser.add_argument("--verify", action="store_true",
                        help="only compare every file with its digest (exit code 5: damage)")
    parser.add_argument("--repair", action="store_true",
                        help="make damaged and missing shards again")
    parser.add_argument("--import", default=None, type=Path, metavar="PATH",
                        help="make the set of the images of a list, folder, zip or tar archive "
                             "(PNG and JPEG), with their labels")
    parser.add_argument("--export", default=None, type=Path, metavar="DIR",
                        help="copy the set --out into DIR, with the original's names and list file")
    parser.add_argument("--export-format", choices=("list", "imagefolder"), default="list",
                        help="one folder and a list of paths, or a folder per class "
                             "(default: %(default)s)")
    shared = len(parser._actions)
    importlib.import_module(GENERATORS[name]).add_arguments(parser)
    generators_own = parser._actions[shared:]
    run.add_common_arguments(parser)
    modes = {argument.split("=")[0] for argument in argv} & {"--verify", "--import", "--export"}
    if modes:  # no generator is needed, and a set that is there says its task
        for action in parser._actions:
            action.required = action.dest in ({"task", "out"} if "--import" in modes else {"out"})
    args = run.parse(parser, argv)
    check_modes(args, generators_own)
    if args.images_per_class is None and not getattr(args, "import"):
        args.images_per_class = IMAGES_PER_CLASS
    args.rank = dist.rank() if args.rank is None else args.rank
    args.world_size = dist.world_size() if args.world_size is None else args.world_size
    if args.rank >= args.world_size:
        raise UserError(f"--rank {args.rank} of --world-size {args.world_size}",
                        hint="ranks run from 0 to W-1")
    return args


def check_modes(args: argparse.Namespace, generators_own: list[argparse.Action]) -> None:
    """
    Raises:
        UserError: several things to do at once, or flags of a generator where none makes images."""
    modes = [f"--{name}" for name in ("verify", "import", "export") if getattr(args, name)]
    if len(modes) > 1:
        raise UserError(f"{' and '.join(modes)} are commands of their own",
                        hint="one after the other")
    if args.repair and modes and modes != ["--import"]:
        raise UserError(f"{modes[0]} makes no images, so it cannot --repair",
                        hint=f"leave out {modes[0]}: the command that made the set, with --repair")
    if getattr(args, "import"):
        for action in generators_own:
            if getattr(args, action.dest) != action.default:
                raise UserError(f"{action.option_strings[0]} is for a generator, and --import "
                                "takes images as they are", hint="leave one of them out")


def make_manifest(args: argparse.Namespace, task: Task, generator, device) -> dict:
    """Every setting that makes the bytes; no dates or paths, so that it is the same anywhere."""
    classes = args.classes or tuple(range(task.num_classes))
    for flag, value, most in (("--images-per-class", args.images_per_class * len(classes),
                               image_set.MAX_IMAGES),
                              ("--batch-size", args.batch_size, image_set.MAX_SHARD)):
        if value > most:
            raise UserError(f"{flag} makes {value} images, {most} are allowed",
                            hint=f"a smaller {flag}")
    if classes[-1] >= task.num_classes:
        raise UserError(f"class {classes[-1]} is out of range", hint=f"--classes 0-"
                        f"{task.num_classes - 1}", task=f"{task.name}, {task.num_classes} classes")
    if getattr(generator, "mixes_classes", False) and len(classes) > args.batch_size:
        # what looks at a batch's statistics gets classes from all over, not neighbours
        classes = sorted(classes, key=lambda c: image_set.image_seed(args.seed, c, 0))
    return {"format_version": image_set.FORMAT_VERSION, "task": task.name,
            "num_classes": task.num_classes, "classes": list(classes),
            "class_names": [task.class_names[c] for c in classes],
            "images_per_class": args.images_per_class, "resolution": generator.resolution,
            "channels": generator.channels, "labels_known": generator.labels_known,
            "generator": generator.settings, "shared_noise": args.shared_noise,
            "base_seed": args.seed, "shard_size": args.batch_size, "device": device.type,
            "threads": args.threads, "versions": run.versions(), "made_on": machine(device)}


def machine(device) -> str:
    """The model of what computes the images, whose products may differ in their last bits from
    another's."""
    hardware = run.hardware(device)
    return hardware.get("gpu") or hardware["cpu"]


def body(argv: list[str]) -> None:
    args = parse(argv)
    task = None if args.task is None else get_task(args.task, args.data)
    if args.dry_run:
        dry_run(args, task)
    elif args.verify:
        images = image_set.open_set(args.out)
        verify(images)
        check_task(images, args)  # not before: a damaged manifest is damage
    elif args.export:
        images = image_set.open_set(args.out)
        check_task(images, args)
        export(images, args)
    elif getattr(args, "import"):
        import_images(args, task)
    else:
        resume_threads(args)
        device = run.use_device(args)
        with begun(args.out, image_set.writing(args.out, args.rank, args.world_size)):
            # held before gigabytes of weights are fetched, read and hashed
            module = importlib.import_module(GENERATORS[args.generator])
            torch.manual_seed(args.seed)  # of a teacher NAME@none: the same in each process
            generator = module.build(args, task, device)
            images = fill(args, make_manifest(args, task, generator, device), generator)
            pretraining = pretraining_seconds(getattr(args, "weights", None))
            if pretraining not in (None, images.seconds()["pretraining_seconds"]):
                images.note_seconds(pretraining_seconds=pretraining)


def check_task(images: image_set.ImageSet, args: argparse.Namespace) -> None:
    """
    Raises:
        UserError: the set is not of --task."""
    if args.task not in (None, images.manifest["task"]):
        raise UserError(f"{args.out} is a set for {images.manifest['task']}, not {args.task}",
                        hint="leave out --task")


def resume_threads(args: argparse.Namespace) -> None:
    """A set that goes on keeps the thread count it began with, unless --threads says another.

    Raises:
        DamagedError: the count is none."""
    path = args.out / "manifest.json"
    if args.threads is None and path.exists():
        args.threads = image_set.open_set(args.out).manifest.get("threads")
        if args.threads is not None and (type(args.threads) is not int or args.threads < 1):
            raise DamagedError(f"manifest.json is damaged: threads is {args.threads!r:.40}",
                               file=path, hint="--threads N as it was, or another --out")


def pretraining_seconds(weights: str | Path | None) -> float | None:
    """What the generator's own training took, as train_generator wrote it beside the weights; None
    where nothing says so."""
    if not weights:
        return None
    folder = Path(weights).parent if Path(weights).is_file() else Path(weights)
    try:
        seconds = files.read_json(folder / "result.json").get("seconds")
    except (OSError, DamagedError):
        return None
    return seconds if isinstance(seconds, (int, float)) else None


@contextlib.contextmanager
def begun(out: Path, lock: contextlib.AbstractContextManager):
    """Hold the lock; an error before anything was begun leaves no empty folder."""
    try:
        with lock:
            yield
    finally:
        with contextlib.suppress(OSError):
            out.rmdir()


def fill(args: argparse.Namespace, manifest: dict, generator) -> image_set.ImageSet:
    """Make what is missing of the set, or damaged; the caller holds it for writing."""
    images = image_set.begin(args.out, manifest)
    damaged = {j: what for j, what in check(images, args).items()
               if images.shard_damage(j)}  # or another rank has made it again meanwhile
    own = range(args.rank, images.plan.shards, args.world_size)
    todo = [j for j in own if j in damaged or images.record(j) is None]
    bar = run.Progress(sum(images.plan.kept(j) for j in todo), f"synthesize {args.out.name}",
                       "images")
    sample, finish = generator.sample, None
    if hasattr(generator, "finish"):  # sample's last part, which can overlap with the next batch
        sample, finish = generator.latents, generator.finish
    image_set.make(images, sample, args.rank, args.world_size, bar.update, finish,
                   damaged if args.repair else None)
    bar.close()
    others = [j for j in damaged if j not in own and images.shard_damage(j)]
    report(images, len(todo), others, args)
    return images


def import_images(args: argparse.Namespace, task: Task) -> None:
    """Make the set of --import's images.

    Raises:
        UserError: too few images, or flags that say what a generator should make."""
    if args.world_size > 1 or args.classes or args.shared_noise:
        raise UserError("--import takes all classes, in one process, and makes no noise",
                        hint="leave out --classes, --rank, --world-size and --shared-noise")
    source = files.must_exist(getattr(args, "import"), "--import", "images")
    device = run.use_device(args)
    with (begun(args.out, image_set.writing(args.out, 0, 1)),
          import_export.opened(source, task, args.out, args.data) as found):
        bar = run.Progress(len(found), f"read {source.name}", "images")
        generator = import_export.Importer(found, task, args.seed, bar.update)
        bar.close()
        fill(args, import_manifest(args, task, generator, device), generator)


def import_manifest(args: argparse.Namespace, task: Task,
                    generator: "import_export.Importer", device) -> dict:
    args.images_per_class = args.images_per_class or generator.per_class
    if args.images_per_class > generator.per_class:
        raise UserError(f"a class has {generator.per_class} images only",
                        path=getattr(args, "import"),
                        hint=f"--images-per-class {generator.per_class} or fewer")
    left_out = (generator.settings["source_images"]
                - args.images_per_class * len(generator.classes))
    if left_out:
        print(f"note: {left_out} images are left out: every class gets {args.images_per_class}")
    args.classes = tuple(generator.classes)
    # any machine reads the same pixels
    return make_manifest(args, task, generator, device) | {"device": "any", "threads": None,
                                                           "made_on": None}


def export(images: image_set.ImageSet, args: argparse.Namespace) -> None:
    """Copy the set to --export."""
    bar = run.Progress(images.plan.images, f"export {images.folder.name}", "images")
    place = import_export.export(images, args.export, args.export_format, bar.update)
    bar.close()
    print(f"{place}: {images.plan.images} images")


def check(images: image_set.ImageSet, args: argparse.Namespace) -> dict[int, str]:
    """Compare this rank's shards with their digests, for --repair all of them; the damaged ones,
    which --repair makes again.

    Raises:
        DamagedError: there is damage, and no --repair.
    """
    ranks = (0, 1) if args.repair else (args.rank, args.world_size)
    own = sum(map(images.plan.kept, range(ranks[0], images.plan.shards, ranks[1])))
    bar = run.Progress(own, "verify", "images")
    damaged = image_set.damaged_shards(images, bar.update, *ranks)
    bar.close()
    if damaged and not args.repair:
        raise damage_error(images, damaged)
    for j, what in damaged.items():
        print(f"repair shard {j:05d}: {what}")
    return damaged


def damage_error(images: image_set.ImageSet, damaged: dict[int, str]) -> DamagedError:
    for j, what in list(damaged.items())[1:]:
        print(f"shard {j:05d} is damaged: {what}", file=sys.stderr)
    j, what = next(iter(damaged.items()))
    return DamagedError(f"shard {j:05d} is damaged, {len(damaged)} of {images.plan.shards}",
                        found=what, file=images.record_path(j),
                        hint="the same synthesize command with --repair (remakes it, same pixels)")


def verify(images: image_set.ImageSet) -> None:
    """Compare every file of a set with its digest, without a generator."""
    bar = run.Progress(images.plan.images, "verify", "images")
    damaged = image_set.damaged_shards(images, bar.update)
    bar.close()
    if damaged:
        raise damage_error(images, damaged)
    check_summary(images)
    missing = images.missing()
    state = f"complete, index sha256 {images.digest[:16]}" if images.complete else (
        f"not complete: {len(missing)} of {images.plan.shards} shards to make")
    left = sum(map(images.plan.kept, missing))
    count = f"{images.plan.images - left} of " * bool(left) + f"{images.plan.images} images"
    print(f"{images.folder}: {count}, every digest holds; {state}")


def check_summary(images: image_set.ImageSet) -> None:
    """A complete set's index and contact sheet must be what its shards make them.

    Raises:
        DamagedError: one is not."""
    damaged = images.summary_damage() if images.complete else None
    if damaged:
        raise DamagedError(f"{damaged} is damaged (not what the shards say)",
                           file=images.folder / damaged,
                           hint="the same synthesize command with --repair")


def report(images: image_set.ImageSet, made: int, others: list[int], args: argparse.Namespace
           ) -> None:
    """others: damaged shards that are other ranks' to make again."""
    if others or not images.complete:  # whoever makes the last shard writes the index
        left = len(others) or len(images.missing())
        print(f"{args.out}: rank {args.rank} of {args.world_size} is done, {left} shards are left "
              "to other ranks")
    else:
        check_summary(images)
        whose = "every digest" if args.world_size == 1 else "every digest of this rank's shards"
        what = f"{made} shards made" if made else f"complete already, {whose} holds"
        print(f"{args.out}: {images.plan.images} images, {what}, index sha256 "
              f"{images.digest[:16]}")


def dry_run(args: argparse.Namespace, task: Task | None) -> None:
    if args.verify or args.export or getattr(args, "import"):
        print(f"would compare the files of {args.out} with their digests" if args.verify else
              f"would copy the images of {args.out} into {args.export}" if args.export else
              f"would read the images of {getattr(args, 'import')} into {args.out}")
        return
    classes = args.classes or range(task.num_classes)
    count = len(classes) * args.images_per_class
    shards = -(-count // args.batch_size)
    side = expected_side(args, task)
    bytes_each = 60 + 0.55 * task.channels * side ** 2
    state = "not made yet"
    if (args.out / "manifest.json").exists():
        old = image_set.open_set(args.out)
        state = f"{old.plan.shards - len(old.missing())} shards are there"
    weights = getattr(args, "weights", None)
    if weights and not Path(weights).exists():
        state += f"; {weights} is not here yet"
    print(f"would make {count} images of {side} x {side} in {shards} shards "
          f"of {args.batch_size}, about {count * bytes_each / 1e6:.1f} MB, in {args.out} ({state})")
    try:
        files.check_free_space(args.out, int(count * bytes_each), "the set")
    except StorageError as error:
        print(f"note: {str(error).splitlines()[0].removeprefix('error: ')}")


def expected_side(args: argparse.Namespace, task: Task) -> int:
    """Pixels per side of the images, as far as they can be known before anything is loaded."""
    if getattr(args, "resolution", None):
        return args.resolution
    for name, key in (("dit", "input_size"), ("gan", "resolution")):  # of train_generator
        card = Path(getattr(args, "weights", None) or "") / f"{name}.json"
        config = files.read_json(card).get("config") if card.is_file() else None
        if isinstance(config, dict) and type(config.get(key)) is int:
            return config[key]
    own = args.generator in ("noise", "deepinversion")  # others as DiT-XL/2, at 256 x 256
    return 256 if task.crop and not own else task.resolution


def main(argv: list[str] | None = None) -> int:
    return run.main(body, argv)


if __name__ == "__main__":
    sys.exit(main())
