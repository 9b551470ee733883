"""Augmentation: crops as Pillow's, boxes as torchvision's. Draws and mixing are goldens."""

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms import RandomResizedCrop
from torchvision.transforms.v2 import functional

from dm_kd import augment
from dm_kd.augment import View

LABELS = torch.arange(8)


def noise(height, width, channels=3, count=8) -> torch.Tensor:
    """Random images with some structure: noise of several scales."""
    shape = (count, channels)
    images = sum(torch.nn.functional.interpolate(torch.rand(*shape, 2 + height // s,
                                                            2 + width // s), (height, width))
                 for s in (1, 7, 30)) / 3
    return (images * 255).round().to(torch.uint8)


def size_rows(height, width, count) -> torch.Tensor:
    return torch.tensor([[height, width]]).expand(count, 2)


def test_a_view_of_crops_is_that_of_the_first_edition():
    """Recorded from it: a change makes every run another one. tests/data has the draws."""
    images = torch.randint(0, 256, (8, 3, 24, 24), dtype=torch.uint8,
                           generator=torch.Generator().manual_seed(0))
    view = View((.5,) * 3, (.25,) * 3, 16, crop=True, flip=True, cutmix=1.)
    x, _ = view.apply(images, LABELS, view.draw(images, LABELS + 5, 1, 2, 3))
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


def test_mixing_takes_the_shares_that_the_draws_say_in_as_many_batches_as_asked():
    x, mixed = numbered(16, 32), 0
    for step in range(400):
        draws = augment.draw_mixing(16, 32, 32, 0, 0, step, 0.4, 1.0, 0.3)
        result, lam, partner = augment.mix(x, draws), float(draws["lam"]), x[draws["partner"]]
        mixed += lam < 1
        assert torch.allclose(result.mean((1, 2, 3)), (lam * x + (1 - lam) * partner).mean(
            (1, 2, 3)), atol=1e-4)
    assert abs(mixed / 400 - 0.3) < 0.07


def test_mixed_labels_are_the_shares_of_both_classes():
    for num_classes, shape in ((0, (8,)), (8, (8, 8))):  # 0: the objective uses no labels
        view = View((0.3,), (0.4,), mixup=1.0, num_classes=num_classes)
        images = noise(8, 8, 1)
        draws = view.draw(images, LABELS, 0, 0, 0)
        assert view.apply(images, LABELS, draws)[1].shape == shape
    mixed = augment.mix_labels(torch.tensor([0, 2, 2]), 4, {
        "lam": torch.tensor(0.75), "partner": torch.tensor([1, 0, 2])})
    assert mixed.tolist() == [[0.75, 0, 0.25, 0], [0.25, 0, 0.75, 0], [0, 0, 1, 0]]


# --- the view of a batch --------------------------------------------------------------------------

def test_a_training_view_without_augmentation_is_the_plain_one():
    for view in (View((0.3,), (0.4,)), View((0.3,), (0.4,), size=16)):
        assert view.draw(noise(30, 24, 1), LABELS, 0, 0, 0) == {}


@pytest.mark.parametrize("flip", [True, False])
@pytest.mark.parametrize("kind", [{"crop": True, "size": 16}, {"pad": 2}])
def test_a_view_is_mirrored_where_its_id_says_so_and_the_task_allows_it(kind, flip):
    images, ids = noise(24, 24, count=32), torch.arange(32)
    views = [View((0.5,) * 3, (0.25,) * 3, flip=on, **kind) for on in (flip, False)]
    views = [view.apply(images, ids, view.draw(images, ids, 3, 7, 0))[0] for view in views]
    mirrored = augment.flips(3, 7, ids) & flip
    assert mirrored.any() == flip
    assert torch.equal(views[0], torch.where(mirrored[:, None, None, None], views[1].flip(3),
                                             views[1]))


# --- random-resized crops -------------------------------------------------------------------------

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
