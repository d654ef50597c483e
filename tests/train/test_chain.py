"""shards → reference → score → proxy → freeze → main, by real commands in real processes."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import yaml

from mixkit import Mixture
from mixkit.shards.manifest import load_manifest
from mixkit.train.runfolder import read_finished, read_weights
from tests.conftest import ROOT, command, train
from tests.train.conftest import STEPS, proxy_words, run_words


def metrics(run: Path) -> list[dict]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def test_a_run_folder_holds_what_docs_say(chain):
    for name in ("reference", "proxy", "main"):
        left = {path.name for path in (chain.runs / name).iterdir()}
        expected = {"config.yaml", "inputs.json", "finished.json", "metrics.jsonl", "model", "checkpoints"}
        assert left == expected | ({"weights.jsonl"} if name == "proxy" else set())
    finished = read_finished(chain.runs / "main")
    assert finished["batches"] == STEPS and finished["sequences"] == 8 * STEPS and finished["tokens"] == 256 * STEPS


def test_held_out_losses_are_logged_per_domain_with_average_and_worst(chain):
    rows = [row for row in metrics(chain.runs / "reference") if "metrics/eval/uniform_avg" in row]
    assert [row["batch"] for row in rows] == [20, STEPS]
    domains = list(load_manifest(chain.shards).domains)
    for row in rows:
        losses = [row[f"metrics/eval/{name}/LogPerplexity"] for name in domains]
        assert row["metrics/eval/uniform_avg"] == pytest.approx(np.mean(losses))
        assert row["metrics/eval/worst"] == max(losses)
    assert rows[1]["metrics/eval/uniform_avg"] < rows[0]["metrics/eval/uniform_avg"] < np.log(300)


def test_scores_are_the_models_own_losses_aligned_with_the_tokens(chain):
    import torch
    from streaming import Stream

    from mixkit.stream.heldout import DEFAULTS
    from mixkit.stream.shards import ShardReader
    from mixkit.train.model import load_model

    (folder,) = (chain.shards / "scores").iterdir()
    model = load_model(chain.runs / "reference" / "model", "fp32")
    manifest = load_manifest(chain.shards)
    for domain in manifest.domains.values():
        readers = [
            ShardReader(Stream(local=str(base / domain.folder), split="train"), DEFAULTS)
            for base in (chain.shards, folder)
        ]
        assert len(readers[0]) == len(readers[1]) == domain.splits["train"].sequences
        for number in (0, len(readers[0]) - 1):
            tokens = torch.from_numpy(readers[0][number]["tokens"].astype(np.int64))[None]
            with torch.no_grad():
                logits = model.model.lm_head(model.model.model(input_ids=tokens).last_hidden_state)
            expected = torch.nn.functional.cross_entropy(logits[0, :-1], tokens[0, 1:], reduction="none")
            scores = readers[1][number]["ref_loss"]
            assert scores.dtype == np.float16 and scores[0] == 0
            assert scores[1:] == pytest.approx(expected.numpy(), rel=2e-3)


def test_scoring_again_finds_all_done(chain):
    done = command("mixkit", "score", chain.runs / "reference")
    assert done.returncode == 0 and "nothing to do" in done.stdout


def test_the_frozen_file_is_the_mean_of_the_weights_and_streams_without_mixkit(chain, tmp_path):
    domains, history = read_weights(chain.runs / "proxy")
    assert len(history["batch"]) == STEPS
    mixture = Mixture.load(chain.runs / "mixture.yaml")
    mean = history["weight"].mean(axis=0)
    assert list(mixture.weights) == domains
    assert list(mixture.weights.values()) == pytest.approx(mean / mean.sum(), abs=1e-12)
    assert mixture.provenance["method"] == "doremi" and mixture.provenance["steps"] == STEPS
    script = """
import sys, yaml
from streaming import Stream, StreamingDataset
streams = yaml.safe_load(open(sys.argv[1]))["streams"]
dataset = StreamingDataset(streams=[Stream(**entry) for entry in streams.values()], batch_size=4, shuffle=True)
sample = next(iter(dataset))
print(sorted(m for m in sys.modules if m.startswith("mixkit")), len(dataset), sample["tokens"].shape)
"""
    # In a folder of its own, so that nothing of this checkout can be imported by accident.
    done = subprocess.run(
        [sys.executable, "-I", "-c", script, str(chain.runs / "mixture.yaml")],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    total = sum(domain.splits["train"].sequences for domain in load_manifest(chain.shards).domains.values())
    assert done.stdout.split() == ["[]", str(total), "(32,)"]


def test_the_main_run_draws_what_the_mixture_says(chain):
    weights = Mixture.load(chain.runs / "mixture.yaml").weights
    assert read_finished(chain.runs / "main")["sampling"] == pytest.approx(weights, abs=1e-12)
    config = yaml.safe_load((chain.runs / "main" / "config.yaml").read_text())
    assert config["train_loader"]["dataset"]["mixture"] == str(chain.runs / "mixture.yaml")


def test_a_finished_run_says_so(chain):
    before = (chain.runs / "reference" / "metrics.jsonl").read_bytes()
    done = command("composer", "train", "yamls/reference.yaml", *run_words(chain.shards, chain.runs / "reference"))
    assert done.returncode == 0 and "is finished" in done.stdout
    assert (chain.runs / "reference" / "metrics.jsonl").read_bytes() == before


def test_a_longer_run_goes_on_where_the_shorter_stopped(chain, tmp_path):
    import shutil

    shutil.copytree(chain.runs / "reference", tmp_path / "run", symlinks=True)
    # The folder moved, so the configuration inside it still names the old one; a user would not move it.
    path = tmp_path / "run" / "config.yaml"
    path.write_text(path.read_text().replace(str(chain.runs / "reference"), str(tmp_path / "run")))
    words = [word for word in run_words(chain.shards, tmp_path / "run") if not word.startswith("max_duration")]
    done = train("yamls/reference.yaml", *words, f"max_duration={STEPS + 10}ba")
    assert done.returncode == 0, done.stderr
    assert read_finished(tmp_path / "run")["batches"] == STEPS + 10
    batches = [row["batch"] for row in metrics(tmp_path / "run") if "loss/train/total" in row]
    assert batches == list(range(STEPS + 10))


def test_two_ranks_give_the_weights_of_one(chain):
    done = command("composer", "-n", "2", "train", "yamls/proxy.yaml", *proxy_words(chain.shards, chain.runs, "two"))
    assert done.returncode == 0, done.stdout + done.stderr
    one, two = (read_weights(chain.runs / name)[1] for name in ("proxy", "two"))
    assert np.array_equal(one["drawn"][:10], two["drawn"][:10])
    assert two["weight"] == pytest.approx(one["weight"], abs=1e-5)
    assert np.abs(one["weight"][-1] - 1 / 3).max() > 1e-3  # they moved
    assert read_finished(chain.runs / "two")["heldout_log_perplexity"] == pytest.approx(
        read_finished(chain.runs / "proxy")["heldout_log_perplexity"], abs=1e-4
    )


def test_two_nodes_give_the_weights_of_one(chain):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    words = proxy_words(chain.shards, chain.runs, "nodes")
    launcher = [str(Path(sys.executable).parent / "composer"), "--world_size", "2", "--nproc", "1"]
    place = ["--master_addr", "127.0.0.1", "--master_port", str(port)]
    nodes = [
        subprocess.Popen(
            [*launcher, "--node_rank", str(node), *place, "train", "yamls/proxy.yaml", *words],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for node in range(2)
    ]
    outputs = [node.communicate(timeout=300)[0] for node in nodes]
    assert [node.returncode for node in nodes] == [0, 0], "\n".join(outputs)
    one, two = (read_weights(chain.runs / name)[1] for name in ("proxy", "nodes"))
    assert np.array_equal(one["drawn"][:10], two["drawn"][:10])
    assert two["weight"] == pytest.approx(one["weight"], abs=1e-5)


def test_a_live_reference_gives_the_weights_of_its_scores(chain):
    words = proxy_words(chain.shards, chain.runs, "live", "algorithms.doremi.reference_losses=live")
    done = train("yamls/proxy.yaml", *words)
    assert done.returncode == 0, done.stdout + done.stderr
    scored, live = (read_weights(chain.runs / name)[1] for name in ("proxy", "live"))
    # The scores are float16, and in the end that moves a sequence from one batch to the next.
    same = (scored["drawn"] == live["drawn"]).all(axis=1).cumprod().sum()
    assert same > STEPS / 2
    assert live["weight"][:same] == pytest.approx(scored["weight"][:same], abs=1e-3)


def test_killed_and_started_again_it_ends_the_same(chain):
    words = proxy_words(chain.shards, chain.runs, "killed")
    program = [sys.executable, "train", "yamls/proxy.yaml", *words]
    # One process, so that the kill hits the trainer itself; its own session, so that no worker survives unseen.
    process = subprocess.Popen(program, cwd=ROOT, start_new_session=True, stderr=subprocess.DEVNULL)
    weights = chain.runs / "killed" / "weights.jsonl"
    deadline = time.monotonic() + 120
    while not (weights.exists() and weights.read_bytes().count(b"\n") >= 15):
        assert process.poll() is None and time.monotonic() < deadline, "the run ended before it could be killed"
        time.sleep(0.005)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert not (chain.runs / "killed" / "finished.json").exists()
    again = train("yamls/proxy.yaml", *words)
    assert again.returncode == 0, again.stderr
    assert weights.read_bytes() == (chain.runs / "proxy" / "weights.jsonl").read_bytes()
    ours, expected = read_finished(chain.runs / "killed"), read_finished(chain.runs / "proxy")
    assert ours["model_sha256"] == expected["model_sha256"]


def test_killed_after_its_last_checkpoint_it_only_finishes(chain, tmp_path):
    words = run_words(chain.shards, tmp_path / "run", "max_duration=10ba")
    assert train("yamls/reference.yaml", *words).returncode == 0
    finished, log = ((tmp_path / "run" / name) for name in ("finished.json", "metrics.jsonl"))
    before = finished.read_bytes(), log.read_bytes()
    finished.unlink()
    again = train("yamls/reference.yaml", *words)
    assert again.returncode == 0, again.stderr
    assert (finished.read_bytes(), log.read_bytes()) == before


def test_the_plot_is_a_picture(chain, tmp_path):
    done = command("mixkit", "plot", chain.runs / "proxy", "--out", tmp_path / "w.svg")
    assert done.returncode == 0, done.stderr
    picture = (tmp_path / "w.svg").read_text()
    assert picture.count("<path") > 10 and "alpha" in picture.lower()


def test_frozen_for_elsewhere(chain, tmp_path):
    out = tmp_path / "m.yaml"
    words = ["--remote", "s3://bucket/shards", "--cache", "cache", "--relative"]
    assert command("mixkit", "freeze", chain.runs / "proxy", "--out", out, *words).returncode == 0
    entry = Mixture.load(out).streams()["alpha"]
    assert entry["remote"] == "s3://bucket/shards/alpha" and entry["local"] == "cache/alpha"
