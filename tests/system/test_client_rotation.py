"""A training client takes another key at a real gateway; a crash anywhere is mended by asking again."""

import base64
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from uuid import UUID

import pytest
import sqlalchemy as sa
import uvicorn
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from app.core.db import Database
from app.identity.models import Client
from app.main import build_app
from cli.access import client_session
from client import rotating
from client.errors import ClientError
from client.profile import Profile, make_key, raw_public_key
from client.session import Session
from tests.client_folders import profile_in
from tests.database import settings_for
from tests.http.accounts import Applicant, add_caller


@pytest.fixture
def server(database_url: str, tmp_path: Path) -> Iterator[str]:
    """The address of a gateway that is served on loopback."""
    listening = socket.create_server(("127.0.0.1", 0))
    url = f"http://127.0.0.1:{listening.getsockname()[1]}"
    app = build_app(settings_for(database_url, tmp_path / "blobs", public_url=url, pool_size=4))
    gateway = uvicorn.Server(uvicorn.Config(app, log_config=None))
    thread = threading.Thread(target=gateway.run, kwargs={"sockets": [listening]})
    thread.start()
    yield url
    gateway.should_exit = True
    thread.join()


@pytest.fixture
def profile(server: str, database: Database, tmp_path: Path) -> Profile:
    """An enrolled client's folder."""
    with database.run_tx("test") as session:
        admin = add_caller(session)
    applicant = Applicant(key=make_key(tmp_path / "client"))
    with Session(server, bearer=admin.headers["Authorization"].removeprefix("Bearer ")) as http:
        body = {"organisation_id": str(admin.organisation_id), "region": "eu-west-1"}
        token = str(http.post("/v1/enrolments", body).json("enrolment")["token"])
        made = http.public("POST", "/v1/clients", payload=applicant.body(token)).json("client")
    return profile_in(tmp_path / "client", server=server, client_id=made["client_id"])


def rotate(profile: Profile, *, overlap_s: int = 60) -> None:
    rotating.rotate_key(profile, lambda key: client_session(profile, key), overlap_s=overlap_s)


def works(profile: Profile, key: Ed25519PrivateKey) -> bool:
    with client_session(profile, key) as session:
        try:
            return session.get(f"/v1/clients/{profile.config.client_id}").status == 200
        except ClientError as error:
            if error.code != "assertion_invalid":
                raise
            return False


def held(database: Database, profile: Profile) -> bytes:
    with database.run_tx("test") as session:
        statement = sa.select(Client.public_key).where(Client.id == UUID(profile.config.client_id))
        return session.scalars(statement).one()


@pytest.mark.system
def test_the_new_key_is_in_place_and_signs(database: Database, profile: Profile) -> None:
    former = profile.key()
    rotate(profile)
    assert raw_public_key(profile.key()) == held(database, profile) != raw_public_key(former)
    assert works(profile, profile.key())
    assert works(profile, former)
    rotate(profile, overlap_s=0)
    assert works(profile, profile.key())
    assert not (profile.folder / rotating.WAITING).exists()


@pytest.mark.system
@pytest.mark.parametrize("overlap_s", [0, 60])
def test_a_crash_after_the_server_took_the_key_is_mended(
    database: Database, profile: Profile, monkeypatch: pytest.MonkeyPatch, overlap_s: int
) -> None:
    def crash(*_folders: Path) -> None:
        raise KeyboardInterrupt

    former = profile.key()
    with monkeypatch.context() as patch:
        patch.setattr(rotating, "_put_in_place", crash)
        with pytest.raises(KeyboardInterrupt):
            rotate(profile, overlap_s=overlap_s)
    assert raw_public_key(profile.key()) == raw_public_key(former) != held(database, profile)
    rotate(profile, overlap_s=overlap_s)
    assert raw_public_key(profile.key()) == held(database, profile)
    assert works(profile, profile.key())
    assert works(profile, former) == (overlap_s > 0)


@pytest.mark.system
def test_a_refused_rotation_leaves_the_present_key(database: Database, profile: Profile) -> None:
    with database.run_tx("test") as session:
        session.get_one(Client, UUID(profile.config.client_id)).public_key = base64.b64decode("A" * 43 + "=")
    former = profile.key()
    with pytest.raises(ClientError) as refused:
        rotate(profile)
    assert refused.value.code == "assertion_invalid"
    assert raw_public_key(profile.key()) == raw_public_key(former)
