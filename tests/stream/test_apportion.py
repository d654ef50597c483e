import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mixkit.stream.apportion import UNIT, apportion, quantise_weights

weight_lists = st.lists(st.floats(0, 1), min_size=1, max_size=24).filter(lambda weights: sum(weights) > 1e-6)


@given(weight_lists)
def test_quantised_weights_are_exact_shares(weights):
    rounded = quantise_weights(np.array(weights))
    assert rounded.sum() == UNIT
    assert ((rounded > 0) == (np.array(weights) > 0)).all()
    assert np.abs(rounded / UNIT - np.array(weights) / sum(weights)).max() <= len(weights) / UNIT


@pytest.mark.parametrize("weights", [[0.0, 0.0], [-1.0, 2.0], [float("nan"), 1.0], [float("inf"), 1.0], []])
def test_weights_that_cannot_be_are_refused(weights):
    with pytest.raises(ValueError):
        quantise_weights(np.array(weights))


@settings(max_examples=150, deadline=None)
@given(weight_lists, st.sampled_from([1, 2, 3, 4, 8, 13, 64, 512]))
def test_constant_weights_stay_within_one_sequence(weights, batch_size):
    shares = quantise_weights(np.array(weights))
    credits = np.zeros(len(weights), np.int64)
    served = np.zeros(len(weights), np.int64)
    for batch in range(1, 200):
        counts, credits = apportion(credits, shares, batch_size)
        assert counts.sum() == batch_size and counts.min() >= 0
        served += counts
        assert (np.abs(served * UNIT - batch * batch_size * shares) < UNIT).all()
        assert credits.sum() == 0


@settings(max_examples=30, deadline=None)
@given(st.integers(2, 20), st.sampled_from([1, 2, 5, 16]), st.integers(0, 2**31))
def test_an_adversary_gains_less_than_the_harmonic_number(num_domains, batch_size, seed):
    rng = np.random.default_rng(seed)
    harmonic = sum(1 / n for n in range(1, num_domains + 1))
    credits, alive = np.zeros(num_domains, np.int64), np.ones(num_domains, bool)
    for _ in range(300):
        weights = alive * np.where(rng.random(num_domains) < 0.5, 1.0, rng.random(num_domains))
        if weights.sum() == 0:
            weights, alive = np.ones(num_domains), np.ones(num_domains, bool)
        counts, credits = apportion(credits, quantise_weights(weights), batch_size)
        alive &= counts == 0  # whoever was served is dropped
        assert counts.sum() == batch_size and counts.min() >= 0
        assert np.abs(credits).max() <= harmonic * UNIT


def test_a_domain_below_one_sequence_a_batch_comes_less_often_and_zero_never():
    credits, served = np.zeros(3, np.int64), np.zeros(3, np.int64)
    weights = quantise_weights(np.array([0.99, 0.01, 0.0]))
    for _ in range(1000):
        counts, credits = apportion(credits, weights, 8)
        served += counts
    assert served[2] == 0
    assert abs(served[1] - 80) <= 1
