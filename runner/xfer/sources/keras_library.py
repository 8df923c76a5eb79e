"""Keras on TensorFlow, as all Keras sources need it: found without an import, loaded with the settings that xfer relies on."""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from xfer.errors import MissingExtraError, UsageError

EXTRA = "pip install 'xfer-runner[tensorflow]'"


def library() -> str:
    """'keras 3.15.1', without importing it; raises MissingExtraError where it or TensorFlow is absent."""
    for name in ("tensorflow", "keras"):
        try:
            found = version(name)
        except PackageNotFoundError:
            raise MissingExtraError(f"{name} is not installed", hint=EXTRA) from None
    return f"keras {found}"


def keras() -> Any:
    """The module keras, channels last and in float32, whatever the user's keras.json says.

    Raises MissingExtraError, or UsageError where this process has loaded Keras for another framework already.
    """
    if "keras" not in sys.modules or "tensorflow" not in sys.modules:
        library()
        os.environ["KERAS_BACKEND"] = "tensorflow"
        os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
        # TensorFlow's own kernels, which processors without AVX-512 get by default, round by an image's place in its batch.
        os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")
        with quiet():
            import keras as module
            import tensorflow

            tensorflow.config.list_physical_devices("GPU")  # the first look for CUDA complains where there is none
    import keras as module

    if module.backend.backend() != "tensorflow":
        found = module.backend.backend()
        raise UsageError(f"Keras runs on {found} in this process, and xfer needs it on tensorflow", hint="set KERAS_BACKEND=tensorflow")
    module.config.set_image_data_format("channels_last")
    module.config.set_floatx("float32")
    return module


@contextmanager
def quiet() -> Iterator[None]:
    """Within it nothing reaches the process's stderr, unless an exception ends it: then all that was said is.

    TensorFlow 2.21 greets from C++ before its logging is set up (which kernels it uses, that there is no CUDA), and heeds
    TF_CPP_MIN_LOG_LEVEL only afterwards.
    """
    sys.stderr.flush()
    before = os.dup(2)
    with tempfile.TemporaryFile() as said:
        os.dup2(said.fileno(), 2)
        try:
            yield
        except BaseException:
            os.dup2(before, 2)
            said.seek(0)
            os.write(2, said.read())
            raise
        finally:
            os.dup2(before, 2)
            os.close(before)
