"""The weight update of DoReMi as plain functions of arrays (arXiv 2305.10429, algorithm 1)."""

from __future__ import annotations

import numpy as np


def update_weights(weights: np.ndarray, scores: np.ndarray, *, eta: float, smoothing: float) -> np.ndarray:
    """One step of exponentiated gradient ascent, smoothed toward uniform.

    α' = α · exp(η λ);  α = (1 − c) · α' / Σ α' + c · u   (algorithm 1, lines 7 and 8). Worked in logarithms, so that
    no score overflows.

    Args:
        weights: (k,) α of the step before, summing to 1.
        scores: (k,) λ, the mean clipped excess loss per domain in nats.
        eta: η, the step size.
        smoothing: c, the uniform share mixed in.

    Returns:
        (k,) float64, summing to 1.
    """
    weights = np.asarray(weights, np.float64)
    with np.errstate(divide="ignore"):
        exponent = np.log(weights) + eta * np.asarray(scores, np.float64)
    raised = np.exp(exponent - exponent.max())
    return (1 - smoothing) * raised / raised.sum() + smoothing / len(weights)


def fill_absent(sums: np.ndarray, token_counts: np.ndarray, last: np.ndarray) -> np.ndarray:
    """Mean excess per domain; a domain without tokens in the batch keeps its last score.

    The paper leaves 0/0 undefined. A domain that was never seen gets the mean score of the others, which leaves its
    weight where it is relative to them; the public code's ln(vocabulary) would hand it everything.

    Args:
        sums: (k,) clipped excess summed over the domain's tokens.
        token_counts: (k,) tokens of the domain in the global batch.
        last: (k,) scores of the step before, NaN for a domain never seen.

    Returns:
        (k,) float64 scores; NaN only where no domain has ever been seen.
    """
    seen = token_counts > 0
    scores = np.where(seen, sums / np.maximum(token_counts, 1), last)
    known = ~np.isnan(scores)
    if known.any():
        scores[~known] = scores[known].mean()
    return scores
