"""DoReMi: domain weights by Group DRO on the excess loss over a reference model (arXiv 2305.10429)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from mixkit.methods.doremi.update import fill_absent, update_weights

if TYPE_CHECKING:
    from mixkit.methods.doremi.algorithm import DoReMi
    from mixkit.methods.doremi.scores import domain_scores

__all__ = ["DoReMi", "domain_scores", "fill_absent", "update_weights"]


def __getattr__(name: str) -> Any:
    # The update is plain numpy; scores need torch and the algorithm needs composer, each loaded when asked for.
    if name == "DoReMi":
        from mixkit.methods.doremi.algorithm import DoReMi

        return DoReMi
    if name == "domain_scores":
        from mixkit.methods.doremi.scores import domain_scores

        return domain_scores
    raise AttributeError(f"module 'mixkit.methods.doremi' has no attribute {name!r}")
