"""Wire dtypes from plan to file: which plans may name one, and that a server takes what a client sends."""

from __future__ import annotations

import copy
import io
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from app.core.errors import Invalid
from app.runs.manifest import EXAMPLE, Manifest
from app.runs.methods import update_tensors
from app.runs.plan import check_plan, header_bytes
from app.runs.sending import DTYPES
from app.updates.wire import check_header
from client.errors import ClientError
from client.rounds import fetch, submit, train
from client.serving import list_assignments
from client.session import Identity, Session
from client.wire import FrozenManifest
from tests.client_folders import RandomTrainer, adapter, manifest, profile_in
from tests.recording import PlayedRun, RecordingServer


def planned(wire_dtype: str, *, mode: str = "plain") -> dict[str, Any]:
    document = copy.deepcopy(EXAMPLE)
    document["aggregation"] |= {"wire_dtype": wire_dtype, "mode": mode}
    return document


def check(document: dict[str, Any], *, max_update_bytes: int = 2**20) -> None:
    read = Manifest.model_validate(document)
    check_plan(read, clients=8, trusts=("local",), max_update_bytes=max_update_bytes)


@pytest.mark.parametrize("wire_dtype", sorted(DTYPES))
def test_every_wire_dtype_makes_a_plan(wire_dtype: str) -> None:
    check(planned(wire_dtype))


@pytest.mark.parametrize("wire_dtype", ["float64", "int16", "int32", "fp8", "", None])
def test_another_wire_dtype_is_no_manifest(wire_dtype: Any) -> None:
    with pytest.raises(ValidationError):
        Manifest.model_validate(planned(wire_dtype))


@pytest.mark.parametrize("mode", ["secagg", "grouped_secagg"])
def test_masked_sums_have_no_wire_dtype(mode: str) -> None:
    with pytest.raises(Invalid) as caught:
        check(planned("int8", mode=mode))
    assert caught.value.code == "wire_dtype_refused"
    with pytest.raises(Invalid) as caught:
        check(planned("float32", mode=mode))
    assert caught.value.code == "aggregation_not_available"


def test_a_tensor_that_is_called_as_anothers_scale_is_refused_under_int8_alone() -> None:
    document = planned("int8")
    shapes = {"base_model.model.classifier.bias": [2], "base_model.model.classifier.bias.scale": [1]}
    others = [one for one in document["tensors"] if one["name"] not in shapes]
    added = [{"name": name, "shape": shape, "trained": True} for name, shape in shapes.items()]
    document["tensors"] = sorted([*others, *added], key=lambda one: str(one["name"]))
    with pytest.raises(Invalid) as caught:
        check(document)
    assert caught.value.code == "wire_dtype_refused"
    document["aggregation"]["wire_dtype"] = "float16"
    check(document)


def test_narrow_updates_are_as_much_smaller_as_their_type_and_int8_pays_for_its_scales() -> None:
    sizes = {name: Manifest.model_validate(planned(name)).update_bytes for name in DTYPES}
    values, tensors = sizes["float32"] // 4, 4
    assert sizes == {
        "float32": 4 * values,
        "float16": 2 * values,
        "bfloat16": 2 * values,
        "int8": values + 4 * tensors,
    }
    headers = {name: header_bytes(Manifest.model_validate(planned(name))) for name in ("float32", "int8")}
    assert headers["int8"] > headers["float32"]


def test_a_ceiling_holds_for_what_is_sent_not_for_what_is_trained() -> None:
    wide = Manifest.model_validate(planned("float32"))
    ceiling = wide.update_bytes // 2 + 64 * 1024 + 8
    with pytest.raises(Invalid) as caught:
        check(planned("float32"), max_update_bytes=ceiling)
    assert caught.value.code == "update_too_large"
    check(planned("float16"), max_update_bytes=ceiling)


@pytest.mark.parametrize("wire_dtype", sorted(DTYPES))
def test_what_a_client_sends_is_what_the_server_expects(tmp_path: Path, wire_dtype: str) -> None:
    document = manifest(aggregation={"wire_dtype": wire_dtype})
    with RecordingServer(PlayedRun(document, adapter())) as server:
        profile = profile_in(tmp_path / "profile", server=server.url, client_id=server.client_id)
        with Session(server.url, identity=Identity(profile.config.client_id, profile.key())) as session:
            files = fetch(profile, session, list_assignments(session, wait_s=0)[0])
            train(profile, files, RandomTrainer(), on_step=lambda _done, _steps: None)
            submit(profile, session, files)
        (body,) = server.bodies()
    check_header(io.BytesIO(body), size_bytes=len(body), expected=update_tensors(document, number=1))


def test_a_client_refuses_a_wire_dtype_that_it_does_not_know() -> None:
    document = manifest(aggregation={"wire_dtype": "fp4"})
    with pytest.raises(ClientError) as caught:
        FrozenManifest(PlayedRun(document, adapter()).manifest_bytes)
    assert caught.value.code == "manifest_invalid"
