"""What a client asks the server about its work: which rounds wait for it, and how a run is doing."""

from __future__ import annotations

from client.session import Session
from client.wire import Assignment, Assignments, RunState, parse


def list_assignments(session: Session, *, wait_s: float) -> list[Assignment]:
    """Ask which rounds wait for this client's update; the server may hold the answer back for `wait_s`."""
    reply = session.get("/v1/assignments", query={"wait": f"{wait_s:g}"}, wait_s=wait_s)
    listed = parse(Assignments, reply.json("list of assignments"), what="list of assignments")
    return list(listed.items)


def run_state(session: Session, run_id: str, *, since: int | None = None, wait_s: float = 0.0) -> RunState:
    """Ask how a run is doing; with `since`, the server holds the answer back until its version is another."""
    query = None if since is None else {"wait": f"{wait_s:g}", "since": str(since)}
    reply = session.get(f"/v1/runs/{run_id}", query=query, wait_s=wait_s)
    return parse(RunState, reply.json("run"), what="run")
