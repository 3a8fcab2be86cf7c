"""The files of a release, read for the commands that check them; and how such a command says no."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from cli.i18n import _

if TYPE_CHECKING:
    from client.errors import ClientError

ADAPTER, CONFIG, CERTIFICATE = "adapter_model.safetensors", "adapter_config.json", "certificate.json"
MANIFEST = "manifest.json"


def parsed(path: Path) -> Any:
    """Read a JSON file strictly."""
    from client.durable import read_text
    from client.wire import read_json

    return read_json(read_text(path).encode(), what=path.name)


def read(path: Path) -> dict[str, Any]:
    """Read a file that holds a JSON object."""
    found = parsed(path)
    if not isinstance(found, dict):
        raise error("certificate_invalid", _("{path} is no JSON object"), path=str(path))
    return found


def section(value: dict[str, Any], name: str) -> dict[str, Any]:
    """A member of a certificate that is an object itself."""
    found = value.get(name)
    if not isinstance(found, dict):
        raise error("certificate_invalid", _("the certificate does not say {member}"), member=name)
    return found


def error(code: str, message: str, **members: Any) -> ClientError:
    """A refusal with a stable code."""
    from client.errors import ClientError

    return ClientError(code, message, **members)
