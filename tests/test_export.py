"""export: what is written gives the same logits when it is read again."""

import json
import types

import pytest
import torch

from dm_kd import export, models, run


def exported(folder, out, *flags):
    return export.main(["--run", str(folder), "--out", str(out), "--device", "cpu",
                        "--threads", "1", *flags])


def test_the_exported_folder_is_a_teacher_with_the_same_logits(teacher_folder, tmp_path, digits):
    assert exported(teacher_folder, tmp_path / "out") == 0
    x = torch.randn(3, 1, 8, 8)
    ours, theirs = (models.load_frozen(str(f), digits)[0](x)
                    for f in (tmp_path / "out", teacher_folder))
    assert torch.equal(ours, theirs)
    card = json.loads((tmp_path / "out" / "model.json").read_text())
    assert card["class_names"] == list(digits.class_names) and card["mean"] == list(digits.mean)


def test_a_student_of_torchvision_is_exported_too(tmp_path):
    task = types.SimpleNamespace(name="x", num_classes=3, channels=3, resolution=32, large=False,
                                 class_names=("a", "b", "c"))
    student = models.build("torchvision:squeezenet1_1", task)
    run.write_with_card(tmp_path / "run", "student", student.state_dict(), {
        "model": "torchvision:squeezenet1_1", "task": "x", "num_classes": 3, "resolution": 32,
        "class_names": ["a", "b", "c"], "mean": [0.5] * 3, "std": [0.5] * 3, "fold": None})
    assert exported(tmp_path / "run", tmp_path / "out") == 0
    again, _ = models.load_frozen(str(tmp_path / "out"), task)
    assert all(torch.equal(v, student.state_dict()[k]) for k, v in again.state_dict().items())


def test_onnx_takes_any_number_of_images_from_0_to_1(teacher_folder, tmp_path, digits):
    onnx = pytest.importorskip("onnx")
    pytest.importorskip("onnxscript")
    assert exported(teacher_folder, tmp_path / "out", "--onnx") == 0
    from onnx.reference import ReferenceEvaluator

    network = ReferenceEvaluator(onnx.load(tmp_path / "out" / "model.onnx"))
    images = torch.rand(5, 1, 8, 8)
    logits = torch.from_numpy(network.run(None, {"images": images.numpy()})[0].copy())
    teacher, _ = models.load_frozen(str(teacher_folder), digits)
    with torch.no_grad():
        expected = teacher((images - digits.mean[0]) / digits.std[0])
    assert (logits - expected).abs().max() < 1e-4 * expected.abs().max()


def test_a_run_that_is_not_finished_and_the_run_itself_are_refused(teacher_folder, tmp_path):
    (tmp_path / "config.yaml").write_text("seed: 0\n")
    assert exported(tmp_path, tmp_path / "out") == 2
    assert exported(teacher_folder, teacher_folder) == 2
    assert exported(teacher_folder, tmp_path / "out", "--dry-run") == 0
    assert not (tmp_path / "out").exists()
