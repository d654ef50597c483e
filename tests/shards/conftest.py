"""Fixtures of the shard tests: a small corpus made on the spot, and builds of it.

Text is drawn from seeded random words, so sizes are known and every machine has the same bytes. A build loads
streaming (seconds, once a process); the finished shards of the plain corpus are shared by all tests that only read.
"""

from __future__ import annotations

import io
import json
import random
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import pytest
import zstandard
from rich.console import Console

from mixkit.corpus.recipe import Recipe
from mixkit.shards.build import build_shards
from mixkit.shards.manifest import Manifest

Texts = Mapping[str, Iterable[str]]

WORDS = [bytes(random.Random(n).choices(b"etaoinshrdlu", k=2 + n % 7)).decode() for n in range(400)]


def prose(seed: int, documents: int, longest: int = 120) -> list[str]:
    """`documents` texts of 1 to `longest` words."""
    rng = random.Random(seed)
    return [" ".join(rng.choices(WORDS, k=rng.randint(1, longest))) for _ in range(documents)]


CORPUS: dict[str, dict[str, list[str]]] = {
    "train": {
        "Books": prose(1, 300),
        "Wikipedia (en)": prose(2, 60),
        "../../etc/odd": ["The literal <|endoftext|> in a text.", "<|endoftext|>", *prose(3, 20)],
    },
    "val": {"Books": prose(4, 20), "Wikipedia (en)": prose(5, 20), "../../etc/odd": prose(6, 20)},
}


def write_corpus(root: Path, corpus: Mapping[str, Texts]) -> None:
    """ROOT/SPLIT/NN.jsonl.zst, one file per domain, the domain in meta.set."""
    for split, domains in corpus.items():
        (root / split).mkdir(parents=True, exist_ok=True)
        for number, (domain, texts) in enumerate(domains.items()):
            lines = "".join(json.dumps({"text": text, "meta": {"set": domain}}) + "\n" for text in texts)
            data = zstandard.ZstdCompressor().compress(lines.encode())
            (root / split / f"{number:02d}.jsonl.zst").write_bytes(data)


def make_recipe(root: Path, out: Path, **keys: Any) -> Recipe:
    base = {
        "input": str(root),
        "files": {"train": "train/*", "val": "val/*"},
        "domain_from": "key",
        "domain": "meta.set",
        "tokenizer": "train:400",
        "seq_len": 32,
        "output": str(out),
    }
    return Recipe.model_validate({**base, **keys})


@pytest.fixture(scope="session")
def build() -> Callable[[Recipe], tuple[Manifest, str]]:
    """build(recipe) → (manifest, what it printed)."""

    def run(recipe: Recipe) -> tuple[Manifest, str]:
        console = Console(file=io.StringIO(), width=200)
        manifest = build_shards(recipe, console)
        return manifest, console.file.getvalue()

    return run


@pytest.fixture(scope="session")
def corpus(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("corpus")
    write_corpus(root, CORPUS)
    return root


@pytest.fixture(scope="session")
def finished(corpus, build, tmp_path_factory) -> tuple[Path, Manifest, str]:
    """The plain corpus built once, to be read only: (folder, manifest, what was printed)."""
    out = tmp_path_factory.mktemp("finished") / "shards"
    manifest, printed = build(make_recipe(corpus, out))
    return out, manifest, printed


@pytest.fixture(scope="session")
def tokenizer_file(finished) -> Path:
    return finished[0] / "tokenizer.json"


@pytest.fixture(scope="session")
def tree() -> Callable[[Path], dict[str, bytes]]:
    """tree(folder) → relative path of every file, hidden ones too → its bytes."""

    def contents(folder: Path) -> dict[str, bytes]:
        files = (path for path in sorted(folder.rglob("*")) if path.is_file())
        return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}

    return contents


@pytest.fixture(scope="session")
def tools() -> Any:
    """The functions of this file, for tests that make corpora of their own."""

    class Tools:
        prose = staticmethod(prose)
        write_corpus = staticmethod(write_corpus)
        make_recipe = staticmethod(make_recipe)
        corpus = CORPUS

    return Tools
