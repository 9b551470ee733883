"""Stored images, real or synthetic, in a stateless shuffled order.

The order of an epoch is a function of (seed, epoch), so a run that starts again at a step needs
nothing but the step's number.
"""

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor


class StoredSource:
    """Images in memory, or in a memory map.

    Args:
        images: uint8 [N, C, H, W].
        labels: int64 [N], -1 = unknown.
        batch_size: of all ranks together; a multiple of the world size.
        steps_per_epoch: default ceil(N / batch_size), the last batch filled from a second order.
    """

    def __init__(self, images: Tensor, labels: Tensor, batch_size: int, seed: int, rank: int = 0,
                 world_size: int = 1, steps_per_epoch: int | None = None):
        assert batch_size % world_size == 0, (batch_size, world_size)
        self.images, self.labels, self.seed = images, labels, seed
        self.batch_size, self.rank, self.world_size = batch_size, rank, world_size
        self.steps_per_epoch = steps_per_epoch or -(-len(images) // batch_size)

    def order(self, epoch: int) -> np.ndarray:
        """Virtual ids of an epoch, int64 [steps_per_epoch * batch_size]: position + N times the
        number of times the image came before, so that each is unique and gets its own view."""
        count, size = self.steps_per_epoch * self.batch_size, len(self.images)
        rounds = [np.random.Generator(np.random.PCG64([self.seed, epoch, r])).permutation(size)
                  + r * size for r in range(-(-count // size))]
        return np.concatenate(rounds)[:count]

    def batches(self, epoch: int, first_step: int = 0, student: object = None
                ) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """(images uint8 [B/W, C, H, W], labels, virtual ids) of this rank, from `first_step`."""
        order = torch.from_numpy(self.order(epoch))
        share = self.batch_size // self.world_size
        for step in range(first_step, self.steps_per_epoch):
            start = step * self.batch_size + self.rank * share
            ids = order[start:start + share]
            index = (ids % len(self.images)).to(self.images.device)
            yield self.images[index], self.labels[index], ids

    def state_dict(self) -> dict:
        """Nothing: the order is a function."""
        return {}

    def load_state_dict(self, state: dict) -> None:
        assert state == {}, state
