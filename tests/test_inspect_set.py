"""What inspect_set says of copies, new images and a teacher's view."""

import torch

from dm_kd import inspect_set


def random_images(count, seed):
    return torch.randint(0, 256, (count, 1, 8, 8), dtype=torch.uint8,
                         generator=torch.Generator().manual_seed(seed))


def test_copies_have_ratio_zero_and_new_images_about_one():
    train, held_out = random_images(200, 0), random_images(100, 1)
    copies = inspect_set.copying(train[:50], train, held_out)
    new = inspect_set.copying(random_images(100, 2), train, held_out)
    assert copies["ratio"] == 0 and copies["copies_percent"] == 100
    assert 0.97 < new["ratio"] < 1.03 and new["copies_percent"] < 6


def test_nearest_distance_is_the_root_mean_square_in_unit_range():
    black, white = torch.zeros(1, 1, 8, 8, dtype=torch.uint8), torch.full((1, 1, 8, 8), 255)
    found = inspect_set.nearest_distances(black, white.to(torch.uint8))
    assert torch.allclose(found, torch.ones(1))


def test_unknown_labels_are_left_out_of_the_agreement():
    logits = torch.eye(3).repeat(2, 1) * 9
    labels = torch.tensor([0, 1, 0, -1, -1, -1])
    found = inspect_set.teacher_view(logits, labels)
    assert found["teacher_agreement"] == 66.67
    assert "teacher_agreement" not in inspect_set.teacher_view(logits, torch.full((6,), -1))
