"""The files that users start from: YAMLs, recipes, the Makefile, and the commands that README names."""

import re
import shutil
import subprocess

import pytest

from mixkit.config import load_config
from mixkit.corpus.recipe import load_recipe
from mixkit.train.config import RunConfig
from tests.conftest import ROOT, command

PARTS = ("common.yaml", "small.yaml")  # included by the others, no runs by themselves
RUN_FILES = sorted(path for path in (ROOT / "yamls").rglob("*.yaml") if path.name not in PARTS)


@pytest.mark.parametrize("path", RUN_FILES, ids=lambda path: f"{path.parent.name}-{path.stem}")
def test_every_run_file_is_a_run(path):
    load_config(path, (), RunConfig)


@pytest.mark.parametrize("path", sorted((ROOT / "pipelines").glob("*.yaml")), ids=lambda path: path.stem)
def test_every_recipe_is_a_recipe(path):
    load_recipe(path, [])


def test_the_defaults_are_the_published_120m_settings():
    config = load_config(ROOT / "yamls" / "proxy.yaml", (), RunConfig)
    assert config.model.size == (12, 12, 768, 3072)
    assert (config.global_train_batch_size, config.max_duration) == (512, "200000ba")
    assert (config.optimizer.lr, config.optimizer.betas, config.optimizer.eps) == (1e-3, (0.9, 0.99), 1e-8)
    assert config.optimizer.weight_decay == 0.01
    assert (config.scheduler.t_warmup, config.scheduler.alpha_f) == ("0.06dur", 0.1)
    assert config.algorithms.gradient_clipping.clipping_threshold == 1.0
    doremi = config.algorithms.doremi
    assert (doremi.eta, doremi.smoothing, doremi.act, doremi.burn_in) == (1.0, 1e-3, "loss", 0.0)
    assert config.train_loader.dataset.mixture == "uniform"


@pytest.mark.skipif(shutil.which("make") is None, reason="make is not on this machine")
def test_make_shards_passes_its_words_on():
    words = ["DATA=pile", "INPUT=../my corpus", "OUT=out", "TOKENIZER=train:8192", "SEQ_LEN=256"]
    done = subprocess.run(
        ["make", "--no-print-directory", "-n", "shards", *words], cwd=ROOT, capture_output=True, text=True, check=True
    )
    line = " ".join(done.stdout.replace("\\\n", " ").split())
    assert line.endswith(
        'mixkit shards pipelines/pile.yaml "input=../my corpus" "output=out" "tokenizer=train:8192" "seq_len=256"'
    )


def test_help_names_every_command_that_readme_names():
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    named = set(re.findall(r"`mixkit (\w+)", readme))
    done = command("mixkit", "--help")
    assert done.returncode == 0
    offered = set(re.findall(r"[│ ] (\w+) {2,}\S", done.stdout))
    assert named and named == offered


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["shards", "pipelines/none.yaml"], "pipelines/none.yaml: no such file"),
        (["shards", "pipelines/local.yaml", "sequence_length=5"], "sequence_length: unknown key"),
        (["score", "runs/none"], "the run runs/none is not there"),
        (["freeze", "runs/none", "--out", "x.yaml"], "runs/none: is not a run folder"),
        (["plot", "runs/none", "--out", "x.png"], "runs/none: holds no weights"),
    ],
)
def test_mistakes_at_the_command_line(words, message):
    done = command("mixkit", *words)
    assert done.returncode == 2
    assert message in done.stderr and "Traceback" not in done.stderr
