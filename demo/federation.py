"""The operator's part of the demo, by HTTP alone: organisations, invitations, runs, releases."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import httpx2

ANSWER_TIMEOUT_S = 60.0
LONG_POLL_S = 20


class FederationError(Exception):
    """The server refused, and the text is its problem document's; or it does not answer."""


@dataclass(frozen=True)
class Invitation:
    """What a mailbox needs to enrol."""

    token: str


class Federation:
    """A thin HTTP client of the operator's API, with the admin's key."""

    def __init__(self, base_url: str, api_key: str) -> None:
        self._http = httpx2.Client(
            base_url=base_url,
            headers={"Authorization": f"Bearer {api_key}"},
            timeout=ANSWER_TIMEOUT_S,
            trust_env=False,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exc: object) -> None:
        self._http.close()

    def _ask(self, method: str, path: str, body: dict[str, Any] | None = None) -> httpx2.Response:
        try:
            answer = self._http.request(method, f"/v1{path}", json=body)
        except httpx2.TransportError as error:
            raise FederationError(f"{method} {path}: the server does not answer") from error
        if answer.is_error:
            raise FederationError(f"{method} {path}: {answer.status_code} {answer.text[:500]}")
        return answer

    def _call(self, method: str, path: str, body: dict[str, Any] | None = None) -> dict[str, Any]:
        answer = self._ask(method, path, body)
        result: dict[str, Any] = answer.json() if answer.content else {}
        return result

    def organisation(self, name: str) -> str:
        """Make an organisation; returns its id."""
        body = {"name": name, "region": "eu-west-1"}
        organisation_id: str = self._call("POST", "/organisations", body)["id"]
        return organisation_id

    def invite(self, organisation_id: str, *, epsilon: float, delta: float, unit: str) -> Invitation:
        """Invite one client into an organisation, with a budget for its data."""
        enrolment = self._call(
            "POST",
            "/enrolments",
            {
                "organisation_id": organisation_id,
                "region": "eu-west-1",
                "budget": {"kind": "basic", "epsilon": epsilon, "delta": delta, "unit": unit},
            },
        )
        return Invitation(token=enrolment["token"])

    def start_run(self, manifest: dict[str, Any], client_ids: list[str]) -> str:
        """Create a run, let it be priced, start it; returns its id."""
        run_id: str = self._call("POST", "/runs", {"manifest": manifest, "client_ids": client_ids})["id"]
        self._call("POST", f"/runs/{run_id}/price")
        priced = self.wait_for_run(run_id, {"priced", "refused"})
        if priced["state"] == "refused":
            raise FederationError(f"the plan was refused: {priced['reason_code']}: {priced['reason']}")
        self._call("POST", f"/runs/{run_id}/start")
        return run_id

    def wait_for_run(self, run_id: str, states: set[str]) -> dict[str, Any]:
        """Long-poll a run until it is in one of the states; ended states end the wait as well."""
        since = 0
        while True:
            run = self._call("GET", f"/runs/{run_id}?wait={LONG_POLL_S}&since={since}")
            if run["state"] in states | {"finished", "aborted", "refused", "paused"}:
                return run
            since = run["version"]

    def run(self, run_id: str) -> dict[str, Any]:
        """One run."""
        return self._call("GET", f"/runs/{run_id}")

    def releases(self, run_id: str) -> list[dict[str, Any]]:
        """The run's releases by round."""
        found = self._call("GET", f"/releases?run_id={run_id}&limit=200")["items"]
        return sorted(found, key=lambda release: int(release["number"]))

    def pull(self, release_id: str, folder: Path) -> None:
        """Write a release as a PEFT adapter folder with its certificate and its run's manifest."""
        folder.mkdir(parents=True, exist_ok=True)
        parts = {
            "adapter": "adapter_model.safetensors",
            "config": "adapter_config.json",
            "certificate": "certificate.json",
        }
        for part, name in parts.items():
            (folder / name).write_bytes(self._ask("GET", f"/releases/{release_id}/{part}").content)
        run_id = self._call("GET", f"/releases/{release_id}")["run_id"]
        (folder / "manifest.json").write_bytes(self._ask("GET", f"/runs/{run_id}/manifest").content)
