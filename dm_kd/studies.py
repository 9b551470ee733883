"""The studies as data, for dm_kd.study: which rows, groups and seeds, what is tuned and compared.

A command is written as a script of scripts/ and the flags that differ, or as a module and its flags.
Braces stand for the numbers of a trial: {fold}, {gen} (of teacher and generator), {set_seed}, {set}
(its number below the generator), {seed} (of the student).

Decision rules, fixed beforehand, for the 95 % intervals of paired differences: a change matters where
its interval excludes 0; it does not matter where the interval lies within half a point of 0; else it
is undecided. With one generator or one set nothing is claimed beyond it.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Row:
    """A row of a table: what its students learn from, and how."""

    student: str = ""  # flags of its students, behind a command if it is not the usual one
    images: str = ""  # name and flags of the image set they learn from, or a command
    needs: str = ""  # a command to run first; {needs} in the two above is its --out
    late: bool = False  # its images are made with the other rows' students


@dataclass(frozen=True)
class Study:
    """A table per group, and the commands behind it."""

    title: str
    rows: dict[str, Row]
    seeds: str
    baseline: str
    groups: dict[str, str] = field(default_factory=lambda: {"": ""})  # folder: flags of students
    claims: tuple[str, ...] = ()  # rows with all seeds, in all groups; none given: all rows
    few: int = 1  # seeds of the other rows, in the first group only
    inspect: str | None = None  # flags of inspect_set for each set; None: sets are not inspected
    features: str = ""  # the command that trains a network for {features} in `inspect`
    tune: tuple[str, ...] = ()  # flags of which the best are chosen, with --val dev
    tune_flags: str = ""  # of the runs that try them
    tune_row: str = ""  # the row that is tuned for all; none: each row, for the groups *_tuned


WRN = "save/models/fashion_mnist_wrn_16_2"
RECORDED = "save/results/fashion_mnist"  # where git has the generators; else they are trained there
FASHION_SET = f"fashion_mnist_synthesize.sh --weights {RECORDED}/generator"  # of the main study

# Of each data set: its usual teacher, another network, its generator, image sets, students,
# inspections.
STEPS = {
    "digits": {
        "teacher": "digits_teacher.sh --fold {fold} --seed {gen} --out {base}/teacher",
        "network": "digits_teacher.sh --fold {fold} --seed {gen} --model {name} "
                   "--out save/digits_networks/fold{fold}_gen{gen}/{name}",
        "generator": "digits_generator.sh --fold {fold} --seed {gen} --out {base}/generator",
        "images": "digits_synthesize.sh --images-per-class 100 --guided-channels all --weights "
                  "{base}/generator --seed {set_seed} --out syn_dataset/digits_study_fold{fold}_"
                  "gen{gen}_set{set}_{name}",
        "student": "digits_distill.sh --fold {fold} --teacher {base}/teacher --seed {seed} "
                   "--out {place}/{name}_set{set}_seed{seed}",
        "inspect": "inspect_set --task digits --fold {fold} --teacher {base}/teacher "
                   "--out {place}/inspect_{name}_set{set}.json"},
    "fashion_mnist": {
        "teacher": "fashion_mnist_baselines.sh teacher",
        "network": "fashion_mnist_baselines.sh teacher --model {name} "
                   "--out save/models/fashion_mnist_{name}",
        "generator": f"fashion_mnist_generator.sh --out {RECORDED}/generator",
        "images": f"{FASHION_SET} --guided-channels all --images-per-class 40 --seed "
                  "{set_seed} --out syn_dataset/fashion_mnist_study_set{set}_{name}",
        "student": "fashion_mnist_distill.sh --teacher save/models/fashion_mnist_lenet5_bn "
                   "--seed {seed} --out {place}/{name}_set{set}_seed{seed}",
        "inspect": "inspect_set --task fashion_mnist --teacher save/models/fashion_mnist_lenet5_bn "
                   "--out {place}/inspect_{name}_set{set}.json"}}


def paper_steps(data: str, main: str, images: str, student: str) -> dict[str, str]:
    """The steps of one of the paper's data sets. ImageNet's networks are torchvision's."""
    family = "" if data == "cifar100" else "torchvision:"
    teacher = f"{family}{main}" if data == "imagenet" else f"save/models/{data}_{main}"
    steps = {"images": f"{images} --seed {{set_seed}} --out syn_dataset/imagenet_{{name}}{{end}}",
             "student": f"{student} --teacher {teacher} --seed {{seed}} "
                        "--out {place}/{name}_set{set}_seed{seed}",
             "inspect": f"inspect_set --task {data} --teacher {teacher} "
                        "--out {place}/inspect_{name}_set{set}.json"}
    if data != "imagenet":
        steps |= {"teacher": f"{data}_teacher.sh", "network": f"{data}_teacher.sh --model "
                  f"{family}{{name}} --out save/models/{data}_{{name}}"}
    return steps


STEPS |= {
    "imagenet": paper_steps("imagenet", "resnet18", "imagenet_synthesize.sh",
                            "imagenet_distill.sh"),
    "cifar100": paper_steps("cifar100", "wrn_40_2", "cifar100_synthesize.sh",
                            "cifar100_distill_w40_2_w16_2.sh"),
    **{name: paper_steps(name, "resnet18", "imagenet_synthesize.sh", f"{name}_distill.sh")
       for name in ("imagenet100", "flowers102")}}


# --- rows -----------------------------------------------------------------------------------------

def network(data: str, name: str, flags: str = "") -> str:
    """The command that trains a network on the data set's real images."""
    return f"{STEPS[data]['network'].replace('{name}', name)} {flags}"


def grid(guidance: Iterable, steps: Iterable, end: str = "") -> dict[str, Row]:
    """Is it fidelity or coverage that teaches? A row per guidance scale and number of steps.

    Coverage teaches if more guidance and fewer steps both cost accuracy, recall falls in both, and
    precision rises in one and falls in the other; the other way round, fidelity teaches."""
    return {f"s{s}_t{t}": Row(images=f"s{s}_t{t}{end} --guidance-scale {s} --steps {t}")
            for s in guidance for t in steps}


def amounts(images: str, synthetic: Iterable[int], real: Iterable[int], seed: str
            ) -> dict[str, Row]:
    """How many synthetic images is a real one worth? The first N images per class of one set, N
    real ones drawn at random, all real ones; the same number of steps."""
    return {**{f"synthetic_{n}": Row(f"--images-per-class {n}", images) for n in synthetic},
            **{f"real_{n}": Row(f"--source real --images-per-class {n} --subset-seed {seed}")
               for n in real}, "real_all": Row("--source real")}


def teachers(data: str, images: str, usual: str, others: dict[str, str]) -> dict[str, Row]:
    """Do weak teachers teach better, also when the temperature is tuned for each? A row per
    teacher; `others`: flags of its training."""
    if data == "imagenet":
        return {name: Row(f"--teacher torchvision:{name}", images) for name in others}
    return {usual: Row(images=images)} | {
        name: Row("--teacher {needs}", images, network(data, name, flags))
        for name, flags in others.items()}


def ways(name: str, values: Iterable[int], rate: float, augmentation: dict[str, str],
         end: str = "") -> dict[str, Row]:
    """What else matters to a student? One change at a time. dkd has a quarter of the rate, since its
    loss is about nine times kd's."""
    changes = {"base": "", **{f"temperature{t}": f"--temperature {t}" for t in values},
               "mse": "--objective mse", "dist": "--objective dist",
               "dkd": f"--objective dkd --learning-rate {rate / 4}", **augmentation}
    return {**{row: Row(flags, f"{name}_t100{end}") for row, flags in changes.items()},
            "ddim": Row(images=f"{name}_t100_ddim{end} --sampler ddim"),
            "dpm25": Row(images=f"{name}_t25_dpm{end} --sampler dpm++ --steps 25"),
            "shared_noise": Row(images=f"{name}_t100_shared{end} --shared-noise")}


def rivals(script: str, dit: str, gan: str, sets: str, real: Iterable[str]) -> dict[str, Row]:
    """Who wins at an equal number of student steps? The rows of SCRIPT METHOD. dit: the set of the
    usual generator; gan: the command that trains the GAN; sets: flags of the sets, {0} its name."""
    made = {name: f"{script} {name}_set {sets.replace('{0}', name)}" for name in (
        "noise", "one_image", "gan", "deepinversion", "diffdfkd", "diffdfkd_adv")}
    alone = ("alone", "real", "out_of_domain", "dafl", "dfq", "zskt", "fastdfkd",
             "fastdfkd_reptile", "fast_sequential", "cmi", "nayer", "adi")
    return {**{name: Row(f"{script} {name}") for name in alone},
            **{name: Row(f"{script} {name} --subset-seed {{seed}}") for name in real},
            **{name: Row(f"{script} {name}", images) for name, images in made.items()},
            "dit": Row(f"{script} dit", dit),
            "one_image_cutmix": Row(f"{script} one_image_cutmix", made["one_image"]),
            "gan": Row(f"{script} gan", f"{made['gan']} --weights {{needs}}", gan),
            "diffdfkd_adv": Row(f"{script} diffdfkd_adv", f"{made['diffdfkd_adv']} --student "
                                "{place}/diffdfkd_set{set}_seed{seed}", late=True)}


# --- studies --------------------------------------------------------------------------------------

def pairs(students: Iterable[str], flags: str = "") -> dict[str, str]:
    """Groups of a study of teachers: each student at the usual temperature and at the tuned one."""
    return {f"{name.removeprefix('torchvision:')}_{how}": f"{flags} --student {name}"
            for name in students for how in ("fixed", "tuned")}


def temperatures(*values: int) -> tuple[str, ...]:
    return tuple(f"--temperature {value}" for value in values)


DIGITS = {  # times of two cores with bfloat16 instructions
    "quickstart": Study("The README's first command", {}, "0", ""),  # see QUICKSTART
    "main": Study("Digits: a student that never saw a real image", {  # 45 minutes
        "student_alone": Row("digits_baselines.sh alone --epochs 90"),
        "student_real": Row("--source real"),
        "student_synthetic": Row(images="s1_t100_200 --images-per-class 200"),
        "student_noise": Row(images="digits_baselines.sh noise_set --images-per-class 200 --seed "
                                    "{set_seed} --out syn_dataset/digits_noise_seed{set_seed}")},
        "0,6,12", "student_real", inspect=""),
    "fidelity": Study(  # 4 hours
        "Digits: guidance x steps", grid((4, 3, 2, 1.5, 1, 0), (5, 10, 20, 50, 100, 250)),
        "0-17", "s1_t50", {"study": "--epochs 45", "plain": "--epochs 45 --mixup 0",
                           "strong": "--epochs 180"}, ("s1_t50", "s4_t50", "s1_t5"),
        inspect="--features {features}", features=network("digits", "resnet14")),
    "teacher_strength": Study(  # 2 hours; no student begins with its teacher's weights
        "Digits: teachers of rising strength", teachers("digits", "s1_t50 --steps 50", "cnn_w32", {
            "cnn_w4": "", "cnn_w8": "--seed 10{gen}", "cnn_w16": "", "resnet8": "--seed 10{gen}",
            "resnet14": "", "cnn_w32_epochs2": "--model cnn_w32 --epochs 2",
            "cnn_w32_epochs8": "--model cnn_w32 --epochs 8"}),
        "0,6,12", "cnn_w32", pairs(("cnn_w8", "resnet8"), "--epochs 45 --cache-teacher"),
        tune=temperatures(1, 4, 16)),
    "amount": Study("Digits: number of images", amounts(  # 2.5 hours
        "s1_t20_1280 --steps 20 --images-per-class 1280", (10, 20, 40, 80, 160, 320, 640, 1280),
        (10, 20, 40, 80), "{set_seed}"), "0-17", "synthetic_1280", {"": "--epochs 45"}),
    "ways": Study(  # an hour
        "Digits: temperature, augmentation, objective, sampler, shared noise",
        ways("s1", (1, 2, 8, 16), 0.2, {
            "no_mixing": "--mixup 0", "no_augmentation": "--mixup 0 --augment none",
            "all_mixup": "--mix-share 1", "half_cutmix": "--mixup 0 --cutmix 1"}),
        "0,3,6,9,12,15", "base", {"": "--epochs 45"}),
    "rivals": Study(  # 45 minutes
        "Digits: other methods at an equal number of student steps",
        rivals("digits_baselines.sh", "s1_t100",
               "digits_gan.sh --fold {fold} --seed {gen} --out {base}/gan",
               "--seed {set_seed} --teacher {base}/teacher --weights {base}/generator "
               "--out syn_dataset/digits_fold{fold}_gen{gen}_set{set}_{0}", ("real_100",)),
        "0", "real")}

FASHION = {  # one generator: nothing is claimed beyond it
    "main": Study("Fashion-MNIST", {  # 3.5 hours; goal: synthetic at least real_10k - 0.5
        "real": Row("--source real --teacher {needs}", needs="fashion_mnist_teacher.sh"),
        "real_10k": Row("--source real --images-per-class 1000 --subset-seed {seed} "
                        f"--teacher {WRN}"),
        "synthetic": Row(f"--teacher {WRN}", FASHION_SET)}, "0-2", "real_10k", {
            "lenet5_half": "--cache-teacher",
            "wrn_16_1": "--cache-teacher --student wrn_16_1 --learning-rate 0.05"},
        inspect=f"--teacher {WRN}"),
    "fidelity": Study("Fashion-MNIST: guidance x steps", grid((1, 2, 4), (5, 20, 50)), "0,3,6",
                      "s1_t50", {"": "--steps-per-epoch 200"}, inspect="--features {features} --compare 1000",
                      features="fashion_mnist_teacher.sh"),
    "teacher_strength": Study(
        "Fashion-MNIST: teachers of rising strength", {
            **teachers("fashion_mnist", FASHION_SET, "lenet5_bn", {
                "lenet5_half": "--learning-rate 0.02 --seed 100",
                "lenet5_bn_epochs1": "--model lenet5_bn --epochs 1"}),
            "wrn_16_2": Row("--teacher {needs}", FASHION_SET, "fashion_mnist_teacher.sh")},
        "0-2", "lenet5_bn", pairs(("lenet5_half",), "--steps-per-epoch 200 --cache-teacher"),
        tune=temperatures(1, 4, 16)),
    "amount": Study("Fashion-MNIST: number of images", amounts(
        FASHION_SET, *[(10, 20, 50, 100, 200, 500, 1000)] * 2, "{seed}"), "0-2", "synthetic_1000",
        {"": "--steps-per-epoch 200"}),
    "rivals": Study(  # 1.8 hours, and two for teacher and generator
        "Fashion-MNIST: other methods at an equal number of student steps",
        rivals("fashion_mnist_baselines.sh", FASHION_SET, "fashion_mnist_gan.sh", "",
               ("real_1000", "real_1207")), "0-2", "real")}


def of_generator(epochs: int, flags: str = "", name: str = "") -> Row:
    """10,000 images of the generator of so many epochs."""
    return Row("--images-per-class 1000",
               f"fashion_mnist_synthesize.sh --weights {{needs}} {flags} "
               f"--out syn_dataset/fashion_mnist_dit_{epochs}{name}",
               f"fashion_mnist_generator.sh --batch-size 128 --augment none --steps "
               f"{epochs * 60000 // 128} --out {RECORDED}_experiment/dit_{epochs}")


def experiment(student: str, flags: str, rates: tuple, seeds: str) -> Study:
    """Does synthetic match real? KD on real and on synthetic images, beside the student alone; rate
    and temperature are those that are best with all real images. Goals: all 60,000 synthetic images
    at least KD on all real - 1; 10,000 at least KD on 10,000 real - 0.7 (LeNet: 1)."""
    all_60 = of_generator(60, "--images-per-class 6000")
    rows = {"alone": Row(f"train_teacher --task fashion_mnist --model {student} "
                         "--lr-schedule cosine --weight-decay 5e-4"),
            "kd_real_all": Row("--source real", needs="fashion_mnist_teacher.sh"),
            "kd_real_10000": Row("--source real --images-per-class 1000 --subset-seed {seed}"),
            "kd_synthetic_10000": all_60,
            "kd_synthetic_60000": Row("", all_60.images, all_60.needs)}
    claims = tuple(rows)
    rows |= {"kd_6_epochs_10000": Row("", FASHION_SET), "kd_15_epochs_10000": of_generator(15),
             "kd_s4_10000": of_generator(60, "--guidance-scale 4 --guided-channels all", "_s4"),
             "kd_gan_10000": Row("", "fashion_mnist_baselines.sh gan_set", "fashion_mnist_gan.sh")}
    if student != "wrn_16_1":
        rows = {name: rows[name] for name in claims}
    return Study(f"Does synthetic match real? WRN-16-2 to {student}", rows, seeds, "kd_real_all",
                 {"": f"--teacher {WRN} --student {student} --batch-size 128 "
                           f"--steps-per-epoch 469 {flags}"}, claims, 3,
                 f"--teacher {WRN} --features {{features}}", "fashion_mnist_baselines.sh teacher",
                 tuple(f"--temperature {t} --learning-rate {rate}" for t in (1, 2, 4, 8)
                       for rate in rates), tune_row="kd_real_all")


FASHION |= {"experiment": experiment("wrn_16_1", "--epochs 8", (0.05, 0.1), "0-4"),
            "experiment_lenet5": experiment("lenet5_half", "--epochs 15", (0.01, 0.02), "0-2")}


def paper_studies(data: str, students: tuple[str, str], tune: tuple[str, ...], usual: str,
                  networks: dict[str, str], features: str, strong: str, tenth: str,
                  amount: tuple[tuple, tuple, int], others: tuple, end: str = ""
                  ) -> dict[str, Study]:
    """The four studies in the paper's settings. strong, tenth: four times the epochs, a tenth;
    amount: synthetic and real images per class, steps per epoch; others: temperatures of `ways`;
    end: of the sets' names."""
    synthetic, real, steps = amount
    return {
        "fidelity": Study(
            f"{data}: guidance x steps", grid((1, 1.6, 1.8, 2, 3, 4), (100, 150, 200, 250), end),
            "0", "s1_t100", {"paper": "", "strong": f"{strong} --mixup 0.4 --mix-share 0.5"},
            ("s1_t100", "s2_t100", "s4_t100", "s1_t250", "s4_t250"),
            inspect="--features torchvision:convnext_tiny" if data == "imagenet" else
            "--features {features}", features=network(data, features) if features else ""),
        "teacher_strength": Study(
            f"{data}: teachers of rising strength",
            teachers(data, f"s2_t100{end}", usual, networks), "1", "resnet50" if data == "imagenet" else usual, pairs(students),
            tune=tune, tune_flags=tenth),
        "amount": Study(f"{data}: number of images", amounts(
            f"s2_t100_{synthetic[-1]} --images-per-class {synthetic[-1]}", synthetic, real,
            "{seed}"), "0", f"synthetic_{synthetic[-1]}", {"": f"--steps-per-epoch {steps}"}),
        "ways": Study(
            f"{data}: temperature, augmentation, objective, sampler, shared noise",
            ways("s2", others, 0.1, {"no_augmentation": "--augment none", "mixup": "--mixup 0.4",
                                     "cutmix": "--cutmix 0.25"}, end), "0", "base")}


RESNETS = ("torchvision:resnet18", "torchvision:resnet50")
STUDIES = {
    "digits": DIGITS, "fashion_mnist": FASHION,
    # hours of one H200, estimates: fidelity 210 (190 for its sets), teacher_strength 35, amount 40,
    # ways 28
    "imagenet": paper_studies(
        "imagenet", RESNETS, temperatures(3, 10, 30), "resnet50", dict.fromkeys(
            ("shufflenet_v2_x0_5", "shufflenet_v2_x1_0", "resnet18", "resnet34", "resnet50",
             "convnext_tiny"), ""), "",
        "--epochs 400 --lr-decay-epochs 120,240,360", "--epochs 10 --lr-decay-epochs 3,6,9",
        ((20, 50, 140, 200, 1280), (20, 50, 140, 200, 700), 782), (1, 5, 20, 30)),
    # 120, 30, 20, 24
    "cifar100": paper_studies(
        "cifar100", ("wrn_16_1", "wrn_16_2"), temperatures(1, 4, 16), "wrn_40_2", {
            "resnet8": "", "wrn_16_2": "--seed 100", "wrn_40_1": "", "cifar_resnet34": "",
            "wrn_40_2_short": "--model wrn_40_2 --epochs 20 --lr-decay-epochs 12,15,18"}, "vgg8_bn",
        "--epochs 960 --lr-decay-epochs 600,720,840", "--epochs 24 --lr-decay-epochs 15,18,21",
        ((5, 10, 20, 50, 200), (50, 100, 200, 400), 391), (1, 2, 8, 12), "_50k"),
    **{data: paper_studies(  # 300, 65, 60, 57; the sets are ImageNet's
        data, RESNETS, temperatures(3, 10, 30), "resnet18", {
            "shufflenet_v2_x0_5": "", "shufflenet_v2_x1_0": "", "resnet50": "--seed 100",
            "resnet18_short": "--model torchvision:resnet18 --epochs 10 --lr-decay-epochs 3,6,9"},
        "shufflenet_v2_x1_0", "--epochs 800 --lr-decay-epochs 240,480,720",
        "--epochs 20 --lr-decay-epochs 6,12,18", ((20, 50, 140, 200, 1280), real, 782),
        (1, 5, 20, 30)) for data, real in (("imagenet100", (50, 100, 200, 500)),
                                           ("flowers102", (5, 10, 20)))}}

# The quickstart's commands, one after the other in one process.
QUICK_RECIPE = "--batch-size 128 --learning-rate 0.1 --lr-schedule cosine --weight-decay 5e-4"
QUICK_STUDENT = (f"distill --task digits --teacher save/quickstart/teacher --student cnn_w8 "
                 f"--temperature 4 --epochs 36 --steps-per-epoch 16 {QUICK_RECIPE}")
QUICKSTART = (
    f"train_teacher --task digits --model cnn_w32 --epochs 25 {QUICK_RECIPE} "
    "--out save/quickstart/teacher",
    "train_generator --task digits --steps 1000 --out save/quickstart/generator",
    "synthesize --task digits --generator dit --weights save/quickstart/generator "
    "--guidance-scale 1 --steps 20 --images-per-class 200 --out syn_dataset/quickstart",
    "synthesize --task digits --generator noise --images-per-class 200 "
    "--out syn_dataset/quickstart_noise",
    "inspect_set --task digits --set syn_dataset/quickstart --teacher save/quickstart/teacher "
    "--out save/quickstart/inspect.json",
    f"{QUICK_STUDENT} --source syn_dataset/quickstart --out save/quickstart/student_synthetic",
    f"{QUICK_STUDENT} --source real --out save/quickstart/student_real",
    f"{QUICK_STUDENT} --source syn_dataset/quickstart_noise --out save/quickstart/student_noise",
    "report --runs save/quickstart --out save/quickstart --baseline student_real "
    "--rows teacher,student_real,student_synthetic,student_noise")
