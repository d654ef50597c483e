"""What a batch says of each domain: clipped excess losses summed by domain (arXiv 2305.10429, algorithm 1, line 6)."""

from __future__ import annotations

import torch


def domain_scores(
    excess: torch.Tensor, mask: torch.Tensor, domain: torch.Tensor, num_domains: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Numerators and denominators of λ: Σ max(ℓ_proxy − ℓ_reference, 0) and the tokens, per domain.

    They are returned apart so that ranks and micro-batches can be added before the division.

    Args:
        excess: (B, T) proxy loss minus reference loss per token, in nats.
        mask: (B, T) the tokens that count.
        domain: (B,) int64, each sequence's domain.
        num_domains: k.

    Returns:
        sums (k,) and token_counts (k,), both float64.
    """
    clipped = excess.detach().clamp(min=0).double() * mask
    sums = torch.zeros(num_domains, dtype=torch.float64, device=excess.device)
    counts = torch.zeros_like(sums)
    sums.index_add_(0, domain, clipped.sum(dim=1))
    counts.index_add_(0, domain, mask.sum(dim=1).double())
    return sums, counts
