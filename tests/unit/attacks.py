"""Hostile updates by their formulas, and a small federation on quadratic losses to try them on.

Each attack gets the honest updates of a round, shape (h, d), and returns what all hostile clients send, (d,)
or (f, d). They know everything: the honest updates, f and n.
"""

import math
from collections.abc import Callable
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

Vectors = NDArray[np.float64]
Attack = Callable[["Round"], Vectors]
CLIENTS, FAULTY, DIMENSION, ROUNDS, RATE = 20, 4, 50, 150, 0.1


class Round:
    """What the hostile clients know."""

    def __init__(self, honest: Vectors, at: Vectors, generator: np.random.Generator) -> None:
        self.honest, self.at, self.generator = honest, at, generator
        self.mean, self.spread = honest.mean(axis=0), honest.std(axis=0)


def alie_factor(clients: int, faulty: int) -> float:
    supporters = math.floor(clients / 2 + 1) - faulty
    return NormalDist().inv_cdf((clients - faulty - supporters) / (clients - faulty))


def shifted(factor: float) -> Attack:
    return lambda now: now.mean - factor * now.spread


def scaled(factor: float) -> Attack:
    return lambda now: factor * now.mean


def largest(fits: Callable[[float], bool]) -> float:
    """The largest factor that fits, by bisection."""
    low, high = 0.0, 100.0
    for _ in range(40):
        middle = (low + high) / 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low


def min_max(now: Round) -> Vectors:
    between = np.linalg.norm(now.honest[:, None] - now.honest[None], axis=2).max()
    return now.mean - now.spread * largest(
        lambda g: np.linalg.norm(now.mean - g * now.spread - now.honest, axis=1).max() <= between
    )


def min_sum(now: Round) -> Vectors:
    between = (np.linalg.norm(now.honest[:, None] - now.honest[None], axis=2) ** 2).sum(axis=1).max()
    return now.mean - now.spread * largest(
        lambda g: (np.linalg.norm(now.mean - g * now.spread - now.honest, axis=1) ** 2).sum() <= between
    )


def replacement(now: Round) -> Vectors:
    """Boosted so that the mean of all would land on the attacker's own target."""
    return CLIENTS / FAULTY * (2.0 * np.ones(DIMENSION) - now.at)


ATTACKS: dict[str, Attack] = {
    "sign_flip": scaled(-1.0),
    "inner_product_0.1": scaled(-0.1),
    "inner_product_2": scaled(-2.0),
    "inner_product_10": scaled(-10.0),
    "little_is_enough": shifted(alie_factor(CLIENTS, FAULTY)),
    "little_is_enough_1.5": shifted(1.5),
    "mimic": lambda now: now.honest[0],
    "gaussian": lambda now: now.generator.normal(scale=10.0, size=(FAULTY, DIMENSION)),
    "min_max": min_max,
    "min_sum": min_sum,
    "replacement": replacement,
}


def final_error(attack: Attack | None, aggregate: Callable[[Vectors], Vectors], *, seed: int = 0) -> float:
    """Train n clients on heterogeneous quadratics; return the distance from the honest optimum, relative to
    the distance at the start."""
    generator = np.random.default_rng(seed)
    own = generator.normal(size=DIMENSION) + generator.normal(size=(CLIENTS, DIMENSION))
    own[CLIENTS - FAULTY :] = own[: CLIENTS - FAULTY].mean(axis=0)  # without an attack nobody pulls elsewhere
    goal, at = own[-1], np.zeros(DIMENSION)
    for _ in range(ROUNDS):
        updates = RATE * (own - at + generator.normal(size=own.shape))
        if attack is not None:
            updates[CLIENTS - FAULTY :] = attack(Round(updates[: CLIENTS - FAULTY], at, generator))
        at = at + aggregate(updates)
        if np.linalg.norm(at) > 1e6:
            return math.inf
    return float(np.linalg.norm(at - goal) / np.linalg.norm(goal))
