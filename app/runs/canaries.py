"""Canaries with places in a central run's own rounds: how many there are, and the secret that they come from.

A run has them once its frozen manifest commits to their secret: that of a plan is given when it is priced. A
manifest that was frozen without one has an audit of the code alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any
from uuid import UUID

from app.core.crypto import Vault


def secret_of(vault: Vault, run_id: UUID) -> bytes:
    """Derive the 32 bytes that coins and directions of a run follow from; stored nowhere.

    Only who holds the master key knows it, until the run's audit opens it.
    """
    return vault.fingerprint("canaries", str(run_id))


def seated(manifest: Mapping[str, Any]) -> int:
    """How many canaries take part in the rounds of a run with this frozen manifest."""
    privacy = manifest["privacy"]
    audit = privacy.get("audit")
    if privacy["trust"] != "central" or audit is None or audit.get("commitment") is None:
        return 0
    return int(audit["canaries"])
