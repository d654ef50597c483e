"""Real launchers, real ranks, a real kill: what was trained on, sequence by sequence."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.conftest import ROOT
from tests.stream.test_dataset import open_dataset, train

LAUNCHER = Path(sys.executable).parent / "composer"


@pytest.fixture(scope="module")
def expected(entries):
    return [[list(row) for row in batch] for batch in train(open_dataset(entries), 30)]


def launch(*words) -> subprocess.Popen:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.Popen(
        [str(word) for word in (LAUNCHER, *words)],
        cwd=ROOT,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def finish(*processes: subprocess.Popen) -> None:
    outputs = [process.communicate(timeout=120)[0] for process in processes]
    assert not any(process.returncode for process in processes), "\n".join(outputs)


def trained_on(out: Path) -> dict[int, list]:
    """Batch number to its sequences, ranks in order."""
    ranks = [[json.loads(line) for line in path.read_text().splitlines()] for path in sorted(out.glob("rank*.jsonl"))]
    batches = {}
    for lines in zip(*ranks, strict=True):
        (number,) = {line["batch"] for line in lines}
        assert number not in batches
        batches[number] = [row for line in lines for row in line["rows"]]
    return batches


def test_two_ranks_train_on_what_one_would_and_a_second_fit_goes_on(shards, tmp_path, expected):
    """Composer's own default, to read and drop the first fit's batches in the second, is in force."""
    finish(launch("-n", "2", "tests/stream/record_run.py", shards, tmp_path, "--batches", 10, "--then", 4))
    assert trained_on(tmp_path) == dict(enumerate(expected[:14]))


def test_two_launchers_play_two_nodes(shards, tmp_path, expected):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    place = ["--world_size", 2, "--nproc", 1, "--master_addr", "127.0.0.1", "--master_port", port]
    finish(
        *(
            launch("--node_rank", node, *place, "tests/stream/record_run.py", shards, tmp_path, "--batches", 10)
            for node in range(2)
        )
    )
    assert trained_on(tmp_path) == dict(enumerate(expected[:10]))


def test_killed_on_one_rank_and_resumed_on_two(shards, tmp_path, expected):
    save = ["--save", tmp_path / "save", "--batches", 20]
    first = launch("-n", "1", "tests/stream/record_run.py", shards, tmp_path / "first", *save, "--slow", 0.05)
    log, deadline = tmp_path / "first" / "rank0.jsonl", time.monotonic() + 60
    while not (log.exists() and log.read_bytes().count(b"\n") >= 13):
        assert first.poll() is None and time.monotonic() < deadline
        time.sleep(0.01)
    os.killpg(first.pid, signal.SIGKILL)
    first.communicate()
    before = trained_on(tmp_path / "first")
    assert 13 <= len(before) < 20 and before == dict(enumerate(expected[: len(before)]))
    finish(launch("-n", "2", "tests/stream/record_run.py", shards, tmp_path / "second", *save))
    after = trained_on(tmp_path / "second")
    saved = len(before) // 5 * 5
    assert min(after) in (saved - 5, saved)  # the last checkpoint may have been on its way
    assert after == {number: expected[number] for number in range(min(after), 20)}
