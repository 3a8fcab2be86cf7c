"""The accounting library behind a door: imported late, and every complaint of it becomes a refusal.

Only the accountants of this package use it. Nothing here decides what a plan may cost.
"""

import enum
import functools
import logging
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any


class AccountingFailed(Exception):
    """The accountant has no trustworthy upper bound for this plan. Whoever asked must refuse the plan."""


class Relation(enum.StrEnum):
    """Which two data sets count as neighbours."""

    ZERO_OUT = "zero_out"  # one record's contribution is replaced by zero; counts and sizes are public
    ADD_REMOVE = "add_remove"  # one record more or less
    REPLACE_ONE = "replace_one"  # one record is replaced by another: the sensitivity is 2C


@functools.lru_cache(maxsize=8)
def loss_of_step(
    multiplier: float,
    rate: float,
    relation: Relation,
    interval: float,
    capped: tuple[int, int] | None = None,
) -> Any:
    """Return the privacy-loss distribution of one step; most of a price is spent here.

    Args:
        multiplier: standard deviation over C; the library doubles C for replace-one by itself.
        rate: Poisson rate.
        relation: neighbouring relation.
        interval: width of the grid of losses.
        capped: (population, cap) of a cohort that may be cut.
    Source: Ganesh et al. 2025, arXiv:2508.15089, for the cut: in the event that the others alone fill the
        cap, a member displaces another, which is dominated by replace-one at sensitivity 2C.
    """
    from dp_accounting.pld import privacy_loss_distribution  # noqa: PLC0415  (1.2 s to import)

    if capped is None:
        return privacy_loss_distribution.from_gaussian_mechanism(
            multiplier,
            sampling_prob=rate,
            value_discretization_interval=interval,
            neighboring_relation=neighbouring(relation),
        )
    population, cap = capped
    return privacy_loss_distribution.from_truncated_subsampled_gaussian_mechanism(
        population,
        rate,
        cap,
        multiplier,
        value_discretization_interval=interval,
        neighboring_relation=neighbouring(relation),
    )


def neighbouring(relation: Relation) -> Any:
    """Return the library's own name of a relation."""
    from dp_accounting import NeighboringRelation  # noqa: PLC0415  (1.2 s to import)

    return {
        Relation.ZERO_OUT: NeighboringRelation.REPLACE_SPECIAL,
        Relation.ADD_REMOVE: NeighboringRelation.ADD_OR_REMOVE_ONE,
        Relation.REPLACE_ONE: NeighboringRelation.REPLACE_ONE,
    }[relation]


@contextmanager
def watched_library() -> Iterator[None]:
    """Turn whatever the accounting library raises, and every warning it logs, into a refusal.

    One warning is expected and handled by the callers: a fractional Renyi order that does not converge
    comes back as infinity. Only records of this thread that the library itself wrote are looked at.
    """
    import dp_accounting  # noqa: F401, PLC0415  (absl's logger class exists only once absl is imported)

    complaints: list[str] = []
    thread = threading.get_ident()

    def collect(record: logging.LogRecord) -> bool:
        ours = record.thread == thread and "dp_accounting" in record.pathname
        if not ours or record.levelno < logging.WARNING:
            return True
        if "failed to converge" not in record.getMessage():
            complaints.append(record.getMessage())
        return False

    try:
        with _heard(collect):
            yield
    except (ArithmeticError, ValueError, RuntimeError, IndexError, MemoryError) as error:
        raise AccountingFailed("the accountant could not price this plan") from error
    if complaints:
        raise AccountingFailed(f"the accountant warned: {complaints[0]}")


@contextmanager
def _heard(collect: Callable[[logging.LogRecord], bool]) -> Iterator[None]:
    """Have every warning pass `collect`, also where a program has silenced its loggers."""
    loggers = [logging.getLogger("absl"), logging.getLogger()]
    before = [(logger.level, logger.disabled) for logger in loggers]
    silenced_up_to = logging.root.manager.disable
    logging.disable(logging.NOTSET)
    for logger in loggers:
        logger.addFilter(collect)
        logger.setLevel(min(logger.level or logging.WARNING, logging.WARNING))
        logger.disabled = False
    try:
        yield
    finally:
        logging.disable(silenced_up_to)
        for logger, (level, disabled) in zip(loggers, before, strict=True):
            logger.removeFilter(collect)
            logger.setLevel(level)
            logger.disabled = disabled
