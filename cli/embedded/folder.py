"""The data folder of `dpfl up`: where each thing is, who may read it, and who holds it now."""

import fcntl
import json
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import platformdirs

from cli.embedded.errors import FolderInUse, FolderUnusable
from cli.i18n import _

APPLICATION = "dpfl"
# As root the database may have to run as user nobody, who must pass through; nothing can be listed.
FOLDER_MODE = 0o711 if os.geteuid() == 0 else 0o700


def make_folder(folder: Path, *, mode: int = 0o755) -> None:
    """Make `folder` with its parents, and see that a file can really be written into it.

    Raises:
        FolderUnusable: it cannot be made, or not written (full, read-only, not ours).
    """
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=mode)
        with tempfile.TemporaryFile(dir=folder) as probe:
            probe.write(b"probe")
    except OSError as error:
        raise FolderUnusable(
            _("the folder {folder} cannot be used: {reason}", folder=folder, reason=error.strerror)
        ) from error


def write_private(path: Path, content: str) -> None:
    """Replace `path` with `content`, readable by us alone, wholly or not at all, and durably."""
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}-")  # 0600 from the start
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        Path(name).replace(path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


def write_private_json(path: Path, content: object) -> None:
    """Write `content` as `write_private` does."""
    write_private(path, json.dumps(content, indent=2) + "\n")


@dataclass(frozen=True)
class DataFolder:
    """Paths inside one data folder."""

    root: Path

    @property
    def secrets(self) -> Path:
        """Generated passwords and the master key; 0600."""
        return self.root / "secrets.json"

    @property
    def running(self) -> Path:
        """What runs now: addresses, pids and their start times; 0600, gone after a clean stop."""
        return self.root / "running.json"

    @property
    def admin(self) -> Path:
        """The first administrator's credentials, written by the gateway; 0600."""
        return self.root / "admin.json"

    @property
    def logs(self) -> Path:
        """One log file for each process."""
        return self.root / "logs"

    @property
    def blobs(self) -> Path:
        """Uploads and releases, where BLOB_URL names no other place."""
        return self.root / "blobs"

    @property
    def tls(self) -> Path:
        """The certificates of `--public-url`; 0700."""
        return self.root / "tls"

    @property
    def postgres(self) -> Path:
        """PostgreSQL's files."""
        return self.root / "postgres"

    @property
    def valkey(self) -> Path:
        """Valkey's files."""
        return self.root / "valkey"

    @contextmanager
    def held(self) -> Iterator[None]:
        """Hold the folder for this process; the lock falls with the process, however it ends.

        Raises:
            FolderUnusable: it cannot be made or written.
            FolderInUse: another process holds it.
        """
        make_folder(self.root, mode=FOLDER_MODE)
        with (self.root / "lock").open("a", encoding="utf-8") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise FolderInUse(
                    _("another `dpfl up` is running on the folder {folder}", folder=self.root)
                ) from error
            make_folder(self.logs, mode=0o700)
            make_folder(self.blobs, mode=0o700)
            yield


def data_folder(chosen: Path | None = None) -> DataFolder:
    """Return the folder that was `chosen`, else DPFL_DATA, else one in the user's data directory."""
    named = chosen or os.environ.get("DPFL_DATA") or platformdirs.user_data_path(APPLICATION)
    return DataFolder(Path(named).expanduser().resolve())
