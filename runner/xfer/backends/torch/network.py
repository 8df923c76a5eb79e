"""A source network with its new head, ready to compute frozen features and to train what a phase says."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from torch import nn
from torch.nn import functional

from xfer.backends.backend import Batch, Device, StepRecord
from xfer.backends.torch.hardware import threads
from xfer.backends.torch.head import Head, pool
from xfer.backends.torch.optimizer import PhaseOptimizer
from xfer.backends.torch.segments import Segments
from xfer.errors import DivergedError
from xfer.plan.model_map import HEAD, PIXELS
from xfer.plan.plan import PhasePlan, Plan

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
SMALL_HEAD = 4_000_000  # parameters
WEIGHTS_FILE = "weights.safetensors"


class TorchNetwork:
    """Implements `xfer.backends.backend.Network`."""

    def __init__(self, plan: Plan, base: nn.Module, device: Device) -> None:
        self.plan, self.device = plan, torch.device(device.name)
        self.base = base.to(self.device, memory_format=torch.channels_last).eval().requires_grad_(False)  # type: ignore[call-overload]
        self.segments = Segments(self.base, plan.model)
        self.head = Head(plan.head, seed=plan.seed).to(self.device)
        self.dtype = DTYPES[plan.runtime.precision]  # of rows in the store
        # Where the processor has no fast bfloat16, float32 is both faster and more exact: rows are then only kept in it.
        self.compute_dtype = torch.float32 if self.dtype == torch.bfloat16 and not device.fast_bfloat16 else self.dtype
        self.phase: PhasePlan | None = None
        self.optimizer: PhaseOptimizer | None = None
        self.class_weights: torch.Tensor | None = None
        self.suffix: nn.Module = nn.Identity()
        preprocess = plan.source.preprocess
        scale = torch.tensor([s * preprocess.scale for s in preprocess.std], device=self.device)
        shift = torch.tensor([m * preprocess.scale for m in preprocess.mean], device=self.device)
        self._scale, self._shift = (1 / scale).view(1, -1, 1, 1), (-shift / scale).view(1, -1, 1, 1)
        tensors = {**dict(self.base.named_parameters()), **dict(self.base.named_buffers())}
        wanted = {tensor.name for group in plan.model.groups for tensor in group.tensors}
        self.named: dict[str, torch.Tensor] = {name: tensor for name, tensor in tensors.items() if name in wanted}
        self.named.update({f"{HEAD}.{name}": parameter for name, parameter in self.head.named_parameters()})
        self.group_of = {tensor.name: group.name for group in plan.model.groups for tensor in group.tensors}
        self.group_of.update(dict.fromkeys((tensor.name for tensor in plan.head.tensors), HEAD))

    # frozen computation

    def normalised(self, pixels: torch.Tensor) -> torch.Tensor:
        """uint8 [B, H, W, 3] RGB to the network's input, float32 [B, 3, H, W] in channels-last memory."""
        x = pixels.permute(0, 3, 1, 2).float()
        if self.plan.source.preprocess.channels == "bgr":
            x = x.flip(1)
        return torch.addcmul(self._shift, x, self._scale)

    def tensor(self, values: np.ndarray) -> torch.Tensor:
        tensor = torch.from_numpy(values)
        if tensor.dtype == torch.uint16:
            tensor = tensor.view(torch.bfloat16)
        return tensor.to(self.device)

    def forward(self, values: np.ndarray, segment: nn.Module, *, start: str) -> torch.Tensor:
        x = self.tensor(values)
        x = self.normalised(x) if start == PIXELS else x
        if x.ndim == 4:
            x = x.contiguous(memory_format=torch.channels_last)
        with torch.autocast(self.device.type, dtype=self.compute_dtype, enabled=self.compute_dtype != torch.float32):
            return segment(x)  # type: ignore[no-any-return]

    def compute(self, inputs: np.ndarray, *, start: str, end: str, pooled: bool) -> np.ndarray:
        segment = self.segments.between(start, end).eval()
        with torch.inference_mode():
            y = self.forward(inputs, segment, start=start)
            if pooled:
                y = pool(y.float(), self.plan.model.cut(end).layout)
            y = y.to(self.dtype).contiguous().cpu()
            return y.view(torch.uint16).numpy() if y.dtype == torch.bfloat16 else y.numpy()

    def signature(self, start: str, end: str) -> str:
        segment = self.segments.between(start, end)
        return hashlib.blake2b(str(segment).encode(), digest_size=16).hexdigest()

    def digests(self, names: Sequence[str]) -> dict[str, str]:
        return {name: digest(self.named[name]) for name in names}

    # training

    def begin_phase(self, phase: PhasePlan, *, steps_per_epoch: int, class_weights: np.ndarray | None) -> None:
        carried = self.optimizer.state() if self.optimizer is not None and phase.optimizer_state == "carry" else {}
        trainable = set(phase.trainable)
        parameters = {}
        for name, tensor in self.named.items():
            tensor.requires_grad_(name in trainable)
            if name in trainable:
                assert isinstance(tensor, nn.Parameter)
                parameters[name] = tensor
        self.phase = phase
        self.class_weights = None if class_weights is None else torch.from_numpy(class_weights).float().to(self.device)
        self.suffix = self._suffix(phase.input.cut, pooled=phase.input.pooled)
        self.optimizer = PhaseOptimizer(phase, parameters, self.group_of, steps_per_epoch=steps_per_epoch)
        self.optimizer.load_state(carried)

    def _suffix(self, start: str, *, pooled: bool) -> nn.Module:
        return nn.Identity() if pooled or start == self.plan.head.at else self.segments.between(start, self.plan.head.at)

    def _features(self, inputs: np.ndarray, suffix: nn.Module, *, start: str, pooled: bool) -> torch.Tensor:
        x = self.forward(inputs, suffix, start=start)
        return x if pooled else pool(x.float(), self.plan.head.layout)

    def _threads(self, suffix: nn.Module) -> int | None:
        """One where only a small head is computed, on the CPU."""
        small = isinstance(suffix, nn.Identity) and sum(p.numel() for p in self.head.parameters()) < SMALL_HEAD
        return 1 if small and self.device.type == "cpu" else None

    def train(self, batches: Iterable[Batch], *, epoch: int, first_step: int, scale: float) -> StepRecord:
        assert self.phase is not None
        assert self.optimizer is not None
        phase, record = self.phase, StepRecord()
        losses: list[torch.Tensor] = []
        correct: list[torch.Tensor] = []
        with torch.enable_grad(), threads(self._threads(self.suffix)):
            for step, batch in enumerate(batches, start=first_step):
                masks = self.head.masks(batch.rows, phase=phase.index, epoch=epoch)
                labels = torch.from_numpy(batch.labels).to(self.device)
                logits = self.head(self._features(batch.inputs, self.suffix, start=phase.input.cut, pooled=phase.input.pooled), masks)
                loss = functional.cross_entropy(logits, labels, weight=self.class_weights, label_smoothing=phase.optimizer.label_smoothing)
                loss.backward()
                self.optimizer.step(step, scale=scale)
                losses.append(loss.detach())
                correct.append((logits.detach().argmax(1) == labels).sum())
                record.counts.append(len(batch.labels))
        if losses:
            record.losses = torch.stack(losses).double().tolist()
            record.correct = torch.stack(correct).tolist()
        if not np.isfinite(record.losses).all():
            raise DivergedError(
                f"phase '{phase.name}', epoch {epoch + 1}: the loss is not a finite number any more",
                hint=f"lower the learning rate (now {phase.optimizer.lr:g}), or set optimizer.clip_norm; then start a new run",
            )
        return record

    def logits(self, inputs: np.ndarray, *, start: str, pooled: bool) -> np.ndarray:
        suffix = self._suffix(start, pooled=pooled).eval()
        with torch.inference_mode(), threads(self._threads(suffix)):
            x = self._features(inputs, suffix, start=start, pooled=pooled)
            return self.head(x).float().cpu().numpy()  # type: ignore[no-any-return]

    # state

    def _changing(self) -> list[str]:
        trained = {group for phase in self.plan.phases for group in phase.train}
        return [name for name in self.named if self.group_of[name] in trained]

    def tensors(self) -> dict[str, np.ndarray]:
        return {name: self.named[name].detach().cpu().numpy().copy() for name in self._changing()}

    def load_tensors(self, tensors: dict[str, np.ndarray]) -> None:
        with torch.no_grad():
            for name, value in tensors.items():
                self.named[name].copy_(torch.from_numpy(np.array(value)))

    def state(self) -> dict[str, np.ndarray]:
        state = {f"model/{name}": value for name, value in self.tensors().items()}
        if self.optimizer is not None:
            state.update({f"optimizer/{name}": value for name, value in self.optimizer.state().items()})
        return state

    def load_state(self, state: dict[str, np.ndarray]) -> None:
        self.load_tensors({name.removeprefix("model/"): value for name, value in state.items() if name.startswith("model/")})
        if self.optimizer is not None:
            saved = {name.removeprefix("optimizer/"): value for name, value in state.items() if name.startswith("optimizer/")}
            self.optimizer.load_state(saved)

    def save(self, folder: Path) -> None:
        tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in self.named.items()}
        save_file(tensors, folder / WEIGHTS_FILE)


def digest(tensor: torch.Tensor) -> str:
    """blake2b over the tensor's bits in row-major order."""
    flat = tensor.detach().cpu().contiguous()
    return hashlib.blake2b(flat.reshape(-1).view(torch.uint8).numpy().data, digest_size=16).hexdigest() if flat.numel() else ""
