"""Local training of one round: DP-SGD on the client's own examples.

The delta that `train_round` returns is the only thing that depends on the data. No loss, accuracy, count,
norm or time is returned, printed or logged, and the progress it reports is the number of the step.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from typing import Any

import torch
from safetensors.torch import load, save
from torch import Tensor

from client.errors import ClientError
from client.i18n import _
from client.plan import TrainingPlan
from client.turns import Turn
from engines.aggregation.client_terms import corrected_gradient, proximal_gradient
from engines.lora.methods import MERGING_METHODS, TWO_TURNS, is_sent
from engines.lora.states import parted, variates_in
from engines.privacy.mechanism import noised_sum
from engines.privacy.noise import NoiseStream
from engines.privacy.sampling import poisson_subset
from modelling.adapters import adapter_state, load_adapter, only_trained, trained_parameters
from modelling.cache import CachedExamples
from modelling.errors import ModelRefused
from modelling.gradients import (
    per_example_gradients,
    per_example_hooks,
    per_person_gradients,
    summed_gradients,
)
from modelling.precision import bf16_in_frozen_part, keep_freed_memory
from modelling.trained import TrainedPart

_FIRST = Turn()
_PROBE_TEXTS = 2
_LOGIT_TOLERANCE = 1e-4


def train_round(
    model: TrainedPart,
    cache: CachedExamples,
    adapter: dict[str, Tensor],
    *,
    manifest: Mapping[str, Any],
    turn: Turn = _FIRST,
    order_seed: int | None = None,
    on_step: Callable[[int, int], None] = lambda step, steps: None,
) -> dict[str, Tensor]:
    """Train the round's adapter on the examples and return by how much it moved.

    Args:
        model: the trained part; its adapter is overwritten.
        cache: the client's examples.
        adapter: the round's adapter as downloaded: the trained tensors, absolute values.
        manifest: the run's frozen manifest, at this client's rank.
        turn: which round it is, and what the client kept to itself in the last.
        order_seed: with the adapter, fixes which examples are in which step; under trust `none` alone.
        on_step: called after each step with its number and the number of steps.

    Returns:
        new minus downloaded, float32, by name, of exactly the tensors that this round trains.

    Raises:
        ClientError: the plan, the seed, the adapter or the update is refused; its code says which.
    """
    plan = TrainingPlan.from_manifest(manifest)
    _require_drawable(plan, cache, order_seed=order_seed)
    _require_trainable(model)
    _start_from(model, adapter, own=turn.own)
    names = {name for name in trained_parameters(model.model) if _is_this_rounds(name, manifest, turn)}
    with only_trained(model.model, names):
        start = adapter_state(model.model, trained_only=True)
        keep_freed_memory()
        sampler = NoiseStream.fresh() if order_seed is None else _seeded_stream(order_seed, start)
        steps = _private_steps if plan.private else _plain_steps
        descent = _Descent(model, plan, variates=_variates(adapter, turn) if plan.control_variates else {})
        steps(model, cache, sampler, descent, on_step)
        return _change(model, start, plan)


def _is_this_rounds(name: str, manifest: Mapping[str, Any], turn: Turn) -> bool:
    """Say whether a tensor is trained now: `rolora` has turns. What a client keeps is trained with the rest,
    under the same clip and noise: otherwise what it sends would depend on un-noised values.
    """
    method = manifest["lora"]["method"]
    return method in TWO_TURNS or is_sent(method, name, number=turn.number) or not is_sent(method, name)


def _change(model: TrainedPart, start: Mapping[str, Tensor], plan: TrainingPlan) -> dict[str, Tensor]:
    trained = adapter_state(model.model, trained_only=True)
    delta = {name: trained[name] - start[name] for name in start}
    if plan.central and not _moves(delta):
        # What the server counts as zero is sent as zero: a missing update would tell something of the data.
        return {name: torch.zeros_like(tensor) for name, tensor in delta.items()}
    require_usable(model, start, delta)
    return delta


def require_usable(model: TrainedPart, start: Mapping[str, Tensor], delta: Mapping[str, Tensor]) -> None:
    """Refuse an update that is not finite, changes nothing, or does not reload to the same logits.

    The logits are those of made-up hidden states, so that nothing here looks at the data.

    Raises:
        ClientError: `update_unusable`.
    """
    if _shapes(delta) != _shapes(start):
        raise _unusable("names and shapes")
    if any(part.dtype != torch.float32 for part in delta.values()):
        raise _unusable("float32")
    if not _is_finite(delta):
        raise _unusable("finite")
    if not _moves(delta):
        raise _unusable("changed")
    before = _probe_logits(model)
    sent = load(save({name: part.contiguous() for name, part in delta.items()}))
    load_adapter(model.model, {name: part + sent[name] for name, part in start.items()})
    after = _probe_logits(model)
    close = float((after - before).abs().max()) <= _LOGIT_TOLERANCE * (1.0 + float(before.abs().max()))
    if not close:  # nor is NaN
        raise _unusable("reloads")


def _private_steps(
    model: TrainedPart,
    cache: CachedExamples,
    sampler: NoiseStream,
    descent: _Descent,
    on_step: Callable[[int, int], None],
) -> None:
    """Each step: sample, clip each unit, truncate, sum exactly, add noise, divide by the constant."""
    plan, noise, bf16 = descent.plan, NoiseStream.fresh(), bf16_in_frozen_part()
    gradients = _of_persons if plan.per_person else _of_examples
    with per_example_hooks(model):
        for step in range(plan.local_steps):
            noised = noised_sum(
                gradients(model, cache, plan, sampler, bf16=bf16),
                clip_norm=plan.clip_norm,
                noise_multiplier=plan.noise_multiplier,
                stream=noise,
            )
            descent.step(noised)
            on_step(step + 1, plan.local_steps)


def _of_examples(
    model: TrainedPart, cache: CachedExamples, plan: TrainingPlan, sampler: NoiseStream, *, bf16: bool
) -> list[Tensor]:
    """Sample examples; one row an example."""
    batch = cache.take(poisson_subset(sampler, len(cache), rate=plan.rate))
    return per_example_gradients(model, batch, bf16=bf16)


def _of_persons(
    model: TrainedPart, cache: CachedExamples, plan: TrainingPlan, sampler: NoiseStream, *, bf16: bool
) -> list[Tensor]:
    """Sample persons, each with all of their records; one row a person."""
    chosen = poisson_subset(sampler, cache.person_count, rate=plan.rate)
    return per_person_gradients(model, cache.of_persons(chosen), persons=len(chosen), bf16=bf16)


def _plain_steps(
    model: TrainedPart,
    cache: CachedExamples,
    sampler: NoiseStream,
    descent: _Descent,
    on_step: Callable[[int, int], None],
) -> None:
    """The same sampler and optimizer without clipping and noise."""
    plan, bf16 = descent.plan, bf16_in_frozen_part()
    for step in range(plan.local_steps):
        batch = cache.take(poisson_subset(sampler, len(cache), rate=plan.rate))
        descent.step(summed_gradients(model, batch, bf16=bf16))
        on_step(step + 1, plan.local_steps)


class _Descent:
    """SGD with momentum, from rest; under privacy everything here is a function of noised sums.

    FedProx's pull is added after the noise. It depends on the weights alone, which are such a function
    themselves, so it changes no sensitivity and no price. SCAFFOLD's correction is added there too, and is
    known before the round.
    """

    def __init__(
        self, model: TrainedPart, plan: TrainingPlan, *, variates: Mapping[str, tuple[Tensor, Tensor]]
    ) -> None:
        """`variates`: c_i and c by name of the trained tensors; empty: no correction."""
        self.plan = plan
        named = trained_parameters(model.model)
        self._parameters = list(named.values())
        self._variates = [variates[name] for name in named] if variates else None
        self._start = [parameter.detach().clone() for parameter in self._parameters]
        self._velocity = [torch.zeros_like(parameter) for parameter in self._start]

    def step(self, sums: list[Tensor]) -> None:
        """Take one step along the batch's sums of gradients, one for each trained tensor."""
        plan = self.plan
        with torch.no_grad():
            for place, (parameter, start, total, speed) in enumerate(
                zip(self._parameters, self._start, sums, self._velocity, strict=True)
            ):
                speed.mul_(plan.momentum).add_(total, alpha=1.0 / plan.divisor)
                if plan.proximal_mu:
                    speed.add_(proximal_gradient(parameter, start, strength=plan.proximal_mu))
                if self._variates is not None:
                    speed.copy_(corrected_gradient(speed, *self._variates[place]))
                parameter.sub_(speed, alpha=plan.learning_rate)


def _start_from(
    model: TrainedPart, adapter: Mapping[str, Tensor], *, own: Mapping[str, Tensor] | None
) -> None:
    """Load the round's adapter, with what the client keeps to itself: from its last round, or zero."""
    method, parameters = model.spec.lora.method, trained_parameters(model.model)
    kept = {name: torch.zeros_like(one) for name, one in parameters.items() if not is_sent(method, name)}
    try:
        trained, base = parted(adapter)
        if set(trained) != set(parameters) - set(kept) or (base and method not in MERGING_METHODS):
            raise _misfit()
        model.base_weights.take_up(base)
        load_adapter(model.model, {**trained, **kept, **(own or {})})
    except (ModelRefused, ValueError) as error:
        raise _misfit() from error


def _variates(adapter: Mapping[str, Tensor], turn: Turn) -> dict[str, tuple[Tensor, Tensor]]:
    """Return c_i and c by name; a client of which nothing was counted yet has a c_i of zero."""
    own, shared = turn.variate or {}, variates_in(adapter)
    if own and {name: one.shape for name, one in own.items()} != _shapes(shared):
        raise _misfit()
    return {name: (own.get(name, torch.zeros_like(one)), one) for name, one in shared.items()}


def _require_drawable(plan: TrainingPlan, cache: CachedExamples, *, order_seed: int | None) -> None:
    """Refuse a seed where sampling has to be secret, and examples whose persons nobody knows."""
    if (plan.private or plan.central) and order_seed is not None:
        raise ClientError("seeded_sampling", _("A private run draws its examples from no seed."))
    if plan.per_person and cache.persons is None:
        raise ClientError("persons_unknown", _("The examples were read without their persons."))


def _require_trainable(model: TrainedPart) -> None:
    """Refuse what has no exact per-example gradients, whatever brought it into the model."""
    parameters = trained_parameters(model.model)
    trainable = sum(parameter.requires_grad for parameter in model.parameters())
    linear = sum(
        parameter.requires_grad
        for module in model.modules()
        if type(module) is torch.nn.Linear  # what LoRA adds, and heads; not embeddings, not DoRA's magnitudes
        for parameter in module.parameters(recurse=False)
    )
    checkpointing = any(getattr(module, "gradient_checkpointing", False) for module in model.modules())
    wide = all(parameter.dtype == torch.float32 for parameter in parameters.values())
    dropout = any(isinstance(module, torch.nn.Dropout) and module.p > 0 for module in model.modules())
    whole = trainable == linear == len(parameters) > 0
    if not whole or checkpointing or dropout or not wide:
        raise ClientError("unsupported_plan", _("This model cannot be trained with one gradient an example."))


def _probe_logits(model: TrainedPart) -> Tensor:
    width = int(model.model.get_base_model().config.hidden_size)
    shape = (_PROBE_TEXTS, model.spec.task.max_tokens, width)
    hidden = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        return model(hidden, torch.ones(shape[:2], dtype=torch.int64)).clone()  # type: ignore[no-any-return]


def _is_finite(delta: Mapping[str, Tensor]) -> bool:
    return all(bool(torch.isfinite(part).all()) for part in delta.values())


def _moves(delta: Mapping[str, Tensor]) -> bool:
    return _is_finite(delta) and any(bool(part.any()) for part in delta.values())


def _shapes(tensors: Mapping[str, Tensor]) -> dict[str, torch.Size]:
    return {name: tensor.shape for name, tensor in tensors.items()}


def _seeded_stream(order_seed: int, start: Mapping[str, Tensor]) -> NoiseStream:
    """Give every round another order from one seed: the round's adapter tells the rounds apart."""
    digest = hashlib.sha256(f"order of examples {order_seed}\n".encode())
    digest.update(save({name: tensor.contiguous() for name, tensor in start.items()}))
    return NoiseStream.from_key(digest.digest())


def _unusable(rule: str) -> ClientError:
    return ClientError("update_unusable", _("The update fails a check and is not sent: {rule}."), rule=rule)


def _misfit() -> ClientError:
    return ClientError("adapter_unusable", _("The round's adapter does not fit the run's model."))
