"""What a plan means for those whose data it uses, from its manifest and price alone. Reads no database.

Every number is rounded against the plan: epsilon and an attack's success up.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from decimal import ROUND_CEILING, Context, Decimal
from typing import Any

from app.budget.arithmetic import shown_spent
from app.runs import explanation_texts as texts
from app.runs.manifest import Manifest, PoissonCohort, PoissonExamples
from app.runs.methods import trained_shapes

FALSE_POSITIVE_RATE = 0.01
_WEAK_FROM = 0.5
_LARGE_DELTA = 1e-4


@dataclass(frozen=True, slots=True)
class Text:
    """A marked text with what fills its places."""

    text: str
    members: dict[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Attack:
    """The best that any membership attack can do at 1 % false positives."""

    greatest_true_positive_rate: float
    in_silos: dict[str, float]
    """For a person in so many data sets, from epsilon and delta alone."""
    computed_from: str
    """`schedule`, or the weaker bound by `epsilon_and_delta`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Noise:
    """Length of the noise over the greatest length that the sum can have."""

    single: float
    """In one step of one client, under `central` in one round."""
    whole: float
    """Over the whole run: noise of independent sums grows by the root of their number, their signal by it."""
    parameters: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Explanation:
    """Everything that an explanation says, not yet in anybody's language."""

    claimed: bool
    paragraphs: dict[str, list[Text]]
    """protected, from_whom, neighbours, composition, basis, attack, noise_to_signal: some may be missing."""
    attack: Attack | None
    noise: Noise | None
    warnings: list[str]
    nist: dict[str, list[Text]]


def explain(manifest: Manifest, price: dict[str, Any] | None, *, clients: int) -> Explanation:
    """Explain a plan with `clients` clients; `price` is None before it is priced."""
    trust = manifest.privacy.trust
    priced = bool(price) and (price or {}).get("epsilon") is not None
    found = price if priced and price is not None else {}
    attack = _attack(found) if found else None
    noise = _noise(manifest, found, clients=clients) if found else None
    paragraphs = {
        "protected": [_protected(manifest)],
        "from_whom": _from_whom(manifest),
        "neighbours": [] if trust == "none" else [Text(texts.RELATIONS[manifest.privacy.relation], {})],
        "composition": [_composition(manifest), *_canaries(manifest)],
        "basis": [Text(texts.BASIS[trust], {})],
        "attack": [] if attack is None else [_attack_text(attack)],
        "noise_to_signal": [] if noise is None else [_noise_text(noise, trust=trust)],
    }
    return Explanation(
        claimed=priced and trust != "none",
        paragraphs={name: found for name, found in paragraphs.items() if found},
        attack=attack,
        noise=noise,
        warnings=_warnings(manifest, attack, noise, priced=priced),
        nist=_nist(manifest, found),
    )


def greatest_true_positive_rate(*, epsilon: float, delta: float) -> float:
    """Bound any test at 1 % false positives by one (epsilon, delta).

    Source: Kairouz, Oh and Viswanath 2015, arXiv:1311.0776, theorem 2.1.
    """
    if epsilon >= math.log(1 / FALSE_POSITIVE_RATE):
        above = 1.0
    else:
        above = math.exp(epsilon) * FALSE_POSITIVE_RATE + delta
    below = 1.0 - math.exp(-epsilon) * (1.0 - delta - FALSE_POSITIVE_RATE)
    return min(1.0, above, below)


def _attack(price: dict[str, Any]) -> Attack:
    delta = float(price["delta"])
    rate = greatest_true_positive_rate(epsilon=float(price["epsilon"]), delta=delta)
    by_schedule = price.get("attack_tpr_at_1_percent")
    silos = price.get("epsilon_by_silos") or {}
    return Attack(
        greatest_true_positive_rate=rate if by_schedule is None else min(rate, float(by_schedule)),
        in_silos={
            count: greatest_true_positive_rate(epsilon=float(epsilon), delta=delta)
            for count, epsilon in silos.items()
            if count != "1"
        },
        computed_from="epsilon_and_delta" if by_schedule is None else "schedule",
    )


def _noise(manifest: Manifest, price: dict[str, Any], *, clients: int) -> Noise:
    """z C sqrt(d) over C times what is expected to be summed: both in the length of one clipped vector."""
    privacy = manifest.privacy
    parameters = sum(math.prod(shape) for shape in trained_shapes(manifest.as_json(), number=1).values())
    multiplier = float(price.get("clip_noise_multiplier") or price["noise_multiplier"])
    if privacy.trust == "central":
        share = privacy.cohort.rate if isinstance(privacy.cohort, PoissonCohort) else 1.0
        expected, sums = share * clients, manifest.steps
    else:
        expected, sums = privacy.divisor, manifest.steps * clients
        if manifest.buffered is not None:
            sums = manifest.training.local_steps * manifest.rounds * manifest.quorum.max_updates
    single = multiplier * math.sqrt(parameters) / expected
    return Noise(single=single, whole=single / math.sqrt(sums), parameters=parameters)


def _warnings(manifest: Manifest, attack: Attack | None, noise: Noise | None, *, priced: bool) -> list[str]:
    privacy = manifest.privacy
    if privacy.trust == "none":
        return ["no_privacy"]
    rules = (
        ("not_priced", not priced),
        ("no_learning_expected", noise is not None and noise.whole >= 1.0),
        (
            "weak_promise",
            attack is not None
            and max([attack.greatest_true_positive_rate, *attack.in_silos.values()]) > _WEAK_FROM,
        ),
        ("delta_large", privacy.delta is not None and privacy.delta > _LARGE_DELTA),
    )
    return [code for code, holds in rules if holds]


def _protected(manifest: Manifest) -> Text:
    privacy = manifest.privacy
    if privacy.trust == "none":
        return Text(texts.NOT_PROTECTED, {})
    members = {} if privacy.person is None else privacy.person.model_dump()
    return Text(texts.PROTECTED[privacy.unit], members)


def _from_whom(manifest: Manifest) -> list[Text]:
    privacy = manifest.privacy
    found = [Text(texts.FROM_WHOM[privacy.trust], {})]
    if privacy.has_secret_cohort:
        found.append(Text(texts.SECRET_COHORT, {}))
    return found


def _composition(manifest: Manifest) -> Text:
    trust = manifest.privacy.trust
    return Text(texts.COMPOSITION[trust], {"steps": manifest.steps})


def _attack_text(attack: Attack) -> Text:
    percent = math.ceil(attack.greatest_true_positive_rate * 1000) / 10
    return Text(texts.ATTACK, {"percent": f"{min(percent, 100.0):g} %"})


def _noise_text(noise: Noise, *, trust: str) -> Text:
    members = {"single": f"{noise.single:.2g}", "whole": f"{noise.whole:.2g}"}
    return Text(texts.NOISE[trust], members)


def _nist(manifest: Manifest, price: dict[str, Any]) -> dict[str, list[Text]]:
    """The points by which NIST SP 800-226 would have a guarantee evaluated."""
    trust = manifest.privacy.trust
    if trust == "none":
        found = {name: [Text(texts.NO_CLAIM, {})] for name in texts.NIST_TITLES}
        return found | {"unit": [_protected(manifest)], "trust_model": _from_whom(manifest)}
    not_covered = [Text(texts.NOT_COVERED, {})]
    if manifest.privacy.unit == "example":
        not_covered.append(Text(texts.NOT_COVERED_PERSON, {}))
    return {
        "unit": [_protected(manifest)],
        "epsilon": _epsilon(manifest, price),
        "delta": [Text(texts.DELTA, {"delta": f"{manifest.privacy.delta:g}"})],
        "trust_model": [*_from_whom(manifest), Text(texts.BASIS[trust], {})],
        "mechanism": _mechanism(manifest, price),
        "sampling": [_sampling(manifest), *_canaries(manifest)],
        "composition": [_composition(manifest)],
        "side_channels": [Text(texts.SIDE_CHANNELS, {})],
        "not_covered": not_covered,
    }


def _epsilon(manifest: Manifest, price: dict[str, Any]) -> list[Text]:
    if not price:
        target = manifest.privacy.epsilon
        return [
            Text(texts.EPSILON_OPEN, {})
            if target is None
            else Text(texts.EPSILON_TARGET, {"epsilon": target})
        ]
    epsilon = float(price["epsilon"])
    found = [
        Text(
            texts.EPSILON,
            {
                "epsilon": shown_spent(Decimal(repr(epsilon))),
                "accountant": price.get("accountant"),
                "factor": _up(math.exp(epsilon)),
            },
        )
    ]
    for silos, larger in (price.get("epsilon_by_silos") or {}).items():
        if silos != "1":
            members = {"silos": silos, "epsilon": shown_spent(Decimal(repr(float(larger))))}
            found.append(Text(texts.EPSILON_SILOS, members))
    return found


def _mechanism(manifest: Manifest, price: dict[str, Any]) -> list[Text]:
    privacy = manifest.privacy
    multiplier = price.get("noise_multiplier") or privacy.noise_multiplier
    found = [Text(texts.MECHANISM[privacy.unit], {"clip_norm": f"{privacy.clip_norm:g}"})]
    if multiplier is not None:
        found.append(Text(texts.MULTIPLIER, {"multiplier": f"{multiplier:g}"}))
    if privacy.adaptive_clip is not None:
        found.append(Text(texts.ADAPTIVE, {}))
    return found


def _sampling(manifest: Manifest) -> Text:
    privacy = manifest.privacy
    if privacy.trust != "local":
        if isinstance(privacy.cohort, PoissonCohort):
            return Text(texts.SAMPLING["cohort"], privacy.cohort.model_dump())
        return Text(texts.SAMPLING["everyone"], {})
    if isinstance(privacy.examples, PoissonExamples):
        return Text(texts.SAMPLING[privacy.unit], {"rate": privacy.examples.rate})
    return Text(texts.SAMPLING["all"], {})


def _canaries(manifest: Manifest) -> list[Text]:
    """That made-up contributions take part in the rounds, where they do."""
    canaries = manifest.privacy.canaries
    return [Text(texts.CANARIES, {"canaries": canaries})] if canaries else []


def _up(value: float) -> str:
    """Three digits, rounded up."""
    shown = Context(prec=3, rounding=ROUND_CEILING).create_decimal_from_float(value)
    return f"{shown:f}" if value < 1e9 else f"{shown:E}"
