"""A run's weights over time as a picture."""

from __future__ import annotations

from pathlib import Path

from mixkit.errors import UserError
from mixkit.train.runfolder import read_weights

LABELLED = 12
"""More domains than this get a legend beside the plot in two columns."""


def plot_weights(run: Path, out: Path) -> None:
    """Draw α of every domain over the steps of a DoReMi run, and ᾱ, the result, as a mark at the right.

    Raises:
        UserError: the run kept no weights, or `out` is not a picture's name.
    """
    if out.suffix not in (".png", ".svg", ".pdf"):
        raise UserError(f"--out: {out} is not a .png, .svg or .pdf")
    domains, history = read_weights(run)
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    colours = plt.get_cmap("tab10" if len(domains) <= 10 else "tab20")
    figure, axes = plt.subplots(figsize=(9, 4.8), layout="constrained")
    steps, weights, average = history["batch"], history["weight"], history["average"][-1]
    order = sorted(range(len(domains)), key=lambda place: -average[place])
    for rank, place in enumerate(order):
        colour = colours(rank % colours.N)
        axes.plot(
            steps, weights[:, place], color=colour, linewidth=1.4, label=f"{domains[place]}  {average[place]:.3f}"
        )
        axes.plot(steps[-1] * 1.015, average[place], marker="<", color=colour, markersize=6, clip_on=False)
    axes.set_xlim(0, steps[-1] * 1.02)
    axes.set_ylim(bottom=0)
    axes.set_xlabel("step")
    axes.set_ylabel("weight α")
    axes.set_title(f"{run.name}: domain weights (mean over the steps at the right and in the legend)", fontsize=11)
    axes.grid(alpha=0.25)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    axes.legend(
        loc="center left",
        bbox_to_anchor=(1.03, 0.5),
        frameon=False,
        ncols=1 if len(domains) <= LABELLED else 2,
        fontsize=9,
    )
    out.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(out, dpi=150)
    plt.close(figure)
