"""`Mixture`: domain → weight, with where it came from, as a YAML file that any Composer project can stream.

The file's `streams:` block needs nothing of ours: its entries go unchanged into `streaming.Stream(**entry)` and into
llm-foundry's `train_loader.dataset.streams`.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from mixkit.errors import UserError

FORMAT_VERSION = 1
_HEADER = """\
# A data mixture, made by mixkit. Each entry of `streams` goes unchanged into streaming.Stream(**entry), and the whole
# block into llm-foundry's train_loader.dataset.streams.
"""


@dataclass(frozen=True)
class Mixture:
    """A frozen mixture.

    Attributes:
        weights: domain to its share of the sampled sequences; they sum to 1.
        entries: domain to the keyword arguments of its `streaming.Stream`, `proportion` left out (it is the weight).
        provenance: where the weights come from, plain types.
    """

    weights: dict[str, float]
    entries: dict[str, dict[str, Any]]
    provenance: dict[str, Any] = field(default_factory=dict)

    def streams(self) -> dict[str, dict[str, Any]]:
        """Domain to the keyword arguments of `streaming.Stream`."""
        return {name: {**self.entries[name], "proportion": weight} for name, weight in self.weights.items()}

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the file, whole or not at all.

        Raises:
            UserError: `path` is a folder.
        """
        path = Path(path)
        content = {
            "mixture_version": FORMAT_VERSION,
            "weights": self.weights,
            "provenance": self.provenance,
            "streams": self.streams(),
        }
        if path.is_dir():
            raise UserError(f"{path}: is a folder; give a file's name")
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_name(f".{path.name}.partial")
        text = _HEADER + yaml.safe_dump(content, sort_keys=False, allow_unicode=True, width=120)
        partial.write_text(text, encoding="utf-8")
        os.replace(partial, path)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Mixture:
        """Read a mixture file.

        Raises:
            UserError: no such file, not a mixture, another version, weights that cannot be.
        """
        content = _read(path)
        version = content.get("mixture_version")
        if version != FORMAT_VERSION:
            raise UserError(f"{path}: mixture_version: {version!r}; this mixkit reads {FORMAT_VERSION}")
        streams = content.get("streams")
        if not isinstance(streams, dict) or not all(isinstance(entry, dict) for entry in streams.values()):
            raise UserError(f"{path}: streams: a table of domain to stream entry is wanted")
        weights = check_weights(content.get("weights"), streams, f"{path}: weights", "streams")
        shares = {name: entry.get("proportion") for name, entry in streams.items()}
        shares = check_weights(shares, streams, f"{path}: streams", "streams")
        differing = [name for name in weights if not math.isclose(weights[name], shares[name], abs_tol=1e-9)]
        if differing:
            raise UserError(f"{path}: streams.{differing[0]}.proportion is not what weights.{differing[0]} says")
        entries = {
            name: {key: value for key, value in entry.items() if key != "proportion"} for name, entry in streams.items()
        }
        return cls(weights, {name: entries[name] for name in weights}, content.get("provenance") or {})


def check_weights(weights: Any, domains: Iterable[str], where: str, holder: str = "the shards") -> dict[str, float]:
    """Weights for exactly `domains`, in their order, normalised to sum 1.

    Args:
        weights: domain to number; what a user or a file gave.
        domains: the domains that there are.
        where: file and key, to open a complaint with.
        holder: what has those domains.

    Raises:
        UserError: a missing or unknown domain, a weight that is negative or not a number, all zero.
    """
    domains = list(domains)
    if not isinstance(weights, Mapping):
        raise UserError(f"{where}: a table of domain to weight is wanted")
    unknown = [str(name) for name in weights if name not in domains]
    missing = [name for name in domains if name not in weights]
    if unknown:
        raise UserError(f"{where}: no such domain in {holder}: {', '.join(unknown)} (there are {', '.join(domains)})")
    if missing:
        raise UserError(f"{where}: no weight for {', '.join(missing)}; write 0 to leave a domain out")
    for name, weight in weights.items():
        number = isinstance(weight, (int, float)) and not isinstance(weight, bool)
        if not number or not math.isfinite(weight) or weight < 0:
            raise UserError(f"{where}.{name}: a number of at least 0 is wanted (found {weight!r})")
    total = math.fsum(weights.values())
    if total <= 0:
        raise UserError(f"{where}: all weights are 0")
    return {name: weights[name] / total for name in domains}


def shard_entry(folder: Path, domain_folder: str, split: str, remote: str | None = None) -> dict[str, Any]:
    """Keyword arguments of the `streaming.Stream` of one domain's shards.

    Args:
        folder: the shards' folder, or with `remote` a cache folder of its own.
        domain_folder: the domain's folder in it.
        split: "train", "val", ….
        remote: URL of a copy of the shards' folder.
    """
    return {
        "remote": f"{remote.rstrip('/')}/{domain_folder}" if remote else None,
        "local": os.path.join(folder, domain_folder),
        "split": split,
    }


def _read(path: str | os.PathLike[str]) -> dict[str, Any]:
    try:
        with open(path, encoding="utf-8") as file:
            content = yaml.safe_load(file)
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: is not readable as YAML: {' '.join(str(error).split())}") from None
    if not isinstance(content, dict):
        raise UserError(f"{path}: is not a mixture file")
    return content
