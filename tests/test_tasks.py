"""The table of tasks fits together. Digits: writers are never shared between what trains and what
judges, and no level is lost."""

import itertools

import numpy as np
import pytest
import torch

from dm_kd.errors import UserError
from dm_kd.real_data import DIGITS_WRITER_STARTS, RealData
from dm_kd.tasks import TASKS, first_per_class, get_task, load_real

FOLDS = range(5)


# --- the table ------------------------------------------------------------------------------------

@pytest.mark.parametrize("name", TASKS)
def test_a_tasks_class_names_and_statistics_have_the_tasks_counts(name):
    task = get_task(name)
    assert task.name == name and len(task.class_names) == task.num_classes > 1
    assert all(isinstance(n, str) and n.strip() for n in task.class_names)
    assert len(task.mean) == len(task.std) == task.channels in (1, 3)
    assert all(0 < m < 1 for m in task.mean) and all(0 < s < 1 for s in task.std)
    assert len(set(task.class_names)) == task.num_classes


@pytest.mark.parametrize("name, first, last", [
    ("digits", "0", "9"), ("fashion_mnist", "T-shirt/top", "Ankle boot"),
    ("cifar100", "apple", "worm"), ("imagenet", "tench", "toilet tissue"),
    ("flowers102", "pink primrose", "blackberry lily")])
def test_class_names_stand_in_index_order(name, first, last):
    names = get_task(name).class_names
    assert (names[0], names[-1]) == (first, last)


def test_cifar100s_classes_are_in_the_order_of_the_alphabet():
    assert list(get_task("cifar100").class_names) == sorted(get_task("cifar100").class_names)


@pytest.mark.parametrize("name", TASKS)
def test_a_task_trains_on_padded_or_on_resized_crops(name):
    task = get_task(name)
    assert task.crop == (task.resolution == 224) and task.crop != bool(task.pad)
    assert task.flip == (name != "digits")  # a mirrored digit is another one, or none


# --- digits ---------------------------------------------------------------------------------------

def writers(real: RealData) -> set[int]:
    return set(real.groups.tolist())


@pytest.mark.parametrize(("fold", "val"), list(itertools.product(FOLDS, ("val", "dev"))))
def test_no_writer_is_in_both_training_and_judged_images(digits, fold, val):
    train, judged = (load_real(digits, split, fold, val) for split in ("train", "val"))
    assert not writers(train) & writers(judged)
    assert not set(train.ids.tolist()) & set(judged.ids.tolist())


def test_the_five_folds_judge_each_of_the_1797_images_once(digits):
    ids = torch.cat([load_real(digits, "val", fold).ids for fold in FOLDS])
    assert sorted(ids.tolist()) == list(range(1797))


@pytest.mark.parametrize("fold", FOLDS)
def test_a_fold_trains_on_all_that_it_does_not_judge(digits, fold):
    train, judged = (load_real(digits, split, fold) for split in ("train", "val"))
    assert len(train.ids) + len(judged.ids) == 1797


@pytest.mark.parametrize("fold", FOLDS)
def test_dev_images_come_from_the_folds_training_part_and_leave_it(digits, fold):
    whole = set(load_real(digits, "train", fold).ids.tolist())
    train, dev = (load_real(digits, split, fold, "dev") for split in ("train", "val"))
    assert set(train.ids.tolist()) | set(dev.ids.tolist()) == whole
    assert 0.1 * len(whole) < len(dev.ids) < 0.35 * len(whole)


def test_a_group_is_one_of_14_writers_with_the_known_boundaries(digits):
    everything = [load_real(digits, "val", fold) for fold in FOLDS]
    pairs = {(int(i), int(g)) for real in everything
             for i, g in zip(real.ids, real.groups, strict=True)}
    writer = dict(pairs)
    starts = [i for i in range(1797) if i == 0 or writer[i] != writer[i - 1]]
    assert tuple(starts) == DIGITS_WRITER_STARTS and len(set(writer.values())) == 14


def test_grey_levels_give_the_17_levels_of_the_source_back(digits):
    from sklearn.datasets import load_digits

    source = load_digits()
    real = load_real(digits, "train")
    assert real.images.dtype == torch.uint8 and real.images.shape[1:] == (1, 8, 8)
    levels = (real.images[:, 0].double() * 16 / 255).round().numpy()
    assert np.array_equal(levels, source.images[real.ids.numpy()])
    assert np.array_equal(real.labels.numpy(), source.target[real.ids.numpy()])
    assert len(real.images.unique()) == 17 and int(real.images.max()) == 255


def test_the_tasks_statistics_are_those_of_the_images(digits):
    pixels = torch.cat([load_real(digits, "val", f).images for f in FOLDS]).double() / 255
    assert abs(float(pixels.mean()) - digits.mean[0]) < 2e-3
    assert abs(float(pixels.std()) - digits.std[0]) < 2e-3


def test_val_none_has_nothing_to_judge_on_and_trains_as_val_does(digits):
    assert load_real(digits, "val", 0, "none") is None
    assert torch.equal(load_real(digits, "train", 0, "none").ids,
                       load_real(digits, "train", 0, "val").ids)


@pytest.mark.parametrize("fold", [-1, 5])
def test_a_fold_that_is_not_there_is_refused(digits, fold):
    with pytest.raises(UserError, match="folds 0 to 4"):
        load_real(digits, "train", fold)


def test_a_path_to_the_digits_is_refused(digits, tmp_path):
    with pytest.raises(UserError, match="--data"):
        load_real(digits, "train", data=tmp_path)


def test_an_unknown_task_names_the_nearest():
    with pytest.raises(UserError, match="did you mean digits"):
        get_task("digts")


def test_first_per_class_takes_the_first_of_each(digits):
    real = load_real(digits, "train")
    few = real.chosen(first_per_class(real.labels, 3))
    assert few.labels.bincount().tolist() == [3] * 10
    for c in range(10):
        expected = real.ids[real.labels == c][:3]
        assert torch.equal(few.ids[few.labels == c], expected)


def test_drawn_with_a_seed_fewer_images_of_a_class_are_part_of_more(digits):
    labels = load_real(digits, "train").labels
    few, more = first_per_class(labels, 10, seed=1), first_per_class(labels, 40, seed=1)
    assert labels[few].bincount().tolist() == [10] * 10
    assert set(few.tolist()) < set(more.tolist())


def test_a_drawn_part_spans_the_writers_and_another_seed_draws_another(digits):
    real = load_real(digits, "train")
    first, drawn = first_per_class(real.labels, 10), first_per_class(real.labels, 10, seed=0)
    assert len(set(real.groups[first].tolist())) == 1  # the digits lie writer by writer
    assert set(real.groups[drawn].tolist()) == set(real.groups.tolist())
    other = first_per_class(real.labels, 10, seed=1)
    assert set(drawn.tolist()) != set(other.tolist())


def test_first_per_class_refuses_more_than_there_are(digits):
    with pytest.raises(UserError, match="images only"):
        first_per_class(load_real(digits, "train").labels, 10_000)
