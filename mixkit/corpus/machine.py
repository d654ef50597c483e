"""The demo corpus: real text that is on every machine once mixkit is installed, so that a demo needs no download.

The idea: the Python installation around us is a small multi-domain corpus. Code, C++ headers, prose about packages,
licences, data and font tables differ as the domains of a real corpus do, and their sizes are as unequal. What is taken
depends on the files alone (order by the SHA-256 of their relative path, exact duplicates dropped); it is written in
the Pile's layout.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
import re
import shutil
import sysconfig
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path, PurePosixPath

import orjson
import zstandard

from mixkit.errors import UserError

# Bytes of text per domain; together about 6 MB, the largest 15 times the smallest. The demo trains for a few minutes on
# two cores and scores all of it, so more would only make it longer.
LIMITS: Mapping[str, int] = {
    "PackageCode": 2_200_000,
    "StdlibCode": 1_400_000,
    "CppHeaders": 1_100_000,
    "PackageDocs": 600_000,
    "JsonData": 400_000,
    "TypeStubs": 250_000,
    "Licences": 200_000,
    "FontMetrics": 150_000,
}

SHORTEST, LONGEST = 200, 100_000  # bytes of one document
VAL_SHARE = 0.04
VAL_BYTES = 40_000  # of a domain at least, but never more than a third of it

_SUMMARY = "demo.json"
_LICENCE = re.compile(r"(licen[cs]e|copying|notice|copyright)", re.IGNORECASE)
_PROSE = (".md", ".rst")
# Names of this machine stand in some of the files that installers write.
_SKIPPED = re.compile(r"(^|/)(mixkit|__editable__)|\.dist-info/(?!licenses/|[^/]*$)|/direct_url\.json$|_sysconfigdata")


@dataclass(frozen=True)
class DomainText:
    """What was collected of one domain: documents and UTF-8 bytes of text in each split."""

    train_documents: int
    train_bytes: int
    val_documents: int
    val_bytes: int


def collect(out: str | os.PathLike[str], limits: Mapping[str, int] = LIMITS) -> dict[str, DomainText]:
    """Write `out`/{train,val}/DOMAIN.jsonl.zst, with at most `limits[DOMAIN]` bytes of text each; takes seconds.

    Every line is {"text", "meta": {"pile_set_name", "source"}}, `source` a path below the place it was found in.
    Where `out` is complete already, nothing is done. Domains of which nothing was found are left out.

    Raises:
        UserError: `out` holds something else, or a collection with other limits.
    """
    folder = Path(out)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        return _read_summary(folder, limits)
    partial = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    seen: set[bytes] = set()
    domains = {}
    for domain, files in _candidates().items():
        documents = _choose(files, limits.get(domain, 0), seen)
        if documents:
            domains[domain] = _write(partial, domain, documents)
    summary = {"limits": dict(limits), "domains": {name: asdict(stats) for name, stats in domains.items()}}
    (partial / _SUMMARY).write_text(json.dumps(summary, indent=2) + "\n")
    if folder.exists():
        folder.rmdir()  # empty, as seen above
    os.replace(partial, folder)
    return domains


def _read_summary(folder: Path, limits: Mapping[str, int]) -> dict[str, DomainText]:
    try:
        summary = json.loads((folder / _SUMMARY).read_text())
        domains = {name: DomainText(**stats) for name, stats in summary["domains"].items()}
    except (OSError, ValueError, KeyError, TypeError):
        raise UserError(f"{folder}: is no demo corpus and not empty; name another folder or delete it") from None
    if summary.get("limits") != dict(limits):
        raise UserError(f"{folder}: holds a demo corpus of another size; name another folder or delete it")
    return domains


def _candidates() -> dict[str, list[tuple[str, Path]]]:
    """Per domain, in the order in which duplicates are kept: (relative path, file) of everything that may belong."""
    stdlib = Path(sysconfig.get_path("stdlib"))
    packages = {Path(sysconfig.get_path(key)) for key in ("purelib", "platlib")}
    found: dict[str, list[tuple[str, Path]]] = {domain: [] for domain in LIMITS}
    for name, path in _walk(stdlib):
        if name.endswith(".py"):
            found["StdlibCode"].append((name, path))
    for root in sorted(packages):
        for name, path in _walk(root):
            domain = _domain_of(name)
            if domain:
                found[domain].append((name, path))
    found["CppHeaders"] += _headers()
    return found


def _walk(root: Path) -> Iterator[tuple[str, Path]]:
    for folder, folders, files in os.walk(root):
        # The standard library's folder may hold site-packages; torch's headers come below.
        folders[:] = sorted(set(folders) - {"site-packages", "dist-packages", "__pycache__", "include"})
        for file in sorted(files):
            path = Path(folder, file)
            name = path.relative_to(root).as_posix()
            if not _SKIPPED.search(name):
                yield name, path


def _domain_of(name: str) -> str | None:
    path = PurePosixPath(name)
    in_metadata = ".dist-info/" in name
    if path.suffix == ".py":
        return "PackageCode"
    if path.suffix == ".pyi":
        return "TypeStubs"
    if _LICENCE.match(path.name) or "/licenses/" in name:
        return "Licences"
    if path.name == "METADATA" or path.suffix in _PROSE:
        return "PackageDocs"
    if path.suffix == ".json" and not in_metadata:
        return "JsonData"
    if path.suffix == ".afm":
        return "FontMetrics"
    return None


def _headers() -> list[tuple[str, Path]]:
    spec = importlib.util.find_spec("torch")  # finds it without importing it
    if spec is None or spec.origin is None:
        return []
    root = Path(spec.origin).parent / "include"
    return [
        (f"torch/include/{path.relative_to(root).as_posix()}", path)
        for path in root.rglob("*")
        if path.suffix in (".h", ".hpp", ".cuh")
    ]


def _choose(files: Iterable[tuple[str, Path]], limit: int, seen: set[bytes]) -> list[tuple[str, str]]:
    """(relative path, text) in the order of the paths' hashes, up to `limit` bytes; `seen`: hashes of texts so far."""
    chosen = []
    room = limit
    for name, path in sorted(files, key=lambda item: hashlib.sha256(item[0].encode()).digest()):
        if room < SHORTEST:
            break
        text = _text(path)
        if text is None:
            continue
        size = len(text.encode())
        if not SHORTEST <= size <= min(LONGEST, room):
            continue
        digest = hashlib.sha256(" ".join(text.split()).encode()).digest()
        if digest not in seen:
            seen.add(digest)
            chosen.append((name, text))
            room -= size
    return chosen


def _text(path: Path) -> str | None:
    """The file's text; of a METADATA file the description below its header; None for what is no text."""
    try:
        if path.stat().st_size > 10 * LONGEST:
            return None
        text = path.read_bytes().decode("utf-8")
    except (OSError, UnicodeDecodeError):
        return None
    if "\0" in text or not text.strip():
        return None
    return text.partition("\n\n")[2] if path.name == "METADATA" else text


def _write(folder: Path, domain: str, documents: list[tuple[str, str]]) -> DomainText:
    """Split by the hash of the text, and write both files."""
    sizes = {name: len(text.encode()) for name, text in documents}
    total = sum(sizes.values())
    wanted = min(max(VAL_SHARE * total, VAL_BYTES), total / 3)
    val: set[str] = set()
    val_bytes = 0
    for name, _ in sorted(documents, key=lambda item: hashlib.sha256(item[1].encode()).digest()):
        if val_bytes >= wanted:
            break
        if val_bytes + sizes[name] <= min(2 * wanted, total / 2):  # a long document must not make it far too large
            val.add(name)
            val_bytes += sizes[name]
    for split in ("train", "val"):
        lines = [
            orjson.dumps({"text": text, "meta": {"pile_set_name": domain, "source": name}}) + b"\n"
            for name, text in documents
            if (name in val) == (split == "val")
        ]
        if not lines:
            continue  # a domain of one document is all train
        path = folder / split / f"{domain}.jsonl.zst"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(zstandard.ZstdCompressor(level=3, write_checksum=True).compress(b"".join(lines)))
    return DomainText(len(documents) - len(val), total - val_bytes, len(val), val_bytes)
