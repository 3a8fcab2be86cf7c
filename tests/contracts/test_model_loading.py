"""Base models come from safetensors files on this machine, and never bring code along."""

import ast
from collections.abc import Iterator

import pytest

from tests.contracts.sources import calls, constant_keywords, offences

REQUIRED = {"trust_remote_code": False, "local_files_only": True}
REQUIRED_FOR_WEIGHTS = REQUIRED | {"use_safetensors": True}
WITHOUT_WEIGHTS = ("Config", "Tokenizer", "TokenizerFast")
OWN_FORMAT = (
    "PeftModel",
    "PeftConfig",
    "LoraConfig",
)  # take neither option; adapters are read by our own code


def loose_loads(tree: ast.AST) -> Iterator[str]:
    for call, name in calls(tree):
        owner, _dot, method = name.rpartition(".")
        kind = owner.rpartition(".")[2]
        if method != "from_pretrained" or kind in OWN_FORMAT:
            continue
        required = REQUIRED if kind.endswith(WITHOUT_WEIGHTS) else REQUIRED_FOR_WEIGHTS
        if not required.items() <= constant_keywords(call).items():
            yield f"line {call.lineno}: {name} needs {required}"


def test_every_base_model_is_loaded_from_safetensors_without_remote_code() -> None:
    assert offences(loose_loads) == []


@pytest.mark.parametrize(
    ("planted", "count"),
    [
        ("AutoModel.from_pretrained(p)", 1),
        ("AutoModel.from_pretrained(p, use_safetensors=True, local_files_only=True)", 1),
        ("AutoModel.from_pretrained(p, use_safetensors=True, trust_remote_code=False)", 1),
        ("x().from_pretrained(p, trust_remote_code=False, local_files_only=True)", 1),
        (
            "AutoModel.from_pretrained(p, use_safetensors=y, trust_remote_code=False, local_files_only=True)",
            1,
        ),
        ("AutoTokenizer.from_pretrained(p)", 1),
        ("AutoTokenizer.from_pretrained(p, trust_remote_code=False, local_files_only=True)", 0),
        ("A.from_pretrained(p, use_safetensors=True, trust_remote_code=False, local_files_only=True)", 0),
    ],
)
def test_a_planted_loose_load_is_found(planted: str, count: int) -> None:
    assert len(list(loose_loads(ast.parse(planted)))) == count
