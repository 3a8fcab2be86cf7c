"""How clients and the server step: whether a plan's client terms and step length hold, and go together."""

from __future__ import annotations

from app.core.errors import Invalid
from app.core.i18n import _
from app.runs.manifest import Manifest

VARIATE_METHODS = ("ffa", "fedsb")
"""Methods that train the same numbers every round and add them up, as SCAFFOLD's correction does: the copy of
engines/lora/methods.py's, which a contract test holds against it."""


class ProximalRefused(Invalid):
    """FedProx where it does nothing, or where it diverges by itself."""

    code, title = "proximal_refused", _("This proximal term cannot be used here")
    meaning = _(
        "The term is zero in a round's first step, and above twice (1 + momentum) over the learning rate it "
        "drives training away instead of back."
    )
    remedy = _("Plan at least two local steps and a smaller proximal_mu, or set it to 0.")


class StepRefused(Invalid):
    """A step length that somebody would have to pay for, or that a hostile client could set."""

    code, title = "step_refused", _("This step length cannot be used here")
    meaning = _(
        "FedExP makes the step as long as single clients' updates are. Under `central` these lengths are "
        "data that nobody was charged for, and beside a robust rule a hostile client would set them."
    )
    remedy = _("Use it under `local` with rule `mean` and no mixing, or use another server optimizer.")


class VariatesRefused(Invalid):
    """SCAFFOLD where somebody would have to pay for it, or server and client would count differently."""

    code, title = "control_variates_refused", _("Control variates cannot be used here")
    meaning = _(
        "A variate is made of one client's updates. Under `central` these are data that nobody was charged "
        "for. Elsewhere the server's must be the mean of the clients': every update counts whole, as it was "
        "sent, and moves the same numbers by steps of plain SGD."
    )
    remedy = _(
        "Change what the answer names, or set control_variates to `none`; training.proximal_mu also keeps "
        "clients from drifting apart."
    )


def check_steps(manifest: Manifest) -> None:
    """Refuse client terms and step lengths that do not hold; raises an `Invalid` error above."""
    if manifest.training.control_variates != "none":
        _check_variates(manifest)
    _check_proximal(manifest)
    _check_extrapolation(manifest)


def _check_variates(manifest: Manifest) -> None:
    lora, training, aggregation = manifest.lora, manifest.training, manifest.aggregation
    for field, found, allowed in (
        ("privacy.trust", manifest.privacy.trust, ("local", "none")),
        ("lora.method", lora.method, VARIATE_METHODS),
        ("lora.ranks", lora.ranks if lora.has_mixed_ranks else None, (None,)),
        ("training.momentum", training.momentum, (0.0,)),
        ("training.proximal_mu", training.proximal_mu, (0.0,)),
        ("aggregation.rule", aggregation.rule, ("mean",)),
        ("aggregation.mixing", aggregation.mixing, ("none",)),
        ("aggregation.clip_norm", aggregation.clip_norm, (None,)),
        ("aggregation.wire_dtype", aggregation.wire_dtype, ("float32",)),
        ("aggregation.server_optimizer", aggregation.server_optimizer, (None,)),
        ("buffered", manifest.buffered, (None,)),
    ):
        if found not in allowed:
            raise VariatesRefused(
                _("with control variates `{field}` must be {allowed}"),
                field=field,
                allowed=", ".join("null" if one is None else f"{one}" for one in allowed),
            )


def _check_proximal(manifest: Manifest) -> None:
    training = manifest.training
    if not training.proximal_mu:
        return
    if training.local_steps < 2:
        raise ProximalRefused(_("with one local step, proximal_mu does nothing: set it to 0"))
    most = 2.0 * (1.0 + training.momentum) / training.learning_rate
    if training.proximal_mu >= most:
        raise ProximalRefused(
            _("proximal_mu is {mu}; with this learning rate and momentum it must be under {most}"),
            mu=training.proximal_mu,
            most=f"{most:g}",
        )


def _check_extrapolation(manifest: Manifest) -> None:
    aggregation, trust = manifest.aggregation, manifest.privacy.trust
    if aggregation.server_optimizer is None or aggregation.server_optimizer.kind != "fedexp":
        return
    if trust not in {"local", "none"}:
        raise StepRefused(
            _("server optimizer `fedexp` cannot be used under trust `{trust}`: the lengths of updates are "
              "not charged; use `fedavgm`"),
            trust=trust,
        )  # fmt: skip
    if aggregation.rule != "mean" or aggregation.mixing != "none":
        raise StepRefused(
            _("server optimizer `fedexp` goes with rule `mean` alone, not with `{rule}`"),
            rule=aggregation.rule,
        )
    if manifest.lora.has_mixed_ranks:
        raise StepRefused(
            _("server optimizer `fedexp` needs one rank: updates of smaller ones hold less noise than "
              "it takes off; use `fedavgm`")
        )  # fmt: skip
