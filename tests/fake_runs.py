"""Run folders as distill and train_teacher write them, without training, for the report's tests."""

import json

import numpy as np
import yaml

DIT = {"name": "dit", "weights_sha256": "ab" * 32, "licence": "CC-BY-NC 4.0", "trained_on": None,
       "sampler": "ddpm", "guided_channels": "3", "dtype": "fp32"}
RECIPE = {"task": "digits", "epochs": 4, "batch_size": 64, "learning_rate": 0.1, "objective": "kd",
          "temperature": 4.0, "mixup": 0.0, "threads": 1, "device": "cpu", "val": "val"}


def guesses(acc1: float, images: int, seed: int) -> tuple[list[int], list[int]]:
    """Labels of ten classes in turn, and answers of which `acc1` percent (rounded) are right."""
    labels = np.arange(images) % 10
    wrong = np.random.default_rng(seed).permutation(images)[round(images * acc1 / 100):]
    answers = labels.copy()
    answers[wrong] = (labels[wrong] + 1 + wrong % 3) % 10
    return labels.tolist(), answers.tolist()


def write_run(folder, acc1=90.0, *, seed=0, fold=0, teacher="cnn_w32", teacher_acc1=98.0,
              student="cnn_w8", source="real", generator=None, per_class=100.0, images=60,
              numbers=None, **settings):
    """A finished run of distill (of train_teacher with teacher=None) that has about `acc1` percent
    of `images` real ones right, of fold `fold`."""
    folder.mkdir(parents=True)
    labels, answers = guesses(acc1, images, numbers if numbers is not None else seed)
    acc1 = 100 * float(np.mean(np.array(labels) == answers))
    models = ({"teacher": f"save/{teacher}", "student": student, "source": source} if teacher
              else {"model": student})
    (folder / "config.yaml").write_text(yaml.safe_dump(
        {**RECIPE, "seed": seed, "fold": fold, **models, **settings}))
    card = {"num_classes": 10, "class_names": list("0123456789"), "generator": generator,
            "teacher": {"name": teacher}}
    (folder / ("student.json" if teacher else "model.json")).write_text(json.dumps(card))
    (folder / "inputs.json").write_text(json.dumps(
        {"source_images": round(10 * per_class)} if per_class else {}))
    (folder / "result.json").write_text(json.dumps({
        "acc1": acc1, "acc5": 100.0, "best_acc1": acc1 + 0.1 if acc1 < 99 else acc1,
        "teacher_acc1": teacher_acc1 if teacher else None, "agreement": acc1 if teacher else None,
        "val_images": images, "images_seen": 256, "seconds": 90.0, "seed": seed,
        "budget": {"images_kept": round(10 * (per_class or 0)), "student_steps": 4,
                   "generator_evaluations": 40_000 if generator else 0, "teacher_passes": 256,
                   "student_passes": 256, "seconds": 90.0},
        "hardware": {"cpu": "a processor", "cores": 2}, "versions": {"torch": "2.15.0"},
        "commit": "0123456789ab", "command": f"python -m dm_kd.distill --out {folder.name}"}))
    rows = [{"epoch": e, "val_acc1": acc1 * (1 - 0.5 ** e)} for e in range(1, 9)]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "predictions.json").write_text(json.dumps({
        "ids": [fold * images + i for i in range(images)], "labels": labels,
        "groups": [10 * fold + i % 10 for i in range(images)], "predictions": answers}))
    return folder


def write_study(root, seeds=(0, 1, 2), scales=(0, 1, 2, 4), steps=(5, 20, 100), make_set=None):
    """Runs that vary on every axis of the report: s x T with inspections, teachers x students,
    amounts of real and of synthetic images, rivals. make_set(name) -> the source of a cell."""
    make_set = make_set or (lambda name: f"syn_dataset/{name}")
    for seed in seeds:
        place = root / f"seed{seed}"
        for s in scales:
            for t in steps:
                acc1 = 95 - 2 * abs(s - 1) + 2 * np.log10(t) + 0.4 * seed
                write_run(place / f"s{s}_T{t}", acc1, seed=seed, source=make_set(f"s{s}_T{t}"),
                          generator={**DIT, "guidance_scale": float(s), "steps": t})
        for n in (10, 40, 160, 640):
            write_run(place / f"real_{n}", 70 + 9 * np.log10(n) + seed, seed=seed, per_class=n,
                      images_per_class=n)
            write_run(place / f"made_{n}", 62 + 9.5 * np.log10(n) + seed, seed=seed, per_class=n,
                      images_per_class=n, source=make_set("s1_T20"), temperature=8.0,
                      generator={**DIT, "guidance_scale": 1.5, "steps": 50})
        for width, strength in ((4, 90.0), (8, 94.0), (16, 97.0), (64, 98.5)):
            for student in ("cnn_w4", "cnn_w16"):
                write_run(place / f"{student}_from_w{width}", 60 + strength / 3 + width % 7,
                          seed=seed, student=student, teacher=f"cnn_w{width}",
                          teacher_acc1=strength, objective="dkd")
        write_run(place / "dafl", 71 + seed, seed=seed, source="dafl", per_class=None)
        write_run(place / "teacher", 98, seed=seed, teacher=None, student="cnn_w32")
    for s in scales:
        for t in steps:
            (root / f"inspect_s{s}_T{t}.json").write_text(json.dumps({
                "set": make_set(f"s{s}_T{t}"), "images": 1000, "frechet": 3 + s / t,
                "frechet_train_to_val": 0.5,
                "precision": 0.5 + s / 20, "recall": 0.9 - s / 20, "teacher_entropy": 0.3,
                "teacher_agreement": 90.0 + s, "sentence": f"a set of s={s}, T={t}",
                "generator": {"guidance_scale": s, "steps": t}}))
