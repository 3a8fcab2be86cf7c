"""JSON bodies of organisations, members, credentials and training clients."""

from __future__ import annotations

import base64
import binascii
from datetime import datetime
from typing import Annotated, Any, Literal, Self
from uuid import UUID

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    StringConstraints,
    model_validator,
)
from pydantic.json_schema import SkipJsonSchema

from app.core.networks import read_network
from app.core.strict import Delta, Epsilon, Jurisdiction, Name, Region, RenyiOrder, StrictModel
from app.identity.capability import AssessedCapability, Capability
from app.identity.models import Approval, ClientState

_DAY_S = 86_400
_ID = "01976c5e-8d2b-7c3a-9f4e-2b6d1a0c9e77"
_TOKEN = "dpfl_enrol_0f5Zq0m3nY8wHs2kQ7xLr4vT9bUeA1cD6gJiKpMaBCDxY3Z1aw"  # noqa: S105  an example  # nosec B105
_B64_KEY = "11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo"
_B64_PROOF = "A" * 86

EnrolmentToken = Annotated[
    str, StringConstraints(strict=True, min_length=1, max_length=200, pattern=r"^[\x21-\x7e]+$")
]
PublicKeyText = Annotated[str, StringConstraints(strict=True, pattern=r"^[A-Za-z0-9_-]{43}=?$")]
"""32 bytes in base64url."""
SignatureText = Annotated[str, StringConstraints(strict=True, pattern=r"^[A-Za-z0-9_-]{86}(==)?$")]
"""64 bytes in base64url."""

PermissionName = Annotated[str, StringConstraints(strict=True, max_length=64, pattern=r"^[a-z_]+:[a-z_]+$")]
Network = Annotated[
    str,
    StringConstraints(strict=True, max_length=49, pattern=r"^[0-9a-fA-F:.]+(/[0-9]{1,3})?$"),
    AfterValidator(read_network),
]


class View(BaseModel):
    """An answer read from a row."""

    model_config = ConfigDict(from_attributes=True)


def example(**members: Any) -> ConfigDict:
    """A model's configuration with one example of its body."""
    return ConfigDict(json_schema_extra={"examples": [members]})


class OrganisationIn(StrictModel):
    """A party to add."""

    model_config = example(name="Riverside Hospital", region="eu-west-1")

    name: Name
    region: Region


class CeilingIn(StrictModel):
    """The most that any account of an organisation may be granted."""

    model_config = example(epsilon_ceiling=8.0)

    epsilon_ceiling: Epsilon | None
    """Null: no ceiling but that of whoever grants."""


class OrganisationView(View):
    """A party of the federation."""

    id: UUID
    name: str
    region: str
    epsilon_ceiling: float | None
    """No account of the organisation is granted more; what was granted before stays."""
    created_at: datetime


class ApiKeyIn(StrictModel):
    """A key to make."""

    model_config = example(label="nightly export", expires_in_s=7_776_000)

    label: Name
    member_id: UUID | None = None
    """Whose key it is; the caller's own where it is left out."""
    expires_in_s: Annotated[int | None, Field(strict=True, ge=60, le=10 * 365 * _DAY_S)] = None
    """Seconds until it stops working; never where it is left out."""
    scopes: Annotated[list[PermissionName] | None, Field(min_length=1, max_length=100)] = None
    """The only permissions that it is good for; all that you hold where it is left out."""
    networks: Annotated[list[Network] | None, Field(min_length=1, max_length=50)] = None
    """The only networks that it is taken from, as `10.1.0.0/16`; anywhere where it is left out."""


class ApiKeyView(View):
    """A key without its secret."""

    id: UUID
    member_id: UUID
    key_id: str
    label: str
    scopes: list[str] | None
    networks: list[str] | None
    replaces: UUID | None
    """The key that this one follows."""
    expires_at: datetime | None
    revoked_at: datetime | None
    last_used_at: datetime | None
    last_used_address: str | None
    created_at: datetime


class OverlapIn(StrictModel):
    """How long the former key goes on working."""

    model_config = example(overlap_s=3600)

    overlap_s: Annotated[int, Field(strict=True, ge=0, le=30 * _DAY_S)] = 3600


class SigningRotationIn(StrictModel):
    """Why the signing key is rotated."""

    model_config = example(leaked=False)

    leaked: Annotated[bool, Field(strict=True)] = False
    """The former key verifies nothing any more: all sessions and clients get new tokens, and release
    certificates that it signed do not hold."""


class ApiKeyOnce(ApiKeyView):
    """A new key, with its secret for the only time."""

    api_key: str


class BudgetTerms(StrictModel):
    """The privacy budget that an enrolment grants to the client's data set."""

    kind: Literal["basic", "renyi"] = "basic"
    epsilon: Epsilon
    delta: Delta
    order: RenyiOrder | None = None
    """The one order of a `renyi` account."""
    unit: Literal["example", "person", "client"] = "example"
    """What the account protects; a run whose promise does not cover that is refused on it."""

    @model_validator(mode="after")
    def _order_belongs_to_renyi(self) -> Self:
        if (self.kind == "renyi") != (self.order is not None):
            raise ValueError("a renyi budget names its order, a basic one has none")
        return self


class EnrolmentIn(StrictModel):
    """An invitation to make."""

    model_config = example(
        organisation_id=_ID,
        region="eu-west-1",
        jurisdiction="IE",
        budget={"kind": "basic", "epsilon": 8.0, "delta": 1e-5},
        expires_in_s=_DAY_S,
    )

    organisation_id: UUID
    region: Region
    jurisdiction: Jurisdiction | None = None
    """Whose law the client's data are under, by ISO 3166, as you declare it; data rules may ask for it."""
    budget: BudgetTerms | None = None
    """The server's default where it is left out."""
    expires_in_s: Annotated[int, Field(strict=True, ge=1, le=30 * _DAY_S)] = _DAY_S
    approval: Literal["automatic", "manual"] = "automatic"
    """`manual`: the client gets no token before an administrator or coordinator approves it."""


class EnrolmentView(View):
    """An invitation without its token."""

    id: UUID
    organisation_id: UUID
    region: str
    jurisdiction: str | None
    budget: BudgetTerms
    approval: Approval
    expires_at: datetime
    used_at: datetime | None
    client_id: UUID | None
    created_by: str
    created_at: datetime


class EnrolmentOnce(EnrolmentView):
    """A new invitation, with its token for the only time."""

    token: str


class EnrolmentTokenIn(StrictModel):
    """An enrolment token that is to be looked at, not used."""

    model_config = example(enrolment_token=_TOKEN)

    enrolment_token: EnrolmentToken


class EnrolmentCheck(View):
    """A token that would enrol a client now."""

    region: str
    expires_at: datetime


class ClientIn(StrictModel):
    """What a machine sends to become a training client."""

    model_config = example(
        enrolment_token=_TOKEN,
        name="mailbox-3",
        public_key=_B64_KEY,
        proof=_B64_PROOF,
        population="mailbox-3",
        capability={"memory_bytes": 8_589_934_592, "cpu_count": 4, "upload_bytes_per_s": 2_500_000.0},
    )

    enrolment_token: EnrolmentToken
    name: Name
    public_key: PublicKeyText
    """The raw Ed25519 public key, 32 bytes, in base64url."""
    proof: SignatureText
    """Its signature over `dpfl-enrol-v1`, a zero byte, the token, a zero byte and the raw key."""
    population: Name
    """Names the data set; all runs on it share one privacy account."""
    capability: Capability


class ClientKeyIn(StrictModel):
    """A training client's new key, vouched for by its present one."""

    model_config = example(public_key=_B64_KEY, proof=_B64_PROOF, own_proof=_B64_PROOF, overlap_s=3600)

    public_key: PublicKeyText
    """The raw new Ed25519 public key, 32 bytes, in base64url."""
    proof: SignatureText
    """The present key's signature over `dpfl-rotate-v1`, a zero byte, the client id, a zero byte and the raw
    new key."""
    own_proof: SignatureText
    """The new key's signature over the same."""
    overlap_s: Annotated[int, Field(strict=True, ge=0, le=7 * _DAY_S)] = 3600
    """How long the present key is taken beside the new one; with 0 its running tokens end at once."""


class ClientView(View):
    """A training client."""

    id: UUID
    organisation_id: UUID
    region: str
    jurisdiction: str | None
    """As its invitation declared it."""
    name: str
    state: ClientState
    capability: AssessedCapability
    created_at: datetime


class TokenForm(StrictModel):
    """A token request (RFC 7523), form-encoded."""

    model_config = example(
        grant_type="client_credentials",
        client_assertion_type="urn:ietf:params:oauth:client-assertion-type:jwt-bearer",
        client_assertion="eyJhbGciOiJFZERTQSJ9.eyJzdWIiOiIwMTk3NmM1ZSJ9.c2lnbmF0dXJl",
    )

    grant_type: Literal["client_credentials"]
    client_assertion_type: Literal["urn:ietf:params:oauth:client-assertion-type:jwt-bearer"]
    client_assertion: Annotated[
        str,
        StringConstraints(
            min_length=1, max_length=4096, pattern=r"^[A-Za-z0-9_-]+\.[A-Za-z0-9_-]+\.[A-Za-z0-9_-]*$"
        ),
    ]
    """A JWT signed with the client's Ed25519 key; iss and sub are the client's id."""
    client_id: UUID | SkipJsonSchema[None] = None  # a form has no null
    """Allowed for OAuth libraries that send it; the assertion decides."""


class TokenView(StrictModel):
    """An access token."""

    access_token: str
    token_type: Literal["Bearer", "DPoP"]
    """How to send it: with a proof of the key that it is bound to (RFC 9449), or as it is."""
    expires_in: int
    """Seconds."""


class WebKey(StrictModel):
    """A public key (RFC 8037)."""

    kty: Literal["OKP"]
    crv: Literal["Ed25519"]
    alg: Literal["EdDSA"]
    use: Literal["sig"]
    kid: str
    x: str


class WebKeySet(StrictModel):
    """The public keys that verify tokens and certificates (RFC 7517)."""

    keys: list[WebKey]


def decode(value: str) -> bytes:
    """Base64url, with or without padding; raises ValueError."""
    try:
        return base64.b64decode(
            value.rstrip("=") + "=" * (-len(value.rstrip("=")) % 4), altchars=b"-_", validate=True
        )
    except binascii.Error as error:
        raise ValueError("this is not base64url") from error
