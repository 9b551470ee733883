"""How close a set of images is to real ones, from feature vectors: float32 [N, D] each.

    frechet_distance(features, real)              distance of the two distributions
    neighbourhoods(real, features, k=5)           precision, recall, coverage
"""

import numpy as np
import torch
from torch import Tensor


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
    from sklearn.metrics import pairwise_distances_chunked

    real, synthetic = real.double().numpy(), synthetic.double().numpy()
    # Radii and distances come from the same formula, since a point at exactly the radius is outside
    real_reach, own_reach = (np.concatenate(list(pairwise_distances_chunked(
        points, reduce_func=lambda distances, _: np.partition(distances, k)[:, k])))
        for points in (real, synthetic))  # the distance of a point to itself is 0
    precise, recalled, covered = np.zeros(len(synthetic), dtype=bool), [], []
    for distances in pairwise_distances_chunked(real, synthetic):  # [chunk, M]
        within = distances < real_reach[len(recalled):][:len(distances), None]
        precise |= within.any(0)
        covered.extend(within.any(1))
        recalled.extend((distances < own_reach).any(1))
    shares = {"precision": precise, "recall": recalled, "coverage": covered}
    return {name: float(np.mean(hits)) for name, hits in shares.items()}
