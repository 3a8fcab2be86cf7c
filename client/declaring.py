"""What a client declares about an update: which software made it, and under which plan. Nobody attests it.

The declaration lies signed in the round's folder, bound to the update by its digest, and goes to the server
with an update that the client has noised, which refuses one whose declared noise is not the plan's. It says
what this client's code claims of itself; a client that runs other code could declare the same.
"""

from __future__ import annotations

import base64
import functools
import hashlib
import importlib.metadata
import json
from pathlib import Path
from typing import Any

import client
import engines
import modelling
from client.profile import Profile, raw_public_key
from client.wire import Assignment, FrozenManifest, canonical_sha256

_SOFTWARE = ("dp-federated-lora-lab", "torch", "transformers", "peft", "opacus", "dp-accounting")
_CODE = (client, modelling, engines)
"""The packages that decide what is trained, noised and sent."""


def declaration(
    profile: Profile, assignment: Assignment, frozen: FrozenManifest, *, update_sha256: str
) -> bytes:
    """Return the signed declaration of one finished update, as JSON.

    Args:
        profile: whose key signs.
        assignment: the round.
        frozen: the manifest under which it was trained.
        update_sha256: digest of the update's file.
    """
    privacy = frozen.manifest.privacy
    by_client = privacy.trust == "local"
    body: dict[str, Any] = {
        "attestation": "declared",
        "client_id": profile.config.client_id,
        "run_id": str(assignment.run_id),
        "number": assignment.number,
        "manifest_sha256": frozen.sha256,
        # Without noise the digest would confirm a guess of the update to whoever is shown this.
        "update_sha256": update_sha256 if by_client else None,
        "software": _versions(),
        "code_sha256": code_sha256(),
        "trust": privacy.trust,
        "unit": privacy.unit,
        "noise_by_client": by_client,
        "noise_multiplier": privacy.noise_multiplier if by_client else None,
        "clip_norm": privacy.clip_norm if by_client else None,
    }
    key = profile.key()
    digest = canonical_sha256(body)
    signed = {
        "declaration": body,
        "sha256": digest,
        "public_key": base64.b64encode(raw_public_key(key)).decode(),
        "signature": base64.b64encode(key.sign(bytes.fromhex(digest))).decode(),
    }
    return json.dumps(signed, indent=2).encode() + b"\n"


@functools.cache
def code_sha256() -> str:
    """Digest of the lines `<path> <digest>` of every module of the client, its models and its engines."""
    lines: list[str] = []
    for package in _CODE:
        folder = Path(package.__path__[0])
        lines += [
            f"{package.__name__}/{path.relative_to(folder).as_posix()} "
            f"{hashlib.sha256(path.read_bytes()).hexdigest()}\n"
            for path in folder.rglob("*.py")
        ]
    return hashlib.sha256("".join(sorted(lines)).encode()).hexdigest()


def _versions() -> dict[str, str]:
    found: dict[str, str] = {}
    for name in _SOFTWARE:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found
