"""Samples by number out of one MDS stream, its shards fetched when they are needed or a little earlier.

streaming's `Stream` downloads, validates and decompresses, its MDS readers decode. This adds what ranks, workers and
runs that share a folder need, all of it under that folder in `.mixkit/` and none of it in shared memory: a lock per
shard, so that a node prepares a shard once, and a note of when each was last used (`mixkit.stream.cache`).
"""

from __future__ import annotations

import contextlib
import copy
import mmap
import os
import shutil
import struct
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Mapping
from typing import Any

import numpy as np
from filelock import Timeout
from streaming import Stream
from streaming.base.format import get_index_basename
from streaming.base.world import World

from mixkit.errors import UserError, WorldError
from mixkit.stream.cache import Cache, UseNotes, locked, shared_folder

_MOST_OPEN = 256
"""Shards that a process keeps mapped; each holds a file descriptor, of which 1,024 is a common limit."""


class OpenShards:
    """The shards that this process has mapped; the least recently used is let go first."""

    def __init__(self) -> None:
        self._maps: OrderedDict[str, tuple[int, mmap.mmap]] = OrderedDict()

    def get(self, path: str, size: int) -> mmap.mmap | None:
        """The bytes of the shard file; None if there is no such file or it has not `size` bytes (yet)."""
        kept = self._maps.get(path)
        if kept is None:
            try:
                with open(path, "rb", buffering=0) as file:
                    status = os.fstat(file.fileno())
                    if status.st_size != size:
                        return None
                    kept = status.st_ino, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
            except FileNotFoundError:
                return None
            self._maps[path] = kept
            if len(self._maps) > _MOST_OPEN:
                self._maps.popitem(last=False)  # unmapped as soon as nobody reads it any more
        else:
            self._maps.move_to_end(path)
        return kept[1]

    def let_go_of_evicted(self) -> None:
        """Unmap what was deleted meanwhile: its disk space is free only then."""
        for path, (inode, _) in list(self._maps.items()):
            try:
                there = os.stat(path).st_ino == inode
            except OSError:
                there = False
            if not there:
                self._maps.pop(path, None)


OPEN_SHARDS = OpenShards()
"""Those of this process, whatever datasets they belong to."""


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
        self.shards = self._shards()
        self.samples_per_shard = np.array([shard.samples for shard in self.shards], np.int64)
        self._ends = np.cumsum(self.samples_per_shard).tolist()
        self._paths = [os.path.join(self.folder, shard.raw_data.basename) for shard in self.shards]
        self.fetched = stream.remote is not None and os.path.realpath(stream.remote) != os.path.realpath(stream.local)
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
        with locked(self.folder, "index"):
            if not os.path.exists(index):
                # What a killed run left half downloaded would be taken for the whole.
                with contextlib.suppress(FileNotFoundError):
                    os.remove(index + ".tmp")
            return self.stream.get_shards(world, allow_unsafe_types=False)

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
            with locked(self.folder, str(number), wait):
                if not self._present(number):
                    self._make(number)
        except Timeout:
            return False
        except OSError as error:
            raise WorldError(
                f"{self._paths[number]}: is not there and cannot be put there ({error}); if the folder is not yours to "
                "write to, give the stream the folder as its `remote` and another as its `local`"
            ) from None
        return True

    def _map(self, number: int) -> mmap.mmap:
        path, size = self._paths[number], self.shards[number].raw_data.bytes
        data = OPEN_SHARDS.get(path, size)
        while data is None:
            # Once is enough unless another run with a small cache deletes it in between.
            self.prepare(number)
            data = OPEN_SHARDS.get(path, size)
        return data

    def _present(self, number: int) -> bool:
        try:
            return os.path.getsize(self._paths[number]) == self.shards[number].raw_data.bytes
        except FileNotFoundError:
            return False

    def _make(self, number: int) -> None:
        """Put the shard's file in place, whole; its lock is held."""
        shard = self.shards[number]
        if self.use is not None:
            self.use.touch(number)
        with self.cache.room_for(self, number) if self.cache else contextlib.nullcontext():
            try:
                if self.fetched:
                    self._fetch(number)
                elif shard.compression:
                    self._decompress(number)
            except Exception as error:
                source = os.path.join(self.stream.remote or self.stream.local, self.stream.split)
                raise WorldError(f"{source}: shard {shard.raw_data.basename}: {error}") from error
        if self.use is not None:
            self.use.touch(number)
        if not self.fetched and not self._present(number):
            raise WorldError(f"{self._paths[number]}: is missing or not of the size that index.json says")

    def _decompress(self, number: int) -> None:
        # The compressed file is the source and stays; what was made of it before may be made again.
        if os.path.exists(os.path.join(self.folder, self.shards[number].zip_data.basename)):
            with contextlib.suppress(FileNotFoundError):
                os.remove(self._paths[number])
            self.stream.prepare_shard(self.shards[number])

    def _fetch(self, number: int) -> None:
        # In a folder of its own until it is whole and validated: some downloaders write in place, and streaming
        # validates what already has its final name.
        shard = self.shards[number]
        part = copy.copy(self.stream)
        part.local = os.path.join(shared_folder(self.folder), f"{number}.part")
        names = [info.basename for info in (shard.zip_data, shard.raw_data) if info is not None]
        try:
            for anew in (False, True):
                shutil.rmtree(part.local, ignore_errors=True)
                os.makedirs(os.path.join(part.local, part.split))
                if not anew and shard.zip_data is not None:
                    with contextlib.suppress(OSError):
                        os.link(os.path.join(self.folder, names[0]), os.path.join(part.local, part.split, names[0]))
                try:
                    part.prepare_shard(shard)
                    break
                except Exception:
                    if anew:
                        raise
            made = [os.path.join(part.local, part.split, name) for name in names]
            if os.path.getsize(made[-1]) != shard.raw_data.bytes:
                raise ValueError(f"has {os.path.getsize(made[-1])} bytes, index.json says {shard.raw_data.bytes}")
            for name, path in zip(names, made, strict=True):
                if os.path.exists(path):  # a zip that is not kept is gone
                    os.replace(path, os.path.join(self.folder, name))
        finally:
            shutil.rmtree(part.local, ignore_errors=True)
