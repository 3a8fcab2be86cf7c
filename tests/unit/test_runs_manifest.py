"""The manifest: every value has a limit, and every unsound combination a code and a way out."""

import copy
import itertools
import json
from typing import Any

import pytest
from pydantic import ValidationError

from app.core.canonical import canonical_sha256
from app.core.errors import Invalid
from app.runs import methods, plan, robust
from app.runs.manifest import EXAMPLE, Manifest, PoissonCohort
from tests.builders import QUERY, tiny_manifest


def changed(path: str, value: object) -> dict[str, Any]:
    """The example with one member changed: `privacy.examples.rate`."""
    document = copy.deepcopy(EXAMPLE)
    *sections, last = path.split(".")
    target: Any = document
    for section in sections:
        target = target[section]
    target[last] = value
    return document


def refusal(
    document: dict[str, Any], *, clients: int = 8, trusts: tuple[str, ...] = ("local", "none")
) -> str:
    with pytest.raises(Invalid) as caught:
        plan.check_plan(
            Manifest.model_validate(document), clients=clients, trusts=trusts, max_update_bytes=2**20
        )
    assert caught.value.detail
    return caught.value.code


def test_the_example_is_a_plan_that_can_be_run() -> None:
    plan.check_plan(
        Manifest.model_validate(EXAMPLE), clients=8, trusts=("local",), max_update_bytes=512 * 1024**2
    )


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("version", 2),
        ("version", True),
        ("rounds", 0),
        ("rounds", 10_001),
        ("rounds", True),
        ("rounds", "8"),
        ("lora.rank", False),
        ("lora.rank", 1025),
        ("lora.alpha", float("nan")),
        ("lora.alpha", 0.0),
        ("lora.method", "lokr"),
        ("lora.layers", [5, 5]),
        ("lora.seed", 2**63),
        ("task.labels", ["ham"]),
        ("task.labels", ["ham", "ham"]),
        ("task.labels", ["ham", "sp\x00am"]),
        ("task.labels", ["ham", "\ud800"]),
        ("task.text_fields", []),
        ("base_model.weights_sha256", "F" * 64),
        ("tensors", []),
        ("privacy.examples", {"kind": "poisson", "rate": 0.0}),
        ("privacy.examples", {"kind": "poisson", "rate": 1.01}),
        ("privacy.examples", {"kind": "poisson"}),
        ("privacy.examples", {"kind": "shuffled", "rate": 0.1}),
        ("privacy.cohort", {"kind": "volunteers"}),
        ("privacy.divisor", 0),
        ("privacy.divisor", 1e-300),
        ("training.learning_rate", 1e-300),
        ("training.learning_rate", 1e5),
        ("privacy.delta", 1.0),
        ("privacy.epsilon", -1.0),
        ("privacy.clip_norm", float("inf")),
        ("aggregation.clip_norm", 1e-13),
        ("privacy.trust", "secret"),
        ("training.optimizer", "adagrad"),
        ("training.momentum", 1.0),
        ("training.local_steps", 0),
        ("quorum.min_updates", -1),
        ("privacy.cohort", {"kind": "poisson", "rate": 0.25, "cap": 9, "n_max": 8}),
        ("privacy.cohort", {"kind": "poisson", "rate": 0.0, "cap": 8, "n_max": 8}),
        ("privacy.adaptive_clip", {"quantile": 1.0, "learning_rate": 0.2, "bit_noise": 2.0}),
        ("privacy.adaptive_clip", {"quantile": 0.5, "learning_rate": 0.2, "bit_noise": 0.0}),
        ("privacy.person", {"id_field": "author", "records_cap": 0, "silos": 1}),
        ("privacy.person", {"id_field": "author", "records_cap": 1, "silos": 0}),
        ("privacy.audit", {"canaries": 99}),
        ("privacy.audit", {"canaries": 1001}),
        ("privacy.audit", {}),
        ("quorum.seal", "never"),
        ("round_deadline_s", 0),
        ("surprise", 1),
    ],
)
def test_a_value_outside_its_limits_is_refused(path: str, value: object) -> None:
    with pytest.raises(ValidationError):
        Manifest.model_validate(changed(path, value))


def tensors(*rows: tuple[str, list[int], bool]) -> list[dict[str, Any]]:
    return [{"name": name, "shape": shape, "trained": trained} for name, shape, trained in rows]


@pytest.mark.parametrize(
    "listed",
    [
        tensors(("b", [1], True), ("a", [1], True)),
        tensors(("a", [1], True), ("a", [1], True)),
        tensors(("a", [], True)),
        tensors(("a", [0], True)),
        tensors(("a", [1, 1, 1, 1, 1], True)),
        tensors(("../a", [1], True)),
        [{"name": "a", "shape": [1], "trained": 1}],
    ],
)
def test_tensors_are_named_once_in_order_with_positive_shapes(listed: list[dict[str, Any]]) -> None:
    with pytest.raises(ValidationError):
        Manifest.model_validate(changed("tensors", listed))


@pytest.mark.parametrize(
    ("path", "value", "code"),
    [
        ("privacy.trust", "central", "trust_not_allowed"),
        ("privacy.trust", "distributed", "trust_not_available"),
        (
            "privacy.cohort",
            {"kind": "poisson", "rate": 0.25, "cap": 80, "n_max": 202},
            "sampling_not_available",
        ),
        (
            "privacy.cohort",
            {"kind": "optimized", "participation_cap": 3, "separation": 1},
            "sampling_not_available",
        ),
        ("privacy.unit", "person", "person_incomplete"),
        ("privacy.person", {"id_field": "author", "records_cap": 4, "silos": 2}, "person_incomplete"),
        (
            "privacy.adaptive_clip",
            {"quantile": 0.5, "learning_rate": 0.2, "bit_noise": 2.0},
            "clip_refused",
        ),
        ("privacy.unit", "client", "unit_not_available"),
        ("privacy.relation", "add_remove", "relation_unsound"),
        ("privacy.clip_norm", None, "privacy_incomplete"),
        ("privacy.delta", None, "privacy_incomplete"),
        ("privacy.epsilon", None, "privacy_incomplete"),
        ("aggregation.mode", "secagg", "aggregation_not_available"),
        ("aggregation.rule", "fltrust", "aggregation_not_available"),
        ("aggregation.rule", "no_such_rule", "aggregation_not_available"),
        ("aggregation.rule", "krum", "rule_needs_more_updates"),
        ("aggregation.faulty", 1, "rule_needs_more_updates"),
        ("aggregation.rule", "centered_clipping", "rule_setting_refused"),
        ("aggregation.settings", {"trimmed": 1}, "rule_setting_refused"),
        ("aggregation.settings", {"bucket_size": 2}, "rule_setting_refused"),
        ("aggregation.settings", {"memory": 0.9}, "rule_setting_refused"),
        ("aggregation.weights", "sizes", "weights_refused"),
        ("quorum.max_updates", 9, "quorum_impossible"),
        ("quorum.min_updates", 0, "quorum_impossible"),
        ("lora.method", "fedit", "tensors_incoherent"),
        ("lora.rank", 4, "tensors_incoherent"),
        ("lora.target_modules", ["query", "classifier"], "tensors_incoherent"),
        ("lora.modules_to_save", [], "tensors_incoherent"),
    ],
)
def test_an_unsound_plan_is_refused_with_its_code(path: str, value: object, code: str) -> None:
    assert refusal(changed(path, value)) == code


VALUE = "bert.encoder.layer.5.attention.self.value"


def lora_plan(method: str, **lora: Any) -> dict[str, Any]:
    """The example under another method, with `trained` as that method has it."""
    document = copy.deepcopy(EXAMPLE)
    document["lora"] |= {"method": method} | lora
    for tensor in document["tensors"]:
        tensor["trained"] = methods.is_trained(method, tensor["name"])
    return document


@pytest.mark.parametrize("method", sorted(set(methods.METHODS) - {"fedsb"}))
def test_every_method_can_be_planned(method: str) -> None:
    plan.check_plan(
        Manifest.model_validate(lora_plan(method)), clients=8, trusts=("local",), max_update_bytes=2**20
    )


@pytest.mark.parametrize(
    ("method", "lora", "aggregation", "code", "named"),
    [
        ("fedask", {}, {"rule": "median", "faulty": 1}, "lora_method_rule", "ffa, fedsb, rolora"),
        ("fedask", {}, {"server_optimizer": {"kind": "fedavgm"}}, "lora_method_optimizer", "ffa, fedsb"),
        ("fedask", {}, {"clip_norm": 1.0}, "lora_setting_refused", "aggregation.clip_norm"),
        ("fedask", {"sketch_width": 7}, {}, "lora_setting_refused", "sketch_width"),
        ("flexlora", {"sketch_width": 16}, {}, "lora_setting_refused", "sketch_width"),
        ("fedit", {"ranks": [4, 8]}, {}, "lora_method_mixed_ranks", "flexlora, fedask, flora"),
        ("fedex", {"ranks": [4, 8]}, {}, "lora_method_mixed_ranks", "flexlora"),
        ("flexlora", {}, {"rule": "trimmed_mean", "faulty": 1}, "lora_method_rule", "ffa, fedsb, rolora"),
        (
            "flora",
            {},
            {"rule": "krum", "faulty": 1, "mixing": "nearest_neighbours"},
            "lora_method_rule",
            "ffa",
        ),
        ("rolora", {}, {"server_optimizer": {"kind": "fedavgm"}}, "lora_method_optimizer", "ffa, fedsb"),
        ("fedit", {"energy": 0.9}, {}, "lora_setting_refused", "energy"),
    ],
)
def test_a_lora_method_that_does_not_go_with_the_plan_is_refused_and_others_are_named(
    method: str, lora: dict[str, Any], aggregation: dict[str, Any], code: str, named: str
) -> None:
    document = lora_plan(method, **lora)
    document["aggregation"] |= aggregation
    document["quorum"]["min_updates"] = 8
    with pytest.raises(Invalid) as caught:
        plan.check_plan(
            Manifest.model_validate(document), clients=8, trusts=("local",), max_update_bytes=2**20
        )
    assert caught.value.code == code
    assert named in str(caught.value.members)


def test_two_messages_need_an_even_number_of_rounds() -> None:
    document = lora_plan("fedask") | {"rounds": 7}
    with pytest.raises(Invalid) as caught:
        plan.check_plan(
            Manifest.model_validate(document), clients=8, trusts=("local",), max_update_bytes=2**20
        )
    assert caught.value.code == "lora_method_rounds"
    assert caught.value.members["others"] == "ffa, fedsb, rolora, flexlora, flora, fedex, fedsa, fedit"


def test_sketches_that_no_update_may_be_long_enough_for_are_refused() -> None:
    document = lora_plan("fedask", sketch_width=384)
    with pytest.raises(Invalid) as caught:
        plan.check_plan(
            Manifest.model_validate(document), clients=8, trusts=("local",), max_update_bytes=2**20
        )
    assert caught.value.code == "update_too_large"


def with_patterns(**lora: Any) -> dict[str, Any]:
    """The example with its value projection at rank 2."""
    document = lora_plan("ffa", rank_pattern={VALUE: 2}, **lora)
    for tensor in document["tensors"]:
        if VALUE in tensor["name"]:
            tensor["shape"] = [2 if length == 8 else length for length in tensor["shape"]]
    return document


def test_a_module_may_have_a_rank_and_an_alpha_of_its_own() -> None:
    document = with_patterns(alpha_pattern={VALUE: 3.0, VALUE.replace("value", "query"): 4.0})
    plan.check_plan(Manifest.model_validate(document), clients=8, trusts=("local",), max_update_bytes=2**20)


@pytest.mark.parametrize(
    ("lora", "code"),
    [
        ({"ranks": [4, 8]}, "lora_pattern_refused"),
        ({"alpha_pattern": {"value": 3.0}}, "lora_pattern_refused"),
        ({"alpha_pattern": {"classifier": 3.0}}, "lora_pattern_refused"),
        ({"alpha_pattern": {f"base_model.model.{VALUE}": 3.0}}, "lora_pattern_refused"),
        ({"rank_pattern": {}}, "tensors_incoherent"),
        ({"rank_pattern": {VALUE: 4}}, "tensors_incoherent"),
    ],
)
def test_a_rank_or_alpha_by_module_that_names_no_one_target_is_refused(
    lora: dict[str, Any], code: str
) -> None:
    document = with_patterns()
    document["lora"] |= lora
    assert refusal(document) == code


@pytest.mark.parametrize("key", ["", ".value", "val.*", "(a+)+$", "a b"])
def test_a_key_of_a_pattern_is_a_path_and_no_expression(key: str) -> None:
    with pytest.raises(ValidationError):
        Manifest.model_validate(with_patterns(alpha_pattern={key: 3.0}))


@pytest.mark.parametrize("ranks", [[8, 4], [4, 4, 8], [4], [4, 16], []])
def test_ranks_ascend_to_the_runs_own(ranks: list[int]) -> None:
    with pytest.raises(ValidationError):
        Manifest.model_validate(lora_plan("flexlora", ranks=ranks))


def test_a_trust_mode_that_the_policy_does_not_name_is_refused() -> None:
    assert refusal(EXAMPLE, trusts=("none",)) == "trust_not_allowed"


def test_without_a_privacy_mechanism_no_privacy_number_may_be_given() -> None:
    open_plan = {"trust": "none", "clip_norm": None, "epsilon": None, "delta": None}
    plan.check_plan(
        Manifest.model_validate(tiny_manifest(privacy=open_plan)),
        clients=2,
        trusts=("none",),
        max_update_bytes=2**20,
    )
    for name, value in (("epsilon", 8.0), ("delta", 1e-5), ("clip_norm", 1.0), ("noise_multiplier", 1.0)):
        assert refusal(tiny_manifest(privacy=open_plan | {name: value}), clients=2) == "privacy_incomplete"


def test_where_nothing_is_claimed_there_is_nothing_to_audit() -> None:
    open_plan = {"trust": "none", "clip_norm": None, "epsilon": None, "delta": None}
    asking = tiny_manifest(privacy=open_plan | {"audit": {"canaries": 200}})
    assert refusal(asking, clients=2) == "audit_refused"
    plan.check_plan(
        Manifest.model_validate(tiny_manifest(privacy={"audit": {"canaries": 200}})),
        clients=2,
        trusts=("local",),
        max_update_bytes=2**20,
    )


def test_noise_may_be_given_instead_of_epsilon_or_beside_it() -> None:
    for numbers in ({"epsilon": None, "noise_multiplier": 1.0}, {"noise_multiplier": 1.0}):
        manifest = Manifest.model_validate(tiny_manifest(privacy=numbers))
        plan.check_plan(manifest, clients=2, trusts=("local",), max_update_bytes=2**20)


def test_size_weights_under_replace_one_are_refused_because_sizes_are_secret_there() -> None:
    document = tiny_manifest(privacy={"relation": "replace_one"}, aggregation={"weights": "sizes"})
    assert refusal(document, clients=2) == "weights_refused"


def test_a_quorum_above_the_number_of_clients_is_refused() -> None:
    assert refusal(tiny_manifest(), clients=1) == "quorum_impossible"
    assert (
        refusal(tiny_manifest(quorum={"min_updates": 2, "max_updates": 1}), clients=2) == "quorum_impossible"
    )


@pytest.mark.parametrize(
    "broken",
    [
        tensors((f"{QUERY}.lora_A.weight", [2, 4], True), (f"{QUERY}.lora_B.weight", [4, 2], True)),
        tensors((f"{QUERY}.lora_A.weight", [2, 4], False), (f"{QUERY}.lora_B.weight", [4, 2], False)),
        tensors((f"{QUERY}.lora_B.weight", [4, 2], True)),
        tensors((f"{QUERY}.lora_A.weight", [2, 4], False)),
        tensors((f"{QUERY}.lora_A.weight", [4, 2], False), (f"{QUERY}.lora_B.weight", [4, 2], True)),
        tensors(("base_model.model.classifier.weight", [2, 4], True)),
        tensors(("base_model.model.pooler.weight", [2, 4], True)),
        tensors(
            (f"{QUERY}.lora_A.weight", [2, 4], False),
            (f"{QUERY}.lora_B.weight", [4, 2], True),
            ("base_model.model.classifier.weight", [3, 4], True),  # of two labels
        ),
    ],
)
def test_tensors_that_are_not_those_of_the_method_are_refused(broken: list[dict[str, Any]]) -> None:
    assert refusal(tiny_manifest() | {"tensors": broken}, clients=2) == "tensors_incoherent"


def test_an_update_over_the_servers_ceiling_is_refused_before_anybody_trains() -> None:
    big = tensors(
        (f"{QUERY}.lora_A.weight", [2, 4], False),
        (f"{QUERY}.lora_B.weight", [2**18, 2], True),
    )
    assert refusal(tiny_manifest() | {"tensors": big}, clients=2) == "update_too_large"


def test_frozen_factors_that_no_worker_could_hold_are_refused() -> None:
    """They are in no update, and are made in memory when a round is published."""
    big = tensors(
        (f"{QUERY}.lora_A.weight", [2, 2**31 - 1], False),
        (f"{QUERY}.lora_B.weight", [4, 2], True),
    )
    assert refusal(tiny_manifest() | {"tensors": big}, clients=2) == "update_too_large"


def test_more_trained_names_than_a_header_holds_are_refused() -> None:
    rows = []
    for layer in range(600):
        stem = f"base_model.model.encoder.layer.{layer:04d}.attention.self.query"
        rows += [(f"{stem}.lora_A.weight", [2, 4], False), (f"{stem}.lora_B.weight", [4, 2], True)]
    assert refusal(tiny_manifest() | {"tensors": tensors(*rows)}, clients=2) == "update_too_large"


def test_the_stored_form_survives_json_with_the_same_hash() -> None:
    manifest = Manifest.model_validate(tiny_manifest())
    stored = json.loads(json.dumps(manifest.as_json()))
    assert canonical_sha256(stored) == canonical_sha256(Manifest.model_validate(stored).as_json())
    assert stored["privacy"]["noise_multiplier"] is None


@pytest.mark.parametrize("error", [cls for cls in vars(plan).values() if isinstance(cls, type)])
def test_every_refusal_of_a_plan_names_a_remedy(error: type) -> None:
    if issubclass(error, Invalid) and error is not Invalid:
        assert error.remedy
        assert error.remedy != Invalid.remedy


CENTRAL = {
    "trust": "central",
    "unit": "client",
    "cohort": {"kind": "poisson", "rate": 0.25, "cap": 82, "n_max": 202},
    "examples": {"kind": "all"},
    "divisor": 50.5,
}


def central(path: str = "version", value: object = 1) -> dict[str, Any]:
    """A plan with client-level privacy by the server, with one member changed."""
    document = copy.deepcopy(EXAMPLE)
    document["privacy"] |= CENTRAL
    document["quorum"] = {"min_updates": 0, "max_updates": 82}
    *sections, last = path.split(".")
    target: Any = document
    for section in sections:
        target = target[section]
    target[last] = value
    return document


def accepted(document: dict[str, Any], *, clients: int) -> Manifest:
    manifest = Manifest.model_validate(document)
    plan.check_plan(manifest, clients=clients, trusts=("central",), max_update_bytes=2**20)
    return manifest


def test_a_central_plan_can_be_run_and_counts_rounds_as_its_noised_steps() -> None:
    manifest = accepted(central(), clients=202)
    assert manifest.privacy.has_secret_cohort
    assert manifest.steps == manifest.rounds
    everyone = central("privacy.cohort", {"kind": "everyone"}) | {
        "quorum": {"min_updates": 0, "max_updates": 8}
    }
    assert not accepted(everyone, clients=8).privacy.has_secret_cohort


def test_a_cohort_may_be_larger_than_the_clients_that_there_are_today() -> None:
    accepted(central(), clients=60)


def test_a_plan_by_person_can_be_run_where_clients_add_the_noise() -> None:
    document = changed("privacy.person", {"id_field": "author", "records_cap": 4, "silos": 2})
    document["privacy"]["unit"] = "person"
    plan.check_plan(Manifest.model_validate(document), clients=8, trusts=("local",), max_update_bytes=2**20)


@pytest.mark.parametrize(
    ("path", "value", "code"),
    [
        ("privacy.unit", "example", "unit_not_available"),
        ("privacy.unit", "person", "unit_not_available"),
        ("privacy.relation", "add_remove", "relation_unsound"),
        ("privacy.clip_norm", None, "privacy_incomplete"),
        (
            "privacy.cohort",
            {"kind": "optimized", "participation_cap": 3, "separation": 1},
            "sampling_not_available",
        ),
        ("privacy.cohort", {"kind": "poisson", "rate": 0.25, "cap": 81, "n_max": 202}, "cap_too_small"),
        ("privacy.cohort", {"kind": "poisson", "rate": 0.25, "cap": 82, "n_max": 201}, "pool_too_large"),
        ("quorum.min_updates", 1, "cohort_quorum_unsound"),
        ("quorum.max_updates", 81, "cohort_quorum_unsound"),
        ("aggregation.clip_norm", 1.0, "clip_refused"),
        ("aggregation.weights", "sizes", "weights_refused"),
        ("aggregation.mode", "secagg", "aggregation_not_available"),
        ("aggregation.rule", "median", "rule_refused"),
        ("aggregation.rule", "krum", "rule_refused"),
        ("aggregation.rule", "trimmed_mean", "rule_refused"),
        ("aggregation.mixing", "nearest_neighbours", "rule_refused"),
        ("aggregation.faulty", 1, "rule_needs_more_updates"),
        ("lora.method", "fedit", "lora_method_trust"),
    ],
)
def test_an_unsound_central_plan_is_refused_with_its_code(path: str, value: object, code: str) -> None:
    assert refusal(central(path, value), clients=202, trusts=("central",)) == code


def test_a_trimmed_sum_over_all_clients_is_the_robust_rule_of_a_central_plan() -> None:
    document = central("privacy.cohort", {"kind": "everyone"})
    document["aggregation"] |= {"rule": "trimmed_mean", "faulty": 3}
    document["quorum"] = {"min_updates": 0, "max_updates": 8}
    plan.check_plan(Manifest.model_validate(document), clients=8, trusts=("central",), max_update_bytes=2**20)
    assert refusal(
        document | {"quorum": {"min_updates": 0, "max_updates": 6}}, clients=6, trusts=("central",)
    ) == ("rule_needs_more_updates")
    for change, code in (
        ({"mixing": "buckets"}, "aggregation_not_available"),
        ({"rule": "median"}, "rule_refused"),
        ({"settings": {"trimmed": 2}}, "rule_setting_refused"),
    ):
        changed_rule = document | {"aggregation": document["aggregation"] | change}
        assert refusal(changed_rule, trusts=("central",)) == code
    audited = document | {"privacy": document["privacy"] | {"audit": {"canaries": 200}}}
    assert refusal(audited, trusts=("central",)) == "aggregation_not_available"


def test_the_default_rule_of_a_new_plan_passes_under_every_trust_and_count() -> None:
    for trust, updates in itertools.product(("local", "none", "central"), (1, 2, 3, 4, 5, 8, 100)):
        rule = robust.default_aggregation(trust=trust, min_updates=updates)
        assert rule.faulty == (0 if trust == "central" else updates // 4)
        document = tiny_manifest(quorum={"min_updates": updates, "max_updates": updates})
        manifest = Manifest.model_validate(document).model_copy(update={"aggregation": rule})
        robust.check_rule(manifest, clients=updates)


def test_a_memory_is_refused_where_rounds_move_different_numbers() -> None:
    document = lora_plan("rolora")
    document["quorum"] |= {"min_updates": 8}
    rule = robust.default_aggregation(trust="local", min_updates=8).model_dump()
    assert rule["settings"]["memory"] == robust.MEMORY
    assert refusal(document | {"aggregation": rule}, clients=8) == "rule_setting_refused"


@pytest.mark.parametrize("method", sorted(set(methods.METHODS) - {"fedsb"}))
def test_the_default_rule_of_a_new_plan_goes_with_every_method(method: str) -> None:
    rule = robust.default_aggregation(trust="local", min_updates=8, method=method)
    assert (rule.faulty == 0) == (method == "fedask")  # of whose sketches no rule but the mean is meant
    document = lora_plan(method) | {"aggregation": rule.model_dump()}
    document["quorum"] |= {"min_updates": 8}
    plan.check_plan(Manifest.model_validate(document), clients=8, trusts=("local",), max_update_bytes=2**20)


@pytest.mark.parametrize(
    ("rate", "pool", "least"), [(0.25, 202, 82), (0.25, 8, 8), (1.0, 10, 10), (0.01, 10_000, 150)]
)
def test_the_least_cap_is_five_standard_deviations_up_and_never_over_the_pool(
    rate: float, pool: int, least: int
) -> None:
    cohort = {"kind": "poisson", "rate": rate, "cap": pool, "n_max": pool}
    found = Manifest.model_validate(central("privacy.cohort", cohort)).privacy.cohort
    assert isinstance(found, PoissonCohort)
    assert found.least_cap(0) == least


def test_canaries_under_central_take_places_of_the_cohort_and_under_local_none() -> None:
    """150 places at a quarter: 37.5 expected, deviation 5.30, so 64.02 and up."""
    document = central("privacy.audit", {"canaries": 100})
    document["privacy"]["cohort"] = {"kind": "poisson", "rate": 0.25, "cap": 65, "n_max": 50}
    document["quorum"] = {"min_updates": 0, "max_updates": 65}
    manifest = Manifest.model_validate(document)
    assert manifest.privacy.canaries == 100
    plan.check_plan(manifest, clients=50, trusts=("central",), max_update_bytes=2**20)
    document["privacy"]["cohort"]["cap"] = document["quorum"]["max_updates"] = 64
    assert refusal(document, clients=50, trusts=("central",)) == "cap_too_small"
    local = Manifest.model_validate(tiny_manifest(privacy={"audit": {"canaries": 100}}))
    assert local.privacy.canaries == 0
    document["privacy"]["cohort"]["cap"] = 151
    with pytest.raises(ValidationError):
        Manifest.model_validate(document)


def test_canaries_and_a_clip_norm_that_follows_the_clients_do_not_go_together() -> None:
    document = central("privacy.audit", {"canaries": 100})
    document["privacy"]["adaptive_clip"] = {"quantile": 0.5, "learning_rate": 0.2, "bit_noise": 20.0}
    assert refusal(document, clients=202, trusts=("central",)) == "audit_refused"


def test_an_older_manifest_is_hashed_with_the_new_members_filled_in() -> None:
    older = copy.deepcopy(EXAMPLE)
    del older["privacy"]["adaptive_clip"], older["privacy"]["person"]
    assert Manifest.model_validate(older).as_json() == Manifest.model_validate(EXAMPLE).as_json()
