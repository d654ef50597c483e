"""`mixkit demo`: the main job from raw text to a compared mixture, by the commands that a user would type.

Each step is a command of its own, printed before it runs; what is finished is not done again.
"""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
import time
from pathlib import Path

from rich.console import Console

from mixkit.corpus.machine import collect
from mixkit.errors import UserError, WorldError
from mixkit.mixture import Mixture
from mixkit.report.tables import comparison_table
from mixkit.train.runfolder import read_finished

CORPUS, RUNS = Path("data/demo"), Path("runs/demo")
MIXTURE, PICTURE = RUNS / "mixture.yaml", RUNS / "weights.png"
MAIN, BASELINE = "main", "main-proportional"

STEPS = [
    "mixkit shards pipelines/demo.yaml",
    "composer train yamls/demo/reference.yaml",
    f"mixkit score {RUNS}/reference",
    "composer train yamls/demo/proxy.yaml",
    f"mixkit freeze {RUNS}/proxy --out {MIXTURE}",
    f"mixkit plot {RUNS}/proxy --out {PICTURE}",
    f"composer train yamls/demo/main.yaml train_loader.dataset.mixture={MIXTURE}",
    f"composer train yamls/demo/main.yaml run_name={BASELINE} train_loader.dataset.mixture=proportional",
]


def run_demo() -> None:
    """Run every step in the current folder, a checkout of mixkit.

    Raises:
        UserError: the current folder is not a checkout.
        WorldError: a step failed (it has said why).
    """
    if not Path("yamls/demo").is_dir():
        raise UserError("yamls/demo: no such folder; run the demo in a checkout of mixkit")
    console = Console(highlight=False)
    start = time.monotonic()
    console.print("[bold]text that is on this machine[/bold]")
    for name, text in collect(CORPUS).items():
        console.print(
            f"  {name:12} {text.train_bytes / 1e6:5.1f} MB to train on, {text.val_bytes / 1e6:.2f} MB held out"
        )
    for step in STEPS:
        _run(step, console, start)
    mixture = Mixture.load(MIXTURE)
    ours, baseline = read_finished(RUNS / MAIN), read_finished(RUNS / BASELINE)
    console.print()
    console.print(
        comparison_table(
            {"proportional": baseline["sampling"], "DoReMi": mixture.weights},
            {
                "proportional": baseline["heldout_log_perplexity"],
                "DoReMi": ours["heldout_log_perplexity"],
            },
            f"main runs of {ours['tokens'] / 1e6:.1f}M tokens, held-out text (* marks the lower)",
        )
    )
    console.print(
        "One seed and a few minutes of training: this shows the way, it does not judge the method.", soft_wrap=True
    )
    console.print(f"mixture: {MIXTURE}\nweights over time: {PICTURE}")
    console.print(f"took {time.monotonic() - start:.0f} s")


def _run(step: str, console: Console, start: float) -> None:
    console.print(f"\n[bold]$ {step}[/bold]   [dim]({time.monotonic() - start:.0f} s so far)[/dim]", soft_wrap=True)
    program, *words = shlex.split(step)
    environment = {**os.environ, "PYTHONWARNINGS": "ignore"}
    done = subprocess.run([str(Path(sys.executable).parent / program), *words], env=environment, check=False)
    if done.returncode:
        raise WorldError(f"`{step}` ended with status {done.returncode}; when that is mended, the demo goes on there")
