"""The file of `dpfl federation init`, read strictly: who takes part, on which terms, for which plan."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from cli.i18n import _
from client.errors import ClientError
from client.policy import Policy

MOST_BYTES = 256 * 1024
MOST_SILOS = 1000
_MOST_DEPTH = 8
Words = Annotated[str, Field(min_length=1, max_length=100)]
Name = Annotated[str, Field(min_length=1, max_length=100, pattern=r"^[^\W_][\w .-]*$")]
Jurisdiction = Annotated[str, Field(pattern=r"^[A-Z]{2}(-[A-Z0-9]{1,3})?$")]
Amount = Annotated[float, Field(gt=0, le=1e6, allow_inf_nan=False)]
Fraction = Annotated[float, Field(gt=0, lt=1)]
Count = Annotated[int, Field(ge=1, le=100_000)]


class _Part(BaseModel):
    """A part of the file; a member that is not known is refused."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class Budget(_Part):
    """What each data set may spend in all runs together, as the server will hold it."""

    epsilon: Amount = 8.0
    delta: Fraction = 1e-5
    unit: Literal["example", "person", "client"] = "example"


class Terms(_Part):
    """What is proposed to each holder as policy; the holder decides."""

    labels: Annotated[list[Words], Field(min_length=2, max_length=1000)]
    text_fields: Annotated[list[Words], Field(min_length=1, max_length=100)]
    label_field: Words = "label"
    smallest_cohort: Count = 2


class Use(_Part):
    """What the data are used for; the silos' data rules may ask for it."""

    purpose: Words
    data_categories: Annotated[list[Words], Field(min_length=1, max_length=20)]


class Plan(_Part):
    """The first run: a manifest is made of it, and priced."""

    name: Name
    use: Use | None = None
    base_model: Annotated[str, Field(min_length=1, max_length=500)]
    layers: Annotated[list[Annotated[int, Field(ge=0, le=1000)]], Field(min_length=1, max_length=100)]
    rank: Annotated[int, Field(ge=1, le=256)] = 8
    method: Words = "ffa"
    rounds: Count = 8
    local_steps: Count = 8
    epsilon: Amount = 2.0
    delta: Fraction = 1e-6
    rate: Fraction = 0.1
    divisor: Amount = 64.0
    seed: Annotated[int, Field(ge=0, le=2**31)] = 1


class Silo(_Part):
    """One organisation with one data set."""

    name: Name
    dataset: Words | None = None
    """Name of its data set; the organisation's own name without it."""
    region: Words | None = None
    jurisdiction: Jurisdiction | None = None

    @property
    def folder(self) -> str:
        """What its folder is called."""
        return re.sub(r"[^\w.-]+", "-", self.name.strip()).lower()

    @property
    def data(self) -> str:
        """The data set's name."""
        return self.dataset or self.name


class Federation(_Part):
    """The whole file."""

    version: Literal[1]
    region: Words
    jurisdiction: Jurisdiction | None = None
    """Whose law the data are under; data rules may ask for it."""
    expires_hours: Annotated[int, Field(ge=1, le=720)] = 72
    budget: Budget = Budget()
    policy: Terms
    plan: Plan | None = None
    silos: Annotated[list[Silo], Field(min_length=1, max_length=MOST_SILOS)]

    @field_validator("silos")
    @classmethod
    def _differ(cls, silos: list[Silo]) -> list[Silo]:
        for kind in ("folder", "data"):
            if len({getattr(one, kind).casefold() for one in silos}) != len(silos):
                raise ValueError("names that differ")
        return silos

    @model_validator(mode="after")
    def _plan_fits_the_budget(self) -> Federation:
        plan = self.plan
        if plan is not None and (plan.epsilon > self.budget.epsilon or plan.delta > self.budget.delta):
            raise ValueError("a plan within the budget")
        return self

    def region_of(self, silo: Silo) -> str:
        """Where a silo's data are."""
        return silo.region or self.region

    def jurisdiction_of(self, silo: Silo) -> str | None:
        """Whose law a silo's data are under, where it was said."""
        return silo.jurisdiction or self.jurisdiction

    def policy_of(self, silo: Silo) -> Policy:
        """The terms that are proposed to a silo."""
        budget = self.budget
        return Policy.of(
            dataset=silo.data, epsilon=budget.epsilon, delta=budget.delta, **self.policy.model_dump()
        )


class _Plain(yaml.SafeLoader):  # type: ignore[misc]
    """YAML without what a list of hospitals needs none of: aliases, repeated names, deep nests."""

    depth = 0

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.AliasEvent):
            raise yaml.MarkedYAMLError(problem="an alias", problem_mark=self.peek_event().start_mark)
        self.depth += 1
        if self.depth > _MOST_DEPTH:
            raise yaml.MarkedYAMLError(problem="a nest too deep", problem_mark=self.peek_event().start_mark)
        node = super().compose_node(parent, index)
        self.depth -= 1
        return node

    def construct_mapping(self, node: Any, deep: bool = False) -> Any:
        names = [key.value for key, _value in node.value if isinstance(key.value, str)]
        if len(set(names)) != len(node.value):
            raise yaml.MarkedYAMLError(problem="a name that appears twice", problem_mark=node.start_mark)
        return super().construct_mapping(node, deep)


def read_federation(path: Path) -> Federation:
    """Read the file; the first thing that is not right is named."""
    try:
        with path.open("rb") as file:
            raw = file.read(MOST_BYTES + 1)
    except OSError as error:
        raise ClientError(
            "cannot_read", _("cannot read {path}: {reason}"), path=str(path), reason=error.strerror or "error"
        ) from error
    if len(raw) > MOST_BYTES:
        raise _refused(path, "size")
    try:
        loader = _Plain(raw)
        values = loader.get_single_data()
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        raise _refused(path, f"line {mark.line + 1 if mark else '?'}: {error.problem}") from error
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise _refused(path, "no YAML") from error
    try:
        return Federation.model_validate(values)
    except ValidationError as error:
        fault = error.errors(include_url=False, include_input=False)[0]
        place = ".".join(str(part) for part in fault["loc"]) or "plan"
        raise _refused(path, f"{place}: {fault['msg']}") from error


def _refused(path: Path, place: str) -> ClientError:
    return ClientError(
        "federation_invalid", _("{path} is not right: {place}"), path=str(path), place=place[:200]
    )
