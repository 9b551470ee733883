"""iMF: its sampler where the answer is known, its network piece by piece, its keys."""

import math

import pytest
import torch

from dm_kd import synthesize
from dm_kd.generators import imf
from dm_kd.run import UserError
from dm_kd.tasks import get_task

MEAN, STD = 0.7, 0.4  # of the data
CPU = torch.device("cpu")


def network(**changes) -> imf.IMF:
    model = imf.IMF(**{"patch_size": 8, "channels": 3, "width": 64, "depth": 9,
                       "num_classes": 100} | changes)
    for i, parameter in enumerate(model.parameters()):
        draw = torch.Generator().manual_seed(i)
        parameter.data = torch.randn(parameter.shape, generator=draw) / 2
    return model.eval().requires_grad_(False)


def official(state: dict) -> dict:
    """Our keys as the official branch's, the second head's last layer included."""
    renamed = {}
    for key, value in state.items():
        parts = key.split(".")
        owner = parts[-2] if len(parts) > 1 else ""
        if owner == "embedding_table":
            parts.insert(-1, "_flax_embedding")
        elif owner in ("0", "2", "linear", "w1", "w2", "w3") or owner.endswith("_proj"):
            parts.insert(-1, "_flax_linear")
        renamed["net." + ".".join(parts)] = value
    for name in ("norm.weight", "linear._flax_linear.weight", "linear._flax_linear.bias"):
        renamed[f"net.v_final_layer.{name}"] = renamed[f"net.u_final_layer.{name}"] + 1
    return renamed


@pytest.fixture
def checkpoint(tmp_path):
    def make(change=lambda state: state):
        file = tmp_path / "MiT_tiny.pth"
        torch.save(change(official(network().state_dict())), file)
        return file

    return make


def built(file, *argv) -> imf.IMFGenerator:
    args = synthesize.parse(["--task", "cifar100", "--generator", "imf", "--weights", str(file),
                             "--out", "unused", *argv])
    return imf.build(args, get_task("cifar100"), CPU)


@pytest.mark.parametrize("steps", [1, 3])
def test_the_exact_average_velocity_of_gaussian_data_needs_one_step(steps):
    """Along the flow z_t = mean_t + std_t z; the average velocity is the way over the time."""
    def spread(t):
        return math.sqrt((1 - t) ** 2 * STD ** 2 + t ** 2)

    def average_velocity(z, t, r):
        unit = (z - (1 - t) * MEAN) / spread(t)
        return (z - (1 - r) * MEAN - spread(r) * unit) / (t - r)

    noise = torch.randn(50, dtype=torch.float64)
    assert torch.allclose(imf.sample_mean_flow(average_velocity, noise, steps), MEAN + STD * noise)


# --- the network ----------------------------------------------------------------------------------

def test_the_conditions_are_what_the_network_was_trained_with(checkpoint):
    """Guidance enters as 1 - 1 / omega, beside its interval; the time as the span."""
    generator, seen = built(checkpoint(), "--network-guidance", "4", "--steps", "2"), {}
    for name in ("omega_embedder", "cfg_t_start_embedder", "cfg_t_end_embedder", "h_embedder"):
        getattr(generator.model, name).register_forward_pre_hook(
            lambda _, x, name=name: seen.update({name: float(x[0][0])}))
    generator.sample(torch.tensor([1]), [2])
    assert seen == pytest.approx({"omega_embedder": 0.75, "cfg_t_start_embedder": 0.4,
                                  "cfg_t_end_embedder": 0.65, "h_embedder": 0.5})


def test_attention_equals_the_written_out_product_with_turned_complex_pairs():
    torch.manual_seed(1)
    layer, x = imf.Attention(128).double(), torch.randn(2, 7, 128, dtype=torch.float64)
    rates = 10000.0 ** (-torch.arange(0, 64, 2, dtype=torch.float64) / 64)
    turns = torch.exp(1j * torch.arange(7, dtype=torch.float64)[:, None] * rates)

    def heads(projection):
        return projection(x).view(2, 7, 2, 64).permute(0, 2, 1, 3)

    def turned(v):  # the norms' weights are ones here
        v = v / (v.square().mean(-1, keepdim=True) + 1e-6).sqrt()
        pairs = torch.view_as_complex(v.unflatten(3, (32, 2)).contiguous())
        return torch.view_as_real(pairs * turns).flatten(3)

    q, k, v = turned(heads(layer.q_proj)), turned(heads(layer.k_proj)), heads(layer.v_proj)
    weights = torch.softmax(q @ k.transpose(2, 3) / 8, -1)
    expected = layer.out_proj((weights @ v).permute(0, 2, 1, 3).reshape(2, 7, 128))
    assert torch.allclose(layer(x, imf.rotary_turns(7, CPU)), expected, atol=1e-5)


def test_the_network_has_its_recorded_outputs():
    """Recorded when its blocks and the order of its conditions were tested by hand."""
    z = torch.sin(torch.arange(3 * 32 * 32.0)).view(1, 3, 32, 32)
    u = network()(z, torch.tensor([0.5]), torch.tensor([2.0]), torch.tensor([7]))
    assert [*u[0, :, 5, 7].tolist(), u.std().item()] == pytest.approx(
        [-1.74939, 3.41019, -1.39227, 1.89126], abs=1e-3)


# --- checkpoints and images -----------------------------------------------------------------------

def test_the_official_keys_become_ours_and_others_are_named(checkpoint):
    loaded, expected = imf.load(str(checkpoint())).state_dict(), network().state_dict()
    assert loaded.keys() == expected.keys()
    assert all(torch.equal(loaded[key], expected[key]) for key in expected)
    for value in ({"net.extra": torch.zeros(1)}, {"net.omega_tokens": torch.zeros(5, 64)}):
        with pytest.raises(UserError, match=next(iter(value)).removeprefix("net.")):
            built(checkpoint(lambda state: state | value))
