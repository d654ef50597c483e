"""Before anything is trained: do the files, domains, weights and numbers of a run fit each other?

Complaints come from here, so that they come before torch is loaded, from one rank, and before anything is written.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mixkit.errors import UserError
from mixkit.methods import baselines
from mixkit.mixture import Mixture, check_weights, shard_entry
from mixkit.shards.manifest import Manifest, load_manifest
from mixkit.train import scorefolder
from mixkit.train.config import RunConfig
from mixkit.train.runfolder import file_sha256, finished_reference


@dataclass(frozen=True)
class RunPlan:
    """What a checked configuration comes to.

    Attributes:
        vocab_size, seq_len: of the shards.
        tokenizer_sha256, eos_token: of the shards' tokenizer.json.
        index_sha256: domain to the hash of its training shards' index.
        train: domain to the keyword arguments of its `streaming.Stream`, with proportion.
        val: the same for held-out shards (domains that have some), without proportion.
        scores: the same for reference losses; None where a run needs none.
        reference: run folder of a live reference model, or None.
        reference_sha256: hash of the reference model's weights, or None.
    """

    vocab_size: int
    seq_len: int
    tokenizer_sha256: str
    index_sha256: dict[str, str]
    eos_token: str
    train: dict[str, dict[str, Any]]
    val: dict[str, dict[str, Any]]
    scores: dict[str, dict[str, Any]] | None
    reference: str | None
    reference_sha256: str | None

    @property
    def inputs(self) -> dict[str, Any]:
        """What stands behind the configuration's paths: a run that goes on must find the same."""
        return {
            "train_loader.dataset": {name: entry["proportion"] for name, entry in self.train.items()},
            "shards": {"tokenizer_sha256": self.tokenizer_sha256, "index_sha256": self.index_sha256},
            "algorithms.doremi.reference": self.reference_sha256,
        }


def check_run(config: RunConfig, source: str, world_size: int = 1) -> RunPlan:
    """Check a run against the world.

    Args:
        config: the run.
        source: the YAML file's name, to open complaints with.
        world_size: ranks that will share a global batch.

    Raises:
        UserError: whatever does not fit.
    """
    doremi = config.algorithms.doremi
    if doremi is not None:
        folder = Path(doremi.reference)
        finished = finished_reference(
            folder, f"{source}: algorithms.doremi.reference", _reference_command(config, source, folder)
        )
    manifest = load_manifest(config.shards)
    check_tokenizer(Path(config.shards), manifest)
    if config.global_train_batch_size % world_size:
        raise UserError(
            f"{source}: global_train_batch_size: {config.global_train_batch_size} sequences do not divide into "
            f"{world_size} ranks"
        )
    micro = config.device_train_microbatch_size
    if micro != "auto" and (config.global_train_batch_size // world_size) % micro:
        raise UserError(
            f"{source}: device_train_microbatch_size: {micro} does not divide a rank's "
            f"{config.global_train_batch_size // world_size} sequences"
        )
    nodes = config.train_loader.dataset.num_canonical_nodes
    if nodes and config.global_train_batch_size % nodes:
        raise UserError(
            f"{source}: train_loader.dataset.num_canonical_nodes: {nodes} does not divide the global batch of "
            f"{config.global_train_batch_size} sequences"
        )
    if config.precision == "amp_fp16" and config.algorithms.doremi:
        raise UserError(f"{source}: precision: amp_fp16 rescales the loss; DoReMi runs in amp_bf16 or fp32")
    train = _train_entries(config, manifest, source)
    index_sha256 = {name: _index_sha256(entry) for name, entry in train.items()}
    reference, reference_sha256, scores = None, None, None
    if doremi is not None:
        reference_sha256 = finished["model_sha256"]
        check_same_text(folder, finished, manifest, config.shards)
        if doremi.reference_losses == "live":
            reference = doremi.reference
        else:
            scores = scorefolder.entries(Path(config.shards), manifest, finished, folder, train)
    val = _val_entries(config, manifest, source)
    for entry in (*val.values(), *(scores or {}).values()):
        _index_file(entry)
    return RunPlan(
        vocab_size=manifest.tokenizer.vocab_size,
        seq_len=manifest.seq_len,
        tokenizer_sha256=manifest.tokenizer.sha256,
        index_sha256=index_sha256,
        eos_token=manifest.tokenizer.eos_token,
        train=train,
        val=val,
        scores=scores,
        reference=reference,
        reference_sha256=reference_sha256,
    )


def _reference_command(config: RunConfig, source: str, folder: Path) -> str:
    beside = Path(source).with_name("reference.yaml")
    file = beside if beside.is_file() else "yamls/reference.yaml"
    return f"composer train {file} shards={config.shards} run_folder={folder}"


def _index_sha256(entry: dict[str, Any]) -> str:
    """The hash of a stream's index, "remote" where it is not here yet."""
    path = _index_file(entry)
    return file_sha256(path) if path.is_file() else "remote"


def _index_file(entry: dict[str, Any]) -> Path:
    """A stream's index, which must be here unless it can be fetched."""
    path = Path(entry["local"]) / entry["split"] / "index.json"
    if not path.is_file() and not entry.get("remote"):
        raise UserError(
            f"{path}: no such file; the shards are not whole, write them again (mixkit shards … overwrite=true)"
        )
    return path


def check_tokenizer(shards: Path, manifest: Manifest) -> None:
    """Refuse shards whose tokenizer.json is not the one that they were written with."""
    path = shards / "tokenizer.json"
    if not path.is_file() or file_sha256(path) != manifest.tokenizer.sha256:
        raise UserError(f"{path}: is not the tokenizer that the shards were written with; write them again")


def check_same_text(run: Path, finished: dict[str, Any], manifest: Manifest, shards: str) -> None:
    """Refuse a model that reads other tokens, or other lengths, than the shards hold."""
    if finished["tokenizer_sha256"] != manifest.tokenizer.sha256:
        raise UserError(
            f"{run}: was trained with another tokenizer (vocabulary {finished['vocab_size']}) than {shards} "
            f"(vocabulary {manifest.tokenizer.vocab_size}); train it on these shards"
        )
    if finished["seq_len"] != manifest.seq_len:
        raise UserError(f"{run}: was trained on sequences of {finished['seq_len']}, {shards} has {manifest.seq_len}")


def _train_entries(config: RunConfig, manifest: Manifest, source: str) -> dict[str, dict[str, Any]]:
    dataset = config.train_loader.dataset
    if dataset.streams is not None:
        where = f"{source}: train_loader.dataset.streams"
        return _given_streams(dataset.streams, dataset.split, manifest, where)
    with_split = [name for name, domain in manifest.domains.items() if dataset.split in domain.splits]
    if not with_split:
        raise UserError(f"{source}: train_loader.dataset.split: {config.shards} has no split {dataset.split!r}")
    if dataset.mixture == "proportional":
        counts = manifest.reference_counts("pack")
        weights = baselines.proportional({name: counts[name] for name in with_split})
    elif dataset.mixture == "uniform":
        weights = baselines.uniform(dict.fromkeys(with_split, 1.0))
    elif os.path.exists(dataset.mixture):
        given = Mixture.load(dataset.mixture).weights
        weights = check_weights(given, with_split, f"{dataset.mixture}: weights")
    else:
        raise UserError(
            f"{source}: train_loader.dataset.mixture: {dataset.mixture!r} is neither proportional nor uniform nor a "
            "file; a mixture file is made with\n  mixkit freeze RUN --out mixture.yaml"
        )
    entries = _entries(config.shards, manifest, dataset.split, with_split)
    return {name: {**entries[name], "proportion": weights[name]} for name in with_split}


def _given_streams(
    streams: dict[str, dict[str, Any]], split: str, manifest: Manifest, where: str
) -> dict[str, dict[str, Any]]:
    known = {"remote", "local", "split", "proportion"}
    for name, entry in streams.items():
        unknown = sorted(set(entry) - known)
        if unknown:
            raise UserError(f"{where}.{name}.{unknown[0]}: unknown key; a stream has {', '.join(sorted(known))}")
        if not entry.get("local"):
            raise UserError(f"{where}.{name}.local: is missing")
    given = {name: entry.get("proportion") for name, entry in streams.items()}
    if all(proportion is None for proportion in given.values()):
        # As for StreamingDataset: without any proportion, streams count by their size.
        given = {name: manifest.reference_counts("pack").get(name) for name in streams}
    weights = check_weights(given, manifest.domains, where)
    return {
        name: {**streams[name], "split": streams[name].get("split") or split, "proportion": weight}
        for name, weight in weights.items()
    }


def _val_entries(config: RunConfig, manifest: Manifest, source: str) -> dict[str, dict[str, Any]]:
    split = config.eval_loader.split
    names = [
        name
        for name, domain in manifest.domains.items()
        if split in domain.splits and domain.splits[split].sequences > 0
    ]
    if not names:
        raise UserError(f"{source}: eval_loader.split: {config.shards} has no held-out sequences in split {split!r}")
    return _entries(config.shards, manifest, split, names)


def _entries(shards: str, manifest: Manifest, split: str, names: list[str]) -> dict[str, dict[str, Any]]:
    return {name: shard_entry(Path(shards), manifest.domains[name].folder, split) for name in names}
