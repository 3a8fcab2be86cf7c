"""An S3-compatible server on a real socket (moto's), for as long as the tests of a worker run."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from urllib.request import Request, urlopen

PATIENCE_S = 60.0


@contextmanager
def bucket_server() -> Iterator[str]:
    """Its address. Credentials are in the environment, as a process of ours finds them."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    os.environ.setdefault("AWS_ACCESS_KEY_ID", "tests")
    os.environ.setdefault("AWS_SECRET_ACCESS_KEY", "tests")
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        try:
            _wait_for(port, process)
            yield f"http://127.0.0.1:{port}"
        finally:
            process.terminate()


def _wait_for(port: int, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while True:
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1.0).close()
        except OSError:
            if time.monotonic() > deadline or process.poll() is not None:
                raise
            time.sleep(0.05)  # nothing tells when a foreign process has begun to listen
        else:
            return


def make_bucket(server: str, name: str) -> str:
    """A new bucket; returns the BLOB_URL of a prefix in it."""
    with urlopen(Request(f"{server}/{name}", method="PUT"), timeout=10) as answer:  # noqa: S310  our own server
        assert answer.status == 200
    return f"s3://{name}/lab/blobs?endpoint={server}"
