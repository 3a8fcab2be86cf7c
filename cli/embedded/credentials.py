"""Passwords and the master key of one data folder: made once, kept in a file that only we may read."""

import base64
import json
import os
import secrets
import stat
from dataclasses import asdict, dataclass, fields
from pathlib import Path

from cli.embedded.errors import FolderUnusable
from cli.embedded.folder import write_private_json
from cli.i18n import _

PASSWORD_BYTES = 32
MASTER_KEY_BYTES = 32


@dataclass(frozen=True, repr=False)
class Credentials:
    """The generated secrets. Losing `master_key` makes everything that it sealed unreadable."""

    database_password: str
    redis_password: str
    master_key: str
    """Base64 of 32 bytes."""


def _generate() -> Credentials:
    return Credentials(
        database_password=secrets.token_urlsafe(PASSWORD_BYTES),
        redis_password=secrets.token_urlsafe(PASSWORD_BYTES),
        master_key=base64.b64encode(os.urandom(MASTER_KEY_BYTES)).decode(),
    )


def load_credentials(path: Path) -> Credentials:
    """Read the secrets at `path`, or make them if there are none.

    Raises:
        FolderUnusable: the file is damaged, or readable by others than its owner.
    """
    try:
        with path.open(encoding="utf-8") as file:
            mode = stat.S_IMODE(os.fstat(file.fileno()).st_mode)
            content = json.load(file)
    except FileNotFoundError:
        made = _generate()
        write_private_json(path, asdict(made))
        return made
    except (OSError, ValueError) as error:
        raise FolderUnusable(
            _("the secrets in {path} cannot be read; restore the file from a backup", path=path)
        ) from error
    if mode & 0o077:
        raise FolderUnusable(
            _("{path} holds secrets and others may read it; run: chmod 600 {path}", path=path)
        )
    names = {field.name for field in fields(Credentials)}
    if not isinstance(content, dict) or not all(isinstance(content.get(name), str) for name in names):
        raise FolderUnusable(
            _("the secrets in {path} are incomplete; restore the file from a backup", path=path)
        )
    return Credentials(**{name: content[name] for name in names})
