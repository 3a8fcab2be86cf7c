"""Answering with a stored file: streamed, named by its digest, and not sent again to who has it."""

from __future__ import annotations

import base64
from typing import Any

from fastapi import Request, Response
from fastapi.responses import StreamingResponse

from app.core.blobs import LocalBlobs

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


def blob_response(request: Request, digest: str, *, filename: str) -> Response:
    """Stream a blob under its digest as ETag; raises Unavailable before the first byte if it is gone."""
    if is_known(request, digest):
        return unchanged(digest)
    blobs: LocalBlobs = request.app.state.blobs
    with blobs.open(digest) as file:  # its absence must become a 503, not a broken stream
        size_bytes = file.seek(0, 2)
    return StreamingResponse(
        blobs.chunks(digest),
        media_type="application/octet-stream",
        headers={
            "ETag": f'"{digest}"',
            "Content-Length": str(size_bytes),
            "Content-Digest": f"sha-256=:{base64.b64encode(bytes.fromhex(digest)).decode()}:",
            "Content-Disposition": f'attachment; filename="{filename}"',
        },
    )
