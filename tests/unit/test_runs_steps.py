"""Client terms, step lengths and buffers of a plan: what is refused, and with what way out."""

from typing import Any

import pytest

from app.core.errors import Invalid
from app.runs import buffers, steps
from app.runs.manifest import Manifest, ServerOptimizer
from app.runs.methods import is_trained
from app.runs.plan import check_plan
from client.errors import ClientError
from client.plan import TrainingPlan
from tests.builders import tiny_manifest
from tests.central import CLIENTS, SEATED, central_manifest

CENTRAL = central_manifest()
FEDEXP = {"server_optimizer": {"kind": "fedexp"}}


def refusal(document: dict[str, Any], *, clients: int = CLIENTS) -> Invalid:
    with pytest.raises(Invalid) as caught:
        accept(document, clients=clients)
    return caught.value


def accept(document: dict[str, Any], *, clients: int = CLIENTS) -> Manifest:
    manifest = Manifest.model_validate(document)
    trusts = ("local", "central", "none")
    check_plan(manifest, clients=clients, trusts=trusts, max_update_bytes=2**20)
    return manifest


@pytest.mark.parametrize("training", [{"local_steps": 1}, {"momentum": 0.9, "learning_rate": 38.0}])
def test_a_proximal_term_that_does_nothing_or_drives_away_is_refused(training: dict[str, Any]) -> None:
    """Heavy ball on (mu / 2) x^2 converges for rate * mu under 2 (1 + momentum) alone: 38 * .1 = 2 * 1.9."""
    assert refusal(tiny_manifest(training=training | {"proximal_mu": 0.1})).code == "proximal_refused"
    accept(tiny_manifest(training=training | {"proximal_mu": 0.0}))


def scaffold(**parts: Any) -> dict[str, Any]:
    """A plan with control variates, by plain SGD; keywords change its parts."""
    document = tiny_manifest(training={"control_variates": "scaffold", "momentum": 0.0})
    document["privacy"]["noise_multiplier"] = 1.0
    for name, part in parts.items():
        document[name] = document[name] | part
    return document


@pytest.mark.parametrize(
    ("parts", "named"),
    [
        ({"privacy": CENTRAL["privacy"], "quorum": CENTRAL["quorum"]}, "privacy.trust"),
        ({"lora": {"method": "fedit"}}, "lora.method"),
        ({"lora": {"ranks": [1, 2]}}, "lora.ranks"),
        ({"training": {"momentum": 0.9}}, "training.momentum"),
        ({"training": {"proximal_mu": 0.1}}, "training.proximal_mu"),
        ({"aggregation": {"rule": "trimmed_mean"}}, "aggregation.rule"),
        ({"aggregation": {"clip_norm": 1.0}}, "aggregation.clip_norm"),
        ({"aggregation": {"wire_dtype": "bfloat16"}}, "aggregation.wire_dtype"),
        ({"aggregation": {"server_optimizer": {"kind": "fedavgm"}}}, "aggregation.server_optimizer"),
    ],
)
def test_control_variates_are_refused_where_they_cost_or_would_drift(
    parts: dict[str, Any], named: str
) -> None:
    document = scaffold(**parts)
    if named == "lora.method":
        document = with_method(document, "fedit")
    refused = refusal(document)
    assert (refused.status, refused.code) == (422, "control_variates_refused")
    assert refused.members["field"] == named


def test_control_variates_are_refused_in_buffered_rounds() -> None:
    document = buffered() | {"training": scaffold()["training"]}
    assert refusal(document).code == "control_variates_refused"


@pytest.mark.parametrize("trust", ["local", "none"])
def test_control_variates_are_taken_by_the_server_and_by_a_client(trust: str) -> None:
    document = scaffold()
    if trust == "none":
        document["privacy"] |= {"trust": "none", "clip_norm": None, "epsilon": None, "delta": None}
        document["privacy"]["noise_multiplier"] = None
    accept(document)
    assert TrainingPlan.from_manifest(document).control_variates
    assert not TrainingPlan.from_manifest(tiny_manifest(privacy=document["privacy"])).control_variates


@pytest.mark.parametrize(
    "parts",
    [
        {"privacy": CENTRAL["privacy"]},
        {"training": {"momentum": 0.9}},
        {"training": {"proximal_mu": 0.1}},
        {"lora": {"method": "fedit"}},
        {"lora": {"ranks": [1, 2]}},
    ],
)
def test_a_client_does_not_train_with_variates_that_do_not_follow_from_what_it_sends(
    parts: dict[str, Any],
) -> None:
    with pytest.raises(ClientError) as unsupported:
        TrainingPlan.from_manifest(scaffold(**parts))
    assert (unsupported.value.code, unsupported.value.members["field"]) == (
        "unsupported_plan",
        "control_variates",
    )


@pytest.mark.parametrize("trust", ["local", "none", "central"])
def test_a_proximal_term_is_allowed_under_every_trust(trust: str) -> None:
    document = tiny_manifest(training={"proximal_mu": 0.1})
    if trust == "none":
        nothing = {"trust": "none", "clip_norm": None, "epsilon": None, "delta": None}
        document["privacy"] |= nothing
    if trust == "central":
        document = central_manifest() | {"training": document["training"]}
    assert accept(document).training.proximal_mu == 0.1


def test_fedexp_is_refused_where_lengths_of_updates_are_not_charged() -> None:
    refused = refusal(central_manifest(aggregation=FEDEXP))
    assert (refused.status, refused.code) == (422, "step_refused")
    assert "fedavgm" in refused.detail


@pytest.mark.parametrize("change", [{"rule": "trimmed_mean"}, {"rule": "median", "mixing": "buckets"}])
def test_fedexp_is_refused_beside_a_robust_rule(change: dict[str, Any]) -> None:
    assert refusal(tiny_manifest(aggregation=FEDEXP | change)).code == "step_refused"


def test_no_step_of_fedexp_is_longer_than_the_plan_says() -> None:
    """Of changes up to C: rate max(C, C^2 / (4 sqrt(epsilon))), at |Delta|^2 = epsilon."""
    optimizer = ServerOptimizer(kind="fedexp", rate=2.0, adaptivity=0.01)
    assert optimizer.longest(1.0) == pytest.approx(2.0 * 2.5)
    assert optimizer.longest(0.1) == pytest.approx(2.0 * 0.1)


@pytest.mark.parametrize(
    "error",
    [
        steps.ProximalRefused,
        steps.StepRefused,
        steps.VariatesRefused,
        buffers.BufferRefused,
        buffers.BufferStarves,
    ],
)
def test_every_refusal_names_a_remedy(error: type[Invalid]) -> None:
    assert error.remedy
    assert error.remedy != Invalid.remedy


def buffered(*, participations: int = 2, staleness: int = 2, **changes: Any) -> dict[str, Any]:
    """A plan for three buffers of two updates among six clients."""
    made = tiny_manifest(
        buffered={"participations": participations, "staleness": staleness},
        quorum={"min_updates": 2, "max_updates": 2},
        rounds=3,
    )
    for name, value in changes.items():
        made[name] = made[name] | value if isinstance(value, dict) else value
    return made


def test_a_buffered_plan_counts_the_steps_of_its_participations() -> None:
    manifest = accept(buffered())
    assert (manifest.participations, manifest.steps) == (2, 2 * manifest.training.local_steps)


@pytest.mark.parametrize(
    "changes",
    [
        {"privacy": {"relation": "replace_one"}},
        {"aggregation": {"mixing": "buckets"}},
        {"aggregation": {"rule": "median"}},
        {"aggregation": FEDEXP},
        {"quorum": {"min_updates": 1}},
        {"quorum": {"seal": "deadline"}},
        {"participations": 4},
        {"lora": {"ranks": [1, 2]}},
    ],
)
def test_buffers_are_refused_under_conditions_that_are_not_proved(changes: dict[str, Any]) -> None:
    refused = refusal(buffered(**changes))
    assert (refused.status, refused.code) == (422, "buffer_refused")


@pytest.mark.parametrize("method", ["rolora", "fedsa", "flexlora", "flora", "fedex"])
def test_buffers_are_refused_where_an_older_change_means_something_else_by_now(method: str) -> None:
    refused = refusal(with_method(buffered(), method))
    assert (refused.status, refused.code) == (422, "lora_method_buffered")
    assert refused.members["others"] == "ffa, fedsb, fedit"
    accept(with_method(buffered(), "fedit"))


def test_fedexp_and_rules_by_coordinate_need_one_rank() -> None:
    mixed = tiny_manifest(lora={"ranks": [1, 2]}, quorum={"min_updates": CLIENTS, "max_updates": CLIENTS})
    accept(mixed)
    assert refusal(mixed | {"aggregation": mixed["aggregation"] | FEDEXP}).code == "step_refused"
    for rule in ("trimmed_mean", "median", "meamed"):
        aggregation = mixed["aggregation"] | {"rule": rule, "faulty": 1}
        assert refusal(mixed | {"aggregation": aggregation}).code == "mixed_ranks_rule"
        accept(mixed | {"aggregation": aggregation, "lora": mixed["lora"] | {"ranks": None}})
    accept(mixed | {"aggregation": mixed["aggregation"] | {"rule": "geometric_median", "faulty": 1}})


def test_canaries_are_refused_where_rounds_move_other_numbers() -> None:
    refused = refusal(with_method(central_manifest(**SEATED), "rolora"))
    assert (refused.code, refused.members["others"]) == ("lora_method_canaries", "ffa, fedsb")
    accept(central_manifest(**SEATED))
    accept(with_method(central_manifest(), "rolora"))


def with_method(document: dict[str, Any], method: str) -> dict[str, Any]:
    """A plan that names another method, its tensors trained as that wants it."""
    tensors = [one | {"trained": is_trained(method, one["name"])} for one in document["tensors"]]
    return document | {"lora": document["lora"] | {"method": method}, "tensors": tensors}


def test_buffers_are_refused_under_central_noise_with_the_way_out() -> None:
    document = central_manifest(cohort={"kind": "everyone"}) | {"buffered": buffered()["buffered"]}
    refused = refusal(document)
    assert refused.code == "buffer_refused"
    assert "local" in refused.detail


@pytest.mark.parametrize(
    ("clients", "rounds", "participations", "starves"),
    [(3, 3, 2, True), (4, 3, 2, False), (2, 3, 3, False), (2, 3, 2, True), (6, 3, 1, False), (5, 3, 1, True)],
)
def test_buffers_that_might_never_fill_are_refused(
    clients: int, rounds: int, participations: int, starves: bool
) -> None:
    """Of two updates each: before the last of three, four are sent, by 4 // P clients that may be through."""
    document = buffered(participations=participations, rounds=rounds)
    if starves:
        assert refusal(document, clients=clients).code == "buffer_starves"
    else:
        accept(document, clients=clients)
