"""Documents to sequences of one length, and the counts of both.

The idea: the documents of a domain, each with its end-of-text id, form one long row of tokens in reading order, which
is cut every `seq_len` tokens; the incomplete rest is dropped and counted. Two counts go with it, because the
reference weights of the literature are made from either: "pack", sequences after concatenation, and "nopack",
sequences if every document began one of its own.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

import numpy as np


class Packer:
    """Cuts one domain's documents into rows of `seq_len` tokens."""

    def __init__(self, seq_len: int, dtype: np.dtype):
        self.seq_len = seq_len
        self.dtype = dtype
        self._parts: list[np.ndarray] = []
        self._pending = 0

    @property
    def pending(self) -> int:
        """Tokens that do not fill a row yet."""
        return self._pending

    def add(self, ids: np.ndarray) -> np.ndarray:
        """Append a document's ids (1-d, end-of-text id included); returns the rows it completes, (n, seq_len)."""
        self._parts.append(ids.astype(self.dtype, copy=False))
        self._pending += len(ids)
        if self._pending < self.seq_len:
            return np.empty((0, self.seq_len), self.dtype)
        tokens = np.concatenate(self._parts)
        whole = len(tokens) - len(tokens) % self.seq_len
        self._parts = [tokens[whole:].copy()]  # a copy, so that a long document's array can go
        self._pending = len(tokens) - whole
        return tokens[:whole].reshape(-1, self.seq_len)


def end_document(ids: np.ndarray, eos_id: int) -> np.ndarray:
    """`ids` with the end-of-text id behind them, unless it is there already (tokenised data often brings it)."""
    if len(ids) and ids[-1] == eos_id:
        return ids
    return np.append(ids, np.array(eos_id, dtype=ids.dtype))


@dataclass
class Tally:
    """Running counts of one domain in one split; units are documents, UTF-8 bytes, tokens and sequences."""

    seq_len: int
    documents: int = 0
    text_bytes: int = 0
    tokens: int = 0
    nopack: int = 0
    rejected: Counter[str] = field(default_factory=Counter)

    def add(self, text_bytes: int, tokens: int) -> None:
        """Count one document of `tokens` tokens, its end-of-text id included."""
        self.documents += 1
        self.text_bytes += text_bytes
        self.tokens += tokens
        self.nopack += -(-tokens // self.seq_len)

    @property
    def sequences(self) -> int:
        return self.tokens // self.seq_len

    @property
    def dropped_tokens(self) -> int:
        return self.tokens % self.seq_len
