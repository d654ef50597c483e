"""Draw numbers to samples: which sample of its domain a canonical node reads at its n-th draw.

Pass after pass over the node's share of the domain, each pass in a fresh order that respects shards and blocks (shard
parts in a random order, then shuffled within blocks of `block_size`, so that few shards are open at a time). The order
is a keyed permutation that is evaluated where it is needed, not a shuffled list: any draw costs the same, nothing is
kept per epoch, and a resume in the middle of pass 7 starts at once.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence

import numpy as np

_ROUNDS = 8


def mix(*words: np.ndarray | int) -> np.ndarray:
    """Hash integers (broadcast against each other) to uint64, the splitmix64 finaliser after every word."""
    state = np.uint64(0x9E3779B97F4A7C15)
    with np.errstate(over="ignore"):
        for word in words:
            state = (state ^ np.asarray(word).astype(np.uint64)) + np.uint64(0x9E3779B97F4A7C15)
            state = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
            state = (state ^ (state >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
            state = state ^ (state >> np.uint64(31))
    return np.asarray(state)


def permute(index: np.ndarray, size: np.ndarray, key: np.ndarray) -> np.ndarray:
    """Send `index` to its place in a pseudo-random permutation of [0, size), elementwise.

    An alternating Feistel network on a grid a × b just above `size`, walked until it lands inside (Black and Rogaway,
    "Ciphers with arbitrary finite domains", 2002).

    Args:
        index: (m,) int64 in [0, size).
        size: (m,) int64, at least 1.
        key: (m,) uint64, one permutation per key.

    Returns:
        (m,) int64 in [0, size); one-to-one for equal size and key.
    """
    index, size = np.asarray(index, np.int64), np.asarray(size, np.int64)
    width = np.ceil(np.sqrt(size)).astype(np.int64)
    height = -(-size // width)
    out = index.copy()
    walking = np.arange(len(index))
    while len(walking):
        a, b, k = width[walking], height[walking], key[walking]
        left, right = out[walking] % a, out[walking] // a
        for turn in range(_ROUNDS):
            if turn % 2 == 0:
                left = (left + (mix(k, right, turn) % a.astype(np.uint64)).astype(np.int64)) % a
            else:
                right = (right + (mix(k, left, turn) % b.astype(np.uint64)).astype(np.int64)) % b
        out[walking] = right * a + left
        walking = walking[out[walking] >= size[walking]]
    return out


class Order:
    """The order of draws of every domain at every canonical node.

    Args:
        samples_per_shard: per domain, (s,) samples in each of its shards.
        num_nodes: canonical nodes N.
        seed: the run's shuffle seed.
        block_size: samples that are shuffled among each other.
        shuffle: False keeps every pass in the order of the shards.
    """

    def __init__(
        self, samples_per_shard: Sequence[np.ndarray], num_nodes: int, seed: int, block_size: int, shuffle: bool
    ) -> None:
        self.shard_ends = [np.cumsum(np.asarray(counts, np.int64)) for counts in samples_per_shard]
        totals = np.array([ends[-1] for ends in self.shard_ends], np.int64)[:, None]
        nodes = np.arange(num_nodes, dtype=np.int64)[None, :]
        shared_whole = totals < num_nodes
        self.begin = np.where(shared_whole, 0, totals * nodes // num_nodes)
        """(k, N) first sample of the domain that the node reads; all are read by every node where they are too few."""
        self.end = np.where(shared_whole, totals, totals * (nodes + 1) // num_nodes)
        """(k, N) one past the last sample that the node reads."""
        self.seed = seed
        self.block_size = block_size
        self.shuffle = shuffle
        self._layouts: dict[tuple[int, int], tuple[int, list[int], list[int]]] = {}

    def samples(self, domain: np.ndarray, node: np.ndarray, draw: np.ndarray) -> np.ndarray:
        """Sample ids within their domains.

        Args:
            domain, node, draw: (m,) int64; draw 0, 1, 2, … of the domain at the node, counted over all passes.

        Returns:
            (m,) int64.
        """
        begin = self.begin[domain, node]
        length = self.end[domain, node] - begin
        pass_number, place = np.divmod(draw, length)
        if not self.shuffle:
            return begin + place
        block, offset = np.divmod(place, self.block_size)
        size = np.minimum(self.block_size, length - block * self.block_size)
        key = mix(self.seed, domain, node, pass_number, block)
        place = block * self.block_size + permute(offset, size, key)
        out = np.empty_like(place)
        for row, (at_domain, at_node, at_pass, at_place) in enumerate(
            zip(domain.tolist(), node.tolist(), pass_number.tolist(), place.tolist(), strict=True)
        ):
            part_ends, part_firsts = self._layout(at_domain, at_node, at_pass)
            part = bisect_right(part_ends, at_place)
            out[row] = part_firsts[part] + at_place - (part_ends[part - 1] if part else 0)
        return out

    def _layout(self, domain: int, node: int, pass_number: int) -> tuple[list[int], list[int]]:
        """Shard parts of a node in this pass's order: running sample counts, and each part's first sample id."""
        kept = self._layouts.get((domain, node))
        if kept is None or kept[0] != pass_number:
            begin, end, ends = self.begin[domain, node], self.end[domain, node], self.shard_ends[domain]
            first, last = np.searchsorted(ends, [begin, end - 1], side="right")
            ends = np.minimum(ends[first : last + 1], end)
            firsts = np.concatenate([[begin], ends[:-1]])
            order = np.argsort(mix(self.seed, domain, node, pass_number, np.arange(len(ends)), 1), kind="stable")
            lengths = (ends - firsts)[order]
            kept = (pass_number, np.cumsum(lengths).tolist(), firsts[order].tolist())
            self._layouts[domain, node] = kept
        return kept[1], kept[2]
