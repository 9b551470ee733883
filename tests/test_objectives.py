"""Distillation losses against numbers computed by hand."""

import math

import pytest
import torch

from dm_kd import augment, objectives

LABELS = torch.tensor([0, 1])


def kd(student, teacher, temperature):
    return objectives.kd(student, teacher, LABELS[:len(student)], temperature)


def test_kd_has_the_hand_computed_value():
    """Two classes, teacher odds 3:1, student 1:1: KL = 0.75 ln 1.5 + 0.25 ln 0.5."""
    teacher, student = torch.tensor([[math.log(3.0), 0.0]]), torch.zeros(1, 2)
    expected = 0.75 * math.log(1.5) + 0.25 * math.log(0.5)
    assert float(kd(student, teacher, 1.0)) == pytest.approx(expected, rel=1e-6)


def test_kd_softens_both_and_multiplies_by_tau_squared():
    teacher, student = torch.tensor([[4 * math.log(3.0), 0.0]]), torch.zeros(1, 2)
    expected = 16 * (0.75 * math.log(1.5) + 0.25 * math.log(0.5))
    assert float(kd(student, teacher, 4.0)) == pytest.approx(expected, rel=1e-6)


def test_kd_is_the_mean_over_the_batch():
    student, teacher = torch.randn(2, 5), torch.randn(2, 5)
    alone = [float(kd(student[i:i + 1], teacher[i:i + 1], 3.0)) for i in range(2)]
    assert float(kd(student, teacher, 3.0)) == pytest.approx(sum(alone) / 2, rel=1e-5)


@pytest.mark.parametrize("temperature", [1.0, 4.0, 10.0])
def test_the_gradient_is_tau_times_the_difference_of_the_softened_outputs(temperature):
    student, teacher = torch.randn(2, 7).requires_grad_(), torch.randn(2, 7)
    kd(student, teacher, temperature).backward()
    expected = temperature / 2 * ((student / temperature).softmax(1)
                                  - (teacher / temperature).softmax(1))
    assert torch.allclose(student.grad, expected.detach(), atol=1e-6)


def test_kd_is_zero_with_zero_gradient_at_equality():
    student = torch.randn(2, 7).requires_grad_()
    loss = kd(student, student.detach() + 5.0, 10.0)  # a shift of all logits changes nothing
    loss.backward()
    assert abs(loss.item()) < 1e-4 and student.grad.abs().max() < 1e-5


def test_kd_is_never_negative():
    assert all(float(kd(torch.randn(2, 9) * 5, torch.randn(2, 9) * 5, 4.0)) > 0
               for _ in range(50))


def test_kd_does_not_use_the_labels():
    student, teacher = torch.randn(2, 5), torch.randn(2, 5)
    unknown = objectives.kd(student, teacher, torch.tensor([-1, -1]), 2.0)
    assert torch.equal(unknown, kd(student, teacher, 2.0))


def test_kd_is_finite_and_exact_for_extreme_logits():
    teacher, student = torch.tensor([[1e4, 0.0]]), torch.tensor([[0.0, 1e4]])
    assert float(kd(student, teacher, 1.0)) == pytest.approx(1e4)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_kd_computes_in_float32(dtype):
    student, teacher = torch.randn(2, 100).to(dtype), torch.randn(2, 100).to(dtype)
    loss = kd(student, teacher, 10.0)
    assert loss.dtype == torch.float32
    assert float(loss) == pytest.approx(float(kd(student.double(), teacher.double(), 10.0)),
                                        rel=1e-4)


def test_cross_entropy_has_the_hand_computed_value():
    logits = torch.tensor([[math.log(3.0), 0.0], [math.log(3.0), 0.0]])
    expected = -(math.log(0.75) + math.log(0.25)) / 2
    found = objectives.cross_entropy(logits, None, LABELS, 10.0)
    assert float(found) == pytest.approx(expected, rel=1e-6)


def test_cross_entropy_takes_the_shares_of_mixed_classes():
    logits = torch.randn(2, 3)
    shares = torch.tensor([[0.25, 0.75, 0.0], [0.0, 0.0, 1.0]])
    expected = -(shares * logits.log_softmax(1)).sum(1).mean()
    assert torch.allclose(objectives.cross_entropy(logits, None, shares, 1.0), expected)


def test_mse_is_the_mean_squared_difference_of_the_logits():
    student, teacher = torch.tensor([[1.0, 2.0]]), torch.tensor([[0.0, 4.0]])
    assert float(objectives.mse(student, teacher, LABELS[:1], 7.0)) == pytest.approx(2.5)


def by_hand_dkd(student, teacher, target, tau):
    """Equations 5 to 7 of the paper with plain numbers, for one image."""
    def probabilities(logits):
        e = [math.exp(float(v) / tau) for v in logits]
        return [v / sum(e) for v in e]

    s, t = probabilities(student), probabilities(teacher)
    binary = sum(a * math.log(a / b) for a, b in ((t[target], s[target]),
                                                  (1 - t[target], 1 - s[target])))
    rest = [c for c in range(len(s)) if c != target]
    others = sum(t[c] / (1 - t[target]) * math.log((t[c] / (1 - t[target]))
                                                   / (s[c] / (1 - s[target]))) for c in rest)
    return tau ** 2 * (1.0 * binary + 8.0 * others)


@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_dkd_has_the_hand_computed_value(temperature):
    student, teacher = torch.randn(2, 5), torch.randn(2, 5)
    expected = sum(by_hand_dkd(student[i], teacher[i], int(LABELS[i]), temperature)
                   for i in range(2)) / 2
    found = objectives.dkd(student, teacher, LABELS, temperature)
    assert float(found) == pytest.approx(expected, rel=1e-5)


def test_kd_is_dkd_with_the_teachers_weights():
    """Eq. 6: KD = TCKD + (1 - p_target) NCKD, here for a teacher with p_target = 7/8 (alpha 1 and
    beta 8 are weighted back)."""
    teacher = torch.tensor([[math.log(21.0), math.log(2.0), 0.0]])
    student = torch.randn(1, 3)
    both = objectives.dkd(student, teacher, LABELS[:1], 1.0)
    target_only = objectives.dkd(torch.cat([student[:, :1], teacher[:, 1:]
                                 + student[:, 1:].logsumexp(1) - teacher[:, 1:].logsumexp(1)], 1),
                                 teacher, LABELS[:1], 1.0)
    expected = target_only + (both - target_only) / 64
    assert float(kd(student, teacher, 1.0)) == pytest.approx(float(expected), rel=1e-4)


def test_dkd_takes_the_teachers_class_where_labels_are_unknown_and_the_largest_share():
    student, teacher = torch.randn(2, 5), torch.randn(2, 5)
    top = teacher.argmax(1)
    expected = objectives.dkd(student, teacher, top, 4.0)
    assert torch.equal(objectives.dkd(student, teacher, torch.tensor([-1, -1]), 4.0), expected)
    shares = 0.6 * torch.nn.functional.one_hot(top, 5) + 0.08
    assert torch.equal(objectives.dkd(student, teacher, shares, 4.0), expected)


@pytest.mark.parametrize(("labels", "target"), [
    ([2, 3], 2), ([3, 2], 3), ([2, -1], 2), ([-1, 2], 4), ([-1, -1], 4)])
def test_dkd_aims_at_the_class_with_the_largest_share_of_a_mixed_image(labels, target):
    """Of an image that is 0.7 the first label's; the teacher's class (4) where that is unknown."""
    teacher = torch.tensor([[0.0, 0.1, 0.2, 0.3, 3.0]]).expand(2, 5)
    student, swapped = torch.randn(2, 5), torch.tensor([1, 0])
    shares = augment.mix_labels(torch.tensor(labels), 5, 0.7, swapped)[:1]
    found = objectives.dkd(student[:1], teacher[:1], shares, 4.0)
    assert torch.equal(found, objectives.dkd(student[:1], teacher[:1], torch.tensor([target]), 4.0))


def test_dist_is_one_minus_pearsons_correlation_of_rows_and_columns():
    import numpy as np

    student, teacher = torch.randn(6, 4), torch.randn(6, 4)
    a, b = ((v / 2).softmax(1).double().numpy() for v in (student, teacher))
    rows = np.mean([1 - np.corrcoef(a[i], b[i])[0, 1] for i in range(6)])
    columns = np.mean([1 - np.corrcoef(a[:, j], b[:, j])[0, 1] for j in range(4)])
    found = objectives.dist(student, teacher, torch.zeros(6), 2.0)
    assert float(found) == pytest.approx(4 * (rows + columns), rel=1e-4)


@pytest.mark.parametrize("name", objectives.OBJECTIVES)
def test_every_objective_is_a_finite_scalar_in_float32_with_a_gradient_for_the_student(name):
    student = (torch.randn(4, 10) * 30).bfloat16().requires_grad_()
    loss = objectives.OBJECTIVES[name](student, torch.randn(4, 10).bfloat16() * 30,
                                       torch.tensor([0, 3, -1, 9]), 4.0)
    loss.backward()
    assert loss.shape == () and loss.dtype == torch.float32
    assert torch.isfinite(loss) and torch.isfinite(student.grad).all() and student.grad.any()


@pytest.mark.parametrize("name", objectives.OBJECTIVES)
def test_every_objective_is_zero_where_the_student_is_the_teacher(name):
    logits = torch.randn(4, 10)
    found = objectives.OBJECTIVES[name](logits, logits, torch.zeros(4, dtype=torch.int64), 4.0)
    assert abs(float(found)) < 1e-5


def test_labels_take_their_share_of_the_loss():
    student, teacher = torch.randn(2, 5), torch.randn(2, 5)
    found = objectives.with_labels(objectives.kd, 0.1)(student, teacher, LABELS, 4.0)
    expected = 0.9 * kd(student, teacher, 4.0) + 0.1 * objectives.cross_entropy(
        student, None, LABELS, 1.0)
    assert torch.allclose(found, expected)
