"""The folder of one round: what `fetch` writes, `train` adds to and `submit` sends.

It is all that has to travel between a node with a network and one without.

assignment.json, manifest.json, adapter.safetensors   from the server, checked against their digests
update.safetensors, update.json                       the finished update and its digest, written once
declaration.json                                      what made it, signed; sent where the client noises
handover.json                                         that another machine may send it: written once its own
                                                      ledger holds the round as spent
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated
from uuid import UUID

from pydantic import Field

from client.durable import private_folder, write_whole
from client.errors import ClientError
from client.i18n import _
from client.pauses import pause_at
from client.training import Count, Sha256
from client.wire import Answer, Assignment, FrozenManifest, parse, read_json

_BLOCK_BYTES = 1 << 20


@dataclass(frozen=True)
class Written:
    """A finished update on the disk."""

    update_id: UUID
    sha256: str
    size_bytes: int


class Handover(Answer):
    """Which update it is that another machine may send, and for what it was trained."""

    run_id: UUID
    number: Count
    round_id: UUID
    update_id: UUID
    sha256: Sha256
    size_bytes: Annotated[int, Field(ge=0)]
    adapter_sha256: Sha256
    """The adapter that training started from."""
    manifest_sha256: Sha256

    def is_for(self, assignment: Assignment) -> bool:
        """Say whether it is an update of this round. Its id may be another: a round is opened again."""
        mine = (self.run_id, self.number, self.manifest_sha256, self.adapter_sha256)
        return mine == (
            assignment.run_id,
            assignment.number,
            assignment.manifest_sha256,
            assignment.adapter_sha256,
        )


class RoundFiles:
    """Reads and writes one round's folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.update_path = folder / "update.safetensors"

    def write_assignment(self, assignment: Assignment, manifest: bytes) -> None:
        """Keep what the round is; the manifest's bytes as they came."""
        private_folder(self.folder)
        write_whole(self.folder / "manifest.json", manifest)
        write_whole(self.folder / "assignment.json", assignment.model_dump_json().encode())

    def write_adapter(self, content: bytes) -> None:
        """Keep the adapter that this round starts from."""
        write_whole(self.folder / "adapter.safetensors", content)

    def assignment(self) -> Assignment:
        """Read what the round is; raises `no_round` when the folder holds none."""
        values = read_json(self._read("assignment.json"), what="assignment.json")
        return parse(Assignment, values, what="assignment.json")

    def manifest(self) -> FrozenManifest:
        """Read the manifest and check that it is the announced one."""
        frozen = FrozenManifest(self._read("manifest.json"))
        frozen.require(self.assignment().manifest_sha256)
        return frozen

    def adapter(self) -> bytes:
        """Read the adapter and check its digest."""
        content = self._read("adapter.safetensors")
        if hashlib.sha256(content).hexdigest() != self.assignment().adapter_sha256:
            raise ClientError(
                "adapter_mismatch", _("the adapter in {path} is not the round's"), path=str(self.folder)
            )
        return content

    def holds_adapter(self) -> bool:
        """Say whether the adapter on the disk is the round's."""
        try:
            self.adapter()
        except ClientError:
            return False
        return True

    def write_update(self, content: bytes, *, update_id: UUID) -> Written:
        """Put a finished update and then its digest on the disk; both are there on return."""
        written = Written(
            update_id=update_id, sha256=hashlib.sha256(content).hexdigest(), size_bytes=len(content)
        )
        write_whole(self.update_path, content, mode=0o400)
        pause_at("after_update_fsync")
        stated = {"update_id": str(update_id), "sha256": written.sha256, "size_bytes": written.size_bytes}
        write_whole(self.folder / "update.json", json.dumps(stated).encode())
        pause_at("after_digest_fsync")
        return written

    def write_declaration(self, content: bytes) -> None:
        """Keep what this client declares about the finished update."""
        write_whole(self.folder / "declaration.json", content)

    def write_handover(self, handover: Handover) -> None:
        """Let another machine send the update."""
        write_whole(self.folder / "handover.json", handover.model_dump_json(indent=2).encode() + b"\n")

    def handover(self) -> Handover | None:
        """Read which update another machine left here to be sent, if one did."""
        if not (self.folder / "handover.json").exists():
            return None
        values = read_json(self._read("handover.json"), what="handover.json", limit=1 << 16)
        return parse(Handover, values, what="handover.json")

    def copy_update(self, source: RoundFiles, sha256: str) -> None:
        """Bring a finished update and what belongs to it here, if it is not here already."""
        if self.folder.resolve() == source.folder.resolve() or self.holds_update(sha256):
            return
        with source.open_update(sha256):
            write_whole(self.update_path, source.update_path.read_bytes(), mode=0o400)
        for name in ("update.json", "declaration.json"):
            if (source.folder / name).exists():
                write_whole(self.folder / name, (source.folder / name).read_bytes())

    def declaration(self, *, key: bytes) -> str | None:
        """What this client declares about the finished update, as a request's header.

        None without one, and where another machine trained and signed with another key than this public one.
        """
        try:
            found = read_json(self._read("declaration.json"), what="declaration.json")
            said = {name: found[name] for name in ("declaration", "signature")}
            is_mine = found["public_key"] == base64.b64encode(key).decode()
        except (ClientError, KeyError, TypeError):  # not a file of ours: an update is sent without it
            return None
        if not is_mine:
            return None
        return base64.urlsafe_b64encode(json.dumps(said, separators=(",", ":")).encode()).decode()

    def holds_update(self, sha256: str) -> bool:
        """Say whether the update on the disk is the one with this digest."""
        try:
            with self.open_update(sha256):
                return True
        except ClientError:
            return False

    @contextmanager
    def open_update(self, sha256: str) -> Iterator[int]:
        """Open the update and check its bytes; what is read from the descriptor is what was checked."""
        changed = ClientError(
            "update_changed", _("the update in {path} is not the one in the ledger"), path=str(self.folder)
        )
        try:
            descriptor = os.open(self.update_path, os.O_RDONLY | os.O_CLOEXEC)
        except OSError as error:
            raise changed from error
        try:
            digest = hashlib.sha256()
            while block := os.read(descriptor, _BLOCK_BYTES):
                digest.update(block)
            if digest.hexdigest() != sha256:
                raise changed
            yield descriptor
        finally:
            os.close(descriptor)

    def _read(self, name: str) -> bytes:
        try:
            return (self.folder / name).read_bytes()
        except OSError as error:
            raise ClientError(
                "no_round", _("{path} holds no fetched round"), path=str(self.folder)
            ) from error


def body_blocks(descriptor: int, size_bytes: int) -> Iterator[bytes]:
    """Yield the checked update's bytes from its beginning, for one attempt to send them."""
    offset, block_bytes = 0, min(1 << 16, max(size_bytes // 2, 1))
    while offset < size_bytes:
        block = os.pread(descriptor, block_bytes, offset)
        if not block:
            return
        yield block
        if offset == 0:
            pause_at("mid_body")
        offset += len(block)
    pause_at("after_body_before_receipt")
