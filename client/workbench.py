"""The base model and the data sets of all profiles of a process, loaded once. Sees data; says nothing.

Profiles of one process train in turn on one copy of the base model, with one thread.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load

from client.dataset import Examples, read_examples
from client.errors import ClientError
from client.i18n import _
from client.persons import PersonRule, silo_key
from client.policy import base_model_locator
from client.profile import Profile
from client.trainer import train_round
from client.turns import Turn, at_rank, manifest_at
from client.wire import FrozenManifest, Manifest, canonical_sha256
from engines.lora.methods import is_sent
from modelling.adapters import adapter_parameters, build_model
from modelling.base import locate_base_model
from modelling.cache import CachedExamples, build_cache
from modelling.errors import ModelRefused
from modelling.precision import bf16_in_frozen_part
from modelling.spec import ModelSpec
from modelling.trained import TrainedPart

if TYPE_CHECKING:
    from peft import PeftModel


class Workbench:
    """Trains for any number of profiles. `order_seed` repeats the order of examples under trust `none`."""

    def __init__(self, *, order_seed: int | None = None) -> None:
        torch.set_num_threads(1)
        self._order_seed = order_seed
        self._key = ""
        self._whole: PeftModel | None = None
        self._parts: dict[int, TrainedPart] = {}
        self._examples: dict[Path, CachedExamples] = {}

    def make_ready(self, profile: Profile, frozen: FrozenManifest) -> None:
        """Put a profile's data through the frozen layers. Done for several profiles before the first trains,
        the base model is loaded once for all of them.
        """
        with refusals():
            self._turn_to(frozen)
            if profile.folder not in self._examples:
                self._examples[profile.folder] = self._cached(profile, frozen)

    def train(
        self,
        profile: Profile,
        frozen: FrozenManifest,
        adapter: bytes,
        *,
        turn: Turn,
        on_step: Callable[[int, int], None],
    ) -> dict[str, torch.Tensor]:
        """Train one round on the profile's data and return the change of each tensor that it trains."""
        self.make_ready(profile, frozen)
        values = manifest_at(frozen.values, turn.rank)
        with refusals():
            part, start = self._part_at(profile, frozen, values), read_tensors(adapter)
            is_whole = turn.rank in {None, frozen.manifest.lora.rank}
            return train_round(
                part,
                self._examples[profile.folder],
                start if is_whole else at_rank(start, part.spec.lora.rank),
                manifest=values,
                turn=turn,
                order_seed=self._order_seed if frozen.manifest.privacy.trust == "none" else None,
                on_step=on_step,
            )

    def held_out(
        self, profile: Profile, frozen: FrozenManifest, path: Path
    ) -> tuple[TrainedPart, CachedExamples, CachedExamples]:
        """Return the part that is trained, the profile's examples, and those of a file beside them."""
        with refusals():
            self._turn_to(frozen)
            others = self._put_through(profile, frozen, read_examples(path, self._spec(profile, frozen).task))
        self.make_ready(profile, frozen)
        with refusals():
            part = self._part_at(profile, frozen, frozen.values)
        return part, self._examples[profile.folder], others

    def _part_at(self, profile: Profile, frozen: FrozenManifest, values: Mapping[str, Any]) -> TrainedPart:
        """The part that is trained at a client's rank; each rank has one, on a base model of its own."""
        spec, run_rank = self._spec(profile, frozen, values), frozen.manifest.lora.rank
        rank = spec.lora.rank
        if rank not in self._parts:
            whole = self._whole if rank == run_rank else None
            whole = whole or build_model(spec, locate_base_model(spec.base.locator))
            _require_listed(whole, values)
            self._parts[rank] = TrainedPart(whole, spec)
        self._whole = None  # taken over by the part, or only loaded for one more data set
        return self._parts[rank]

    def _turn_to(self, frozen: FrozenManifest) -> None:
        """Drop what belongs to another model."""
        values = frozen.values
        person = values["privacy"].get("person")
        key = canonical_sha256([values["task"], values["base_model"], values["lora"], person])
        if key != self._key:
            self._key, self._whole, self._parts, self._examples = key, None, {}, {}

    def _cached(self, profile: Profile, frozen: FrozenManifest) -> CachedExamples:
        spec = self._spec(profile, frozen)
        examples = read_examples(profile.require_data(), spec.task, rule=_rule(profile, frozen.manifest))
        return self._put_through(profile, frozen, examples, keep_in=profile.folder / "cache")

    def _put_through(
        self, profile: Profile, frozen: FrozenManifest, examples: Examples, *, keep_in: Path | None = None
    ) -> CachedExamples:
        """What the frozen layers make of examples; on the disk only where a folder is named."""
        spec = self._spec(profile, frozen)
        return build_cache(
            self._whole_model(profile, frozen),
            spec,
            locate_base_model(spec.base.locator),
            texts=examples.texts,
            labels=examples.labels,
            persons=examples.persons,
            keep_in=keep_in,
            bf16=bf16_in_frozen_part(),
        )

    def _whole_model(self, profile: Profile, frozen: FrozenManifest) -> PeftModel:
        if self._whole is None:
            spec = self._spec(profile, frozen)
            self._whole = build_model(spec, locate_base_model(spec.base.locator))
            _require_listed(self._whole, frozen.values)
        return self._whole

    def _spec(
        self, profile: Profile, frozen: FrozenManifest, values: Mapping[str, Any] | None = None
    ) -> ModelSpec:
        spec = ModelSpec.from_manifest(values or frozen.values)
        locator = base_model_locator(frozen.manifest.base_model, profile.policy)
        return dataclasses.replace(spec, base=dataclasses.replace(spec.base, locator=locator))


def _rule(profile: Profile, manifest: Manifest) -> PersonRule | None:
    """How the run tells persons apart, with this silo's secret; None where it protects no persons."""
    person = manifest.privacy.person
    if person is None:
        return None
    key = silo_key(profile.ledger.folder)
    return PersonRule(id_field=person.id_field, records_cap=person.records_cap, key=key)


def _require_listed(model: PeftModel, values: Mapping[str, Any]) -> None:
    """Refuse a manifest whose list of tensors is not the adapter's."""
    method = values["lora"]["method"]
    listed = {one["name"]: (tuple(one["shape"]), one["trained"]) for one in values["tensors"]}
    found = {
        name: (tuple(one.shape), one.requires_grad and is_sent(method, name))
        for name, one in adapter_parameters(model).items()
    }
    if listed != found:
        raise ClientError("adapter_mismatch", _("the manifest lists other tensors than the adapter has"))


def read_tensors(adapter: bytes) -> dict[str, Any]:
    """Read an adapter file; raises ClientError, `adapter_unusable`."""
    try:
        tensors: dict[str, Any] = load(adapter)
    except (SafetensorError, KeyError, ValueError) as error:  # KeyError: a type that torch does not have
        raise ClientError(
            "adapter_unusable", _("The round's adapter does not fit the run's model.")
        ) from error
    return tensors


@contextmanager
def refusals() -> Iterator[None]:
    """Turn the modelling room's refusals into the client's."""
    try:
        yield
    except ModelRefused as error:
        raise ClientError(error.code, str(error).replace("{", "(").replace("}", ")")) from error
