"""The model card of an exported release: what the certificate and the configuration say, and nothing else.

English, like the certificate, and fixed: a card travels with the model. What it quotes comes from a server,
so it is put between marks that it cannot leave.
"""

from __future__ import annotations

import html
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from client.errors import printable

_FORMS = {
    "peft": "A LoRA adapter for `peft.PeftModel.from_pretrained`.",
    "merged": "A whole model for `transformers`: the base model with the adapter in its weights, float32.",
    "vllm": "A LoRA adapter for vLLM's `--lora-modules`: one rank, no module trained whole.",
}
_MEANINGS = {
    "Unit": "unit_means",
    "Relation": "relation_means",
    "Adversary": "adversary",
    "Whose word it is": "basis",
}
"""What the certificate says in words, by its member."""
_POOLED = (
    "The model is a token classifier: its logits are averaged over the tokens of a text, padding left out, "
    "before the largest is taken."
)
_LICENCE = (
    "This card states no licence. That of the base model binds whoever uses what is in this folder, merged "
    "or not: read it where the base model comes from."
)
_NOT_CERTIFIED = (
    "The files of this form were computed from the certified adapter. That changes nothing of the claim "
    "(post-processing); the certificate's digests are those of the adapter, not of these files. Pull the "
    "release and export it again to compare them."
)


@dataclass(frozen=True)
class Form:
    """What an export made of the release."""

    name: str
    """`peft`, `merged` or `vllm`."""
    rank: int
    alpha: float
    relative_error: float
    """Frobenius norm of what the weight changes lost, over that of the whole."""
    left_out: tuple[str, ...] = ()
    is_certified: bool = False
    """The files are the certified ones, byte for byte."""


def model_card(certificate: Mapping[str, Any], config: Mapping[str, Any], form: Form) -> str:
    """Write the card.

    Args:
        certificate: of the release.
        config: the release's adapter_config.json.
        form: of this export.
    """
    release = certificate["release"]
    base = release["base_model"]
    parts = [
        _front(base, form),
        f"# Round {_code(release['round'])} of {_code(release['rounds_planned'])} on {_code(base['name'])}",
        f"{_FORMS[form.name]} Published as release {_code(release['id'])} by {_code(certificate['issuer'])}.",
        "## Base model\n\n"
        + _table(
            {"name": base["name"], "architecture": base["architecture"], "SHA-256": base["weights_sha256"]}
        )
        + f"\n\n{_LICENCE}",
        "## Adapter\n\n" + _adapter(release, config, form),
        "## Privacy\n\n" + _privacy(certificate["privacy"]),
        "## Check it\n\n" + _check(release, form),
    ]
    return "\n\n".join(parts) + "\n"


def _front(base: Mapping[str, Any], form: Form) -> str:
    library = "transformers" if form.name == "merged" else "peft"
    name = json.dumps(printable(str(base["name"])))
    return f"---\nlibrary_name: {library}\nbase_model: {name}\ntags: [lora, federated-learning]\n---"


def _adapter(release: Mapping[str, Any], config: Mapping[str, Any], form: Form) -> str:
    rows = {
        "method": release["lora_method"],
        "rank": _by_module(config["r"], config.get("rank_pattern")),
        "alpha": _by_module(config["lora_alpha"], config.get("alpha_pattern")),
        "modules": ", ".join(config["target_modules"]),
        "trained whole": ", ".join(config.get("modules_to_save") or ()) or "none",
        "rounds aggregated": len(release["rounds_aggregated"]),
        "clients": release["clients"],
        "SHA-256": release["adapter_sha256"],
    }
    said = ["Of the release:\n\n" + _table(rows), f"Of this form: {_form(form)}"]
    if form.left_out:
        names = ", ".join(_code(name) for name in form.left_out)
        said.append(
            f"**Left out**, since this form cannot hold them: {names}. Without them this is another model "
            "than the release: put them back, or do not expect its outputs."
        )
    if config.get("task_type") == "TOKEN_CLS":
        said.append(_POOLED)
    return "\n\n".join(said)


def _by_module(usual: Any, pattern: Mapping[str, Any] | None) -> str:
    """A number of an adapter, and from where to where those go that modules have of their own."""
    if not pattern:
        return str(usual)
    return f"{usual}; of modules with their own {min(pattern.values())} to {max(pattern.values())}"


def _form(form: Form) -> str:
    error = f"{form.relative_error:.3g}"
    if form.name == "merged":
        return f"merged; rounding to float32 took {error} of the change (relative Frobenius norm)."
    if form.is_certified:
        return "byte for byte the release."
    return (
        f"rank {form.rank} in every module, alpha {form.alpha:g}; projecting to this rank took {error} of "
        "the change (relative Frobenius norm over all modules; 0 is exact up to float32)."
    )


def _privacy(privacy: Mapping[str, Any]) -> str:
    if privacy.get("claimed") is not True:
        return f"**Nothing is claimed.** {_text(privacy['statement'])}"
    run = privacy["this_run"]
    rows = {
        "epsilon": run["epsilon"],
        "delta": run["delta"],
        "unit": privacy["unit"],
        "relation": privacy["relation"],
        "trust": privacy["trust"],
        "accountant": run["accountant"],
        "covers": run["covers"],
    }
    by_silos = privacy.get("epsilon_by_silos")
    if by_silos:
        rows["epsilon by data sets of one person"] = ", ".join(f"{k}: {v}" for k, v in by_silos.items())
    said = [_text(privacy["statement"]), _table(rows)]
    said += [f"**{title}.** {_text(privacy[name])}" for title, name in _MEANINGS.items()]
    said.append(f"**All runs on the same data.** {_text(privacy['population']['statement'])}")
    if "audit" in privacy:
        said.append(f"**Audit.** {_text(privacy['audit']['means'])} {_text(privacy['audit']['reach'])}")
    not_claimed = "\n".join(f"- {_text(one)}" for one in privacy["not_claimed"])
    return "\n\n".join([*said, f"**Not claimed:**\n\n{not_claimed}"])


def _check(release: Mapping[str, Any], form: Form) -> str:
    if form.is_certified:
        return (
            "`dpfl verify-release FOLDER --key ADDRESS/.well-known/jwks.json` holds these files against "
            "`certificate.json` and computes its epsilon again."
        )
    return (
        "`dpfl verify-certificate certificate.json --key ADDRESS/.well-known/jwks.json` checks the claim and "
        f"computes its epsilon again. {_NOT_CERTIFIED}"
    )


def _table(rows: Mapping[str, Any]) -> str:
    lines = [f"| {name} | {_code(value)} |" for name, value in rows.items()]
    return "\n".join(["| | |", "|---|---|", *lines])


def _code(value: Any) -> str:
    """A value between marks that it cannot close, in a table or out of it."""
    return f"`{printable(str(value)).replace('`', '').replace('|', '')}`"


def _text(value: Any) -> str:
    """A sentence of the certificate, in which nothing is markup."""
    text = html.escape(printable(str(value)), quote=False)
    return "".join(f"\\{char}" if char in "\\`*[]!#|" else char for char in text)
