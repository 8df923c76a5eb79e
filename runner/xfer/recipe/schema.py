"""The recipe's schema: what a person may write, as frozen pydantic models with defaults.

Sections that later work needs are validated here already and refused only when run. Plugin options stand beside `dataset`,
`method` and `policy` and are bound to the plugin's signature later, so those three models let unknown keys pass into `options`.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

Fraction = Annotated[float, Field(ge=0, lt=1)]
Positive = Annotated[int, Field(ge=1)]
Rate = Annotated[float, Field(gt=0)]
OptimizerName = Literal["sgd", "adam", "adamw"]
Schedule = Literal["constant", "cosine", "one_cycle", "plateau"]


class Strict(BaseModel):
    """Frozen, and an unknown key is a fault."""

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())


class WithOptions(Strict):
    """A plugin's options stand beside its name."""

    model_config = ConfigDict(frozen=True, extra="allow", protected_namespaces=())

    @property
    def options(self) -> dict[str, Any]:
        return dict(self.model_extra or {})


class Preprocessing(Strict):
    """Overrides of what the weights' metadata says."""

    resize: Positive | None = None
    crop: Positive | None = None
    interpolation: Literal["nearest", "bilinear", "bicubic", "lanczos", "box", "hamming"] | None = None
    mean: list[float] | None = None
    std: list[Rate] | None = None
    range: Literal["0..1", "0..255", "-1..1"] | None = None
    channels: Literal["rgb", "bgr"] | None = None


class Weights(Strict):
    """Weights in a file that is not the provider's own."""

    path: str
    match: Literal["name", "order"] = "name"
    part: str | None = None


class Splits(Strict):
    """Shares of the images; splits that the dataset has are kept, missing ones are cut from train."""

    val: Fraction = 0.1
    test: Fraction = 0.2
    seed: Annotated[int, Field(ge=0)] = 0


class Augment(Strict):
    """Random augmentation; `views` stores that many augmented views beside a clean one."""

    policy: Literal["none", "standard", "trivial", "randaugment"] = "standard"
    views: Positive | None = None


class Target(WithOptions):
    """The task we care about: a dataset plugin's name, its options, and how images are cut up."""

    dataset: str
    splits: Splits = Splits()
    image_size: Annotated[int, Field(ge=8, le=4096)] | None = None
    batch_size: Positive = 32
    augment: Literal["none", "standard", "trivial", "randaugment"] | Augment = "none"
    max_bad: Annotated[float, Field(ge=0, le=1)] = 0.01


class Source(Strict):
    """Where knowledge comes from."""

    model: str
    weights: str | Weights | None = "DEFAULT"
    preprocess: Preprocessing = Preprocessing()
    trust: bool = False
    domains: dict[str, Target] | None = None


class Student(Strict):
    """The network that learns from the source."""

    model: str
    weights: str | Weights | None = "DEFAULT"


class Transfer(WithOptions):
    """The kind of transfer; `method` picks within the type."""

    type: Literal["feature", "model", "knowledge", "domain"]
    method: str | None = None
    at: str | None = None
    student: Student | None = None


class Head(Strict):
    """The new head; no hidden layer is a linear probe."""

    hidden: list[Positive] = []
    dropout: Fraction = 0.0


class Until(Strict):
    """Stop rule of a phase; the best weights are restored."""

    metric: str = "val.accuracy"
    patience: Positive = 5
    min_delta: Annotated[float, Field(ge=0)] = 0.0
    max_epochs: Positive = 100


class OptimizerFields(Strict):
    """What a phase may override."""

    lr: Rate | None = None
    momentum: Annotated[float, Field(ge=0, lt=1)] | None = None
    weight_decay: Annotated[float, Field(ge=0)] | None = None
    schedule: Schedule | None = None
    warmup_epochs: Annotated[float, Field(ge=0)] | None = None
    clip_norm: Rate | None = None
    label_smoothing: Fraction | None = None
    class_weights: Literal["none", "balanced"] | None = None
    average: Annotated[float, Field(gt=0, lt=1)] | None = None
    norm_momentum: Annotated[float, Field(gt=0, le=1)] | None = None


class Phase(OptimizerFields):
    """One phase: what trains, and for how long."""

    train: str | list[str]
    epochs: Positive | None = None
    until: Until | None = None
    layer_decay: Annotated[float, Field(gt=0, le=1)] | None = None
    norm: Literal["train", "frozen"] = "train"
    optimizer: OptimizerName | None = None
    optimizer_state: Literal["carry", "reset"] = "carry"
    reestimate_norm: bool = False

    @model_validator(mode="after")
    def one_length(self) -> Phase:
        if self.epochs is not None and self.until is not None:
            raise ValueError("'epochs' beside 'until': one of them says how long the phase is; give until.max_epochs instead")
        return self


class Policy(WithOptions):
    """A freeze policy plugin and its options."""

    policy: str


class Optimizer(Strict):
    """The optimizer of every phase that does not say otherwise."""

    name: OptimizerName = "adamw"
    lr: Rate = 1e-3
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.9
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    schedule: Schedule = "constant"
    warmup_epochs: Annotated[float, Field(ge=0)] = 0.0
    clip_norm: Rate | None = None
    label_smoothing: Fraction = 0.0
    class_weights: Literal["none", "balanced"] = "none"
    average: Annotated[float, Field(gt=0, lt=1)] | None = None
    norm_momentum: Annotated[float, Field(gt=0, le=1)] | None = None


class Runtime(Strict):
    """How it is computed."""

    precision: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    device: str = "auto"
    cache: str = "~/.cache/xfer"
    cache_budget: str | Positive = "50GB"
    checkpoint: str | Positive = "5min"
    keep: Positive = 2


class Workers(Strict):
    """An elastic number of workers."""

    min: Positive
    max: Positive


class Cluster(Strict):
    """Only if the run is to be spread."""

    workers: Positive | Workers = 1
    gpus_per_worker: Literal["auto"] | Annotated[float, Field(ge=0)] = "auto"
    address: str | None = None
    storage: str | None = None
    max_failures: Annotated[int, Field(ge=0)] = 3


class Budget(Strict):
    """When a sweep ends."""

    minutes: Rate | None = None
    trials: Positive | None = None


class Sweep(Strict):
    """Only `xfer sweep` reads it."""

    metric: str = "val.accuracy"
    mode: Literal["min", "max"] = "max"
    samples: Positive = 16
    search: str | dict[str, Any] = "optuna"
    scheduler: str | dict[str, Any] | None = None
    seeds: Positive = 1
    budget: Budget = Budget()
    purpose: Literal["choose", "compare"] = "choose"
    space: dict[str, dict[str, Any]] = {}


class Recipe(Strict):
    """A whole recipe. Required are source.model, target.dataset and transfer.type."""

    name: str | None = None
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0
    source: Source
    target: Target
    transfer: Transfer
    head: Head = Head()
    freeze: list[Phase] | Policy | None = None
    optimizer: Optimizer = Optimizer()
    runtime: Runtime = Runtime()
    cluster: Cluster = Cluster()
    sweep: Sweep | None = None
    plugins: list[str] = []
