"""A limit on what a node keeps of remote shards.

What the processes of a node must know of each other is which shard was used when. It stands in one small file per run
and stream, `.mixkit/used-RUN`, mapped by all of the run's ranks and workers: no shared memory. Each keeps a lock on it
that ends with the process, so what a run leaves, killed or not, is known to be old and removed by the next. What is on
disk is counted where it lies, so nothing can drift.

Deleted first is what this run has not used for longest, and never what another run used within the last ten minutes.
Deleting a shard that somebody reads is harmless: who has it mapped reads on, who has not fetches it again.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import socket
import time
import warnings
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
from filelock import FileLock
from streaming.base.util import bytes_to_int
from streaming.base.world import World

from mixkit.errors import UserError

if TYPE_CHECKING:
    from mixkit.stream.shards import ShardReader

SHARED_FOLDER = ".mixkit"
_LEASE = 600 * 10**9
"""Nanoseconds for which a shard that another run used is left alone."""


def shared_folder(folder: str) -> str:
    """The folder under a cached stream's for what processes tell each other; whoever may write there may here."""
    shared = os.path.join(folder, SHARED_FOLDER)
    if not os.path.isdir(shared):
        os.makedirs(shared, exist_ok=True)
        with contextlib.suppress(OSError):
            os.chmod(shared, os.stat(folder).st_mode & 0o7777)
    return shared


def locked(folder: str, name: str, wait: bool = True) -> FileLock:
    """A lock among the processes that share a cached stream's folder, to be held with `with`.

    Where `wait` is false and another process holds it, that raises `filelock.Timeout`.
    """
    return FileLock(os.path.join(shared_folder(folder), f"{name}.lock"), timeout=-1 if wait else 0, mode=0o666)


class UseNotes:
    """When each shard of a stream was last used by this run on this node, and who is fetching it.

    Args:
        folder: where the stream's shards are cached.
        num_shards: how many it has.
    """

    def __init__(self, folder: str, num_shards: int) -> None:
        self._folder = os.path.join(folder, SHARED_FOLDER)
        self._path = os.path.join(self._folder, f"used-{_run_token()}")
        self._num_shards = num_shards
        self._notes: np.ndarray | None = None
        self._lock: _Held | None = None

    @property
    def notes(self) -> np.ndarray:
        """(s, 2) int64: time of last use (nanoseconds, 0 never), and which process is fetching the shard (0 none)."""
        if self._notes is None:
            try:
                self._notes = self._mapped()
                self.used_by_others()  # removes what runs that ended have left
            except OSError:
                # Somebody else's cache that may only be read: nothing can be deleted from it, either.
                self._notes = np.zeros((self._num_shards, 2), np.int64)
        return self._notes

    def touch(self, number: int) -> None:
        """Shard `number` is used now."""
        self.notes[number, 0] = time.time_ns()

    def used_by_others(self) -> np.ndarray:
        """(s,) int64: when any other run that goes on last used each shard, in nanoseconds."""
        last = np.zeros(self._num_shards, np.int64)
        for entry in os.scandir(self._folder):
            if entry.name.startswith("used-") and entry.path != self._path:
                with contextlib.suppress(OSError):
                    _remove_abandoned(entry.path)
                    notes = np.fromfile(entry.path, np.int64)
                    if len(notes) == 2 * self._num_shards:
                        np.maximum(last, notes[::2], out=last)
        return last

    def _mapped(self) -> np.ndarray:
        shared_folder(os.path.dirname(self._folder))
        self._lock = None
        while self._lock is None:
            handle = os.open(self._path, os.O_RDWR | os.O_CREAT, 0o644)
            held = _Held(handle)
            with contextlib.suppress(FileNotFoundError):
                # Before it was locked another run may have taken it for abandoned.
                if os.fstat(handle).st_ino == os.stat(self._path).st_ino:
                    self._lock = held
        os.ftruncate(handle, 16 * self._num_shards)
        return np.memmap(self._path, np.int64, "r+", shape=(self._num_shards, 2))

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_notes": None, "_lock": None}


class _Held:
    """A shared lock on an open file, for as long as this object or a forked process's copy of it lives."""

    def __init__(self, handle: int) -> None:
        self._handle = handle
        with contextlib.suppress(OSError):  # some network file systems have no locks
            fcntl.flock(handle, fcntl.LOCK_SH)

    def __del__(self) -> None:
        os.close(self._handle)


def _remove_abandoned(path: str) -> None:
    """Remove the notes at `path` if no process holds them any more."""
    handle = os.open(path, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.remove(path)  # under the lock: whoever opens it now sees that it is gone
    except OSError:
        pass  # held, or a file system without locks
    finally:
        os.close(handle)


class Cache:
    """Keeps what all streams of a dataset have fetched on this node within a limit.

    Args:
        readers: the dataset's streams.
        limit: bytes, or a text like "100gb".

    Raises:
        UserError: a limit that cannot hold four of the largest shards.
    """

    def __init__(self, readers: list[ShardReader], limit: int | str) -> None:
        self._readers = [reader for reader in readers if reader.fetched]
        self.limit = bytes_to_int(limit)
        self._warned = False
        largest = max((shard.get_max_size() for reader in self._readers for shard in reader.shards), default=0)
        if self.limit < 4 * largest:
            raise UserError(
                f"cache_limit: {self.limit} bytes cannot hold four of the largest shards ({largest} bytes each)"
            )

    @contextlib.contextmanager
    def room_for(self, reader: ShardReader, number: int) -> Iterator[None]:
        """Delete shards until number `number` of `reader` fits, and keep its place while it is fetched."""
        if not reader.fetched:
            yield
            return
        notes = reader.use.notes
        with locked(self._readers[0].folder, "room"):
            self._delete_down_to(self.limit - reader.shards[number].get_max_size())
            notes[number] = time.time_ns(), os.getpid()
        try:
            yield
        finally:
            notes[number, 1] = 0

    def _present(self, reader: ShardReader) -> dict[int, int]:
        """Shard number to the bytes that it takes on this node now; one that is on its way counts whole."""
        # Who is fetching first: what is put in place between the two looks is then counted twice, not never.
        fetching = reader.use.notes[:, 1].copy()
        sizes = {}
        for entry in os.scandir(reader.folder):
            with contextlib.suppress(FileNotFoundError):  # gone since
                sizes[entry.name] = entry.stat().st_size
        present = {}
        for number, shard in enumerate(reader.shards):
            files = [info.basename for info in (shard.raw_data, shard.zip_data) if info is not None]
            taken = sum(sizes.get(name, 0) for name in files)
            if _alive(int(fetching[number])):
                taken = shard.get_max_size()
            if taken:
                present[number] = taken
        return present

    def _delete_down_to(self, limit: int) -> None:
        present = [self._present(reader) for reader in self._readers]
        taken = sum(sum(sizes.values()) for sizes in present)
        if taken <= limit:
            return
        candidates = []
        for reader, sizes in zip(self._readers, present, strict=True):
            notes, others = reader.use.notes, reader.use.used_by_others()
            for number, size in sizes.items():
                if not _alive(int(notes[number, 1])) and others[number] < time.time_ns() - _LEASE:
                    candidates.append((int(notes[number, 0]), number, size, reader))
        candidates.sort(key=lambda candidate: candidate[:2])
        for _, number, size, reader in candidates:
            if taken <= limit:
                return
            with contextlib.suppress(FileNotFoundError):
                reader.shards[number].evict()
            taken -= size
        if taken > limit and not self._warned:
            self._warned = True
            warnings.warn(
                f"cache_limit: the shards in use, here or by another run on this cache, take {taken - limit} bytes "
                "more than it",
                stacklevel=2,
            )


def _run_token() -> str:
    """The same for all ranks and workers of a run on a node, another for every other run."""
    # Ranks of one run have one launcher for a parent, or are alone; hosts may share a folder.
    launcher = os.getppid() if World.detect().ranks_per_node > 1 else os.getpid()
    words = (socket.gethostname(), launcher, os.environ.get("MASTER_ADDR"), os.environ.get("MASTER_PORT"))
    return hashlib.blake2b(repr(words).encode(), digest_size=8).hexdigest()


def _alive(process: int) -> bool:
    if not process:
        return False
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True
