"""What the holder of a data set allows, and the judgement of a run's manifest against it.

The server proposes; this file decides. What a run costs is computed in client.pricing.
"""

from __future__ import annotations

import math
import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from client.amounts import delta_ceiling, epsilon_ceiling
from client.durable import write_whole
from client.errors import ClientError
from client.i18n import _
from client.ledger import Ceiling
from client.training import BaseModelRef, Sha256
from client.wire import Manifest, PoissonCohort, Privacy

Name = Annotated[str, Field(min_length=1, max_length=100)]
SUPPORTED_TRUSTS = ("local", "central", "none")
_RUN_UNITS = {("local", "example"), ("local", "person"), ("central", "client")}
"""What is noised by whom, and whose contribution is bounded. A run without noise protects no unit."""
_FINENESS = ("example", "person", "client")
_RELATIONS = ("zero_out", "replace_one")
"""Not add/remove: who takes part, and how many, is visible in this federation."""

_TEMPLATE = """\
# What the holder of this data set allows. It is read before every round; edit it to change it.
dataset = {dataset}

# The ceiling for all runs and all servers together, as long as the data set exists.
epsilon = {epsilon}
delta = {delta}
{per_year}
# Who may see updates before noise is added. "local": nobody. "central": the server, which adds the noise;
# the claim holds only against those who see what it publishes. "none": the server; there is no privacy claim.
trusts = {trusts}

# Whose data a run must protect: one "example", all records of one "person", or all of this "client".
# The ceiling above holds for the finest that is named, so a run for a coarser one needs the relation
# "replace_one": under "zero_out" the coarser one is protected as a whole, and no part of it by itself.
units = {units}

# A run is refused when its rounds may close with fewer clients than this. Where the server draws the clients
# of a round at random and in secret, no number is certain; there it is the mean number that is compared.
smallest_cohort = {smallest_cohort}

# What the data hold, as you declare it; a run that asks for anything else is refused without a look at them.
# So nobody can find out what is in them by planning runs and watching who stays away. A run may use fewer
# text fields; the labels have to be these, in any order.
text_fields = {text_fields}
label_field = {label_field}
labels = {labels}
{person}
# SHA-256 of the weights of base models that may be trained; an empty list allows every installed one. A name
# would bind nothing: a server may give any weights any name. The digest does not cover the tokenizer's files.
base_models = {base_models}

# Folders of base models that are not in an installed package, by the name that runs use. What lies there is
# used only if its weights have the digest that the run names. A server never names a folder here.
[base_model_folders]
{folders}"""


class Policy(BaseModel):
    """The data holder's terms for one data set."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    dataset: Annotated[str, Field(min_length=1, max_length=200)]
    epsilon: Annotated[float, Field(ge=0, le=1e6, allow_inf_nan=False)]
    delta: Annotated[float, Field(ge=0, lt=1)]
    epsilon_per_year: Annotated[float | None, Field(ge=0, le=1e6, allow_inf_nan=False)] = None
    trusts: list[Literal["local", "central", "distributed", "none"]] = ["local"]
    units: Annotated[list[Literal["example", "person", "client"]], Field(min_length=1)] = [
        "example",
        "person",
        "client",
    ]
    smallest_cohort: Annotated[int, Field(ge=1)] = 2
    text_fields: Annotated[list[Name], Field(min_length=1)]
    label_field: Name
    labels: Annotated[list[Name], Field(min_length=2)]
    person_field: Name | None = None
    """The field that tells persons apart; without it no run may protect persons."""
    person_records: Annotated[int | None, Field(ge=1)] = None
    """No person has more records than this."""
    base_models: list[Sha256] = []
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
        person = '# person_field = "author"\n# person_records = 100\n'
        if self.person_field is not None:
            person = f"person_field = {_quoted(self.person_field)}\n"
        if self.person_records is not None:
            person += f"person_records = {self.person_records}\n"
        text = _TEMPLATE.format(
            text_fields=_listed(self.text_fields),
            label_field=_quoted(self.label_field),
            labels=_listed(self.labels),
            person=person,
            dataset=_quoted(self.dataset),
            epsilon=repr(self.epsilon),
            delta=repr(self.delta),
            per_year=yearly,
            trusts=_listed(self.trusts),
            units=_listed(self.units),
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
    if manifest.aggregation.mode != "plain":
        raise _unsupported()
    if manifest.buffered is not None and (privacy.trust == "central" or privacy.relation != "zero_out"):
        raise _unsupported()  # who sends, and when, is seen there, and only a client's own noise has a price
    if privacy.trust != "none":
        _judge_unit(privacy, policy)
        _judge_priced(manifest)
    least = _least_cohort(manifest)
    if least < policy.smallest_cohort:
        raise ClientError(
            "cohort_too_small",
            _("a round may close with {least} clients; the policy wants at least {wanted}"),
            least=least,
            wanted=policy.smallest_cohort,
        )
    _judge_data(manifest, policy)
    _judge_relation(privacy, policy)
    base = manifest.base_model
    if policy.base_models and base.weights_sha256 not in policy.base_models:
        raise ClientError(
            "base_model_refused",
            _("the policy does not allow the base model {name}, whose weights have the digest {digest}"),
            name=base.name,
            digest=base.weights_sha256,
        )


def _judge_data(manifest: Manifest, policy: Policy) -> None:
    """Refuse other fields and labels than the holder declared: whether data fit them tells what they hold."""
    task, person = manifest.task, manifest.privacy.person
    if len(task.labels) != len(policy.labels) or set(task.labels) != set(policy.labels):
        raise ClientError("labels_refused", _("the run's labels are not those that the policy declares"))
    if task.label_field != policy.label_field or not set(task.text_fields) <= set(policy.text_fields):
        raise ClientError("fields_refused", _("the run reads other fields than the policy declares"))
    if person is None:
        return
    most = policy.person_records
    if person.id_field != policy.person_field or most is None or person.records_cap < most:
        raise ClientError(
            "persons_refused",
            _("the run's field or cap of persons does not go with person_field and person_records"),
        )


def _judge_unit(privacy: Privacy, policy: Policy) -> None:
    """Refuse a unit that this client cannot protect, or that the holder does not accept."""
    if (privacy.trust, privacy.unit) not in _RUN_UNITS:
        raise _unsupported()
    if privacy.unit not in policy.units:
        raise ClientError(
            "unit_refused",
            _("the run protects one {unit}; the policy of this data set allows {allowed}"),
            unit=privacy.unit,
            allowed=", ".join(policy.units),
        )


def _judge_relation(privacy: Privacy, policy: Policy) -> None:
    """Refuse a guarantee that is none for the finest unit that the holder names: its ceiling is for that."""
    finest = min(policy.units, key=_FINENESS.index)
    if privacy.trust != "none" and privacy.relation == "zero_out" and privacy.unit != finest:
        raise ClientError(
            "relation_refused",
            _("under zero_out the run covers one {unit}, and no {finest}, which the policy's units name"),
            unit=privacy.unit,
            finest=finest,
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


def _judge_priced(manifest: Manifest) -> None:
    """Refuse a claim that would not hold, whatever its price."""
    privacy = manifest.privacy
    if privacy.relation not in _RELATIONS:
        raise ClientError(
            "relation_refused",
            _("a claim of the kind {relation} does not hold here"),
            relation=privacy.relation,
        )
    if None in (privacy.clip_norm, privacy.noise_multiplier, privacy.epsilon, privacy.delta):
        raise ClientError("plan_incomplete", _("the manifest names no clip norm, noise, epsilon or delta"))
    if (privacy.person is not None) != (privacy.unit == "person"):
        raise _unsupported()
    if privacy.trust == "central":
        _judge_central(manifest)
    elif privacy.adaptive_clip is not None:  # this client clips at the plan's C, always
        raise _unsupported()


def _judge_central(manifest: Manifest) -> None:
    """Refuse what the server could not noise as the plan says."""
    aggregation, adaptive = manifest.aggregation, manifest.privacy.adaptive_clip
    if aggregation.weights != "uniform" or aggregation.clip_norm is not None:
        raise _unsupported()
    trims = aggregation.rule == "trimmed_mean" and manifest.privacy.cohort.kind == "everyone"
    if aggregation.mixing != "none" or not (aggregation.rule == "mean" or trims):
        raise _unsupported()  # the price is that of a sum, which a trimmed sum over all clients shares
    if aggregation.server_optimizer is not None and aggregation.server_optimizer.kind == "fedexp":
        raise _unsupported()  # its step would be as long as un-noised updates are: nobody is charged for that
    noise_multiplier = manifest.privacy.noise_multiplier or math.inf
    if adaptive is not None and not noise_multiplier < 2 * adaptive.bit_noise:
        raise _unsupported()  # nothing of the plan's noise would be left for the updates


def _least_cohort(manifest: Manifest) -> int:
    """With how few clients a round may close. A secret cohort may be empty: there its mean stands for it."""
    cohort = manifest.privacy.cohort
    if manifest.privacy.trust == "central" and isinstance(cohort, PoissonCohort):
        return math.floor(cohort.rate * cohort.n_max)
    return manifest.quorum.min_updates


def _unsupported() -> ClientError:
    return ClientError("plan_unsupported", _("this client cannot take part in a run of this kind"))


def _quoted(text: str) -> str:
    escaped = "".join(
        f"\\u{ord(char):04x}"
        if ord(char) < 32 or ord(char) == 127
        else {"\\": "\\\\", '"': '\\"'}.get(char, char)
        for char in text
    )
    return f'"{escaped}"'


def _listed(texts: Sequence[str]) -> str:
    return f"[{', '.join(_quoted(text) for text in texts)}]"
