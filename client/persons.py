"""Whose record is whose, for runs that protect persons. Ids are hashed with a secret of this silo at once.

The secret stays in the data set's ledger folder, sealed with the local key; neither an id nor its hash is
ever sent, logged or written down. After reading, a person is only a number.
"""

from __future__ import annotations

import hashlib
import hmac
import os
from dataclasses import dataclass
from pathlib import Path

from client.durable import private_folder
from client.errors import ClientError
from client.i18n import _
from client.sealing import seal_file, unseal_file

_KEY_BYTES = 32


@dataclass(frozen=True, repr=False)
class PersonRule:
    """How a run tells persons apart. It has no repr: nothing can print the secret."""

    id_field: str
    records_cap: int
    key: bytes


class Roll:
    """Numbers persons in the order of their first record and counts their records."""

    def __init__(self, rule: PersonRule) -> None:
        self._rule = rule
        self._numbers: dict[bytes, int] = {}
        self._records: list[int] = []

    def number_of(self, value: object, *, line: int) -> int:
        """Return the number of the person that a record names.

        Raises:
            ClientError: `person_missing`, naming the line, when the id is no text or number or is blank;
                or `person_over_cap`, naming neither line nor person.
        """
        if isinstance(value, int) and not isinstance(value, bool):
            value = str(value)
        if not isinstance(value, str) or not value.strip():
            raise ClientError(
                "person_missing",
                _("Line {line} names no person in the field {field}."),
                line=line,
                field=self._rule.id_field,
            )
        written = value.encode("utf-8", errors="surrogatepass")  # half a character is an id like any other
        tag = hmac.new(self._rule.key, written, hashlib.sha256).digest()
        number = self._numbers.setdefault(tag, len(self._numbers))
        if number == len(self._records):
            self._records.append(0)
        self._records[number] += 1
        if self._records[number] > self._rule.records_cap:
            raise ClientError(
                "person_over_cap",
                _("A person has more than the {cap} records that the run allows: nothing is trained."),
                cap=self._rule.records_cap,
            )
        return number


def silo_key(folder: Path) -> bytes:
    """Return the silo's secret, made now if there is none.

    Args:
        folder: the data set's ledger folder.

    Raises:
        ClientError: `key_exposed` when other accounts can read it, or `no_key` when it is no secret.
    """
    path = private_folder(folder) / "person.key"
    if not path.exists():
        seal_file(path, os.urandom(_KEY_BYTES))
    sealed = unseal_file(path)
    key = path.read_bytes() if sealed is None else sealed
    if len(key) != _KEY_BYTES:
        raise ClientError("no_key", _("{path} holds no usable key"), path=str(path))
    if sealed is None:
        seal_file(path, key)  # an older release wrote it in the clear
    return key
