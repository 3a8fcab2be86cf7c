"""What stands in front of every rule: an update that is not finite is turned away, a long one is shortened.

Decides about each client by its own values alone, so it may be used whatever the trust.
"""

import dataclasses
import math

import numpy as np

from engines.aggregation.kernels import LANES, add_squares, tile_columns
from engines.aggregation.rows import Rows, Scaled, Weights
from engines.privacy.clipping import safe_scale

TILE_COLUMNS = 4096


class NoneFinite(ValueError):
    """Every update was turned away: nothing is left to aggregate."""


@dataclasses.dataclass(frozen=True)
class Admission:
    """Who passed, and the rows that a rule may look at."""

    rows: Rows
    """What passed, clipped; where absence means the zero vector, everyone, those turned away as zeros."""
    kept: tuple[int, ...]
    """Clients that passed, ascending."""
    turned_away: tuple[int, ...]
    """Clients with a NaN, an infinity, or values whose squares overflow, ascending."""
    norms: Weights
    """L2 norms before clipping, shape (n,), parameter units; NaN or infinity where turned away."""
    clipped: tuple[int, ...]
    """Clients that were longer than the bound, ascending."""
    factors: Weights
    """What every client's values are multiplied with in `rows`, shape (n,): 0 where turned away."""


def admit(rows: Rows, *, clip_norm: float | None, absent_is_zero: bool = False) -> Admission:
    """Check and clip all updates, reading each once.

    Args:
        rows: n rows of d floating values.
        clip_norm: bound C on each row's L2 norm, parameter units, 1e-12 to 1e12; None leaves them as long
            as they are.
        absent_is_zero: keep n rows, with zeros for those turned away: the fixed public n of central noise.
    Returns:
        Who passed. The exact norm of every row of `rows` is at most C, rounding included.
    Raises:
        NoneFinite: nobody passed.
        ValueError: the bound is out of range.
    Source: Sun et al. 2019, arXiv:1911.07963 (norm bounding).
    """
    norms = row_norms(rows)
    finite = np.isfinite(norms)
    kept, away = np.flatnonzero(finite), np.flatnonzero(~finite)
    if not len(kept):
        raise NoneFinite("no update is finite: there is nothing to aggregate")
    factors = np.array([_factor(float(norm), rows, clip_norm) for norm in norms])
    shown = np.arange(rows.clients) if absent_is_zero else kept
    unchanged = not len(away) and bool((factors == 1.0).all())
    return Admission(
        rows=rows if unchanged else Scaled(rows, shown.tolist(), factors[shown]),
        kept=tuple(kept.tolist()),
        turned_away=tuple(away.tolist()),
        norms=norms,
        clipped=tuple(np.flatnonzero(finite & (factors < 1.0)).tolist()),
        factors=factors,
    )


def row_norms(rows: Rows) -> Weights:
    """Return each row's L2 norm, shape (n,), float64; not finite where a value or a square is not."""
    lanes = np.zeros((rows.clients, LANES))
    with np.errstate(over="ignore", invalid="ignore"):
        for _, tile in rows.tiles(tile_columns(TILE_COLUMNS)):
            add_squares(lanes, tile)
        norms: Weights = np.sqrt(lanes.sum(axis=1))
    return norms


def _factor(norm: float, rows: Rows, clip_norm: float | None) -> float:
    if not math.isfinite(norm):
        return 0.0
    if clip_norm is None:
        return 1.0
    storing = 2.0**-23 if rows.dtype == np.float32 else 2.0**-52  # the product is rounded once more
    factor = safe_scale(norm, size=rows.dimension, max_norm=clip_norm)
    return factor if factor == 1.0 else factor * (1.0 - storing)
