"""What `composer train CONFIG.yaml key=value …` runs on every rank.

Rank 0 checks and speaks; the others wait for its verdict. Nothing heavy is imported before a single-process check.
"""

from __future__ import annotations

import os
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from mixkit.config import load_config
from mixkit.errors import UserError, WorldError
from mixkit.train.check import RunPlan, check_run
from mixkit.train.config import RunConfig
from mixkit.train.runfolder import FINISHED, claim, is_finished, latest_checkpoint

USAGE = "usage: composer train CONFIG.yaml [key=value …], for example composer train yamls/proxy.yaml seed=1"


@dataclass(frozen=True)
class Verdict:
    """What rank 0 decided: go on with `config` and `plan` from `checkpoint`, or stop with `message` and `status`."""

    config: RunConfig | None = None
    plan: RunPlan | None = None
    checkpoint: str | None = None
    message: str = ""
    status: int = 0


def main(words: list[str]) -> int:
    """Run; returns the exit status."""
    rank, world_size = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    verdict = judge(words, world_size) if rank == 0 else None
    if verdict is not None and verdict.message:
        print(verdict.message, file=sys.stderr if verdict.status else sys.stdout, flush=True)
    if world_size > 1:
        verdict = _shared(verdict)
    if verdict.config is None:
        if verdict.status and rank != 0:
            # The launcher ends the other ranks when one has failed; rank 0's status is the one to report.
            time.sleep(3)
        return verdict.status
    try:
        from mixkit.train.run import run

        losses = run(verdict.config, verdict.plan, verdict.checkpoint)
    except (UserError, WorldError) as error:
        print(f"error: {error}", file=sys.stderr, flush=True)
        return error.exit_status
    except KeyboardInterrupt:
        if rank == 0:
            print("stopped; the same command goes on from the last checkpoint", file=sys.stderr, flush=True)
        return 130
    if rank == 0:
        _say_what_was_made(verdict.config, losses)
    return 0


def judge(words: list[str], world_size: int) -> Verdict:
    """Check everything that can be checked, and claim the run folder."""
    if not words or words[0] in ("-h", "--help"):
        return Verdict(message=USAGE, status=0 if words else 2)
    try:
        config = load_config(words[0], words[1:], RunConfig)
        if is_finished(config):
            return Verdict(message=f"{config.run_folder}: this run is finished ({config.max_duration}); nothing to do")
        plan = check_run(config, words[0], world_size)
        claim(config, plan.inputs)
    except UserError as error:
        return Verdict(message=f"error: {error}", status=error.exit_status)
    return Verdict(config=config, plan=plan, checkpoint=latest_checkpoint(config))


def _shared(verdict: Verdict | None) -> Verdict:
    import torch
    from composer.utils import dist

    dist.initialize_dist("gpu" if torch.cuda.is_available() else "cpu", timeout=600)
    box = [verdict]
    dist.broadcast_object_list(box, src=0)
    return box[0]


def _say_what_was_made(config: RunConfig, losses: dict[str, float]) -> None:
    from mixkit.train.tables import loss_table

    folder = Path(config.run_folder)
    loss_table(losses)
    print(f"wrote {folder / FINISHED}, {folder / 'model'} and {folder / 'metrics.jsonl'}")
    if config.algorithms.doremi:
        print(f"next: mixkit freeze {folder} --out {folder / 'mixture.yaml'}")
    else:
        print(f"next, if this is a reference: mixkit score {folder}")
