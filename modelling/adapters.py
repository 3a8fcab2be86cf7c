"""The LoRA adapter on a base model: injection, names, shapes, loading and reading its tensors.

Tensors are named as PEFT names them in `adapter_model.safetensors`, never with its inner `.default`.
"""

import re
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn

from engines.lora.adapter import starting_tensor
from engines.lora.methods import is_sent
from modelling.architectures import architecture_of
from modelling.base import empty_base_model, load_base_model, quiet_libraries
from modelling.errors import ModelRefused
from modelling.spec import ModelSpec

_FROZEN = {"ffa": (".lora_A.",), "fedsb": (".lora_A.", ".lora_B.basis.")}
"""Tensors that no client trains, by method."""
_INNER_NAME = re.compile(r"\.modules_to_save\.default(?=\.)|\.default(?=\.|$)")


def build_model(spec: ModelSpec, folder: Path) -> PeftModel:
    """Load the base model and put a fresh adapter on it: lora_B and the head zero, lora_A from the seed.

    Raises:
        ModelRefused: the base model is not the manifest's, or the adapter does not fit it.
    """
    model = _inject(spec, load_base_model(spec, folder))
    orthonormal = spec.lora.method == "fedsb"
    with torch.no_grad():
        for name, parameter in adapter_parameters(model).items():
            shape = tuple(parameter.shape)
            parameter.copy_(starting_tensor(name, shape, spec.lora.seed, orthonormal=orthonormal))
    return model


def adapter_tensors(spec: ModelSpec, folder: Path) -> list[dict[str, Any]]:
    """List name, shape and `trained` of every tensor of the adapter, sorted by name; no weights are read."""
    model = _inject(spec, empty_base_model(spec, folder))
    return [
        {
            "name": name,
            "shape": list(parameter.shape),
            "trained": parameter.requires_grad and is_sent(spec.lora.method, name),
        }
        for name, parameter in adapter_parameters(model).items()
    ]


@contextmanager
def only_trained(model: nn.Module, names: Collection[str]) -> Iterator[None]:
    """Let only these of the trained tensors be trained, and all of them again afterwards."""
    others = [found for name, found in trained_parameters(model).items() if name not in names]
    for parameter in others:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in others:
            parameter.requires_grad_(True)


def adapter_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """Map the names in an adapter file to the parameters of the model, sorted by name.

    Trained and frozen ones (lora_A under `ffa`) alike; the base model's own are left out.
    """
    found = {
        _INNER_NAME.sub("", name): parameter
        for name, parameter in model.named_parameters()
        if _INNER_NAME.search(name)
    }
    return dict(sorted(found.items()))


def trained_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """Map the names of the tensors that a client trains and sends to their parameters, sorted by name."""
    return {name: found for name, found in adapter_parameters(model).items() if found.requires_grad}


def adapter_state(model: nn.Module, *, trained_only: bool) -> dict[str, Tensor]:
    """Return copies of the adapter's tensors, float32, by the names of the adapter file."""
    chosen = trained_parameters(model) if trained_only else adapter_parameters(model)
    return {name: parameter.detach().clone() for name, parameter in chosen.items()}


def load_adapter(model: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Set the adapter's tensors: exactly the trained ones, or exactly all of them.

    Raises:
        ModelRefused: `adapter_mismatch` when names, shapes or dtypes are not the model's, or `non_finite`.
            The model is unchanged then.
    """
    whole, trained = adapter_parameters(model), trained_parameters(model)
    if set(tensors) not in (set(whole), set(trained)):
        raise ModelRefused("adapter_mismatch", "the adapter does not hold exactly the tensors of this run")
    for name, tensor in tensors.items():
        if tensor.shape != whole[name].shape or tensor.dtype != torch.float32:
            shape = tuple(whole[name].shape)
            raise ModelRefused("adapter_mismatch", f"{name} is not float32 of shape {shape}")
        if not bool(torch.isfinite(tensor).all()):
            raise ModelRefused("non_finite", f"{name} holds a NaN or an infinity")
    with torch.no_grad():
        for name, tensor in tensors.items():
            whole[name].copy_(tensor)


def _inject(spec: ModelSpec, base: nn.Module) -> PeftModel:
    layers = len(layers_of(spec, base))
    if spec.lora.layers[-1] >= layers:
        raise ModelRefused("adapter_mismatch", f"the base model has {layers} layers, counted from 0")
    try:
        with quiet_libraries():
            model = PeftModel(base, _lora_config(spec))
    except (ValueError, TypeError) as error:  # PEFT names the modules that it cannot find or take
        raise ModelRefused("adapter_mismatch", f"LoRA does not fit the model: {_one_line(error)}") from error
    expected = len(spec.lora.layers) * len(spec.lora.target_modules)
    if sum(".lora_B." in name for name in adapter_parameters(model)) != expected:
        raise ModelRefused("adapter_mismatch", "a target module is missing from a layer or twice in it")
    if spec.lora.method == "fedsb":
        _put_cores(model)
    for name, parameter in adapter_parameters(model).items():
        parameter.requires_grad_(not any(part in name for part in _FROZEN.get(spec.lora.method, ())))
    return model


class _CoreAndBasis(nn.Module):
    """What stands in B's place under `fedsb`: the trained core, before a basis that is fixed."""

    def __init__(self, b_factor: nn.Linear) -> None:
        super().__init__()
        rank, rows = b_factor.in_features, b_factor.out_features
        device = b_factor.weight.device
        self.core = nn.Linear(rank, rank, bias=False, device=device)
        self.basis = nn.Linear(rank, rows, bias=False, device=device)

    def forward(self, inner: Tensor) -> Tensor:
        """Return inner @ core^T @ basis^T, shape (.., d)."""
        outer: Tensor = self.basis(self.core(inner))
        return outer


def _put_cores(model: PeftModel) -> None:
    for module in list(model.modules()):
        if isinstance(module, LoraLayer):
            module.lora_B["default"] = _CoreAndBasis(module.lora_B["default"])


def _lora_config(spec: ModelSpec) -> LoraConfig:
    architecture = architecture_of(spec.base.architecture)
    # No task type: PEFT would add heads to modules_to_save by itself.
    return LoraConfig(
        r=spec.lora.rank,
        lora_alpha=spec.lora.alpha,
        rank_pattern=dict(spec.lora.rank_pattern),
        alpha_pattern=dict(spec.lora.alpha_pattern),
        use_rslora=spec.lora.rank_stabilized,
        lora_dropout=0.0,
        bias="none",
        target_modules=list(spec.lora.target_modules),
        layers_to_transform=list(spec.lora.layers),
        layers_pattern=architecture.layers.rsplit(".", 1)[-1],
        fan_in_fan_out=architecture.fan_in_fan_out,
        modules_to_save=list(spec.lora.modules_to_save) or None,
    )


def layers_of(spec: ModelSpec, base: nn.Module) -> nn.ModuleList:
    """Return the list of layers of a base model (not of the PEFT model around it)."""
    found = base.get_submodule(architecture_of(spec.base.architecture).layers)
    if not isinstance(found, nn.ModuleList):
        raise ModelRefused("unsupported_architecture", "the model's layers are not a list")
    return found


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())
