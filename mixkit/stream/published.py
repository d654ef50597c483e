"""What a trainer's process tells its loader workers: sampling weights by global batch, and when to stop waiting.

A ring of rows in memory that the process shares with its workers (anonymous: no name that could collide, no file, gone
with the processes). A row carries its batch number and a check sum, so that a reader needs no lock: a row that is half
written or already replaced does not match.
"""

from __future__ import annotations

import os
import threading
import time
import warnings
from typing import Any

import numpy as np
import torch

from mixkit.stream.apportion import UNIT

_ROWS_BEHIND = 256
"""Rows kept beyond the lag: a worker also plans its sisters' batches, a little later than they do."""

_PUBLISHED, _CLOSINGS, _BEGUN, _BEGUN_AT, _PRIMED_BY = range(5)
_LONG = 60.0
"""Seconds of waiting after which a reader says so."""


class StreamClosed(Exception):
    """The trainer closed the stream while somebody waited for weights."""


class WeightRing:
    """Rows of sampling weights by global batch, with a few numbers about them; one writer, many readers.

    Args:
        num_domains: k.
        lag: how many rows the writer may be ahead.
    """

    def __init__(self, num_domains: int, lag: int) -> None:
        # Columns: batch number, check sum, k weights. torch's shared tensors reach forked and spawned workers alike.
        self._shared_rows = torch.full((lag + _ROWS_BEHIND, num_domains + 2), -1, dtype=torch.int64).share_memory_()
        self._shared_notes = torch.tensor([0, 0, -1, -1, lag], dtype=torch.int64).share_memory_()
        self._view()
        self._closings = 0
        self._writer = os.getpid()
        self._writing_thread = threading.get_ident()

    def _view(self) -> None:
        self._rows, self._notes = self._shared_rows.numpy(), self._shared_notes.numpy()

    def __getstate__(self) -> dict[str, Any]:
        # An array would be copied into a spawned worker, a shared tensor is not.
        return {name: value for name, value in self.__dict__.items() if name not in ("_rows", "_notes")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._view()

    @property
    def published(self) -> int:
        """Number of the next batch to publish; 0 while nobody publishes."""
        return int(self._notes[_PUBLISHED])

    @property
    def closings(self) -> int:
        """How often the stream was closed; what waits began under an earlier number and ends."""
        return int(self._notes[_CLOSINGS])

    @property
    def begun(self) -> int:
        """The batch that the latest iteration began with, in whichever process; -1 before the first."""
        return int(self._notes[_BEGUN])

    @property
    def running(self) -> bool:
        """Whether an iteration has begun that was not closed."""
        return self.begun >= 0 and int(self._notes[_BEGUN_AT]) == self.closings

    @property
    def primed_by(self) -> int:
        """Rows that must be ahead when an iteration begins: the lag, or what a resumed stream came with."""
        return int(self._notes[_PRIMED_BY])

    def begin(self, batch: int, new_worker: bool) -> int:
        """Note that an iteration begins with `batch`.

        Returns:
            the number of closings to `read` with: as the process was made with it for a new worker, which may come up
            after the stream was closed.
        """
        closings = self._closings if new_worker else self.closings
        self._notes[_BEGUN] = batch
        self._notes[_BEGUN_AT] = closings
        return closings

    def write(self, batch: int, weights: np.ndarray) -> None:
        """Publish the (k,) int64 weights of global batch `batch`."""
        self._writing_thread = threading.get_ident()
        row = self._rows[batch % len(self._rows)]
        row[1] = -1
        row[2:] = weights
        row[0] = batch
        row[1] = _check_sum(batch, weights)
        self._notes[_PUBLISHED] = batch + 1

    def newest(self, otherwise: np.ndarray) -> np.ndarray:
        """The (k,) int64 row that was published last; `otherwise` if none was or it cannot be seen whole yet."""
        try:
            return self.read(self.published - 1) if self.published else otherwise
        except RuntimeError:
            return otherwise

    def forget(self, primed_by: int) -> None:
        """Nothing is published and nothing has begun."""
        self._notes[_PRIMED_BY] = primed_by
        self._rows.fill(-1)
        self._notes[_PUBLISHED] = 0
        self._notes[_BEGUN] = -1

    def read(self, batch: int, closings: int | None = None) -> np.ndarray:
        """The (k,) int64 weights of global batch `batch`; waits until they are published.

        Args:
            batch: its number.
            closings: as `begin` gave it; None for a caller that does not want to wait.

        Raises:
            StreamClosed: the stream was closed before they came.
            RuntimeError: nobody can publish them any more, or they were replaced.
        """
        pause, began, said = 1e-4, time.monotonic(), False
        while True:
            row = self._rows[batch % len(self._rows)].copy()
            if row[0] == batch and row[1] == _check_sum(batch, row[2:]):
                return row[2:]
            if row[0] > batch:
                raise RuntimeError(f"the weights of batch {batch} were replaced before they were asked for")
            if closings is not None and closings != self.closings:
                raise StreamClosed
            if closings is None or (os.getpid() == self._writer and threading.get_ident() == self._writing_thread):
                raise RuntimeError(f"batch {batch} is asked for, but its weights have not been published")
            if not said and time.monotonic() - began > _LONG:
                said = True
                warnings.warn(
                    f"the weights of batch {batch} did not come for {_LONG:.0f} s: does the trainer still publish? "
                    "(dataset.close() frees whoever waits)",
                    stacklevel=2,
                )
            time.sleep(pause)
            pause = min(2 * pause, 5e-3)

    def close(self) -> None:
        """Free whoever waits; nothing in any other process than the trainer's."""
        if os.getpid() != self._writer:
            return
        self._closings += 1
        self._notes[_CLOSINGS] = self._closings


def _check_sum(batch: int, weights: np.ndarray) -> int:
    # Weights sum to UNIT in every row, so the sum alone would not tell two rows apart.
    positions = np.arange(1, len(weights) + 1)
    return int((batch * (UNIT + 1) + (weights * positions).sum()) % (1 << 62))
