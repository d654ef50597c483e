"""Tables for people."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table


def loss_table(losses: dict[str, float]) -> None:
    """Print held-out log-perplexity per domain, with the plain mean and the worst."""
    if not losses:
        return
    table = Table("domain", title="held-out log-perplexity (nats a token)")
    table.add_column("loss", justify="right")
    for name, loss in losses.items():
        table.add_row(name, f"{loss:.4f}")
    table.add_section()
    table.add_row("average", f"{sum(losses.values()) / len(losses):.4f}")
    table.add_row("worst", f"{max(losses.values()):.4f}")
    Console(highlight=False).print(table)
