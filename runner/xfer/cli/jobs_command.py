"""`xfer jobs`: what was submitted to a cluster; and what the verbs that speak to one share."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from datetime import datetime
from typing import Any, TypeVar

import click
from rich.table import Table

from xfer.cli.conventions import json_option, print_table
from xfer.cluster.authentication import EXAMPLE, Access, access
from xfer.cluster.jobs import Job, Jobs

Function = TypeVar("Function", bound=Callable[..., Any])


def cluster_options(function: Function) -> Function:
    """The options that say which cluster, and how it may be spoken to."""
    function = click.option("--allow-http", is_flag=True, help="Speak plain http to another machine without a token.")(function)
    return click.option(
        "--address", metavar="URL", envvar="RAY_API_SERVER_ADDRESS", show_envvar=True, help=f"The cluster's dashboard: {EXAMPLE}."
    )(function)


def way_to(address: str | None, *, allow_http: bool) -> Access:
    """The way to the cluster of `--address`; raises UsageError."""
    return access(address, allow_http=allow_http, warn=warn)


def warn(text: str) -> None:
    click.echo(f"warning: {text}", err=True)


@click.command("jobs")
@cluster_options
@json_option
def command(address: str | None, allow_http: bool, as_json: bool) -> None:
    """List the jobs of a cluster, the newest first."""
    jobs = Jobs(way_to(address, allow_http=allow_http))
    found = jobs.all()
    if as_json:
        click.echo(json.dumps({"address": jobs.address, "jobs": [job.as_dict() for job in found]}, indent=1))
    elif found:
        print_table(table(found, time.time()))
    else:
        click.echo(f"no job at {jobs.address}", err=True)


def table(jobs: Sequence[Job], now: float) -> Table:
    """One line a job."""
    found = Table(box=None, pad_edge=False)
    for name in ("job", "status", "exit code", "recipe", "host", "started", "duration"):
        found.add_column(name, justify="right" if name in ("exit code", "duration") else "left", no_wrap=True)
    for job in jobs:
        started = f"{datetime.fromtimestamp(job.started):%Y-%m-%d %H:%M}" if job.started else ""
        code = "" if job.exit_code is None else str(job.exit_code)
        duration = duration_text((job.ended or now) - job.started) if job.started else ""
        found.add_row(job.job, job.status.lower(), code, job.recipe or job.entrypoint[:40], job.host or "", started, duration)
    return found


def duration_text(seconds: float) -> str:
    """Hours, minutes and seconds.

    >>> duration_text(59.6), duration_text(3725)
    ('0:59', '1:02:05')
    """
    minutes, rest = divmod(int(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02}:{rest:02}" if minutes >= 60 else f"{minutes}:{rest:02}"
