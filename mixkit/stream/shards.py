"""Samples by number out of one MDS stream, its shards fetched when they are first needed.

streaming's `Stream` downloads, validates and decompresses, its readers decode; this adds a lock per shard, so that the
ranks and workers of a node prepare a shard once, and no shared memory.
"""

from __future__ import annotations

import os
from bisect import bisect_right
from collections.abc import Mapping
from typing import Any

import numpy as np
from filelock import FileLock
from streaming import Stream
from streaming.base.world import World

from mixkit.errors import UserError


class ShardReader:
    """Random access to the samples of one stream.

    Args:
        stream: a stream with `remote` and/or `local`.
        defaults: what the dataset says of the stream's unset options (`split`, `download_retry`, …).

    Raises:
        UserError: there is no index file.
    """

    def __init__(self, stream: Stream, defaults: Mapping[str, Any]) -> None:
        self.stream = stream
        stream.apply_default(dict(defaults))
        self.folder = os.path.join(stream.local, stream.split)
        if stream.remote is None and not os.path.exists(os.path.join(self.folder, "index.json")):
            raise UserError(f"{self.folder}: no index.json; is this a folder of MDS shards?")
        self.shards = stream.get_shards(World.detect(), allow_unsafe_types=False)
        self.samples_per_shard = np.array([shard.samples for shard in self.shards], np.int64)
        self._ends = np.cumsum(self.samples_per_shard).tolist()
        self._ready: set[int] = set()

    def __len__(self) -> int:
        return self._ends[-1] if self._ends else 0

    def __getitem__(self, sample: int) -> dict[str, Any]:
        """The columns of sample number `sample`, in the order in which the shards were written."""
        number = bisect_right(self._ends, sample)
        if number not in self._ready:
            self._prepare(number)
        return self.shards[number][sample - (self._ends[number - 1] if number else 0)]

    def _prepare(self, number: int) -> None:
        shard = self.shards[number]
        raw = os.path.join(self.folder, shard.file_pairs[0][0].basename)
        if not os.path.exists(raw):
            locks = os.path.join(self.folder, ".locks")
            os.makedirs(locks, exist_ok=True)
            with FileLock(os.path.join(locks, f"{number}.lock")):
                self.stream.prepare_shard(shard)
        self._ready.add(number)
