"""`xfer logs`: all that a job printed, Ray's own lines too."""

from __future__ import annotations

import json

import click

from xfer.cli.conventions import json_option
from xfer.cli.jobs_command import cluster_options, way_to
from xfer.cluster.jobs import Jobs
from xfer.errors import EXIT_DONE, EXIT_INTERRUPTED


@click.command("logs")
@click.argument("job")
@cluster_options
@click.option("--follow", is_flag=True, help="Go on until the job has ended; the exit code is the run's.")
@json_option
def command(job: str, address: str | None, allow_http: bool, follow: bool, as_json: bool) -> int:
    """Print the log of JOB."""
    jobs = Jobs(way_to(address, allow_http=allow_http))
    if follow:
        try:
            jobs.info(job)
            ended = jobs.follow(job, piece=lambda text: click.echo(text, nl=False, err=as_json))
        except KeyboardInterrupt:
            click.echo(f"{job} goes on", err=True)
            return EXIT_INTERRUPTED
        if as_json:
            click.echo(json.dumps(ended.as_dict(), indent=1))
        return ended.run_exit_code
    log = jobs.log(job)
    if as_json:
        click.echo(json.dumps({**jobs.info(job).as_dict(), "log": log}, indent=1))
    else:
        click.echo(log, nl=False)
    return EXIT_DONE
