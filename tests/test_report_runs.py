"""Reading runs for the report: what is a trial of what, and whatever else lies in the folder."""

import json
import os
from pathlib import Path

import pytest
import yaml
from fake_runs import DIT, write_run

from dm_kd import report_runs, report_statistics


def read(root):
    trials, problems = report_runs.find_trials(root)
    return trials, {Path(p["place"]).name: p["state"] for p in problems}


def change(run, name, **fields):
    record = json.loads((run / name).read_text())
    (run / name).write_text(json.dumps({**record, **fields}))


@pytest.mark.parametrize("name, row", [
    ("real_seed3", "real"), ("fold2_real", "real"), ("x_gen1_set2_seed0", "x"), ("gen1_x", "x"),
    ("dataset3", "dataset3"), ("manifold3_x", "manifold3_x"), ("unfold2", "unfold2"),
    ("fold0_seed1_dit", "dit"), ("x_set2b", "x_set2b"), ("seed0", "seed0"), ("oxygen2", "oxygen2")])
def test_the_name_of_a_row_is_the_folder_without_its_numbers(name, row):
    assert report_runs.row_name(Path("runs") / name) == row


@pytest.mark.parametrize("place, source, key", [
    ("a_seed1", "real", (None, None, 1)), ("gen2/a", "s", (2, None, 1)),
    ("gen2/a_set1", "s", (2, 1, 1)), ("a", "syn/digits_gen3_set0", (3, 0, 1)),
    ("dataset3/a", "syn/offset4", (None, None, 1))])
def test_generator_and_set_are_known_from_the_folders_or_the_source(tmp_path, place, source, key):
    write_run(tmp_path / place, seed=1, source=source)
    assert read(tmp_path)[0][0]["replicate"] == key


def test_trials_of_one_row_share_their_folders_without_numbers(tmp_path):
    for place in ("fold0_seed0/a", "fold1_seed0/a", "b/seed1/a"):
        write_run(tmp_path / place, fold=int("fold1" in place))
    rows = [trial["row"] for trial in read(tmp_path)[0]]
    assert rows[0] == ("digits", "distill", "b", "a")
    assert rows[1] == rows[2] == ("digits", "distill", "a")


def test_the_settings_of_a_row_come_from_config_and_card(tmp_path):
    write_run(tmp_path / "any name", source="syn/x", per_class=20, temperature=7.0,
              generator={**DIT, "guidance_scale": 1.5, "steps": 50})
    settings = read(tmp_path)[0][0]["settings"]
    assert (settings["guidance_scale"], settings["steps"], settings["images"]) == (1.5, 50, "dit")
    assert settings["images_per_class"] == 20 and settings["temperature"] == 7.0
    assert settings["teacher"] == "cnn_w32" and settings["generator's sampler"] == "ddpm"


def test_the_amount_of_images_is_counted_by_the_tasks_classes(tmp_path):
    """50 of each of ImageNet's 1,000 classes are 500 for each of CIFAR-100's."""
    write_run(tmp_path / "made", per_class=5000, images_per_class=50, source="syn/x", generator=DIT)
    write_run(tmp_path / "real", per_class=50, images_per_class=50)
    amounts = {t["name"]: t["settings"]["images_per_class"] for t in read(tmp_path)[0]}
    assert amounts == {"made": 5000, "real": 50}


def test_a_digest_that_is_no_text_is_told_apart_all_the_same(tmp_path):
    for seed, digest in enumerate(([1], {"a": 1}, [1])):
        write_run(tmp_path / f"a_seed{seed}", seed=seed, source="syn/x",
                  generator={**DIT, "weights_sha256": digest})
    trials, problems = read(tmp_path)
    assert not problems and report_statistics.compare(trials, None, 0)["generators"] == 2


PUBLIC = {"name": "biggan", "licence": "Apache-2.0"}
OWN = {**DIT, "trained_on": "real training images of digits, fold 0 (--val val)"}


@pytest.mark.parametrize("source, generator, per_class, method, information", [
    ("real", None, 10, "real", "teacher + the task's real images"),
    ("dafl", None, None, "dafl", "teacher only"),
    ("syn/n", {"name": "noise"}, 10, "noise", "teacher only"),
    ("syn/i", {"name": "deepinversion"}, 10, "deepinversion", "teacher only"),
    ("syn/o", {"name": "one_image"}, 10, "one_image", "teacher + public prior: one picture"),
    ("syn/t", {"name": "text_to_image", "licence": "unknown"}, 10, "text_to_image",
     "teacher + public prior: a text-to-image model"),
    ("pictures", None, 10, "folder", "teacher + public prior: a folder"),
    ("real:digits", None, 10, "folder", "teacher + public prior: real images of digits"),
    ("syn/d", OWN, 10, "dit", "teacher + a generator trained on the task's data"),
    ("syn/d", OWN | {"teacher_guidance": 1.0}, 10, "dit",
     "teacher + a generator trained on the task's data"),
    ("syn/d", DIT, 10, "dit", "teacher + public prior: a generator trained on ImageNet"),
    ("syn/d", DIT | {"licence": "unknown"}, 10, "dit",
     "teacher + public prior: a generator trained on unknown images"),
    ("syn/d", OWN | {"trained_on": "faces"}, 10, "dit",
     "teacher + public prior: a generator trained on faces")])
def test_what_the_images_came_from_is_known_without_names(tmp_path, source, generator, per_class,
                                                          method, information):
    write_run(tmp_path / "run", source=source, generator=generator, per_class=per_class)
    trial = read(tmp_path)[0][0]
    assert trial["settings"]["images"] == method
    assert report_runs.information(trial) == information


@pytest.mark.parametrize("task, generator, information", [
    ("imagenet", DIT, "teacher + a generator trained on the task's data"),
    ("imagenet100", PUBLIC, "teacher + a generator trained on the task's data"),
    ("cifar100", PUBLIC, "teacher + public prior: a generator trained on ImageNet"),
    ("fashion_mnist", OWN, "teacher + public prior: a generator trained on digits")])
def test_a_public_generator_is_the_tasks_own_where_it_learnt_the_tasks_images(
        tmp_path, task, generator, information):
    write_run(tmp_path / "run", source="syn/x", generator=generator, task=task)
    assert report_runs.information(read(tmp_path)[0][0]) == information


def test_a_model_that_was_trained_alone_saw_the_images_and_their_labels(tmp_path):
    write_run(tmp_path / "run", teacher=None)
    assert report_runs.information(read(tmp_path)[0][0]) == "the task's real images and labels"


@pytest.mark.parametrize("embeddings, information", [
    ("onehot", "teacher only"),
    ("openai/clip", "teacher + public prior: embeddings of the class names")])
def test_embeddings_of_class_names_are_a_public_prior(tmp_path, embeddings, information):
    write_run(tmp_path / "run", source="nayer", per_class=None, label_embeddings=embeddings)
    assert report_runs.information(read(tmp_path)[0][0]) == information


@pytest.mark.parametrize("source, generator, settings, method", [
    ("fastdfkd", None, {"inner_steps": 5}, "fastdfkd-5"), ("fastdfkd", None, {}, "fastdfkd-10"),
    ("true_dataset/places365", None, {}, "places365"), ("pictures", None, {}, ""),
    ("adi", None, {}, "adi"), ("syn/x", DIT, {}, "dit"), ("syn/x", OWN, {}, ""),
    ("syn/x", DIT | {"teacher_guidance": 1.0}, {}, ""), ("syn/x", PUBLIC, {}, "biggan"),
    ("real", None, {}, "real"), ("real", None, {"images_per_class": 9}, "")])
def test_only_the_methods_that_were_published_have_their_name(tmp_path, source, generator, settings,
                                                              method):
    online = source in ("fastdfkd", "adi")
    write_run(tmp_path / "run", source=source, generator=generator,
              per_class=None if online else 10, **settings)
    assert report_runs.published_method(read(tmp_path)[0][0]) == method


@pytest.mark.parametrize("source, generator, making, pretraining", [
    ("real", None, "", None), ("real:digits", None, "", None), ("dafl", None, "in minutes", 0),
    ("syn/x", DIT, "?", None), ("syn/x", {"name": "noise"}, "?", 0), ("pictures", None, "?", None)])
def test_seconds_that_are_not_recorded_are_none_needed_part_of_the_run_or_unknown(
        tmp_path, source, generator, making, pretraining):
    write_run(tmp_path / "run", source=source, generator=generator,
              per_class=None if source == "dafl" else 10)
    trial = read(tmp_path)[0][0]
    assert report_runs.making_words(trial) == making
    assert report_runs.pretraining(trial) == pretraining


def test_an_unfinished_run_says_how_far_it_is(tmp_path):
    run = write_run(tmp_path / "later")
    (run / "result.json").unlink()
    trials, problems = report_runs.find_trials(tmp_path)
    assert trials == [] and problems[0]["state"] == "not finished"
    assert problems[0]["why"] == "epoch 8 of 4, Acc@1 89.6 %"


@pytest.mark.parametrize("name, content, state", [
    ("result.json", '{"acc1": 9', "damaged"), ("result.json", "[]", "damaged"),
    ("result.json", "{}", "damaged"), ("result.json", '{"acc1": NaN, "val_images": 9}', "damaged"),
    ("result.json", '{"acc1": "high", "val_images": 9}', "damaged"),
    ("result.json", '{"acc1": 120, "val_images": 9}', "damaged"),
    ("result.json", '{"acc1": 12, "val_images": 0}', "damaged"),
    ("result.json", "[" * 100_000, "damaged"),
    ("result.json", '{"acc1": null, "val_images": 0}', "not judged"),
    ("config.yaml", "a: [", "damaged"), ("config.yaml", "- 1", "damaged"),
    ("config.yaml", "model_type: bert", "foreign"), ("config.yaml", "seed: {a: 1}", "foreign"),
    ("config.yaml", "seed: zero\ntask: digits\nteacher: t", "damaged"),
    ("config.yaml", "seed: 0\nteacher: t", "damaged"),
    ("metrics.jsonl", "{}\n", "damaged"), ("student.json", "7", "damaged"),
    ("predictions.json", '{"ids": [1], "groups": [], "labels": [1], "predictions": [1]}',
     "damaged"),
    ("predictions.json", '{"ids": [1]}', "damaged"),
    ("predictions.json", '{"ids": [[1]], "groups": [0], "labels": [1], "predictions": [1]}',
     "damaged")])
def test_what_is_not_as_a_run_writes_it_is_named_and_the_others_stay(tmp_path, name, content,
                                                                     state):
    write_run(tmp_path / "whole")
    (write_run(tmp_path / "hurt") / name).write_text(content)
    trials, states = read(tmp_path)
    assert [t["name"] for t in trials] == ["whole"] and states == {"hurt": state}


def test_bytes_that_are_no_text_are_damage(tmp_path):
    (write_run(tmp_path / "hurt") / "config.yaml").write_bytes(b"\xff\xfe\x00seed")
    assert read(tmp_path) == ([], {"hurt": "damaged"})


def test_a_config_of_aliases_that_multiply_costs_nothing(tmp_path):
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]" for i in range(1, 12)]
    run = write_run(tmp_path / "run")
    (run / "config.yaml").write_text((run / "config.yaml").read_text() + "\n".join(lines))
    trials, states = read(tmp_path)
    assert len(trials) == 1 and states == {} and "a11" not in trials[0]["config"]


def test_numbers_of_a_wrong_kind_are_left_empty(tmp_path):
    change(write_run(tmp_path / "run"), "result.json", agreement="x", seconds=None,
           budget={"images_kept": "many"})
    result = read(tmp_path)[0][0]["result"]
    assert result["agreement"] is None and result["budget"] == {"images_kept": None}


def test_the_same_trial_twice_counts_once(tmp_path):
    write_run(tmp_path / "a_seed0")
    write_run(tmp_path / "seed0" / "a")
    trials, states = read(tmp_path)
    assert len(trials) == 1 and list(states.values()) == ["twice"]


def test_a_generators_run_is_no_row_and_no_problem(tmp_path):
    place = tmp_path / "generator"
    place.mkdir()
    (place / "config.yaml").write_text(yaml.safe_dump({"seed": 0, "task": "digits", "steps": 5}))
    (place / "result.json").write_text('{"steps": 5}')
    assert read(tmp_path) == ([], {})


def test_image_sets_and_hidden_folders_are_not_searched(tmp_path):
    for place in ("set/images", ".trash"):
        write_run(tmp_path / place / "run")
    (tmp_path / "set" / "manifest.json").write_text("{}")
    assert read(tmp_path) == ([], {})


def test_a_damaged_inspection_is_named_and_infinite_numbers_are_nothing(tmp_path):
    (tmp_path / "inspect.json").write_text('{"sentence": "good", "frechet": Infinity}')
    (tmp_path / "inspect_2.json").write_text('{"frechet": 1}')
    problems = []
    found = report_runs.find_inspections(tmp_path, problems)
    assert [f["frechet"] for f in found] == [None] and problems[0]["state"] == "damaged"


@pytest.mark.parametrize("name", ["config.yaml", "result.json", "predictions.json"])
def test_a_pipe_in_place_of_a_file_is_named_and_not_read(tmp_path, name):
    path = write_run(tmp_path / "hurt") / name
    path.unlink()
    os.mkfifo(path)
    trials, problems = report_runs.find_trials(tmp_path)
    assert trials == [] and problems[0]["why"] == f"{name} is no regular file below --runs"


def test_a_link_out_of_the_runs_is_not_followed(tmp_path):
    (tmp_path / "runs").mkdir()
    secret = tmp_path / "secret.png"
    secret.write_bytes(report_runs.PNG + b"secret")
    for name, target in (("inspect", secret), ("inspect_2", tmp_path / "gone")):
        (tmp_path / "runs" / f"{name}.json").write_text('{"sentence": "a set"}')
        (tmp_path / "runs" / f"{name}.png").symlink_to(target)
    problems = []
    assert report_runs.find_inspections(tmp_path / "runs", problems) == [] and len(problems) == 2
    for name in ("inspect", "inspect_2"):
        (tmp_path / "runs" / f"{name}.png").unlink()
    (tmp_path / "runs" / "inspect.png").symlink_to("other.png")
    (tmp_path / "runs" / "other.png").write_bytes(report_runs.PNG)
    (tmp_path / "runs" / "inspect_2.png").write_bytes(b"no picture")
    found = report_runs.find_inspections(tmp_path / "runs", problems)
    assert [bool(f["picture"]) for f in found] == [True, False] and len(problems) == 2


def test_real_images_with_and_without_a_subset_differ_in_their_amount_only(tmp_path):
    write_run(tmp_path / "real_10", per_class=10, images_per_class=10, subset_seed=0)
    write_run(tmp_path / "real_all", per_class=145, images_per_class=None, subset_seed=None)
    some, every = (trial["settings"] for trial in read(tmp_path)[0])
    assert {k for k in some if some[k] != every[k]} == {"images_per_class"}


def test_a_steered_set_is_not_described_as_plain_dit(tmp_path):
    plain = {**DIT, "guidance_scale": 1.5, "steps": 50}
    write_run(tmp_path / "a" / "run", source="syn/d", generator=plain | {"teacher_guidance": 1.0})
    write_run(tmp_path / "b" / "run", source="syn/d", generator=plain)
    said = [report_runs.describe(read(tmp_path / name)[0][0]) for name in "ab"]
    assert said[0].endswith("(dit, s=1.5, T=50, teacher-guided)")
    assert said[1].endswith("(dit, s=1.5, T=50)")


@pytest.mark.parametrize("settings, words", [
    ({}, "KD from cnn_w32"), ({"objective": "mse"}, "KD (mse) from cnn_w32"),
    ({"label_weight": 1.0}, "cross-entropy"), ({"label_weight": 0.0}, "KD from cnn_w32"),
    ({"label_weight": 0.1, "objective": "dkd"}, "KD (dkd, label weight 0.1) from cnn_w32")])
def test_the_loss_of_a_row_is_said_where_it_is_not_kd_alone(tmp_path, settings, words):
    write_run(tmp_path / "run", **settings)
    assert report_runs.describe(read(tmp_path)[0][0]) == f"cnn_w8, {words} on real images"
