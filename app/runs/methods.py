"""LoRA methods as a plan may name them: what each goes together with, and which tensors its clients send.

The static copy of engines/lora/methods.py, which the gateway cannot import; a contract test holds the two
against each other.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from app.core.errors import Invalid
from app.core.i18n import _
from app.runs.manifest import Manifest
from app.runs.sending import TWO_TURNS, WireTensor, sketched_shapes, wire_tensors

WEIGHING_RULES = frozenset({"mean", "krum", "multi_krum", "mda", "geometric_median"})
"""Rules whose result is one weighted sum of clients: these can look at products of factors."""
BY_COORDINATE = frozenset({"trimmed_mean", "median", "meamed", "bulyan"})
"""Rules whose result is no mixture of whole updates."""
NOISED_BY_SERVER = frozenset({"central", "distributed"})


@dataclass(frozen=True, kw_only=True)
class MethodTerms:
    """What a plan must fulfil to name a method."""

    is_linear: bool = False
    """Noise on a sum of what is sent is noise on the weight change: allowed where the server adds it."""
    is_sum: bool = False
    """The server needs no single client's update."""
    mixed_ranks: bool = False
    robust_on: str = "nothing"
    """What a robust rule may look at: the vectors that are `sent`, `products` of factors, or `nothing`."""
    fixed_coordinates: bool = False
    """Every round moves the same numbers, which a server optimizer keeps a state for, and canaries too."""
    takes_stale: bool = False
    """A change of an older adapter means the same when it is added to a newer one."""


METHODS: Mapping[str, MethodTerms] = {
    "ffa": MethodTerms(
        is_linear=True,
        is_sum=True,
        mixed_ranks=True,
        robust_on="sent",
        fixed_coordinates=True,
        takes_stale=True,
    ),
    "fedsb": MethodTerms(
        is_linear=True,
        is_sum=True,
        mixed_ranks=True,
        robust_on="sent",
        fixed_coordinates=True,
        takes_stale=True,
    ),
    "rolora": MethodTerms(is_linear=True, is_sum=True, mixed_ranks=True, robust_on="sent"),
    "flexlora": MethodTerms(mixed_ranks=True, robust_on="products"),
    "fedask": MethodTerms(is_sum=True, mixed_ranks=True),
    "flora": MethodTerms(mixed_ranks=True, robust_on="products"),
    "fedex": MethodTerms(robust_on="products"),
    "fedsa": MethodTerms(is_sum=True, robust_on="sent", fixed_coordinates=True),
    "fedit": MethodTerms(is_sum=True, robust_on="sent", fixed_coordinates=True, takes_stale=True),
}
"""In the order in which they are named as alternatives."""


class MethodTrustRefused(Invalid):
    """A LoRA method whose updates the server's noise cannot cover."""

    code, title = "lora_method_trust", _("This LoRA method cannot be run under this trust")
    meaning = _(
        "Where the server adds the noise, or sees only a sum, what is sent must be linear in the weight "
        "change: with both factors trained, noise on each is multiplied by the other."
    )
    remedy = _("Use a method that the answer names, or trust `local`.")


class MethodSecaggRefused(Invalid):
    """A LoRA method that needs single updates where there is only their sum."""

    code, title = "lora_method_secagg", _("This LoRA method needs single updates")
    meaning = _("Secure aggregation shows the server a sum, and this method works on each client's factors.")
    remedy = _("Use a method that the answer names, or mode `plain`.")


class MethodRanksRefused(Invalid):
    """A LoRA method that cannot average adapters of different ranks."""

    code, title = "lora_method_mixed_ranks", _("This LoRA method cannot mix ranks")
    meaning = _("The method averages factors by themselves, which needs all of them in one shape.")
    remedy = _("Use a method that the answer names, or set lora.ranks to null.")


class MethodRuleRefused(Invalid):
    """A robust rule that this LoRA method cannot be put under."""

    code, title = "lora_method_rule", _("This rule does not work with the LoRA method")
    meaning = _(
        "Factors of one model can be written in many ways, so a rule has to look at their products; rules by "
        "coordinate, and mixing before a rule, cannot."
    )
    remedy = _("Use a method that the answer names, or rule `mean` or `multi_krum` without mixing.")


class RanksRuleRefused(Invalid):
    """A rule by coordinate where some clients have more coordinates than others."""

    code, title = "mixed_ranks_rule", _("This rule does not work with mixed ranks")
    meaning = _(
        "What a client of a smaller rank does not have counts as zero. A rule by coordinate would take the "
        "few clients of the largest rank for outliers there, and nothing over the smaller ranks is learned."
    )
    remedy = _("Use rule `mean`, `geometric_median` or `multi_krum`, or set lora.ranks to null.")


class MethodOptimizerRefused(Invalid):
    """A server optimizer under a LoRA method that moves other numbers every round."""

    code, title = "lora_method_optimizer", _("No server optimizer goes with this LoRA method")
    meaning = _("A server optimizer keeps a state for each number, and this method changes what they mean.")
    remedy = _("Use a method that the answer names, or set aggregation.server_optimizer to null.")


class MethodCanariesRefused(Invalid):
    """An audit in the rounds under a LoRA method that moves other numbers every round."""

    code, title = "lora_method_canaries", _("Canaries cannot take part under this LoRA method")
    meaning = _(
        "A canary has one direction for the whole run, over what every round moves; this method moves one "
        "factor in odd rounds and the other in even ones."
    )
    remedy = _("Use a method that the answer names, or set privacy.audit to null.")


class MethodBufferedRefused(Invalid):
    """Buffered rounds under a LoRA method whose older updates mean something else by now."""

    code, title = "lora_method_buffered", _("This LoRA method cannot be used in buffered rounds")
    meaning = _(
        "A buffer adds changes of older adapters to the newest. Under this method these are of another "
        "factor, of factors that were decomposed anew since, or belong to a factor that the client keeps."
    )
    remedy = _("Use a method that the answer names, or set `buffered` to null.")


class MethodRoundsRefused(Invalid):
    """A LoRA method of two messages in a number of rounds that leaves one of them unsaid."""

    code, title = "lora_method_rounds", _("This LoRA method needs an even number of rounds")
    meaning = _(
        "Clients train in odd rounds and send a first message; the even round after it takes the second one, "
        "and only then is there another adapter."
    )
    remedy = _("Plan an even number of rounds, or use a method that the answer names.")


class MethodSettingRefused(Invalid):
    """A setting of another LoRA method."""

    code, title = "lora_setting_refused", _("The LoRA settings do not fit the method")
    meaning = _(
        "A setting that has no effect on the method of the plan would be a mistake, and a bound on an "
        "update's length says nothing where whole products are sent and not their changes."
    )
    remedy = _("Set what the answer names to null.")


_REFUSALS: Mapping[str, type[Invalid]] = {
    error.code: error
    for error in (
        MethodTrustRefused,
        MethodSecaggRefused,
        MethodRanksRefused,
        MethodRuleRefused,
        MethodOptimizerRefused,
        MethodCanariesRefused,
        MethodBufferedRefused,
    )
}


@dataclass(frozen=True)
class Wanted:
    """What a method is asked to go together with."""

    method: str
    trust: str
    mode: str = "plain"
    mixed_ranks: bool = False
    rule: str = "mean"
    mixing: str = "none"
    server_optimizer: bool = False
    canaries: bool = False
    buffered: bool = False


def impossible(wanted: Wanted) -> tuple[str, tuple[str, ...]] | None:
    """Say why a combination cannot be had, and which methods can instead; None where it can."""
    code = _fault(wanted)
    if code is None:
        return None
    return code, tuple(name for name in METHODS if _fault(replace(wanted, method=name)) is None)


def check_method(manifest: Manifest) -> None:
    """Refuse a LoRA method that does not go with the rest of the plan, and name those that do."""
    lora, aggregation = manifest.lora, manifest.aggregation
    wanted = Wanted(
        method=lora.method,
        trust=manifest.privacy.trust,
        mode=aggregation.mode,
        mixed_ranks=lora.has_mixed_ranks,
        rule=aggregation.rule,
        mixing=aggregation.mixing,
        server_optimizer=aggregation.server_optimizer is not None,
        canaries=manifest.privacy.canaries > 0,
        buffered=manifest.buffered is not None,
    )
    found = impossible(wanted)
    if found is not None:
        code, others = found
        raise _REFUSALS[code](
            _("method `{method}` does not go with the rest of the plan; these do: {others}"),
            method=lora.method,
            others=", ".join(others),
        )
    if lora.method in TWO_TURNS:
        _check_turns(manifest, wanted)
    if lora.has_mixed_ranks and aggregation.rule in BY_COORDINATE:
        raise RanksRuleRefused(_("rule `{rule}` does not go with mixed ranks"), rule=aggregation.rule)
    for setting, value, method in (
        ("energy", lora.energy, "flexlora"),
        ("sketch_width", lora.sketch_width, "fedask"),
    ):
        if value is not None and lora.method != method:
            raise MethodSettingRefused(
                _("`{setting}` has no effect on method `{method}`"), setting=setting, method=lora.method
            )


def _check_turns(manifest: Manifest, wanted: Wanted) -> None:
    """What a method of two messages needs besides."""
    lora, others = manifest.lora, [name for name in METHODS if name not in TWO_TURNS]
    if manifest.rounds % 2:
        raise MethodRoundsRefused(
            _("method `{method}` with {rounds} round(s); these take any number: {others}"),
            method=lora.method,
            rounds=manifest.rounds,
            others=", ".join(name for name in others if _fault(replace(wanted, method=name)) is None),
        )
    if manifest.aggregation.clip_norm is not None:
        raise MethodSettingRefused(
            _("`{setting}` cannot be used with method `{method}`"),
            setting="aggregation.clip_norm",
            method=lora.method,
        )
    if lora.sketch_width is not None and lora.sketch_width < max([lora.rank, *lora.rank_pattern.values()]):
        raise MethodSettingRefused(
            _("`{setting}` is under the rank, which method `{method}` could then not fill"),
            setting="sketch_width",
            method=lora.method,
        )


def _fault(wanted: Wanted) -> str | None:
    terms = METHODS[wanted.method]
    faults = {
        "lora_method_trust": wanted.trust in NOISED_BY_SERVER and not terms.is_linear,
        "lora_method_secagg": wanted.mode != "plain" and not terms.is_sum,
        "lora_method_mixed_ranks": wanted.mixed_ranks and not terms.mixed_ranks,
        "lora_method_rule": not _takes_rule(terms, wanted.rule, wanted.mixing),
        "lora_method_optimizer": wanted.server_optimizer and not terms.fixed_coordinates,
        "lora_method_canaries": wanted.canaries and not terms.fixed_coordinates,
        "lora_method_buffered": wanted.buffered and not terms.takes_stale,
    }
    return next((code for code, holds in faults.items() if holds), None)


def _takes_rule(terms: MethodTerms, rule: str, mixing: str) -> bool:
    if terms.robust_on == "sent":
        return True
    return mixing == "none" and rule in (WEIGHING_RULES if terms.robust_on == "products" else {"mean"})


def is_trained(method: str, name: str) -> bool:
    """Say whether clients train a tensor of the adapter in some round of a run."""
    if method == "ffa":
        return ".lora_A." not in name
    if method == "fedsb":
        return ".lora_A." not in name and ".lora_B.basis." not in name
    if method == "fedsa":
        return ".lora_B." not in name
    return True


def is_sent(method: str, name: str, *, number: int) -> bool:
    """Say whether an update of round `number` holds a tensor that is trained, or what stands in its place.

    `rolora` has turns, B first; `fedask` a sketch for B in odd rounds, one for A and the heads in even ones.
    """
    if method in TWO_TURNS:
        return (".lora_B." in name) == (number % 2 == 1)
    return method != "rolora" or (".lora_A." if number % 2 else ".lora_B.") not in name


def at_rank(name: str, shape: tuple[int, ...], rank: int) -> tuple[int, ...]:
    """The shape of a tensor of the adapter as a client of this rank has it."""
    if ".lora_B.core." in name:
        return (rank, rank)
    if ".lora_A." in name:
        return (rank, *shape[1:])
    return (shape[0], rank) if ".lora_B." in name else shape


def trained_shapes(
    manifest: Mapping[str, Any], *, number: int, rank: int | None = None
) -> dict[str, tuple[int, ...]]:
    """Name and shape of every tensor that is trained for the update of a round, in the order of names.

    Args:
        manifest: the run's, as plain values.
        number: of the round, from 1.
        rank: the client's; None is the run's.
    """
    method, usual = manifest["lora"]["method"], manifest["lora"]["rank"]
    shapes = {
        tensor["name"]: tuple(tensor["shape"])
        for tensor in manifest["tensors"]
        if tensor["trained"] and (method in TWO_TURNS or is_sent(method, tensor["name"], number=number))
    }
    if rank is None or rank == usual:
        return shapes
    return {name: at_rank(name, shape, rank) for name, shape in shapes.items()}


def sent_shapes(
    manifest: Mapping[str, Any], *, number: int, rank: int | None = None
) -> dict[str, tuple[int, ...]]:
    """Name and shape of every tensor in an update, in the order of names; arguments as above."""
    shapes, method = trained_shapes(manifest, number=number, rank=rank), manifest["lora"]["method"]
    if method not in TWO_TURNS:
        return shapes
    instead = sketched_shapes(manifest)
    return {
        name: instead.get(name, shape)
        for name, shape in shapes.items()
        if is_sent(method, name, number=number)
    }


def update_tensors(
    manifest: Mapping[str, Any], *, number: int, rank: int | None = None
) -> dict[str, WireTensor]:
    """Every tensor of an update file, in the run's wire dtype; arguments as of `sent_shapes`."""
    shapes = sent_shapes(manifest, number=number, rank=rank)
    return wire_tensors(shapes.items(), manifest["aggregation"].get("wire_dtype", "float32"))


def rank_for(manifest: Mapping[str, Any], declared: Mapping[str, Any]) -> int | None:
    """The largest of the run's ranks that a client can hold, and send within a round's deadline.

    memory = 4 (trained + frozen) + (8 + 4 batch) trained bytes, upload = sent bytes / speed seconds: weights,
    the optimizer's state, and where noise is added by example a gradient for each of a step's expected
    examples; what is sent is in the run's wire dtype (under `fedask` as large at every rank).
    None where even the smallest does not fit; a speed that was not declared limits nothing.

    Args:
        manifest: the run's, as plain values.
        declared: what the client says of its machine.
    """
    memory_bytes, upload_bytes_per_s = declared["memory_bytes"], declared.get("upload_bytes_per_s")
    batch = max(1, round(manifest["privacy"]["divisor"])) if manifest["privacy"]["trust"] == "local" else 1
    fitting = None
    for rank in manifest["lora"]["ranks"] or (manifest["lora"]["rank"],):
        moved = max(_elements(trained_shapes(manifest, number=turn, rank=rank)) for turn in (1, 2))
        sent_bytes = max(_bytes(update_tensors(manifest, number=turn, rank=rank)) for turn in (1, 2))
        held = _elements(
            {one["name"]: at_rank(one["name"], tuple(one["shape"]), rank) for one in manifest["tensors"]}
        )
        upload_s = sent_bytes / upload_bytes_per_s if upload_bytes_per_s else 0.0
        if 4 * held + (8 + 4 * batch) * moved <= memory_bytes and upload_s <= manifest["round_deadline_s"]:
            fitting = rank
    return fitting


def _elements(shapes: Mapping[str, tuple[int, ...]]) -> int:
    return sum(math.prod(shape) for shape in shapes.values())


def _bytes(tensors: Mapping[str, WireTensor]) -> int:
    return sum(tensor.size_bytes for tensor in tensors.values())
