"""Distillation losses: pure functions of logits.

Each takes student_logits and teacher_logits [B, classes], labels and the temperature tau, computes
in float32 and returns a scalar, the mean over the batch. To add one: write it here and add it to
OBJECTIVES.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

# beta of DKD, whose alpha is 1. The public CIFAR-100 configurations have 8 in 5 of 11 pairs, and 6
# for WRN-40-2 to WRN-16-2 and to WRN-40-1.
DKD_BETA = 8.0


def kd(student_logits: Tensor, teacher_logits: Tensor, labels: Tensor,
       temperature: float) -> Tensor:
    """tau^2 KL(softmax(teacher / tau) || softmax(student / tau)) (Hinton et al. 2015,
    arXiv 1503.02531)."""
    student = F.log_softmax(student_logits.float() / temperature, 1)
    teacher = F.log_softmax(teacher_logits.float() / temperature, 1)
    return F.kl_div(student, teacher, log_target=True, reduction="batchmean") * temperature ** 2


def mse(student_logits: Tensor, teacher_logits: Tensor, labels: Tensor,
        temperature: float) -> Tensor:
    """Mean squared difference of the logits (Ba & Caruana 2014, arXiv 1312.6184)."""
    return F.mse_loss(student_logits.float(), teacher_logits.float())


def dkd(student_logits: Tensor, teacher_logits: Tensor, labels: Tensor,
        temperature: float) -> Tensor:
    """Decoupled KD (Zhao et al. 2022, arXiv 2203.08679, eq. 7): tau^2 (KL of "target class or not"
    + beta KL among the other classes).

    labels: int64 [B], or class shares [B, classes] of mixed images, whose largest is the target.
    Where the label is unknown (-1, or the unlabelled share is the largest), the target is the
    teacher's prediction."""
    target = labels
    if labels.ndim == 2:
        largest, target = labels.max(1)
        target = torch.where(1 - labels.sum(1) > largest, -1, target)
    target = torch.where(target < 0, teacher_logits.argmax(1), target)[:, None]
    parts = []
    for logits in (student_logits, teacher_logits):
        log_p = F.log_softmax(logits.float() / temperature, 1)  # [B, classes]
        others = log_p.scatter(1, target, -torch.inf)
        rest = others.logsumexp(1, keepdim=True)
        binary = torch.cat([log_p.gather(1, target), rest], 1)
        parts.append((binary, (others - rest).scatter(1, target, 0.0)))
    (student, student_others), (teacher, teacher_others) = parts
    of_target = F.kl_div(student, teacher, log_target=True, reduction="batchmean")
    weight = teacher_others.exp().scatter(1, target, 0.0)
    among_others = (weight * (teacher_others - student_others)).sum(1).mean()
    return (of_target + DKD_BETA * among_others) * temperature ** 2


def dist(student_logits: Tensor, teacher_logits: Tensor, labels: Tensor,
         temperature: float) -> Tensor:
    """DIST (Huang et al. 2022, arXiv 2205.10536, eq. 9) with beta = gamma = 1: tau^2 times the sum
    of 1 - Pearson's correlation of student and teacher over the classes of each image (mean over
    images) and 1 - the correlation over the images of each class (mean over classes), of softened
    outputs."""
    student = F.softmax(student_logits.float() / temperature, 1)
    teacher = F.softmax(teacher_logits.float() / temperature, 1)
    between, within = correlation(student, teacher), correlation(student.T, teacher.T)
    return ((1 - between.mean()) + (1 - within.mean())) * temperature ** 2


def correlation(a: Tensor, b: Tensor) -> Tensor:
    """Pearson's correlation of each row of a with that row of b: [N, M] -> [N]."""
    a, b = (v - v.mean(1, keepdim=True) for v in (a, b))
    return F.cosine_similarity(a, b, dim=1)


def cross_entropy(student_logits: Tensor, teacher_logits: Tensor | None, labels: Tensor,
                  temperature: float) -> Tensor:
    """Cross-entropy with labels int64 [B] or probabilities [B, classes]; no teacher."""
    return F.cross_entropy(student_logits.float(), labels)


def with_labels(objective: Callable, weight: float) -> Callable:
    """The objective (1 - weight) objective + weight cross-entropy (RepDistiller: weight 0.1)."""
    return lambda *inputs: (1 - weight) * objective(*inputs) + weight * cross_entropy(*inputs)


OBJECTIVES = {"kd": kd, "mse": mse, "dkd": dkd, "dist": dist}  # --objective of distill
READ_LABELS = {"dkd"}  # those that need the labels of mixed images to be mixed too
