"""Distillation losses: what holds for any input; the goldens have their values."""

import pytest
import torch

from dm_kd import objectives

LABELS = torch.tensor([0, 1])


def kd(student, teacher, temperature):
    return objectives.kd(student, teacher, LABELS, temperature)


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


@pytest.mark.parametrize(("labels", "target"), [  # shares that miss some are of unknown labels
    ([-1], 4), ([[0.0, 0.0, 0.7, 0.3, 0.0]], 2), ([[0.0, 0.0, 0.3, 0.7, 0.0]], 3),
    ([[0.0, 0.0, 0.7, 0.0, 0.0]], 2), ([[0.0, 0.0, 0.3, 0.0, 0.0]], 4)])
def test_dkd_aims_at_the_largest_share_or_if_unknown_at_the_teachers_class(labels, target):
    student, teacher = torch.randn(1, 5), torch.tensor([[0.0, 0.1, 0.2, 0.3, 3.0]])
    assert torch.equal(objectives.dkd(student, teacher, torch.tensor(labels), 4.0),
                       objectives.dkd(student, teacher, torch.tensor([target]), 4.0))


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
