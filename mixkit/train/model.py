"""The language model: transformers' Llama in Composer's `HuggingFaceModel`, with the loss of every token as output.

The forward pass returns losses per token (what methods weigh and evaluators sum) in place of logits; that is all that
differs from a plain `HuggingFaceModel`.
"""

from __future__ import annotations

import contextlib
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
import transformers
from composer.models import HuggingFaceModel
from torch.utils.checkpoint import checkpoint
from torchmetrics import Metric
from transformers import LlamaConfig, PreTrainedTokenizerFast

from mixkit.methods.losses import IGNORED, loss_mask
from mixkit.train.sizes import Size

CPU_LOGITS, GPU_LOGITS = 1 << 22, 1 << 27
"""Logits that are held at a time."""


class LogPerplexity(Metric):
    """Σ cross-entropy / Σ tokens over everything it saw, on all ranks; in nats."""

    full_state_update = False

    def __init__(self) -> None:
        super().__init__()
        self.add_state("loss", torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("tokens", torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")

    def update(self, losses: torch.Tensor, mask: torch.Tensor) -> None:
        """Add losses (B, T) where mask (B, T) holds."""
        self.loss += (losses.double() * mask).sum()
        self.tokens += mask.sum()

    def compute(self) -> torch.Tensor:
        """The mean over tokens."""
        return (self.loss / self.tokens).float()


class LlamaForCausalLM(transformers.LlamaForCausalLM):
    """transformers' Llama whose forward pass ends in losses; of the same name, which is what its saved config states.

    All of the model, the head too, is used inside this forward: FSDP gathers weights around it.
    """

    def forward(self, input_ids: torch.Tensor, labels: torch.Tensor) -> dict[str, torch.Tensor]:
        hidden = self.model(input_ids=input_ids).last_hidden_state
        return {"token_losses": head_losses(hidden, self.lm_head.weight, labels)}


class MixtureLM(HuggingFaceModel):
    """A causal language model whose forward pass gives `token_losses` (B, T).

    Args:
        model: a Llama whose forward pass gives losses.
        tokenizer: saved with its checkpoints.
        precision: as in the YAML. With `amp_bf16` the forward pass runs in bfloat16 on CPUs that have the instructions
            for it too, where Composer itself refuses to.
    """

    def __init__(self, model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, precision: str) -> None:
        super().__init__(model, tokenizer, metrics=[], eval_metrics=[LogPerplexity()], shift_labels=True)
        self.cpu_bf16 = precision == "amp_bf16" and cpu_has_bf16()
        for layer in model.model.layers:
            layer._fsdp_wrap = True

    def forward(self, batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        tokens = batch["input_ids"]
        on_cpu = tokens.device.type == "cpu" and self.cpu_bf16
        with torch.autocast("cpu", torch.bfloat16) if on_cpu else contextlib.nullcontext():
            return self.model(input_ids=tokens, labels=batch["labels"])

    def loss(self, outputs: dict[str, torch.Tensor], batch: dict[str, torch.Tensor]) -> torch.Tensor:
        return outputs["token_losses"].sum() / loss_mask(batch["labels"]).sum()

    def eval_forward(self, batch: dict[str, torch.Tensor], outputs: Any = None) -> dict[str, torch.Tensor]:
        return outputs if outputs is not None else self.forward(batch)

    def update_metric(self, batch: dict[str, torch.Tensor], outputs: Any, metric: Metric) -> dict:
        metric.update(outputs["token_losses"], loss_mask(batch["labels"]))
        return {}


def head_losses(hidden: torch.Tensor, head: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Cross-entropy per token without holding the logits of the whole micro-batch.

    Logits are made, used and dropped a chunk at a time, and made again for the backward pass: float32 logits are by far
    the largest thing that a small model holds (and on a CPU, where fresh pages cost more than arithmetic, this is
    1.5 times as fast).

    Args:
        hidden: (B, T, D) last hidden states.
        head: (V, D) output embeddings.
        labels: (B, T) int64, not shifted; -100 is not counted.

    Returns:
        (B, T) float32; place j holds the loss of predicting token j, place 0 holds 0.
    """
    batch, length, width = hidden.shape
    states, targets = hidden[:, :-1].reshape(-1, width), labels[:, 1:].reshape(-1)
    chunk = max(1, (GPU_LOGITS if hidden.is_cuda else CPU_LOGITS) // len(head))
    losses = [
        checkpoint(_chunk_losses, some_states, head, some_targets, use_reentrant=False, preserve_rng_state=False)
        for some_states, some_targets in zip(states.split(chunk), targets.split(chunk), strict=True)
    ]
    return F.pad(torch.cat(losses).view(batch, length - 1), (1, 0))


def _chunk_losses(states: torch.Tensor, head: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    return F.cross_entropy(F.linear(states, head).float(), targets, ignore_index=IGNORED, reduction="none")


def build_model(
    size: Size, vocab_size: int, seq_len: int, tokenizer: PreTrainedTokenizerFast, precision: str
) -> MixtureLM:
    """A freshly initialised Llama of `size` with tied embeddings (seed torch before)."""
    config = LlamaConfig(
        vocab_size=vocab_size,
        hidden_size=size.d_model,
        intermediate_size=size.ffn,
        num_hidden_layers=size.n_layers,
        num_attention_heads=size.n_heads,
        max_position_embeddings=seq_len,
        tie_word_embeddings=True,
        use_cache=False,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
    )
    model = LlamaForCausalLM._from_config(config, attn_implementation=_attention(precision))
    return MixtureLM(model, tokenizer, precision)


def load_model(folder: Path, precision: str) -> MixtureLM:
    """The model of a finished run, from the Hugging Face folder that it left (safetensors: nothing is unpickled)."""
    model = LlamaForCausalLM.from_pretrained(folder, attn_implementation=_attention(precision), use_safetensors=True)
    return MixtureLM(model, PreTrainedTokenizerFast.from_pretrained(folder), precision)


def cpu_has_bf16() -> bool:
    """Whether this CPU multiplies bfloat16 matrices in hardware (elsewhere they are slower than float32)."""
    checks = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
    return any(getattr(torch.cpu, check, bool)() for check in checks)


def _attention(precision: str) -> str:
    # flash-attn knows half precision only.
    flash = find_spec("flash_attn") is not None and torch.cuda.is_available() and precision != "fp32"
    return "flash_attention_2" if flash else "sdpa"
