"""Published weights: how a trainer tells its loader workers what to draw from.

A ring of rows in memory that the trainer's process shares with its workers (anonymous: no name that could collide, no
file, gone with the processes). A row carries its batch number and a check sum, so that a reader needs no lock: a row
that is half written or already replaced does not match.
"""

from __future__ import annotations

import os
import time

import numpy as np
import torch

from mixkit.stream.apportion import UNIT

_ROWS_BEHIND = 256
"""Rows kept beyond the lag: a worker also plans its sisters' batches, a little later than they do."""


class StreamClosed(Exception):
    """The trainer closed the stream (or died) while a worker waited for weights."""


class WeightRing:
    """Rows of sampling weights by global batch; one writer, many readers in its child processes.

    Args:
        num_domains: k.
        lag: how many rows the writer may be ahead.
    """

    def __init__(self, num_domains: int, lag: int) -> None:
        # Columns: batch number, check sum, k weights. torch's shared tensors reach forked and spawned workers alike.
        self._rows = torch.full((lag + _ROWS_BEHIND, num_domains + 2), -1, dtype=torch.int64).share_memory_()
        self._closed = torch.zeros(1, dtype=torch.int64).share_memory_()
        self._writer = os.getpid()

    def write(self, batch: int, weights: np.ndarray) -> None:
        """Publish the (k,) int64 weights of global batch `batch`."""
        row = self._rows[batch % len(self._rows)].numpy()
        row[1] = -1
        row[2:] = weights
        row[0] = batch
        row[1] = _check_sum(batch, weights)

    def read(self, batch: int) -> np.ndarray:
        """The (k,) int64 weights of global batch `batch`; waits until they are published.

        Raises:
            StreamClosed: the stream was closed, or the writing process died, before they came.
        """
        pause = 1e-4
        while True:
            row = self._rows[batch % len(self._rows)].numpy().copy()
            if row[0] == batch and row[1] == _check_sum(batch, row[2:]):
                return row[2:]
            if row[0] > batch:
                raise RuntimeError(f"the weights of batch {batch} were replaced before a worker planned it")
            if os.getpid() == self._writer:
                raise RuntimeError(f"batch {batch} is asked for, but its weights have not been published")
            if self._closed[0] or os.getppid() != self._writer:
                raise StreamClosed
            time.sleep(pause)
            pause = min(2 * pause, 5e-3)

    def close(self) -> None:
        """Free whoever waits."""
        self._closed[0] = 1

    def reopen(self) -> None:
        """Let readers wait again, after `close`."""
        self._closed[0] = 0


def _check_sum(batch: int, weights: np.ndarray) -> int:
    # Weights sum to UNIT in every row, so the sum alone would not tell two rows apart.
    positions = np.arange(1, len(weights) + 1)
    return int((batch * (UNIT + 1) + (weights * positions).sum()) % (1 << 62))
