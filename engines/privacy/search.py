"""Integer search on a yes-or-no question that turns from no to yes once."""

from collections.abc import Callable


def smallest_that_holds(
    holds: Callable[[int], bool], *, start: int, step: int, low: int, high: int
) -> int | None:
    """Return the smallest integer in [low, high] for which `holds` is true, or None.

    `holds` must be false up to some integer and true from there on. The search walks from `start` in
    doubling strides, so a good start needs few calls. What is returned has been asked and held.

    Args:
        holds: the question; each call may be slow.
        start: where to begin, in [low, high].
        step: first stride, at least 1.
        low: smallest integer that may be asked.
        high: largest integer that may be asked.
    Raises:
        ValueError: the bounds, the start or the stride make no sense.
    """
    if step < 1 or not low <= start <= high:
        raise ValueError("the start must lie between the bounds, and the stride be positive")
    yes, no = (start, low - 1) if holds(start) else (None, start)
    at = start
    while yes is not None and at > low:  # downhill, while it still holds
        at = max(low, at - step)
        if not holds(at):
            no = at
            break
        yes, step = at, 2 * step
    while yes is None and at < high:  # uphill, until it holds
        at = min(high, at + step)
        if holds(at):
            yes = at
        else:
            no, step = at, 2 * step
    return None if yes is None else _bisect(holds, no=no, yes=yes)


def _bisect(holds: Callable[[int], bool], *, no: int, yes: int) -> int:
    while yes - no > 1:
        middle = (no + yes) // 2
        if holds(middle):
            yes = middle
        else:
            no = middle
    return yes
