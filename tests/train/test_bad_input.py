"""A user's mistakes: one message that names file and key, exit status 2, no traceback, nothing written."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

from mixkit.mixture import Mixture
from tests.conftest import ROOT, command, train
from tests.train.conftest import proxy_words, run_words


def refused(done: subprocess.CompletedProcess[str], *parts: str) -> None:
    assert done.returncode == 2, done.stdout + done.stderr
    assert "Traceback" not in done.stdout + done.stderr
    for part in parts:
        assert part in done.stderr


@pytest.mark.parametrize(
    ("words", "parts"),
    [
        (["optimizer.larning_rate=1"], ["yamls/reference.yaml", "optimizer.larning_rate: unknown key"]),
        (["max_duraton=5ba"], ["max_duraton: unknown key (did you mean max_duration?)"]),
        (["max_duration=1ep"], ["max_duration: write batches (4800ba)", "a mixture has no epochs"]),
        (["eval_interval=0.1dur"], ["eval_interval: write batches"]),
        (["save_interval=0ba"], ["save_interval: write batches"]),
        (["scheduler.t_warmup=6%"], ["scheduler.t_warmup: "]),
        (["scheduler.t_warmup=100tok"], ["scheduler.t_warmup 100tok is not in the unit of max_duration"]),
        (["optimizer.betas=[2,3]"], ["optimizer.betas."]),
        (["device_train_microbatch_size=0"], ["device_train_microbatch_size"]),
        (["parallelism_config.fsdpp.x=1"], ["parallelism_config.fsdpp"]),
        (["seed={"], ["yamls/reference.yaml"]),
        (["model.name=13m"], ["model: name '13m' is not a known size", "120m"]),
        (["shards=nowhere"], ["nowhere/shards.json: no such file", "mixkit shards"]),
        (["train_loader.dataset.mixture=gone.yaml"], ["train_loader.dataset.mixture: 'gone.yaml'", "mixkit freeze"]),
        (["train_loader.dataset.split=test"], ["train_loader.dataset.split", "has no split 'test'"]),
        (["eval_loader.split=test"], ["eval_loader.split", "no held-out sequences"]),
        (["device_train_microbatch_size=3"], ["device_train_microbatch_size: 3 does not divide"]),
        (["train_loader.dataset.num_canonical_nodes=3"], ["num_canonical_nodes: 3 does not divide"]),
        (["run_folder=README.md"], ["README.md: run_folder is a file"]),
        (["seed=minus one"], ["seed: ", "(found 'minus one')"]),
        (["loggers.nope={}"], ["loggers: there is no 'nope'; there are"]),
    ],
)
def test_a_mistake_in_the_configuration(shards, tmp_path, words, parts):
    done = train("yamls/reference.yaml", *run_words(shards, tmp_path / "run"), *words)
    refused(done, *parts)
    assert not (tmp_path / "run").exists()


def test_no_such_file_and_no_words():
    refused(train("yamls/none.yaml"), "yamls/none.yaml: no such file")
    assert train().returncode == 2


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ({"alpha": 1, "beta": 1}, "no weight for gamma (en)"),
        ({"alpha": 1, "beta": 1, "gamma (en)": 1, "delta": 1}, "no such domain in the shards: delta"),
        ({"alpha": -1, "beta": 1, "gamma (en)": 1}, "weights.alpha: a number of at least 0"),
        ({"alpha": float("nan"), "beta": 1, "gamma (en)": 1}, "weights.alpha: a number of at least 0"),
        ({"alpha": 0, "beta": 0, "gamma (en)": 0}, "all weights are 0"),
    ],
)
def test_weights_that_cannot_be(shards, tmp_path, weights, message):
    path = tmp_path / "m.yaml"
    entries = {name: {"remote": None, "local": f"/x/{name}", "split": "train"} for name in weights}
    Mixture(weights, entries).save(path)
    words = run_words(shards, tmp_path / "run", f"train_loader.dataset.mixture={path}")
    refused(train("yamls/main.yaml", *words), f"{path}: weights", message)
    assert not (tmp_path / "run").exists()


def test_a_proxy_without_a_reference_names_the_commands_that_make_one(shards, tmp_path):
    reference = tmp_path / "reference"
    words = run_words(shards, tmp_path / "run", f"algorithms.doremi.reference={reference}")
    done = train("yamls/proxy.yaml", *words)
    refused(done, f"{reference} is not there", "composer train yamls/reference.yaml", f"mixkit score {reference}")
    # It says so even before there are shards: on a fresh checkout that is the first thing to know.
    done = train("yamls/proxy.yaml", *words, "shards=nowhere")
    refused(done, f"{reference} is not there")


def altered_reference(chain, tmp_path: Path, **claims) -> Path:
    """A copy of the chain's reference whose finished.json claims something else."""
    other = tmp_path / "other"
    shutil.copytree(chain.runs / "reference", other, symlinks=True)
    finished = json.loads((other / "finished.json").read_text())
    (other / "finished.json").write_text(json.dumps({**finished, **claims}))
    return other


def test_another_references_scores_are_refused(chain, tmp_path):
    other = altered_reference(chain, tmp_path, model_sha256="0" * 64)
    words = run_words(chain.shards, tmp_path / "run", f"algorithms.doremi.reference={other}")
    refused(
        train("yamls/proxy.yaml", *words), f"has no losses of the reference {other}", "other models", "mixkit score"
    )


def test_scores_of_other_shards_are_refused(chain, tmp_path):
    shards = tmp_path / "shards"
    shutil.copytree(chain.shards, shards)
    index = shards / "alpha" / "train" / "index.json"
    index.write_text(index.read_text() + " ")
    refused(
        train("yamls/proxy.yaml", *proxy_words(shards, chain.runs, "not-made")), "does not hold the losses of 'alpha'"
    )


def test_a_reference_that_reads_another_tokenizer_is_refused(chain, tmp_path):
    other = altered_reference(chain, tmp_path, tokenizer_sha256="0" * 64)
    words = run_words(chain.shards, tmp_path / "run", f"algorithms.doremi.reference={other}")
    refused(train("yamls/proxy.yaml", *words), "was trained with another tokenizer")
    refused(command("mixkit", "score", other), "was trained with another tokenizer")


def test_a_tokenizer_that_is_not_the_shards_own_is_refused(shards, tmp_path):
    copy = tmp_path / "shards"
    shutil.copytree(shards, copy)
    (copy / "tokenizer.json").write_text("{}")
    refused(train("yamls/reference.yaml", *run_words(copy, tmp_path / "run")), "tokenizer.json", "not the tokenizer")


def test_an_old_run_folder_with_another_configuration_is_refused_naming_the_keys(chain):
    words = run_words(chain.shards, chain.runs / "reference", "seed=5", "optimizer.lr=0.5")
    before = (chain.runs / "reference" / "config.yaml").read_bytes()
    refused(train("yamls/reference.yaml", *words), "config.yaml", "optimizer.lr", "seed")
    assert (chain.runs / "reference" / "config.yaml").read_bytes() == before


def test_a_folder_that_is_no_run_is_not_written_into(shards, tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("words")
    refused(train("yamls/reference.yaml", *run_words(shards, tmp_path / "mine")), "is not empty and holds no run")
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["thesis.txt"]


def test_given_streams_are_checked(shards, tmp_path):
    streams = {"alpha": {"local": str(shards / "alpha"), "split": "train", "proportion": 1.0, "shuffle": True}}
    path = tmp_path / "r.yaml"
    path.write_text(
        yaml.safe_dump(
            {
                "include": str(ROOT / "yamls" / "reference.yaml"),
                "train_loader": {"dataset": {"streams": streams}},
            }
        )
    )
    done = train(path, *run_words(shards, tmp_path / "run"))
    refused(done, "train_loader.dataset.streams.alpha.shuffle: unknown key")


def test_given_streams_without_proportions_count_by_size(shards, tmp_path):
    from mixkit.config import load_config
    from mixkit.shards.manifest import load_manifest
    from mixkit.train.check import check_run
    from mixkit.train.config import RunConfig

    folders = {name: domain.folder for name, domain in load_manifest(shards).domains.items()}
    path = tmp_path / "r.yaml"
    streams = {name: {"local": str(shards / folder)} for name, folder in folders.items()}
    include = str(ROOT / "yamls" / "reference.yaml")
    path.write_text(yaml.safe_dump({"include": include, "train_loader": {"dataset": {"streams": streams}}}))
    plans = [
        check_run(load_config(file, run_words(shards, tmp_path / "run"), RunConfig), str(file)).train
        for file in (path, ROOT / "yamls" / "reference.yaml")
    ]
    given, proportional = ([entry["proportion"] for entry in plan.values()] for plan in plans)
    assert given == proportional
    assert all(entry["split"] == "train" for entry in plans[0].values())


@pytest.mark.parametrize("name", ["reference", "gone"])
def test_freezing_what_found_no_weights(chain, tmp_path, name):
    done = command("mixkit", "freeze", chain.runs / name, "--out", tmp_path / "m.yaml")
    refused(done, str(chain.runs / name))
    assert not (tmp_path / "m.yaml").exists()


def test_under_the_launcher_rank_0_speaks_for_all(shards, tmp_path):
    words = run_words(shards, tmp_path / "run", "max_duration=1ep")
    done = command("composer", "-n", "2", "train", "yamls/reference.yaml", *words)
    assert done.returncode == 2
    assert done.stderr.count("a mixture has no epochs") == 1
    assert "Traceback" not in done.stdout + done.stderr
    assert not (tmp_path / "run").exists()


def test_shards_that_are_not_whole_are_refused(chain, tmp_path):
    copy = tmp_path / "shards"
    shutil.copytree(chain.shards, copy)
    shutil.rmtree(copy / "beta" / "train")
    refused(train("yamls/reference.yaml", *run_words(copy, tmp_path / "run")), "beta/train/index.json: no such file")
    refused(
        train("yamls/proxy.yaml", *proxy_words(copy, chain.runs, "not-made")), "beta/train/index.json: no such file"
    )


def test_a_run_does_not_go_on_when_its_mixture_has_changed(chain, tmp_path):
    mixture = Mixture.load(chain.runs / "mixture.yaml")
    path = tmp_path / "m.yaml"
    mixture.save(path)
    words = run_words(chain.shards, tmp_path / "run", f"train_loader.dataset.mixture={path}", "max_duration=10ba")
    assert train("yamls/main.yaml", *words).returncode == 0
    Mixture(dict.fromkeys(mixture.weights, 1 / 3), mixture.entries).save(path)
    longer = [*words[:-1], "max_duration=20ba"]
    refused(train("yamls/main.yaml", *longer), "inputs.json", "other files stand behind its train_loader.dataset.alpha")


def test_a_mixture_whose_weights_and_streams_disagree_is_refused(chain, tmp_path):
    path = tmp_path / "m.yaml"
    text = (chain.runs / "mixture.yaml").read_text()
    content = yaml.safe_load(text)
    content["streams"]["alpha"]["proportion"] *= 2
    path.write_text(yaml.safe_dump(content))
    words = run_words(chain.shards, tmp_path / "run", f"train_loader.dataset.mixture={path}")
    refused(train("yamls/main.yaml", *words), "proportion is not what weights.")


def test_a_mixture_is_not_written_over_a_folder(chain, tmp_path):
    refused(command("mixkit", "freeze", chain.runs / "proxy", "--out", tmp_path), "is a folder")
    assert list(tmp_path.iterdir()) == []
