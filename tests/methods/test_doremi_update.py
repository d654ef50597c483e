import json
import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mixkit.methods.doremi import domain_scores, fill_absent, update_weights

scores_lists = st.lists(st.floats(0, 1e6), min_size=1, max_size=30)


def test_one_step_by_hand():
    # α' = (1/2·e^0.2, 1/2·e^0.6); smoothing 0.1 toward (1/2, 1/2).
    raised = [0.5 * math.exp(0.2), 0.5 * math.exp(0.6)]
    expected = [0.9 * value / sum(raised) + 0.05 for value in raised]
    assert update_weights(np.array([0.5, 0.5]), np.array([0.1, 0.3]), eta=2.0, smoothing=0.1) == pytest.approx(
        expected, abs=1e-15
    )


@given(scores_lists, st.floats(1e-3, 100), st.floats(0, 1))
def test_weights_stay_weights_for_any_scores(scores, eta, smoothing):
    weights = np.full(len(scores), 1 / len(scores))
    out = update_weights(weights, np.array(scores), eta=eta, smoothing=smoothing)
    assert np.isfinite(out).all() and (out >= 0).all()
    assert out.sum() == pytest.approx(1, abs=1e-12)
    assert out.min() >= smoothing / len(scores) - 1e-15
    # The higher score never gets the smaller weight.
    assert (np.diff(out[np.argsort(scores, kind="stable")]) >= -1e-15).all()


@given(scores_lists, st.floats(-50, 50))
def test_a_score_shared_by_all_changes_nothing(scores, shift):
    weights = np.full(len(scores), 1 / len(scores))
    plain = update_weights(weights, np.array(scores), eta=1e-3, smoothing=0.01)
    shifted = update_weights(weights, np.array(scores) + shift, eta=1e-3, smoothing=0.01)
    assert shifted == pytest.approx(plain, abs=1e-9)


def test_an_absent_domain_keeps_its_score_and_a_new_one_is_neutral():
    scores = fill_absent(np.array([2.0, 0.0, 0.0]), np.array([4.0, 0.0, 0.0]), np.array([9.0, 0.7, np.nan]))
    assert scores.tolist() == [0.5, 0.7, pytest.approx(0.6)]
    weights = np.array([0.3, 0.3, 0.4])
    before, after = (
        weights,
        update_weights(
            weights,
            fill_absent(*[np.array(x) for x in ([2.0, 0, 0], [4.0, 0, 0], [1, np.nan, np.nan])]),
            eta=1,
            smoothing=0,
        ),
    )
    assert after == pytest.approx(before)  # one domain seen, the others neutral: nobody gains


def test_clipping_is_per_token_and_the_mean_per_domain():
    excess = torch.tensor([[1.0, -5.0, 0.5], [2.0, 2.0, 9.0], [3.0, 0.0, 0.0]])
    mask = torch.tensor([[1, 1, 1], [1, 1, 0], [1, 1, 1]], dtype=torch.bool)
    sums, counts = domain_scores(excess, mask, torch.tensor([2, 0, 2]), 4)
    assert sums.tolist() == [4.0, 0.0, 4.5, 0.0]
    assert counts.tolist() == [2.0, 0.0, 6.0, 0.0]
    assert sums.dtype == counts.dtype == torch.float64


@pytest.mark.parametrize(
    ("key", "fill"),
    [
        ("repo_semantics_absent_domain_keeps_last_score_initially_ln_50277", math.log(50277)),
        ("absent_domain_score_zero_initially", 0.0),
    ],
)
def test_the_worked_example_to_the_last_digit(golden, key, fill):
    example = json.loads((golden / "doremi" / "update_micro_example.json").read_text())
    weights, last, history = np.array(example["alpha0"]), np.full(example["k"], fill), []
    for step, expected in zip(example["inputs"], example[key]["steps"], strict=True):
        sums, counts = domain_scores(
            torch.tensor(step["excess"], dtype=torch.float64),
            torch.tensor(step["mask"], dtype=torch.bool),
            torch.tensor(step["domain"]),
            example["k"],
        )
        last = fill_absent(sums.numpy(), counts.numpy(), last)
        weights = update_weights(weights, last, eta=example["eta"], smoothing=example["c"])
        history.append(weights)
        assert last == pytest.approx(expected["lambda_"], abs=1e-12)
        assert weights == pytest.approx(expected["alpha"], abs=1e-12)
    if "final_avg_paper" in example[key]:
        assert np.mean(history, axis=0) == pytest.approx(example[key]["final_avg_paper"], abs=1e-12)
