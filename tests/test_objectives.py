"""Distillation losses against numbers computed by hand."""

import math

import pytest
import torch

from dm_kd import objectives

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
