"""The small conditional GAN: networks, truncation, and its folder."""

import pytest
import torch

from dm_kd import run, synthesize
from dm_kd.generators import gan
from dm_kd.image_set import image_seed
from dm_kd.run import UserError
from dm_kd.tasks import get_task


def network(**changes) -> gan.Generator:
    torch.manual_seed(0)
    return gan.Generator(**{"resolution": 8, "channels": 1, "num_classes": 10, "width": 8,
                            "latent_size": 4} | changes).eval()


def generator(truncation=1.0) -> gan.GanGenerator:
    return gan.GanGenerator(network(), {"truncation": truncation}, torch.device("cpu"))


@pytest.mark.parametrize(("resolution", "expected"), [(8, (4, 1)), (28, (7, 2))])
def test_maps_are_doubled_up_to_the_resolution(resolution, expected):
    assert gan.start_size(resolution) == expected
    image = network(resolution=resolution, channels=3)(torch.zeros(2, 4), torch.tensor([0, 1]))
    assert image.shape == (2, 3, resolution, resolution) and image.abs().max() < 1
    assert gan.Discriminator(resolution, 3, 10, 8)(image, torch.tensor([0, 1])).shape == (2,)


def test_the_noise_is_a_normal_cut_at_two_and_truncation_scales_it():
    z = gan.truncated_normal(3, 100_000)
    assert 1.99 < z.abs().max() <= 2 and abs(float(z.mean())) < 0.01
    assert float(z.std()) == pytest.approx(0.8796, abs=0.005)  # of the normal cut at +-2
    made, seen = generator(0.25), []
    made.model.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    made.sample(torch.tensor([1]), [9])
    assert torch.equal(seen[0][0], 0.25 * gan.truncated_normal(9, 4))


def test_an_image_depends_on_its_seed_and_not_on_its_batch():
    seeds = [image_seed(0, c, 1) for c in range(4)]
    together = generator().sample(torch.arange(4), seeds)
    alone = generator().sample(torch.tensor([2]), seeds[2:3])
    assert (together[2].int() - alone[0].int()).abs().max() <= 1
    assert not torch.equal(together[2], together[3])


def test_the_folder_is_read_back_recorded_and_only_for_its_task(tmp_path):
    def built(folder, *more, task="digits"):
        args = synthesize.parse(["--task", task, "--generator", "gan", "--weights", str(folder),
                                 "--truncation", "0.5", "--out", "unused", *more])
        return gan.build(args, get_task(task), torch.device("cpu"))

    model = network()
    run.write_with_card(tmp_path, "gan", model.state_dict(), {
        "class_names": list("0123456789"), "config": model.config, "licence": "mine",
        "trained_on": "digits"})
    made = built(tmp_path)
    assert {"name": "gan", "truncation": 0.5, "licence": "mine"}.items() <= made.settings.items()
    assert torch.equal(made.sample(torch.tensor([1]), [2]),
                       generator(0.5).sample(torch.tensor([1]), [2]))
    for task, more in (("fashion_mnist", []), ("digits", ["--truncation", "1.1"])):
        with pytest.raises(UserError):
            built(tmp_path, *more, task=task)
