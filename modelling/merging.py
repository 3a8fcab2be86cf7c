"""What rounds of `flora` and `fedex` have put into base weights, put into a model's and taken out again."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from engines.lora.export import merged
from engines.lora.factors import Pair
from modelling.errors import ModelRefused


class BaseWeights:
    """The frozen weights below a model's adapters, as the base model has them."""

    def __init__(self, model: nn.Module, *, is_transposed: bool) -> None:
        self._model, self._is_transposed = model, is_transposed
        self._kept: dict[str, Tensor] = {}

    def take_up(self, base: Mapping[str, Pair]) -> None:
        """Make every adapted weight the base model's plus what `base` names for it, by module path.

        Raises:
            ModelRefused: `adapter_mismatch` where there is no such module or shape, or `non_finite`.
        """
        for module in sorted(self._kept.keys() | base.keys()):
            weight = self._weight(module)
            original = self._kept.setdefault(module, weight.detach().clone())
            with torch.no_grad():
                weight.copy_(self._sum(module, original, base) if module in base else original)

    def _sum(self, module: str, original: Tensor, base: Mapping[str, Pair]) -> Tensor:
        if not base[module].is_finite():
            raise ModelRefused("non_finite", f"{module}: its base factors hold a NaN or an infinity")
        try:
            return merged(original, base[module], is_transposed=self._is_transposed)[0]
        except ValueError as error:
            raise ModelRefused("adapter_mismatch", f"{module}: its base factors do not fit") from error

    def _weight(self, module: str) -> Tensor:
        try:
            found = self._model.get_submodule(module)
        except AttributeError as error:
            raise ModelRefused("adapter_mismatch", f"{module} is no module of this run") from error
        layer = getattr(found, "base_layer", None)
        if not isinstance(layer, nn.Module) or not isinstance(layer.weight, Tensor):
            raise ModelRefused("adapter_mismatch", f"{module} has no adapter")
        return layer.weight
