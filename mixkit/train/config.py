"""The schema of a run's YAML, in llm-foundry's dialect.

Only shapes and kinds are checked here; whether files, domains and numbers fit each other is `mixkit.train.check`'s.
"""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationInfo, field_validator, model_validator

from mixkit.config import Schema
from mixkit.train.sizes import SIZES, Size

DURATION = r"^[1-9]\d*(ba|sp|tok)$"
Fraction = Annotated[float, Field(ge=0, lt=1)]

CALLBACKS = {
    "early_stopper": "EarlyStopper",
    "lr_monitor": "LRMonitor",
    "memory_monitor": "MemoryMonitor",
    "optimizer_monitor": "OptimizerMonitor",
    "runtime_estimator": "RuntimeEstimator",
    "speed_monitor": "SpeedMonitor",
}
"""Composer's callbacks by the names that YAML gives them."""

LOGGERS = {
    "file_logger": "FileLogger",
    "mlflow": "MLFlowLogger",
    "tensorboard": "TensorboardLogger",
    "wandb": "WandBLogger",
}
"""Composer's loggers by the names that YAML gives them."""


class ModelConfig(Schema):
    """`model:` a size by name, or the four numbers of one."""

    name: str | None = None
    n_layers: int | None = Field(None, ge=1)
    n_heads: int | None = Field(None, ge=1)
    d_model: int | None = Field(None, ge=2)
    ffn: int | None = Field(None, ge=1)

    @model_validator(mode="after")
    def _name_or_numbers(self) -> ModelConfig:
        numbers = [self.n_layers, self.n_heads, self.d_model, self.ffn]
        if self.name is not None:
            if self.name not in SIZES:
                raise ValueError(f"name {self.name!r} is not a known size; there are {', '.join(SIZES)}")
            if any(number is not None for number in numbers):
                raise ValueError("give either name or n_layers, n_heads, d_model and ffn")
        elif any(number is None for number in numbers):
            raise ValueError("give name, or all of n_layers, n_heads, d_model and ffn")
        elif self.d_model % self.n_heads or self.d_model // self.n_heads % 2:
            raise ValueError("d_model must be an even multiple of n_heads")
        return self

    @property
    def size(self) -> Size:
        """The numbers, whichever way they were given."""
        return SIZES[self.name] if self.name else Size(self.n_layers, self.n_heads, self.d_model, self.ffn)


class DatasetConfig(Schema):
    """`train_loader.dataset:` what is drawn, in which proportions and order."""

    mixture: str = "proportional"
    """`proportional`, `uniform`, or the path of a mixture file; not used where `streams` are given."""
    streams: dict[str, dict[str, Any]] | None = None
    """llm-foundry's block: domain to {remote, local, split, proportion}."""
    split: str = "train"
    shuffle: bool = True
    shuffle_seed: int = 9176
    shuffle_block_size: int = Field(1 << 18, ge=1)
    num_canonical_nodes: int | None = Field(None, ge=1)
    lag: int = Field(16, ge=1)
    predownload: int | None = Field(None, ge=0)
    cache_limit: int | str | None = None
    download_retry: int = Field(2, ge=1)
    download_timeout: float = Field(60, gt=0)
    validate_hash: str | None = None
    keep_zip: bool = False


class TrainLoaderConfig(Schema):
    """`train_loader:`"""

    dataset: DatasetConfig = DatasetConfig()
    num_workers: int = Field(2, ge=0)
    prefetch_factor: int = Field(2, ge=1)
    persistent_workers: bool = False


class EvalLoaderConfig(Schema):
    """`eval_loader:`"""

    split: str = "val"


class OptimizerConfig(Schema):
    """`optimizer:` torch's AdamW; its decay is multiplied by lr and spares vectors (norms)."""

    name: Literal["adamw"] = "adamw"
    lr: float = Field(gt=0)
    betas: tuple[Fraction, Fraction] = (0.9, 0.99)
    eps: float = Field(1e-8, gt=0)
    weight_decay: float = Field(0.01, ge=0)


class SchedulerConfig(Schema):
    """`scheduler:` linear warm-up, then the named curve down to alpha_f times lr."""

    name: Literal["exponential_with_warmup", "cosine_with_warmup", "constant_with_warmup"]
    t_warmup: str = Field("0.06dur", pattern=r"^(0?\.\d+dur|0dur|\d+(ba|sp|tok))$")
    alpha_f: float = Field(0.1, ge=0, le=1)

    @model_validator(mode="after")
    def _exponential_never_ends_at_zero(self) -> SchedulerConfig:
        if self.name == "exponential_with_warmup" and not self.alpha_f:
            raise ValueError("alpha_f is above 0 for exponential_with_warmup")
        return self


class DoReMiConfig(Schema):
    """`algorithms.doremi:`"""

    reference: str
    """Run folder of the reference model."""
    reference_losses: Literal["scores", "live"] = "scores"
    """`scores`: as `mixkit score` computed them once; `live`: the reference runs beside the proxy."""
    act: Literal["loss", "stream"] = "loss"
    eta: float = Field(1.0, gt=0)
    smoothing: float = Field(1e-3, ge=0, le=1)
    burn_in: Fraction = 0.0


class ClippingConfig(Schema):
    """`algorithms.gradient_clipping:` Composer's."""

    clipping_type: Literal["norm", "value", "adaptive"] = "norm"
    clipping_threshold: float = Field(gt=0)


class AlgorithmsConfig(Schema):
    """`algorithms:`"""

    gradient_clipping: ClippingConfig | None = None
    doremi: DoReMiConfig | None = None


class RunConfig(Schema):
    """One run."""

    run_name: str = Field(min_length=1)
    run_folder: str = Field(min_length=1)
    shards: str = Field(min_length=1)
    seed: int = Field(17, ge=0)
    model: ModelConfig
    train_loader: TrainLoaderConfig = TrainLoaderConfig()
    eval_loader: EvalLoaderConfig = EvalLoaderConfig()
    max_duration: str
    global_train_batch_size: int = Field(ge=1)
    device_train_microbatch_size: Annotated[int, Field(ge=1)] | Literal["auto"] = "auto"
    device_eval_batch_size: int = Field(32, ge=1)
    eval_interval: str = "1000ba"
    eval_subset_num_batches: int = -1
    optimizer: OptimizerConfig
    scheduler: SchedulerConfig
    precision: Literal["fp32", "amp_bf16", "amp_fp16"] = "amp_bf16"
    algorithms: AlgorithmsConfig = AlgorithmsConfig()
    callbacks: dict[str, dict[str, Any]] = {}
    loggers: dict[str, dict[str, Any]] = {}
    save_folder: str
    save_interval: str = "1000ba"
    save_num_checkpoints_to_keep: int = Field(2, ge=-1)
    autoresume: bool = True
    progress_bar: bool = True
    parallelism_config: dict[Literal["fsdp"], dict[str, Any]] | None = None

    @field_validator("callbacks", "loggers")
    @classmethod
    def _known_names(cls, value: dict[str, Any], info: ValidationInfo) -> dict[str, Any]:
        known = CALLBACKS if info.field_name == "callbacks" else LOGGERS
        for name in value:
            if name not in known:
                raise ValueError(f"there is no {name!r}; there are {', '.join(known)}")
        return value

    @field_validator("max_duration", "eval_interval", "save_interval")
    @classmethod
    def _no_epochs(cls, value: str) -> str:
        if not re.match(DURATION, value):
            raise ValueError(
                "write batches (4800ba), sequences (10000sp) or tokens (1000000tok); a mixture has no epochs"
            )
        return value

    @field_validator("eval_subset_num_batches")
    @classmethod
    def _some_batches(cls, value: int) -> int:
        if value != -1 and value < 1:
            raise ValueError("-1 (all batches) or a number of at least 1 is wanted")
        return value

    @model_validator(mode="after")
    def _warmup_in_the_runs_unit(self) -> RunConfig:
        warmup = self.scheduler.t_warmup
        if not warmup.endswith(("dur", self.duration[1])):
            raise ValueError(f"scheduler.t_warmup {warmup} is not in the unit of max_duration {self.max_duration}")
        return self

    @property
    def duration(self) -> tuple[int, str]:
        """The length of the run as (number, unit)."""
        unit = self.max_duration.lstrip("0123456789")
        return int(self.max_duration.removesuffix(unit)), unit
