"""Documents out of files: every record becomes a `Document` or a `Rejected` with file, line and reason.

The idea: a reader never raises for what a file holds and never lets a bad record touch its neighbours. What counts as
a document is decided in one place for all formats: a record with text that is a string of valid Unicode and not blank
(or, for tokenised data, a list of token ids that is not empty), and with a domain.

More lenient than strict JSON in one point: `NaN` and `Infinity`, which Python's json writes, are taken for numbers.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import orjson

from mixkit.corpus.files import Source
from mixkit.corpus.lines import Fault, read_lines
from mixkit.corpus.recipe import Recipe

BLANK_LINE = "blank line"  # nobody's document: counted, but not as a bad one

_MISSING = object()


class BadText:
    """Stands for a string that is no valid UTF-8 (table formats find out before a record exists)."""


@dataclass(frozen=True, slots=True)
class Document:
    """One document: `text`, or `tokens` (int64, one-dimensional) for tokenised data. `line` as in `Rejected`."""

    text: str | None
    tokens: np.ndarray | None
    domain: str
    file: str
    line: int


@dataclass(frozen=True, slots=True)
class Rejected:
    """A record that is no document.

    `line` counts physical lines from 1 (rows from 0 in parquet and datasets). `whole_file` marks a fault that hides
    the rest of the file (truncated, corrupt, unreadable). `domain` is None where it is not known.
    """

    file: str
    line: int
    reason: str
    domain: str | None = None
    whole_file: bool = False


@dataclass(frozen=True, slots=True)
class Fields:
    """Where in a record the text (or the token ids) and the domain stand: dotted keys; `domain` None: not in it."""

    content: str
    tokenised: bool
    domain: str | None

    @classmethod
    def of(cls, recipe: Recipe) -> Fields:
        key = recipe.domain if recipe.domain_from == "key" else None
        return cls(recipe.field, recipe.tokens is not None, key)


def read(source: Source, fields: Fields, advance: Callable[[int], None]) -> Iterator[Document | Rejected]:
    """All documents of `source` in order, and what is set aside between them.

    `advance` is called with numbers of bytes that add up to about `source.size`.

    Raises:
        UserError: the file has no column for the text or the domain at all.
    """
    if source.format in ("parquet", "hf_disk", "hf"):
        from mixkit.corpus.tables import read_table

        return read_table(source, fields, advance)
    if source.format == "text":
        return _read_text(source, advance)
    return _read_jsonl(source, fields, advance)


def _read_jsonl(source: Source, fields: Fields, advance: Callable[[int], None]) -> Iterator[Document | Rejected]:
    number = 0
    try:
        for number, line in enumerate(read_lines(source.path, source.format, advance), start=1):
            record = parse_line(line)
            if isinstance(record, str):
                yield Rejected(source.name, number, record, source.domain)
            else:
                yield to_document(record, fields, source, number)
    except Fault as fault:
        yield Rejected(source.name, number + 1, str(fault), source.domain, whole_file=True)


def _read_text(source: Source, advance: Callable[[int], None]) -> Iterator[Document | Rejected]:
    """The whole file as one document; a byte order mark is taken off, line ends stay as they are."""
    try:
        data = source.path.read_bytes()
    except OSError as error:
        reason = f"unreadable file ({error.strerror or error})"
        yield Rejected(source.name, 1, reason, source.domain, whole_file=True)
        return
    advance(len(data))
    try:
        text: Any = data.decode("utf-8-sig")
    except UnicodeDecodeError:
        text = BadText()
    yield to_document({"text": text}, Fields("text", False, None), source, 1)


def parse_line(line: bytes) -> dict[str, Any] | str:
    """The JSON object on a line, or the reason why there is none."""
    try:
        record = orjson.loads(line)
    except orjson.JSONDecodeError:
        if not line.strip():
            return BLANK_LINE
        try:
            # Python's parser takes more: escaped lone surrogates, which are bad only where they stand in the text.
            record = json.loads(line.decode("utf-8"))
        except UnicodeDecodeError:
            return "invalid UTF-8"
        except (ValueError, RecursionError):
            return "malformed JSON"
    return record if isinstance(record, dict) else "not an object"


def to_document(record: dict[str, Any], fields: Fields, source: Source, line: int) -> Document | Rejected:
    """Check one record; see the module's head for what a document is."""
    domain = source.domain if fields.domain is None else dig(record, fields.domain)
    if not isinstance(domain, str) or not domain or not _is_unicode(domain):
        domain = None
    content = dig(record, fields.content)
    checked = _check_tokens(content) if fields.tokenised else _check_text(content)
    if isinstance(checked, _Reason):
        return Rejected(source.name, line, checked.reason, domain)
    if domain is None:
        return Rejected(source.name, line, "no domain")
    if fields.tokenised:
        return Document(None, checked, domain, source.name, line)
    return Document(checked, None, domain, source.name, line)


def dig(record: Any, key: str) -> Any:
    """The value at a dotted key; a key that is there as it is written, dots and all, comes first."""
    if not isinstance(record, dict):
        return _MISSING
    if key in record:
        return record[key]
    head, dot, rest = key.partition(".")
    return dig(record.get(head), rest) if dot else _MISSING


@dataclass(frozen=True, slots=True)
class _Reason:
    reason: str


def _check_text(text: Any) -> str | _Reason:
    if text is _MISSING:
        return _Reason("no text key")
    if text is None:
        return _Reason("text is null")
    if isinstance(text, BadText):
        return _Reason("invalid UTF-8")
    if not isinstance(text, str):
        return _Reason("text is not a string")
    if not text:
        return _Reason("empty text")
    if not _is_unicode(text):
        return _Reason("invalid UTF-8")
    if text.isspace():
        return _Reason("whitespace-only text")
    return text


def _check_tokens(tokens: Any) -> np.ndarray | _Reason:
    if tokens is _MISSING:
        return _Reason("no tokens key")
    if tokens is None:
        return _Reason("tokens is null")
    if not isinstance(tokens, (list, np.ndarray)):
        return _Reason("tokens is not a list of integers")
    if len(tokens) == 0:
        return _Reason("empty tokens")
    try:
        ids = np.asarray(tokens)
    except (ValueError, OverflowError):  # lists of unequal length in it
        return _Reason("tokens is not a list of integers")
    if ids.ndim != 1 or ids.dtype.kind not in "iu":
        return _Reason("tokens is not a list of integers")
    return ids.astype(np.int64, copy=False)


def _is_unicode(text: str) -> bool:
    """Whether `text` has a UTF-8 form, that is, holds no lone surrogate."""
    if text.isascii():
        return True
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True
