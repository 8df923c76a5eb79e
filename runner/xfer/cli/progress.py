"""Progress in the terminal: one bar with images/s and time left, a line an epoch; nothing without a terminal."""

from __future__ import annotations

from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, Task, TaskID, TextColumn, TimeRemainingColumn
from rich.text import Text


class Speed(ProgressColumn):
    """Units per second."""

    def render(self, task: Task) -> Text:
        return Text(f"{task.finished_speed or task.speed or 0:,.0f} {task.fields.get('unit', 'images')}/s")


class Terminal:
    """Implements `xfer.engine.reporter.Reporter` on stderr. `quiet` leaves warnings only."""

    def __init__(self, *, quiet: bool) -> None:
        self.console = Console(stderr=True, highlight=False)
        self.quiet = quiet
        self.drawn = not quiet and self.console.is_terminal
        self.progress: Progress | None = None
        self.task: TaskID | None = None

    def start(self, task: str, total: int, *, unit: str = "images") -> None:
        if not self.drawn:
            if not self.quiet:
                self.console.print(f"{task}: {total:,} {unit}", soft_wrap=True, markup=False)
            return
        columns = (
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            TextColumn("{task.percentage:>3.0f}%"),
            Speed(),
            TimeRemainingColumn(),
        )
        self.progress = Progress(*columns, console=self.console, speed_estimate_period=10)
        self.progress.start()
        self.task = self.progress.add_task(task, total=total, unit=unit)

    def advance(self, n: int) -> None:
        if self.progress is not None and self.task is not None:
            self.progress.advance(self.task, n)

    def done(self) -> None:
        if self.progress is not None:
            self.progress.stop()
            self.progress = None

    def epoch(self, record: dict[str, Any]) -> None:
        if self.quiet:
            return
        text = f"  epoch {record['epoch'] + 1:>3}/{record['epochs']}"
        text += f"  train loss {record['train_loss']:.4f} accuracy {record['train_accuracy']:.4f}"
        if "val_loss" in record:
            text += f"  val loss {record['val_loss']:.4f} accuracy {record['val_accuracy']:.4f}"
        self.say(text)

    def note(self, text: str) -> None:
        if not self.quiet:
            self.say(text)

    def warn(self, text: str) -> None:
        self.say(f"warning: {text}")

    def say(self, text: str) -> None:
        (self.progress.console if self.progress else self.console).print(text, soft_wrap=True, markup=False)
