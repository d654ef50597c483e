import json

import pytest
import zstandard

from mixkit.corpus.machine import LIMITS, LONGEST, SHORTEST, collect
from mixkit.errors import UserError

SMALL = {domain: limit // 4 for domain, limit in LIMITS.items()}


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    folder = tmp_path_factory.mktemp("machine") / "demo"
    return folder, collect(folder, SMALL)


def records(path):
    with open(path, "rb") as file:
        data = zstandard.ZstdDecompressor().stream_reader(file).read()
    return [json.loads(line) for line in data.splitlines()]


def test_there_are_enough_domains_and_they_are_unequal(demo):
    _, stats = demo
    assert len(stats) >= 6
    sizes = sorted(entry.train_bytes for entry in stats.values())
    assert sizes[-1] > 8 * sizes[0]
    for name, entry in stats.items():
        assert entry.train_bytes + entry.val_bytes <= SMALL[name]
        assert 0 < entry.val_bytes < entry.train_bytes


def test_the_layout_is_the_piles(demo):
    folder, stats = demo
    seen = set()
    for name, entry in stats.items():
        for split, documents, size in (
            ("train", entry.train_documents, entry.train_bytes),
            ("val", entry.val_documents, entry.val_bytes),
        ):
            rows = records(folder / split / f"{name}.jsonl.zst")
            sizes = [len(row["text"].encode()) for row in rows]
            assert (len(rows), sum(sizes)) == (documents, size)
            assert all(SHORTEST <= size <= LONGEST for size in sizes)
            for row in rows:
                assert row["meta"]["pile_set_name"] == name
                assert not row["meta"]["source"].startswith(("/", "."))
                normalised = " ".join(row["text"].split())
                assert normalised not in seen
                seen.add(normalised)


def test_the_choice_is_the_same_every_time(demo, tmp_path):
    folder, stats = demo
    again = tmp_path / "again"
    assert collect(again, SMALL) == stats
    for path in sorted(folder.rglob("*.zst")):
        assert path.read_bytes() == (again / path.relative_to(folder)).read_bytes()


def test_a_second_run_finds_it_done_and_other_folders_are_left_alone(demo, tmp_path):
    folder, stats = demo
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    assert collect(folder, SMALL) == stats
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == before
    with pytest.raises(UserError, match="another size"):
        collect(folder, LIMITS)
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(UserError, match="no demo corpus"):
        collect(tmp_path, SMALL)
