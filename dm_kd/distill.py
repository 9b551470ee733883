"""Train a student from a frozen teacher's soft outputs: save/student_model/<run>/.

    python -m dm_kd.distill --task digits --source syn_dataset/digits \\
        --teacher save/models/digits_cnn_w32 --student cnn_w8 --out save/student_model/digits

The student sees the source's images only; real ones are used to evaluate it after each epoch. The
same command resumes where it stopped, to the same bits. Defaults are the paper's ImageNet recipe.
"""

import argparse
import dataclasses
import json
import sys
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from dm_kd import augment, data, dist, engine, models, objectives, preprocessing, run
from dm_kd.rivals import common as rivals
from dm_kd.run import UserError
from dm_kd.tasks import Task, get_task, is_large

CHECKED_IMAGES = 1000  # that the teacher is scored on before training
RIVALS = {  # methods that make images while the student learns: name -> file in rivals/
    "dafl": "dafl", "dfq": "dfq", "zskt": "zskt", "cmi": "cmi", "nayer": "nayer", "adi": "adi",
    "fastdfkd": "fastdfkd", "fastdfkd_reptile": "fastdfkd", "fast_sequential": "fastdfkd"}
RIVAL_STEPS_PER_EPOCH = {"small": 400, "large": 1000}  # where no images say what an epoch is


def parse(argv: list[str]) -> argparse.Namespace:
    parser = run.Parser("distill", __doc__)
    parser.usage = ("python -m dm_kd.distill --task NAME --source IMAGES --teacher SPEC --student "
                    "NAME --out RUN [flags]")
    run.add_data_arguments(parser)
    add = parser.add_argument
    add("--source", required=True, metavar="IMAGES",
        help="an image set, a folder or a list file of images; `real`: the real training "
             "images; or a method that makes images while the student learns: "
             f"{', '.join(RIVALS)} (--source METHOD --help shows its flags)")
    add("--source-labels", choices=("task", "none"), default="task",
        help="none: the images are not of the task's classes")
    add("--teacher", required=True, metavar="SPEC",
        help="a run folder, NAME@FILE, torchvision:NAME or timm:NAME")
    add("--cache-teacher", action="store_true",
        help="keep the teacher's logits in --cache: the next student with the same seed, batches "
             "and augmentation needs no teacher")
    add("--student", required=True, metavar="NAME",
        help="such as wrn_16_1 (MODELS in models.py has all), torchvision:NAME or timm:NAME")
    add("--objective", choices=objectives.OBJECTIVES, default="kd",
        help="kd: KL of softened outputs; mse: of logits; dkd: decoupled KD; dist: correlations "
             "(default: %(default)s)")
    add("--label-weight", type=run.probability, default=0.0, metavar="P",
        help="weight of cross-entropy with the images' labels (default: %(default)s)")
    add("--temperature", type=run.positive_float, default=10.0, metavar="TAU",
        help="softens both outputs (default: %(default)s)")
    add("--images-per-class", type=run.positive_int, metavar="N",
        help="use the first N images of each class (default: all)")
    add("--subset-seed", type=run.nonnegative_int, metavar="S",
        help="draw the N images of each class with this seed instead")
    add("--no-label-check", action="store_true",
        help="train even if the teacher disagrees with the images' labels")
    add("--out", type=Path, required=True, metavar="RUN", help="such as save/student_model/NAME")
    engine.add_arguments(parser)
    preprocessing.add_arguments(parser)
    run.add_common_arguments(parser)
    method = run.peek(argv, "source", "")
    if method in RIVALS:
        large = is_large(run.peek(argv, "task", ""), run.peek(argv, "resolution", ""))
        rivals.add_arguments(parser, method, rivals.load(RIVALS[method]), large)
        parser.set_defaults(steps_per_epoch=RIVAL_STEPS_PER_EPOCH["large" if large else "small"])
    return run.parse(parser, argv)


@run.command
def main(argv: list[str]) -> None:
    args = parse(argv)
    task = get_task(args.task, args.data, args)
    if args.dry_run:
        engine.dry_run(args, args.student, task, f"{args.source} with {args.teacher}")
        return
    device, student = engine.prepare(args, args.student, task)
    teacher, teacher_card = models.load_frozen(args.teacher, task, args)
    teacher = teacher.to(device, memory_format=torch.channels_last)
    val = data.load_validation(task, args)
    view = augment.make_view(task, args, args.label_weight > 0
                             or args.objective in objectives.READ_LABELS)
    images, inputs = None, {"teacher_sha256": teacher_card["sha256"]}
    if args.source in RIVALS:
        if (dist.world_size() > 1 or args.label_weight or args.cache_teacher
                or args.images_per_class or args.source_labels != "task"):
            raise UserError(f"--source {args.source} runs in one process, without --label-weight, "
                            "--cache-teacher, --images-per-class and --source-labels")
        source = rivals.Source(rivals.Context(args, task, teacher, device),
                               rivals.load(RIVALS[args.source]))
    else:
        images = data.load_source(args, task)
        if args.label_weight and images.labels.min() < 0:
            raise UserError("--label-weight needs images with labels")
        source = data.start_source(images, view, args, device)
        view = source.view
        inputs |= {"source_images": len(images.labels), "source_sha256": images.sha256}
    objective = objectives.OBJECTIVES[args.objective]
    if args.label_weight:
        objective = objectives.with_labels(objective, args.label_weight)
    card = {**models.card(args.student, task), "fold": args.fold, "val": args.val,
            "teacher": teacher_card, "source": args.source,
            "generator": images and images.generator}
    notes = [f"{args.student}, {models.parameter_count(student):,} parameters, from "
             f"{teacher_card['name']} on images of {args.source}, {device}, amp {args.amp}",
             *(images.notes if images else ()), *(val.notes if val else ()),
             teacher_card["assumed"], *models.seen_note(teacher_card, args)]
    if not (args.out / "result.json").exists():
        notes += check_teacher(args, task, teacher, images, val, device)
    with run.Run(args.out, args, inputs, "student") as folder:
        cache = (TeacherCache(args, task, source, teacher, teacher_card["name"], images)
                 if args.cache_teacher else None)
        engine.fit(folder, args, view, student, teacher, source, objective, val, device, card,
                   notes, cache)


def check_teacher(args: argparse.Namespace, task: Task, teacher: nn.Module,
                  images: data.Images | None, val: data.Images | None, device: torch.device
                  ) -> list[str]:
    """Evaluate the teacher on labelled images before any training; returns lines for the log.
    Raises UserError where its accuracy is implausible."""
    notes = []
    for name, given in (("source", images), ("validation", val)):
        if given is None or args.no_label_check or not (given.labels >= 0).any():
            continue
        labelled = (given.labels >= 0).nonzero()[:, 0].cpu()
        order = torch.randperm(len(labelled), generator=torch.Generator().manual_seed(0))
        chosen = labelled[order[:CHECKED_IMAGES]]
        crops, labels = data.evaluation_crops(given, chosen, task), given.labels.cpu()[chosen]
        logits = engine.predict(teacher, crops, augment.plain_view(task), device, args.amp)
        notes.append(f"teacher agrees with the labels of {engine.accuracy(logits, labels)[0]:.1f} "
                     f"% of {len(chosen)} {name} images")
        if doubt := models.doubt(logits, labels):
            raise UserError(f"the teacher {args.teacher} and the {name} labels: {doubt}",
                            "--source-labels none if the source has other classes; "
                            "--no-label-check to train anyway")
    return notes


class TeacherCache:
    """The teacher's logits by step in one float16 file, for the next student. The file's name is a
    hash of everything they depend on: teacher, images, augmentation, seed, batches. Views differ
    from epoch to epoch, so each epoch has its own logits."""

    def __init__(self, args: argparse.Namespace, task: Task, source: data.Source,
                 teacher: nn.Module, name: str, images: data.Images):
        settings = {"teacher": [name, run.sha256(run.encoded(teacher.state_dict()))],
                    "images": images.sha256 or run.sha256(run.encoded({"images": images.images})),
                    "count": len(images.labels),  # a part of a set has the digest of the whole
                    "view": dataclasses.asdict(augment.make_view(task, args, False)),
                    "seed": args.seed, "device": args.device,
                    "batch_size": args.batch_size, "steps_per_epoch": source.steps_per_epoch,
                    "amp": args.amp, "compile": args.compile, "threads": args.threads,
                    "rank": dist.rank(), "world_size": dist.world_size(),
                    "torch": torch.__version__}
        key = run.sha256(json.dumps(settings, sort_keys=True).encode())[:24]
        self.steps = source.steps_per_epoch
        total, rows = args.epochs * self.steps, args.batch_size // dist.world_size()
        args.cache.mkdir(parents=True, exist_ok=True)
        path = args.cache / f"teacher_{key}"
        self.logits = self._map(f"{path}.logits", np.float16, (total, rows, task.num_classes))
        self.done = self._map(f"{path}.done", np.uint8, (total,))

    @staticmethod
    def _map(path: str, dtype: type, shape: tuple[int, ...]) -> np.memmap:
        """A file of at least this shape, new bytes zero; it grows with the number of epochs."""
        size = int(np.prod(shape)) * np.dtype(dtype).itemsize
        with open(path, "ab") as file:
            if file.tell() < size:
                file.truncate(size)
        return np.memmap(path, dtype, "r+", shape=shape)

    def read(self, epoch: int, step: int, device: torch.device) -> Tensor | None:
        """Float32 [B, classes], or None where they are not known yet."""
        at = epoch * self.steps + step
        if not self.done[at]:
            return None
        return augment.send(torch.from_numpy(self.logits[at].copy()), device).float()

    def write(self, epoch: int, step: int, logits: Tensor) -> None:
        at = epoch * self.steps + step
        self.logits[at] = logits.half().cpu().numpy()
        if not np.isfinite(self.logits[at]).all():
            raise UserError("the teacher's logits do not fit into float16",
                            "leave out --cache-teacher")
        self.done[at] = 1


if __name__ == "__main__":
    sys.exit(main())
