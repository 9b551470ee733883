"""The diffusion process and its loss against golden values of the original definition and closed
forms."""

import math
from pathlib import Path

import pytest
import safetensors.torch
import torch

from dm_kd.generators.diffusion import (
    Diffusion,
    diffusion_loss,
    sample_ddpm,
    to_uint8,
)

GOLDEN = Path(__file__).parent / "data" / "dit_tiny_golden.safetensors"


@pytest.mark.parametrize("steps", [10, 100, 250])
def test_respaced_steps_equal_the_golden_ones(steps):
    golden = safetensors.torch.load_file(GOLDEN)
    assert torch.equal(Diffusion(steps).network_times, golden[f"steps_{steps}"])


def test_fixed_variance_equals_ddim_with_eta_1():
    """Song et al. 2021 eq. 12 and 16 with eta = 1, from the betas alone."""
    steps, torch_double = 7, {"dtype": torch.float64}
    eps_of, noise = torch.randn(steps, 2, 1, 4, 4, **torch_double), torch.randn(
        steps, 2, 1, 4, 4, **torch_double)
    start = torch.randn(2, 1, 4, 4, **torch_double)
    times = torch.linspace(0, 999, steps, **torch_double).round().long()
    alpha_bar = (1 - torch.linspace(1e-4, 0.02, 1000, **torch_double)).cumprod(0)
    x = start
    for i in reversed(range(steps)):
        now = alpha_bar[times[i]]
        before = alpha_bar[times[i - 1]] if i else torch.ones((), **torch_double)
        sigma = ((1 - before) / (1 - now) * (1 - now / before)).sqrt()
        x0 = (x - (1 - now).sqrt() * eps_of[i]) / now.sqrt()
        x = before.sqrt() * x0 + (1 - before - sigma ** 2).clamp_min(0).sqrt() * eps_of[i]
        x = x + sigma * noise[i]
    index = {int(t): i for i, t in enumerate(times)}
    drawn = iter(noise.flip(0))
    ours = sample_ddpm(lambda x, t: eps_of[index[int(t[0])]], Diffusion(steps), start,
                       lambda: next(drawn))
    assert float((ours - x).norm() / x.norm()) < 1e-5  # our tables are rounded to float32


def test_to_uint8_rounds_to_the_nearest_and_clamps():
    x = torch.tensor([-9.0, -1.0, 0.0, 1.0, 9.0])
    assert to_uint8(x).tolist() == [0, 0, 128, 255, 255]
    levels = torch.arange(256)
    for shift in (-0.45, 0.0, 0.45):
        assert torch.equal(to_uint8((levels + shift) / 127.5 - 1).long(), levels)


class Fixed(torch.nn.Module):
    """A network with a given output."""

    def __init__(self, out):
        super().__init__()
        self.out = out

    def forward(self, x, t, labels):
        self.seen = x, t, labels
        return self.out


def test_the_variance_term_has_the_hand_computed_value_in_bits():
    process, i = Diffusion(), torch.tensor([400])
    x0, noise = torch.randn(2, 1, 1, 2, 2).unbind()
    out = torch.cat([noise, torch.full_like(noise, 1.0)], 1)  # variance beta, the mean is right
    log_ratio = float(process.tables["log_beta"][400] - process.tables["log_variance"][400])
    expected = 0.5 * (log_ratio - 1 + math.exp(-log_ratio)) / math.log(2)
    loss = diffusion_loss(Fixed(out), process, x0, torch.tensor([0]), i, noise)
    assert expected > 0 and abs(float(loss) - expected) < 1e-6


def test_the_variance_term_teaches_the_variance_only():
    x0, noise, eps, raw = torch.randn(4, 2, 1, 4, 4).unbind()
    out = torch.cat([eps, raw], 1).requires_grad_()
    i = torch.tensor([0, 600])
    diffusion_loss(Fixed(out), Diffusion(), x0, torch.tensor([0, 1]), i, noise).sum().backward()
    expected = 2 * (eps - noise) / 16  # of the squared error alone
    assert torch.allclose(out.grad[:, :1], expected, atol=1e-6)
    assert (out.grad[:, 1:].flatten(1).abs().sum(1) > 0).all()


def test_step_0_is_the_likelihood_of_the_8_bit_image():
    process, x0 = Diffusion(), torch.tensor([[[[-1.0, 0.0], [3 / 255, 1.0]]]])
    noise = torch.randn(1, 1, 2, 2)
    out = torch.cat([noise, torch.zeros_like(noise)], 1)
    loss = diffusion_loss(Fixed(out), process, x0, torch.tensor([0]), torch.tensor([0]), noise)
    scale = math.exp(0.25 * float(process.tables["log_beta"][0]
                                  + process.tables["log_variance"][0]))
    normal = torch.distributions.Normal(0.0, scale)  # eps = noise: the mean is x0 itself
    inside = float(normal.cdf(torch.tensor(1 / 255)))
    nats = -(2 * math.log(inside) + 2 * math.log(2 * inside - 1)) / 4  # two bins are half-open
    assert abs(float(loss) - nats / math.log(2)) < 1e-3
