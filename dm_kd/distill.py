"""Train a student from a frozen teacher's soft outputs: save/student_model/<run>/.

    python -m dm_kd.distill --task digits --source syn_dataset/digits \\
        --teacher save/models/digits_cnn_w32 --student cnn_w8 --out save/student_model/digits

The student sees the source's images only; real ones are used to judge it after each epoch. The same
command goes on where it stopped, to the same bits. Defaults are the paper's ImageNet recipe.
"""

import argparse
import dataclasses
import difflib
import importlib
import math
import sys
from pathlib import Path

import torch
from torch.fx import GraphModule

from dm_kd import (
    augment,
    dist,
    engine,
    files,
    frozen,
    image_files,
    image_set,
    models,
    objectives,
    run,
)
from dm_kd.errors import UserError, nearest
from dm_kd.image_files import ImageFiles
from dm_kd.real_data import RealData
from dm_kd.sources.stored import (
    StoredSource,
    far_from,
    gathered,
    load_judged,
    making,
    resident,
    seen_note,
    set_labels,
)
from dm_kd.tasks import (
    TASKS,
    Task,
    absent_classes,
    first_per_class,
    get_task,
    load_real,
    may_have_seen,
)
from dm_kd.teacher_cache import STORAGE, TeacherCache

LABEL_CHECK_IMAGES = 1000
OTHER = "real:"  # and a task's name: its real images as another's source
RIVALS = {  # source that makes images while the student learns -> module with add_arguments(parser,
    **{name: f"dm_kd.rivals.{name}"  # name, large) and build(args, task, teacher, device)
       for name in ("dafl", "dfq", "zskt", "fastdfkd", "cmi", "nayer", "adi")},
    **dict.fromkeys(("fastdfkd_reptile", "fast_sequential"), "dm_kd.rivals.fastdfkd")}


def parse(argv: list[str]) -> argparse.Namespace:
    parser = run.Parser("distill", __doc__)
    run.add_data_arguments(parser)
    parser.add_argument("--source", required=True, metavar="SET|FOLDER|LIST|ZIP|real|METHOD",
                        help="an image set that synthesize wrote; any folder, list file or zip of "
                             "images; `real` for the real training images, `real:TASK` for another "
                             "small task's, of other classes; or a method that makes "
                             f"images while the student learns: {', '.join(RIVALS)} (--source "
                             "METHOD --help shows its flags)")
    parser.add_argument("--source-labels", choices=("task", "none"), default="task",
                        help="none: the source's images are of other classes than the task's; "
                             "the loss needs no labels (default: %(default)s)")
    parser.add_argument("--teacher", required=True, action="append", metavar="SPEC",
                        help="a run folder, NAME@FILE, FILE, torchvision:NAME, timm:NAME. Given "
                             "several times, or as A,B: one teacher whose logits are TAU x log of "
                             "the mean of their softmax(logits / TAU)")
    parser.add_argument("--cache-teacher", nargs="?", choices=STORAGE, const="fp16", default=None,
                        help="keep the teacher's logits of every image and epoch below --cache, "
                             "2 bytes each (fp32: 4 bytes and the bits of a run without): the next "
                             "student with this seed and these views needs no teacher forward")
    parser.add_argument("--student", required=True, metavar="NAME",
                        help=f"one of {', '.join(models.MODELS)}, torchvision:NAME, timm:NAME")
    parser.add_argument("--objective", choices=objectives.OBJECTIVES, default="kd",
                        help="kd: KL of softened outputs; mse: of logits; dkd: decoupled KD; dist: "
                             "correlations (default: %(default)s)")
    parser.add_argument("--label-weight", type=run.probability, default=0.0, metavar="P",
                        help="share of cross-entropy with the source's labels in the loss "
                             "(default: %(default)s)")
    parser.add_argument("--temperature", type=run.positive_float, default=10.0, metavar="TAU",
                        help="softens both outputs (default: %(default)s)")
    parser.add_argument("--images-per-class", type=run.positive_int, default=None, metavar="N",
                        help="use the first N images of each class (default: all)")
    parser.add_argument("--subset-seed", type=run.nonnegative_int, default=None, metavar="S",
                        help="draw the N images of each class with this seed, fewer within more "
                             "(real images often lie in the order of their sources; default: the "
                             "first)")
    parser.add_argument("--no-label-check", action="store_true",
                        help="go on when the teacher disagrees with the images' labels")
    parser.add_argument("--out", type=Path, required=True, metavar="save/student_model/NAME",
                        help="the run: student, log, metrics, checkpoints")
    engine.add_arguments(parser)
    run.add_common_arguments(parser)
    method, name = run.peek(argv, "source", ""), run.peek(argv, "task", "")
    if method in RIVALS:
        large = name == "folder" or name in TASKS and TASKS[name].crop
        importlib.import_module(RIVALS[method]).add_arguments(parser, method, large)
    args = run.parse(parser, argv)
    args.teacher = ",".join(args.teacher)
    return args


def body(argv: list[str]) -> None:
    args = parse(argv)
    task = get_task(args.task, args.data)
    if args.dry_run:
        with torch.device("meta"):  # its weights are only counted
            dry_run(args, models.build(args.student, task))
        return
    torch.manual_seed(args.seed)
    student = models.build(args.student, task)
    run.resume_threads(args)
    device = run.use_device(args)
    args.amp = engine.resolve_amp(args.amp, device)
    args.compile = engine.resolve_compile(args.compile, device)
    engine.check_arguments(args)
    if args.subset_seed is not None and args.images_per_class is None:
        raise UserError("--subset-seed draws the images of --images-per-class",
                        hint="--images-per-class N with it, or leave it out")
    teacher, teacher_card = load_teacher(args, task)
    source, images, labels, val, inputs = open_source(args, task, teacher, device)
    digests = args.cache_teacher and logits_digests(args, teacher, teacher_card, images, inputs)
    card = {"model": args.student, "task": task.name, "num_classes": task.num_classes,
            "class_names": list(task.class_names), "mean": task.mean, "std": task.std,
            "resolution": task.resolution,
            "fold": args.fold, "val": args.val, "teacher": teacher_card, "source": args.source,
            "generator": inputs.pop("generator", None)}
    inputs |= {"teacher_sha256": teacher_card["sha256"]}
    if args.label_weight and labels.min() < 0:
        raise UserError("--label-weight needs images with known labels", source=args.source,
                        hint="leave it out: the other objectives need none")
    view = engine.make_view(task, args, args.label_weight > 0
                            or args.objective in objectives.READ_LABELS)
    objective = objectives.OBJECTIVES[args.objective]
    if args.label_weight:
        objective = objectives.with_labels(objective, args.label_weight)
    notes = [*engine.idle_flags(args), *inputs.pop("notes", ()), teacher_seen(args, teacher_card),
             seen_note(card["generator"], task, args), same_start(args, teacher_card),
             absent_classes(labels, task, "source"),
             val and absent_classes(val.labels, task, "validation")]
    teacher = teacher.to(device, memory_format=torch.channels_last)
    if not (args.out / "result.json").exists():  # a refused teacher leaves no folder in the way
        notes += check_teacher(args, task, view, teacher, images, labels, val, device)
    with run.Run(args.out, args, inputs, "student", "distill") as folder:
        if folder.result:
            print(f"{args.out} is finished: {engine.judgement(folder.result)}")
            return
        count = "" if args.source in RIVALS else f"{len(labels)} "
        folder.log(f"{args.student}, {models.parameter_count(student):,} parameters, from "
                   f"{teacher_card['name']} on {count}images of {args.source}, {device}, "
                   f"amp {args.amp}")
        for note in filter(None, notes):
            folder.log(note)
        example = view.plain(engine.take(images, torch.arange(min(4, len(images)))), device)
        teacher = faster(teacher, example, args)
        cache = None
        if digests:
            digests["fused"] = any(isinstance(m, GraphModule) for m in teacher.modules())
            cache = open_cache(folder, args, task, view, source, digests, device)
        engine.fit(folder, args, view, student, teacher, source, objective, val, device, card,
                   cache)


def open_source(args: argparse.Namespace, task: Task, teacher: torch.nn.Module,
                device: torch.device) -> tuple:
    """(source of the loop's batches, images to look at, their labels, what is judged on or None,
    digests and generator of the images). Images lie on the device where they fit."""
    if args.source in RIVALS:
        source = importlib.import_module(RIVALS[args.source]).build(
            args, task, teacher.to(device, memory_format=torch.channels_last), device)
        example = torch.arange(256, dtype=torch.uint8).repeat(
            4 * task.channels * task.resolution ** 2 // 256 + 1)
        example = example[:4 * task.channels * task.resolution ** 2].view(
            4, task.channels, task.resolution, task.resolution)
        return source, example, torch.tensor([-1]), load_judged(task, args), {}
    images, labels, inputs = load_source(args, task)
    val = load_judged(task, args)
    dist.start(device)
    images, labels = resident(images, labels, device)
    val = val and dataclasses.replace(val, images=resident(val.images, val.labels, device)[0])
    source = StoredSource(images, labels, args.batch_size, args.seed, dist.rank(),
                          dist.world_size(), args.steps_per_epoch, far_from(device, images),
                          making(inputs.get("generator"), len(labels), inputs.pop("seconds", None)),
                          inputs.pop("held_out", None))
    return source, images, labels, val, inputs


def teacher_specs(text: str) -> list[str]:
    """The teachers that --teacher names: "A,B" is two, unless a path has that name."""
    parts = [part for part in text.split(",") if part]
    return [text] if Path(text).exists() or not parts else parts


def load_teacher(args: argparse.Namespace, task: Task) -> tuple[torch.nn.Module, dict]:
    """The frozen teacher, or several as one, and what it is.

    Raises:
        UserError, DamagedError: as models.load_frozen."""
    loaded = [models.load_frozen(spec, task) for spec in teacher_specs(args.teacher)]
    if len(loaded) == 1:
        return loaded[0]
    cards = [card for _, card in loaded]
    folds = {card["fold"] for card in cards} - {None, args.fold}
    known = [card["sha256"] for card in cards]
    card = {"name": " + ".join(card["name"] for card in cards), "spec": args.teacher,
            "sha256": files.sha256(" ".join(known).encode()),
            "fold": min(folds) if folds else args.fold, "task": task.name, "teachers": cards,
            "val": None, "seed": None}
    return Averaged([teacher for teacher, _ in loaded], args.temperature).eval(), card


def teacher_seen(args: argparse.Namespace, teacher: dict) -> str | None:
    """A line for the log where the teacher may have learnt from what the student is judged on."""
    if not may_have_seen(teacher["fold"], teacher["val"], args):
        return None
    return (f"note: the teacher was trained for fold {teacher['fold']} with --val "
            f"{teacher['val']}; it may have seen images that fold {args.fold} with --val "
            f"{args.val} judges on")


def same_start(args: argparse.Namespace, teacher: dict) -> str | None:
    """A line for the log where the student begins with the weights that its teacher began with."""
    if (teacher["name"], teacher["seed"]) != (args.student, args.seed):
        return None
    return (f"note: the teacher is a {args.student} of seed {args.seed} too: both begin with the "
            "same weights; another --seed makes them independent")


class Averaged(torch.nn.Module):
    """Several teachers as one: softmax(forward(x) / temperature) is the mean of theirs, so that
    every objective stays a function of logits."""

    def __init__(self, teachers: list[torch.nn.Module], temperature: float):
        super().__init__()
        self.teachers, self.temperature = torch.nn.ModuleList(teachers), temperature

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Standardised images [B, C, H, W] -> float32 [B, classes]."""
        soft = [(teacher(x).float() / self.temperature).log_softmax(1) for teacher in self.teachers]
        mean = torch.stack(soft).logsumexp(0) - math.log(len(soft))
        return self.temperature * mean


def faster(teacher: torch.nn.Module, example: torch.Tensor, args: argparse.Namespace
           ) -> torch.nn.Module:
    """The teacher as it is used in training, each of several by itself."""
    if args.compile == "on":
        return teacher
    if isinstance(teacher, Averaged):
        return Averaged([frozen.prepare(t, example, args.amp) for t in teacher.teachers],
                        teacher.temperature).eval()
    return frozen.prepare(teacher, example, args.amp)


def logits_digests(args: argparse.Namespace, teacher: torch.nn.Module, teacher_card: dict,
                   images: torch.Tensor | ImageFiles, inputs: dict) -> dict:
    """What the teacher and its images are, for the key of their logits."""
    source = (images.fingerprint if isinstance(images, ImageFiles) else
              inputs.get("source_sha256") or files.tensors_digest({"images": images}))
    return {"teacher": teacher_card["name"], "weights": files.tensors_digest(teacher.state_dict()),
            "temperature": args.temperature if isinstance(teacher, Averaged) else None,
            "source": source, "images": len(images)}


def open_cache(folder: run.Run, args: argparse.Namespace, task: Task, view: engine.View,
               source: StoredSource, digests: dict, device: torch.device) -> TeacherCache:
    """The kept logits of these images, views, batches and teacher on this hardware.

    Raises:
        StorageError: no space."""
    settings = {**digests, "view": dataclasses.asdict(view) | {"num_classes": 0},
                "seed": args.seed, "batch_size": args.batch_size,
                "steps_per_epoch": source.steps_per_epoch, "amp": args.amp,
                "compile": args.compile, "resolution": task.resolution,
                "hardware": run.hardware(device), "torch": torch.__version__}
    rows = args.batch_size // dist.world_size()
    return TeacherCache(args.cache, settings, args.cache_teacher, (rows, task.num_classes),
                        args.epochs, source.steps_per_epoch, dist.rank(), dist.world_size(),
                        folder.log)


def load_source(args: argparse.Namespace, task: Task
                ) -> tuple[torch.Tensor | ImageFiles, torch.Tensor, dict]:
    """(images uint8 [N, C, H, W] or files of several sizes, labels int64 [N], digests and generator
    of what they are).

    Raises:
        UserError: no such images, of other classes, not complete.  DamagedError: a bad file."""
    if args.source == "real":
        real = load_real(task, "train", args.fold, args.val, args.data)
        images, labels, inputs = real.images, real.labels, {}
    elif args.source.startswith(OTHER):
        images, labels, inputs = load_other(args.source.removeprefix(OTHER), task)
    elif (Path(args.source) / "manifest.json").exists():
        images, labels, inputs = load_set(args, task)
    elif Path(args.source).exists():
        images = image_files.find(Path(args.source), task.class_names, task.channels,
                                  args.source_labels == "task", args.data, task.wnids)
        labels, inputs = images.labels, {}
    else:
        refuse_source(args)
    if args.images_per_class is not None and "generator" not in inputs:
        index = first_per_class(labels, args.images_per_class, args.subset_seed)
        images = images.chosen(index) if isinstance(images, ImageFiles) else images[index]
        labels = labels[index]
    if args.source_labels == "none":
        labels = torch.full_like(labels, -1)
    images, digest = gathered(images, task, args.cache, False)
    if digest:
        inputs["source_sha256"] = digest
    return images, labels, {**inputs, "source_images": len(labels)}


def refuse_source(args: argparse.Namespace) -> None:
    """Raises:
        UserError: always."""
    raise UserError("--source not found", source=args.source,
                    hint="an image set; a folder, list or zip of images; `real`; or, of the "
                         f"methods, {nearest(args.source, RIVALS)}")


def load_other(name: str, task: Task) -> tuple[torch.Tensor, torch.Tensor, dict]:
    """The real training images of another task at this one's size; their classes are not its own.

    Raises:
        UserError: no such task, or one of large images or other channels."""
    other = get_task(name)
    if task.crop or other.crop or other.channels != task.channels:
        raise UserError(f"{task.name} takes no images of {name} by name",
                        hint="small images of the same channels; else --source FOLDER "
                             "--source-labels none")
    images = load_real(other, "train").images
    if other.resolution != task.resolution:
        images = augment.resize(images, task.resolution, task.resolution)
    return images.contiguous(), torch.full((len(images),), -1), {}


def load_set(args: argparse.Namespace, task: Task) -> tuple[torch.Tensor, torch.Tensor, dict]:
    """An image set's images, labels (-1 where it is of another task) and digests."""
    images, rest = image_set.open_set(Path(args.source)), None
    manifest = images.manifest
    if manifest["channels"] != task.channels:
        raise UserError(f"the set has {manifest['channels']} channels, {task.name} has "
                        f"{task.channels}", source=args.source, hint=f"--task {manifest['task']}")
    if args.subset_seed is not None:
        raise UserError("--subset-seed is for real images and folders", source=args.source,
                        hint="leave it out: a set's images are independent draws, the first N of "
                             "each class as good as any")
    bar = run.Progress(images.plan.images, "read images", "images")
    pixels, labels = image_set.packed(images, args.cache, bar.update,
                                      None if task.crop else task.resolution)
    bar.close()
    if args.images_per_class is not None:
        if args.images_per_class > images.plan.images_per_class:
            raise UserError(f"the set has {images.plan.images_per_class} images per class",
                            hint="synthesize more, or a smaller --images-per-class")
        count = args.images_per_class * len(images.plan.classes)
        # positions run over the classes first
        pixels, labels, rest = pixels[:count], labels[:count], pixels[count:]
    labels, note = set_labels(manifest, labels, task)
    return pixels, labels, {"source_sha256": images.digest, "generator": manifest["generator"],
                            "seconds": images.seconds() | {"of_images": images.plan.images},
                            "held_out": rest, "notes": [note] if note else []}


def check_teacher(args: argparse.Namespace, task: Task, view: engine.View,
                  teacher: torch.nn.Module, images: torch.Tensor | ImageFiles,
                  labels: torch.Tensor, val: RealData | None, device: torch.device) -> list[str]:
    """Score the teacher on labelled images before any training: the source's, and what the student
    is judged on. Lines for the log.

    Raises:
        UserError: on either it is right less than twice as often as by chance (of two classes: less
            than half way from chance to always)."""
    parts = {"source": (images, labels)}
    if val is not None:
        parts["validation"] = val.images, val.labels
    scores, notes, chance = {}, [], 100 / task.num_classes
    for which, (images, labels) in parts.items():
        known = (labels >= 0).nonzero()[:, 0].cpu()
        if args.no_label_check or not len(known):
            continue
        mixed = torch.randperm(len(known), generator=torch.Generator().manual_seed(0))
        chosen = known[mixed[:LABEL_CHECK_IMAGES]]
        some = (images.chosen(chosen) if isinstance(images, ImageFiles)
                else engine.take(images, chosen))
        logits = engine.predict(teacher, some, view, device, args.amp)
        scores[which], _ = engine.accuracy(logits, labels.cpu()[chosen])
        notes.append(f"teacher agrees with the labels of {scores[which]:.1f} % of {len(chosen)} "
                     f"{which} images")
    low = [which for which, acc1 in scores.items() if acc1 < min(2 * chance, 50 + chance / 2)]
    if low:
        refuse_labels(args, low, scores, chance)
    return notes


def refuse_labels(args: argparse.Namespace, low: list[str], scores: dict, chance: float) -> None:
    """Raises:
        UserError: with the likely cause, which is the teacher where it fails on everything."""
    place = {"source": args.source}
    if low == list(scores):
        cause, hint = "wrong class order, wrong statistics, or wrong weights", "the right --teacher"
    elif low == ["source"]:
        cause = ("the images are bad, or their labels in another order: it agrees with "
                 f"{scores['validation']:.1f} % of the validation's")
        hint = "look at the images (inspect_set, for a set); --source-labels none"
    else:
        cause = "the validation labels are in another order: it agrees with the source's"
        hint = "the right --data"
    if low == ["validation"]:
        place = {"data": args.data or "the data set's usual place"}
    raise UserError(f"the teacher agrees with {scores[low[0]]:.1f} % of the {low[0]} labels, "
                    f"chance is {chance:.1f} %", teacher=args.teacher, **place, cause=cause,
                    hint=f"{hint}; --no-label-check if it is meant")


def dry_run(args: argparse.Namespace, student: torch.nn.Module) -> None:
    state = "there already" if (args.out / "config.yaml").exists() else "not made yet"
    made = {"source": (args.source in ("real", *RIVALS) or args.source.startswith(OTHER)
                       or Path(args.source).exists()),
            "teacher": all("@" in spec or ":" in spec or Path(spec).exists()
                           for spec in teacher_specs(args.teacher))}
    if not made["source"] and difflib.get_close_matches(args.source, RIVALS, 1, 0.75):
        refuse_source(args)  # a misspelt method; other names may be what a chain makes before
    missing = "".join(f"; {k} {getattr(args, k)} not made yet" for k, ok in made.items() if not ok)
    print(f"would train {args.student} ({models.parameter_count(student):,} parameters) from "
          f"{args.teacher} on {args.source} for {args.epochs} epochs of {args.batch_size} images a "
          f"step, in {args.out} ({state}{missing})")


def main(argv: list[str] | None = None) -> int:
    return run.main(body, argv)


if __name__ == "__main__":
    sys.exit(main())
