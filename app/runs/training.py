"""What a run trains, as parts of its manifest: task, base model, shape of the adapter, local steps."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from app.core.strict import Hex64

_PRINTABLE = r"^[^\x00-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069]+$"
Word = Annotated[str, Field(strict=True, min_length=1, max_length=100, pattern=_PRINTABLE)]
Text = Annotated[str, Field(strict=True, min_length=1, max_length=500, pattern=_PRINTABLE)]


class Part(BaseModel):
    """A part of the manifest; a member that is not named here is refused."""

    model_config = ConfigDict(extra="forbid", frozen=True)


def _distinct(values: tuple[Any, ...]) -> tuple[Any, ...]:
    if len(set(values)) != len(values):
        raise ValueError("a value is listed twice")
    return values


class Task(Part):
    """What is learned from which fields of a record."""

    kind: Literal["sequence_classification"]
    labels: Annotated[tuple[Word, ...], Field(min_length=2, max_length=1000)]
    text_fields: Annotated[tuple[Word, ...], Field(min_length=1, max_length=16)]
    label_field: Word
    max_tokens: Annotated[int, Field(ge=2, le=8192, strict=True)]
    pooling: Literal["mean", "model"]

    _labels = field_validator("labels", "text_fields")(_distinct)


class BaseModelRef(Part):
    """The frozen model below the adapter, by the digest of its weights."""

    name: Word
    locator: Text
    weights_sha256: Hex64
    architecture: Word


Rank = Annotated[int, Field(ge=1, le=1024, strict=True)]
Alpha = Annotated[float, Field(gt=0, le=1e6, allow_inf_nan=False, strict=True)]
ModulePath = Annotated[str, Field(min_length=1, max_length=300, pattern=r"^[A-Za-z0-9_]+(\.[A-Za-z0-9_]+)*$")]
"""A module's whole path in the base model, e.g. `bert.encoder.layer.5.attention.self.query`."""


class Lora(Part):
    """The adapter's shape, and how its updates are averaged (app/runs/methods.py)."""

    method: Literal["ffa", "fedsb", "rolora", "flexlora", "fedask", "flora", "fedex", "fedsa", "fedit"]
    rank: Rank
    """Of the run's adapter, and the largest that a client trains."""
    ranks: Annotated[tuple[Rank, ...], Field(min_length=1, max_length=16)] | None = None
    """What clients may train at, `rank` among them: each at the largest that fits what it declared, all with
    the run's scale. Null: everyone at `rank`."""
    energy: Annotated[float, Field(gt=0, le=1, allow_inf_nan=False, strict=True)] | None = None
    """Of `flexlora`: only as many directions are released as hold this share of the noised aggregate's
    squares."""
    sketch_width: Annotated[int, Field(ge=1, le=8192, strict=True)] | None = None
    """Of `fedask`: columns of a sketch, at most min(d, k) of each weight. The mean is exact where they are as
    many as its rank. Null: as many as the ranks of a round's clients add up to at most."""
    alpha: Alpha
    rank_stabilized: Annotated[bool, Field(strict=True)] = False
    """rsLoRA: the scale is alpha / sqrt(rank) instead of alpha / rank."""
    rank_pattern: Annotated[dict[ModulePath, Rank], Field(max_length=4096)] = {}
    """Ranks of single modules, where they are not `rank`."""
    alpha_pattern: Annotated[dict[ModulePath, Alpha], Field(max_length=4096)] = {}
    """Alphas of single modules, where they are not `alpha`."""
    target_modules: Annotated[tuple[Word, ...], Field(min_length=1, max_length=64)]
    layers: Annotated[
        tuple[Annotated[int, Field(ge=0, le=10_000, strict=True)], ...], Field(min_length=1, max_length=1024)
    ]
    modules_to_save: Annotated[tuple[Word, ...], Field(max_length=16)]
    seed: Annotated[int, Field(ge=0, le=2**63 - 1, strict=True)]

    _lists = field_validator("target_modules", "layers", "modules_to_save")(_distinct)

    @field_validator("ranks")
    @classmethod
    def _ascending(cls, ranks: tuple[int, ...] | None) -> tuple[int, ...] | None:
        if ranks is not None and list(ranks) != sorted(set(ranks)):
            raise ValueError("ranks ascend, each listed once")
        return ranks

    @model_validator(mode="after")
    def _largest_is_the_runs(self) -> Lora:
        if self.ranks is not None and self.ranks[-1] != self.rank:
            raise ValueError("the largest of the ranks is the run's own")
        return self

    @property
    def has_mixed_ranks(self) -> bool:
        """Whether clients may train at different ranks."""
        return self.ranks is not None and len(self.ranks) > 1


class TensorShape(Part):
    """One tensor of the adapter file, always float32. `trained` tells that clients send it."""

    name: Annotated[str, Field(min_length=1, max_length=300, pattern=r"^[A-Za-z0-9_.\-]+$")]
    shape: Annotated[
        tuple[Annotated[int, Field(ge=1, le=2**31 - 1, strict=True)], ...],
        Field(min_length=1, max_length=4),
    ]
    trained: Annotated[bool, Field(strict=True)]

    @property
    def elements(self) -> int:
        """Number of values."""
        count = 1
        for length in self.shape:
            count *= length
        return count


class Training(Part):
    """The local steps of one round; their number is a constant, whatever a client's size."""

    optimizer: Literal["sgd"]
    learning_rate: Annotated[float, Field(ge=1e-8, le=1e4, allow_inf_nan=False, strict=True)]
    momentum: Annotated[float, Field(ge=0, lt=1, allow_inf_nan=False, strict=True)]
    local_steps: Annotated[int, Field(ge=1, le=10_000, strict=True)]
    proximal_mu: Annotated[float, Field(ge=0, le=1e4, allow_inf_nan=False, strict=True)] = 0.0
    """FedProx: how strongly each step pulls back to the round's adapter; 0 does not."""
    control_variates: Literal["none", "scaffold"] = "none"
    """What corrects a step for how far its client's data lie from the others'."""
