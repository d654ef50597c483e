"""The plan of a global batch: which domain, canonical node and draw stands in each slot.

A pure function of (seed, global batch size, canonical nodes, weights so far): a planner is advanced batch by batch, and
every rank and worker that advances one sees the same plans. Slots are laid out node by node, and a rank's share of a
batch is a run of consecutive slots, so the global batch is the same however many ranks share it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from mixkit.stream.apportion import apportion
from mixkit.stream.deal import share_among_nodes
from mixkit.stream.order import mix


@dataclass(frozen=True)
class BatchPlan:
    """One global batch of B slots.

    Attributes:
        index: number of the batch, from 0.
        domain, node, draw: (B,) int64 in slot order: the domain, the canonical node, and the how-manieth draw of the
            domain at that node it is (from 0).
        counts: (k,) int64, slots per domain.
    """

    index: int
    domain: np.ndarray
    node: np.ndarray
    draw: np.ndarray
    counts: np.ndarray


class Planner:
    """Advances through global batches; its whole state is one small dict of plain types.

    Args:
        num_domains: k.
        batch_size: B, sequences in a global batch.
        num_nodes: canonical nodes N, a divisor of B.
        seed: the run's shuffle seed.
    """

    def __init__(self, num_domains: int, batch_size: int, num_nodes: int, seed: int) -> None:
        if batch_size % num_nodes:
            raise ValueError(f"{num_nodes} canonical nodes do not divide a global batch of {batch_size} sequences")
        self.batch_size = batch_size
        self.num_nodes = num_nodes
        self.seed = seed
        self.index = 0
        self.credits = np.zeros(num_domains, np.int64)
        self.draws = np.zeros((num_domains, num_nodes), np.int64)
        """(k, N) draws of each domain at each canonical node so far."""

    def advance(self, weights: np.ndarray) -> BatchPlan:
        """Plan the next batch under `weights`, (k,) int64 that sum to `apportion.UNIT`."""
        before = self.draws
        counts, per_node = self._deal(weights)
        # Within a node the slots come in a fresh random order, so that ranks and micro-batches see a mixed batch.
        slots = np.arange(self.batch_size)
        node = slots // (self.batch_size // self.num_nodes)
        by_node = np.repeat(np.tile(np.arange(len(counts)), self.num_nodes), per_node.T.ravel())
        shuffled = np.lexsort((mix(self.seed, self.index - 1, slots, 2), node))
        domain = by_node[shuffled]
        draw = before[domain, node] + _occurrence(domain, node)
        return BatchPlan(self.index - 1, domain, node, draw, counts)

    def skip(self, weights: np.ndarray) -> None:
        """Pass over the next batch, without laying out its slots."""
        self._deal(weights)

    def _deal(self, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        counts, self.credits = apportion(self.credits, weights, self.batch_size)
        per_node = share_among_nodes(counts, self.draws)
        # A new array, never the old one changed: a thread may be looking at it.
        self.draws = self.draws + per_node
        self.index += 1
        return counts, per_node

    def state_dict(self) -> dict[str, Any]:
        """Plain types only: batches planned, carried credits (in 2^-20 sequences), draws per domain and node."""
        return {"batch": self.index, "credits": self.credits.tolist(), "draws": self.draws.tolist()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where `state_dict` stood."""
        self.index = int(state["batch"])
        self.credits = np.array(state["credits"], np.int64)
        self.draws = np.array(state["draws"], np.int64)

    def pack(self) -> np.ndarray:
        """The same state as (1 + k + k·N,) int64: batches, credits, draws."""
        return np.concatenate([[self.index], self.credits, self.draws.ravel()])

    def unpack(self, packed: np.ndarray) -> None:
        """Go on where `pack` stood."""
        num_domains = len(self.credits)
        self.index = int(packed[0])
        self.credits = packed[1 : 1 + num_domains].copy()
        self.draws = packed[1 + num_domains :].reshape(self.draws.shape).copy()


def _occurrence(domain: np.ndarray, node: np.ndarray) -> np.ndarray:
    """For each slot, how many earlier slots of the batch have the same domain and node."""
    order = np.lexsort((np.arange(len(domain)), domain, node))
    new = np.ones(len(domain), bool)
    new[1:] = (np.diff(domain[order]) != 0) | (np.diff(node[order]) != 0)
    starts = np.flatnonzero(new)
    counted = np.arange(len(domain)) - np.repeat(starts, np.diff(np.append(starts, len(domain))))
    out = np.empty(len(domain), np.int64)
    out[order] = counted
    return out
