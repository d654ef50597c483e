"""A run's folder: which configuration it belongs to, whether it is finished, and what it left.

`config.yaml` is written before the run starts and `finished.json` when it has ended; docs/formats.md lists the rest.
Reading one needs neither torch nor composer.
"""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from mixkit.errors import UserError
from mixkit.train.config import RunConfig

CONFIG, FINISHED, METRICS, WEIGHTS, MODEL = "config.yaml", "finished.json", "metrics.jsonl", "weights.jsonl", "model"

FREE_KEYS = (
    "autoresume",
    "callbacks",
    "device_eval_batch_size",
    "device_train_microbatch_size",
    "dist_timeout",
    "loggers",
    "max_duration",
    "parallelism_config",
    "progress_bar",
    "save_interval",
    "save_num_checkpoints_to_keep",
    "train_loader.num_workers",
)
"""What may differ when a run goes on: where it runs and what is shown of it, but not what it computes."""


def claim(config: RunConfig) -> None:
    """Write the resolved configuration into the run folder.

    Raises:
        UserError: the folder belongs to a run with another configuration, or to a longer run.
    """
    folder = Path(config.run_folder)
    path = folder / CONFIG
    if path.exists():
        old = read_config(folder)
        changed = _changed(old.model_dump(mode="json"), config.model_dump(mode="json"))
        changed = [key for key in changed if not key.startswith(FREE_KEYS)]
        if changed:
            raise UserError(
                f"{path}: this folder holds a run with another {', '.join(changed)}; "
                "give another run_name, or remove the folder to start over"
            )
        if old.duration[1] != config.duration[1] or old.duration[0] > config.duration[0]:
            raise UserError(
                f"{path}: max_duration was {old.max_duration}; it can be made longer, not {config.max_duration}"
            )
        if old.max_duration != config.max_duration:
            (folder / FINISHED).unlink(missing_ok=True)
    elif folder.exists() and any(folder.iterdir()):
        raise UserError(f"{folder}: run_folder is not empty and holds no run; give another run_folder")
    folder.mkdir(parents=True, exist_ok=True)
    write_atomically(path, yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False, allow_unicode=True))


def read_config(folder: Path) -> RunConfig:
    """The resolved configuration of a run.

    Raises:
        UserError: not a run folder.
    """
    from mixkit.config import load_config

    if not (folder / CONFIG).is_file():
        raise UserError(f"{folder}: is not a run folder (no {CONFIG})")
    return load_config(folder / CONFIG, (), RunConfig)


def read_finished(folder: Path) -> dict[str, Any] | None:
    """What a finished run said of itself, or None while it is not finished."""
    path = folder / FINISHED
    if not path.exists():
        return None
    return json.loads(path.read_text(encoding="utf-8"))


def is_finished(config: RunConfig) -> bool:
    """Whether the run of this configuration has already gone as far as it asks for."""
    finished = read_finished(Path(config.run_folder))
    return finished is not None and finished["max_duration"] == config.max_duration


def finished_reference(folder: Path, wanted_by: str) -> dict[str, Any]:
    """`finished.json` of a run that another needs.

    Raises:
        UserError: no such run, or not finished; names the command that makes one.
    """
    finished = read_finished(folder)
    if finished is None or not (folder / MODEL).is_dir():
        state = "is not finished" if (folder / CONFIG).exists() else "is not there"
        raise UserError(
            f"{wanted_by}: the run {folder} {state}; make it with\n  composer train yamls/reference.yaml\n"
            f"and its losses with\n  mixkit score {folder}"
        )
    return finished


def read_weights(run: Path) -> tuple[list[str], dict[str, np.ndarray]]:
    """A run's weight history.

    Returns:
        The domains, and the arrays of `weights.jsonl`: "batch" (n,), and (n, k) for each series ("weight", "average",
        "sampling", "drawn", "excess").

    Raises:
        UserError: the run kept no weights.
    """
    path = run / WEIGHTS
    lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
    if len(lines) < 2:
        raise UserError(f"{run}: holds no weights; only a run with algorithms.doremi finds some")
    domains = json.loads(lines[0])["domains"]
    rows = [json.loads(line) for line in lines[1:]]
    return domains, {series: np.array([row[series] for row in rows], np.float64) for series in rows[0]}


def write_atomically(path: Path, text: str) -> None:
    """Write a text file, whole or not at all."""
    partial = path.with_name(path.name + ".partial")
    partial.write_text(text, encoding="utf-8")
    os.replace(partial, path)


def file_sha256(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


def _changed(old: Any, new: Any, prefix: str = "") -> list[str]:
    """Dotted keys whose values differ."""
    if isinstance(old, dict) and isinstance(new, dict):
        keys = sorted({*old, *new})
        return [key for name in keys for key in _changed(old.get(name), new.get(name), f"{prefix}{name}.")]
    return [] if old == new else [prefix.removesuffix(".")]
