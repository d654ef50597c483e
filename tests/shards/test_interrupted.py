"""Runs that are killed: the same command afterwards gives the bytes of an undisturbed run."""

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

SCRIPT = """
import json, sys
from rich.console import Console
from mixkit.corpus.recipe import Recipe
from mixkit.shards.build import build_shards
build_shards(Recipe.model_validate(json.loads(sys.argv[1])), Console())
"""


def test_a_killed_process_leaves_nothing_half_made_and_the_rerun_is_the_same(
    build, tools, tree, tokenizer_file, tmp_path
):
    many = {f"D{n:02d}": tools.prose(n, 800) for n in range(24)}
    tools.write_corpus(tmp_path / "c", {"train": many})
    keys = {"files": {"train": "train/*"}, "tokenizer": str(tokenizer_file)}
    out = tmp_path / "out"
    recipe = tools.make_recipe(tmp_path / "c", out, **keys)
    process = subprocess.Popen([sys.executable, "-c", SCRIPT, recipe.model_dump_json()], cwd=ROOT)
    try:
        deadline = time.monotonic() + 60
        while not (out / ".partial" / "D03" / "train").exists():  # work on the shards has begun
            assert process.poll() is None and time.monotonic() < deadline
            time.sleep(0.001)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert process.returncode == -signal.SIGKILL
    assert [path.name for path in out.iterdir()] == [".partial"]
    build(recipe)
    build(tools.make_recipe(tmp_path / "c", tmp_path / "undisturbed", **keys))
    assert tree(out) == tree(tmp_path / "undisturbed")
    assert len(tree(out)) == 24 * 2 + 3


def test_what_an_earlier_run_left_half_made_does_not_get_in(finished, corpus, build, tools, tree, tmp_path):
    out = tmp_path / "out"
    for name in ("Books/train/shard.00000.mds.zstd", "Other/train/index.json", "rejected.jsonl", "tokenizer.json"):
        (out / ".partial" / name).parent.mkdir(parents=True, exist_ok=True)
        (out / ".partial" / name).write_text("half")
    build(tools.make_recipe(corpus, out))
    assert tree(out) == tree(finished[0])


@pytest.mark.parametrize("renamed", range(6))
def test_renames_that_a_kill_interrupted_are_finished(finished, corpus, build, tools, tree, tmp_path, renamed):
    """As if the process had died after `renamed` of the five entries were in place."""
    whole, manifest, _ = finished
    out = tmp_path / "out"
    shutil.copytree(whole, out / ".partial")
    entries = [*(domain.folder for domain in manifest.domains.values()), "tokenizer.json", "rejected.jsonl"]
    for name in entries[:renamed]:
        os.replace(out / ".partial" / name, out / name)
    _, printed = build(tools.make_recipe(corpus, out))
    assert "finished already" in printed
    assert tree(out) == tree(whole)


@pytest.mark.parametrize("retired", range(3))
def test_so_are_those_of_a_replacement(finished, corpus, build, tools, tree, tmp_path, retired):
    """As if the process had died while an older set, with one domain more and scores, was moved out of the way."""
    whole, _, _ = finished
    out = tmp_path / "out"
    shutil.copytree(whole, out)
    shutil.copytree(out / "Books", out / "Gone")
    text = (out / "shards.json").read_text()
    (out / "shards.json").write_text(
        text.replace('"Books": {', '"Gone": {"folder": "Gone", "splits": {}}, "Books": {', 1)
    )
    (out / "scores").mkdir()
    (out / "Books" / "train" / "index.json").write_text("of the older set")
    shutil.copytree(whole, out / ".partial")
    (out / ".partial" / "old").mkdir()
    for name in ["shards.json", "Gone"][:retired]:
        os.replace(out / name, out / ".partial" / "old" / name)
    build(tools.make_recipe(corpus, out))
    assert tree(out) == tree(whole)
    assert not (out / "scores").exists()
