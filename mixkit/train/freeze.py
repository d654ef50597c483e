"""`mixkit freeze`: a finished DoReMi run's weight history to a mixture file."""

from __future__ import annotations

import os
from pathlib import Path

from mixkit.errors import UserError
from mixkit.mixture import Mixture, check_weights, shard_entry
from mixkit.shards.manifest import load_manifest
from mixkit.train.runfolder import WEIGHTS, read_config, read_finished, read_weights


def freeze(run: Path, relative: bool = False, remote: str | None = None, cache: str | None = None) -> Mixture:
    """The run's result, ᾱ (the mean of α over the steps; arXiv 2305.10429, step 2), with stream entries and provenance.

    Args:
        run: run folder of a finished DoReMi run.
        relative: write `local` relative to the current folder, not as an absolute path.
        remote: URL of a copy of the shards' folder, for streaming from elsewhere.
        cache: with `remote`, the folder that shards are cached in.

    Raises:
        UserError: not a finished DoReMi run, or its shards are gone.
    """
    config, finished = read_config(run), read_finished(run)
    if config.algorithms.doremi is None:
        raise UserError(f"{run}: holds no weights; only a run with algorithms.doremi finds some")
    if finished is None:
        raise UserError(f"{run}: is not finished; go on with the command that started it, then freeze it")
    if (remote is None) != (cache is None):
        raise UserError("--remote and --cache go together: a stream with a remote needs a cache folder of its own")
    domains, history = read_weights(run)
    manifest = load_manifest(config.shards)
    average = history["average"][-1]
    folder = Path(os.path.abspath(cache or config.shards))
    if cache and folder == Path(os.path.abspath(config.shards)):
        raise UserError(
            f"--cache: {cache} holds the shards themselves; a stream with a remote needs a folder of its own"
        )
    folder = Path(os.path.relpath(folder)) if relative else folder
    split = config.train_loader.dataset.split
    entries = {name: shard_entry(folder, manifest.domains[name].folder, split, remote) for name in domains}
    doremi = config.algorithms.doremi
    provenance = {
        "method": "doremi",
        "settings": doremi.model_dump(),
        "run": config.run_name,
        "seed": config.seed,
        "steps": int(history["batch"][-1]),
        "global_train_batch_size": config.global_train_batch_size,
        "model": config.model.name or list(config.model.size),
        "tokenizer_sha256": manifest.tokenizer.sha256,
        "seq_len": manifest.seq_len,
        "tokens": {name: manifest.domains[name].splits[split].sequences * manifest.seq_len for name in domains},
    }
    weights = check_weights(dict(zip(domains, average.tolist(), strict=True)), domains, f"{run / WEIGHTS}: average")
    return Mixture(weights, entries, provenance)
