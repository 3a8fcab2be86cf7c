"""What FedProx and SCAFFOLD add to a client's training, as functions of vectors.

SCAFFOLD's variates are those of option II: functions of the updates and of each other, so that whoever sees
noised updates has noised variates. With LoRA they mean something only where the trained factors add up
(`ffa`, `fedsb`).

Source: Li et al. 2020, arXiv:1812.06127 (FedProx); Karimireddy et al. 2020, arXiv:1910.06378 (SCAFFOLD).
"""

import math

from torch import Tensor


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


def corrected_gradient(gradient: Tensor, own: Tensor, shared: Tensor) -> Tensor:
    """Return g - c_i + c, SCAFFOLD's step direction.

    Under DP-SGD g is the noised, divided sum: the correction is known before it is drawn, and is not clipped.

    Args:
        gradient: g, any shape.
        own: c_i, the same shape.
        shared: c, the same shape.
    Raises:
        ValueError: shapes differ.
    """
    _require_alike(gradient, own, shared)
    return gradient - own + shared


def next_own_variate(own: Tensor, shared: Tensor, change: Tensor, *, steps: int, rate: float) -> Tensor:
    """Return c_i+ = c_i - c - Delta_i / (K eta): the mean gradient of a client's K steps (option II).

    Args:
        own: c_i, any shape.
        shared: c, the same shape.
        change: Delta_i = w_i - w_t, how far the client moved in K steps without momentum, the same shape.
        steps: K, at least 1.
        rate: eta, the client's learning rate, positive.
    Raises:
        ValueError: shapes differ, or K or eta is out of range.
    """
    _require_alike(own, shared, change)
    _require_steps(steps, rate)
    return own - shared - change / (steps * rate)


def next_shared_variate(
    shared: Tensor, mean_change: Tensor, *, cohort: int, population: int, steps: int, rate: float
) -> Tensor:
    """Return c + (|S| / N) mean(c_i+ - c_i) = c - (|S| / N) (c + mean(Delta_i) / (K eta)).

    No c_i is needed for it.

    Args:
        shared: c, any shape.
        mean_change: the unweighted mean of Delta_i over the cohort S, the same shape.
        cohort: |S|, at least 1.
        population: N, at least |S|.
        steps: K, at least 1.
        rate: eta, the clients' learning rate, positive.
    Raises:
        ValueError: shapes differ, or a number is out of range.
    """
    if not 1 <= cohort <= population:
        raise ValueError("a cohort has at least one client and at most the population")
    _require_alike(shared, mean_change)
    _require_steps(steps, rate)
    return shared - (cohort / population) * (shared + mean_change / (steps * rate))


def _require_steps(steps: int, rate: float) -> None:
    if steps < 1 or not 0.0 < rate < math.inf:
        raise ValueError("a variate needs at least one step and a positive rate")


def _require_alike(first: Tensor, *others: Tensor) -> None:
    if any(other.shape != first.shape for other in others):
        raise ValueError("these tensors must have one and the same shape")
