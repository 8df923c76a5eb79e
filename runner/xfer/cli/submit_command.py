"""`xfer submit`: a recipe runs on a cluster as it runs here; its log, its exit code and its bundle's address come back."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

import click
from click.core import ParameterSource

from xfer.cli.conventions import in_the_recipe, json_option, run_id
from xfer.cli.jobs_command import cluster_options, warn, way_to
from xfer.cluster import kuberay
from xfer.cluster.jobs import OWN_FAILURES, RECIPE, RUN, Job, Jobs, Log
from xfer.cluster.pack import Package, gather, write
from xfer.cluster.preflight import preflight
from xfer.cluster.submission import Submission, address_of, submission, take
from xfer.cluster.submission import command as shell_command
from xfer.errors import EXIT_DONE, EXIT_INTERRUPTED, UsageError, XferError
from xfer.recipe.loader import read


@click.command("submit")
@click.argument("recipe", type=click.Path(path_type=Path))
@click.argument("overrides", nargs=-1, metavar="[KEY=VALUE]...")
@cluster_options
@click.option("--workers", type=click.IntRange(min=1), help="Workers, in place of the recipe's cluster.workers.")
@click.option("--gpus-per-worker", type=click.FloatRange(min=0), help="In place of the recipe's cluster.gpus_per_worker.")
@click.option("--storage", metavar="PLACE", help="Where the bundle goes: a folder that every node has, or a URL.")
@click.option("--no-wait", is_flag=True, help="Print the job's id and leave it alone.")
@click.option("--kuberay", "as_manifest", is_flag=True, help="Write a KubeRay RayJob manifest instead of submitting.")
@click.option("--output", type=click.Path(path_type=Path, dir_okay=False), help="The manifest's file (default: stdout).")
@click.option("--image", help="The manifest's container image, which holds xfer (default: xfer-runner:VERSION).")
@click.option("--namespace", help="The manifest's namespace.")
@json_option
def command(
    recipe: Path,
    overrides: tuple[str, ...],
    address: str | None,
    allow_http: bool,
    workers: int | None,
    gpus_per_worker: float | None,
    storage: str | None,
    no_wait: bool,
    as_manifest: bool,
    output: Path | None,
    image: str | None,
    namespace: str | None,
    as_json: bool,
) -> int:
    """Run RECIPE, with overrides, on a Ray cluster.

    What travels are the recipe, the recipes that it extends and its local plugins. The last line on stdout is the bundle's address: a
    place in the storage, or HOST:FOLDER where there is none ($XFER_RUNS there, or ~/xfer/runs).
    """
    if not as_manifest and (output or image or namespace):
        raise UsageError("--output, --image and --namespace are the manifest's, and need --kuberay beside them")
    if as_manifest and (no_wait or as_json):
        raise UsageError("--kuberay submits nothing, so --no-wait and --json mean nothing beside it")
    if as_manifest and (allow_http or click.get_current_context().get_parameter_source("address") is ParameterSource.COMMANDLINE):
        raise UsageError("--kuberay speaks to no cluster, so --address and --allow-http mean nothing beside it")
    overrides += in_the_recipe(workers=workers, gpus_per_worker=gpus_per_worker, storage=storage)
    reading = read(recipe, overrides)
    if as_manifest:
        package = kuberay.gather_for_config_map(reading)
        text = kuberay.manifest(submission(reading), package, overrides, run_id=run_id(), image=image, namespace=namespace)
        return _write_manifest(text, output)
    way = way_to(address, allow_http=allow_http)
    package = gather(reading, forbidden=way.token.text if way.token else None)
    sent = submission(reading)
    jobs = Jobs(way)
    job = _queue(jobs, sent, package, overrides)
    click.echo(f"job: {job}", err=True)
    if no_wait:
        click.echo(_how(job, jobs.address), err=True)
        click.echo(json.dumps({"job": job, "address": jobs.address}, indent=1) if as_json else job)
        return EXIT_DONE
    return _follow(jobs, job, sent, as_json=as_json)


def _queue(jobs: Jobs, sent: Submission, package: Package, overrides: tuple[str, ...]) -> str:
    """Look around on the cluster, then start the job; returns its id."""
    click.echo(f"looking around at {jobs.address}", err=True)
    found = preflight(jobs, package, sent.wanted(package.recipe, overrides), warn=warn)
    options = sent.options(runs=found.runs, run_id=run_id())
    cpus, gpus = take(found, is_spread=sent.is_spread)
    with tempfile.TemporaryDirectory() as folder:
        write(package, Path(folder), beside={})
        return jobs.submit(
            shell_command(options, package.recipe, overrides),
            folder=Path(folder),
            cpus=cpus,
            gpus=gpus,
            metadata={RECIPE: package.recipe, RUN: sent.name},
        )


def _follow(jobs: Jobs, job: str, sent: Submission, *, as_json: bool) -> int:
    """The job's log on stderr until it has ended; returns the run's exit code."""
    log = Log()

    def show(text: str) -> None:
        for line in log.feed(text):
            click.echo(line, err=True)

    try:
        ended = jobs.follow(job, piece=show)
    except KeyboardInterrupt:
        click.echo(f"\n{job} goes on\n{_how(job, jobs.address)}", err=True)
        return EXIT_INTERRUPTED
    for line in log.end():
        click.echo(line, err=True)
    bundle = address_of(log.bundle, host=ended.host, storage=sent.storage) if log.bundle else None
    if as_json:
        code = ended.run_exit_code
        click.echo(json.dumps({"job": job, "address": jobs.address, "status": ended.status, "exit_code": code, "bundle": bundle}, indent=1))
    _say_end(ended, bundle, jobs.address)
    if ended.run_exit_code == EXIT_DONE and not as_json:
        click.echo(bundle)
    return ended.run_exit_code


def _say_end(ended: Job, bundle: str | None, address: str) -> None:
    """What a person needs where it did not end well; raises XferError for a run that says nothing of its bundle."""
    code = ended.run_exit_code
    if code == EXIT_DONE:
        if bundle is None:
            raise XferError(f"{ended.job} succeeded, and its log does not say where the bundle is", hint=f"xfer logs {ended.job}")
        return
    if ended.status == "FAILED" and ended.exit_code not in OWN_FAILURES:
        click.echo(f"error: {ended.job} failed: {ended.reason}", err=True)
    elif code == EXIT_INTERRUPTED:
        click.echo(f"{ended.job} was stopped", err=True)
    if bundle is not None:
        click.echo(f"what there is of the bundle: {bundle}", err=True)
    click.echo(f"its full log: xfer logs {ended.job} --address {address}", err=True)


def _how(job: str, address: str) -> str:
    return f"follow it: xfer logs {job} --address {address} --follow\nstop it:   xfer stop {job} --address {address}"


def _write_manifest(text: str, output: Path | None) -> int:
    if output is None:
        click.echo(text, nl=False)
        return EXIT_DONE
    try:
        output.write_text(text, encoding="utf-8")
    except OSError as error:
        raise UsageError(f"--output: {output.absolute()} can't be written: {(error.strerror or str(error)).lower()}") from None
    click.echo(f"submit it: kubectl apply --server-side -f {output}", err=True)
    click.echo(str(output.absolute()))
    return EXIT_DONE
