"""What endpoints take from the application's state, as dependencies."""

from __future__ import annotations

from typing import Annotated

from fastapi import Depends, Request

from app.core.crypto import Vault
from app.core.few_threads import FewThreads
from app.identity.keys import KeyRing


async def request_vault(request: Request) -> Vault:
    """The vault that the application was built with."""
    vault: Vault = request.app.state.vault
    return vault


async def request_keys(request: Request) -> KeyRing:
    """The signing keys of this process."""
    keys: KeyRing = request.app.state.keys
    return keys


async def request_hashing(request: Request) -> FewThreads:
    """The threads of this process that hash passwords."""
    hashing: FewThreads = request.app.state.hashing
    return hashing


VaultDep = Annotated[Vault, Depends(request_vault)]
KeyRingDep = Annotated[KeyRing, Depends(request_keys)]
HashingDep = Annotated[FewThreads, Depends(request_hashing)]
