"""A recipe: the flat table of keys that says how one corpus becomes shards.

One recipe per corpus stands in pipelines/; every key can be overridden on the command line, so the same file serves
the corpus wherever it lies. What is checked here needs no look at the corpus itself.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Sequence
from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from mixkit.config import Schema, load_config
from mixkit.corpus.domains import PathPattern

Format = Literal["auto", "jsonl", "jsonl.zst", "jsonl.gz", "parquet", "text", "hf", "hf_disk"]

# A byte-level vocabulary holds the 256 bytes and the end-of-text token before its first merge.
SMALLEST_VOCABULARY = 257


class Recipe(Schema):
    """How a corpus is read, tokenised and written. Relative paths are relative to the current folder."""

    input: str = Field(min_length=1)  # folder, or the name of a dataset on the hub (format: hf)
    files: dict[str, str | list[str]]  # split → glob or globs below input; format hf: split → the hub's split
    format: Format = "auto"  # auto goes by the file's name
    text: str | None = None  # dotted key or column of the text; default text
    tokens: str | None = None  # instead of text: key or column of token ids
    domain_from: Literal["key", "file", "folder", "constant"]
    domain: str | None = None  # key: its dotted key; file, folder: a pattern with {domain}; constant: the name
    tokenizer: str = Field(min_length=1)  # hub name, tokenizer.json, folder that holds one, or train:N
    eos: str | None = None  # end-of-text token; default: the first known one that the tokenizer has
    seq_len: int = Field(ge=2)  # tokens
    passes: dict[str, float] = Field(default_factory=dict)  # domain → how often reference counts count it; default 1
    output: str = Field(min_length=1)
    on_error: Literal["skip", "fail"] = "skip"  # what a bad document does
    max_bad: float = Field(default=0.01, ge=0, le=1)  # a larger share of bad documents fails the run
    overwrite: bool = False  # replace shards of another recipe or input

    @property
    def field(self) -> str:
        """The dotted key of what is read from a record: the text, or the token ids where `tokens` is given."""
        return self.tokens or self.text or "text"

    @property
    def trained_vocabulary(self) -> int | None:
        """N of `tokenizer: train:N`; None for a tokenizer that exists already."""
        match = re.fullmatch(r"train:(\d+)", self.tokenizer)
        return int(match[1]) if match else None

    def globs(self, split: str) -> list[str]:
        """The globs of one split (for `format: hf` the one name of the hub's split)."""
        value = self.files[split]
        return [value] if isinstance(value, str) else list(value)

    @field_validator("files", mode="before")
    @classmethod
    def _leave_out(cls, files: Any) -> Any:
        """`files.val=null` on the command line takes a split out that the recipe has."""
        if not isinstance(files, dict):
            return files
        return {split: value for split, value in files.items() if value is not None}

    @field_validator("files")
    @classmethod
    def _check_files(cls, files: dict[str, str | list[str]]) -> dict[str, str | list[str]]:
        if "train" not in files:
            raise ValueError("a glob for the split train is missing, for example {train: 'train/*.jsonl'}")
        for split, value in files.items():
            if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_-]*", split):
                raise ValueError(f"no name for a split: {split!r} (letters, digits, - and _ are)")
            if not value or (isinstance(value, list) and "" in value):
                raise ValueError(f"split {split}: a glob is missing")
        return files

    @field_validator("tokenizer")
    @classmethod
    def _check_tokenizer(cls, tokenizer: str) -> str:
        if tokenizer.startswith("train:"):
            size = tokenizer.removeprefix("train:")
            if not size.isdigit() or int(size) < SMALLEST_VOCABULARY:
                raise ValueError(f"train:N wants a vocabulary of {SMALLEST_VOCABULARY} or more, for example train:8192")
        return tokenizer

    @field_validator("passes")
    @classmethod
    def _check_passes(cls, passes: dict[str, float]) -> dict[str, float]:
        for domain, count in passes.items():
            if not math.isfinite(count) or count <= 0:
                raise ValueError(f"domain {domain} wants a positive number of passes, found {count}")
        return passes

    @model_validator(mode="after")
    def _check_together(self) -> Recipe:
        if self.tokens is not None:
            if self.text is not None:
                raise ValueError("tokens: excludes text; give one of the two (text=null where a recipe sets it)")
            if self.trained_vocabulary is not None:
                raise ValueError("tokenizer: train:N needs text; with tokens, name the tokenizer that made them")
            if self.format == "text":
                raise ValueError("tokens: a text file holds none; leave tokens out or choose another format")
        if self.domain_from in ("key", "constant") and not self.domain:
            wanted = "the key that holds it" if self.domain_from == "key" else "the domain's name"
            raise ValueError(f"domain: is missing; domain_from: {self.domain_from} wants {wanted}")
        if self.domain_from in ("file", "folder"):
            if self.format == "hf":
                raise ValueError("domain_from: a hub dataset has no files of its own here; use key or constant")
            if self.domain is not None:
                try:
                    PathPattern(self.domain)
                except ValueError as error:
                    raise ValueError(f"domain: {error}") from None
        if self.domain_from == "key" and self.format == "text":
            raise ValueError("domain_from: a text file has no keys; use file, folder or constant")
        if self.format == "hf" and any(len(self.globs(split)) != 1 for split in self.files):
            raise ValueError("files: with format: hf each split names one split of the hub's dataset")
        return self


def load_recipe(path: str | os.PathLike[str], overrides: Sequence[str] = ()) -> Recipe:
    """Read the recipe at `path` with `key=value` words on top.

    Raises:
        UserError: names the file and the key.
    """
    return load_config(path, overrides, Recipe)
