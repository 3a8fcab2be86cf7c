"""The demo's mails and its attack: what is compared is what is said to be compared."""

import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from demo import client_plan, split
from demo.attack import CanaryGains, attack
from demo.mails import CANARIES_A_SILO, DATA_FILE, SILOS, load_silos, load_test, mails_of
from demo.plan import DELTA, DIVISOR, LOCAL_STEPS, ROUNDS, SAMPLING_RATE, arms, manifest
from demo.reference import majority
from demo.split import sample
from engines.privacy.accounting import Relation, calibrate_noise_multiplier


def test_the_mails_are_5271_in_eight_mailboxes_and_a_test_set_and_tell_where_they_come_from() -> None:
    test = load_test()
    boxes = [mails_of(number) for number in range(SILOS)]
    assert (len(test), len(test) + sum(map(len, boxes))) == (1066, 5271)
    assert 0.785 < majority(test) < 0.795
    assert (DATA_FILE.parent / "README.md").is_file()


def test_no_mail_is_trained_on_and_tested_or_in_two_mailboxes() -> None:
    test = {(mail["subject"], mail["body"]) for mail in load_test()}
    boxes = [{(mail["subject"], mail["body"]) for mail in mails_of(number)} for number in range(SILOS)]
    assert all(box.isdisjoint(test) for box in boxes)
    assert sum(map(len, boxes)) == len(set().union(*boxes))


def test_canaries_are_flipped_training_mails_half_of_them_in() -> None:
    for silo in load_silos(seed=1):
        labels = {(mail["subject"], mail["body"]): mail["label"] for mail in mails_of(silo.number)}
        canaries = [*silo.canaries_in, *silo.canaries_out]
        trained = Counter((mail["subject"], mail["body"], mail["label"]) for mail in silo.training)
        assert len(silo.canaries_in) == len(silo.canaries_out) == CANARIES_A_SILO // 2
        assert all(labels[mail["subject"], mail["body"]] != mail["label"] for mail in canaries)
        assert all(trained[mail["subject"], mail["body"], mail["label"]] for mail in silo.canaries_in)
        assert not any(trained[mail["subject"], mail["body"], mail["label"]] for mail in silo.canaries_out)
        assert len(silo.training) == len(labels) - CANARIES_A_SILO // 2


def test_a_seed_chooses_the_canaries_and_nothing_else() -> None:
    one, same, other = load_silos(seed=1), load_silos(seed=1), load_silos(seed=2)
    assert one == same
    assert all(a.canaries_in != b.canaries_in for a, b in zip(one, other, strict=True))


def test_the_attack_tells_full_leakage_from_none_and_brackets_both() -> None:
    rng = np.random.default_rng(0)
    leaking = [CanaryGains(inside=2 + rng.random(15), outside=rng.random(15)) for _ in range(SILOS)]
    silent = [CanaryGains(inside=alike, outside=alike) for alike in rng.random((SILOS, 15))]
    assert attack(leaking, seed=1).auc == 1.0
    found = attack(silent, seed=1)
    assert found.auc == 0.5
    assert found.low < 0.5 < found.high
    assert attack(silent, seed=1) == found


def test_both_arms_share_everything_but_the_privacy_mechanism() -> None:
    private, open_arm = (manifest(arm, clients=8, seed=1) for arm in arms(8.0))
    assert {name for name in private if private[name] != open_arm[name]} == {"privacy"}
    differing = {name for name, value in private["privacy"].items() if value != open_arm["privacy"][name]}
    assert differing == {"trust", "clip_norm", "epsilon", "delta"}
    assert (private["aggregation"]["weights"], private["lora"]["method"]) == ("uniform", "ffa")


@pytest.mark.parametrize(("epsilon", "noise_multiplier"), [(8.0, 0.9345), (3.0, 1.678)])
def test_the_demos_plan_needs_the_promised_noise(epsilon: float, noise_multiplier: float) -> None:
    assert (SAMPLING_RATE, DIVISOR, ROUNDS * LOCAL_STEPS, DELTA) == (0.1231, 64, 64, 1e-5)
    found = calibrate_noise_multiplier(
        epsilon=epsilon,
        delta=DELTA,
        sampling_rate=SAMPLING_RATE,
        steps=ROUNDS * LOCAL_STEPS,
        relation=Relation.ZERO_OUT,
    )
    assert found == pytest.approx(noise_multiplier, rel=1e-3)


def test_the_small_clients_part_the_mailboxes_mails_among_them() -> None:
    silos = load_silos(1)
    assert sum(len(silo.clients) for silo in silos) == client_plan.CLIENTS
    for silo in silos:
        shared = sorted(mail["body"] for mails in silo.clients.values() for mail in mails)
        assert shared == sorted(mail["body"] for mail in silo.training)


def test_the_small_clients_plan_is_noised_by_the_server_over_a_secret_cohort() -> None:
    private, open_arm = (client_plan.manifest(arm, seed=1)["privacy"] for arm in arms(8.0))
    assert (private["trust"], private["unit"]) == ("central", "client")
    assert private["cohort"] == {"kind": "poisson", "rate": 0.25, "cap": 82, "n_max": 202}
    assert (open_arm["trust"], open_arm["cohort"], open_arm["epsilon"]) == (
        "none",
        {"kind": "everyone"},
        None,
    )


@pytest.mark.parametrize("limit", [2, 3, 250, 10_000])
def test_some_mails_of_a_silo_hold_both_labels_in_their_shares(limit: int) -> None:
    mails = mails_of(0)
    some = sample(mails, limit)
    labels = Counter(mail["label"] for mail in some)
    assert len(some) == min(limit, len(mails))
    assert set(labels) == {"ham", "spam"}
    whole = sum(mail["label"] == "spam" for mail in mails) / len(mails)
    assert abs(labels["spam"] - whole * len(some)) <= 1


def test_one_mail_alone_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    to = tmp_path / "mails.jsonl"
    monkeypatch.setattr(sys, "argv", ["split", "--silo", "0", "--limit", "1", "--to", str(to)])
    with pytest.raises(SystemExit):
        split.main()
    assert not to.exists()
