"""The benchmarks at tiny sizes: equivalence is checked, the record has its fields. Speed is not
judged here."""

import importlib.util
import json
import re
import types
from pathlib import Path

import pytest
import torch

from dm_kd import files, frozen, models, run
from dm_kd.bench import distillation, full_size, ladder, measure, rivals, synthesis
from dm_kd.errors import UserError
from dm_kd.tasks import get_task

COMMON = {"bench", "settings", "device", "hardware", "versions", "commit", "dtype"}
DISTILL = ["--parts", "small", "--teacher", "wrn_16_2", "--student", "wrn_16_1", "--batch-size",
           "32", "--classes", "10", "--repeats", "1", "--threads", "1", "--device", "cpu"]
SAMPLE = ["--steps", "3", "--batch-size", "4", "--width", "32", "--depth", "2", "--repeats", "1",
          "--threads", "1", "--device", "cpu", "--ladder-images", "0"]


@pytest.fixture(autouse=True)
def small_ceiling(monkeypatch):
    monkeypatch.setattr(measure, "CEILING_SIZE", 64)


def test_distillation_checks_gradients_and_writes_its_record(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(distillation.engine, "resolve_amp", lambda *_: "none")  # on all processors
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
    assert "not equivalent" in capsys.readouterr().err
    record = json.loads((tmp_path / "distillation.json").read_text())
    assert record["loader"].keys() == {"refused", "equivalence"}


def test_a_part_that_is_refused_or_breaks_leaves_the_others_record(tmp_path, monkeypatch, capsys):
    def refuse(*args):
        measure.require({"good": {"value": 0.0, "limit": 1.0}, "bad": {"value": 2.0, "limit": 1.0},
                         "worse": {"value": 3.0, "limit": 1.0}})

    def breaks(*args):
        raise RuntimeError("no memory")

    monkeypatch.setattr(distillation, "small_part", refuse)
    monkeypatch.setattr(distillation, "loader_part", lambda *args: {"rows": [1]})
    command = ["--device", "cpu", "--out", str(tmp_path), "--parts"]
    assert distillation.main([*command, "small,loader"]) == 2
    record = json.loads((tmp_path / "distillation.json").read_text())
    assert record["loader"] == {"rows": [1]} and record["small"]["refused"].endswith("bad")
    assert record["small"]["equivalence"]["worse"] == {"value": 3.0, "limit": 1.0}
    assert capsys.readouterr().err.count("not equivalent: bad") == 2  # at once, and at the end
    monkeypatch.setattr(distillation, "large_part", breaks)
    with pytest.raises(RuntimeError):
        distillation.main([*command, "loader,large"])
    assert json.loads((tmp_path / "distillation.json").read_text())["loader"] == {"rows": [1]}


def test_on_a_gpu_its_part_comes_first_and_elsewhere_not_at_all(tmp_path, monkeypatch):
    order, cuda = [], types.SimpleNamespace(type="cuda")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    monkeypatch.setattr(distillation, "unless_refused", lambda part, refused: {})
    monkeypatch.setattr(measure, "record", lambda args, *rest: order.append(args.parts))
    for device in (cuda, torch.device("cpu")):
        monkeypatch.setattr(run, "use_device", lambda args, device=device: device)
        assert distillation.main(["--out", str(tmp_path)]) == 0
    assert order == ["gpu,small,large,loader"] * 4 + ["small,large,loader"] * 3


def test_bfloat16_gradients_of_a_deep_pair_pass_and_those_of_other_views_do_not():
    torch.manual_seed(0)
    names, side = ("torchvision:resnet18", "torchvision:resnet50"), 35
    teacher, student = distillation.make_networks(*names, 10, side, 4)
    teacher.requires_grad_(False)
    x, labels = torch.randn(4, 3, side, side), torch.zeros(4, dtype=torch.int64)

    def step(views, bf16):
        sgd = torch.optim.SGD(student.parameters(), lr=0.1)
        return lambda: distillation.simple_step(student, teacher, sgd, views, labels, bf16)

    steps = {distillation.ORIGINAL: step(x, False), "bf16": step(x, True),
             "mirrored bf16": step(x.flip(3), True)}
    checks = distillation.equivalence(steps, dict.fromkeys(steps, student), "bf16", deep=True)
    measure.require({"x": checks["bf16: 1 - cosine"]})
    with pytest.raises(UserError, match="not equivalent"):
        measure.require({"x": checks["mirrored bf16: 1 - cosine"]})


def test_the_gpu_part_runs_at_small_size(tmp_path, monkeypatch, capsys):
    real = distillation.simple_step
    monkeypatch.setattr(distillation.engine, "COMPILER", "eager")
    pairs = ((("wrn_16_1", "wrn_16_1"), 9000.0, 14000.0, 45000.0, 40.0),
             (("wrn_16_1", "cnn_w4"), 1e-3, 2e-3, 1.0, None))
    monkeypatch.setattr(distillation, "GPU_PAIRS", pairs)
    monkeypatch.setattr(distillation, "simple_step", lambda s, t, o, x, labels, bf16: real(
        s, t, o, x.flip(3) if t.fc.in_features != s.fc.in_features else x, labels, bf16))
    assert distillation.main([
        "--parts", "gpu", "--gpu-batch-size", "16", "--gpu-pixels", "28", "--gpu-images", "24",
        "--gpu-steps", "2", "--repeats", "1", "--threads", "1", "--device", "cpu", "--out",
        str(tmp_path)]) == 2
    gpu = json.loads((tmp_path / "distillation.json").read_text())["gpu"]
    pair, other = gpu["pairs"]
    assert other["pair"] == ["wrn_16_1", "cnn_w4"] and "not equivalent" in other["refused"]
    assert pair["goal"] == 9000 and pair["wall"] == 45000 and not pair["reached"]
    assert pair["share_of_wall_percent"] == pytest.approx(
        100 * pair["images_per_second"]["ours"] / 45000)
    assert pair["compile_seconds"] > 0 < pair["warm_up_seconds"]
    assert len(pair["ratios"]) == 2 and gpu["crops_per_second"] > 0
    speed = pair["images_per_second"]
    assert pair["minutes_of_a_run"] == pytest.approx(
        100 * (200_000 / speed["ours"] + 50_000 / speed["ours, judging"]) / 60)
    out = capsys.readouterr().out
    for said in ("goal 9,000 images/s MISSED, aim 14,000 MISSED", "% of the wall of 45,000",
                 "100 epochs of 200,000 images, 50,000 judged in each", "goal 40 MISSED",
                 "ours is", f"goal {distillation.GPU_CROPS:,}"):
        assert said in out, said


def test_the_timed_epoch_of_a_gpu_gathers_crops_and_steps(tmp_path, monkeypatch):
    """It is engine.train_one_epoch: other images in each step, and the student moves."""
    monkeypatch.setattr(distillation.engine, "COMPILER", "eager")
    args = types.SimpleNamespace(seed=0, gpu_batch_size=8, gpu_pixels=28, gpu_images=24,
                                 out=tmp_path)
    view = distillation.engine.View((0.5,) * 3, (0.25,) * 3, 28, crop=True, flip=True)
    variants, students = distillation.gpu_variants(args, torch.device("cpu"),
                                                   ("wrn_16_1", "wrn_16_1"), view)
    seen, student = [], students[distillation.OURS]
    before = student.fc.weight.detach().clone()
    student.register_forward_pre_hook(lambda module, x: seen.append(x[0].clone()))
    variants[distillation.OURS](3)
    assert len(seen) == 3 and not torch.equal(seen[0], seen[1])
    assert not torch.equal(student.fc.weight, before)


def test_kernel_settings_are_put_back():
    before = (torch.are_deterministic_algorithms_enabled(), torch.backends.cudnn.allow_tf32)
    with pytest.raises(KeyError), distillation.torch_settings(True, tf32=False):
        assert torch.are_deterministic_algorithms_enabled()
        assert torch.is_deterministic_algorithms_warn_only_enabled()
        assert torch.backends.cudnn.enabled and not torch.backends.cudnn.allow_tf32
        raise KeyError
    assert before == (torch.are_deterministic_algorithms_enabled(),
                      torch.backends.cudnn.allow_tf32)


@pytest.mark.parametrize("names", [
    pair for pair, *_ in distillation.GPU_PAIRS] + [("wrn_40_2", "wrn_16_1")])
def test_the_networks_of_every_part_can_be_made(names):
    teacher, student = distillation.make_networks(*names, 10, 32, 4)
    assert not teacher.training and student.training
    assert teacher(torch.zeros(1, 3, 32, 32)).shape == (1, 10)


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
        assert result["guidance_scale"] == scale and len(result["rows"]) == 5
        patched = [c for name, c in checks.items() if "patched" in name]
        assert len(patched) == 3 and all(c["value"] <= c["limit"] for c in patched)


def test_synthesis_runs_without_diffusers_and_says_so(tmp_path, monkeypatch, capsys):
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec",
                        lambda name, *a: None if name == "diffusers" else find(name, *a))
    assert synthesis.main([*SAMPLE, "--out", str(tmp_path)]) == 0
    record = json.loads((tmp_path / "synthesis.json").read_text())
    assert "diffusers is not installed" in capsys.readouterr().out
    assert not record["diffusers"] and len(record["results"][0]["rows"]) == 3


def test_the_original_style_loop_makes_our_images_from_the_same_noise():
    args = types.SimpleNamespace(size=8, channels=1, width=32, depth=2, heads=2, classes=10,
                                 steps=6, batch_size=4)
    check = synthesis.original_equivalence(synthesis.make_model(args), args, 2.0,
                                           torch.device("cpu"))
    (found,) = check.values()
    assert found["value"] < 1e-6 and found["limit"] <= 1e-5


def test_the_ladder_is_zero_for_the_exact_rung_and_small_for_bf16(tmp_path, teacher_folder):
    args = types.SimpleNamespace(size=8, channels=1, width=32, depth=3, heads=2, classes=10)
    torch.manual_seed(0)
    model = synthesis.make_model(args)
    files.write_with_card(tmp_path / "dit", "dit", model.state_dict(), {
        "model": "dit", "task": "digits", "config": model.config, "clip": True, "licence": "none"})
    args = types.SimpleNamespace(generator_run=str(tmp_path / "dit"), teacher=str(teacher_folder),
                                 ladder_images=12, ladder_steps=6, threads=1, out=tmp_path)
    rows = {row["rung"]: row for row in ladder.climb(args, torch.device("cpu"))}
    few = {name for name, row in rows.items() if row["images"] == 3}
    assert few <= {ladder.LIMIT, ladder.FP8} and ladder.FP8 in few
    assert {name for name, row in rows.items() if row["frechet_to_exact"] is None} == few
    exact, low = rows[ladder.EXACT], rows["bf16 network, fp32 state"]
    assert exact["kl_to_exact"] == 0 and abs(exact["frechet_to_exact"]) < 1e-6
    assert exact["forwards"] == 12 and rows["3 steps"]["forwards"] == 6
    assert exact["trajectory_error"] is None and 0 < low["trajectory_error"] < 0.2
    assert 0 < rows["fp8 products in the inner blocks"]["trajectory_error"] < 0.5
    assert rows["guidance in 0.2-0.8 only"]["forwards"] == 6 + 4  # of t = 999, 799 ... 0


def test_the_ladder_shows_the_students_of_the_recorded_sweep(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(ladder, "STUDENTS", tmp_path / "results.json")
    assert ladder.student_accuracies(100) == {}
    files.write_json(ladder.STUDENTS, {"rows": [
        {"name": "teacher", "acc1_mean": None},
        {"name": "exact", "acc1_mean": 95.13, "interval": [94.8, 95.5]},
        {"name": "t50", "acc1_mean": 94.0, "interval": None}]})
    assert ladder.student_accuracies(50) == {}  # of other steps than the ladder's
    found = ladder.student_accuracies(100)
    figures = dict.fromkeys(("trajectory_error", "frechet_to_exact", "frechet_to_real")) | {
        "images": 9, "agreement": 90.0, "entropy": 0.1, "kl_to_exact": 0.0, "forwards": 2,
        "seconds": 1.0}
    ladder.show([{"rung": rung, "student": found.get(ladder.SWEPT[rung])} | figures
                 for rung in (ladder.EXACT, "50 steps", ladder.FP8)])
    lines = capsys.readouterr().out.splitlines()
    assert lines[1].endswith("  95.13 [94.80, 95.50]") and lines[2].endswith("  94.00")
    assert lines[3].endswith("1.0  ")


def test_the_ladder_names_the_ways_of_the_sweep(monkeypatch):
    """A rung's row of the sweep is the one with the rung's flags."""
    text = Path(__file__).with_name("..").joinpath(
        "scripts", "sweeps", "approximations_study.sh").read_text().replace("$2", "100")
    ways = dict(re.findall(r"^    (\w+)\) echo \"(.*)\" ;;$", text, re.M))
    flags = {ladder.EXACT: "--steps 100", "50 steps": "--steps 50", ladder.FP8: "--steps 100 --fp8",
             ladder.DPM: "--sampler dpm++ --steps 25"}
    assert {rung: ways[ladder.SWEPT[rung]] for rung in flags} == flags
    assert set(ladder.SWEPT.values()) <= ways.keys()
    assert ways["together"] == "--sampler dpm++ --steps 25 --guidance-interval 0.2-0.8 --fp8"


def test_each_rung_is_warmed_up_before_it_is_timed(tmp_path, teacher_folder, monkeypatch):
    calls = []
    latents = ladder.dit.DiTGenerator.latents
    monkeypatch.setattr(ladder.dit.DiTGenerator, "latents", lambda self, *batch: calls.append(
        (self.model, self.settings["steps"])) or latents(self, *batch))
    model = synthesis.make_model(types.SimpleNamespace(size=8, channels=1, width=32, depth=2,
                                                       heads=2, classes=10))
    monkeypatch.setattr(ladder, "trained", lambda args, device: (
        model, True, models.load_frozen(str(teacher_folder), get_task("digits"))[0]))
    ladder.climb(types.SimpleNamespace(ladder_images=4, ladder_steps=6), torch.device("cpu"))
    assert len(calls) % 2 == 0
    for (warm, steps), (timed, _) in zip(calls[::2], calls[1::2], strict=True):
        assert warm is timed and steps == 2


def test_the_ladders_8_bit_network_is_the_bf16_one_as_gpus_demand():
    args = types.SimpleNamespace(size=8, channels=1, width=32, depth=3, heads=2, classes=10)
    eight = ladder.rungs(synthesis.make_model(args), 4)["fp8 products in the inner blocks"][0]
    assert {eight.blocks[0].attn.qkv.weight.dtype, eight.blocks[1].attn.qkv.bias.dtype} == {
        torch.bfloat16}


def test_the_full_size_bench_runs_on_the_cpu_at_small_size(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(full_size.SMALL, "backend", "aot_eager")
    assert synthesis.main([*SAMPLE, "--guidance-scale", "1", "--full-size", "small", "--out",
                           str(tmp_path)]) == 0
    record = json.loads((tmp_path / "synthesis.json").read_text())
    found = record["full_size"]
    assert found["sweep"][0]["batch"] == 2 and found["sweep"][0]["ceiling_percent"] > 0
    rows = {row["variant"]: row for row in found["rows"]}
    assert {full_size.ORIGINAL, "exact, T = 4", "exact, T = 6", "fp8, T = 4"} <= rows.keys()
    assert all(row["images_per_second"]["median"] > 0 for row in rows.values())
    assert rows[full_size.ORIGINAL]["ratio_to_original"]["median"] == pytest.approx(1)
    assert 0 < found["bf16_error"] < 0.2
    out = capsys.readouterr().out
    assert "images/s" in out and "bf16 network, fp32 state: x_0 differs" in out
    assert "s=1: x_0 of the bf16 network with fp32 state" in out  # also without a ladder
    assert 0 < record["seconds"] < 1000 and " s in all" in out
    if importlib.util.find_spec("diffusers"):
        assert rows[full_size.RIVAL]["ratio_to_diffusers"]["median"] == pytest.approx(1)
        assert rows[full_size.RIVAL]["images"] in full_size.SMALL.sweep


def test_ratios_are_those_of_one_round_and_goal_aim_and_wall_are_printed(capsys):
    times = {"exact, T = 100": {"wall": [8.0, 16.0], "warm_up": 3.0},
             full_size.ORIGINAL: {"wall": [10.0, 40.0]}, full_size.RIVAL: {"wall": [4.0, 8.0]}}
    counts = {"exact, T = 100": 96, full_size.ORIGINAL: 10, full_size.RIVAL: 16}
    config = {"input_size": 32, "patch_size": 2, "width": 1152, "depth": 28}
    row = full_size.row_of("exact, T = 100", times, counts, config, full_size.XL, 1e15)
    assert row["ratio_to_original"]["median"] == pytest.approx((12 / 1 + 6 / 0.25) / 2)
    assert row["ratio_to_diffusers"]["median"] == pytest.approx(3)
    out = capsys.readouterr().out
    assert "goal 10 MISSED (aim 12), 55 % of the wall, 16.4" in out and "3.00x B" in out


def test_only_the_originals_loop_runs_in_tf32(monkeypatch):
    assert not torch.backends.cuda.matmul.allow_tf32
    seen = []
    monkeypatch.setattr(synthesis, "original_style",
                        lambda *_: seen.append(torch.backends.cuda.matmul.allow_tf32))
    runs = full_size.rivals(None, None, full_size.SMALL, torch.device("cpu"))
    runs[full_size.ORIGINAL][0]()
    assert seen == [True] and not torch.backends.cuda.matmul.allow_tf32


def test_the_needed_operations_are_the_published_ones():
    """118.62 GMAC of a forward of DiT-XL/2; embeddings and the last layer are 0.02 of it."""
    config = {"input_size": 32, "patch_size": 2, "width": 1152, "depth": 28}
    assert full_size.image_flops(config, 100) == pytest.approx(2 * 100 * 2 * 118.62e9, rel=1e-3)


def test_no_speed_is_printed_when_the_results_differ(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(distillation.objectives, "kd",
                        lambda s, t, labels, tau: (s.float() * torch.randn(s.shape)).mean())
    assert distillation.main([*DISTILL, "--out", str(tmp_path)]) == 2
    out, err = capsys.readouterr()
    assert "not equivalent" in err and "images/s" not in out
    small = json.loads((tmp_path / "distillation.json").read_text())["small"]
    assert "not equivalent" in small["refused"] and "rows" not in small
    assert any(check["limit"] and not check["value"] <= check["limit"]
               for check in small["equivalence"].values())


def test_nan_is_not_equivalent():
    with pytest.raises(UserError, match="not equivalent"):
        measure.require({"x": {"value": float("nan"), "limit": 1.0}})


@pytest.mark.parametrize("name", ["wrn_16_2", "resnet8x4", "resnet14", "cnn_w8",
                                  "torchvision:resnet18", "torchvision:mobilenet_v2"])
def test_a_fused_teacher_computes_the_same_logits(name):
    torch.manual_seed(0)
    teacher = models.build(name, types.SimpleNamespace(name="x", num_classes=10, channels=3,
                                                       resolution=32))
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


# --- the rivals' loops ----------------------------------------------------------------------------

RIVALS = ["--task", "digits", "--teacher", "cnn_w4", "--student", "cnn_w4", "--synthesis-batch",
          "8", "--batch-size", "8", "--inner-steps", "2", "--repeats", "1", "--threads", "1",
          "--device", "cpu"]


@pytest.mark.parametrize("method", rivals.METHODS)
def test_a_rivals_terms_are_those_of_the_public_loop_and_its_record_is_written(
        tmp_path, capsys, method):
    assert rivals.main([*RIVALS, "--methods", method, "--out", str(tmp_path)]) == 0
    record = json.loads((tmp_path / "rivals.json").read_text())
    assert COMMON - {"dtype"} <= record.keys()
    row, = record["rows"]
    assert row["method"] == method
    assert all(check["value"] <= check["limit"] for check in row["equivalence"].values())
    preset, _ = rivals.published(method)
    terms = preset.get("terms", ["ce_target", "bn", "tv_l2"])
    assert {key.split()[1].strip(",") for key in row["equivalence"]} == set(terms)
    assert not any("0 in both" in key for key in row["equivalence"])
    for who in ("A", "ours"):
        assert row[who]["seconds_per_1000_images"]["median"] > 0
    assert {"median", "q25", "q75"} <= row["ratio_images"].keys() & row["ratio_step"].keys()
    assert method in capsys.readouterr().out


@pytest.mark.parametrize(("method", "term"), [("dafl", "act"), ("fastdfkd", "bn_ema"),
                                              ("nayer", "adv_dad"), ("fastdfkd", "ce_target"),
                                              ("cmi", "bn"), ("adi", "tv_l1"),
                                              ("diffdfkd", "bn"), ("diffdfkd", "adv_dad")])
def test_a_rival_with_another_loss_is_not_timed(tmp_path, monkeypatch, capsys, method, term):
    real = rivals.plain_terms
    monkeypatch.setattr(rivals, "plain_terms", lambda weights, *rest: real(
        {k: 1.1 * v if k == term else v for k, v in weights.items()}, *rest))
    assert rivals.main([*RIVALS, "--methods", method, "--out", str(tmp_path)]) == 2
    assert "not equivalent" in capsys.readouterr().err and not list(tmp_path.iterdir())


def test_a_sampler_that_is_not_steered_is_not_timed(tmp_path, monkeypatch, capsys):
    real = rivals.dit.TeacherGuidance.steer
    monkeypatch.setattr(rivals.dit.TeacherGuidance, "steer",
                        lambda self, x, *rest: real(self, x, *rest) is None or x)
    argv = [*RIVALS, "--inner-steps", "4", "--methods", "diffdfkd", "--out", str(tmp_path)]
    assert rivals.main(argv) == 2 and "not equivalent" in capsys.readouterr().err
    monkeypatch.undo()
    assert rivals.main(argv) == 0
