"""`xfer stop`: a job ends after its step, and its bundle can be gone on with."""

from __future__ import annotations

import json

import click

from xfer.cli.conventions import json_option
from xfer.cli.jobs_command import cluster_options, way_to
from xfer.cluster.jobs import STOP_SECONDS, Jobs
from xfer.errors import XferError

MARGIN_SECONDS = 10  # for Ray to notice


@click.command("stop")
@click.argument("job")
@cluster_options
@json_option
def command(job: str, address: str | None, allow_http: bool, as_json: bool) -> None:
    """Stop JOB: its run finishes the step, saves, and can be resumed."""
    jobs = Jobs(way_to(address, allow_http=allow_http))
    asked = jobs.stop(job)
    if asked:
        click.echo(f"stopping {job} after its step", err=True)
    ended = jobs.wait(job, seconds=STOP_SECONDS + MARGIN_SECONDS if asked else 0)
    if not ended.has_ended:
        raise XferError(f"{job} was asked to stop and is still {ended.status.lower()}", hint="ask again, or look at 'xfer jobs'")
    if as_json:
        click.echo(json.dumps({**ended.as_dict(), "stopped": asked}, indent=1))
    else:
        click.echo(f"{job} is stopped" if asked else f"{job} had ended already: {ended.status.lower()}", err=True)
