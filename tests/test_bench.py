"""The benchmarks at tiny sizes: equivalence is checked, the record has its fields. Speed is not
judged here."""

import importlib.util
import json
import types

import pytest
import torch

from dm_kd import frozen, models
from dm_kd.bench import distillation, measure, synthesis
from dm_kd.errors import UserError

COMMON = {"bench", "settings", "device", "hardware", "versions", "commit", "dtype"}
DISTILL = ["--parts", "small", "--teacher", "wrn_16_2", "--student", "wrn_16_1", "--batch-size",
           "32", "--classes", "10", "--repeats", "1", "--threads", "1", "--device", "cpu"]
SAMPLE = ["--steps", "3", "--batch-size", "4", "--width", "32", "--depth", "2", "--repeats", "1",
          "--threads", "1", "--device", "cpu"]


@pytest.fixture(autouse=True)
def small_ceiling(monkeypatch):
    monkeypatch.setattr(measure, "CEILING_SIZE", 64)


def test_distillation_checks_gradients_and_writes_its_record(tmp_path, capsys):
    assert distillation.main([*DISTILL, "--out", str(tmp_path)]) == 0
    record = json.loads((tmp_path / "distillation.json").read_text())
    assert COMMON | {"equivalence", "rows", "ratios", "ceiling_gflops", "amp"} <= record.keys()
    exact = record["equivalence"]["A with only no_grad changed: gradient error"]
    assert exact["value"] <= exact["limit"] == 1e-6
    assert len(record["rows"]) == 7 and "goal" in capsys.readouterr().out
    assert record["equivalence"]["ours with cached teacher logits: 1 - cosine"]["value"] <= 1e-5
    assert [r["goal"] for r in record["ratios"]] == [5.0, 5.0, 12.0, 12.0, 0.95]
    assert all({"median", "q25", "q75"} <= row["ratio_cpu"].keys() for row in record["rows"])


def test_the_large_step_and_the_loader_are_compared_and_recorded(tmp_path, monkeypatch):
    monkeypatch.setattr(distillation, "STORED", 40)
    monkeypatch.setattr(distillation, "LARGE", 32)
    assert distillation.main(["--parts", "large,loader", "--large-network", "wrn_16_1",
                              "--large-batch-size", "4", "--loader-images", "6", "--repeats", "1",
                              "--threads", "1", "--device", "cpu", "--out", str(tmp_path)]) == 0
    record = json.loads((tmp_path / "distillation.json").read_text())
    assert COMMON - {"dtype"} <= record.keys() and "rows" not in record
    assert record["large"]["ratios"][0]["goal"] == 2.5 and len(record["large"]["rows"]) >= 6
    check, = record["loader"]["equivalence"].values()
    assert 0 < check["value"] <= check["limit"] == 2
    assert [r["goal"] for r in record["loader"]["ratios"]] == [5.0, 5.0]


def test_other_crops_are_no_equivalent_loader(tmp_path, monkeypatch, capsys):
    cut = distillation.augment.resized_crops
    monkeypatch.setattr(distillation.augment, "resized_crops",
                        lambda images, boxes, *rest: cut(images, boxes.roll(1, 0), *rest))
    monkeypatch.setattr(distillation, "STORED", 40)
    assert distillation.main(["--parts", "loader", "--loader-images", "3", "--device", "cpu",
                              "--out", str(tmp_path)]) == 2
    assert "not equivalent" in capsys.readouterr().err and not list(tmp_path.iterdir())


def test_the_gpu_part_runs_at_small_size(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(distillation.engine, "COMPILER", "eager")
    monkeypatch.setattr(distillation, "GPU_PAIRS", ((("wrn_16_1", "wrn_16_1"), 9000.0, 45000.0),))
    assert distillation.main([
        "--parts", "gpu", "--gpu-batch-size", "16", "--gpu-pixels", "28",
        "--gpu-steps", "1", "--repeats", "1", "--threads", "1", "--device", "cpu", "--out",
        str(tmp_path)]) == 0
    gpu = json.loads((tmp_path / "distillation.json").read_text())["gpu"]
    pair, = gpu["pairs"]
    assert pair["goal"] == 9000 and pair["wall"] == 45000 and not pair["reached"]
    assert pair["share_of_wall_percent"] == pytest.approx(
        100 * pair["images_per_second"]["ours"] / 45000)
    assert len(pair["ratios"]) == 2 and gpu["crops_per_second"] > 0
    assert "% of the wall" in capsys.readouterr().out


def test_an_unknown_part_of_a_benchmark_is_refused(capsys):
    assert distillation.main(["--parts", "small,loder"]) == 2
    assert "loder" in capsys.readouterr().err


def test_synthesis_checks_images_and_writes_its_record(tmp_path):
    pytest.importorskip("diffusers")
    assert synthesis.main([*SAMPLE, "--out", str(tmp_path)]) == 0
    record = json.loads((tmp_path / "synthesis.json").read_text())
    assert record.keys() >= COMMON | {"results"}
    for result, scale in zip(record["results"], (2, 1), strict=True):
        checks = result["equivalence"]
        assert result["guidance_scale"] == scale and len(result["rows"]) == 3
        patched = [c for name, c in checks.items() if "patched" in name]
        assert len(patched) == 3 and all(c["value"] <= c["limit"] for c in patched)


def test_synthesis_runs_without_diffusers_and_says_so(tmp_path, monkeypatch, capsys):
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec",
                        lambda name, *a: None if name == "diffusers" else find(name, *a))
    assert synthesis.main([*SAMPLE, "--out", str(tmp_path)]) == 0
    record = json.loads((tmp_path / "synthesis.json").read_text())
    assert "diffusers is not installed" in capsys.readouterr().out
    assert not record["diffusers"] and len(record["results"][0]["rows"]) == 1


def test_no_speed_is_printed_when_the_results_differ(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(distillation.objectives, "kd",
                        lambda s, t, labels, tau: (s.float() * torch.randn(s.shape)).mean())
    assert distillation.main([*DISTILL, "--out", str(tmp_path)]) == 2
    out, err = capsys.readouterr()
    assert "not equivalent" in err and "images/s" not in out and not list(tmp_path.iterdir())


def test_nan_is_not_equivalent():
    with pytest.raises(UserError, match="not equivalent"):
        measure.require({"x": {"value": float("nan"), "limit": 1.0}})


@pytest.mark.parametrize("name", ["wrn_16_2", "resnet8x4", "resnet14", "cnn_w8",
                                  "torchvision:resnet18", "torchvision:mobilenet_v2"])
def test_a_fused_teacher_computes_the_same_logits(name):
    torch.manual_seed(0)
    teacher = models.build(name, types.SimpleNamespace(name="x", num_classes=10, channels=3))
    with torch.no_grad():
        for _ in range(3):  # statistics that are not 0 and 1
            teacher(torch.randn(16, 3, 32, 32))
    teacher.eval().requires_grad_(False)
    before = {key: value.clone() for key, value in teacher.state_dict().items()}
    fused = frozen.prepare(teacher, torch.randn(4, 3, 32, 32), "none")
    assert fused is not teacher and not fused.training
    for batch in (8, 1, 8):  # packed for the first size, right for all
        x = torch.randn(batch, 3, 32, 32).contiguous(memory_format=torch.channels_last)
        expected = teacher(x)
        assert (fused(x) - expected).abs().max() <= 1e-5 * expected.abs().max()
    assert all(torch.equal(before[key], value) for key, value in teacher.state_dict().items())


def test_a_teacher_that_cannot_be_fused_stays_as_it_is():
    class Odd(torch.nn.Module):
        def forward(self, x):
            return x.mean((2, 3)) if x.sum() > 0 else x.amax((2, 3))

    teacher, x = Odd(), torch.randn(2, 3, 8, 8)
    assert frozen.prepare(teacher, x, "none") is teacher
    wrn = models.build("wrn_16_1", types.SimpleNamespace(num_classes=10, channels=3)).eval()
    assert frozen.prepare(wrn, torch.randn(2, 3, 32, 32), "bf16") is wrn
