"""Held-out data: every sequence of a split exactly once, on any number of ranks.

Ranks take every W-th sequence. Where the last round is not full, a rank repeats a sequence with all labels masked, so
that every rank has as many batches and nothing is counted twice.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from streaming import Stream
from streaming.base.world import World
from torch.utils.data import IterableDataset

from mixkit.stream.shards import ShardReader

DEFAULTS = {"split": None, "download_retry": 2, "download_timeout": 60, "validate_hash": None, "keep_zip": False}


class HeldOut(IterableDataset):
    """One pass over a stream; yields `input_ids` and `labels`, (T,) int64.

    Args:
        stream: the split's shards.
    """

    def __init__(self, stream: Stream) -> None:
        self._reader = ShardReader(stream, DEFAULTS)

    def __len__(self) -> int:
        """Sequences of one rank, the masked repeat included."""
        return -(-len(self._reader) // World.detect().num_ranks)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        world = World.detect()
        for turn in range(world.worker_of_rank, len(self), world.workers_per_rank):
            number = turn * world.num_ranks + world.rank
            tokens = self._reader[min(number, len(self._reader) - 1)]["tokens"].astype(np.int64)
            labels = tokens if number < len(self._reader) else np.full_like(tokens, -100)
            yield {"input_ids": tokens, "labels": labels}
