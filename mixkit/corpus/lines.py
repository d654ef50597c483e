"""A plain or compressed file to its lines, one after another, with bounded memory and without false ends.

The idea: a file that breaks off must not look like a file that ends. The usual stream readers of zstd return what
they have and then nothing, as at a normal end; here every frame (or gzip member) is decoded by an object that knows
whether it is finished. What decodes is handed on; then `Fault` says what is wrong; the half line before it is lost.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import zstandard

CHUNK = 1 << 17  # bytes read at a time; a chunk's decompressed form is what memory has to hold

_BOM = b"\xef\xbb\xbf"
_LARGEST_WINDOW = 1 << 31  # `zstd --long=31`, which large published corpora use


class Fault(Exception):
    """The file as a whole is damaged from here on; the message is the reason that is reported."""


def read_lines(path: Path, form: str, advance: Callable[[int], None]) -> Iterator[bytes]:
    """The lines of a `jsonl`, `jsonl.zst` or `jsonl.gz` file without their `\\n`; the last may lack one.

    Only `\\n` ends a line (a `\\r` before it stays: JSON takes it for a blank). zstd: any number of frames, skippable
    ones among them; gzip: any number of members. A UTF-8 byte order mark before the first line is taken off.
    `advance` is called with the number of bytes as they are read from disk.

    Raises:
        Fault: after all lines that could be recovered.
    """
    chunks: Iterable[bytes] = _raw_chunks(path, advance)
    if form == "jsonl.zst":
        context = zstandard.ZstdDecompressor(max_window_size=_LARGEST_WINDOW)
        chunks = _decompressed(chunks, context.decompressobj, zstandard.ZstdError)
    elif form == "jsonl.gz":
        chunks = _decompressed(chunks, lambda: zlib.decompressobj(wbits=31), zlib.error)
    lines = _split_lines(chunks)
    first = next(lines, None)
    if first is None:
        return
    yield first.removeprefix(_BOM)
    yield from lines


def _raw_chunks(path: Path, advance: Callable[[int], None]) -> Iterator[bytes]:
    try:
        with open(path, "rb") as file:
            while chunk := file.read(CHUNK):
                advance(len(chunk))
                yield chunk
    except OSError as error:
        raise Fault(f"unreadable file ({error.strerror or error})") from error


def _decompressed(chunks: Iterable[bytes], new_decoder: Callable[[], Any], error: type[Exception]) -> Iterator[bytes]:
    """Decode frame after frame; a decoder has `decompress`, `eof` and `unused_data` (zstandard and zlib agree)."""
    decoder = None
    for data in chunks:
        while data:
            if decoder is None:
                data = data.lstrip(b"\0")  # gzip allows padding with zeros between members; no frame begins with one
                if not data:
                    break
                decoder = new_decoder()
            try:
                plain = decoder.decompress(data)
            except error as reason:
                raise Fault("corrupt file") from reason
            if plain:
                yield plain
            if not decoder.eof:
                break
            data, decoder = decoder.unused_data, None
    if decoder is not None:
        raise Fault("truncated file")


def _split_lines(chunks: Iterable[bytes]) -> Iterator[bytes]:
    parts: list[bytes] = []  # of the line that is not complete yet; joined once, however long it gets
    for chunk in chunks:
        first, *others = chunk.split(b"\n")
        parts.append(first)
        if others:
            yield b"".join(parts)
            yield from others[:-1]
            parts = [others[-1]]
    last = b"".join(parts)
    if last:
        yield last
