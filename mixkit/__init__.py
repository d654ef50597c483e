"""mixkit: find the proportions in which to mix the domains of a pre-training corpus, and stream data in them.

Names are loaded when first used, so that `import mixkit` and `mixkit --help` load neither torch nor composer.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mixkit.methods.doremi import DoReMi
    from mixkit.mixture import Mixture
    from mixkit.stream import MixtureDataset

__all__ = ["DoReMi", "Mixture", "MixtureDataset"]

_HOME = {"DoReMi": "mixkit.methods.doremi", "Mixture": "mixkit.mixture", "MixtureDataset": "mixkit.stream"}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'mixkit' has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(_HOME[name]), name)
