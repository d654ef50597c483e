"""Tables of mixtures and of what main runs on them reach."""

from __future__ import annotations

from collections.abc import Mapping

from rich.table import Table

from mixkit.mixture import Mixture

BAR = 24


def mixture_table(mixture: Mixture) -> Table:
    """Domain, weight and a bar."""
    table = Table("domain", title="mixture")
    table.add_column("weight", justify="right")
    table.add_column("")
    widest = max(mixture.weights.values())
    for name, weight in mixture.weights.items():
        table.add_row(name, f"{weight:.4f}", "█" * round(BAR * weight / widest))
    return table


def comparison_table(
    mixtures: Mapping[str, Mapping[str, float]], losses: Mapping[str, Mapping[str, float]], title: str
) -> Table:
    """Weights of several mixtures beside the held-out log-perplexity of the main runs on them.

    Args:
        mixtures: mixture's name → domain → weight.
        losses: mixture's name → domain → log-perplexity; the lower of each row is marked.
        title: what stands above.
    """
    table = Table("domain", title=title)
    for name in mixtures:
        table.add_column(f"{name}\nweight", justify="right")
    for name in losses:
        table.add_column(f"{name}\nlog-perplexity", justify="right")
    domains = list(next(iter(losses.values())))
    for domain in domains:
        weights = [f"{mixture.get(domain, 0):.4f}" for mixture in mixtures.values()]
        table.add_row(domain, *weights, *_marked([run[domain] for run in losses.values()]))
    table.add_section()
    blanks = [""] * len(mixtures)
    averages = [sum(run.values()) / len(run) for run in losses.values()]
    table.add_row("average", *blanks, *_marked(averages))
    table.add_row("worst", *blanks, *_marked([max(run.values()) for run in losses.values()]))
    return table


def _marked(values: list[float]) -> list[str]:
    return [f"[bold]{value:.4f}*[/bold]" if value == min(values) else f"{value:.4f} " for value in values]
