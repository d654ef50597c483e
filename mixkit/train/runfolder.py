"""A run's folder: which configuration it belongs to, whether it is finished, and what it left.

`config.yaml` is written before the run starts and `finished.json` when it has ended; docs/formats.md lists the rest.
Reading one needs neither torch nor composer.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from mixkit.errors import UserError
from mixkit.train.config import RunConfig

CONFIG, INPUTS, FINISHED = "config.yaml", "inputs.json", "finished.json"
METRICS, WEIGHTS, MODEL = "metrics.jsonl", "weights.jsonl", "model"

FREE_KEYS = (
    "autoresume",
    "callbacks",
    "device_eval_batch_size",
    "device_train_microbatch_size",
    "loggers",
    "max_duration",
    "parallelism_config",
    "progress_bar",
    "save_interval",
    "save_num_checkpoints_to_keep",
    "train_loader.dataset.cache_limit",
    "train_loader.dataset.download_retry",
    "train_loader.dataset.download_timeout",
    "train_loader.dataset.keep_zip",
    "train_loader.dataset.predownload",
    "train_loader.dataset.validate_hash",
    "train_loader.num_workers",
    "train_loader.persistent_workers",
    "train_loader.prefetch_factor",
)
"""What may differ when a run goes on: where it runs and what is shown of it, but not what it computes."""


def is_finished(config: RunConfig) -> bool:
    """Whether the run of exactly this configuration has already gone as far as it asks for.

    Raises:
        UserError: the folder belongs to a run with another configuration, or to a longer run, or to something else.
    """
    folder = Path(config.run_folder)
    if folder.exists() and not folder.is_dir():
        raise UserError(f"{folder}: run_folder is a file; give another")
    if not _has_begun(folder):
        return False
    if not (folder / CONFIG).exists():
        raise UserError(f"{folder}: run_folder is not empty and holds no run; give another")
    old = read_config(folder)
    changed = _changed(old.model_dump(mode="json"), config.model_dump(mode="json"))
    changed = [key for key in changed if not key.startswith(FREE_KEYS)]
    if changed:
        raise UserError(
            f"{folder / CONFIG}: this folder holds a run with another {', '.join(changed)}; "
            "give another run_name, or remove the folder to start over"
        )
    if old.duration[1] != config.duration[1] or old.duration[0] > config.duration[0]:
        raise UserError(
            f"{folder / CONFIG}: max_duration was {old.max_duration}; it can be made longer, not {config.max_duration}"
        )
    if not config.autoresume:
        raise UserError(f"{folder}: holds a run, and autoresume is false; remove the folder to start over")
    finished = read_finished(folder)
    return finished is not None and finished["max_duration"] == config.max_duration


def claim(config: RunConfig, inputs: dict[str, Any]) -> None:
    """Write the resolved configuration, and what the run reads, into the run folder.

    Args:
        config: a configuration for which `is_finished` found nothing wrong.
        inputs: hashes and proportions of what stands behind the configuration's paths.

    Raises:
        UserError: a file that the run in this folder began with has changed, or the folder cannot be written.
    """
    folder = Path(config.run_folder)
    if _has_begun(folder) and (folder / INPUTS).exists():
        changed = _changed(json.loads((folder / INPUTS).read_text(encoding="utf-8")), inputs)
        if changed:
            raise UserError(
                f"{folder / INPUTS}: since this run began, other files stand behind its {', '.join(changed)}; "
                "give another run_name, or remove the folder to start over"
            )
    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / FINISHED).unlink(missing_ok=True)
        write_json(folder / INPUTS, inputs)
        write_atomically(
            folder / CONFIG, yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False, allow_unicode=True)
        )
    except OSError as error:
        raise UserError(f"{folder}: run_folder cannot be written: {error.strerror}") from None


def latest_checkpoint(config: RunConfig) -> str | None:
    """The checkpoint that a run in a local folder goes on from, or None.

    Composer's own `autoresume` has every node remove the same signal file, and fails for several nodes on a shared
    folder; and a kill between its removing and renewing `latest-rank0.pt` would lose the run.
    """
    folder = Path(config.save_folder)
    latest = folder / "latest-rank0.pt"
    if latest.exists():
        return str(latest)
    kept = {
        int(found[1]): path for path in folder.glob("ep*-rank0.pt") if (found := re.search(r"-ba(\d+)-", path.name))
    }
    return str(kept[max(kept)]) if kept else None


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


def finished_reference(folder: Path, wanted_by: str, made_by: str) -> dict[str, Any]:
    """`finished.json` of a run that another needs.

    Args:
        folder: its run folder.
        wanted_by: who needs it, to open a complaint with.
        made_by: the command that makes it.

    Raises:
        UserError: no such run, or not finished; names the commands that make one and its losses.
    """
    finished = read_finished(folder)
    if finished is None or not (folder / MODEL).is_dir():
        state = "is not finished" if (folder / CONFIG).exists() else "is not there"
        raise UserError(
            f"{wanted_by}: the run {folder} {state}; make it with\n  {made_by}\n"
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
    text = path.read_text(encoding="utf-8") if path.is_file() else ""
    lines = text[: text.rfind("\n") + 1].splitlines()  # a killed run may leave half a line
    if len(lines) < 2:
        raise UserError(f"{run}: holds no weights; only a run with algorithms.doremi finds some")
    domains = json.loads(lines[0])["domains"]
    rows = [json.loads(line) for line in lines[1:]]
    return domains, {series: np.array([row[series] for row in rows], np.float64) for series in rows[0]}


def write_json(path: Path, content: Any) -> None:
    """Write a JSON file, whole or not at all."""
    write_atomically(path, json.dumps(content, indent=2, ensure_ascii=False) + "\n")


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


def _has_begun(folder: Path) -> bool:
    """Whether a folder holds more than what `claim` writes: only then would starting over lose something."""
    return folder.exists() and not set(os.listdir(folder)) <= {CONFIG, INPUTS}


def _changed(old: Any, new: Any, prefix: str = "") -> list[str]:
    """Dotted keys whose values differ."""
    if isinstance(old, dict) and isinstance(new, dict):
        keys = sorted({*old, *new})
        return [key for name in keys for key in _changed(old.get(name), new.get(name), f"{prefix}{name}.")]
    return [] if old == new else [prefix.removesuffix(".")]
