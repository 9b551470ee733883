"""Distillation losses against numbers computed by hand."""

import math

import numpy as np
import pytest
import torch

from dm_kd import objectives

LABELS = torch.tensor([0, 1])


def kd(student, teacher, temperature):
    return objectives.kd(student, teacher, LABELS[:len(student)], temperature)


@pytest.mark.parametrize("tau", [1.0, 4.0])
def test_kd_has_the_hand_computed_value(tau):
    """Two classes, softened odds of the teacher 3:1, of the student 1:1."""
    teacher, student = torch.tensor([[tau * math.log(3.0), 0.0]]), torch.zeros(1, 2)
    expected = tau ** 2 * (0.75 * math.log(1.5) + 0.25 * math.log(0.5))
    assert float(kd(student, teacher, tau)) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("tau", [1.0, 10.0])
def test_the_gradient_of_kd_is_tau_times_the_difference_of_the_softened_outputs(tau):
    student, teacher = torch.randn(2, 7).requires_grad_(), torch.randn(2, 7)
    kd(student, teacher, tau).backward()
    expected = tau / 2 * ((student / tau).softmax(1) - (teacher / tau).softmax(1))  # mean over 2
    assert torch.allclose(student.grad, expected.detach(), atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_kd_computes_in_float32_and_is_exact_for_extreme_logits(dtype):
    student, teacher = torch.randn(2, 100).to(dtype), torch.randn(2, 100).to(dtype)
    exact = float(kd(student.float(), teacher.float(), 10.0))
    assert float(kd(student, teacher, 10.0)) == pytest.approx(exact, rel=1e-6)
    extreme = torch.tensor([[1e4, 0.0]])
    assert float(kd(extreme.flip(1), extreme, 1.0)) == pytest.approx(1e4)


def test_cross_entropy_takes_labels_or_the_shares_of_mixed_classes():
    logits = torch.randn(2, 3)
    shares = torch.tensor([[0.25, 0.75, 0.0], [0.0, 0.0, 1.0]])
    expected = -(shares * logits.log_softmax(1)).sum(1).mean()
    assert torch.allclose(objectives.cross_entropy(logits, None, shares, 1.0), expected)
    one_hot = torch.nn.functional.one_hot(LABELS, 3).float()
    assert torch.allclose(objectives.cross_entropy(logits, None, LABELS, 9.0),
                          objectives.cross_entropy(logits, None, one_hot, 1.0))


def test_mse_is_the_mean_squared_difference_of_the_logits():
    student, teacher = torch.tensor([[1.0, 2.0]]), torch.tensor([[0.0, 4.0]])
    assert float(objectives.mse(student, teacher, LABELS[:1], 7.0)) == pytest.approx(2.5)


@pytest.mark.parametrize("tau", [1.0, 4.0])
def test_dkd_has_the_hand_computed_value(tau):
    """Equations 5 to 7 of the paper, image by image."""
    student, teacher = torch.randn(2, 5), torch.randn(2, 5)
    expected = 0.0
    for logits_s, logits_t, target in zip(student, teacher, LABELS, strict=True):
        s, t = ((v.double() / tau).softmax(0) for v in (logits_s, logits_t))
        rest = torch.arange(5) != target
        binary_s, binary_t = (torch.stack([v[target], v[rest].sum()]) for v in (s, t))
        others_s, others_t = (v[rest] / v[rest].sum() for v in (s, t))
        expected += (binary_t * (binary_t / binary_s).log()).sum()
        expected += 8 * (others_t * (others_t / others_s).log()).sum()
    loss = objectives.dkd(student, teacher, LABELS, tau)
    assert float(loss) == pytest.approx(float(expected) / 2 * tau ** 2, rel=1e-5)


@pytest.mark.parametrize(("labels", "target"), [  # shares that miss some are of unknown labels
    ([-1], 4), ([[0.0, 0.0, 0.7, 0.3, 0.0]], 2), ([[0.0, 0.0, 0.3, 0.7, 0.0]], 3),
    ([[0.0, 0.0, 0.7, 0.0, 0.0]], 2), ([[0.0, 0.0, 0.3, 0.0, 0.0]], 4)])
def test_dkd_aims_at_the_largest_share_or_if_unknown_at_the_teachers_class(labels, target):
    student, teacher = torch.randn(1, 5), torch.tensor([[0.0, 0.1, 0.2, 0.3, 3.0]])
    assert torch.equal(objectives.dkd(student, teacher, torch.tensor(labels), 4.0),
                       objectives.dkd(student, teacher, torch.tensor([target]), 4.0))


def test_dist_is_one_minus_pearsons_correlation_of_rows_and_columns():
    student, teacher = torch.randn(6, 4), torch.randn(6, 4)
    a, b = ((v / 2).softmax(1).double().numpy() for v in (student, teacher))
    rows = np.mean([1 - np.corrcoef(a[i], b[i])[0, 1] for i in range(6)])
    columns = np.mean([1 - np.corrcoef(a[:, j], b[:, j])[0, 1] for j in range(4)])
    loss = objectives.dist(student, teacher, torch.zeros(6), 2.0)
    assert float(loss) == pytest.approx(4 * (rows + columns), rel=1e-4)


@pytest.mark.parametrize("name", objectives.OBJECTIVES)
def test_an_objective_is_finite_in_float32_and_zero_where_the_student_is_the_teacher(name):
    objective, labels = objectives.OBJECTIVES[name], torch.tensor([0, 3, -1, 9])
    student = (torch.randn(4, 10) * 30).bfloat16().requires_grad_()
    loss = objective(student, torch.randn(4, 10).bfloat16() * 30, labels, 4.0)
    loss.backward()
    assert loss.shape == () and loss.dtype == torch.float32
    assert torch.isfinite(loss) and torch.isfinite(student.grad).all() and student.grad.any()
    logits = torch.randn(4, 10)
    assert abs(float(objective(logits, logits, labels, 4.0))) < 1e-5


def test_labels_take_their_share_of_the_loss():
    student, teacher = torch.randn(2, 5), torch.randn(2, 5)
    loss = objectives.with_labels(objectives.kd, 0.1)(student, teacher, LABELS, 4.0)
    expected = 0.9 * kd(student, teacher, 4.0) + 0.1 * objectives.cross_entropy(
        student, None, LABELS, 1.0)
    assert torch.allclose(loss, expected)
