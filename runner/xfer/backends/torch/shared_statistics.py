"""Batch normalisation over a batch that is spread over ranks: with the statistics of the whole of it, as one process would."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from xfer.backends.torch.team import TorchTeam


class SharedStatistics(TorchFunctionMode):
    """Within it every batch normalisation in train mode, whichever module it is in, takes mean and variance over the ranks' rows.
    `row_weight` is what a row of this rank counts (see `Batch.row_weight`)."""

    def __init__(self, team: TorchTeam, row_weight: float) -> None:
        super().__init__()
        self.team, self.row_weight = team, row_weight

    def __torch_function__(self, func: Callable, types: Any, args: tuple = (), kwargs: dict[str, Any] | None = None) -> Any:
        if func is functional.batch_norm:
            return self._batch_norm(func, *args, **(kwargs or {}))
        return func(*args, **(kwargs or {}))

    def _batch_norm(
        self,
        func: Callable,
        x: torch.Tensor,
        running_mean: torch.Tensor | None,
        running_var: torch.Tensor | None,
        weight: torch.Tensor | None = None,
        bias: torch.Tensor | None = None,
        training: bool = False,
        momentum: float = 0.1,
        eps: float = 1e-5,
    ) -> torch.Tensor:
        if not training:
            return func(x, running_mean, running_var, weight, bias, training, momentum, eps)  # type: ignore[no-any-return]
        normal, mean, variance, count = Normalised.apply(x, self.team, self.row_weight, eps)
        if running_mean is not None and running_var is not None:
            with torch.no_grad():
                running_mean.lerp_(mean.to(running_mean.dtype), momentum)
                running_var.lerp_((variance * count / (count - 1)).to(running_var.dtype), momentum)  # unbiased, as torch keeps it
        shape = [1, -1] + [1] * (x.ndim - 2)
        y = normal if weight is None else normal * weight.float().view(shape)
        y = y if bias is None else y + bias.float().view(shape)
        return y.to(x.dtype)  # type: ignore[no-any-return]


class Normalised(torch.autograd.Function):
    """(x - mean) / sqrt(variance + eps) over all ranks' rows, float32. Partial moments are merged by Chan, Golub and LeVeque (1983),
    which loses no digits where the mean is large; the gradient is that of Ioffe and Szegedy (2015), section 3, with its two sums taken
    over the ranks."""

    @staticmethod
    def forward(context: Any, x: torch.Tensor, team: TorchTeam, row_weight: float, eps: float) -> tuple[torch.Tensor, ...]:
        over = [axis for axis in range(x.ndim) if axis != 1]
        values = x.float()
        variance, mean = torch.var_mean(values, over, correction=0)
        n = torch.full((1,), values.numel() / values.shape[1] * row_weight, device=x.device)
        means, variances, counts = team.all_of(torch.cat([mean, variance, n])).split([len(mean), len(mean), 1], dim=1)
        count = counts.sum()
        mean = (counts * means).sum(0) / count
        variance = (counts * (variances + (means - mean).square())).sum(0) / count
        shape = [1, -1] + [1] * (x.ndim - 2)
        inverse = (variance + eps).rsqrt().view(shape)
        normal = (values - mean.view(shape)) * inverse
        context.save_for_backward(normal, inverse, row_weight / count)
        context.team, context.over, context.dtype = team, over, x.dtype
        context.mark_non_differentiable(mean, variance, count)
        return normal, mean, variance, count

    @staticmethod
    def backward(context: Any, gradient: torch.Tensor, *_: Any) -> tuple[torch.Tensor | None, ...]:
        normal, inverse, share = context.saved_tensors
        first, second = gradient.sum(context.over), (gradient * normal).sum(context.over)
        context.team.sum_together([first, second])
        shape = inverse.shape
        moved = (gradient - share * (first.view(shape) + normal * second.view(shape))) * inverse
        return moved.to(context.dtype), None, None, None
