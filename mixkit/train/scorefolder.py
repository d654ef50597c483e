"""Reference losses on disk: `OUT/scores/REFERENCE_HASH/DOMAIN/SPLIT`, MDS shards aligned with the token shards.

Column `ref_loss` is float16 of the sequence's length; place j holds the loss of predicting token j (place 0 holds 0).
`scores.json` beside the domains says which model, tokenizer and token shards they belong to.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from mixkit.errors import UserError
from mixkit.mixture import shard_entry
from mixkit.shards.manifest import Manifest
from mixkit.train.runfolder import file_sha256

ABOUT = "scores.json"
HASH_DIGITS = 16


def folder_of(shards: Path, model_sha256: str) -> Path:
    """Where the losses of the model with this hash stand."""
    return shards / "scores" / model_sha256[:HASH_DIGITS]


def index_sha256(shards: Path, domain_folder: str, split: str) -> str:
    """The hash of a token index: scores are aligned with exactly these shards."""
    return file_sha256(shards / domain_folder / split / "index.json")


def entries(
    shards: Path, manifest: Manifest, finished: dict[str, Any], run: Path, train: dict[str, dict[str, Any]]
) -> dict[str, dict[str, Any]]:
    """Stream entries of the reference losses for the streams `train`.

    Raises:
        UserError: no scores of this reference, or scores of other token shards.
    """
    folder = folder_of(shards, finished["model_sha256"])
    remedy = f"compute them with\n  mixkit score {run} --shards {shards}"
    if not (folder / ABOUT).is_file():
        others = sorted(path.parent.name for path in shards.glob(f"scores/*/{ABOUT}"))
        there = f" (there are those of {', '.join(others)}, other models)" if others else ""
        raise UserError(f"{shards}: has no losses of the reference {run}{there}; {remedy}")
    about = json.loads((folder / ABOUT).read_text(encoding="utf-8"))
    found = {}
    for name, entry in train.items():
        domain_folder, split = manifest.domains[name].folder, entry["split"]
        if about["token_shards"].get(name, {}).get(split) != index_sha256(shards, domain_folder, split):
            raise UserError(f"{folder}: does not hold the losses of {name!r} ({split}) as it is now; {remedy}")
        found[name] = shard_entry(folder, domain_folder, split)
    return found
