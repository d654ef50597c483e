import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mixkit.stream.apportion import quantise_weights
from mixkit.stream.planner import Planner


def random_weights(rng, num_domains):
    weights = rng.dirichlet(np.full(num_domains, 0.4))
    weights[rng.random(num_domains) < 0.2] = 0
    weights[rng.integers(num_domains)] += 0.1
    return quantise_weights(weights)


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 24), st.integers(1, 16), st.integers(1, 8), st.integers(0, 2**31))
def test_plans_are_whole_and_even(num_domains, num_nodes, per_node, seed):
    rng = np.random.default_rng(seed)
    batch_size = num_nodes * per_node
    planner = Planner(num_domains, batch_size, num_nodes, seed)
    next_draw = np.zeros((num_domains, num_nodes), int)
    for number in range(60):
        plan = planner.advance(random_weights(rng, num_domains))
        assert plan.index == number
        assert (np.bincount(plan.domain, minlength=num_domains) == plan.counts).all()
        assert (plan.node == np.repeat(np.arange(num_nodes), per_node)).all()
        # A node's draws of a domain are numbered on without a gap, whatever slots they stand in.
        for domain in range(num_domains):
            for node in range(num_nodes):
                here = np.sort(plan.draw[(plan.domain == domain) & (plan.node == node)])
                assert here.tolist() == list(range(next_draw[domain, node], next_draw[domain, node] + len(here)))
                next_draw[domain, node] += len(here)
        totals = next_draw.sum(axis=1, keepdims=True)
        assert np.abs(next_draw - totals / num_nodes).max() < 2 + 1e-9


def constant(k):
    weights = quantise_weights(np.ones(k))
    return lambda rng, draws: weights


def uneven(k):
    weights = quantise_weights(np.random.default_rng(5).dirichlet(np.ones(k)))
    return lambda rng, draws: weights


def walking(k):
    state = np.zeros(k)

    def step(rng, draws):
        np.clip(state + rng.normal(0, 0.1, k), -4, 4, out=state)
        return quantise_weights(np.exp(state))

    return step


def against(k):
    """Weights for the domains whose histories are most alike to that of the one that is furthest off."""

    def step(rng, draws):
        off = draws - draws.mean(axis=1, keepdims=True)
        alike = np.argsort(-(off @ off[np.abs(off).max(axis=1).argmax()]))
        weights = np.full(k, 1e-9)
        weights[alike[: max(2, k // 8)]] = 1
        return quantise_weights(weights)

    return step


@pytest.mark.parametrize("weights", [constant, uneven, walking, against])
@pytest.mark.parametrize(("k", "nodes", "per_node"), [(100, 64, 1), (22, 64, 8), (22, 32, 1), (10, 8, 2), (3, 2, 1)])
def test_a_domain_comes_to_all_nodes_alike(weights, k, nodes, per_node):
    step, rng = weights(k), np.random.default_rng(0)
    planner = Planner(k, nodes * per_node, nodes, 1)
    for _ in range(400):
        planner.skip(step(rng, planner.draws))
        assert np.abs(planner.draws - planner.draws.mean(axis=1, keepdims=True)).max() < 2


def test_a_resumed_planner_goes_on_alike():
    rng = np.random.default_rng(1)
    rows = [random_weights(rng, 5) for _ in range(40)]
    straight, stopped = Planner(5, 16, 4, 9), Planner(5, 16, 4, 9)
    plans = [straight.advance(row) for row in rows]
    for row in rows[:17]:
        stopped.advance(row)
    resumed = Planner(5, 16, 4, 9)
    resumed.load_state_dict(json.loads(json.dumps(stopped.state_dict())))
    for row, plan in zip(rows[17:], plans[17:], strict=True):
        again = resumed.advance(row)
        assert again.index == plan.index
        for name in ("domain", "node", "draw", "counts"):
            assert (getattr(again, name) == getattr(plan, name)).all()


def test_state_is_kilobytes():
    planner = Planner(22, 512, 64, 0)
    for _ in range(2000):
        planner.advance(quantise_weights(np.ones(22)))
    assert len(json.dumps(planner.state_dict())) < 16_000


def test_nodes_must_divide_the_batch():
    with pytest.raises(ValueError, match="do not divide"):
        Planner(3, 10, 4, 0)
