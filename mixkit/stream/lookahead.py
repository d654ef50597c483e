"""Shards fetched before they are needed, each domain's in proportion to its current weight.

Which sample a domain's n-th draw reads does not depend on the weights, so the shards that a domain needs next are known
however the mixture moves; the weights say how soon. The newest published row is what counts: a domain that rises is
looked after `lag` batches before it is drawn more often.
"""

from __future__ import annotations

import heapq
import threading

import numpy as np

from mixkit.stream.apportion import UNIT
from mixkit.stream.order import Order
from mixkit.stream.shards import ShardReader


def draws_ahead(weights: np.ndarray, ahead: int, num_nodes: int) -> np.ndarray:
    """How many draws of each domain to look ahead at each canonical node.

    Args:
        weights: (k,) int64 that sum to UNIT.
        ahead: sequences to look ahead in all.
        num_nodes: canonical nodes that they come from.

    Returns:
        (k,) int64; at least 1 where the weight is positive.
    """
    return -(-weights * ahead // (UNIT * num_nodes))


class LookAhead:
    """A thread that prepares shards for the draws to come.

    Args:
        readers: per domain, the readers of its tokens and, where there are any, of its scores.
        order: which sample a draw reads.
        nodes: the canonical nodes that this rank reads.
        ahead: sequences of the rank to look ahead.
        part: (number, count): of the draws at each node this thread takes those that leave `number` when divided by
            `count`; the rank's other workers take theirs.
    """

    def __init__(
        self, readers: list[list[ShardReader]], order: Order, nodes: range, ahead: int, part: tuple[int, int]
    ) -> None:
        self._readers = readers
        self._order = order
        self._nodes = np.array(nodes)
        self._ahead = ahead
        self._part = part
        self._looked = np.zeros((len(readers), len(nodes)), np.int64)
        self._seen: set[tuple[int, int, int, int]] = set()
        self._news = threading.Condition()
        self._latest: tuple[np.ndarray, np.ndarray] | None = None
        self._stopped = False
        threading.Thread(target=self._run, daemon=True, name="look ahead").start()

    def tell(self, draws: np.ndarray, weights: np.ndarray) -> None:
        """Where the stream stands: (k, N) draws so far and the newest (k,) int64 weights."""
        with self._news:
            self._latest = draws, weights
            self._news.notify()

    def stop(self) -> None:
        """End after the shard at hand."""
        with self._news:
            self._stopped = True
            self._news.notify()

    def _run(self) -> None:
        waiting: list[tuple[float, tuple[int, int, int]]] = []
        while True:
            with self._news:
                while self._latest is None and not waiting and not self._stopped:
                    self._news.wait()
                if self._stopped:
                    return
                latest, self._latest = self._latest, None
            if latest is not None:
                for entry in self._upcoming(*latest):
                    heapq.heappush(waiting, entry)
            if waiting:
                _, (domain, kind, number) = heapq.heappop(waiting)
                try:
                    # What another worker is fetching will be there without us.
                    self._readers[domain][kind].prepare(number, wait=False)
                except Exception:
                    pass  # whoever needs the sample tries again, and says why it fails

    def _upcoming(self, draws: np.ndarray, weights: np.ndarray) -> list[tuple[float, tuple[int, int, int]]]:
        """Shards (domain, reader, number) of draws not looked at before, after when they are due.

        Due is counted in sequences of the run, so that earlier answers can be compared with later ones.
        """
        now = draws[:, self._nodes]
        counts = draws_ahead(weights, self._ahead, len(self._nodes))
        first = np.maximum(self._looked, now)
        last = np.maximum(first, now + counts[:, None])
        self._looked = last
        lengths = (last - first).ravel()
        pairs = np.repeat(np.arange(lengths.size), lengths)
        offset = np.arange(len(pairs)) - np.repeat(np.cumsum(lengths) - lengths, lengths)
        domain, place = np.divmod(pairs, len(self._nodes))
        draw = first[domain, place] + offset
        mine = draw % self._part[1] == self._part[0]
        domain, place, draw = domain[mine], place[mine], draw[mine]
        node = self._nodes[place]
        samples = self._order.samples(domain, node, draw)
        passes = self._order.passes(domain, node, draw)
        due = draws.sum() + (draw - now[domain, place]) * (UNIT * draws.shape[1]) / np.maximum(weights[domain], 1)
        found = {}
        for number in np.unique(domain).tolist():
            here = domain == number
            for kind, reader in enumerate(self._readers[number]):
                shards = reader.shard_of(samples[here]).tolist()
                for shard, turn, when in zip(shards, passes[here].tolist(), due[here].tolist(), strict=True):
                    # Once in a pass: a small cache may have dropped it since the last.
                    if (number, kind, shard, turn) not in self._seen:
                        self._seen.add((number, kind, shard, turn))
                        found[number, kind, shard] = when
        return [(when, shard) for shard, when in found.items()]
