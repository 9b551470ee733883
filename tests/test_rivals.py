"""The rivals: what each must keep to, its resumes, and what is special to one of them."""

import io
import math
from unittest import mock

import pytest
import torch

from dm_kd import distill, models
from dm_kd.rivals import cmi, common, dafl, fastdfkd, terms
from dm_kd.rivals.networks import small_generator
from dm_kd.run import Stopped, UserError
from dm_kd.tasks import get_task

CPU = torch.device("cpu")
METHODS = tuple(distill.RIVALS)
PRESETS = {size: {name: preset for method in METHODS for name, preset in getattr(
    common.load(distill.RIVALS[method]), size, {}).items()} for size in ("SMALL", "LARGE")}
STREAMS = tuple(name for name, preset in PRESETS["SMALL"].items() if not preset["pool_images"])
POOLS = tuple(name for name in METHODS if name not in STREAMS)
ADVERSARIAL = tuple(name for name, preset in PRESETS["SMALL"].items()
                    if any(key.startswith("adv_") for key in preset))
TINY = {"inner-steps": 2, "synthesis-batch": 16, "generator-width": 8, "latent-size": 6,
        "bank-images": 8, "loops": 1, "warmup-loops": 1}
TINY_POOL = {**TINY, "warmup-calls": 1, "pool-images": 1000}


def parse(out, method, *more, task="digits", tiny=None):
    preset = PRESETS["LARGE" if task == "imagenet" else "SMALL"].get(method, {})
    if tiny is None:
        tiny = TINY_POOL if method in POOLS else {**TINY, "student-steps": 2}
    flags = [part for name, value in tiny.items() if name.replace("-", "_") in preset
             for part in (f"--{name}", str(value))]
    return distill.parse(["--task", task, "--source", method, "--teacher", "t", "--student", "s",
                          "--epochs", "2", "--steps-per-epoch", "4", "--batch-size", "16", "--amp",
                          "none", "--device", "cpu", "--out", str(out), *flags, *more])


def build(args, task, teacher):
    context = common.Context(args, task, teacher.eval().requires_grad_(False), CPU)
    return common.Source(context, common.load(distill.RIVALS[args.source]))


@pytest.fixture
def make(digits, tmp_path):
    """f(method, *flags) -> (source, student), from networks with random weights."""

    def made(method, *flags):
        tmp_path.joinpath("run").mkdir(exist_ok=True)
        args = parse(tmp_path / "run", method, *flags)
        torch.manual_seed(1)
        student, teacher = (models.build("cnn_w4", digits) for _ in range(2))
        return build(args, digits, teacher), student

    return made


def snapshot(model):
    return {k: v.clone() for k, v in model.state_dict().items()}


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def saved(state):
    """A state through torch.save, as in a checkpoint."""
    buffer = io.BytesIO()
    torch.save(state, buffer)
    buffer.seek(0)
    return torch.load(buffer, weights_only=True)


# --- what every method must keep to ---------------------------------------------------------------

@pytest.mark.parametrize("method", METHODS)
def test_a_preset_becomes_flags_with_its_values_as_defaults(method, tmp_path):
    for size, task in (("SMALL", "digits"), ("LARGE", "imagenet")):
        if method in PRESETS[size]:
            flags = vars(parse(tmp_path, method, task=task, tiny={}))
            assert PRESETS[size][method].items() <= flags.items()
        else:
            with pytest.raises(UserError, match="no published preset for large images"):
                parse(tmp_path, method, task=task, tiny={})


@pytest.mark.parametrize("method", METHODS)
def test_making_images_changes_no_bit_of_student_and_teacher(make, method):
    source, student = make(method)
    teacher, student = source.context.teacher, student.train()
    before = snapshot(student), snapshot(teacher)
    list(source.batches(0, 0, student))
    assert same(before[0], snapshot(student)) and same(before[1], snapshot(teacher))
    assert all(p.grad is None for m in (student, teacher) for p in m.parameters())
    assert student.training and all(p.requires_grad for p in student.parameters())


@pytest.mark.parametrize("method", METHODS)
def test_a_source_resumes_to_the_same_batches_from_every_step(make, method):
    flags = ("--student-steps", "1") if method in POOLS else ()
    if "life" in PRESETS["SMALL"][method]:
        flags += "--life", "2"  # new generators on the way
    whole, student = make(method, *flags)
    batches = list(whole.batches(0, 0, student))
    assert len({int(v) for *_, ids in batches for v in ids}) == 4 * 16
    for stop in (1, 3):
        first, _ = make(method, *flags)
        steps = first.batches(0, 0, student)
        for _ in range(stop):
            next(steps)
        second, _ = make(method, *flags)
        second.load_state_dict(saved(first.state_dict()))
        rest = list(second.batches(0, stop, student))
        assert len(rest) == 4 - stop
        for a, b in zip(batches[stop:], rest, strict=True):
            assert all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


@pytest.mark.parametrize("method", ADVERSARIAL)
def test_the_adversarial_gradient_comes_through_the_student(make, method, monkeypatch):
    """With the adversarial term alone and a teacher whose logits are the same for every image."""
    class Sure(torch.nn.Sequential):
        def forward(self, x):
            return 3 * torch.eye(10)[0] + 0 * self[0](x)

    source, student = make(method, "--warmup-calls", "0", *[
        part for name in PRESETS["SMALL"][method] if name.endswith("_weight") and name[:3] != "adv"
        for part in (f"--{name.replace('_', '-')}", "0")])
    source.context.teacher = Sure(source.context.teacher)
    with torch.no_grad():
        student.fc.bias[0] += 2  # adv_dad looks at images that both put into one class
    largest, real = [], torch.autograd.grad
    monkeypatch.setattr(torch.autograd, "grad", lambda *rest: (grads := real(*rest)) and (
        largest.append(max(g.abs().max().item() for g in grads)) or grads))
    next(source.batches(0, 0, student))
    assert min(largest) > 1e-9  # exactly 0 where nothing comes through


@pytest.mark.parametrize("method", ["dfq", "fastdfkd", "cmi", "nayer", "adi"])
def test_a_loss_that_is_not_finite_is_an_error_that_names_the_step(make, method, monkeypatch):
    source, student = make(method)
    monkeypatch.setattr(terms, "bn", lambda *_: torch.tensor(math.inf))
    with pytest.raises(UserError, match="step 1"):
        next(source.batches(0, 0, student))


@pytest.mark.parametrize("amp", ["bf16", "none"])
@pytest.mark.parametrize("method", ["dfq", "cmi"])
def test_generator_and_teacher_compute_as_amp_says(make, method, amp):
    source, student = make(method, "--amp", amp)
    seen = set()
    for module in source.context.teacher.modules():
        if isinstance(module, torch.nn.Conv2d):
            module.register_forward_hook(lambda m, x, output: seen.add(output.dtype))
    next(source.batches(0, 0, student))
    assert seen == {torch.bfloat16 if amp == "bf16" else torch.float32}


@pytest.mark.parametrize("method", PRESETS["LARGE"])
def test_images_of_224_pixels(tmp_path, method):
    tiny = {"synthesis-batch": 2, "pool-images": 10, "inner-steps": 1, "warmup-calls": 1,
            "student-steps": 4}
    student, teacher = (torch.nn.Sequential(
        torch.nn.Conv2d(3, 4, 7, 16), torch.nn.BatchNorm2d(4), torch.nn.AdaptiveAvgPool2d(1),
        torch.nn.Flatten(), torch.nn.Linear(4, 1000)) for _ in range(2))
    args = parse(tmp_path, method, "--batch-size", "2", task="imagenet", tiny=tiny)
    images, *_ = next(build(args, get_task("imagenet"), teacher).batches(0, 0, student))
    assert images.shape == (2, 3, 224, 224) and images.dtype == torch.uint8


@pytest.mark.cuda
@pytest.mark.parametrize("method", POOLS)
def test_the_gpu_is_not_waited_for_between_two_updates(tmp_path, digits, method, monkeypatch):
    teacher, student = (models.build("cnn_w4", digits).cuda() for _ in range(2))
    args, steps = parse(tmp_path, method, "--inner-steps", "5"), []
    context = common.Context(args, digits, teacher.eval().requires_grad_(False),
                             torch.device("cuda"))
    source, real = common.Source(context, common.load(distill.RIVALS[method])), terms.weighted

    def weighted(*rest, **options):
        steps.append(1)
        torch.cuda.set_sync_debug_mode("error" if len(steps) % 5 in (2, 3, 4) else "default")
        return real(*rest, **options)

    monkeypatch.setattr(terms, "weighted", weighted)
    try:
        source.call(student)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert len(steps) == 5


# --- the loop -------------------------------------------------------------------------------------

def test_a_run_stops_between_two_calls_of_the_warm_up_and_resumes_to_the_same_images(make):
    (whole, student), (first, _), (second, _) = (make("cmi", "--warmup-calls", "3")
                                                 for _ in range(3))
    first.pause = mock.Mock(side_effect=Stopped(15))
    with pytest.raises(Stopped):
        next(first.batches(0, 0, student))
    second.load_state_dict(saved(first.state_dict()))
    pair = (next(source.batches(0, 0, student)) for source in (second, whole))
    assert all(torch.equal(x, y) for x, y in zip(*pair, strict=True))


def optimise_pixels(losses, steps=50, x=None):
    bounds = torch.tensor(-1.0).view(1, 1, 1), torch.tensor(1.0).view(1, 1, 1)
    x = torch.zeros(1, 1, 2, 2) if x is None else x
    return common.optimise_pixels(x, losses, steps, lambda step: 0.2, (0.5, 0.9), bounds, "")


def test_the_loop_finds_the_lowest_loss_within_bounds_and_leaves_its_start_alone():
    start = torch.zeros(2, 1, 2, 2)
    best = optimise_pixels(lambda x, step: {"l2": (x - 0.5).square().sum()}, x=start)
    assert torch.allclose(best, torch.full_like(best, 0.5), atol=0.05) and not start.any()
    assert optimise_pixels(lambda x, step: {"l2": -x.sum()}).max() == 1


def test_the_loop_returns_the_best_iterate_not_the_last():
    seen = []

    def losses(x, step):
        seen.append(x.detach().clone())
        return {"l2": x.sum() * 0.1 - (x.sum() * 0.1).detach() + (3.0, 1.0, 2.0)[step]}

    best = optimise_pixels(losses, 3)
    assert torch.equal(best, seen[1]) and not torch.equal(best, seen[2])


def test_the_loop_reads_nothing_back_before_its_last_step():
    x, steps = torch.nn.Parameter(torch.zeros(2, device="meta")), []  # nothing there can be read
    with pytest.raises((RuntimeError, NotImplementedError), match="meta"):
        common.optimise([torch.optim.Adam([x])], lambda: x, lambda x, step: steps.append(step) or {
            "l2": x.square().sum()}, 5, "")
    assert steps == [0, 1, 2, 3, 4]


def test_new_weights_are_a_function_of_the_key_and_leave_torchs_numbers_as_they_were():
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    with common.initialised_by(1, 2):
        one = torch.nn.Linear(3, 3).weight
    assert torch.equal(torch.rand(3), expected)
    with common.initialised_by(1, 2):
        assert torch.equal(one, torch.nn.Linear(3, 3).weight)


# --- generators and streams -----------------------------------------------------------------------

@pytest.mark.parametrize(("latent", "width", "millions"), [(256, 128, 2.33), (256, 256, 4.58)])
def test_the_published_generators_have_the_published_number_of_parameters(latent, width, millions):
    network = small_generator(latent, width, 32, 3)
    assert round(models.parameter_count(network) / 1e6, 2) == millions


def test_a_stream_updates_once_in_so_many_steps_and_hands_out_fresh_images_once(make):
    source, student = make("dfq", "--steps-per-epoch", "3")
    batches, calls = [], []
    for epoch in (0, 1):
        for batch in source.batches(epoch, 0, student):
            batches.append(batch)
            calls.append(source.calls)
    assert calls == [1, 1, 2, 2, 3, 3]
    assert all(i.dtype == torch.uint8 and i.shape == (16, 1, 8, 8) for i, *_ in batches)
    assert {int(v) for _, labels, _ in batches for v in labels} == {-1}
    assert len({image.numpy().tobytes() for images, *_ in batches for image in images}) == 6 * 16
    with torch.no_grad():  # of the updated generator
        z = source.method.noise(32, 2, dafl.BATCH)[:16]
        assert torch.equal(source.pool[:16], (source.method.generator(z) * 255 + 0.5).byte())


# --- the pool -------------------------------------------------------------------------------------

@pytest.mark.parametrize("method", ["fastdfkd", "cmi", "nayer", "adi"])
def test_the_student_is_looked_at_after_the_warm_up_only(make, method):
    calls = 3 if method == "fastdfkd" else 2  # there in the last call of the warm-up too
    source, student = make(method, "--warmup-calls", str(calls))
    modes = []
    student.register_forward_pre_hook(lambda m, x: modes.append(m.training))
    source.call(student)
    source.call(student)
    assert modes == []
    source.call(student)
    assert modes == [False, False]  # two steps, in eval mode


def test_an_epoch_draws_from_all_images_made_so_far_and_knows_their_classes(make):
    source, student = make("fastdfkd", "--student-steps", "4", "--steps-per-epoch", "8")
    batches = list(source.batches(0, 0, student))  # warm-up, then calls before steps 0 and 4
    assert source.kept == 48 and source.calls == 3
    places = [(ids % len(source.pool)).tolist() for *_, ids in batches]
    assert set(sum(places[:2], [])) == set(range(32)) == set(sum(places[2:4], []))
    assert set(sum(places[4:7], [])) == set(range(48))
    for images, labels, ids in batches:
        assert torch.equal(images, source.pool[ids % len(source.pool)])
        assert torch.equal(labels, source.labels[ids % len(source.pool)])


def test_a_full_pool_loses_its_oldest_images(make):
    source, student = make("fastdfkd", "--pool-images", "40")
    for _ in range(2):
        source.call(student)
    oldest, kept = source.pool[:8].clone(), source.pool[8:32].clone()
    source.call(student)
    assert source.kept == 40 and source.total == 48
    assert not torch.equal(source.pool[:8], oldest) and torch.equal(source.pool[8:32], kept)


# --- FastDFKD -------------------------------------------------------------------------------------

def test_the_meta_rate_follows_inner_steps_and_generator_rate_unless_it_is_given(make):
    def rate(*flags):
        return make("fastdfkd", *flags)[0].method.outer.param_groups[0]["lr"]

    assert rate("--inner-steps", "10") == pytest.approx(0.02)  # as published
    assert rate("--inner-steps", "5", "--meta-rate", "0.03") == 0.03


def test_the_first_layers_are_drawn_anew_once_at_their_call(make, monkeypatch):
    monkeypatch.setattr(fastdfkd, "RESET_CALL", 2)
    source, student = make("fastdfkd", "--meta-rate", "1e-9")
    drawn = []
    for _ in range(5):
        source.call(student)
        drawn.append(source.method.generator.body[2].weight.detach().abs().mean().item())
    assert drawn[1] == pytest.approx(1) and 0 < drawn[2] < 0.1  # the second after the warm-up
    assert drawn[3] == pytest.approx(drawn[2], abs=1e-6) == drawn[4]


def test_kept_noise_follows_by_reptile_and_is_drawn_anew_in_time(tmp_path, monkeypatch):
    monkeypatch.setattr(fastdfkd, "LATENT_CALLS", 3)
    tiny = {"synthesis-batch": 2, "pool-images": 8, "inner-steps": 1, "warmup-calls": 0}
    teacher, student = (torch.nn.Sequential(
        torch.nn.Conv2d(3, 4, 32, 32), torch.nn.BatchNorm2d(4), torch.nn.Flatten(),
        torch.nn.Linear(196, 1000)) for _ in range(2))
    source = build(parse(tmp_path, "fastdfkd_reptile", task="imagenet", tiny=tiny),
                   get_task("imagenet"), teacher)
    noise = []
    for _ in range(4):
        source.call(student)
        noise.append(source.method.generator.noise.detach().clone())
    assert 0 < (noise[1] - noise[0]).abs().max() < 0.01  # one step of Adam at 0.005
    assert (noise[3] - noise[2]).abs().mean() > 0.5


# --- CMI ------------------------------------------------------------------------------------------

def test_cmis_features_are_all_batch_norms_or_a_resnets_four_stages():
    cifar100, x = get_task("cifar100"), torch.zeros(1, 3, 32, 32)
    for name, size in (("cifar_resnet34", 512), ("vgg11_bn", 2752)):
        teacher = models.build(name, cifar100).eval()
        with terms.recorded(cmi.feature_layers(teacher), cmi.spatial_mean) as means:
            teacher(x)
        assert sum(m.shape[1] for m in means) == size


# --- NAYER ----------------------------------------------------------------------------------------

def test_nayer_makes_more_batches_in_a_call_of_the_warm_up_each_of_balanced_classes(make):
    source, student = make("nayer", "--synthesis-batch", "20", "--loops", "2", "--warmup-loops",
                           "3", "--warmup-calls", "2")
    assert [source.call(student) or source.kept for _ in range(4)] == [60, 120, 160, 200]
    for part in source.labels[:200].split(10):
        assert sorted(part.tolist()) == list(range(10))


@pytest.mark.parametrize(("warm", "expected"), [(2, [2, 3, 5, 6, 8, 9]), (3, [3, 6, 9])])
def test_nayers_generator_is_drawn_anew_at_the_end_of_its_life(make, monkeypatch, warm, expected):
    source, student = make("nayer", "--life", "3", "--warmup-calls", str(warm))
    method, fresh, real = source.method, [], source.method.new_generator
    monkeypatch.setattr(method, "new_generator", lambda call: fresh.append(call) or real(call))
    monkeypatch.setattr(method, "batch", lambda *rest: (torch.zeros(1), torch.zeros(1)))
    for call in range(10):
        method.make_batch(student, call)
    assert fresh == expected
    assert same(snapshot(real(6)), snapshot(real(6)))
    assert not same(snapshot(real(6).body), snapshot(real(3).body))
