from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from xfer.errors import DataError


@pytest.fixture
def refusal() -> Callable[..., tuple[str, str, str | None]]:
    """Calls a dataset plugin and returns where its DataError is placed, the message and the hint."""

    def refused(plugin: Callable[..., Any], *arguments: Any, **options: Any) -> tuple[str, str, str | None]:
        with pytest.raises(DataError) as error:
            plugin(*arguments, **options)
        return error.value.path, error.value.message, error.value.hint

    return refused
