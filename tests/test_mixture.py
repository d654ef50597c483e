import subprocess
import sys

import pytest
import yaml

from mixkit import Mixture
from mixkit.errors import UserError
from mixkit.mixture import check_weights, shard_entry

ENTRIES = {name: {"remote": None, "local": f"/data/{name}", "split": "train"} for name in ("a", "Wikipedia (en)")}


def test_a_mixture_comes_back_as_it_was_saved(tmp_path):
    mixture = Mixture({"a": 0.25, "Wikipedia (en)": 0.75}, ENTRIES, {"method": "doremi"})
    mixture.save(tmp_path / "deep" / "mixture.yaml")
    assert Mixture.load(tmp_path / "deep" / "mixture.yaml") == mixture
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["mixture.yaml"]


def test_streams_are_what_streaming_takes(tmp_path):
    Mixture({"a": 0.25, "Wikipedia (en)": 0.75}, ENTRIES).save(tmp_path / "m.yaml")
    streams = yaml.safe_load((tmp_path / "m.yaml").read_text())["streams"]
    assert streams["a"] == {"remote": None, "local": "/data/a", "split": "train", "proportion": 0.25}
    assert streams == Mixture.load(tmp_path / "m.yaml").streams()


def test_with_a_remote_the_cache_is_a_folder_of_its_own():
    entry = shard_entry("/cache", "a", "train", "s3://bucket/shards/")
    assert entry == {"remote": "s3://bucket/shards/a", "local": "/cache/a", "split": "train"}


def test_weights_need_not_sum_to_one():
    assert check_weights({"b": 0.6, "a": 0.2}, ["a", "b"], "w") == {"a": pytest.approx(0.25), "b": pytest.approx(0.75)}


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ({"a": 1.0}, "no weight for b"),
        ({"a": 1.0, "b": 1.0, "c": 1.0}, "no such domain in the shards: c"),
        ({"a": -1.0, "b": 1.0}, r"w\.a: a number of at least 0"),
        ({"a": float("nan"), "b": 1.0}, r"w\.a: a number of at least 0"),
        ({"a": 0, "b": 0}, "all weights are 0"),
        ({"a": "much", "b": 1}, r"w\.a: a number"),
        ({"a": True, "b": 1}, r"w\.a: a number"),
        ([0.5, 0.5], "a table of domain to weight"),
        (None, "a table of domain to weight"),
    ],
)
def test_weights_that_cannot_be_are_refused_by_name(weights, message):
    with pytest.raises(UserError, match=message):
        check_weights(weights, ["a", "b"], "w")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("- 1\n", "is not a mixture file"),
        ("mixture_version: 7\n", "mixture_version: 7"),
        ("mixture_version: 1\nweights: {a: 1}\n", "streams: a table"),
        ("mixture_version: 1\nweights: {a: 1}\nstreams: {b: {local: x}}\n", "weights: no such domain in streams: a"),
        ("a: [", "is not readable as YAML"),
        ("!!python/object/apply:os.system [true]", "is not readable as YAML"),
    ],
)
def test_files_that_are_not_mixtures_are_refused(tmp_path, text, message):
    path = tmp_path / "m.yaml"
    path.write_text(text)
    with pytest.raises(UserError, match=message):
        Mixture.load(path)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(UserError, match=r"none\.yaml: No such file"):
        Mixture.load(tmp_path / "none.yaml")


def test_importing_mixkit_and_its_cli_loads_nothing_heavy():
    heavy = "{'torch', 'composer', 'streaming', 'transformers', 'datasets', 'numpy', 'pandas'}"
    code = f"import sys, mixkit, mixkit.mixture, mixkit.cli; print({heavy} & set(sys.modules))"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "set()"
