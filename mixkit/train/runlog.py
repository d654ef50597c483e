"""What a run leaves in writing: `metrics.jsonl` and `weights.jsonl`, exact across kills and resumes.

Composer has no JSONL logger. This one also keeps the length of both files in the checkpoint, and cuts them back to it
on resume: the steps that a killed run took after its last checkpoint are taken again and written again, once.
"""

from __future__ import annotations

import json
import math
import os
from pathlib import Path
from typing import Any, TextIO

from composer.core import State
from composer.loggers import Logger, LoggerDestination
from composer.utils import dist

from mixkit.train.runfolder import METRICS, WEIGHTS

SERIES = "mixkit/"
"""Metrics named `mixkit/SERIES/DOMAIN` go to weights.jsonl, a row per step with the domains in order."""


class RunLog(LoggerDestination):
    """Writes one line per step to each file, on rank 0.

    Args:
        folder: the run folder.
    """

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        self._folder = Path(folder)
        self._files: dict[str, TextIO] = {}
        self._writing = False
        self._lengths = {METRICS: 0, WEIGHTS: 0}
        self._step: int | None = None
        self._metrics: dict[str, float | None] = {}
        self._series: dict[str, dict[str, float | None]] = {}

    def fit_start(self, state: State, logger: Logger) -> None:
        if dist.get_global_rank() != 0 or self._writing:
            return
        for name, length in self._lengths.items():
            path = self._folder / name
            if path.exists():
                os.truncate(path, min(length, path.stat().st_size))
        self._writing = True

    def log_metrics(self, metrics: dict[str, Any], step: int | None = None) -> None:
        if dist.get_global_rank() != 0:
            return
        if step != self._step:
            self._write()
            self._step = step
        for key, value in metrics.items():
            number = _json_number(value)
            if key.startswith(SERIES):
                _, series, domain = key.split("/", 2)
                self._series.setdefault(series, {})[domain] = number
            else:
                self._metrics[key] = number

    def state_dict(self) -> dict[str, int]:
        self._write()
        self._lengths.update({name: file.tell() for name, file in self._files.items()})
        return dict(self._lengths)

    def load_state_dict(self, state: dict[str, int]) -> None:
        self._lengths.update(state)

    def close(self, state: State, logger: Logger) -> None:
        self._write()
        for file in self._files.values():
            file.close()
        self._files.clear()

    def _write(self) -> None:
        if not self._writing:
            return
        if self._metrics:
            self._line(METRICS, {"batch": self._step, **self._metrics})
        if self._series:
            domains = list(next(iter(self._series.values())))
            if self._file(WEIGHTS).tell() == 0:
                self._line(WEIGHTS, {"domains": domains})
            rows = {series: [values[name] for name in domains] for series, values in self._series.items()}
            self._line(WEIGHTS, {"batch": self._step, **rows})
        self._metrics, self._series = {}, {}

    def _line(self, name: str, record: dict[str, Any]) -> None:
        file = self._file(name)
        file.write(json.dumps(record, ensure_ascii=False) + "\n")
        file.flush()

    def _file(self, name: str) -> TextIO:
        if name not in self._files:
            self._files[name] = open(self._folder / name, "a", encoding="utf-8")
        return self._files[name]


def _json_number(value: Any) -> float | None:
    """A number that JSON can hold; null for one that is not a number."""
    number = float(value)
    return number if math.isfinite(number) else None
