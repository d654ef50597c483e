"""Where a rank stands among those that read different data, and which canonical nodes it reads."""

from __future__ import annotations

from dataclasses import dataclass

from streaming.base.world import World

from mixkit.errors import UserError

MAX_CANONICAL_NODES = 64


@dataclass(frozen=True)
class Place:
    """A rank's place once ranks that read the same sequences are counted as one.

    Attributes:
        rank: of this process.
        num_ranks: groups of ranks that read different sequences.
        num_nodes: physical nodes that read different sequences.
    """

    rank: int
    num_ranks: int
    num_nodes: int

    @classmethod
    def of(cls, world: World, replication: int | None) -> Place:
        """The place of a process of `world` when `replication` consecutive ranks read the same.

        Raises:
            UserError: a replication that does not divide the ranks evenly.
        """
        same = replication or 1
        if same < 1 or world.num_ranks % same or (world.ranks_per_node % same and same % world.ranks_per_node):
            raise UserError(
                f"replication: {same} does not fit {world.num_nodes} nodes of {world.ranks_per_node} ranks; a divisor "
                "of a node's ranks or whole nodes are wanted"
            )
        num_ranks = world.num_ranks // same
        return cls(world.rank // same, num_ranks, min(world.num_nodes, num_ranks))

    def canonical_nodes(self, num_canonical_nodes: int, global_batch_size: int) -> range:
        """The canonical nodes that this rank's slots belong to."""
        per_rank, per_node = global_batch_size // self.num_ranks, global_batch_size // num_canonical_nodes
        return range(self.rank * per_rank // per_node, -(-(self.rank + 1) * per_rank // per_node))


def greatest_divisor(batch_size: int) -> int:
    """The default number of canonical nodes, from the global batch alone: its greatest divisor up to 64."""
    return max(n for n in range(1, MAX_CANONICAL_NODES + 1) if batch_size % n == 0)


def check_nodes(canonical: int, batch_size: int, physical: int) -> None:
    """Refuse canonical nodes that do not divide the global batch into whole shares of the physical nodes.

    Raises:
        UserError: naming what would do.
    """
    if batch_size % canonical or canonical % physical:
        fitting = [n for n in range(physical, batch_size + 1, physical) if batch_size % n == 0]
        raise UserError(
            f"num_canonical_nodes: {canonical} does not divide the global batch of {batch_size} sequences into whole "
            f"shares of {physical} physical nodes; these would do: {', '.join(map(str, fitting)) or 'none'}"
        )
