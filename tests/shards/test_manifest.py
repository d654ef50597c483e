import json
import subprocess
import sys
from pathlib import Path

import pytest

from mixkit.errors import UserError
from mixkit.shards.manifest import (
    DomainShards,
    Input,
    Manifest,
    RejectedFile,
    SplitStats,
    TokenizerInfo,
    load_manifest,
    save_manifest,
)

ROOT = Path(__file__).resolve().parents[2]


def stats(pack, nopack):
    return SplitStats(3, 100, 8 * pack + 1, pack, pack, nopack, 1, {"no text key": 2})


MANIFEST = Manifest(
    recipe={"passes": {"Wikipedia (en)": 3.0, "absent": 9.0}, "seq_len": 8},
    tokenizer=TokenizerInfo("ab" * 32, 400, "<|endoftext|>", 0),
    seq_len=8,
    domains={
        "Books": DomainShards("Books", {"train": stats(10, 14), "val": stats(2, 2)}),
        "Held": DomainShards("Held", {"val": stats(1, 1)}),
        "Wikipedia (en)": DomainShards("Wikipedia (en)", {"train": stats(4, 5)}),
    },
    inputs=[Input("train", "a.jsonl", 12)],
    no_domain={"train": {"malformed JSON": 1}},
    rejected_files=[RejectedFile("train", "a.jsonl", "truncated file", 3)],
)


def test_what_is_saved_comes_back(tmp_path):
    save_manifest(MANIFEST, tmp_path)
    assert load_manifest(tmp_path) == MANIFEST
    assert [path.name for path in tmp_path.iterdir()] == ["shards.json"]


def test_the_layout_that_others_read(tmp_path):
    save_manifest(MANIFEST, tmp_path)
    data = json.loads((tmp_path / "shards.json").read_text())
    assert data["format_version"] == 1
    assert list(data["domains"]) == ["Books", "Held", "Wikipedia (en)"]
    assert data["domains"]["Books"]["splits"]["train"] == {
        "documents": 3, "text_bytes": 100, "tokens": 81, "sequences": 10, "pack": 10, "nopack": 14,
        "dropped_tokens": 1, "rejected": {"no text key": 2},
    }  # fmt: skip
    assert data["tokenizer"] == {
        "sha256": "ab" * 32, "vocab_size": 400, "eos_token": "<|endoftext|>", "eos_id": 0
    }  # fmt: skip


def test_reference_counts_are_train_sequences_times_passes():
    assert MANIFEST.reference_counts() == {"Books": 10.0, "Wikipedia (en)": 12.0}
    assert MANIFEST.reference_counts("nopack") == {"Books": 14.0, "Wikipedia (en)": 15.0}


def test_a_missing_manifest_names_what_makes_it(tmp_path):
    with pytest.raises(UserError, match=r"shards\.json: no such file; mixkit shards"):
        load_manifest(tmp_path / "nowhere")


@pytest.mark.parametrize("text", ["{", "[]", "{}", '{"format_version": 2}', '{"format_version": 1}', "\x00"])
def test_a_broken_manifest_is_named(tmp_path, text):
    (tmp_path / "shards.json").write_text(text)
    with pytest.raises(UserError, match=r"shards\.json"):
        load_manifest(tmp_path)


def test_an_unknown_key_is_not_read_past(tmp_path):
    save_manifest(MANIFEST, tmp_path)
    data = json.loads((tmp_path / "shards.json").read_text())
    data["domains"]["Books"]["splits"]["train"]["surprise"] = 1
    (tmp_path / "shards.json").write_text(json.dumps(data))
    with pytest.raises(UserError, match="is broken"):
        load_manifest(tmp_path)


def test_importing_it_loads_nothing_heavy():
    script = "import sys, mixkit.shards.manifest; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=ROOT, check=True)
    heavy = {"torch", "streaming", "numpy", "pydantic", "tokenizers", "pyarrow", "rich", "omegaconf"}
    assert not heavy & set(loaded.stdout.split())


def test_importing_the_build_loads_neither_torch_nor_streaming():
    script = "import sys, mixkit.shards.build, mixkit.corpus.machine; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=ROOT, check=True)
    assert not {"torch", "streaming", "composer", "transformers", "datasets"} & set(loaded.stdout.split())
