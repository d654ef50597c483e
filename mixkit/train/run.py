"""A checked configuration to a finished Composer run."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from composer import Evaluator, Trainer, algorithms, callbacks, loggers
from composer.core import Algorithm, Callback
from composer.loggers import LoggerDestination
from composer.utils import dist, reproducibility
from streaming import Stream
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from transformers import PreTrainedTokenizerFast

from mixkit.errors import UserError
from mixkit.methods.doremi import DoReMi
from mixkit.stream import MixtureDataset
from mixkit.stream.heldout import HeldOut
from mixkit.stream.loader import heldout_loader, mixture_loader
from mixkit.stream.monitor import MixtureMonitor
from mixkit.train.callbacks import EVAL_LABEL, DomainAverages, PlainLines, heldout_losses
from mixkit.train.check import RunPlan
from mixkit.train.config import CALLBACKS, LOGGERS, RunConfig
from mixkit.train.model import MixtureLM, build_model, load_model
from mixkit.train.runfolder import FINISHED, MODEL, file_sha256, write_json
from mixkit.train.runlog import RunLog
from mixkit.train.schedule import build_scheduler


def run(config: RunConfig, plan: RunPlan, checkpoint: str | None) -> dict[str, float]:
    """Train, evaluate and write the run folder; goes on from `checkpoint` where there is one.

    Returns:
        Domain to held-out log-perplexity at the end.
    """
    on_gpu = torch.cuda.is_available()
    if not on_gpu:
        torch.set_num_threads(max(1, (os.cpu_count() or 1) // dist.get_local_world_size()))
    if config.parallelism_config and not on_gpu:
        raise UserError("parallelism_config: FSDP needs GPUs")
    reproducibility.seed_all(config.seed)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_file=os.path.join(config.shards, "tokenizer.json"), eos_token=plan.eos_token
    )
    model = build_model(config.model.size, plan.vocab_size, plan.seq_len, tokenizer, config.precision)
    watchers, destinations = _callbacks(config), _loggers(config)
    remote = "://" in config.save_folder
    terminal = sys.stderr.isatty()
    trainer = Trainer(
        model=model,
        train_dataloader=_train_loader(config, plan),
        eval_dataloader=_evaluators(config, plan),
        optimizers=_optimizer(config, model),
        schedulers=build_scheduler(config.scheduler),
        algorithms=_algorithms(config, plan),
        callbacks=[MixtureMonitor(), DomainAverages(), *([] if terminal else [PlainLines()]), *watchers],
        loggers=[RunLog(config.run_folder), *destinations],
        max_duration=config.max_duration,
        eval_interval=config.eval_interval,
        precision=config.precision if on_gpu else "fp32",
        device_train_microbatch_size=_microbatch(config, on_gpu),
        run_name=config.run_name,
        save_folder=config.save_folder,
        save_interval=config.save_interval,
        save_num_checkpoints_to_keep=config.save_num_checkpoints_to_keep,
        # A killed run may leave a checkpoint that it had not come to name the latest; it is written again.
        save_overwrite=True,
        load_path=checkpoint,
        autoresume=config.autoresume and remote,
        # The dataset resumes by itself; without this, Composer reads and drops every batch of the past.
        spin_dataloaders=False,
        progress_bar=config.progress_bar and terminal,
        parallelism_config=config.parallelism_config,
        seed=config.seed,
    )
    if trainer.state.timestamp < trainer.state.max_duration:
        trainer.fit()
    else:
        # Killed after its last checkpoint and before finished.json: only the last evaluation is still to do.
        trainer.eval()
    losses = heldout_losses(trainer.state)
    trainer.close()
    _finish(config, plan, trainer, model, losses)
    return losses


def _train_loader(config: RunConfig, plan: RunPlan) -> Any:
    loader = config.train_loader
    dataset = MixtureDataset(
        streams={name: Stream(**entry) for name, entry in plan.train.items()},
        scores={name: Stream(**entry) for name, entry in plan.scores.items()} if plan.scores else None,
        batch_size=config.global_train_batch_size // dist.get_world_size(),
        # What is drawn stands in the plan; how, under the names of the dataset's arguments.
        **loader.dataset.model_dump(exclude={"mixture", "streams", "split"}),
    )
    return mixture_loader(dataset, **loader.model_dump(exclude={"dataset"}))


def _evaluators(config: RunConfig, plan: RunPlan) -> list[Evaluator]:
    return [
        Evaluator(
            label=f"{EVAL_LABEL}{name}",
            dataloader=heldout_loader(HeldOut(Stream(**entry)), config.device_eval_batch_size),
            metric_names=["LogPerplexity"],
            subset_num_batches=config.eval_subset_num_batches,
        )
        for name, entry in plan.val.items()
    ]


def _optimizer(config: RunConfig, model: torch.nn.Module) -> torch.optim.Optimizer:
    matrices = [parameter for parameter in model.parameters() if parameter.dim() >= 2]
    vectors = [parameter for parameter in model.parameters() if parameter.dim() < 2]
    settings = config.optimizer
    return torch.optim.AdamW(
        [{"params": matrices, "weight_decay": settings.weight_decay}, {"params": vectors, "weight_decay": 0.0}],
        lr=settings.lr,
        betas=settings.betas,
        eps=settings.eps,
    )


def _algorithms(config: RunConfig, plan: RunPlan) -> list[Algorithm]:
    built: list[Algorithm] = []
    clipping, doremi = config.algorithms.gradient_clipping, config.algorithms.doremi
    if clipping is not None:
        built.append(algorithms.GradientClipping(**clipping.model_dump()))
    if doremi is not None:
        reference = load_model(Path(plan.reference) / MODEL, config.precision) if plan.reference else None
        built.append(
            DoReMi(
                act=doremi.act,
                eta=doremi.eta,
                smoothing=doremi.smoothing,
                burn_in=doremi.burn_in,
                reference=reference,
            )
        )
    return built


def _callbacks(config: RunConfig) -> list[Callback]:
    return _by_name("callbacks", callbacks, CALLBACKS, config.callbacks)


def _loggers(config: RunConfig) -> list[LoggerDestination]:
    return _by_name("loggers", loggers, LOGGERS, config.loggers)


def _by_name(key: str, module: ModuleType, classes: dict[str, str], wanted: dict[str, dict[str, Any]]) -> list[Any]:
    built = []
    for name, settings in wanted.items():
        try:
            built.append(getattr(module, classes[name])(**settings))
        except (TypeError, ValueError, ImportError) as error:
            raise UserError(f"{key}.{name}: {error}") from None
    return built


def _microbatch(config: RunConfig, on_gpu: bool) -> int | str:
    wanted = config.device_train_microbatch_size
    if wanted == "auto" and not on_gpu:
        # Composer finds a size by running out of GPU memory; without a GPU a rank takes its batch whole.
        return config.global_train_batch_size // dist.get_world_size()
    return wanted


def _finish(config: RunConfig, plan: RunPlan, trainer: Trainer, model: MixtureLM, losses: dict[str, float]) -> None:
    """Write the model as a Hugging Face folder and then, last, `finished.json`."""
    weights = get_model_state_dict(
        trainer.state.model, options=StateDictOptions(full_state_dict=True, cpu_offload=True)
    )
    if dist.get_global_rank() == 0:
        folder = Path(config.run_folder)
        own = {name.removeprefix("module.").removeprefix("model."): value for name, value in weights.items()}
        if model.config.tie_word_embeddings:
            own.pop("lm_head.weight", None)
        model.model.save_pretrained(folder / MODEL, state_dict=own, safe_serialization=True)
        model.tokenizer.save_pretrained(folder / MODEL)
        # safetensors writes for the owner alone; a reference is for everyone who may read the run.
        os.chmod(folder / MODEL / "model.safetensors", 0o644)
        timestamp = trainer.state.timestamp
        finished = {
            "max_duration": config.max_duration,
            "batches": timestamp.batch.value,
            "sequences": timestamp.sample.value,
            "tokens": timestamp.token.value,
            "seed": config.seed,
            "model_sha256": file_sha256(folder / MODEL / "model.safetensors"),
            "tokenizer_sha256": plan.tokenizer_sha256,
            "vocab_size": plan.vocab_size,
            "seq_len": plan.seq_len,
            "sampling": {name: entry["proportion"] for name, entry in plan.train.items()},
            "heldout_log_perplexity": losses,
        }
        write_json(folder / FINISHED, finished)
    dist.barrier()
