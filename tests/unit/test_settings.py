"""What an operator sets: no number may be infinite, and in production no link goes unencrypted."""

import base64
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest
from pydantic import SecretStr, ValidationError

from app.core.settings import Environment, Settings
from tests.database import TEST_MASTER_KEY, settings_for

FLOATS = [name for name, field in Settings.model_fields.items() if field.annotation is float]


def settings(**values: float) -> Settings:
    return Settings(
        database_url=SecretStr("postgresql://nowhere"),
        blob_url="file:///nowhere",
        master_key=SecretStr(TEST_MASTER_KEY),
        environment=Environment.DEVELOPMENT,
        **values,  # type: ignore[arg-type]  # names are those of floats
    )


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("name", FLOATS)
def test_no_number_of_the_settings_may_be_none(name: str, bad: float) -> None:
    """An infinite grant is no budget, and an infinite lease never ends."""
    assert {"grant_epsilon", "grant_delta", "lease_s"} <= set(FLOATS)
    assert getattr(settings(**{name: 0.5}), name) == 0.5
    with pytest.raises(ValidationError) as refused:
        settings(**{name: bad})
    assert [error["loc"] for error in refused.value.errors()] == [(name,)]


SAFE = {
    "DATABASE_URL": "postgresql+psycopg://u:topsecret@db.example/x?sslmode=verify-full&sslrootcert=/ca.pem",
    "REDIS_URL": "rediss://:topsecret@cache.example/0",
    "BLOB_URL": "s3://bucket/x?endpoint=https://s3.example",
    "DPFL_MASTER_KEY": TEST_MASTER_KEY,
}


def started(monkeypatch: pytest.MonkeyPatch, **variables: str) -> Settings:
    for name in ("DPFL_ENVIRONMENT", "DPFL_SAME_HOST"):
        monkeypatch.delenv(name, raising=False)
    for name, value in (SAFE | variables).items():
        monkeypatch.setenv(name, value)
    return Settings.load()


@pytest.mark.parametrize(
    "variables",
    [
        {},
        {"DATABASE_URL": "postgresql+psycopg://u@db.example/x?sslmode=verify-ca"},
        {"DATABASE_URL": "postgresql+psycopg:///x?host=/run/postgresql"},
        {"DATABASE_URL": "postgresql+psycopg:///x"},
        {"DATABASE_URL": "postgresql+psycopg://u@127.0.0.1/x"},
        {"DATABASE_URL": "postgresql+psycopg://u@[::1]/x"},
        {"DATABASE_URL": "postgresql+psycopg://u@postgres/x", "DPFL_SAME_HOST": "postgres, valkey"},
        {"REDIS_URL": "redis://:x@valkey/0", "DPFL_SAME_HOST": "postgres, valkey"},
        {"REDIS_URL": "redis://localhost/0"},
        {"REDIS_URL": "unix:///run/valkey.sock"},
        {"BLOB_URL": "s3://bucket"},
        {"BLOB_URL": "file:///var/lib/dpfl"},
        {"BLOB_URL": "s3://bucket?endpoint=http://127.0.0.1:9000"},
    ],
)
def test_production_starts_where_every_link_is_encrypted_or_stays_on_the_machine(
    monkeypatch: pytest.MonkeyPatch, variables: dict[str, str]
) -> None:
    assert started(monkeypatch, **variables).environment is Environment.PRODUCTION


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("DATABASE_URL", "postgresql+psycopg://u:topsecret@db.example/x"),
        ("DATABASE_URL", "postgresql+psycopg://u:topsecret@db.example/x?sslmode=require"),
        ("DATABASE_URL", "postgresql+psycopg://u:topsecret@db.example/x?sslmode=prefer"),
        ("DATABASE_URL", "postgresql+psycopg://u:topsecret@db.example/x?sslmode=verify-full&sslmode=disable"),
        ("DATABASE_URL", "postgresql+psycopg://u:topsecret@127.0.0.1/x?host=127.0.0.1,db.example"),
        ("DATABASE_URL", "postgresql+psycopg://u:topsecret@localhost/x?hostaddr=10.0.0.1"),
        ("DATABASE_URL", "postgresql+psycopg://u:topsecret@localhost.example/x"),
        ("REDIS_URL", "redis://:topsecret@cache.example/0"),
        ("REDIS_URL", "rediss://:topsecret@cache.example/0?ssl_cert_reqs=none"),
        ("REDIS_URL", "rediss://:topsecret@cache.example/0?ssl_cert_reqs=CERT_OPTIONAL"),
        ("BLOB_URL", "s3://bucket/x?endpoint=http://s3.example"),
    ],
)
def test_production_refuses_to_start_over_an_open_link_and_names_it_without_its_password(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str
) -> None:
    with pytest.raises(ValidationError) as refused:
        started(monkeypatch, **{name: value})
    told = str(refused.value)
    assert [other in told for other in ("DATABASE_URL", "REDIS_URL", "BLOB_URL")].count(True) == 1
    assert name in told
    assert "topsecret" not in told
    monkeypatch.setenv("DPFL_ENVIRONMENT", "development")
    assert Settings.load().environment is Environment.DEVELOPMENT


def test_every_open_link_is_named_at_once_and_by_the_program() -> None:
    variables = {
        "DATABASE_URL": "postgresql+psycopg://u:topsecret@db.example/x",
        "REDIS_URL": "redis://:topsecret@cache.example/0",
        "BLOB_URL": "s3://bucket/x?endpoint=http://s3.example",
    }
    environment = {name: value for name, value in os.environ.items() if name != "DPFL_ENVIRONMENT"}
    for words in ((), ("bootstrap",), ("rewrap",)):
        done = subprocess.run(
            [sys.executable, "-m", "app", *words],
            env=environment | SAFE | {"DPFL_ADMIN_FILE": "/nonexistent"} | variables,
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
        )
        assert done.returncode == 1
        assert all(name in done.stderr for name in variables)
        assert "topsecret" not in done.stderr + done.stdout


def test_an_empty_variable_is_one_that_is_not_set(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """As a compose file passes on what its operator left out."""
    told = {
        "DATABASE_URL": "postgresql+psycopg://here/x",
        "BLOB_URL": f"file://{tmp_path}",
        "DPFL_MASTER_KEY": base64.b64encode(bytes(range(32))).decode(),
        "DPFL_ENVIRONMENT": "development",
        "DPFL_REGION": "",
        "DPFL_REGION_ROOT_KEY": "",
        "DPFL_TRUSTED_PROXIES": "",
        "DPFL_OIDC": "",
        "DPFL_TRUSTS": "",
    }
    for name, value in told.items():
        monkeypatch.setenv(name, value)
    found = Settings.load()
    assert (found.region_root_key, found.trusted_proxies, found.oidc) == (None, (), ())
    assert found.trusts == ("local",)
    assert (found.region, found.declared_region) == ("eu-west-1", None)
    monkeypatch.setenv("DPFL_REGION", "eu-west-1")
    assert Settings.load().declared_region == "eu-west-1"
    monkeypatch.setenv("DATABASE_URL", "")
    with pytest.raises(ValidationError, match="DATABASE_URL"):
        Settings.load()


@pytest.mark.parametrize(
    "value", ["", "lab.example", "ftp://lab.example", "https://", "https://lab.example/x?y=1", "https://a@b"]
)
def test_a_public_url_that_no_client_can_call_is_refused(value: str, tmp_path: Path) -> None:
    with pytest.raises(ValidationError, match="PUBLIC_URL"):
        settings_for("postgresql+psycopg://here/x", tmp_path, public_url=value)


def test_client_certificates_are_not_demanded_without_their_authority(tmp_path: Path) -> None:
    pair = {"tls_certificate": tmp_path / "c", "tls_key": tmp_path / "k"}
    for told in (
        {"client_certificates": "required"} | pair,
        {"tls_ca_key": tmp_path / "k"},
    ):
        with pytest.raises(ValidationError, match="DPFL_TLS_CA is missing"):
            settings_for("postgresql+psycopg://here/x", tmp_path, **told)
