"""Published top-1 accuracies (percent), for `report` to set beside its own, and as tables with the
script that fills each cell: save/results/published_tables.md.

    python -m dm_kd.report --published --out save/results [--runs save/student_model]

Copied from the README files, logs and abstracts that each entry names; none was measured here. To
add one: a line in a table below.

A row's method is what may fill it: the name of a generator or an online source, "real" (distilled
from all real images), "alone" (trained without a teacher), "places365"; two names where two do,
none where nothing here does. Scripts stand without scripts/ and sh; PAIR is r34_r18, vgg11_r18,
w40_2_w16_1, w40_2_w40_1 or w40_2_w16_2, and baselines/cifar100_*.sh take it as PAIR=vgg11_r18.
"""

SOURCES = {
    "DM-KD": "README of github.com/zhengli97/DM-KD (arXiv 2305.12954)",
    "Fast-Datafree": "README and logs of github.com/zju-vipa/Fast-Datafree (arXiv 2112.06253)",
    "CMI": "README of github.com/zju-vipa/CMI (arXiv 2105.08584)",
    "One-Image": "README and abstract of github.com/yukimasano/single-img-extrapolating "
                 "(arXiv 2112.00725)",
    "Luo": "abstract of arXiv 2012.05578", "DAFL": "abstract of arXiv 1904.01186",
}
PAIRS = (("resnet34", "resnet18"), ("vgg11", "resnet18"), ("wrn_40_2", "wrn_16_1"),
         ("wrn_40_2", "wrn_40_1"), ("wrn_40_2", "wrn_16_2"))
STUDENTS = ("resnet50", "resnet18", "mobilenet_v2")
TEACHER = "cifar100_teacher.sh --model MODEL --out save/models/cifar100_MODEL"
STUDENT = "baselines/cifar100_alone.sh"
ONE_IMAGE = "cifar100_synthesize_one_image.sh; baselines/cifar100_one_image.sh"
ALONE = {"teacher": 0, "student alone": 1}  # labels of rows of one network: which one of the pair

PAIRED = {  # task -> (label, method, source, top-1 of each of PAIRS, script)
    "cifar100": (
        ("teacher", "alone", "Fast-Datafree", (78.05, 71.32, 75.83, 75.83, 75.83), TEACHER),
        ("student alone", "alone", "Fast-Datafree", (77.10, 77.10, 65.31, 72.19, 73.56), STUDENT),
        ("student alone", "alone", "CMI", (None, 77.01, None, None, None), STUDENT),
        ("KD on real images (suspect)", "real", "Fast-Datafree",
         (77.87, 75.07, 64.06, 68.58, 70.79), "baselines/cifar100_real.sh"),
        ("DeepInv", "adi deepinversion", "Fast-Datafree", (61.32, 54.13, 53.77, 61.33, 61.34),
         "baselines/cifar100_adi.sh"),
        ("DAFL", "dafl", "Fast-Datafree", (74.47, 54.16, 20.88, 42.83, 43.70),
         "baselines/cifar100_dafl.sh"),
        ("DAFL", "dafl", "CMI", (74.47, 57.29, 22.50, 34.66, 40.00), "baselines/cifar100_dafl.sh"),
        ("ZSKT", "zskt", "Fast-Datafree", (67.74, 54.31, 36.66, 53.60, 54.59),
         "baselines/cifar100_zskt.sh"),
        ("ZSKT", "zskt", "CMI", (67.74, 34.72, 30.15, 29.73, 28.44), "baselines/cifar100_zskt.sh"),
        ("DFQ", "dfq", "Fast-Datafree", (77.01, 66.21, 51.27, 54.43, 64.79),
         "baselines/cifar100_dfq.sh"),
        ("DFQ", "dfq", "CMI", (77.01, 68.32, 54.77, 62.92, 59.01), "baselines/cifar100_dfq.sh"),
        ("CMI (not in the paper's table)", "cmi", "CMI", (77.04, 70.56, 57.91, 68.88, 68.75),
         "baselines/cifar100_cmi.sh"),
        ("Fast-2", "fastdfkd-2", "Fast-Datafree", (69.76, 62.83, 41.77, 53.15, 57.08),
         "baselines/cifar100_fast2.sh"),
        ("Fast-5", "fastdfkd-5", "Fast-Datafree", (72.82, 65.28, 52.90, 61.80, 63.83),
         "baselines/cifar100_fast5.sh"),
        ("Fast-10 (the paper's FastDFKD)", "fastdfkd-10", "Fast-Datafree",
         (74.34, 67.44, 54.02, 63.91, 65.12), "baselines/cifar100_fastdfkd.sh"),
        ("One-Image", "one_image", "DM-KD", (74.56, 68.51, 34.62, 52.39, 54.71), ONE_IMAGE),
        ("DM-KD", "dit", "DM-KD", (76.58, 70.83, 56.29, 65.01, 66.89),
         "cifar100_synthesize.sh; cifar100_distill_PAIR.sh")),
    "cifar10": (
        ("teacher", "", "Fast-Datafree", (95.70, 92.25, 94.87, 94.87, 94.87), ""),
        ("student alone", "", "Fast-Datafree", (95.20, 95.20, 91.12, 93.94, 93.95), ""),
        ("KD on real images (suspect)", "", "Fast-Datafree",
         (95.20, 95.20, 95.20, 95.20, 95.20), ""),
        ("DeepInv", "", "Fast-Datafree", (93.26, 90.36, 83.04, 86.85, 89.72), ""),
        ("CMI", "", "CMI", (94.84, 91.13, 90.01, 92.78, 92.52), ""),
        ("CMI without the adversary", "", "CMI", (None, None, 87.38, None, None), ""),
        ("CMI from nothing", "", "CMI", (None, None, 88.82, None, None), ""),
        ("DAFL", "", "Fast-Datafree", (92.22, 81.10, 65.71, 81.33, 81.55), ""),
        ("ZSKT", "", "Fast-Datafree", (93.32, 89.46, 83.74, 86.07, 89.66), ""),
        ("DFQ", "", "Fast-Datafree", (94.61, 90.84, 86.14, 91.69, 92.01), ""),
        ("Fast-2", "", "Fast-Datafree", (92.62, 84.67, 88.36, 89.56, 89.68), ""),
        ("Fast-5", "", "Fast-Datafree", (93.63, 89.94, 88.90, 92.04, 91.96), ""),
        ("Fast-10", "", "Fast-Datafree", (94.05, 90.53, 89.29, 92.51, 92.45), "")),
}
DM_KD = ("imagenet_synthesize.sh --images-per-class {0}; R50: imagenet_distill_rn18_rn50.sh "
         "--images-per-class {0} --out save/student_model/imagenet_rn18_rn50_{0}; R18: "
         "imagenet_distill.sh --images-per-class {0} --epochs 200 --lr-decay-epochs 60,120,180 "
         "--out save/student_model/imagenet_rn18_rn18_{0}")
OF_ONE_IMAGE = ("baselines/imagenet_one_image.sh --images-per-class 1281; "
                "baselines/imagenet_one_image_distill.sh")
IMAGENET = (  # (label, method, teacher, images, epochs, source, top-1 of STUDENTS, script)
    ("trained on the real images", "alone", None, None, None, "Fast-Datafree",
     (75.45, 68.45, 70.01), "torchvision's weights: python -m dm_kd.evaluate --task imagenet "
                            "--model torchvision:MODEL"),
    ("Places365+KD", "places365", "resnet50", 1_800_000, 200, "Fast-Datafree",
     (55.74, 45.53, 39.89), "baselines/imagenet_places365.sh"),
    ("BigGAN", "biggan", "resnet50", 215_000, 90, "DM-KD", (64.00, None, None),
     "baselines/imagenet_biggan.sh; baselines/imagenet_biggan_distill.sh"),
    ("Generative DFD (Luo; not in the paper's table)", "", "resnet50", None, None,
     "Fast-Datafree", (69.75, 54.66, 43.15), "none: no public code"),
    ("DeepInv-2k", "deepinversion", "resnet50", 140_000, 90, "Fast-Datafree",
     (68.00, None, None), "baselines/imagenet_deepinversion.sh; "
                           "baselines/imagenet_deepinversion_distill.sh"),
    ("FastDFKD-50", "fastdfkd_reptile", "resnet50", 140_000, 400, "Fast-Datafree",
     (68.61, 53.45, 43.02), "baselines/imagenet_fastdfkd_reptile.sh"),
    ("One-Image", "one_image", "resnet18", 1_280_000, 200, "One-Image", (66.20, None, None),
     OF_ONE_IMAGE),
    ("One-Image, R50 teacher", "one_image", "resnet50", 1_280_000, 200, "One-Image",
     (55.5, None, None), f"{OF_ONE_IMAGE} (with --teacher torchvision:resnet50 and its own --out)"),
    ("DM-KD, 140K", "dit", "resnet18", 140_000, 200, "DM-KD", (66.74, 60.10, None),
     DM_KD.format(140)),
    ("DM-KD, 200K", "dit", "resnet18", 200_000, 200, "DM-KD", (68.63, 61.61, None),
     DM_KD.format(200)),
    ("DM-KD, 1.28M", "dit", "resnet18", 1_280_000, 200, "DM-KD", (72.43, 68.25, None),
     DM_KD.format(1280)),
)
OTHERS = (  # (task, label, method, teacher, student, source, top-1, script)
    ("imagenet100", "teacher", "alone", None, "resnet18", "DM-KD", 89.6, "imagenet100_teacher.sh"),
    ("imagenet100", "One-Image", "one_image", "resnet18", "resnet50", "DM-KD", 84.4,
     "baselines/imagenet_one_image.sh; imagenet100_distill.sh --source "
     "syn_dataset/imagenet_one_image --out save/student_model/imagenet100_one_image"),
    ("imagenet100", "One-Image", "one_image", "resnet18", "resnet50", "One-Image", 66.2,
     "the same; in conflict with the 84.4, and equal to its number on ImageNet"),
    ("imagenet100", "DM-KD", "dit", "resnet18", "resnet50", "DM-KD", 85.9,
     "imagenet_synthesize.sh; imagenet100_distill.sh"),
    ("flowers102", "teacher", "alone", None, "resnet18", "DM-KD", 87.9, "flowers102_teacher.sh"),
    ("flowers102", "One-Image", "one_image", "resnet18", "resnet50", "DM-KD", 81.5,
     "baselines/imagenet_one_image.sh; flowers102_distill.sh --source "
     "syn_dataset/imagenet_one_image --out save/student_model/flowers102_one_image"),
    ("flowers102", "DM-KD", "dit", "resnet18", "resnet50", "DM-KD", 85.4,
     "imagenet_synthesize.sh; flowers102_distill.sh"),
    ("cifar100", "Generative DFD", "", None, None, "Luo", 77.02, ""),
    ("cifar100", "One-Image", "", None, None, "One-Image", 74.0, ""),
    ("cifar10", "Generative DFD", "", None, None, "Luo", 95.02, ""),
    ("cifar10", "One-Image", "", None, None, "One-Image", 94.0, ""),
    ("places365", "One-Image", "", "resnet18", "resnet50", "One-Image", 50.3, ""),
    ("pets", "One-Image", "", "resnet18", "resnet50", "One-Image", 76.8, ""),
    ("stl10", "One-Image", "", "resnet18", "resnet50", "One-Image", 93.9, ""),
    ("celeba", "DAFL", "", None, None, "DAFL", 80.56, ""),
)
SAME_AMOUNT = 0.1  # relative; an entry of about so many images is that of the row


def cells() -> list[dict]:
    """Every number, with what it is of: task, label, method, teacher, student, images, source,
    acc1. Rows of one network have no teacher."""
    found = []
    for task, rows in PAIRED.items():
        for label, method, source, accuracies, _ in rows:
            for pair, acc1 in zip(PAIRS, accuracies, strict=True):
                teacher, student = (None, pair[ALONE[label]]) if label in ALONE else pair
                found.append((task, label, method, teacher, student, None, source, acc1))
    for label, method, teacher, images, _, source, accuracies, _ in IMAGENET:
        found += [("imagenet", label, method, teacher, student, images, source, acc1)
                  for student, acc1 in zip(STUDENTS, accuracies, strict=True)]
    found += [(*row[:5], None, *row[5:7]) for row in OTHERS]
    keys = ("task", "label", "method", "teacher", "student", "images", "source", "acc1")
    return [dict(zip(keys, cell, strict=True)) for cell in found if cell[-1] is not None]


def plain_name(model: str) -> str:
    """An architecture's name as the papers have it: cifar_resnet34, torchvision:resnet34 and
    cifarresnet34 are all resnet34, vgg11_bn is vgg11."""
    name = model.split("@")[0].split(":")[-1].removeprefix("cifar").removeprefix("_")
    return name.removesuffix("_bn")


def of_same(cell: dict, task: str, method: str, teacher: str | None, student: str) -> bool:
    """Whether a number is of that task, method and pair; without a teacher where `method` is
    "alone"."""
    teacher = None if method == "alone" else plain_name(teacher or "")
    return (method in cell["method"].split() and cell["task"] == task
            and (cell["teacher"], cell["student"]) == (teacher, plain_name(student)))


def of_amount(cell: dict, images: float | None) -> bool:
    """Whether a number is of about so many images."""
    return bool(images and cell["images"]
                and abs(cell["images"] - images) <= SAME_AMOUNT * cell["images"])


def find(task: str, method: str, teacher: str | None, student: str, images: float | None
         ) -> list[dict]:
    """Published entries of a row: [{"acc1", "source", "images"}]. Of several amounts of images the
    one of about the row's, if there is one, else all.

    Args:
        method: as the tables name it.
    """
    found = [cell for cell in cells() if of_same(cell, task, method, teacher, student)]
    found = [cell for cell in found if of_amount(cell, images)] or found
    entries = [{k: cell[k] for k in ("acc1", "source", "images")} for cell in found]
    return [e for i, e in enumerate(entries) if e not in entries[:i]]
