"""The table of LoRA methods: what each averages, what that can be combined with, and what to take instead.

The target of all is T = sum of w_i s_i B_i A_i. Under trusts where the server adds noise to a sum, or sees
only a sum, a method must be linear in what is sent: noise on both factors would be multiplied.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, Literal

Trust = Literal["local", "central", "distributed", "none"]
Mode = Literal["plain", "secagg", "grouped_secagg"]
RobustOn = Literal["sent", "products", "nothing"]

_ALL: frozenset[Trust] = frozenset({"local", "central", "distributed", "none"})
_SEEN: frozenset[Trust] = frozenset({"local", "none"})
PRODUCT_METHODS = frozenset({"flexlora", "flora", "fedex"})
"""Those whose server looks at the products of each client's factors."""
MERGING_METHODS = frozenset({"flora", "fedex"})
"""Those that put a part of what was learned into the base weight."""
TWO_TURNS = frozenset({"fedask"})
"""Those that train in odd rounds alone; the round after it sends a second message about the same factors."""
WEIGHING_RULES = frozenset({"mean", "krum", "multi_krum", "mda", "geometric_median"})
"""Rules whose result is one weighted sum, with weights from inner products alone: these can be had from
products B_i A_i by r x r work. Rules by coordinate would need the dense products."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class LoraMethod:
    """One row of the table."""

    name: str
    averages: str
    """What is averaged, for people."""
    is_exact: bool = False
    """Whether the result is T itself (with `flexlora`, T's nearest pair of the released rank)."""
    trusts: frozenset[Trust]
    is_sum: bool = False
    """The server needs weighted sums of what is sent, and no single client's."""
    mixed_ranks: bool = False
    robust_on: RobustOn = "nothing"
    """What a robust rule may look at: the vectors that are sent, the products of factors (factors alone say
    little: B M and M^-1 A are the same model), or nothing, so that only the mean is left."""
    control_variates: bool = False
    """SCAFFOLD's correction is linear in what is trained, and the same tensors are trained every round."""
    fixed_coordinates: bool = False
    """Every round moves the same numbers, so that a server optimizer's state goes with them, and a canary's
    direction is one for the whole run."""
    takes_stale: bool = False
    """A change of an older adapter means the same when it is added to a newer one: the numbers are the same,
    and the client keeps nothing beside them. Buffered rounds need that."""


METHODS: dict[str, LoraMethod] = {
    method.name: method
    for method in (
        LoraMethod(
            name="ffa",
            averages="B, with A frozen and nested",
            is_exact=True,
            trusts=_ALL,
            is_sum=True,
            mixed_ranks=True,
            robust_on="sent",
            control_variates=True,
            fixed_coordinates=True,
            takes_stale=True,
        ),
        LoraMethod(
            name="fedsb",
            averages="the r x r core between fixed orthonormal bases",
            is_exact=True,
            trusts=_ALL,
            is_sum=True,
            mixed_ranks=True,
            robust_on="sent",
            control_variates=True,
            fixed_coordinates=True,
            takes_stale=True,
        ),
        LoraMethod(
            name="rolora",
            averages="B and A in turn, the other frozen",
            is_exact=True,
            trusts=_ALL,
            is_sum=True,
            mixed_ranks=True,
            robust_on="sent",
        ),
        LoraMethod(
            name="flexlora",
            averages="s B A, decomposed anew",
            is_exact=True,
            trusts=_SEEN,
            mixed_ranks=True,
            robust_on="products",
        ),
        LoraMethod(
            name="fedask",
            averages="two sketches of s B A",
            is_exact=True,
            trusts=_SEEN,
            is_sum=True,
            mixed_ranks=True,
        ),
        LoraMethod(
            name="flora",
            averages="s B A, stacked",
            is_exact=True,
            trusts=_SEEN,
            mixed_ranks=True,
            robust_on="products",
        ),
        LoraMethod(
            name="fedex",
            averages="B and A apart, the rest as a residual",
            is_exact=True,
            trusts=_SEEN,
            robust_on="products",
        ),
        LoraMethod(
            name="fedsa",
            averages="A; B stays with the client",
            trusts=_SEEN,
            is_sum=True,
            robust_on="sent",
            fixed_coordinates=True,
        ),
        LoraMethod(
            name="fedit",
            averages="B and A apart",
            trusts=_SEEN,
            is_sum=True,
            robust_on="sent",
            fixed_coordinates=True,
            takes_stale=True,
        ),
    )
}
"""In the order in which they are named as alternatives."""


@dataclasses.dataclass(frozen=True)
class Combination:
    """What a method is asked to go together with."""

    method: str
    trust: Trust
    mode: Mode = "plain"
    mixed_ranks: bool = False
    rule: str = "mean"
    mixing: str = "none"
    control_variates: bool = False
    server_optimizer: bool = False
    canaries: bool = False
    """An audit takes places in the rounds."""
    buffered: bool = False


@dataclasses.dataclass(frozen=True)
class Impossible:
    """Why a method cannot be had in a combination."""

    code: str
    """Stable: lora_method_unknown, lora_method_trust, lora_method_secagg, lora_method_mixed_ranks,
    lora_method_rule, lora_method_control_variates, lora_method_optimizer, lora_method_canaries, or
    lora_method_buffered."""
    alternatives: tuple[str, ...]
    """Methods that can, the most advisable first; `ffa` is always one of them."""


def impossible(wanted: Combination) -> Impossible | None:
    """Say why a combination cannot be run, and which methods can instead; None where it can.

    Whether the rule, the mode and the trust go together is not asked here.

    Args:
        wanted: the combination of a manifest.
    """
    code = _fault(wanted)
    if code is None:
        return None
    others = (dataclasses.replace(wanted, method=name) for name in METHODS)
    return Impossible(code, tuple(other.method for other in others if _fault(other) is None))


def default_method(*, trust: Trust, mode: Mode = "plain") -> str:
    """Return the method of a run that names none.

    Without noise and with single updates in sight, the exact decomposition; else the one factor through
    which noise passes once. Both take mixed ranks.
    """
    return "flexlora" if (trust, mode) == ("none", "plain") else "ffa"


def _fault(wanted: Combination) -> str | None:
    method = METHODS.get(wanted.method)
    if method is None:
        return "lora_method_unknown"
    faults = {
        "lora_method_trust": wanted.trust not in method.trusts,
        "lora_method_secagg": wanted.mode != "plain" and not method.is_sum,
        "lora_method_mixed_ranks": wanted.mixed_ranks and not method.mixed_ranks,
        "lora_method_rule": not _takes_rule(method, wanted.rule, wanted.mixing),
        "lora_method_control_variates": wanted.control_variates and not method.control_variates,
        "lora_method_optimizer": wanted.server_optimizer and not method.fixed_coordinates,
        "lora_method_canaries": wanted.canaries and not method.fixed_coordinates,
        "lora_method_buffered": wanted.buffered and not method.takes_stale,
    }
    return next((code for code, holds in faults.items() if holds), None)


def _takes_rule(method: LoraMethod, rule: str, mixing: str) -> bool:
    """Mixing would be of products as well; none is run."""
    if method.robust_on == "sent":
        return True
    return mixing == "none" and rule in (WEIGHING_RULES if method.robust_on == "products" else {"mean"})


def is_sent(method: str, name: str, *, number: int | None = None) -> bool:
    """Say whether a tensor that clients train leaves them: in round `number`, or in some where that is None.

    `fedsa` keeps B at the client; `rolora` trains B in odd rounds and A in even ones. `fedask` has a sketch
    in the place of B in odd rounds, and in even ones another in the place of A, with the heads.
    """
    if method == "fedsa":
        return ".lora_B." not in name
    if method == "rolora" and number is not None:
        return (".lora_A." if number % 2 else ".lora_B.") not in name
    if method in TWO_TURNS and number is not None:
        return (".lora_B." in name) == (number % 2 == 1)
    return True


def trains(method: str, number: int) -> bool:
    """Say whether clients look at their data in a round; under `fedask` in odd ones alone."""
    return method not in TWO_TURNS or number % 2 == 1


def sketched_shapes(manifest: Mapping[str, Any]) -> dict[str, tuple[int, int]]:
    """Return what stands in the place of each factor in a message of `fedask`, by the factor's name.

    Y of shape (d, p) in the place of B, and P^T of shape (p, k) in the place of A, with p the same for all
    clients whatever their ranks: `lora.sketch_width`, or where that is null as many columns as the ranks of
    all clients of a round add up to at most; never more than min(d, k). The latter is always exact.

    Args:
        manifest: the run's, as plain values.
    Returns:
        Nothing where a factor has no counterpart, which is no plan of `fedask`.
    """
    lora = manifest["lora"]
    by_name = {one["name"]: one["shape"] for one in manifest["tensors"] if ".lora_" in one["name"]}
    shapes = dict[str, tuple[int, int]]()
    for name in by_name:
        module = name.partition(".lora_")[0]
        whole = (by_name.get(f"{module}.lora_B.weight"), by_name.get(f"{module}.lora_A.weight"))
        if whole[0] is None or whole[1] is None:
            return {}
        rows, columns = whole[0][0], whole[1][-1]
        width = lora.get("sketch_width") or whole[1][0] * manifest["quorum"]["max_updates"]
        kept = min(width, rows, columns)
        shapes[name] = (rows, kept) if ".lora_B." in name else (kept, columns)
    return shapes


def shape_at_rank(name: str, shape: Sequence[int], rank: int) -> tuple[int, ...]:
    """Return the shape of a tensor of an adapter file as a client of this rank has it: its first corner."""
    if ".lora_B.core." in name:
        return (rank, rank)
    if ".lora_A." in name:
        return (rank, *shape[1:])
    return (shape[0], rank) if ".lora_B." in name else tuple(shape)
