"""What `mixkit shards` shows: how far it is, and at the end what was made of the corpus.

The idea: one bar on a terminal, one plain line every ten seconds in a log; both count bytes of input read, the only
measure whose end is known beforehand.
"""

from __future__ import annotations

import time
from types import TracebackType

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn
from rich.table import Table

from mixkit.shards.manifest import Manifest

SECONDS_BETWEEN_LINES = 10.0


class Meter:
    """Progress over `total` bytes of input (0: not known); use as a context manager."""

    def __init__(self, console: Console, what: str, total: int):
        self._console = console
        self._what = what
        self._total = total
        self._done = 0
        self._text_bytes = 0
        self._started = self._last_line = time.monotonic()
        self._bar: Progress | None = None
        if console.is_terminal:
            columns = (DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn())
            text = TextColumn("{task.fields[text]}")
            self._bar = Progress(TextColumn("{task.description}"), BarColumn(), *columns, text, console=console)
            self._task = self._bar.add_task(what, total=total or None, text="")

    def __enter__(self) -> Meter:
        if self._bar:
            self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar:
            self._bar.stop()

    def advance(self, size: int) -> None:
        """`size` more bytes of input were read."""
        self._done += size
        if self._bar:
            self._bar.update(self._task, advance=size)

    def text(self, size: int) -> None:
        """`size` more bytes of text were turned into tokens."""
        self._text_bytes += size
        if self._bar:
            self._bar.update(self._task, text=f"{megabytes(self._text_bytes)} of text")
            return
        now = time.monotonic()
        if now - self._last_line >= SECONDS_BETWEEN_LINES:
            self._last_line = now
            share = f" ({self._done / self._total:.0%})" if self._total else ""
            rate = self._text_bytes / 1e6 / (now - self._started)
            self._console.print(
                f"{self._what}: {megabytes(self._done)}{share} read, {megabytes(self._text_bytes)} of text, "
                f"{rate:.1f} MB/s",
                highlight=False,
            )


def print_summary(console: Console, manifest: Manifest) -> None:
    """The closing tables, one a split, a row per domain."""
    for split in sorted({split for domain in manifest.domains.values() for split in domain.splits}, key=_train_first):
        console.print(_table(manifest, split))


def _train_first(split: str) -> tuple[bool, str]:
    return (split != "train", split)


def _table(manifest: Manifest, split: str) -> Table:
    title = f"{split} (sequences of {manifest.seq_len} tokens)"
    table = Table(title=title, title_justify="left", box=box.SIMPLE, padding=(0, 1, 0, 0), pad_edge=False)
    table.add_column("domain", overflow="fold", vertical="bottom")
    # Broken headings keep the table within 80 columns.
    for heading in ("docu-\nments", "text", "tokens", "se-\nquences", "share", "bytes/\ntoken", "set\naside"):
        table.add_column(heading, justify="right", no_wrap=True, vertical="bottom")
    rows = {name: domain.splits[split] for name, domain in manifest.domains.items() if split in domain.splits}
    tokens = sum(stats.tokens for stats in rows.values())
    no_domain = sum(manifest.no_domain.get(split, {}).values())
    for name, stats in rows.items():
        set_aside = sum(stats.rejected.values())
        _add_row(table, name, stats.documents, stats.text_bytes, stats.tokens, stats.sequences, tokens, set_aside)
    if no_domain:
        _add_row(table, "(no domain)", 0, 0, 0, 0, tokens, no_domain)
    table.add_section()
    totals = [sum(getattr(stats, key) for stats in rows.values()) for key in ("documents", "text_bytes", "sequences")]
    set_aside = no_domain + sum(sum(stats.rejected.values()) for stats in rows.values())
    _add_row(table, "total", totals[0], totals[1], tokens, totals[2], tokens, set_aside)
    return table


def _add_row(
    table: Table, name: str, documents: int, text_bytes: int, tokens: int, sequences: int, total: int, set_aside: int
) -> None:
    table.add_row(
        escape(name),
        f"{documents:,}",
        megabytes(text_bytes) if text_bytes else "–",
        f"{tokens:,}",
        f"{sequences:,}",
        f"{tokens / total:.2%}" if total else "–",
        f"{text_bytes / tokens:.2f}" if tokens and text_bytes else "–",
        f"{set_aside:,}",
    )


def megabytes(size: float) -> str:
    """`size` bytes in MB (10⁶)."""
    return f"{size / 1e6:,.1f} MB"
