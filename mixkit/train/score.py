"""`mixkit score`: the reference's loss of every token, once, as MDS shards aligned with the token shards."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from streaming import MDSWriter, Stream

from mixkit.errors import UserError
from mixkit.mixture import shard_entry
from mixkit.shards.manifest import Manifest, load_manifest
from mixkit.stream.heldout import DEFAULTS
from mixkit.stream.shards import ShardReader
from mixkit.train.check import check_same_text, check_tokenizer
from mixkit.train.model import MixtureLM, load_model
from mixkit.train.runfolder import MODEL, finished_reference, read_config, write_json
from mixkit.train.scorefolder import ABOUT, folder_of, index_sha256

HASHES = ["xxh3_64"]


def score(run: Path, shards: Path | None, split: str, batch_size: int, console: Console) -> Path:
    """Compute the losses of a finished run's model on every domain of `split`.

    Stopped and run again, it goes on with the domains that are not done.

    Args:
        run: the reference's run folder.
        shards: the token shards; those that the reference was trained on by default.
        split: which split to score.
        batch_size: sequences in a forward pass.

    Returns:
        The folder of the scores.

    Raises:
        UserError: no finished run, or shards of another tokenizer or sequence length.
    """
    finished = finished_reference(run, "mixkit score", f"composer train yamls/reference.yaml run_folder={run}")
    shards = shards or Path(read_config(run).shards)
    manifest = load_manifest(shards)
    check_tokenizer(shards, manifest)
    check_same_text(run, finished, manifest, str(shards))
    domains = {name: domain.folder for name, domain in manifest.domains.items() if split in domain.splits}
    if not domains:
        raise UserError(f"--split: {shards} has no split {split!r}")
    out = folder_of(shards, finished["model_sha256"])
    about = _read_about(out, run, finished)
    wanted = {name: index_sha256(shards, folder, split) for name, folder in domains.items()}
    missing = {
        name: folder
        for name, folder in domains.items()
        if about["token_shards"].get(name, {}).get(split) != wanted[name]
    }
    if not missing:
        console.print(f"{out}: the losses of all {len(domains)} domains are there; nothing to do", soft_wrap=True)
        return out
    config = read_config(run)
    model = load_model(run / MODEL, config.precision).eval()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model.to(device)
    total = sum(manifest.domains[name].splits[split].sequences for name in missing)
    with _progress(console) as progress:
        bar = progress.add_task("scoring", total=total)
        for name, folder in missing.items():
            reader = ShardReader(Stream(**shard_entry(shards, folder, split)), DEFAULTS)
            _score_domain(
                model, reader, out / folder / split, manifest, batch_size, device, config.precision, progress, bar
            )
            about["token_shards"].setdefault(name, {})[split] = wanted[name]
            write_json(out / ABOUT, about)
            if not console.is_terminal:
                console.print(f"scored {name}: {len(reader)} sequences")
    console.print(
        f"wrote {out}\nnext: composer train yamls/proxy.yaml shards={shards} algorithms.doremi.reference={run}",
        soft_wrap=True,
    )
    return out


def _read_about(out: Path, run: Path, finished: dict) -> dict:
    if (out / ABOUT).is_file():
        return json.loads((out / ABOUT).read_text(encoding="utf-8"))
    return {
        "reference": run.name,
        "model_sha256": finished["model_sha256"],
        "tokenizer_sha256": finished["tokenizer_sha256"],
        "seq_len": finished["seq_len"],
        "token_shards": {},
    }


def _score_domain(
    model: MixtureLM,
    reader: ShardReader,
    out: Path,
    manifest: Manifest,
    batch_size: int,
    device: torch.device,
    precision: str,
    progress: Progress,
    bar: int,
) -> None:
    partial = out.with_name(out.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    writer = MDSWriter(
        out=str(partial),
        columns={"ref_loss": f"ndarray:float16:{manifest.seq_len}"},
        compression="zstd:3",
        hashes=HASHES,
        size_limit=None,
    )
    begin = 0
    for samples in reader.samples_per_shard.tolist():
        for first in range(begin, begin + samples, batch_size):
            numbers = range(first, min(first + batch_size, begin + samples))
            tokens = np.stack([reader[number]["tokens"].astype(np.int64) for number in numbers])
            for losses in _losses(model, torch.from_numpy(tokens).to(device), precision):
                writer.write({"ref_loss": losses})
            progress.advance(bar, len(numbers))
        # A score shard for every token shard, so that a node fetches the two together.
        writer.flush_shard()
        writer._reset_cache()
        begin += samples
    writer.finish()
    shutil.rmtree(out, ignore_errors=True)
    partial.rename(out)


@torch.inference_mode()
def _losses(model: MixtureLM, tokens: torch.Tensor, precision: str) -> np.ndarray:
    """(b, T) float16 losses of (b, T) tokens."""
    half = {"amp_bf16": torch.bfloat16, "amp_fp16": torch.float16}.get(precision)
    with torch.autocast("cuda", half, enabled=tokens.is_cuda and half is not None):
        outputs = model({"input_ids": tokens, "labels": tokens})
    return outputs["token_losses"].half().cpu().numpy()


def _progress(console: Console) -> Progress:
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("sequences"),
        TimeRemainingColumn(),
        console=console,
        disable=not console.is_terminal,
    )
