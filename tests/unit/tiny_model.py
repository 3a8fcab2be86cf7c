"""A tiny BERT with random weights and a word-level tokenizer, and the manifest that names it."""

from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from tokenizers.processors import TemplateProcessing
from torch import Tensor
from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

from modelling.adapters import adapter_state, adapter_tensors, build_model
from modelling.base import weights_digest
from modelling.cache import CachedExamples, build_cache
from modelling.spec import ModelSpec
from modelling.trained import TrainedPart

torch.set_num_threads(1)  # more threads than idle cores make tiny models many times slower

WORDS = ("offer", "cheap", "money", "click", "meeting", "patch", "kernel", "thanks", "list", "build")
SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]")


def write_tiny_bert(folder: Path, *, seed: int = 0) -> Path:
    """Write config, weights and tokenizer of a BERT with 3 layers of width 32."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        config = BertConfig(
            vocab_size=len(SPECIAL) + len(WORDS),
            hidden_size=32,
            num_hidden_layers=3,
            num_attention_heads=4,
            intermediate_size=64,
            max_position_embeddings=32,
            initializer_range=0.2,
        )
        BertModel(config).save_pretrained(folder)
    vocabulary = {word: number for number, word in enumerate(SPECIAL + WORDS)}
    tokenizer = Tokenizer(WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = Whitespace()
    tokenizer.post_processor = TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="[PAD]",
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        model_input_names=["input_ids", "attention_mask"],
    )
    fast.save_pretrained(folder)
    return folder


def manifest_of(folder: Path, *, trust: str = "local", **lora: Any) -> dict[str, Any]:
    """Return a manifest for a model in `folder`; keywords replace parts of `lora`."""
    private = trust == "local"
    return {
        "version": 1,
        "task": {
            "kind": "sequence_classification",
            "labels": ["ham", "spam"],
            "text_fields": ["subject", "body"],
            "label_field": "label",
            "max_tokens": 10,
            "pooling": "mean",
        },
        "base_model": {
            "name": "tiny",
            "locator": str(folder),
            "weights_sha256": weights_digest(folder),
            "architecture": "bert",
        },
        "lora": {
            "method": "ffa",
            "rank": 4,
            "alpha": 8.0,
            "target_modules": ["query", "value"],
            "layers": [2],
            "modules_to_save": ["classifier"],
            "seed": 1,
        }
        | lora,
        "training": {"optimizer": "sgd", "learning_rate": 0.5, "momentum": 0.9, "local_steps": 4},
        "privacy": {
            "trust": trust,
            "unit": "example",
            "relation": "zero_out",
            "cohort": {"kind": "everyone"},
            "examples": {"kind": "poisson", "rate": 0.25},
            "clip_norm": 1.0 if private else None,
            "noise_multiplier": 1.0 if private else None,
            "epsilon": 8.0 if private else None,
            "delta": 1e-5 if private else None,
            "divisor": 8,
        },
    }


def texts_and_labels(count: int, *, seed: int = 0) -> tuple[list[str], list[int]]:
    """Return made-up texts of different lengths whose label shows in their words."""
    generator = torch.Generator().manual_seed(seed)
    texts, labels = [], []
    for number in range(count):
        label = number % 2
        length = int(torch.randint(1, 9, (1,), generator=generator))
        words = torch.randint(0, 5, (length,), generator=generator) + (0 if label else 5)
        texts.append(" ".join(WORDS[word] for word in words))
        labels.append(label)
    return texts, labels


def trained_part_of(
    manifest: dict[str, Any], folder: Path, *, count: int = 24
) -> tuple[TrainedPart, CachedExamples, dict[str, Tensor]]:
    """Build the model, cache `count` examples, and return both with the adapter of round 1."""
    spec = ModelSpec.from_manifest(manifest)
    manifest["tensors"] = adapter_tensors(spec, folder)
    model = build_model(spec, folder)
    texts, labels = texts_and_labels(count)
    cache = build_cache(model, spec, folder, texts=texts, labels=labels)
    adapter = adapter_state(model, trained_only=True)
    return TrainedPart(model, spec), cache, adapter


def shaken(adapter: dict[str, Tensor], *, seed: int = 3) -> dict[str, Tensor]:
    """Return an adapter of the same shapes whose tensors are not zero."""
    generator = torch.Generator().manual_seed(seed)
    return {
        name: tensor + 0.3 * torch.randn(tensor.shape, generator=generator)
        for name, tensor in adapter.items()
    }
