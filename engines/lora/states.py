"""What goes from round to round, and what a release makes of it.

A round's state is the tensors that are trained, and under `flora` and `fedex` what the base weights have
taken up: for a module two tensors more, `base_A` of shape (R, k) and `base_B` of shape (d, R), whose product
is added to the frozen weight. R is its own in every module and grows to min(d, k) at most.

Between the two rounds of `fedask` it holds the basis that the first messages gave, too: for a module `lora_Q`
of shape (d, p). A run with control variates holds SCAFFOLD's c: for every trained tensor one more of its
shape, named `<name>.variate`; none of them before the first round was counted. A release has none of it.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from engines.lora.adapter import full_adapter
from engines.lora.factors import Pair
from engines.lora.methods import MERGING_METHODS
from engines.lora.patterns import LoraPattern
from engines.lora.scaling import factor_of, module_of
from engines.lora.target import compressed

BASE_A, BASE_B = ".base_A.weight", ".base_B.weight"
BASIS = ".lora_Q.weight"
VARIATE = ".variate"
Entries = Sequence[Mapping[str, Any]]


def modules_in(tensors: Entries) -> dict[str, tuple[int, int]]:
    """Return the adapted modules of a manifest's list of tensors: by path, the weight's shape (d, k)."""
    a, b = dict[str, int](), dict[str, int]()
    for entry in tensors:
        name, shape = str(entry["name"]), entry["shape"]
        if factor_of(name) == "A":
            a[module_of(name)] = int(shape[1])
        elif factor_of(name) == "B" and ".core." not in name:
            b[module_of(name)] = int(shape[0])
    return {module: (b[module], a[module]) for module in sorted(a)}


def parted(state: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Pair]]:
    """Part a state into its trained tensors and what the base weights have taken up, by module path.

    Raises:
        ValueError: one of two base factors is missing, or they are no pair.
    """
    trained, base = dict[str, Tensor](), dict[str, Pair]()
    for name, tensor in state.items():
        module = name.removesuffix(BASE_A)
        if module != name:
            if f"{module}{BASE_B}" not in state:
                raise ValueError(f"{module}: one of its two base factors is missing")
            base[module] = Pair(state[f"{module}{BASE_B}"], tensor, 1.0)
        elif not name.endswith((BASE_B, BASIS, VARIATE)):
            trained[name] = tensor
        elif name.endswith((BASIS, VARIATE)):
            continue
        elif f"{name.removesuffix(BASE_B)}{BASE_A}" not in state:
            raise ValueError(f"{name}: one of its two base factors is missing")
    return trained, base


def bases_in(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the bases that a state carries to the second round of `fedask`, by module path; mostly none."""
    return {name.removesuffix(BASIS): tensor for name, tensor in state.items() if name.endswith(BASIS)}


def variates_in(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return SCAFFOLD's c, by the names of the trained tensors; zeros where a state has none yet."""
    trained, _base = parted(state)
    return {
        name: state.get(f"{name}{VARIATE}", torch.zeros_like(tensor, dtype=torch.float32))
        for name, tensor in trained.items()
    }


def together(trained: Mapping[str, Tensor], base: Mapping[str, Pair]) -> dict[str, Tensor]:
    """Write a state as float32 tensors, by sorted name; a base that took up nothing is left out."""
    state = {name: tensor.to(torch.float32) for name, tensor in trained.items()}
    for module, pair in base.items():
        if pair.rank:
            state[f"{module}{BASE_A}"] = pair.a.to(torch.float32)
            state[f"{module}{BASE_B}"] = (pair.b.to(torch.float64) * pair.scale).to(torch.float32)
    return {name: state[name].contiguous() for name in sorted(state)}


def require_whole(
    state: Mapping[str, tuple[int, ...]],
    *,
    tensors: Entries,
    merges: bool,
    bases: Mapping[str, tuple[int, ...]] | None = None,
    variates: bool = False,
) -> None:
    """Refuse shapes that are not a state of the manifest's.

    Args:
        state: shapes by name.
        tensors: the manifest's list of {"name", "shape", "trained"}.
        merges: the method puts a part of what was learned into the base weights.
        bases: shapes by module path of the bases that the state may have, all or none (`fedask`).
        variates: the state may have SCAFFOLD's c, of every trained tensor or of none.
    Raises:
        ValueError: a tensor is missing, unknown or of another shape; the text names it.
    """
    expected = {str(entry["name"]): tuple(entry["shape"]) for entry in tensors if entry["trained"]}
    left = dict(state)
    if variates and any(name.endswith(VARIATE) for name in state):
        expected |= {f"{name}{VARIATE}": shape for name, shape in expected.items()}
    if bases and any(name.endswith(BASIS) for name in state):
        expected |= {f"{module}{BASIS}": tuple(shape) for module, shape in bases.items()}
    for module, (rows, columns) in modules_in(tensors).items() if merges else ():
        a, b = left.pop(f"{module}{BASE_A}", None), left.pop(f"{module}{BASE_B}", None)
        if (a is None) != (b is None):
            raise ValueError(f"{module}: one of its two base factors is missing")
        if a is None or b is None:
            continue
        rank = a[0]
        if (a, b) != ((rank, columns), (rows, rank)) or not 1 <= rank <= min(rows, columns):
            raise ValueError(f"{module}: its base factors are no pair of the weight's shape")
    if left != expected:
        odd = sorted(set(left.items()) ^ set(expected.items()))
        raise ValueError(f"{odd[0][0]} is missing, unknown or of another shape")


def released(
    state: Mapping[str, Tensor], *, tensors: Entries, lora: Mapping[str, Any]
) -> tuple[dict[str, Tensor], dict[str, int]]:
    """Write a state as an adapter that any runtime loads, base weights untouched.

    Args:
        state: of a round, float32.
        tensors: the manifest's list of {"name", "shape", "trained"}.
        lora: the manifest's member of that name.
    Returns:
        float32 tensors by PEFT's names; and where modules have ranks of their own, these by module path, with
        scale 1.
    Raises:
        ValueError: the state is not the manifest's.
    """
    trained, base = parted(state)
    whole = full_adapter(trained, tensors=tensors, seed=lora["seed"])
    if lora["method"] == "fedsb":
        return _cores_as_factors(whole), {}
    if lora["method"] not in MERGING_METHODS and lora.get("energy") is None:
        return whole, {}
    scales, ranks = LoraPattern.from_plan(lora), dict[str, int]()
    for module in modules_in(tensors):
        names = (f"{module}.lora_A.weight", f"{module}.lora_B.weight")
        pair = Pair(whole[names[1]], whole[names[0]], scales.at(module).factor)
        if module in base:
            pair = compressed([pair, base[module]])
        a, b = _without_idle(pair)
        whole[names[0]], whole[names[1]], ranks[module] = a, b, a.shape[0]
    return whole, ranks


def _cores_as_factors(whole: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Fed-SB in PEFT's form: B = basis @ core, and A the other basis."""
    written = {name: tensor for name, tensor in whole.items() if ".lora_B." not in name}
    for name, core in whole.items():
        if ".lora_B.core." in name:
            basis = whole[name.replace(".core.", ".basis.")]
            product = basis.to(torch.float64) @ core.to(torch.float64)
            written[name.replace(".core.", ".")] = product.to(torch.float32)
    return {name: written[name] for name in sorted(written)}


def _without_idle(pair: Pair) -> tuple[Tensor, Tensor]:
    """Return A and B with the scale in B, without directions whose column of B is zero; one at least."""
    wide = pair.wide()
    used = torch.nonzero(wide.b.abs().sum(dim=0), as_tuple=True)[0]
    if not len(used):
        return torch.zeros(1, pair.shape[1]), torch.zeros(pair.shape[0], 1)
    b = (wide.b * wide.scale)[:, used]
    return wide.a[used].to(torch.float32).contiguous(), b.to(torch.float32).contiguous()
