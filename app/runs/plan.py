"""Whether a manifest's values make a sound plan together. Every refusal has a code and names the way out.

Numbers that need an accountant (is this epsilon reachable, does the budget cover it) are not decided here
but by the price job.
"""

from __future__ import annotations

import json
from collections.abc import Collection

from app.core.errors import Invalid
from app.core.i18n import _
from app.runs.buffers import check_buffers
from app.runs.manifest import Manifest, PoissonCohort
from app.runs.methods import at_rank, check_method, is_trained
from app.runs.patterns import check_patterns, rank_of
from app.runs.protection import check_protection, check_trust
from app.runs.robust import AggregationNotAvailable, check_rule
from app.runs.steps import check_steps
from app.runs.training import TensorShape

HEADER_BYTES = 64 * 1024
"""Ceiling of an update file's header, which names every trained tensor."""
_HEADS = ("classifier", "score", "out_proj")
"""What the last linear layer of a classification head is called."""


class WeightsRefused(Invalid):
    """Weights by size where sizes may not be used."""

    code, title = "weights_refused", _("These weights cannot be used here")
    meaning = _("Weights by data size need sizes to be public, which only relation `zero_out` declares.")
    remedy = _("Use weights `uniform`.")


class TensorsIncoherent(Invalid):
    """The list of tensors is not one of this LoRA method."""

    code, title = "tensors_incoherent", _("The tensors do not fit the LoRA method")
    meaning = _(
        "Under `ffa` no lora_A is trained, under `fedsb` only the cores, under `fedsa` no lora_B is sent; "
        "under every other method all is trained. The head has one row for each label."
    )
    remedy = _("List the tensors of the adapter file as the client's tool prints them, with `trained` set.")


class UpdateTooLarge(Invalid):
    """Updates of this plan would be refused one by one."""

    code, title = "update_too_large", _("Updates of this plan would be too large")
    meaning = _("An update holds all trained tensors, a release the frozen ones as well: too many bytes.")
    remedy = _("Use a lower rank, fewer layers or fewer target modules.")


class QuorumImpossible(Invalid):
    """A quorum that the run's clients cannot reach."""

    code, title = "quorum_impossible", _("The quorum cannot be reached")
    meaning = _(
        "min_updates must be at least 1 (under `central` 0) and at most max_updates, and that at most the "
        "number of clients."
    )
    remedy = _("Correct the quorum or add clients.")


class WireDtypeRefused(Invalid):
    """A wire dtype that this plan cannot use."""

    code, title = "wire_dtype_refused", _("This wire dtype cannot be used here")
    meaning = _(
        "In mode `plain` clients may send float32, float16, bfloat16, or int8 with a scale. Masked sums have "
        "a number format of their own, and no tensor may be called what the scale of another one is called."
    )
    remedy = _("Use wire dtype `float32`.")


def check_plan(manifest: Manifest, *, clients: int, trusts: Collection[str], max_update_bytes: int) -> None:
    """Refuse a manifest that cannot be run soundly with so many clients under the federation's policy.

    Raises one of the `Invalid` errors above.
    """
    check_trust(manifest, trusts)
    check_protection(manifest, clients=clients)
    _check_aggregation(manifest)
    check_method(manifest)
    check_patterns(manifest)
    _check_tensors(manifest)
    _check_sizes(manifest, max_update_bytes)
    quorum = manifest.quorum
    is_drawn = isinstance(manifest.privacy.cohort, PoissonCohort)  # its quorum is the cohort's, never a count
    fewest = 0 if manifest.privacy.trust == "central" else 1
    if not is_drawn and not fewest <= quorum.min_updates <= quorum.max_updates <= clients:
        raise QuorumImpossible(
            _("quorum {min_updates} to {max_updates} with {clients} client(s)"),
            min_updates=quorum.min_updates,
            max_updates=quorum.max_updates,
            clients=clients,
        )
    check_rule(manifest, clients=clients)
    check_steps(manifest)
    check_buffers(manifest, clients=clients)


def _check_aggregation(manifest: Manifest) -> None:
    aggregation = manifest.aggregation
    if aggregation.wire_dtype != "float32" and aggregation.mode != "plain":
        raise WireDtypeRefused(
            _("mode `{mode}` sends no {wire_dtype}"), mode=aggregation.mode, wire_dtype=aggregation.wire_dtype
        )
    try:
        manifest.sent  # noqa: B018  (its names are all that is asked for)
    except ValueError as error:
        raise WireDtypeRefused(_("a tensor has the name of another one's scale")) from error
    if aggregation.mode != "plain":
        raise AggregationNotAvailable(
            _("aggregation mode `{mode}` cannot be run yet; use `plain`"), mode=aggregation.mode
        )
    if aggregation.weights == "sizes":
        if manifest.privacy.relation != "zero_out":
            raise WeightsRefused(_("weights by size need relation `zero_out`; use weights `uniform`"))
        raise WeightsRefused(_("clients announce no sizes in this version; use weights `uniform`"))


def _check_tensors(manifest: Manifest) -> None:
    lora, by_name = manifest.lora, {tensor.name: tensor for tensor in manifest.tensors}
    if set(lora.target_modules) & set(lora.modules_to_save):
        raise TensorsIncoherent(_("a module is both a target of LoRA and trained whole"))
    for tensor in manifest.tensors:
        if tensor.trained is not is_trained(lora.method, tensor.name):
            raise _incoherent(_("{tensor}: `trained` does not fit method {method}"), tensor, lora.method)
        if ".lora_A." in tensor.name or ".lora_B." in tensor.name:
            _check_factor(tensor, by_name, rank=rank_of(lora, tensor.name), method=lora.method)
            continue
        if not any(f".{module}." in f".{tensor.name}." for module in lora.modules_to_save):
            raise _incoherent(
                _("{tensor} is neither a factor of {method} nor of modules_to_save"), tensor, lora.method
            )
        _check_head(tensor, labels=len(manifest.task.labels))
    if not any(".lora_B." in name for name in by_name):
        raise TensorsIncoherent(_("there is no lora_B tensor: nothing of LoRA would be trained"))


def _check_head(tensor: TensorShape, *, labels: int) -> None:
    module, _dot, kind = tensor.name.rpartition(".")
    is_head = kind in {"weight", "bias"} and module.rpartition(".")[2] in _HEADS
    if is_head and tensor.shape[0] != labels:
        raise TensorsIncoherent(
            _("{tensor} has {rows} rows for {labels} labels"),
            tensor=tensor.name,
            rows=tensor.shape[0],
            labels=labels,
        )


_B_SIDE = {"fedsb": (".lora_B.core.weight", ".lora_B.basis.weight")}
"""What stands for B: under `fedsb` a trained core of rank by rank, before a fixed basis."""


def _check_factor(tensor: TensorShape, by_name: dict[str, TensorShape], *, rank: int, method: str) -> None:
    """A is (rank, in) and B is (out, rank), and none of a module's parts comes alone."""
    module = tensor.name.partition(".lora_")[0]
    whole = {f"{module}{part}" for part in (".lora_A.weight", *_B_SIDE.get(method, (".lora_B.weight",)))}
    if tensor.name not in whole or not whole <= by_name.keys():
        raise _incoherent(_("{tensor} has no counterpart under method {method}"), tensor, method)
    if len(tensor.shape) != 2 or at_rank(tensor.name, tensor.shape, rank) != tensor.shape:
        raise _incoherent(
            _("{tensor}: its shape does not hold the manifest's rank ({method})"), tensor, method
        )


def _incoherent(text: str, tensor: TensorShape, method: str) -> TensorsIncoherent:
    return TensorsIncoherent(text, tensor=tensor.name, method=method)


def _check_sizes(manifest: Manifest, max_update_bytes: int) -> None:
    most = max_update_bytes - HEADER_BYTES - 8
    if manifest.update_bytes > most:
        raise UpdateTooLarge(
            _("an update would have {size_bytes} bytes; at most {most_bytes} are taken"),
            size_bytes=manifest.update_bytes,
            most_bytes=most,
        )
    if manifest.adapter_bytes > 2 * max_update_bytes:
        raise UpdateTooLarge(
            _("a release would have {size_bytes} bytes with frozen factors; at most {most_bytes} are made"),
            size_bytes=manifest.adapter_bytes,
            most_bytes=2 * max_update_bytes,
        )
    if header_bytes(manifest) > HEADER_BYTES:
        raise UpdateTooLarge(_("the trained tensors' names do not fit into a file's header of 64 KiB"))


def header_bytes(manifest: Manifest) -> int:
    """The length of an update's header, in its usual spelling."""
    start, header = 0, {}
    for name, tensor in manifest.sent.items():
        end = start + tensor.size_bytes
        header[name] = {"dtype": tensor.dtype, "shape": tensor.shape, "data_offsets": [start, end]}
        start = end
    return len(json.dumps(header, separators=(",", ":"))) + 8
