"""What a run says beyond Composer's own words: averages over domains, and plain lines where there is no terminal."""

from __future__ import annotations

import sys
import time

from composer.core import Callback, State
from composer.loggers import Logger
from composer.utils import dist

EVAL_LABEL = "eval/"
METRIC = "LogPerplexity"


def heldout_losses(state: State) -> dict[str, float]:
    """Domain to its held-out log-perplexity, as the last evaluation found it."""
    return {
        label.removeprefix(EVAL_LABEL): float(metrics[METRIC].compute())
        for label, metrics in state.eval_metrics.items()
        if label.startswith(EVAL_LABEL)
    }


class DomainAverages(Callback):
    """Logs the plain mean and the worst of the domains' held-out log-perplexities (DoReMi, section 3)."""

    def eval_after_all(self, state: State, logger: Logger) -> None:
        losses = heldout_losses(state).values()
        if losses:
            logger.log_metrics(
                {"metrics/eval/uniform_avg": sum(losses) / len(losses), "metrics/eval/worst": max(losses)}
            )


class PlainLines(Callback):
    """A line of progress now and then, for logs that no one watches on a terminal.

    Args:
        seconds: the least time between two lines.
    """

    def __init__(self, seconds: float = 20) -> None:
        self.seconds = seconds
        self._last = time.monotonic()

    def batch_end(self, state: State, logger: Logger) -> None:
        now = time.monotonic()
        if dist.get_global_rank() == 0 and now - self._last >= self.seconds:
            self._last = now
            done = float(state.get_elapsed_duration() or 0)
            loss = float(state.total_loss_dict.get("loss/train/total", float("nan")))
            batch = state.timestamp.batch.value
            print(f"{state.run_name}: batch {batch}, {done:.0%} done, loss {loss:.3f}", file=sys.stderr)
