"""A client's own folder: who it is, its key, its rounds. What trains on a data set is a profile.

config.json   server and its pins, client id, name, region, data set (0600)
server-ca.pem the server's own certificate authority, where its invitation brought one
key.pem       Ed25519 private key, sealed with the local key (0600); it signs and never leaves
rounds/       one folder a round
lock          held while a process works with the profile

The data set's ledger and policy live in their own folder, shared by all profiles of that data set.
"""

from __future__ import annotations

import hashlib
import json
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from uuid import UUID

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_pem_private_key
from platformdirs import user_data_path

from client.durable import locked, private_folder, write_whole
from client.errors import ClientError
from client.i18n import _
from client.ledger import Ledger, folder_of
from client.policy import Policy
from client.sealing import seal_file, unseal_file
from client.trust import Trust, require_pins

_BLOCK_BYTES = 1 << 20


def default_home() -> Path:
    """Where the ledgers and policies of this account's data sets are, unless another place is named."""
    return user_data_path("dpfl", appauthor=False) / "datasets"


@dataclass(frozen=True)
class Config:
    """What a profile knows; no secret in it."""

    server: str
    client_id: str
    name: str
    region: str
    dataset: str
    data: str
    """Absolute path of the data file; empty where the data are on another machine."""
    data_sha256: str
    """Digest of that file when it was enrolled: another file is not trained on by mistake."""
    home: str
    """Folder of the data sets' ledgers and policies."""
    ca_file: str | None = None
    proxy: str | None = None
    allow_http: bool = False
    hands_over: bool = False
    """True: trains for a client that is enrolled on another machine, and sends nothing itself."""
    extra_ca_file: str | None = None
    """Certificates to trust besides the usual ones or those of `ca_file`."""
    pins: list[str] = field(default_factory=list)
    """The server's public keys, the present and the next one; another server is refused."""

    @property
    def trust(self) -> Trust:
        """What certificates and keys this client takes for its server's."""
        return Trust(self.ca_file, self.extra_ca_file, require_pins(self.pins))


class Profile:
    """An enrolled client's folder."""

    def __init__(self, folder: Path, config: Config) -> None:
        self.folder = folder
        self.config = config
        self.ledger = Ledger(Path(config.home), config.dataset)

    @classmethod
    def open(cls, folder: Path) -> Profile:
        """Read a profile; raises ClientError when the folder holds none."""
        try:
            values = json.loads((folder / "config.json").read_text(encoding="utf-8"))
            config = Config(**values)
            UUID(config.client_id)
        except (OSError, ValueError, TypeError) as error:
            raise ClientError(
                "no_profile", _("{path} is no enrolled client: run `dpfl client enrol`"), path=str(folder)
            ) from error
        return cls(folder, config)

    @classmethod
    def create(cls, folder: Path, config: Config) -> Profile:
        """Write a profile whose key is already there."""
        write_whole(folder / "config.json", json.dumps(asdict(config), indent=2).encode() + b"\n")
        return cls(folder, config)

    def pin(self, pins: tuple[str, ...]) -> Profile:
        """Take other keys for the server's from now on."""
        return Profile.create(self.folder, replace(self.config, pins=list(require_pins(pins))))

    @property
    def name(self) -> str:
        """The client's name, for progress lines."""
        return self.config.name

    @property
    def policy(self) -> Policy:
        """The data holder's policy as it is on the disk now."""
        path = policy_path(Path(self.config.home), self.config.dataset)
        policy = Policy.load(path)
        if policy.dataset != self.config.dataset:
            raise ClientError(
                "policy_invalid", _("{field} in {path} is not right"), field="dataset", path=str(path)
            )
        return policy

    def key(self) -> Ed25519PrivateKey:
        """Read the private key."""
        return read_key(self.folder)

    def round_folder(self, run_id: str, number: int) -> Path:
        """Where a round's files are. Both names come from checked values, never from raw text."""
        return self.folder / "rounds" / str(UUID(run_id)) / str(int(number))

    def locked(self) -> AbstractContextManager[None]:
        """Hold the profile against other processes; raises `profile_busy` at once."""
        return lock_folder(self.folder)

    def require_here(self) -> None:
        """Refuse to train where the data are not."""
        if not self.config.data:
            raise ClientError(
                "data_elsewhere", _("the data of {name} are on another machine: train there"), name=self.name
            )

    def require_data(self) -> Path:
        """Return the data file, if it is still the one that was enrolled."""
        self.require_here()
        path = Path(self.config.data)
        if file_sha256(path) != self.config.data_sha256:
            raise ClientError(
                "data_changed",
                _("{path} is not the file that was enrolled as {name}: enrol it, or put the old one back"),
                path=str(path),
                name=self.config.dataset,
            )
        return path


def policy_path(home: Path, dataset: str) -> Path:
    """Where a data set's policy is."""
    return folder_of(home, dataset) / "policy.toml"


def lock_folder(folder: Path) -> AbstractContextManager[None]:
    """Hold a profile's folder for this process, or raise `profile_busy`."""
    refusal = ClientError("profile_busy", _("another process works with {path}"), path=str(folder))
    return locked(folder / "lock", refusal=refusal)


def make_key(folder: Path) -> Ed25519PrivateKey:
    """Return the folder's key, made now if there is none: it is on the disk before anybody learns of it."""
    private_folder(folder)
    path = folder / "key.pem"
    if not path.exists():
        seal_file(path, Ed25519PrivateKey.generate().private_bytes_raw())
    return read_key(folder)


def read_key(folder: Path) -> Ed25519PrivateKey:
    """Read a profile's key; refuses one that other accounts can read. One in the clear is sealed now."""
    path = folder / "key.pem"
    try:
        raw = unseal_file(path)
        if raw is not None:
            return Ed25519PrivateKey.from_private_bytes(raw)
        key = load_pem_private_key(path.read_bytes(), password=None)
    except (OSError, ValueError) as error:
        raise ClientError("no_key", _("{path} holds no usable key"), path=str(path)) from error
    if not isinstance(key, Ed25519PrivateKey):
        raise ClientError("no_key", _("{path} holds no usable key"), path=str(path))
    seal_file(path, key.private_bytes_raw())
    return key


def raw_public_key(key: Ed25519PrivateKey) -> bytes:
    """The 32 bytes of the public half."""
    return key.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw)


def file_sha256(path: Path) -> str:
    """Digest of a file; says which one cannot be read."""
    digest = hashlib.sha256()
    try:
        with path.open("rb") as file:
            while block := file.read(_BLOCK_BYTES):
                digest.update(block)
    except OSError as error:
        raise ClientError(
            "cannot_read", _("cannot read {path}: {reason}"), path=str(path), reason=error.strerror or "error"
        ) from error
    return digest.hexdigest()
