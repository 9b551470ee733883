"""The loss terms of the rivals, each against a value worked out by hand."""

import math

import pytest
import torch
from torch import Tensor, nn

from dm_kd import models
from dm_kd.rivals import cmi, terms
from dm_kd.run import UserError


def logits_of(*rows: tuple[float, ...]) -> Tensor:
    """Logits whose softmax are these probabilities."""
    return torch.tensor(rows).log()


def images_of(*pictures) -> Tensor:
    """[B, 1, H, W]."""
    return torch.tensor(pictures, dtype=torch.float32)[:, None]


def pair(mean: list[float], variance: list[float]) -> tuple[Tensor, Tensor]:
    return torch.tensor(mean), torch.tensor(variance)


# --- batch statistics -----------------------------------------------------------------------------

def test_bn_sums_norms_of_mean_and_variance_over_the_layers_and_weighs_the_first():
    seen = [pair([3.0, 4.0], [1.0, 1.0]), pair([1.0], [6.0])]
    running = [pair([0.0, 0.0], [1.0, 1.0]), pair([1.0], [4.0])]
    assert terms.bn(seen, running).item() == pytest.approx(5 + 2)
    assert terms.bn(seen, running, first=10.0).item() == pytest.approx(50 + 2)


def test_bn_has_gradient_zero_where_the_statistics_match():
    mean = torch.zeros(2, requires_grad=True)
    terms.bn([(mean, torch.ones(2))], [pair([0.0, 0.0], [1.0, 1.0])]).backward()
    assert mean.grad.tolist() == [0, 0]


def test_bn_ema_compares_a_mixture_of_batch_and_past_calls():
    seen, past, running = [pair([10.0], [2.0])], [pair([0.0], [4.0])], [pair([0.0], [1.0])]
    # mean 0.1 * 10 + 0.9 * 0 = 1, variance 0.2 + 3.6 = 3.8
    assert terms.bn_ema(seen, past, 0.9, running).item() == pytest.approx(1 + 2.8)
    assert terms.bn_ema(seen, [], 0.9, running) == terms.bn(seen, running) == 11


# --- the teacher's outputs, student against teacher -----------------------------------------------

def test_ce_target_and_onehot_are_cross_entropies_and_act_a_mean_size():
    logits = logits_of((0.5, 0.5), (0.25, 0.75))
    value = terms.ce_target(logits, torch.tensor([0, 0]))
    assert value.item() == pytest.approx((math.log(2) + math.log(4)) / 2)
    logits = logits_of((0.5, 0.3, 0.2), (0.1, 0.1, 0.8))  # with the teacher's own class
    assert terms.onehot(logits).item() == pytest.approx(-(math.log(0.5) + math.log(0.8)) / 2)
    assert terms.act(torch.tensor([[1.0, -3.0], [0.0, 2.0]])).item() == pytest.approx(-1.5)


def test_balance_is_the_negative_entropy_of_the_mean_probabilities():
    logits = logits_of((0.5, 0.5), (1.0 - 1e-7, 1e-7))  # mean 0.75, 0.25
    expected = 0.75 * math.log(0.75) + 0.25 * math.log(0.25)
    assert terms.balance(logits).item() == pytest.approx(expected, abs=1e-5)
    never = torch.tensor([[0.0, -1e4]], requires_grad=True)  # a class that does not occur
    terms.balance(never).backward()
    assert torch.isfinite(never.grad).all()


def test_adv_kl_is_minus_the_mean_divergence_of_teacher_from_student():
    teacher = logits_of((0.5, 0.5), (0.75, 0.25))
    student = logits_of((0.25, 0.75), (0.75, 0.25))
    kl = 0.5 * math.log(2) + 0.5 * math.log(0.5 / 0.75)  # of the first row; 0 of the second
    assert terms.adv_kl(teacher, student).item() == pytest.approx(-kl / 2)


def test_adv_dad_counts_only_images_that_both_put_into_one_class():
    teacher = logits_of((0.6, 0.4), (0.6, 0.4))
    student = logits_of((0.9, 0.1), (0.1, 0.9))  # agrees, disagrees
    kl = 0.6 * math.log(0.6 / 0.9) + 0.4 * math.log(0.4 / 0.1)
    assert terms.adv_dad(teacher, student).item() == pytest.approx(-kl / 2)


def test_adv_js_is_minus_the_divergence_at_temperature_three_and_at_most_ln_2():
    teacher, student = 3 * logits_of((0.8, 0.2)), 3 * logits_of((0.4, 0.6))  # M = 0.6, 0.4
    p = 0.4 * math.log(0.4 / 0.6) + 0.6 * math.log(0.6 / 0.4)
    q = 0.8 * math.log(0.8 / 0.6) + 0.2 * math.log(0.2 / 0.4)
    assert terms.adv_js(teacher, student).item() == pytest.approx(-(p + q) / 2)
    apart = terms.adv_js(torch.tensor([[900.0, 0.0]]), torch.tensor([[0.0, 900.0]]))
    assert apart.item() == pytest.approx(-math.log(2))


# --- images ---------------------------------------------------------------------------------------

# 0 1        right 1, 4   down 2, 5   diagonals: 6 - 0 = 6, and 2 - 1 = 1
# 2 6
SMALL = ((0.0, 1.0), (2.0, 6.0))


def test_total_variation_sums_over_four_directions_and_l2_means_over_images():
    assert terms.tv_l1(images_of(SMALL)).item() == pytest.approx(2.5 + 3.5 + 6 + 1)
    norms = math.sqrt(17) + math.sqrt(29) + 6 + 1
    assert terms.tv_l2(images_of(SMALL)).item() == pytest.approx(norms)
    assert terms.tv_l2(images_of(SMALL, SMALL)).item() == pytest.approx(math.sqrt(2) * norms)
    assert terms.l2(images_of(((3.0, 4.0),), ((0.0, 1.0),))).item() == pytest.approx(3)


def test_contrastive_is_cross_entropy_with_the_own_image_plus_that_of_the_pools_images():
    eye = torch.eye(2)
    assert cmi.contrastive(eye, eye, 0.5, 2).item() == pytest.approx(math.log(1 + math.exp(-2)))
    local, whole = (torch.eye(3)[order].requires_grad_() for order in ([0, 1, 2], [0, 2, 1]))
    right, value = math.log(1 + 2 * math.exp(-1)), cmi.contrastive(local, whole, 1.0, 1)
    assert value.item() == pytest.approx(right + right + 1)  # the pool's two are mistaken
    value.backward()
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


# --- reading a teacher ----------------------------------------------------------------------------

@pytest.fixture
def network():
    model = nn.Sequential(nn.Conv2d(1, 2, 1), nn.BatchNorm2d(2), nn.ReLU(inplace=True),
                          nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(2, 3))
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor([1.0, -2.0]).view(2, 1, 1, 1))
        model[0].bias.zero_()
    return model.eval()


PAIR = images_of(((1.0, 3.0),), ((5.0, 7.0),))


def test_a_reading_has_biased_statistics_means_and_features_and_leaves_no_hook(network):
    with terms.reading(network, means_of=[network[1]], features=True) as read:
        logits = network(PAIR)
    (mean, variance), = read.statistics
    assert mean.tolist() == pytest.approx([4, -8])
    assert variance.tolist() == pytest.approx([5, 20])  # of 1, 3, 5, 7
    assert read.means[0].tolist() == [[2, -4], [6, -12]]
    assert torch.allclose(network[5](read.features), logits)
    with pytest.raises(RuntimeError), terms.reading(network):
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


# --- errors ---------------------------------------------------------------------------------------

def test_a_term_that_is_not_finite_is_named():
    terms.check_finite({"bn": torch.tensor(1.0)}, "")
    with pytest.raises(UserError, match="act"):
        terms.check_finite({"bn": torch.tensor(1.0), "act": torch.tensor(math.nan)}, "")


@pytest.mark.parametrize("name", ["bn", "bn_ema"])
def test_a_teacher_without_batch_statistics_is_refused_where_they_are_read(name, digits):
    terms.require(models.build("lenet5", digits), {"onehot", "act", "balance", "adv_kl"}, "")
    teacher = models.build("cnn_w4", digits)
    terms.require(teacher, {name}, "")
    terms.batch_norms(teacher)[0].running_mean = None
    for without in (teacher, models.build("lenet5", digits)):
        with pytest.raises(UserError, match=name):
            terms.require(without, {name}, "")
