"""Whether shards that are there already are those that a recipe asks for.

The idea: shards are what their recipe, their tokenizer and their input made of them, so these are what is compared;
the first thing that differs is named. Files are compared by name and size: reading terabytes to find that nothing
changed is no answer to a repeated command.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

from mixkit.corpus.files import Source
from mixkit.corpus.recipe import Recipe
from mixkit.shards.manifest import Input, Manifest
from mixkit.shards.tokenizer import tokenizer_file


def identity(recipe: Recipe) -> dict[str, Any]:
    """The keys that shape the shards."""
    return recipe.model_dump(mode="json", exclude={"output", "overwrite"})


def inputs(sources: Sequence[Source]) -> list[Input]:
    return [Input(source.split, source.name, source.size) for source in sources]


def differences(done: Manifest, recipe: Recipe, sources: Sequence[Source]) -> list[str]:
    """What keeps finished shards from being those of `recipe` over `sources`; empty when nothing does."""
    new, old = identity(recipe), done.recipe
    found = [f"{key}: {old.get(key)!r} then, {new.get(key)!r} now" for key in new if new[key] != old.get(key)]
    if found:
        return found
    if recipe.trained_vocabulary is None and (path := tokenizer_file(recipe.tokenizer)) is not None:
        if hashlib.sha256(path.read_bytes()).hexdigest() != done.tokenizer.sha256:
            return [f"tokenizer: {path} has changed"]
    then = {(entry.split, entry.file): entry.bytes for entry in done.inputs}
    now = {(entry.split, entry.file): entry.bytes for entry in inputs(sources)}
    for split, file in sorted(then.keys() | now.keys()):
        before, after = then.get((split, file)), now.get((split, file))
        if before != after:
            what = (
                "is new" if before is None else "is gone" if after is None else f"has {after:,} bytes, had {before:,}"
            )
            return [f"input file {file} of split {split} {what}"]
    return []


def _bytes(size: int | None) -> str:
    return "not there" if size is None else f"{size:,} bytes"
