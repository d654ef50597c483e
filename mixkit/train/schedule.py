"""Learning-rate schedules that Composer lacks."""

from __future__ import annotations

from composer.core import State, Time, TimeUnit
from composer.optim import ComposerScheduler, ConstantWithWarmupScheduler, CosineAnnealingWithWarmupScheduler

from mixkit.train.config import SchedulerConfig


class ExponentialWithWarmup(ComposerScheduler):
    """Linear warm-up, then exponential decay that ends at `alpha_f` times the learning rate (DoReMi, section 3).

    Args:
        t_warmup: Composer time string, for example "0.06dur".
        alpha_f: the last multiplier.
    """

    def __init__(self, t_warmup: str, alpha_f: float) -> None:
        self.t_warmup = Time.from_input(t_warmup)
        self.alpha_f = alpha_f

    def __call__(self, state: State, ssr: float = 1.0) -> float:
        elapsed = float(state.get_elapsed_duration() or 0)
        in_duration = self.t_warmup.unit == TimeUnit.DURATION
        # The schema lets only fractions of the run, or its own unit, through.
        warmup = self.t_warmup.value if in_duration else self.t_warmup.value / state.max_duration.value
        if elapsed < warmup:
            return elapsed / warmup
        return self.alpha_f ** min(1.0, (elapsed - warmup) / (1 - warmup))


def build_scheduler(config: SchedulerConfig) -> ComposerScheduler:
    """The schedule that the configuration names."""
    if config.name == "exponential_with_warmup":
        return ExponentialWithWarmup(config.t_warmup, config.alpha_f)
    if config.name == "cosine_with_warmup":
        return CosineAnnealingWithWarmupScheduler(config.t_warmup, alpha_f=config.alpha_f)
    return ConstantWithWarmupScheduler(config.t_warmup)
