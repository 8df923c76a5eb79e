"""`model.predict` over tensors that are ready in memory, for the ceiling that extraction is measured against. Prints JSON: images/s by
the size of a batch, Keras's own 32 and the one that xfer extracts in; graphs are made before the time is taken.

    KERAS_HOME=... python bare_keras_predict.py FOLDER SIDE N_IMAGES BATCH
"""

from __future__ import annotations

import json
import sys
import time

import tensorflow as tf
from keras.applications.mobilenet_v2 import MobileNetV2, preprocess_input
from plain_keras import load

KERAS_BATCH = 32
MOST_READY_BYTES = 2**29  # beyond it the images are predicted in several calls: the cost does not hang on what is in them


def main(folder: str, side: int, n_images: int, batch: int) -> None:
    images, _ = load(folder, [f"data_batch_{number}" for number in range(1, 6)])
    images = images[: min(n_images, MOST_READY_BYTES // (side * side * 3 * 4))]
    ready = preprocess_input(tf.image.resize(images, (side, side)).numpy())
    model = MobileNetV2(weights="imagenet", include_top=False, pooling="avg", input_shape=(side, side, 3))
    rates = {}
    for size in sorted({KERAS_BATCH, batch}):
        model.predict(ready[: size + size // 2], batch_size=size, verbose=0)
        start, done = time.perf_counter(), 0
        while done < n_images:
            done += len(model.predict(ready[: n_images - done], batch_size=size, verbose=0))
        rates[size] = n_images / (time.perf_counter() - start)
    print(json.dumps(rates))


if __name__ == "__main__":
    main(sys.argv[1], *(int(argument) for argument in sys.argv[2:]))
