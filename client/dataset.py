"""Reading the client's own examples from a file of JSON lines.

Errors name a line's number and a field, never what stands there.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from client.errors import ClientError
from client.i18n import _
from client.persons import PersonRule, Roll
from client.policy import Policy
from modelling.spec import TaskSpec

_MAX_LINE_BYTES = 16 * 1024**2
_SURROGATE = re.compile("[\\ud800-\\udfff]")


@dataclass(frozen=True, repr=False)
class Examples:
    """Texts and the positions of their labels in the manifest. It has no repr: nothing can print it."""

    texts: tuple[str, ...]
    labels: tuple[int, ...]
    persons: tuple[int, ...] | None = None
    """Number of the person of each record, where the run protects persons."""

    def __len__(self) -> int:
        return len(self.texts)


def read_examples(path: Path, task: TaskSpec, *, rule: PersonRule | None = None) -> Examples:
    """Read one example a line; the text is the task's fields, joined by line breaks.

    Args:
        path: the file of JSON lines.
        task: the manifest's task.
        rule: how persons are told apart, where the run protects persons.

    Raises:
        ClientError: `dataset_missing`, `broken_line` (a line that is no JSON object, or lacks a field),
            `unknown_label`, `empty_dataset`, `person_missing` or `person_over_cap`.
    """
    texts: list[str] = []
    labels: list[int] = []
    persons: list[int] = []
    roll = None if rule is None else Roll(rule)
    numbers = {label: number for number, label in enumerate(task.labels)}
    for line_number, record in _records(path):
        texts.append("\n".join(_field(record, name, line_number) for name in task.text_fields))
        label = _field(record, task.label_field, line_number)
        if label not in numbers:
            raise ClientError(
                "unknown_label", _("Line {line} has a label that the run does not know."), line=line_number
            )
        labels.append(numbers[label])
        if rule is not None and roll is not None:
            persons.append(roll.number_of(record.get(rule.id_field), line=line_number))
    if not texts:
        raise ClientError("empty_dataset", _("The data set holds no example."))
    return Examples(
        texts=tuple(texts), labels=tuple(labels), persons=None if roll is None else tuple(persons)
    )


def check_data(path: Path, policy: Policy) -> None:
    """Refuse data that are not as their holder declares them, by the same rules as training.

    Run before any schedule is committed: what is refused here depends on the data, and so it must not depend
    on the choices of whoever plans a run. Data of one label are most likely the wrong file; a data set that
    is protected as a whole, by policy, is often a small one, and may have one.

    Raises:
        ClientError: as `read_examples`, or `one_class_only`.
    """
    task = TaskSpec(
        labels=tuple(policy.labels),
        text_fields=tuple(policy.text_fields),
        label_field=policy.label_field,
        max_tokens=2,
        pooling="mean",
    )
    rule = None
    if policy.person_field is not None and policy.person_records is not None:
        rule = PersonRule(id_field=policy.person_field, records_cap=policy.person_records, key=os.urandom(32))
    examples = read_examples(path, task, rule=rule)
    if len(set(examples.labels)) == 1 and policy.units != ["client"]:
        raise ClientError("one_class_only", _("All examples have the same label; there is nothing to learn."))


def _records(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    try:
        with path.open("rb") as file:
            for number, line in enumerate(iter(lambda: file.readline(_MAX_LINE_BYTES + 1), b""), start=1):
                yield number, _record(line, number)
    except OSError as error:
        raise ClientError(
            "dataset_missing", _("The data set cannot be read: {path}"), path=str(path)
        ) from error


def _record(line: bytes, number: int) -> dict[str, Any]:
    if len(line) > _MAX_LINE_BYTES:
        raise _broken(number)
    try:
        record = json.loads(line.decode("utf-8"))
    except (ValueError, RecursionError):
        raise _broken(number) from None  # the cause would quote the line
    if not isinstance(record, dict):
        raise _broken(number)
    return record


def _field(record: dict[str, Any], name: str, number: int) -> str:
    value = record.get(name)
    if not isinstance(value, str) or _SURROGATE.search(value):  # half a character: no tokenizer takes it
        raise ClientError(
            "broken_line", _("Line {line} has no text in the field {field}."), line=number, field=name
        )
    return value


def _broken(number: int) -> ClientError:
    return ClientError("broken_line", _("Line {line} is not a JSON object."), line=number)
