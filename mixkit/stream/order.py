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

_ROUNDS = 6
_GOLDEN = np.uint64(0x9E3779B97F4A7C15)


def _finalise(state: np.ndarray) -> np.ndarray:
    """splitmix64's finaliser: every input bit moves every output bit."""
    state = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    state = (state ^ (state >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return state ^ (state >> np.uint64(31))


def mix(*words: np.ndarray | int) -> np.ndarray:
    """Hash integers (broadcast against each other) to uint64, the splitmix64 finaliser after every word."""
    return mix_on(np.asarray(_GOLDEN), *words)


def mix_on(state: np.ndarray, *words: np.ndarray | int) -> np.ndarray:
    """Go on hashing where `mix` stopped: mix(a, b, c) is mix_on(mix(a, b), c)."""
    with np.errstate(over="ignore"):
        for word in words:
            state = _finalise((state ^ np.asarray(word).astype(np.uint64)) + _GOLDEN)
    return state


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
    size = np.asarray(size, np.int64)
    width = np.ceil(np.sqrt(size)).astype(np.int64)
    height = -(-size // width)
    out = np.array(index, np.int64)
    walking = np.arange(len(out))
    with np.errstate(over="ignore"):
        while len(walking):
            sides = width[walking].astype(np.uint64), height[walking].astype(np.uint64)
            round_key = key[walking]
            here = out[walking].astype(np.uint64)
            # halves[0] < width moves by what halves[1] < height says, and the other way round, in turns.
            halves = [here % sides[0], here // sides[0]]
            for turn in range(_ROUNDS):
                round_key = round_key + _GOLDEN
                moved = turn % 2
                said = _finalise(round_key ^ halves[1 - moved] * _GOLDEN) % sides[moved]
                halves[moved] = (halves[moved] + said) % sides[moved]
            out[walking] = (halves[1] * sides[0] + halves[0]).astype(np.int64)
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
        ends = [np.cumsum(np.asarray(counts, np.int64)) for counts in samples_per_shard]
        totals = np.array([of_domain[-1] for of_domain in ends], np.int64)[:, None]
        nodes = np.arange(num_nodes, dtype=np.int64)[None, :]
        shared_whole = totals < num_nodes
        self.begin = np.where(shared_whole, 0, totals * nodes // num_nodes)
        """(k, N) first sample of the domain that the node reads; all are read by every node where they are too few."""
        self.end = np.where(shared_whole, totals, totals * (nodes + 1) // num_nodes)
        """(k, N) one past the last sample that the node reads."""
        # Shard parts: the shards that a node's share begins and ends in, and all domains' shard ends in one array.
        self._shard_ends = np.concatenate(ends)
        offsets = np.cumsum([0, *(len(of_domain) for of_domain in ends[:-1])])
        found = [
            np.searchsorted(of_domain, [self.begin[row], self.end[row] - 1], side="right") + offsets[row]
            for row, of_domain in enumerate(ends)
        ]
        self._first, self._last = np.stack(found, axis=1)
        self._key = mix(seed, np.arange(len(totals))[:, None], nodes)
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
        key = mix_on(self._key[domain, node], pass_number, block)
        place = block * self.block_size + permute(offset, size, key)
        rows = list(zip(domain.tolist(), node.tolist(), pass_number.tolist(), place.tolist(), strict=True))
        wanted = {row[:3] for row in rows}
        layouts = {key: kept[1:] for key in wanted if (kept := self._layouts.get(key[:2])) and kept[0] == key[2]}
        if missing := wanted - layouts.keys():
            layouts |= self._lay_out(np.array(sorted(missing)))
        out = np.empty_like(place)
        for row, (*key, at_place) in enumerate(rows):
            part_ends, part_firsts = layouts[tuple(key)]
            part = bisect_right(part_ends, at_place)
            out[row] = part_firsts[part] + at_place - (part_ends[part - 1] if part else 0)
        return out

    def passes(self, domain: np.ndarray, node: np.ndarray, draw: np.ndarray) -> np.ndarray:
        """(m,) int64: in which pass over the node's share of the domain each draw falls, from 0."""
        return draw // (self.end[domain, node] - self.begin[domain, node])

    def _lay_out(self, wanted: np.ndarray) -> dict[tuple[int, int, int], tuple[list[int], list[int]]]:
        """Order the shard parts of nodes for passes, and keep each node's latest.

        Args:
            wanted: (m, 3) int64, rows of domain, node and pass.

        Returns:
            domain, node and pass to running sample counts and each part's first sample id.
        """
        domain, node, pass_number = wanted.T
        first = self._first[domain, node]
        counts = self._last[domain, node] - first + 1
        stops = np.cumsum(counts)
        starts = stops - counts
        of = np.repeat(np.arange(len(wanted)), counts)
        part = np.arange(stops[-1]) - starts[of]
        shard = first[of] + part
        begin, end = self.begin[domain, node], self.end[domain, node]
        ends = np.minimum(self._shard_ends[shard], end[of])
        firsts = np.where(part == 0, begin[of], self._shard_ends[shard - 1])
        keys = mix_on(self._key[domain, node][of], pass_number[of], part, 1)
        order = np.lexsort((keys, of))
        lengths = (ends - firsts)[order]
        running = np.cumsum(lengths)
        running -= (running - lengths)[starts][of]
        part_ends, part_firsts = running.tolist(), firsts[order].tolist()
        laid_out = {}
        for row, start, stop in zip(wanted.tolist(), starts.tolist(), stops.tolist(), strict=True):
            laid_out[tuple(row)] = lists = part_ends[start:stop], part_firsts[start:stop]
            self._layouts[row[0], row[1]] = (row[2], *lists)
        return laid_out
