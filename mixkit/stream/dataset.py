"""`MixtureDataset`: a streaming dataset whose domain shares may change while the run goes.

The one idea: the sequence of global batches is a pure function of (seed, global batch size, canonical nodes, published
weights), which every worker of every rank evaluates for itself. Nothing is laid out per epoch, there is no epoch, and
the only thing that travels from the trainer to its workers is one row of weights per global batch.
"""

from __future__ import annotations

import os
import weakref
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NoReturn

import numpy as np
import torch
from streaming import Stream, StreamingDataset
from streaming.base.world import World
from torch.utils.data import get_worker_info

from mixkit.errors import UserError
from mixkit.stream.apportion import UNIT, quantise_weights
from mixkit.stream.cache import Cache
from mixkit.stream.lookahead import LookAhead
from mixkit.stream.order import Order
from mixkit.stream.parent import end_with_parent
from mixkit.stream.place import Place, check_nodes, greatest_divisor
from mixkit.stream.planner import Planner
from mixkit.stream.published import StreamClosed, WeightRing
from mixkit.stream.shards import OPEN_SHARDS, ShardReader

STATE_VERSION = 2
DEFAULT_LAG = 16


class MixtureDataset(StreamingDataset):
    """Streams of MDS shards, mixed in proportions that a trainer may publish batch by batch.

    Yields, without end, a dict per sequence: `input_ids` and `labels` (T,) int64, `domain` (its stream's place in the
    order of `streams`) and, where `scores` are given, `ref_loss` (T,) float32.

    It is a `StreamingDataset` to whoever asks (StreamingDataLoader and llm-foundry's callbacks do), but shares no code
    with it: that constructor lays out an epoch and takes named shared memory, and none of its methods would work.

    Args:
        streams: domain name to `streaming.Stream`; a plain sequence is named "0", "1", ….
        batch_size: sequences of one rank in a batch; the global batch is this times the ranks (over `replication`).
        scores: domain name to a stream of reference losses, sample by sample aligned with `streams`.
        shuffle: False reads every pass in the order of the shards.
        shuffle_seed: one seed for slots and orders.
        shuffle_block_size: sequences that are shuffled among each other within a pass.
        num_canonical_nodes: nodes that the order is laid out for; a divisor of the global batch and a multiple of the
            physical nodes. Default: the greatest divisor of the global batch up to 64.
        lag: the weights of global batch t are published at the end of step t - lag.
        predownload: sequences per worker whose shards are fetched ahead, shared among domains by their current
            weights. Default: 8 times `batch_size`.
        cache_limit: bytes (or "100gb") that fetched shards may take on a node; what was not used for longest goes.
        replication: so many consecutive ranks read the same sequences (tensor parallelism).
        split, download_retry, download_timeout, validate_hash, keep_zip: as for `StreamingDataset`.

    Raises:
        UserError: a stream without shards or without samples, negative proportions, canonical nodes that do not fit, a
            cache limit that is too small, a replication that does not divide the ranks.
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
        predownload: int | None = None,
        cache_limit: int | str | None = None,
        replication: int | None = None,
        split: str | None = None,
        download_retry: int = 2,
        download_timeout: float = 60,
        validate_hash: str | None = None,
        keep_zip: bool = False,
    ) -> None:
        if not isinstance(streams, Mapping):
            streams = {str(number): stream for number, stream in enumerate(streams)}
        self.streams = list(streams.values())
        self.domains = list(streams)
        self.batch_size = batch_size
        self.replication = replication
        place = Place.of(World.detect(), replication)
        self.global_batch_size = batch_size * place.num_ranks
        self.num_canonical_nodes = num_canonical_nodes or greatest_divisor(self.global_batch_size)
        check_nodes(self.num_canonical_nodes, self.global_batch_size, place.num_nodes)
        if lag < 1:
            raise UserError(f"lag: at least 1 global batch; found {lag}")
        self.lag = lag
        self.shuffle = shuffle
        self.shuffle_seed = shuffle_seed
        self.shuffle_block_size = shuffle_block_size
        self.predownload = 8 * batch_size if predownload is None else predownload

        defaults = {
            "split": split,
            "download_retry": download_retry,
            "download_timeout": download_timeout,
            "validate_hash": validate_hash,
            "keep_zip": keep_zip,
        }
        self._tokens = [ShardReader(stream, defaults) for stream in self.streams]
        self._scores = [ShardReader(scores[name], defaults) for name in self.domains] if scores is not None else None
        self._cache = Cache([*self._tokens, *(self._scores or [])], cache_limit) if cache_limit else None
        for reader in [*self._tokens, *(self._scores or [])]:
            reader.cache = self._cache
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
        self._ring = WeightRing(len(self.domains), self.lag)
        # A finalizer, so that a stream that is dropped after an error frees its workers too.
        weakref.finalize(self, self._ring.close)
        # This process's planner stands after the last batch that it knows to be consumed. Where iterations begin is
        # written twice: a new worker takes the copy that it was made with (the trainer may be batches ahead before
        # the last worker is up), a worker that persists looks into shared memory.
        self._planner = self._new_planner()
        self._start = self._planner.pack()
        self._shared_start = torch.from_numpy(self._start.copy()).share_memory_()
        self._loader_begins = False
        self._iterated_in = 0
        self._ahead_of_clock = 0

    def _new_planner(self) -> Planner:
        return Planner(len(self.domains), self.global_batch_size, self.num_canonical_nodes, self.shuffle_seed)

    def _planner_at(self, packed: np.ndarray) -> Planner:
        planner = self._new_planner()
        planner.unpack(packed)
        return planner

    def _start_here(self) -> None:
        """Have iterations begin where this process's planner stands."""
        self._start = self._planner.pack()
        if not self._loader_begins:
            self._shared_start.copy_(torch.from_numpy(self._start))

    def begun_by_loader(self) -> None:
        """For a loader whose workers persist and that calls `begin` before each iteration."""
        self._loader_begins = True

    def begin(self) -> None:
        """Have the next iteration of workers that persist begin where this process knows the stream to be.

        Without it they look when they come to it, which may be after the trainer has moved on; and one that waits for
        weights does not hear that it is to begin anew.
        """
        self.close()
        self._shared_start.copy_(torch.from_numpy(self._start))

    # ---- weights ----

    @property
    def own_proportions(self) -> np.ndarray:
        """(k,) float64: the shares that the streams were given, in force while nobody publishes others."""
        return self._own_weights / UNIT

    @property
    def published(self) -> int:
        """Global batches whose weights have been published; 0 while nobody publishes."""
        return self._ring.published

    def publish(self, weights: Mapping[str, float] | Sequence[float] | np.ndarray) -> np.ndarray:
        """Give the sampling weights of the next unpublished global batch; call it alike on every rank.

        The first `lag` rows come before the first `iter`, then one per batch that was consumed: that is also how the
        dataset knows where it stands.

        Returns:
            (k,) float64: the shares that this batch promises, after rounding to 2^-20.

        Raises:
            ValueError: weights that are negative, not numbers or all zero, or for other domains.
            RuntimeError: the first row, while an iteration over the streams' own proportions goes on; more rows than
                the lag before the first `iter`.
        """
        if isinstance(weights, Mapping):
            if set(weights) != set(self.domains):
                raise ValueError(f"weights are for {sorted(weights)}, the streams are {sorted(self.domains)}")
            weights = [weights[name] for name in self.domains]
        row = quantise_weights(np.asarray(weights, np.float64))
        if len(row) != len(self.domains):
            raise ValueError(f"{len(row)} weights for {len(self.domains)} domains")
        if not self.published and self._ring.running:
            raise RuntimeError(f"publish the first {self.lag} (the lag) rows of weights before the dataset is iterated")
        if self._ring.begun < 0 and self.published >= self._planner.index + self.lag:
            raise RuntimeError(
                f"{self.lag} (the lag) rows of weights are published; the next one after a batch was taken"
            )
        self._ring.write(self.published or self._planner.index, row)
        if self.published - self.lag > self._start[0]:
            self.seek(self.published - self.lag)
        shares = row / UNIT
        for stream, share in zip(self.streams, shares.tolist(), strict=True):
            stream.proportion = share
        return shares

    def shares(self, batch: int) -> np.ndarray:
        """(k,) float64: what the weights of global batch `batch` promise each domain.

        Raises:
            RuntimeError: its weights are not published yet, or more than 256 batches old.
        """
        return self._weights_of(batch) / UNIT

    def passes(self) -> dict[str, float]:
        """Domain to how often its sequences have been read, up to the last batch known to be consumed.

        Every `publish` makes one known, and so do `consumed` and `state_dict`.
        """
        draws = self._planner.draws.sum(axis=1)
        return {name: int(n) / len(r) for name, n, r in zip(self.domains, draws, self._tokens, strict=True)}

    def _weights_of(self, batch: int, closings: int | None = None) -> np.ndarray:
        return self._ring.read(batch, closings) if self.published else self._own_weights

    def close(self) -> None:
        """Free workers that wait for weights. Iterated again, the stream goes on after the last consumed batch."""
        self._ring.close()

    def join(self, state: Any) -> None:
        """Add a `MixtureMonitor` to a Composer trainer's state, unless it has one; for algorithms, at FIT_START."""
        from mixkit.stream.monitor import MixtureMonitor  # only where Composer runs anyway

        if not any(isinstance(callback, MixtureMonitor) for callback in state.callbacks):
            state.callbacks.append(MixtureMonitor())

    # ---- batches ----

    def __iter__(self) -> Iterator[dict[str, Any]]:
        read = [self._tokens] if self._scores is None else [self._tokens, self._scores]
        return self._samples(self._batches(World.detect(), [list(kinds) for kinds in zip(*read, strict=True)]))

    def sample_ids(self) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """What an `iter` now would read, by number: a look at this rank's batches, and no shard is opened.

        Yields:
            domain, sample: (batch_size,) int64 in slot order; the sample's number within its domain.

        Raises:
            RuntimeError: at the first batch whose weights are not published.
        """
        return self._planned(self._planner_at(self._start), None, World.detect(), None)

    def _batches(self, world: World, ahead: list[list[ShardReader]] | None) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        worker = get_worker_info() is not None
        new_worker = worker and self._iterated_in != os.getpid()
        self._iterated_in = os.getpid()
        if new_worker:
            end_with_parent()
        elif worker and self._shared_start[0] < 0:
            return _raise(
                "the dataset was given a state with another lag or other canonical nodes than its workers know: make a "
                "new loader"
            )
        planner = self._planner_at(self._start if new_worker or not worker else self._shared_start.numpy())
        if 0 < self.published < planner.index + self._ring.primed_by:
            return _raise(
                f"weights are published up to batch {self.published}, but the first {self.lag} (the lag) from batch "
                f"{planner.index} on must be published before the dataset is iterated"
            )
        return self._planned(planner, self._ring.begin(planner.index, new_worker), world, ahead)

    def _planned(
        self, planner: Planner, closings: int | None, world: World, readers: list[list[ShardReader]] | None
    ) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        place = Place.of(world, self.replication)
        first = planner.index
        mine = slice(place.rank * self.batch_size, (place.rank + 1) * self.batch_size)
        ahead = None
        if readers is not None and self.predownload and any(reader.prepared for kinds in readers for reader in kinds):
            nodes = place.canonical_nodes(self.num_canonical_nodes, self.global_batch_size)
            part = world.worker_of_rank, world.workers_per_rank
            ahead = LookAhead(readers, self._order, nodes, self.predownload * part[1], part)
        try:
            while closings in (None, self._ring.closings):
                if ahead is not None:
                    ahead.tell(planner.draws, self._ring.newest(self._own_weights))
                try:
                    weights = self._weights_of(planner.index, closings)
                except StreamClosed:
                    return
                if (planner.index - first) % world.workers_per_rank != world.worker_of_rank:
                    planner.skip(weights)
                    continue
                plan = planner.advance(weights)
                domain = plan.domain[mine]
                yield domain, self._order.samples(domain, plan.node[mine], plan.draw[mine])
        finally:
            if ahead is not None:
                ahead.stop()

    def _samples(self, batches: Iterator[tuple[np.ndarray, np.ndarray]]) -> Iterator[dict[str, Any]]:
        for domains, samples in batches:
            for domain, sample in zip(domains.tolist(), samples.tolist(), strict=True):
                tokens = self._tokens[domain][sample]["tokens"].astype(np.int64)
                loaded = {"input_ids": tokens, "labels": tokens, "domain": domain}
                if self._scores is not None:
                    loaded["ref_loss"] = self._scores[domain][sample]["ref_loss"].astype(np.float32)
                yield loaded
            if self._cache is not None:
                OPEN_SHARDS.let_go_of_evicted()

    # ---- where it stands ----

    def seek(self, batch: int) -> None:
        """Begin the next iteration with global batch `batch`.

        Raises:
            ValueError: a batch before those that were published for.
        """
        self._plan_up_to(batch)
        self._start_here()

    def follow(self, batches: int) -> None:
        """From now on a trainer's clock, which stands at `batches`, counts from where this stream stands."""
        self._ahead_of_clock = int(self._start[0]) - batches

    def consumed(self, batches: int) -> None:
        """The trainer's clock stands at `batches`; for whoever trains and does not publish."""
        self.seek(batches + self._ahead_of_clock)

    def _plan_up_to(self, batch: int) -> None:
        """Bring this process's planner to where `batch` is next."""
        if batch < self._planner.index and not self.published:
            self._planner = self._planner_at(self._start)
        if batch < self._planner.index:
            raise ValueError(
                f"batch {batch} is asked for, but {self._planner.index} were consumed by the number of published rows: "
                f"publish once a batch, {self.lag} (the lag) ahead"
            )
        while self._planner.index < batch:
            self._planner.skip(self._weights_of(self._planner.index))

    def state_dict(self, num_samples: int, from_beginning: bool) -> dict[str, Any]:
        """The state after `num_samples` sequences (over all ranks, replicas once) were consumed, as plain types.

        Args:
            num_samples: a multiple of the global batch.
            from_beginning: counted from the start of the run, as Composer does (see `follow` for a clock that was set
                anew); else since `iter` was last called, as StreamingDataLoader does.
        """
        batch, rest = divmod(num_samples, self.global_batch_size)
        if rest:
            raise ValueError(f"{num_samples} sequences are not whole batches of {self.global_batch_size}")
        if from_beginning:
            batch += self._ahead_of_clock
        else:
            batch += int(self._start[0]) if self._ring.begun < 0 else self._ring.begun
        self._plan_up_to(batch)
        return {
            "version": STATE_VERSION,
            **self._identity(),
            "num_canonical_nodes": self.num_canonical_nodes,
            "lag": self.lag,
            "planner": self._planner.state_dict(),
            "published": [self._ring.read(number).tolist() for number in range(batch, self.published)],
        }

    def _identity(self) -> dict[str, Any]:
        """What a resumed stream must have in common with the one that was stopped."""
        return {
            "domains": list(self.domains),
            "samples": [len(reader) for reader in self._tokens],
            "global_batch_size": self.global_batch_size,
            "shuffle": self.shuffle,
            "shuffle_seed": self.shuffle_seed,
            "shuffle_block_size": self.shuffle_block_size,
        }

    def load_state_dict(self, obj: dict[str, Any]) -> None:
        """Go on where `state_dict` stood, on any number of ranks and workers that the global batch allows.

        Raises:
            UserError: a state of another version, other domains, another global batch, another seed or order.
        """
        if obj.get("version") != STATE_VERSION:
            raise UserError(f"checkpoint: stream state version {obj.get('version')}; this mixkit reads {STATE_VERSION}")
        for key, value in self._identity().items():
            if obj[key] != value:
                raise UserError(f"checkpoint: the stream's {key} was {obj[key]}, now it is {value}")
        self._ring.close()  # whoever waits for the rows of before
        nodes, lag = obj["num_canonical_nodes"], obj["lag"]
        if (nodes, lag) != (self.num_canonical_nodes, self.lag):
            check_nodes(nodes, self.global_batch_size, Place.of(World.detect(), self.replication).num_nodes)
            self.num_canonical_nodes, self.lag = nodes, lag
            self._shared_start[0] = -1  # for workers that persist and know only this
            self._build()
        self._ring.forget(primed_by=min(self.lag, len(obj["published"])))
        self._planner.load_state_dict(obj["planner"])
        self._start_here()
        for number, row in enumerate(obj["published"], self._planner.index):
            self._ring.write(number, np.array(row, np.int64))

    # ---- what a StreamingDataset has and an endless mixture cannot ----

    def __len__(self) -> int:
        raise TypeError("a mixture has no end and no length; count batches, sequences or tokens")

    @property
    def size(self) -> int:
        """Sequences in all streams together."""
        return sum(len(reader) for reader in self._tokens)

    def get_item(self, sample_id: int, retry: int = 7) -> NoReturn:
        raise TypeError("a mixture is iterated; open a domain's folder with StreamingDataset to look at its samples")


def _raise(message: str) -> Iterator[Any]:
    """Fail at the first sample: torch lets a persistent worker die that fails at `iter`, and nobody hears why."""
    raise RuntimeError(message)
    yield
