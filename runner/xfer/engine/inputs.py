"""A phase's input: rows at a cut, either read from the feature store or recomputed, the same bits both ways."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from xfer.backends.backend import Device, Network, Team
from xfer.data.decode import DECODING
from xfer.data.digests import content_digests
from xfer.data.pipeline import decoded
from xfer.data.store import FeatureStore, StoreSpec
from xfer.engine.extraction import Extraction, extract
from xfer.engine.reporter import Reporter
from xfer.engine.target import Target
from xfer.engine.team import ALONE, gathered
from xfer.engine.views import View
from xfer.errors import InterruptedRun
from xfer.plan.model_map import PIXELS
from xfer.plan.plan import InputPlan, Plan

Stop = Callable[[], bool]
EXTRACTED = "features were extracted; what is in the store is kept"
OpenStore = Callable[[Path, StoreSpec], FeatureStore]  # the cache folder and what the store holds


class Inputs:
    """Rows of the target at `plan.cut`. `prepare` must run first: it finds the unreadable images and, where the cut is stored,
    computes what the store lacks. `seconds` and `computed` say what that took."""

    def __init__(
        self,
        run: Plan,
        place: InputPlan,
        target: Target,
        network: Network,
        *,
        versions: dict[str, str],
        device: Device,
        contents: str,
        view: View | None = None,
        open_store: OpenStore = FeatureStore,
    ) -> None:
        self.run, self.place, self.target, self.network = run, place, target, network
        self.view = view
        self.make = view.make if view else None
        self.shape = view.shape if view else None
        self.batch = run.runtime.extraction_batch
        self.threads = decode_threads()
        self.seconds, self.computed = 0.0, 0
        self.store: FeatureStore | None = None
        if place.mode == "stored":
            key = store_key(run, place, network, versions=versions, device=device, contents=contents, view=view)
            spec = StoreSpec(key=key, rows=len(target.dataset), shape=place.shape, dtype=place.dtype, shard_rows=run.runtime.shard_rows)
            self.store = open_store(Path(run.runtime.cache), spec)

    def prepare(self, rows: np.ndarray, *, reporter: Reporter, stop: Stop, team: Team = ALONE) -> dict[int, str]:
        """Compute what is missing of `rows`; returns unreadable rows with their reasons. Raises InterruptedRun.

        The ranks of a team do it together: each decodes a part where there is no store, else claims and computes shards."""
        if self.store is None:
            own = np.array_split(self.target.unseen(rows), team.size)[team.rank]
            told = self._scan(own, reporter=reporter, stop=stop), 0, bool(len(own)) and stop()
        else:
            done = self._extract(self.store, rows, reporter=reporter, stop=stop)
            self.seconds += done.seconds
            told = done.bad, done.computed, stop()
        parts = gathered(team, told)
        self.computed += sum(computed for _, computed, _ in parts)
        if any(stopped for _, _, stopped in parts):
            raise InterruptedRun(f"stopped while {'images were read' if self.store is None else EXTRACTED}")
        self.target.seen(rows)
        return {row: reason for bad, _, _ in parts for row, reason in bad.items()}

    def _extract(self, store: FeatureStore, rows: np.ndarray, *, reporter: Reporter, stop: Stop) -> Extraction:
        missing = sum(len(part) for _, part in store.missing(rows))
        if missing:
            reporter.start(f"extracting features at {self.place.cut}", missing)
        done = extract(
            store,
            self.target.dataset,
            rows,
            preprocess=self.run.source.preprocess,
            compute=self._compute,
            batch=self.batch,
            threads=self.threads,
            progress=reporter.advance,
            stop=stop,
            make=self.make,
            shape=self.shape,
        )
        if missing:
            reporter.done()
        return done

    def _scan(self, rows: np.ndarray, *, reporter: Reporter, stop: Stop) -> dict[int, str]:
        """Without a store, unreadable images must still be known before training: decode each once."""
        bad: dict[int, str] = {}
        if not len(rows):
            return bad
        reporter.start("reading images", len(rows))
        for part in decoded(self.target.dataset, rows, self.run.source.preprocess, threads=self.threads, batch=self.batch):
            bad.update(dict(part.bad))
            reporter.advance(len(part.rows) + len(part.bad))
            if stop():
                return bad
        reporter.done()
        return bad

    def _compute(self, pixels: np.ndarray) -> np.ndarray:
        """uint8 [batch, crop, crop, 3] to rows at the cut; always the one padded batch shape."""
        if self.place.cut == PIXELS:
            return pixels
        return self.network.compute(pixels, start=PIXELS, end=self.place.cut, pooled=self.place.pooled)

    def from_pixels(self, pixels: np.ndarray) -> np.ndarray:
        """uint8 [k, crop, crop, 3] of at most one batch to rows [k, *shape] at the cut."""
        n_rows = len(pixels)
        if n_rows < self.batch and self.place.cut != PIXELS:
            pixels = np.concatenate([pixels, np.repeat(pixels[-1:], self.batch - n_rows, axis=0)])
        return self._compute(pixels)[:n_rows]

    def batches(self, rows: np.ndarray, size: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """(rows, inputs [k, *shape]) in the order of `rows`, `size` at a time, the last as short as it comes."""
        if self.store is not None:
            for first in range(0, len(rows), size):
                part = rows[first : first + size]
                yield part, self.store.take(part)
            return
        yield from rebatch(self._streamed(rows), size)

    def _streamed(self, rows: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        preprocess = self.run.source.preprocess
        for part in decoded(
            self.target.dataset, rows, preprocess, threads=self.threads, batch=self.batch, make=self.make, shape=self.shape
        ):
            if len(part.rows):
                yield part.rows, self.from_pixels(part.pixels)


def rebatch(parts: Iterator[tuple[np.ndarray, np.ndarray]], size: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """The same rows in the same order, `size` at a time."""
    held: list[tuple[np.ndarray, np.ndarray]] = []
    n_held = 0
    for rows, values in parts:
        held.append((rows, values))
        n_held += len(rows)
        while n_held >= size:
            all_rows, all_values = (np.concatenate(arrays) for arrays in zip(*held, strict=True))
            yield all_rows[:size], all_values[:size]
            held, n_held = [(all_rows[size:], all_values[size:])], n_held - size
    if n_held:
        all_rows, all_values = (np.concatenate(arrays) for arrays in zip(*held, strict=True))
        yield all_rows, all_values


def store_key(
    run: Plan, place: InputPlan, network: Network, *, versions: dict[str, str], device: Device, contents: str, view: View | None = None
) -> dict[str, Any]:
    """All that the rows at a cut depend on. At cut 0 that is the images and how they are decoded."""
    preprocess = run.source.preprocess.model_dump(mode="json")
    key: dict[str, Any] = {"contents": contents, "cut": place.cut, "shape": list(place.shape), "dtype": place.dtype}
    key |= {"view": view.key if view else "clean", "decoding": DECODING}
    if place.cut == PIXELS:
        decode = {name: preprocess[name] for name in ("resize", "crop", "stretch", "interpolation")}
        return {**key, "decode": decode, "versions": {"pillow": versions.get("pillow", "")}}
    groups = run.model.groups[: run.model.cut(place.cut).groups_before]
    names = [tensor.name for group in groups for tensor in group.tensors]
    digests = network.digests(names)
    tensors = hashlib.blake2b("".join(digests[name] for name in names).encode(), digest_size=16).hexdigest()
    return {
        **key,
        "model": run.source.model,
        "pooled": place.pooled,
        "preprocess": preprocess,
        "tensors": tensors,
        "graph": network.signature(PIXELS, place.cut),
        "precision": run.runtime.precision,
        "batch": run.runtime.extraction_batch,
        "device": device.kind,
        "versions": versions,
    }


def contents_digest(target: Target, *, cache: Path) -> str:
    """One digest over the content of every image of the dataset, readable or not."""
    parts = content_digests(target.dataset, cache=cache, threads=decode_threads())
    return hashlib.blake2b("".join(parts).encode(), digest_size=16).hexdigest()


def decode_threads() -> int:
    """As many as this process may use: Pillow lets go of the interpreter while it decodes and resizes."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
