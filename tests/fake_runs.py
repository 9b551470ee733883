"""Run folders as distill and train_teacher write them, without training."""

import json

import yaml

DIT = {"name": "dit", "weights_sha256": "ab", "trained_on": "real training images of digits"}


def write_run(folder, acc1, *, seed=0, fold=0, teacher="cnn_w32", student="cnn_w8", source="real",
              generator=None, images=1000, teacher_acc1=98.0, **config):
    """A finished run of distill; of train_teacher with teacher=None."""
    folder.mkdir(parents=True)
    kind = "student" if teacher else "model"
    models = {"teacher": f"save/{teacher}", "source": source} if teacher else {}
    (folder / "config.yaml").write_text(yaml.safe_dump({
        "task": "digits", "epochs": 4, "seed": seed, "fold": fold, kind: student, **models,
        **config, "inputs": {"source_images": images}}))
    (folder / f"{kind}.json").write_text(json.dumps({
        "num_classes": 10, "generator": generator, "teacher": {"name": teacher}}))
    (folder / "result.json").write_text(json.dumps({
        "acc1": acc1, "best_acc1": acc1, "teacher_acc1": teacher_acc1, "agreement": acc1,
        "seconds": 9.0, "command": f"python -m dm_kd.distill --out {folder.name}",
        "commit": "0123", "versions": {"torch": "2.14"}, "hardware": {"cpu": "a processor"}}))
    return folder


def write_study(root, seeds=(0, 1, 2)):
    """A grid of s and T with inspected sets, amounts of images, teachers and epochs of the
    generator, a rival, a baseline."""
    for seed in seeds:
        place = root / f"seed{seed}"
        write_run(place / "real", 97 + 0.2 * seed, seed=seed, images=1500)
        write_run(place / "alone", 96 + 0.3 * seed, seed=seed, teacher=None)
        write_run(place / "dafl", 40 + seed, seed=seed, source="dafl", images=None)
        for s in (1.0, 2.0, 4.0):
            for steps in (5, 50):
                write_run(place / f"s{s:g}_T{steps}", 95 - s + steps / 50 + seed / 3, seed=seed,
                          source=f"sets/s{s:g}_T{steps}",
                          generator={**DIT, "guidance_scale": s, "steps": steps})
        for n in (10, 100):
            write_run(place / f"real_{n}", 90 + n / 30, seed=seed, images=10 * n,
                      images_per_class=n)
        for width, epochs in ((4, 6), (8, 15), (16, 60)):
            write_run(place / f"from_w{width}", 90 + width / 10 + seed / 5, seed=seed,
                      teacher=f"cnn_w{width}", teacher_acc1=90.0 + width / 2, temperature=8.0,
                      generator={**DIT, "epochs": epochs})
    for s in (1, 2, 4):
        for steps in (5, 50):
            (root / f"inspect_s{s}_T{steps}.json").write_text(json.dumps({
                "set": f"sets/s{s}_T{steps}", "fold": 0, "frechet": 3.0 + s / steps,
                "recall": 0.9 - s / 20, "teacher_agreement": 90.0 + s}))
