import json
from pathlib import Path

import pytest

from client.dataset import check_data, read_examples
from client.errors import ClientError
from client.policy import Policy
from modelling.spec import TaskSpec
from tests.client_folders import TERMS

TASK = TaskSpec(
    labels=("ham", "spam"),
    text_fields=("subject", "body"),
    label_field="label",
    max_tokens=64,
    pooling="mean",
)
HAM = {"subject": "patch", "body": "it builds", "label": "ham", "id": 7}
SPAM = {"subject": "offer", "body": "cheap", "label": "spam"}


def written(folder: Path, *lines: str | dict[str, object]) -> Path:
    path = folder / "mails.jsonl"
    texts = [line if isinstance(line, str) else json.dumps(line) for line in lines]
    path.write_text("\n".join(texts) + ("\n" if texts else ""), encoding="utf-8")
    return path


def refusal(path: Path) -> ClientError:
    with pytest.raises(ClientError) as caught:
        read_examples(path, TASK)
    return caught.value


def test_texts_are_the_fields_joined_and_labels_their_positions(tmp_path: Path) -> None:
    examples = read_examples(written(tmp_path, HAM, SPAM), TASK)
    assert examples.texts == ("patch\nit builds", "offer\ncheap")
    assert examples.labels == (0, 1)
    assert len(examples) == 2


@pytest.mark.parametrize(
    "broken", ["{not json", "[1, 2]", "", '"text"', "null", "[" * 100_000, '{"subject": "only"}']
)
def test_a_broken_line_is_refused_with_its_number_and_without_its_text(tmp_path: Path, broken: str) -> None:
    error = refusal(written(tmp_path, HAM, SPAM, broken, HAM))
    assert (error.code, error.members["line"]) == ("broken_line", 3)
    assert "3" in str(error)
    assert "only" not in str(error)
    assert error.__cause__ is None


def test_a_field_that_is_no_text_is_refused(tmp_path: Path) -> None:
    error = refusal(written(tmp_path, HAM, SPAM | {"body": 5}))
    assert (error.code, error.members) == ("broken_line", {"line": 2, "field": "body"})


def test_half_a_character_is_refused_with_its_line_and_field(tmp_path: Path) -> None:
    error = refusal(written(tmp_path, HAM, '{"subject": "x", "body": "\\ud83d", "label": "ham"}'))
    assert (error.code, error.members) == ("broken_line", {"line": 2, "field": "body"})


def test_bytes_that_are_no_utf8_are_a_broken_line(tmp_path: Path) -> None:
    path = tmp_path / "mails.jsonl"
    path.write_bytes(json.dumps(HAM).encode() + b"\n\xff\xfe\n")
    assert (refusal(path).code, refusal(path).members["line"]) == ("broken_line", 2)


def test_an_unknown_label_is_refused_without_being_shown(tmp_path: Path) -> None:
    error = refusal(written(tmp_path, HAM, SPAM | {"label": "secret"}))
    assert (error.code, error.members["line"]) == ("unknown_label", 2)
    assert "secret" not in str(error)


def test_one_class_only_is_refused(tmp_path: Path) -> None:
    policy = Policy.of(**TERMS)
    with pytest.raises(ClientError) as refused:
        check_data(written(tmp_path, HAM, HAM), policy)
    assert refused.value.code == "one_class_only"
    check_data(written(tmp_path, HAM, SPAM), policy)
    check_data(written(tmp_path, HAM, HAM), policy.model_copy(update={"units": ["client"]}))


def test_an_empty_file_is_refused(tmp_path: Path) -> None:
    assert refusal(written(tmp_path)).code == "empty_dataset"


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    assert refusal(tmp_path / "absent.jsonl").code == "dataset_missing"
    assert refusal(tmp_path).code == "dataset_missing"


def test_every_refusal_fits_on_one_line(tmp_path: Path) -> None:
    for path in (written(tmp_path, "{"), tmp_path / "absent.jsonl", tmp_path):
        assert "\n" not in str(refusal(path))


def test_examples_cannot_be_printed_by_accident(tmp_path: Path) -> None:
    assert "offer" not in repr(read_examples(written(tmp_path, HAM, SPAM), TASK))
