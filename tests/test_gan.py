"""The small conditional GAN: networks, losses, truncation, and its training to the same bits."""

import json

import pytest
import torch

from dm_kd import synthesize, train_generator
from dm_kd.errors import DamagedError, UserError
from dm_kd.generators import gan
from dm_kd.image_set import image_seed
from dm_kd.tasks import get_task, load_real

TRAIN = ["--kind", "gan", "--task", "digits", "--width", "8", "--latent-size", "4", "--steps", "6",
         "--batch-size", "8", "--sample-every", "4", "--device", "cpu", "--threads", "1", "--out"]


def network(**changes) -> gan.Generator:
    torch.manual_seed(0)
    return gan.Generator(**{"resolution": 8, "channels": 1, "num_classes": 10, "width": 8,
                            "latent_size": 4} | changes).eval()


def generator(truncation=1.0) -> gan.GanGenerator:
    return gan.GanGenerator(network(), {"truncation": truncation}, torch.device("cpu"))


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("gan") / "whole"
    assert train_generator.main([*TRAIN, str(folder)]) == 0
    return folder


# --- networks -------------------------------------------------------------------------------------

@pytest.mark.parametrize(("resolution", "expected"), [(8, (4, 1)), (28, (7, 2)), (32, (4, 3))])
def test_maps_are_doubled_up_to_the_resolution(resolution, expected):
    assert gan.start_size(resolution) == expected
    image = network(resolution=resolution, channels=3)(torch.zeros(2, 4), torch.tensor([0, 1]))
    assert image.shape == (2, 3, resolution, resolution) and image.abs().max() < 1
    verdicts = gan.Discriminator(resolution, 3, 10, 8)(image, torch.tensor([0, 1]))
    assert verdicts.shape == (2,)


def test_the_norm_scales_and_shifts_by_class():
    norm = gan.ConditionalNorm(8, 3)
    norm.gain.weight.data[2], norm.bias.weight.data[2] = 2.0, 5.0
    x = torch.randn(1, 8, 4, 4)
    plain, changed = norm(x, torch.tensor([0])), norm(x, torch.tensor([2]))
    assert torch.allclose(plain.mean((2, 3)), torch.zeros(1, 8), atol=1e-6)  # a channel a group
    assert torch.allclose(changed, 2 * plain + 5, atol=1e-6)


def test_the_discriminator_adds_the_projection_on_the_class():
    torch.manual_seed(0)
    judge = gan.Discriminator(8, 1, 10, 8).eval()
    x = torch.randn(3, 1, 8, 8)
    h = judge.features(x)
    labels = torch.tensor([1, 5, 5])
    rows = judge.embed.weight[labels]
    expected = h @ judge.psi.weight[0] + judge.psi.bias + (rows * h).sum(1)
    assert torch.allclose(judge(x, labels), expected, atol=1e-6)


def test_losses_by_hand():
    """log 2 each for an answer of 0; log(1 + e^-2) and log(1 + e^1) for 2 and 1."""
    real, fake = torch.tensor([2.0, 0.0]), torch.tensor([0.0, 1.0])
    expected = (0.126928 + 0.693147) / 2 + (0.693147 + 1.313262) / 2
    assert float(gan.discriminator_loss(real, fake)) == pytest.approx(expected, abs=1e-6)
    assert float(gan.generator_loss(fake)) == pytest.approx((0.693147 + 0.313262) / 2, abs=1e-6)


def test_the_penalty_by_hand():
    """D = <w, x> has the slope w everywhere: 1/2 |w|^2; D = |x|^2 has 2x: 2 |x|^2."""
    x = torch.tensor([[[[1.0, 2.0]]], [[[0.0, -1.0]]]], requires_grad=True)
    w = torch.tensor([3.0, -4.0])
    assert float(gan.r1_penalty((x.flatten(1) * w).sum(1), x).detach()) == pytest.approx(12.5)
    penalty = gan.r1_penalty(x.square().sum((1, 2, 3)), x)
    assert float(penalty.detach()) == pytest.approx((2 * 5 + 2 * 1) / 2)
    assert torch.autograd.grad(penalty, x)[0].abs().sum() > 0  # it can be learned from


# --- sampling -------------------------------------------------------------------------------------

def test_the_noise_is_a_normal_cut_at_two():
    z = gan.truncated_normal(3, 100_000)
    assert z.abs().max() <= 2 and z.abs().max() > 1.99
    assert abs(float(z.mean())) < 0.01
    assert float(z.std()) == pytest.approx(0.8796, abs=0.005)  # of the normal cut at +-2
    assert torch.equal(z[:5], gan.truncated_normal(3, 5))


def test_truncation_scales_the_noise():
    made, seen = generator(0.25), []
    made.model.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    made.sample(torch.tensor([1]), [9])
    assert torch.equal(seen[0][0], 0.25 * gan.truncated_normal(9, 4))


def test_less_truncation_makes_images_more_alike():
    spreads = []
    for truncation in (0.1, 1.0):
        images = generator(truncation).sample(torch.full((40,), 3), list(range(40))).float()
        spreads.append(float(images.std(0).mean()))
    assert spreads[0] < 0.5 * spreads[1]


def test_an_image_hangs_on_its_seed_and_not_on_its_batch():
    seeds = [image_seed(0, c, 1) for c in range(4)]
    together = generator().sample(torch.arange(4), seeds)
    alone = generator().sample(torch.tensor([2]), seeds[2:3])
    assert (together[2].int() - alone[0].int()).abs().max() <= 1
    assert not torch.equal(together[2], together[3])


@pytest.mark.parametrize("text", ["0", "1.1", "x", "nan"])
def test_truncation_lies_between_0_and_1(text, capsys):
    code = synthesize.main(["--task", "digits", "--generator", "gan", "--weights", "x",
                            "--truncation", text, "--out", "unused"])
    assert code == 2 and "truncation" in capsys.readouterr().err


# --- training -------------------------------------------------------------------------------------

def test_it_does_not_collapse_to_one_picture_a_class(tmp_path):
    """Spread of a pixel within a class, beside that of real images. A spectrally normalised
    discriminator with the hinge loss left half of it."""
    assert train_generator.main(["--kind", "gan", "--task", "digits", "--steps", "300",
                                 "--device", "cpu", "--threads", "1", "--out",
                                 str(tmp_path)]) == 0
    model, _ = gan.load(tmp_path)
    labels = torch.arange(10).repeat_interleave(20)
    made = gan.GanGenerator(model, {"truncation": 1.0}, torch.device("cpu")).sample(
        labels, list(range(200)))
    real = load_real(get_task("digits"), "train", 0, "val")
    kept = torch.cat([real.images[real.labels == c][:20] for c in range(10)])
    spreads = [images.float().view(10, 20, -1).std(1).mean() for images in (made, kept)]
    assert spreads[0] > 0.75 * spreads[1]


@pytest.mark.parametrize(("weight", "times"), [("0", 0), ("0.5", 2)])
def test_the_penalty_is_taken_every_fourth_step_at_four_times_its_weight(
        weight, times, tmp_path, monkeypatch):
    """Six steps: at the first and the fifth. Its part of the gradient, by a slope of 1."""
    slopes = []

    def penalty(verdicts, images):
        assert images.requires_grad and verdicts.requires_grad
        value = torch.zeros((), requires_grad=True)
        value.register_hook(lambda slope: slopes.append(float(slope)))
        return value

    monkeypatch.setattr(gan, "r1_penalty", penalty)
    assert train_generator.main([*TRAIN, str(tmp_path), "--r1-weight", weight]) == 0
    assert slopes == [4 * float(weight)] * times


def test_a_run_that_was_stopped_ends_in_the_same_bits(trained, tmp_path, monkeypatch):
    """Saved after each step, stopped after the third, gone on with."""
    save, folder = train_generator.run.Run.save_checkpoint, tmp_path / "stopped"

    class Killed(Exception):
        pass

    def killed(run, state):
        save(run, state)
        if state["step"] == 3:
            raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(train_generator.run.Run, "save_checkpoint", killed)
        patch.setattr(train_generator.run.Run, "due", lambda run: True)
        with pytest.raises(Killed):
            train_generator.main([*TRAIN, str(folder)])
    assert train_generator.main([*TRAIN, str(folder)]) == 0
    assert "resumed at step 3" in (folder / "log.txt").read_text()
    for name in ("gan.safetensors", "gan.json", "samples_0000006.png"):
        assert (folder / name).read_bytes() == (trained / name).read_bytes(), name


def test_the_run_holds_what_a_dits_run_holds(trained):
    names = {path.name for path in trained.iterdir()}
    assert {"config.yaml", "log.txt", "metrics.jsonl", "last.pt", "result.json", "gan.json",
            "gan.safetensors", "samples_0000004.png"} <= names
    row = json.loads((trained / "metrics.jsonl").read_text().splitlines()[-1])
    assert row["step"] == 6 and row["train_loss"] > 0 and "generator_loss" in row
    assert json.loads((trained / "result.json").read_text())["steps"] == 6
    assert "--kind gan" in json.loads((trained / "result.json").read_text())["command"]


def test_the_average_follows_the_weights_and_both_networks_learn(trained):
    state = torch.load(trained / "last.pt", weights_only=True)
    start = train_generator.build_gan(train_generator.parse([*TRAIN, "x"]), get_task("digits"))
    for average, first, last in zip(state["average"], start.parameters(),
                                    state["model"].values(), strict=True):
        if not torch.equal(first, last):
            assert (average - last).norm() < (first - last).norm()
    assert any(not torch.equal(a, b) for a, b in zip(start.parameters(), state["model"].values(),
                                                    strict=True))
    assert state["judge_optimizer"]["state"] and state["optimizer"]["state"]


def test_the_rate_falls_over_the_last_half():
    assert [train_generator.gan_rate(step, 8) for step in (0, 4, 6, 7)] == [1, 1, 0.5, 0.25]


def test_a_width_that_does_not_divide_is_refused(capsys):
    assert train_generator.main(["--kind", "gan", "--task", "digits", "--width", "12", "--out",
                                 "unused"]) == 2
    assert "--width 16" in capsys.readouterr().err


def test_each_kind_has_its_own_flags(capsys):
    assert train_generator.main(["--kind", "gan", "--task", "digits", "--patch-size", "2", "--out",
                                 "unused", "--dry-run"]) == 2
    assert "patch-size" in capsys.readouterr().err
    assert train_generator.parse(["--task", "digits", "--out", "x"]).kind == "dit"


# --- the set --------------------------------------------------------------------------------------

def made_from(folder, task="digits"):
    args = synthesize.parse(["--task", task, "--generator", "gan", "--weights", str(folder),
                             "--truncation", "0.5", "--out", "unused"])
    return gan.build(args, get_task(task), torch.device("cpu"))


def test_the_folder_is_read_back_and_recorded(trained):
    made = made_from(trained)
    assert made.settings["name"] == "gan" and made.settings["truncation"] == 0.5
    assert "real training images of digits" in made.settings["trained_on"]
    assert made.sample(torch.tensor([1]), [2]).shape == (1, 1, 8, 8)


def test_other_folders_are_refused(trained, tmp_path):
    with pytest.raises(UserError, match="no finished GAN"):
        made_from(tmp_path)
    with pytest.raises(UserError, match="trained on digits, not fashion_mnist"):
        made_from(trained, "fashion_mnist")
    for name in ("gan.json", "gan.safetensors"):
        (tmp_path / name).write_bytes((trained / name).read_bytes())
    card = json.loads((tmp_path / "gan.json").read_text())
    card["config"]["width"] = 16
    (tmp_path / "gan.json").write_text(json.dumps(card))
    with pytest.raises(DamagedError, match="does not fit"):
        made_from(tmp_path)
