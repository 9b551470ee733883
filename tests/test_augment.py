"""Augmentation: uniform, independent, the same view by any route, and mixing as published."""

import hashlib

import numpy as np
import pytest
import torch
from PIL import Image
from scipy import stats
from torchvision.transforms import RandomResizedCrop
from torchvision.transforms.v2 import functional

from dm_kd import augment
from dm_kd.augment import View

SMALLEST_P = 1e-4  # fixed seeds: a right hash passes for ever, a biased one is far below
LABELS = torch.arange(8)


def chi_square(counts) -> float:
    return float(stats.chisquare(np.asarray(counts)).pvalue)


def noise(height, width, channels=3, count=8) -> torch.Tensor:
    """Random images with some structure: noise of several scales."""
    shape = (count, channels)
    images = sum(torch.nn.functional.interpolate(torch.rand(*shape, 2 + height // s,
                                                            2 + width // s), (height, width))
                 for s in (1, 7, 30)) / 3
    return (images * 255).round().to(torch.uint8)


def size_rows(height, width, count) -> torch.Tensor:
    return torch.tensor([[height, width]]).expand(count, 2)


# --- keyed draws ----------------------------------------------------------------------------------

def test_draws_are_uniform_and_independent_of_neighbours_epochs_and_seeds():
    ids = torch.arange(20_000)
    base = augment.uniform(0, 0, ids, 3)
    assert base.min() >= 0 and base.max() < 1 and base.dtype == torch.float64
    others = [augment.uniform(*key, ids, 1)[:, 0] for key in ((0, 1), (1, 0), (12345, 7))]
    for a, b in ((base[:, 0], base[:, 1]), (base[:-1, 0], base[1:, 0]), (others[0], others[1]),
                 *((base[:, 0], other) for other in others)):
        cells = (a * 10).long() * 10 + (b * 10).long()
        assert chi_square(torch.bincount(cells, minlength=100)) > SMALLEST_P


def test_crop_offsets_are_uniform_and_say_nothing_about_mirroring():
    ids = torch.arange(20_000)
    offsets = augment.crop_offsets(0, 0, ids, pad=1)
    mirrored = augment.flips(0, 0, ids).long()
    counts = torch.bincount((offsets[:, 0] * 3 + offsets[:, 1]) * 2 + mirrored, minlength=18)
    assert len(counts) == 18 and chi_square(counts) > SMALLEST_P


def digest(x) -> str:
    return hashlib.sha256(x.contiguous().numpy().tobytes()).hexdigest()[:16]


def test_draws_boxes_and_views_are_those_of_the_first_edition():
    """Recorded from it: a change makes every run another one."""
    assert augment.uniform(3, 5, torch.arange(2), 2).tolist() == [
        [0.2329292190184602, 0.44726790614203016], [0.6945827675817007, 0.9761981642784006]]
    assert augment.crop_offsets(3, 5, torch.arange(6), 4).tolist() == [
        [2, 4], [6, 8], [4, 3], [3, 7], [3, 5], [7, 0]]
    boxes, mirrored = augment.boxes_and_flips(3, 7, torch.arange(8), size_rows(120, 170, 8))
    assert boxes[:3].tolist() == [[0, 12, 116, 151], [11, 61, 107, 90], [8, 61, 87, 95]]
    assert mirrored.tolist() == [False, False, False, False, True, True, False, True]
    images = torch.randint(0, 256, (8, 3, 24, 24), dtype=torch.uint8,
                           generator=torch.Generator().manual_seed(0))
    view = View((.5,) * 3, (.25,) * 3, pad=2, flip=True, mixup=.4, num_classes=8)
    x, labels = view.train(images, LABELS, LABELS + 5, 1, 2, 3)
    assert x.double().sum().item() == pytest.approx(-3570.320245658746, abs=1e-6)
    assert digest(labels) == "31f59ba111666440"
    view = View((.5,) * 3, (.25,) * 3, 16, crop=True, flip=True, cutmix=1.)
    x, _ = view.train(images, LABELS, LABELS + 5, 1, 2, 3)
    assert x.double().sum().item() == pytest.approx(-132.79936957359314, abs=1e-6)


# --- small images ---------------------------------------------------------------------------------

@pytest.mark.parametrize(("channels", "pad"), [(1, 1), (3, 4), (3, 0)])
def test_pad_crop_flip_equals_a_loop_over_images(channels, pad):
    images = torch.randint(0, 256, (40, channels, 6, 5), dtype=torch.uint8)
    offsets = torch.randint(0, 2 * pad + 1, (40, 2))
    mirrored = torch.rand(40) < 0.5
    views = augment.pad_crop_flip(images, offsets, mirrored, pad)
    for image, (row, column), mirror, view in zip(images, offsets, mirrored, views, strict=True):
        padded = np.pad(image.numpy(), ((0, 0), (pad, pad), (pad, pad)))
        expected = padded[:, row:row + 6, column:column + 5]
        assert np.array_equal(view.numpy(), expected[:, :, ::-1] if mirror else expected)


def test_standardize_subtracts_the_mean_divides_by_the_deviation_and_is_channels_last():
    images = torch.randint(0, 256, (4, 3, 5, 5), dtype=torch.uint8)
    before, mean, std = images.clone(), (0.1, 0.5, 0.9), (0.2, 0.3, 1.5)
    x = augment.standardize(images, mean, std)
    expected = (images.double() / 255 - torch.tensor(mean).view(1, 3, 1, 1)
                ) / torch.tensor(std).view(1, 3, 1, 1)
    assert x.dtype == torch.float32 and torch.allclose(x.double(), expected, atol=1e-5)
    assert x.is_contiguous(memory_format=torch.channels_last) and torch.equal(images, before)


# --- mixing ---------------------------------------------------------------------------------------

def numbered(count=16, side=8):
    """Image i is the constant i."""
    return torch.arange(count).float().view(-1, 1, 1, 1).expand(count, 1, side, side).clone()


def test_the_share_of_mixed_batches_is_as_asked():
    x = numbered()
    mixed = [augment.mix(x, 0, 0, step, 1.0, 0.0, 0.3)[0] for step in range(1000)]
    assert abs(sum(not torch.equal(m, x) for m in mixed) / 1000 - 0.3) < 0.04
    assert torch.equal(x, numbered()) and augment.mix(x, 0, 0, 0, 0, 0, 1) == (x, 1.0, None)


def test_mixup_weights_two_images_of_the_batch_by_one_beta_distributed_lambda():
    x, lams = numbered(), []
    for step in range(200):
        mixed, lam, partner = augment.mix(x, 0, 0, step, 0.4, 0.0, 1.0)
        assert torch.allclose(mixed, lam * x + (1 - lam) * x[partner], atol=1e-5)
        lams.append(lam)
    assert stats.kstest(lams, stats.beta(0.4, 0.4).cdf).pvalue > SMALLEST_P


def test_cutmix_pastes_one_rectangle_of_the_partner():
    x, shares = numbered(16, 32), []
    for step in range(300):
        mixed, lam, partner = augment.mix(x, 0, 0, step, 0.0, 1.0, 1.0)
        changed = (mixed != x)[:, 0].any(0)
        if changed.any():
            rows, columns = changed.any(1).nonzero(), changed.any(0).nonzero()
            assert int(changed.sum()) == len(rows) * len(columns)
            assert torch.equal(mixed[:, 0, changed].min(1).values, partner.float())
            assert torch.equal(mixed[:, 0, changed].max(1).values, partner.float())
        shares.append(float(changed.double().mean()))
        assert lam == pytest.approx(1 - shares[-1])
    assert 0.3 < np.mean(shares) < 0.5  # of squares whose area is uniform, clipped at the edge


def test_mixed_labels_are_the_shares_of_both_classes():
    for num_classes, shape in ((0, (8,)), (8, (8, 8))):  # 0: the objective uses no labels
        view = View((0.3,), (0.4,), mixup=1.0, num_classes=num_classes)
        assert view.train(noise(8, 8, 1), LABELS, LABELS, 0, 0, 0)[1].shape == shape
    mixed = augment.mix_labels(torch.tensor([0, 2, 2]), 4, 0.75, torch.tensor([1, 0, 2]))
    assert mixed.tolist() == [[0.75, 0, 0.25, 0], [0.25, 0, 0.75, 0], [0, 0, 1, 0]]


# --- the view of a batch --------------------------------------------------------------------------

def test_a_training_view_without_augmentation_is_the_plain_one():
    for view, images in ((View((0.3,), (0.4,)), noise(8, 8, 1)),
                         (View((0.3,), (0.4,), size=16), noise(30, 24, 1))):
        x, labels = view.train(images, LABELS, LABELS, 0, 0, 0)
        assert torch.equal(x, view.plain(images)) and labels is LABELS


@pytest.mark.parametrize("flip", [True, False])
@pytest.mark.parametrize("kind", [{"crop": True, "size": 16}, {"pad": 2}])
def test_a_view_is_mirrored_where_its_id_says_so_and_the_task_allows_it(kind, flip):
    images, ids = noise(24, 24, count=32), torch.arange(32)
    views = [View((0.5,) * 3, (0.25,) * 3, flip=on, **kind).train(
        images, torch.zeros(32), ids, 3, 7, 0)[0] for on in (flip, False)]
    mirrored = augment.flips(3, 7, ids) & flip
    assert mirrored.any() == flip
    assert torch.equal(views[0], torch.where(mirrored[:, None, None, None], views[1].flip(3),
                                             views[1]))


# --- random-resized crops -------------------------------------------------------------------------

@pytest.mark.parametrize("size", [(256, 256), (375, 500), (64, 200)])
def test_boxes_are_distributed_as_torchvisions(size):
    """The last is so long that boxes often fit at a later try only."""
    count = 1500
    image = torch.empty(1, *size)
    theirs = np.array([RandomResizedCrop.get_params(image, (0.08, 1), (3 / 4, 4 / 3))
                       for _ in range(count)])
    ids = torch.arange(4 * count)
    boxes, mirrored = augment.boxes_and_flips(0, 0, ids, size_rows(*size, 4 * count))
    ours = boxes.numpy()
    for column in range(4):
        assert stats.ks_2samp(ours[:, column], theirs[:, column]).pvalue > SMALLEST_P
    for a, b in ((0, 2), (1, 3), (2, 3)):  # where it is depends on how large it is
        ratio = [boxes[:, a] / (boxes[:, b] + 1) for boxes in (ours, theirs)]
        assert stats.ks_2samp(*ratio).pvalue > SMALLEST_P
    assert torch.equal(mirrored, augment.flips(0, 0, ids))


@pytest.mark.parametrize("size", [(10, 1000), (1000, 10), (1, 1000), (2000, 37)])
def test_an_extreme_shape_gets_torchvisions_largest_centred_box(size):
    """Images so long that ten tries in a row find no box."""
    theirs = RandomResizedCrop.get_params(torch.empty(1, *size), (2, 3), (3 / 4, 4 / 3))
    boxes, _ = augment.boxes_and_flips(0, 0, torch.arange(1000), size_rows(*size, 1000))
    assert {tuple(box) for box in boxes.tolist()} == {theirs}


def pillows(image, box, size) -> np.ndarray:
    """Pillow's crop and bilinear resize, int [C, size, size]."""
    top, left, height, width = box
    cut = Image.fromarray(image.permute(1, 2, 0).numpy().squeeze()).crop(
        (left, top, left + width, top + height)).resize((size, size), Image.Resampling.BILINEAR)
    return np.array(cut).reshape(size, size, -1).transpose(2, 0, 1).astype(int)


@pytest.mark.parametrize("cut", [augment.resized_crops, augment._crops_by_products],
                         ids=["cpu", "gpu"])
@pytest.mark.parametrize("channels", [1, 3])
def test_resized_crops_are_pillows_within_one_grey_level(cut, channels):
    images = noise(120, 170, channels, count=32)
    before = images.clone()
    boxes, mirrored = augment.boxes_and_flips(0, 0, torch.arange(32), size_rows(120, 170, 32))
    boxes[:4] = torch.tensor([[0, 0, 120, 170], [119, 169, 1, 1], [7, 11, 64, 64], [0, 0, 3, 170]])
    crops = cut(images, boxes, mirrored, 64)
    assert crops.shape == (32, channels, 64, 64) and crops.dtype == torch.uint8
    crops = torch.where(mirrored[:, None, None, None], crops.flip(3), crops)
    for image, box, crop in zip(images, boxes.tolist(), crops, strict=True):
        difference = np.abs(crop.numpy().astype(int) - pillows(image, box, 64))
        assert difference.max() <= 1 and difference.mean() < 0.3, box
    assert torch.equal(crops[2], images[2, :, 7:71, 11:75]) and torch.equal(images, before)


@pytest.mark.parametrize("size", [(375, 500), (17, 23)])
def test_centre_crops_are_of_8_7_of_the_size_and_made_once(size):
    images = noise(*size, count=2)
    crops = augment.centre_crops(images, 224)
    assert torch.equal(crops, functional.center_crop(functional.resize(images, [256]), [224]))
    assert augment.centre_crops(crops, 224) is crops


# --- views with gradients -------------------------------------------------------------------------

def ramps(count, side=33):
    """Images whose channels are their column and row, from -1 to 1 at the corners."""
    line = torch.linspace(-1, 1, side)
    return torch.stack([line.expand(side, side), line[:, None].expand(side, side)]).expand(
        count, 2, side, side)


def test_a_resized_views_boxes_fit_and_have_the_area_and_sides_asked_for():
    x = ramps(4000)
    views = augment.resized_view(x, 0.25, False, torch.Generator().manual_seed(0))
    left, right = views[:, 0, 0, 0], views[:, 0, 0, -1]
    top, bottom = views[:, 1, 0, 0], views[:, 1, -1, 0]
    w, h = (right - left) / 2, (bottom - top) / 2
    assert (torch.stack([left, top]) >= -1.0001).all()
    assert (torch.stack([right, bottom]) <= 1.0001).all()
    assert (w * h).min() > 0.2499 and (w * h).max() < 1.0001
    assert (w / h).min() > 0.7499 and (w / h).max() < 1.3334
    assert ((w > 0.999) | (h > 0.999)).double().mean() < 0.02  # drawn again, not clamped


def test_a_resized_view_is_mirrored_half_of_the_time_and_has_gradients():
    x = ramps(1000, 9).clone().requires_grad_()
    views = augment.resized_view(x, 0.75, True, torch.Generator().manual_seed(0))
    mirrored = (views[:, 0, 0, 0] > views[:, 0, 0, -1]).double().mean()
    views.sum().backward()
    assert abs(mirrored - 0.5) < 0.06 and x.grad.abs().sum() > 0
