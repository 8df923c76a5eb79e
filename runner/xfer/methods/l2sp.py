"""L2-SP: fine-tuning that is drawn back to the source's weights instead of to zero."""

from __future__ import annotations

import functools
import operator

from xfer.methods.method import Method, Seen
from xfer.ops import arrays
from xfer.ops.arrays import Array


class L2SP(Method):
    """Adds alpha/2 · ||w_S - w_S⁰||² + beta/2 · ||w_H||² to the loss, w_S the trained weights that the source has too, w_S⁰ their
    values there, and w_H those of the new head (Li, Grandvalet & Davoine 2018, "Explicit inductive bias for transfer learning with
    convolutional networks", equation 3). It takes the place of weight decay: leave `optimizer.weight_decay` at 0 beside it.
    """

    type = "model"

    def __init__(self, *, alpha: float = 0.1, beta: float = 0.01) -> None:
        """The defaults are the values that the paper used most."""
        self.alpha, self.beta = alpha, beta

    def loss(self, seen: Seen) -> Array:
        """A scalar."""
        return seen.task_loss() + penalty(seen, alpha=self.alpha, beta=self.beta)


def penalty(seen: Seen, *, alpha: float, beta: float) -> Array:
    """The two terms beside the cross entropy."""
    terms = [0.5 * alpha * arrays.reduce_sum(arrays.square(weight - seen.source[name])) for name, weight in seen.trained.items()]
    terms += [0.5 * beta * arrays.reduce_sum(arrays.square(weight)) for weight in seen.head.values()]
    return functools.reduce(operator.add, terms, 0.0)
