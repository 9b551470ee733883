"""What is distilled from what: several teachers as one, labels that fit, parts of sets."""

import json
import types

import pytest
import torch
import yaml
from PIL import Image

from dm_kd import (
    augment,
    distill,
    engine,
    image_set,
    models,
    objectives,
    synthesize,
    train_teacher,
)
from dm_kd.errors import UserError
from dm_kd.sources import stored
from dm_kd.tasks import absent_classes, first_per_class, get_task, load_real

RECIPE = ["--task", "digits", "--student", "cnn_w4", "--epochs", "1", "--batch-size", "32",
          "--amp", "none", "--no-label-check", "--device", "cpu", "--threads", "1",
          "--temperature", "4"]


class Fixed(torch.nn.Module):
    def __init__(self, logits):
        super().__init__()
        self.logits = torch.tensor(logits)

    def forward(self, x):
        return self.logits.expand(len(x), -1)


@pytest.fixture
def trained(tmp_path, noise_folder):
    """f(name, *flags) -> the run's folder."""

    def train(name, *flags):
        argv = [*RECIPE, "--source", str(noise_folder), "--cache", str(tmp_path / "cache"), "--out",
                str(tmp_path / name), *map(str, flags)]
        assert distill.main(argv) == 0
        return tmp_path / name

    return train


@pytest.mark.parametrize(("flags", "mixed"), [
    (("--objective", "dkd"), True), (("--objective", "kd", "--label-weight", "0.1"), True),
    (("--objective", "kd"), False)])
def test_an_objective_that_reads_labels_gets_those_of_the_mixed_images(
        trained, teacher_folder, monkeypatch, flags, mixed):
    name, seen = flags[1], []
    real, mix_labels = objectives.OBJECTIVES[name], augment.mix_labels
    shares = []
    monkeypatch.setitem(objectives.OBJECTIVES, name, lambda s, t, labels, tau: (
        seen.append(labels), real(s, t, labels, tau))[1])
    monkeypatch.setattr(augment, "mix_labels", lambda *a: (
        shares.append(mix_labels(*a)), shares[-1])[1])
    trained("run", "--source", "real", "--steps-per-epoch", "5", "--teacher", teacher_folder,
            "--mixup", "1", *flags)
    assert len(seen) == 5  # steps
    assert [labels.ndim for labels in seen] == [2 if mixed else 1] * 5
    assert all(a is b for a, b in zip(seen, shares, strict=True)) if mixed else not shares


def judging(**changes):
    return types.SimpleNamespace(**{"fold": 0, "val": "val", "student": "cnn_w4", "seed": 0}
                                 | changes)


@pytest.mark.parametrize(("fold", "val", "changes", "seen"), [
    (0, "val", {}, False), (1, "val", {}, True), (0, "val", {"val": "dev"}, True),
    (0, "none", {"val": "dev"}, True), (0, "dev", {"val": "dev"}, False), (0, "dev", {}, False),
    (1, "dev", {"val": "dev"}, True), (1, "val", {"val": "none"}, False),
    (None, None, {"val": "dev"}, False)])
def test_a_teacher_or_generator_that_may_have_seen_what_is_judged_is_noted(digits, fold, val,
                                                                          changes, seen):
    args = judging(**changes)
    note = distill.teacher_seen(args, {"fold": fold, "val": val})
    assert bool(note) == seen == (note or "").startswith("note: the teacher was trained for fold")
    made = {"trained_on": f"real training images of digits, fold {fold} (--val {val})"}
    note = stored.seen_note(made, digits, args)
    assert bool(note) == seen == (note or "").startswith("note: the set's generator was trained")
    for other in (None, {}, {"trained_on": None}, {"trained_on": "ImageNet"},
                  {"trained_on": f"real training images of cifar100, fold {fold} (--val {val})"}):
        assert stored.seen_note(other, digits, args) is None


def test_a_student_that_begins_as_its_teacher_began_is_noted(trained, tmp_path):
    teacher = tmp_path / "teacher"
    assert train_teacher.main(["--task", "digits", "--model", "cnn_w4", "--epochs", "1",
                               "--steps-per-epoch", "1", "--device", "cpu", "--seed", "3",
                               "--out", str(teacher)]) == 0
    for seed, noted in ((3, True), (4, False)):
        run = trained(f"seed{seed}", "--teacher", teacher, "--seed", seed)
        assert ("both begin with the same weights" in (run / "log.txt").read_text()) == noted


def test_real_images_without_their_labels_have_none(distill_args, digits):
    args = distill_args(source="real", source_labels="none")
    _, labels, _ = distill.load_source(args, digits)
    assert labels.unique().tolist() == [-1]


def weights(folder):
    return (folder / "student.safetensors").read_bytes()


@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_the_soft_labels_are_the_mean_of_the_teachers_softened_outputs(temperature):
    logits = [[2.0, 0.0, -1.0], [0.0, 3.0, 1.0], [1.0, 1.0, 1.0]]
    one = distill.Averaged([Fixed(row) for row in logits], temperature)
    soft = [torch.tensor(row).div(temperature).softmax(0) for row in logits]
    expected = torch.stack(soft).mean(0)
    found = (one(torch.zeros(2, 1)) / temperature).softmax(1)
    assert torch.allclose(found, expected.expand(2, 3), atol=1e-6)


def test_two_teachers_at_temperature_1_have_the_hand_computed_logits():
    one = distill.Averaged([Fixed([0.0, 0.0]), Fixed([1.0986123, 0.0])], 1.0)  # 1/2, 1/2; 3/4, 1/4
    expected = torch.tensor([[5 / 8, 3 / 8]]).log()
    assert torch.allclose(one(torch.zeros(1, 1)), expected, atol=1e-6)


def test_equal_teachers_teach_what_one_of_them_does():
    logits, student = [2.0, 0.0, -1.0], torch.randn(1, 3)
    one = distill.Averaged([Fixed(logits)] * 3, 4.0)(torch.zeros(1, 1))
    assert objectives.kd(student, one, None, 4.0).item() == pytest.approx(
        objectives.kd(student, torch.tensor([logits]), None, 4.0).item(), rel=1e-5)


def test_extreme_logits_stay_finite():
    one = distill.Averaged([Fixed([1e4, -1e4]), Fixed([-1e4, 1e4])], 1.0)
    assert torch.isfinite(one(torch.zeros(1, 1))).all()


def test_several_flags_and_one_list_are_the_same_and_the_card_names_all(trained, teacher_folder):
    flags = trained("flags", "--teacher", teacher_folder, "--teacher", "cnn_w8@none")
    listed = trained("list", "--teacher", f"{teacher_folder},cnn_w8@none")
    alone = trained("alone", "--teacher", teacher_folder)
    assert weights(flags) == weights(listed) != weights(alone)
    card = json.loads((flags / "student.json").read_text())["teacher"]
    assert card["name"] == "cnn_w4 + cnn_w8"
    assert [t["spec"] for t in card["teachers"]] == [str(teacher_folder), "cnn_w8@none"]
    assert "teachers" not in json.loads((alone / "student.json").read_text())["teacher"]
    settings = yaml.safe_load((flags / "config.yaml").read_text())
    assert settings["teacher"] == f"{teacher_folder},cnn_w8@none"
    again = distill.parse(["--config", str(flags / "config.yaml"), "--out", "x"])
    assert again.teacher == settings["teacher"]


def test_typed_teachers_replace_those_of_the_config(tmp_path):
    config = tmp_path / "c.yaml"
    config.write_text("teacher: a,b\ntask: digits\nsource: real\nstudent: cnn_w4\nout: x\n")
    assert distill.parse(["--config", str(config)]).teacher == "a,b"
    assert distill.parse(["--config", str(config), "--teacher", "c"]).teacher == "c"
    assert distill.parse(["--config", str(config), "--teacher=c", "--teacher=d"]).teacher == "c,d"


def test_a_path_may_hold_a_comma(tmp_path):
    (tmp_path / "a,b").mkdir()
    assert distill.teacher_specs(str(tmp_path / "a,b")) == [str(tmp_path / "a,b")]
    assert distill.teacher_specs("a,b") == ["a", "b"] and distill.teacher_specs("") == [""]


def test_the_temperature_of_several_teachers_is_part_of_their_kept_logits(trained, teacher_folder,
                                                                          tmp_path):
    both = ("--teacher", f"{teacher_folder},cnn_w8@none", "--cache-teacher")
    for name, tau in (("a", 4), ("b", 2), ("c", 4)):
        trained(name, *both, "--temperature", tau)
    assert len(list((tmp_path / "cache").glob("teacher_*"))) == 2
    for name, tau in (("d", 4), ("e", 2)):
        trained(name, "--teacher", teacher_folder, "--cache-teacher", "--temperature", tau)
    assert len(list((tmp_path / "cache").glob("teacher_*"))) == 3


def test_the_source_is_known_by_its_pixels_where_it_has_no_digest():
    args = types.SimpleNamespace(source="real", temperature=1.0)
    digest = [distill.logits_digests(args, Fixed([0.0]), {"name": "t"}, images, {})["source"]
              for images in (torch.zeros(3, 1, 8, 8), torch.ones(3, 1, 8, 8))]
    assert digest[0] != digest[1]


def test_what_is_judged_goes_to_the_device_as_what_is_learned_from(trained, teacher_folder,
                                                                   monkeypatch):
    seen = []
    monkeypatch.setattr(distill, "resident", lambda images, labels, device: seen.append(
        len(images)) or (images, labels))
    folder = trained("run", "--teacher", teacher_folder)
    judged = json.loads((folder / "result.json").read_text())["val_images"]
    assert len(seen) == 2 and seen[1] == judged


def test_a_drawn_part_of_the_real_images_is_what_the_student_sees(distill_args, digits):
    args = distill_args(images_per_class=10, subset_seed=3)
    images, labels, inputs = distill.load_source(args, digits)
    real = load_real(digits, "train")
    drawn = first_per_class(real.labels, 10, seed=3)
    assert torch.equal(images, real.images[drawn]) and torch.equal(labels, real.labels[drawn])
    assert inputs["source_images"] == 100


def test_real_images_of_another_task_are_resized_and_have_no_classes_here():
    real = load_real(get_task("digits"), "train").images
    images, labels, _ = distill.load_other("digits", get_task("fashion_mnist"))
    assert images.shape == (len(real), 1, 28, 28) and images.dtype == torch.uint8
    assert set(labels.tolist()) == {-1}
    assert (images[:, :, ::7, ::7].float() - real[:, :, ::2, ::2]).abs().mean() < 60  # the same
    same, _, _ = distill.load_other("digits", get_task("digits"))
    assert torch.equal(same, real)


@pytest.mark.parametrize(("name", "task", "message"), [
    ("cifar100", "digits", "takes no images of cifar100"), ("digits", "imagenet", "by name"),
    ("imagenet", "cifar100", "by name"), ("digit", "digits", "unknown task")])
def test_images_of_another_kind_or_of_no_task_are_refused(name, task, message):
    with pytest.raises(UserError, match=message):
        distill.load_other(name, get_task(task))


def test_a_student_learns_from_another_tasks_images(trained, teacher_folder, capsys):
    flags = ("--source", "real:digits", "--teacher", teacher_folder)
    folder = trained("run", *flags, "--steps-per-epoch", "2")
    result = json.loads((folder / "result.json").read_text())
    assert result["budget"]["images_kept"] == len(load_real(get_task("digits"), "train").labels)
    capsys.readouterr()
    trained("other", *flags, "--dry-run")
    assert "not made yet)" in capsys.readouterr().out.replace("; source", "?")  # out only


@pytest.mark.parametrize("source, told", [
    ("dfal", "did you mean dafl"), ("fastdkfd", "did you mean fastdfkd"),
    ("dafl", "(not made yet)"),
    ("syn_dataset/later", "source syn_dataset/later not made yet")])
def test_a_dry_run_tells_a_misspelt_method_from_a_set_to_be_made(
        trained, teacher_folder, capsys, source, told):
    flags = ("run", "--source", source, "--teacher", teacher_folder, "--dry-run")
    if told.startswith("did"):
        with pytest.raises(AssertionError, match="2 == 0"):
            trained(*flags)
        assert told in capsys.readouterr().err
    else:
        trained(*flags)
        assert told in capsys.readouterr().out


def test_blind_agreement_is_that_on_the_images_of_the_set_that_were_left_out(
        trained, teacher_folder, noise_folder, digits):
    folder = trained("run", "--teacher", teacher_folder, "--images-per-class", "3")
    found = json.loads((folder / "result.json").read_text())["blind_agreement"]
    pixels, _ = image_set.packed(image_set.open_set(noise_folder), folder / "cache", lambda n: None)
    assert len(pixels) == 40
    view, device = engine.plain_view(digits), torch.device("cpu")
    tops = [engine.predict(models.load_frozen(str(f), digits)[0], pixels[30:], view, device,
                           "none").argmax(1) for f in (folder, teacher_folder)]
    assert found == pytest.approx(100 * (tops[0] == tops[1]).double().mean().item())
    whole = trained("whole", "--teacher", teacher_folder)
    assert json.loads((whole / "result.json").read_text())["blind_agreement"] is None


# --- the teacher against the labels ---------------------------------------------------------------

class Level(torch.nn.Module):
    """Sees the class in the grey level: class c is 20 c."""

    def forward(self, x):
        level = (x[:, 0].mean((1, 2)) * 0.3760 + 0.3053) * 255
        return torch.nn.functional.one_hot((level / 20).round().long(), 10).float()


def levels(count=100):
    """Images of `count` and their right labels."""
    labels = torch.arange(count) % 10
    return (20 * labels).to(torch.uint8)[:, None, None, None].expand(-1, 1, 8, 8), labels


def right_for(labels, right):
    """The labels with all but the first `right` wrong."""
    return torch.where(torch.arange(len(labels)) < right, labels, (labels + 1) % 10)


def checked(args, digits, labels, val_labels=None, task=None):
    """Notes of check_teacher; args of the fixture distill_args."""
    images, _ = levels()
    val = None if val_labels is None else types.SimpleNamespace(images=images, labels=val_labels)
    return distill.check_teacher(args, task or digits, engine.make_view(digits, args, False),
                                 Level(), images, labels, val, torch.device("cpu"))


UNKNOWN = torch.full((100,), -1)


@pytest.mark.parametrize(("right", "passes"), [(15, False), (25, True)])
@pytest.mark.parametrize("which", ["source", "validation"])
def test_a_teacher_below_twice_chance_is_refused_and_one_above_is_not(distill_args, digits, right,
                                                                      passes, which):
    labels = right_for(levels()[1], right)
    both = (labels, None) if which == "source" else (UNKNOWN, labels)
    if passes:
        assert checked(distill_args(), digits, *both) == [
            f"teacher agrees with the labels of 25.0 % of 100 {which} images"]
    else:
        with pytest.raises(UserError, match=f"15.0 % of the {which} labels, chance is 10.0 %"):
            checked(distill_args(), digits, *both)


def test_permuted_labels_of_the_source_are_found(distill_args, digits):
    images, labels = levels()
    with pytest.raises(UserError, match="0.0 % of the source labels") as error:
        checked(distill_args(), digits, (labels + 3) % 10, labels)
    assert "the images are bad" in str(error.value) and "100.0 %" in str(error.value)
    assert "real" in str(error.value) and "--teacher" not in str(error.value)
    for val_labels in ((labels + 3) % 10, None):
        with pytest.raises(UserError, match="wrong class order"):
            checked(distill_args(), digits, (labels + 3) % 10, val_labels)


def test_permuted_validation_labels_are_found_beside_right_ones_of_the_source(distill_args, digits):
    images, labels = levels()
    with pytest.raises(UserError, match="0.0 % of the validation labels") as error:
        checked(distill_args(data="val.txt"), digits, labels, (labels + 3) % 10)
    assert "it agrees with the source's" in str(error.value) and "val.txt" in str(error.value)
    assert len(checked(distill_args(), digits, labels, labels)) == 2
    assert checked(distill_args(no_label_check=True), digits, labels, (labels + 3) % 10) == []


@pytest.mark.parametrize(("right", "passes"), [(70, False), (80, True)])
def test_of_two_classes_a_teacher_need_not_be_right_always(distill_args, digits, right, passes):
    images, labels = levels()
    two = types.SimpleNamespace(num_classes=2)
    labels = torch.where(torch.arange(100) < right, labels, (labels + 1) % 10)
    if passes:
        assert len(checked(distill_args(), digits, labels, task=two)) == 1
    else:
        with pytest.raises(UserError, match="chance is 50.0 %"):
            checked(distill_args(), digits, labels, task=two)


@pytest.mark.parametrize("remedy", ["--no-label-check", "--teacher"])
def test_after_a_refused_teacher_the_advice_works_in_the_same_folder(tmp_path, capsys, remedy,
                                                                     teacher_folder):
    argv = ["--task", "digits", "--source", "real", "--student", "cnn_w4", "--epochs", "1",
            "--steps-per-epoch", "2", "--batch-size", "32", "--amp", "none", "--device", "cpu",
            "--threads", "1", "--out", str(tmp_path / "run")]
    assert distill.main([*argv, "--teacher", "cnn_w4@none"]) == 2
    assert "chance is 10.0 %" in capsys.readouterr().err and not (tmp_path / "run").exists()
    more = (["--teacher", "cnn_w4@none", remedy] if remedy == "--no-label-check" else
            [remedy, str(teacher_folder)])
    assert distill.main([*argv, *more]) == 0
    log = (tmp_path / "run" / "log.txt").read_text()
    assert ("validation images" in log) == (remedy == "--teacher")


# --- sets of other classes ------------------------------------------------------------------------

def of_set(names, task_names, classes=None, task="folder"):
    """(labels, note) of a set with an image of each of its classes."""
    classes = list(range(len(names))) if classes is None else classes
    manifest = {"task": task, "classes": classes, "class_names": names}
    ours = types.SimpleNamespace(name="folder", class_names=tuple(task_names))
    labels, note = stored.set_labels(manifest, torch.tensor(classes), ours)
    return labels.tolist(), note


@pytest.mark.parametrize(("names", "classes", "expected", "said"), [
    (["ant", "cat", "dog"], None, [0, 1, 2], None),
    (["cat", "dog"], [1, 2], [1, 2], None),  # --classes 1,2 of the same task
    (["dog", "cat", "ant"], None, [2, 1, 0], "by name"), (["dog", "cat"], None, [2, 1], "by name"),
    (["ant", "cat", "eel"], None, [-1, -1, -1], "first: eel"),
    (["ant", "bee", "cat", "dog"], None, [-1] * 4, "1 of its 4"),
    (["ant", "cat"], [0, 1, 2], [-1] * 3, "not used"), (7, [0, 1], [-1, -1], "not used")])
def test_a_sets_labels_go_by_name_or_are_unknown(names, classes, expected, said):
    labels, note = of_set(names, ["ant", "cat", "dog"], classes)
    assert labels == expected and (note is None if said is None else said in note)


def test_a_set_of_another_task_has_unknown_labels_whatever_its_names():
    assert of_set(["ant", "cat"], ["ant", "cat"], task="pets") == ([-1, -1], None)


def test_an_older_set_without_names_keeps_its_labels_where_these_are_the_tasks():
    ours = types.SimpleNamespace(name="folder", class_names=("a", "b"))
    for classes, expected in (([0, 1], [0, 1]), ([0, 1, 2], [-1] * 3)):
        manifest = {"task": "folder", "classes": classes}
        assert stored.set_labels(manifest, torch.tensor(classes), ours)[0].tolist() == expected


def test_a_set_of_more_classes_than_the_task_has_is_no_traceback(tmp_path, capsys):
    for root, names in (("three", ("ant", "cat", "dog")), ("two", ("cat", "dog"))):
        for name in names:
            for k in range(2):
                path = tmp_path / root / "train" / name / f"{k}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.new("RGB", (40, 40), (100 * k, 90, 80)).save(path)
    common = ["--task", "folder", "--device", "cpu", "--threads", "1"]
    assert synthesize.main([*common, "--data", str(tmp_path / "three"), "--generator", "noise",
                            "--images-per-class", "2", "--out", str(tmp_path / "set")]) == 0
    argv = [*common, "--data", str(tmp_path / "two"), "--source", str(tmp_path / "set"),
            "--teacher", "cnn_w4@none", "--student", "cnn_w4", "--epochs", "1", "--batch-size", "2",
            "--val", "none", "--cache", str(tmp_path / "cache"), "--out", str(tmp_path / "run")]
    assert distill.main([*argv, "--label-weight", "0.1"]) == 2
    assert "known labels" in capsys.readouterr().err and not (tmp_path / "run").exists()
    assert distill.main(argv) == 0
    assert "labels are not used: 1 of its 3" in (tmp_path / "run" / "log.txt").read_text()


# --- classes without images -----------------------------------------------------------------------

def test_classes_without_an_image_are_counted_and_the_first_is_named(digits):
    labels = torch.tensor([0, 1, 2, 4, 5, 6, 7, 8, -1])
    assert absent_classes(labels, digits, "source") == (
        "source images: 2 of 10 classes have no image, first: 3")
    assert absent_classes(torch.arange(10), digits, "source") is None
    assert absent_classes(torch.tensor([-1, -1]), digits, "source") is None


def test_a_source_that_lacks_classes_says_so_in_the_log(tmp_path, teacher_folder):
    real = load_real(get_task("digits"), "train")
    (tmp_path / "few").mkdir()
    for c in (0, 2, 3):
        for k, image in enumerate(real.images[real.labels == c][:4]):
            Image.fromarray(image[0].numpy()).save(tmp_path / f"few/class_{c}_seed_0_num_{k}.png")
    assert distill.main(["--task", "digits", "--source", str(tmp_path / "few"), "--student",
                         "cnn_w4", "--epochs", "1", "--batch-size", "4", "--amp", "none",
                         "--device", "cpu", "--threads", "1", "--teacher", str(teacher_folder),
                         "--cache", str(tmp_path / "cache"), "--no-label-check", "--out",
                         str(tmp_path / "run")]) == 0
    log = (tmp_path / "run" / "log.txt").read_text()
    assert "source images: 7 of 10 classes have no image, first: 1" in log
    assert "validation images:" not in log


def test_train_teacher_draws_the_same_part_as_distill(tmp_path, monkeypatch, digits):
    seen, real = [], train_teacher.StoredSource
    monkeypatch.setattr(train_teacher, "StoredSource", lambda images, labels, *rest: seen.append(
        (images, labels)) or real(images, labels, *rest))
    argv = ["--task", "digits", "--model", "cnn_w4", "--epochs", "1", "--steps-per-epoch", "1",
            "--batch-size", "16", "--amp", "none", "--device", "cpu", "--threads", "1",
            "--subset-seed", "3"]
    assert train_teacher.main([*argv, "--out", str(tmp_path / "none")]) == 2
    argv += ["--images-per-class", "10", "--out", str(tmp_path / "run")]
    assert train_teacher.main(argv) == 0
    whole = load_real(digits, "train")
    drawn = first_per_class(whole.labels, 10, seed=3)
    [(images, labels)] = seen
    assert torch.equal(images, whole.images[drawn]) and torch.equal(labels, whole.labels[drawn])
