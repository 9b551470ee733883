"""The loss terms of the rivals; the goldens have their values."""

import math

import pytest
import torch
from torch import nn

from dm_kd import models
from dm_kd.rivals import cmi, terms
from dm_kd.run import UserError


def test_bn_has_gradient_zero_where_the_statistics_match():
    mean = torch.zeros(2, requires_grad=True)
    terms.bn([(mean, torch.ones(2))], [(torch.zeros(2), torch.ones(2))]).backward()
    assert mean.grad.tolist() == [0, 0]


def test_balance_has_a_gradient_where_a_class_does_not_occur():
    never = torch.tensor([[0.0, -1e4]], requires_grad=True)
    terms.balance(never).backward()
    assert torch.isfinite(never.grad).all()


def test_no_gradient_of_contrastive_flows_through_the_whole_images():
    local, whole = (torch.eye(3)[order].requires_grad_() for order in ([0, 1, 2], [0, 2, 1]))
    cmi.contrastive(local, whole, 1).backward()
    assert whole.grad is None and local.grad.abs().max() > 0


def test_jitter_rolls_and_mirrors_the_whole_batch_by_the_same():
    x = torch.arange(64.0).view(1, 1, 8, 8).repeat(2, 1, 1, 1)
    draw = torch.Generator().manual_seed(0)
    views = [terms.jitter(x, 2, True, draw) for _ in range(20)]
    assert all(torch.equal(v[0], v[1]) for v in views)
    candidates = [torch.roll(x, (r, c), (2, 3)) for r in range(-2, 3) for c in range(-2, 3)]
    candidates += [c.flip(3) for c in candidates]
    found = {next(i for i, c in enumerate(candidates) if torch.equal(c, v)) for v in views}
    assert len(found) > 10 and min(found) < 25 <= max(found)


@pytest.fixture
def network():
    model = nn.Sequential(nn.Conv2d(1, 2, 1), nn.BatchNorm2d(2), nn.ReLU(inplace=True),
                          nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(2, 3))
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor([1.0, -2.0]).view(2, 1, 1, 1))
        model[0].bias.zero_()
    return model.eval()


PAIR = torch.tensor([[1.0, 3.0], [5.0, 7.0]]).view(2, 1, 1, 2)


def test_statistics_are_biased_and_a_recording_leaves_no_hook(network):
    with terms.recorded([network[1]], terms.batch_and_running) as pairs:
        network(PAIR)
    (mean, variance), (running_mean, running_variance) = pairs[0]
    assert mean.tolist() == pytest.approx([4, -8])
    assert variance.tolist() == pytest.approx([5, 20])  # of 1, 3, 5, 7
    assert running_mean is network[1].running_mean and running_variance.tolist() == [1, 1]
    with pytest.raises(RuntimeError), terms.recorded([network[1]], terms.batch_and_running):
        network(torch.zeros(1, 5, 2, 2))
    assert not any(m._forward_pre_hooks for m in network.modules())


def test_weighted_multiplies_and_leaves_out_what_has_weight_0(network):
    def student(x):
        pytest.fail("no term looks at the student")

    targets = torch.tensor([0, 1])
    parts, _ = terms.weighted({"ce_target": 0.5, "bn": 2.0, "adv_kl": 0.0}, network, PAIR, student,
                              targets)
    assert parts.keys() == {"ce_target", "bn"}
    assert parts["ce_target"] == 0.5 * terms.ce_target(network(PAIR), targets)
    # means 4, -8 against 0; variances 5, 20 against 1
    assert parts["bn"].item() == pytest.approx(2 * (math.sqrt(80) + math.sqrt(16 + 361)))


@pytest.mark.parametrize("bf16", [False, True])
def test_every_term_has_a_float32_value_and_a_gradient_of_the_images(bf16, digits):
    torch.manual_seed(1)
    teacher, student = (models.build("cnn_w4", digits).eval() for _ in range(2))
    x = torch.randn(64, 1, 8, 8, requires_grad=True)
    for name in terms.NAMES:
        parts, _ = terms.weighted({name: 1.0}, teacher, x, student, torch.zeros(64).long(),
                                  bf16=bf16)
        gradient, = torch.autograd.grad(parts[name], x)
        assert parts[name].dtype == torch.float32, name
        assert torch.isfinite(gradient).all() and gradient.abs().max() > 0, name


def test_a_teacher_without_batch_statistics_is_refused_where_they_are_read(digits):
    lenet5 = models.build("lenet5", digits)
    terms.weighted({"onehot": 1.0, "act": 1.0}, lenet5, torch.zeros(2, 1, 8, 8))
    teacher = models.build("cnn_w4", digits)
    for norm in terms.batch_norms(teacher):
        norm.running_mean = None
    for without in (teacher, lenet5):
        with pytest.raises(UserError, match="no BatchNorm2d"):
            terms.batch_norms(without)
