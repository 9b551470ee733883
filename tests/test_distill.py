"""Several teachers as one."""

import json
import types

import pytest
import torch
import yaml

from dm_kd import augment, distill, engine, image_set, models, objectives
from dm_kd.errors import UserError
from dm_kd.tasks import first_per_class, get_task, load_real

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
