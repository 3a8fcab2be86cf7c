"""Every act that the audit log knows. What is not in this table is not audited."""

from enum import StrEnum


class Action(StrEnum):
    """What was done, as `noun.verb`. A member is never renamed: entries that name it stay for ever."""

    ORGANISATION_CREATED = "organisation.created"
    ORGANISATION_LIMITED = "organisation.limited"
    MEMBER_CREATED = "member.created"
    MEMBER_CHANGED = "member.changed"  # another role
    MEMBER_SUSPENDED = "member.suspended"
    MEMBER_REINSTATED = "member.reinstated"
    MEMBER_MOVED = "member.moved"  # to another organisation, without roles and keys
    MEMBER_SIGNED_OUT = "member.signed_out"  # everywhere
    # Their names hold the word that scanners for secrets look for; no secret is here.
    PASSWORD_TOKEN_ISSUED = "password_token.issued"  # noqa: S105  # nosec B105  (an invitation or a reset)
    PASSWORD_CHANGED = "password.changed"  # noqa: S105  # nosec B105
    SECOND_FACTOR_CHANGED = "second_factor.changed"
    SESSION_OPENED = "session.opened"
    SESSION_ENDED = "session.ended"
    REFRESH_REUSED = "refresh.reused"  # a one-use token came twice: its family was ended
    API_KEY_CREATED = "api_key.created"
    API_KEY_REVOKED = "api_key.revoked"
    ENROLMENT_CREATED = "enrolment.created"  # a training client was invited
    CLIENT_ENROLLED = "client.enrolled"
    CLIENT_APPROVED = "client.approved"
    CLIENT_REJECTED = "client.rejected"
    CLIENT_REVOKED = "client.revoked"
    CLIENT_KEY_ROTATED = "client_key.rotated"
    CLIENT_MOVED = "client.moved"
    CLIENT_SUSPENDED = "client.suspended"
    CLIENT_REINSTATED = "client.reinstated"
    CERTIFICATE_ISSUED = "certificate.issued"  # to a training client
    CERTIFICATE_REVOKED = "certificate.revoked"
    STANDING_REVERSED = "standing.reversed"  # a step of the ladder was taken back by hand
    STANDING_QUARANTINED = "standing.quarantined"  # a client's updates count nothing, by hand
    SIGNING_KEYS_ROTATED = "signing_keys.rotated"
    AUDIT_KEY_ROTATED = "audit_key.rotated"  # another key signs this log's checkpoints
    AUDIT_ERASED = "audit.erased"  # what entries on one subject had committed to was deleted
    STORED_KEYS_ROTATED = "stored_keys.rotated"  # the keys that wrap those of stored bytes
    STORED_KEYS_REROOTED = "stored_keys.rerooted"
    STORED_KEYS_SHREDDED = "stored_keys.shredded"  # an organisation's bytes can never be read again
    SECURITY_EVENT_NOTED = "security_event.noted"
    SECURITY_EVENT_RESOLVED = "security_event.resolved"
    DATA_RULES_SET = "data_rules.set"  # another version is in force
    DATA_RULES_DECIDED = "data_rules.decided"  # on a run, at its start or before its next round
    RUN_CREATED = "run.created"
    RUN_CHANGED = "run.changed"  # the manifest of a draft was replaced
    RUN_PRICE_ASKED = "run.price_asked"
    RUN_PRICED = "run.priced"
    RUN_REFUSED = "run.refused"
    RUN_STARTED = "run.started"
    RUN_PAUSED = "run.paused"
    RUN_RESUMED = "run.resumed"
    RUN_ROLLED_BACK = "run.rolled_back"  # its later releases were marked
    RUN_ABORTED = "run.aborted"
    RUN_FINISHED = "run.finished"
    ROUND_SEALED = "round.sealed"
    ROUND_ABORTED = "round.aborted"
    ROUND_PUBLISHED = "round.published"
    BUDGET_OPENED = "budget.opened"  # a data set's account was opened or taken over
    BUDGET_GRANTED = "budget.granted"
    BUDGET_RECHECK_ASKED = "budget.recheck_asked"
    VIOLATION_FOUND = "violation.found"
    PRIVACY_AUDIT_ASKED = "privacy_audit.asked"
    UPDATE_ACCEPTED = "update.accepted"
    UPDATE_REJECTED = "update.rejected"
    UPDATE_DISCLAIMED = "update.disclaimed"  # a client signed that it sent nothing for a run
    RELEASE_PUBLISHED = "release.published"
    JOB_RETRIED = "job.retried"
