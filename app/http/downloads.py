"""Answering with a stored file: streamed, named by its digest, and not sent again to who has it."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from typing import Any

from fastapi import Request, Response
from fastapi.responses import StreamingResponse
from sqlalchemy.orm import Session

from app.custody.blobs import Blobs
from app.custody.keys import BlobRef, Located

Responses = dict[int | str, dict[str, Any]]

OCTETS: Responses = {
    200: {"content": {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}}}
}
"""For `responses=`: vendor media types make generators of clients drop an endpoint."""
UNCHANGED: Responses = {304: {"description": "The caller has these bytes already (If-None-Match)"}}


def is_known(request: Request, tag: str) -> bool:
    """Say whether If-None-Match names the tag (RFC 9110 section 13.1.2; weak comparison)."""
    given = request.headers.get("if-none-match", "")[:2000]
    tags = {part.strip().removeprefix("W/") for part in given.split(",")}
    return "*" in tags or f'"{tag}"' in tags


def unchanged(tag: str) -> Response:
    """304, with the tag that still holds."""
    return Response(status_code=304, headers={"ETag": f'"{tag}"'})


def blob_response(request: Request, session: Session, ref: BlobRef, *, filename: str) -> Response:
    """Stream a blob under its digest as ETag.

    Raises before the first byte: BlobGone, WrongRegion, BlobDamaged (as far as the last chunk shows it), or
    Unavailable where the store lacks it.
    """
    digest = ref.sha256
    if is_known(request, digest):
        return unchanged(digest)
    blobs: Blobs = request.app.state.blobs
    (located,) = blobs.locate([ref], session=session)
    with blobs.open(located) as blob:  # its absence must become an answer, not a broken stream
        size_bytes = blob.size_bytes
    return StreamingResponse(
        _chunks(blobs, located),
        media_type="application/octet-stream",
        headers={
            "ETag": f'"{digest}"',
            "Content-Length": str(size_bytes),
            "Content-Digest": f"sha-256=:{base64.b64encode(bytes.fromhex(digest)).decode()}:",
            "Content-Disposition": f'attachment; filename="{filename}"',
        },
    )


def _chunks(blobs: Blobs, located: Located) -> Iterator[bytes]:
    with blobs.open(located) as blob:
        yield from blob.chunks()
