"""Ranks and alphas that single modules have for themselves: PEFT's `rank_pattern` and `alpha_pattern`.

PEFT reads its keys as regular expressions, by the end of a path. Here a key is one target's whole path,
letter by letter, so that PEFT and everybody else read the same of it.
"""

from __future__ import annotations

from app.core.errors import Invalid
from app.core.i18n import _
from app.runs.manifest import Manifest
from app.runs.training import Lora

_PREFIX = "base_model.model."
"""What PEFT puts before a module's path."""


class PatternRefused(Invalid):
    """A rank or alpha of a module that cannot have one of its own."""

    code, title = "lora_pattern_refused", _("This rank or alpha by module cannot be used")
    meaning = _(
        "A key of lora.rank_pattern or lora.alpha_pattern is the whole path of one target module. Clients of "
        "smaller ranks take the first rows of every factor, and so need one rank and alpha for all modules."
    )
    remedy = _("Write the module's path as the tensors' names have it, or set lora.ranks to null.")


def rank_of(lora: Lora, tensor: str) -> int:
    """The rank of the module that a factor belongs to, by the factor's name."""
    return lora.rank_pattern.get(_path_of(tensor), lora.rank)


def check_patterns(manifest: Manifest) -> None:
    """Refuse keys that do not name one target, and patterns beside ranks by client."""
    lora = manifest.lora
    keys = sorted({*lora.rank_pattern, *lora.alpha_pattern})
    if keys and lora.has_mixed_ranks:
        raise PatternRefused(
            _("`{module}` has a rank or alpha of its own, and clients have ranks; set lora.ranks to null"),
            module=keys[0],
        )
    modules = {_path_of(tensor.name) for tensor in manifest.tensors if ".lora_A." in tensor.name}
    for key in keys:
        # PEFT would take it for every module whose path ends with it.
        if [module for module in modules if f".{module}".endswith(f".{key}")] != [key]:
            raise PatternRefused(
                _("`{module}` is not the whole path of one target module of this plan"), module=key
            )


def _path_of(tensor: str) -> str:
    return tensor.removeprefix(_PREFIX).partition(".lora_")[0]
