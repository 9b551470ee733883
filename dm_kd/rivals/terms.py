"""The loss terms of the methods that invert a teacher: pure functions of images, batch statistics,
features and logits, all to be minimised. To add one: its function, a line in `weighted` and NAMES.
"""

import contextlib
from collections.abc import Callable, Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.linalg import vector_norm

from dm_kd.run import UserError

Statistics = list[tuple[Tensor, Tensor]]  # (mean, biased variance), each [C], of each batch norm
BN_MOMENTUM = 0.9  # share of the past calls in bn_ema (FastDFKD and NAYER)
JS_TEMPERATURE = 3.0  # of adv_js, as in DeepInversion's program


@contextlib.contextmanager
def recorded(layers: Sequence[nn.Module], read: Callable[[nn.Module, Tensor], object]
             ) -> Iterator[list]:
    """A list that grows by read(layer, its input) at each call of a layer inside the block."""
    values: list = []
    handles = [layer.register_forward_pre_hook(
        lambda layer, inputs: values.append(read(layer, inputs[0]))) for layer in layers]
    try:
        yield values
    finally:
        for handle in handles:
            handle.remove()


def batch_norms(teacher: nn.Module) -> list[nn.BatchNorm2d]:
    """Those with running statistics; a UserError if there are none."""
    norms = [m for m in teacher.modules()
             if isinstance(m, nn.BatchNorm2d) and m.running_mean is not None]
    if not norms:
        raise UserError("the teacher has no BatchNorm2d with running statistics, which the method "
                        "reads", "a teacher with batch norms, or --source dafl or zskt")
    return norms


def batch_and_running(norm: nn.BatchNorm2d, x: Tensor) -> Statistics:
    """[(mean, biased variance) of x [B, C, H, W], the norm's running ones]; torch.var_mean takes
    longer on channels_last memory on a CPU."""
    x = x.float()
    mean = x.mean((0, 2, 3))
    variance = (x - mean.view(-1, 1, 1)).square().mean((0, 2, 3))
    return [(mean, variance), (norm.running_mean, norm.running_var)]


# --- terms of batch statistics --------------------------------------------------------------------

def bn(statistics: Statistics, running: Statistics, first: float = 1.0) -> Tensor:
    """Sum over the layers of ||mean - running mean|| + ||variance - running variance||, Euclidean
    norms, not squared (DeepInversion, Yin et al. 2020, arXiv 1912.08795). first: weight of the
    first layer (10 in its ImageNet recipe)."""
    layers = [vector_norm(mean - run_mean) + vector_norm(variance - run_variance)
              for (mean, variance), (run_mean, run_variance)
              in zip(statistics, running, strict=True)]
    return sum(layers) + (first - 1) * layers[0]


def bn_ema(statistics: Statistics, averages: Statistics, running: Statistics) -> Tensor:
    """`bn` of a blend of the batch with past calls, so that a small batch need not have the
    statistics of all classes (FastDFKD, Fang et al. 2022, arXiv 2112.06253)."""
    return bn(blend(averages, statistics), running)


def blend(averages: Statistics, statistics: Statistics) -> Statistics:
    """0.9 averages + 0.1 statistics; the statistics where there are no averages yet."""
    if not averages:
        return statistics
    return [tuple(BN_MOMENTUM * old + (1 - BN_MOMENTUM) * new
                  for old, new in zip(*pair, strict=True))
            for pair in zip(averages, statistics, strict=True)]


# --- terms of the teacher's outputs ---------------------------------------------------------------

def ce_target(teacher_logits: Tensor, targets: Tensor) -> Tensor:
    """Cross-entropy with the requested classes. targets: int64 [B], or the classes' shares float
    [B, C] of mixed images."""
    return F.cross_entropy(teacher_logits.float(), targets)


def onehot(teacher_logits: Tensor) -> Tensor:
    """Cross-entropy with the teacher's own prediction, for confident outputs (DAFL, Chen et al.
    2019, arXiv 1904.01186)."""
    return ce_target(teacher_logits, teacher_logits.argmax(1))


def act(features: Tensor) -> Tensor:
    """- mean |penultimate features|, which are larger for real images (DAFL). features [B, d]."""
    return -features.float().abs().mean()


def balance(teacher_logits: Tensor) -> Tensor:
    """Sum of p log p, p the mean class probabilities of the batch: - log C where all classes are
    equally frequent (DAFL). The natural logarithm, as in Fast-Datafree and CMI; DAFL's own program
    takes log10, where the same weight is 2.303 times weaker. In theirs p = 0 gives NaN."""
    p = F.softmax(teacher_logits.float(), 1).mean(0)
    return (p * (p + 1e-12).log()).sum()


# --- adversarial terms: student against teacher ---------------------------------------------------

def kl_each(teacher_logits: Tensor, student_logits: Tensor) -> Tensor:
    """KL(softmax teacher || softmax student) of each image [B], temperature 1."""
    teacher, student = (F.log_softmax(z.float(), 1) for z in (teacher_logits, student_logits))
    return (teacher.exp() * (teacher - student)).sum(1)


def adv_kl(teacher_logits: Tensor, student_logits: Tensor) -> Tensor:
    """- mean KL: rewards images on which the student differs from the teacher (ZSKT, Micaelli &
    Storkey 2019, arXiv 1905.09768)."""
    return -kl_each(teacher_logits, student_logits).mean()


def adv_dad(teacher_logits: Tensor, student_logits: Tensor) -> Tensor:
    """`adv_kl` of the images for which both predict the same class, 0 for the others, which the
    student already gets wrong (CMI, Fang et al. 2021, arXiv 2105.08584)."""
    agree = teacher_logits.argmax(1) == student_logits.argmax(1)
    return -(agree * kl_each(teacher_logits, student_logits)).mean()


def adv_js(teacher_logits: Tensor, student_logits: Tensor) -> Tensor:
    """- Jensen-Shannon divergence at temperature 3, between - ln 2 and 0 (adaptive DeepInversion).
    The authors' program swaps the arguments of both KL divergences and clamps all probabilities to
    0.01 .. 0.99, which hides small differences between many classes; its 1 - clamp(JS, 0, 1) has no
    gradient where the networks differ most. Neither clamp is here."""
    p, q = (F.softmax(z.float() / JS_TEMPERATURE, 1) for z in (student_logits, teacher_logits))
    middle = (p + q) / 2
    each = [(a * (a.clamp_min(1e-12).log() - middle.clamp_min(1e-12).log())).sum(1).mean()
            for a in (p, q)]
    return -(each[0] + each[1]) / 2


# --- image priors ---------------------------------------------------------------------------------

def neighbour_differences(x: Tensor) -> list[Tensor]:
    """Right, down and both diagonals: [B, C, H, W] -> four tensors."""
    return [x[..., :, 1:] - x[..., :, :-1], x[..., 1:, :] - x[..., :-1, :],
            x[..., 1:, 1:] - x[..., :-1, :-1], x[..., 1:, :-1] - x[..., :-1, 1:]]


def tv_l1(x: Tensor) -> Tensor:
    """Total variation: sum over four directions of the mean |difference|."""
    return sum(d.abs().mean() for d in neighbour_differences(x))


def tv_l2(x: Tensor) -> Tensor:
    """Total variation: sum over four directions of the Euclidean norm of the differences of the
    whole batch, as in DeepInversion's program: it grows with the square root of the batch size."""
    return sum(vector_norm(d) for d in neighbour_differences(x))


def l2(x: Tensor) -> Tensor:
    """Mean over the images of their Euclidean norm (DeepInversion)."""
    return vector_norm(x.flatten(1), dim=1).mean()


# --- a method's loss ------------------------------------------------------------------------------

OF_STATISTICS, OF_STUDENT = {"bn", "bn_ema"}, {"adv_kl", "adv_dad", "adv_js"}
NAMES = ("bn", "bn_ema", "ce_target", "onehot", "act", "balance", "adv_kl", "adv_dad", "adv_js",
         "tv_l1", "tv_l2", "l2")  # what `weighted` knows


def weighted(terms: dict[str, float], teacher: nn.Module, x: Tensor,
             student: Callable[[Tensor], Tensor] | None = None, targets: Tensor | None = None,
             averages: Statistics = (), first: float = 1.0, bf16: bool = False
             ) -> tuple[dict[str, Tensor], Statistics]:
    """({term: weighted scalar}, the batch's statistics if a term reads them). Terms of weight 0 are
    not computed; the student runs only if a term needs it. terms: {one of NAMES: weight}; averages:
    of bn_ema; first: of bn; bf16: of teacher and student, statistics and terms are float32."""
    active = {name: weight for name, weight in terms.items() if weight}
    norms = batch_norms(teacher) if OF_STATISTICS & active.keys() else []
    linear = [m for m in teacher.modules() if isinstance(m, nn.Linear)] if "act" in active else []
    with (recorded(norms, batch_and_running) as pairs,
          recorded(linear[-1:], lambda layer, x: x) as features):
        of_teacher = logits(teacher, x, bf16)
    statistics, running = ([pair[i] for pair in pairs] for i in (0, 1))
    of_student = logits(student, x, bf16) if OF_STUDENT & active.keys() else None
    values = {
        "bn": lambda: bn(statistics, running, first),
        "bn_ema": lambda: bn_ema(statistics, averages, running),
        "ce_target": lambda: ce_target(of_teacher, targets),
        "onehot": lambda: onehot(of_teacher),
        "act": lambda: act(features[0]),
        "balance": lambda: balance(of_teacher),
        "adv_kl": lambda: adv_kl(of_teacher, of_student),
        "adv_dad": lambda: adv_dad(of_teacher, of_student),
        "adv_js": lambda: adv_js(of_teacher, of_student),
        "tv_l1": lambda: tv_l1(x),
        "tv_l2": lambda: tv_l2(x),
        "l2": lambda: l2(x)}
    return {name: weight * values[name]() for name, weight in active.items()}, statistics


def logits(network: Callable[[Tensor], Tensor], x: Tensor, bf16: bool) -> Tensor:
    with torch.autocast(x.device.type, torch.bfloat16, enabled=bf16):
        return network(x).float()


def jitter(x: Tensor, most: int, flip: bool, draw: torch.Generator) -> Tensor:
    """Roll the whole batch by up to `most` pixels each way; `flip`: mirror it half the time."""
    rows, columns = torch.randint(-most, most + 1, (2,), generator=draw).tolist()
    x = torch.roll(x, (rows, columns), (2, 3))
    mirror = torch.rand((), generator=draw).item() < 0.5
    return x.flip(3) if flip and mirror else x
