"""Fixtures of the corpus tests: files made on the spot, and what a reader makes of them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from mixkit.corpus.files import Source
from mixkit.corpus.readers import Document, Fields, Rejected, read

Reading = tuple[list[Document], list[Rejected]]


@pytest.fixture
def read_file() -> Callable[..., Reading]:
    """read_file(path, format, text=…, tokens=…, key=…, domain=…) → (documents, rejected), in order."""

    def reading(
        path: Path, form: str, text: str = "text", tokens: str = "", key: str | None = None, domain: str | None = "D"
    ) -> Reading:
        source = Source("train", path.name, path, form, 0, None if key else domain)
        items = list(read(source, Fields(tokens or text, bool(tokens), key), lambda size: None))
        return (
            [item for item in items if isinstance(item, Document)],
            [item for item in items if isinstance(item, Rejected)],
        )

    return reading


@pytest.fixture(scope="session")
def shared() -> Path:
    """../shared of the checkout; tests that compare with it are skipped where it is not."""
    folder = Path(__file__).resolve().parents[2].parent / "shared"
    if not folder.is_dir():
        pytest.skip("no ../shared on this machine")
    return folder
