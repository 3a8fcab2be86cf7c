"""What one round says about each client: how far its update lies from the others, and whether that is odd.

Evidence is data about a client's update, as private as the update itself: who may see it, and what may follow
from it, is for `ladder` and its callers. One odd round is no verdict.
"""

import dataclasses
import enum
from collections.abc import Sequence

import numpy as np

from engines.aggregation.kernels import Numbers
from engines.aggregation.rows import Rows, Weights

TILE_COLUMNS = 4096
ODD = 6.0
"""Robust standard deviations from the median beyond which a measure is odd."""
_SMALLEST_SPREAD = 0.1
"""Spread below which clients count as alike, in logarithms and in cosines: a tight round makes nobody odd
over a tenth."""
_TINY = 1e-300


class Measure(enum.StrEnum):
    """What can be odd."""

    NORM = "norm"  # far longer or shorter than the others
    DISTANCE = "distance"  # far from the aggregate
    DIRECTION = "direction"  # points elsewhere than the aggregate
    TWIN = "twin"  # far nearer to another client than clients are: a copy, or one hand behind both
    NOT_FINITE = "not_finite"  # turned away at the gate


@dataclasses.dataclass(frozen=True)
class Evidence:
    """One client's measures in one round; ratios are to the median over the clients."""

    norm_ratio: float
    distance_ratio: float
    """Distance from the aggregate."""
    cosine: float
    """With the aggregate, -1 to 1; 0 where either is zero."""
    nearest_ratio: float
    """Distance to the nearest other client."""


@dataclasses.dataclass(frozen=True)
class Finding:
    """What is odd about one client, and by how many robust standard deviations at most."""

    odd: tuple[Measure, ...]
    score: float


def gather(rows: Rows, aggregate: Numbers, distances: Weights) -> list[Evidence]:
    """Measure every client against the aggregate and against the others, reading each once.

    Args:
        rows: n admitted updates of d floating values.
        aggregate: what a rule made of them, shape (d,).
        distances: squared distances between the rows, shape (n, n).
    Returns:
        One item a row, in order.
    Raises:
        ValueError: shapes do not fit.
    """
    if aggregate.shape != (rows.dimension,) or distances.shape != (rows.clients, rows.clients):
        raise ValueError("evidence needs the aggregate and the distances of these very updates")
    squares, gaps, dots = np.zeros((3, rows.clients))
    for start, tile in rows.tiles(TILE_COLUMNS):
        piece = aggregate[start : start + tile.shape[1]].astype(np.float64)
        for client, row in enumerate(tile):
            wide = row.astype(np.float64)
            gap = wide - piece
            squares[client] += wide @ wide
            gaps[client] += gap @ gap
            dots[client] += wide @ piece
    norms = np.sqrt(squares)
    cosines = dots / np.maximum(norms * float(np.linalg.norm(aggregate.astype(np.float64))), _TINY)
    nearest = np.sqrt((distances + np.diag(np.full(rows.clients, np.inf))).min(axis=1))
    if rows.clients == 1:
        nearest = np.ones(1)
    columns = (_ratios(norms), _ratios(np.sqrt(gaps)), np.clip(cosines, -1.0, 1.0), _ratios(nearest))
    return [Evidence(*(float(column[client]) for column in columns)) for client in range(rows.clients)]


def judge(evidence: Sequence[Evidence]) -> list[Finding]:
    """Say what is odd about each client beside the others of its round.

    A measure is odd 6 robust standard deviations from the median (1.4826 times the median absolute
    deviation, and never under a tenth). Fewer than 5 clients have no outliers.

    Args:
        evidence: of one round, one item a client.
    Returns:
        One finding a client, in order.
    """
    logs = {
        Measure.NORM: np.abs(_robust(np.log([max(one.norm_ratio, _TINY) for one in evidence]))),
        Measure.DISTANCE: _robust(np.log([max(one.distance_ratio, _TINY) for one in evidence])),
        Measure.DIRECTION: -_robust(np.array([one.cosine for one in evidence])),
        Measure.TWIN: -_robust(np.log([max(one.nearest_ratio, _TINY) for one in evidence])),
    }
    findings = []
    for client in range(len(evidence)):
        odd = tuple(measure for measure, scores in logs.items() if scores[client] > ODD)
        findings.append(Finding(odd, max(float(scores[client]) for scores in logs.values())))
    return findings


def _ratios(values: Weights) -> Weights:
    middle = float(np.median(values))
    return values / middle if middle > 0.0 else np.where(values > 0.0, np.inf, 1.0)


def _robust(values: Weights) -> Weights:
    if len(values) < 5:
        return np.zeros(len(values))
    finite = np.clip(values, -1e3, 1e3)
    away = finite - np.median(finite)
    spread = max(1.4826 * float(np.median(np.abs(away))), _SMALLEST_SPREAD)
    scores: Weights = away / spread
    return scores
