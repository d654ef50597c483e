"""Weights to whole counts: how many sequences each domain gives to a global batch.

A domain is owed B·w sequences a batch. What it is owed but has not been served is its credit, carried from batch to
batch; credits sum to zero. Whole credits are served at once, and what is left over goes earliest deadline first: a
domain with credit c is due in (1 − c)/(B·w) batches. With constant weights every running count then stays within one
sequence of its running share, which "largest remainder first" does not promise (a small domain is passed over again
and again by larger ones). All of it is integer arithmetic, so every rank and machine counts alike.
"""

from __future__ import annotations

import numpy as np

UNIT = 1 << 20
"""Weights and credits are whole multiples of 1/UNIT."""


def quantise_weights(weights: np.ndarray) -> np.ndarray:
    """Round weights to multiples of 2^-20, so that a last-bit difference between ranks flips no count.

    Args:
        weights: (k,) float, not negative, not all zero; need not sum to 1.

    Returns:
        (k,) int64 that sum to `UNIT`; what rounding leaves over goes to the largest weight. A positive weight stays
        positive, zero stays zero.

    Raises:
        ValueError: a negative weight, one that is not a number, or all zero.
    """
    weights = np.asarray(weights, dtype=np.float64)
    if weights.ndim != 1 or not np.all(np.isfinite(weights)) or np.any(weights < 0) or not weights.sum() > 0:
        raise ValueError(f"weights are numbers of at least 0 with one above 0; found {weights.tolist()}")
    rounded = np.rint(weights / weights.sum() * UNIT).astype(np.int64)
    rounded = np.where(weights > 0, np.maximum(rounded, 1), 0)
    rounded[np.argmax(rounded)] += UNIT - rounded.sum()
    return rounded


def apportion(credits: np.ndarray, weights: np.ndarray, batch_size: int) -> tuple[np.ndarray, np.ndarray]:
    """One global batch: how many sequences come from each domain, and the credits carried on.

    Args:
        credits: (k,) int64 in sequences / UNIT, summing to 0 (all zero at the start of a run).
        weights: (k,) int64 that sum to UNIT, as `quantise_weights` gives them.
        batch_size: B, sequences in a global batch.

    Returns:
        counts: (k,) int64, at least 0, summing to B.
        credits: (k,) int64, the new credits.
    """
    due = credits + batch_size * weights
    counts = np.maximum(due // UNIT, 0)
    left_over = int(batch_size - counts.sum())
    if left_over > 0:
        remainder = due - counts * UNIT
        wait = np.full(len(due), np.inf)
        np.divide(UNIT - remainder, batch_size * weights, out=wait, where=weights > 0)
        # A domain that is owed nothing is served ahead only when all that are owed something have been.
        order = np.lexsort((wait, remainder <= 0))
        counts[order[:left_over]] += 1
    for _ in range(-left_over):
        # Whole credits beyond the batch (weights jumped): the one that is owed least waits.
        counts[np.argmin(np.where(counts > 0, due - counts * UNIT, np.iinfo(np.int64).max))] -= 1
    return counts, due - counts * UNIT
