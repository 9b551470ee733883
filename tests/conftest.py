"""What the tests share: one thread, the digits task, a teacher trained in a second, a small set.

    python -m pytest -c tests/pytest.ini tests
"""

import argparse
import os

import pytest
import torch

from dm_kd.tasks import get_task

os.environ.setdefault("HF_HUB_OFFLINE", "1")


def pytest_collection_modifyitems(items):
    items.sort(key=lambda item: "test_quickstart" not in item.nodeid)  # the longest begins first
    if not torch.cuda.is_available():
        for item in items:
            if item.get_closest_marker("cuda"):
                item.add_marker(pytest.mark.skip(reason="no CUDA device"))


@pytest.fixture(autouse=True)
def fixed_seed_and_threads():
    """The same numbers in every order of tests. One thread: two that wait for each other on busy
    cores take 20 times as long."""
    torch.set_num_threads(1)
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def digits():
    return get_task("digits")


@pytest.fixture(scope="session")
def teacher_folder(tmp_path_factory):
    """A finished run of train_teacher: cnn_w4, two epochs of digits."""
    from dm_kd import train_teacher

    folder = tmp_path_factory.mktemp("teacher") / "cnn"
    assert train_teacher.main([
        "--task", "digits", "--model", "cnn_w4", "--epochs", "2", "--batch-size", "64",
        "--amp", "none", "--device", "cpu", "--threads", "1", "--out", str(folder)]) == 0
    return folder


@pytest.fixture(scope="session")
def noise_folder(tmp_path_factory):
    """A complete set of 10 classes x 4 noise images in 5 shards."""
    from dm_kd import synthesize

    folder = tmp_path_factory.mktemp("set") / "noise"
    assert synthesize.main([
        "--task", "digits", "--generator", "noise", "--images-per-class", "4", "--batch-size", "8",
        "--device", "cpu", "--threads", "1", "--out", str(folder)]) == 0
    return folder


@pytest.fixture
def distill_args(tmp_path):
    """f(**changes) -> resolved flags of a small distill run on the CPU, from a random teacher."""
    from dm_kd import distill

    def make(**changes) -> argparse.Namespace:
        args = distill.parse([
            "--task", "digits", "--source", "real", "--teacher", "cnn_w4@none", "--student",
            "cnn_w4", "--epochs", "2", "--batch-size", "32", "--amp", "none", "--learning-rate",
            "0.05", "--lr-decay-epochs", "1", "--device", "cpu", "--threads", "1",
            "--out", str(tmp_path / "run")])
        for name, value in changes.items():
            assert hasattr(args, name), name
            setattr(args, name, value)
        return args

    return make
