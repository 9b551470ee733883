"""FastDFKD, CMI, NAYER and adaptive DeepInversion: batches made now and then, kept in a pool."""

import copy
import math
import subprocess

import processes
import pytest
import safetensors.torch
import torch

from dm_kd import distill, inversion_terms, models, run
from dm_kd.errors import DivergedError, UserError
from dm_kd.sources import online, replay
from dm_kd.sources.networks import LabelGenerator, SmallGenerator
from dm_kd.tasks import get_task

CPU = torch.device("cpu")
METHODS = tuple(replay.MAKERS)


def command(out, method, *more, teacher="cnn_w4@none"):
    flags = {"inner-steps": 2, "synthesis-batch": 16, "warmup-calls": 1, "pool-images": 1000}
    preset = replay.SMALL[method]
    flags |= {k: v for k, v in {"generator-width": 8, "latent-size": 6, "bank-images": 8,
                                "loops": 1, "warmup-loops": 1}.items()
              if k.replace("-", "_") in preset}
    return ["--task", "digits", "--source", method, "--teacher", str(teacher), "--student",
            "cnn_w4", "--epochs", "2", "--steps-per-epoch", "4", "--batch-size", "16", "--amp",
            "none", "--learning-rate", "0.05", "--lr-schedule", "cosine", "--device", "cpu",
            "--threads", "1", "--no-label-check", "--out", str(out),
            *[part for k, v in flags.items() for part in (f"--{k}", str(v))], *more]


@pytest.fixture
def make(digits, tmp_path):
    """f(method, *flags) -> (source, student), from networks with random weights."""

    def made(method, *flags):
        args = distill.parse(command(tmp_path / "run", method, *flags))
        torch.manual_seed(1)
        student, teacher = (models.build("cnn_w4", digits) for _ in range(2))
        teacher.eval().requires_grad_(False)
        return replay.build(args, digits, teacher, CPU), student

    return made


@pytest.mark.parametrize("amp", ["bf16", "none"])
@pytest.mark.parametrize("method", ["fastdfkd", "cmi", "nayer", "adi"])
def test_the_teacher_computes_as_amp_says(make, method, amp):
    source, student = make(method, "--amp", amp)
    seen = set()
    convolution = next(m for m in source.parts.teacher.modules() if isinstance(m, torch.nn.Conv2d))
    convolution.register_forward_hook(lambda module, inputs, output: seen.add(output.dtype))
    source.maker.make(student, 0, True, torch.zeros(4, 1, 8, 8, dtype=torch.uint8))
    assert seen == {torch.bfloat16 if amp == "bf16" else torch.float32}


def snapshot(model):
    return {k: v.clone() for k, v in model.state_dict().items()}


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


# --- presets --------------------------------------------------------------------------------------

FAST_TERMS = {"bn_ema": 10.0, "ce_target": 0.5, "adv_dad": 1.0}


FAST_ROW = {"inner_steps": 10, "latent_rate": 0.01, "generator_rate": 2e-3, "bn_momentum": 0.9,
            "latent_size": 256, "generator_width": 128, "reset_call": 120, "synthesis_batch": 256,
            "pool_images": 60_000}
META_ROW = {**FAST_ROW, "meta_rate": None, "latent_calls": 0, "meta_latent_rate": 5e-3}


@pytest.mark.parametrize(("method", "terms", "others"), [
    ("fastdfkd", FAST_TERMS, META_ROW),
    ("fastdfkd_reptile", FAST_TERMS, {**META_ROW, "meta_pull": 67.0}),
    ("fast_sequential", FAST_TERMS, FAST_ROW),
    ("cmi", {"bn": 1.0, "ce_target": 1.0, "adv_dad": 0.5, "contrastive": 0.8},
     {"inner_steps": 200, "generator_rate": 1e-3, "latent_rate": 1e-3, "head_rate": 1e-3,
      "contrast_temperature": 0.2, "bank_images": 4096, "latent_size": 256, "generator_width": 128,
      "synthesis_batch": 256, "pool_images": 60_000}),
    ("nayer", {"bn_ema": 10.0, "ce_target": 0.5, "adv_dad": 1.33},
     {"inner_steps": 40, "loops": 2, "warmup_loops": 10, "life": 10, "generator_rate": 4e-3,
      "bn_momentum": 0.9, "latent_size": 1000, "generator_width": 128, "synthesis_batch": 400,
      "pool_images": 240_000}),
    ("adi", {"bn": 10.0, "ce_target": 1.0, "adv_js": 1.0, "tv_l1": 1e-3},
     {"inner_steps": 1000, "pixel_rate": 0.1, "synthesis_batch": 256, "pool_images": 60_000})])
def test_presets_for_small_images_are_the_published_ones(method, terms, others):
    assert replay.preset(method, False) == {"terms": terms, "warmup_calls": 20,
                                            "calls_per_epoch": 1, **others}


LARGE_TERMS = {"bn_ema": 0.1, "ce_target": 0.1, "adv_dad": 0.1}
LARGE_FAST_ROW = {"inner_steps": 50, "generator_rate": 2e-4, "latent_rate": 0.01,
                  "latent_size": 256, "bn_momentum": 0.9, "synthesis_batch": 100}
LARGE_META_ROW = {**LARGE_FAST_ROW, "meta_rate": 1e-4, "meta_latent_rate": 5e-3, "latent_calls": 50}


@pytest.mark.parametrize(("method", "terms", "others"), [
    ("fastdfkd", LARGE_TERMS, LARGE_META_ROW),
    ("fastdfkd_reptile", LARGE_TERMS, {**LARGE_META_ROW, "meta_pull": 1.0}),  # the published one
    ("fast_sequential", LARGE_TERMS, LARGE_FAST_ROW),
    ("cmi", {"bn": 1.0, "ce_target": 1.0, "adv_dad": 0.5, "contrastive": 0.8},
     {"inner_steps": 200, "generator_rate": 1e-3, "latent_rate": 1e-3, "head_rate": 1e-3,
      "contrast_temperature": 0.2, "bank_images": 1000, "latent_size": 256,
      "synthesis_batch": 100}),
    ("nayer", LARGE_TERMS,
     {"inner_steps": 40, "loops": 2, "warmup_loops": 10, "life": 10, "generator_rate": 4e-3,
      "bn_momentum": 0.9, "latent_size": 256, "synthesis_batch": 100}),
    ("adi", {"bn": 0.01, "ce_target": 1.0, "adv_js": 0.2, "tv_l2": 1e-4, "l2": 1e-5},
     {"inner_steps": 2000, "pixel_rate": 0.25, "synthesis_batch": 84, "calls_per_epoch": 1})])
def test_presets_for_224_pixels_are_the_published_one_and_what_follows_from_it(method, terms,
                                                                               others):
    common = {"warmup_calls": 20, "calls_per_epoch": 10, "pool_images": 20_000}
    assert replay.preset(method, True) == {"terms": terms, **common, **others}


@pytest.mark.parametrize(("pair", "adversary", "sure"), [
    ("r34_r18", 1.33, 0.5), ("vgg11_r18", 1.0, 0.5), ("w40_2_w16_1", 1.1, 0.4),
    ("w40_2_w40_1", 1.1, 0.4), ("w40_2_w16_2", 1.1, 0.4)])
def test_the_cifar_scripts_give_fastdfkd_the_published_weights_of_each_pair(pair, adversary, sure):
    for method in replay.FAST:
        args = flags_of_script(f"cifar100_{method}", pair)
        assert (args.adv_dad_weight, args.ce_target_weight) == (adversary, sure)
        assert (args.source, args.bn_ema_weight, args.batch_size) == (method, 10.0, 256)


@pytest.mark.parametrize("pair", ["r34_r18", "w40_2_w16_1"])
def test_the_cifar_script_gives_nayer_its_programs_weights_and_batches(pair):
    args = flags_of_script("cifar100_nayer", pair)
    assert (args.adv_dad_weight, args.ce_target_weight, args.bn_ema_weight) == (1.33, 0.5, 10.0)
    assert (args.synthesis_batch, args.batch_size, args.learning_rate) == (400, 512, 0.2)
    assert (args.epochs, args.steps_per_epoch, args.temperature) == (200, 400, 20.0)


def flags_of_script(name, pair):
    """What a script of scripts/baselines gives distill, parsed."""
    done = subprocess.run(["sh", f"scripts/baselines/{name}.sh"], capture_output=True, text=True,
                          check=True, cwd=processes.ROOT,
                          env={"PATH": "/usr/bin:/bin", "PYTHON": "echo", "PAIR": pair})
    words = done.stdout.split()
    assert words[:2] == ["-m", "dm_kd.distill"]
    return distill.parse(words[2:])


@pytest.mark.parametrize("task", ["digits", "imagenet"])
@pytest.mark.parametrize("method", METHODS)
def test_every_preset_is_a_set_of_flags(method, task, tmp_path):
    args = distill.parse(["--task", task, "--source", method, "--teacher", "x", "--student", "y",
                          "--out", str(tmp_path)])
    row = replay.preset(method, task == "imagenet")
    assert online.weights(args, row) == row["terms"]
    assert all(getattr(args, k) == v for k, v in row.items() if k != "terms")


# --- what every method must keep to ---------------------------------------------------------------

@pytest.mark.parametrize("method", METHODS)
def test_a_call_changes_no_bit_of_student_and_teacher(make, method):
    source, student = make(method, "--warmup-calls", "0")
    student.train()
    before = snapshot(student), snapshot(source.parts.teacher)
    source.call(student)
    source.call(student)
    assert same(before[0], snapshot(student))
    assert same(before[1], snapshot(source.parts.teacher))
    for model in (student, source.parts.teacher):
        assert all(p.grad is None for p in model.parameters())
    assert student.training


@pytest.mark.parametrize("method", METHODS)
def test_the_student_is_looked_at_after_the_warm_up_only(make, method):
    calls = 3 if method in replay.FAST else 2  # FastDFKD's programs: in the warm-up's last call
    source, student = make(method, "--warmup-calls", str(calls))
    seen = []
    student.register_forward_pre_hook(lambda m, x: seen.append(m.training))
    source.call(student)
    source.call(student)
    assert seen == []
    source.call(student)
    assert seen == [False, False]  # two steps, in eval mode


@pytest.mark.parametrize(("method", "first"), [
    ("fastdfkd", 20), ("fastdfkd_reptile", 20), ("fast_sequential", 20), ("cmi", 21),
    ("nayer", 21), ("adi", 21)])
def test_the_published_warm_up_has_the_adversarial_term_from_this_call_on(method, first):
    calls = [call for call in range(1, 30) if replay.looks_at_student(method, call - 1, 20)]
    assert calls == list(range(first, 30))


@pytest.mark.parametrize("method", METHODS)
def test_without_a_warm_up_the_first_call_looks_at_the_student(method):
    assert replay.looks_at_student(method, 0, 0)


class Sure(torch.nn.Module):
    """A teacher with the same logits whatever the image: no gradient goes through it."""

    def forward(self, x):
        return 3 * torch.eye(10)[0] + 0 * x.mean((1, 2, 3))[:, None]


@pytest.mark.parametrize("method", METHODS)
def test_the_adversarial_gradient_comes_through_the_student(make, method, monkeypatch):
    others = [name for name in replay.SMALL[method]["terms"] if not name.startswith("adv")]
    source, student = make(method, "--warmup-calls", "0", *[
        part for name in others for part in (f"--{name.replace('_', '-')}-weight", "0")])
    source.parts.teacher = Sure()
    with torch.no_grad():
        student.fc.bias[0] += 2  # adv_dad looks at images that both put into one class
    largest, real = [], torch.autograd.grad
    monkeypatch.setattr(torch.autograd, "grad", lambda *rest: (found := real(*rest)) and (
        largest.append(max(g.abs().max().item() for g in found)) or found))
    source.call(student)
    assert len(largest) == 2 and min(largest) > 1e-9  # exactly 0 where nothing comes through


@pytest.mark.parametrize("method", METHODS)
def test_a_state_goes_on_to_the_same_batches(make, method):
    whole, student = make(method, "--calls-per-epoch", "4")
    batches = list(whole.batches(0, 0, student))
    first, _ = make(method, "--calls-per-epoch", "4")
    steps = first.batches(0, 0, student)
    next(steps)
    state = copy.deepcopy(first.state_dict())
    second, _ = make(method, "--calls-per-epoch", "4")
    second.load_state_dict(state)
    rest = list(second.batches(0, 1, student))  # a call before each
    assert len(rest) == 3
    for a, b in zip(batches[1:], rest, strict=True):
        assert all(torch.equal(x, y) for x, y in zip(a, b, strict=True))
    assert second.budget() == whole.budget()


@pytest.mark.parametrize("method", METHODS)
def test_a_run_stopped_and_started_ends_in_the_same_bits(tmp_path, teacher_folder, method,
                                                         monkeypatch):
    unbroken, broken = tmp_path / "unbroken", tmp_path / "broken"
    assert distill.main(command(unbroken, method, teacher=teacher_folder)) == 0
    real, moment = replay.ReplaySource.batches, []

    def stopping(self, epoch, first_step=0, student=None):
        for step, batch in enumerate(real(self, epoch, first_step, student), first_step):
            if (epoch, step) == (1, 1) and not moment:
                moment.append(True)
                processes.os.kill(processes.os.getpid(), 15)
            yield batch

    monkeypatch.setattr(replay.ReplaySource, "batches", stopping)
    argv = command(broken, method, teacher=teacher_folder)
    assert distill.main(argv) == 143 and not (broken / "result.json").exists()
    assert distill.main(argv) == 0
    for name in ("student.safetensors", "predictions.json", "samples.png"):
        assert (unbroken / name).read_bytes() == (broken / name).read_bytes(), name
    results = [run.files.read_json(p / "result.json")["budget"] for p in (unbroken, broken)]
    assert {k: v for k, v in results[0].items() if k != "seconds"} == {
        k: v for k, v in results[1].items() if k != "seconds"}


def test_a_run_killed_in_its_third_checkpoint_ends_in_the_same_bits(tmp_path, teacher_folder):
    argv = command(tmp_path / "unbroken", "fastdfkd", "--checkpoint-seconds", "1e-3",
                   teacher=teacher_folder)
    assert distill.main(argv) == 0
    argv = command(tmp_path / "killed", "fastdfkd", "--checkpoint-seconds", "1e-3",
                   teacher=teacher_folder)
    assert processes.run("distill", *argv, at="half last.pt", count=3).code == 137
    assert (tmp_path / "killed/previous.pt").exists()  # the second; last.pt is half of the third
    assert processes.run("distill", *argv).code == 0
    for name in ("student.safetensors", "predictions.json"):
        assert (tmp_path / "unbroken" / name).read_bytes() == (
            tmp_path / "killed" / name).read_bytes()


@pytest.mark.parametrize("method", METHODS)
def test_a_loss_that_is_not_finite_stops_with_its_term(make, method, monkeypatch):
    source, student = make(method)
    monkeypatch.setitem(inversion_terms.TERMS, "ce_target", lambda s: torch.tensor(math.inf))
    with pytest.raises(DivergedError, match="ce_target became inf in call 1"):
        source.call(student)


def test_a_contrast_that_is_not_finite_stops_with_its_name(make, monkeypatch):
    source, student = make("cmi")
    monkeypatch.setattr(inversion_terms, "contrastive", lambda *_: torch.tensor(math.nan))
    with pytest.raises(DivergedError, match="contrastive became nan in call 1 at step 1"):
        source.call(student)


@pytest.mark.parametrize(("method", "zero"), [
    ("fastdfkd", ("bn-ema", "ce-target")), ("nayer", ("bn-ema", "ce-target")),
    ("cmi", ("bn", "ce-target", "contrastive")), ("adi", ("bn", "ce-target", "tv-l1"))])
def test_a_warm_up_with_no_term_left_is_refused(make, method, zero):
    flags = [part for name in zero for part in (f"--{name}-weight", "0")]
    with pytest.raises(UserError, match="no term left"):
        make(method, *flags, "--warmup-calls", "2")
    source, student = make(method, *flags, "--warmup-calls", "0")
    source.call(student)
    assert len(source.held_out(student)) == 16  # which has no other term to go by


@pytest.mark.parametrize(("calls", "steps"), [(3, 4), (8, 4)])
def test_calls_that_do_not_divide_an_epoch_are_refused(make, calls, steps):
    with pytest.raises(UserError, match=f"--calls-per-epoch {calls} does not divide "
                                        f"--steps-per-epoch {steps}"):
        make("fastdfkd", "--calls-per-epoch", str(calls), "--steps-per-epoch", str(steps))


@pytest.mark.parametrize("method", ["fastdfkd", "adi"])
def test_a_run_stopped_in_its_warm_up_goes_on_there_to_the_same_bits(tmp_path, teacher_folder,
                                                                     method, monkeypatch):
    unbroken, broken = tmp_path / "unbroken", tmp_path / "broken"
    more, calls = ("--warmup-calls", "4", "--epochs", "1"), []
    assert distill.main(command(unbroken, method, *more, teacher=teacher_folder)) == 0
    real = replay.ReplaySource.call

    def stopping(self, student):
        real(self, student)
        calls.append(self.calls)
        if calls == [1, 2]:
            processes.os.kill(processes.os.getpid(), 15)

    monkeypatch.setattr(replay.ReplaySource, "call", stopping)
    argv = command(broken, method, *more, teacher=teacher_folder)
    assert distill.main(argv) == 143 and calls == [1, 2]
    assert distill.main(argv) == 0 and calls == [1, 2, 3, 4, 5]  # the fifth is the epoch's own
    for name in ("student.safetensors", "predictions.json", "samples.png"):
        assert (unbroken / name).read_bytes() == (broken / name).read_bytes(), name


def test_a_warm_up_is_saved_between_its_calls_when_a_checkpoint_is_due(tmp_path, teacher_folder,
                                                                       monkeypatch):
    saved, real = [], run.Run.save_checkpoint
    monkeypatch.setattr(run.Run, "save_checkpoint", lambda self, state: saved.append(
        (state["epoch"], state["step"], state["source"]["calls"])) or real(self, state))
    argv = command(tmp_path / "run", "fastdfkd", "--warmup-calls", "3", "--epochs", "1",
                   "--checkpoint-seconds", "1e-6", teacher=teacher_folder)
    assert distill.main(argv) == 0
    assert saved[:4] == [(0, 0, 1), (0, 0, 2), (0, 0, 3), (0, 1, 4)]


def test_the_state_holds_the_kept_images_without_copying_them(make):
    source, student = make("fastdfkd", "--pool-images", "1000")
    source.call(student)
    state = source.state_dict()
    assert state["pool"].shape == (16, 1, 8, 8)
    assert state["pool"].untyped_storage().nbytes() == 16 * 64
    assert state["pool"].data_ptr() == source.pool.data_ptr()


# --- the pool -------------------------------------------------------------------------------------

def test_an_epoch_draws_from_all_images_made_so_far_and_knows_their_classes(make):
    source, student = make("fastdfkd", "--calls-per-epoch", "2", "--steps-per-epoch", "8")
    batches = list(source.batches(0, 0, student))  # warm-up, then calls before steps 0 and 4
    assert source.kept == 48 and source.calls == 3
    places = [(ids % len(source.pool)).tolist() for *_, ids in batches]
    assert set(sum(places[:2], [])) == set(range(32)) == set(sum(places[2:4], []))
    assert set(sum(places[4:7], [])) == set(range(48))
    for images, labels, ids in batches:
        assert torch.equal(images, source.pool[ids % len(source.pool)])
        assert torch.equal(labels, source.labels[ids % len(source.pool)])
    assert len({int(v) for *_, ids in batches for v in ids}) == 8 * 16


@pytest.mark.parametrize("method", METHODS)
def test_held_out_images_stay_outside_the_pool_and_look_at_no_student(make, method):
    source, student = make(method, "--warmup-calls", "0")
    source.call(student)
    pool, kept = source.pool[:source.kept].clone(), source.kept
    student.register_forward_pre_hook(lambda m, x: pytest.fail("looked at the student"))
    images = source.held_out(student)
    assert images.dtype == torch.uint8 and images.shape[1:] == (1, 8, 8) and len(images) >= 16
    assert source.kept == kept and torch.equal(source.pool[:kept], pool)
    assert not torch.equal(images[:16], pool[:16])


def test_a_full_pool_loses_its_oldest_images(make):
    source, student = make("fastdfkd", "--pool-images", "40")
    for _ in range(2):
        source.call(student)
    oldest, kept = source.pool[:8].clone(), source.pool[8:32].clone()
    source.call(student)
    assert source.kept == 40 and source.total == 48
    assert not torch.equal(source.pool[:8], oldest) and torch.equal(source.pool[8:32], kept)


def test_the_passes_of_a_call_are_counted_in_images(make):
    source, student = make("fastdfkd", "--warmup-calls", "2")
    source.call(student)  # of the warm-up
    source.call(student)
    assert source.budget() == {"images_kept": 32, "generator_evaluations": 64,
                               "teacher_passes": 64, "student_passes": 32}
    source, student = make("cmi")
    source.call(student)
    source.call(student)  # two views a step, and two passes of the 8 images of the bank
    assert source.budget()["teacher_passes"] == 2 * 64 + 2 * 8
    source, student = make("adi")
    source.call(student)
    assert source.budget()["generator_evaluations"] == 0
    source, student = make("nayer", "--warmup-loops", "3", "--loops", "2")
    source.call(student)
    assert source.budget()["teacher_passes"] == 3 * 32
    source.call(student)
    assert source.budget()["teacher_passes"] == source.budget()["student_passes"] + 96 == 5 * 32


# --- FastDFKD -------------------------------------------------------------------------------------

def gradients_of_a_call(source, student, call):
    """The copy's gradients of each inner step, of a maker that is left as it was."""
    maker, found = copy.deepcopy(source.maker), []
    real = online.step_with

    def spy(loss, optimizer):
        real(loss, optimizer)
        found.append([p.grad.clone() for p in optimizer.param_groups[0]["params"]])

    online.step_with = spy
    try:
        with online.still(student):
            maker.make(student, call, False, source.pool[:0])
    finally:
        online.step_with = real
    return found


def test_first_order_maml_steps_along_the_sum_of_the_copys_gradients(make):
    source, student = make("fastdfkd", "--inner-steps", "3", "--warmup-calls", "2")
    steps = gradients_of_a_call(source, student, 0)
    source.call(student)
    for i, parameter in enumerate(source.maker.generator.parameters()):
        assert torch.allclose(parameter.grad, steps[0][i] + steps[1][i] + steps[2][i], atol=1e-7)


def test_the_meta_rate_follows_inner_steps_and_generator_rate_unless_it_is_given(make):
    def rate(*flags):
        source, _ = make("fastdfkd", *flags)
        assert source.maker.outer.param_groups[0]["lr"] == source.args.meta_rate  # in config.yaml
        return source.args.meta_rate

    assert rate("--inner-steps", "10") == pytest.approx(0.02)  # as published
    assert rate("--inner-steps", "5", "--generator-rate", "3e-3") == pytest.approx(0.015)
    assert rate("--inner-steps", "5", "--meta-rate", "0.02") == 0.02


def test_reptile_pulls_the_meta_generator_to_the_adapted_copy(make, monkeypatch):
    source, student = make("fastdfkd_reptile")
    old, adapted = snapshot(source.maker.generator), []
    real = source.maker.follow
    monkeypatch.setattr(source.maker, "follow", lambda network, z, g: adapted.append(
        [p.detach().clone() for p in network.parameters()]) or real(network, z, g))
    source.call(student)
    for (name, parameter), new in zip(source.maker.generator.named_parameters(), adapted[0],
                                      strict=True):
        assert torch.allclose(parameter.grad, 67 * (old[name] - new), atol=1e-5)
        moved = (parameter - old[name]) * (new - old[name])
        assert (moved >= 0).all()


def test_the_meta_generator_keeps_its_batch_statistics_and_learns(make):
    source, student = make("fastdfkd")
    before = snapshot(source.maker.generator)
    source.call(student)
    after = snapshot(source.maker.generator)
    assert not any(torch.equal(before[k], after[k]) for k, _ in
                   source.maker.generator.named_parameters())
    assert all(torch.equal(before[k], after[k]) for k, _ in
               source.maker.generator.named_buffers())


def test_the_sequential_variant_updates_the_generator_itself(make):
    source, student = make("fast_sequential")
    assert source.maker.outer is None
    before = snapshot(source.maker.generator)
    source.call(student)
    assert not torch.equal(before["last.weight"], source.maker.generator.last.weight)


def test_the_first_layers_are_drawn_anew_once_at_their_call(make):
    source, student = make("fastdfkd", "--reset-call", "2", "--warmup-calls", "1",
                           "--meta-rate", "1e-9")
    drawn = []
    for _ in range(5):
        source.call(student)
        drawn.append(source.maker.generator.norm.weight.detach().abs().mean().item())
    assert drawn[1] == pytest.approx(1) and 0 < drawn[2] < 0.1  # the second after the warm-up
    assert drawn[3] == pytest.approx(drawn[2], abs=1e-6) == drawn[4]


@pytest.mark.parametrize("method", ["fastdfkd", "fastdfkd_reptile"])
def test_kept_noise_follows_by_reptile_and_is_drawn_anew_in_time(make, method):
    source, student = make(method, "--latent-calls", "2", "--warmup-calls", "0",
                           "--meta-latent-rate", "0.1")
    source.call(student)
    first = source.maker.latents.clone()
    source.call(student)
    second = source.maker.latents.clone()
    assert 0 < (second - first).abs().max() < 0.2  # one step of Adam at 0.1
    source.call(student)
    assert (source.maker.latents - second).abs().mean() > 0.5


def test_kept_noise_and_its_optimizer_go_on_from_a_state(make):
    flags = ("--latent-calls", "9", "--calls-per-epoch", "4", "--meta-latent-rate", "0.1")
    whole, student = make("fastdfkd", *flags)
    batches = list(whole.batches(0, 0, student))
    first, _ = make("fastdfkd", *flags)
    steps = first.batches(0, 0, student)
    next(steps), next(steps)
    state = copy.deepcopy(first.state_dict())
    assert len(state["maker"]["outer"]["param_groups"]) == 2
    second, _ = make("fastdfkd", *flags)
    second.load_state_dict(state)
    assert torch.equal(second.maker.latents, first.maker.latents)
    assert second.maker.outer.param_groups[1]["params"][0] is second.maker.latents
    for a, b in zip(batches[2:], second.batches(0, 2, student), strict=True):
        assert all(torch.equal(x, y) for x, y in zip(a, b, strict=True))
    assert torch.equal(second.maker.latents, whole.maker.latents)
    moments = [s.maker.outer.state[s.maker.latents]["exp_avg_sq"] for s in (whole, second)]
    assert torch.equal(*moments) and moments[0].max() > 0


def test_the_statistics_of_past_calls_are_mixed_in_from_the_second_on(make):
    source, student = make("fast_sequential")
    assert source.maker.averages is None
    source.call(student)
    first = source.maker.averages[0][0].clone()
    source.call(student)
    assert not torch.equal(source.maker.averages[0][0], first)


def test_the_batch_of_the_lowest_loss_is_kept():
    best, images = replay.Lowest(), torch.zeros(1)
    for value in (3.0, 1.0, 2.0):
        images.fill_(value)
        best.offer(torch.tensor(value), images)
    assert best.images.item() == 1


# --- views ----------------------------------------------------------------------------------------

def test_resized_views_stay_inside_the_image_and_carry_gradients():
    x = torch.rand(64, 1, 16, 16, requires_grad=True)
    out = replay.resized_view(x, 0.25, True, torch.Generator().manual_seed(0))
    assert out.shape == x.shape and out.min() >= 0 and out.max() <= 1
    out.sum().backward()
    assert x.grad.abs().max() > 0


def test_a_resized_view_of_all_of_the_image_is_the_image_or_its_mirror(monkeypatch):
    x = torch.rand(8, 1, 16, 16)
    monkeypatch.setattr(torch, "rand", lambda *_, generator: torch.tensor(
        [1.0, 0.5, 0.5, 0.5, 0.0])[:, None].expand(5, 8))
    assert torch.allclose(replay.resized_view(x, 0.5, False, None), x, atol=1e-5)
    assert torch.allclose(replay.resized_view(x, 0.5, True, None), x.flip(3), atol=1e-5)


# --- CMI ------------------------------------------------------------------------------------------

def test_cmi_makes_each_batch_with_a_new_generator_and_keeps_its_head(make):
    source, student = make("cmi")
    first, second = (source.parts.generator(call, replay.INIT) for call in (0, 1))
    assert not torch.equal(first.first.weight, second.first.weight)
    head = snapshot(source.maker.head)
    source.call(student)
    assert not torch.equal(head["0.weight"], source.maker.head[0].weight)


def test_cmi_contrasts_with_images_of_the_pool(make, monkeypatch):
    source, student = make("cmi")
    sizes, real = [], inversion_terms.contrastive
    monkeypatch.setattr(inversion_terms, "contrastive", lambda local, whole, t, n: sizes.append(
        (len(local), n)) or real(local, whole, t, n))
    source.call(student)
    source.call(student)
    assert sizes == [(16, 16)] * 2 + [(24, 16)] * 2


def test_cmi_without_contrast_leaves_its_head_alone_and_needs_no_batch_norm(make, digits):
    source, student = make("cmi", "--contrastive-weight", "0", "--bn-weight", "0")
    source.parts.teacher = models.build("lenet5", digits).eval()
    source.maker = replay.ContrastiveMaker(source.parts)
    head = snapshot(source.maker.head)
    source.call(student)
    assert same(head, snapshot(source.maker.head))


# --- NAYER ----------------------------------------------------------------------------------------

def test_each_noisy_layer_makes_one_image_of_each_class():
    torch.manual_seed(0)
    network = LabelGenerator(torch.eye(3), 2, 4, SmallGenerator(4, 8, 8, 1))
    network.norm, passed = torch.nn.Identity(), []
    network.body.register_forward_pre_hook(lambda m, x: passed.append(x[0]))
    network.draw_noisy(torch.Generator().manual_seed(0))
    images = network(torch.tensor([0, 1, 2, 2, 0]))
    assert images.shape == (5, 1, 8, 8)
    a, b = network.noisy
    expected = [a.weight[:, 0], a.weight[:, 1], a.weight[:, 2], b.weight[:, 2], b.weight[:, 0]]
    assert torch.equal(passed[0], torch.stack(expected))


def test_nayer_makes_more_batches_in_a_call_of_the_warm_up_each_of_balanced_classes(make):
    source, student = make("nayer", "--synthesis-batch", "20", "--loops", "2", "--warmup-loops",
                           "3", "--warmup-calls", "2")
    kept = [source.call(student) or source.kept for _ in range(4)]
    assert kept == [60, 120, 160, 200]
    for part in source.labels[:200].split(10):
        assert sorted(part.tolist()) == list(range(10))


def test_each_batch_of_nayer_has_fresh_noisy_layers_an_adam_and_all_inner_steps(make, monkeypatch):
    source, student = make("nayer", "--inner-steps", "5", "--loops", "3", "--warmup-calls", "0")
    optimizers, noisy, updates, real = [], [], [], online.step_with

    def step(loss, optimizer):
        if not optimizers or optimizers[-1] is not optimizer:
            assert not optimizer.state
            optimizers.append(optimizer)
            noisy.append(source.maker.generator.noisy[0].weight.clone())
            updates.append(0)
        updates[-1] += 1
        real(loss, optimizer)

    monkeypatch.setattr(online, "step_with", step)
    source.call(student)
    source.call(student)
    assert updates == [5] * 6 and source.kept == 6 * 16
    for a, b in zip(noisy, noisy[1:], strict=False):
        assert (a - b).abs().mean() > 0.5


def test_the_averages_of_statistics_follow_each_batch_of_nayer(make, monkeypatch):
    source, student = make("nayer", "--loops", "3", "--warmup-calls", "0")
    count, real = [], inversion_terms.update_averages
    monkeypatch.setattr(inversion_terms, "update_averages",
                        lambda *rest: count.append(1) or real(*rest))
    source.call(student)
    assert len(count) == 3


@pytest.mark.parametrize(("life", "warm", "expected"), [
    (3, 2, [2, 3, 5, 6, 8, 9]), (3, 3, [3, 6, 9]), (0, 3, [])])
def test_nayers_generator_is_drawn_anew_at_the_end_of_its_life(make, monkeypatch, life, warm,
                                                               expected):
    source, student = make("nayer", "--life", str(life), "--warmup-calls", str(warm))
    fresh, real = [], source.maker.new_generator
    monkeypatch.setattr(source.maker, "new_generator",
                        lambda call: fresh.append(call) or real(call))
    monkeypatch.setattr(source.maker, "batch", lambda *rest: (torch.zeros(16, 1, 8, 8),
                                                              torch.zeros(16, dtype=torch.int64)))
    for _ in range(10):
        source.call(student)
    assert fresh == expected


def test_a_generator_drawn_anew_is_wholly_another_and_a_function_of_the_call(make):
    source, _ = make("nayer")
    a, b = source.maker.new_generator(0), source.maker.new_generator(10)
    for layer in ("noisy.0", "body.first", "body.block1.0", "body.last"):
        assert not torch.equal(a.get_submodule(layer).weight, b.get_submodule(layer).weight), layer
    torch.manual_seed(9)
    assert same(snapshot(b), snapshot(source.maker.new_generator(10)))
    assert same(snapshot(a), snapshot(make("nayer")[0].maker.generator))


def test_nayer_goes_on_from_a_state_through_a_new_generator_to_the_same_batches(make):
    flags = ("--life", "2", "--loops", "2", "--calls-per-epoch", "4")
    whole, student = make("nayer", *flags)  # new ones in calls 1, 2, 3, 4 of 0 to 4
    batches = list(whole.batches(0, 0, student))
    for stop in (1, 2, 3):
        first, _ = make("nayer", *flags)
        steps = first.batches(0, 0, student)
        for _ in range(stop):
            next(steps)
        state = copy.deepcopy(first.state_dict())
        second, _ = make("nayer", *flags)
        second.load_state_dict(state)
        rest = list(second.batches(0, stop, student))
        assert len(rest) == 4 - stop
        for a, b in zip(batches[stop:], rest, strict=True):
            assert all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


def test_fresh_noisy_layers_differ_and_the_body_goes_on(make):
    source, student = make("nayer")
    generator = source.maker.generator
    generator.draw_noisy(torch.Generator().manual_seed(0))
    first, body = generator.noisy[0].weight.clone(), snapshot(generator.body)
    source.call(student)
    assert (generator.noisy[0].weight - first).abs().mean() > 0.5
    assert (generator.body.last.weight - body["last.weight"]).abs().max() < 0.1


def test_embeddings_come_from_a_file(tmp_path, digits):
    path = tmp_path / "names.safetensors"
    safetensors.torch.save_file({"embeddings": torch.randn(10, 7)}, path)
    assert replay.class_embeddings(str(path), digits).shape == (10, 7)
    safetensors.torch.save_file({"embeddings": torch.randn(9, 7)}, path)
    with pytest.raises(UserError, match=r"embeddings` \[10, e\]"):
        replay.class_embeddings(str(path), digits)
    assert torch.equal(replay.class_embeddings("onehot", digits), torch.eye(10))


def test_a_run_does_not_go_on_with_another_file_of_embeddings(tmp_path, capsys):
    path = tmp_path / "e.safetensors"
    for value in (1.0, 2.0):
        safetensors.torch.save_file({"embeddings": torch.full((10, 7), value)}, path)
        done = distill.main(command(tmp_path / "run", "nayer", "--label-embeddings", str(path)))
        assert done == (0 if value == 1 else 2)
    assert "label_embeddings_sha256" in capsys.readouterr().err


def test_embeddings_of_names_without_the_package_say_what_to_install(digits, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "transformers", None)
    with pytest.raises(UserError, match="pip install transformers"):
        replay.class_embeddings("openai/clip-vit-base-patch32", digits)


# --- 224 pixels -----------------------------------------------------------------------------------

@pytest.fixture
def make_large(tmp_path):
    """f(method) -> (source, student), of 224 pixels."""
    return lambda method: large(tmp_path, method)


def large(tmp_path, method):
    small = {"inner_steps": 2, "loops": 1, "warmup_loops": 1, "synthesis_batch": 2,
             "pool_images": 10,
             "bank_images": 2, "warmup_calls": 1}
    flags = [part for k, v in small.items() if k in replay.LARGE[method]
             for part in (f"--{k.replace('_', '-')}", str(v))]
    args = distill.parse([
        "--task", "imagenet", "--source", method, "--teacher", "x", "--student", "y", "--out",
        str(tmp_path), *flags])
    task = get_task("imagenet")
    student, teacher = (torch.nn.Sequential(
        torch.nn.Conv2d(3, 4, 7, 16), torch.nn.BatchNorm2d(4), torch.nn.AdaptiveAvgPool2d(1),
        torch.nn.Flatten(), torch.nn.Linear(4, 1000)) for _ in range(2))
    return replay.build(args, task, teacher.eval().requires_grad_(False), CPU), student


def test_large_images_have_the_published_steps_after_a_call_and_no_reset(tmp_path):
    source, _ = large(tmp_path, "fastdfkd_reptile")
    assert source.steps_per_epoch // source.args.calls_per_epoch == 100
    assert not hasattr(source.args, "reset_call")


@pytest.mark.parametrize("method", ["fastdfkd_reptile", "cmi", "nayer", "adi"])
def test_each_kind_of_maker_makes_224_pixels(make_large, method):
    source, student = make_large(method)
    source.call(student)
    assert source.pool.shape == (10, 3, 224, 224) and source.kept >= 2


def test_deepinversions_adam_and_jitter_are_those_of_the_size_of_images(make, make_large,
                                                                        monkeypatch):
    found = []
    monkeypatch.setattr(inversion_terms, "jitter", lambda x, most, *_: found.append(most) or x)
    real = torch.optim.Adam
    monkeypatch.setattr(torch.optim, "Adam", lambda *p, betas, **k: found.append(betas) or real(
        *p, betas=betas, **k))
    for source, student in (make("adi", "--inner-steps", "1"), make_large("adi")):
        source.call(student)
    assert found == [(0.5, 0.99), 1, (0.5, 0.9), 30, 30]


def test_nayers_new_generator_of_224_pixels_does_not_hang_on_other_random_numbers(make_large):
    source, _ = make_large("nayer")
    a = source.maker.new_generator(10)
    torch.manual_seed(77)
    assert same(snapshot(a), snapshot(source.maker.new_generator(10)))


def test_cmis_cut_outs_and_wholes_of_224_pixels_are_drawn_apart(make_large, monkeypatch):
    source, student = make_large("cmi")
    seen, real = [], replay.resized_view
    monkeypatch.setattr(replay, "resized_view", lambda x, least, flip, draw: seen.append(
        draw.initial_seed()) or real(x, least, flip, draw))
    source.call(student)
    source.call(student)
    assert len(seen) == len(set(seen)) == 2 * 4 + 2  # two views a step, and of the bank
