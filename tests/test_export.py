"""export: what is written gives the same logits when it is read again."""

import json

import pytest
import torch

from dm_kd import export, models


def exported(folder, out, *flags):
    return export.main(["--run", str(folder), "--out", str(out), *flags])


def test_the_exported_folder_is_a_teacher_with_the_same_logits(teacher_folder, tmp_path, digits):
    assert exported(teacher_folder, tmp_path / "out") == 0
    x = torch.randn(3, 1, 8, 8)
    ours, theirs = (models.load_frozen(str(f), digits)[0](x)
                    for f in (tmp_path / "out", teacher_folder))
    assert torch.equal(ours, theirs)
    card = json.loads((tmp_path / "out" / "model.json").read_text())
    assert card["class_names"] == list(digits.class_names) and card["mean"] == list(digits.mean)


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
