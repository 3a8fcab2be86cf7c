"""How far one client can move a robust rule's UNNORMALISED output: the Delta that central noise is made for.

Noise of standard deviation z * Delta goes on that output, before it is divided by a public constant. All of
it holds under these terms alone: every client's vector is clipped to C, the number of clients n is fixed
and public, an absent client is the zero vector, ties are broken by public order. The rules without a useful
bound are named here too, so that they are refused by name. Proofs: docs/privacy-proof.md.
"""

import dataclasses
import enum
import math

from engines.privacy.loss_library import Relation


class NoUsefulBound(ValueError):
    """One client can move the rule's output by about the clip norm, however many clients there are."""


class UnboundedRule(enum.StrEnum):
    """Rules whose undivided output one client moves by 1.2 to 2 C at any number of clients."""

    MEDIAN = "median"
    GEOMETRIC_MEDIAN = "geometric_median"
    KRUM = "krum"
    MULTI_KRUM = "multi_krum"
    BULYAN = "bulyan"
    MDA = "mda"
    MEAMED = "meamed"
    DNC = "dnc"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sum:
    """The sum of clipped vectors."""

    clip_norm: float

    def __post_init__(self) -> None:
        _require_norm(self.clip_norm)

    def sensitivity(self, relation: Relation) -> float:
        """Return C, or 2C under replace-one, parameter units."""
        return self.clip_norm * (2.0 if relation is Relation.REPLACE_ONE else 1.0)


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrimmedSum:
    """In each coordinate, the sum of what is left without the b smallest and the b largest values.

    A sum of order statistics moves by no more than the value that moves, in each coordinate, so the vector
    moves by no more than the client's.
    Source: Yin et al. 2018, arXiv:1803.01498 (the trimmed mean).
    """

    clip_norm: float
    clients: int
    trimmed: int
    """b, fixed: values left out at either end."""

    def __post_init__(self) -> None:
        _require_norm(self.clip_norm)
        _require_trim(self.clients, trimmed=self.trimmed)

    def sensitivity(self, relation: Relation) -> float:
        """Return C, or 2C under replace-one, parameter units.

        Raises:
            NoUsefulBound: the relation is add/remove, under which n is not fixed.
        """
        return _vector_moves(self.clip_norm, relation)


@dataclasses.dataclass(frozen=True, kw_only=True)
class BucketedTrimmedSum:
    """The sums of buckets of clients, drawn at random in public, and the trimmed sum over the buckets.

    One client moves one bucket's sum, by no more than its own vector moves.
    Source: Karimireddy et al. 2022, arXiv:2006.09365 (bucketing).
    """

    clip_norm: float
    clients: int
    bucket_size: int
    trimmed: int
    """b, fixed: bucket sums left out at either end."""

    def __post_init__(self) -> None:
        _require_norm(self.clip_norm)
        if not 1 <= self.bucket_size <= self.clients:
            raise ValueError("a bucket holds at least 1 client and at most all of them")
        _require_trim(-(-self.clients // self.bucket_size), trimmed=self.trimmed)

    def sensitivity(self, relation: Relation) -> float:
        """Return C, or 2C under replace-one, parameter units; errors as `TrimmedSum`."""
        return _vector_moves(self.clip_norm, relation)


@dataclasses.dataclass(frozen=True, kw_only=True)
class NearestNeighbourTrimmedSum:
    """Each vector becomes the mean of its n - f nearest (itself included); then the trimmed sum.

    The moved client's own mean moves by at most 2C; each other mean changes one of its n - f members, by at
    most 2C / (n - f).
    Source: Allouah et al. 2023, arXiv:2302.01772 (nearest-neighbour mixing).
    """

    clip_norm: float
    clients: int
    faulty: int
    """f, fixed: the farthest vectors left out of every mean."""
    trimmed: int

    def __post_init__(self) -> None:
        _require_norm(self.clip_norm)
        _require_trim(self.clients, trimmed=self.trimmed)
        if not 0 <= self.faulty < self.clients:
            raise ValueError("the vectors left out of a mean must be fewer than the clients")

    def sensitivity(self, relation: Relation) -> float:
        """Return 2C (1 + (n-1)/(n-f)), parameter units, under zero-out and replace-one alike.

        Raises:
            NoUsefulBound: the relation is add/remove.
        """
        _require_fixed_count(relation)
        others = (self.clients - 1) / (self.clients - self.faulty)
        return _up(2.0 * self.clip_norm * (1.0 + others))


@dataclasses.dataclass(frozen=True, kw_only=True)
class CenteredClipping:
    """n times the last of L steps v <- v + (1/n) sum of clip(x_i - v, tau), from a public or released v.

    Each step's map is nonexpansive in v, so what one client adds in L steps adds up and no more.
    Source: Karimireddy et al. 2021, arXiv:2012.10333.
    """

    radius: float
    """tau, L2 bound on each client's term, parameter units."""
    iterations: int
    """L."""
    absent_term_is_zero: bool
    """Whether an absent client's clipped TERM is zero; otherwise its vector is, and its term is not."""

    def __post_init__(self) -> None:
        _require_norm(self.radius)
        if not 1 <= self.iterations <= 1000:
            raise ValueError("centered clipping takes 1 to 1,000 iterations")

    def sensitivity(self, relation: Relation) -> float:
        """Return L tau under zero-out with absent terms zero, otherwise 2 L tau, parameter units.

        Raises:
            NoUsefulBound: the relation is add/remove.
        """
        _require_fixed_count(relation)
        one_sided = relation is Relation.ZERO_OUT and self.absent_term_is_zero
        return _up((1.0 if one_sided else 2.0) * self.iterations * self.radius)


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrustedReference:
    """FLTrust: the sum of relu(cos(x_i, g0)) * |g0| * x_i / |x_i|, for a public reference g0.

    Each client's term has a norm of at most |g0|, and hangs on that client alone.
    Source: Cao et al. 2021, arXiv:2012.13995.
    """

    reference_norm: float
    """|g0|, parameter units; public, as is the divisor."""

    def __post_init__(self) -> None:
        _require_norm(self.reference_norm)

    def sensitivity(self, relation: Relation) -> float:
        """Return |g0|, or 2 |g0| under replace-one, parameter units; errors as `TrimmedSum`."""
        return _vector_moves(self.reference_norm, relation)


BoundedRule = (
    Sum | TrimmedSum | BucketedTrimmedSum | NearestNeighbourTrimmedSum | CenteredClipping | TrustedReference
)
"""The rules that central noise can cover."""


def require_useful_bound(rule: str) -> None:
    """Refuse a rule that central noise cannot usefully cover.

    Args:
        rule: the rule's name in a manifest.
    Raises:
        NoUsefulBound: it is one of `UnboundedRule`; the text names the trimmed sum instead.
    """
    if rule in set(UnboundedRule):
        raise NoUsefulBound(
            f"{rule}: one client can move its output by about the clip norm, however many clients there are: "
            "use the trimmed sum, or release its output projected to the clip norm with noise 2zC, undivided"
        )


def require_untruncated(rule: BoundedRule, *, truncating_cap: bool) -> None:
    """Refuse a robust rule over a Poisson cohort that a cap may cut; only the sum is proved there.

    Raises:
        NoUsefulBound: the cap may cut the cohort and the rule is not the sum.
    """
    if truncating_cap and not isinstance(rule, Sum):
        raise NoUsefulBound("a robust rule over a cohort that a cap may cut has no proof: use the sum")


def projected_sensitivity(*, clip_norm: float) -> float:
    """Return 2C: what any rule moves by when its output is projected to the ball of radius C.

    It is not divided by anything afterwards, so the noise 2zC stays whole whatever the number of clients.
    """
    _require_norm(clip_norm)
    return 2.0 * clip_norm


def with_rounding(delta: float, *, dimension: int, grid: float) -> float:
    """Return the sensitivity of an output that is rounded to the grid only after a rule's real arithmetic.

    The sum and the two trimmed sums need none of it: they work on gridded integers. A rule that divides
    does: either of two outputs moves by at most grid / 2 a coordinate when it is rounded to the nearest.

    Args:
        delta: sensitivity of the unrounded output, parameter units.
        dimension: number of coordinates d.
        grid: spacing, same units.
    """
    if dimension < 1 or not 0.0 < grid < math.inf:
        raise ValueError("rounding needs a dimension of at least 1 and a positive grid")
    return _up(delta + math.sqrt(dimension) * grid)


def _vector_moves(norm: float, relation: Relation) -> float:
    _require_fixed_count(relation)
    return norm * (2.0 if relation is Relation.REPLACE_ONE else 1.0)


def _require_fixed_count(relation: Relation) -> None:
    if relation is Relation.ADD_REMOVE:
        raise NoUsefulBound("a robust rule needs a fixed public number of clients: use zero-out")


def _require_trim(values: int, *, trimmed: int) -> None:
    if not 0 <= 2 * trimmed < values:
        raise ValueError("trimming must leave at least one value in each coordinate")


def _require_norm(norm: float) -> None:
    if not 1e-12 <= norm <= 1e12:  # also false for NaN
        raise ValueError("a bound on a norm must lie between 1e-12 and 1e12")


def _up(value: float) -> float:
    """Raise a bound by more than its own few roundings."""
    return value * (1.0 + 2.0**-50)
