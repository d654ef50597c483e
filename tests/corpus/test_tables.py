import os
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mixkit.corpus.files import Source, find_sources
from mixkit.corpus.readers import Document, Fields, read
from mixkit.corpus.recipe import Recipe
from mixkit.corpus.tables import check_columns
from mixkit.errors import UserError

ROOT = Path(__file__).resolve().parents[2]


def parquet(path, columns, **options):
    pq.write_table(pa.table(columns), path, **options)
    return path


def test_rows_nulls_and_a_struct_for_the_domain(tmp_path, read_file):
    meta = [{"set": "One"}, {"set": "Two"}, {"set": "One"}, None]
    path = parquet(
        tmp_path / "x.parquet", {"text": ["a", None, "", "d"], "meta": meta, "other": [1, 2, 3, 4]}, row_group_size=3
    )
    documents, rejected = read_file(path, "parquet", key="meta.set")
    assert [(document.text, document.domain, document.line) for document in documents] == [("a", "One", 0)]
    assert [(item.line, item.reason, item.domain) for item in rejected] == [
        (1, "text is null", "Two"),
        (2, "empty text", "One"),
        (3, "no domain", None),
    ]


def test_invalid_utf8_costs_only_its_row(tmp_path, read_file):
    raw = pa.array([b"good", b"caf\xe9", b"\xed\xa0\xbd", b"also"], pa.binary())
    text = pa.StringArray.from_buffers(4, raw.buffers()[1], raw.buffers()[2])
    documents, rejected = read_file(parquet(tmp_path / "x.parquet", {"text": text}), "parquet")
    assert [document.text for document in documents] == ["good", "also"]
    assert [(item.line, item.reason) for item in rejected] == [(1, "invalid UTF-8"), (2, "invalid UTF-8")]


def test_text_that_is_no_string_column(tmp_path, read_file):
    documents, rejected = read_file(parquet(tmp_path / "x.parquet", {"text": [1, 2]}), "parquet")
    assert documents == [] and {item.reason for item in rejected} == {"text is not a string"}


def test_a_missing_column_names_those_there_are(tmp_path, read_file):
    path = parquet(tmp_path / "x.parquet", {"id": [1], "body": ["b"]})
    source = Source("train", "x.parquet", path, "parquet", 1, "D")
    for complain in (lambda: check_columns(source, Fields("text", False, None)), lambda: read_file(path, "parquet")):
        with pytest.raises(UserError, match="x.parquet has no column text; its columns are id, body"):
            complain()
    assert len(read_file(path, "parquet", text="body")[0]) == 1


@pytest.mark.parametrize("damage", ["no footer", "broken page"])
def test_a_damaged_file_is_reported(tmp_path, read_file, damage):
    path = parquet(tmp_path / "x.parquet", {"text": [f"{n} " + "x" * 300 for n in range(2000)]}, row_group_size=500)
    data = bytearray(path.read_bytes())
    if damage == "no footer":
        data = data[: len(data) // 2]
    else:
        data[20:200] = bytes(180)
    path.write_bytes(data)
    documents, rejected = read_file(path, "parquet")
    assert [(item.reason, item.whole_file) for item in rejected] == [("corrupt file", True)]
    assert documents == []


def test_token_columns(tmp_path, read_file):
    ids = pa.array([[1, 2], None, [], [3, None]], pa.list_(pa.uint16()))
    documents, rejected = read_file(parquet(tmp_path / "x.parquet", {"input_ids": ids}), "parquet", tokens="input_ids")
    assert [document.tokens.tolist() for document in documents] == [[1, 2]]
    assert [item.reason for item in rejected] == [
        "tokens is null",
        "empty tokens",
        "tokens is not a list of integers",
    ]


@pytest.fixture
def saved(tmp_path):
    """A folder as `Dataset.save_to_disk` makes it, and one of a DatasetDict."""
    import datasets

    plain = datasets.Dataset.from_dict({"text": ["a", "b"], "n": [1, 2]})
    plain.save_to_disk(str(tmp_path / "Plain"))
    both = datasets.DatasetDict(
        train=datasets.Dataset.from_dict({"text": ["t"]}), val=datasets.Dataset.from_dict({"text": ["v"]})
    )
    both.save_to_disk(str(tmp_path / "Both"))
    (tmp_path / "unrelated").mkdir()
    return tmp_path


def hf_recipe(root, **keys):
    base = {
        "input": str(root),
        "files": {"train": "*", "val": "*"},
        "format": "hf_disk",
        "domain_from": "file",
        "tokenizer": "t.json",
        "seq_len": 8,
        "output": "out",
    }
    return Recipe.model_validate({**base, **keys})


def contents(recipe):
    return [
        (source.split, source.domain, item.text)
        for source in find_sources(recipe)
        for item in read(source, Fields.of(recipe), lambda size: None)
        if isinstance(item, Document)
    ]


def test_a_saved_dataset_dict_gives_each_split_its_entry(saved):
    recipe = hf_recipe(saved, files={"train": "*", "val": "Both"})
    assert contents(recipe) == [
        ("train", "Both", "t"),
        ("train", "Plain", "a"),
        ("train", "Plain", "b"),
        ("val", "Both", "v"),
    ]


def test_a_saved_dataset_without_the_column(saved):
    with pytest.raises(UserError, match="Both has no column body; its columns are text"):
        contents(hf_recipe(saved, text="body", files={"train": "Both"}))


def test_a_dataset_that_the_library_streams(tmp_path):
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "train.jsonl").write_text('{"text": "a", "set": "One"}\n{"text": "", "set": "Two"}\n')
    (tmp_path / "data" / "validation.jsonl").write_text('{"text": "v", "set": "Two"}\n')
    recipe = hf_recipe(
        tmp_path / "data",
        format="hf",
        files={"train": "train", "val": "validation"},
        domain_from="key",
        domain="set",
    )
    found = [
        (source.split, item.domain, getattr(item, "text", None))
        for source in find_sources(recipe)
        for item in read(source, Fields.of(recipe), lambda size: None)
    ]
    assert found == [("train", "One", "a"), ("train", "Two", None), ("val", "Two", "v")]


def test_a_hub_that_cannot_be_reached_is_told_at_once():
    """In a process of its own, since the client takes the hub's address once; here it is a closed port."""
    script = """
from mixkit.corpus.files import find_sources
from mixkit.corpus.readers import Fields, read
from mixkit.corpus.recipe import Recipe
from mixkit.errors import UserError
recipe = Recipe(input="some/dataset", files={"train": "train"}, format="hf", domain_from="constant", domain="D",
                tokenizer="t.json", seq_len=8, output="out")
try:
    list(read(find_sources(recipe)[0], Fields.of(recipe), lambda size: None))
except UserError as error:
    print(error)
"""
    environment = {**os.environ, "HF_ENDPOINT": "http://127.0.0.1:9", "HF_HUB_OFFLINE": "0"}
    run = subprocess.run(
        [sys.executable, "-c", script], env=environment, capture_output=True, text=True, timeout=60, cwd=ROOT
    )
    assert run.stdout.startswith("input: the dataset some/dataset cannot be had"), run.stderr
    assert "the hub cannot be reached" in run.stdout and "hf_disk" in run.stdout
    assert "Retrying" not in run.stderr
