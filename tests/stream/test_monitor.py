"""A mixture under Composer's trainer, without any algorithm of ours."""

import warnings

import pytest
import torch
from composer import Trainer
from composer.core import Callback
from streaming import Stream

from mixkit.stream.heldout import DEFAULTS
from mixkit.stream.loader import mixture_loader
from mixkit.stream.monitor import MixtureMonitor
from mixkit.stream.shards import ShardReader
from mixkit.train.runlog import RunLog
from tests.stream.record_run import Tiny
from tests.stream.test_dataset import GLOBAL_BATCH, open_dataset, train


class Record(Callback):
    def __init__(self):
        self.batches = []

    def after_dataloader(self, state, logger):
        rows = zip(state.batch["domain"].tolist(), state.batch["input_ids"].tolist(), strict=True)
        self.batches.append([(domain, *tokens) for domain, tokens in rows])


class Fails(Callback):
    def batch_end(self, state, logger):
        raise OSError("the disk is full")


def trainer_of(dataset, *callbacks, duration="10ba", **settings):
    model = Tiny()
    return Trainer(
        model=model,
        train_dataloader=mixture_loader(dataset, num_workers=1),
        optimizers=torch.optim.SGD(model.parameters(), lr=0.01),
        max_duration=duration,
        callbacks=[MixtureMonitor(), *callbacks],
        progress_bar=False,
        device="cpu",
        **settings,
    )


@pytest.mark.parametrize("save", [False, True])
def test_a_second_fit_goes_on(entries, tmp_path, save):
    expected = train(open_dataset(entries), 16, live=False)
    record = Record()
    saving = {"save_folder": str(tmp_path), "save_interval": "4ba"} if save else {}
    trainer = trainer_of(open_dataset(entries), record, **saving)
    trainer.fit()
    trainer.fit(duration="6ba")
    trainer.close()
    assert record.batches == expected


def test_a_clock_that_is_set_back_does_not_set_back_the_stream(entries):
    expected = train(open_dataset(entries), 20, live=False)
    record = Record()
    trainer = trainer_of(open_dataset(entries), record, duration="6ba")
    trainer.fit()
    trainer.fit(duration="6ba", reset_time=True)
    trainer.fit(duration="4ba")
    assert record.batches == expected[:16]
    dataset = trainer.state.train_dataloader.dataset
    assert dataset.state_dict(int(trainer.state.timestamp.sample_in_epoch), True)["planner"]["batch"] == 16
    trainer.close()


def test_another_loader_in_a_second_fit_begins_at_its_beginning(entries):
    expected = train(open_dataset(entries), 10, live=False)
    record = Record()
    trainer = trainer_of(open_dataset(entries), record, duration="6ba")
    trainer.fit()
    trainer.fit(train_dataloader=mixture_loader(open_dataset(entries), num_workers=1), duration="3ba")
    trainer.fit(duration="3ba")
    assert record.batches == expected[:6] + expected[:6]
    trainer.close()


@pytest.mark.parametrize(
    ("duration", "settings"), [("10ba", {"train_subset_num_batches": 5}), ("1ep", {"train_subset_num_batches": 5})]
)
def test_epochs_are_refused_with_the_words_to_use(entries, duration, settings):
    trainer = trainer_of(open_dataset(entries), duration=duration, **settings)
    with pytest.raises(ValueError, match=r"no epochs: write max_duration .* in batches \(4800ba\)"):
        trainer.fit()
    trainer.close()


def test_composer_itself_refuses_epochs_of_a_loader_without_length(entries):
    trainer = trainer_of(open_dataset(entries), duration="1ep")
    with pytest.raises(ValueError, match="epochs"):
        trainer.fit()
    trainer.close()


def test_passes_are_counted_logged_and_warned_about_once(entries, tmp_path):
    dataset = open_dataset(entries)
    log = RunLog(tmp_path)
    trainer = trainer_of(dataset, duration="600ba", loggers=[log])
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        trainer.fit()
    trainer.close()
    # 600 batches of 8, of which 20 % from gamma.
    passes = dataset.passes()
    size = len(ShardReader(Stream(**entries["gamma (en)"]), DEFAULTS))
    assert passes["gamma (en)"] == pytest.approx(0.2 * 600 * GLOBAL_BATCH / size, abs=1 / size)
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert f'"passes/gamma (en)": {passes["gamma (en)"]}' in lines[-1]
    many = [str(warning.message) for warning in said if "came more than 4 times" in str(warning.message)]
    assert len(many) == len({name for name, number in passes.items() if number > 4}) > 0


def test_an_error_in_training_closes_the_stream(entries):
    dataset = open_dataset(entries)
    trainer = trainer_of(dataset, Fails())
    with pytest.raises(OSError):
        trainer.fit()
    before = dataset._ring.closings
    trainer.close()
    assert dataset._ring.closings > before


def test_streams_without_names_are_numbered(entries):
    from mixkit.stream import MixtureDataset

    streams = [Stream(**entry) for entry in entries.values()]
    dataset = MixtureDataset(streams=streams, batch_size=4)
    assert dataset.domains == ["0", "1", "2"]
