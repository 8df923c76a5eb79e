"""The Plan: a compiled recipe. What will happen, decided, as plain frozen data with no framework object in it."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from xfer.plan.model_map import Frozen, ModelMap, Tensor
from xfer.plan.preprocess import Preprocess

FORMAT = 2  # rises when an older Plan can no longer be read


class WeightsPlan(Frozen):
    """Where the source's tensors come from. `location` is what the recipe named; `file` the absolute local path it means.

    kind 'none' draws random weights from the seed; 'tag' is a provider's own tag (downloaded to `file` when absent);
    'file' is any path, package file or URL; 'bundle' is an earlier run's model.
    """

    kind: Literal["none", "tag", "file", "bundle"]
    location: str
    file: str | None = None
    url: str | None = None  # what a missing file would be downloaded from
    match: Literal["name", "order"] = "name"
    part: str | None = None
    provider: str | None = None  # for messages: 'torchvision', 'timm'
    pretrained: bool = False  # of a bundle or file: its network was built as for the provider's own weights
    digest: str | None = None  # of a tag: the file's SHA-256 or MD5, where the provider tells it


class DownloadPlan(Frozen):
    """A file that is not on this machine and that `xfer run` and `xfer fetch` download before anything else. `what` is for people:
    'the images of keras/cifar10'."""

    what: str
    url: str
    file: str  # absolute
    bytes: int | None = None  # about; None where nobody says


class SourcePlan(Frozen):
    """The source model. `target` is the provider plugin's module:attribute, `name` the model's name within it."""

    model: str
    name: str
    target: str
    backend: Literal["torch", "tensorflow"]
    weights: WeightsPlan
    preprocess: Preprocess
    trust: bool = False


class DataPlan(Frozen):
    """The target dataset and its splits. `counts` is images by split and class, `listing` a digest over names and labels:
    a dataset that changed between plan and run is noticed by it. It is None where the files are not there yet: classes and counts are
    then what the provider says (evenly over the classes where it tells only totals). Such a plan can be shown, and never runs."""

    dataset: str
    target: str  # the dataset plugin's module:attribute
    options: dict[str, Any]
    classes: tuple[str, ...]
    images: int
    counts: dict[str, dict[str, int]]
    listing: str | None
    notes: tuple[str, ...] = ()  # what the dataset leaves out
    val: float
    test: float
    split_seed: int
    max_bad: float
    batch_size: int


class HeadPlan(Frozen):
    """The new head: global average pooling where `at` is spatial, hidden layers with ReLU and dropout, a linear output."""

    at: str  # the name of the cut that it reads
    layout: str
    inputs: int
    hidden: tuple[int, ...]
    dropout: float
    outputs: int

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        """The head's parameters under the names that every backend gives them.

        >>> [t.name for t in HeadPlan(at="pooled", layout="vector", inputs=8, hidden=(4,), dropout=0.0, outputs=2).tensors]
        ['head.hidden.0.weight', 'head.hidden.0.bias', 'head.output.weight', 'head.output.bias']
        """
        named = []
        widths = (self.inputs, *self.hidden, self.outputs)
        for index, (n_in, n_out) in enumerate(zip(widths, widths[1:], strict=False)):
            layer = "head.output" if index == len(self.hidden) else f"head.hidden.{index}"
            named.append(Tensor(name=f"{layer}.weight", shape=(n_out, n_in), kind="parameter"))
            named.append(Tensor(name=f"{layer}.bias", shape=(n_out,), kind="parameter"))
        return tuple(named)


class OptimizerPlan(Frozen):
    """One phase's optimizer, by torch's definitions (see DESIGN: decay coupled in sgd and adam, decoupled in adamw)."""

    name: Literal["sgd", "adam", "adamw"]
    lr: float
    momentum: float
    weight_decay: float
    schedule: Literal["constant", "cosine", "one_cycle", "plateau"]
    warmup_epochs: float = 0.0
    clip_norm: float | None = None
    label_smoothing: float = 0.0
    class_weights: Literal["none", "balanced"] = "none"
    average: float | None = None
    norm_momentum: float | None = None
    betas: tuple[float, float] = (0.9, 0.999)
    epsilon: float = 1e-8


class UntilPlan(Frozen):
    """Stop rule: no improvement of `metric` by `min_delta` for `patience` epochs, or `max_epochs`; the best weights are restored."""

    metric: str
    mode: Literal["min", "max"]
    patience: int
    min_delta: float
    max_epochs: int


class InputPlan(Frozen):
    """Where a phase starts. mode 'stored': rows at `cut` are computed once and read from the feature store; 'streamed': recomputed."""

    cut: str
    mode: Literal["stored", "streamed"]
    reason: str
    shape: tuple[int, ...]
    dtype: Literal["uint8", "float32", "bfloat16", "float16"]
    bytes: int  # what the store takes when complete
    layout: str
    pooled: bool = False  # a spatial cut's global average, where all that comes after it is the head
    after_phase: int | None = None  # the prefix's tensors are those that this earlier phase leaves; None: the source's own


class AugmentPlan(Frozen):
    """How training images are augmented. Without `views` each epoch draws anew, from canvases at cut 0 (the whole frame on a square
    of `canvas` pixels); with them, epoch e reads view e mod `views` at the phase's cut. `mode`, `bytes` and `reason` speak of
    the canvases, or of all views together."""

    policy: Literal["standard", "trivial", "randaugment"]
    views: int | None
    scale: tuple[float, float]  # the smallest and largest share of the frame that a crop shows
    canvas: int
    mode: Literal["stored", "streamed"]
    bytes: int
    reason: str


class PhasePlan(Frozen):
    """One stretch of training with a fixed set of trainable groups."""

    name: str
    index: int
    train: tuple[str, ...]  # group names, input end first, 'head' last
    trainable: tuple[str, ...]  # tensor names: parameters that take gradients
    frozen: tuple[str, ...]  # tensor names, buffers too, that must not change by one bit
    epochs: int | None
    until: UntilPlan | None
    learning_rates: dict[str, float]  # per trainable group
    norm: Literal["train", "frozen"]
    optimizer: OptimizerPlan
    optimizer_state: Literal["carry", "reset"]
    reestimate_norm: bool
    input: InputPlan  # clean rows: what validation reads, and training where nothing is augmented
    augment: AugmentPlan | None = None
    shuffle: Literal["full", "blocks"]
    trainable_parameters: int

    @property
    def max_epochs(self) -> int:
        return self.until.max_epochs if self.until else int(self.epochs or 0)


class RuntimePlan(Frozen):
    """How it is computed. `precision` is decided: never 'auto' here."""

    device: str
    precision: Literal["float32", "bfloat16", "float16"]
    cache: str
    cache_budget: int  # bytes
    checkpoint: str
    keep: int
    extraction_batch: int  # the one padded batch shape of every frozen computation
    shard_rows: int = 512


class ClusterPlan(Frozen):
    """How a run is spread: by Ray Train over so many workers, each with `gpus_per_worker` (None: one where the cluster has GPUs)."""

    workers: tuple[int, int]  # the fewest and the most: different numbers where the run is elastic
    gpus_per_worker: float | None = None
    address: str | None = None  # None: a Ray of its own on this machine
    storage: str | None = None  # where bundle and features lie; an absolute path or a URL
    max_failures: int = 3
    startup_seconds: float = 0.0  # so long the cluster may take to grow where it has too little room


class MethodPlan(Frozen):
    """The transfer method, resolved. `options` are bound to the plugin's signature already."""

    type: Literal["feature", "model", "knowledge", "domain"]
    name: str
    target: str
    options: dict[str, Any]
    taps: dict[str, str] = {}  # the method's selectors -> names of cuts
    tensors: tuple[Tensor, ...] = ()  # its own: 'method.<name>'
    teacher: bool = False
    rewrites_statistics: bool = False

    @property
    def groups(self) -> tuple[str, ...]:
        """The own groups, `method.<first part of a tensor's name>`, in order."""
        return tuple(dict.fromkeys(own_group(tensor.name) for tensor in self.tensors))


def own_group(tensor: str) -> str:
    """The group of a method's own tensor.

    >>> own_group("method.critic.0.weight")
    'method.critic'
    """
    return ".".join(tensor.split(".")[:2])


class Plan(Frozen):
    """The compiled recipe; everything that acts only reads it."""

    format: int = FORMAT
    name: str
    seed: int
    backend: Literal["torch", "tensorflow"]
    source: SourcePlan
    model: ModelMap
    data: DataPlan
    method: MethodPlan
    head: HeadPlan
    phases: tuple[PhasePlan, ...]
    baseline: InputPlan  # what the baseline probe reads: the source's own features where the head is put on
    runtime: RuntimePlan
    cluster: ClusterPlan | None = None  # None: one process, here
    never_trained: tuple[str, ...]
    total_parameters: int
    downloads: tuple[DownloadPlan, ...] = ()
    plugins: dict[str, str] = {}  # local plugin module name -> source text

    def write(self, path: Path) -> None:
        path.write_text(self.model_dump_json(indent=1) + "\n")

    @classmethod
    def read(cls, path: Path) -> Plan:
        return cls.model_validate_json(path.read_text())
