"""Sequences to MDS shards on disk, and a finished set of folders to its final place.

The idea of publishing: everything is made in `OUT/.partial` and only then renamed into `OUT`, `shards.json` last, so
what carries a final name is whole. A kill between two renames is harmless: `.partial` still holds its own
`shards.json`, and the next run does the renames that are left. What `overwrite=true` replaces is renamed into
`.partial/old` first and deleted at the very end.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from mixkit.errors import UserError
from mixkit.shards.manifest import MANIFEST, REJECTED, TOKENIZER, Manifest, load_manifest

PARTIAL = ".partial"
COMPRESSION = "zstd:3"
HASHES = ["xxh3_64"]
SHARD_BYTES = 1 << 26  # before compression


class ShardWriter:
    """Writes rows of one domain and split into `folder` as MDS, column `tokens`, fixed shape (seq_len,).

    Up to `SHARD_BYTES` of rows are held in memory. Importing this class is cheap; making one loads streaming and torch.
    """

    def __init__(self, folder: Path, seq_len: int, dtype: np.dtype):
        from streaming import MDSWriter

        self._writer = MDSWriter(
            out=str(folder),
            columns={"tokens": f"ndarray:{dtype.name}:{seq_len}"},
            compression=COMPRESSION,
            hashes=HASHES,
            size_limit=SHARD_BYTES,
        )

    def write(self, rows: np.ndarray) -> None:
        """Append `rows`, (n, seq_len) of the writer's dtype."""
        for row in rows:
            self._writer.write({"tokens": row})

    def finish(self) -> None:
        """Write the last shard and index.json."""
        self._writer.finish()


@contextlib.contextmanager
def only_writer(out: Path) -> Iterator[None]:
    """Hold `out` (made if need be) against a second run that would write into it at the same time.

    Raises:
        UserError: another process holds it, or it is no folder.
    """
    try:
        out.mkdir(parents=True, exist_ok=True)
    except FileExistsError:
        raise UserError(f"output: {out} is a file; a folder is wanted") from None
    handle = os.open(out, os.O_RDONLY)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(f"output: another run is writing into {out}") from None
        except OSError:
            pass  # some network file systems have no locks
        yield
    finally:
        os.close(handle)
        with contextlib.suppress(OSError):
            out.rmdir()  # only if it is empty: a run that failed before it wrote leaves nothing


def published(out: Path) -> Manifest | None:
    """The manifest of the shards in `out`; None for a folder without. Renames that a kill interrupted are done first.

    Raises:
        UserError: `out` holds other things than shards, which a run would have to write between.
    """
    if (out / PARTIAL / MANIFEST).exists():
        publish(out)
    if (out / MANIFEST).exists():
        return load_manifest(out)
    foreign = [entry.name for entry in sorted(out.iterdir()) if not entry.name.startswith(".")]
    if foreign:
        raise UserError(f"output: {out} holds {foreign[0]} but no {MANIFEST}; name an empty folder or a new one")
    return None


def start_over(out: Path) -> Path:
    """An empty `.partial` in `out`."""
    partial = out / PARTIAL
    if partial.exists():
        shutil.rmtree(partial)
    partial.mkdir()
    return partial


def publish(out: Path) -> None:
    """Rename what `.partial` holds into `out`, its manifest last; doing it again after a kill finishes the job."""
    partial, old = out / PARTIAL, out / PARTIAL / "old"
    new = load_manifest(partial)
    old.mkdir(exist_ok=True)
    if (out / MANIFEST).exists():
        os.replace(out / MANIFEST, old / MANIFEST)
    if (old / MANIFEST).exists():
        # Names of the new set are dealt with below; scores are aligned with the old sequences.
        for name in {*entries(load_manifest(old)), "scores"} - {*entries(new)}:
            _retire(out / name, old)
    for name in entries(new):
        if (partial / name).exists():
            _retire(out / name, old)
            os.replace(partial / name, out / name)
    os.replace(partial / MANIFEST, out / MANIFEST)
    shutil.rmtree(partial)


def entries(manifest: Manifest) -> list[str]:
    """What an output folder holds beside `shards.json`."""
    return [*(domain.folder for domain in manifest.domains.values()), TOKENIZER, REJECTED]


def _retire(path: Path, old: Path) -> None:
    if path.exists():
        os.replace(path, old / path.name)
