"""The live stream as its users see it: through loaders, in worlds of several ranks, stopped and resumed."""

import itertools
import json
import time

import numpy as np
import pytest
import torch
from streaming import Stream
from torch.utils.data import DataLoader

from mixkit.errors import UserError
from mixkit.stream import MixtureDataset
from tests.stream.worlds import place_of

GLOBAL_BATCH = 8
LAG = 4


def world(monkeypatch, ranks, rank, nodes=1):
    for name, value in place_of(nodes, ranks // nodes, rank).items():
        monkeypatch.setenv(name, value)


def open_dataset(entries, ranks=1, **more):
    streams = {name: Stream(**entry) for name, entry in entries.items()}
    settings = {"num_canonical_nodes": 4, "lag": LAG, "shuffle_seed": 3, **more}
    return MixtureDataset(streams=streams, batch_size=GLOBAL_BATCH // ranks, **settings)


def weights_of(step):
    """A recorded sequence of weights that swings, and drops a domain now and then."""
    weights = np.array([1.0 + np.sin(step), 1.0 + np.cos(0.7 * step), 0.0 if step % 5 == 0 else 0.4])
    return weights / weights.sum()


def train(dataset, steps, num_workers=0, live=True, start=0):
    """What a trainer does: prime, take a batch, publish; returns each batch's (domain, tokens) rows."""
    if live and not dataset.published:
        for step in range(LAG):
            dataset.publish(weights_of(step))
    loader = DataLoader(
        dataset, batch_size=dataset.batch_size, num_workers=num_workers, prefetch_factor=2 if num_workers else None
    )
    batches = []
    for step, batch in zip(range(start, start + steps), loader, strict=False):
        rows = [(int(d), *t) for d, t in zip(batch["domain"], batch["input_ids"].tolist(), strict=True)]
        batches.append(rows)
        if live:
            dataset.publish(weights_of(step + LAG))
    dataset.close()
    return batches


@pytest.mark.parametrize(
    ("nodes", "ranks_per_node", "workers"), [(1, 1, 2), (1, 2, 0), (2, 1, 2), (2, 2, 0), (4, 2, 0), (1, 4, 1)]
)
def test_the_same_global_batches_in_every_world(entries, monkeypatch, nodes, ranks_per_node, workers):
    expected = train(open_dataset(entries), 12)
    ranks = nodes * ranks_per_node
    shares = []
    for rank in range(ranks):
        world(monkeypatch, ranks, rank, nodes)
        shares.append(train(open_dataset(entries, ranks), 12, workers))
    assert [list(itertools.chain(*parts)) for parts in zip(*shares, strict=True)] == expected


@pytest.mark.parametrize(("stop", "ranks"), [(5, 1), (7, 2)])
def test_stopped_and_resumed_it_goes_on_with_the_next_batch(entries, monkeypatch, stop, ranks):
    expected = train(open_dataset(entries), 15)
    first = open_dataset(entries)
    assert train(first, stop, num_workers=2) == expected[:stop]
    state = json.loads(json.dumps(first.state_dict(stop * GLOBAL_BATCH, True)))
    shares = []
    for rank in range(ranks):
        world(monkeypatch, ranks, rank)
        resumed = open_dataset(entries, ranks)
        resumed.load_state_dict(state)
        assert resumed.published == stop + LAG  # what was published ahead is kept, nobody primes again
        shares.append(train(resumed, 15 - stop, start=stop))
    assert [list(itertools.chain(*parts)) for parts in zip(*shares, strict=True)] == expected[stop:]


def test_shares_follow_the_published_weights(entries):
    dataset = open_dataset(entries)
    batches = train(dataset, 60)
    promised = np.cumsum([dataset.shares(step) * GLOBAL_BATCH for step in range(60)], axis=0)
    drawn = np.cumsum([np.bincount([row[0] for row in batch], minlength=3) for batch in batches], axis=0)
    assert np.abs(promised - drawn).max() <= 1 + 1 / 2 + 1 / 3


def test_every_sequence_comes_once_in_a_pass(entries):
    name = "beta"
    dataset = open_dataset({name: entries[name]})
    samples = len(dataset._tokens[0])
    rows = list(itertools.chain(*train(dataset, -(-3 * samples // GLOBAL_BATCH), live=False)))
    # Each of the four canonical nodes makes its own passes over its quarter.
    node_of_slot = np.tile(np.repeat(np.arange(4), GLOBAL_BATCH // 4), len(rows) // GLOBAL_BATCH)
    for node in range(4):
        mine = [row for row, at in zip(rows, node_of_slot, strict=True) if at == node]
        length = (samples * (node + 1)) // 4 - (samples * node) // 4
        assert len(set(mine[:length])) == length
        assert set(mine[length : 2 * length]) == set(mine[:length])
        assert mine[length : 2 * length] != mine[:length]


def test_nobody_publishes_then_the_streams_proportions_hold(entries):
    batches = train(open_dataset(entries), 50, live=False)
    drawn = np.bincount([row[0] for batch in batches for row in batch])
    assert np.abs(drawn - 50 * GLOBAL_BATCH * np.array([0.5, 0.3, 0.2])).max() <= 1


def test_publishing_shows_in_the_streams(entries):
    dataset = open_dataset(entries)
    dataset.publish({"alpha": 1, "beta": 2, "gamma (en)": 1})
    assert [stream.proportion for stream in dataset.streams] == [0.25, 0.5, 0.25]


def test_iterating_before_the_lag_is_primed_is_an_error(entries):
    dataset = open_dataset(entries)
    dataset.publish([1, 1, 1])
    with pytest.raises(RuntimeError, match="must be published before"):
        next(iter(dataset))


def test_asking_in_the_main_process_for_weights_that_nobody_will_publish_is_an_error(entries):
    dataset = open_dataset(entries)
    for _ in range(LAG):
        dataset.publish([1, 1, 1])
    with pytest.raises(RuntimeError, match="have not been published"):
        list(itertools.islice(iter(dataset), GLOBAL_BATCH * (LAG + 1)))


def test_a_worker_waits_for_weights_and_close_frees_it(entries):
    dataset = open_dataset(entries)
    for _ in range(LAG):
        dataset.publish([1, 1, 1])
    loader = iter(DataLoader(dataset, batch_size=GLOBAL_BATCH, num_workers=1, prefetch_factor=2 * LAG))
    for _ in range(LAG):
        next(loader)
    time.sleep(0.3)
    dataset.publish([0, 0, 1])
    assert next(loader)["domain"].tolist() == [2] * GLOBAL_BATCH
    dataset.close()
    with pytest.raises(StopIteration):
        next(loader)


@pytest.mark.parametrize("bad", [[1, -1, 1], [0, 0, 0], [1, float("nan"), 1], [1, 1]])
def test_weights_that_cannot_be_are_refused(entries, bad):
    with pytest.raises(ValueError):
        open_dataset(entries).publish(bad)


def test_what_a_batch_holds(entries):
    batch = next(iter(DataLoader(open_dataset(entries), batch_size=GLOBAL_BATCH)))
    assert batch["input_ids"].dtype == batch["labels"].dtype == batch["domain"].dtype == torch.int64
    assert batch["input_ids"].shape == (GLOBAL_BATCH, 32)
    assert (batch["input_ids"] == batch["labels"]).all()


def test_canonical_nodes_that_do_not_fit_are_refused_naming_what_would_do(entries, monkeypatch):
    with pytest.raises(UserError, match=r"would do: 1, 2, 4, 8"):
        open_dataset(entries, num_canonical_nodes=3)
    world(monkeypatch, 4, 0, nodes=4)
    with pytest.raises(UserError, match=r"would do: 4, 8"):
        open_dataset(entries, 4, num_canonical_nodes=2)


def test_a_checkpoint_of_another_stream_is_refused(entries):
    state = open_dataset(entries).state_dict(0, True)
    with pytest.raises(UserError, match="shuffle_seed"):
        open_dataset(entries, shuffle_seed=4).load_state_dict(state)
    with pytest.raises(UserError, match="version"):
        open_dataset(entries).load_state_dict({**state, "version": 99})
    with pytest.raises(UserError, match="domains"):
        open_dataset({"beta": entries["beta"]}).load_state_dict(state)


def test_it_has_no_length(entries):
    with pytest.raises(TypeError):
        len(open_dataset(entries))
