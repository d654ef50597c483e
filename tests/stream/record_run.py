"""A Composer script as a user may write it, with an algorithm of its own; every rank writes down what it trained on.

record_run.py SHARDS OUT [--save FOLDER] [--batches N] [--then N] [--slow SECONDS]
"""

import argparse
import json
import os
import time
from pathlib import Path

import torch
from composer import Trainer
from composer.core import Algorithm, Event
from composer.models import ComposerModel
from composer.utils import dist
from streaming import Stream

from mixkit.mixture import shard_entry
from mixkit.shards.manifest import load_manifest
from mixkit.stream import MixtureDataset
from mixkit.stream.loader import mixture_loader
from tests.stream.test_dataset import GLOBAL_BATCH, LAG, weights_of


class Tiny(ComposerModel):
    def __init__(self):
        super().__init__()
        self.scale = torch.nn.Parameter(torch.ones(()))

    def forward(self, batch):
        return self.scale * batch["input_ids"].float().mean()

    def loss(self, outputs, batch):
        return outputs**2 * 1e-9


class Swing(Algorithm):
    """Publishes a recorded sequence of weights, and records."""

    def __init__(self, path, slow):
        self.file, self.slow = open(path, "a"), slow

    def match(self, event, state):
        return event in (Event.FIT_START, Event.AFTER_DATALOADER, Event.BATCH_END)

    def apply(self, event, state, logger):
        dataset = state.train_dataloader.dataset
        if event == Event.FIT_START:
            dataset.join(state)
            if not dataset.published:
                for batch in range(dataset.lag):
                    dataset.publish(weights_of(batch))
        elif event == Event.AFTER_DATALOADER:
            rows = zip(state.batch["domain"].tolist(), state.batch["input_ids"].tolist(), strict=True)
            line = {"batch": int(state.timestamp.batch), "rows": [[domain, *tokens] for domain, tokens in rows]}
            self.file.write(json.dumps(line) + "\n")
            self.file.flush()
            time.sleep(self.slow)
        else:
            dataset.publish(weights_of(dataset.published))


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("shards", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--save")
    parser.add_argument("--batches", type=int, default=12)
    parser.add_argument("--then", type=int, default=0)
    parser.add_argument("--slow", type=float, default=0)
    given = parser.parse_args()
    given.out.mkdir(parents=True, exist_ok=True)
    dist.initialize_dist("cpu", timeout=60)
    manifest, shares = load_manifest(given.shards), (0.5, 0.3, 0.2)
    entries = {name: shard_entry(given.shards, domain.folder, "train") for name, domain in manifest.domains.items()}
    dataset = MixtureDataset(
        streams={n: Stream(**e, proportion=p) for (n, e), p in zip(entries.items(), shares, strict=True)},
        batch_size=GLOBAL_BATCH // dist.get_world_size(),
        num_canonical_nodes=4,
        lag=LAG,
        shuffle_seed=3,
    )
    model = Tiny()
    latest = os.path.join(given.save, "latest-rank0.pt") if given.save else None
    trainer = Trainer(
        model=model,
        train_dataloader=mixture_loader(dataset, num_workers=1),
        optimizers=torch.optim.SGD(model.parameters(), lr=0.01),
        max_duration=f"{given.batches}ba",
        algorithms=Swing(given.out / f"rank{dist.get_global_rank()}.jsonl", given.slow),
        save_folder=given.save,
        save_interval="5ba",
        save_overwrite=True,
        load_path=latest if latest and os.path.lexists(latest) else None,
        progress_bar=False,
        device="cpu",
    )
    trainer.fit()
    if given.then:
        trainer.fit(duration=f"{given.then}ba")
    trainer.close()


if __name__ == "__main__":
    main()
