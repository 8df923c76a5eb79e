"""Decode and resize every image of a folder through xfer's own pipeline, and nothing else. Prints images/s.

    python decode_only.py FOLDER BATCH THREADS
"""

from __future__ import annotations

import sys
import time

import numpy as np

from xfer.data.datasets.folder import folder
from xfer.data.pipeline import decoded
from xfer.plan.preprocess import Preprocess


def main(path: str, batch: int, threads: int) -> None:
    dataset = folder(None, path=path)
    preprocess = Preprocess(resize=256, crop=224, interpolation="bilinear")
    start = time.perf_counter()
    n_images = sum(len(part.rows) for part in decoded(dataset, np.arange(len(dataset)), preprocess, threads=threads, batch=batch))
    print(n_images / (time.perf_counter() - start))


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
