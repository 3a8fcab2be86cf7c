"""The RBAC table, pinned per role: a change here is a change of who may do what."""

from dataclasses import replace
from uuid import uuid4

import pytest

from app.core.errors import Forbidden
from app.identity.permissions import PERMISSIONS, Scope, held_by, require_grantable, scope_of
from app.identity.roles import Principal, Role

READS_IN_ORGANISATION = {
    "organisations:read",
    "clients:read",
    "runs:read",
    "rounds:read",
    "releases:read",
    "data_rules:read",
}
OWN_ACCOUNT = {
    "api_keys:create",
    "api_keys:read",
    "api_keys:revoke",
    "account:read",
    "account:secure",
    "sessions:read",
    "sessions:end",
}
WIRE = {"assignments:read", "updates:create", "clients:rotate_key", "certificates:create"}

IN_ORGANISATION = {
    Role.COORDINATOR: READS_IN_ORGANISATION
    | {
        "members:read",
        "enrolments:create",
        "enrolments:read",
        "clients:suspend",
        "clients:approve",
        "clients:revoke",
        "certificates:read",
        "certificates:revoke",
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
        "audit:read",
        "security_events:read",
        "data_rules:try",
    },
    Role.AUDITOR: READS_IN_ORGANISATION
    | {"members:read", "enrolments:read", "updates:read", "budgets:read", "violations:read"}
    | {"evidence:read", "standings:read", "certificates:read"}
    | {"audit:read", "audit:export", "security_events:read"},
    Role.DATA_STEWARD: READS_IN_ORGANISATION
    | {"data_rules:set", "data_rules:try", "budgets:read", "audit:read"},
    Role.VIEWER: READS_IN_ORGANISATION,
}


def principal(role: Role) -> Principal:
    return Principal(id=uuid4(), organisation_id=uuid4(), role=role)


def held(role: Role) -> dict[str, Scope]:
    return {name: row[role] for name, row in PERMISSIONS.items() if role in row}


@pytest.mark.parametrize("role", sorted(IN_ORGANISATION))
def test_staff_reach_their_organisation_and_their_own_account(role: Role) -> None:
    expected = dict.fromkeys(IN_ORGANISATION[role], Scope.ORGANISATION) | dict.fromkeys(
        OWN_ACCOUNT, Scope.OWN
    )
    assert held(role) == expected


def test_an_administrator_holds_everything_but_what_only_a_training_client_does() -> None:
    assert held(Role.ADMIN) == dict.fromkeys(PERMISSIONS.keys() - WIRE, Scope.FEDERATION)


def test_a_training_client_reaches_its_own_things_only() -> None:
    reads = {"clients:read", "runs:read", "rounds:read", "adapters:read", "updates:read", "releases:read"}
    own = {"budgets:read", "evidence:read", "audit:read", "certificates:read", "certificates:revoke"}
    assert held(Role.CLIENT) == dict.fromkeys(reads | WIRE | own, Scope.OWN)


def test_a_permission_that_the_role_lacks_is_forbidden_by_name() -> None:
    with pytest.raises(Forbidden) as refusal:
        scope_of(principal(Role.VIEWER), "rounds:seal")
    assert refusal.value.members == {"permission": "rounds:seal"}


def test_a_permission_that_does_not_exist_is_a_programming_error() -> None:
    with pytest.raises(KeyError):
        scope_of(principal(Role.ADMIN), "rounds:seel")


def test_credentials_of_narrower_scope_hold_no_more_than_it() -> None:
    narrow = replace(principal(Role.ADMIN), scopes=frozenset({"jobs:read"}))
    assert scope_of(narrow, "jobs:read") is Scope.FEDERATION
    with pytest.raises(Forbidden):
        scope_of(narrow, "jobs:retry")
    assert held_by(narrow) == {"jobs:read"}
    other = replace(principal(Role.VIEWER), scopes=frozenset({"jobs:read"}))
    assert held_by(other) == frozenset()  # a scope adds nothing to a role


@pytest.mark.parametrize("granter", [role for role in Role if role is not Role.CLIENT])
@pytest.mark.parametrize("role", [role for role in Role if role is not Role.CLIENT])
def test_a_role_is_granted_only_by_who_holds_all_of_it_as_far_as_it_reaches(
    granter: Role, role: Role
) -> None:
    reach = list(Scope)
    covers = all(
        name in held(granter) and reach.index(scope) <= reach.index(held(granter)[name])
        for name, scope in held(role).items()
    )
    if covers:
        require_grantable(principal(granter), role)
    else:
        with pytest.raises(Forbidden):
            require_grantable(principal(granter), role)
    assert covers == (granter in {role, Role.ADMIN} or role is Role.VIEWER)
