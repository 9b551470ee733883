"""Augmentation: uniform, independent, the same view by any route, and mixing as published."""

import numpy as np
import pytest
import torch
from scipy import stats

from dm_kd import augment
from dm_kd.engine import View

SMALLEST_P = 1e-4  # fixed seeds: a right hash passes for ever, a biased one is far below


def chi_square(counts) -> float:
    return float(stats.chisquare(np.asarray(counts)).pvalue)


@pytest.mark.parametrize(("seed", "epoch"), [(0, 0), (1, 0), (0, 99), (12345, 7)])
def test_draws_are_uniform(seed, epoch):
    draws = augment.uniform(seed, epoch, torch.arange(20_000), 3)
    assert draws.min() >= 0 and draws.max() < 1 and draws.dtype == torch.float64
    for column in draws.T:
        assert chi_square(torch.histc(column, 50, 0, 1)) > SMALLEST_P


def pairs():
    ids = torch.arange(20_000)
    base = augment.uniform(0, 0, ids, 3)
    return {"draws": (base[:, 0], base[:, 1]), "neighbours": (base[:-1, 0], base[1:, 0]),
            "a neighbour's other draw": (base[:-1, 1], base[1:, 0]),
            "epochs": (base[:, 0], augment.uniform(0, 1, ids, 1)[:, 0]),
            "seeds": (base[:, 0], augment.uniform(1, 0, ids, 1)[:, 0]),
            "seed and epoch": (augment.uniform(1, 0, ids, 1)[:, 0],
                               augment.uniform(0, 1, ids, 1)[:, 0]),
            "ids far apart": (base[:, 0], augment.uniform(0, 0, ids + 10 ** 6, 1)[:, 0])}


@pytest.mark.parametrize("which", pairs())
def test_two_draws_are_independent(which):
    a, b = ((v * 10).long() for v in pairs()[which])
    assert chi_square(torch.bincount(a * 10 + b, minlength=100)) > SMALLEST_P


def test_a_view_is_the_same_in_any_batch_and_order():
    ids = torch.arange(100)
    whole = augment.uniform(3, 5, ids, 2)
    order = torch.randperm(100)
    assert torch.equal(augment.uniform(3, 5, ids[order], 2), whole[order])
    assert torch.equal(augment.uniform(3, 5, ids[42:43], 2), whole[42:43])


def test_more_draws_leave_the_first_ones_as_they_were():
    ids = torch.arange(50)
    assert torch.equal(augment.uniform(3, 5, ids, 5)[:, :2], augment.uniform(3, 5, ids, 2))


def test_large_seeds_and_ids_are_taken():
    draws = augment.uniform(10 ** 15, 10 ** 6, torch.tensor([0, 2 ** 62, 2 ** 63 - 1]), 2)
    assert draws.min() >= 0 and draws.max() < 1 and len(draws.unique()) == 6


def test_all_crop_offsets_come_equally_often():
    offsets = augment.crop_offsets(0, 0, torch.arange(18_000), pad=1)
    counts = torch.bincount(offsets[:, 0] * 3 + offsets[:, 1], minlength=9)
    assert len(counts) == 9 and chi_square(counts) > SMALLEST_P


def test_half_of_the_images_are_mirrored_whatever_the_crop():
    ids = torch.arange(20_000)
    mirrored = augment.flips(0, 0, ids).long()
    rows = augment.crop_offsets(0, 0, ids, pad=2)[:, 0]
    assert chi_square(torch.bincount(rows * 2 + mirrored, minlength=10)) > SMALLEST_P


@pytest.mark.parametrize(("channels", "pad"), [(1, 1), (3, 4), (3, 0)])
def test_pad_crop_flip_equals_a_loop_over_images(channels, pad):
    images = torch.randint(0, 256, (40, channels, 6, 5), dtype=torch.uint8)
    offsets = torch.randint(0, 2 * pad + 1, (40, 2))
    mirrored = torch.rand(40) < 0.5
    found = augment.pad_crop_flip(images, offsets, mirrored, pad)
    for image, (row, column), mirror, result in zip(images, offsets, mirrored, found, strict=True):
        padded = np.pad(image.numpy(), ((0, 0), (pad, pad), (pad, pad)))
        view = padded[:, row:row + 6, column:column + 5]
        view = view[:, :, ::-1] if mirror else view
        assert np.array_equal(result.numpy(), view)


def test_standardize_subtracts_the_mean_and_divides_by_the_deviation():
    images = torch.randint(0, 256, (4, 3, 5, 5), dtype=torch.uint8)
    mean, std = (0.1, 0.5, 0.9), (0.2, 0.3, 1.5)
    expected = (images.double() / 255 - torch.tensor(mean).view(1, 3, 1, 1)
                ) / torch.tensor(std).view(1, 3, 1, 1)
    found = augment.standardize(images, mean, std)
    assert found.dtype == torch.float32
    assert torch.allclose(found.double(), expected, atol=1e-5)


def test_standardize_leaves_its_input_alone():
    images = torch.full((1, 1, 2, 2), 7, dtype=torch.uint8)
    augment.standardize(images, (0.5,), (0.5,))
    assert (images == 7).all()


# --- mixing ---------------------------------------------------------------------------------------

def numbered(count=16, side=8):
    """Image i is the constant i."""
    return torch.arange(count).float().view(-1, 1, 1, 1).expand(count, 1, side, side).clone()


def test_no_mixing_is_no_copy():
    x = numbered()
    mixed, lam, partner = augment.mix(x, 0, 0, 0, 0.0, 0.0, 1.0)
    assert mixed is x and lam == 1.0 and partner is None


@pytest.mark.parametrize(("mixup", "cutmix"), [(0.4, 0.0), (0.0, 1.0), (0.4, 1.0)])
def test_equal_keys_mix_equally_and_others_otherwise(mixup, cutmix):
    x = torch.randn(16, 1, 8, 8)

    def mixed(*key):
        return augment.mix(x, *key, mixup, cutmix, 1.0)[0]

    assert torch.equal(mixed(1, 2, 3), mixed(1, 2, 3))
    others = [mixed(*key) for key in ((1, 2, 3), (0, 2, 3), (1, 3, 3), (1, 2, 4))]
    assert all(not torch.equal(others[0], other) for other in others[1:])


@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
def test_the_share_of_mixed_batches_is_as_asked(share):
    x = numbered()
    mixed = sum(not torch.equal(augment.mix(x, 0, 0, step, 1.0, 0.0, share)[0], x)
                for step in range(1000))
    assert abs(mixed / 1000 - share) < 0.04


def test_mixup_weights_two_images_of_the_batch_by_one_lambda():
    x = numbered()
    lam = []
    for step in range(200):
        random = np.random.Generator(np.random.PCG64([0, 0, step]))
        random.random(2)
        partner = torch.from_numpy(random.permutation(16))
        lam.append(random.beta(0.4, 0.4))
        expected = lam[-1] * x + (1 - lam[-1]) * x[partner]
        mixed, share, with_whom = augment.mix(x, 0, 0, step, 0.4, 0.0, 1.0)
        assert torch.allclose(mixed, expected, atol=1e-5)
        assert share == lam[-1] and torch.equal(with_whom, partner)
    assert stats.kstest(lam, stats.beta(0.4, 0.4).cdf).pvalue > SMALLEST_P


def test_mixing_keeps_the_mean_of_the_batch():
    x = torch.randn(16, 1, 8, 8)
    for step in range(20):  # the partner is a permutation
        mixed = augment.mix(x, 0, 0, step, 0.4, 0.0, 1.0)[0]
        assert torch.allclose(mixed.mean(0), x.mean(0), atol=1e-5)


def test_cutmix_pastes_one_rectangle_of_the_partner_with_the_expected_area():
    x, shares = numbered(16, 32), []
    for step in range(300):
        mixed, lam, partner = augment.mix(x, 0, 0, step, 0.0, 1.0, 1.0)
        changed = (mixed != x)[:, 0].any(0)
        rows, columns = changed.any(1).nonzero(), changed.any(0).nonzero()
        if changed.any():
            height, width = (int(v.max() - v.min()) + 1 for v in (rows, columns))
            assert int(changed.sum()) == height * width
            assert torch.equal(mixed[:, 0, changed].min(1).values, partner.float())
            assert torch.equal(mixed[:, 0, changed].max(1).values, partner.float())
        shares.append(float(changed.double().mean()))
        assert lam == pytest.approx(1 - shares[-1])
    expected = np.mean([clipped_share(u, 32) for u in range(2000)])
    assert abs(np.mean(shares) - expected) < 0.05


def clipped_share(number, side):
    """The share of a square of area 1 - lam about a random centre that lies inside (Yun et al.)."""
    random = np.random.default_rng(number)
    half = side * np.sqrt(1 - random.random()) / 2
    row, column = random.integers(side, size=2)
    height, width = (np.clip(v + half, 0, side) - np.clip(v - half, 0, side)
                     for v in (row, column))
    return height * width / side ** 2


def test_with_both_each_takes_half_of_the_batches():
    x, blended = numbered(), 0
    for step in range(600):
        mixed = augment.mix(x, 0, 0, step, 1.0, 1.0, 1.0)[0]
        blended += bool((mixed != mixed.round()).any())  # cutmix keeps whole numbers
    assert abs(blended / 600 - 0.5) < 0.06


def test_mixing_leaves_its_input_alone():
    x = numbered()
    for step in range(10):
        augment.mix(x, 0, 0, step, 1.0, 1.0, 1.0)
    assert torch.equal(x, numbered())


def test_mixed_labels_are_the_shares_of_both_classes():
    found = augment.mix_labels(torch.tensor([0, 2, 2]), 4, 0.75, torch.tensor([1, 0, 2]))
    assert found.tolist() == [[0.75, 0, 0.25, 0], [0.25, 0, 0.75, 0], [0, 0, 1, 0]]


# --- the view of a batch --------------------------------------------------------------------------

LABELS = torch.arange(8)


def test_a_training_view_without_augmentation_is_the_plain_one():
    images = torch.randint(0, 256, (8, 1, 8, 8), dtype=torch.uint8)
    view = View((0.3,), (0.4,))
    x, labels = view.train(images, LABELS, LABELS, 0, 0, 0)
    assert torch.equal(x, view.plain(images)) and labels is LABELS


def test_a_training_view_is_the_crop_of_the_images_id():
    images = torch.randint(0, 256, (8, 1, 8, 8), dtype=torch.uint8)
    ids = torch.arange(100, 108)
    view = View((0.3,), (0.4,), pad=1, flip=True)
    expected = augment.standardize(augment.pad_crop_flip(
        images, augment.crop_offsets(5, 2, ids, 1), augment.flips(5, 2, ids), 1), (0.3,), (0.4,))
    assert torch.equal(view.train(images, LABELS, ids, 5, 2, 0)[0], expected)


def test_images_are_never_mirrored_where_the_task_forbids_it():
    images = torch.zeros(200, 1, 8, 8, dtype=torch.uint8)
    images[:, :, :, 0] = 255  # a line at the left; a crop moves it by one at most
    view, ids = View((0.0,), (1.0,), pad=1, flip=False), torch.arange(200)
    assert not view.train(images, ids, ids, 0, 0, 0)[0][:, :, :, 4:].any()


@pytest.mark.parametrize(("num_classes", "shape"), [(0, (8,)), (8, (8, 8))])
def test_labels_are_mixed_only_where_the_objective_uses_them(num_classes, shape):
    images = torch.randint(0, 256, (8, 1, 8, 8), dtype=torch.uint8)
    view = View((0.3,), (0.4,), mixup=1.0, num_classes=num_classes)
    assert view.train(images, LABELS, LABELS, 0, 0, 0)[1].shape == shape
