"""What the server does with the mean change of a round: momentum, or a step of its own per coordinate.

Pure functions of (state, change): the state is plain arrays, to be stored with the release that it made, so
that the next round goes on from exactly there. Fed with un-noised changes, a state is as private as they are.

Source: Reddi et al. 2021, arXiv:2003.00295, Algorithm 2 (FedAdagrad, FedAdam, FedYogi); Hsu et al. 2019,
arXiv:1909.06335 (FedAvgM).
"""

import dataclasses
import enum
import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

Values = NDArray[np.float64]
State = Mapping[str, Values]
"""Arrays of shape (d,) by name: `momentum`, `variance`, and `steps` of shape ()."""


class Optimizer(enum.StrEnum):
    """How a server steps."""

    AVERAGE = "fedavg"  # the mean change times the rate
    MOMENTUM = "fedavgm"
    ADAGRAD = "fedadagrad"
    ADAM = "fedadam"
    YOGI = "fedyogi"


ADAPTIVE = (Optimizer.ADAGRAD, Optimizer.ADAM, Optimizer.YOGI)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Server:
    """A server optimizer and its constants; the defaults are the paper's."""

    kind: Optimizer
    rate: float = 1.0
    """eta, positive."""
    momentum: float = 0.9
    """beta_1, 0 to under 1; FedAdagrad has none in the paper, and none here."""
    decay: float = 0.99
    """beta_2, 0 to under 1."""
    adaptivity: float = 1e-3
    """tau, positive: how far a coordinate's own scale counts."""
    bias_correction: bool = False
    """FedAdam only: start from v = 0 and correct as Kingma and Ba do (arXiv:1412.6980, end of section 2),
    which the paper leaves out."""

    def __post_init__(self) -> None:
        for name, value, low, high in (
            ("rate", self.rate, 0.0, math.inf),
            ("adaptivity", self.adaptivity, 0.0, math.inf),
        ):
            if not low < value < high:  # also false for NaN
                raise ValueError(f"a server's {name} is finite and positive")
        if not (0.0 <= self.momentum < 1.0 and 0.0 <= self.decay < 1.0):
            raise ValueError("a server's momentum and decay are at least 0 and under 1")
        if self.bias_correction and self.kind is not Optimizer.ADAM:
            raise ValueError("only fedadam has a bias to correct")


def start(server: Server, dimension: int) -> dict[str, Values]:
    """Return the state before the first round; v = tau^2, as the paper asks for.

    Args:
        server: which optimizer.
        dimension: d, at least 1.
    """
    if dimension < 1:
        raise ValueError("an optimizer steps in at least one dimension")
    state: dict[str, Values] = {"steps": np.zeros(())}
    if server.kind is not Optimizer.AVERAGE and server.kind is not Optimizer.ADAGRAD:
        state["momentum"] = np.zeros(dimension)
    if server.kind in ADAPTIVE:
        state["variance"] = np.full(dimension, 0.0 if server.bias_correction else server.adaptivity**2)
    return state


def step(server: Server, state: State, change: NDArray[Any]) -> tuple[Values, dict[str, Values]]:
    """Return what to add to the model, and the state after it; nothing that was handed in is changed.

    Args:
        server: which optimizer.
        state: of this optimizer, from `start` or an earlier step.
        change: Delta, the aggregate of the clients' changes, shape (d,), finite, after clipping and noise.
    Returns:
        The model's change, shape (d,), float64, and the new state.
    Raises:
        ValueError: the state is of another optimizer or shape, or a value is not finite.
    """
    delta = np.asarray(change, dtype=np.float64)
    _require_fit(server, state, delta)
    after: dict[str, Values] = {"steps": state["steps"] + 1.0}
    direction = delta
    if "momentum" in state:
        fresh = 1.0 if server.kind is Optimizer.MOMENTUM else 1.0 - server.momentum
        direction = after["momentum"] = server.momentum * state["momentum"] + fresh * delta
    if server.kind not in ADAPTIVE:
        return server.rate * direction, after
    after["variance"] = _variance(server, state["variance"], delta * delta)
    rate = server.rate * _correction(server, int(after["steps"]))
    return rate * direction / (np.sqrt(after["variance"]) + server.adaptivity), after


def _variance(server: Server, before: Values, squares: Values) -> Values:
    if server.kind is Optimizer.ADAGRAD:
        return before + squares
    if server.kind is Optimizer.ADAM:
        return server.decay * before + (1.0 - server.decay) * squares
    return before - (1.0 - server.decay) * squares * np.sign(before - squares)


def _correction(server: Server, steps: int) -> float:
    """The first step is step 1: a first Adam step then has the size of the rate."""
    if not server.bias_correction:
        return 1.0
    return math.sqrt(1.0 - server.decay**steps) / (1.0 - server.momentum**steps)


def _require_fit(server: Server, state: State, delta: Values) -> None:
    if delta.ndim != 1 or not np.isfinite(delta).all():
        raise ValueError("a change is one vector of finite values")
    expected = start(server, max(delta.size, 1))
    if {name: array.shape for name, array in state.items()} != {
        name: array.shape for name, array in expected.items()
    }:
        raise ValueError(f"this is no state of {server.kind} in {delta.size} dimensions")
    if not all(np.isfinite(array).all() for array in state.values()):
        raise ValueError("an optimizer's state holds a value that is not finite")
