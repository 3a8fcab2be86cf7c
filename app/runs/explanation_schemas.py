"""What the API shows of an explanation: numbers beside their texts, in the reader's language."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Self
from uuid import UUID

from pydantic import BaseModel, ConfigDict

from app.core.i18n import translate
from app.runs import explanation_texts as texts
from app.runs.explanation import FALSE_POSITIVE_RATE, Attack, Explanation, Noise, Text
from app.runs.models import Run


class Out(BaseModel):
    """An answer."""

    model_config = ConfigDict(extra="forbid")


class AttackOut(Out):
    """What the best membership attack could find out."""

    false_positive_rate: float
    greatest_true_positive_rate: float
    """An upper bound for every attack, not what any attack was seen to reach."""
    in_silos: dict[str, float]
    """With unit `person`: the same for a person in so many data sets."""
    computed_from: str
    """`schedule`: from the whole schedule's privacy loss; `epsilon_and_delta`: from these two, and weaker."""
    text: str


class NoiseOut(Out):
    """Length of the noise over the greatest length that the clipped sum can have."""

    single: float
    """In one step of one client; under `central` in one round."""
    whole_run: float
    """Over all of them together; from 1 on no learning is to be expected."""
    parameters: int
    text: str


class WarningOut(Out):
    """Something to think about before the run is started."""

    code: str
    text: str


class PointOut(Out):
    """One point by which NIST SP 800-226 would have a guarantee evaluated."""

    point: str
    title: str
    text: str


class ExplanationOut(Out):
    """What a plan protects, from whom, and how well."""

    run_id: UUID
    name: str
    manifest_sha256: str | None
    """Null before the run starts: the plan may still change."""
    language: str
    claimed: bool
    """False with trust `none`, and before the plan is priced."""
    epsilon: float | None
    delta: float | None
    epsilon_by_silos: dict[str, float]
    accountant: str | None
    noise_multiplier: float | None
    clip_norm: float | None
    unit: str
    trust: str
    relation: str
    cohort: dict[str, Any]
    examples: dict[str, Any]
    protected: str
    from_whom: str
    neighbours: str | None
    composition: str
    basis: str
    attack: AttackOut | None
    noise_to_signal: NoiseOut | None
    warnings: list[WarningOut]
    nist_sp_800_226: list[PointOut]

    @classmethod
    def of(cls, run: Run, found: Explanation, *, locale: str) -> Self:
        """From a run and its explanation."""
        privacy, price = run.manifest["privacy"], run.price or {}
        told = {name: _said(lines, locale) for name, lines in found.paragraphs.items()}
        return cls(
            run_id=run.id,
            name=run.name,
            manifest_sha256=run.manifest_sha256,
            language=locale,
            claimed=found.claimed,
            epsilon=price.get("epsilon"),
            delta=privacy["delta"],
            epsilon_by_silos=price.get("epsilon_by_silos") or {},
            accountant=price.get("accountant"),
            noise_multiplier=price.get("noise_multiplier"),
            **{
                name: privacy[name]
                for name in ("clip_norm", "unit", "trust", "relation", "cohort", "examples")
            },
            protected=told["protected"],
            from_whom=told["from_whom"],
            neighbours=told.get("neighbours"),
            composition=told["composition"],
            basis=told["basis"],
            attack=None if found.attack is None else _attack(found.attack, told["attack"]),
            noise_to_signal=None if found.noise is None else _noise(found.noise, told["noise_to_signal"]),
            warnings=[_warning(code, locale) for code in found.warnings],
            nist_sp_800_226=[_point(name, lines, locale) for name, lines in found.nist.items()],
        )


def _attack(attack: Attack, text: str) -> AttackOut:
    return AttackOut(
        false_positive_rate=FALSE_POSITIVE_RATE,
        greatest_true_positive_rate=attack.greatest_true_positive_rate,
        in_silos=attack.in_silos,
        computed_from=attack.computed_from,
        text=text,
    )


def _noise(noise: Noise, text: str) -> NoiseOut:
    return NoiseOut(single=noise.single, whole_run=noise.whole, parameters=noise.parameters, text=text)


def _said(lines: Sequence[Text], locale: str) -> str:
    return " ".join(translate(line.text, locale, **line.members) for line in lines)


def _warning(code: str, locale: str) -> WarningOut:
    return WarningOut(code=code, text=translate(texts.WARNINGS[code], locale))


def _point(name: str, lines: Sequence[Text], locale: str) -> PointOut:
    return PointOut(point=name, title=translate(texts.NIST_TITLES[name], locale), text=_said(lines, locale))
