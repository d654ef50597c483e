"""What all tests share: a tiny corpus of three unequal domains, its shards, and published figures where they are."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
GOLDEN = ROOT.parent / "shared" / "golden"

DOMAINS = {"alpha": 60, "beta": 25, "gamma (en)": 12}
"""Documents of each domain's train split."""
_WORDS = {
    "alpha": "the quick brown fox jumps over lazy dogs while rain falls on quiet hills and rivers run".split(),
    "beta": "def return class import self None True for while if else try except yield lambda with".split(),
    "gamma (en)": "der die das und nicht ein Gesetz Absatz Satz gilt Recht Amt Frist Antrag Bescheid".split(),
}


def write_corpus(folder: Path) -> None:
    """Lay out a corpus as the Pile is: SPLIT/*.jsonl, `meta.pile_set_name` names the domain."""
    rng = random.Random(7)
    for split, share in (("train", 1.0), ("val", 0.3)):
        (folder / split).mkdir(parents=True)
        for name, documents in DOMAINS.items():
            with open(folder / split / f"{name.split()[0]}.jsonl", "w", encoding="utf-8") as out:
                for _ in range(max(6, int(documents * share))):
                    text = " ".join(rng.choices(_WORDS[name], k=rng.randint(60, 160)))
                    out.write(json.dumps({"text": text, "meta": {"pile_set_name": name}}) + "\n")


@pytest.fixture(scope="session")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Shards of the tiny corpus: vocabulary 300, sequences of 32."""
    from rich.console import Console

    from mixkit.corpus.recipe import load_recipe
    from mixkit.shards.build import build_shards

    folder = tmp_path_factory.mktemp("tiny")
    write_corpus(folder / "corpus")
    words = [
        f"input={folder / 'corpus'}",
        "files.train=train/*.jsonl",
        "files.val=val/*.jsonl",
        "tokenizer=train:300",
        "seq_len=32",
        f"output={folder / 'shards'}",
    ]
    build_shards(load_recipe(ROOT / "pipelines" / "pile.yaml", words), Console(quiet=True))
    return folder / "shards"


@pytest.fixture
def golden() -> Path:
    """Published figures; only tests that compare with them are skipped where they are not."""
    if not GOLDEN.is_dir():
        pytest.skip("the published figures are not on this machine")
    return GOLDEN


def command(*words: str | Path) -> subprocess.CompletedProcess[str]:
    """Run a program of the project's environment as a user would."""
    return _run(Path(sys.executable).parent / str(words[0]), *words[1:])


def train(*words: str | Path) -> subprocess.CompletedProcess[str]:
    """What Composer's launcher starts, without the launcher: for tests where that is not the point."""
    return _run(sys.executable, "train", *words)


def _run(*words: str | Path) -> subprocess.CompletedProcess[str]:
    environment = {key: value for key, value in os.environ.items() if key not in ("RANK", "WORLD_SIZE")}
    return subprocess.run(
        [str(word) for word in words], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300
    )
