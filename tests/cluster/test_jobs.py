"""What a job's end means, and what of its log is shown. With a real cluster: test_submit.py."""

from __future__ import annotations

import asyncio
import os

import pytest

from xfer.cluster.jobs import ATTEMPTS, Job, Jobs, Log
from xfer.errors import UsageError, XferError


def job(status: str = "FAILED", *, exit_code: int | None = None, message: str | None = None) -> Job:
    return Job("raysubmit_1", status, exit_code, "r.yaml", "r", "xfer run r.yaml", "10.0.0.5", 1.0, 2.0, message)


@pytest.mark.parametrize(
    ("status", "code", "run_exit_code"),
    [
        ("SUCCEEDED", 0, 0),
        ("FAILED", 1, 1),
        ("FAILED", 2, 2),
        ("FAILED", 130, 130),
        ("STOPPED", None, 130),
        ("FAILED", 137, 1),
        ("FAILED", -9, 1),
        ("FAILED", 127, 1),
        ("FAILED", None, 1),
    ],
)
def test_the_exit_code_is_the_run_s(status, code, run_exit_code):
    assert job(status, exit_code=code).run_exit_code == run_exit_code


@pytest.mark.parametrize("status", ["PENDING", "RUNNING", "SUCCEEDED", "FAILED", "STOPPED"])
def test_which_have_ended(status):
    assert job(status).has_ended is (status in {"SUCCEEDED", "FAILED", "STOPPED"})


@pytest.mark.parametrize(
    ("code", "message", "reason"),
    [
        (137, "Job entrypoint command failed", "it was killed by signal 9"),
        (-11, None, "it was killed by signal 11"),
        (127, None, "it ended with exit code 127"),
        (None, "runtime_env setup failed: no room\nTraceback", "runtime_env setup failed: no room"),
        (None, None, "the cluster does not say why"),
    ],
)
def test_why_it_failed(code, message, reason):
    assert job(exit_code=code, message=message).reason == reason


LOG = """\
2026-11-24 18:28:26,515\tINFO job_manager.py:581 -- Runtime env is setting up.
Running entrypoint for job raysubmit_T18sa5: cd files && exec python3 -P -m xfer.cli run r.yaml
bundle: /root/xfer/runs/r/1

2026-11-24 18:28:27,001\tWARNING worker.py:1 -- this node has no room left
extracting features at pooled: 1,797 images
/root/xfer/runs/r/1
"""
SHOWN = [
    "bundle: /root/xfer/runs/r/1",
    "",
    "2026-11-24 18:28:27,001\tWARNING worker.py:1 -- this node has no room left",
    "extracting features at pooled: 1,797 images",
    "/root/xfer/runs/r/1",
]


def test_a_package_goes_up_whole(tmp_path, monkeypatch):
    """Ray leaves out folders of some names by itself, and the package may hold a recipe in one of them."""
    from ray._private.ray_constants import get_runtime_env_default_excludes

    class Client:
        def submit_job(self, **_):
            return ",".join(get_runtime_env_default_excludes())

    jobs = Jobs.__new__(Jobs)
    jobs._client, jobs.address = Client(), "http://127.0.0.1:8265"
    variable = "RAY_OVERRIDE_RUNTIME_ENV_DEFAULT_EXCLUDES"
    for before in ("venv,mine", None):
        monkeypatch.setenv(variable, before) if before else monkeypatch.delenv(variable)
        assert jobs.submit("true", folder=tmp_path) == ""
        assert os.environ.get(variable) == before


@pytest.mark.parametrize("name", ["", "."])
def test_no_name_is_no_job(name):
    """`xfer logs "$JOB"` without such a variable; Ray would answer with a list of all jobs."""

    class Client:
        def list_jobs(self):
            return []

    jobs = Jobs.__new__(Jobs)
    jobs._client, jobs.address = Client(), "http://127.0.0.1:8265"
    with pytest.raises(UsageError) as caught:
        jobs.info(name)
    assert caught.value.message == f"no job '{name}' at http://127.0.0.1:8265"


def test_a_reader_that_has_gone_is_no_broken_connection():
    """`xfer logs --follow | head`: what our own stdout raises comes out, and the log is not asked for again."""

    class Client:
        async def tail_job_logs(self, job):
            yield "bundle: /runs/r/1\n"

    jobs = Jobs.__new__(Jobs)
    jobs._client = Client()

    def gone(text):
        raise BrokenPipeError

    with pytest.raises(BrokenPipeError):
        asyncio.run(jobs._tail("raysubmit_1", 0, gone))


def test_a_cluster_that_answers_no_more_is_given_up(monkeypatch):
    """Though each time the log ends as if it were whole."""
    monkeypatch.setattr("xfer.cluster.jobs.POLL_SECONDS", 0.001)
    asked = []

    class Client:
        async def tail_job_logs(self, job):
            yield "bundle: /runs/r/1\n"

        def get_job_info(self, job):
            asked.append(job)
            raise ConnectionError

    jobs = Jobs.__new__(Jobs)
    jobs._client, jobs.address = Client(), "http://127.0.0.1:8265"
    with pytest.raises(XferError, match="broke while the job raysubmit_1 ran"):
        jobs.follow("raysubmit_1", piece=lambda text: None)
    assert len(asked) == ATTEMPTS + 1  # the first answer had brought some of the log


@pytest.mark.parametrize("size", [1, 7, 100, 10_000])
def test_the_log_is_shown_without_ray_s_own_lines_however_it_comes(size):
    log = Log()
    lines = [line for start in range(0, len(LOG), size) for line in log.feed(LOG[start : start + size])]
    assert [*lines, *log.end()] == SHOWN
    assert log.bundle == "/root/xfer/runs/r/1"


def test_a_bundle_that_is_mirrored_is_the_mirror_for_others():
    log = Log()
    lines = ["bundle: /root/xfer/runs/r/1", "mirrored: s3://bucket/xfer/runs/r/1"]
    assert list(log.feed("".join(f"{line}\n" for line in lines))) == lines
    assert log.bundle == "s3://bucket/xfer/runs/r/1"


def test_a_last_line_without_an_end_is_shown():
    log = Log()
    assert list(log.feed("killed")) == []
    assert list(log.end()) == ["killed"]
    assert list(log.end()) == []
    assert log.bundle is None
