"""What the holder of a data set allows, and the judgement of a run's manifest against it.

The server proposes; this file decides. Nothing here trusts a price that the server names: the client
computes it again.
"""

from __future__ import annotations

import tomllib
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from client.amounts import delta_ceiling, delta_cost, epsilon_ceiling, epsilon_cost
from client.durable import write_whole
from client.errors import ClientError
from client.i18n import _
from client.ledger import Ceiling, Terms
from client.wire import BaseModelRef, FrozenManifest, Manifest, Privacy

SUPPORTED_TRUSTS = ("local", "none")
_RELATIONS = ("zero_out", "replace_one")
"""Not add/remove: who takes part, and how many, is visible in this federation."""

_TEMPLATE = """\
# What the holder of this data set allows. It is read before every round; edit it to change it.
dataset = {dataset}

# The ceiling for all runs and all servers together, as long as the data set exists.
epsilon = {epsilon}
delta = {delta}
{per_year}
# Who may see updates before noise is added. "local": nobody. "none": the server; there is no privacy claim.
trusts = {trusts}

# A run is refused when its rounds may close with fewer clients than this.
smallest_cohort = {smallest_cohort}

# Names or weight digests of base models that may be trained; an empty list allows every installed one.
base_models = {base_models}

# Folders of base models that are not in an installed package, by name. A server never names a folder here.
[base_model_folders]
{folders}"""


class Policy(BaseModel):
    """The data holder's terms for one data set."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    dataset: Annotated[str, Field(min_length=1, max_length=200)]
    epsilon: Annotated[float, Field(ge=0, le=1e6, allow_inf_nan=False)]
    delta: Annotated[float, Field(ge=0, lt=1)]
    epsilon_per_year: Annotated[float | None, Field(ge=0, le=1e6, allow_inf_nan=False)] = None
    trusts: list[str] = ["local"]
    smallest_cohort: Annotated[int, Field(ge=1)] = 2
    base_models: list[str] = []
    base_model_folders: dict[str, str] = {}

    @classmethod
    def of(cls, **terms: Any) -> Policy:
        """Make a policy from a person's choices; names the one that is not right."""
        try:
            return cls.model_validate(terms)
        except ValidationError as error:
            name = ".".join(str(part) for part in error.errors()[0]["loc"])
            raise ClientError("bad_option", _("{option} is not right"), option=name) from error

    @property
    def ceiling(self) -> Ceiling:
        """The ceilings as whole numbers, rounded down."""
        yearly = self.epsilon_per_year
        return Ceiling(
            epsilon=epsilon_ceiling(self.epsilon),
            delta=delta_ceiling(self.delta),
            epsilon_per_year=None if yearly is None else epsilon_ceiling(yearly),
        )

    @classmethod
    def load(cls, path: Path) -> Policy:
        """Read policy.toml; a field that is missing, unknown or out of range is refused by name."""
        try:
            return cls.model_validate(tomllib.loads(path.read_text(encoding="utf-8")))
        except ValidationError as error:
            fields = ".".join(str(part) for part in error.errors()[0]["loc"])
            raise ClientError(
                "policy_invalid", _("{field} in {path} is not right"), field=fields, path=str(path)
            ) from error
        except (OSError, ValueError) as error:
            raise ClientError(
                "policy_unreadable", _("{path} cannot be read as TOML"), path=str(path)
            ) from error

    def save(self, path: Path) -> None:
        """Write policy.toml with its explanations."""
        yearly = "# epsilon_per_year = 8.0\n"
        if self.epsilon_per_year is not None:
            yearly = f"epsilon_per_year = {self.epsilon_per_year!r}\n"
        text = _TEMPLATE.format(
            dataset=_quoted(self.dataset),
            epsilon=repr(self.epsilon),
            delta=repr(self.delta),
            per_year=yearly,
            trusts=_listed(self.trusts),
            smallest_cohort=self.smallest_cohort,
            base_models=_listed(self.base_models),
            folders="".join(f"{_quoted(k)} = {_quoted(v)}\n" for k, v in self.base_model_folders.items()),
        )
        write_whole(path, text.encode())


def judge(manifest: Manifest, policy: Policy) -> None:
    """Raise ClientError unless the data holder's policy allows this run."""
    privacy = manifest.privacy
    if privacy.trust not in policy.trusts or privacy.trust not in SUPPORTED_TRUSTS:
        raise ClientError(
            "trust_refused",
            _("the run's trust is {trust}; the policy of this data set allows {allowed}"),
            trust=privacy.trust,
            allowed=", ".join(policy.trusts),
        )
    if privacy.unit != "example" or manifest.aggregation.mode != "plain":
        raise ClientError("plan_unsupported", _("this client cannot take part in a run of this kind"))
    if privacy.trust == "local":
        _judge_local(privacy)
    if manifest.quorum.min_updates < policy.smallest_cohort:
        raise ClientError(
            "cohort_too_small",
            _("a round may close with {least} clients; the policy wants at least {wanted}"),
            least=manifest.quorum.min_updates,
            wanted=policy.smallest_cohort,
        )
    base = manifest.base_model
    if policy.base_models and not {base.name, base.weights_sha256} & set(policy.base_models):
        raise ClientError(
            "base_model_refused", _("the policy does not allow the base model {name}"), name=base.name
        )


def terms_of(frozen: FrozenManifest, *, run_id: str, client_id: str, server: str) -> Terms:
    """Price the whole schedule as this client computes it, from the manifest's noise and not its claim."""
    manifest, privacy = frozen.manifest, frozen.manifest.privacy
    by_round: tuple[int, ...] = (0,) * manifest.rounds
    delta = 0
    if privacy.trust == "local":
        by_round, delta = _priced(manifest), delta_cost(_given(privacy.delta))
    return Terms(
        run_id=run_id,
        client_id=client_id,
        server=server,
        manifest_sha256=frozen.sha256,
        trust=privacy.trust,
        epsilon=by_round[-1],
        delta=delta,
        epsilon_by_round=by_round,
    )


def base_model_locator(base: BaseModelRef, policy: Policy) -> str:
    """Say where the base model is on THIS machine: a package, or a folder that the policy names."""
    folder = policy.base_model_folders.get(base.name)
    if folder is not None:
        return folder
    if not base.locator.startswith("package:"):
        raise ClientError(
            "base_model_missing",
            _("the policy names no folder for the base model {name}, and it is in no package"),
            name=base.name,
        )
    return base.locator


def _judge_local(privacy: Privacy) -> None:
    if privacy.relation not in _RELATIONS:
        raise ClientError(
            "relation_refused",
            _("a claim of the kind {relation} does not hold here"),
            relation=privacy.relation,
        )
    if None in (privacy.clip_norm, privacy.noise_multiplier, privacy.epsilon, privacy.delta):
        raise ClientError("plan_incomplete", _("the manifest names no clip norm, noise, epsilon or delta"))


def _priced(manifest: Manifest) -> tuple[int, ...]:
    privacy = manifest.privacy
    target = _given(privacy.epsilon)
    epsilons = _epsilons(
        noise_multiplier=_given(privacy.noise_multiplier),
        rate=privacy.rate,
        steps=manifest.steps,
        relation=privacy.relation,
        rounds=manifest.rounds,
        delta=_given(privacy.delta),
    )
    if epsilons[-1] > target:
        raise ClientError(
            "noise_too_small",
            _("the manifest claims epsilon {claimed}; its noise gives {computed}: the run is refused"),
            claimed=f"{target:g}",
            computed=f"{epsilons[-1]:.4f}",
        )
    return tuple(epsilon_cost(epsilon) for epsilon in epsilons)


@lru_cache(maxsize=16)
def _epsilons(
    *, noise_multiplier: float, rate: float, steps: int, relation: str, rounds: int, delta: float
) -> tuple[float, ...]:
    from engines.privacy.accounting import (  # noqa: PLC0415  (seconds to import)
        AccountingFailed,
        GaussianRun,
        Relation,
        epsilon_by_round,
    )

    try:
        run = GaussianRun(
            noise_multiplier=noise_multiplier,
            sampling_rate=rate,
            steps=steps,
            relation=Relation(relation),
        )
        return epsilon_by_round(run, rounds=rounds, delta=delta)
    except (AccountingFailed, ValueError) as error:
        raise ClientError(
            "cannot_price", _("this plan has no price that can be trusted: it is refused")
        ) from error


def _given(value: float | None) -> float:
    if value is None:
        raise ClientError("plan_incomplete", _("the manifest names no clip norm, noise, epsilon or delta"))
    return value


def _quoted(text: str) -> str:
    escaped = "".join(
        f"\\u{ord(char):04x}"
        if ord(char) < 32 or ord(char) == 127
        else {"\\": "\\\\", '"': '\\"'}.get(char, char)
        for char in text
    )
    return f'"{escaped}"'


def _listed(texts: list[str]) -> str:
    return f"[{', '.join(_quoted(text) for text in texts)}]"
