"""Why bytes are not given out."""

from __future__ import annotations

from app.core.errors import DomainError, Forbidden, NotFound
from app.core.i18n import _


class BlobGone(NotFound):
    """No key for these bytes: they were erased, or never came."""

    code, title = "blob_gone", _("The bytes are gone")
    meaning = _("There is no key for the stored bytes: they were erased, with their key, or never arrived.")
    remedy = _("Erased bytes cannot be brought back. Ask the operator what was erased, and when.")


class WrongRegion(Forbidden):
    """The key belongs to another region than this process."""

    code, title = "wrong_region", _("Kept in another region")
    meaning = _("The bytes are kept under the key of another region, which this server may not use.")
    remedy = _("Ask a server of the region that the bytes are kept in.")


class BlobDamaged(DomainError):
    """Authentication failed: other bytes, or another key, than were put there."""

    code, title = "blob_damaged", _("Stored bytes are damaged")
    meaning = _("The stored bytes or their key are not what was put there. Nothing of them was used.")
    remedy = _("The operator has to restore the object, or its key, from a backup.")
