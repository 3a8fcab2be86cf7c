"""`dpfl price`: what a plan costs, as JSON, without any server. Parses arguments; the accountants price."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from cli.i18n import _
from cli.reporting import one_line_errors, quiet_libraries

if TYPE_CHECKING:
    from collections.abc import Sequence

    from client.errors import ClientError
    from engines.privacy.accounting import GaussianRun

Unit = Literal["example", "person", "client"]
Trust = Literal["local", "central", "distributed"]
Relation = Literal["zero_out", "replace_one", "add_remove"]
Sampling = Literal["poisson", "everyone"]
StepsOption = Annotated[
    int | None, typer.Option(help=_("Noised steps: of a client, or rounds; distributed: its most rounds."))
]
NoiseOption = Annotated[
    float | None, typer.Option("--z", help=_("Noise multiplier: deviation on the sum over the clip norm."))
]
CalibrateOption = Annotated[
    float | None,
    typer.Option(
        help=_("This epsilon at most: finds the least --z, or the most --steps; with both it checks them.")
    ),
]
SegmentsOption = Annotated[
    str | None, typer.Option(help=_("Parts of a schedule, q:z:T,..., instead of --q, --z and --steps."))
]
RateOption = Annotated[
    float | None, typer.Option("--q", help=_("Sampling rate: local, of examples; else of the cohort."))
]


def price_plan(
    *,
    steps: StepsOption = None,
    z: NoiseOption = None,
    calibrate: CalibrateOption = None,
    segments: SegmentsOption = None,
    q: RateOption = None,
    sampling: Annotated[Sampling, typer.Option(help=_("Who is in a step."))] = "poisson",
    cap: Annotated[int | None, typer.Option(help=_("Most clients of a central round."))] = None,
    population: Annotated[int | None, typer.Option(help=_("Most clients of a central run."))] = None,
    delta: Annotated[float, typer.Option(help=_("Delta of the whole schedule."))] = 1e-5,
    unit: Annotated[Unit, typer.Option(help=_("Whose data is protected."))] = "example",
    trust: Annotated[Trust, typer.Option(help=_("Who adds the noise."))] = "local",
    relation: Annotated[Relation, typer.Option(help=_("Which data sets count as neighbours."))] = "zero_out",
) -> None:
    """Print a plan's price by both accountants, with everything that was asked."""
    quiet_libraries()
    asked = {
        "unit": unit,
        "trust": trust,
        "sampling": sampling,
        "q": q,
        "cap": cap,
        "population": population,
        "z": z,
        "steps": steps,
        "segments": segments,
        "calibrate": calibrate,
    }
    with one_line_errors():
        print(json.dumps(priced(asked, delta=delta, relation=relation), indent=2))


def priced(asked: dict[str, Any], *, delta: float, relation: str) -> dict[str, Any]:
    """Price what was asked; raises ClientError `bad_options`, `impossible_plan` or `cannot_price`."""
    from engines.privacy import accounting

    _require_sound(asked, relation=relation)
    try:
        schedule = _schedule(asked, delta=delta, relation=relation)
        return {
            "epsilon_pld": accounting.epsilon_pld(schedule, delta=delta),
            "epsilon_rdp": _by_rdp(schedule, delta=delta),
            "delta": delta,
            "relation": relation,
            "noise_multipliers": [part.noise_multiplier for part in schedule],
            "steps": [part.steps for part in schedule],
            "accountants": {"epsilon_pld": accounting.ACCOUNTANT, "epsilon_rdp": _rdp_name()},
            "asked": asked,
        }
    except accounting.ImpossiblePlan as error:
        raise _error("impossible_plan", _("this cannot be reached: {why}"), why=str(error)) from error
    except (accounting.AccountingFailed, ValueError) as error:
        raise _error("cannot_price", _("this plan has no price: {why}"), why=str(error)) from error


def _require_sound(asked: dict[str, Any], *, relation: str) -> None:
    """Refuse options that do not go together, before anything is computed."""
    trust, is_cohort = asked["trust"], asked["trust"] != "local"
    rules = (
        (is_cohort == (asked["unit"] == "client"), _("unit client goes with trust central or distributed")),
        (
            trust == "central" or (asked["cap"] is None and asked["population"] is None),
            _("only a central cohort has --cap and --population"),
        ),
        ((asked["cap"] is None) == (asked["population"] is None), _("--cap and --population go together")),
        (
            trust != "distributed" or asked["sampling"] == "everyone",
            _("distributed is priced without amplification: --sampling everyone"),
        ),
        (
            (trust == "central" and asked["sampling"] == "poisson") or asked["cap"] is None,
            _("a cap goes with --sampling poisson"),
        ),
        (relation != "add_remove" or not is_cohort, _("where rounds are seen, use zero_out or replace_one")),
        *_rules_of_numbers(asked),
    )
    for holds, text in rules:
        if not holds:
            raise _error("bad_options", text)


def _rules_of_numbers(asked: dict[str, Any]) -> tuple[tuple[bool, str], ...]:
    if asked["segments"] is not None:
        single = [asked[name] is not None for name in ("z", "steps", "q", "calibrate")]
        return (
            (not any(single), _("--segments has all numbers: leave --q, --z, --steps and --calibrate out")),
        )
    return (
        (
            [asked[name] for name in ("z", "steps", "calibrate")].count(None) <= 1,
            _("name at least two of --z, --steps and --calibrate; the third is computed"),
        ),
        (
            (asked["q"] is not None) == (asked["sampling"] == "poisson"),
            _("--sampling poisson needs --q, and everyone has none"),
        ),
    )


def _schedule(asked: dict[str, Any], *, delta: float, relation: str) -> list[GaussianRun]:
    """The schedule that was asked for, its open number found; with all three, they have to agree."""
    from engines.privacy.accounting import CappedPoisson, GaussianRun, Relation, complete_plan

    capped = None
    if asked["cap"] is not None:
        capped = CappedPoisson(population=asked["population"], cap=asked["cap"])
    if asked["segments"] is None:
        rate = 1.0 if asked["q"] is None else asked["q"]
        _require_cap(asked, rate)
        plan = complete_plan(
            noise_multiplier=asked["z"],
            steps=asked["steps"],
            epsilon=asked["calibrate"],
            delta=delta,
            sampling_rate=rate,
            relation=Relation(relation),
            capped=capped,
        )
        return [plan.run]
    parts = _segments(asked)
    for rate, _z, _steps in parts:
        _require_cap(asked, rate)
    return [
        GaussianRun(
            sampling_rate=rate,
            noise_multiplier=z,
            steps=steps,
            relation=Relation(relation),
            capped=capped,
        )
        for rate, z, steps in parts
    ]


def _segments(asked: dict[str, Any]) -> list[tuple[float, float, int]]:
    """Read q:z:T,...; with everyone in every step, q is 1."""
    parts: list[tuple[float, float, int]] = []
    for text in asked["segments"].split(","):
        try:
            rate, z, steps = text.split(":")
            parts.append((float(rate), float(z), int(steps)))
        except ValueError as error:
            raise _error("bad_options", _("{text} is no segment q:z:T"), text=text) from error
    if asked["sampling"] == "everyone" and any(rate != 1.0 for rate, _z, _steps in parts):
        raise _error("bad_options", _("with --sampling everyone every q is 1"))
    return parts


def _require_cap(asked: dict[str, Any], rate: float) -> None:
    from engines.privacy.accounting import require_cap

    if asked["cap"] is not None:
        require_cap(asked["population"], rate, asked["cap"])


def _by_rdp(schedule: Sequence[GaussianRun], *, delta: float) -> float | None:
    """The Renyi accountant's epsilon; None where it has no bound for this sampling."""
    from engines.privacy.accounting import AccountingFailed, epsilon_rdp

    try:
        return epsilon_rdp(schedule, delta=delta)
    except (AccountingFailed, ValueError):
        return None


def _rdp_name() -> str:
    from engines.privacy.accounting import ACCOUNTANT

    return ACCOUNTANT.replace("PLD", "RDP")


def _error(code: str, message: str, **members: Any) -> ClientError:
    from client.errors import ClientError

    return ClientError(code, message, **members)
