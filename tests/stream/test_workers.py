"""Real loader processes: every way to start them, to keep them, and to end them."""

import os
import signal
import subprocess
import sys
import time

import pytest
import torch
from streaming import Stream, StreamingDataLoader
from torch.utils.data import DataLoader

from mixkit.stream import MixtureDataset
from mixkit.stream.loader import MixtureLoader
from tests.conftest import ROOT
from tests.stream.test_dataset import GLOBAL_BATCH, LAG, open_dataset, train, weights_of


@pytest.fixture(scope="module")
def expected(entries):
    return train(open_dataset(entries), 16)


def rows(batch):
    return [(int(d), *t) for d, t in zip(batch["domain"], batch["input_ids"].tolist(), strict=True)]


def take(loader, steps):
    """Take batches as a trainer does, publishing for each."""
    dataset, taken = loader.dataset, []
    for batch in loader:
        taken.append(rows(batch))
        dataset.publish(weights_of(dataset.published))
        if len(taken) == steps:
            return taken


def primed(entries, **settings):
    dataset = open_dataset(entries, **settings)
    for batch in range(LAG):
        dataset.publish(weights_of(batch))
    return dataset


@pytest.mark.parametrize("start", ["fork", "spawn", "forkserver"])
def test_every_way_to_start_workers(entries, expected, start):
    more = {"num_workers": 2, "multiprocessing_context": start}
    loader = StreamingDataLoader(primed(entries), batch_size=GLOBAL_BATCH, **more)
    assert take(loader, 8) == expected[:8]
    loader.dataset.close()


@pytest.mark.parametrize("make", [MixtureLoader, StreamingDataLoader, DataLoader])
@pytest.mark.parametrize(("workers", "persistent"), [(0, False), (2, False), (2, True)])
def test_iterated_again_it_goes_on(entries, expected, make, workers, persistent):
    size = {} if make is MixtureLoader else {"batch_size": GLOBAL_BATCH}
    loader = make(primed(entries), num_workers=workers, persistent_workers=persistent, **size)
    assert take(loader, 5) + take(loader, 1) + take(loader, 6) == expected[:12]
    loader.dataset.close()


def test_streaming_data_loader_saves_and_resumes(entries, expected):
    loader = StreamingDataLoader(primed(entries), batch_size=GLOBAL_BATCH, num_workers=2)
    assert take(loader, 5) == expected[:5]
    assert take(loader, 2) == expected[5:7]
    state = loader.state_dict()
    loader.dataset.close()
    assert state["planner"]["batch"] == 7
    resumed = StreamingDataLoader(open_dataset(entries), batch_size=GLOBAL_BATCH, num_workers=1)
    resumed.load_state_dict(state)
    assert take(resumed, 5) == expected[7:12]
    resumed.dataset.close()


def test_a_state_taken_before_its_row_was_published_and_iterated_again(entries, expected):
    loader, taken = StreamingDataLoader(primed(entries), batch_size=GLOBAL_BATCH), []
    for _ in range(2):
        for batch in loader:
            taken.append(rows(batch))
            loader.state_dict()
            loader.dataset.publish(weights_of(loader.dataset.published))
            if len(taken) % 4 == 0:
                break
    assert taken == expected[:8]


def test_a_look_into_the_loader_ends_nothing(entries, expected):
    loader, taken = MixtureLoader(primed(entries), num_workers=1), []
    for batch in loader:
        taken.append(rows(batch))
        loader.dataset.publish(weights_of(loader.dataset.published))
        assert rows(next(iter(loader))) == expected[len(taken)]
        if len(taken) == 4:
            break
    assert taken == expected[:4]
    loader.dataset.close()


def test_a_forked_child_that_ends_closes_nothing(entries):
    dataset = primed(entries)
    child = os.fork()
    if not child:
        dataset.close()
        os._exit(0)
    os.waitpid(child, 0)
    assert dataset._ring.closings == 0


def test_a_worker_that_comes_late_begins_with_the_others(entries, expected, monkeypatch):
    """Also one that persists, at its second iteration: the trainer is ahead by then."""
    begin = MixtureDataset.__iter__

    def late(dataset):
        info = torch.utils.data.get_worker_info()
        if info is not None and info.id == 1:
            time.sleep(0.4)
        return begin(dataset)

    monkeypatch.setattr(MixtureDataset, "__iter__", late)
    for persistent in (False, True):
        loader = MixtureLoader(primed(entries), num_workers=2, persistent_workers=persistent)
        assert take(loader, 5) + take(loader, 6) == expected[:11]
        loader.dataset.close()


def test_persistent_workers_follow_a_state_that_is_loaded(entries, expected):
    loader = MixtureLoader(primed(entries), num_workers=2, persistent_workers=True)
    take(loader, 3)
    state = loader.dataset.state_dict(3 * GLOBAL_BATCH, True)
    assert take(loader, 6) == expected[3:9]
    loader.dataset.load_state_dict(state)
    assert take(loader, 6) == expected[3:9]
    loader.dataset.load_state_dict({**state, "lag": LAG + 1})
    with pytest.raises(RuntimeError, match="make a new loader"):
        take(loader, 1)
    for worker in loader._iterator._workers:  # torch takes five seconds each for workers that failed
        worker.kill()


def test_what_travels_packed_is_what_a_plain_loader_gives(entries):
    plain = next(iter(DataLoader(open_dataset(entries), batch_size=GLOBAL_BATCH)))
    packed = next(iter(MixtureLoader(open_dataset(entries), num_workers=1)))
    assert list(plain) == list(packed) == ["input_ids", "labels", "domain"]
    for name, values in plain.items():
        assert values.dtype == packed[name].dtype and torch.equal(values, packed[name])
    packed["labels"][0, 0] = -100
    assert packed["input_ids"][0, 0] == plain["input_ids"][0, 0]


def test_a_scored_batch_travels_whole(entries, tmp_path):
    """Also where sequences times length is odd."""
    import numpy as np
    from streaming import MDSWriter

    rng, written = np.random.default_rng(0), {}
    for name, kind, column in (("tokens", "uint16", "tokens"), ("scores", "float16", "ref_loss")):
        written[name] = rng.integers(0, 300, (6, 5)).astype(kind)
        with MDSWriter(out=str(tmp_path / name), columns={column: f"ndarray:{kind}:5"}) as out:
            for row in written[name]:
                out.write({column: row})
    streams, scores = ({"only": Stream(local=str(tmp_path / name))} for name in written)
    dataset = MixtureDataset(streams=streams, scores=scores, batch_size=3, shuffle=False, num_canonical_nodes=1)
    batch = next(iter(MixtureLoader(dataset, num_workers=1)))
    assert batch["ref_loss"].dtype == torch.float32
    assert np.array_equal(batch["ref_loss"].numpy(), written["scores"][:3].astype(np.float32))
    assert np.array_equal(batch["input_ids"].numpy(), written["tokens"][:3])


PROGRAM = """
import multiprocessing, sys, time
from streaming import Stream, StreamingDataLoader
from mixkit.stream import MixtureDataset

if __name__ == "__main__":
    folder, start, then = sys.argv[1:]
    dataset = MixtureDataset(streams=[Stream(local=folder, split="train")], batch_size=4, lag=2, num_canonical_nodes=1)
    for _ in range(2):
        dataset.publish([1])
    more = {"num_workers": 2, "prefetch_factor": 4, "multiprocessing_context": start}
    loader = iter(StreamingDataLoader(dataset, batch_size=4, **more))
    for _ in range(2):
        next(loader)
    time.sleep(0.3)  # both workers now wait for weights
    print(*(child.pid for child in multiprocessing.active_children()), flush=True)
    if then == "exception":
        raise ValueError("as a trainer may")
    if then == "close":
        began = time.monotonic()
        dataset.close()
        del loader
        for child in multiprocessing.active_children():
            child.join()
        print(time.monotonic() - began, flush=True)
    if then == "wait":
        time.sleep(60)
"""


def alive(process: int) -> bool:
    try:
        with open(f"/proc/{process}/stat") as file:
            return file.read().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


def shared_memory() -> set[str]:
    return set(os.listdir("/dev/shm"))


@pytest.mark.parametrize(
    ("start", "then", "sent"),
    [
        ("fork", "exception", None),
        ("fork", "close", None),
        ("fork", "wait", signal.SIGTERM),
        ("fork", "wait", signal.SIGKILL),
        ("spawn", "wait", signal.SIGKILL),
        ("forkserver", "wait", signal.SIGKILL),
    ],
)
def test_nothing_is_left_however_it_ends(entries, tmp_path, start, then, sent):
    program = tmp_path / "program.py"
    program.write_text(PROGRAM)
    before = shared_memory()
    words = [sys.executable, program, entries["alpha"]["local"], start, then]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(words, env=environment, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    workers = [int(number) for number in process.stdout.readline().split()]
    assert len(workers) == 2
    if sent is not None:
        assert all(alive(worker) for worker in workers)
        process.send_signal(sent)
    rest = process.stdout.read()
    process.wait(timeout=30)
    ended = time.monotonic()
    while any(alive(worker) for worker in workers):
        assert time.monotonic() - ended < 20
        time.sleep(0.05)
    if then == "close":
        assert float(rest) < 4  # torch gives a blocked worker five seconds before it is killed
    assert shared_memory() <= before


def test_a_stream_that_is_dropped_frees_its_workers(entries):
    """After an error nobody may come to call `close`."""
    dataset = primed(entries)
    ring = dataset._ring
    assert ring.closings == 0
    del dataset
    import gc

    gc.collect()
    assert ring.closings == 1
