"""The whole chain once, by the commands that README prints, on the tiny corpus; tests look at what it left."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.conftest import command

STEPS = 40
TINY = [
    "model.name=null",
    "model.n_layers=1",
    "model.n_heads=2",
    "model.d_model=16",
    "model.ffn=32",
    "global_train_batch_size=8",
    "optimizer.lr=0.01",
    "precision=fp32",
    f"max_duration={STEPS}ba",
    "eval_interval=20ba",
    "save_interval=10ba",
    "train_loader.num_workers=1",
]


def run_words(shards: Path, folder: Path, *more: str) -> list[str]:
    """The `key=value` words of a tiny run."""
    return [f"shards={shards}", f"run_folder={folder}", *TINY, *more]


def proxy_words(shards: Path, runs: Path, name: str, *more: str) -> list[str]:
    """The words of a tiny proxy run."""
    doremi = [f"algorithms.doremi.reference={runs / 'reference'}", "algorithms.doremi.act=stream"]
    return run_words(shards, runs / name, *doremi, *more)


@dataclass(frozen=True)
class Chain:
    """What the session's chain left: the shards, the folder of its runs, and each command's output."""

    shards: Path
    runs: Path
    output: dict[str, str]


@pytest.fixture(scope="session")
def chain(shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Chain:
    runs = tmp_path_factory.mktemp("runs")
    mixture = runs / "mixture.yaml"
    commands = {
        "reference": ["composer", "train", "yamls/reference.yaml", *run_words(shards, runs / "reference")],
        "score": ["mixkit", "score", runs / "reference"],
        "proxy": ["composer", "train", "yamls/proxy.yaml", *proxy_words(shards, runs, "proxy")],
        "freeze": ["mixkit", "freeze", runs / "proxy", "--out", mixture],
        "main": [
            "composer",
            "train",
            "yamls/main.yaml",
            *run_words(shards, runs / "main", f"train_loader.dataset.mixture={mixture}"),
        ],
    }
    output = {}
    for name, words in commands.items():
        done = command(*words)
        assert done.returncode == 0, f"{name}: {done.stdout}\n{done.stderr}"
        output[name] = done.stdout + done.stderr
    return Chain(shards, runs, output)
