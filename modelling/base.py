"""Find, identify and load the frozen base model: from a folder or an installed package, never from a hub.

Weights are read as safetensors only and no code from a model's folder is run.
"""

import hashlib
import importlib.util
import json
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import AutoConfig, AutoModelForSequenceClassification, AutoModelForTokenClassification
from transformers import logging as transformers_logging

from modelling.errors import ModelRefused
from modelling.spec import ModelSpec

_BLOCK_BYTES = 1 << 20
_SINGLE = "model.safetensors"
_PACKAGE = "package:"


def locate_base_model(locator: str) -> Path:
    """Return the folder that a locator names, without importing any package.

    Args:
        locator: `package:<module>/<folder inside it>` for a model shipped in an installed package,
            otherwise the path of a folder.

    Raises:
        ModelRefused: `base_model_missing` when there is no such package or folder.
    """
    if not locator.startswith(_PACKAGE):
        return _require_folder(Path(locator).expanduser(), locator)
    module, _, inside = locator.removeprefix(_PACKAGE).partition("/")
    if not module.isidentifier() or ".." in Path(inside).parts or Path(inside).is_absolute():
        raise ModelRefused("base_model_missing", f"{locator!r} does not name a folder inside a package")
    found = importlib.util.find_spec(module)
    if found is None or not found.submodule_search_locations:
        raise ModelRefused("base_model_missing", f"the package {module!r} is not installed")
    return _require_folder(Path(next(iter(found.submodule_search_locations))) / inside, locator)


def weights_digest(folder: Path) -> str:
    """Return the SHA-256 of a model's weights, in hexadecimal.

    One file: the digest of its bytes. Several shards: the digest of the lines `<name> <digest>` of all
    shards in the order of their names.

    Raises:
        ModelRefused: `base_model_missing` when the folder holds no safetensors.
    """
    if (folder / _SINGLE).is_file():
        return _file_digest(folder / _SINGLE)
    shards = sorted(folder.glob("model-*-of-*.safetensors"), key=lambda path: path.name)
    if not shards:
        raise ModelRefused("base_model_missing", f"there is no {_SINGLE} in {folder}")
    lines = "".join(f"{shard.name} {_file_digest(shard)}\n" for shard in shards)
    return hashlib.sha256(lines.encode()).hexdigest()


def load_base_model(spec: ModelSpec, folder: Path) -> nn.Module:
    """Load the model with the head that the spec asks for, frozen, float32, without dropout.

    Attention is the eager kind: its backward pass is the fast one on processors, and its per-example
    gradients are exact.

    Raises:
        ModelRefused: `base_model_mismatch` when digest or architecture is not the manifest's, or
            `base_model_incomplete` when the file lacks weights below the head.
    """
    digest = weights_digest(folder)
    if digest != spec.base.weights_sha256:
        raise ModelRefused(
            "base_model_mismatch",
            f"the base model's weights have the digest {digest}, the run wants {spec.base.weights_sha256}",
        )
    with quiet_libraries():
        model, report = _auto_class(spec).from_pretrained(
            folder,
            config=_config(spec, folder),
            attn_implementation="eager",
            dtype=torch.float32,
            use_safetensors=True,
            trust_remote_code=False,
            local_files_only=True,
            output_loading_info=True,
        )
    _require_complete(spec, report)
    return _frozen(model)


def empty_base_model(spec: ModelSpec, folder: Path) -> nn.Module:
    """Build the same model without weights (on the `meta` device), to read names and shapes from it."""
    with quiet_libraries(), torch.device("meta"):
        model: nn.Module = _auto_class(spec).from_config(
            _config(spec, folder), attn_implementation="eager", trust_remote_code=False
        )
    return _frozen(model)


def _auto_class(spec: ModelSpec) -> Any:
    mean = spec.task.pooling == "mean"
    return AutoModelForTokenClassification if mean else AutoModelForSequenceClassification


def _config(spec: ModelSpec, folder: Path) -> Any:
    """Read the model's configuration with the run's labels in it and every dropout off."""
    try:
        values = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ModelRefused("base_model_missing", f"there is no readable config.json in {folder}") from error
    if not isinstance(values, dict) or values.get("model_type") != spec.base.architecture:
        raise ModelRefused("base_model_mismatch", f"the model in {folder} is no {spec.base.architecture}")
    labels = dict(enumerate(spec.task.labels))
    config = AutoConfig.from_pretrained(
        folder,
        trust_remote_code=False,
        local_files_only=True,
        id2label=labels,
        label2id={label: number for number, label in labels.items()},
    )
    positions = getattr(config, "max_position_embeddings", None)
    if isinstance(positions, int) and spec.task.max_tokens > positions:
        raise ModelRefused("unsupported_plan", f"task.max_tokens is over the model's {positions} positions")
    if hasattr(config, "use_cache"):
        config.use_cache = False  # nothing is generated here
    for name, value in config.to_dict().items():
        if ("dropout" in name or name.endswith("_pdrop")) and isinstance(value, float):
            setattr(config, name, 0.0)
    return config


def _frozen(model: nn.Module) -> nn.Module:
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    return model.requires_grad_(False).eval()


def _require_complete(spec: ModelSpec, report: dict[str, Any]) -> None:
    heads = tuple(f"{name}." for name in spec.lora.modules_to_save)
    lacking = sorted(name for name in report["missing_keys"] if not name.startswith(heads))
    if lacking or report["mismatched_keys"]:
        raise ModelRefused(
            "base_model_incomplete", f"the base model's file lacks {len(lacking)} tensors below the head"
        )


def _require_folder(folder: Path, locator: str) -> Path:
    if not folder.is_dir():
        raise ModelRefused("base_model_missing", f"{locator!r} is not a folder")
    return folder


def _file_digest(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(_BLOCK_BYTES):
            digest.update(block)
    return digest.hexdigest()


@contextmanager
def quiet_libraries() -> Iterator[None]:
    """Keep the libraries' notes, progress bars and deprecations of their own off the terminal."""
    before, bars = transformers_logging.get_verbosity(), transformers_logging.is_progress_bar_enabled()
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            # PEFT 0.21 still asks transformers 5 under the old name.
            warnings.filterwarnings("ignore", message="`is_gradient_checkpointing` is deprecated")
            yield
    finally:
        transformers_logging.set_verbosity(before)
        if bars:
            transformers_logging.enable_progress_bar()
