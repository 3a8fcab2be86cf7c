"""Configuration, from the environment alone. Secrets have no default: without them nothing starts."""

from __future__ import annotations

import base64
import binascii
from enum import StrEnum
from ipaddress import ip_network
from pathlib import Path
from typing import Annotated, Literal, Self
from urllib.parse import unquote, urlsplit

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    SecretStr,
    ValidationInfo,
    field_validator,
    model_validator,
)
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from app.core.links import open_links
from app.core.networks import bare_host

_LEAST_DIFFERENT = 12
"""Of 32 random bytes fewer are different about once in 10**20 draws."""


class Environment(StrEnum):
    """Where this process runs."""

    PRODUCTION = "production"  # refuses everything that is convenient and unsafe
    DEVELOPMENT = "development"  # a laptop, the demo, the tests


class OidcIssuer(BaseModel):
    """An OpenID provider through which members may sign in."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: Annotated[str, Field(pattern=r"^[a-z0-9-]{1,40}$")]
    """What the API calls it."""
    issuer: Annotated[str, Field(max_length=300, pattern=r"^https?://[^\\s?#@]+$")]
    """Exactly as its tokens say it."""
    client_id: Annotated[str, Field(min_length=1, max_length=200)]
    client_secret: SecretStr | None = None
    email_domains: tuple[Annotated[str, Field(pattern=r"^[a-z0-9.-]{1,253}$")], ...] = ()
    """A member is found by e-mail at the first sign-in where its domain is exactly one of these."""
    enforces_second_factor: bool = False
    """Whether this issuer never lets anybody in by password alone, whatever its tokens say of it."""


_ALIASES = {"master_key": "DPFL_MASTER_KEY", "region_root_key": "DPFL_REGION_ROOT_KEY"}


class Settings(BaseSettings):
    """Everything that an operator can set. Names in upper case are the environment variables."""

    model_config = SettingsConfigDict(
        extra="ignore",
        frozen=True,
        populate_by_name=True,
        allow_inf_nan=False,
        hide_input_in_errors=True,  # a traceback would show passwords
        env_ignore_empty=True,  # a compose file names what may be set, and passes the rest on as nothing
    )

    database_url: Annotated[SecretStr, Field(validation_alias="DATABASE_URL")]
    redis_url: Annotated[SecretStr | None, Field(validation_alias="REDIS_URL")] = None
    """Only workers and the dispatcher need the broker. The gateway counts calls there, or goes without."""
    blob_url: Annotated[str, Field(validation_alias="BLOB_URL")]
    master_key: Annotated[SecretStr, Field(validation_alias="DPFL_MASTER_KEY")]
    """Base64 of 32 bytes: seals the signing keys and peppers API keys and enrolment tokens."""
    region_root_key: Annotated[SecretStr | None, Field(validation_alias="DPFL_REGION_ROOT_KEY")] = None
    """Base64 of 32 bytes: wraps the keys of stored bytes. With one for each region no other region's process
    can open them. Without one it is derived from the master key, and only the region's name is between them.
    """
    environment: Annotated[Environment, Field(validation_alias="DPFL_ENVIRONMENT")] = Environment.PRODUCTION
    public_url: Annotated[str, Field(validation_alias="DPFL_PUBLIC_URL")] = "http://127.0.0.1:8000"
    """What clients call; it is the issuer and the audience of every token."""
    hosts: Annotated[tuple[str, ...], NoDecode, Field(validation_alias="DPFL_HOSTS")] = ()
    """Further names and addresses, without a port, by which requests may call this gateway (their `Host`):
    what a proxy that does not pass the host on calls it, or a service inside a cluster."""
    same_host: Annotated[tuple[str, ...], NoDecode, Field(validation_alias="DPFL_SAME_HOST")] = ()
    """Services of this very machine under names of their own, as containers have: in production these, and
    loopback addresses, need no TLS."""
    region: Annotated[str, Field(validation_alias="DPFL_REGION")] = "eu-west-1"
    """Under whose key bytes are stored. What data rules are held against is `declared_region`."""
    trusts: Annotated[tuple[str, ...], NoDecode, Field(validation_alias="DPFL_TRUSTS")] = ("local",)
    """Trust modes that this federation allows; `none` and `central` must be named to be had."""
    pool_size: Annotated[int, Field(validation_alias="DPFL_POOL_SIZE", ge=1, le=200)] = 20
    """Threads and database connections of one process: equal, so that no thread waits for another's."""
    lease_s: Annotated[float, Field(validation_alias="DPFL_LEASE_S", gt=0)] = 300.0
    tick_s: Annotated[float, Field(validation_alias="DPFL_TICK_S", gt=0)] = 1.0
    resend_s: Annotated[float, Field(validation_alias="DPFL_RESEND_S", gt=0)] = 15.0
    gpu_workers: Annotated[bool, Field(validation_alias="DPFL_GPU_WORKERS")] = False
    """Whether workers with a GPU take from the queue `gpu`: they are then offered aggregation first."""
    device: Annotated[Literal["cpu", "cuda"], Field(validation_alias="DPFL_DEVICE")] = "cpu"
    """What a worker aggregates on where its server may look at single updates."""
    max_update_bytes: Annotated[int, Field(validation_alias="DPFL_MAX_UPDATE_BYTES", ge=1024)] = 512 * 1024**2
    max_body_bytes: Annotated[int, Field(validation_alias="DPFL_MAX_BODY_BYTES", ge=1024)] = 4 * 1024**2
    """Ceiling for JSON bodies; update bodies have their own."""
    client_calls_per_minute: Annotated[
        int, Field(validation_alias="DPFL_CLIENT_CALLS_PER_MINUTE", ge=60, le=10_000_000)
    ] = 1200
    member_calls_per_minute: Annotated[
        int, Field(validation_alias="DPFL_MEMBER_CALLS_PER_MINUTE", ge=60, le=10_000_000)
    ] = 1200
    """How often one training client may call, and one member or one API key; a minute's worth may come at
    once. All gateways count together while Valkey (REDIS_URL) answers, and each alone while it does not."""
    access_token_s: Annotated[int, Field(validation_alias="DPFL_ACCESS_TOKEN_S", ge=10, le=3600)] = 600
    proof_of_possession: Annotated[bool, Field(validation_alias="DPFL_PROOF_OF_POSSESSION")] = True
    """Whether a training client's tokens must be bound to a key and its updates signed; off only in
    development. What is sent is checked either way."""
    session_s: Annotated[int, Field(validation_alias="DPFL_SESSION_S", ge=60, le=48 * 3600)] = 12 * 3600
    """How long after a sign-in its refresh tokens work, however often they are used."""
    oidc: Annotated[tuple[OidcIssuer, ...], Field(validation_alias="DPFL_OIDC", max_length=20)] = ()
    """Issuers as a JSON list of objects; none: members sign in by password."""
    oidc_redirects: Annotated[tuple[str, ...], NoDecode, Field(validation_alias="DPFL_OIDC_REDIRECTS")] = ()
    """Where a browser may be sent after a sign-in through an issuer, beside our own documentation page."""
    clock_leeway_s: Annotated[int, Field(validation_alias="DPFL_CLOCK_LEEWAY_S", ge=0, le=120)] = 30
    grant_epsilon: Annotated[float, Field(validation_alias="DPFL_GRANT_EPSILON", gt=0)] = 8.0
    grant_delta: Annotated[float, Field(validation_alias="DPFL_GRANT_DELTA", gt=0, lt=1)] = 1e-5
    """The budget mirrored for a client's data set where its enrolment names none."""
    tls_certificate: Annotated[Path | None, Field(validation_alias="DPFL_TLS_CERT")] = None
    tls_key: Annotated[Path | None, Field(validation_alias="DPFL_TLS_KEY")] = None
    """PEM files: with both the gateway speaks TLS 1.3 itself."""
    tls_ca: Annotated[Path | None, Field(validation_alias="DPFL_TLS_CA")] = None
    """PEM file of the authority whose client certificates are taken."""
    tls_ca_key: Annotated[Path | None, Field(validation_alias="DPFL_TLS_CA_KEY")] = None
    """PEM file of its key: with it the gateway issues client certificates."""
    client_certificates: Annotated[
        Literal["off", "optional", "required"], Field(validation_alias="DPFL_CLIENT_CERTIFICATES")
    ] = "optional"
    client_certificate_s: Annotated[
        int, Field(validation_alias="DPFL_CLIENT_CERTIFICATE_S", ge=300, le=604_800)
    ] = 86_400
    """For how long a certificate is issued to a training client, seconds."""
    tls_ends_elsewhere: Annotated[bool, Field(validation_alias="DPFL_TLS_ENDS_ELSEWHERE")] = False
    """Says that what is in front of this gateway speaks TLS: else plain HTTP is for this machine alone."""
    trusted_proxies: Annotated[tuple[str, ...], NoDecode, Field(validation_alias="DPFL_TRUSTED_PROXIES")] = ()
    """Addresses or networks of proxies that end TLS and may say which client certificate they checked."""
    proxy_secret: Annotated[SecretStr | None, Field(validation_alias="DPFL_PROXY_SECRET")] = None
    """What such a proxy sends along, 32 characters or more."""
    evidence_days: Annotated[float, Field(validation_alias="DPFL_EVIDENCE_DAYS", gt=0, le=3650)] = 30.0
    """How long evidence about single updates is kept, plain or encrypted; backups should not live longer."""

    @field_validator("trusts", "trusted_proxies", "oidc_redirects", "hosts", "same_host", mode="before")
    @classmethod
    def _split(cls, value: object) -> object:
        return (
            tuple(part.strip() for part in value.split(",") if part.strip())
            if isinstance(value, str)
            else value
        )

    @field_validator("hosts")
    @classmethod
    def _are_hosts(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        found = tuple(host for one in value if (host := bare_host(one)))
        if len(found) < len(value):
            raise ValueError("DPFL_HOSTS holds names and addresses, each without a port")
        return found

    @field_validator("master_key", "region_root_key")
    @classmethod
    def _is_32_bytes(cls, value: SecretStr | None, info: ValidationInfo) -> SecretStr | None:
        if value is None:
            return None
        name = _ALIASES[str(info.field_name)]
        try:
            raw = base64.b64decode(value.get_secret_value(), validate=True)
        except binascii.Error as error:
            raise ValueError(f"{name} must be base64") from error
        if len(raw) != 32:
            raise ValueError(f"{name} must be the base64 of exactly 32 bytes")
        if len(set(raw)) < _LEAST_DIFFERENT:
            raise ValueError(f"{name} is no random key: draw one with `openssl rand -base64 32`")
        return value

    @field_validator("blob_url")
    @classmethod
    def _is_a_store(cls, value: str) -> str:
        parts = urlsplit(value)
        if parts.scheme == "file" and not parts.netloc and parts.path.startswith("/"):
            return value
        if parts.scheme == "s3" and parts.hostname and not parts.username:
            return value
        raise ValueError(
            "BLOB_URL must be file:///an/absolute/folder or s3://bucket/prefix?endpoint=https://host"
        )

    @model_validator(mode="after")
    def _links_are_safe(self) -> Self:
        if self.environment is Environment.PRODUCTION:
            faults = open_links(
                database_url=self.database_url.get_secret_value(),
                redis_url=None if self.redis_url is None else self.redis_url.get_secret_value(),
                blob_url=self.blob_url,
                same_host=self.same_host,
            )
            if named := "; ".join(faults):
                raise ValueError(f"production crosses no network without TLS: {named}")
        return self

    @field_validator("public_url")
    @classmethod
    def _is_an_address(cls, value: str) -> str:
        parts = urlsplit(value)
        extra = parts.query or parts.fragment or parts.username
        if parts.scheme not in {"http", "https"} or not parts.hostname or extra:
            raise ValueError("DPFL_PUBLIC_URL must be http(s)://host[:port][/prefix], as clients call it")
        return value

    @model_validator(mode="after")
    def _is_safe(self) -> Self:
        if not self.proof_of_possession and self.environment is Environment.PRODUCTION:
            raise ValueError("DPFL_PROOF_OF_POSSESSION is off only where DPFL_ENVIRONMENT is development")
        if (self.tls_certificate is None) != (self.tls_key is None):
            raise ValueError("DPFL_TLS_CERT and DPFL_TLS_KEY go together")
        demands = self.client_certificates == "required" and self.tls_certificate is not None
        if self.tls_ca is None and (demands or self.tls_ca_key is not None):
            raise ValueError("DPFL_TLS_CA is missing: the authority whose client certificates are taken")
        if self.trusted_proxies and (
            self.proxy_secret is None or len(self.proxy_secret.get_secret_value()) < 32
        ):
            raise ValueError("DPFL_TRUSTED_PROXIES needs a DPFL_PROXY_SECRET of 32 characters or more")
        for proxy in self.trusted_proxies:
            ip_network(proxy)
        return self

    @model_validator(mode="after")
    def _issuers_are_safe(self) -> Self:
        if len({one.name for one in self.oidc}) != len(self.oidc):
            raise ValueError("DPFL_OIDC: two issuers have one name")
        insecure = [one.name for one in self.oidc if one.issuer.startswith("http:")]
        if insecure and self.environment is not Environment.DEVELOPMENT:
            raise ValueError(f"DPFL_OIDC: outside development an issuer is https: {insecure[0]}")
        return self

    @property
    def declared_region(self) -> str | None:
        """The region, where the operator named one: data rules take no default for a declaration."""
        return self.region if "region" in self.model_fields_set else None

    @property
    def redirects(self) -> frozenset[str]:
        """Where a browser may be sent after a sign-in through an issuer; compared as a whole."""
        return frozenset({f"{self.public_url.rstrip('/')}/docs/oauth2-redirect.html", *self.oidc_redirects})

    @property
    def master_key_bytes(self) -> bytes:
        """The 32 bytes behind `master_key`."""
        return base64.b64decode(self.master_key.get_secret_value())

    @property
    def region_root_bytes(self) -> bytes | None:
        """The 32 bytes behind `region_root_key`."""
        return (
            None
            if self.region_root_key is None
            else base64.b64decode(self.region_root_key.get_secret_value())
        )

    @property
    def blob_folder(self) -> Path:
        """The folder that `blob_url` names; for a folder only."""
        return Path(unquote(urlsplit(self.blob_url).path))

    @classmethod
    def load(cls) -> Self:
        """Read the environment; raises pydantic's ValidationError that names each missing variable."""
        return cls()
