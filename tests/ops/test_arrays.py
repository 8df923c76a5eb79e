"""Every operation on numpy arrays, on tensors of both frameworks and against numbers worked out here, and its gradient against finite
differences."""

from __future__ import annotations

import inspect
import math

import numpy as np
import pytest
import tensorflow as tf
import torch

from xfer.ops import arrays

RANDOM = np.random.default_rng(0)
X = RANDOM.normal(size=(2, 3, 4))
Y = RANDOM.normal(size=(2, 4, 5))
POSITIVE = np.abs(X) + 0.1


def loop_log_softmax(x):
    """By math.log and math.exp, one row at a time."""
    flat = x.reshape(-1, x.shape[-1])
    rows = [[value - math.log(sum(math.exp(other) for other in row)) for value in row] for row in flat]
    return np.array(rows).reshape(x.shape)


# operation -> (arguments in numpy, what must come out)
CASES = {
    "reduce_sum": [((X,), sum(X.ravel())), ((X, 1), X[:, 0] + X[:, 1] + X[:, 2]), ((X, (0, 2)), X[0].sum(-1) + X[1].sum(-1))],
    "reduce_mean": [((X,), sum(X.ravel()) / 24), ((X, -1), (X @ np.ones(4)) / 4), ((X, (1, 2)), (X.reshape(2, 12) @ np.ones(12)) / 12)],
    "square": [((X,), X**2)],
    "exp": [((X,), np.vectorize(math.exp)(X))],
    "log": [((POSITIVE,), np.vectorize(math.log)(POSITIVE))],
    "sqrt": [((POSITIVE,), POSITIVE**0.5)],
    "tanh": [((X,), np.vectorize(math.tanh)(X))],
    "relu": [((X,), np.where(X > 0, X, 0))],
    "matmul": [((X, Y), np.einsum("bij,bjk->bik", X, Y)), ((X[0], Y[0]), np.einsum("ij,jk->ik", X[0], Y[0]))],
    "transpose": [((X,), np.einsum("bij->bji", X)), ((X[0],), X[0].T)],
    "reshape": [((X, (6, 4)), X.ravel().reshape(6, 4)), ((X, [4, -1]), X.ravel().reshape(4, 6))],
    "concat": [(([X, X + 1],), np.vstack([X, X + 1])), (([X, POSITIVE], 2), np.dstack([X, POSITIVE])), (((X,), -1), X)],
    "log_softmax": [((X,), loop_log_softmax(X)), ((X + 1000,), loop_log_softmax(X)), ((X - 1000,), loop_log_softmax(X))],
    "softmax": [((X,), np.exp(loop_log_softmax(X))), ((X * 0,), np.full_like(X, 0.25))],
    "one_hot": [((np.array([2, 0]), 3), np.array([[0, 0, 1], [1, 0, 0]])), ((np.zeros(0, np.int64), 2), np.zeros((0, 2)))],
    "zeros_like": [((X,), np.zeros((2, 3, 4)))],
    "ones_like": [((X,), np.ones((2, 3, 4)))],
    "stop_gradient": [((X,), X)],
    "reverse_gradient": [((X, 0.3), X), ((X, 1.0), X), ((X, 0.0), X)],
    "l2_normalise": [((X,), X / np.sqrt((X**2).sum(-1, keepdims=True))), ((np.zeros((2, 3)),), np.zeros((2, 3)))],
}
FLAT = [(name, *case) for name, cases in CASES.items() for case in cases]
SLOPES = [name for name in CASES if name not in ("one_hot", "zeros_like", "ones_like", "stop_gradient", "reverse_gradient")]


def as_torch(value, dtype=torch.float64):
    if isinstance(value, np.ndarray):
        tensor = torch.from_numpy(value.copy())
        return tensor.to(dtype) if tensor.is_floating_point() else tensor
    return type(value)(as_torch(item, dtype) for item in value) if isinstance(value, list | tuple) else value


def as_tensorflow(value, dtype=tf.float64):
    if isinstance(value, np.ndarray):
        return tf.constant(value, dtype if value.dtype == np.float64 else None)
    return type(value)(as_tensorflow(item, dtype) for item in value) if isinstance(value, list | tuple) else value


def in_a_graph(operation, arguments, dtype=tf.float64):
    """The operation as a step's graph has it: how many rows there are is not known."""
    given = as_tensorflow(arguments, dtype)
    tensors = [tensor for tensor in tf.nest.flatten(given) if tf.is_tensor(tensor)]

    def run(*fed):
        fed = iter(fed)
        return operation(*tf.nest.map_structure(lambda item: next(fed) if tf.is_tensor(item) else item, given))

    spec = [tf.TensorSpec([None, *tensor.shape[1:]], tensor.dtype) for tensor in tensors]
    return tf.function(run, autograph=False, input_signature=spec)(*tensors)


def test_each_operation_has_a_case():
    public = {
        name for name, value in vars(arrays).items() if inspect.isfunction(value) and value.__module__ == arrays.__name__ and name[0] != "_"
    }
    assert public == set(CASES) | {"library", "is_tensorflow"}


@pytest.mark.parametrize(("name", "arguments", "expected"), FLAT)
def test_numpy_and_torch_give_what_it_is_defined_as(name, arguments, expected):
    operation = getattr(arrays, name)
    on_numpy, on_torch = operation(*arguments), operation(*as_torch(arguments))
    assert isinstance(on_numpy, np.ndarray | np.floating)
    assert isinstance(on_torch, torch.Tensor)
    for found in (on_numpy, on_torch.numpy()):
        assert np.shape(found) == np.shape(expected)
        np.testing.assert_allclose(found, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(("name", "arguments", "expected"), FLAT)
def test_float32_stays_float32(name, arguments, expected):
    on_torch = getattr(arrays, name)(*as_torch(arguments, torch.float32))
    halved = [value.astype(np.float32) if isinstance(value, np.ndarray) and value.dtype == np.float64 else value for value in arguments]
    if name == "concat":
        halved[0] = [value.astype(np.float32) for value in arguments[0]]
    on_numpy = getattr(arrays, name)(*halved)
    assert (on_torch.dtype, on_numpy.dtype) == (torch.float32, np.float32)
    np.testing.assert_allclose(on_torch.numpy(), expected, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(on_numpy, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("name", "arguments", "expected"), FLAT)
def test_tensorflow_gives_the_same_at_once_and_in_a_graph(name, arguments, expected):
    operation = getattr(arrays, name)
    for dtype, accuracy in ((tf.float64, 1e-12), (tf.float32, 1e-4)):
        for found in (operation(*as_tensorflow(arguments, dtype)), in_a_graph(operation, arguments, dtype)):
            assert tf.is_tensor(found)
            assert found.dtype == (tf.float32 if name == "one_hot" else dtype)
            assert tuple(found.shape) == np.shape(expected)
            np.testing.assert_allclose(found, expected, rtol=accuracy, atol=accuracy)


@pytest.mark.parametrize("framework", ["torch", "tensorflow"])
@pytest.mark.parametrize("name", SLOPES)
def test_gradients_are_those_of_the_numpy_function(name, framework):
    """A framework's gradient against central differences of the same operation on numpy."""
    arguments, expected = CASES[name][0]
    weights = np.random.default_rng(1).normal(size=np.shape(expected))
    first = arguments[0][0] if name == "concat" else arguments[0]
    rest = arguments[1:]

    def of(x, wrap):
        given = [x, wrap(arguments[0][1])] if name == "concat" else x
        return getattr(arrays, name)(given, *(wrap(value) for value in rest))

    if framework == "torch":
        x = as_torch(first).requires_grad_()
        (of(x, as_torch) * as_torch(np.asarray(weights))).sum().backward()
        found = x.grad.numpy()
    else:
        x = tf.Variable(first)  # as weights come
        with tf.GradientTape() as tape:
            total = tf.reduce_sum(of(x, as_tensorflow) * weights)
        found = tape.gradient(total, x).numpy()
    slope, step = np.zeros_like(first), 1e-6
    for place in np.ndindex(*first.shape):
        high, low = first.copy(), first.copy()
        high[place] += step
        low[place] -= step
        slope[place] = np.sum((of(high, lambda value: value) - of(low, lambda value: value)) * weights) / (2 * step)
    np.testing.assert_allclose(found, slope, rtol=1e-6, atol=1e-7)


def test_a_stopped_gradient_is_none():
    x = as_torch(X).requires_grad_()
    stopped = arrays.stop_gradient(x)
    assert not stopped.requires_grad
    (stopped * x).sum().backward()
    torch.testing.assert_close(x.grad, as_torch(X))  # only the factor that was not stopped


@pytest.mark.parametrize("strength", [0.0, 0.3, 1.0, 2.5, 100.0])
def test_a_reversed_gradient(strength):
    """Ganin & Lempitsky 2015, equation 4: the identity forward, minus strength times the gradient on the way back."""
    x, weights = as_torch(X).requires_grad_(), as_torch(Y)
    plain = arrays.square(arrays.matmul(x, weights)).sum()
    (wanted,) = torch.autograd.grad(plain, x)
    turned = arrays.square(arrays.matmul(arrays.reverse_gradient(x, strength), weights)).sum()
    (found,) = torch.autograd.grad(turned, x)
    torch.testing.assert_close(turned, plain)
    torch.testing.assert_close(found, -strength * wanted)


def test_a_reversed_gradient_leaves_what_stands_behind_it():
    """The discriminator after it learns as ever; only what lies before it is turned."""
    x, weights = as_torch(X).requires_grad_(), as_torch(Y).requires_grad_()
    arrays.square(arrays.matmul(arrays.reverse_gradient(x, 0.5), weights)).sum().backward()
    behind = weights.grad.clone()
    weights.grad = None
    arrays.square(arrays.matmul(x.detach(), weights)).sum().backward()
    torch.testing.assert_close(behind, weights.grad)


def test_extremes_stay_finite():
    far = np.array([[1e4, -1e4, 0.0]])
    for x in (far, as_torch(far).requires_grad_()):
        assert np.isfinite(np.asarray(arrays.log_softmax(x).tolist())).all()
        assert arrays.softmax(x).tolist() == [[1.0, 0.0, 0.0]]
    nothing = torch.zeros(1, 3, requires_grad=True)
    arrays.reduce_sum(arrays.l2_normalise(nothing)).backward()
    assert bool(torch.isfinite(nothing.grad).all())


def test_epsilon_of_l2_normalise_bounds_a_tiny_row():
    tiny = np.array([[1e-3, 0.0]])
    for x in (tiny, as_torch(tiny)):
        assert np.asarray(arrays.l2_normalise(x, 3e-6))[0, 0] == pytest.approx(0.5)  # 1e-3 / sqrt(1e-6 + 3e-6)


def test_arrays_of_one_kind_have_a_library_and_others_none():
    assert arrays.library(torch.nn.Parameter(torch.zeros(1))) is torch
    assert [arrays.library(value) for value in (X, X[0, 0, 0], 1.0, 2)] == [np] * 4
    assert not arrays.is_tensorflow(X)
    for wrong in ([1.0], "text", None):
        with pytest.raises(TypeError, match=f"^no array: builtins.{type(wrong).__name__}$"):
            arrays.library(wrong)


@pytest.mark.parametrize("strength", [0.3, 1.0, 20.0, 1000.0])
def test_a_reversed_gradient_passes_on_the_same_bits(strength):
    x = torch.from_numpy(np.random.default_rng(0).normal(size=1000).astype(np.float32))
    assert torch.equal(arrays.reverse_gradient(x, strength), x)


# the same of TensorFlow


def test_a_stopped_gradient_is_none_on_tensorflow():
    x = tf.constant(X)
    with tf.GradientTape() as tape:
        tape.watch(x)
        stopped = arrays.stop_gradient(x)
        total = tf.reduce_sum(stopped * x)
    np.testing.assert_array_equal(tape.gradient(total, x), X)  # only the factor that was not stopped
    with tf.GradientTape() as tape:
        tape.watch(x)
        total = tf.reduce_sum(arrays.stop_gradient(x))
    assert tape.gradient(total, x) is None


@pytest.mark.parametrize("graph", [False, True], ids=["at once", "in a graph"])
@pytest.mark.parametrize("strength", [0.0, 0.3, 1.0, 100.0])
def test_a_reversed_gradient_on_tensorflow(strength, graph):
    """The strength may be a number or, as what follows from a step's progress, a tensor; what stands behind learns as ever."""

    def slopes(x, weights, strength):
        with tf.GradientTape() as tape:
            tape.watch([x, weights])
            total = tf.reduce_sum(arrays.square(arrays.matmul(x if strength is None else arrays.reverse_gradient(x, strength), weights)))
        return total, tape.gradient(total, [x, weights])

    run = tf.function(slopes, autograph=False) if graph else slopes
    x, weights = tf.constant(X), tf.constant(Y)
    plain, (before, behind) = run(x, weights, None)
    for given in (strength, tf.constant(strength, tf.float64)):
        turned, (before_turned, behind_turned) = run(x, weights, given)
        np.testing.assert_array_equal(turned, plain)
        np.testing.assert_allclose(before_turned, -strength * before, rtol=1e-12)
        np.testing.assert_array_equal(behind_turned, behind)


@pytest.mark.parametrize("strength", [0.3, 1.0, 20.0, 1000.0])
def test_a_reversed_gradient_passes_on_the_same_bits_on_tensorflow(strength):
    x = tf.constant(np.random.default_rng(0).normal(size=1000), tf.float32)
    run = tf.function(lambda x: arrays.reverse_gradient(x, strength))
    assert x.numpy().tobytes() == arrays.reverse_gradient(x, strength).numpy().tobytes() == run(x).numpy().tobytes()


def test_extremes_stay_finite_on_tensorflow():
    far = tf.constant([[1e4, -1e4, 0.0]])
    assert np.isfinite(arrays.log_softmax(far)).all()
    assert arrays.softmax(far).numpy().tolist() == [[1.0, 0.0, 0.0]]
    nothing = tf.Variable(tf.zeros((1, 3)))
    with tf.GradientTape() as tape:
        total = arrays.reduce_sum(arrays.l2_normalise(nothing))
    assert np.isfinite(tape.gradient(total, nothing)).all()


def test_variables_of_both_kinds_are_tensorflow_s():
    import keras

    for value in (tf.Variable([1.0]), keras.Variable([1.0]), tf.constant([1.0])):
        assert arrays.library(value) is tf
        assert arrays.is_tensorflow(value)
