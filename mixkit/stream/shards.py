"""Samples by number out of one MDS stream, its shards fetched when they are needed or a little earlier.

streaming's `Stream` downloads, validates and decompresses, its MDS readers decode. This adds what ranks, workers and
runs that share a folder need, all of it under that folder in `.mixkit/` and none of it in shared memory: a lock per
shard, so that a node prepares a shard once, and a note of when each was last used (`mixkit.stream.cache`).
"""

from __future__ import annotations

import contextlib
import mmap
import os
import struct
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Mapping
from typing import Any

import numpy as np
from filelock import FileLock, Timeout
from streaming import Stream
from streaming.base.format import get_index_basename
from streaming.base.world import World

from mixkit.errors import UserError, WorldError
from mixkit.stream.cache import SHARED_FOLDER, Cache, UseNotes

_MOST_OPEN = 256
"""Shards that a process keeps mapped; each holds a file descriptor, of which 1,024 is a common limit."""


class OpenShards:
    """The shards that this process has mapped, the least recently used closed first."""

    def __init__(self) -> None:
        self._maps: OrderedDict[str, tuple[int, mmap.mmap]] = OrderedDict()

    def get(self, path: str, size: int) -> mmap.mmap | None:
        """The bytes of the shard file; None if there is no such file or it has not `size` bytes (yet)."""
        kept = self._maps.get(path)
        if kept is not None:
            self._maps.move_to_end(path)
            return kept[1]
        try:
            handle = os.open(path, os.O_RDONLY)
        except FileNotFoundError:
            return None
        if os.fstat(handle).st_size != size:
            os.close(handle)
            return None
        kept = handle, mmap.mmap(handle, 0, access=mmap.ACCESS_READ)
        self._maps[path] = kept
        if len(self._maps) > _MOST_OPEN:
            _, oldest = self._maps.popitem(last=False)
            _shut(*oldest)
        return kept[1]

    def let_go_of_evicted(self) -> None:
        """Close what was deleted meanwhile: its disk space is free only then."""
        for path, kept in list(self._maps.items()):
            if os.fstat(kept[0]).st_nlink == 0:
                del self._maps[path]
                _shut(*kept)

    def __getstate__(self) -> dict[str, Any]:
        return {"_maps": OrderedDict()}


def _shut(handle: int, mapped: mmap.mmap) -> None:
    mapped.close()
    os.close(handle)


class ShardReader:
    """Random access to the samples of one stream.

    Args:
        stream: a stream with `remote` and/or `local`.
        defaults: what the dataset says of the stream's unset options (`split`, `download_retry`, …).
        open_shards: kept by the dataset for all its streams.

    Raises:
        UserError: there is no index file.
    """

    def __init__(self, stream: Stream, defaults: Mapping[str, Any], open_shards: OpenShards | None = None) -> None:
        self.stream = stream
        stream.apply_default(dict(defaults))
        self.folder = os.path.join(stream.local, stream.split)
        self.shards = self._shards()
        self.samples_per_shard = np.array([shard.samples for shard in self.shards], np.int64)
        self._ends = np.cumsum(self.samples_per_shard).tolist()
        self._paths = [os.path.join(self.folder, shard.raw_data.basename) for shard in self.shards]
        self._open = OpenShards() if open_shards is None else open_shards
        self.fetched = stream.remote not in (None, stream.local)
        """Whether shards come from elsewhere, so that they may be deleted here."""
        self.prepared = self.fetched or any(shard.compression for shard in self.shards)
        """Whether there is anything to do before a shard can be read."""
        self.use = UseNotes(self.folder, len(self.shards)) if self.prepared else None
        self.cache: Cache | None = None

    def _shards(self) -> list[Any]:
        world, index = World.detect(), os.path.join(self.folder, get_index_basename())
        if os.path.exists(index) or not world.is_local_leader:
            return self.stream.get_shards(world, allow_unsafe_types=False)
        if self.stream.remote is None:
            raise UserError(f"{self.folder}: no index.json; is this a folder of MDS shards?")
        with FileLock(os.path.join(self._shared(), "index.lock"), mode=0o666):
            if not os.path.exists(index):
                # What a killed run left half downloaded would be taken for the whole.
                with contextlib.suppress(FileNotFoundError):
                    os.remove(index + ".tmp")
            return self.stream.get_shards(world, allow_unsafe_types=False)

    def _shared(self) -> str:
        folder = os.path.join(self.folder, SHARED_FOLDER)
        os.makedirs(folder, exist_ok=True)
        return folder

    def __len__(self) -> int:
        return self._ends[-1] if self._ends else 0

    def __getitem__(self, sample: int) -> dict[str, Any]:
        """The columns of sample number `sample`, in the order in which the shards were written.

        Raises:
            WorldError: its shard cannot be fetched, or is not what the index says.
        """
        number = bisect_right(self._ends, sample)
        data = self._map(number)
        place = sample - (self._ends[number - 1] if number else 0)
        begin, end = struct.unpack_from("<II", data, 4 * (1 + place))
        if self.use is not None:
            self.use.touch(number)
        return self.shards[number].decode_sample(data[begin:end])

    def shard_of(self, samples: np.ndarray) -> np.ndarray:
        """(m,) int64 shard numbers of (m,) samples."""
        return np.searchsorted(self._ends, samples, side="right")

    def prepare(self, number: int, wait: bool = True) -> bool:
        """Have shard `number` ready to read: fetched, validated, decompressed.

        Args:
            number: of the shard.
            wait: if another process is at it, wait for that; else leave it to the other and return False.

        Raises:
            WorldError: it cannot be had.
        """
        if self._present(number):
            return True
        try:
            with FileLock(os.path.join(self._shared(), f"{number}.lock"), timeout=-1 if wait else 0, mode=0o666):
                if not self._present(number):
                    self._fetch(number)
        except Timeout:
            return False
        except PermissionError as error:
            raise WorldError(
                f"{self._paths[number]}: is not there and cannot be put there ({error}); give the stream the folder as "
                "its `remote`, and a `local` folder that you may write to"
            ) from None
        return True

    def _map(self, number: int) -> mmap.mmap:
        path, size = self._paths[number], self.shards[number].raw_data.bytes
        data = self._open.get(path, size)
        while data is None:
            # Once is enough unless another run with a small cache deletes it in between.
            self.prepare(number)
            data = self._open.get(path, size)
        return data

    def _present(self, number: int) -> bool:
        try:
            return os.path.getsize(self._paths[number]) == self.shards[number].raw_data.bytes
        except FileNotFoundError:
            return False

    def _fetch(self, number: int) -> None:
        shard = self.shards[number]
        with self.cache.room_for(self, number) if self.cache else contextlib.nullcontext():
            # Under the shard's lock, a file of another size is what a killed run left of it.
            with contextlib.suppress(FileNotFoundError):
                os.remove(self._paths[number])
            try:
                try:
                    self.stream.prepare_shard(shard)
                except Exception:
                    if not self.fetched:
                        raise
                    # A damaged file stays where it was put, and would be taken for good the next time.
                    shard.evict()
                    self.stream.prepare_shard(shard)
            except Exception as error:
                if self.fetched:
                    shard.evict()
                source = os.path.join(self.stream.remote or self.stream.local, self.stream.split)
                raise WorldError(f"{source}: shard {shard.raw_data.basename}: {error}") from error
        if not self._present(number):
            raise WorldError(f"{self._paths[number]}: is not of the size that index.json says")
        if self.use is not None:
            self.use.touch(number)
