"""How close a set of images is to real ones, from feature vectors: float32 [N, D] each.

    frechet_distance(features, real)              distance of the two distributions
    neighbourhoods(real, features, k=5)           precision, recall, coverage
"""

import torch
from torch import Tensor

CHUNK = 1000  # rows of a distance matrix that are in memory at once


def frechet_distance(features: Tensor, real: Tensor) -> float:
    """Squared Frechet distance of two Gaussians with the means and covariances of the features
    (Heusel et al. 2017, arXiv 1706.08500, eq. 6). Comparable for one network and one number of
    images only."""
    features, real = features.double(), real.double()
    covariances = features.T.cov(), real.T.cov()
    root = torch.linalg.eigvals(covariances[0] @ covariances[1]).sqrt().real.sum()
    traces = covariances[0].trace() + covariances[1].trace()
    return float((features.mean(0) - real.mean(0)).square().sum() + traces - 2 * root)


def neighbourhoods(real: Tensor, synthetic: Tensor, k: int = 5) -> dict[str, float]:
    """Precision and recall (Kynkaanniemi et al. 2019, arXiv 1904.06991, eq. 1), and coverage (Naeem
    et al. 2020, arXiv 2002.09797, eq. 6); k below both numbers of points.

    A point's ball reaches to its k-th nearest neighbour in its own set, which is outside (as in
    Naeem et al.'s program). precision: share of synthetic points inside a real ball; recall: share
    of real points inside a synthetic ball; coverage: share of real balls with a synthetic point
    inside.
    """
    real_reach, own_reach = kth_distance(real, k), kth_distance(synthetic, k)
    precise, recalled, covered = torch.zeros(len(synthetic), dtype=torch.bool), [], []
    for rows, reach in zip(real.split(CHUNK), real_reach.split(CHUNK), strict=True):
        distances = distances_between(rows, synthetic)  # [chunk, M]
        within = distances < reach[:, None]
        precise |= within.any(0)
        covered.append(within.any(1))
        recalled.append((distances < own_reach).any(1))
    shares = {"precision": precise, "recall": torch.cat(recalled), "coverage": torch.cat(covered)}
    return {name: float(hits.double().mean()) for name, hits in shares.items()}


def kth_distance(points: Tensor, k: int) -> Tensor:
    """Distance of each point to its k-th nearest other one, float64 [N]."""
    reaches = []
    for start in range(0, len(points), CHUNK):
        distances = distances_between(points[start:start + CHUNK], points)
        distances.diagonal(start).zero_()  # a point to itself, which products may not round to 0
        reaches.append(distances.kthvalue(k + 1).values)
    return torch.cat(reaches)


def distances_between(points: Tensor, others: Tensor) -> Tensor:
    """Euclidean, float64 [N, M]. Radii and distances must come from the same formula, since a point
    at exactly the radius is outside."""
    from sklearn.metrics import pairwise_distances

    return torch.from_numpy(pairwise_distances(points.double().numpy(), others.double().numpy()))
