"""What `dpfl up` runs: the processes, their command lines and their environment, as plain data."""

import ipaddress
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from cli.embedded.processes import LOOPBACK
from cli.embedded.supervisor import Command

CUDA_PROBE = "import sys, torch; sys.exit(0 if torch.cuda.is_available() else 1)"
CUDA_PROBE_LIMIT_S = 120
DEVICE = Path("/dev/nvidiactl")
LOOPBACK_HOSTS = {LOOPBACK, "::1", "localhost"}
# Two OpenMP threads on a busy 2-core machine were measured 35 times slower than one.
ONE_THREAD = {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE", "TOKENIZERS_PARALLELISM": "false"}

# Celery warns because messages might run code; ours are JSON and hold ids only.
AS_ROOT = "ignore:You're running the worker with superuser privileges"


@dataclass(frozen=True)
class Addresses:
    """Where the stack's parts find each other."""

    host: str
    port: int
    database_url: str
    redis_url: str
    blob_url: str
    public_url: str | None = None
    """By which other machines call, with TLS."""

    @property
    def gateway_url(self) -> str:
        """Where the gateway answers, seen from this machine."""
        host = LOOPBACK if _means_every_address(self.host) else self.host
        scheme = "http" if self.public_url is None else "https"
        return f"{scheme}://[{host}]:{self.port}" if ":" in host else f"{scheme}://{host}:{self.port}"


def _means_every_address(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_unspecified
    except ValueError:  # a name
        return False


def process_environment(
    inherited: Mapping[str, str], addresses: Addresses, *, master_key: str, data: Path, admin_file: Path
) -> dict[str, str]:
    """Return what every process of ours finds in its environment; what the operator set stays."""
    local = addresses.host in LOOPBACK_HOSTS
    return {
        "BLOB_URL": addresses.blob_url,
        "DPFL_MASTER_KEY": master_key,
        "DPFL_PUBLIC_URL": addresses.public_url or addresses.gateway_url,
        "DPFL_ENVIRONMENT": "development" if local else "production",
        "DPFL_ADMIN_FILE": str(admin_file),
        **inherited,
        **({} if addresses.public_url is None else {"DPFL_PUBLIC_URL": addresses.public_url}),
        "DATABASE_URL": addresses.database_url,
        "REDIS_URL": addresses.redis_url,
        "DPFL_HOST": addresses.host,
        "DPFL_PORT": str(addresses.port),
        "DPFL_DATA": str(data),
        "PYTHONUNBUFFERED": "1",
    }


def migration_command(environment: dict[str, str]) -> Command:
    """Bring the schema up to date."""
    return Command("migrations", (sys.executable, "-m", "migrations"), environment)


def bootstrap_command(environment: dict[str, str]) -> Command:
    """Make the first administrator, once."""
    return Command("bootstrap", (sys.executable, "-m", "app", "bootstrap"), environment)


def _worker(name: str, queue: str, environment: dict[str, str]) -> Command:
    options = ("-Q", queue, "-n", f"{name}@%h", "--pool=prefork", "--concurrency=1", "--loglevel=INFO")
    quiet = ("--without-gossip", "--without-mingle", "--without-heartbeat")
    return Command(
        name,
        (
            sys.executable,
            "-W",
            AS_ROOT,
            "-m",
            "celery",
            "--quiet",
            "-A",
            "workers.main",
            "worker",
            *options,
            *quiet,
        ),
        environment | ONE_THREAD,
        # A job is leased and fenced: one that is cut short is simply done again by another worker.
        stop=(signal.SIGTERM, signal.SIGQUIT),
        patience_s=8.0,
    )


def lasting_commands(environment: dict[str, str], *, workers: int, cuda: bool) -> tuple[Command, ...]:
    """Return the processes that are kept running, in the order of their start."""
    return (
        Command("gateway", (sys.executable, "-m", "app"), environment),
        Command(
            "dispatcher",
            (sys.executable, "-m", "workers.dispatcher"),
            environment | {"DPFL_GPU_WORKERS": str(cuda).lower()},
        ),
        *(_worker(f"cpu{number}", "cpu", environment) for number in range(1, workers + 1)),
        *((_worker("gpu1", "gpu", environment | {"DPFL_DEVICE": "cuda"}),) if cuda else ()),
    )


def cuda_is_there() -> bool:
    """Say whether torch could use a GPU; torch is asked, in a process of its own, only where a device is."""
    hidden = os.environ.get("CUDA_VISIBLE_DEVICES") in {"", "-1"}
    if hidden or not (DEVICE.exists() or shutil.which("nvidia-smi")):
        return False
    try:
        probe = subprocess.run(
            [sys.executable, "-c", CUDA_PROBE], capture_output=True, check=False, timeout=CUDA_PROBE_LIMIT_S
        )
    except subprocess.TimeoutExpired:
        return False
    return probe.returncode == 0
