from pathlib import Path

import pytest

from mixkit.corpus.files import find_sources
from mixkit.corpus.recipe import Recipe, load_recipe
from mixkit.errors import UserError

PIPELINES = Path(__file__).resolve().parents[2] / "pipelines"


def recipe(root, **keys):
    base = {"files": {"train": "*"}, "domain_from": "file", "tokenizer": "t.json", "seq_len": 8, "output": "out"}
    return Recipe.model_validate({**base, "input": str(root), **keys})


def make(root, *names):
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"{}\n")


def listed(found):
    return [(source.split, source.name, source.format, source.domain) for source in found]


def test_files_come_in_order_of_path_with_format_size_and_domain(tmp_path):
    make(tmp_path, "b.jsonl", "a.jsonl.zst", "c.parquet", "d.txt", "e.json.gz")
    found = find_sources(recipe(tmp_path))
    assert listed(found) == [
        ("train", "a.jsonl.zst", "jsonl.zst", "a"),
        ("train", "b.jsonl", "jsonl", "b"),
        ("train", "c.parquet", "parquet", "c"),
        ("train", "d.txt", "text", "d"),
        ("train", "e.json.gz", "jsonl.gz", "e"),
    ]
    assert found[0].size == 3


def test_a_file_that_val_names_is_not_trained_on(tmp_path):
    make(tmp_path, "c4/0.jsonl", "c4/1.jsonl", "arxiv/0.jsonl")
    found = find_sources(
        recipe(tmp_path, files={"train": "*/*", "val": "c4/0*"}, domain_from="folder", domain="{domain}/**")
    )
    assert listed(found) == [
        ("train", "arxiv/0.jsonl", "jsonl", "arxiv"),
        ("train", "c4/1.jsonl", "jsonl", "c4"),
        ("val", "c4/0.jsonl", "jsonl", "c4"),
    ]


@pytest.mark.parametrize(
    ("keys", "complaint"),
    [
        ({"files": {"train": "*.parquet"}}, r"files\.train: no file .* matches \*\.parquet"),
        ({"files": {"train": "*", "val": "a*", "test": "a.jsonl"}}, r"a\.jsonl is in two splits, val and test"),
        ({"files": {"train": "a*", "val": "*"}}, "nothing is left"),
        ({"files": {"train": "*.odd"}}, r"format: auto cannot tell what x\.odd is"),
        ({"files": {"train": "*.jsonl"}, "domain_from": "folder"}, r"a\.jsonl lies in no folder"),
        ({"input": "/nowhere/at/all"}, "/nowhere/at/all is no folder"),
        ({"input": "s3://bucket/x"}, "is a URL"),
    ],
)
def test_mistakes_are_named(tmp_path, keys, complaint):
    make(tmp_path, "a.jsonl", "x.odd")
    with pytest.raises(UserError, match=complaint):
        find_sources(recipe(tmp_path, **keys))


LAYOUTS = {
    "pile": (
        ["train/00.jsonl.zst", "train/29.jsonl.zst", "val.jsonl.zst", "test.jsonl.zst"],
        [("train", None), ("train", None), ("val", None)],
    ),
    "slimpajama": (
        ["train/chunk1/example_train_0.jsonl.zst", "validation/chunk1/example_holdout_0.jsonl.zst"],
        [("train", None), ("val", None)],
    ),
    "redpajama": (
        [
            "arxiv/arxiv_023827cd.jsonl",
            "c4/c4-train.00000-of-01024.jsonl",
            "common_crawl/2019-30/en_head_0000.json.gz.dedup.classifier.jsonl.zst",
            "wikipedia/wiki.jsonl",
        ],
        [("train", "arxiv"), ("train", "c4"), ("train", "common_crawl"), ("train", "wikipedia")],
    ),
    "local": (
        ["train/letters/1912/may.txt", "train/recipes/bread.txt", "val/recipes/soup.txt"],
        [("train", "letters"), ("train", "recipes"), ("val", "recipes")],
    ),
    "demo": (["train/A.jsonl.zst", "val/A.jsonl.zst"], [("train", None), ("val", None)]),
}


@pytest.mark.parametrize("name", sorted(LAYOUTS))
def test_the_recipes_fit_the_published_layouts(tmp_path, name):
    files, wanted = LAYOUTS[name]
    make(tmp_path, *files)
    found = find_sources(load_recipe(PIPELINES / f"{name}.yaml", [f"input={tmp_path}"]))
    assert [(source.split, source.domain) for source in found] == wanted
