"""The file of `dpfl federation init` is read strictly: what is wrong is named, and nothing is guessed."""

from __future__ import annotations

from pathlib import Path

import pytest

from cli.silos import MOST_BYTES, read_federation
from client.errors import ClientError
from client.policy import Policy
from tests.contracts.sources import ROOT

EXAMPLE = ROOT / "docs" / "examples" / "hospitals.yaml"


def refusal(path: Path, text: str) -> str:
    path.write_text(text)
    with pytest.raises(ClientError) as refused:
        read_federation(path)
    assert refused.value.code == "federation_invalid"
    return str(refused.value)


def test_the_example_is_a_federation() -> None:
    found = read_federation(EXAMPLE)
    assert [found.region_of(one) for one in found.silos] == ["eu-central-1", "eu-central-1", "eu-west-1"]
    assert [found.jurisdiction_of(one) for one in found.silos] == ["DE", "DE", "PT"]
    assert [one.folder for one in found.silos] == ["klinik-aachen", "klinik-bonn", "hospital-lisboa"]
    proposed = found.policy_of(found.silos[0])
    assert isinstance(proposed, Policy)
    assert (proposed.dataset, proposed.epsilon, proposed.trusts) == ("aachen-letters", 8.0, ["local"])


@pytest.mark.parametrize(
    ("old", "new", "told"),
    [
        ("version: 1", "version: 2", "version"),
        ("region: eu-central-1\n", "", "region"),
        ("jurisdiction: PT", "jurisdiction: Portugal", "silos.2.jurisdiction"),
        ("  unit: example", "  unit: example\n  unlimited: true", "budget.unlimited"),
        ("epsilon: 8.0", "epsilon: .inf", "budget.epsilon"),
        ("delta: 1.0e-5", "delta: 1e-5", "budget.delta"),
        ("smallest_cohort: 3", "smallest_cohort: yes", "policy.smallest_cohort"),
        ("labels: [ham, spam]", "labels: [no, spam]", "policy.labels.0"),
        ("epsilon: 2.0", "epsilon: 9.0", "a plan within the budget"),
        ("name: Klinik Bonn", "name: klinik aachen", "names that differ"),
        ("bonn-letters", "aachen-letters", "names that differ"),
        ("name: Klinik Bonn", "name: ../../etc", "silos.1.name"),
        ("name: Klinik Bonn", "name: .", "silos.1.name"),
        ("expires_hours: 72", "expires_hours: 721", "expires_hours"),
        ("version: 1", "version: 1\nversion: 1", "line 3: a name that appears twice"),
        ("labels: [ham, spam]", "labels: &a [ham, spam]\n  text: *a", "an alias"),
        ("labels: [ham, spam]", "labels: !!python/object/apply:os.getcwd []", "python/object"),
        ("labels: [ham, spam]", f"labels: {'[' * 20}{']' * 20}", "a nest too deep"),
        ("labels: [ham, spam]", "labels: [ham, spam", "line"),
        ("version: 1", "--- 1\n--- 2", "line"),
        ("silos:", "silos: []\nothers:", "silos"),
    ],
)
def test_what_is_not_right_is_named(tmp_path: Path, old: str, new: str, told: str) -> None:
    text = EXAMPLE.read_text()
    assert old in text
    assert told in refusal(tmp_path / "file.yaml", text.replace(old, new, 1))


def test_a_file_without_end_or_sense_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "file.yaml"
    assert "size" in refusal(path, "#" * (MOST_BYTES + 1))
    assert "is not right" in refusal(path, "")
    assert "is not right" in refusal(path, "[" * 100_000)
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ClientError, match="is not right"):
        read_federation(path)
    with pytest.raises(ClientError, match="cannot read"):
        read_federation(tmp_path / "missing.yaml")
