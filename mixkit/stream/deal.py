"""A batch's counts to canonical nodes: equal slots for each node, each domain evenly over the run.

No rule can hold the second for weights that an adversary chooses (with two nodes of one slot each, two domains with
equal histories must part, and so on: the order of log k). Here draws go first to the nodes that had least of the
domain, then nodes with too many slots give some away, then pairs of nodes swap where a domain is off by more than one.
With weights as runs have them, constant or moving, every node stays within two draws of a domain's mean.
"""

from __future__ import annotations

import numpy as np

_NEVER = -(1 << 62)


def share_among_nodes(counts: np.ndarray, draws: np.ndarray) -> np.ndarray:
    """Deal a batch's counts to canonical nodes: equal slots for each node, and each domain evenly over the run.

    Args:
        counts: (k,) int64 with a sum that N divides.
        draws: (k, N) int64, draws so far.

    Returns:
        (k, N) int64 whose rows sum to `counts` and whose columns all sum to counts.sum() / N.
    """
    num_nodes = draws.shape[1]
    whole, rest = np.divmod(counts, num_nodes)
    dealt = np.repeat(whole[:, None], num_nodes, axis=1)
    # What does not divide goes to the nodes that have had least of the domain. Ties are broken in turns: each domain
    # begins where the one before it ended, so that equal histories fill the nodes equally.
    rows = np.flatnonzero(rest)
    rest = rest[rows]
    turn = (np.arange(num_nodes) - (np.cumsum(rest) - rest)[:, None]) % num_nodes
    preferred = np.argsort(draws[rows] * num_nodes + turn, axis=1)
    chosen = np.arange(num_nodes) < rest[:, None]
    nodes = preferred[chosen]
    dealt[np.repeat(rows, rest), nodes] += 1
    over = np.bincount(nodes, minlength=num_nodes) - rest.sum() // num_nodes
    had = draws + dealt
    # Then nodes with too many slots give one to nodes with too few, of the domain that it evens out most.
    while over.any():
        order = np.argsort(over, kind="stable")
        pairs = min((over > 0).sum(), (over < 0).sum())
        givers, takers = order[::-1][:pairs], order[:pairs]
        gain = np.where(dealt[:, givers] > 0, had[:, givers] - had[:, takers], _NEVER)
        domains = np.argmax(gain, axis=0)
        for table in (dealt, had):
            table[domains, givers] -= 1
            table[domains, takers] += 1
        over[givers] -= 1
        over[takers] += 1
    _even_out(dealt, draws)
    return dealt


def _even_out(dealt: np.ndarray, draws: np.ndarray) -> None:
    """Swap slots between two nodes where a domain is more than one draw off its mean, as long as that evens out.

    A swap (node x gives a draw of domain a to y for one of b) moves the sum of squares over all counts by
    4 − 2·(h_ax − h_ay + h_by − h_bx), h the draws that each node will have had.
    """
    num_nodes = dealt.shape[1]
    drawn = np.flatnonzero(dealt.any(axis=1))
    slots = dealt[drawn]
    had = draws[drawn] + slots
    mean = had.sum(axis=1, keepdims=True)  # times num_nodes, as all of `off` is
    nodes = np.arange(num_nodes)
    for _ in range(4 * num_nodes):
        off = had * num_nodes - mean
        may_give = np.where(slots > 0, off, 0)
        if max(may_give.max(initial=0), -off.min(initial=0)) <= num_nodes:
            break
        if may_give.max() >= -off.min():
            a, x = np.unravel_index(may_give.argmax(), off.shape)
            offers = np.where(slots > 0, had - had[:, [x]], _NEVER)  # of b, by every y
            offered = offers.argmax(axis=0)
            gain = had[a, x] - had[a] + offers[offered, nodes]
            y = int(gain.argmax())
            b, best = offered[y], gain[y]
        else:
            a, y = np.unravel_index(off.argmin(), off.shape)
            offers = np.where(slots[:, [y]] > 0, had[:, [y]] - had, _NEVER)  # of b, to every x
            offered = offers.argmax(axis=0)
            gain = np.where(slots[a] > 0, had[a] - had[a, y], _NEVER) + offers[offered, nodes]
            x = int(gain.argmax())
            b, best = offered[x], gain[x]
        if best <= 2:
            break
        for table in (slots, had):
            table[a, x] -= 1
            table[a, y] += 1
            table[b, y] -= 1
            table[b, x] += 1
    dealt[drawn] = slots
