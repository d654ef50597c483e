import pytest
from streaming import Stream
from torch.utils.data import DataLoader

from mixkit.stream.heldout import HeldOut
from tests.stream.test_dataset import world


@pytest.mark.parametrize("ranks", [1, 2, 3, 7])
def test_every_sequence_counts_once_on_any_number_of_ranks(entries, monkeypatch, ranks):
    entry = {**entries["alpha"], "split": "val"}
    entry.pop("proportion")
    seen, lengths = [], set()
    for rank in range(ranks):
        world(monkeypatch, ranks, rank)
        dataset = HeldOut(Stream(**entry))
        rows = list(dataset)
        lengths.add(len(rows))
        assert len(dataset) == len(rows)
        seen += [tuple(row["labels"].tolist()) for row in rows if (row["labels"] != -100).any()]
    monkeypatch.undo()
    whole = [tuple(row["labels"].tolist()) for row in HeldOut(Stream(**entry))]
    assert len(lengths) == 1
    assert sorted(seen) == sorted(whole)


def test_loader_workers_share_the_sequences_out(entries):
    entry = {**entries["alpha"], "split": "val"}
    entry.pop("proportion")
    dataset = HeldOut(Stream(**entry))
    alone, shared = (
        [tuple(row.tolist()) for batch in DataLoader(dataset, batch_size=2, num_workers=n) for row in batch["labels"]]
        for n in (0, 2)
    )
    assert sorted(alone) == sorted(shared)
