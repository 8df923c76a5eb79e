"""Building a network without numbers: its structure only, in little time and memory."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from xfer.backends.torch.shapes import as_meta

# What parameters and statistics are made by. A builder that computes with numbers makes those in other ways.
_MAKERS = {torch.empty, torch.zeros, torch.ones, torch.full, torch.rand, torch.randn}


def blueprint(build: Callable[[], nn.Module]) -> nn.Module:
    """The network that `build` makes, all of it on the meta device.

    Some builders read numbers of tensors that they made (widths from a formula, say): those are built once more with only the
    parameters on the meta device. Whatever `build` raises then is raised.
    """
    try:
        with torch.device("meta"):
            return build()
    except (RuntimeError, TypeError, ValueError):  # NotImplementedError is a RuntimeError
        with _ParametersOnMeta():
            return as_meta(build())


class _ParametersOnMeta(TorchFunctionMode):
    def __torch_function__(self, function: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None) -> Any:
        kwargs = dict(kwargs or {})
        if function in _MAKERS and kwargs.get("device") is None:
            kwargs["device"] = "meta"
        return function(*args, **kwargs)
