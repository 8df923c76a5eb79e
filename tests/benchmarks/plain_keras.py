"""The plain script that people write for CIFAR-10 with a frozen MobileNetV2. Its last line is JSON, which only the benchmark reads.

    KERAS_HOME=... python plain_keras.py FOLDER SIDE EPOCHS
"""

import json
import pickle
import sys
import time

import keras
import numpy as np
import tensorflow as tf
from keras import layers
from keras.applications.mobilenet_v2 import MobileNetV2, preprocess_input


def load(folder, names):
    images, labels = [], []
    for name in names:
        with open(f"{folder}/{name}", "rb") as file:
            batch = pickle.load(file, encoding="bytes")
        images.append(batch[b"data"])
        labels += batch[b"labels"]
    return np.concatenate(images).reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1), np.array(labels)


class Clock(keras.callbacks.Callback):
    def on_train_begin(self, logs=None):
        self.seconds = []

    def on_epoch_begin(self, epoch, logs=None):
        self.start = time.perf_counter()

    def on_epoch_end(self, epoch, logs=None):
        self.seconds.append(time.perf_counter() - self.start)


def main(folder, side, epochs):
    x_train, y_train = load(folder, [f"data_batch_{i}" for i in range(1, 6)])
    x_test, y_test = load(folder, ["test_batch"])

    if side == 32:
        train = {"x": preprocess_input(x_train.astype("float32")), "y": y_train, "batch_size": 32}
        test = {"x": preprocess_input(x_test.astype("float32")), "y": y_test, "batch_size": 32}
    else:

        def prepare(image, label):
            return preprocess_input(tf.image.resize(image, (side, side))), label

        train = tf.data.Dataset.from_tensor_slices((x_train, y_train)).shuffle(len(x_train)).map(prepare, tf.data.AUTOTUNE)
        test = tf.data.Dataset.from_tensor_slices((x_test, y_test)).map(prepare, tf.data.AUTOTUNE)
        train, test = ({"x": data.batch(32).prefetch(tf.data.AUTOTUNE)} for data in (train, test))

    base = MobileNetV2(weights="imagenet", include_top=False, input_shape=(side, side, 3))
    base.trainable = False
    x = layers.GlobalAveragePooling2D()(base.output)
    x = layers.Dense(1024, activation="relu")(x)
    model = keras.Model(base.input, layers.Dense(10, activation="softmax")(x))
    model.compile(optimizer="adam", loss="sparse_categorical_crossentropy", metrics=["accuracy"])

    clock = Clock()
    history = model.fit(**train, epochs=epochs, callbacks=[clock])
    accuracy = model.evaluate(**test)[1]
    told = {"images": len(y_train), "seconds": clock.seconds, "losses": history.history["loss"], "test_accuracy": accuracy}
    told["trainable_parameters"] = sum(int(np.prod(variable.shape)) for variable in model.trainable_variables)
    print(json.dumps(told))


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
