"""The loss terms of the methods that make images out of a teacher, each once: pure functions of
images, batch statistics, features and logits. A method is a preset of terms and weights.

    python -m dm_kd.distill --source dafl|dfq|zskt|fastdfkd|cmi|nayer|adi ...
    python -m dm_kd.synthesize --generator deepinversion --teacher SPEC ...

To add one: write it, add it to TERMS. All are minimised. What a term needs of the teacher is
checked by `require` before any compute.
"""

import contextlib
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dm_kd.errors import DivergedError, UserError

Statistics = list[tuple[Tensor, Tensor]]  # (mean, biased variance), each [C], of each batch norm
JS_TEMPERATURE, JS_FLOOR = 3.0, 0.01  # Yin et al. 2020, as their program has it
MOST_FEATURES = 4096  # numbers per image above which contrastive features are one per width


# --- what a forward pass of the teacher shows -----------------------------------------------------

@dataclass
class Reading:
    """What the last forward passes showed; filled while a `reading` block is open."""

    statistics: Statistics = field(default_factory=list)  # of each batch norm's input
    running: Statistics = field(default_factory=list)  # what the same batch norms remember
    means: list[Tensor] = field(default_factory=list)  # [B, C], over space, of the same inputs
    features: list[Tensor] = field(default_factory=list)  # [B, d] of each network: what its last
    # linear layer gets


def batch_norms(model: nn.Module) -> list[nn.BatchNorm2d]:
    return [m for m in model.modules() if isinstance(m, nn.BatchNorm2d)]


def networks(model: nn.Module) -> list[nn.Module]:
    """The networks of a teacher that is several in one (distill's, in `teachers`), else itself."""
    return list(getattr(model, "teachers", [model]))


def last_linear(model: nn.Module) -> nn.Linear | None:
    return next((m for m in reversed(list(model.modules())) if isinstance(m, nn.Linear)), None)


@contextlib.contextmanager
def reading(model: nn.Module, statistics: bool = True, means: bool = False, features: bool = False
            ) -> Iterator[Reading]:
    """Inside the block a Reading notes what forward passes show, in the order of the layers' calls,
    with gradients. No hook is left behind, even after an error."""
    seen, handles = Reading(), []

    def at_norm(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        x = inputs[0].float()  # [B, C, H, W]
        if statistics:
            seen.statistics.append(ChannelStatistics.apply(x))
            seen.running.append((module.running_mean, module.running_var))
        if means:
            seen.means.append(x.mean((2, 3)))

    def at_head(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        seen.features.append(inputs[0])

    try:
        if statistics or means:
            handles += [m.register_forward_pre_hook(at_norm) for m in batch_norms(model)]
        if features:
            handles += [last_linear(n).register_forward_pre_hook(at_head) for n in networks(model)]
        yield seen
    finally:
        for handle in handles:
            handle.remove()


class ChannelStatistics(torch.autograd.Function):
    """x [B, C, H, W] -> (mean, variance) of each channel [C], the variance with division by N.

    torch.var_mean's values; its passes over channels_last memory take four times as long on a CPU,
    and a third of an update of DeepInversion. The gradient is written out, in one pass:
    d mean / dx = 1 / N, d variance / dx = 2 (x - mean) / N.
    """

    @staticmethod
    def forward(ctx, x: Tensor) -> tuple[Tensor, Tensor]:
        mean = x.mean((0, 2, 3))
        ctx.save_for_backward(x, mean)
        return mean, (x - mean.view(-1, 1, 1)).square_().mean((0, 2, 3))

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, of_mean: Tensor, of_variance: Tensor) -> Tensor:
        x, mean = ctx.saved_tensors
        n = x.numel() // x.shape[1]
        slope = 2 / n * of_variance
        return torch.addcmul((of_mean / n - slope * mean).view(-1, 1, 1), x, slope.view(-1, 1, 1))


def chosen_means(means: list[Tensor]) -> Tensor:
    """The spatial means side by side [B, d]; of networks with more than MOST_FEATURES numbers the
    first layer of each width only (CMI takes a ResNet-34's stages)."""
    if sum(m.shape[1] for m in means) > MOST_FEATURES:
        first = {m.shape[1]: m for m in reversed(means)}
        means = list(reversed(first.values()))
    return torch.cat(means, 1)


# --- terms of batch statistics --------------------------------------------------------------------

def bn(statistics: Statistics, running: Statistics, first: float = 1.0) -> Tensor:
    """Sum over the layers of ||mean - running mean|| + ||variance - running variance||, Euclidean,
    not squared (DeepInversion, Yin et al. 2020, arXiv 1912.08795).

    first: weight of the first layer (its ImageNet recipe: 10)."""
    total = 0.0
    for i, ((mean, variance), (run_mean, run_variance)) in enumerate(
            zip(statistics, running, strict=True)):
        layer = norm(mean - run_mean) + norm(variance - run_variance)
        total = total + (first if i == 0 else 1.0) * layer
    return total


def norm(difference: Tensor) -> Tensor:
    """Euclidean, with gradient 0 (not NaN) at 0."""
    return torch.linalg.vector_norm(difference)


def bn_ema(statistics: Statistics, averages: Statistics | None, m: float,
           running: Statistics) -> Tensor:
    """`bn` of (1 - m) batch + m average over past calls, so that a small batch need not have all
    classes' statistics (FastDFKD, Fang et al. 2022, arXiv 2112.06253). averages: None = none yet,
    the batch's alone."""
    if averages is None:
        return bn(statistics, running)
    return bn([tuple((1 - m) * new + m * old for new, old in zip(a, b, strict=True))
               for a, b in zip(statistics, averages, strict=True)], running)


def update_averages(averages: Statistics | None, statistics: Statistics, m: float) -> Statistics:
    """m average + (1 - m) batch; the first batch itself."""
    detached = [(mean.detach(), variance.detach()) for mean, variance in statistics]
    if averages is None:
        return detached
    return [tuple(m * old + (1 - m) * new for new, old in zip(a, b, strict=True))
            for a, b in zip(detached, averages, strict=True)]


# --- terms of the teacher's outputs ---------------------------------------------------------------

def ce_target(teacher_logits: Tensor, targets: Tensor) -> Tensor:
    """Cross-entropy with the classes that were asked for. Logits [B, C]; targets int64 [B], or
    of mixed images the classes' shares float [B, C]."""
    return F.cross_entropy(teacher_logits.float(), targets)


def onehot(teacher_logits: Tensor) -> Tensor:
    """Cross-entropy with the teacher's own first class: outputs shall be sure (DAFL, Chen et al.
    2019, arXiv 1904.01186)."""
    return F.cross_entropy(teacher_logits.float(), teacher_logits.argmax(1))


def act(features: Tensor) -> Tensor:
    """- mean |penultimate features|: real images excite more (DAFL). features [B, d]."""
    return -features.float().abs().mean()


def balance(teacher_logits: Tensor, base: float = math.e, eps: float = 1e-12) -> Tensor:
    """Sum of p log p, p the batch's mean class probabilities: - log C where all classes come
    equally often (DAFL).

    base: DAFL's program takes log10, Fast-Datafree's and CMI's the natural one: the same weight
    there is 2.303 times as strong.  eps: without it p = 0 is NaN, as in their programs."""
    p = F.softmax(teacher_logits.float(), 1).mean(0)
    return (p * (p + eps).log()).sum() / math.log(base)


# --- terms that set student and teacher at odds ---------------------------------------------------

def kl_each(teacher_logits: Tensor, student_logits: Tensor) -> Tensor:
    """KL(softmax teacher || softmax student) of each image [B], temperature 1."""
    teacher = F.log_softmax(teacher_logits.float(), 1)
    student = F.log_softmax(student_logits.float(), 1)
    return (teacher.exp() * (teacher - student)).sum(1)


def adv_kl(teacher_logits: Tensor, student_logits: Tensor) -> Tensor:
    """- mean KL: images on which the student differs from the teacher (ZSKT, Micaelli & Storkey
    2019, arXiv 1905.09768)."""
    return -kl_each(teacher_logits, student_logits).mean()


def adv_dad(teacher_logits: Tensor, student_logits: Tensor) -> Tensor:
    """`adv_kl` of the images that both put into one class, 0 for the others: nothing is gained by
    images that the student has wrong already (CMI, Fang et al. 2021, arXiv 2105.08584)."""
    agree = teacher_logits.argmax(1) == student_logits.argmax(1)
    return -(agree * kl_each(teacher_logits, student_logits)).mean()


def adv_js(teacher_logits: Tensor, student_logits: Tensor, mode: str = "textbook") -> Tensor:
    """- Jensen-Shannon divergence at temperature 3 (adaptive DeepInversion).

    mode: "textbook": (KL(P || M) + KL(Q || M)) / 2, M = (P + Q) / 2, within 0 and ln 2.
        "reference": the authors' program: (KL(M || P) + KL(M || Q)) / 2 with all three clamped to
        0.01 .. 0.99. It is no Jensen-Shannon divergence; with many classes small differences drown
        in the clamp. Their 1 - clamp(JS, 0, 1) has no gradient where the networks differ most, so
        that clamp stands nowhere here; published numbers were made with it."""
    p = F.softmax(student_logits.float() / JS_TEMPERATURE, 1)
    q = F.softmax(teacher_logits.float() / JS_TEMPERATURE, 1)
    middle = (p + q) / 2
    if mode == "reference":
        p, q, middle = (v.clamp(JS_FLOOR, 1 - JS_FLOOR) for v in (p, q, middle))
        pairs = ((middle, p), (middle, q))
    else:
        assert mode == "textbook", mode
        pairs = ((p, middle), (q, middle))
    each = [(a * (a.clamp_min(1e-12).log() - b.clamp_min(1e-12).log())).sum(1).mean()
            for a, b in pairs]
    return -(each[0] + each[1]) / 2


# --- priors of images -----------------------------------------------------------------------------

def neighbour_differences(x: Tensor) -> list[Tensor]:
    """Right, down and both diagonals: [B, C, H, W] -> four tensors."""
    return [x[..., :, 1:] - x[..., :, :-1], x[..., 1:, :] - x[..., :-1, :],
            x[..., 1:, 1:] - x[..., :-1, :-1], x[..., 1:, :-1] - x[..., :-1, 1:]]


def tv_l1(x: Tensor) -> Tensor:
    """Total variation: sum over four directions of the mean |difference|."""
    return sum(d.abs().mean() for d in neighbour_differences(x))


def tv_l2(x: Tensor, per: str = "batch") -> Tensor:
    """Total variation: sum over four directions of the Euclidean norm of the differences.

    per: "batch": of the whole batch tensor, as in DeepInversion's program: it grows with the square
        root of the batch.  "image": of each image, the mean over the batch."""
    if per == "batch":
        return sum(norm(d) for d in neighbour_differences(x))
    assert per == "image", per
    return sum(torch.linalg.vector_norm(d.flatten(1), dim=1).mean()
               for d in neighbour_differences(x))


def l2(x: Tensor) -> Tensor:
    """Mean over the images of their Euclidean norm (DeepInversion)."""
    return torch.linalg.vector_norm(x.flatten(1), dim=1).mean()


# --- contrast between images ----------------------------------------------------------------------

def contrastive(local: Tensor, whole: Tensor, temperature: float, current: int) -> Tensor:
    """Tell each image's cut-out from all other images: cross-entropy of local wholeᵀ / temperature
    with the diagonal, the mean over the `current` first images plus the mean over the remembered
    others (CMI). No gradient goes through `whole`.

    Args:
        local, whole: unit vectors [N, d] of the cut-outs and of the whole images.
    """
    logits = local.float() @ whole.detach().float().T / temperature
    each = F.cross_entropy(logits, torch.arange(len(logits), device=logits.device),
                           reduction="none")
    own = each[:current].mean()
    return own if current == len(each) else own + each[current:].mean()


# --- a method's loss ------------------------------------------------------------------------------

@dataclass
class Seen:
    """One batch in all the forms that terms look at."""

    images: Tensor  # standardised float32 [B, C, H, W], as the teacher saw them
    teacher_logits: Tensor
    student_logits: Tensor | None = None
    targets: Tensor | None = None
    reading: Reading | None = None
    averages: Statistics | None = None
    momentum: float = 0.0
    first: float = 1.0
    networks: int = 1  # of the teacher: what is read inside counts as the mean over them


TERMS: dict[str, Callable[[Seen], Tensor]] = {
    "bn": lambda s: bn(s.reading.statistics, s.reading.running, s.first) / s.networks,
    "bn_ema": lambda s: bn_ema(s.reading.statistics, s.averages, s.momentum,
                               s.reading.running) / s.networks,
    "ce_target": lambda s: ce_target(s.teacher_logits, s.targets),
    "onehot": lambda s: onehot(s.teacher_logits),
    "act": lambda s: sum(map(act, s.reading.features)) / s.networks,
    "balance": lambda s: balance(s.teacher_logits),
    "adv_kl": lambda s: adv_kl(s.teacher_logits, s.student_logits),
    "adv_dad": lambda s: adv_dad(s.teacher_logits, s.student_logits),
    "adv_js": lambda s: adv_js(s.teacher_logits, s.student_logits),
    "tv_l1": lambda s: tv_l1(s.images),
    "tv_l2": lambda s: tv_l2(s.images),
    "l2": lambda s: l2(s.images),
}
OF_STATISTICS, OF_STUDENT = {"bn", "bn_ema"}, {"adv_kl", "adv_dad", "adv_js"}


def weighted(terms: dict[str, float], teacher: nn.Module, x: Tensor,
             student: nn.Module | None = None, targets: Tensor | None = None,
             averages: Statistics | None = None, momentum: float = 0.0, first: float = 1.0,
             means: bool = False, bf16: bool = False) -> tuple[dict[str, Tensor], Reading]:
    """Each term of a batch times its weight; those of weight 0 are not computed, and the student is
    asked only where a term looks at it.

    Args:
        x: standardised float32 [B, C, H, W].
        momentum, averages: of bn_ema.  first: of bn.
        means: also note the batch norms' inputs, averaged over space.
        bf16: teacher and student compute in bfloat16 autocast; statistics and terms in float32.

    Returns:
        ({term: weighted scalar}, what the teacher's forward showed).
    """
    active = {name: weight for name, weight in terms.items() if weight}
    with reading(teacher, bool(OF_STATISTICS & active.keys()), means, "act" in active) as read:
        logits = lowered(teacher, x, bf16)
    theirs = lowered(student, x, bf16) if OF_STUDENT & active.keys() else None
    seen = Seen(x, logits, theirs, targets, read, averages, momentum, first,
                len(networks(teacher)))
    return {name: weight * TERMS[name](seen) for name, weight in active.items()}, read


def lower(x: Tensor, bf16: bool) -> torch.autocast:
    """bfloat16 autocast where x lies, or none."""
    return torch.autocast(x.device.type, torch.bfloat16, enabled=bf16)


def lowered(network: nn.Module, x: Tensor, bf16: bool) -> Tensor:
    """Logits, float32; with bf16 from bfloat16 autocast."""
    with lower(x, bf16):
        return network(x).float()


def check_finite(parts: dict[str, Tensor], where: str) -> None:
    """
    Raises:
        DivergedError: a term is NaN or infinite; it is named, and the step."""
    if torch.isfinite(torch.stack([v.detach() for v in parts.values()]).sum()):
        return
    name = next((n for n, v in parts.items() if not torch.isfinite(v)), "their sum")
    raise DivergedError(f"the images' loss diverged: {name} became "
                        f"{parts[name].item() if name in parts else 'infinite'} {where}",
                        kept="the checkpoint before it, if there was one",
                        hint="a lower rate of the generator or pixels, or a smaller weight of "
                             "that term; in another --out")


def require(teacher: nn.Module, terms: set[str], example: Tensor, spec: str, without: str = ""
            ) -> None:
    """What the terms need of a teacher, before any compute but one pass of one small batch.

    Args:
        terms: the names of those in use; "contrastive" besides those of TERMS.
        example: standardised images [B, C, H, W].
        without: how the caller does without a term of batch norms, for the hint.

    Raises:
        UserError: no batch norm, no running statistics, no linear layer, or no gradient of its
            input.
    """
    norms = batch_norms(teacher)
    of_norms = sorted((OF_STATISTICS | {"contrastive"}) & terms)
    if of_norms and not norms:
        raise UserError(f"the term {of_norms[0]} reads batch norms, the teacher has no BatchNorm2d",
                        teacher=spec, hint="; ".join(filter(None, ("a teacher with batch norm",
                                                                   without))))
    if OF_STATISTICS & terms and any(m.running_mean is None for m in norms):
        raise UserError("the teacher's batch norms keep no running statistics", teacher=spec,
                        hint="; ".join(filter(None, ("a teacher trained with them", without))))
    if "act" in terms and not all(last_linear(network) for network in networks(teacher)):
        raise UserError("the term act reads the input of the last linear layer, the teacher has "
                        "none", teacher=spec, hint="--act-weight 0")
    with torch.enable_grad():
        x = example.clone().requires_grad_()
        try:
            gradient = torch.autograd.grad(teacher(x).square().sum(), x)[0]
        except RuntimeError as error:
            raise UserError("the teacher gives no gradient of its input", teacher=spec,
                            found=str(error).splitlines()[0][:100],
                            hint="a teacher that torch can differentiate") from error
    if not torch.isfinite(gradient).all():
        raise UserError("the teacher's gradient of its input is not finite", teacher=spec)


# --- pixels as the parameters ---------------------------------------------------------------------

def jitter(x: Tensor, most: int, flip: bool, draw: torch.Generator) -> Tensor:
    """Roll the whole batch by up to `most` pixels each way and mirror it every second time."""
    rows, columns = torch.randint(-most, most + 1, (2,), generator=draw).tolist()
    x = torch.roll(x, (rows, columns), (2, 3))
    coin = torch.rand((), generator=draw).item() < 0.5
    return x.flip(3) if flip and coin else x


def descend(x: Tensor, parts_of: Callable[[Tensor], dict[str, Tensor]], iterations: int,
            rate: Callable[[int], float], betas: tuple[float, float], bounds: tuple[Tensor, Tensor],
            view: Callable[[Tensor], Tensor], where: str) -> Tensor:
    """Adam on the pixels of a batch, clipped after each step to black and white; returns a copy of
    the batch of the lowest loss (the public programs keep an alias of the tensor they go on
    changing, so that theirs is always the last).

    Args:
        x: standardised images [B, C, H, W]; not changed.
        parts_of: viewed images -> {term: weighted scalar}.
        rate: iteration -> learning rate.
        bounds: the standardised black and white, each [C, 1, 1].
        view: what the networks see of x, such as `jitter`.
        where: for the error of a loss that is not finite.
    """
    x = x.detach().clone().requires_grad_()
    optimizer = torch.optim.Adam([x], betas=betas, eps=1e-8)
    best, lowest = x.detach().clone(), math.inf
    for i in range(iterations):
        optimizer.param_groups[0]["lr"] = rate(i)
        parts = parts_of(view(x))
        check_finite(parts, f"{where}, iteration {i + 1}")
        loss = sum(parts.values())
        value = loss.item()
        if value < lowest:
            best, lowest = x.detach().clone(), value
        x.grad, = torch.autograd.grad(loss, x)
        optimizer.step()
        with torch.no_grad():
            x.copy_(torch.maximum(torch.minimum(x, bounds[1]), bounds[0]))
    return torch.maximum(torch.minimum(best, bounds[1]), bounds[0])
