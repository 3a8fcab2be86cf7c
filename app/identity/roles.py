"""Who acts: roles, and the principal that every service receives."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from uuid import UUID


class Role(StrEnum):
    """What a principal may do is listed per role in app/identity/permissions.py, and nowhere else."""

    ADMIN = "admin"  # operates the federation
    COORDINATOR = "coordinator"  # plans and runs federated fine-tuning
    PRIVACY_OFFICER = "privacy_officer"  # sees budgets and certificates, grants budget
    AUDITOR = "auditor"  # reads everything that is recorded, changes nothing
    DATA_STEWARD = "data_steward"  # sets what the organisation's data may be used for
    VIEWER = "viewer"  # reads runs, rounds and releases of the organisation
    CLIENT = "client"  # a training client: its own assignments, updates and budget


@dataclass(frozen=True, slots=True)
class Principal:
    """An authenticated caller. `id` is a member's or a training client's, by role."""

    id: UUID
    organisation_id: UUID
    role: Role
    scopes: frozenset[str] | None = None
    """The only permissions of the role that these credentials are good for; None: all of them."""
    session_id: UUID | None = None
    """The sign-in behind an access token of a member."""
    api_key_id: UUID | None = None
    """The API key that was presented."""

    @property
    def actor(self) -> str:
        """How logs and state histories name the caller."""
        return f"{'client' if self.role is Role.CLIENT else 'member'}:{self.id}"
