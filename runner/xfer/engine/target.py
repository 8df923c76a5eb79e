"""The target's data while a run goes on: rows by split, unreadable images left out, test labels shut until they are opened."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from xfer.compile.data_facts import open_dataset, split
from xfer.data.dataset import Dataset
from xfer.data.digests import listing_digest
from xfer.engine.bundle import Bundle
from xfer.errors import DataError
from xfer.plan.plan import DataPlan


class Target:
    """Rows are indices into the dataset; `bad` maps those that could not be read to the reason."""

    def __init__(self, dataset: Dataset, splits: np.ndarray, plan: DataPlan) -> None:
        self.dataset, self.plan = dataset, plan
        self._splits = splits
        self.bad: dict[int, str] = {}
        self._seen = np.zeros(len(dataset), bool)

    @classmethod
    def open(cls, plan: DataPlan, *, dataset: Dataset | None = None) -> Target:
        """Raises DataError where the dataset (opened anew if it is not given) is not the one that was planned with."""
        dataset = dataset or open_dataset(plan.target, plan.dataset, plan.options)
        if listing_digest(dataset) != plan.listing:
            raise DataError(
                f"the dataset changed since the plan was made: {len(dataset)} images now, {plan.images} then, or other names or labels",
                hint="start a new run with the recipe; what is in the feature store is kept for images that stayed",
            )
        return cls(dataset, split(dataset, val=plan.val, test=plan.test, seed=plan.split_seed), plan)

    @property
    def all_rows(self) -> np.ndarray:
        return np.arange(len(self.dataset), dtype=np.int64)

    def seen(self, rows: np.ndarray) -> None:
        """These rows were read, or tried: the unreadable ones among them are known."""
        self._seen[rows] = True

    def unseen(self, rows: np.ndarray) -> np.ndarray:
        """Those of `rows` that nobody tried to read yet."""
        left: np.ndarray = rows[~self._seen[rows]]
        return left

    def rows(self, name: str) -> np.ndarray:
        """Usable rows of a split, in the dataset's order."""
        rows = np.flatnonzero(self._splits == name).astype(np.int64)
        return rows[~np.isin(rows, list(self.bad))] if self.bad else rows

    def labels(self, rows: np.ndarray) -> np.ndarray:
        """Labels of training and validation rows; a test row's label is never given here."""
        if (self._splits[rows] == "test").any():
            raise AssertionError("test labels are shut: open_test records the opening first")
        labels: np.ndarray = self.dataset.labels[rows]
        return labels

    def open_test(self, bundle: Bundle, *, reason: str) -> tuple[np.ndarray, np.ndarray]:
        """(rows, labels) of the test split, after the opening was written to the bundle's ledger."""
        rows = self.rows("test")
        bundle.ledger(reason, images=len(rows))
        return rows, self.dataset.labels[rows]

    def quarantine(self, bad: Mapping[int, str], bundle: Bundle) -> None:
        """Leave unreadable images out; raises DataError where they are more than `max_bad`, or a class is gone."""
        self.bad.update(bad)
        named = {self.dataset.keys[row]: reason for row, reason in sorted(self.bad.items())}
        bundle.write_quarantine(named)
        limit = self.plan.max_bad * len(self.dataset)
        if len(named) > limit:
            listed = "\n".join(f"  {key}: {reason}" for key, reason in list(named.items())[:20])
            more = f"\n  and {len(named) - 20} more" if len(named) > 20 else ""
            raise DataError(
                f"{len(named)} of {len(self.dataset)} images can't be read, more than target.max_bad = {self.plan.max_bad:g} allows:"
                f"\n{listed}{more}",
                path="target.max_bad",
                hint=f"mend or remove them (all are listed in {bundle.folder / 'quarantine.csv'}), or raise target.max_bad",
            )
        left = set(self.dataset.labels[self.rows("train")].tolist())
        gone = [name for label, name in enumerate(self.dataset.classes) if label not in left]
        if gone:
            raise DataError(
                f"no readable training image is left of class {', '.join(gone)}", hint=f"see {bundle.folder / 'quarantine.csv'}"
            )
