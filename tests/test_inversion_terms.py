"""The loss terms of the inversion methods, each against a value worked out by hand."""

import copy
import math

import pytest
import torch
from torch import Tensor, nn

from dm_kd import inversion_terms as terms
from dm_kd import models
from dm_kd.errors import DivergedError, UserError
from dm_kd.tasks import get_task

LOG3 = math.log(3)


def logits_of(*rows: tuple[float, ...]) -> Tensor:
    """Logits whose softmax are these probabilities."""
    return torch.tensor(rows).log()


def images_of(*pictures) -> Tensor:
    """[B, 1, H, W]."""
    return torch.tensor(pictures, dtype=torch.float32)[:, None]


# --- batch statistics -----------------------------------------------------------------------------

def pair(mean: list[float], variance: list[float]) -> tuple[Tensor, Tensor]:
    return torch.tensor(mean), torch.tensor(variance)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("shape", [(3, 2, 4, 5), (1, 3, 1, 1)])
def test_channel_statistics_are_var_means_with_its_gradient(layout, shape):
    draw = torch.Generator().manual_seed(0)
    x = (3 + torch.randn(shape, generator=draw, dtype=torch.float64)).contiguous(
        memory_format=layout).requires_grad_()
    weights = torch.randn((2, shape[1]), generator=draw, dtype=torch.float64)
    found, grads = [], []
    for of in (terms.ChannelStatistics.apply,
               lambda x: torch.var_mean(x, (0, 2, 3), correction=0)[::-1]):
        mean, variance = of(x)
        found.append(torch.stack([mean, variance]))
        grads.append(torch.autograd.grad((weights * torch.stack([mean, variance])).sum(), x)[0])
    torch.testing.assert_close(*found, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(*grads, rtol=1e-12, atol=1e-12)
    assert torch.autograd.gradcheck(terms.ChannelStatistics.apply, x)


def test_bn_sums_plain_norms_of_mean_and_variance_over_the_layers():
    seen = [pair([3.0, 4.0], [1.0, 1.0]), pair([1.0], [6.0])]
    running = [pair([0.0, 0.0], [1.0, 1.0]), pair([1.0], [4.0])]
    assert terms.bn(seen, running).item() == pytest.approx(5 + 2)


def test_bn_weighs_the_first_layer():
    seen, running = [pair([1.0], [1.0])] * 2, [pair([0.0], [1.0])] * 2
    assert terms.bn(seen, running, first=10.0).item() == pytest.approx(11)


def test_bn_has_gradient_zero_where_the_statistics_match():
    mean = torch.zeros(2, requires_grad=True)
    terms.bn([(mean, torch.ones(2))], [pair([0.0, 0.0], [1.0, 1.0])]).backward()
    assert mean.grad.tolist() == [0, 0]


def test_bn_ema_compares_a_mixture_of_batch_and_past_calls():
    seen, past = [pair([10.0], [2.0])], [pair([0.0], [4.0])]
    # mean 0.1 * 10 + 0.9 * 0 = 1, variance 0.2 + 3.6 = 3.8
    found = terms.bn_ema(seen, past, 0.9, [pair([0.0], [1.0])])
    assert found.item() == pytest.approx(1 + 2.8)


def test_bn_ema_of_the_first_call_is_that_of_the_batch_alone():
    seen, running = [pair([10.0], [2.0])], [pair([0.0], [1.0])]
    assert terms.bn_ema(seen, None, 0.9, running) == terms.bn(seen, running) == 11


def test_averages_begin_with_the_first_batch_and_then_move_by_a_tenth():
    first = terms.update_averages(None, [pair([1.0], [2.0])], 0.9)
    then = terms.update_averages(first, [pair([11.0], [2.0])], 0.9)
    assert first[0][0].item() == 1 and then[0][0].item() == pytest.approx(2)
    assert then[0][1].item() == pytest.approx(2)


# --- the teacher's outputs ------------------------------------------------------------------------

def test_ce_target_is_minus_the_log_probability_of_the_target():
    logits = logits_of((0.5, 0.5), (0.25, 0.75))
    found = terms.ce_target(logits, torch.tensor([0, 0]))
    assert found.item() == pytest.approx((math.log(2) + math.log(4)) / 2)


def test_onehot_takes_the_teachers_own_class_as_the_target():
    logits = logits_of((0.5, 0.3, 0.2), (0.1, 0.1, 0.8))
    assert terms.onehot(logits).item() == pytest.approx(-(math.log(0.5) + math.log(0.8)) / 2)


def test_act_is_minus_the_mean_absolute_feature():
    assert terms.act(torch.tensor([[1.0, -3.0], [0.0, 2.0]])).item() == pytest.approx(-1.5)


def test_balance_is_the_negative_entropy_of_the_mean_probabilities():
    logits = logits_of((0.5, 0.5), (1.0 - 1e-7, 1e-7))  # mean 0.75, 0.25
    expected = 0.75 * math.log(0.75) + 0.25 * math.log(0.25)
    assert terms.balance(logits).item() == pytest.approx(expected, abs=1e-5)
    assert terms.balance(logits, base=10).item() == pytest.approx(expected / math.log(10),
                                                                  abs=1e-5)


def test_balance_is_finite_where_a_class_never_comes():
    logits = torch.tensor([[0.0, -1e4]], requires_grad=True)
    value = terms.balance(logits)
    value.backward()
    assert value.item() == pytest.approx(0, abs=1e-6) and torch.isfinite(logits.grad).all()


# --- student against teacher ----------------------------------------------------------------------

TEACHER = ((0.5, 0.5), (0.75, 0.25))
STUDENT = ((0.25, 0.75), (0.75, 0.25))
KL = 0.5 * math.log(2) + 0.5 * math.log(0.5 / 0.75)  # of the first row; 0 of the second


def test_adv_kl_is_minus_the_mean_divergence_of_teacher_from_student():
    found = terms.adv_kl(logits_of(*TEACHER), logits_of(*STUDENT))
    assert found.item() == pytest.approx(-KL / 2)


def test_adv_dad_counts_images_only_that_both_put_into_one_class():
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


def test_adv_js_of_the_reference_turns_the_arguments_round_and_clamps():
    teacher, student = 3 * logits_of((0.8, 0.2)), 3 * logits_of((0.4, 0.6))
    with_p = 0.6 * math.log(0.6 / 0.4) + 0.4 * math.log(0.4 / 0.6)
    with_q = 0.6 * math.log(0.6 / 0.8) + 0.4 * math.log(0.4 / 0.2)
    assert terms.adv_js(teacher, student, "reference").item() == pytest.approx(
        -(with_p + with_q) / 2)
    # clamped to 0.99 and 0.01; M = 0.5
    apart = terms.adv_js(torch.tensor([[900.0, 0.0]]), torch.tensor([[0.0, 900.0]]), "reference")
    assert apart.item() == pytest.approx(-0.5 * (math.log(0.5 / 0.99) + math.log(0.5 / 0.01)))


def test_adv_js_still_pulls_where_the_references_clamp_has_no_gradient():
    students = {}
    for mode in ("textbook", "reference"):
        student = torch.zeros(1, 1000)
        student[0, 0], student[0, 1] = 60.0, 0.0
        students[mode] = student.requires_grad_()
        teacher = torch.zeros(1, 1000)
        teacher[0, 1] = 60.0
        loss = 1 + terms.adv_js(teacher, student, mode).clamp(-1, 0)  # 1 - clamp(JS, 0, 1)
        loss.backward()
    assert students["reference"].grad.abs().max() == 0
    assert students["textbook"].grad.abs().max() > 0


# --- images ---------------------------------------------------------------------------------------

# 0 1        right 1, 4   down 2, 5   diagonals: 6 - 0 = 6, and 2 - 1 = 1
# 2 6
SMALL = ((0.0, 1.0), (2.0, 6.0))


def test_tv_l1_sums_the_mean_differences_of_four_directions():
    assert terms.tv_l1(images_of(SMALL)).item() == pytest.approx(2.5 + 3.5 + 6 + 1)


def test_tv_l2_sums_the_norms_of_four_directions():
    expected = math.sqrt(17) + math.sqrt(29) + 6 + 1
    assert terms.tv_l2(images_of(SMALL)).item() == pytest.approx(expected)
    both = images_of(SMALL, SMALL)
    assert terms.tv_l2(both).item() == pytest.approx(math.sqrt(2) * expected)
    assert terms.tv_l2(both, "image").item() == pytest.approx(expected)


def test_l2_is_the_mean_norm_of_the_images():
    assert terms.l2(images_of(((3.0, 4.0),), ((0.0, 1.0),))).item() == pytest.approx(3)


# --- contrast -------------------------------------------------------------------------------------

def test_contrastive_is_cross_entropy_with_the_own_image():
    eye = torch.eye(2)
    expected = math.log(1 + math.exp(-2))  # logits 2 and 0
    assert terms.contrastive(eye, eye, 0.5, 2).item() == pytest.approx(expected)


def test_contrastive_adds_the_mean_over_the_remembered_images():
    local, whole = torch.eye(3), torch.eye(3)[[0, 2, 1]]  # the remembered two are mistaken
    right = math.log(1 + 2 * math.exp(-1))
    assert terms.contrastive(local, whole, 1.0, 1).item() == pytest.approx(right + right + 1)


def test_contrastive_gives_the_whole_images_no_gradient():
    local, whole = (torch.eye(2).requires_grad_() for _ in range(2))
    terms.contrastive(local, whole, 0.5, 2).backward()
    assert whole.grad is None and local.grad.abs().max() > 0


# --- reading a teacher ----------------------------------------------------------------------------

@pytest.fixture
def network():
    model = nn.Sequential(nn.Conv2d(1, 2, 1), nn.BatchNorm2d(2), nn.ReLU(inplace=True),
                          nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(2, 3))
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor([1.0, -2.0]).view(2, 1, 1, 1))
        model[0].bias.zero_()
    return model.eval()


def test_a_reading_has_biased_statistics_of_the_norms_inputs(network):
    x = images_of(((1.0, 3.0),), ((5.0, 7.0),))
    with terms.reading(network) as read:
        network(x)
    (mean, variance), = read.statistics
    assert mean.tolist() == pytest.approx([4, -8])
    assert variance.tolist() == pytest.approx([5, 20])  # of 1, 3, 5, 7


def test_a_reading_has_spatial_means_and_the_features_before_the_last_layer(network):
    x = images_of(((1.0, 3.0),), ((5.0, 7.0),))
    with terms.reading(network, means=True, features=True) as read:
        logits = network(x)
    assert read.means[0].tolist() == [[2, -4], [6, -12]]
    assert torch.allclose(network[5](read.features[0]), logits)


def test_bf16_gives_the_terms_and_gradients_of_float32_up_to_its_precision():
    torch.manual_seed(0)
    teacher, student = (models.build("cnn_w8", get_task("digits")) for _ in range(2))
    for network in (teacher.eval(), student.eval()):
        network.requires_grad_(False)
    inside, found = [], []
    next(m for m in teacher.modules() if isinstance(m, nn.Conv2d)).register_forward_hook(
        lambda module, inputs, output: inside.append(output.dtype))
    weights = {"bn": 1.0, "ce_target": 1.0, "adv_kl": 1.0, "act": 1.0, "tv_l2": 1e-3}
    for bf16 in (False, True):
        x = torch.randn(64, 1, 8, 8, generator=torch.Generator().manual_seed(1)).requires_grad_()
        parts, read = terms.weighted(weights, teacher, x, student, torch.arange(64) % 10,
                                     bf16=bf16)
        assert {v.dtype for v in parts.values()} == {torch.float32}
        assert {v.dtype for pair in read.statistics for v in pair} == {torch.float32}
        found.append((torch.stack(list(parts.values())),
                      torch.autograd.grad(sum(parts.values()), x)[0].flatten()))
    assert inside == [torch.float32, torch.bfloat16]
    (exact, slopes), (lower, lower_slopes) = found
    assert torch.allclose(exact, lower, rtol=0.02, atol=1e-3) and not torch.equal(exact, lower)
    assert torch.cosine_similarity(slopes, lower_slopes, dim=0) > 0.98


def hooks(model):
    return sum(len(m._forward_pre_hooks) + len(m._forward_hooks) for m in model.modules())


def test_no_hook_is_left_behind_even_after_an_error(network):
    with terms.reading(network, means=True, features=True):
        assert hooks(network) == 2
    assert hooks(network) == 0
    with pytest.raises(RuntimeError), terms.reading(network):
        network(torch.zeros(1, 5, 2, 2))
    assert hooks(network) == 0


def test_features_of_many_layers_are_those_of_the_first_of_each_width(monkeypatch):
    means = [torch.full((1, w), float(i)) for i, w in enumerate((2, 2, 3, 2))]
    assert terms.chosen_means(means).shape == (1, 9)
    monkeypatch.setattr(terms, "MOST_FEATURES", 8)
    assert sorted(terms.chosen_means(means)[0].tolist()) == [0, 0, 2, 2, 2]


class Several(nn.Module):
    """As distill's several teachers: networks in `teachers`."""

    def __init__(self, *teachers):
        super().__init__()
        self.teachers = nn.ModuleList(teachers)

    def forward(self, x):
        return sum(teacher(x) for teacher in self.teachers)


@pytest.mark.parametrize("name", ["act", "bn"])
def test_of_several_teachers_a_term_of_their_insides_is_the_mean(network, name):
    other = copy.deepcopy(network)
    with torch.no_grad():
        other[0].weight.mul_(3)
    x = images_of(((1.0, 3.0),), ((5.0, 7.0),))
    both, one, two = (terms.weighted({name: 1.0}, teacher.eval(), x)[0][name].item()
                      for teacher in (Several(network, other), network, other))
    assert one != two and both == pytest.approx((one + two) / 2)


def test_each_of_several_teachers_needs_its_linear_layer(network):
    with pytest.raises(UserError, match="last linear layer"):
        terms.require(Several(network, nn.Conv2d(1, 3, 8)), {"act"}, X, "")


def test_statistics_are_compared_with_those_of_the_same_layer_whatever_their_order():
    class Backwards(nn.Module):
        def __init__(self):
            super().__init__()
            self.second, self.unused, self.first = (nn.BatchNorm2d(1) for _ in range(3))

        def forward(self, x):
            return self.second(self.first(x)).flatten(1)

    teacher = Backwards().eval()
    teacher.first.running_mean.fill_(4)  # of x, so that its output has mean 0, variance 1
    teacher.first.running_var.fill_(5 - teacher.first.eps)
    x = images_of(((1.0, 3.0),), ((5.0, 7.0),))
    parts, read = terms.weighted({"bn": 1.0}, teacher, x)
    assert read.running[0][0] is teacher.first.running_mean
    assert parts["bn"].item() == pytest.approx(0, abs=1e-4)


# --- all terms of a batch -------------------------------------------------------------------------

def test_weighted_multiplies_and_leaves_out_what_has_weight_0(network):
    x, asked = images_of(((1.0, 3.0),), ((5.0, 7.0),)), []
    student = nn.Sequential(nn.Flatten(), nn.Linear(2, 3))
    student.register_forward_hook(lambda *_: asked.append(1))
    targets = torch.tensor([0, 1])
    parts, _ = terms.weighted({"ce_target": 0.5, "bn": 2.0, "adv_kl": 0.0}, network, x, student,
                              targets)
    assert parts.keys() == {"ce_target", "bn"} and not asked
    assert parts["ce_target"] == 0.5 * terms.ce_target(network(x), targets)
    # means 4, -8 against 0; variances 5, 20 against 1
    assert parts["bn"].item() == pytest.approx(2 * (math.sqrt(80) + math.sqrt(16 + 361)))


@pytest.mark.parametrize("name", terms.TERMS)
def test_every_term_has_a_gradient_of_the_images(name, digits):
    torch.manual_seed(1)
    teacher, student = (models.build("cnn_w4", digits).eval() for _ in range(2))
    x = torch.randn(64, 1, 8, 8, requires_grad=True)
    parts, _ = terms.weighted({name: 1.0}, teacher, x, student, torch.zeros(64).long())
    parts[name].backward()
    assert torch.isfinite(x.grad).all() and x.grad.abs().max() > 0


def test_a_term_that_is_not_finite_is_named_with_its_step():
    parts = {"bn": torch.tensor(1.0), "act": torch.tensor(math.nan)}
    with pytest.raises(DivergedError, match="act became nan in epoch 2 at step 7"):
        terms.check_finite(parts, "in epoch 2 at step 7")
    terms.check_finite({"bn": torch.tensor(1.0)}, "")


# --- what a teacher must have ---------------------------------------------------------------------

X = torch.zeros(2, 1, 8, 8)


@pytest.mark.parametrize("name", ["bn", "bn_ema", "contrastive"])
def test_a_teacher_without_batch_norm_is_refused_where_its_statistics_are_read(name, digits):
    teacher = models.build("lenet5", digits).eval()
    with pytest.raises(UserError, match=f"{name} reads batch norms.*no BatchNorm2d"):
        terms.require(teacher, {name}, X, "lenet5@none")
    terms.require(teacher, {"onehot", "act", "balance", "adv_kl"}, X, "lenet5@none")


def test_a_teacher_without_running_statistics_is_refused(digits):
    teacher = models.build("cnn_w4", digits)
    terms.require(teacher.eval(), {"bn"}, X, "")
    terms.batch_norms(teacher)[0].running_mean = None
    with pytest.raises(UserError, match="running statistics"):
        terms.require(teacher, {"bn"}, X, "")


def test_a_teacher_without_input_gradients_is_refused():
    class Cut(nn.Module):
        def forward(self, x):
            return x.detach().flatten(1)

    with pytest.raises(UserError, match="no gradient of its input"):
        terms.require(Cut(), {"onehot"}, X, "")


def test_a_teacher_without_a_linear_layer_has_no_features():
    with pytest.raises(UserError, match="last linear layer"):
        terms.require(nn.Conv2d(1, 3, 8), {"act"}, X, "")


# --- pixels ---------------------------------------------------------------------------------------

def descend(parts_of, x, **changes):
    options = {"iterations": 50, "rate": lambda i: 0.2, "betas": (0.5, 0.9),
               "bounds": (torch.tensor(-1.0).view(1, 1, 1), torch.tensor(1.0).view(1, 1, 1)),
               "view": lambda x: x, "where": ""} | changes
    return terms.descend(x, parts_of, **options)


def test_descend_finds_the_images_of_the_lowest_loss_and_leaves_its_start_alone():
    start = torch.zeros(2, 1, 2, 2)
    found = descend(lambda x: {"l2": (x - 0.5).square().sum()}, start)
    assert torch.allclose(found, torch.full_like(found, 0.5), atol=0.05)
    assert not start.any()


def test_descend_returns_the_best_iterate_not_the_last():
    values = iter([3.0, 1.0, 2.0])
    seen = []

    def parts_of(x):
        seen.append(x.detach().clone())
        return {"l2": x.sum() * 0.1 - (x.sum() * 0.1).detach() + next(values)}

    found = descend(parts_of, torch.zeros(1, 1, 2, 2), iterations=3)
    assert torch.equal(found, seen[1]) and not torch.equal(found, seen[2])


def test_descend_keeps_pixels_within_their_bounds():
    found = descend(lambda x: {"l2": -x.sum()}, torch.zeros(1, 1, 2, 2))
    assert found.max() == 1


def test_jitter_rolls_and_mirrors_the_whole_batch_by_the_same():
    x = torch.arange(64.0).view(1, 1, 8, 8).repeat(2, 1, 1, 1)
    draw = torch.Generator().manual_seed(0)
    views = [terms.jitter(x, 2, True, draw) for _ in range(20)]
    assert all(torch.equal(v[0], v[1]) for v in views)
    candidates = [torch.roll(x, (r, c), (2, 3)) for r in range(-2, 3) for c in range(-2, 3)]
    candidates += [c.flip(3) for c in candidates]
    found = {next(i for i, c in enumerate(candidates) if torch.equal(c, v)) for v in views}
    assert len(found) > 10 and min(found) < 25 <= max(found)
