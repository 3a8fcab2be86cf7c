"""What a run trains, as parts of its manifest: task, base model, shape of the adapter, local steps."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Count = Annotated[int, Field(ge=1, le=10**9)]


class Part(BaseModel):
    """A part of the manifest; every field is known and of its type, or the manifest is refused."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class Task(Part):
    """What is learned."""

    kind: Literal["sequence_classification"]
    labels: Annotated[tuple[str, ...], Field(min_length=2)]
    text_fields: Annotated[tuple[str, ...], Field(min_length=1)]
    label_field: str
    max_tokens: Annotated[int, Field(ge=2, le=8192)]
    pooling: str


class BaseModelRef(Part):
    """The frozen model below the adapter."""

    name: str
    locator: str
    weights_sha256: Sha256
    architecture: str


class Lora(Part):
    """The adapter's shape."""

    method: str
    rank: Annotated[int, Field(ge=1, le=1024)]
    ranks: Annotated[tuple[Annotated[int, Field(ge=1, le=1024)], ...], Field(min_length=1)] | None = None
    """What clients may train at; the server says in each round at which this one does."""
    energy: Annotated[float, Field(gt=0, le=1)] | None = None
    sketch_width: Annotated[int, Field(ge=1, le=8192)] | None = None
    alpha: Positive
    rank_stabilized: bool = False
    rank_pattern: dict[str, Annotated[int, Field(ge=1, le=1024)]] = {}
    alpha_pattern: dict[str, Positive] = {}
    """Ranks and alphas of single modules, by their whole paths; never beside `ranks`."""
    target_modules: Annotated[tuple[str, ...], Field(min_length=1)]
    layers: tuple[Annotated[int, Field(ge=0)], ...]
    modules_to_save: tuple[str, ...]
    seed: Annotated[int, Field(ge=0)]


class TensorShape(Part):
    """One tensor of the adapter file."""

    name: str
    shape: tuple[Annotated[int, Field(ge=1)], ...]
    trained: bool


class Training(Part):
    """The local steps of one round."""

    optimizer: str
    learning_rate: Positive
    momentum: Annotated[float, Field(ge=0, lt=1)]
    local_steps: Count
    proximal_mu: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.0
    control_variates: Literal["none", "scaffold"] = "none"
