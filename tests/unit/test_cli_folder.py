"""The data folder: secrets made once and private, one holder at a time, faults in one line."""

import base64
import json
import os
import stat
from pathlib import Path

import pytest

from cli.embedded.credentials import load_credentials
from cli.embedded.errors import FolderInUse, FolderUnusable
from cli.embedded.folder import DataFolder, data_folder, make_folder, write_private


def test_secrets_are_made_once_and_readable_by_the_owner_only(tmp_path: Path) -> None:
    path = tmp_path / "secrets.json"
    made = load_credentials(path)
    assert load_credentials(path) == made
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert len(base64.b64decode(made.master_key, validate=True)) == 32
    assert made.database_password not in repr(made)


def test_two_folders_have_different_secrets(tmp_path: Path) -> None:
    one, two = (load_credentials(tmp_path / name) for name in ("one.json", "two.json"))
    assert {one.database_password, one.redis_password, one.master_key}.isdisjoint(
        {two.database_password, two.redis_password, two.master_key}
    )


def test_secrets_that_others_may_read_are_refused_with_the_remedy(tmp_path: Path) -> None:
    path = tmp_path / "secrets.json"
    load_credentials(path)
    path.chmod(0o640)
    with pytest.raises(FolderUnusable, match="chmod 600"):
        load_credentials(path)


@pytest.mark.parametrize("content", ["", "{", "[]", '{"database_password": "x"}', '{"master_key": 5}'])
def test_damaged_secrets_are_never_replaced(tmp_path: Path, content: str) -> None:
    path = tmp_path / "secrets.json"
    write_private(path, content)
    with pytest.raises(FolderUnusable, match="backup"):
        load_credentials(path)
    assert path.read_text() == content


def test_a_private_file_is_replaced_wholly_and_leaves_no_other_behind(tmp_path: Path) -> None:
    path = tmp_path / "file"
    for content in ("first", "second"):
        write_private(path, content)
        assert path.read_text() == content
    assert [entry.name for entry in tmp_path.iterdir()] == ["file"]


def test_a_failed_write_keeps_the_old_content(tmp_path: Path) -> None:
    path = tmp_path / "file"
    write_private(path, "old")
    with pytest.raises(UnicodeEncodeError):
        write_private(path, "\ud800")
    assert path.read_text() == "old"
    assert [entry.name for entry in tmp_path.iterdir()] == ["file"]


def test_a_folder_is_held_by_one_at_a_time_and_free_again_afterwards(tmp_path: Path) -> None:
    folder = DataFolder(tmp_path / "data")
    with folder.held():
        with pytest.raises(FolderInUse, match="another") as caught, folder.held():
            pass
        assert "\n" not in str(caught.value)
    with folder.held():
        assert folder.logs.is_dir()


def test_the_folder_lets_nobody_list_it(tmp_path: Path) -> None:
    folder = DataFolder(tmp_path / "data")
    with folder.held():
        modes = {path: stat.S_IMODE(path.stat().st_mode) for path in (folder.root, folder.logs, folder.blobs)}
    # as root others may pass through, because the database may have to run as user nobody
    assert modes[folder.root] == (0o711 if os.geteuid() == 0 else 0o700)
    assert modes[folder.logs] == modes[folder.blobs] == 0o700


def test_a_file_in_place_of_the_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "taken").write_text(json.dumps({}))
    for path in (tmp_path / "taken", tmp_path / "taken" / "below"):
        with pytest.raises(FolderUnusable, match="taken"):
            make_folder(path)


def test_a_folder_that_takes_no_file_is_refused() -> None:
    with pytest.raises(FolderUnusable, match="/proc"):  # no account can write there, root neither
        make_folder(Path("/proc/self") if Path("/proc/self").exists() else Path("/dev/fd"))


def test_the_folder_comes_from_the_option_then_the_environment_then_the_user(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DPFL_DATA", str(tmp_path / "named"))
    assert data_folder(tmp_path / "chosen").root == tmp_path / "chosen"
    assert data_folder().root == tmp_path / "named"
    monkeypatch.delenv("DPFL_DATA")
    assert data_folder().root.name == "dpfl"
