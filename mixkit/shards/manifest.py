"""`shards.json`: what a folder of shards holds, how it was made, and the counts that reference weights come from.

The idea: whoever uses shards (a run, `mixkit freeze`, a check of a config) reads this one small file and nothing else,
so this module loads in milliseconds and knows no torch.
"""

from __future__ import annotations

import dataclasses
import json
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from mixkit.errors import UserError

FORMAT_VERSION = 1
MANIFEST = "shards.json"
TOKENIZER = "tokenizer.json"
REJECTED = "rejected.jsonl"


@dataclass(frozen=True)
class SplitStats:
    """One domain's split. `text_bytes`: UTF-8 (0 for tokenised data); `tokens`: end-of-text ids included;
    `pack`/`nopack`: sequences with documents concatenated / each begun anew; `rejected`: reason → count."""

    documents: int
    text_bytes: int
    tokens: int
    sequences: int
    pack: int
    nopack: int
    dropped_tokens: int
    rejected: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class DomainShards:
    """One domain: the folder below the output, and its splits. A split without sequences has no folder."""

    folder: str
    splits: dict[str, SplitStats]


@dataclass(frozen=True)
class TokenizerInfo:
    """`sha256` is that of the bytes of tokenizer.json; ids lie in [0, vocab_size)."""

    sha256: str
    vocab_size: int
    eos_token: str
    eos_id: int


@dataclass(frozen=True)
class Input:
    """An input as it was read: the path below the recipe's `input`, and its size in bytes (0: not known)."""

    split: str
    file: str
    bytes: int


@dataclass(frozen=True)
class RejectedFile:
    """An input that could not be read to its end; `documents` were read before the fault."""

    split: str
    file: str
    reason: str
    documents: int


@dataclass(frozen=True)
class Manifest:
    """All of `shards.json`. Domains are in sorted order; `no_domain` counts, by split and reason, what was set aside
    without its domain being known; `recipe` leaves out `output` and `overwrite`, which do not shape the shards."""

    recipe: dict[str, Any]
    tokenizer: TokenizerInfo
    seq_len: int
    domains: dict[str, DomainShards]
    inputs: list[Input]
    no_domain: dict[str, dict[str, int]] = field(default_factory=dict)
    rejected_files: list[RejectedFile] = field(default_factory=list)
    format_version: int = FORMAT_VERSION

    def reference_counts(self, kind: Literal["pack", "nopack"] = "pack") -> dict[str, float]:
        """Sequences of split train times passes, by domain (those without a train split are left out)."""
        passes = self.recipe.get("passes", {})
        return {
            name: getattr(domain.splits["train"], kind) * passes.get(name, 1.0)
            for name, domain in self.domains.items()
            if "train" in domain.splits
        }


def load_manifest(folder: str | os.PathLike[str]) -> Manifest:
    """Read `folder`/shards.json.

    Raises:
        UserError: it is missing, broken, or of a format that this version does not know.
    """
    path = Path(folder) / MANIFEST
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        raise UserError(f"{path}: no such file; mixkit shards RECIPE output={folder} makes it") from None
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: is not readable ({error}); delete {folder} and run mixkit shards again") from None
    version = data.get("format_version") if isinstance(data, dict) else None
    if version != FORMAT_VERSION:
        raise UserError(f"{path}: format_version {version!r} is not known to this mixkit (it knows {FORMAT_VERSION})")
    try:
        domains = {
            name: DomainShards(
                domain["folder"], {split: SplitStats(**stats) for split, stats in domain["splits"].items()}
            )
            for name, domain in data.pop("domains").items()
        }
        return Manifest(
            tokenizer=TokenizerInfo(**data.pop("tokenizer")),
            domains=domains,
            inputs=[Input(**entry) for entry in data.pop("inputs")],
            rejected_files=[RejectedFile(**entry) for entry in data.pop("rejected_files")],
            **data,
        )
    except (KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{path}: is broken ({error}); delete {folder} and run mixkit shards again") from None


def save_manifest(manifest: Manifest, folder: str | os.PathLike[str]) -> None:
    """Write `folder`/shards.json in one step: a reader sees the whole file or none."""
    path = Path(folder) / MANIFEST
    text = json.dumps(dataclasses.asdict(manifest), indent=2, sort_keys=True, ensure_ascii=False)
    partial = path.with_name(f".{MANIFEST}.partial")
    partial.write_text(text + "\n", encoding="utf-8")
    os.replace(partial, path)
