"""Worlds of many nodes, ranks and workers, played in one process by telling each who it is."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from unittest.mock import patch

import numpy as np
from streaming import Stream
from streaming.base.world import World
from torch.utils.data._utils import worker as torch_worker

from mixkit.stream import MixtureDataset


def place_of(nodes: int, ranks_per_node: int, rank: int) -> dict[str, str]:
    """What a launcher puts into the environment of a rank."""
    place = {
        "WORLD_SIZE": nodes * ranks_per_node,
        "LOCAL_WORLD_SIZE": ranks_per_node,
        "RANK": rank,
        "LOCAL_RANK": rank % ranks_per_node,
    }
    return {name: str(value) for name, value in place.items()}


@contextlib.contextmanager
def rank_of(nodes: int, ranks_per_node: int, rank: int) -> Iterator[None]:
    """Be one rank of a launcher's world."""
    with patch.dict(os.environ, place_of(nodes, ranks_per_node, rank)):
        yield


@contextlib.contextmanager
def worker_of(number: int, count: int) -> Iterator[None]:
    """Be one loader worker; with a count of 0 the main process."""
    info = torch_worker.WorkerInfo(id=number, num_workers=count, seed=0, dataset=None) if count else None
    with patch.object(torch_worker, "_worker_info", info):
        yield


def index_only(folder: Path, samples_per_shard: list[int]) -> Path:
    """An MDS index without data: enough to ask for sample numbers."""
    folder.mkdir(parents=True)
    shards = [
        {
            "column_encodings": ["ndarray:uint16:8"],
            "column_names": ["tokens"],
            "column_sizes": [16],
            "compression": None,
            "format": "mds",
            "hashes": [],
            "raw_data": {"basename": f"shard.{number:05}.mds", "bytes": 100 + 16 * samples, "hashes": {}},
            "samples": samples,
            "size_limit": 1 << 26,
            "version": 2,
            "zip_data": None,
        }
        for number, samples in enumerate(samples_per_shard)
    ]
    (folder / "index.json").write_text(json.dumps({"version": 2, "shards": shards}))
    return folder


def open_indexes(folders: dict[str, Path], batch_size: int, **settings) -> MixtureDataset:
    streams = {name: Stream(local=str(folder), split=None, proportion=1.0) for name, folder in folders.items()}
    return MixtureDataset(streams=streams, batch_size=batch_size, **settings)


def play(
    make: Callable[[int], MixtureDataset],
    world: tuple[int, int, int],
    weights: Callable[[int], np.ndarray] | None,
    batches: range,
    state: dict | None = None,
) -> tuple[list[list[tuple[int, int]]], list[MixtureDataset]]:
    """Train in a world: every rank primes (unless it resumes), takes its batches from its workers, publishes.

    Args:
        make: ranks to the dataset of the rank that it is called as.
        world: nodes, ranks per node, workers per rank.
        weights: batch to its weights; None for the streams' own proportions.
        batches: the numbers of the batches to take.
        state: what to resume from.

    Returns:
        the global batches as lists of (domain, sample) in slot order, and the ranks' datasets.
    """
    nodes, ranks_per_node, workers = world
    datasets, sources = [], []
    for rank in range(nodes * ranks_per_node):
        with rank_of(nodes, ranks_per_node, rank):
            dataset = make(nodes * ranks_per_node)
            if state is not None:
                dataset.load_state_dict(json.loads(json.dumps(state)))
            elif weights is not None:
                for batch in range(dataset.lag):
                    dataset.publish(weights(batch))
            datasets.append(dataset)
            of_rank = []
            for number in range(max(workers, 1)):
                with worker_of(number, workers):
                    of_rank.append(dataset._batches(World.detect(), None))
            sources.append(of_rank)
    taken = []
    for turn, batch in enumerate(batches):
        slots: list[tuple[int, int]] = []
        for of_rank in sources:
            domain, sample = next(of_rank[turn % len(of_rank)])
            slots += zip(domain.tolist(), sample.tolist(), strict=True)
        taken.append(slots)
        if weights is not None:
            for dataset in datasets:
                dataset.publish(weights(batch + dataset.lag))
    return taken, datasets
