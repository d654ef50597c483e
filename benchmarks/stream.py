"""The live stream beside StreamingDataset: speed, start, resume, memory and the cost of planning.

Every figure comes from a process of its own, the two sides in turns, and is printed with its ratio. `python
benchmarks/stream.py` makes its shards in a temporary folder (260 MB) and takes about six minutes on two cores.
"""

from __future__ import annotations

import gc
import json
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

DOMAINS, SEQUENCES, LENGTH, BATCH = 8, 16384, 1024, 32
REPEATS = 5
INDEX_DOMAINS, PER_SHARD, INDEX_BATCH, CANONICAL = 22, 16384, 512, 64
SMALL, LARGE = 10**6, 5 * 10**7
OURS, THEIRS = "mixkit", "StreamingDataset"


# ---- what a process of its own measures ----


def throughput(side: str, folder: str, workers: str) -> dict[str, float]:
    """Samples a second through a loader; ours with weights that change and are published every step."""
    from streaming import Stream, StreamingDataLoader, StreamingDataset

    prefetch = {"prefetch_factor": 2} if int(workers) else {}
    streams = [Stream(local=str(path), proportion=1.0) for path in sorted(Path(folder).iterdir())]
    if side == OURS:
        from mixkit.stream import MixtureDataset
        from mixkit.stream.loader import MixtureLoader

        dataset = MixtureDataset(streams=streams, batch_size=BATCH)
        for _ in range(dataset.lag):
            dataset.publish(np.ones(DOMAINS))
        loader = MixtureLoader(dataset, num_workers=int(workers), **prefetch)
    else:
        dataset = StreamingDataset(streams=streams, batch_size=BATCH, shuffle=True, num_canonical_nodes=BATCH)
        loader = StreamingDataLoader(dataset, batch_size=BATCH, num_workers=int(workers), **prefetch)
    rng = np.random.default_rng(0)
    batches, warm, taken = iter(loader), 100, 1000
    for number in range(warm + taken):
        if number == warm:
            began = time.perf_counter()
        next(batches)
        if side == OURS:
            dataset.publish(rng.dirichlet(np.full(DOMAINS, 20.0)))
    return {"samples/s": BATCH * taken / (time.perf_counter() - began)}


def start(side: str, folder: str, middle: str) -> dict[str, float]:
    """Seconds from the built dataset to the first batch's sample ids, from the start or the middle; peak memory."""
    from streaming import Stream, StreamingDataset

    streams = [Stream(local=str(path)) for path in sorted(Path(folder).iterdir())]
    if side == "index":
        from streaming.base.world import World

        for stream in streams:
            stream.apply_default({"split": None, "keep_zip": False} | dict.fromkeys(_STREAM_DEFAULTS))
        readers = [stream.get_shards(World.detect(), False) for stream in streams]
        return {"shards": sum(map(len, readers)), "peak": _memory("VmHWM")}
    if side == OURS:
        from mixkit.stream import MixtureDataset

        dataset = MixtureDataset(streams=streams, batch_size=INDEX_BATCH, num_canonical_nodes=CANONICAL)
        if int(middle):
            dataset.load_state_dict(json.loads(Path(folder + ".state.json").read_text()))
        gc.collect()  # else a collection that was due anyway may fall into either side's time
        began = time.perf_counter()
        next(dataset.sample_ids())
    else:
        dataset = StreamingDataset(
            streams=streams, batch_size=INDEX_BATCH, shuffle=True, num_canonical_nodes=CANONICAL, shuffle_algo="py1e"
        )
        if int(middle):
            state = {"epoch": 0, "sample_in_epoch": dataset.size // 2 // INDEX_BATCH * INDEX_BATCH}
            dataset.load_state_dict({**state, "num_canonical_nodes": CANONICAL, "shuffle_seed": 9176})
        gc.collect()
        began = time.perf_counter()
        # What its `iter` does before the first sample is read.
        dataset._unique_worker_world = dataset._unique_rank_world.detect_workers()
        dataset._parallel_worker_world = dataset._parallel_rank_world.detect_workers()
        dataset._get_work(*dataset._resume_incr_epoch())
    return {"seconds": time.perf_counter() - began, "peak": _memory("VmHWM")}


_STREAM_DEFAULTS = ("download_retry", "download_timeout", "validate_hash")


def save_middle(folder: str) -> dict[str, float]:
    """Write the state of our stream after half the samples."""
    from streaming import Stream

    from mixkit.stream import MixtureDataset

    streams = [Stream(local=str(path)) for path in sorted(Path(folder).iterdir())]
    dataset = MixtureDataset(streams=streams, batch_size=INDEX_BATCH, num_canonical_nodes=CANONICAL)
    state = dataset.state_dict(dataset.size // 2 // INDEX_BATCH * INDEX_BATCH, True)
    text = json.dumps(state)
    Path(folder + ".state.json").write_text(text)
    return {"bytes": len(text)}


def planning(domains: str) -> dict[str, float]:
    """Milliseconds to plan a global batch of 512, and to number its samples, under weights that change every batch."""
    from mixkit.stream.apportion import quantise_weights
    from mixkit.stream.order import Order
    from mixkit.stream.planner import Planner

    k, rng = int(domains), np.random.default_rng(0)
    rows = [quantise_weights(rng.dirichlet(np.ones(k))) for _ in range(300)]
    planner = Planner(k, INDEX_BATCH, CANONICAL, 1)
    order = Order([np.full(140, PER_SHARD)] * k, CANONICAL, 1, 1 << 18, True)
    began = time.perf_counter()
    plans = [planner.advance(row) for row in rows]
    planned = time.perf_counter()
    for plan in plans:
        order.samples(plan.domain, plan.node, plan.draw)
    return {
        "plan": (planned - began) / len(rows) * 1e3,
        "ids": (time.perf_counter() - planned) / len(rows) * 1e3,
    }


def _memory(name: str) -> float:
    """MB of this process, as Linux counts them."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(name):
            return int(line.split()[1]) / 1e3
    raise OSError(f"no {name} in /proc/self/status")


TASKS: dict[str, Callable[..., dict[str, float]]] = {
    task.__name__: task for task in (throughput, start, save_middle, planning)
}


# ---- what the benchmark does ----


def measure(*words: Any) -> dict[str, float]:
    """One task in a process of its own."""
    command = [sys.executable, __file__, *(str(word) for word in words)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600)
    if done.returncode:
        raise SystemExit(done.stderr)
    return json.loads(done.stdout.splitlines()[-1])


def write_shards(folder: Path) -> None:
    """Uncompressed domains of random tokens, so that nothing but reading is measured."""
    from streaming import MDSWriter

    rng = np.random.default_rng(0)
    for number in range(DOMAINS):
        with MDSWriter(out=str(folder / str(number)), columns={"tokens": f"ndarray:uint16:{LENGTH}"}) as out:
            for row in rng.integers(0, 50000, (SEQUENCES, LENGTH), dtype=np.uint16):
                out.write({"tokens": row})


def write_index(folder: Path, samples: int) -> None:
    """Indexes of shards that are not there, about `samples` in all."""
    info = {"column_encodings": ["ndarray:uint16:1024"], "column_names": ["tokens"], "column_sizes": [2048]}
    info |= {"compression": None, "format": "mds", "hashes": [], "size_limit": 1 << 26, "version": 2, "zip_data": None}
    per_shard = min(PER_SHARD, samples // INDEX_DOMAINS // 2)
    for number in range(INDEX_DOMAINS):
        shards = [
            {**info, "samples": per_shard, "raw_data": {"basename": f"shard.{n:05}.mds", "bytes": 1, "hashes": {}}}
            for n in range(round(samples / INDEX_DOMAINS / per_shard))
        ]
        (folder / str(number)).mkdir(parents=True)
        (folder / str(number) / "index.json").write_text(json.dumps({"version": 2, "shards": shards}))


def main() -> None:
    table = Table("figure", OURS, THEIRS, "ratio", "target")

    def row(figure: str, ours: float, theirs: float, target: str, form: str = "{:,.0f}") -> None:
        table.add_row(figure, form.format(ours), form.format(theirs), f"{ours / theirs:.3g}", target)

    with tempfile.TemporaryDirectory() as root:
        write_shards(Path(root, "shards"))
        for workers in (0, 1, 2):
            runs = {OURS: [], THEIRS: []}
            for _ in range(REPEATS):
                for side, found in runs.items():
                    found.append(measure("throughput", side, Path(root, "shards"), workers)["samples/s"])
            ours, theirs = (statistics.median(runs[side]) for side in (OURS, THEIRS))
            ratios = sorted(a / b for a, b in zip(runs[OURS], runs[THEIRS], strict=True))
            row(f"samples/s, num_workers={workers}", ours, theirs, f"≥ 1.0 ({ratios[0]:.2f} to {ratios[-1]:.2f} seen)")
        peaks = {}
        for samples in (SMALL, LARGE):
            folder = Path(root, str(samples))
            write_index(folder, samples)
            state = measure("save_middle", folder)["bytes"]
            index = measure("start", "index", folder, 0)["peak"]
            for middle, name in ((0, "first batch's ids"), (1, "ids after a resume in the middle")):
                ours, theirs = (measure("start", side, folder, middle) for side in (OURS, THEIRS))
                row(f"{name}, {samples:,} samples (ms)", ours["seconds"] * 1e3, theirs["seconds"] * 1e3, "≤ 0.05")
                if not middle:
                    peaks[samples] = ours["peak"] - index, theirs["peak"] - index
            row(f"memory above the index, {samples:,} samples (MB)", *peaks[samples], "≤ 0.1")
            table.add_row(f"our state, {samples:,} samples (bytes)", f"{state:,}", "", "", "kilobytes")
    for domains, target in ((22, 1), (1000, 10)):
        cost = measure("planning", domains)
        ours = f"{cost['plan']:.2f} + {cost['ids']:.2f}"
        table.add_row(f"planning a batch of 512 + its ids, {domains} domains (ms)", ours, "", "", f"≤ {target}")
    Console(width=120).print(table)


if __name__ == "__main__":
    if len(sys.argv) > 1:
        warnings.simplefilter("ignore")
        print(json.dumps(TASKS[sys.argv[1]](*sys.argv[2:])))
    else:
        main()
