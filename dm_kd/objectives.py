"""What a student minimises: pure functions of logits. To add one: write it and add it to
OBJECTIVES. All compute in float32 and return a scalar, the mean over the batch."""

import torch.nn.functional as F
from torch import Tensor


def kd(student_logits: Tensor, teacher_logits: Tensor, labels: Tensor,
       temperature: float) -> Tensor:
    """tau^2 KL(softmax(teacher / tau) || softmax(student / tau)), Hinton et al. 2015
    (arXiv 1503.02531). Logits [B, classes]; labels are not used."""
    student = F.log_softmax(student_logits.float() / temperature, 1)
    teacher = F.log_softmax(teacher_logits.float() / temperature, 1)
    return F.kl_div(student, teacher, log_target=True, reduction="batchmean") * temperature ** 2


def cross_entropy(student_logits: Tensor, teacher_logits: Tensor | None, labels: Tensor,
                  temperature: float) -> Tensor:
    """Cross-entropy with labels int64 [B], or probabilities [B, classes]; no teacher, no
    temperature."""
    return F.cross_entropy(student_logits.float(), labels)


OBJECTIVES = {"kd": kd}  # what --objective of distill offers
