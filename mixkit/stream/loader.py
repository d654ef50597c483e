"""Datasets to what Composer's trainer takes: loaders that count tokens."""

from __future__ import annotations

import warnings

import torch
from composer.core import DataSpec
from torch.utils.data import DataLoader

from mixkit.stream.dataset import MixtureDataset
from mixkit.stream.heldout import HeldOut


def count_tokens(batch: dict[str, torch.Tensor]) -> dict[str, int]:
    """Tokens of a batch, as Composer's clock and its token-weighted accumulation count them."""
    return {"total": batch["input_ids"].numel(), "loss_generating": int((batch["labels"][:, 1:] != -100).sum())}


def split_batch(batch: dict[str, torch.Tensor], size: int) -> list[dict[str, torch.Tensor]]:
    """Micro-batches of `size` sequences, the last one shorter where it does not divide."""
    pieces = {name: values.split(size) for name, values in batch.items()}
    return [dict(zip(pieces, values, strict=True)) for values in zip(*pieces.values(), strict=True)]


def mixture_loader(dataset: MixtureDataset, num_workers: int, prefetch_factor: int = 2) -> DataSpec:
    """A training loader over `dataset` with `num_workers` processes, each `prefetch_factor` batches ahead."""
    if num_workers and num_workers * prefetch_factor > dataset.lag:
        warnings.warn(
            f"the loader wants to be {num_workers * prefetch_factor} batches ahead, but weights are published only "
            f"{dataset.lag} (the lag) ahead: workers will wait; lower num_workers or prefetch_factor, or raise lag",
            stacklevel=2,
        )
    loader = DataLoader(
        dataset,
        batch_size=dataset.batch_size,
        num_workers=num_workers,
        prefetch_factor=prefetch_factor if num_workers else None,
        pin_memory=torch.cuda.is_available(),
    )
    return DataSpec(loader, split_batch=split_batch, get_num_tokens_in_batch=count_tokens)


def heldout_loader(dataset: HeldOut, batch_size: int) -> DataSpec:
    """An evaluation loader of `batch_size` sequences a rank."""
    return DataSpec(
        DataLoader(dataset, batch_size=batch_size), split_batch=split_batch, get_num_tokens_in_batch=count_tokens
    )
