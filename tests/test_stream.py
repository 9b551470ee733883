"""DAFL, DFQ and ZSKT: a generator that learns beside the student, and touches nobody else."""

import copy
import math

import processes
import pytest
import torch
from float64 import float64

from dm_kd import distill, inversion_terms, models, run
from dm_kd.errors import DivergedError, UserError
from dm_kd.sources import online, stream
from dm_kd.sources.networks import LargeGenerator, NormalOutput, SmallGenerator

CPU = torch.device("cpu")
METHODS = ("dafl", "dfq", "zskt")


def command(out, method, *more, teacher="cnn_w4@none", task="digits", student="cnn_w4"):
    return ["--task", task, "--source", method, "--teacher", str(teacher), "--student", student,
            "--epochs", "2", "--steps-per-epoch", "3", "--batch-size", "16", "--student-steps",
            "2", "--synthesis-batch", "16", "--generator-width", "8", "--latent-size", "6",
            "--amp", "none", "--learning-rate", "0.05", "--lr-schedule", "cosine", "--device",
            "cpu", "--threads", "1", "--no-label-check", "--out", str(out), *more]


@pytest.fixture
def make(digits, tmp_path):
    """f(method, *flags) -> (source, student, teacher), all with random weights."""

    def made(method, *flags):
        args = distill.parse(command(tmp_path / "run", method, *flags))
        torch.manual_seed(1)
        student, teacher = (models.build("cnn_w4", digits) for _ in range(2))
        teacher.eval().requires_grad_(False)
        return stream.build(args, digits, teacher, CPU), student, teacher

    return made


def snapshot(model):
    return {k: v.clone() for k, v in model.state_dict().items()}


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


# --- presets --------------------------------------------------------------------------------------

@pytest.mark.parametrize(("method", "terms", "others"), [
    ("dafl", {"onehot": 1.0, "act": 1e-3, "balance": 20.0},
     {"latent_size": 512, "student_steps": 5}),
    ("dfq", {"adv_kl": 1.0, "bn": 1.0, "onehot": 1.0, "balance": 20.0},
     {"latent_size": 256, "student_steps": 10}),
    ("zskt", {"adv_kl": 1.0}, {"latent_size": 256, "student_steps": 5})])
def test_presets_are_the_published_ones(method, terms, others):
    common = {"generator_width": 256, "generator_rate": 1e-3, "synthesis_batch": 256}
    assert stream.preset(method, False) == {"terms": terms, **common, **others}


def test_flags_have_the_presets_values_and_win_over_them(tmp_path):
    argv = ["--task", "digits", "--source", "dfq", "--teacher", "x", "--student", "cnn_w4", "--out",
            str(tmp_path)]
    args = distill.parse(argv)
    assert (args.balance_weight, args.student_steps, args.steps_per_epoch) == (20.0, 10, 400)
    args = distill.parse([*argv, "--balance-weight", "0", "--steps-per-epoch", "7"])
    assert (args.balance_weight, args.steps_per_epoch) == (0.0, 7)
    assert "bn" in online.weights(args, stream.preset("dfq", False))


def test_the_generator_of_224_pixels_has_one_width_and_no_flag_for_it(tmp_path):
    argv = ["--source", "dfq", "--teacher", "x", "--student", "y", "--out", str(tmp_path)]
    assert hasattr(distill.parse(["--task", "cifar100", *argv]), "generator_width")
    assert not hasattr(distill.parse(["--task", "imagenet", *argv]), "generator_width")


def test_new_weights_leave_torchs_global_numbers_as_they_were():
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    with online.initialised_by(1, 2):
        one = torch.nn.Linear(3, 3).weight
    assert torch.equal(torch.rand(3), expected)
    with online.initialised_by(1, 2):
        again = torch.nn.Linear(3, 3).weight
    assert torch.equal(one, again)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_new_weights_leave_the_gpus_numbers_as_they_were():
    torch.cuda.manual_seed(5)
    expected = torch.rand(3, device="cuda")
    torch.cuda.manual_seed(5)
    with online.initialised_by(1, 2):
        torch.nn.Linear(3, 3)
    assert torch.equal(torch.rand(3, device="cuda"), expected)


def test_a_flag_of_another_method_is_refused(tmp_path, capsys):
    assert distill.main(command(tmp_path, "zskt", "--bn-weight", "1")) == 2
    assert "--bn-weight" in capsys.readouterr().err


# --- generators -----------------------------------------------------------------------------------

@pytest.mark.parametrize("side", [8, 28, 32])
def test_the_first_map_is_a_quarter_of_the_side(side):
    network = SmallGenerator(5, 16, side, 3)
    assert network.base == (16, side // 4, side // 4)
    images = network(torch.randn(2, 5))
    assert images.shape == (2, 3, side, side) and images.min() >= 0 and images.max() <= 1


@pytest.mark.parametrize(("latent", "width", "millions"), [(256, 128, 2.33), (256, 256, 4.58),
                                                           (512, 256, 8.78)])
def test_the_published_generators_have_the_published_number_of_parameters(latent, width, millions):
    network = SmallGenerator(latent, width, 32, 3)
    assert round(models.parameter_count(network) / 1e6, 2) == millions


def test_the_large_generator_makes_224_pixels_from_a_map_of_14():
    network = LargeGenerator(256, 224, 3)
    assert network.shape == (256, 14, 14)
    with torch.no_grad():
        assert network(torch.randn(1, *network.shape)).shape == (1, 3, 224, 224)


@pytest.mark.parametrize("network", ["small", "large"])
def test_a_normal_output_has_the_tasks_contrast_from_the_start_and_a_sigmoid_none(network):
    mean, std = (0.3, 0.5), (0.2, 0.1)

    def spread(output):
        torch.manual_seed(0)
        made = (SmallGenerator(6, 16, 16, 2, output) if network == "small" else
                LargeGenerator(6, 32, 2, output))
        images = made(torch.randn(64, *made.shape))
        assert images.min() >= 0 and images.max() <= 1
        return images.mean((0, 2, 3)), images.std((0, 2, 3))

    found = spread(NormalOutput(mean, std))
    assert torch.allclose(found[0], torch.tensor(mean), atol=0.02)
    assert torch.allclose(found[1], torch.tensor(std), atol=0.02)
    assert spread(None)[1].max() < 0.15


@pytest.mark.parametrize("network", ["small", "large"])
def test_bf16_makes_the_images_and_gradients_of_float32_up_to_its_precision(network):
    found, target = [], torch.rand(32, 2, 16, 16, generator=torch.Generator().manual_seed(1))
    for bf16 in (False, True):
        torch.manual_seed(0)
        output = NormalOutput((0.3, 0.5), (0.2, 0.1))
        made = (SmallGenerator(6, 16, 16, 2, output, bf16) if network == "small" else
                LargeGenerator(6, 16, 2, output, bf16))
        images = made(torch.randn(32, *made.shape))
        assert images.dtype == torch.float32
        (images - target).square().mean().backward()
        found.append((images, torch.cat([p.grad.flatten() for p in made.parameters()])))
    (exact, slopes), (lower, lower_slopes) = found
    assert 0 < (exact - lower).abs().mean() < 0.01  # pixels of 0 to 1: 2.5 of 255
    assert torch.cosine_similarity(slopes, lower_slopes, dim=0) > 0.98


@pytest.mark.parametrize("amp", ["bf16", "none"])
def test_generator_and_teacher_compute_as_amp_says(make, amp):
    source, student, teacher = make("dafl", "--amp", amp)
    seen = []
    next(m for m in teacher.modules() if isinstance(m, torch.nn.Conv2d)).register_forward_hook(
        lambda module, inputs, output: seen.append(output.dtype))
    source.update(student, 0, 0)
    assert source.generator.bf16 is (amp == "bf16")
    assert seen == [torch.bfloat16 if amp == "bf16" else torch.float32]


def test_the_output_is_chosen_by_a_flag(make):
    assert isinstance(make("zskt")[0].generator.output, torch.nn.Sigmoid)
    source, student, _ = make("zskt", "--generator-output", "norm")
    (images, *_), *_ = source.batches(0, 0, student)
    assert (images / 255.0).std() > 0.2
    state = source.state_dict()
    assert "output.mean" not in state["generator"]  # a constant of the task


# --- the updates ----------------------------------------------------------------------------------

@pytest.mark.parametrize("method", METHODS)
def test_an_update_changes_the_generator_and_no_bit_of_student_and_teacher(make, method):
    source, student, teacher = make(method)
    student.train()
    before = [snapshot(m) for m in (student, teacher)]
    generator = snapshot(source.generator)
    source.update(student, 0, 0)
    assert same(before[0], snapshot(student)) and same(before[1], snapshot(teacher))
    assert all(p.grad is None for m in (student, teacher) for p in m.parameters())
    assert student.training and all(p.requires_grad for p in student.parameters())
    learnt = [k for k, p in source.generator.named_parameters()
              if torch.equal(p, generator[k])]
    assert learnt == []


def test_the_student_is_in_eval_mode_during_an_update_and_as_before_after_an_error(make):
    source, student, _ = make("zskt")
    modes = []
    student.register_forward_pre_hook(lambda m, x: modes.append((m.training, m.fc.training)))
    source.update(student.train(), 0, 0)
    assert modes == [(False, False)]
    with pytest.raises(ZeroDivisionError), online.still(student):
        assert not student.training
        raise ZeroDivisionError
    assert student.training and all(p.requires_grad for p in student.parameters())


def test_the_adversarial_gradient_reaches_the_generator_through_the_student(make):
    source, student, teacher = make("zskt")
    x = source.generator(source.noise(16, 0, stream.UPDATE))
    parts, _ = inversion_terms.weighted({"adv_kl": 1.0}, teacher, source.standardize(x),
                                        student.eval())
    gradient, = torch.autograd.grad(parts["adv_kl"], source.generator.first.weight)
    assert gradient.abs().max() > 1e-6
    source, _, _ = make("zskt")  # with the teacher as the student there is nothing to gain
    x = source.generator(source.noise(16, 0, stream.UPDATE))
    parts, _ = inversion_terms.weighted({"adv_kl": 1.0}, teacher, source.standardize(x), teacher)
    assert parts["adv_kl"].abs() < 1e-6


def test_dfqs_adversarial_gradient_comes_through_the_student(make):
    source, student, _ = make("dfq")
    source.terms, source.teacher = {"adv_kl": 1.0}, Sure()
    source.update(student, 0, 0)
    assert source.generator.first.weight.grad.abs().max() > 1e-6


class Sure(torch.nn.Module):
    """A teacher with the same logits whatever the image: no gradient goes through it."""

    def forward(self, x):
        return torch.eye(10)[0] + 0 * x.mean((1, 2, 3))[:, None]


def test_updates_set_the_student_at_odds_with_the_teacher(make):
    """In float64: thirty updates of Adam amplify float32's rounding, which differs by processor."""
    with float64():
        source, student, _ = make("zskt", "--generator-rate", "0.01")
        source.teacher = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 10))
        source.teacher.requires_grad_(False)
        values = [source.update(student, 0, step)["adv_kl"].item() for step in range(30)]
    assert values[-1] < 20 * values[0] < 0  # 67 times, measured


class Level(torch.nn.Module):
    """A generator with one number: all pixels of all images are its sigmoid."""

    shape = (1,)

    def __init__(self, level):
        super().__init__()
        self.level = torch.nn.Parameter(torch.tensor(level))

    def forward(self, z):
        return torch.sigmoid(self.level).expand(len(z), 1, 8, 8)


class Slope(torch.nn.Module):
    """Two logits: slope times the mean standardised pixel, and 0."""

    def __init__(self, slope):
        super().__init__()
        self.slope = torch.nn.Parameter(torch.tensor(slope))

    def forward(self, x):
        first = self.slope * x.mean((1, 2, 3))
        return torch.stack([first, torch.zeros_like(first)], 1)


@pytest.mark.parametrize("level", [-1.0, 2.0])
def test_an_update_of_one_number_goes_up_the_hand_computed_divergence(make, digits, level):
    """KL = p log(p / q) + (1 - p) log((1 - p) / (1 - q)), p = sigmoid(2 x), q = sigmoid(x)."""
    source, _, _ = make("zskt")
    source.teacher, source.generator = Slope(2.0).requires_grad_(False), Level(level)
    source.optimizer = torch.optim.Adam(source.generator.parameters(), lr=0.01)

    def divergence(level):
        x = (1 / (1 + math.exp(-level)) - digits.mean[0]) / digits.std[0]
        p, q = 1 / (1 + math.exp(-2 * x)), 1 / (1 + math.exp(-x))
        return p * math.log(p / q) + (1 - p) * math.log((1 - p) / (1 - q))

    student = Slope(1.0)
    parts = source.update(student, 0, 0)
    assert parts["adv_kl"].item() == pytest.approx(-divergence(level), rel=1e-4)
    slope = (divergence(level + 1e-4) - divergence(level - 1e-4)) / 2e-4
    gradient = source.generator.level.grad.item()
    assert gradient == pytest.approx(-slope, rel=1e-2)
    moved = source.generator.level.item() - level  # Adam's first step is its rate
    assert moved == pytest.approx(math.copysign(0.01, slope), rel=1e-3)


def test_the_students_images_are_those_of_the_updated_generator(make):
    source, student, _ = make("zskt", "--student-steps", "1")
    for moment, (images, *_) in enumerate(source.batches(0, 0, student)):
        network = copy.deepcopy(source.generator)
        with torch.no_grad():
            expected = network(source.noise(16, moment, stream.BATCH))
        assert torch.equal(images, online.to_uint8(expected))


def test_a_student_learns_a_hand_made_teacher_from_the_stream_alone(make, digits):
    """The teacher says which half is brighter; so must the student, of images it has not seen."""
    source, _, _ = make("zskt", "--generator-output", "norm", "--generator-rate", "0.01",
                        "--epochs", "1", "--steps-per-epoch", "160")
    half = torch.ones(8, 8)
    half[:, 4:] = -1
    teacher, student = (torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 2))
                        for _ in range(2))
    with torch.no_grad():
        teacher[1].weight.copy_(torch.stack([half.flatten(), -half.flatten()]) / 8)
        teacher[1].bias.zero_()
    source.teacher = teacher.requires_grad_(False)
    sgd = torch.optim.SGD(student.parameters(), lr=0.1, momentum=0.9)
    for images, *_ in source.batches(0, 0, student):
        x = source.standardize(images / 255.0)
        inversion_terms.kl_each(teacher(x), student(x)).mean().backward()
        sgd.step()
        sgd.zero_grad()
    x = torch.randn(500, 1, 8, 8)
    assert (teacher(x).argmax(1) == student(x).argmax(1)).float().mean() > 0.8


def test_the_generator_is_updated_once_in_so_many_student_steps(make):
    source, student, _ = make("dfq")
    seen, real = [], source.update
    source.update = lambda student, epoch, step: seen.append((epoch, step)) or real(student, epoch,
                                                                                     step)
    for epoch in range(2):
        list(source.batches(epoch, 0, student))
    assert seen == [(0, 0), (0, 2), (1, 1)]  # steps 0, 2, 4 of all


def test_the_student_sees_fresh_8_bit_images_without_labels_and_ids_of_their_own(make):
    source, student, _ = make("dfq")
    batches = [*source.batches(0, 0, student), *source.batches(1, 0, student)]
    assert all(i.dtype == torch.uint8 and i.shape == (16, 1, 8, 8) for i, _, _ in batches)
    assert not torch.equal(batches[0][0], batches[1][0])
    assert {int(v) for _, labels, _ in batches for v in labels} == {-1}
    assert len({int(v) for *_, ids in batches for v in ids}) == 6 * 16


def test_passes_are_counted_in_images(make):
    source, student, _ = make("dfq")
    list(source.batches(0, 0, student))  # updates before steps 0 and 2, three batches
    assert source.budget() == {"images_kept": 0, "generator_evaluations": 2 * 16 + 3 * 16,
                               "teacher_passes": 32, "student_passes": 32}
    source, student, _ = make("dafl")  # which does not look at the student
    list(source.batches(0, 0, student))
    assert source.budget()["student_passes"] == 0


def test_a_loss_that_is_not_finite_stops_with_its_term_and_step(make):
    source, student, _ = make("dfq")
    with torch.no_grad():
        source.generator.last.bias.fill_(math.nan)
    with pytest.raises(DivergedError, match="became nan in epoch 3 at step 2"):
        source.update(student, 2, 1)


# --- a run ----------------------------------------------------------------------------------------

def test_a_state_goes_on_to_the_same_batches(make):
    whole, student, _ = make("dfq")
    batches = list(whole.batches(0, 0, student))
    first, _, _ = make("dfq")
    steps = first.batches(0, 0, student)
    next(steps)
    next(steps)
    state = first.state_dict()
    state = {**state, "generator": {k: v.clone() for k, v in state["generator"].items()}}
    second, _, _ = make("dfq")
    second.load_state_dict(state)
    (images, _, ids), = second.batches(0, 2, student)
    assert torch.equal(images, batches[2][0]) and torch.equal(ids, batches[2][2])
    assert second.budget() == whole.budget()


SETTINGS = [("dafl", "norm"), ("dfq", "sigmoid"), ("zskt", "norm")]


@pytest.mark.parametrize(("method", "output"), SETTINGS)
def test_a_run_stopped_and_started_ends_in_the_same_bits(tmp_path, teacher_folder, method, output,
                                                         monkeypatch):
    def argv(name):
        return command(tmp_path / name, method, "--generator-output", output,
                       teacher=teacher_folder)

    assert distill.main(argv("unbroken")) == 0
    real, moment = stream.StreamSource.batches, []

    def stopping(self, epoch, first_step=0, student=None):
        for step, batch in enumerate(real(self, epoch, first_step, student), first_step):
            if (epoch, step) == (0, 1) and not moment:  # updates of the generator follow
                moment.append(True)
                processes.os.kill(processes.os.getpid(), 15)
            yield batch

    monkeypatch.setattr(stream.StreamSource, "batches", stopping)
    assert distill.main(argv("broken")) == 143
    assert not (tmp_path / "broken/result.json").exists()
    assert distill.main(argv("broken")) == 0
    assert_same_end(tmp_path / "unbroken", tmp_path / "broken")


@pytest.mark.parametrize(("method", "output"), SETTINGS)
def test_a_run_killed_in_its_third_checkpoint_ends_in_the_same_bits(tmp_path, teacher_folder,
                                                                    method, output):
    def argv(name):
        return command(tmp_path / name, method, "--generator-output", output,
                       "--checkpoint-seconds", "1e-3", teacher=teacher_folder)

    assert processes.run("distill", *argv("unbroken")).code == 0
    assert processes.run("distill", *argv("killed"), at="half last.pt", count=3).code == 137
    assert (tmp_path / "killed/previous.pt").exists()  # the second; last.pt is half of the third
    assert processes.run("distill", *argv("killed")).code == 0
    assert_same_end(tmp_path / "unbroken", tmp_path / "killed")


def assert_same_end(a, b):
    for name in ("student.safetensors", "predictions.json", "samples.png"):
        assert (a / name).read_bytes() == (b / name).read_bytes(), name
    budgets = [run.files.read_json(p / "result.json")["budget"] for p in (a, b)]
    assert budgets[0] | {"seconds": 0} == budgets[1] | {"seconds": 0}


def test_held_out_images_are_fresh_the_same_each_time_and_change_nothing(make):
    source, student, _ = make("dfq")
    batches = list(source.batches(0, 0, student))
    before, used = snapshot(source.generator), source.budget()
    images = source.held_out(student)
    assert images.shape == (256, 1, 8, 8) and images.dtype == torch.uint8
    assert torch.equal(images, source.held_out(student))
    assert same(before, snapshot(source.generator)) and source.budget() == used
    seen = {image.numpy().tobytes() for batch, *_ in batches for image in batch}
    assert not seen & {image.numpy().tobytes() for image in images}


@pytest.mark.parametrize("method", METHODS)
def test_a_run_writes_its_budget_and_samples(tmp_path, teacher_folder, method):
    out = tmp_path / "run"
    assert distill.main(command(out, method, teacher=teacher_folder)) == 0
    rows = run.read_metrics(out)
    assert rows[1]["generator_evaluations"] == 3 * 16 + 6 * 16 > rows[0]["generator_evaluations"]
    result = run.files.read_json(out / "result.json")
    assert result["budget"] == {
        "images_kept": 0, "student_steps": 6, "generator_evaluations": 144,
        "teacher_passes": 48 + 96, "student_passes": 96 + (0 if method == "dafl" else 48),
        "seconds": result["seconds"]}
    assert (out / "samples.png").read_bytes()[:4] == b"\x89PNG"
    assert 0 <= result["blind_agreement"] <= 100


def test_a_teacher_without_batch_norm_is_refused_before_anything_is_written(tmp_path, capsys):
    assert distill.main(command(tmp_path / "run", "dfq", teacher="lenet5@none")) == 2
    message = capsys.readouterr().err
    assert "no BatchNorm2d" in message and "dafl, zskt" in message
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("flags", [["--images-per-class", "3"], ["--label-weight", "0.1"],
                                   ["--cache-teacher"], ["--source-labels", "none"]])
def test_flags_of_stored_images_are_refused(tmp_path, capsys, flags):
    assert distill.main(command(tmp_path / "run", "dafl", *flags)) == 2
    assert flags[0] in capsys.readouterr().err


@pytest.mark.parametrize("method", list(distill.ONLINE))
def test_more_than_one_process_is_refused(tmp_path, capsys, monkeypatch, method):
    monkeypatch.setattr(distill.dist, "world_size", lambda: 2)
    assert distill.main(["--task", "digits", "--source", method, "--teacher", "cnn_w4@none",
                         "--student", "cnn_w4", "--threads", "1", "--device", "cpu", "--out",
                         str(tmp_path / "run")]) == 2
    message = capsys.readouterr().err
    assert f"--source {method} trains a generator in one process, not in 2" in message
    assert not (tmp_path / "run").exists()


def test_every_weight_0_leaves_nothing_to_do(make):
    with pytest.raises(UserError, match="every term"):
        make("zskt", "--adv-kl-weight", "0")


def test_a_dry_run_needs_no_teacher_and_writes_nothing(tmp_path, capsys):
    argv = command(tmp_path / "run", "dfq", "--dry-run", teacher=tmp_path / "none")
    assert distill.main(argv) == 0
    out = capsys.readouterr().out
    assert "on dfq for 2 epochs" in out and "source" not in out and not (tmp_path / "run").exists()
