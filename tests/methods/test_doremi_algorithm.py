"""DoReMi inside a real Composer trainer, on a tiny model in float64 where arithmetic leaves no excuse."""

import json

import numpy as np
import pytest
import torch
from composer import Trainer
from composer.models import ComposerModel
from streaming import Stream

from mixkit.errors import WorldError
from mixkit.methods.doremi import DoReMi, domain_scores, fill_absent, update_weights
from mixkit.methods.losses import loss_mask, token_losses
from mixkit.mixture import shard_entry
from mixkit.shards.manifest import load_manifest
from mixkit.stream import MixtureDataset
from mixkit.stream.loader import mixture_loader
from mixkit.train.runlog import RunLog

BATCH, LAG, STEPS = 8, 4, 12


class Bigram(ComposerModel):
    """A plain ComposerModel that offers logits: each token predicts the next through a small bottleneck."""

    def __init__(self, seed=0):
        super().__init__()
        torch.manual_seed(seed)
        self.table = torch.nn.Embedding(300, 8, dtype=torch.float64)
        self.head = torch.nn.Linear(8, 300, dtype=torch.float64)

    def forward(self, batch):
        return {"logits": self.head(self.table(batch["input_ids"]))}

    def loss(self, outputs, batch):
        losses, mask = token_losses(outputs["logits"], batch["labels"])
        return losses.sum() / mask.sum()


@pytest.fixture(scope="module")
def entries(shards):
    manifest = load_manifest(shards)
    return {
        name: {**shard_entry(shards, domain.folder, "train"), "proportion": 1 / 3}
        for name, domain in manifest.domains.items()
    }


class Cramped(Bigram):
    """Runs out of memory, as a GPU does, on more than two sequences at a time that it has to keep for a gradient."""

    def forward(self, batch):
        if torch.is_grad_enabled() and len(batch["input_ids"]) > 2:
            raise RuntimeError("CUDA out of memory")
        return super().forward(batch)


def fit(entries, folder, micro=BATCH, stop=STEPS, load=None, save=None, cramped=False, then=0, spoil=False, **settings):
    torch.manual_seed(0)
    dataset = MixtureDataset(
        streams={name: Stream(**entry) for name, entry in entries.items()},
        batch_size=BATCH,
        num_canonical_nodes=4,
        lag=LAG,
    )
    algorithm = DoReMi(reference=Bigram(seed=1), **settings)
    model = Cramped() if cramped else Bigram()
    trainer = Trainer(
        model=model,
        train_dataloader=mixture_loader(dataset, num_workers=0),
        optimizers=torch.optim.SGD(model.parameters(), lr=0.5),
        max_duration=f"{stop}ba",
        device_train_microbatch_size=micro,
        algorithms=algorithm,
        loggers=[RunLog(folder)],
        load_path=load,
        save_folder=save,
        save_interval="5ba",
        spin_dataloaders=False,
        progress_bar=False,
        device="cpu",
        seed=0,
    )
    trainer.state.auto_microbatching = cramped  # Composer's own switch refuses a CPU
    if spoil:
        model.head.weight.data.fill_(float("nan"))
    trainer.fit()
    if then:
        trainer.fit(duration=f"{then}ba")
    trainer.close()
    rows = [json.loads(line) for line in (folder / "weights.jsonl").read_text().splitlines()[1:]]
    return model, algorithm, rows


def series(rows, name):
    return np.array([row[name] for row in rows])


@pytest.mark.parametrize("act", ["loss", "stream"])
def test_micro_batches_change_nothing(entries, tmp_path, act):
    for name in ("whole", "parts"):
        (tmp_path / name).mkdir()
    whole_model, _, whole = fit(entries, tmp_path / "whole", act=act, eta=5.0)
    parts_model, _, parts = fit(entries, tmp_path / "parts", micro=2, act=act, eta=5.0)
    assert series(parts, "weight") == pytest.approx(series(whole, "weight"), abs=1e-12)
    assert parts_model.head.weight.detach().numpy() == pytest.approx(
        whole_model.head.weight.detach().numpy(), abs=1e-12
    )
    assert np.abs(series(whole, "weight")[-1] - 1 / 3).max() > 0.01  # the weights really moved


@pytest.mark.parametrize("act", ["loss", "stream"])
def test_a_batch_that_ran_out_of_memory_twice_changes_nothing(entries, tmp_path, act):
    for name in ("roomy", "cramped"):
        (tmp_path / name).mkdir()
    roomy_model, _, roomy = fit(entries, tmp_path / "roomy", act=act, eta=5.0)
    cramped_model, _, cramped = fit(entries, tmp_path / "cramped", cramped=True, act=act, eta=5.0)
    assert series(cramped, "weight") == pytest.approx(series(roomy, "weight"), abs=1e-12)
    assert cramped_model.head.weight.detach().numpy() == pytest.approx(
        roomy_model.head.weight.detach().numpy(), abs=1e-12
    )


def test_a_second_fit_goes_on_without_a_skipped_or_repeated_sequence(entries, tmp_path):
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
    model, _, rows = fit(entries, tmp_path / "one", act="stream", eta=5.0)
    again, _, more = fit(entries, tmp_path / "two", stop=5, then=STEPS - 5, act="stream", eta=5.0)
    assert series(more, "weight") == pytest.approx(series(rows, "weight"), abs=1e-12)
    assert torch.equal(again.head.weight, model.head.weight)


def test_a_loss_that_is_not_a_number_ends_the_run(entries, tmp_path):
    with pytest.raises(WorldError, match="the loss of batch 0 is not a number"):
        fit(entries, tmp_path, spoil=True)


@pytest.mark.parametrize("act", ["loss", "stream"])
def test_the_step_is_the_papers_objective(entries, tmp_path, act):
    """One SGD step from the formulas, written out, gives the trainer's parameters and weights."""
    model, _, rows = fit(entries, tmp_path, stop=1, act=act, eta=5.0)
    ours, reference = Bigram(), Bigram(seed=1)
    dataset = MixtureDataset(
        streams={name: Stream(**entry) for name, entry in entries.items()}, batch_size=BATCH, num_canonical_nodes=4
    )
    batch = next(iter(torch.utils.data.DataLoader(dataset, batch_size=BATCH)))
    losses, mask = token_losses(ours(batch)["logits"], batch["labels"])
    baseline = token_losses(reference(batch)["logits"], batch["labels"])[0]
    sums, counts = domain_scores((losses - baseline).detach(), mask, batch["domain"], 3)
    weights = update_weights(
        np.full(3, 1 / 3), fill_absent(sums.numpy(), counts.numpy(), np.full(3, np.nan)), eta=5.0, smoothing=1e-3
    )
    if act == "loss":
        objective = sum(
            weights[i] * (losses * mask)[batch["domain"] == i].sum() / counts[i] for i in range(3) if counts[i]
        )
    else:
        ratio = torch.tensor(weights / np.array(rows[0]["sampling"]))[batch["domain"]]
        objective = (losses * mask * ratio[:, None]).sum() / mask.sum()
    objective.backward()
    assert rows[0]["weight"] == pytest.approx(weights, abs=1e-12)
    stepped = ours.head.weight.detach() - 0.5 * ours.head.weight.grad
    assert model.head.weight.detach().numpy() == pytest.approx(stepped.numpy(), abs=1e-12)


def test_acting_on_the_stream_the_sampling_follows_the_weights_a_lag_later(entries, tmp_path):
    _, _, rows = fit(entries, tmp_path, act="stream", eta=5.0)
    weights, sampling = series(rows, "weight"), series(rows, "sampling")
    assert sampling[:LAG] == pytest.approx(np.full((LAG, 3), 1 / 3), abs=1e-5)
    assert sampling[LAG:] == pytest.approx(weights[:-LAG], abs=1e-5)


def test_acting_on_the_loss_the_sampling_stays(entries, tmp_path):
    _, _, rows = fit(entries, tmp_path, act="loss", eta=5.0)
    assert series(rows, "sampling") == pytest.approx(np.full((STEPS, 3), 1 / 3), abs=1e-5)


def test_the_result_is_the_mean_over_steps_without_the_start(entries, tmp_path):
    _, algorithm, rows = fit(entries, tmp_path, eta=5.0)
    assert algorithm.average == pytest.approx(series(rows, "weight").mean(axis=0), abs=1e-12)
    assert rows[-1]["average"] == pytest.approx(algorithm.average, abs=1e-12)


def test_burn_in_holds_the_weights_and_is_left_out_of_the_mean(entries, tmp_path):
    _, algorithm, rows = fit(entries, tmp_path, eta=5.0, burn_in=0.5)
    weights = series(rows, "weight")
    half = STEPS // 2
    assert (weights[:half] == 1 / 3).all() and (weights[half] != 1 / 3).any()
    assert algorithm.average == pytest.approx(weights[half:].mean(axis=0), abs=1e-12)


@pytest.mark.parametrize("act", ["loss", "stream"])
def test_stopped_and_resumed_the_history_is_the_same_bit_for_bit(entries, tmp_path, act):
    straight, stopped = tmp_path / "straight", tmp_path / "stopped"
    for folder in (straight, stopped):
        folder.mkdir()
    model, _, _ = fit(entries, straight, act=act, eta=5.0)
    fit(entries, stopped, stop=7, act=act, eta=5.0, save=str(stopped))
    # The log runs on to step 7; resuming from the checkpoint of step 5 cuts it back and writes 6 and 7 anew.
    resumed, _, _ = fit(entries, stopped, act=act, eta=5.0, load=str(stopped / "ep0-ba5-rank0.pt"))
    assert (stopped / "weights.jsonl").read_bytes() == (straight / "weights.jsonl").read_bytes()
    assert torch.equal(resumed.head.weight, model.head.weight)


def test_a_dataset_that_cannot_change_is_refused(tmp_path):
    model = Bigram()
    data = torch.utils.data.DataLoader([{"input_ids": torch.zeros(4, dtype=torch.int64)}])
    trainer = Trainer(model=model, train_dataloader=data, algorithms=DoReMi(), max_duration="1ba", progress_bar=False)
    with pytest.raises(ValueError, match="MixtureDataset"):
        trainer.fit()


def test_masked_tokens_and_first_places_do_not_count():
    labels = torch.tensor([[5, 6, -100, 7]])
    assert loss_mask(labels).tolist() == [[False, True, False, True]]
    losses, mask = token_losses(torch.randn(1, 4, 300), labels)
    assert losses[~mask].eq(0).all() and losses[mask].gt(0).all()
