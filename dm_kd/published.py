"""Published top-1 accuracies (percent) of the methods that can be run here, for `report` to set
beside its own: `python -m dm_kd.report --runs save/student_model --out save/report`.

Copied from the README files and logs that each entry names; none was measured here. A row is looked
up by task, teacher, student and method. To add one: a line in a table below.
"""

SOURCES = {
    "DM-KD": "README of github.com/zhengli97/DM-KD (arXiv 2305.12954)",
    "Fast-Datafree": "README and logs of github.com/zju-vipa/Fast-Datafree (arXiv 2112.06253)",
    "CMI": "README of github.com/zju-vipa/CMI (arXiv 2105.08584)",
    "One-Image": "README of github.com/yukimasano/single-img-extrapolating (arXiv 2112.00725)",
}
PAIRS = (("resnet34", "resnet18"), ("vgg11", "resnet18"), ("wrn_40_2", "wrn_16_1"),
         ("wrn_40_2", "wrn_40_1"), ("wrn_40_2", "wrn_16_2"))
SMALL = {  # task -> (method, source, top-1 of each of PAIRS)
    "cifar100": (
        ("dit", "DM-KD", (76.58, 70.83, 56.29, 65.01, 66.89)),
        ("one_image", "DM-KD", (74.56, 68.51, 34.62, 52.39, 54.71)),
        ("real", "Fast-Datafree", (77.87, 75.07, 64.06, 68.58, 70.79)),
        ("deepinversion", "Fast-Datafree", (61.32, 54.13, 53.77, 61.33, 61.34)),
        ("dafl", "Fast-Datafree", (74.47, 54.16, 20.88, 42.83, 43.70)),
        ("zskt", "Fast-Datafree", (67.74, 54.31, 36.66, 53.60, 54.59)),
        ("dfq", "Fast-Datafree", (77.01, 66.21, 51.27, 54.43, 64.79)),
        ("cmi", "CMI", (77.04, 70.56, 57.91, 68.88, 68.75)),
        ("fastdfkd", "Fast-Datafree", (74.34, 67.44, 54.02, 63.91, 65.12))),
}
ALONE = {  # task -> {model: top-1 of the model trained on the real images}
    "cifar100": ("Fast-Datafree", {"resnet34": 78.05, "vgg11": 71.32, "wrn_40_2": 75.83,
                                   "resnet18": 77.10, "wrn_16_1": 65.31, "wrn_40_1": 72.19,
                                   "wrn_16_2": 73.56}),
    "imagenet": ("Fast-Datafree", {"resnet50": 75.45, "resnet18": 68.45, "mobilenet_v2": 70.01}),
    "imagenet100": ("DM-KD", {"resnet18": 89.6}),
    "flowers102": ("DM-KD", {"resnet18": 87.9}),
}
LARGE = (  # (task, method, teacher, student, images, source, top-1)
    ("imagenet", "dit", "resnet18", "resnet50", 140_000, "DM-KD", 66.74),
    ("imagenet", "dit", "resnet18", "resnet50", 200_000, "DM-KD", 68.63),
    ("imagenet", "dit", "resnet18", "resnet50", 1_280_000, "DM-KD", 72.43),
    ("imagenet", "dit", "resnet18", "resnet18", 140_000, "DM-KD", 60.10),
    ("imagenet", "dit", "resnet18", "resnet18", 200_000, "DM-KD", 61.61),
    ("imagenet", "dit", "resnet18", "resnet18", 1_280_000, "DM-KD", 68.25),
    ("imagenet", "one_image", "resnet18", "resnet50", 1_280_000, "One-Image", 66.20),
    ("imagenet", "biggan", "resnet50", "resnet50", 215_000, "DM-KD", 64.00),
    ("imagenet", "deepinversion", "resnet50", "resnet50", 140_000, "Fast-Datafree", 68.00),
    ("imagenet", "fastdfkd_reptile", "resnet50", "resnet50", 140_000, "Fast-Datafree", 68.61),
    ("imagenet", "fastdfkd_reptile", "resnet50", "resnet18", 140_000, "Fast-Datafree", 53.45),
    ("imagenet", "fastdfkd_reptile", "resnet50", "mobilenet_v2", 140_000, "Fast-Datafree", 43.02),
    ("imagenet100", "dit", "resnet18", "resnet50", None, "DM-KD", 85.9),
    ("imagenet100", "one_image", "resnet18", "resnet50", None, "DM-KD", 84.4),
    ("flowers102", "dit", "resnet18", "resnet50", None, "DM-KD", 85.4),
    ("flowers102", "one_image", "resnet18", "resnet50", None, "DM-KD", 81.5),
)
SAME_AMOUNT = 0.1  # relative; an entry of about so many images is that of the row


def plain_name(model: str) -> str:
    """An architecture's name as the papers have it: cifar_resnet34, torchvision:resnet34 and
    cifarresnet34 are all resnet34, vgg11_bn is vgg11."""
    name = model.split("@")[0].split(":")[-1].removeprefix("cifar").removeprefix("_")
    return name.removesuffix("_bn")


def find(task: str, method: str, teacher: str | None, student: str, images: float | None
         ) -> list[dict]:
    """Published entries of a row: [{"acc1", "source", "images"}]. Of several amounts of images the
    one of about the row's, if there is one, else all.

    Args:
        method: the generator's or the online source's name; "real" = KD on real images; "alone" =
            `student` trained on real images without a teacher (`teacher` is not used then).
    """
    student = plain_name(student)
    if method == "alone":
        source, known = ALONE.get(task, ("", {}))
        return [entry(known[student], source)] if student in known else []
    pair = (plain_name(teacher or ""), student)
    found = [entry(row[PAIRS.index(pair)], source) for name, source, row in SMALL.get(task, ())
             if name == method and pair in PAIRS]
    found += [entry(acc1, source, count) for t, name, *models, count, source, acc1 in LARGE
              if (t, name, *models) == (task, method, *pair)]
    same = [e for e in found if images and e["images"]
            and abs(e["images"] - images) <= SAME_AMOUNT * e["images"]]
    return same or found


def entry(acc1: float, source: str, images: int | None = None) -> dict:
    return {"acc1": acc1, "source": source, "images": images}
