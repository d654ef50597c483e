from __future__ import annotations

from pathlib import Path

import pytest

from mixkit.mixture import shard_entry
from mixkit.shards.manifest import load_manifest


@pytest.fixture(scope="session")
def entries(shards: Path) -> dict[str, dict]:
    """Stream arguments of the tiny corpus's train split, with unequal proportions."""
    manifest = load_manifest(shards)
    proportions = dict(zip(manifest.domains, (0.5, 0.3, 0.2), strict=True))
    return {
        name: {**shard_entry(shards, domain.folder, "train"), "proportion": proportions[name]}
        for name, domain in manifest.domains.items()
    }
