"""Whole builds: what comes out of streaming is what went into the tokenizer, and what goes wrong is said."""

import fcntl
import json
import os
import shutil

import numpy as np
import pytest
import zstandard
from tokenizers import Tokenizer

from mixkit.errors import UserError, WorldError
from mixkit.shards.manifest import load_manifest

FOLDERS = {"Books": "Books", "Wikipedia (en)": "Wikipedia (en)", "../../etc/odd": "%2E.%2F..%2Fetc%2Fodd"}


def stream(folder, scratch):
    """All sequences that streaming reads from one domain and split, (n, seq_len), hashes checked.

    From a copy: streaming puts what it decompresses beside the shards.
    """
    from streaming import StreamingDataset

    shutil.copytree(folder, scratch)
    dataset = StreamingDataset(local=str(scratch), batch_size=1, validate_hash="xxh3_64")
    return np.stack([dataset[index]["tokens"] for index in range(len(dataset))])


def expected_rows(tokenizer, texts, seq_len):
    tokenizer.encode_special_tokens = True
    ids = [token for text in texts for token in [*tokenizer.encode(text).ids, 0]]
    whole = len(ids) // seq_len * seq_len
    return np.array(ids[:whole]).reshape(-1, seq_len), ids


@pytest.mark.parametrize("split", ["train", "val"])
@pytest.mark.parametrize("domain", sorted(FOLDERS))
def test_shards_hold_the_documents_of_their_domain_in_order(finished, tools, tmp_path, split, domain):
    out, manifest, _ = finished
    stats = manifest.domains[domain].splits[split]
    texts = tools.corpus[split][domain]
    rows, ids = expected_rows(Tokenizer.from_file(str(out / "tokenizer.json")), texts, 32)
    streamed = stream(out / manifest.domains[domain].folder / split, tmp_path / "copy")
    assert streamed.dtype == np.uint16
    assert (streamed == rows).all()
    assert ids.count(0) == len(texts)  # a document's end is nowhere but at its end
    assert stats.documents == len(texts)
    assert stats.text_bytes == sum(len(text.encode()) for text in texts)
    assert stats.tokens == len(ids)
    assert stats.sequences == stats.pack == len(rows)
    assert stats.dropped_tokens == len(ids) - rows.size
    assert stats.nopack > stats.pack and stats.rejected == {}


def test_the_folder_holds_nothing_else(finished):
    out, manifest, _ = finished
    assert {name: domain.folder for name, domain in manifest.domains.items()} == FOLDERS
    assert sorted(path.name for path in out.iterdir()) == sorted(
        [*FOLDERS.values(), "tokenizer.json", "shards.json", "rejected.jsonl"]
    )
    assert load_manifest(out) == manifest
    assert list(manifest.domains) == sorted(FOLDERS)
    index = json.loads((out / "Books" / "train" / "index.json").read_text())["shards"][0]
    assert (index["column_encodings"], index["compression"]) == (["ndarray:uint16:32"], "zstd:3")
    assert index["hashes"] == ["xxh3_64"]


def test_what_it_says_at_the_end(finished):
    out, _, printed = finished
    for words in ("Books", "Wikipedia (en)", "../../etc/odd", "total", "100.00%"):
        assert words in printed
    assert f"composer train yamls/reference.yaml shards={out}" in printed
    assert "warning" not in printed


def test_the_same_corpus_gives_the_same_bytes(finished, corpus, build, tools, tree, tmp_path):
    build(tools.make_recipe(corpus, tmp_path / "again"))
    assert tree(tmp_path / "again") == tree(finished[0])


def test_a_finished_output_is_left_alone(finished, corpus, build, tools):
    out, manifest, _ = finished
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*")}
    again, printed = build(tools.make_recipe(corpus, out))
    assert again == manifest and "finished already" in printed
    assert {path: path.stat().st_mtime_ns for path in out.rglob("*")} == before


def test_another_recipe_is_refused_by_key_and_overwrite_replaces(finished, corpus, build, tools, tree, tmp_path):
    out = tmp_path / "out"
    shutil.copytree(finished[0], out)
    (out / "scores" / "abc").mkdir(parents=True)
    with pytest.raises(UserError, match=r"seq_len: 32 then, 16 now.*overwrite=true"):
        build(tools.make_recipe(corpus, out, seq_len=16))
    assert (out / "scores").is_dir()
    one_domain = {"domain_from": "constant", "domain": "All", "seq_len": 16}
    manifest, _ = build(tools.make_recipe(corpus, out, overwrite=True, **one_domain))
    assert list(manifest.domains) == ["All"]
    names = ["All", "rejected.jsonl", "shards.json", "tokenizer.json"]  # the old domains and their scores are gone
    assert sorted(path.name for path in out.iterdir()) == names
    build(tools.make_recipe(corpus, tmp_path / "fresh", **one_domain))
    assert tree(out) == tree(tmp_path / "fresh")


@pytest.mark.parametrize("change", ["changed", "added", "removed"])
def test_another_input_is_refused_by_file(finished, corpus, build, tools, tmp_path, change):
    copy = tmp_path / "corpus"
    shutil.copytree(corpus, copy)
    out = tmp_path / "out"
    shutil.copytree(finished[0], out)
    manifest = json.loads((out / "shards.json").read_text())
    manifest["recipe"]["input"] = str(copy)
    (out / "shards.json").write_text(json.dumps(manifest))
    assert "finished already" in build(tools.make_recipe(copy, out))[1]
    name = {"changed": "train/01.jsonl.zst", "added": "train/09.jsonl.zst", "removed": "val/02.jsonl.zst"}[change]
    if change == "removed":
        (copy / name).unlink()
    else:
        (copy / name).write_bytes(zstandard.compress(b'{"text": "new", "meta": {"set": "Books"}}\n'))
    with pytest.raises(UserError, match=f"input file {name} of split"):
        build(tools.make_recipe(copy, out))


def test_another_tokenizer_under_the_same_path_is_refused(corpus, build, tools, tokenizer_file, tmp_path):
    own = tmp_path / "tokenizer.json"
    shutil.copy(tokenizer_file, own)
    recipe = tools.make_recipe(corpus, tmp_path / "out", tokenizer=str(own))
    build(recipe)
    assert "finished already" in build(recipe)[1]
    own.write_bytes(own.read_bytes() + b"\n")
    with pytest.raises(UserError, match=r"tokenizer: .*tokenizer\.json has changed"):
        build(recipe)


# -- bad documents ------------------------------------------------------------------------------------------------


@pytest.fixture
def spoilt(tmp_path, tools):
    """Two domains in plain files; 4 of the 144 records in train are bad, and there are 2 blank lines."""
    lines = [json.dumps({"text": text, "meta": {"set": "A"}}) for text in tools.prose(7, 100)]
    lines[10:10] = [
        '{"text": "cut',
        "",
        '{"text": null, "meta": {"set": "A"}}',
        '{"text": "x"}',
        "",
        '{"meta": {"set": "B"}}',
    ]
    root = tmp_path / "spoilt"
    (root / "train").mkdir(parents=True)
    (root / "train" / "a.jsonl").write_text("\n".join(lines) + "\n")
    more = [json.dumps({"text": text, "meta": {"set": "B"}}) for text in tools.prose(8, 40)]
    (root / "train" / "b.jsonl").write_text("\n".join(more) + "\n")
    return root


def test_bad_documents_are_counted_and_listed(spoilt, build, tools, tokenizer_file, tmp_path):
    recipe = tools.make_recipe(
        spoilt, tmp_path / "out", files={"train": "train/*"}, tokenizer=str(tokenizer_file), max_bad=0.05
    )
    manifest, printed = build(recipe)
    assert manifest.domains["A"].splits["train"].rejected == {"text is null": 1}
    assert manifest.domains["A"].splits["train"].documents == 100
    assert manifest.domains["B"].splits["train"].rejected == {"no text key": 1}
    assert manifest.no_domain == {"train": {"blank line": 2, "malformed JSON": 1, "no domain": 1}}
    listed = [json.loads(line) for line in (tmp_path / "out" / "rejected.jsonl").read_text().splitlines()]
    assert listed == [
        {"file": "train/a.jsonl", "line": 11, "reason": "malformed JSON"},
        {"file": "train/a.jsonl", "line": 13, "reason": "text is null", "domain": "A"},
        {"file": "train/a.jsonl", "line": 14, "reason": "no domain"},
        {"file": "train/a.jsonl", "line": 16, "reason": "no text key", "domain": "B"},
    ]
    assert "(no domain)" in printed


def test_too_many_of_them_fail_the_run_and_nothing_is_published(spoilt, build, tools, tokenizer_file, tmp_path):
    out = tmp_path / "out"
    recipe = tools.make_recipe(spoilt, out, files={"train": "train/*"}, tokenizer=str(tokenizer_file))
    with pytest.raises(WorldError, match=r"4 of 144 documents are bad .*max_bad=0\.01") as caught:
        build(recipe)
    assert [path.name for path in out.iterdir()] == [".partial"]
    assert str(out / ".partial" / "rejected.jsonl") in str(caught.value)
    assert (out / ".partial" / "rejected.jsonl").read_text().count("\n") == 4


def test_on_error_fail_stops_at_the_first(spoilt, build, tools, tokenizer_file, tmp_path):
    recipe = tools.make_recipe(
        spoilt, tmp_path / "out", files={"train": "train/*"}, tokenizer=str(tokenizer_file), on_error="fail"
    )
    with pytest.raises(WorldError, match=r"train/a\.jsonl:11: malformed JSON"):
        build(recipe)


def test_a_file_of_which_nothing_can_be_read_fails_the_run(corpus, build, tools, tokenizer_file, tmp_path):
    copy = tmp_path / "corpus"
    shutil.copytree(corpus, copy)
    (copy / "train" / "99.jsonl.zst").write_bytes(b"no zstd at all")
    out = tmp_path / "out"
    with pytest.raises(WorldError, match=r"train/99\.jsonl\.zst \(corrupt file\)"):
        build(tools.make_recipe(copy, out, tokenizer=str(tokenizer_file), max_bad=1.0))
    assert not (out / "shards.json").exists()


def test_a_truncated_file_gives_what_it_has_and_is_told_of(build, tools, tokenizer_file, tmp_path):
    lines = [(json.dumps({"text": text, "meta": {"set": "A"}}) + "\n").encode() for text in tools.prose(9, 200)]
    compressor = zstandard.ZstdCompressor().compressobj()
    blocks = [compressor.compress(line) + compressor.flush(zstandard.COMPRESSOBJ_FLUSH_BLOCK) for line in lines]
    (tmp_path / "x.jsonl.zst").write_bytes(b"".join(blocks[:150]))
    recipe = tools.make_recipe(tmp_path, tmp_path / "out", files={"train": "*.zst"}, tokenizer=str(tokenizer_file))
    manifest, printed = build(recipe)
    assert manifest.domains["A"].splits["train"].documents == 150
    assert [(entry.file, entry.reason, entry.documents) for entry in manifest.rejected_files] == [
        ("x.jsonl.zst", "truncated file", 150)
    ]
    assert "warning: x.jsonl.zst: truncated file after 150 documents" in printed


# -- domains and outputs ------------------------------------------------------------------------------------------


def test_an_empty_domain_is_named_and_nothing_stays(build, tools, tokenizer_file, tmp_path):
    tools.write_corpus(tmp_path / "c", {"train": {"Big": tools.prose(1, 50), "Tiny": ["a word"]}})
    out = tmp_path / "out"
    recipe = tools.make_recipe(tmp_path / "c", out, files={"train": "train/*"}, tokenizer=str(tokenizer_file))
    with pytest.raises(UserError, match="empty domain: the train text of Tiny .*seq_len=32"):
        build(recipe)
    assert not out.exists()


def test_what_cannot_be_evaluated_or_trained_on_is_told(build, tools, tokenizer_file, tmp_path):
    tools.write_corpus(
        tmp_path / "c",
        {
            "train": {"A": tools.prose(1, 50), "B": tools.prose(2, 50)},
            "val": {"A": ["too short"], "C": tools.prose(3, 50)},
        },
    )
    manifest, printed = build(tools.make_recipe(tmp_path / "c", tmp_path / "out", tokenizer=str(tokenizer_file)))
    for words in ("domain A has no sequence in split val", "domain B has no", "domain C is in split val only"):
        assert f"warning: {words}" in printed
    assert manifest.domains["A"].splits["val"].sequences == 0
    assert not (tmp_path / "out" / "A" / "val").exists()
    assert set(manifest.reference_counts()) == {"A", "B"}


def test_tokens_are_taken_as_they_are(build, tools, tokenizer_file, tmp_path):
    rows = [[5, 6, 7], [8, 9, 0], [5, 0, 6], [399] * 30]
    (tmp_path / "c").mkdir()
    (tmp_path / "c" / "D.jsonl").write_text("".join(json.dumps({"ids": row}) + "\n" for row in rows))
    keys = {
        "files": {"train": "*"}, "tokens": "ids", "domain_from": "file", "domain": None, "seq_len": 10,
        "tokenizer": str(tokenizer_file),
    }  # fmt: skip
    manifest, printed = build(tools.make_recipe(tmp_path / "c", tmp_path / "out", **keys))
    streamed = stream(tmp_path / "out" / "D" / "train", tmp_path / "copy").ravel().tolist()
    assert streamed == [5, 6, 7, 0, 8, 9, 0, 5, 0, 6, 0, *[399] * 29]
    stats = manifest.domains["D"].splits["train"]
    assert (stats.tokens, stats.text_bytes, stats.nopack) == (42, 0, 1 + 1 + 1 + 4)
    for wrong in (400, -1):
        (tmp_path / "c" / "D.jsonl").write_text(json.dumps({"ids": [1, wrong]}) + "\n")
        with pytest.raises(UserError, match=rf"D\.jsonl:1: token id {wrong} is outside the vocabulary \(0 to 399\)"):
            build(tools.make_recipe(tmp_path / "c", tmp_path / "other", **keys))


def test_an_output_folder_with_other_things_in_it_is_left_alone(corpus, build, tools, tmp_path):
    (tmp_path / "thesis.txt").write_text("mine")
    for overwrite in (False, True):
        with pytest.raises(UserError, match=r"holds thesis\.txt but no shards\.json"):
            build(tools.make_recipe(corpus, tmp_path, overwrite=overwrite))
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]
    with pytest.raises(UserError, match="is a file"):
        build(tools.make_recipe(corpus, tmp_path / "thesis.txt"))


def test_two_runs_into_one_output_do_not_mix(corpus, build, tools, tmp_path):
    handle = os.open(tmp_path, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        with pytest.raises(UserError, match="another run is writing"):
            build(tools.make_recipe(corpus, tmp_path))
    finally:
        os.close(handle)


def test_a_folder_that_cannot_be_written_to_is_told(corpus, build, tools):
    with pytest.raises(WorldError, match="/proc/.*nothing was published"):
        build(tools.make_recipe(corpus, "/proc/mixkit-shards"))


def test_a_key_with_a_value_per_document_is_no_domain(build, tools, tokenizer_file, tmp_path):
    tools.write_corpus(tmp_path / "c", {"train": {f"url {n}": ["a"] for n in range(1001)}})
    recipe = tools.make_recipe(
        tmp_path / "c", tmp_path / "out", files={"train": "train/*"}, tokenizer=str(tokenizer_file)
    )
    with pytest.raises(UserError, match="domain: meta.set gives more than 1000 domains"):
        build(recipe)
