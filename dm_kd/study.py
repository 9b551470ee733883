"""Run a study: all its commands, then the report.

    sh scripts/study.sh DATASET STUDY [--dry-run]      or   python -m dm_kd.study DATASET STUDY ...

A study is data: rows (what a student learns from, and how), groups (flags of all students of a
table) and seeds. Its commands run in stages, --jobs at a time, each in a process of its own; what is
finished is skipped, so the same command resumes a study. A command's flags are those of the script
in scripts/ that the table names, and what the table adds.

Seed n is a student of set n // 3, which is made by generator n // 6; digits have a teacher and a
generator per fold and n // 6, other data sets one of each. So seeds 0-17 are three generators, two
sets of each and three students of each set. Rows without a claim take the first seeds only.

Decision rules, fixed beforehand, of the paired differences' 95 % intervals: a change matters where
its interval excludes 0; it does not matter where it lies within half a point of 0; else it is
undecided. With one generator or one set nothing is claimed beyond it.
"""

import argparse
import concurrent.futures
import functools
import importlib
import json
import os
import shlex
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from dm_kd import run
from dm_kd.errors import UserError, nearest

ROOT = Path(__file__).parent.parent
Command = dict[str, str | bool]  # {"module": "dm_kd.distill", "task": "digits", "latent-cutmix": True}


@dataclass(frozen=True)
class Row:
    """A row of a study. Braces stand for the trial's numbers: {fold}, {gen}, {set}, {seed}."""

    student: str = ""  # flags of its students, behind a script if not the usual one
    images: str = ""  # name and flags of the image set they learn from, or a script and flags
    needs: str = ""  # a command to run first; {needs} in the others is its --out
    late: bool = False  # its images are made with the other rows' students


@dataclass(frozen=True)
class Study:
    title: str
    rows: dict[str, Row]
    seeds: str
    baseline: str | None
    groups: dict[str, str] = field(default_factory=lambda: {"": ""})  # folder: flags of students
    claims: tuple[str, ...] = ()  # rows with all seeds and groups; none: all of them
    few: int = 1  # seeds of the others
    few_groups: int = 1  # groups of the others
    features: str | None = None  # flags of inspect_set; None: sets are not inspected
    tune: dict[str, tuple] = field(default_factory=dict)  # flag: values, tried with --val dev
    tune_row: str = ""  # the row that is tuned for all; none: each row, for the groups *_tuned


# Commands of each data set: of its usual teacher, of other networks, of its generator, image sets,
# students, and inspections.
STEPS = {
    "digits": {
        "teacher": "digits_teacher.sh --fold {fold} --seed {gen} --out {base}/teacher",
        "network": "digits_teacher.sh --fold {fold} --seed {gen} "
                   "--out save/digits_networks/fold{fold}_gen{gen}/{name} --model {name}",
        "generator": "digits_generator.sh --fold {fold} --seed {gen} --out {base}/generator",
        "images": "digits_synthesize.sh --images-per-class 100 --guided-channels all --weights "
                  "{base}/generator --seed {set_seed} --out syn_dataset/digits_study_fold{fold}_"
                  "gen{gen}_set{set}_{name}",
        "student": "digits_distill.sh --fold {fold} --teacher {base}/teacher --seed {seed} "
                   "--out {runs}/fold{fold}_gen{gen}/{name}_set{set}_seed{seed}",
        "inspect": "inspect_set --task digits --fold {fold} --teacher {base}/teacher "
                   "--out {runs}/fold{fold}_gen{gen}/inspect_{name}_set{set}.json"},
    "fashion_mnist": {
        "teacher": "fashion_mnist_baselines.sh teacher",
        "network": "fashion_mnist_baselines.sh teacher --out save/models/fashion_mnist_{name} "
                   "--model {name}",
        "generator": "fashion_mnist_generator.sh",
        "images": "fashion_mnist_synthesize.sh --seed {set_seed} --out "
                  "syn_dataset/fashion_mnist_study_set{set}_{name}",
        "student": "fashion_mnist_distill.sh --teacher save/models/fashion_mnist_lenet5_bn "
                   "--seed {seed} --out {runs}/{name}_set{set}_seed{seed}",
        "inspect": "inspect_set --task fashion_mnist --teacher save/models/fashion_mnist_lenet5_bn "
                   "--out {runs}/inspect_{name}_set{set}.json"}}


def paper_steps(data: str, teacher: str, images: str, student: str) -> dict[str, str]:
    """The steps of one of the paper's data sets; ImageNet's networks are torchvision's."""
    prefix = "" if data == "cifar100" else "torchvision:"
    trained = {"teacher": f"{data}_teacher.sh", "network": f"{data}_teacher.sh --model "
               f"{prefix}{{name}} --out save/models/{data}_{{name}}"}
    return {**(trained if data != "imagenet" else {}),
            "images": f"{images} --seed {{set_seed}} --out syn_dataset/imagenet_{{name}}{{set_end}}",
            "student": f"{student} --teacher {teacher} --seed {{seed}} "
                       "--out {runs}/{name}_set{set}_seed{seed}",
            "inspect": f"inspect_set --task {data} --teacher {teacher} "
                       "--out {runs}/inspect_{name}_set{set}.json"}


STEPS |= {
    "imagenet": paper_steps("imagenet", "torchvision:resnet18", "imagenet_synthesize.sh",
                            "imagenet_distill.sh"),
    "cifar100": paper_steps("cifar100", "save/models/cifar100_wrn_40_2", "cifar100_synthesize.sh",
                            "cifar100_distill_w40_2_w16_2.sh"),
    **{name: paper_steps(name, f"save/models/{name}_resnet18", "imagenet_synthesize.sh",
                         f"{name}_distill.sh") for name in ("imagenet100", "flowers102")}}


# --- studies --------------------------------------------------------------------------------------

def grid(guidance: Iterable, steps: Iterable, end: str = "") -> dict[str, Row]:
    """Is it fidelity or coverage that teaches? A row per guidance scale and number of steps."""
    return {f"s{s}_t{t}": Row(images=f"s{s}_t{t}{end} --guidance-scale {s} --steps {t}")
            for s in guidance for t in steps}


def amounts(images: str, synthetic: Iterable[int], real: Iterable[int], seed: str
            ) -> dict[str, Row]:
    """How many synthetic images is a real one worth? The first N images per class of one set, N
    real ones drawn at random, all real ones; the number of steps is the same."""
    return {**{f"synthetic_{n}": Row(f"--images-per-class {n}", images) for n in synthetic},
            **{f"real_{n}": Row(f"--source real --images-per-class {n} --subset-seed {seed}")
               for n in real}, "real_all": Row("--source real")}


def teachers(data: str, images: str, usual: str, others: dict[str, str]) -> dict[str, Row]:
    """Do weak teachers teach better, also when the temperature is tuned for each? A row per
    teacher, weakest first; `others`: its name and flags of its training."""
    network = STEPS[data].get("network", "")
    rows = {name: Row("--teacher {needs}", images, network.replace("{name}", name) + flags)
            for name, flags in others.items()}
    if not network:
        rows = {name: Row(f"--teacher torchvision:{name}", images) for name in others}
    return rows | ({usual: Row(images=images)} if network else {})


def ways(base: str, temperatures: Iterable[int], rate: float, augmentation: dict[str, str],
         end: str = "") -> dict[str, Row]:
    """What else matters to a student? One change at a time. dkd's loss is about nine times kd's, so
    it has a quarter of the rate."""
    changes = {"base": "", **{f"temperature{t}": f"--temperature {t}" for t in temperatures},
               "mse": "--objective mse", "dist": "--objective dist",
               "dkd": f"--objective dkd --learning-rate {rate / 4}", **augmentation}
    return {**{name: Row(flags, f"s{base}_t100{end}") for name, flags in changes.items()},
            "ddim": Row(images=f"s{base}_t100_ddim{end} --sampler ddim"),
            "dpm25": Row(images=f"s{base}_t25_dpm{end} --sampler dpm++ --steps 25"),
            "shared_noise": Row(images=f"s{base}_t100_shared{end} --shared-noise")}


def rivals(data: str, dit: str, sets: str, gan: str, real: tuple[str, ...]) -> dict[str, Row]:
    """Who wins at an equal number of student steps? `sets`: flags of the sets, {name} their names;
    `dit`: the set of the usual generator; `gan`: the command that trains the GAN."""
    script = f"{data}_baselines.sh"
    methods = ("alone", "real", *real, "out_of_domain", "dafl", "dfq", "zskt", "fastdfkd",
               "fastdfkd_reptile", "fast_sequential", "cmi", "nayer", "adi")
    made = {name: f"{script} {name}_set {sets.replace('{name}', name)}" for name in (
        "noise", "one_image", "gan", "deepinversion", "diffdfkd", "diffdfkd_adv")}
    rows = {name: Row(f"{script} {name}") for name in methods} | {
        name: Row(f"{script} {name}", images) for name, images in made.items()}
    return rows | {
        "dit": Row(f"{script} dit", dit),
        "one_image_cutmix": Row(f"{script} one_image_cutmix", made["one_image"]),
        "gan": Row(f"{script} gan", f"{made['gan']} --weights {{needs}}", gan),
        "diffdfkd_adv": Row(f"{script} diffdfkd_adv", f"{made['diffdfkd_adv']} --student "
                            "{students}/diffdfkd_set{set}_seed{seed}", late=True)}


def paper_studies(data: str, main: str, students: tuple[str, str], temperatures: tuple,
                  weak: dict[str, str], schedules: tuple[str, str, str], features: str,
                  amount: tuple, end: str = "") -> dict[str, Study]:
    """The four studies of one of the paper's data sets, in the paper's settings. schedules: of four
    times the epochs, of a tenth, and of the amounts; end: of the sets' names."""
    strong, tenth, steps = schedules
    few = next(iter(temperatures))
    most = amount[0][-1]
    prefix = "" if data == "cifar100" else "torchvision:"
    return {
        "fidelity": Study(
            f"{data}: guidance x steps", grid((1, 1.6, 1.8, 2, 3, 4), (100, 150, 200, 250), end),
            "0", "s1_t100", {"paper": "", "strong": f"{strong} --mixup 0.4 --mix-share 0.5"},
            ("s1_t100", "s2_t100", "s4_t100", "s1_t250", "s4_t250"), features=features),
        "teacher_strength": Study(
            f"{data}: teachers of rising strength", teachers(data, f"s2_t100{end}", main, weak),
            "1", main, {f"{name}_{how}": f"--student {prefix}{name}" for name in students
                        for how in ("fixed", "tuned")}, tune={"temperature": temperatures}),
        "amount": Study(f"{data}: number of images", amounts(
            f"s2_t100_{most} --images-per-class {most}", *amount, "{seed}"), "0", "real_all",
            {"": steps}),
        "ways": Study(f"{data}: temperature, augmentation, objective, sampler, shared noise", ways(
            "2", (1, 2, 8, 12) if data == "cifar100" else (1, 5, 20, 30), 0.1,
            {"no_augmentation": "--augment none", "mixup": "--mixup 0.4", "cutmix": "--cutmix 0.25"},
            end), "0", "base")}
