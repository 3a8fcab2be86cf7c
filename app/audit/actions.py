"""Every act that the audit log knows. What is not in this table is not audited."""

from enum import StrEnum


class Action(StrEnum):
    """What was done, as `noun.verb`. A member is never renamed: entries that name it stay for ever."""

    ORGANISATION_CREATED = "organisation.created"
    ORGANISATION_LIMITED = "organisation.limited"
    MEMBER_CREATED = "member.created"
    API_KEY_CREATED = "api_key.created"
    API_KEY_REVOKED = "api_key.revoked"
    ENROLMENT_CREATED = "enrolment.created"  # a training client was invited
    CLIENT_ENROLLED = "client.enrolled"
    CLIENT_SUSPENDED = "client.suspended"
    CLIENT_REINSTATED = "client.reinstated"
    STANDING_REVERSED = "standing.reversed"  # a step of the ladder was taken back by hand
    SIGNING_KEYS_ROTATED = "signing_keys.rotated"
    AUDIT_KEY_ROTATED = "audit_key.rotated"  # another key signs this log's checkpoints
    AUDIT_ERASED = "audit.erased"  # what entries on one subject had committed to was deleted
    RUN_CREATED = "run.created"
    RUN_CHANGED = "run.changed"  # the manifest of a draft was replaced
    RUN_PRICE_ASKED = "run.price_asked"
    RUN_PRICED = "run.priced"
    RUN_REFUSED = "run.refused"
    RUN_STARTED = "run.started"
    RUN_PAUSED = "run.paused"
    RUN_RESUMED = "run.resumed"
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
