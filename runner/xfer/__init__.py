"""Transfer learning from a recipe: one YAML file, one command, an honest result.

Importing this loads no framework and reads nothing from disk.
"""

from __future__ import annotations

__all__ = ["__version__"]


def __getattr__(name: str) -> str:
    """`__version__` is looked up when asked for: reading a distribution's metadata costs more than all the rest of this import."""
    if name == "__version__":
        from importlib.metadata import version

        return version("xfer-runner")
    raise AttributeError(f"module 'xfer' has no attribute '{name}'")
