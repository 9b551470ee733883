"""Values of the formulas and methods, in float64 and before any rounding, as they were recorded.

A golden is a small tensor in data/goldens.safetensors. One function computes it, for the test and
for writing, so that code that is moved or rewritten has only the adapters below to change. All
inputs are made here and do not depend on the package; random numbers inside a method are the
package's own functions of its seed. A golden is made anew only with a reason, in the commit that
changes the code:

    python tests/test_goldens.py --write NAME ...    (no NAME: all)
"""

import functools
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import safetensors.torch
import torch
from float64 import before_rounding, float64
from torch import Tensor, nn

from dm_kd import augment, distill, engine, image_set, objectives, tasks
from dm_kd.generators import deepinversion, diffusion, dit, gan, guidance
from dm_kd.rivals import cmi, common, dafl
from dm_kd.rivals import terms as inversion_terms

FILE = Path(__file__).parent / "data" / "goldens.safetensors"
TOLERANCE = 1e-5  # of the largest absolute value in a golden
KEPT = 150  # numbers that are kept of a larger result, beside its mean and standard deviation
CPU, CLASSES, BATCH = torch.device("cpu"), 4, 8
TEACHER, STUDENT = 41, 1041  # seeds, for which both take some images for different classes
MEAN, STD = (0.5, 0.4, 0.45), (0.25, 0.3, 0.2)


# --- inputs ---------------------------------------------------------------------------------------

def normal(seed: int, *shape: int) -> Tensor:
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def classes(count: int) -> Tensor:
    return torch.arange(count) * 3 % CLASSES


def fill(module: nn.Module, seed: int) -> nn.Module:
    """Draws every trained weight and batch statistic, in the order of registration."""
    for i, (name, value) in enumerate([*module.named_parameters(), *module.named_buffers()]):
        noise = normal(1000 * seed + i, *value.shape)
        if value.ndim > 1 and value.requires_grad:
            value.data = 1.5 * noise / (value.numel() / len(value)) ** 0.5
        elif name.endswith("running_var"):
            value.copy_(0.5 + noise.abs())
        elif value.ndim == 1 and value.is_floating_point():
            value.data = (name.endswith("weight") + 0.2 * noise)
    return module


class Tiny(nn.Module):
    """Two convolutions with batch norm, one linear layer."""

    def __init__(self, seed: int, width: int = 6):
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(3, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU(),
            nn.Conv2d(width, width, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(width),
            nn.ReLU())
        self.fc = nn.Linear(width, CLASSES)
        fill(self, seed).double()

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.features(x).mean((2, 3)))


def frozen(seed: int) -> nn.Module:
    network = Tiny(seed).eval().requires_grad_(False)
    if seed == STUDENT:  # near the teacher, so that both put some images into one class
        for value, other in zip(network.parameters(), Tiny(TEACHER).parameters(), strict=True):
            value.lerp_(other.data, 0.5)
    return network


def with_gradient(function, x: Tensor) -> list[Tensor]:
    """A scalar function's value and gradient."""
    x = x.clone().requires_grad_()
    value = function(x)
    return [value, torch.autograd.grad(value, x)[0]]


# --- adapters: how today's package is asked. Each returns the tensors of one golden ---------------

def task(resolution: int) -> tasks.Task:
    """A task of small images, or from 32 pixels on of large ones."""
    large = resolution >= 32
    return tasks.Task("tiny", tuple("abcd"), resolution, 3, MEAN, STD, flip=True,
                      large=large, pad=0 if large else 1)


def term(name: str) -> list[Tensor]:
    """A loss term's value and gradient; x: standardised images."""
    teacher, student = frozen(TEACHER), frozen(STUDENT)
    _, averages = inversion_terms.weighted({"bn": 1.0}, teacher, normal(6, BATCH, 3, 8, 8))
    return with_gradient(lambda x: inversion_terms.weighted(
        {name: 1.0}, teacher, x, student, classes(BATCH), averages, first=10.0)[0][name],
        normal(5, BATCH, 3, 8, 8) + 2 * normal(4, BATCH, 3, 1, 1))


def contrast() -> list[Tensor]:
    whole = nn.functional.normalize(normal(9, 6, 12), dim=1)
    return with_gradient(lambda v: cmi.contrastive(  # 4 new images, 2 of the pool
        nn.functional.normalize(v, dim=1), whole, 4), normal(10, 6, 12))


def objective(name: str, labels: str) -> list[Tensor]:
    function = objectives.OBJECTIVES[name]
    hard = classes(BATCH)
    if labels == "unknown":
        hard = torch.where(hard == 0, -1, hard)
    if labels == "mixed":
        hard = augment.mix_labels(hard, CLASSES, {
            "lam": torch.tensor(0.7).double(), "partner": torch.arange(BATCH).flip(0)})
    if labels == "weighted":
        function = objectives.with_labels(function, 0.1)
    teacher = 3 * normal(11, BATCH, CLASSES)
    return with_gradient(lambda z: function(z, teacher, hard, 4.0), 2 * normal(12, BATCH, CLASSES))


def context(method: str, weights: dict, resolution: int, **flags) -> common.Context:
    """What a method works with: its preset, but for the terms and for what distill's flags say."""
    module = common.load(distill.RIVALS[method])
    preset = (module.LARGE if resolution >= 32 else module.SMALL)[method]
    weights = {name: weights.get(name.removesuffix("_weight"), 0.0) for name in preset
               if name.endswith("_weight")}
    args = SimpleNamespace(**{
        **preset, "source": method, "seed": 3, "amp": "none", "latent_size": 5,
        "generator_width": 8, "generator_rate": 2e-3, "synthesis_batch": BATCH,
        **weights, **flags})
    return common.Context(args, task(resolution), frozen(TEACHER), CPU)


def streaming(method: str, terms: dict, **changes) -> list[Tensor]:
    """Fresh images after two updates of the generator."""
    maker = dafl.Method(context(method, terms, 8, student_steps=1, batch_size=BATCH, **changes))
    return [maker.make_batch(frozen(STUDENT), call)[0] for call in range(2)][1:]


def pooling(method: str, terms: dict, resolution: int = 8, **changes) -> list[Tensor]:
    """Images and classes of three calls of two steps each, the first without the adversary; the
    pool has none, then 8, then 16 images."""
    early = method.startswith("fast")  # its last call of the warm-up has the adversary
    maker = common.load(distill.RIVALS[method]).Method(context(
        method, terms, resolution, inner_steps=2, warmup_calls=1 + early, **changes))
    pool = (normal(13, 2 * BATCH, 3, resolution, resolution) * 60 + 120).clamp(0, 255)
    images, labels = [], []
    for call in range(3):
        maker.context.pool = pool[:call * BATCH].to(torch.uint8)
        made = maker.make_batch(frozen(STUDENT), call)
        images.append(made[0].split(BATCH))
        labels.append(made[1].double().split(BATCH))
    return [part for pair in zip(images, labels, strict=True) for kind in pair for part in kind]


def deep_inversion(resolution: int, iterations: int) -> list[Tensor]:
    settings = {"teacher_dtype": "fp32", "iterations": iterations, "pixel_rate": 0.1,
                "bn_weight": 1.0, "tv_l2_weight": 1e-2, "l2_weight": 1e-3}
    generator = deepinversion.DeepInversion(frozen(TEACHER), task(resolution), settings, CPU)
    with before_rounding() as images:
        generator.sample(classes(BATCH), list(range(40, 40 + BATCH)))
    return images


def tiny_dit(learn_sigma: bool = True) -> dit.DiT:
    model = fill(dit.DiT(8, 2, 3, 32, 2, 2, CLASSES, learn_sigma=learn_sigma), 14).eval()
    model.final_layer.linear.weight.data *= 0.3  # else most pixels end black or white
    return model


def dit_images(scale: float, steps: int = 5, sampler: str = "ddpm", count: int = 16,
               guide: bool = False, student: bool = False, **changes) -> list[Tensor]:
    settings = {"steps": steps, "guidance_scale": scale, "sampler": sampler,
                "guided_channels": "all", **changes}
    teacher = guide and guidance.TeacherGuidance(frozen(TEACHER), task(8), 0.3, CPU,
                                                  frozen(STUDENT) if student else None)
    generator = dit.DiTGenerator(tiny_dit(), settings, CPU, teacher=teacher or None)
    with before_rounding() as images:
        generator.sample(classes(count), list(range(50, 50 + count)))
    return images


def diffusion_loss() -> list[Tensor]:
    """Each sample's loss, first and last step of the process among them, and all gradients."""
    model = tiny_dit(learn_sigma=False)
    losses = diffusion.diffusion_loss(
        model, diffusion.Diffusion(), (normal(15, 6, 3, 8, 8) / 2).clamp(-1, 1), classes(6),
        torch.tensor([0, 0, 1, 300, 700, 999]), normal(16, 6, 3, 8, 8))
    weights = [p for p in model.parameters() if p.requires_grad]
    return [losses, *torch.autograd.grad(losses.sum(), weights)]


def gan_images() -> list[Tensor]:
    model = fill(gan.Generator(8, 3, CLASSES, 8, 6), 17).eval()
    generator = gan.GanGenerator(model, {"truncation": 0.7}, CPU)
    with before_rounding() as images, torch.no_grad():
        generator.sample(classes(BATCH), list(range(60, 60 + BATCH)))
    return images


def kd(name: str, **changes) -> list[Tensor]:
    """Weights and statistics of a student after 20 steps, 4 an epoch."""
    teacher, student = frozen(TEACHER), Tiny(STUDENT).train()
    pixels = (normal(18, 64, 3, 8, 8) * 60 + 120).clamp(0, 255).to(torch.uint8)
    labels = torch.arange(64) % CLASSES
    args = SimpleNamespace(**{"optimizer": "sgd", "learning_rate": 0.05, "weight_decay": 1e-3,
                              "lr_schedule": "cosine", "warmup_epochs": 1, "epochs": 5,
                              "lr_decay_epochs": (2, 4), "mixup": 0.0, "cutmix": 0.0,
                              "temperature": 4.0, "amp": "none", "compile": "off", **changes})
    view = engine.View(MEAN, STD, pad=1, flip=True, mixup=args.mixup, cutmix=args.cutmix,
                       num_classes=CLASSES)
    optimizer = engine.make_optimizer(student, args)
    loss_of = engine.loss_function(view, student, teacher, objectives.OBJECTIVES[name], args)
    for epoch in range(5):
        for step, ids in enumerate(torch.arange(64).split(16)):
            optimizer.param_groups[0]["lr"] = engine.learning_rate(epoch + step / 4, args)
            engine.train_step(loss_of, student, optimizer, pixels[ids], labels[ids],
                              view.draw(pixels[ids], ids, 3, epoch, step))
    return list(student.state_dict().values())


def augmentation() -> list[Tensor]:
    """Crops, flips, boxes, mixing partners and shares, each for two seeds and epochs."""
    ids, found = torch.tensor([0, 1, 2, 77, 1_281_166, 1 << 40]), []
    sizes = torch.tensor([[375, 500], [500, 375], [224, 224], [60, 1000], [1000, 60], [33, 47]])
    for seed, epoch in ((0, 0), (0, 1), (12345, 1)):
        found += [augment.crop_offsets(seed, epoch, ids, 4), augment.flips(seed, epoch, ids),
                  *augment.boxes_and_flips(seed, epoch, ids, sizes)]
        for mixup, cutmix in ((0.4, 0.0), (0.0, 1.0), (0.4, 1.0)):
            draws = augment.draw_mixing(6, 4, 4, seed, epoch, 9, mixup, cutmix, 1.0)
            found += [draws["lam"], draws["partner"], augment.mix(normal(19, 6, 1, 4, 4), draws)]
    return [value.double() for value in found]


def image_seeds() -> list[Tensor]:
    keys = [(0, 0, 0), (0, 0, 1), (0, 7, 3), (99, 999, 199), (99, -1, 12)]
    seeds = [image_set.image_seed(*key) for key in keys]
    return [torch.tensor([*seeds, image_set.image_seed(0, 7, 3, shared_noise=True),
                          image_set.batch_seed(seeds)])]


# --- the goldens ----------------------------------------------------------------------------------

call = functools.partial
FAST = {"terms": {"bn_ema": 10.0, "ce_target": 0.5, "adv_dad": 1.0}}
META = {**FAST, "meta_rate": 6e-3}
NAYER = {**FAST, "loops": 2, "warmup_loops": 1, "life": 2}
DFQ = {"adv_kl": 1.0, "bn": 1.0, "onehot": 1.0, "balance": 20.0}
LARGE = {"generator_rate": 2e-4}  # two steps at more make 1e-9 of noise 1e-3
ADI = {"bn": 0.1, "ce_target": 0.1, "adv_js": 100.0}
GOLDENS = {
    **{f"term_{name}": call(term, name) for name in inversion_terms.NAMES},
    "term_contrastive": contrast,
    **{f"objective_{name}_{labels}": call(objective, name, labels)
       for name in ("kd", "mse", "dkd", "dist") for labels in ("known", "weighted")},
    "objective_dkd_unknown": call(objective, "dkd", "unknown"),
    "objective_dkd_mixed": call(objective, "dkd", "mixed"),
    "dafl": call(streaming, "dafl", {"onehot": 1.0, "act": 1e-3, "balance": 20.0}),
    "dafl_norm": call(streaming, "dafl", {"onehot": 1.0, "balance": 20.0},
                      generator_output="norm"),
    "dfq": call(streaming, "dfq", DFQ),
    "zskt": call(streaming, "zskt", {"adv_kl": 1.0}),
    "fastdfkd": call(pooling, "fastdfkd", **META),
    "fastdfkd_reptile": call(pooling, "fastdfkd_reptile", **META),
    "fastdfkd_reptile_large": call(pooling, "fastdfkd_reptile", resolution=32,
                                   **{**META, **LARGE, "meta_rate": 1e-4}),
    "fast_sequential": call(pooling, "fast_sequential", **FAST),
    "cmi": call(pooling, "cmi", {"bn": 1.0, "ce_target": 1.0, "adv_dad": 5.0, "contrastive": 8.0},
                generator_rate=5e-4, bank_images=12),
    "nayer": call(pooling, "nayer", **NAYER),
    "adi": call(pooling, "adi", {**ADI, "tv_l1": 1e-3}, pixel_rate=0.1),
    "deepinversion": call(deep_inversion, 8, 4),
    "deepinversion_large": call(deep_inversion, 32, 9),
    "dit_s1": call(dit_images, 1.0), "dit_s2": call(dit_images, 2.0),
    "dit_ddim": call(dit_images, 2.0, sampler="ddim"),
    "diffdfkd": call(dit_images, 2.0, 10, count=BATCH, guide=True),
    "diffdfkd_adversary": call(dit_images, 2.0, 10, count=BATCH, guide=True, student=True),
    "diffdfkd_cutmix": call(dit_images, 2.0, 10, count=BATCH, guide=True, student=True,
                            latent_cutmix=True),
    "diffusion_loss": diffusion_loss,
    "gan": gan_images,
    "kd_mixup": call(kd, "kd", mixup=0.4),
    "dkd_cutmix_adamw": call(kd, "dkd", cutmix=1.0, optimizer="adamw", learning_rate=2e-3,
                             lr_schedule="step"),
    "augmentation": augmentation,
    "image_seeds": image_seeds,
}


def compute(name: str) -> Tensor:
    """A golden, as it is kept: float64, or int64, of one dimension."""
    with float64():
        values = torch.cat([v.detach().flatten() for v in GOLDENS[name]()])
    assert len(values) and (not values.is_floating_point() or values.isfinite().all())
    if len(values) <= KEPT or name == "augmentation" or not values.is_floating_point():
        return values.contiguous()
    places = torch.arange(KEPT) * (len(values) - 1) // (KEPT - 1)
    return torch.cat([values[places], torch.stack([values.mean(), values.std()])])


@pytest.mark.parametrize("name", GOLDENS)
def test_golden(name):
    golden, found = safetensors.torch.load_file(FILE)[name], compute(name)
    assert found.dtype == golden.dtype and found.shape == golden.shape
    if not golden.is_floating_point():
        assert torch.equal(found, golden)
    else:
        assert (found - golden).abs().max() <= TOLERANCE * golden.abs().max()


if __name__ == "__main__":
    torch.set_num_threads(1)
    assert sys.argv[1] == "--write"
    kept = safetensors.torch.load_file(FILE) | {k: compute(k) for k in sys.argv[2:] or GOLDENS}
    safetensors.torch.save_file({k: kept[k] for k in sorted(kept) if k in GOLDENS}, FILE)
