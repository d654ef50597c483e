"""Datasets to what Composer's trainer takes: loaders that count tokens.

A batch travels from a worker as one flat tensor. Every tensor costs a connection of its own (torch passes file
descriptors), and with small models three or four of them cost more than reading the batch does.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from composer.core import DataSpec
from streaming import StreamingDataLoader
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


def pack(rows: list[dict[str, Any]]) -> torch.Tensor:
    """Collate B samples into one flat int64 tensor: B, T, tokens, domains and, where there are any, losses."""
    tokens = np.concatenate([row["input_ids"] for row in rows])
    parts = [[len(rows), len(rows[0]["input_ids"])], tokens, [row["domain"] for row in rows]]
    if "ref_loss" in rows[0]:
        losses = np.concatenate([row["ref_loss"] for row in rows])
        parts.append(np.resize(losses, losses.size + losses.size % 2).view(np.int64))
    return torch.from_numpy(np.concatenate(parts, dtype=np.int64))


def unpack(flat: torch.Tensor) -> dict[str, torch.Tensor]:
    """A packed batch's `input_ids`, `labels` (B, T) and `domain` (B,) int64, and `ref_loss` (B, T) float32."""
    sequences, length = flat[:2].tolist()
    tokens, domain, losses = flat[2:].split(
        [sequences * length, sequences, flat.numel() - 2 - sequences * (length + 1)]
    )
    tokens = tokens.view(sequences, length)
    # Labels are their own, so that a callback may mask some.
    batch = {"input_ids": tokens, "labels": tokens.clone(), "domain": domain}
    if losses.numel():
        batch["ref_loss"] = losses.view(torch.float32)[: sequences * length].view(sequences, length)
    return batch


class MixtureLoader(StreamingDataLoader):
    """A StreamingDataLoader over a `MixtureDataset` whose batches travel packed; takes a DataLoader's arguments."""

    def __init__(self, dataset: MixtureDataset, **more: Any) -> None:
        super().__init__(dataset, batch_size=dataset.batch_size, collate_fn=pack, **more)
        if self.persistent_workers:
            dataset.begun_by_loader()

    def __iter__(self) -> Iterator[dict[str, torch.Tensor]]:
        if self.persistent_workers:
            self.dataset.begin()
        return map(unpack, super().__iter__())

    def load_state_dict(self, obj: dict[str, Any]) -> None:
        super().load_state_dict(obj)
        self.num_samples_yielded = 0

    def _get_batch_size(self, batch: torch.Tensor) -> int:
        return int(batch[0])


def mixture_loader(
    dataset: MixtureDataset, num_workers: int, prefetch_factor: int = 2, persistent_workers: bool = False
) -> DataSpec:
    """A training loader over `dataset` with `num_workers` processes, each `prefetch_factor` batches ahead."""
    if num_workers and num_workers * prefetch_factor > dataset.lag:
        warnings.warn(
            f"the loader wants to be {num_workers * prefetch_factor} batches ahead, but weights are published only "
            f"{dataset.lag} (the lag) ahead: workers will wait; lower num_workers or prefetch_factor, or raise lag",
            stacklevel=2,
        )
    loader = MixtureLoader(
        dataset,
        num_workers=num_workers,
        prefetch_factor=prefetch_factor if num_workers else None,
        persistent_workers=persistent_workers and num_workers > 0,
        pin_memory=torch.cuda.is_available(),
    )
    return DataSpec(
        loader,
        split_batch=split_batch,
        get_num_samples_in_batch=lambda batch: _share(len(batch["input_ids"]), dataset.replication),
        get_num_tokens_in_batch=lambda batch: {
            name: _share(count, dataset.replication) for name, count in count_tokens(batch).items()
        },
    )


def _share(count: int, replication: int | None) -> int | float:
    """One rank's part of what `replication` ranks read together, so that the sum over ranks counts it once."""
    if replication is None:
        return count
    return count / replication if count % replication else count // replication


def heldout_loader(dataset: HeldOut, batch_size: int) -> DataSpec:
    """An evaluation loader of `batch_size` sequences a rank."""
    return DataSpec(
        DataLoader(dataset, batch_size=batch_size), split_batch=split_batch, get_num_tokens_in_batch=count_tokens
    )
