"""The plain script that people write to fine-tune all of MobileNetV2 with Keras, over arrays that are ready in memory. Its last line is
JSON, which only the benchmark reads.

    KERAS_HOME=... python plain_keras_finetune.py FOLDER SIDE EPOCHS
"""

import json
import sys

import keras
import numpy as np
import tensorflow as tf
from keras import layers
from keras.applications.mobilenet_v2 import MobileNetV2, preprocess_input
from plain_keras import Clock, load


def main(folder, side, epochs):
    x_train, y_train = load(folder, [f"data_batch_{i}" for i in range(1, 6)])
    x_train = preprocess_input(tf.image.resize(x_train, (side, side)).numpy())

    base = MobileNetV2(weights="imagenet", include_top=False, input_shape=(side, side, 3))
    x = layers.GlobalAveragePooling2D()(base.output)
    x = layers.Dense(1024, activation="relu")(x)
    model = keras.Model(base.input, layers.Dense(10, activation="softmax")(x))
    model.compile(optimizer=keras.optimizers.Adam(1e-4), loss="sparse_categorical_crossentropy", metrics=["accuracy"])

    clock = Clock()
    history = model.fit(x_train, y_train, batch_size=32, epochs=epochs, callbacks=[clock])
    told = {"images": len(y_train), "seconds": clock.seconds, "losses": history.history["loss"]}
    told["trainable_parameters"] = sum(int(np.prod(variable.shape)) for variable in model.trainable_variables)
    print(json.dumps(told))


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
