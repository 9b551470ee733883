"""FastDFKD, CMI, NAYER and adaptive DeepInversion: batches made now and then, kept in a pool."""

import copy
import math

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
                                "noisy-steps": 1}.items() if k.replace("-", "_") in preset}
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


def snapshot(model):
    return {k: v.clone() for k, v in model.state_dict().items()}


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


# --- presets --------------------------------------------------------------------------------------

FAST_TERMS = {"bn_ema": 10.0, "ce_target": 0.5, "adv_dad": 1.0}


@pytest.mark.parametrize(("method", "terms", "others"), [
    ("fastdfkd", FAST_TERMS, {"inner_steps": 10, "latent_rate": 0.01, "generator_rate": 2e-3,
                              "meta_rate": None, "bn_momentum": 0.9, "reset_call": 120}),
    ("fastdfkd_reptile", FAST_TERMS, {"meta_pull": 67.0, "inner_steps": 10}),
    ("fast_sequential", FAST_TERMS, {"inner_steps": 10}),
    ("cmi", {"bn": 1.0, "ce_target": 1.0, "adv_dad": 0.5, "contrastive": 0.8},
     {"inner_steps": 200, "generator_rate": 1e-3, "bank_images": 4096}),
    ("nayer", {"bn_ema": 10.0, "ce_target": 0.5, "adv_dad": 1.33},
     {"inner_steps": 40, "generator_rate": 4e-3, "noisy_steps": 10}),
    ("adi", {"bn": 10.0, "ce_target": 1.0, "adv_js": 1.0, "tv_l1": 1e-3},
     {"inner_steps": 1000, "pixel_rate": 0.1})])
def test_presets_for_small_images_are_the_published_ones(method, terms, others):
    row = replay.preset(method, False)
    assert row["terms"] == terms and others.items() <= row.items()
    assert (row["warmup_calls"], row["calls_per_epoch"]) == (20, 1)


def test_the_preset_for_224_pixels_is_the_published_one():
    row = replay.preset("fastdfkd_reptile", True)
    assert row["terms"] == {"bn_ema": 0.1, "ce_target": 0.1, "adv_dad": 0.1}
    assert {"inner_steps": 50, "generator_rate": 2e-4, "latent_rate": 0.01, "meta_rate": 1e-4,
            "meta_latent_rate": 5e-3, "latent_calls": 50, "meta_pull": 1.0, "bn_momentum": 0.9,
            "synthesis_batch": 100, "calls_per_epoch": 10}.items() <= row.items()


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
    source, student = make(method, "--warmup-calls", "2")
    seen = []
    student.register_forward_pre_hook(lambda m, x: seen.append(m.training))
    source.call(student)
    source.call(student)
    assert seen == []
    source.call(student)
    assert seen == [False, False]  # two steps, in eval mode


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


@pytest.mark.parametrize(("method", "zero"), [
    ("fastdfkd", ("bn-ema", "ce-target")), ("nayer", ("bn-ema", "ce-target")),
    ("cmi", ("bn", "ce-target", "contrastive")), ("adi", ("bn", "ce-target", "tv-l1"))])
def test_a_warm_up_with_no_term_left_is_refused(make, method, zero):
    flags = [part for name in zero for part in (f"--{name}-weight", "0")]
    with pytest.raises(UserError, match="no term left"):
        make(method, *flags)
    source, student = make(method, *flags, "--warmup-calls", "0")
    source.call(student)


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
    source, student = make("fastdfkd")
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


# --- FastDFKD -------------------------------------------------------------------------------------

def gradients_of_a_call(source, student, call):
    """The copy's gradients of each inner step, of a maker that is left as it was."""
    maker, found = copy.deepcopy(source.maker), []
    real = replay.step_with

    def spy(optimizer, loss):
        real(optimizer, loss)
        found.append([p.grad.clone() for p in optimizer.param_groups[0]["params"]])

    replay.step_with = spy
    try:
        with online.still(student):
            maker.make(student, call, False, source.pool[:0])
    finally:
        replay.step_with = real
    return found


def test_first_order_maml_steps_along_the_sum_of_the_copys_gradients(make):
    source, student = make("fastdfkd", "--inner-steps", "3")
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


def test_kept_noise_follows_by_reptile_and_is_drawn_anew_in_time(make):
    flags = ("--latent-calls", "2", "--warmup-calls", "0")
    with pytest.raises(UserError):  # a preset of 224 pixels has this rate
        make("fastdfkd", *flags, "--meta-latent-rate", "0.1")
    source, student = make("fastdfkd", *flags)
    source.args.meta_latent_rate = 0.1
    source.call(student)
    first = source.maker.latents.clone()
    source.call(student)
    second = source.maker.latents.clone()
    assert 0 < (second - first).abs().max() < 0.2  # one step of Adam at 0.1
    source.call(student)
    assert (source.maker.latents - second).abs().mean() > 0.5


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


def test_nayer_makes_a_batch_of_balanced_classes_for_each_set_of_noisy_layers(make):
    source, student = make("nayer", "--inner-steps", "4", "--noisy-steps", "2",
                           "--synthesis-batch", "20")
    source.call(student)
    assert source.kept == 40
    for part in source.labels[:40].split(10):
        assert sorted(part.tolist()) == list(range(10))


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
    small = {"inner_steps": 2, "noisy_steps": 1, "synthesis_batch": 2, "pool_images": 10,
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


@pytest.mark.parametrize("method", ["fastdfkd_reptile", "cmi", "nayer", "adi"])
def test_each_kind_of_maker_makes_224_pixels(make_large, method):
    source, student = make_large(method)
    source.call(student)
    assert source.pool.shape == (10, 3, 224, 224) and source.kept >= 2


def test_cmis_cut_outs_and_wholes_of_224_pixels_are_drawn_apart(make_large, monkeypatch):
    source, student = make_large("cmi")
    seen, real = [], replay.resized_view
    monkeypatch.setattr(replay, "resized_view", lambda x, least, flip, draw: seen.append(
        draw.initial_seed()) or real(x, least, flip, draw))
    source.call(student)
    source.call(student)
    assert len(seen) == len(set(seen)) == 2 * 4 + 2  # two views a step, and of the bank
