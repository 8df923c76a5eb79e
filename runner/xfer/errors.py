"""Every exception that xfer raises on purpose, and the exit code that each one means.

    XferError                      exit 1: the run failed; what it had is kept
    ├── UsageError                 exit 2: the recipe, what it names, or the command line is wrong
    │   ├── RecipeError            one or more faults of a recipe, each with its place
    │   ├── DataError              the dataset can't be used as asked
    │   │   └── AbsentDataError    its files are not there yet, and can be downloaded
    │   ├── WeightsError           weights are absent, don't fit, or are not safe to read
    │   ├── MissingExtraError      a framework that this recipe needs is not installed
    │   └── BundleError            a folder is not a bundle, or can't be resumed
    ├── FrozenChangedError         a tensor that had to stay frozen changed
    ├── DivergedError              the loss stopped being a number
    ├── DiskFullError              no room left for the cache or the bundle
    ├── MemoryFullError            the device has not the memory that a computation asked for
    ├── StoreError                 the feature store can't be read or written
    └── InterruptedRun             exit 130: stopped by a signal, can be resumed

Each takes one positional argument, the message; everything else is a keyword with a default, so that pickling works by itself.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

EXIT_DONE = 0
EXIT_FAILED = 1
EXIT_USAGE = 2
EXIT_INTERRUPTED = 130


@dataclass(frozen=True)
class Fault:
    """One thing that is wrong in a recipe, at its place.

    >>> str(Fault("r.yaml", 14, 3, "freeze[0].trian", "unknown key", "train"))
    "r.yaml:14:3: freeze[0].trian: unknown key; did you mean 'train'?"
    >>> str(Fault(None, None, None, "optimizer.lrr=1", "unknown key", "lr"))
    "command line: optimizer.lrr=1: unknown key; did you mean 'lr'?"
    """

    file: str | None
    line: int | None
    column: int | None
    path: str
    message: str
    suggestion: str | None = None

    def __str__(self) -> str:
        place = "command line"
        if self.file is not None:
            place = ":".join(str(part) for part in (self.file, self.line, self.column) if part is not None)
        text = f"{place}: {self.path}: {self.message}" if self.path else f"{place}: {self.message}"
        return f"{text}; did you mean '{self.suggestion}'?" if self.suggestion else text

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


class XferError(Exception):
    """The run failed. `hint` says what to do next."""

    exit_code = EXIT_FAILED

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        super().__init__(message)
        self.hint = hint

    @property
    def message(self) -> str:
        return str(self.args[0])


class UsageError(XferError):
    """The recipe, what it names, or the command line is wrong: found before anything was paid for."""

    exit_code = EXIT_USAGE


class RecipeError(UsageError):
    """Faults of a recipe, all that were found. `str()` is one fault a line."""

    def __init__(self, message: str = "", *, faults: tuple[Fault, ...] = (), hint: str | None = None) -> None:
        super().__init__(message or "\n".join(str(fault) for fault in faults), hint=hint)
        self.faults = tuple(faults)


class DataError(UsageError):
    """The dataset can't be used as asked. `path` is where in the recipe it is named."""

    def __init__(self, message: str, *, path: str = "target", hint: str | None = None) -> None:
        super().__init__(message, hint=hint)
        self.path = path


class AbsentDataError(DataError):
    """The dataset's files are not there yet, and can be downloaded: `announced` (a `xfer.data.announced.Announced`) says from where, and
    what is known without them. `xfer check` and `xfer plan` go on with that, `xfer run` and `xfer fetch` download."""

    def __init__(self, message: str, *, announced: Any = None, path: str = "target", hint: str | None = None) -> None:
        super().__init__(message, path=path, hint=hint)
        self.announced = announced


class WeightsError(UsageError):
    """Weights are absent, don't fit the network, or are not safe to read."""

    def __init__(self, message: str, *, path: str = "source.weights", hint: str | None = None) -> None:
        super().__init__(message, hint=hint)
        self.path = path


class MissingExtraError(UsageError):
    """A framework that this recipe needs is not installed."""


class BundleError(UsageError):
    """A folder is not a bundle, or can't be resumed."""


class FrozenChangedError(XferError):
    """A tensor that had to stay frozen changed; `tensors` names each."""

    def __init__(self, message: str, *, tensors: tuple[str, ...] = (), hint: str | None = None) -> None:
        super().__init__(message, hint=hint)
        self.tensors = tuple(tensors)


class DivergedError(XferError):
    """The loss stopped being a finite number."""


class DiskFullError(XferError):
    """No room left for the cache or the bundle; whatever was complete is kept."""


class MemoryFullError(XferError):
    """The device has not the memory that a computation asked for."""


class StoreError(XferError):
    """The feature store can't be read or written."""


class InterruptedRun(XferError):
    """Stopped by a signal after the step was finished and saved; can be resumed."""

    exit_code = EXIT_INTERRUPTED
