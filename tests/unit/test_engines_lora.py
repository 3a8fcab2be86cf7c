"""LoRA without PEFT: seeded factors, exact scaling, whole adapters, and PEFT's own format."""

import hashlib
import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import save_file
from torch import Tensor
from transformers import BertConfig, BertForSequenceClassification

from engines.lora.adapter import check_tensors, full_adapter, initial_adapter, peft_config
from engines.lora.scaling import LoraScale, fold_into_run, unfold_for_client
from engines.lora.seeding import seeded_a

A = "base_model.model.bert.encoder.layer.1.attention.self.query.lora_A.weight"
B = "base_model.model.bert.encoder.layer.1.attention.self.query.lora_B.weight"
BIAS = "base_model.model.classifier.bias"
HEAD = "base_model.model.classifier.weight"


def listed(*, a_trained: bool = False) -> list[dict[str, Any]]:
    return [
        {"name": A, "shape": [4, 16], "trained": a_trained},
        {"name": B, "shape": [16, 4], "trained": True},
        {"name": BIAS, "shape": [2], "trained": True},
        {"name": HEAD, "shape": [2, 16], "trained": True},
    ]


MANIFEST: dict[str, Any] = {
    "task": {"kind": "sequence_classification"},
    "base_model": {"name": "tiny"},
    "lora": {
        "method": "ffa",
        "rank": 4,
        "alpha": 8.0,
        "target_modules": ["query"],
        "layers": [1],
        "modules_to_save": ["classifier"],
        "seed": 1,
    },
}


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def normal(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=generator(seed), dtype=torch.float64)


def test_a_seed_gives_the_same_factor_on_every_machine() -> None:
    factor = seeded_a(1, A, (8, 384))
    assert (factor.dtype, tuple(factor.shape)) == (torch.float32, (8, 384))
    assert (
        hashlib.sha256(factor.numpy().astype("<f4").tobytes()).hexdigest()
        == "8de9802290ae48a3ebc1bf2fe9c5791d62f408eb3f5c7508977555b834b86f9d"
    )


def test_a_factor_is_uniform_within_pefts_own_bound() -> None:
    """Kaiming uniform with a = sqrt 5: variance 1 / (3 k), no value beyond 1 / sqrt k."""
    factor = seeded_a(7, A, (64, 400)).double()
    assert float(factor.abs().max()) <= 1 / math.sqrt(400)
    assert float(factor.abs().max()) >= 0.999 / math.sqrt(400)
    assert float(factor.var()) == pytest.approx(1 / (3 * 400), rel=0.02)
    assert abs(float(factor.mean())) < 4 / math.sqrt(3 * 400 * factor.numel())


def test_other_seeds_and_other_names_give_independent_factors() -> None:
    factors = torch.stack([seeded_a(1, A, (8, 999)), seeded_a(2, A, (8, 999)), seeded_a(1, B, (8, 999))])
    correlations = torch.corrcoef(factors.reshape(3, -1).double()) - torch.eye(3, dtype=torch.float64)
    assert float(correlations.abs().max()) < 4 / math.sqrt(8 * 999)


def test_a_smaller_rank_is_the_top_of_a_larger_one() -> None:
    assert torch.equal(seeded_a(3, A, (4, 100)), seeded_a(3, A, (16, 100))[:4])


@pytest.mark.parametrize("seed", [-1, 2**63])
def test_a_seed_out_of_range_is_refused(seed: int) -> None:
    with pytest.raises(ValueError, match="seed"):
        seeded_a(seed, A, (1, 1))


@pytest.mark.parametrize("shape", [(4,), (0, 3), (3, 0), (1, 2, 3)])
def test_a_factor_that_is_no_matrix_is_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="dimensions"):
        seeded_a(1, A, shape)


RANKS, ALPHAS, WEIGHTS = (4, 8, 16, 32), (8.0, 16.0, 16.0, 64.0), (0.1, 0.2, 0.3, 0.4)


def test_ffa_averages_exactly_over_clients_of_other_ranks_and_scales() -> None:
    """sum w_i s_i B_i A0[:r_i] equals the product of the averaged factors; one global scale is 24 % off."""
    run, width, columns = LoraScale(rank=32, alpha=64.0), 60, 50
    a_factor = seeded_a(5, A, (run.rank, columns)).double()
    target = torch.zeros(width, columns, dtype=torch.float64)
    mean_b = torch.zeros(width, run.rank, dtype=torch.float64)
    for number, (rank, alpha, weight) in enumerate(zip(RANKS, ALPHAS, WEIGHTS, strict=True)):
        client, b_factor = LoraScale(rank=rank, alpha=alpha), normal(width, rank, seed=number)
        target += weight * client.factor * b_factor @ a_factor[:rank]
        mean_b += weight * fold_into_run({B: b_factor}, method="ffa", client=client, run=run)[B]
    merged = run.factor * mean_b @ a_factor
    assert float((merged - target).norm() / target.norm()) <= 1e-12


def test_ffa_with_equal_ranks_is_the_mean_of_products() -> None:
    scale, a_factor = LoraScale(rank=8, alpha=16.0), seeded_a(5, A, (8, 50)).double()
    factors = [normal(60, 8, seed=number) for number in range(5)]
    target = sum((scale.factor * b @ a_factor for b in factors), torch.zeros(60, 50, dtype=torch.float64)) / 5
    folded = [fold_into_run({B: b}, method="ffa", client=scale, run=scale)[B] for b in factors]
    merged = scale.factor * torch.stack(folded).mean(dim=0) @ a_factor
    assert float((merged - target).norm() / target.norm()) <= 1e-12


def test_fedit_leaves_exactly_the_covariance_of_the_factors() -> None:
    """T - s B A = s * sum w_i (B_i - B)(A_i - A): zero only where the A factors agree."""
    scale = LoraScale(rank=8, alpha=16.0)
    pairs = [(normal(30, 8, seed=number), normal(8, 20, seed=100 + number)) for number in range(4)]
    folded = [fold_into_run({A: a, B: b}, method="fedit", client=scale, run=scale) for b, a in pairs]
    mean_a = torch.stack([one[A] for one in folded]).mean(dim=0)
    mean_b = torch.stack([one[B] for one in folded]).mean(dim=0)
    target = scale.factor * torch.stack([b @ a for b, a in pairs]).mean(dim=0)
    residual = scale.factor * torch.stack([(b - mean_b) @ (a - mean_a) for b, a in pairs]).mean(dim=0)
    assert float((target - scale.factor * mean_b @ mean_a - residual).norm()) <= 1e-11 * float(target.norm())
    assert float(residual.norm()) > 0.1 * float(target.norm())


def test_fedit_folds_a_clients_alpha_into_b() -> None:
    run, client = LoraScale(rank=4, alpha=8.0), LoraScale(rank=4, alpha=4.0)
    a, b = normal(4, 9, seed=1), normal(7, 4, seed=2)
    folded = fold_into_run({A: a, B: b}, method="fedit", client=client, run=run)
    assert torch.allclose(run.factor * folded[B] @ folded[A], client.factor * b @ a, rtol=1e-12)


def test_heads_pass_through_the_scaling_unchanged_and_dtypes_are_kept() -> None:
    tensors = {HEAD: torch.ones(2, 3), B: torch.ones(5, 2)}
    folded = fold_into_run(tensors, method="ffa", client=LoraScale(2, 2.0), run=LoraScale(4, 8.0))
    assert torch.equal(folded[HEAD], tensors[HEAD])
    assert folded[B].dtype == torch.float32
    assert folded[B].tolist() == [[0.5, 0.5, 0.0, 0.0]] * 5


def test_a_client_gets_the_columns_that_folding_puts_back() -> None:
    run, client = LoraScale(rank=8, alpha=16.0), LoraScale(rank=2, alpha=16.0)
    whole = normal(5, 8, seed=3)
    mine = unfold_for_client(whole, client=client, run=run)
    back = fold_into_run({B: mine}, method="ffa", client=client, run=run)[B]
    assert torch.allclose(back[:, :2], whole[:, :2], rtol=1e-15)
    assert float(back[:, 2:].abs().max()) == 0.0


@pytest.mark.parametrize(
    ("method", "client_rank", "tensors"),
    [
        ("ffa", 16, {B: torch.ones(3, 16)}),
        ("fedit", 4, {B: torch.ones(3, 4)}),
        ("ffa", 4, {B: torch.ones(3, 5)}),
        ("ffa", 4, {B: torch.ones(3)}),
        ("ffa", 4, {A: torch.ones(4, 3)}),
        ("fedit", 8, {A: torch.ones(4, 3)}),
    ],
)
def test_factors_that_do_not_fit_the_run_are_refused(
    method: Any, client_rank: int, tensors: dict[str, Tensor]
) -> None:
    with pytest.raises(ValueError, match=r"rank|ffa"):
        fold_into_run(tensors, method=method, client=LoraScale(client_rank, 8.0), run=LoraScale(8, 16.0))
    with pytest.raises(ValueError, match="rank"):
        unfold_for_client(torch.ones(3, 9), client=LoraScale(2, 1.0), run=LoraScale(8, 16.0))


@pytest.mark.parametrize(("rank", "alpha"), [(0, 1.0), (1, 0.0), (1, math.nan), (1, math.inf), (1, -1.0)])
def test_a_scale_without_rank_or_alpha_is_refused(rank: int, alpha: float) -> None:
    with pytest.raises(ValueError, match="LoRA scale"):
        LoraScale(rank, alpha)


def test_the_first_adapter_changes_nothing_and_holds_the_seeded_factors() -> None:
    adapter = initial_adapter(listed(), 1)
    assert list(adapter) == [A, B, BIAS, HEAD]
    assert torch.equal(adapter[A], seeded_a(1, A, (4, 16)))
    assert all(float(adapter[name].abs().max()) == 0.0 for name in (B, BIAS, HEAD))
    assert all(tensor.dtype == torch.float32 for tensor in adapter.values())


def test_a_rounds_state_leaves_frozen_factors_out_and_keeps_trained_ones() -> None:
    assert list(initial_adapter(listed(), 1, trained_only=True)) == [B, BIAS, HEAD]
    assert list(initial_adapter(listed(a_trained=True), 1, trained_only=True)) == [A, B, BIAS, HEAD]


def test_a_whole_adapter_is_the_trained_tensors_and_the_seeded_factors() -> None:
    trained = {B: torch.ones(16, 4), BIAS: torch.ones(2), HEAD: torch.ones(2, 16)}
    whole = full_adapter(trained, tensors=listed(), seed=1)
    assert list(whole) == [A, B, BIAS, HEAD]
    assert torch.equal(whole[A], seeded_a(1, A, (4, 16)))
    assert torch.equal(whole[B], trained[B])


@pytest.mark.parametrize(
    "change",
    [{B: None}, {A: torch.ones(4, 16)}, {B: torch.ones(4, 16)}, {B: torch.ones(16, 4, dtype=torch.float64)}],
)
def test_trained_tensors_that_are_not_the_manifests_are_refused(change: dict[str, Tensor | None]) -> None:
    trained: dict[str, Tensor | None] = {B: torch.ones(16, 4), BIAS: torch.ones(2), HEAD: torch.ones(2, 16)}
    given = {name: tensor for name, tensor in (trained | change).items() if tensor is not None}
    with pytest.raises(ValueError, match=r"trained tensors|expected float32"):
        full_adapter(given, tensors=listed(), seed=1)


def test_a_whole_list_of_tensors_passes_for_both_methods() -> None:
    check_tensors(listed(), method="ffa", rank=4, modules_to_save=["classifier"])
    check_tensors(listed(a_trained=True), method="fedit", rank=4, modules_to_save=["classifier"])


@pytest.mark.parametrize(
    ("tensors", "method", "complaint"),
    [
        (listed()[::-1], "ffa", "sorted"),
        (listed() + listed()[-1:], "ffa", "sorted"),
        (listed()[1:], "ffa", "partner"),
        (listed()[:1] + listed()[2:], "ffa", "at least one pair"),
        (listed(a_trained=True), "ffa", "contradicts"),
        (listed(), "fedit", "contradicts"),
        ([*listed()[:3], listed()[3] | {"trained": False}], "ffa", "contradicts"),
        ([listed()[0] | {"shape": [5, 16]}, *listed()[1:]], "ffa", "rank 4"),
        ([*listed()[:1], listed()[1] | {"shape": [16]}, *listed()[2:]], "ffa", "rank 4"),
        (
            [*listed(), {"name": "base_model.model.embedding.weight", "shape": [3], "trained": True}],
            "ffa",
            "neither",
        ),
    ],
)
def test_a_list_that_is_no_whole_adapter_is_refused(
    tensors: list[dict[str, Any]], method: Any, complaint: str
) -> None:
    with pytest.raises(ValueError, match=complaint):
        check_tensors(tensors, method=method, rank=4, modules_to_save=["classifier"])


# PEFT 0.21 still asks transformers 5.24 by an attribute's old name.
PEFT_ASKS_BY_AN_OLD_NAME = pytest.mark.filterwarnings(
    "ignore:.is_gradient_checkpointing. is deprecated:FutureWarning"
)


@pytest.fixture
def base() -> BertForSequenceClassification:
    torch.manual_seed(0)
    return BertForSequenceClassification(
        BertConfig(
            hidden_size=16,
            num_hidden_layers=2,
            num_attention_heads=2,
            intermediate_size=32,
            vocab_size=50,
            num_labels=2,
        )
    ).eval()


@PEFT_ASKS_BY_AN_OLD_NAME
def test_the_configuration_is_what_peft_itself_writes(
    base: BertForSequenceClassification, tmp_path: Path
) -> None:
    model = get_peft_model(
        base,
        LoraConfig(
            task_type="SEQ_CLS",
            r=4,
            lora_alpha=8.0,
            lora_dropout=0.0,
            target_modules=["query"],
            layers_to_transform=[1],
            modules_to_save=["classifier"],
        ),
    )
    model.save_pretrained(tmp_path)
    theirs = json.loads((tmp_path / "adapter_config.json").read_text())
    ours = peft_config(MANIFEST)
    named_by_us = {"base_model_name_or_path", "modules_to_save"}  # PEFT doubles the heads; it had no name
    assert {key: theirs[key] for key in set(ours) - named_by_us} == {
        key: ours[key] for key in set(ours) - named_by_us
    }
    assert set(ours["modules_to_save"]) <= set(theirs["modules_to_save"])
    unsaid = LoraConfig().to_dict()
    assert {key: theirs[key] for key in set(theirs) - set(ours)} == {
        key: unsaid[key] for key in set(theirs) - set(ours)
    }


@PEFT_ASKS_BY_AN_OLD_NAME
def test_peft_loads_an_adapter_made_without_peft(base: BertForSequenceClassification, tmp_path: Path) -> None:
    trained = {
        B: normal(16, 4, seed=1).float(),
        BIAS: normal(2, seed=2).float(),
        HEAD: normal(2, 16, seed=3).float(),
    }
    whole = full_adapter(trained, tensors=listed(), seed=1)
    save_file(whole, tmp_path / "adapter_model.safetensors")
    (tmp_path / "adapter_config.json").write_text(json.dumps(peft_config(MANIFEST)))
    model = PeftModel.from_pretrained(base, str(tmp_path)).eval()
    held = model.state_dict()
    for name, tensor in whole.items():
        inner = name.replace(".weight", ".default.weight") if ".lora_" in name else name
        inner = inner.replace("classifier.", "classifier.modules_to_save.default.")
        assert torch.equal(held[inner], tensor)


def test_a_task_without_a_peft_type_is_refused() -> None:
    with pytest.raises(ValueError, match="no adapter configuration"):
        peft_config(MANIFEST | {"task": {"kind": "image_generation"}})
