"""Downloads adapters and uploads updates with the generated client, and tells how much memory that took.

`python exchange.py EXCHANGES streamed|whole`, with the generated package on PYTHONPATH. The last exchange is
measured; those before it warm up.
"""

import hashlib
import json
import resource
import ssl
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from uuid import UUID

import httpx
from dpfl_api.api.rounds import get_round_adapter, put_update
from dpfl_api.client import AuthenticatedClient
from dpfl_api.models.receipt import Receipt
from dpfl_api.types import File


@contextmanager
def as_client(one: dict[str, Any], headers: dict[str, str]) -> Iterator[AuthenticatedClient]:
    """A generated client that sends one request's proof beside what the generator knows."""
    context = ssl.create_default_context(cafile=one["ca_file"])
    scheme, token = headers["Authorization"].split(" ")
    with AuthenticatedClient(
        base_url=one["server"],
        token=token,
        prefix=scheme,
        headers={"DPoP": headers["DPoP"]},
        timeout=httpx.Timeout(60.0),
        verify_ssl=context,
    ) as client:
        yield client


def download(one: dict[str, Any], *, way: str) -> None:
    """Read the round's adapter. `sync_detailed` keeps an answer whole, so streaming takes its parts."""
    digest = hashlib.sha256()
    round_id = UUID(one["round_id"])
    with as_client(one, one["download_headers"]) as client:
        if way == "whole":
            digest.update(get_round_adapter.sync_detailed(round_id, client=client).content)
        else:
            request = get_round_adapter._get_kwargs(round_id)  # what it asks for, without asking
            with client.get_httpx_client().stream(**request) as answer:
                for block in answer.iter_bytes():
                    digest.update(block)
    if digest.hexdigest() != one["adapter_sha256"]:
        raise SystemExit("the adapter is not the one that was announced")


def upload(one: dict[str, Any], *, way: str) -> None:
    """Send the update: a file object is read while it is sent, with its size as Content-Length."""
    headers = one["upload_headers"]
    with as_client(one, headers) as client, Path(one["file"]).open("rb") as file:
        answer = put_update.sync(
            UUID(one["round_id"]),
            UUID(one["update_id"]),
            client=client,
            body=File(payload=file if way == "streamed" else file.read()),  # type: ignore[arg-type]
            content_digest=headers["Content-Digest"],
            signature_input=headers["Signature-Input"],
            signature=headers["Signature"],
        )
    if not isinstance(answer, Receipt) or answer.sha256 != one["update_sha256"]:
        raise SystemExit(f"no receipt: {answer}")


def held_bytes() -> tuple[int, int]:
    """The memory that this process holds, and the most that it ever held.

    Linux's rusage counts in what the process that started this one held; /proc does not.
    """
    status = Path("/proc/self/status")
    if status.exists():
        told = dict(line.split(":", 1) for line in status.read_text().splitlines())
        return int(told["VmRSS"].split()[0]) * 1024, int(told["VmHWM"].split()[0]) * 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak, peak


def main() -> None:
    """Do every exchange; print how far the peak of the last one is over what was held before it."""
    exchanges, way = json.loads(Path(sys.argv[1]).read_text()), sys.argv[2]
    grown = {}
    for one in exchanges:
        for work in (download, upload):
            before, _peak = held_bytes()
            work(one, way=way)
            grown[work.__name__] = held_bytes()[1] - before
    sys.stdout.write(json.dumps(grown) + "\n")


if __name__ == "__main__":
    main()
