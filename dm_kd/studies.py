"""The studies as data, for dm_kd.study: rows x folds x seeds, and what the rows are compared with.

A command is a script of scripts/ and the flags that differ, or a module and its flags. Its --out
and its inputs are always written out: dm_kd.study orders the commands by them. Braces stand for the
numbers of a trial: {fold}, {gen} (of teacher and generator), {set_seed}, {set} (number of the set
among its generator's), {seed} (of the student), and for folders: {base}, {place}.

Decision rules, fixed beforehand, for the 95 % interval of a paired difference: a change is
significant if the interval excludes 0, negligible if the interval is within half a point of 0,
undecided otherwise. A result from one generator or one set is a result about that one only.
"""

from collections.abc import Iterable
from dataclasses import dataclass, replace


@dataclass(frozen=True)
class Row:
    """A row of a table: what its students learn from, and how."""

    student: str = ""  # flags of its students after those of the study, or a whole command
    images: str = ""  # name and flags of the image set they learn from, or a whole command
    needs: str = ""  # a command that trains its teacher; {needs} above is its --out
    seeds: str = ""  # default: the study's


@dataclass(frozen=True)
class Study:
    """A table, and the commands behind it."""

    title: str
    rows: dict[str, Row]
    seeds: str
    baseline: str  # the row that others are compared with
    students: str = ""  # flags of all students
    inspect: bool = False  # whether the image sets are inspected


WRN = "save/models/fashion_mnist_wrn_16_2"
RECORDED = "save/results/fashion_mnist"  # where git has the generators; else they are trained there
FASHION_TEACHER = "save/models/fashion_mnist_lenet5_bn"
FASHION_SET = (f"fashion_mnist_synthesize.sh --weights {RECORDED}/generator "
               "--out syn_dataset/fashion_mnist")
FASHION_GAN = "save/generators/fashion_mnist_gan"


def trained_for(epochs: int) -> str:
    """The command that trains Fashion-MNIST's generator for so many epochs."""
    return (f"fashion_mnist_generator.sh --batch-size 128 --augment none --steps "
            f"{epochs * 60000 // 128} --out {RECORDED}_experiment/dit_{epochs}")


# For each data set the commands of its image sets, students, other networks and inspections, and
# those that make the inputs of these, which run if something uses their output.
IMAGENET_SET = "imagenet_synthesize.sh --seed {set_seed} --out syn_dataset/imagenet_{name}{end}"
STEPS = {
    "digits": {
        "teacher": "digits_teacher.sh --fold {fold} --seed {gen} --out {base}/teacher",
        "network": "digits_teacher.sh --fold {fold} --seed {gen} --model {name} "
                   "--out save/digits_networks/fold{fold}_gen{gen}/{name}",
        "features": "digits_teacher.sh --fold {fold} --seed {gen} --model resnet14 "
                    "--out save/digits_networks/fold{fold}_gen{gen}/resnet14",
        "generator": "digits_generator.sh --fold {fold} --seed {gen} --out {base}/generator",
        "gan": "digits_gan.sh --fold {fold} --seed {gen} --out {base}/gan",
        "images": "digits_synthesize.sh --images-per-class 100 --guided-channels all --weights "
                  "{base}/generator --seed {set_seed} --out syn_dataset/digits_study_fold{fold}_"
                  "gen{gen}_set{set}_{name}",
        "student": "digits_distill.sh --fold {fold} --teacher {base}/teacher",
        "inspect": "inspect_set --task digits --fold {fold} --teacher {base}/teacher --features "
                   "save/digits_networks/fold{fold}_gen{gen}/resnet14"},
    "fashion_mnist": {
        "teacher": f"fashion_mnist_baselines.sh teacher --out {FASHION_TEACHER}",
        "large": f"fashion_mnist_teacher.sh --out {WRN}",
        "network": "fashion_mnist_baselines.sh teacher --model {name} "
                   "--out save/models/fashion_mnist_{name}",
        "generator": f"fashion_mnist_generator.sh --out {RECORDED}/generator",
        "generator_15": trained_for(15), "generator_60": trained_for(60),
        "gan": f"fashion_mnist_gan.sh --out {FASHION_GAN}",
        "images": f"{FASHION_SET}_study_set{{set}}_{{name}} --guided-channels all "
                  "--images-per-class 40 --seed {set_seed}",
        "student": f"fashion_mnist_distill.sh --teacher {FASHION_TEACHER}",
        "inspect": f"inspect_set --task fashion_mnist --teacher {WRN} "
                   f"--features {FASHION_TEACHER}"},
    "imagenet": {  # networks are torchvision's
        "images": IMAGENET_SET, "student": "imagenet_distill.sh",
        "inspect": "inspect_set --task imagenet --teacher torchvision:resnet18 "
                   "--features torchvision:convnext_tiny"},
    "cifar100": {
        "teacher": "cifar100_teacher.sh --out save/models/cifar100_wrn_40_2",
        "features": "cifar100_teacher.sh --model vgg8_bn --out save/models/cifar100_vgg8_bn",
        "network": "cifar100_teacher.sh --model {name} --out save/models/cifar100_{name}",
        "images": IMAGENET_SET.replace("imagenet_synthesize", "cifar100_synthesize"),
        "student": "cifar100_distill_w40_2_w16_2.sh --teacher save/models/cifar100_wrn_40_2",
        "inspect": "inspect_set --task cifar100 --teacher save/models/cifar100_wrn_40_2 "
                   "--features save/models/cifar100_vgg8_bn"},
    **{data: {
        "teacher": f"{data}_teacher.sh --out save/models/{data}_resnet18",
        "features": f"{data}_teacher.sh --model torchvision:shufflenet_v2_x1_0 "
                    f"--out save/models/{data}_shufflenet_v2_x1_0",
        "network": f"{data}_teacher.sh --model torchvision:{{name}} "
                   f"--out save/models/{data}_{{name}}",
        "images": IMAGENET_SET,
        "student": f"{data}_distill.sh --teacher save/models/{data}_resnet18",
        "inspect": f"inspect_set --task {data} --teacher save/models/{data}_resnet18 "
                   f"--features save/models/{data}_shufflenet_v2_x1_0"}
       for data in ("imagenet100", "flowers102")}}


# --- rows -----------------------------------------------------------------------------------------

def grid(guidance: Iterable, steps: Iterable, end: str = "", seeds: str = "") -> dict[str, Row]:
    """Is it fidelity or coverage that teaches? A row per guidance scale and number of steps.

    Coverage teaches if more guidance and fewer steps both cost accuracy, recall falls in both, and
    precision rises in one and falls in the other; the other way round, fidelity teaches."""
    return {f"s{s}_t{t}": Row(images=f"s{s}_t{t}{end} --guidance-scale {s} --steps {t}",
                              seeds=seeds) for s in guidance for t in steps}


def amounts(images: str, synthetic: Iterable[int], real: Iterable[int], seed: str
            ) -> dict[str, Row]:
    """How many synthetic images is a real one worth? The first N images per class of one set, N
    real ones drawn at random, all real ones; the same number of steps."""
    return {**{f"synthetic_{n}": Row(f"--images-per-class {n}", images) for n in synthetic},
            **{f"real_{n}": Row(f"--source real --images-per-class {n} --subset-seed {seed}")
               for n in real}, "real_all": Row("--source real")}


def teachers(data: str, images: str, usual: str, others: dict[str, str], temperatures: Iterable[int]
             ) -> dict[str, Row]:
    """Do weak teachers teach better, at any temperature? A row per teacher and temperature;
    `others`: flags of a teacher's training."""
    rows = {usual: Row(images=images)}
    for name, flags in others.items():
        if data == "imagenet":
            rows[name] = Row(f"--teacher torchvision:{name}", images)
        else:
            network = STEPS[data]["network"].replace("{name}", name)
            rows[name] = Row("--teacher {needs}", images, f"{network} {flags}")
    return {f"{name}_temperature{t}": replace(row, student=f"--temperature {t} {row.student}")
            for name, row in rows.items() for t in temperatures}


def ways(name: str, values: Iterable[int], rate: float, augmentation: dict[str, str],
         end: str = "") -> dict[str, Row]:
    """What else matters to a student? One change at a time. dkd has a quarter of the rate, since
    its loss is about nine times kd's."""
    changes = {"base": "", **{f"temperature{t}": f"--temperature {t}" for t in values},
               "mse": "--objective mse", "dist": "--objective dist",
               "dkd": f"--objective dkd --learning-rate {rate / 4}", **augmentation}
    return {**{row: Row(flags, f"{name}_t100{end}") for row, flags in changes.items()},
            "ddim": Row(images=f"{name}_t100_ddim{end} --sampler ddim"),
            "shared_noise": Row(images=f"{name}_t100_shared{end} --shared-noise")}


def rivals(data: str, fold: str, teacher: str, generator: str, gan: str, sets: str, dit: str,
           real: Iterable[str]) -> dict[str, Row]:
    """Who wins at an equal number of student steps? The rows of DATA_baselines.sh METHOD. fold:
    flags; generator, gan: folders; sets: how the names of their images begin; dit: its images."""
    script, kd = f"{data}_baselines.sh", f"{fold} --teacher {teacher}"
    guided = f"--teacher {teacher} --weights {generator}"
    made = {"noise": "", "one_image": "", "gan": f"--weights {gan}",
            "deepinversion": f"--teacher {teacher}", "diffdfkd": guided,
            "diffdfkd_adv": f"{guided} --student {{place}}/diffdfkd_set{{set}}_seed{{seed}}"}
    images = {name: f"{script} {name}_set {flags} --seed {{set_seed}} --out {sets}_{name}"
              for name, flags in made.items()}
    images |= {"dit": dit, "one_image_cutmix": images["one_image"]}
    without = ("real", "dafl", "dfq", "zskt", "fastdfkd", "fastdfkd_reptile",
               "fast_sequential", "cmi", "nayer", "adi")
    return {"alone": Row(f"{script} alone {fold}"),
            **{name: Row(f"{script} {name} {kd}") for name in without},
            **{name: Row(f"{script} {name} {kd} --subset-seed {{seed}}") for name in real},
            **{name: Row(f"{script} {name} {kd}", images[name]) for name in images}}


# --- studies --------------------------------------------------------------------------------------

DIGITS_CLAIMS = grid((1, 4), (50,)) | grid((1,), (5,))
DIGITS = {  # times of two cores with bfloat16 instructions
    "quickstart": Study("The README's first command", {}, seeds="0", baseline=""),  # QUICKSTART
    "main": Study("Digits: a student that never saw a real image", {  # 45 minutes
        "student_alone": Row("digits_baselines.sh alone --fold {fold} --epochs 90"),
        "student_real": Row("--source real"),
        "student_synthetic": Row(images="s1_t100_200 --images-per-class 200"),
        "student_noise": Row(images="digits_baselines.sh noise_set --images-per-class 200 --seed "
                                    "{set_seed} --out syn_dataset/digits_noise_seed{set_seed}")},
        seeds="0,6,12", baseline="student_real", inspect=True),
    "fidelity": Study(  # 4 hours with the two below
        "Digits: guidance x steps",
        grid((4, 3, 2, 1.5, 1, 0), (5, 10, 20, 50, 100, 250), seeds="0") | DIGITS_CLAIMS,
        seeds="0-17", baseline="s1_t50", students="--epochs 45", inspect=True),
    "fidelity_plain": Study("Digits: guidance x steps, no mixup", DIGITS_CLAIMS, seeds="0-17",
                            baseline="s1_t50", students="--epochs 45 --mixup 0"),
    "fidelity_strong": Study("Digits: guidance x steps, four times the epochs", DIGITS_CLAIMS,
                             seeds="0-17", baseline="s1_t50", students="--epochs 180"),
    "teacher_strength": Study(  # 2 hours
        "Digits: teachers of rising strength", teachers("digits", "s1_t50 --steps 50", "cnn_w32", {
            "cnn_w4": "", "cnn_w8": "--seed 10{gen}", "cnn_w16": "", "resnet8": "--seed 10{gen}",
            "resnet14": "", "cnn_w32_epochs2": "--model cnn_w32 --epochs 2",
            "cnn_w32_epochs8": "--model cnn_w32 --epochs 8"}, (1, 4, 16)),
        seeds="0,6,12", baseline="cnn_w32_temperature4",
        students="--epochs 45 --cache-teacher"),
    "amount": Study("Digits: number of images", amounts(  # 2.5 hours
        "s1_t20_1280 --steps 20 --images-per-class 1280",
        synthetic=(10, 20, 40, 80, 160, 320, 640, 1280), real=(10, 20, 40, 80), seed="{set_seed}"),
        seeds="0-17", baseline="synthetic_1280", students="--epochs 45"),
    "ways": Study(  # an hour
        "Digits: temperature, augmentation, objective, sampler, shared noise",
        ways("s1", (1, 2, 8, 16), 0.2, {
            "no_mixing": "--mixup 0", "no_augmentation": "--mixup 0 --augment none",
            "all_mixup": "--mix-share 1", "half_cutmix": "--mixup 0 --cutmix 1"}),
        seeds="0,3,6,9,12,15", baseline="base", students="--epochs 45"),
    "rivals": Study(  # 45 minutes a seed
        "Digits: other methods at an equal number of student steps",
        rivals("digits", "--fold {fold}", "{base}/teacher", "{base}/generator", "{base}/gan",
               "syn_dataset/digits_fold{fold}_gen{gen}_set{set}", "s1_t100", ("real_100",)),
        seeds="0", baseline="real")}
DIGITS["teacher_strength_resnet8"] = replace(
    DIGITS["teacher_strength"], students="--epochs 45 --cache-teacher --student resnet8")

FASHION_ROWS = {"real": Row("--source real"), "synthetic": Row(images=FASHION_SET), "real_10k": Row(
    "--source real --images-per-class 1000 --subset-seed {seed}")}
FASHION = {  # one generator
    "main": Study(  # an hour; goal: synthetic at least real_10k - 0.5
        "Fashion-MNIST", FASHION_ROWS, seeds="0-2", baseline="real_10k", inspect=True,
        students=f"--cache-teacher --teacher {WRN}"),
    "main_wrn_16_1": Study(
        "Fashion-MNIST, WRN-16-1", FASHION_ROWS, seeds="0-2", baseline="real_10k",
        students=f"--cache-teacher --teacher {WRN} --student wrn_16_1 --learning-rate 0.05"),
    "fidelity": Study(
        "Fashion-MNIST: guidance x steps", grid((1, 2, 4), (5, 20, 50)),
        seeds="0,3,6", baseline="s1_t50", students="--steps-per-epoch 200", inspect=True),
    "teacher_strength": Study(
        "Fashion-MNIST: teachers of rising strength",
        teachers("fashion_mnist", FASHION_SET, "lenet5_bn", {
            "lenet5_half": "--learning-rate 0.02 --seed 100", "wrn_16_2": "--learning-rate 0.1",
            "lenet5_bn_epochs1": "--model lenet5_bn --epochs 1"}, (1, 4, 16)),
        seeds="0-2", baseline="lenet5_bn_temperature4",
        students="--steps-per-epoch 200 --cache-teacher"),
    "amount": Study("Fashion-MNIST: number of images", amounts(
        FASHION_SET, synthetic=(10, 20, 50, 100, 200, 500, 1000),
        real=(10, 20, 50, 100, 200, 500, 1000), seed="{seed}"),
        seeds="0-2", baseline="synthetic_1000", students="--steps-per-epoch 200"),
    "rivals": Study(  # 1.8 hours, and two for teacher and generator
        "Fashion-MNIST: other methods at an equal number of student steps",
        rivals("fashion_mnist", "", FASHION_TEACHER, f"{RECORDED}/generator", FASHION_GAN,
               "syn_dataset/fashion_mnist_set{set}", FASHION_SET, ("real_1000", "real_1207")),
        seeds="0-2", baseline="real")}


def of_generator(epochs: int, flags: str = "", name: str = "") -> Row:
    """10,000 images of the generator of so many epochs."""
    return Row("--images-per-class 1000", "fashion_mnist_synthesize.sh --weights "
               f"{RECORDED}_experiment/dit_{epochs} {flags} "
               f"--out syn_dataset/fashion_mnist_dit_{epochs}{name}", seeds="0-2")


def experiment(student: str, epochs: int, rates: tuple, rate: float, temperature: int, seeds: str
               ) -> tuple[Study, Study]:
    """Does synthetic match real? KD on real and on synthetic images, beside the student alone, and
    the study before it, whose best row on training images set aside has `rate` and `temperature`.
    Goals: all 60,000 synthetic images at least KD on all real - 1; 10,000 at least KD on 10,000
    real - 0.7 (LeNet: 1)."""
    last = of_generator(60, "--images-per-class 6000").images
    recipe = f"--batch-size 128 --steps-per-epoch 469 --epochs {epochs}"
    students = f"--teacher {WRN} --student {student} {recipe}"
    rows = {"alone": Row(f"train_teacher --task fashion_mnist --model {student} "
                         f"--lr-schedule cosine --weight-decay 5e-4 {recipe} "
                         f"--learning-rate {rate}"),
            "kd_real_all": Row("--source real"),
            "kd_real_10000": Row("--source real --images-per-class 1000 --subset-seed {seed}"),
            "kd_synthetic_10000": Row("--images-per-class 1000", last),
            "kd_synthetic_60000": Row(images=last)}
    if student == "wrn_16_1":
        rows |= {"kd_6_epochs_10000": Row(images=FASHION_SET, seeds="0-2"),
                 "kd_15_epochs_10000": of_generator(15),
                 "kd_s4_10000": of_generator(60, "--guidance-scale 4 --guided-channels all", "_s4"),
                 "kd_gan_10000": Row(
                     images=f"fashion_mnist_baselines.sh gan_set --weights {FASHION_GAN} "
                            "--out syn_dataset/fashion_mnist_gan", seeds="0-2")}
    tried = {f"temperature{t}_rate{x}": Row(
        f"--source real --val dev --temperature {t} --learning-rate {x}")
        for t in (1, 2, 4, 8) for x in rates}
    return (Study(f"Does synthetic match real? WRN-16-2 to {student}", rows, seeds,
                  baseline="kd_real_all", inspect=True,
                  students=f"{students} --temperature {temperature} --learning-rate {rate}"),
            Study(f"Temperature and rate of WRN-16-2 to {student}, on training images set aside",
                  tried, seeds="0", baseline=next(iter(tried)), students=students))


FASHION["experiment"], FASHION["experiment_settings"] = experiment(
    "wrn_16_1", 8, (0.05, 0.1), rate=0.05, temperature=4, seeds="0-4")
FASHION["experiment_lenet5"], FASHION["experiment_lenet5_settings"] = experiment(
    "lenet5_half", 15, (0.01, 0.02), rate=0.02, temperature=4, seeds="0-2")


def paper_studies(data: str, *, temperatures: tuple, usual: str, networks: dict[str, str],
                  synthetic: tuple, real: tuple, steps: int, other: tuple, end: str = ""
                  ) -> dict[str, Study]:
    """The four studies in the paper's settings. temperatures, other: of teacher_strength and of
    ways; synthetic, real: images per class; end: of the sets' names."""
    most = synthetic[-1]
    return {
        "fidelity": Study(
            f"{data}: guidance x steps", grid((1, 1.6, 1.8, 2, 3, 4), (100, 150, 200, 250), end),
            seeds="0", baseline="s1_t100", inspect=True),
        "teacher_strength": Study(
            f"{data}: teachers of rising strength",
            teachers(data, f"s2_t100{end}", usual, networks, temperatures), seeds="1",
            baseline=f"{usual}_temperature{temperatures[1]}"),
        "amount": Study(
            f"{data}: number of images",
            amounts(f"s2_t100_{most} --images-per-class {most}", synthetic, real, "{seed}"),
            seeds="0", baseline="real_all", students=f"--steps-per-epoch {steps}"),
        "ways": Study(
            f"{data}: temperature, augmentation, objective, sampler, shared noise",
            ways("s2", other, 0.1, {"no_augmentation": "--augment none", "mixup": "--mixup 0.4",
                                    "cutmix": "--cutmix 0.25"}, end), seeds="0", baseline="base")}


LARGE = {"temperatures": (3, 10, 30), "synthetic": (20, 50, 140, 200, 1280), "steps": 782,
         "other": (1, 5, 20, 30)}
STUDIES = {
    "digits": DIGITS, "fashion_mnist": FASHION,
    # hours of one H200, estimates: fidelity 200 (190 for its sets), teacher_strength 25, amount 40,
    # ways 28; cifar100 110, 22, 20, 24; the others, whose sets are ImageNet's, 100, 40, 30, 45
    "imagenet": paper_studies(
        "imagenet", **LARGE, usual="resnet50", real=(20, 50, 140, 200, 700), networks=dict.fromkeys(
            ("shufflenet_v2_x0_5", "shufflenet_v2_x1_0", "resnet18", "resnet34", "resnet50",
             "convnext_tiny"), "")),
    "cifar100": paper_studies(
        "cifar100", temperatures=(1, 4, 16), usual="wrn_40_2", networks={
            "resnet8": "", "wrn_16_2": "--seed 100", "wrn_40_1": "", "cifar_resnet34": "",
            "wrn_40_2_short": "--model wrn_40_2 --epochs 20 --lr-decay-epochs 12,15,18"},
        synthetic=(5, 10, 20, 50, 200), real=(50, 100, 200, 400), steps=391, other=(1, 2, 8, 12),
        end="_50k"),
    **{data: paper_studies(
        data, **LARGE, usual="resnet18", real=real, networks={
            "shufflenet_v2_x0_5": "", "shufflenet_v2_x1_0": "", "resnet50": "--seed 100",
            "resnet18_short": "--model torchvision:resnet18 --epochs 10 --lr-decay-epochs 3,6,9"})
       for data, real in (("imagenet100", (50, 100, 200, 500)), ("flowers102", (5, 10, 20)))}}

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
