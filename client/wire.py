"""What the client reads from the server and sends to it. Its own models: it shares no code with the server.

Answers may gain fields, which are ignored. The manifest may not: a field that this client does not know
could change what it agrees to, so an unknown one is refused.
"""

from __future__ import annotations

import hashlib
import json
import math
from datetime import datetime
from typing import Annotated, Any, Literal, TypeVar
from uuid import UUID

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from client.errors import ClientError
from client.i18n import _
from client.training import BaseModelRef, Count, Lora, Part, Positive, Sha256, Task, TensorShape, Training
from engines.lora.methods import TWO_TURNS

Number = Annotated[int, Field(ge=0, le=10**9)]

MAX_MANIFEST_BYTES = 4 * 1024**2
Model = TypeVar("Model", bound="Answer")


class Answer(BaseModel):
    """Something the server says; fields added later are ignored."""

    model_config = ConfigDict(extra="ignore", frozen=True)


class EveryoneCohort(Part):
    """Every client of the run takes part in every round."""

    kind: Literal["everyone"]


class PoissonCohort(Part):
    """Each client is in a round by itself with probability `rate`; what is over `cap` is cut at random."""

    kind: Literal["poisson"]
    rate: Annotated[float, Field(gt=0, le=1)]
    cap: Count
    n_max: Count
    """The most clients the run may have, by which the cap is priced."""


class PoissonExamples(Part):
    """Each example is in a step by itself with probability `rate`."""

    kind: Literal["poisson"]
    rate: Annotated[float, Field(gt=0, le=1)]


class AllExamples(Part):
    """Every example is in every step."""

    kind: Literal["all"]


class AdaptiveClip(Part):
    """How the server moves the clip norm from round to round, at a price that the plan holds already."""

    quantile: Annotated[float, Field(gt=0, lt=1)]
    learning_rate: Positive
    bit_noise: Positive


class Person(Part):
    """Whose record is whose, for a plan whose unit is the person."""

    id_field: Annotated[str, Field(min_length=1, max_length=100)]
    records_cap: Count
    """The most records one person may have in this data set."""
    silos: Count
    """The most data sets of the federation one person is said to be in."""


class Audit(Part):
    """An attack that the server makes on its own noise; it asks nothing of a client."""

    canaries: Count
    commitment: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")] | None = None
    """To the canaries that take places in the rounds of a run under `central`; else they are alone."""


class Privacy(Part):
    """The privacy plan. Under `local` the client itself clips and adds the noise."""

    trust: str
    unit: str
    relation: str
    cohort: Annotated[EveryoneCohort | PoissonCohort, Field(discriminator="kind")]
    examples: Annotated[PoissonExamples | AllExamples, Field(discriminator="kind")]
    clip_norm: Positive | None
    noise_multiplier: Positive | None
    epsilon: Positive | None
    delta: Annotated[float, Field(gt=0, lt=1)] | None
    divisor: Positive
    adaptive_clip: AdaptiveClip | None = None
    person: Person | None = None
    audit: Audit | None = None

    @property
    def canaries(self) -> int:
        """The server's canaries with places in the rounds, which the cut of a cohort is priced with."""
        seated = self.trust == "central" and self.audit is not None and self.audit.commitment is not None
        return self.audit.canaries if seated and self.audit is not None else 0


class RuleSettings(Part):
    """What the server's rule is told; it changes nothing for a client."""

    trimmed: Number | None = None
    chosen: Count | None = None
    removed: Number | None = None
    radius: Positive | None = None
    iterations: Count | None = None
    bucket_size: Count | None = None
    memory: Annotated[float, Field(gt=0, le=1)] | None = None


class ServerOptimizer(Part):
    """What the server does with a round's mean change."""

    kind: str
    rate: Positive = 1.0
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.9
    decay: Annotated[float, Field(ge=0, lt=1)] = 0.99
    adaptivity: Positive = 1e-3


class Aggregation(Part):
    """What the server does with the updates."""

    mode: str
    rule: str
    weights: str
    clip_norm: Positive | None
    wire_dtype: Literal["float32", "float16", "bfloat16", "int8"] = "float32"
    """In what this client sends its change."""
    faulty: Number = 0
    mixing: str = "none"
    settings: RuleSettings = RuleSettings()
    server_optimizer: ServerOptimizer | None = None


class Quorum(Part):
    """How many updates a round needs, and takes at most."""

    min_updates: Annotated[int, Field(ge=0, le=10**9)]
    max_updates: Count
    seal: Literal["quorum", "deadline"] | None = None
    """When a round closes: once all have sent, or at its deadline alone."""


class Buffered(Part):
    """Rounds that close as soon as their quorum is in, and take updates of older adapters too."""

    participations: Count
    """The most updates of one client in the whole run."""
    staleness: Number
    """The most releases that an update's adapter may be behind."""


class Use(Part):
    """What the plan says that data are used for; the server holds it against each organisation's rules."""

    purpose: str
    data_categories: tuple[str, ...]


class Manifest(Part):
    """All that a run is, fixed when it started."""

    version: Literal[1]
    task: Task
    base_model: BaseModelRef
    lora: Lora
    tensors: Annotated[tuple[TensorShape, ...], Field(min_length=1)]
    training: Training
    privacy: Privacy
    aggregation: Aggregation
    rounds: Annotated[int, Field(ge=1, le=100_000)]
    quorum: Quorum
    round_deadline_s: Positive
    buffered: Buffered | None = None
    use: Use | None = None

    @model_validator(mode="after")
    def _tensors_are_distinct(self) -> Manifest:
        names = [tensor.name for tensor in self.tensors]
        if len(set(names)) != len(names):
            raise ValueError("a tensor is listed twice")
        return self

    @property
    def participations(self) -> int:
        """The most updates that this client sends: what the whole run costs."""
        return self.rounds if self.buffered is None else self.buffered.participations

    @property
    def trained_after(self) -> tuple[int, ...]:
        """How often this client can have trained after each update; under `fedask` in odd rounds alone.

        Of a buffered run, whichever rounds they belong to: nothing is taken to be free there.
        """
        halves = self.lora.method in TWO_TURNS and self.buffered is None and self.privacy.trust == "local"
        updates = range(1, self.participations + 1)
        return tuple(-(-number // 2) if halves else number for number in updates)

    @property
    def steps(self) -> int:
        """Noised steps of the whole run that this client is in: under `central` one for each round."""
        return self.trained_after[-1] * (1 if self.privacy.trust == "central" else self.training.local_steps)


class FrozenManifest:
    """A manifest with the bytes that it came in: its hash is over all of them, in canonical form."""

    def __init__(self, raw: bytes) -> None:
        self.values = read_json(raw, what="manifest", limit=MAX_MANIFEST_BYTES)
        try:
            self.manifest = Manifest.model_validate_json(json.dumps(self.values))
        except ValidationError as error:
            first = error.errors(include_url=False, include_input=False, include_context=False)[0]
            raise ClientError(
                "manifest_invalid",
                _("the manifest's field {field} is not understood: {reason}"),
                field=".".join(str(part) for part in first["loc"]) or "version",
                reason=first["msg"],
            ) from error
        self.sha256 = canonical_sha256(self.values)

    def require(self, sha256: str) -> None:
        """Refuse a manifest that is not the one whose hash was announced."""
        if self.sha256 != sha256:
            raise ClientError(
                "manifest_mismatch", _("the manifest is not the one that was announced: nothing is trained")
            )


class Assignment(Answer):
    """A round that waits for this client's update."""

    round_id: UUID
    run_id: UUID
    number: Count
    rounds: Count
    deadline: datetime | None = None
    manifest_sha256: Sha256
    adapter_sha256: Sha256
    rank: Annotated[int, Field(ge=1, le=1024)] | None = None
    """At which rank this client trains; None: at the manifest's."""
    counted: Count | None = None
    """With control variates, the last round whose release holds an update of this client; None: no round."""


class Assignments(Answer):
    """Every round that waits for this client."""

    items: tuple[Assignment, ...]


class ServerAccount(Answer):
    """The server's mirror of this data set's ledger: an append-only account."""

    id: UUID
    entries: int
    unit: str = ""
    """What the account protects; a data set has one account for each unit at most."""


class Receipt(Answer):
    """The server has the update, whole."""

    update_id: UUID
    round_id: UUID
    sha256: Sha256
    size_bytes: int
    received_at: datetime
    account: ServerAccount | None = None
    audit_entry_id: UUID | None = None
    """The update's entry in the audit log; of a secret cohort there is none."""


class TokenAnswer(Answer):
    """An access token for `expires_in` seconds."""

    access_token: str
    token_type: str
    expires_in: Annotated[float, Field(gt=0)]


class Enrolled(Answer):
    """What the server knows about a new client."""

    client_id: UUID
    region: str
    capability: dict[str, Any] = {}


class RunState(Answer):
    """How a run is doing."""

    id: UUID
    state: str
    version: int
    reason_code: str | None = None


class Release(Answer):
    """A published adapter."""

    id: UUID
    run_id: UUID
    number: int
    adapter_sha256: Sha256
    size_bytes: int
    privacy_claimed: bool
    epsilon: float | None = None
    delta: float | None = None
    rolled_back_at: datetime | None = None
    rollback_reason: str | None = None


class Problem(Answer):
    """An RFC 9457 problem document."""

    code: str = "unexpected_answer"
    title: str = ""
    detail: str = ""
    server_time: datetime | None = None


def canonical_sha256(value: Any) -> str:
    """Hash a JSON value in its canonical form: sorted keys, no blanks, UTF-8."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


def read_json(raw: bytes, *, what: str, limit: int = 16 * 1024**2) -> Any:
    """Parse JSON strictly: no duplicate key, every number finite, all text Unicode, at most `limit` bytes."""
    refusal = ClientError("unexpected_answer", _("the {what} is not readable JSON"), what=what)
    if len(raw) > limit:
        raise refusal
    try:
        found = json.loads(
            raw.decode(), object_pairs_hook=_distinct, parse_constant=_no_constant, parse_float=_finite
        )
        if (
            b"\\ud" in raw.lower()
        ):  # half of a surrogate pair has no bytes: it can be neither hashed nor shown
            json.dumps(found, ensure_ascii=False).encode()
    except (ValueError, RecursionError) as error:
        raise refusal from error
    return found


def parse(model: type[Model], value: Any, *, what: str) -> Model:
    """Read one answer, or say which one was not understood."""
    try:
        return model.model_validate(value)
    except ValidationError as error:
        raise ClientError(
            "unexpected_answer", _("the server's {what} is not understood"), what=what
        ) from error


def _distinct(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a key appears twice")
    return found


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(text)
    return value


def _no_constant(name: str) -> Any:
    raise ValueError(name)
