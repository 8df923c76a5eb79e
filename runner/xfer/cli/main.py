"""The `xfer` command: finds the verb's file and imports only that one; turns our errors into exit codes."""

from __future__ import annotations

import importlib
import io
import sys
from typing import Any

import click

from xfer.errors import EXIT_FAILED, EXIT_INTERRUPTED, EXIT_USAGE, RecipeError, XferError

VERBS = {
    "run": "Run a recipe: extract features once, train, test, write a bundle.",
    "check": "Report every fault of one or more recipes, without running anything.",
    "plan": "Show what a recipe will do, without training.",
    "fetch": "Download what a recipe needs ahead of time.",
    "submit": "Run a recipe on a Ray cluster.",
    "jobs": "List the jobs of a cluster.",
    "logs": "Print a job's log, or follow it.",
    "stop": "Stop a job after its step.",
    "eval": "Evaluate a bundle on its test split or on other data.",
    "predict": "Classify images with a bundle's model.",
    "parity": "Run a recipe on PyTorch and on TensorFlow, and say where they differ.",
    "layers": "Show a model's groups, stages and cuts.",
    "list": "List models, datasets, methods, freezes (the policies), recipes or runs.",
    "cache": "Look at the feature store, or clear it.",
    "schema": "Write the recipe's JSON Schema, for editors.",
    "doctor": "Show versions, hardware and settings that matter.",
}


class LazyGroup(click.Group):
    """A verb is imported when it is called: `xfer --help` loads nothing else."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(VERBS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in VERBS:
            return None
        return importlib.import_module(f"xfer.cli.{cmd_name}_command").command  # type: ignore[no-any-return]

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl(list(VERBS.items()))


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="xfer-runner", prog_name="xfer")
def cli() -> None:
    """Transfer learning from a recipe: one YAML file, one command, an honest result."""


def main(arguments: list[str] | None = None) -> None:
    """Entry point: exit codes 0 done, 1 the run failed, 2 usage, 130 interrupted."""
    if isinstance(sys.stdout, io.TextIOWrapper) and sys.stdout.errors == "strict":
        sys.stdout.reconfigure(errors="backslashreplace")  # as stderr: a sign that a terminal hasn't, or a file name, is no failure
    sys.exit(run(arguments))


def run(arguments: list[str] | None = None) -> int:
    """As `main`, but returns the exit code."""
    try:
        result: Any = cli.main(args=arguments, prog_name="xfer", standalone_mode=False)
        return result if isinstance(result, int) else 0
    except click.exceptions.Exit as stop:
        return stop.exit_code
    except click.ClickException as fault:
        fault.show()
        return EXIT_USAGE
    except XferError as error:
        say(error)
        return error.exit_code
    except (KeyboardInterrupt, click.exceptions.Abort):
        click.echo("interrupted", err=True)
        return EXIT_INTERRUPTED
    except BrokenPipeError:
        return EXIT_FAILED
    except OSError as error:
        if not _stdout_refuses():
            raise
        click.echo(f"error: standard output can't be written: {(error.strerror or str(error)).lower()}", err=True)
        return EXIT_FAILED


def _stdout_refuses() -> bool:
    """Whether the failure was standard output's, on a full disk say: a line's end, which harms no other output, fails there too."""
    try:
        click.echo()
    except OSError:
        return True
    return False


def say(error: XferError) -> None:
    """The error and its hint on stderr, never wrapped."""
    click.echo(error.message if isinstance(error, RecipeError) else f"error: {error.message}", err=True)
    if error.hint:
        click.echo(f"  {error.hint}", err=True)
