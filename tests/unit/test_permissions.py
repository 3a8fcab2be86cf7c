"""The RBAC table, pinned per role: a change here is a change of who may do what."""

from uuid import uuid4

import pytest

from app.core.errors import Forbidden
from app.identity.permissions import PERMISSIONS, Scope, scope_of
from app.identity.roles import Principal, Role

READS_IN_ORGANISATION = {"organisations:read", "clients:read", "runs:read", "rounds:read", "releases:read"}
OWN_KEYS = {"api_keys:create", "api_keys:read", "api_keys:revoke"}
WIRE = {"assignments:read", "updates:create"}

IN_ORGANISATION = {
    Role.COORDINATOR: READS_IN_ORGANISATION
    | {
        "members:read",
        "enrolments:create",
        "enrolments:read",
        "clients:suspend",
        "updates:read",
        "evidence:read",
        "standings:read",
        "budgets:read",
        "violations:read",
    }
    | {"runs:create", "runs:price", "runs:start", "runs:control", "rounds:seal", "rounds:abort"},
    Role.PRIVACY_OFFICER: READS_IN_ORGANISATION
    | {
        "members:read",
        "enrolments:read",
        "budgets:read",
        "budgets:grant",
        "violations:read",
        "organisations:limit",
    },
    Role.AUDITOR: READS_IN_ORGANISATION
    | {"members:read", "enrolments:read", "updates:read", "budgets:read", "violations:read"}
    | {"evidence:read", "standings:read"},
    Role.VIEWER: READS_IN_ORGANISATION,
}


def principal(role: Role) -> Principal:
    return Principal(id=uuid4(), organisation_id=uuid4(), role=role)


def held(role: Role) -> dict[str, Scope]:
    return {name: row[role] for name, row in PERMISSIONS.items() if role in row}


@pytest.mark.parametrize("role", sorted(IN_ORGANISATION))
def test_staff_reach_their_organisation_and_their_own_keys(role: Role) -> None:
    expected = dict.fromkeys(IN_ORGANISATION[role], Scope.ORGANISATION) | dict.fromkeys(OWN_KEYS, Scope.OWN)
    assert held(role) == expected


def test_an_administrator_holds_everything_but_what_only_a_training_client_does() -> None:
    assert held(Role.ADMIN) == dict.fromkeys(PERMISSIONS.keys() - WIRE, Scope.FEDERATION)


def test_a_training_client_reaches_its_own_things_only() -> None:
    reads = {"clients:read", "runs:read", "rounds:read", "adapters:read", "updates:read", "releases:read"}
    assert held(Role.CLIENT) == dict.fromkeys(reads | WIRE | {"budgets:read", "evidence:read"}, Scope.OWN)


def test_a_permission_that_the_role_lacks_is_forbidden_by_name() -> None:
    with pytest.raises(Forbidden) as refusal:
        scope_of(principal(Role.VIEWER), "rounds:seal")
    assert refusal.value.members == {"permission": "rounds:seal"}


def test_a_permission_that_does_not_exist_is_a_programming_error() -> None:
    with pytest.raises(KeyError):
        scope_of(principal(Role.ADMIN), "rounds:seel")
