"""What every body must be before it is looked at: of the declared media type, and no member named twice.

Of two members of one name JSON takes the last, in silence; two readers of one body could then see two plans.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any
from urllib.parse import parse_qsl

from fastapi import Request

from app.core.errors import BadRequest
from app.core.i18n import _
from app.http.problems import UnsupportedMedia

JSON, FORM = "application/json", "application/x-www-form-urlencoded"
_MAX_SHOWN = 100


class DuplicateMember(BadRequest):
    """A body says something twice."""

    code, title = "duplicate_member", _("A member stands twice")
    meaning = _("An object of the body has two members of one name, and only one of them could count.")
    remedy = _("Send every member once.")


class WholeRequest(Request):
    """A request whose JSON says everything once; `body` and `json` may be asked for any number of times."""

    _parsed: Any

    async def json(self) -> Any:
        """The parsed body; raises DuplicateMember, or what the parser raises."""
        if not hasattr(self, "_parsed"):
            self._parsed = json.loads(await self.body(), object_pairs_hook=_distinct)
        return self._parsed


def whole(request: Request) -> WholeRequest:
    """The request as a WholeRequest; its body must not have been read as anything else."""
    return request if isinstance(request, WholeRequest) else WholeRequest(request.scope, request.receive)


async def check_body(request: WholeRequest, *, media_type: str) -> None:
    """Refuse a body of another media type than `media_type`, or with a member that stands twice.

    What is no JSON at all, or is missing, is left for the endpoint's own reading to refuse.
    """
    sent = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if sent != media_type and (sent or await request.body()):
        raise UnsupportedMedia(_("this endpoint reads {media_type}"), media_type=media_type)
    if media_type == FORM:
        _distinct(parse_qsl((await request.body()).decode("latin-1"), keep_blank_values=True))
        return
    try:
        await request.json()
    except (ValueError, RecursionError):
        return


def _distinct(pairs: Iterable[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in pairs:
        if name in found:
            shown = name[:_MAX_SHOWN].encode("ascii", "backslashreplace").decode()
            raise DuplicateMember(_("the member {member} stands twice"), member=shown)
        found[name] = value
    return found
