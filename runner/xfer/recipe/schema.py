"""The recipe's schema: what a person may write, as frozen pydantic models with defaults.

Sections that later work needs are validated here already and refused only when run. Plugin options stand beside `dataset`,
`method` and `policy` and are bound to the plugin's signature later, so those three models let unknown keys pass into `options`.

Validation is strict (no text becomes a number), and every union picks its branch by the shape of what was written, so that one
mistake is one fault. What types can't say stands in `rules`.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, Tag, model_validator

from xfer.recipe import rules

PHASE_EPOCHS = 10

Text = Annotated[str, Field(min_length=1)]
Fraction = Annotated[float, Field(ge=0, lt=1)]
Share = Annotated[float, Field(ge=0, le=1)]
Positive = Annotated[int, Field(ge=1), AfterValidator(rules.sane)]
Natural = Annotated[int, Field(ge=0), AfterValidator(rules.sane)]
Rate = Annotated[float, Field(gt=0), AfterValidator(rules.sane)]
Weight = Annotated[float, Field(ge=0), AfterValidator(rules.sane)]
Decay = Annotated[float, Field(gt=0, lt=1)]
Factor = Annotated[float, Field(gt=0, le=1)]
Side = Annotated[int, Field(ge=8, le=4096)]
Metric = Annotated[Text, AfterValidator(rules.metric), Field(examples=["val.accuracy"])]
Name = Annotated[
    Text,
    Field(max_length=100),
    AfterValidator(
        rules.matching(r"[^\W_][\w .+-]*(?<! )", "a folder's name (letters, digits, '-', '_', '.', spaces inside; a letter or digit first)")
    ),
]
Device = Annotated[Text, AfterValidator(rules.matching(r"auto|cpu|mps|(cuda|gpu)(:\d{1,3})?", "auto, cpu, mps, cuda or cuda:NUMBER"))]
Model = Annotated[Text, Field(examples=["torchvision/resnet18"])]
OptimizerName = Literal["sgd", "adam", "adamw"]
Schedule = Literal["constant", "cosine", "one_cycle", "plateau"]
AugmentName = Literal["none", "standard", "trivial", "randaugment"]


class Strict(BaseModel):
    """Frozen, and an unknown key is a fault."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False, defer_build=True, protected_namespaces=())


class WithOptions(Strict):
    """A plugin's options stand beside its name."""

    model_config = ConfigDict(extra="allow")

    @property
    def options(self) -> dict[str, Any]:
        return dict(self.model_extra or {})


class Preprocessing(Strict):
    """Overrides of what the weights' metadata says."""

    resize: Side | None = None
    crop: Side | None = None
    interpolation: Literal["nearest", "bilinear", "bicubic", "lanczos", "box", "hamming"] | None = None
    mean: Annotated[list[float], AfterValidator(rules.per_channel)] | None = None
    std: Annotated[list[Rate], AfterValidator(rules.per_channel)] | None = None
    range: Literal["0..1", "0..255", "-1..1"] | None = None
    channels: Literal["rgb", "bgr"] | None = None


class Weights(Strict):
    """Weights in a file that is not the provider's own."""

    path: Annotated[Text, Field(examples=["weights/model.safetensors"])]
    match: Literal["name", "order"] = "name"
    part: Text | None = None


WeightsField = Annotated[Annotated[Text, Tag(rules.SCALAR)] | Annotated[Weights, Tag(rules.MAPPING)], rules.MAPPING_OR_SCALAR]


class Splits(Strict):
    """Shares of the images; splits that the dataset has are kept, missing ones are cut from train."""

    val: Fraction = 0.1
    test: Fraction = 0.2
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0

    @model_validator(mode="after")
    def leave_some_to_train_on(self) -> Splits:
        if self.val + self.test >= 1:
            raise ValueError(f"val {self.val:g} and test {self.test:g} leave no images to train on; together they must be below 1")
        return self


class Augment(Strict):
    """Random augmentation; `views` stores that many augmented views beside a clean one, `scale` bounds the share of the frame that a
    random crop shows (where a defect may lie anywhere, a small crop would lose it)."""

    policy: AugmentName = "standard"
    views: Positive | None = None
    scale: Annotated[list[Factor], AfterValidator(rules.low_high)] = [0.08, 1.0]


class Target(WithOptions):
    """The task we care about: a dataset plugin's name, its options, and how images are cut up."""

    dataset: Annotated[Text, Field(examples=["folder"])]
    splits: Splits = Field(default_factory=Splits)
    image_size: Side | None = None
    batch_size: Positive = 32
    augment: Annotated[Annotated[AugmentName, Tag(rules.SCALAR)] | Annotated[Augment, Tag(rules.MAPPING)], rules.MAPPING_OR_SCALAR] = "none"
    max_bad: Share = 0.01


class Source(Strict):
    """Where knowledge comes from."""

    model: Model
    weights: WeightsField | None = "DEFAULT"
    preprocess: Preprocessing = Field(default_factory=Preprocessing)
    trust: bool = False
    domains: dict[str, Target] | None = None


class Student(Strict):
    """The network that learns from the source."""

    model: Model
    weights: WeightsField | None = "DEFAULT"


class Transfer(WithOptions):
    """The kind of transfer; `method` picks within the type."""

    type: Annotated[Literal["feature", "model", "knowledge", "domain"], Field(examples=["feature"])]
    method: Text | None = None
    at: Text | None = None
    student: Student | None = None


class Head(Strict):
    """The new head; no hidden layer is a linear probe."""

    hidden: list[Positive] = []
    dropout: Fraction = 0.0


class Until(Strict):
    """Stop rule of a phase; the best weights are restored."""

    metric: Metric = "val.accuracy"
    patience: Positive = 5
    min_delta: Weight = 0.0
    max_epochs: Positive = 100


class OptimizerFields(Strict):
    """What a phase may override."""

    lr: Rate | None = None
    momentum: Fraction | None = None
    weight_decay: Weight | None = None
    schedule: Schedule | None = None
    warmup_epochs: Weight | None = None
    clip_norm: Rate | None = None
    label_smoothing: Fraction | None = None
    class_weights: Literal["none", "balanced"] | None = None
    average: Decay | None = None
    norm_momentum: Factor | None = None


class Phase(OptimizerFields):
    """One phase: what trains, and for how long (10 epochs where nothing is said)."""

    train: Annotated[
        Annotated[Text, Tag(rules.SCALAR)] | Annotated[list[Text], Field(min_length=1), Tag(rules.LIST)],
        rules.LIST_OR_SCALAR,
        Field(examples=["head"]),
    ]
    epochs: Positive | None = None
    until: Until | None = None
    layer_decay: Factor | None = None
    norm: Literal["train", "frozen"] = "train"
    optimizer: OptimizerName | None = None
    optimizer_state: Literal["carry", "reset"] = "carry"
    reestimate_norm: bool = False

    @model_validator(mode="before")
    @classmethod
    def default_length(cls, data: Any) -> Any:
        if isinstance(data, dict) and data.get("epochs") is None and data.get("until") is None:
            return {**data, "epochs": PHASE_EPOCHS}
        return data

    @model_validator(mode="after")
    def one_length(self) -> Phase:
        if self.epochs is not None and self.until is not None:
            raise rules.broken(
                "epochs", "stands beside 'until', and only one of them can say how long the phase is; for a limit write until.max_epochs"
            )
        return self


class Policy(WithOptions):
    """A freeze policy plugin and its options."""

    policy: Annotated[Text, Field(examples=["gradual"])]


Freeze = Annotated[
    Annotated[list[Phase], Field(min_length=1), Tag(rules.LIST)] | Annotated[Policy, Tag(rules.MAPPING)],
    rules.LIST_OR_MAPPING,
    BeforeValidator(rules.phases_in_a_list),
]


class Optimizer(Strict):
    """The optimizer of every phase that does not say otherwise."""

    name: OptimizerName = "adamw"
    lr: Rate = 1e-3
    momentum: Fraction = 0.9
    weight_decay: Weight = 0.0
    schedule: Schedule = "constant"
    warmup_epochs: Weight = 0.0
    clip_norm: Rate | None = None
    label_smoothing: Fraction = 0.0
    class_weights: Literal["none", "balanced"] = "none"
    average: Decay | None = None
    norm_momentum: Factor | None = None


class Runtime(Strict):
    """How it is computed. `checkpoint` is a duration, or a number of steps; `extraction_batch` is how many images go through the frozen
    part at once."""

    precision: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    device: Device = "auto"
    cache: Text = "~/.cache/xfer"
    cache_budget: Annotated[str | int, BeforeValidator(rules.size)] = "50GB"
    checkpoint: Annotated[str | int, BeforeValidator(rules.interval)] = "5min"
    keep: Positive = 2
    extraction_batch: Literal["auto"] | Positive = "auto"


class Workers(Strict):
    """An elastic number of workers."""

    min: Positive
    max: Positive

    @model_validator(mode="after")
    def in_order(self) -> Workers:
        if self.max < self.min:
            raise rules.broken("max", f"must be at least min, which is {self.min}, not {self.max}")
        return self


class Cluster(Strict):
    """Only if the run is to be spread. For `startup_timeout` a run waits until a cluster that grows by itself has room for its workers."""

    workers: Annotated[Annotated[Positive, Tag(rules.SCALAR)] | Annotated[Workers, Tag(rules.MAPPING)], rules.MAPPING_OR_SCALAR] = 1
    gpus_per_worker: Annotated[Literal["auto"] | float, BeforeValidator(rules.n_gpus)] = "auto"
    address: Text | None = None
    storage: Text | None = None
    max_failures: Natural = 3
    startup_timeout: Annotated[Text, BeforeValidator(rules.duration)] | None = None


class Budget(Strict):
    """When a sweep ends."""

    minutes: Rate | None = None
    trials: Positive | None = None


class Named(WithOptions):
    """A searcher or scheduler with options beside its name."""

    name: Annotated[Text, Field(examples=["optuna"])]


NamedField = Annotated[Annotated[Text, Tag(rules.SCALAR)] | Annotated[Named, Tag(rules.MAPPING)], rules.MAPPING_OR_SCALAR]


class Space(Strict):
    """What one key may be in a sweep: one distribution. `when` limits it to trials where other keys have those values."""

    uniform: list[float] | None = None
    loguniform: list[float] | None = None
    integer: list[int] | None = None
    loginteger: list[int] | None = None
    choice: Annotated[list[Any], Field(min_length=1)] | None = None
    grid: Annotated[list[Any], Field(min_length=1)] | None = None
    when: dict[str, Any] | None = None

    @model_validator(mode="after")
    def one_distribution(self) -> Space:
        given = [name for name in rules.DISTRIBUTIONS if getattr(self, name) is not None]
        if len(given) != 1:
            raise ValueError(f"needs one of {', '.join(rules.DISTRIBUTIONS)}" + (f", not {' and '.join(given)} together" if given else ""))
        name, values = given[0], getattr(self, given[0])
        if name not in ("choice", "grid"):
            if len(values) != 2 or values[0] >= values[1]:
                raise rules.broken(name, f"must be [low, high] with low below high, not {values}")
            if name.startswith("log") and values[0] <= 0:
                raise rules.broken(name, f"low must be above 0 on a logarithmic scale, not {values[0]:g}")
        return self


class Sweep(Strict):
    """Only `xfer sweep` reads it."""

    metric: Metric = "val.accuracy"
    mode: Literal["min", "max"] = "max"
    samples: Positive = 16
    search: NamedField = "optuna"
    scheduler: NamedField | None = None
    seeds: Positive = 1
    budget: Budget = Field(default_factory=Budget)
    purpose: Literal["choose", "compare"] = "choose"
    space: dict[str, Space] = {}


class Recipe(Strict):
    """A whole recipe. Required are source.model, target.dataset and transfer.type."""

    name: Name | None = None
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0
    source: Source
    target: Target
    transfer: Transfer
    head: Head = Field(default_factory=Head)
    freeze: Freeze | None = None
    optimizer: Optimizer = Field(default_factory=Optimizer)
    runtime: Runtime = Field(default_factory=Runtime)
    cluster: Cluster = Field(default_factory=Cluster)
    sweep: Sweep | None = None
    plugins: list[Text] = []
