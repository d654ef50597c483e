"""MDS shards to batches whose domain shares may change while the run goes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mixkit.stream.dataset import MixtureDataset

__all__ = ["MixtureDataset"]


def __getattr__(name: str) -> Any:
    # dataset.py imports streaming, which takes seconds; the pure parts of this room do not need it.
    if name == "MixtureDataset":
        from mixkit.stream.dataset import MixtureDataset

        return MixtureDataset
    raise AttributeError(f"module 'mixkit.stream' has no attribute {name!r}")
