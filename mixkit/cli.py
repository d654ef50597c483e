"""The `mixkit` command: each command is a few lines that call the rooms."""

from __future__ import annotations

import errno
import sys
from pathlib import Path
from typing import Annotated

import typer

from mixkit.errors import UserError, WorldError

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Find the proportions in which to mix the domains of a pre-training corpus, and stream data in them.",
)

Overrides = Annotated[list[str] | None, typer.Argument(help="key=value words that win over the file's keys.")]


@app.command()
def shards(
    recipe: Annotated[Path, typer.Argument(help="A recipe, e.g. pipelines/pile.yaml.")], overrides: Overrides = None
) -> None:
    """Turn a corpus into MDS shards, one folder per domain."""
    from rich.console import Console

    from mixkit.corpus.recipe import load_recipe
    from mixkit.shards.build import build_shards

    build_shards(load_recipe(recipe, overrides or []), Console(highlight=False))


@app.command()
def score(
    run: Annotated[Path, typer.Argument(help="Run folder of a finished reference model.")],
    shards: Annotated[Path | None, typer.Option(help="Token shards; by default those the run was trained on.")] = None,
    split: Annotated[str, typer.Option(help="The split to score.")] = "train",
    batch_size: Annotated[int, typer.Option(help="Sequences in a forward pass.", min=1)] = 32,
) -> None:
    """Compute a reference model's loss of every token, once."""
    from rich.console import Console

    from mixkit.train.score import score as compute

    compute(run, shards, split, batch_size, Console(highlight=False))


@app.command()
def freeze(
    run: Annotated[Path, typer.Argument(help="Run folder of a finished DoReMi run.")],
    out: Annotated[Path, typer.Option(help="The mixture file to write.")],
    relative: Annotated[bool, typer.Option(help="Write paths relative to the current folder.")] = False,
    remote: Annotated[str | None, typer.Option(help="URL of a copy of the shards.")] = None,
    cache: Annotated[str | None, typer.Option(help="With --remote: the folder to cache shards in.")] = None,
) -> None:
    """Freeze the weights that a run found into a mixture file."""
    from rich.console import Console

    from mixkit.report.tables import mixture_table
    from mixkit.train.freeze import freeze as frozen

    mixture = frozen(run, relative, remote, cache)
    mixture.save(out)
    console = Console(highlight=False)
    console.print(mixture_table(mixture))
    console.print(
        f"wrote {out}\nnext: composer train yamls/main.yaml train_loader.dataset.mixture={out}", soft_wrap=True
    )


@app.command()
def plot(
    run: Annotated[Path, typer.Argument(help="Run folder of a DoReMi run.")],
    out: Annotated[Path, typer.Option(help="The picture to write (.png, .svg or .pdf).")],
) -> None:
    """Draw a run's weights over time."""
    from mixkit.report.weights import plot_weights

    plot_weights(run, out)
    print(f"wrote {out}")


@app.command()
def demo() -> None:
    """Run the whole path on text that is on every machine (what `make demo` does)."""
    from mixkit.demo import run_demo

    run_demo()


def main() -> None:
    """The console script: user's mistakes end with one message and status 2, the world's faults with status 1."""
    try:
        app()
    except (UserError, WorldError) as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(error.exit_status)
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EACCES, errno.EROFS, errno.EIO):
            raise
        print(f"error: {error.filename}: {error.strerror}; mend that and give the same command again", file=sys.stderr)
        sys.exit(WorldError.exit_status)
