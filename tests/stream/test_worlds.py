"""The same global batches whatever the hardware, and after any stop: random worlds, weights and stop points."""

import tempfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from streaming.base.world import World

from mixkit.errors import UserError
from tests.stream.worlds import index_only, open_indexes, play, rank_of

GLOBAL_BATCH, CANONICAL = 96, 16
SIZES = {"big": [40, 40, 40, 40, 40, 17], "middle": [30, 9], "small": [5], "tiny": [3, 0, 4]}


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("indexes")
    return {name: index_only(root / name, sizes) for name, sizes in SIZES.items()}


def maker(folders, **settings):
    def make(ranks):
        given = {"num_canonical_nodes": CANONICAL, "lag": 5, "shuffle_seed": 11, "shuffle_block_size": 24, **settings}
        return open_indexes(folders, GLOBAL_BATCH // ranks, **given)

    return make


def swinging(batch):
    weights = np.array([1.0 + np.sin(batch), 0.5, 0.3 if batch % 7 else 0.0, 0.02])
    return weights / weights.sum()


WORLDS = [(1, 1, 0), (1, 1, 2), (1, 2, 1), (2, 1, 2), (2, 2, 0), (4, 8, 3), (16, 1, 1)]


@pytest.fixture(scope="module")
def expected(folders):
    return play(maker(folders), (1, 1, 0), swinging, range(40))[0]


@pytest.mark.parametrize("world", WORLDS)
def test_the_same_global_batches_in_every_world(folders, expected, world):
    assert play(maker(folders), world, swinging, range(40))[0] == expected


@pytest.mark.parametrize(("stop", "before", "after"), [(13, (4, 8, 3), (1, 1, 2)), (1, (1, 1, 0), (2, 2, 1))])
def test_the_same_after_a_stop_on_other_hardware(folders, expected, stop, before, after):
    first, datasets = play(maker(folders), before, swinging, range(stop))
    states = [dataset.state_dict(stop * GLOBAL_BATCH, True) for dataset in datasets]
    assert all(state == states[0] for state in states)  # any rank may write the checkpoint
    again, _ = play(maker(folders), after, swinging, range(stop, 40), states[0])
    assert first + again == expected


@settings(max_examples=25, deadline=None)
@given(st.data())
def test_random_worlds_weights_and_stops(data):
    sizes = data.draw(st.lists(st.lists(st.integers(1, 30), min_size=1, max_size=4), min_size=1, max_size=5))
    nodes, ranks_per_node = data.draw(st.sampled_from([(1, 1), (1, 2), (1, 4), (2, 1), (2, 2), (4, 1), (4, 2)]))
    workers = data.draw(st.integers(0, 3))
    canonical = nodes * data.draw(st.sampled_from([1, 2, 3]))
    batch = int(np.lcm(canonical, nodes * ranks_per_node)) * data.draw(st.sampled_from([1, 2]))
    seed, stop = data.draw(st.integers(0, 2**31)), data.draw(st.integers(0, 12))
    live, shuffle = data.draw(st.booleans()), data.draw(st.booleans())
    block, lag = data.draw(st.integers(1, 40)), data.draw(st.integers(1, 6))
    rng = np.random.default_rng(seed)
    rows = rng.dirichlet(np.full(len(sizes), 0.5), size=30)
    rows[:, 0] += 1e-3  # never all zero
    rows[rng.random(rows.shape) < 0.2] = 0
    rows[rows.sum(axis=1) == 0, 0] = 1

    def weights(number):
        return rows[number]

    with tempfile.TemporaryDirectory() as root:
        folders = {str(n): index_only(Path(root) / str(n), of_domain) for n, of_domain in enumerate(sizes)}

        def make(ranks):
            settings = {"num_canonical_nodes": canonical, "lag": lag, "shuffle_seed": seed, "shuffle": shuffle}
            return open_indexes(folders, batch // ranks, shuffle_block_size=block, **settings)

        published = weights if live else None
        straight, _ = play(make, (1, 1, 0), published, range(20))
        world = (nodes, ranks_per_node, workers)
        first, datasets = play(make, world, published, range(stop))
        state = datasets[0].state_dict(stop * batch, True)
        again, _ = play(make, (1, 1, 0), published, range(stop, 20), state)
        assert first + again == straight
        counted = np.zeros(len(sizes))
        for global_batch in straight:
            assert len(global_batch) == batch
            counted += np.bincount([domain for domain, _ in global_batch], minlength=len(sizes))
        promised = batch * (rows[:20].T / rows[:20].sum(axis=1)).sum(axis=1) if live else 20 * batch / len(sizes)
        harmonic = sum(1 / n for n in range(1, len(sizes) + 1))
        assert np.abs(counted - promised).max() <= harmonic + 20 * batch * len(sizes) * 2**-20


def test_a_domain_that_comes_back_goes_on_where_it_stopped(folders):
    def weights(batch):
        return np.array([1.0, 1.0, 0.0 if 5 <= batch < 20 else 1.0, 0.0])

    batches, _ = play(maker(folders, num_canonical_nodes=1), (1, 1, 0), weights, range(30))
    small = [sample for batch in batches for domain, sample in batch if domain == 2]
    assert not any(domain == 2 for batch in batches[5:20] for domain, _ in batch)
    for first in range(0, len(small) - 4, 5):  # pass after pass, each sample once, none skipped in between
        assert sorted(small[first : first + 5]) == [0, 1, 2, 3, 4]


def test_every_sample_once_in_a_pass_and_no_pass_like_the_last(folders):
    batches, datasets = play(maker(folders, num_canonical_nodes=1), (1, 1, 0), None, range(60))
    drawn = [sample for batch in batches for domain, sample in batch if domain == 1]
    size = sum(SIZES["middle"])
    passes = [drawn[first : first + size] for first in range(0, len(drawn) - size + 1, size)]
    assert len(passes) > 10
    assert all(sorted(one) == list(range(size)) for one in passes)
    assert len({tuple(one) for one in passes}) == len(passes)
    datasets[0].seek(60)
    assert datasets[0].passes()["middle"] == pytest.approx(len(drawn) / size)


@pytest.mark.parametrize("nodes", [2, 4, 8])
def test_a_node_reads_its_own_share_of_the_shards(folders, nodes):
    """± one shard at its borders; domains with fewer samples than canonical nodes are shared whole."""
    reads = [set() for _ in range(nodes)]
    batches, _ = play(maker(folders), (nodes, 1, 0), swinging, range(80))
    ends = np.cumsum(SIZES["big"])
    for batch in batches:
        for node in range(nodes):
            share = batch[node * GLOBAL_BATCH // nodes : (node + 1) * GLOBAL_BATCH // nodes]
            reads[node] |= {sample for domain, sample in share if domain == 0}
    assert sorted(sample for read in reads for sample in read) == list(range(ends[-1]))  # disjoint and whole
    for node, read in enumerate(reads):
        touched = set(np.searchsorted(ends, sorted(read), side="right"))
        first, last = np.searchsorted(ends, [ends[-1] * node // nodes, ends[-1] * (node + 1) // nodes - 1], "right")
        assert touched == set(range(first, last + 1))
        assert len(touched) <= len(ends) / nodes + 2


@pytest.mark.parametrize(("nodes", "ranks_per_node", "same"), [(1, 4, 2), (2, 4, 4), (2, 2, 4), (2, 4, 2)])
def test_replicated_ranks_read_the_same(folders, expected, nodes, ranks_per_node, same):
    world, groups = (nodes, ranks_per_node, 1), nodes * ranks_per_node // same

    def make(ranks):
        return open_indexes(
            folders,
            GLOBAL_BATCH // groups,
            num_canonical_nodes=CANONICAL,
            lag=5,
            shuffle_seed=11,
            shuffle_block_size=24,
            replication=same,
        )

    batches, datasets = play(make, world, swinging, range(12))
    size = GLOBAL_BATCH // groups
    for batch, whole in zip(batches, expected[:12], strict=True):
        for rank in range(nodes * ranks_per_node):
            group = rank // same
            assert batch[rank * size : (rank + 1) * size] == whole[group * size : (group + 1) * size]
    assert datasets[0].global_batch_size == GLOBAL_BATCH


def test_a_replication_that_does_not_fit_is_refused(folders):
    with rank_of(1, 4, 0), pytest.raises(UserError, match="replication: 3"):
        open_indexes(folders, 8, replication=3)


def test_state_is_kilobytes_and_plain(folders):
    import json

    names = {f"domain {number}": folders["big"] for number in range(22)}
    dataset = open_indexes(names, 512, num_canonical_nodes=64)
    dataset.seek(2000)
    text = json.dumps(dataset.state_dict(2000 * 512, True))
    assert len(text) < 20_000
    assert json.loads(text)["version"] == 2


def test_asked_from_the_last_iter_or_from_the_beginning_it_is_the_same_state(folders):
    """StreamingDataLoader counts from the last `iter`, Composer from the start of the run."""
    _, (dataset,) = play(maker(folders), (1, 1, 0), swinging, range(7))
    state = dataset.state_dict(7 * GLOBAL_BATCH, True)
    assert dataset.state_dict(7 * GLOBAL_BATCH, False) == state
    _, (resumed,) = play(maker(folders), (1, 1, 0), swinging, range(7, 10), state)
    assert resumed.state_dict(3 * GLOBAL_BATCH, False) == resumed.state_dict(10 * GLOBAL_BATCH, True)
    assert resumed.state_dict(3 * GLOBAL_BATCH, False)["planner"]["batch"] == 10


def test_a_state_taken_before_the_row_of_its_batch_was_published(folders, expected):
    make = maker(folders)
    dataset = make(1)
    for batch in range(5):
        dataset.publish(swinging(batch))
    ids = dataset._batches(World.detect(), None)
    for batch in range(3):
        next(ids)
        state = dataset.state_dict((batch + 1) * GLOBAL_BATCH, False)
        dataset.publish(swinging(batch + 5))
    resumed = make(1)
    resumed.load_state_dict(state)
    assert resumed.published == 7
    resumed.publish(swinging(7))  # the row that was owed
    again = resumed._batches(World.detect(), None)
    for batch in range(3, 8):
        assert list(zip(*(part.tolist() for part in next(again)), strict=True)) == expected[batch]
        resumed.publish(swinging(batch + 5))


def test_a_mixture_that_changes_its_data_or_order_does_not_resume(folders, tmp_path):
    state = maker(folders)(1).state_dict(0, True)
    with pytest.raises(UserError, match="shuffle_block_size was 24"):
        maker(folders, shuffle_block_size=25)(1).load_state_dict(state)
    other = {**folders, "small": index_only(tmp_path / "small", [6])}
    with pytest.raises(UserError, match="samples was"):
        maker(other)(1).load_state_dict(state)


def test_lag_and_canonical_nodes_come_from_the_checkpoint(folders, expected):
    first, datasets = play(maker(folders), (1, 2, 0), swinging, range(9))
    state = datasets[1].state_dict(9 * GLOBAL_BATCH, True)
    again, (resumed,) = play(maker(folders, lag=3, num_canonical_nodes=4), (1, 1, 0), swinging, range(9, 20), state)
    assert (resumed.lag, resumed.num_canonical_nodes) == (5, CANONICAL)
    assert first + again == expected[:20]


def test_a_look_at_what_comes_changes_nothing(folders, expected):
    dataset = maker(folders)(1)
    for batch in range(5):
        dataset.publish(swinging(batch))
    before = dataset.state_dict(0, False)
    look = dataset.sample_ids()
    for batch in range(5):
        assert list(zip(*(part.tolist() for part in next(look)), strict=True)) == expected[batch]
    with pytest.raises(RuntimeError, match="have not been published"):
        next(look)
    assert dataset.state_dict(0, False) == before


def test_more_rows_than_the_lag_before_the_first_batch_are_an_error(folders):
    dataset = maker(folders)(1)
    for batch in range(5):
        dataset.publish(swinging(batch))
    with pytest.raises(RuntimeError, match="the next one after a batch was taken"):
        dataset.publish(swinging(5))


def test_canonical_nodes_do_not_come_from_the_hardware(folders):
    found = set()
    for nodes in (1, 2, 4):
        with rank_of(nodes, 1, 0):
            found.add(open_indexes(folders, 768 // nodes).num_canonical_nodes)
    assert found == {64}
    with rank_of(3, 1, 0), pytest.raises(UserError, match="these would do: 3, 6, 12, 24, 48"):
        open_indexes(folders, 256)


def test_publishing_twice_a_batch_is_told_at_the_checkpoint(folders):
    dataset = maker(folders)(1)
    for batch in range(9):
        if batch == 5:
            next(dataset._batches(World.detect(), None))
        dataset.publish(swinging(batch))
    with pytest.raises(ValueError, match="publish once a batch"):
        dataset.state_dict(GLOBAL_BATCH, True)


def test_publishing_into_an_iteration_that_did_not_wait_for_it_is_an_error(folders):
    dataset = maker(folders)(1)
    next(dataset._batches(World.detect(), None))
    with pytest.raises(RuntimeError, match="before the dataset is iterated"):
        dataset.publish(swinging(0))
    dataset.close()
    dataset.publish(swinging(0))
