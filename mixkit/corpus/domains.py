"""Which domain a document belongs to, and the folder that a domain is written to.

The idea: a domain's name is data. It comes out of somebody's files, so it never becomes a path unchecked: everything
that is not plainly harmless is percent-encoded, which keeps common names readable ("Wikipedia (en)" stays as it is)
and maps no two names to one folder.
"""

from __future__ import annotations

import hashlib
import re
from pathlib import PurePosixPath

from mixkit.errors import UserError

# Names that mixkit itself uses beside the domain folders.
RESERVED = frozenset({"scores", "tokenizer.json", "shards.json", "rejected.jsonl"})

_SAFE = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789 ._-()[]{}+,=@&!'~^")
_LONGEST = 150  # bytes; file systems end at 255, object stores add prefixes
_SUFFIXES = frozenset({".zst", ".gz", ".jsonl", ".json", ".ndjson", ".parquet", ".txt", ".text", ".arrow"})


def folder_name(domain: str) -> str:
    """The name of the folder for `domain`: one path component, never empty, `.` or `..`, at most 255 ASCII bytes.

    Two different names give two different folders. ASCII letters, digits, blanks and common punctuation stay; the
    rest (`/`, `\\`, `%`, control and non-ASCII characters, a dot or blank at either end, mixkit's own file names) is
    written as `%XX` of its UTF-8 bytes. A very long name is cut and ends in a hash of the whole.
    """
    reserved = domain.casefold() in RESERVED
    last = len(domain) - 1
    parts = []
    for position, char in enumerate(domain):
        at_an_end = char in " ." and position in (0, last)
        if char in _SAFE and not at_an_end and not (reserved and position == 0):
            parts.append(char)
        else:
            parts.extend(f"%{byte:02X}" for byte in char.encode("utf-8", "surrogatepass"))
    name = "".join(parts)
    if not name:
        return "%"  # no other name gives a % without two hexadecimal digits after it, nor the %- below
    if len(name) > _LONGEST:
        digest = hashlib.sha256(domain.encode("utf-8", "surrogatepass")).hexdigest()
        return f"{name[:_LONGEST]}%-{digest}"
    return name


class PathPattern:
    """A pattern over a file's path below `input`, with `{domain}` where the domain's name stands.

    `*` and `?` match within one path component, `**` over several: `{domain}/**` takes the top folder,
    `*/{domain}/*.jsonl` the second, `{domain}.jsonl.zst` the file's name.
    """

    def __init__(self, pattern: str):
        if pattern.count("{domain}") != 1:
            raise ValueError(f"the pattern {pattern!r} must hold {{domain}} once, for example {{domain}}/**")
        tokens = re.split(r"(\{domain\}|\*\*/|\*\*|\*|\?)", pattern)
        meanings = {"{domain}": "(?P<domain>[^/]+?)", "**/": "(?:.*/)?", "**": ".*", "*": "[^/]*", "?": "[^/]"}
        self.pattern = pattern
        self._regex = re.compile("".join(meanings.get(token, re.escape(token)) for token in tokens), re.DOTALL)

    def domain_of(self, path: str) -> str:
        """The domain that stands in `path` (relative, with `/`).

        Raises:
            UserError: the path does not fit the pattern.
        """
        match = self._regex.fullmatch(path)
        if match is None:
            raise UserError(f"domain: the file {path} does not fit the pattern {self.pattern}")
        return match["domain"]


def stem(path: str) -> str:
    """The file's name without folders and without the endings of known formats: `a/wiki.en.jsonl.zst` → `wiki.en`."""
    name = PurePosixPath(path)
    while name.suffix.lower() in _SUFFIXES:
        name = name.with_suffix("")
    return name.name


def parent(path: str) -> str:
    """The name of the folder that the file lies in.

    Raises:
        UserError: the file lies directly in `input`, so that no folder names it.
    """
    folder = PurePosixPath(path).parent.name
    if not folder:
        raise UserError(f"domain_from: folder: the file {path} lies in no folder below input")
    return folder
