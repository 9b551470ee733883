"""Frechet distance, precision and recall, density and coverage, copies: against values worked out
by hand and the published package."""

import pytest
import torch

from dm_kd import fidelity


def points(*values):
    return torch.tensor(values, dtype=torch.float64)[:, None]


def normal(count, dim, seed, scale=1.0, shift=0.0):
    draw = torch.Generator().manual_seed(seed)
    return torch.randn(count, dim, generator=draw, dtype=torch.float64) * scale + shift


def test_frechet_distance_of_a_shifted_copy_is_the_squared_shift():
    real = normal(200, 3, 0)
    shift = torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64)
    assert abs(fidelity.frechet_distance(real + shift, real) - 5.25) < 1e-6
    assert abs(fidelity.frechet_distance(real, real)) < 1e-6


def test_frechet_distance_of_a_scaled_copy_is_the_hand_computed_trace():
    """Sigma and 9 Sigma: trace(Sigma + 9 Sigma - 2 * 3 Sigma) = 4 trace(Sigma)."""
    real = normal(300, 4, 1)
    real = real - real.mean(0)
    trace = float(real.T.cov().trace())
    assert abs(fidelity.frechet_distance(3 * real, real) - 4 * trace) < 1e-5


def test_frechet_distance_of_correlated_features_equals_the_matrix_square_root():
    a, b = normal(500, 3, 2), normal(400, 3, 3) @ torch.tensor(
        [[1.0, 0.5, 0.0], [0.0, 2.0, 0.3], [0.2, 0.0, 0.7]], dtype=torch.float64) + 0.4
    values, vectors = torch.linalg.eigh(a.T.cov())
    root = vectors @ values.sqrt().diag() @ vectors.T
    middle = torch.linalg.eigvalsh(root @ b.T.cov() @ root).sqrt().sum()
    expected = (a.mean(0) - b.mean(0)).square().sum() + a.T.cov().trace() + b.T.cov().trace()
    assert abs(fidelity.frechet_distance(a, b) - float(expected - 2 * middle)) < 1e-6


def test_neighbourhoods_on_a_line_have_the_hand_counted_values():
    """k = 1. Real 0, 1, 3: balls of 1, 1, 2. Made 0.5, 2.5, 9: balls of 2, 2, 6.5."""
    found = fidelity.neighbourhoods(points(0, 1, 3), points(0.5, 2.5, 9), k=1)
    assert found["precision"] == pytest.approx(2 / 3)  # 9 lies in no real ball
    assert found["recall"] == 1.0  # 0 and 1 around 0.5; 3 around 2.5
    assert found["density"] == pytest.approx(3 / 3)  # 0.5 in those of 0 and 1; 2.5 in that of 3
    assert found["coverage"] == 1.0


def test_two_neighbours_have_the_hand_counted_values():
    """k = 2. Real 0, 1, 3, 20: balls of 3, 2, 3, 19. Made 2, 2.5, 6: balls of 4, 3.5, 4."""
    found = fidelity.neighbourhoods(points(0, 1, 3, 20), points(2, 2.5, 6), k=2)
    assert found == {"precision": 1.0, "recall": 3 / 4,  # no made ball reaches 20
                     # 6 lies just at the reach of 3's ball: outside
                     "density": pytest.approx((4 + 4 + 1) / (2 * 3)), "coverage": 1.0}


def test_a_collapsed_set_is_precise_and_dense_but_covers_and_recalls_little():
    real, made = normal(400, 2, 4), normal(400, 2, 5, scale=0.05)
    found = fidelity.neighbourhoods(real, made, k=5)
    assert found["precision"] > 0.95 and found["density"] > 0.7
    assert found["recall"] < 0.2 and found["coverage"] < 0.2


def test_chunks_change_nothing(monkeypatch):
    real, made = normal(57, 3, 6), normal(41, 3, 7, 1.2)
    whole = fidelity.neighbourhoods(real, made, 3)
    monkeypatch.setattr(fidelity, "CHUNK", 10)
    assert fidelity.neighbourhoods(real, made, 3) == whole


@pytest.mark.parametrize("k", [1, 3, 10])
def test_neighbourhoods_equal_the_published_package(k):
    prdc = pytest.importorskip("prdc")
    real, made = normal(120, 5, 8), normal(90, 5, 9, 1.1, 0.3)
    theirs = prdc.compute_prdc(real.numpy(), made.numpy(), k)
    ours = fidelity.neighbourhoods(real, made, k)
    for name, value in theirs.items():
        assert ours[name] == pytest.approx(float(value), abs=1e-12), name


@pytest.mark.parametrize("k", [1, 2, 4])
def test_coinciding_points_count_as_in_the_published_package(k):
    """On a grid of whole numbers many points coincide, and many lie just at a ball's reach."""
    prdc = pytest.importorskip("prdc")
    draw = torch.Generator().manual_seed(12)
    real, made = (torch.randint(0, 4, (count, 3), generator=draw).double() for count in (60, 50))
    ours = fidelity.neighbourhoods(real, made, k)
    for name, value in prdc.compute_prdc(real.numpy(), made.numpy(), k).items():
        assert ours[name] == pytest.approx(float(value), abs=1e-12), name
    assert ours["precision"] < 1 and ours["coverage"] < 1


@pytest.mark.parametrize("k", [0, 3, 4])
def test_too_many_neighbours_are_refused(k):
    with pytest.raises(ValueError, match="points"):
        fidelity.neighbourhoods(points(0, 1, 3), points(0, 1, 2, 5), k)


def test_the_kth_distance_leaves_the_point_itself_out():
    assert fidelity.kth_distance(points(0, 1, 3, 7), 2).tolist() == [3, 2, 3, 6]


def test_the_nearest_are_found_with_their_distance_per_dimension():
    found, which = fidelity.nearest(torch.tensor([[0.0, 0.0], [1.0, 1.0]]),
                                    torch.tensor([[9.0, 9.0], [1.0, 1.0], [3.0, 4.0]]))
    assert which.tolist() == [1, 1] and torch.allclose(found, torch.tensor([1.0, 0.0]))
    assert fidelity.nearest_other(torch.tensor([[0.0], [2.0], [2.0]])).tolist() == [2, 0, 0]


def test_the_nearest_are_those_of_all_differences():
    ours, others = normal(300, 40, 10).float(), normal(200, 40, 11).float()
    ours[7] = others[150]
    every = (ours[:, None] - others).square().mean(2).sqrt()
    found, which = fidelity.nearest(ours, others)
    assert torch.equal(which, every.argmin(1)) and torch.allclose(found, every.min(1).values)
    assert found[7] == 0  # an exact copy, whatever products round
    among = (ours[:, None] - ours).square().mean(2).sqrt().fill_diagonal_(torch.inf)
    assert torch.allclose(fidelity.nearest_other(ours), among.min(1).values)
    assert fidelity.nearest_other(ours[:1]).tolist() == [torch.inf]


def test_thumbnails_shrink_large_images_only():
    small, large = torch.full((2, 1, 8, 8), 255), torch.full((2, 3, 64, 64), 51)
    assert torch.equal(fidelity.thumbnails(small.to(torch.uint8)), torch.ones(2, 64))
    found = fidelity.thumbnails(large.to(torch.uint8))
    assert found.shape == (2, 3 * 32 * 32) and torch.allclose(found, torch.tensor(0.2))


@pytest.mark.parametrize("last", ["linear", "convolution"])
def test_features_are_what_enters_the_last_layer(last):
    body = torch.nn.Conv2d(1, 4, 3)
    if last == "linear":
        model = torch.nn.Sequential(body, torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten(),
                                    torch.nn.Linear(4, 2))
    else:
        model = torch.nn.Sequential(body, torch.nn.Conv2d(4, 2, 1))
    x = torch.randn(3, 1, 8, 8)
    with fidelity.penultimate(model) as collected:
        model(x)
        model(x[:1])
    model(x)  # after the block nothing is collected
    expected = body(x).mean((2, 3))
    assert [len(part) for part in collected] == [3, 1]
    assert torch.allclose(torch.cat(collected)[:3], expected, atol=1e-6)
