"""`dpfl price`: JSON by both accountants, without a server; options that do not go together are refused."""

from __future__ import annotations

import json
import logging
import warnings
from collections.abc import Iterator
from typing import Any

import pytest
from click.testing import Result
from typer.testing import CliRunner

from cli.main import app
from engines.privacy.accounting import GaussianRun, Relation, epsilon_pld


@pytest.fixture(autouse=True)
def restored() -> Iterator[None]:
    """The command silences this process's logs and warnings; others here want them back."""
    with warnings.catch_warnings():
        yield
    logging.disable(logging.NOTSET)


def dpfl_price(*words: str, code: int = 0) -> Result:
    done = CliRunner().invoke(app, ["price", *words])
    assert done.exit_code == code, done.output
    return done


def price(*words: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(dpfl_price(*words).stdout)
    return found


def test_a_plan_is_priced_by_both_accountants_beside_what_was_asked() -> None:
    found = price("--q", "0.25", "--z", "2.0", "--steps", "4")
    run = GaussianRun(noise_multiplier=2.0, sampling_rate=0.25, steps=4, relation=Relation.ZERO_OUT)
    assert found["epsilon_pld"] == epsilon_pld([run], delta=1e-5)
    assert found["epsilon_rdp"] > found["epsilon_pld"]
    assert (found["delta"], found["relation"]) == (1e-5, "zero_out")
    assert found["accountants"]["epsilon_pld"].endswith("PLD")
    assert found["accountants"]["epsilon_rdp"].endswith("RDP")
    asked = found["asked"]
    assert (asked["q"], asked["z"], asked["steps"]) == (0.25, 2.0, 4)
    assert (asked["trust"], asked["unit"]) == ("local", "example")


def test_calibration_finds_the_least_noise_that_keeps_the_epsilon() -> None:
    found = price("--q", "0.25", "--steps", "4", "--calibrate", "3")
    (z,) = found["noise_multipliers"]
    assert found["epsilon_pld"] <= 3
    less = GaussianRun(noise_multiplier=z - 1e-4, sampling_rate=0.25, steps=4, relation=Relation.ZERO_OUT)
    assert epsilon_pld([less], delta=1e-5) > 3


def test_noise_and_epsilon_give_the_most_steps() -> None:
    found = price("--q", "0.25", "--z", "2", "--calibrate", "3")
    (steps,) = found["steps"]
    assert found["epsilon_pld"] <= 3
    more = GaussianRun(noise_multiplier=2.0, sampling_rate=0.25, steps=steps + 1, relation=Relation.ZERO_OUT)
    assert epsilon_pld([more], delta=1e-5) > 3


def test_given_all_three_they_are_checked_and_the_true_epsilon_is_told() -> None:
    found = price("--q", "0.25", "--z", "2", "--steps", "4", "--calibrate", "3")
    assert found["epsilon_pld"] == price("--q", "0.25", "--z", "2", "--steps", "4")["epsilon_pld"] < 3
    assert (found["noise_multipliers"], found["steps"]) == ([2.0], [4])


def test_segments_of_several_rates_and_noises_are_one_schedule() -> None:
    found = price("--segments", "0.25:2.0:2,0.5:3.0:1")
    parts = [(0.25, 2.0, 2), (0.5, 3.0, 1)]
    runs = [
        GaussianRun(noise_multiplier=z, sampling_rate=q, steps=steps, relation=Relation.ZERO_OUT)
        for q, z, steps in parts
    ]
    assert found["epsilon_pld"] == epsilon_pld(runs, delta=1e-5)
    assert found["noise_multipliers"] == [2.0, 3.0]


def test_distributed_is_priced_without_amplification() -> None:
    shared = ("--unit", "client", "--sampling", "everyone", "--z", "2", "--steps", "3")
    assert (
        price("--trust", "distributed", *shared)["epsilon_pld"]
        == price("--trust", "central", *shared)["epsilon_pld"]
    )


CAPPED = ("--trust", "central", "--unit", "client", "--q", "0.25", "--z", "4", "--steps", "2")


def test_a_cap_that_can_cut_costs_something_and_has_no_renyi_price() -> None:
    whole = price(*CAPPED, "--cap", "100", "--population", "100")
    cut = price(*CAPPED, "--cap", "47", "--population", "100")
    assert cut["epsilon_pld"] > whole["epsilon_pld"]
    assert cut["epsilon_rdp"] is None


@pytest.mark.parametrize(
    ("words", "code"),
    [
        ((*CAPPED, "--cap", "30", "--population", "100"), "cannot_price"),
        ((*CAPPED, "--cap", "47"), "bad_options"),
        (("--q", "0.1", "--steps", "1", "--z", "1", "--unit", "client"), "bad_options"),
        (("--q", "0.1", "--steps", "1", "--z", "1", "--trust", "central"), "bad_options"),
        (("--q", "0.1", "--steps", "1", "--z", "1", "--cap", "3", "--population", "9"), "bad_options"),
        (("--q", "0.1", "--steps", "1"), "bad_options"),
        (("--q", "0.1", "--steps", "1", "--z", "1", "--calibrate", "0.01"), "impossible_plan"),
        (("--q", "0.1", "--z", "1", "--calibrate", "0.01"), "impossible_plan"),
        (("--q", "0.1", "--calibrate", "1"), "bad_options"),
        (("--q", "0.1", "--z", "1"), "bad_options"),
        (("--z", "1", "--steps", "1"), "bad_options"),
        (("--z", "1", "--steps", "1", "--q", "0.5", "--sampling", "everyone"), "bad_options"),
        (("--segments", "0.1:1:1", "--z", "1"), "bad_options"),
        (("--segments", "0.1:1"), "bad_options"),
        (("--segments", "0.1:1:1", "--sampling", "everyone"), "bad_options"),
        (
            ("--trust", "distributed", "--unit", "client", "--q", "0.5", "--z", "1", "--steps", "1"),
            "bad_options",
        ),
        ((*CAPPED, "--relation", "add_remove"), "bad_options"),
        (("--q", "2", "--z", "1", "--steps", "1"), "cannot_price"),
        (("--q", "0.1", "--z", "nan", "--steps", "1"), "cannot_price"),
        (("--q", "1", "--z", "1", "--steps", "1", "--delta", "1"), "cannot_price"),
        (("--q", "1", "--steps", "10000000", "--calibrate", "0.001"), "impossible_plan"),
    ],
)
def test_a_refusal_is_one_line_with_a_stable_code(words: tuple[str, ...], code: str) -> None:
    told = dpfl_price(*words, code=1)
    assert told.stdout == ""
    assert told.stderr.startswith(f"dpfl: [{code}] ")
    assert told.stderr.count("\n") == 1
