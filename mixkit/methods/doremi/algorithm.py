"""DoReMi as a Composer algorithm: watches the losses, moves the weights, acts on the stream or on the loss.

Two weights are kept apart. α are the method's: what the objective gives to each domain. q are the stream's: the shares
that published batches promise. With `act="loss"` q stays as given and α weighs the domains' mean losses (the paper's
objective); with `act="stream"` q follows α, `lag` batches late, and a token of domain i weighs α_i / q_i, which takes
the lag out of the expected gradient.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from composer.core import Algorithm, Event, State
from composer.core.data_spec import default_split_batch
from composer.core.precision import get_precision_context
from composer.loggers import Logger
from composer.trainer.trainer import OOM_FOUND_ON_OTHER_RANK
from composer.utils import dist

from mixkit.errors import WorldError
from mixkit.methods.doremi.scores import domain_scores
from mixkit.methods.doremi.update import fill_absent, update_weights
from mixkit.methods.losses import loss_mask, token_losses

RATIO_CAP = 10.0
"""A token weighs at most this many times its share (act="stream"), so that a rare draw cannot dominate a step."""


class DoReMi(Algorithm):
    """Domain reweighting by Group DRO on the excess loss over a reference model.

    The training dataset must be a `MixtureDataset`; the reference losses come with the batch (`ref_loss`) or from
    `reference`, a model that is run beside the proxy.

    Args:
        act: "loss" (sampling stays at the streams' own proportions, uniform in the paper, and the loss is weighted) or
            "stream" (sampling follows the weights).
        eta: η, the step size of the weights.
        smoothing: c, the uniform share mixed into the weights at each step.
        burn_in: the fraction of the run before the weights start to move and to be averaged. 0 is the paper's; in a
            short run the excess of an untrained proxy is several nats and the weights run away before it has learned.
        reference: a model to take reference losses from when batches carry none; called with the batch, like the proxy.
    """

    def __init__(
        self,
        act: str = "loss",
        eta: float = 1.0,
        smoothing: float = 1e-3,
        burn_in: float = 0.0,
        reference: torch.nn.Module | None = None,
    ) -> None:
        if act not in ("loss", "stream"):
            raise ValueError(f'act is "loss" or "stream", not {act!r}')
        self.act = act
        self.eta = eta
        self.smoothing = smoothing
        self.burn_in = burn_in
        self.reference = reference
        self.domains: list[str] = []
        self.weights = np.zeros(0)
        self.last_scores = np.zeros(0)
        self.weight_sum = np.zeros(0)
        self.averaged_steps = 0
        self._loaded: dict[str, Any] | None = None
        self._batch: dict[str, torch.Tensor] = {}
        self._step: _Step | None = None

    @property
    def average(self) -> np.ndarray:
        """(k,) ᾱ, the mean of α over the steps so far (α_0 left out, as in the paper); α before the first."""
        return self.weight_sum / self.averaged_steps if self.averaged_steps else self.weights

    def match(self, event: Event, state: State) -> bool:
        return event in (
            Event.FIT_START,
            Event.BATCH_START,
            Event.BEFORE_TRAIN_BATCH,
            Event.AFTER_LOSS,
            Event.BATCH_END,
        )

    def apply(self, event: Event, state: State, logger: Logger) -> None:
        if event == Event.FIT_START:
            self._start(state)
        elif event == Event.BATCH_START:
            # After an out-of-memory Composer begins the batch anew, but leaves the failed micro-batch in `state.batch`.
            self._batch = state.batch
        elif event == Event.BEFORE_TRAIN_BATCH:
            self._begin_batch(state)
        elif event == Event.AFTER_LOSS:
            self._weigh(state)
        else:
            self._commit(state, logger)

    # ---- events ----

    def _start(self, state: State) -> None:
        dataset = state.train_dataloader.dataset
        if not hasattr(dataset, "publish"):
            raise ValueError("DoReMi changes proportions while it runs: the training dataset must be a MixtureDataset")
        dataset.join(state)
        self.domains = list(dataset.domains)
        if not len(self.weights):
            num_domains = len(self.domains)
            self.weights = np.full(num_domains, 1 / num_domains)
            self.weight_sum = np.zeros(num_domains)
            self.last_scores = np.full(num_domains, np.nan)
        if self._loaded is not None:
            self._restore(self._loaded)
        if self.reference is not None:
            self.reference = state.device.module_to_device(self.reference).eval().requires_grad_(False)
        if not dataset.published:
            for _ in range(dataset.lag):
                dataset.publish(self._sampling_weights(dataset))

    def _begin_batch(self, state: State) -> None:
        # A batch is replayed from here after an out-of-memory, so nothing may have been committed yet.
        dataset = state.train_dataloader.dataset
        self._step = _Step(len(self.domains), promised=dataset.shares(dataset.published - dataset.lag))
        micro_size = state.device_train_microbatch_size
        samples = len(self._batch["input_ids"])
        self._step.global_samples = samples * dist.get_world_size()
        if isinstance(micro_size, int) and micro_size < samples:
            # α_t needs the losses of the whole batch before the first backward: a pass without gradient over it.
            # DDP's own forward would broadcast buffers, which a rank that runs out of memory here would not answer.
            model = getattr(state.model, "module", state.model)
            for micro_batch in default_split_batch(self._batch, micro_size):
                micro_batch = state.device.batch_to_device(micro_batch)
                with torch.no_grad(), get_precision_context(state.precision, state.precision_config):
                    outputs = model(micro_batch)
                self._observe(state, outputs, micro_batch)
            self._finish_observing(state)

    def _weigh(self, state: State) -> None:
        step = self._step
        losses, mask = _losses_of(state.outputs, state.batch)
        if step.token_weights is None:
            self._observe(state, state.outputs, state.batch)
            self._finish_observing(state)
        weight = torch.as_tensor(step.token_weights, dtype=losses.dtype, device=losses.device)[state.batch["domain"]]
        weighted = (losses * mask * weight[:, None]).sum()
        # Composer multiplies by micro-batch over the mean batch of the ranks and the ranks' gradients are averaged:
        # what is left is this micro-batch's share of the global sum.
        state.loss = weighted * (step.global_samples / len(losses))

    def _commit(self, state: State, logger: Logger) -> None:
        step = self._step
        self.weights, self.last_scores = step.weights, step.scores
        if step.moving:
            self.weight_sum = self.weight_sum + self.weights
            self.averaged_steps += 1
        dataset = state.train_dataloader.dataset
        dataset.publish(self._sampling_weights(dataset))
        logger.log_metrics(
            {
                **self._series("weight", self.weights),
                **self._series("average", self.average),
                **self._series("sampling", step.promised),
                **self._series("drawn", step.counts / step.counts.sum()),
                **self._series("excess", self.last_scores),
                "loss/train/unweighted": float(step.loss_sum / step.counts.sum()),
            }
        )
        self._step = None

    # ---- parts ----

    def _sampling_weights(self, dataset: Any) -> np.ndarray:
        return self.weights if self.act == "stream" else dataset.own_proportions

    def _observe(self, state: State, outputs: Any, batch: dict[str, torch.Tensor]) -> None:
        losses, mask = _losses_of(outputs, batch)
        losses = losses.detach()
        sums, counts = domain_scores(
            losses - self._reference_losses(state, batch), mask, batch["domain"], len(self.domains)
        )
        self._step.observed += torch.cat([sums, counts, (losses.double() * mask).sum()[None]]).cpu()

    def _reference_losses(self, state: State, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        if self.reference is None:
            if "ref_loss" not in batch:
                raise ValueError("DoReMi needs reference losses: give the dataset `scores`, or DoReMi a `reference`")
            return batch["ref_loss"]
        with torch.no_grad(), get_precision_context(state.precision, state.precision_config):
            outputs = self.reference(batch)
        return _losses_of(outputs, batch)[0]

    def _finish_observing(self, state: State) -> None:
        step, k = self._step, len(self.domains)
        if state.auto_microbatching:
            _refuse_if_a_rank_ran_out_of_memory(state)
        observed = state.device.tensor_to_device(step.observed)
        dist.all_reduce(observed, reduce_operation="SUM")
        sums, step.counts, (step.loss_sum,) = np.split(observed.cpu().numpy(), [k, 2 * k])
        if not np.isfinite(sums).all() or not np.isfinite(step.loss_sum):
            raise WorldError(
                f"the loss of batch {int(state.timestamp.batch)} is not a number; start over in another run folder "
                "with a smaller learning rate"
            )
        step.scores = fill_absent(sums, step.counts, self.last_scores)
        elapsed = state.get_elapsed_duration()
        step.moving = elapsed is None or float(elapsed) >= self.burn_in
        step.weights = (
            update_weights(self.weights, step.scores, eta=self.eta, smoothing=self.smoothing)
            if step.moving
            else self.weights
        )
        if self.act == "loss":
            # α_i times the mean over the domain's tokens in the global batch (algorithm 1, line 9).
            step.token_weights = step.weights / np.maximum(step.counts, 1)
        else:
            with np.errstate(divide="ignore", invalid="ignore"):
                ratio = np.where(step.promised > 0, step.weights / step.promised, 0)
            step.token_weights = np.minimum(ratio, RATIO_CAP) / step.counts.sum()

    def _series(self, name: str, values: np.ndarray) -> dict[str, float]:
        return {f"mixkit/{name}/{domain}": float(value) for domain, value in zip(self.domains, values, strict=True)}

    # ---- checkpoint ----

    def state_dict(self) -> dict[str, Any]:
        """Plain types: α, the last scores (null for a domain never seen), the sum of α and its number of steps."""
        return {
            "domains": list(self.domains),
            "weights": self.weights.tolist(),
            "last_scores": [None if np.isnan(score) else score for score in self.last_scores.tolist()],
            "weight_sum": self.weight_sum.tolist(),
            "averaged_steps": self.averaged_steps,
        }

    def load_state_dict(self, state: dict[str, Any], strict: bool = False) -> None:
        del strict
        self._loaded = state

    def _restore(self, state: dict[str, Any]) -> None:
        if state["domains"] != self.domains:
            raise ValueError(f"the checkpoint's weights are for {state['domains']}, the stream has {self.domains}")
        self.weights = np.array(state["weights"])
        self.last_scores = np.array([np.nan if score is None else score for score in state["last_scores"]])
        self.weight_sum = np.array(state["weight_sum"])
        self.averaged_steps = int(state["averaged_steps"])
        self._loaded = None


class _Step:
    """What is known of the step in progress; thrown away and begun anew when Composer replays the batch."""

    def __init__(self, num_domains: int, promised: np.ndarray) -> None:
        self.promised = promised
        self.observed = torch.zeros(2 * num_domains + 1, dtype=torch.float64)
        self.global_samples = 0
        self.counts = np.zeros(num_domains)
        self.loss_sum = 0.0
        self.scores = np.zeros(num_domains)
        self.weights = np.zeros(num_domains)
        self.token_weights: np.ndarray | None = None
        self.moving = False


def _refuse_if_a_rank_ran_out_of_memory(state: State) -> None:
    """Composer's handshake after a forward pass: every rank must know before any goes into a collective of ours."""
    found, inside = (state.device.tensor_to_device(torch.zeros(1, dtype=torch.uint8)) for _ in range(2))
    dist.all_reduce(found, reduce_operation="MAX")
    dist.all_reduce(inside, reduce_operation="MIN")
    if found.item():
        raise RuntimeError(OOM_FOUND_ON_OTHER_RANK)


def _losses_of(outputs: Any, batch: dict[str, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
    """Losses (B, T) and mask (B, T): the model's own where it offers `token_losses`, else from its logits."""
    labels = batch["labels"]
    if "token_losses" in outputs:
        return outputs["token_losses"], loss_mask(labels)
    return token_losses(outputs["logits"], labels)
