"""A client's secrets on its disk: sealed, bound to their files, and never lost to a second process."""

from __future__ import annotations

import base64
import multiprocessing
import os
import random
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from client import sealing
from client.durable import write_whole
from client.errors import ClientError
from client.persons import silo_key
from client.profile import make_key, read_key
from client.sealing import VARIABLE, key_file, seal_file, unseal_file

SECRET = b"thirty-two bytes that are secret"


def code_of(path: Path) -> str:
    with pytest.raises(ClientError) as refused:
        unseal_file(path)
    return refused.value.code


@pytest.fixture
def own_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An account without the variable, whose configuration is in a folder of the test."""
    monkeypatch.delenv(VARIABLE)
    monkeypatch.setattr(sealing, "user_config_path", lambda *_args, **_more: tmp_path / "config")
    return tmp_path


def test_a_private_key_and_a_silos_secret_are_nowhere_in_the_clear(tmp_path: Path) -> None:
    key, secret = make_key(tmp_path), silo_key(tmp_path)
    for path in tmp_path.iterdir():
        content = path.read_bytes()
        assert path.stat().st_mode & 0o777 == 0o600
        for clear in (key.private_bytes_raw(), secret, b"PRIVATE KEY"):
            assert clear not in content
            assert base64.b64encode(clear) not in content
    assert read_key(tmp_path).private_bytes_raw() == key.private_bytes_raw()
    assert silo_key(tmp_path) == secret


def test_what_an_older_release_wrote_in_the_clear_is_read_and_sealed(tmp_path: Path) -> None:
    key, secret = Ed25519PrivateKey.generate(), bytes(range(32))
    pem = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    write_whole(tmp_path / "key.pem", pem)
    write_whole(tmp_path / "person.key", secret)
    for _time in range(2):
        assert read_key(tmp_path).private_bytes_raw() == key.private_bytes_raw()
        assert silo_key(tmp_path) == secret
        assert b"PRIVATE" not in (tmp_path / "key.pem").read_bytes()
        assert secret not in (tmp_path / "person.key").read_bytes()


def test_an_old_key_that_others_could_read_is_refused_and_not_sealed(tmp_path: Path) -> None:
    pem = Ed25519PrivateKey.generate().private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    write_whole(tmp_path / "key.pem", pem, mode=0o644)
    with pytest.raises(ClientError) as refused:
        read_key(tmp_path)
    assert (refused.value.code, (tmp_path / "key.pem").read_bytes()) == ("key_exposed", pem)


@pytest.mark.parametrize("other", ["another passphrase", base64.b64encode(bytes(32)).decode()])
def test_another_local_key_opens_nothing_and_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, other: str
) -> None:
    path = tmp_path / "key.pem"
    seal_file(path, SECRET)
    assert unseal_file(path) == SECRET
    monkeypatch.setenv(VARIABLE, other)
    assert code_of(path) == "key_locked"
    with pytest.raises(ClientError, match=VARIABLE):
        unseal_file(path)


@pytest.mark.parametrize("weak", ["", "short", "15 characters.."])
def test_a_local_key_that_can_be_guessed_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, weak: str
) -> None:
    monkeypatch.setenv(VARIABLE, weak)
    with pytest.raises(ClientError) as refused:
        seal_file(tmp_path / "key.pem", SECRET)
    assert refused.value.code == "no_local_key"
    assert list(tmp_path.iterdir()) == []


def test_a_changed_cut_or_renamed_file_opens_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, base64.b64encode(bytes(range(32))).decode())  # not stretched: many tries
    path, chance = tmp_path / "key.pem", random.Random(1)
    seal_file(path, SECRET)
    whole = path.read_bytes()
    changes = [(place, 1 << chance.randrange(8)) for place in range(9, len(whole)) for _ in range(4)]
    for place, mask in changes:
        changed = bytearray(whole)
        changed[place] ^= mask
        path.write_bytes(changed)
        assert code_of(path) == "key_locked", place
    for cut in range(9, len(whole)):
        path.write_bytes(whole[:cut])
        assert code_of(path) == "key_locked", cut
    (tmp_path / "person.key").write_bytes(whole)
    (tmp_path / "person.key").chmod(0o600)
    assert code_of(tmp_path / "person.key") == "key_locked"


def test_a_file_whose_mark_was_changed_is_no_usable_key(tmp_path: Path) -> None:
    make_key(tmp_path)
    path = tmp_path / "key.pem"
    path.write_bytes(b"X" + path.read_bytes()[1:])
    with pytest.raises(ClientError) as refused:
        read_key(tmp_path)
    assert refused.value.code == "no_key"


def test_without_the_variable_the_key_is_among_the_configuration_and_this_accounts_alone(
    own_home: Path,
) -> None:
    path = own_home / "data" / "key.pem"
    path.parent.mkdir()
    seal_file(path, SECRET)
    assert (key_file(), key_file().stat().st_mode & 0o777) == (own_home / "config" / "client.key", 0o600)
    assert unseal_file(path) == SECRET
    key_file().chmod(0o644)
    assert code_of(path) == "key_exposed"
    key_file().chmod(0o600)
    key_file().write_bytes(b"short")
    assert code_of(path) == "no_key"
    key_file().unlink()
    assert code_of(path) == "key_locked"  # a new one was made, and opens nothing old


def test_a_configuration_that_cannot_be_written_is_told(own_home: Path) -> None:
    (own_home / "config").write_text("a file where the folder should be")
    with pytest.raises(ClientError):
        seal_file(own_home / "key.pem", SECRET)
    assert not (own_home / "key.pem").exists()


def _seal(folder: Path, number: int) -> None:
    os.environ.pop(VARIABLE, None)
    sealing.user_config_path = lambda *_args, **_more: folder / "config"  # type: ignore[assignment]
    seal_file(folder / f"{number}.key", SECRET)


def test_processes_that_begin_at_once_make_one_local_key(own_home: Path) -> None:
    context = multiprocessing.get_context("fork")
    running = [context.Process(target=_seal, args=(own_home, number)) for number in range(8)]
    for process in running:
        process.start()
    for process in running:
        process.join(60)
    assert [process.exitcode for process in running] == [0] * 8
    assert [unseal_file(own_home / f"{number}.key") for number in range(8)] == [SECRET] * 8
    assert [path.name for path in (own_home / "config").iterdir()] == ["client.key"]
