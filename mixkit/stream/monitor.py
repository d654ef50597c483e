"""What a Composer trainer must do for a mixture: go on in a second fit, count passes, free the workers at the end."""

from __future__ import annotations

import warnings
from typing import Any

from composer.core import Callback, State, TimeUnit
from composer.loggers import Logger
from composer.utils import dist

MANY_PASSES = 4
"""Up to about four passes repeated data is nearly as good as fresh (Muennighoff et al. 2023, arXiv 2305.16264, §6)."""


class MixtureMonitor(Callback):
    """Stands between Composer's trainer and a `MixtureDataset`; `MixtureDataset.join` adds it to a trainer.

    Logs `passes/DOMAIN`, how often each domain's sequences have been read, and warns once of a domain past four.
    """

    def __init__(self) -> None:
        self._warned: set[str] = set()

    def fit_start(self, state: State, logger: Logger) -> None:
        assert state.max_duration is not None
        if state.max_duration.unit == TimeUnit.EPOCH or state.dataloader_len is not None:
            raise ValueError(
                "a mixture has no epochs: write max_duration (or fit's duration) in batches (4800ba), sequences "
                "(10000sp) or tokens (1000000tok), and leave train_subset_num_batches out"
            )
        # Composer would read and drop all the batches of the first fit; the dataset goes on by itself.
        state.dataset_resumption["train"] = True
        # The clock may have been set back, or the loader may be a new one.
        _dataset(state).follow(_batches(state))

    def batch_end(self, state: State, logger: Logger) -> None:
        dataset = _dataset(state)
        if not dataset.published:
            dataset.consumed(_batches(state))
        passes = dataset.passes()
        logger.log_metrics({f"passes/{name}": number for name, number in passes.items()})
        many = [name for name, number in passes.items() if number > MANY_PASSES and name not in self._warned]
        self._warned.update(many)
        if many and dist.get_global_rank() == 0:
            warnings.warn(
                f"batch {int(state.timestamp.batch)}: {', '.join(many)} came more than {MANY_PASSES} times; more "
                "passes over the same sequences teach less and less",
                stacklevel=1,
            )

    def state_dict(self) -> dict[str, Any]:
        return {"warned": sorted(self._warned)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._warned = set(state["warned"])

    def fit_end(self, state: State, logger: Logger) -> None:
        _dataset(state).close()

    def close(self, state: State, logger: Logger) -> None:
        # Also after an exception: a worker that waits for weights does not see its loader closing.
        if state.train_dataloader is not None:
            _dataset(state).close()


def _dataset(state: State) -> Any:
    return state.train_dataloader.dataset


def _batches(state: State) -> int:
    return int(state.timestamp.sample_in_epoch.value) // _dataset(state).global_batch_size
