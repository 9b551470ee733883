"""The diffusion process against golden values of the original definition and closed forms."""

from pathlib import Path

import pytest
import safetensors.torch
import torch

from dm_kd.generators.diffusion import Diffusion, sample, to_uint8

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
    ours = sample(lambda x, t: eps_of[index[int(t[0])]], Diffusion(steps), start,
                  lambda: next(drawn))
    assert float((ours - x).norm() / x.norm()) < 1e-5  # our tables are rounded to float32


def test_to_uint8_rounds_to_the_nearest_and_clamps():
    x = torch.tensor([-9.0, -1.0, 0.0, 1.0, 9.0])
    assert to_uint8(x).tolist() == [0, 0, 128, 255, 255]
    levels = torch.arange(256)
    for shift in (-0.45, 0.0, 0.45):
        assert torch.equal(to_uint8((levels + shift) / 127.5 - 1).long(), levels)
