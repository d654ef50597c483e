"""The files that a recipe names, each with its split, format, size and (where the path tells) its domain.

The idea: everything that can be said without reading a document is settled and checked here, before any work starts,
and in one order (by path), so that the same corpus gives the same shards on every machine.
"""

from __future__ import annotations

import glob
import json
import os
from dataclasses import dataclass
from pathlib import Path

from mixkit.corpus.domains import PathPattern, parent, stem
from mixkit.corpus.recipe import Recipe
from mixkit.errors import UserError

_ENDINGS = (
    ((".zst",), "jsonl.zst"),
    ((".gz",), "jsonl.gz"),
    ((".jsonl", ".json", ".ndjson"), "jsonl"),
    ((".parquet",), "parquet"),
    ((".txt", ".text", ".md", ".rst"), "text"),
)


@dataclass(frozen=True, slots=True)
class Source:
    """One input of one split: a file, a `save_to_disk` folder, or a split of a hub dataset.

    `name` is the path below the recipe's `input` with `/` (what messages and the manifest call it); `size` is in
    bytes, 0 where the hub does not tell; `domain` is None where each document names its own.
    """

    split: str
    name: str
    path: Path
    format: str
    size: int
    domain: str | None


def find_sources(recipe: Recipe) -> list[Source]:
    """The inputs of `recipe`: split after split in the recipe's order, sorted by path within each.

    A file that the globs of train and of another split both name belongs to the other split: so a corpus without
    held-out files can name some, and train keeps the rest.

    Raises:
        UserError: no such folder, a glob without files, a file in two splits, a format or domain that the path does
            not tell.
    """
    if recipe.format == "hf":
        constant = recipe.domain if recipe.domain_from == "constant" else None
        return [
            Source(split, f"{recipe.input}/{recipe.globs(split)[0]}", Path(recipe.input), "hf", 0, constant)
            for split in recipe.files
        ]
    if "://" in recipe.input:
        raise UserError(f"input: {recipe.input} is a URL; a local or mounted folder is wanted")
    root = Path(recipe.input).expanduser()
    if not root.is_dir():
        raise UserError(f"input: {root} is no folder; name the corpus with input=FOLDER (make shards: INPUT=FOLDER)")
    found: dict[str, list[str]] = {split: _matches(root, recipe, split) for split in recipe.files}
    held_out: dict[str, str] = {}
    for split, names in found.items():
        for name in names if split != "train" else ():
            if name in held_out and not _is_dataset_dict(root / name):
                raise UserError(f"files: {name} is in two splits, {held_out[name]} and {split}")
            held_out[name] = split
    found["train"] = [name for name in found["train"] if name not in held_out or _is_dataset_dict(root / name)]
    if not found["train"]:
        raise UserError("files.train: every file that it matches is named by another split too; nothing is left")
    pattern = PathPattern(recipe.domain) if recipe.domain and recipe.domain_from in ("file", "folder") else None
    return [_source(root, recipe, split, name, pattern) for split, names in found.items() for name in names]


def _matches(root: Path, recipe: Recipe, split: str) -> list[str]:
    wanted = Path.is_dir if recipe.format == "hf_disk" else Path.is_file
    names: set[str] = set()
    for pattern in recipe.globs(split):
        for match in glob.glob(pattern, root_dir=root, recursive=True):
            if wanted(root / match):
                names.add(os.path.normpath(match).replace(os.sep, "/"))
    if recipe.format == "hf_disk":
        names = {name for name in names if _holds_split(root / name, split)}
    if not names:
        shown = ", ".join(recipe.globs(split))
        raise UserError(f"files.{split}: no {_kind(recipe)} in {root} matches {shown}")
    return sorted(names)


def _kind(recipe: Recipe) -> str:
    return "folder made by save_to_disk" if recipe.format == "hf_disk" else "file"


def _is_dataset_dict(folder: Path) -> bool:
    return (folder / "dataset_dict.json").is_file()


def _holds_split(folder: Path, split: str) -> bool:
    """Whether `folder` is a saved Dataset, or a saved DatasetDict with an entry for `split`."""
    if _is_dataset_dict(folder):
        try:
            return split in json.loads((folder / "dataset_dict.json").read_text())["splits"]
        except (ValueError, KeyError, TypeError):
            raise UserError(f"{folder}: dataset_dict.json is broken; save the dataset again") from None
    return (folder / "dataset_info.json").is_file() and (folder / "state.json").is_file()


def _source(root: Path, recipe: Recipe, split: str, name: str, pattern: PathPattern | None) -> Source:
    path = root / name
    form = recipe.format
    if form == "auto":
        form = _format_of(name)
        if form == "text" and recipe.domain_from == "key":
            raise UserError(f"domain_from: {name} is a text file and has no keys; use file, folder or constant")
        if form == "text" and recipe.tokens is not None:
            raise UserError(f"tokens: {name} is a text file and holds no token ids")
    if recipe.domain_from == "key":
        domain = None
    elif recipe.domain_from == "constant":
        domain = recipe.domain
    elif pattern is not None:
        domain = pattern.domain_of(name)
    elif form == "hf_disk":
        domain = Path(name).name  # the dataset is a folder: its own name, whichever of the two is asked for
    else:
        domain = stem(name) if recipe.domain_from == "file" else parent(name)
    return Source(split, name, path, form, _size(path), domain)


def _format_of(name: str) -> str:
    for endings, form in _ENDINGS:
        if name.lower().endswith(endings):
            return form
    raise UserError(f"format: auto cannot tell what {name} is; name the format (jsonl, parquet, text, …)")


def _size(path: Path) -> int:
    if path.is_dir():
        return sum(file.stat().st_size for file in path.rglob("*.arrow"))
    return path.stat().st_size
