import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from mixkit.stream.order import Order, permute


@given(st.integers(1, 3000), st.integers(0, 2**63))
@settings(deadline=None)
def test_permute_is_one_to_one(size, key):
    index = np.arange(size)
    out = permute(index, np.full(size, size), np.full(size, key, np.uint64))
    assert (np.sort(out) == index).all()


def test_every_order_of_four_comes_about_equally_often():
    seen = {}
    for key in range(2400):
        order = tuple(permute(np.arange(4), np.full(4, 4), np.full(4, key, np.uint64)))
        seen[order] = seen.get(order, 0) + 1
    assert len(seen) == 24
    assert min(seen.values()) > 50 and max(seen.values()) < 160  # 100 expected


shard_sizes = st.lists(st.integers(1, 40), min_size=1, max_size=12)


@settings(max_examples=60, deadline=None)
@given(shard_sizes, st.integers(1, 8), st.integers(0, 2**31), st.integers(1, 64), st.booleans())
def test_each_pass_is_whole_and_nodes_share_a_domain_out(sizes, num_nodes, seed, block_size, shuffle):
    order = Order([np.array(sizes)], num_nodes, seed, block_size, shuffle)
    total, seen = sum(sizes), []
    for node in range(num_nodes):
        begin, end = int(order.begin[0, node]), int(order.end[0, node])
        for number in range(3):
            draws = np.arange(number * (end - begin), (number + 1) * (end - begin))
            ids = order.samples(np.zeros_like(draws), np.full_like(draws, node), draws)
            assert (np.sort(ids) == np.arange(begin, end)).all()
        seen += range(begin, end)
    if total >= num_nodes:
        assert sorted(seen) == list(range(total))
    else:
        assert seen == list(range(total)) * num_nodes


def test_passes_differ_and_a_draw_does_not_depend_on_how_it_is_asked_for():
    order = Order([np.array([50, 50, 37])], 1, 3, 16, True)
    draws = np.arange(3 * 137)
    zeros = np.zeros_like(draws)
    ids = order.samples(zeros, zeros, draws)
    passes = ids.reshape(3, 137)
    assert (passes[0] != passes[1]).mean() > 0.9 and (passes[1] != passes[2]).mean() > 0.9
    fresh = Order([np.array([50, 50, 37])], 1, 3, 16, True)
    backwards = [int(fresh.samples(zeros[:1], zeros[:1], draws[i : i + 1])[0]) for i in reversed(range(len(draws)))]
    assert backwards[::-1] == ids.tolist()


def test_a_block_stays_near_its_shards():
    sizes = np.full(20, 100)
    order = Order([sizes], 1, 5, 100, True)
    draws = np.arange(2000)
    ids = order.samples(np.zeros_like(draws), np.zeros_like(draws), draws)
    shards_in_block = [len(set(ids[first : first + 100] // 100)) for first in range(0, 2000, 100)]
    assert shards_in_block == [1] * 20  # a block of a shard's size opens one shard at a time


def test_seed_domain_and_node_change_the_order():
    def first_pass(seed, domain, node):
        order = Order([np.array([64]), np.array([64])], 1, seed, 64, True)
        draws = np.arange(64)
        return order.samples(np.full_like(draws, domain), np.full_like(draws, node), draws).tolist()

    assert first_pass(1, 0, 0) != first_pass(2, 0, 0)
    assert first_pass(1, 0, 0) != first_pass(1, 1, 0)
