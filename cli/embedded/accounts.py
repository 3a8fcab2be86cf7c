"""The account PostgreSQL runs as. It refuses root, so root needs a way round; nobody else does.

As root the first choice is a user namespace: the server believes it is user 1000, no file changes
its owner and folders below /root stay readable to it. Where the kernel forbids that, it runs as
user nobody, with a copy of the binaries where that user cannot read the installed ones.
"""

import grp
import os
import pwd
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

from cli.embedded.errors import FolderUnusable, ServiceFailed
from cli.embedded.processes import SAME_ACCOUNT, Account
from cli.i18n import _

NAMESPACE_ID = 1000
PROBE_TIMEOUT_S = 20


@dataclass(frozen=True)
class ServerAccount:
    """How to start PostgreSQL's programs: as whom, from where, and in words for `dpfl doctor`."""

    account: Account
    install: Path
    words: str


def _runs(account: Account, install: Path) -> bool:
    command = [*account.prefix, str(install / "bin" / "postgres"), "--version"]
    try:
        probe = subprocess.run(
            command,
            user=account.user,
            group=account.group,
            extra_groups=None if account.user is None else [],
            capture_output=True,
            timeout=PROBE_TIMEOUT_S,
            check=False,
        )
    except (OSError, subprocess.SubprocessError):
        return False
    return probe.returncode == 0


def _namespace_account() -> Account | None:
    unshare = shutil.which("unshare")
    if unshare is None:
        return None
    return Account(
        prefix=(unshare, "--user", f"--map-user={NAMESPACE_ID}", f"--map-group={NAMESPACE_ID}", "--")
    )


def _nobody_account() -> Account | None:
    try:
        nobody = pwd.getpwnam("nobody")
    except KeyError:
        return None
    return Account(user="nobody", group=grp.getgrgid(nobody.pw_gid).gr_name)


def _require_reachable(folder: Path, account: Account) -> None:
    """Refuse a folder below one that `account` may not enter; opening parents to everybody is no answer."""
    check = subprocess.run(
        [shutil.which("test") or "/usr/bin/test", "-x", str(folder)],
        user=account.user,
        group=account.group,
        extra_groups=[],
        check=False,
        timeout=PROBE_TIMEOUT_S,
    )
    if check.returncode != 0:
        raise FolderUnusable(
            _(
                "PostgreSQL runs as user nobody here and cannot enter {folder}; set DPFL_DATA to a folder "
                "that every user can reach, such as /var/tmp/dpfl, or start as an ordinary user",
                folder=folder,
            )
        )


def _copied_install(install: Path, folder: Path) -> Path:
    """Copy the binaries into `folder`, readable by everybody, and return the copy."""
    copy = folder / f"binaries-{install.stat().st_mtime_ns}"
    if not copy.is_dir():
        unfinished = folder / "binaries.unfinished"
        shutil.rmtree(unfinished, ignore_errors=True)
        shutil.copytree(install, unfinished)
        for path in (unfinished, *unfinished.rglob("*")):
            path.chmod(0o755 if path.is_dir() or os.access(path, os.X_OK) else 0o644)
        unfinished.rename(copy)
    return copy


def nobody_way(install: Path, folder: Path) -> ServerAccount | None:
    """Run as user nobody; None where that user does not exist or cannot run the server.

    Raises:
        FolderUnusable: user nobody cannot reach `folder`.
    """
    account = _nobody_account()
    if account is None:
        return None
    _require_reachable(folder, account)
    if not _runs(account, install):
        install = _copied_install(install, folder)
        if not _runs(account, install):
            return None
    return ServerAccount(account, install, _("root, as user nobody"))


def server_account(install: Path, folder: Path) -> ServerAccount:
    """Choose the account for PostgreSQL whose files live in `folder`.

    Raises:
        ServiceFailed: we are root and neither way round works.
        FolderUnusable: only user nobody could run it, and cannot reach `folder`.
    """
    if os.geteuid() != 0:
        return ServerAccount(SAME_ACCOUNT, install, _("ordinary user"))
    namespace = _namespace_account()
    if namespace is not None and _runs(namespace, install):
        return ServerAccount(namespace, install, _("root, in a user namespace (unshare)"))
    chosen = nobody_way(install, folder)
    if chosen is None:
        raise ServiceFailed(
            _(
                "PostgreSQL refuses to run as root, and here neither `unshare --user` nor user nobody can "
                "run it; start as an ordinary user, or set DATABASE_URL to a server of your own"
            )
        )
    return chosen


def hand_over(folder: Path, account: Account) -> None:
    """Give `folder` and all in it to `account`, as the server insists; nothing to do for ordinary users."""
    if os.geteuid() != 0:
        return
    owner = 0 if account.user is None else pwd.getpwnam(account.user).pw_uid
    group = 0 if account.user is None else pwd.getpwnam(account.user).pw_gid
    if folder.stat().st_uid == owner:
        return
    for path in (folder, *folder.rglob("*")):
        os.chown(path, owner, group, follow_symlinks=False)
