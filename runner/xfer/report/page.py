"""The page of a bundle: one HTML file that needs nothing else, made from the bundle's files alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jinja2

from xfer.data.dataset import Dataset
from xfer.engine.files import write_atomic
from xfer.report import bundle_files, epochs, evidence, moves, numbers, setting
from xfer.report.bundle_files import BundleFiles

HERE = Path(__file__).parent


def render(bundle: Path, *, dataset: Dataset | None = None) -> Path:
    """Writes `report.html` into the bundle and returns its path; raises BundleError where the folder is no bundle.

    Works for a run in any state: it shows what there is. `dataset`, where the caller has it open, gives the pictures of the
    mistakes; without it they are looked for as files.
    """
    files = bundle_files.read(bundle)
    page = bundle / "report.html"
    text = _template().render(**context(files, dataset))
    write_atomic(page, lambda partial: _fill(partial, text))
    return page


def _fill(partial: Path, text: str) -> None:
    partial.write_text(text, encoding="utf-8", errors="backslashreplace")


def context(files: BundleFiles, dataset: Dataset | None) -> dict[str, Any]:
    """All that the template shows."""
    return {
        "name": files.plan.name if files.plan else files.folder.resolve().parent.name,
        "identity": files.folder.resolve().name,
        "status": files.result.get("status", "unknown"),
        "error": setting.error_text(files.result.get("error")),
        "notes": files.notes,
        "summary": setting.summary(files),
        "facts": setting.facts(files),
        "phases": setting.phases(files),
        "splits": setting.splits(files),
        "timing": setting.timing(files),
        "environment": setting.flattened(files.lock),
        "recipe": files.recipe,
        "quarantine": files.quarantine,
        "score": evidence.score(files),
        "metrics": evidence.metrics_table(files),
        "curves": epochs.curve_figures(files),
        "keeps_best": epochs.keeps_best(files),
        "learning_rates": epochs.rate_figure(files),
        "moves": moves.table(files),
        "test": evidence.test_evidence(files, dataset),
        "style": (HERE / "style.css").read_text(encoding="utf-8"),
    }


def _template() -> jinja2.Template:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(HERE), autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters.update(
        fraction=numbers.fraction, interval=numbers.interval, count=numbers.count, parameters=numbers.parameters,
        seconds=numbers.seconds, per_second=numbers.per_second, rate=numbers.rate, plural=numbers.plural,
    )  # fmt: skip
    return environment.get_template("report.html.j2")
