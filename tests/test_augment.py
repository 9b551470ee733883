"""Augmentation: uniform, independent, the same view by any route, and mixing as published."""

import functools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from scipy import stats
from torchvision.transforms import RandomResizedCrop
from torchvision.transforms.v2 import functional

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


@pytest.mark.parametrize("channels", [1, 3])
def test_standardize_keeps_an_images_layout_which_decides_the_convolution(channels):
    nhwc = torch.randint(0, 256, (2, 6, 5, channels), dtype=torch.uint8).permute(0, 3, 1, 2)
    mean, std = (0.1, 0.5, 0.9)[:channels], (0.2, 0.3, 1.5)[:channels]
    for images in (nhwc, nhwc.contiguous()):
        found = augment.standardize(images, mean, std)
        as_it_was = images.contiguous(memory_format=torch.channels_last)
        assert found.stride() == as_it_was.stride()
        assert found.is_contiguous(memory_format=torch.channels_last)
        for c in range(channels):  # the same two roundings per number
            row = images[:, c].float() * (1 / (255 * std[c])) + -mean[c] / std[c]
            assert torch.equal(found[:, c], row)


def test_constants_made_while_judging_serve_a_training_step():
    mean, std = (0.123,), (0.456,)
    images = torch.randint(0, 256, (2, 1, 4, 4), dtype=torch.uint8)
    with torch.inference_mode():
        augment.standardize(images, mean, std)
    weight = torch.ones(4, requires_grad=True)
    x = augment.standardize(images, list(mean), list(std)) * augment._scale_and_shift(
        mean, std, 4, images.device)[0]
    (x * weight).sum().backward()
    assert weight.grad is not None


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


# --- crops of images of any size ------------------------------------------------------------------

def size_rows(height, width, count) -> torch.Tensor:
    return torch.tensor([[height, width]]).expand(count, 2)


def noise(height, width, channels=3, count=None) -> torch.Tensor:
    """Random images with some structure: noise of several scales."""
    shape = (count or 1, channels)
    image = sum(torch.nn.functional.interpolate(torch.rand(*shape, 2 + height // s, 2 + width // s),
                                                (height, width)) for s in (1, 7, 30)) / 3
    image = (image * 255).round().to(torch.uint8)
    return image if count else image[0]


@pytest.mark.parametrize("size", [(256, 256), (375, 500), (500, 333), (100, 180), (64, 200)])
def test_crop_boxes_are_distributed_as_torchvisions(size):
    """The last two are so long that boxes often fit at a later try only."""
    count = 1500
    image = torch.empty(1, *size)
    torch.manual_seed(0)
    theirs = np.array([RandomResizedCrop.get_params(image, (0.08, 1), (3 / 4, 4 / 3))
                       for _ in range(count)])
    ours = augment.crop_boxes(0, 0, torch.arange(4 * count), size_rows(*size, 4 * count)).numpy()
    for column in range(4):
        assert stats.ks_2samp(ours[:, column], theirs[:, column]).pvalue > SMALLEST_P
    for a, b in ((0, 2), (1, 3), (2, 3)):  # where it lies hangs on how large it is
        ratio = [boxes[:, a] / (boxes[:, b] + 1) for boxes in (ours, theirs)]
        assert stats.ks_2samp(*ratio).pvalue > SMALLEST_P


@pytest.mark.parametrize("size", [(10, 1000), (1000, 10), (1, 1000), (3, 200), (37, 2000),
                                  (2000, 37), (1, 2), (2, 1), (1, 1), (20, 333)])
def test_an_extreme_shape_gets_torchvisions_largest_centred_box(size):
    """Images so long that ten tries in a row find no box, or a few do."""
    image = torch.empty(1, *size)
    torch.manual_seed(0)
    theirs = {RandomResizedCrop.get_params(image, (2, 3), (3 / 4, 4 / 3))  # larger than the image
              for _ in range(3)}
    boxes = augment.crop_boxes(0, 0, torch.arange(3000), size_rows(*size, 3000))
    assert len(theirs) == 1
    if max(size) > 40 * min(size):
        assert {tuple(box) for box in boxes.tolist()} == theirs
    else:
        assert theirs <= {tuple(box) for box in boxes.tolist()}


@settings(max_examples=100)
@given(sizes=st.lists(st.tuples(st.integers(1, 5000), st.integers(1, 5000)), min_size=1,
                      max_size=20), seed=st.integers(0, 10 ** 15), epoch=st.integers(0, 1000))
def test_crop_boxes_lie_inside_their_images(sizes, seed, epoch):
    sizes = torch.tensor(sizes)
    top, left, height, width = augment.crop_boxes(seed, epoch, torch.arange(len(sizes)),
                                                  sizes).unbind(1)
    assert (top >= 0).all() and (left >= 0).all() and (height > 0).all() and (width > 0).all()
    assert (top + height <= sizes[:, 0]).all() and (left + width <= sizes[:, 1]).all()


GOLDEN_BOXES = [[0, 12, 116, 151], [11, 61, 107, 90], [8, 61, 87, 95]]  # of the first release
GOLDEN_FLIPS = [False, False, False, False, True, True, False, True]


def test_boxes_and_flips_drawn_at_one_go_are_those_drawn_apart_and_stay_what_they_were():
    ids, sizes = torch.arange(500), size_rows(120, 170, 500)
    boxes, mirrored = augment.boxes_and_flips(3, 7, ids, sizes)
    assert torch.equal(boxes, augment.crop_boxes(3, 7, ids, sizes))
    assert torch.equal(mirrored, augment.flips(3, 7, ids))
    assert boxes[:3].tolist() == GOLDEN_BOXES and mirrored[:8].tolist() == GOLDEN_FLIPS


@pytest.mark.parametrize("flip", [True, False])
@pytest.mark.parametrize("kind", ["crop", "pad"])
def test_a_view_is_mirrored_where_its_id_says_so_and_the_task_allows_it(kind, flip):
    sizes = {"crop": {"crop": True, "size": 16}, "pad": {"pad": 2}}[kind]
    images, ids = noise(24, 24, count=32), torch.arange(32)
    views = [View((0.5,) * 3, (0.25,) * 3, flip=on, **sizes).train(
        images, torch.zeros(32), ids, 3, 7, 0)[0] for on in (flip, False)]
    mirrored = augment.flips(3, 7, ids) & flip
    assert mirrored.any() == flip
    assert torch.equal(views[0], torch.where(mirrored[:, None, None, None], views[1].flip(3),
                                             views[1]))


def test_a_crop_box_is_the_same_in_any_batch_and_order():
    ids, sizes = torch.arange(100), torch.randint(20, 600, (100, 2))
    whole = augment.crop_boxes(3, 5, ids, sizes)
    order = torch.randperm(100)
    assert torch.equal(augment.crop_boxes(3, 5, ids[order], sizes[order]), whole[order])
    assert torch.equal(augment.crop_boxes(3, 5, ids[42:43], sizes[42:43]), whole[42:43])
    assert not torch.equal(augment.crop_boxes(3, 6, ids, sizes), whole)
    assert not torch.equal(augment.crop_boxes(4, 5, ids, sizes), whole)


def test_a_crop_box_says_nothing_about_its_mirroring():
    ids = torch.arange(20_000)
    boxes = augment.crop_boxes(0, 0, ids, size_rows(256, 256, len(ids)))
    mirrored = augment.flips(0, 0, ids).long()
    for column in range(4):
        tenth = (boxes[:, column].argsort().argsort() * 10 // len(ids))
        assert chi_square(torch.bincount(tenth * 2 + mirrored, minlength=20)) > SMALLEST_P


def pillows(image, box, size) -> np.ndarray:
    """Pillow's crop and bilinear resize, int [C, size, size]."""
    top, left, height, width = box
    cut = Image.fromarray(image.permute(1, 2, 0).numpy().squeeze()).crop(
        (left, top, left + width, top + height)).resize((size, size), Image.Resampling.BILINEAR)
    return np.array(cut).reshape(size, size, -1).transpose(2, 0, 1).astype(int)


HALF = functools.partial(augment._crops_by_products, dtype=torch.float16)  # as on GPUs


@pytest.mark.parametrize("cut", [augment.resized_crops, augment._crops_by_products, HALF],
                         ids=["cpu", "products", "half"])
@pytest.mark.parametrize("channels", [1, 3])
def test_resized_crops_are_pillows_within_one_grey_level(cut, channels):
    images = noise(120, 170, channels, count=64)
    boxes = augment.crop_boxes(0, 0, torch.arange(64), size_rows(120, 170, 64))
    boxes[0], boxes[1] = torch.tensor([0, 0, 120, 170]), torch.tensor([119, 169, 1, 1])
    boxes[2], boxes[3] = torch.tensor([7, 11, 64, 64]), torch.tensor([0, 0, 3, 170])
    found = cut(images, boxes, torch.zeros(64, dtype=torch.bool), 64)
    assert found.shape == (64, channels, 64, 64) and found.dtype == torch.uint8
    for image, box, result in zip(images, boxes.tolist(), found, strict=True):
        difference = np.abs(result.numpy().astype(int) - pillows(image, box, 64))
        assert difference.max() <= 1, (box, difference.max())
        assert difference.mean() < 0.3


@pytest.mark.parametrize("cut", [augment.resized_crops, augment._crops_by_products, HALF])
def test_mirrored_crops_are_the_others_mirror_images(cut):
    images = noise(60, 80, count=8)
    boxes = augment.crop_boxes(0, 0, torch.arange(8), size_rows(60, 80, 8))
    mirrored = torch.arange(8) % 2 == 0
    found, plain = cut(images, boxes, mirrored, 32), cut(images, boxes, ~mirrored, 32)
    assert torch.equal(found, plain.flip(3))


def test_a_crop_of_the_output_size_is_cut_out_as_it_is():
    images, boxes = noise(40, 50, count=2), torch.tensor([[3, 7, 32, 32], [8, 18, 32, 32]])
    keep = torch.zeros(2, dtype=torch.bool)
    expected = torch.stack([images[0, :, 3:35, 7:39], images[1, :, 8:40, 18:50]])
    assert torch.equal(augment.resized_crops(images, boxes, keep, 32), expected)
    assert torch.equal(augment._crops_by_products(images, boxes, keep, 32), expected)
    assert torch.equal(HALF(images, boxes, keep, 32), expected)


def test_a_list_of_images_is_cut_as_each_by_itself():
    images = [noise(*size) for size in ((40, 50), (50, 40), (33, 90), (40, 50))]
    sizes = torch.tensor([image.shape[1:] for image in images])
    boxes = augment.crop_boxes(0, 0, torch.arange(4), sizes)
    mirrored = torch.tensor([True, False, True, False])
    found = augment.resized_crops(images, boxes, mirrored, 24)
    for i, image in enumerate(images):
        alone = augment.resized_crops(image[None], boxes[i:i + 1], mirrored[i:i + 1], 24)
        assert torch.equal(found[i:i + 1], alone)
    centred = augment.centre_crops(images, 24)
    for i, image in enumerate(images):
        assert torch.equal(centred[i:i + 1], augment.centre_crops(image[None], 24))


def test_cutting_leaves_the_images_alone():
    images = noise(40, 50, count=2)
    before = images.clone()
    augment.resized_crops(images, torch.tensor([[0, 0, 20, 20]] * 2), torch.ones(2) > 0, 24)
    augment.centre_crops(images, 24)
    assert torch.equal(images, before)


@pytest.mark.parametrize("length", [1, 5, 32, 33, 64, 100])
def test_resize_weights_sum_to_one_and_stay_inside_the_stretch(length):
    starts = torch.tensor([0, (100 - length) // 3, 100 - length])
    weights = augment.resize_weights(starts, torch.full((3,), length), 100, 32)
    assert weights.shape == (3, 32, 100) and weights.dtype == torch.float32
    assert torch.allclose(weights.sum(2), torch.ones(3, 32)) and (weights >= 0).all()
    for row, start in zip(weights, starts.tolist(), strict=True):
        used = row.sum(0).nonzero()[:, 0]
        assert used.min() >= start and used.max() < start + length
    if length == 32:
        assert torch.equal(weights[1], torch.eye(100)[22:54])


@pytest.mark.parametrize("size", [(256, 256), (300, 256), (256, 341), (375, 500), (500, 375),
                                  (333, 501), (257, 1000), (1001, 333), (64, 48), (17, 23),
                                  (224, 224), (255, 257)])
def test_centre_crops_equal_torchvisions_resize_and_center_crop(size):
    images = noise(*size, count=2)
    expected = functional.center_crop(functional.resize(images, [256]), [224])
    found = augment.centre_crops(images, 224)
    assert found.shape == (2, 3, 224, 224) and torch.equal(found, expected)
    assert torch.equal(augment.centre_crops(list(images), 224), expected)


@pytest.mark.parametrize(("height", "width"), [(8, 8), (32, 32), (20, 70)])
def test_resize_is_pillows_within_one_grey_level(height, width):
    images = noise(45, 31, 1, count=3)
    found = augment.resize(images, height, width)
    for image, result in zip(images, found, strict=True):
        expected = Image.fromarray(image[0].numpy()).resize((width, height),
                                                            Image.Resampling.BILINEAR)
        assert np.abs(result[0].numpy().astype(int) - np.array(expected)).max() <= 1
