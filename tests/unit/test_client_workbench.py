"""What the workbench makes of an adapter that no honest server sends."""

import json
import struct
from pathlib import Path
from uuid import uuid4

import pytest
import torch
from safetensors.torch import save

from client.errors import ClientError
from client.turns import Turn
from client.wire import FrozenManifest
from client.workbench import Workbench
from tests.client_folders import manifest, profile_in
from tests.unit.tiny_model import manifest_of, trained_part_of, write_tiny_bert


def of_type(name: str) -> bytes:
    """An adapter file of one tensor of four bits or bytes."""
    size = 2 if name == "F4" else 4
    header = json.dumps({"a": {"dtype": name, "shape": [4], "data_offsets": [0, size]}}).encode()
    return struct.pack("<Q", len(header)) + header + bytes(size)


def test_an_adapter_that_no_honest_server_sends_is_refused_with_one_code(tmp_path: Path) -> None:
    base = write_tiny_bert(tmp_path / "base")
    plan = manifest_of(base)
    _part, _examples, start = trained_part_of(plan, base)
    profile = profile_in(
        tmp_path / "mailbox",
        server="https://one.example",
        client_id=str(uuid4()),
        base_model_folders={"tiny": str(base)},
    )
    bench, frozen = Workbench(), FrozenManifest(json.dumps(manifest() | plan).encode())
    halved = {name: tensor.to(torch.float16) for name, tensor in start.items()}
    infinite = {name: tensor + float("inf") for name, tensor in start.items()}
    hostile = [
        b"",
        b"\xff" * 64,
        of_type("F4"),
        of_type("F8_E8M0"),
        of_type("XX"),
        save(halved),
        save(infinite),
    ]
    for adapter in hostile:
        with pytest.raises(ClientError) as refused:
            bench.train(profile, frozen, adapter, turn=Turn(), on_step=lambda _done, _steps: None)
        assert refused.value.code == "adapter_unusable"
