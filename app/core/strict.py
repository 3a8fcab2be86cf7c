"""Field types for JSON that strangers send: unknown members refused, every text and number bounded.

Texts hold no control characters (PostgreSQL takes no NUL, and a log line no line break), and none that turn
the direction of writing: what is read would not be what is written. Numbers take no booleans,
digits in text, NaN or infinities.
"""

from __future__ import annotations

import re
from typing import Annotated
from uuid import UUID

from pydantic import (
    AfterValidator,
    AwareDatetime,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    StringConstraints,
)

_TIME = re.compile(r"\d{4}-\d\d-\d\d[Tt]\d\d:\d\d:\d\d(\.\d{1,9})?([Zz]|[+-]\d\d:\d\d)")
_PRINTABLE = r"^[^\x00-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069]*$"


class StrictModel(BaseModel):
    """A body that is taken exactly as declared or not at all."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False, hide_input_in_errors=True)


def _is_written_out(value: str) -> str:
    """Refuse what pydantic would read as seconds since 1970, or as the first minute of a day."""
    if not _TIME.fullmatch(value):
        raise ValueError("a time is written as 2026-11-25T12:00:00Z")
    return value


def _is_no_id(value: str) -> str:
    """Refuse a name that could be read as somebody else's id."""
    try:
        UUID(value)
    except ValueError:
        return value
    raise ValueError("a name must not look like an id")


Name = Annotated[
    str,
    StringConstraints(strict=True, min_length=1, max_length=200, pattern=_PRINTABLE),
    AfterValidator(_is_no_id),
]
"""What something is called: one line, and nothing that an id could be."""
Reason = Annotated[str, StringConstraints(strict=True, min_length=1, max_length=1000, pattern=_PRINTABLE)]
"""Why something is done: one line."""
Region = Annotated[
    str, StringConstraints(strict=True, min_length=1, max_length=64, pattern=r"^[a-z0-9]+(-[a-z0-9]+)*$")
]
"""A region's name, for example `eu-west-1`."""
Jurisdiction = Annotated[
    str, StringConstraints(strict=True, max_length=6, pattern=r"^[A-Z]{2}(-[A-Z0-9]{1,3})?$")
]
"""A country by ISO 3166-1 (`DE`), or a part of one by ISO 3166-2 (`US-CA`)."""
Term = Annotated[
    str, StringConstraints(strict=True, min_length=1, max_length=64, pattern=r"^[a-z0-9]+([._-][a-z0-9]+)*$")
]
"""A word that two parties have agreed on, for example `fraud-detection`."""
Hex64 = Annotated[str, StringConstraints(strict=True, pattern=r"^[0-9a-f]{64}$")]
"""A SHA-256 in hex."""
Epsilon = Annotated[float, Field(strict=True, gt=0, le=1000)]
Delta = Annotated[float, Field(strict=True, gt=0, lt=1)]
RenyiOrder = Annotated[float, Field(strict=True, gt=1, le=1024)]
Moment = Annotated[AwareDatetime, BeforeValidator(_is_written_out)]
"""A time in a query, in RFC 3339's form."""
