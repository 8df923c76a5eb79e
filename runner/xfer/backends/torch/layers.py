"""What kind of thing a module is: a layer of torch's own, a normalisation, a container."""

from __future__ import annotations

from torch import nn

PLAIN_CONTAINERS = (nn.Sequential, nn.ModuleList, nn.ModuleDict)
_NO_LAYERS = (nn.Module, *PLAIN_CONTAINERS, nn.ParameterList, nn.ParameterDict)
_NORMS = (nn.modules.batchnorm._NormBase, nn.LayerNorm, nn.GroupNorm, nn.RMSNorm)
_CONVOLUTIONS = nn.modules.conv._ConvNd


def is_layer(module: nn.Module) -> bool:
    """One of torch's own layers or a subclass of one (a convolution with standardised weights): never looked into.
    Containers and what only builds on them are not layers."""
    if isinstance(module, PLAIN_CONTAINERS):
        return False
    return any(kind.__module__.startswith(("torch.nn.", "torch.ao.nn.")) and kind not in _NO_LAYERS for kind in type(module).__mro__)


def is_norm(module: nn.Module) -> bool:
    """A normalisation layer: one of torch's, or one that is called so and has scale, shift or statistics of its own."""
    if isinstance(module, _NORMS):
        return True
    name = type(module).__name__
    return ("Norm" in name or name.upper().endswith("ABN")) and not isinstance(module, nn.Linear | _CONVOLUTIONS)


def is_linear(module: nn.Module) -> bool:
    """A linear layer, or a convolution that is one: 1x1 and not grouped."""
    if isinstance(module, nn.Linear):
        return True
    return isinstance(module, nn.Conv2d) and module.kernel_size == (1, 1) and module.groups == 1


def first_width(module: nn.Module) -> int | None:
    """How many channels a module's first layer expects; None for a module without layers."""
    for layer in module.modules():
        for name in ("in_features", "in_channels", "embed_dim") + (("num_features", "num_channels") if is_norm(layer) else ()):
            if isinstance(width := getattr(layer, name, None), int):
                return width
        if isinstance(layer, nn.LayerNorm):
            return int(layer.normalized_shape[-1])
    return None
