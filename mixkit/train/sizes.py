"""Model sizes by the names that the papers give them."""

from __future__ import annotations

from typing import NamedTuple


class Size(NamedTuple):
    """Layers, attention heads, model dimension and feed-forward dimension of a Llama."""

    n_layers: int
    n_heads: int
    d_model: int
    ffn: int


SIZES = {
    # RegMix (arXiv 2407.01492, table 8)
    "1m": Size(2, 8, 256, 512),
    "60m": Size(10, 8, 768, 1536),
    "1.1b": Size(22, 16, 2048, 5632),
    # DoReMi (arXiv 2305.10429, table 9), and the 120M model of its public code
    "70m": Size(3, 4, 256, 1024),
    "120m": Size(12, 12, 768, 3072),
    "150m": Size(6, 8, 512, 2048),
    "280m": Size(12, 12, 768, 3072),
    "510m": Size(12, 16, 1024, 8192),
    "760m": Size(12, 20, 1280, 8192),
    "1b": Size(16, 32, 2048, 8192),
    "8b": Size(32, 32, 4096, 24576),
}
