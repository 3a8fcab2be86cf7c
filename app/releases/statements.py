"""What a certificate says in words, by trust, unit, relation and cohort.

Fixed English, since the texts are part of what is signed.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

UNITS = {
    "example": "One record in one client's data set. A person with m records is protected by group privacy "
    "only: about m times epsilon, at a larger delta. A record that k clients hold is charged k times.",
    "person": "All records of one person in one client's data set, told by the field that `person` names. "
    "Persons without an id there are not covered. For a person whose records are in several data sets, "
    "`epsilon_by_silos` holds.",
    "client": "The whole data set of one client, and with it every person and record in it: compared with a "
    "data set whose whole contribution is replaced as the relation says. Under zero_out, two data sets that "
    "differ in one record are two such steps apart. A person whose records several clients hold is "
    "protected by group privacy only.",
}
RELATIONS = {
    "zero_out": "The unit's contribution is replaced by zero; the existence of clients, the times of rounds "
    "and receipts, and the sizes of updates are public.",
    "replace_one": "The unit is replaced by another; the sensitivity is twice the clip norm.",
}
_ADVERSARIES = {
    "local": "Sees every update that leaves a client, every release and all data but the unit's; does not "
    "learn which records entered a step's batch, which is drawn inside the client and never leaves it.",
    "central": "Everybody but the operator of the server, who is trusted with the updates as they are sent. "
    "Sees every release and certificate, the times of all rounds, and all other clients' data sets.",
}
_DRAWN_COHORT = (
    " Does not learn which clients, or how many, were drawn for a round; a client that was drawn knows it "
    "of itself. Whoever counts on this has to trust the operator for it, and the network to the server."
)
_WHOLE_COHORT = " Every client takes part in every round: there is no secret about who does."
_BASES = {
    "local": "Declared by the clients, not attested: each client clips and adds the noise itself, and no "
    "hardware or third party has confirmed that it did.",
    "central": "Done by the operator's server, declared and not attested: it clips every update and adds the "
    "noise. A client's own software protects nothing here.",
}
_COMPOSITIONS = {
    "local": "Each client's loss is the composition of its own noised steps; averaging and everything later "
    "is post-processing. The claim is the maximum over clients, never a sum divided by their number.",
    "central": "The loss is the composition of the rounds, each of them one noised sum of clipped updates "
    "divided by a constant. Every client is charged for every round, drawn or not.",
}
_JOINT_START = (
    "Whoever is within the adversary of every run that is counted, and knows all data but the unit's. "
)
_JOINT = {
    "local": "Of runs under `local` it sees every update and every release, and does not learn which records "
    "entered a step's batch.",
    "central": "Of runs under `central` it sees releases, certificates and the times of rounds, and no "
    "update: it is not the operator of the server, who is trusted.",
}
_JOINT_DRAWN = (
    " It does not learn which clients, or how many, were drawn for a round, and does not infer it from times."
)
ADAPTIVE_CLIP = (
    "The clip norm follows a quantile of the updates' norms by noised counts. noise_multiplier is that of "
    "sum and count together; the sum alone has clip_noise_multiplier times the round's clip norm."
)
CANARIES = (
    "So many made-up contributions take places in the rounds beside the clients: drawn, cut, clipped, summed "
    "and noised like theirs; about half of them, by secret coins, send zero. The epsilon of this run is "
    "priced for their places and the clients' together. `canaries_commitment` was in the manifest before the "
    "first round; the certificate of the run's last planned release opens it and says what an attack found."
)
_AUDIT_COVERS = {
    "run": "The rounds of this run as they were: draw of the cohorts, clip, grid, sum with the clients' "
    "updates and noise, and the composition of all its rounds, as far as the canaries' scores show them.",
    "local": "One noised sum by the code that clients are meant to run, run once on the server: its clip, "
    "grid and noise, with this plan's clip norm and noise multiplier, on made-up canaries alone, all at full "
    "participation. No client's own software or machine.",
    "central": "One noised sum by the server's code, run once: its clip, grid and noise, with this plan's "
    "clip norm and noise multiplier, on made-up canaries alone, all at full participation.",
}
_OF_A_LEAK = "A leak that these canaries do not provoke, or beyond the report's largest_reachable."
_AUDIT_COVERS_NOT = {
    "sum": (
        "The sampling of cohorts or of examples.",
        "The composition over steps, rounds and runs.",
        "Anybody's data: the canaries were alone, and no update of a client entered.",
        _OF_A_LEAK,
    ),
    "run": (
        "The composition with other runs.",
        "What a cohort's members, times or the operator's store give away: scores use released sums alone.",
        _OF_A_LEAK,
    ),
}
_AUDIT_MEANS = (
    "An attack's findings beside the bound, never in its place. `estimate` is an estimate and bounds "
    "nothing. `lower_bound` over `claimed_epsilon` would refute the claim at the stated confidence; at or "
    "under it, it shows nothing. "
)
_AUDIT_CLAIM = {
    "sum": "`claimed_epsilon` is the price of the one audited sum, not this run's.",
    "run": "`claimed_epsilon` is this run's. `lower_bound_if_gaussian` holds for another curve than that of "
    "cohorts that are drawn, and refutes nothing there.",
}
_AUDIT_REACHES = (
    "No bound of these canaries exceeds `largest_reachable`, which is over `claimed_epsilon`: a leak between "
    "the two would be found, if the canaries provoke it. A larger one shows no better."
)
_AUDIT_CANNOT_REFUTE = (
    "No bound of these canaries exceeds `largest_reachable`, which is not over `claimed_epsilon`: whatever "
    "the code does, this audit could not have refuted it. It says nothing."
)
_SEALED_AT_DEADLINE = (
    " A round of this run is sealed at its deadline, or by hand of somebody who does not learn who was "
    "drawn: the time of a seal says nothing of that. The time from a seal to its publication grows with the "
    "number of updates: it is assumed that nobody infers that number from it."
)
_SEALED_BY_QUORUM = (
    " A round of this run is sealed as soon as all who were drawn have sent, so its time depends on who they "
    "are and how many, and so does the time from there to its publication: it is assumed that nobody infers "
    "them from either."
)
_NOT_CLAIMED = (
    "The choice of this plan (model, rate, learning rate), if it was tuned on the same data.",
    "That the software of those who add the noise ran unmodified.",
    "Any influence of the public base model's own training data.",
    "What a client's presence or absence says. Clients refuse a run by the labels and fields that their "
    "holders declared, without a look at the data; that they take part or stay away is public.",
)
_NOT_PERSONS = "Anything about a person as such."


def audit_of(kind: str, *, can_refute: bool) -> dict[str, Any]:
    """Say what an audit looked at, what it did not, what its numbers are and whether they could refute.

    `kind` is `run` for canaries in the run's rounds, else the trust under which one sum was audited.
    """
    of = "run" if kind == "run" else "sum"
    return {
        "reach": _AUDIT_REACHES if can_refute else _AUDIT_CANNOT_REFUTE,
        "covers": _AUDIT_COVERS[kind],
        "does_not_cover": list(_AUDIT_COVERS_NOT[of]),
        "means": _AUDIT_MEANS + _AUDIT_CLAIM[of],
    }


def joint_adversary(trusts: Collection[str], *, secret_cohort: bool) -> str:
    """Say who sees at most what the adversary of every one of several runs sees."""
    text = " ".join(_JOINT[trust] for trust in trusts)
    if len(trusts) > 1:
        text += " An adversary of only some of the runs counted is not covered by this sum."
    return _JOINT_START + text + (_JOINT_DRAWN if secret_cohort else "")


def meanings_of(privacy: dict[str, Any], *, seals_at_deadline: bool) -> dict[str, Any]:
    """Say in words what unit, relation and adversary are, and on whose word all of it rests."""
    return {
        "basis": _BASES[privacy["trust"]],
        "unit_means": UNITS[privacy["unit"]],
        "relation_means": RELATIONS[privacy["relation"]],
        "adversary": adversary_of(privacy, seals_at_deadline=seals_at_deadline),
        "composition": _COMPOSITIONS[privacy["trust"]],
        "not_claimed": [*([_NOT_PERSONS] if privacy["unit"] == "example" else []), *_NOT_CLAIMED],
    }


def adversary_of(privacy: dict[str, Any], *, seals_at_deadline: bool) -> str:
    """Say what the adversary sees and does not learn."""
    text = _ADVERSARIES[privacy["trust"]]
    if privacy["trust"] == "central":
        if privacy["cohort"]["kind"] != "poisson":
            return text + _WHOLE_COHORT
        text += _DRAWN_COHORT + (_SEALED_AT_DEADLINE if seals_at_deadline else _SEALED_BY_QUORUM)
    return text
