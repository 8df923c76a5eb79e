"""Operations called to see whether they take images of some size: what they raise then, and what it says."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager

import tensorflow as tf

# What Keras and TensorFlow raise where a size doesn't suit an operation.
RUN_ERRORS = (ArithmeticError, AssertionError, AttributeError, LookupError, RuntimeError, TypeError, ValueError, tf.errors.OpError)


class Refused(Exception):
    """A network can't take such images; the message is its own word on it, one line."""


@contextmanager
def refusals() -> Iterator[None]:
    """Within it only the network's own code should run: what that raises becomes Refused."""
    try:
        yield
    except RUN_ERRORS as error:
        raise Refused(reason(error)) from error


def reason(error: BaseException) -> str:
    """What an error says, in one line: Keras tells of the layer's call around it, and writes the point itself in bold.

    >>> reason(ValueError("Exception encountered when calling Conv2D.call().\\n\\n\\x1b[1mToo small.\\x1b[0m\\n\\nArguments: …"))
    'Too small.'
    """
    lines = [re.sub(r"\x1b\[\d*m", "", line).strip() for line in str(error).splitlines()]
    told = [line for line in lines if line and not line.startswith("Exception encountered when calling")]
    return told[0] if told else type(error).__name__
