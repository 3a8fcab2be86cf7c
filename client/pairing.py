"""Training on a machine without a network: for a client that is enrolled on another one.

The machine with the network enrols, fetches and submits; the machine with the data trains. What passes
between them is a card, once, and the folder of each round. Each has a ledger of its own: the one beside the
data decides what is trained, the other one what is sent. No key passes.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal
from uuid import UUID

from pydantic import BaseModel, ConfigDict, ValidationError

from client.dataset import check_data
from client.durable import private_folder, write_whole
from client.enrolment import keep_policy
from client.errors import ClientError
from client.i18n import _
from client.ledger import Ledger
from client.policy import Policy
from client.profile import Config, Profile, default_home, file_sha256, lock_folder, make_key

_MOST_BYTES = 1 << 20


class Card(BaseModel):
    """Who the client is and what its data may be used for; nothing secret."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    version: Literal[1] = 1
    client_id: UUID
    server: str
    name: str
    region: str
    policy: Policy

    @classmethod
    def load(cls, path: Path) -> Card:
        """Read a card that `write_card` wrote."""
        try:
            with path.open("rb") as file:
                return cls.model_validate_json(file.read(_MOST_BYTES))
        except OSError as error:
            raise ClientError(
                "cannot_read",
                _("cannot read {path}: {reason}"),
                path=str(path),
                reason=error.strerror or "error",
            ) from error
        except ValidationError as error:
            raise ClientError("card_invalid", _("{path} is no client's card"), path=str(path)) from error


@dataclass(frozen=True, kw_only=True)
class Attachment:
    """Where the machine with the data keeps what it needs."""

    card: Path
    folder: Path
    data: Path
    base_model_folders: dict[str, str]
    home: Path | None = None
    """Where the data sets' ledgers are; this account's own place without it."""


def write_card(profile: Profile, to: Path) -> None:
    """Write what another machine needs to train for this client. Folders of this machine stay out of it."""
    config = profile.config
    card = Card(
        client_id=UUID(config.client_id),
        server=config.server,
        name=config.name,
        region=config.region,
        policy=profile.policy.model_copy(update={"base_model_folders": {}}),
    )
    values: dict[str, Any] = card.model_dump(mode="json")
    write_whole(to, json.dumps(values, indent=2, ensure_ascii=False).encode() + b"\n")


def attach(wish: Attachment) -> Profile:
    """Make a folder that trains for the card's client on the data here, and sends nothing itself."""
    card = Card.load(wish.card)
    policy = card.policy.model_copy(update={"base_model_folders": wish.base_model_folders})
    private_folder(wish.folder)
    with lock_folder(wish.folder):
        if (wish.folder / "config.json").exists():
            raise ClientError(
                "already_enrolled", _("{path} is an enrolled client already"), path=str(wish.folder)
            )
        data, home = wish.data.expanduser().resolve(), (wish.home or default_home()).expanduser().resolve()
        data_sha256 = file_sha256(data)
        check_data(data, policy)
        Ledger(home, policy.dataset).enrol_data(data_sha256)
        keep_policy(home, policy)
        make_key(wish.folder)  # its own: it signs declarations, and no server knows it
        config = Config(
            server=card.server,
            client_id=str(card.client_id),
            name=card.name,
            region=card.region,
            dataset=policy.dataset,
            data=str(data),
            data_sha256=data_sha256,
            home=str(home),
            hands_over=True,
        )
        return Profile.create(wish.folder, config)
