"""How close one set of images is to another, from feature vectors: the figures of inspect_set and
of the synthesis benchmark.

    with fidelity.penultimate(teacher) as collected:
        logits = engine.predict(teacher, images, view, device, "none")
    features = torch.cat(collected)                    # [N, D]
    fidelity.frechet_distance(features, real_features)
    fidelity.neighbourhoods(real_features, features, k=5)
"""

import contextlib
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from dm_kd import augment

CHUNK = 1000  # rows of a distance matrix that are in memory at once
THUMBNAIL = 32  # pixels per side of what near-duplicates are looked for in


# --- features -------------------------------------------------------------------------------------

@contextlib.contextmanager
def penultimate(model: nn.Module) -> Iterator[list[Tensor]]:
    """While the block runs, collects what enters the network's last layer (linear, or a 1x1
    convolution): a list of float32 [B, D] on the CPU, maps averaged over their places."""
    head = [m for m in model.modules() if isinstance(m, (nn.Linear, nn.Conv2d))][-1]
    collected: list[Tensor] = []

    def keep(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        x = inputs[0].detach().float()
        collected.append((x.mean((2, 3)) if x.ndim == 4 else x).flatten(1).cpu())

    handle = head.register_forward_pre_hook(keep)
    try:
        yield collected
    finally:
        handle.remove()


def thumbnails(images: Tensor) -> Tensor:
    """uint8 [N, C, H, W] -> float32 [N, D] in [0, 1]: the pixels, of images shrunk to 32 x 32 where
    they are larger."""
    parts = []
    for part in images.split(CHUNK):
        if max(part.shape[2:]) > THUMBNAIL:
            part = augment.resize(part, THUMBNAIL, THUMBNAIL)
        parts.append(part.flatten(1).float() / 255)
    return torch.cat(parts)


# --- two distributions ----------------------------------------------------------------------------

def frechet_distance(features: Tensor, real: Tensor) -> float:
    """Squared Frechet distance of two Gaussians with the means and covariances of the features
    [N, D] and [M, D] (Heusel et al. 2017, arXiv 1706.08500, eq. 6), by torchmetrics in float64.
    Comparable for one network and one number of images only."""
    from torchmetrics.image.fid import FrechetInceptionDistance

    extractor = nn.Identity()  # the features are there already
    extractor.num_features = features.shape[1]
    metric = FrechetInceptionDistance(extractor).set_dtype(torch.float64)
    metric.update(real.double(), real=True)
    metric.update(features.double(), real=False)
    return float(metric.compute())


def neighbourhoods(real: Tensor, made: Tensor, k: int = 5) -> dict[str, float]:
    """Precision and recall (Kynkaanniemi et al. 2019, arXiv 1904.06991, eq. 1), density and
    coverage (Naeem et al. 2020, arXiv 2002.09797, eq. 4 and 6) of features [N, D] and [M, D].

    Each point's ball reaches to its k-th nearest neighbour in its own set, which is not in it
    (Naeem et al.'s program compares with <). precision: share of made
    points inside some real ball; recall: of real points inside some made ball; density: real balls
    that a made point lies in, over k; coverage: share of real balls with a made point in them.

    Raises:
        ValueError: k is not smaller than both numbers of points.
    """
    if not 0 < k < min(len(real), len(made)):
        raise ValueError(f"k = {k} of {len(real)} and {len(made)} points")
    real_reach, made_reach = kth_distance(real, k), kth_distance(made, k)
    inside, recalled, covered = [], [], []
    for rows, reach in zip(real.split(CHUNK), real_reach.split(CHUNK), strict=True):
        distances = distances_between(rows, made)  # [chunk, M]
        within = distances < reach[:, None]
        inside.append(within.sum(0))
        covered.append(within.any(1))
        recalled.append((distances < made_reach).any(1))
    inside = torch.stack(inside).sum(0)  # [M] real balls around each made point
    return {"precision": float((inside > 0).double().mean()),
            "recall": float(torch.cat(recalled).double().mean()),
            "density": float(inside.double().mean()) / k,
            "coverage": float(torch.cat(covered).double().mean())}


def kth_distance(points: Tensor, k: int) -> Tensor:
    """Distance of each point to its k-th nearest other one, float64 [N]."""
    found = []
    for start in range(0, len(points), CHUNK):
        distances = distances_between(points[start:start + CHUNK], points)
        distances.diagonal(start).zero_()  # a point to itself, which products may round off 0
        found.append(distances.kthvalue(k + 1).values)
    return torch.cat(found)


def distances_between(points: Tensor, others: Tensor) -> Tensor:
    """Euclidean, float64 [N, M], by matrix products. Reaches and distances must come from the same
    formula: a point that lies just as far as a ball reaches is outside, as in the published
    program."""
    from sklearn.metrics import pairwise_distances

    return torch.from_numpy(pairwise_distances(points.double().numpy(), others.double().numpy()))


def search_among(points: Tensor):
    """scikit-learn's exact search for the nearest of the points [N, D]: matrix products, 20 times
    as fast as differences for [10000, 784], whose rounding may confuse distances that differ by
    less than 1e-6 or so."""
    from sklearn.neighbors import NearestNeighbors

    return NearestNeighbors(n_neighbors=1, algorithm="brute").fit(points.numpy())


# --- copies ---------------------------------------------------------------------------------------

def nearest(points: Tensor, others: Tensor) -> tuple[Tensor, Tensor]:
    """Root mean square difference of each point [N, D] to its nearest of `others` [M, D] (0 for an
    exact copy), and which that is."""
    found = search_among(others).kneighbors(points.numpy(), return_distance=False)
    which = torch.from_numpy(found[:, 0])
    return root_mean_square(points, others[which]), which


def nearest_other(points: Tensor) -> Tensor:
    """The same, to the nearest other point of the same set [N]; infinite for a single one."""
    if len(points) == 1:
        return torch.full((1,), torch.inf)
    found = search_among(points).kneighbors(return_distance=False)
    return root_mean_square(points, points[torch.from_numpy(found[:, 0])])


def root_mean_square(points: Tensor, others: Tensor) -> Tensor:
    """Of the differences of two [N, D], row by row [N]: from the differences themselves, so that
    equal rows give 0."""
    return (points - others).square().mean(1).sqrt()
