"""Ray jobs of a cluster: submit one, follow its log, ask how it ended, stop it.

The job runs `xfer run` as a person would, in a folder that holds what `pack` gathered; its exit code is the run's.
"""

from __future__ import annotations

import asyncio
import logging
import os
import re
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from xfer.cluster.authentication import Access, reach
from xfer.errors import EXIT_DONE, EXIT_FAILED, EXIT_INTERRUPTED, EXIT_USAGE, MissingExtraError, UsageError, XferError
from xfer.plugins import nearest

OVERRULES = ("RAY_ADDRESS", "RAY_API_SERVER_ADDRESS")  # either would take the place of the address that the person gave
QUIET = ("ray.dashboard.modules.dashboard_sdk", "ray.dashboard.modules.job.sdk", "ray._private.runtime_env.packaging")
NOT_LEFT_OUT = {"RAY_OVERRIDE_RUNTIME_ENV_DEFAULT_EXCLUDES": ""}  # a package holds what its job needs, in a folder called venv too
STOP_SECONDS = 60  # a stopped run finishes its step and saves; Ray would kill it after 3
STOPS_WITHIN = {"RAY_JOB_STOP_WAIT_TIME_S": str(STOP_SECONDS)}
RECIPE, RUN, PREFLIGHT = "xfer.recipe", "xfer.name", "xfer.preflight"  # keys of a job's metadata
OWN_FAILURES = (EXIT_FAILED, EXIT_USAGE, EXIT_INTERRUPTED)  # a run that ends so has said why
ENDED = ("SUCCEEDED", "FAILED", "STOPPED")
ATTEMPTS = 5  # to find a connection again that broke while a log was followed
POLL_SECONDS = 0.5
RAY_NOISE = re.compile(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d+\s+(INFO|DEBUG) \w+\.py:\d+ -- |Running entrypoint for job [\w.-]+: ")
BUNDLE, MIRRORED = "bundle: ", "mirrored: "  # how `xfer run` says on stderr where its bundle will be, and its copy on an object store


@dataclass(frozen=True)
class Job:
    """What is known of a job. `host` is where it runs or ran; times are seconds since 1970."""

    job: str
    status: str
    exit_code: int | None
    recipe: str | None
    name: str | None
    entrypoint: str
    host: str | None
    started: float | None
    ended: float | None
    message: str | None

    @property
    def has_ended(self) -> bool:
        return self.status in ENDED

    @property
    def run_exit_code(self) -> int:
        """The run's own exit code: 0, 1, 2 or 130; whatever else ended the job is 1."""
        if self.status == "STOPPED":
            return EXIT_INTERRUPTED
        if self.status == "SUCCEEDED":
            return EXIT_DONE
        return self.exit_code if self.exit_code in OWN_FAILURES else EXIT_FAILED

    @property
    def reason(self) -> str:
        """Why it failed, where that does not stand at the end of its log."""
        if self.exit_code is None:
            return (self.message or "the cluster does not say why").strip().splitlines()[0]
        signal = -self.exit_code if self.exit_code < 0 else self.exit_code - 128
        return f"it was killed by signal {signal}" if 0 < signal < 65 else f"it ended with exit code {self.exit_code}"

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


class Log:
    """A log as it comes in pieces: whole lines without Ray's own, and the bundle's address where a run tells it."""

    def __init__(self) -> None:
        self.bundle: str | None = None
        self._rest = ""

    def feed(self, text: str) -> Iterator[str]:
        """The lines that are complete now, to be shown; the address is noted as they pass."""
        *lines, self._rest = (self._rest + text).split("\n")
        for line in lines:
            yield from self._shown(line)

    def end(self) -> Iterator[str]:
        rest, self._rest = self._rest, ""
        if rest:
            yield from self._shown(rest)

    def _shown(self, line: str) -> Iterator[str]:
        for begin in (BUNDLE, MIRRORED):  # in that order; the copy is the one that others reach
            if line.startswith(begin):
                self.bundle = line.removeprefix(begin).strip()
        if not RAY_NOISE.match(line):
            yield line


class Jobs:
    """The jobs of the cluster behind a dashboard. Every method raises UsageError or XferError with one sentence."""

    def __init__(self, way: Access) -> None:
        self.address = way.address
        reach(way)  # says in its own words what is wrong with address or token
        try:
            import aiohttp  # noqa: F401 - with requests what ray[default] brings beside ray
            import requests  # noqa: F401
            from ray.job_submission import JobSubmissionClient
        except ImportError as error:
            raise MissingExtraError(f"{error.name} is not installed", hint="pip install 'xfer-runner[cluster]'") from None
        for name in QUIET:
            logging.getLogger(name).setLevel(logging.WARNING)
        with _speaking(self.address), _environment(dict.fromkeys(OVERRULES)):
            self._client: Any = JobSubmissionClient(way.address, headers=way.headers)

    def submit(
        self,
        entrypoint: str,
        *,
        folder: Path,
        cpus: float = 0,
        gpus: float = 0,
        metadata: Mapping[str, str] | None = None,
    ) -> str:
        """Upload `folder` and start a job in it; returns the job's id. Without cpus and gpus it runs on the head."""
        with _speaking(self.address), _environment(NOT_LEFT_OUT):
            return str(
                self._client.submit_job(
                    entrypoint=entrypoint,
                    runtime_env={"working_dir": str(folder), "env_vars": dict(STOPS_WITHIN)},
                    entrypoint_num_cpus=cpus or None,
                    entrypoint_num_gpus=gpus or None,
                    metadata=dict(metadata or {}),
                )
            )

    def info(self, job: str) -> Job:
        if job.strip("."):  # else it is the address of the list of all jobs
            with _speaking(self.address):
                try:
                    return _job(self._client.get_job_info(job))
                except RuntimeError as error:
                    if "status code 404" not in str(error):
                        raise
        known = [each.job for each in self.all()]
        guess = nearest(job, known)
        raise UsageError(
            f"no job '{job}' at {self.address}" + (f"; did you mean '{guess}'?" if guess else ""), hint="'xfer jobs' lists those there are"
        )

    def all(self) -> list[Job]:
        """Every job that was submitted and is still known to the cluster, the newest first; those that only look around are left out.
        (To delete them would be cleaner, but Ray notes them again as failed if that is done soon after their end.)"""
        with _speaking(self.address):
            listed = self._client.list_jobs()
        found = [_job(each) for each in listed if each.submission_id is not None and PREFLIGHT not in (each.metadata or {})]
        return sorted(found, key=lambda job: job.started or 0.0, reverse=True)

    def log(self, job: str) -> str:
        """All that the job printed so far."""
        self.info(job)
        with _speaking(self.address):
            return str(self._client.get_job_logs(job))

    def follow(self, job: str, *, piece: Callable[[str], None]) -> Job:
        """Tell the log to `piece` as it grows, until the job has ended; returns how it did. A broken connection is taken up again where it
        broke. KeyboardInterrupt passes through and leaves the job as it is."""
        received, left = 0, ATTEMPTS
        while True:
            before = received
            try:
                received, is_whole = asyncio.run(self._tail(job, received, piece)), True
            except _Broken as broken:
                received, is_whole = broken.received, False
            now = self._now_or_none(job)
            left = ATTEMPTS if received > before or (is_whole and now is not None) else left - 1
            if now is not None and now.has_ended and (is_whole or left == 0):
                return now
            if left == 0:
                raise XferError(
                    f"the connection to {self.address} broke while the job {job} ran; it may go on there",
                    hint=f"xfer logs {job} --address {self.address} --follow",
                )
            time.sleep(POLL_SECONDS * 2 ** (ATTEMPTS - left))

    def wait(self, job: str, *, seconds: float) -> Job:
        """The job when it has ended, or as it is when the time is over."""
        until = time.monotonic() + seconds
        while True:
            now = self.info(job)
            if now.has_ended or time.monotonic() > until:
                return now
            time.sleep(POLL_SECONDS)

    def stop(self, job: str) -> bool:
        """Ask the job to end; False if it had ended already."""
        if self.info(job).has_ended:
            return False
        with _speaking(self.address):
            return bool(self._client.stop_job(job))

    async def _tail(self, job: str, skip: int, piece: Callable[[str], None]) -> int:
        """The log from character `skip` on; returns how much there was of it."""
        import aiohttp

        seen, pieces = 0, aiter(self._client.tail_job_logs(job))
        while True:
            try:
                text = await anext(pieces, None)
            except (aiohttp.ClientError, RuntimeError, OSError):
                raise _Broken(max(seen, skip)) from None
            if text is None:
                return max(seen, skip)
            new = text[max(0, skip - seen) :]
            seen += len(text)
            if new:
                piece(new)  # outside the try: a reader of ours that has gone is no broken connection

    def _now_or_none(self, job: str) -> Job | None:
        """None where the cluster does not answer."""
        try:
            return self.info(job)
        except UsageError:
            raise
        except XferError:
            return None


class _Broken(Exception):
    """The connection broke when so many characters of the log had come."""

    def __init__(self, received: int) -> None:
        super().__init__(received)
        self.received = received


def _job(details: Any) -> Job:
    metadata = details.metadata or {}
    return Job(
        job=details.submission_id,
        status=str(details.status),
        exit_code=details.driver_exit_code,
        recipe=metadata.get(RECIPE),
        name=metadata.get(RUN),
        entrypoint=details.entrypoint,
        host=urlsplit(details.driver_agent_http_address).hostname if details.driver_agent_http_address else None,
        started=details.start_time / 1000 if details.start_time else None,
        ended=details.end_time / 1000 if details.end_time else None,
        message=details.message,
    )


@contextmanager
def _speaking(address: str) -> Iterator[None]:
    """What Ray's client and the libraries below it raise, as one sentence."""
    from ray.exceptions import AuthenticationError
    from requests.exceptions import RequestException

    try:
        yield
    except AuthenticationError:
        raise UsageError(f"the cluster at {address} does not take the token any more") from None
    except (RequestException, ConnectionError) as error:
        raise XferError(f"the connection to the cluster at {address} broke: {type(error).__name__}") from None
    except RuntimeError as error:
        raise XferError(f"the cluster at {address} refuses: {str(error).strip().splitlines()[0]}") from None


@contextmanager
def _environment(values: Mapping[str, str | None]) -> Iterator[None]:
    """Environment variables as they are to be for a moment; None: not set."""
    aside = {name: os.environ.pop(name) for name in values if name in os.environ}
    os.environ.update({name: value for name, value in values.items() if value is not None})
    try:
        yield
    finally:
        for name in values:
            os.environ.pop(name, None)
        os.environ.update(aside)
