"""`MixtureDataset`: a streaming dataset whose domain shares may change while the run goes.

The one idea: the sequence of global batches is a pure function of (seed, global batch size, canonical nodes, published
weights), which every worker of every rank evaluates for itself. Nothing is laid out per epoch, there is no epoch, and
the only thing that travels from the trainer to its workers is one row of weights per global batch.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from streaming import Stream
from streaming.base.world import World
from torch.utils.data import IterableDataset

from mixkit.errors import UserError
from mixkit.stream.apportion import UNIT, quantise_weights
from mixkit.stream.order import Order
from mixkit.stream.planner import Planner
from mixkit.stream.published import StreamClosed, WeightRing
from mixkit.stream.shards import ShardReader

STATE_VERSION = 1
DEFAULT_LAG = 16
MAX_CANONICAL_NODES = 64


class MixtureDataset(IterableDataset):
    """Streams of MDS shards, mixed in proportions that a trainer may publish batch by batch.

    Yields, without end, a dict per sequence: `input_ids` and `labels` (T,) int64, `domain` (its stream's place in the
    order of `streams`) and, where `scores` are given, `ref_loss` (T,) float32.

    Args:
        streams: domain name to `streaming.Stream`; a plain sequence is named "0", "1", ….
        batch_size: sequences of one rank in a batch; the global batch is this times the ranks.
        scores: domain name to a stream of reference losses, sample by sample aligned with `streams`.
        shuffle: False reads every pass in the order of the shards.
        shuffle_seed: one seed for slots and orders.
        shuffle_block_size: sequences that are shuffled among each other within a pass.
        num_canonical_nodes: nodes that the order is laid out for; a divisor of the global batch and a multiple of the
            physical nodes. Default: the greatest divisor of the global batch up to 64.
        lag: the weights of global batch t are published at the end of step t - lag.
        split, download_retry, download_timeout, validate_hash, keep_zip: as for `StreamingDataset`.

    Raises:
        UserError: a stream without shards or without samples, negative proportions, canonical nodes that do not fit.
    """

    def __init__(
        self,
        *,
        streams: Mapping[str, Stream] | Sequence[Stream],
        batch_size: int,
        scores: Mapping[str, Stream] | None = None,
        shuffle: bool = True,
        shuffle_seed: int = 9176,
        shuffle_block_size: int = 1 << 18,
        num_canonical_nodes: int | None = None,
        lag: int = DEFAULT_LAG,
        split: str | None = None,
        download_retry: int = 2,
        download_timeout: float = 60,
        validate_hash: str | None = None,
        keep_zip: bool = False,
    ) -> None:
        world = World.detect()
        if not isinstance(streams, Mapping):
            streams = {str(number): stream for number, stream in enumerate(streams)}
        self.streams = list(streams.values())
        self.domains = list(streams)
        self.batch_size = batch_size
        self.global_batch_size = batch_size * world.num_ranks
        self.num_canonical_nodes = num_canonical_nodes or _greatest_divisor(self.global_batch_size, world.num_nodes)
        _check_nodes(self.num_canonical_nodes, self.global_batch_size, world.num_nodes)
        if lag < 1:
            raise UserError(f"lag: at least 1 global batch; found {lag}")
        self.lag = lag
        self.shuffle = shuffle
        self.shuffle_seed = shuffle_seed
        self.shuffle_block_size = shuffle_block_size

        defaults = {
            "split": split,
            "download_retry": download_retry,
            "download_timeout": download_timeout,
            "validate_hash": validate_hash,
            "keep_zip": keep_zip,
        }
        self._tokens = [ShardReader(stream, defaults) for stream in self.streams]
        self._scores = [ShardReader(scores[name], defaults) for name in self.domains] if scores is not None else None
        for name, reader in zip(self.domains, self._tokens, strict=True):
            if not len(reader):
                raise UserError(f"{reader.folder}: domain {name!r} has no sequences")
        for name, reader, score in zip(self.domains, self._tokens, self._scores or [], strict=False):
            if len(score) != len(reader):
                raise UserError(f"{score.folder}: {len(score)} scores for the {len(reader)} sequences of {name!r}")
        self._own_weights = quantise_weights(self._stream_proportions())
        self._build()

    def _stream_proportions(self) -> np.ndarray:
        given = [hasattr(stream, "proportion") for stream in self.streams]
        if all(given):
            return np.array([stream.proportion for stream in self.streams], np.float64)
        if any(given):
            raise UserError("streams: either all streams have a `proportion` or none has")
        return np.array([len(reader) for reader in self._tokens], np.float64)

    def _build(self) -> None:
        samples_per_shard = [reader.samples_per_shard for reader in self._tokens]
        self._order = Order(
            samples_per_shard, self.num_canonical_nodes, self.shuffle_seed, self.shuffle_block_size, self.shuffle
        )
        # The planner of the last batch that the trainer is known to have consumed; workers run ahead on copies.
        self._planner = self._new_planner()
        self._ring = WeightRing(len(self.domains), self.lag)
        self._rows: dict[int, np.ndarray] = {}
        self._published = 0

    def _new_planner(self) -> Planner:
        return Planner(len(self.domains), self.global_batch_size, self.num_canonical_nodes, self.shuffle_seed)

    # ---- weights ----

    @property
    def own_proportions(self) -> np.ndarray:
        """(k,) float64: the shares that the streams were given, in force while nobody publishes others."""
        return self._own_weights / UNIT

    @property
    def published(self) -> int:
        """Global batches whose weights have been published; 0 while nobody publishes."""
        return self._published

    def publish(self, weights: Mapping[str, float] | Sequence[float] | np.ndarray) -> np.ndarray:
        """Give the sampling weights of the next unpublished global batch; call it alike on every rank.

        Returns:
            (k,) float64: the shares that this batch promises, after rounding to 2^-20.

        Raises:
            ValueError: weights that are negative, not numbers or all zero, or for other domains.
        """
        if isinstance(weights, Mapping):
            if set(weights) != set(self.domains):
                raise ValueError(f"weights are for {sorted(weights)}, the streams are {sorted(self.domains)}")
            weights = [weights[name] for name in self.domains]
        row = quantise_weights(np.asarray(weights, np.float64))
        if len(row) != len(self.domains):
            raise ValueError(f"{len(row)} weights for {len(self.domains)} domains")
        self._ring.write(self._published, row)
        self._rows[self._published] = row
        self._published += 1
        shares = row / UNIT
        for stream, share in zip(self.streams, shares.tolist(), strict=True):
            stream.proportion = share
        return shares

    def shares(self, batch: int) -> np.ndarray:
        """(k,) float64: what the published weights of global batch `batch` promise each domain.

        Batches before the last `state_dict` are forgotten.
        """
        return self._rows[batch] / UNIT

    def _weights_of(self, batch: int) -> np.ndarray:
        return self._ring.read(batch) if self._published else self._own_weights

    def close(self) -> None:
        """Free workers that wait for weights. Iterated again, the stream goes on after the last `state_dict`."""
        self._ring.close()

    # ---- batches ----

    def __iter__(self) -> Iterator[dict[str, Any]]:
        world = World.detect()
        if 0 < self._published < self._planner.index + self.lag:
            raise RuntimeError(
                f"weights are published up to batch {self._published}, but the first {self.lag} (the lag) from batch "
                f"{self._planner.index} on must be published before the dataset is iterated"
            )
        self._ring.reopen()
        planner = self._new_planner()
        planner.load_state_dict(self._planner.state_dict())
        first = planner.index
        mine = slice(world.rank * self.batch_size, (world.rank + 1) * self.batch_size)
        while True:
            try:
                plan = planner.advance(self._weights_of(planner.index))
            except StreamClosed:
                return
            if (plan.index - first) % world.workers_per_rank != world.worker_of_rank:
                continue
            domains, nodes, draws = plan.domain[mine], plan.node[mine], plan.draw[mine]
            samples = self._order.samples(domains, nodes, draws)
            for domain, sample in zip(domains.tolist(), samples.tolist(), strict=True):
                yield self._load(domain, sample)

    def _load(self, domain: int, sample: int) -> dict[str, Any]:
        tokens = self._tokens[domain][sample]["tokens"].astype(np.int64)
        loaded = {"input_ids": tokens, "labels": tokens, "domain": domain}
        if self._scores is not None:
            loaded["ref_loss"] = self._scores[domain][sample]["ref_loss"].astype(np.float32)
        return loaded

    # ---- resume ----

    def state_dict(self, num_samples: int, from_beginning: bool) -> dict[str, Any]:
        """The state after `num_samples` sequences (over all ranks) were consumed, as plain types.

        Args:
            num_samples: a multiple of the global batch.
            from_beginning: counted from the start of the run, as Composer does; else since the last resume.
        """
        batch, rest = divmod(num_samples, self.global_batch_size)
        if not from_beginning:
            batch += self._planner.index
        if rest or batch < self._planner.index:
            raise ValueError(f"{num_samples} sequences are not a whole number of batches from {self._planner.index} on")
        while self._planner.index < batch:
            number = self._planner.index
            self._planner.advance(self._rows.pop(number) if self._published else self._own_weights)
        return {
            "version": STATE_VERSION,
            "domains": list(self.domains),
            "global_batch_size": self.global_batch_size,
            "num_canonical_nodes": self.num_canonical_nodes,
            "lag": self.lag,
            "shuffle_seed": self.shuffle_seed,
            "planner": self._planner.state_dict(),
            "published": [self._rows[number].tolist() for number in range(batch, self._published)],
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where `state_dict` stood, on any number of ranks and workers that the global batch allows.

        Raises:
            UserError: a state of another version, other domains, another global batch or another seed.
        """
        if state.get("version") != STATE_VERSION:
            raise UserError(f"checkpoint: stream state version {state.get('version')}, this is {STATE_VERSION}")
        for key in ("domains", "global_batch_size", "shuffle_seed"):
            if state[key] != getattr(self, key):
                raise UserError(f"checkpoint: the stream's {key} was {state[key]}, now it is {getattr(self, key)}")
        _check_nodes(state["num_canonical_nodes"], self.global_batch_size, World.detect().num_nodes)
        self.num_canonical_nodes = state["num_canonical_nodes"]
        self.lag = state["lag"]
        self._build()
        self._planner.load_state_dict(state["planner"])
        self._published = self._planner.index if state["published"] else 0
        for row in state["published"]:
            self.publish(np.array(row, np.int64))


def _greatest_divisor(batch_size: int, num_nodes: int) -> int:
    fitting = [n for n in range(1, MAX_CANONICAL_NODES + 1) if batch_size % n == 0 and n % num_nodes == 0]
    return max(fitting, default=num_nodes)


def _check_nodes(canonical: int, batch_size: int, physical: int) -> None:
    if batch_size % canonical or canonical % physical:
        fitting = [n for n in range(physical, batch_size + 1, physical) if batch_size % n == 0]
        raise UserError(
            f"num_canonical_nodes: {canonical} does not divide the global batch of {batch_size} sequences into whole "
            f"shares of {physical} physical nodes; these would do: {', '.join(map(str, fitting)) or 'none'}"
        )
