from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from engines.privacy.clipping import clip_per_sample
from modelling.adapters import load_adapter, trained_parameters
from modelling.cache import CachedExamples
from modelling.gradients import per_example_gradients, per_example_hooks, summed_gradients
from modelling.loss import per_example_loss
from modelling.trained import TrainedPart
from tests.unit.tiny_model import manifest_of, shaken, trained_part_of, write_tiny_bert


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_bert(tmp_path_factory.mktemp("tiny"))


def ready(
    folder: Path, *, pooling: str = "mean", count: int = 24, **lora: Any
) -> tuple[TrainedPart, CachedExamples]:
    manifest = manifest_of(folder, **lora)
    manifest["task"]["pooling"] = pooling
    part, cache, adapter = trained_part_of(manifest, folder, count=count)
    load_adapter(part.model, shaken(adapter))
    return part, cache


def one_by_one(part: TrainedPart, cache: CachedExamples) -> list[Tensor]:
    parameters = list(trained_parameters(part.model).values())
    rows = []
    for position in range(len(cache)):
        alone = cache.take(torch.tensor([position]))
        loss = per_example_loss(part(alone.hidden, alone.mask), alone.labels)[0]
        rows.append(torch.autograd.grad(loss, parameters))
    return [torch.stack(column) for column in zip(*rows, strict=True)]


def relative_error(found: Tensor, wanted: Tensor) -> float:
    return float((found - wanted).norm() / wanted.norm())


@pytest.mark.parametrize("pooling", ["mean", "model"])
@pytest.mark.parametrize(
    "lora",
    [
        {"method": "ffa"},
        {"method": "fedit"},
        {"method": "ffa", "layers": [0, 1, 2]},
        {"method": "ffa", "target_modules": ["query", "key", "value", "intermediate.dense"]},
    ],
    ids=["ffa", "fedit", "all-layers", "all-linear"],
)
def test_gradients_equal_those_of_one_example_at_a_time(
    tiny: Path, lora: dict[str, Any], pooling: str
) -> None:
    part, cache = ready(tiny, pooling=pooling, **lora)
    wanted = one_by_one(part, cache)
    with per_example_hooks(part):
        found = per_example_gradients(part, cache)
    assert [tensor.shape for tensor in found] == [tensor.shape for tensor in wanted]
    for ours, theirs in zip(found, wanted, strict=True):
        assert relative_error(ours, theirs) <= 1e-5


def test_a_tensor_that_two_layers_share_gets_the_gradient_of_both_uses(tiny: Path) -> None:
    """Elsewhere one use overwrote the other, or a list of the two stood where the rows should."""
    part, cache = ready(tiny, layers=[1, 2])
    layers = part.model.get_base_model().bert.encoder.layer
    first, second = (layers[number].attention.self.query.lora_B["default"] for number in (1, 2))
    second.weight = first.weight
    names = list(trained_parameters(part.model))
    assert sum("query.lora_B" in name for name in names) == 1
    wanted = one_by_one(part, cache)
    with per_example_hooks(part):
        found = per_example_gradients(part, cache)
    for ours, theirs in zip(found, wanted, strict=True):
        assert relative_error(ours, theirs) <= 1e-5


def test_a_batch_in_two_parts_gives_the_same_gradients(tiny: Path) -> None:
    part, cache = ready(tiny, count=80)
    wanted = one_by_one(part, cache)
    with per_example_hooks(part):
        found = per_example_gradients(part, cache)
    assert found[0].shape[0] == 80
    for ours, theirs in zip(found, wanted, strict=True):
        assert relative_error(ours, theirs) <= 1e-5


@pytest.mark.parametrize("bf16", [False, True])
def test_a_neighbour_changes_no_bit_of_anothers_gradient(tiny: Path, *, bf16: bool) -> None:
    part, cache = ready(tiny)
    hidden, labels = cache.hidden.clone(), cache.labels.clone()
    hidden[5] = torch.randn(hidden[5].shape, generator=torch.Generator().manual_seed(9)) * 50
    labels[5] = 1 - labels[5]
    hidden[7] = float("nan")
    other = CachedExamples(hidden=hidden, mask=cache.mask, labels=labels)
    with per_example_hooks(part):
        before = per_example_gradients(part, cache, bf16=bf16)
        after = per_example_gradients(part, other, bf16=bf16)
    rest = [row for row in range(len(cache)) if row not in {5, 7}]
    for first, second in zip(before, after, strict=True):
        assert torch.equal(first[rest], second[rest])
        assert not torch.equal(first[5], second[5])


def test_an_example_that_is_not_finite_counts_as_the_zero_vector(tiny: Path) -> None:
    part, cache = ready(tiny)
    hidden = cache.hidden.clone()
    hidden[7] = float("inf")
    with per_example_hooks(part):
        broken = per_example_gradients(
            part, CachedExamples(hidden=hidden, mask=cache.mask, labels=cache.labels)
        )
        whole = per_example_gradients(part, cache)
    rows, wanted = clip_per_sample(broken, 1.0), clip_per_sample(whole, 1.0)
    assert not rows[7].any()
    wanted[7] = 0.0
    assert torch.equal(rows, wanted)


def test_the_models_own_loss_would_couple_examples_and_ours_does_not(tiny: Path) -> None:
    # The token mean over a batch: an example's gradient shrinks when its neighbour has more tokens.
    part, cache = ready(tiny)
    short = torch.zeros_like(cache.mask[1])
    short[:3] = 1
    pairs = [cache.take(torch.tensor([0, 1])) for _ in range(2)]
    pairs[1].mask[1] = short
    coupled, ours = [], []
    for pair in pairs:
        tokens = torch.where(pair.mask.bool(), pair.labels.unsqueeze(1), -100)
        with per_example_hooks(part):
            loss = part.model(inputs_embeds=pair.hidden, attention_mask=pair.mask, labels=tokens).loss
            loss.backward()
            first = next(iter(trained_parameters(part.model).values()))
            coupled.append(first.grad_sample[0].clone())
        with per_example_hooks(part):
            ours.append(per_example_gradients(part, pair)[0][0])
    assert relative_error(coupled[0], coupled[1]) > 0.1
    assert torch.equal(ours[0], ours[1])


def test_an_empty_batch_gives_no_rows_and_breaks_nothing(tiny: Path) -> None:
    part, cache = ready(tiny)
    nobody = cache.take(torch.zeros(0, dtype=torch.int64))
    with per_example_hooks(part):
        found = per_example_gradients(part, nobody)
    assert [tensor.shape for tensor in found] == [
        (0, *parameter.shape) for parameter in trained_parameters(part.model).values()
    ]
    assert not any(bool(tensor.any()) for tensor in summed_gradients(part, nobody))


def test_the_summed_gradient_is_the_sum_of_the_examples_gradients(tiny: Path) -> None:
    part, cache = ready(tiny, count=70)
    with per_example_hooks(part):
        found = per_example_gradients(part, cache)
    for single, total in zip(found, summed_gradients(part, cache), strict=True):
        assert relative_error(total, single.sum(dim=0)) <= 1e-5


def test_hooks_leave_no_trace_behind(tiny: Path) -> None:
    part, cache = ready(tiny)
    for _ in range(2):  # a second round hooks the same model again
        with per_example_hooks(part):
            per_example_gradients(part, cache)
    for parameter in part.parameters():
        assert parameter.grad is None
        assert not hasattr(parameter, "grad_sample")
    assert not part.training


def test_bfloat16_changes_gradients_little_and_they_stay_float32(tiny: Path) -> None:
    part, cache = ready(tiny)
    with per_example_hooks(part):
        exact = per_example_gradients(part, cache)
        small = per_example_gradients(part, cache, bf16=True)
    for wide, narrow in zip(exact, small, strict=True):
        assert narrow.dtype == torch.float32
        assert relative_error(narrow, wide) < 0.05
