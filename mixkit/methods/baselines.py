"""Mixtures that need no training: the baselines that every method is judged beside."""

from __future__ import annotations

from collections.abc import Collection, Mapping


def proportional(counts: Mapping[str, float]) -> dict[str, float]:
    """Weights in proportion to `counts` (sequences or tokens per domain, times the passes over it)."""
    total = sum(counts.values())
    return {domain: count / total for domain, count in counts.items()}


def uniform(domains: Collection[str]) -> dict[str, float]:
    """The same weight for every domain."""
    return {domain: 1 / len(domains) for domain in domains}
