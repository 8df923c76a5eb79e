"""torch's own optimizers, one parameter group per group of the network, with state by tensor name so that phases can carry it."""

from __future__ import annotations

import numpy as np
import torch

from xfer.ops.schedules import factor
from xfer.plan.plan import OptimizerPlan, PhasePlan

STATE_FIELDS = ("momentum_buffer", "exp_avg", "exp_avg_sq", "step")


class PhaseOptimizer:
    """The optimizer of one phase. `parameters` maps tensor names to parameters, `group_of` to group names."""

    def __init__(
        self, phase: PhasePlan, parameters: dict[str, torch.nn.Parameter], group_of: dict[str, str], *, steps_per_epoch: int
    ) -> None:
        self.plan = phase.optimizer
        self.parameters = parameters
        self.steps = steps_per_epoch * phase.max_epochs
        self.warmup_steps = self.plan.warmup_epochs * steps_per_epoch
        by_group: dict[str, list[torch.nn.Parameter]] = {}
        for name, parameter in parameters.items():
            by_group.setdefault(group_of[name], []).append(parameter)
        self.base = [phase.learning_rates[group] for group in by_group]
        groups = [{"params": members, "lr": rate} for members, rate in zip(by_group.values(), self.base, strict=True)]
        self.optimizer = make(self.plan, groups)

    def step(self, step: int, *, scale: float, scaler: torch.amp.GradScaler | None = None) -> None:
        """One update at the phase's `step` of the parameters that have gradients (scaled by `scaler`, where there is one)."""
        multiplier = scale * factor(self.plan.schedule, step, steps=self.steps, warmup_steps=self.warmup_steps)
        for group, rate in zip(self.optimizer.param_groups, self.base, strict=True):
            group["lr"] = rate * multiplier
        scaled = scaler is not None and scaler.is_enabled()
        if self.plan.clip_norm:
            if scaled:
                scaler.unscale_(self.optimizer)  # type: ignore[union-attr]
            torch.nn.utils.clip_grad_norm_(list(self.parameters.values()), self.plan.clip_norm)
        self._first_momenta()
        if scaled:
            scaler.step(self.optimizer)  # type: ignore[union-attr]
            scaler.update()  # type: ignore[union-attr]
        else:
            self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)

    def _first_momenta(self) -> None:
        """Zeros where SGD has no momentum yet. Its fused step refuses a group of which only some tensors have one (those that an earlier
        phase trained already), and makes what is missing of memory as it is, which stays where the scaler skips the step. From zeros,
        the first step that is taken gives what it would have given."""
        if self.plan.name == "sgd" and self.plan.momentum:
            for parameter in self.parameters.values():
                if parameter.grad is not None and self.optimizer.state[parameter].get("momentum_buffer") is None:
                    self.optimizer.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)

    def state(self) -> dict[str, np.ndarray]:
        """`<tensor name>/<field>` to array, for tensors that have been updated."""
        saved = {}
        for name, parameter in self.parameters.items():
            for field, value in self.optimizer.state.get(parameter, {}).items():
                if field in STATE_FIELDS and value is not None:
                    saved[f"{name}/{field}"] = torch.as_tensor(value).detach().cpu().numpy().copy()
        return saved

    def load_state(self, saved: dict[str, np.ndarray]) -> None:
        """Take over the state of the tensors that are trained here; others start fresh. Without momentum there is none to keep: held
        for a later phase, it would be that of weights long left."""
        for key, value in saved.items():
            name, _, field = key.rpartition("/")
            if name not in self.parameters or (self.plan.name == "sgd" and not self.plan.momentum):
                continue
            parameter, loaded = self.parameters[name], torch.from_numpy(np.array(value))
            if field == "step":
                place = parameter.device if self.optimizer.defaults.get("fused") else torch.device("cpu")
                self.optimizer.state[parameter][field] = loaded.reshape(()).to(place)
            else:  # in the parameter's own memory layout: fused optimizers go through both as they lie in memory
                self.optimizer.state[parameter][field] = torch.empty_like(parameter).copy_(loaded)


def make(plan: OptimizerPlan, groups: list[dict]) -> torch.optim.Optimizer:
    """torch.optim's SGD, Adam or AdamW with the plan's numbers."""
    if plan.name == "sgd":
        return torch.optim.SGD(groups, lr=plan.lr, momentum=plan.momentum, weight_decay=plan.weight_decay, fused=True)
    kind = torch.optim.AdamW if plan.name == "adamw" else torch.optim.Adam
    return kind(groups, lr=plan.lr, betas=plan.betas, eps=plan.epsilon, weight_decay=plan.weight_decay, fused=True)
