"""The studies as data, for dm_kd.study: rows x folds x seeds, and what the rows are compared with.

A command is a script of scripts/ and the flags that differ, or a module and its flags. Its --out
and its inputs are always written out: dm_kd.study orders the commands by them. Braces stand for the
numbers of a trial: {fold}, {gen} (of networks and generator), {set}, {seed} (of the student), and
for folders: {base} (of networks and generators), {place} (of students). The decision rules, fixed
beforehand, are in save/results/guide.md.
"""

from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True)
class Row:
    """A row of a table: what its students learn from, and how."""

    student: str = ""  # flags of its students after those of the study, or a whole command
    images: str = ""  # the set they learn from: name and flags, or a whole command
    teacher: str = ""  # name and flags of its training; default: the data set's
    seeds: Iterable[int] = ()  # default: the study's


@dataclass(frozen=True)
class Study:
    """A table, and the commands behind it."""

    rows: dict[str, Row]
    seeds: Iterable[int]
    baseline: str  # the row that others are compared with
    students: str = ""  # flags of all students
    inspect: bool = False  # whether the image sets are inspected


@dataclass(frozen=True)
class DataSet:
    """Commands. {name} stands for the name of an image set or a network."""

    images: str
    student: str
    inspect: str
    network: str = ""
    networks: tuple[str, ...] = ()  # names and flags; trained if something uses them
    generators: tuple[str, ...] = ()  # whole commands; run if something uses their output


MODELS = "save/models/fashion_mnist"
WRN, LENET = f"{MODELS}_wrn_16_2", f"{MODELS}_lenet5_bn"
RECORDED = "save/results/fashion_mnist"  # where git has the generators; else they are trained there
FASHION_SET = (f"fashion_mnist_synthesize.sh --weights {RECORDED}/generator "
               "--out syn_dataset/fashion_mnist")
FASHION_GAN = "save/generators/fashion_mnist_gan"
IMAGENET_SET = "imagenet_synthesize.sh --seed {set} --out syn_dataset/imagenet_{name}{end}"


def trained_for(epochs: int) -> str:
    """The command that trains Fashion-MNIST's generator for so many epochs."""
    return (f"fashion_mnist_generator.sh --batch-size 128 --augment none --steps "
            f"{epochs * 60000 // 128} --out {RECORDED}_experiment/dit_{epochs}")


def large(data: str, network: str, student: str, teacher: str, features: str,
          images: str = IMAGENET_SET) -> DataSet:
    models = f"save/models/{data}_"
    return DataSet(
        images, f"{student} --teacher {models}{teacher}",
        f"inspect_set --task {data} --teacher {models}{teacher} --features {models}{features}",
        f"{data}_teacher.sh --model {network} --out {models}{{name}}", (teacher, features))


DATA_SETS = {
    "digits": DataSet(
        images="digits_synthesize.sh --images-per-class 100 --guided-channels all --weights "
               "{base}/generator --seed {set} --out "
               "syn_dataset/digits_fold{fold}_gen{gen}_set{set}_{name}",
        student="digits_distill.sh --fold {fold} --teacher {base}/cnn_w32",
        inspect="inspect_set --task digits --fold {fold} --teacher {base}/cnn_w32 "
                "--features {base}/resnet14",
        network="digits_teacher.sh --fold {fold} --seed {gen} --model {name} --out {base}/{name}",
        networks=("cnn_w32", "resnet14"),
        generators=("digits_generator.sh --fold {fold} --seed {gen} --out {base}/generator",
                    "digits_gan.sh --fold {fold} --seed {gen} --out {base}/gan")),
    "fashion_mnist": DataSet(
        images=f"{FASHION_SET}_set{{set}}_{{name}} --guided-channels all --images-per-class 40 "
               "--seed {set}",
        student=f"fashion_mnist_distill.sh --teacher {LENET}",
        inspect=f"inspect_set --task fashion_mnist --teacher {WRN} --features {LENET}",
        network=f"fashion_mnist_baselines.sh teacher --model {{name}} --out {MODELS}_{{name}}",
        networks=("lenet5_bn", "wrn_16_2 --learning-rate 0.1"),
        generators=(f"fashion_mnist_generator.sh --out {RECORDED}/generator", trained_for(15),
                    trained_for(60), f"fashion_mnist_gan.sh --out {FASHION_GAN}")),
    "imagenet": DataSet(  # networks are torchvision's
        IMAGENET_SET, "imagenet_distill.sh", "inspect_set --task imagenet "
        "--teacher torchvision:resnet18 --features torchvision:convnext_tiny"),
    "cifar100": large(
        "cifar100", "{name}", "cifar100_distill_w40_2_w16_2.sh", "wrn_40_2", "vgg8_bn",
        IMAGENET_SET.replace("imagenet_synthesize", "cifar100_synthesize")),
    **{data: large(data, "torchvision:{name}", f"{data}_distill.sh", "resnet18",
                   "shufflenet_v2_x1_0") for data in ("imagenet100", "flowers102")}}


# --- rows -----------------------------------------------------------------------------------------

def grid(guidance: Iterable, steps: Iterable, end: str = "", seeds: tuple = ()) -> dict[str, Row]:
    """Is it fidelity or coverage that teaches? A row per guidance scale and number of steps.

    Coverage teaches if more guidance and fewer steps both cost accuracy, recall falls in both, and
    precision rises in one and falls in the other; the other way round, fidelity teaches."""
    return {f"s{s}_t{t}": Row(images=f"s{s}_t{t}{end} --guidance-scale {s} --steps {t}",
                              seeds=seeds) for s in guidance for t in steps}


def amounts(images: str, synthetic: Iterable[int], real: Iterable[int], subset: str
            ) -> dict[str, Row]:
    """How many synthetic images is a real one worth? The first N images per class of one set, N
    real ones drawn at random, all real ones; the same number of steps."""
    return {**{f"synthetic_{n}": Row(f"--images-per-class {n}", images) for n in synthetic},
            **{f"real_{n}": Row(f"--source real --images-per-class {n} --subset-seed {subset}")
               for n in real}, "real_all": Row("--source real")}


def teachers(data: str, images: str, usual: str, others: dict[str, str], temperatures: Iterable[int]
             ) -> dict[str, Row]:
    """Do weak teachers teach better, at any temperature? A row per teacher and temperature;
    `others`: flags of a teacher's training."""
    rows = {}
    for name, flags in {usual: "", **others}.items():
        own = f"--teacher torchvision:{name}" if data == "imagenet" else ""
        trained = "" if own or name == usual else f"{name} {flags}"
        rows |= {f"{name}_temperature{t}": Row(f"--temperature {t} {own}", images, trained)
                 for t in temperatures}
    return rows


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
    images = {"dit": dit, **{name: f"{script} {name}_set {flags} --seed {{set}} --out {sets}_{name}"
                             for name, flags in made.items()}}
    without = ("real", "dafl", "dfq", "zskt", "fastdfkd", "fastdfkd_reptile",
               "fast_sequential", "cmi", "nayer", "adi")
    return {"alone": Row(f"{script} alone {fold}"),
            **{name: Row(f"{script} {name} {kd}") for name in without},
            **{name: Row(f"{script} {name} {kd} --subset-seed {{seed}}") for name in real},
            **{name: Row(f"{script} {name} {kd}", images[name]) for name in images}}


# --- digits and Fashion-MNIST ---------------------------------------------------------------------

DIGITS = {  # times of two cores with bfloat16 instructions
    "main": Study({  # 45 minutes
        "student_alone": Row("digits_baselines.sh alone --fold {fold} --epochs 90"),
        "student_real": Row("--source real"),
        "student_synthetic": Row(images="s1_t100_200 --images-per-class 200"),
        "student_noise": Row(images="digits_baselines.sh noise_set --images-per-class 200 --seed "
                                    "{set} --out syn_dataset/digits_noise_set{set}")},
        seeds=(0, 6, 12), baseline="student_real", inspect=True),
    "fidelity": Study(  # 4 hours; the rows with 18 seeds are those that a claim rests on
        grid((4, 3, 2, 1.5, 1, 0), (5, 10, 20, 50, 100, 250), seeds=(0,))
        | grid((1, 4), (50,)) | grid((1,), (5,)),
        seeds=range(18), baseline="s1_t50", students="--epochs 45", inspect=True),
    "teacher_strength": Study(  # 2 hours
        teachers("digits", "s1_t50 --steps 50", "cnn_w32", {
            "cnn_w4": "", "cnn_w8": "--seed 10{gen}", "cnn_w16": "", "resnet8": "",
            "resnet14": "", "cnn_w32_epochs2": "--model cnn_w32 --epochs 2",
            "cnn_w32_epochs8": "--model cnn_w32 --epochs 8"}, (1, 4, 16)),
        seeds=(0, 6, 12), baseline="cnn_w32_temperature4", students="--epochs 45 --cache-teacher"),
    "amount": Study(amounts(  # 2.5 hours
        "s1_t20_1280 --steps 20 --images-per-class 1280",
        synthetic=(10, 20, 40, 80, 160, 320, 640, 1280), real=(10, 20, 40, 80), subset="{set}"),
        seeds=range(18), baseline="synthetic_1280", students="--epochs 45"),
    "ways": Study(  # an hour
        ways("s1", (1, 2, 8, 16), 0.2, {
            "no_mixing": "--mixup 0", "no_augmentation": "--mixup 0 --augment none",
            "all_mixup": "--mix-share 1", "half_cutmix": "--mixup 0 --cutmix 1"}),
        seeds=(0, 3, 6, 9, 12, 15), baseline="base", students="--epochs 45"),
    "rivals": Study(  # 45 minutes a seed
        rivals("digits", "--fold {fold}", "{base}/cnn_w32", "{base}/generator", "{base}/gan",
               "syn_dataset/digits_fold{fold}_gen{gen}_set{set}", "s1_t100", ("real_100",)),
        seeds=(0,), baseline="real")}

FASHION = {  # one generator
    "main": Study({  # an hour; goal: synthetic at least real_10k - 0.5
        "real": Row("--source real"), "synthetic": Row(images=FASHION_SET),
        "real_10k": Row("--source real --images-per-class 1000 --subset-seed {seed}")},
        seeds=range(3), baseline="real_10k", inspect=True,
        students=f"--cache-teacher --teacher {WRN}"),
    "fidelity": Study(
        grid((1, 2, 4), (5, 20, 50)),
        seeds=(0, 3, 6), baseline="s1_t50", students="--steps-per-epoch 200", inspect=True),
    "teacher_strength": Study(
        teachers("fashion_mnist", FASHION_SET, "lenet5_bn", {
            "lenet5_half": "--learning-rate 0.02 --seed 100", "wrn_16_2": "--learning-rate 0.1",
            "lenet5_bn_epochs1": "--model lenet5_bn --epochs 1"}, (1, 4, 16)),
        seeds=range(3), baseline="lenet5_bn_temperature4",
        students="--steps-per-epoch 200 --cache-teacher"),
    "amount": Study(amounts(
        FASHION_SET, synthetic=(10, 20, 50, 100, 200, 500, 1000),
        real=(10, 20, 50, 100, 200, 500, 1000), subset="{seed}"),
        seeds=range(3), baseline="synthetic_1000", students="--steps-per-epoch 200"),
    "rivals": Study(  # 1.8 hours, and two for teacher and generator
        rivals("fashion_mnist", "", LENET, f"{RECORDED}/generator", FASHION_GAN,
               "syn_dataset/fashion_mnist_set{set}", FASHION_SET, ("real_1000", "real_1207")),
        seeds=range(3), baseline="real")}


def of_generator(epochs: int, flags: str = "", name: str = "") -> Row:
    """10,000 images of the generator of so many epochs."""
    return Row("--images-per-class 1000", "fashion_mnist_synthesize.sh --weights "
               f"{RECORDED}_experiment/dit_{epochs} {flags} "
               f"--out syn_dataset/fashion_mnist_dit_{epochs}{name}", seeds=range(3))


def experiment(student: str, epochs: int, rates: tuple, rate: float, temperature: int,
               seeds: Iterable[int]) -> tuple[Study, Study]:
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
        rows |= {"kd_6_epochs_10000": Row(images=FASHION_SET, seeds=range(3)),
                 "kd_15_epochs_10000": of_generator(15),
                 "kd_s4_10000": of_generator(60, "--guidance-scale 4 --guided-channels all", "_s4"),
                 "kd_gan_10000": Row(
                     images=f"fashion_mnist_baselines.sh gan_set --weights {FASHION_GAN} "
                            "--out syn_dataset/fashion_mnist_gan", seeds=range(3))}
    tried = {f"temperature{t}_rate{x}": Row(
        f"--source real --val dev --temperature {t} --learning-rate {x}")
        for t in (1, 2, 4, 8) for x in rates}
    return (Study(rows, seeds, baseline="kd_real_all", inspect=True,
                  students=f"{students} --temperature {temperature} --learning-rate {rate}"),
            Study(tried, seeds=(0,), baseline=next(iter(tried)),
                  students=f"{students} --cache-teacher"))


FASHION["experiment"], FASHION["experiment_settings"] = experiment(
    "wrn_16_1", 8, (0.05, 0.1), rate=0.1, temperature=8, seeds=range(5))
FASHION["experiment_lenet5"], FASHION["experiment_lenet5_settings"] = experiment(
    "lenet5_half", 15, (0.01, 0.02), rate=0.02, temperature=2, seeds=range(3))


# --- the paper's settings -------------------------------------------------------------------------

def paper_studies(data: str, *, temperatures: tuple, usual: str, networks: dict[str, str],
                  synthetic: tuple, real: tuple, steps: int, other: tuple, end: str = ""
                  ) -> dict[str, Study]:
    """The four studies in the paper's settings. temperatures, other: of teacher_strength and of
    ways; synthetic, real: images per class; end: of the sets' names."""
    most = synthetic[-1]
    return {
        "fidelity": Study(grid((1, 1.6, 1.8, 2, 3, 4), (100, 150, 200, 250), end), seeds=(0,),
                          baseline="s1_t100", inspect=True),
        "teacher_strength": Study(
            teachers(data, f"s2_t100{end}", usual, networks, temperatures), seeds=(1,),
            baseline=f"{usual}_temperature{temperatures[1]}"),
        "amount": Study(
            amounts(f"s2_t100_{most} --images-per-class {most}", synthetic, real, "{seed}"),
            seeds=(0,), baseline="real_all", students=f"--steps-per-epoch {steps}"),
        "ways": Study(
            ways("s2", other, 0.1, {"no_augmentation": "--augment none", "mixup": "--mixup 0.4",
                                    "cutmix": "--cutmix 0.25"}, end), seeds=(0,), baseline="base")}


LARGE = {"temperatures": (3, 10, 30), "synthetic": (20, 50, 140, 200, 1280), "steps": 782,
         "other": (1, 5, 20, 30)}
STUDIES = {
    "digits": DIGITS, "fashion_mnist": FASHION,
    # hours of one H200, estimates: fidelity 200 (190 for its sets), teacher_strength 25, amount 40,
    # ways 28; cifar100 110, 22, 20, 24; the others, whose sets are ImageNet's, 100, 40, 30, 45
    "imagenet": paper_studies(
        "imagenet", **LARGE, usual="resnet50", real=(20, 50, 140, 200, 700), networks=dict.fromkeys(
            ("shufflenet_v2_x0_5", "shufflenet_v2_x1_0", "resnet18", "resnet34", "convnext_tiny"),
            "")),
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
