"""The loss of every token of a batch: what methods weigh and reference scores hold.

Place j of a sequence holds the loss of predicting token j from the tokens before it; place 0 has no such loss and is
masked, as is every label of -100 (padding).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F

IGNORED = -100


def token_losses(logits: torch.Tensor, labels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Cross-entropy per token in nats.

    Args:
        logits: (B, T, V); place j-1 predicts token j.
        labels: (B, T) int64, not shifted; -100 is not counted.

    Returns:
        losses: (B, T) float32 (float64 for float64 logits), 0 where the mask is False.
        mask: (B, T) bool, the tokens that the loss counts.
    """
    batch, length, vocab = logits.shape
    wide = logits if logits.dtype == torch.float64 else logits.float()
    shifted = F.cross_entropy(
        wide[:, :-1].reshape(-1, vocab), labels[:, 1:].reshape(-1), ignore_index=IGNORED, reduction="none"
    ).view(batch, length - 1)
    return F.pad(shifted, (1, 0)), loss_mask(labels)


def loss_mask(labels: torch.Tensor) -> torch.Tensor:
    """(B, T) bool: the tokens of `labels` (B, T) that the loss counts."""
    mask = labels != IGNORED
    mask[:, 0] = False
    return mask
