"""What FedProx and SCAFFOLD add to a client's training, as functions of vectors.

A SCAFFOLD variate is another output of the client's data: it is accounted for like an update, and with LoRA
it is meaningful only where the trained factors add up (`ffa`, `fedsb`).

Source: Li et al. 2020, arXiv:1812.06127 (FedProx); Karimireddy et al. 2020, arXiv:1910.06378 (SCAFFOLD).
"""

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

Values = NDArray[np.float64]


def proximal_gradient(weights: Tensor, start: Tensor, *, strength: float) -> Tensor:
    """Return mu (w - w_t), FedProx's addition to a gradient: the derivative of (mu / 2) |w - w_t|^2.

    A function of the weights alone. Under DP-SGD it is added to the noised step and never to the gradient of
    an example, so that it moves no sensitivity.

    Args:
        weights: trained values now, any shape.
        start: the same values when the round began.
        strength: mu, finite and at least 0.
    Raises:
        ValueError: shapes differ, or mu is out of range.
    """
    if not 0.0 <= strength < math.inf:
        raise ValueError("a proximal strength is finite and at least 0")
    if weights.shape != start.shape:
        raise ValueError("the proximal term is of two values of one shape")
    return strength * (weights - start)


def corrected_gradient(gradient: Values, own: Values, shared: Values) -> Values:
    """Return g - c_i + c, shape (d,): SCAFFOLD's step direction."""
    _require_alike(gradient, own, shared)
    corrected: Values = gradient - own + shared
    return corrected


def next_own_variate(
    own: Values, shared: Values, *, start: Values, end: Values, steps: int, rate: float
) -> Values:
    """Return c_i+ = c_i - c + (w_t - w_i) / (K eta), shape (d,) (option II of the paper).

    Args:
        own: c_i.
        shared: c.
        start: w_t, the model that the client began with.
        end: w_i, its model after K steps.
        steps: K, at least 1.
        rate: eta, the client's learning rate, positive.
    Raises:
        ValueError: shapes differ, or K or eta is out of range.
    """
    if steps < 1 or not 0.0 < rate < math.inf:
        raise ValueError("a variate needs at least one step and a positive rate")
    _require_alike(own, shared, start, end)
    fresh: Values = own - shared + (start - end) / (steps * rate)
    return fresh


def next_shared_variate(shared: Values, changes: Sequence[Values], *, population: int) -> Values:
    """Return c + (|S| / N) mean(c_i+ - c_i) = c + sum of changes / N, shape (d,).

    Args:
        shared: c.
        changes: c_i+ - c_i of the cohort S, in the order of client ids.
        population: N, at least |S|.
    Raises:
        ValueError: shapes differ, or the cohort is empty or larger than the population.
    """
    if not 1 <= len(changes) <= population:
        raise ValueError("a cohort has at least one client and at most the population")
    _require_alike(shared, *changes)
    total = np.zeros_like(shared)
    for change in changes:
        total += change
    fresh: Values = shared + total / population
    return fresh


def _require_alike(first: Values, *others: Values) -> None:
    if first.ndim != 1 or any(other.shape != first.shape for other in others):
        raise ValueError("these vectors must have one and the same length")
