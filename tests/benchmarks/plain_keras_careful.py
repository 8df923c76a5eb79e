"""What a careful user of Keras writes instead: the frozen base once over all images, then the head alone. Its last line is JSON, which
only the benchmark reads.

    KERAS_HOME=... python plain_keras_careful.py FOLDER SIDE EPOCHS
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
    x_test, y_test = load(folder, ["test_batch"])
    base = MobileNetV2(weights="imagenet", include_top=False, pooling="avg", input_shape=(side, side, 3))

    def features(images):
        def prepare(image):
            return preprocess_input(tf.image.resize(image, (side, side)))

        data = tf.data.Dataset.from_tensor_slices(images).map(prepare, tf.data.AUTOTUNE)
        return base.predict(data.batch(32).prefetch(tf.data.AUTOTUNE))

    x_train, x_test = features(x_train), features(x_test)
    model = keras.Sequential([layers.Input((1280,)), layers.Dense(1024, activation="relu"), layers.Dense(10, activation="softmax")])
    model.compile(optimizer="adam", loss="sparse_categorical_crossentropy", metrics=["accuracy"])
    clock = Clock()
    history = model.fit(x_train, y_train, batch_size=32, epochs=epochs, callbacks=[clock])
    accuracy = model.evaluate(x_test, y_test)[1]
    told = {"images": len(y_train), "seconds": clock.seconds, "losses": history.history["loss"], "test_accuracy": accuracy}
    told["trainable_parameters"] = sum(int(np.prod(variable.shape)) for variable in model.trainable_variables)
    print(json.dumps(told))


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
