import math
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from client.errors import ClientError
from client.trainer import require_usable, train_round
from client.turns import Turn
from engines.lora.states import VARIATE
from modelling.adapters import load_adapter
from modelling.cache import CachedExamples
from modelling.evaluation import logits_of
from modelling.trained import TrainedPart
from tests.unit.tiny_model import manifest_of, shaken, trained_part_of, write_tiny_bert


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_bert(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(autouse=True)
def exact_arithmetic(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DPFL_BF16", "off")


Ready = tuple[dict[str, Any], TrainedPart, CachedExamples, dict[str, Tensor]]


def ready(folder: Path, *, trust: str = "local", count: int = 24, **lora: Any) -> Ready:
    manifest = manifest_of(folder, trust=trust, **lora)
    part, cache, adapter = trained_part_of(manifest, folder, count=count)
    return manifest, part, cache, adapter


def flat(delta: dict[str, Tensor]) -> Tensor:
    return torch.cat([delta[name].reshape(-1) for name in sorted(delta)])


@pytest.mark.parametrize("trust", ["local", "none"])
@pytest.mark.parametrize("method", ["ffa", "fedit"])
def test_a_round_returns_the_delta_of_exactly_the_trained_tensors(
    tiny: Path, trust: str, method: str
) -> None:
    manifest, part, cache, adapter = ready(tiny, trust=trust, method=method)
    delta = train_round(part, cache, adapter, manifest=manifest)
    trained = {entry["name"]: tuple(entry["shape"]) for entry in manifest["tensors"] if entry["trained"]}
    assert {name: tuple(tensor.shape) for name, tensor in delta.items()} == trained
    assert all(tensor.dtype == torch.float32 and tensor.isfinite().all() for tensor in delta.values())
    assert not any("_module." in name or ".default" in name for name in delta)


@pytest.mark.parametrize("trust", ["local", "none"])
def test_what_was_trained_answers_alike_in_a_fresh_model_after_its_file(
    tiny: Path, tmp_path: Path, trust: str
) -> None:
    """Hooks for gradients by example must leave nothing behind that only the trained model knows."""
    manifest, part, cache, adapter = ready(tiny, trust=trust)
    delta = train_round(part, cache, adapter, manifest=manifest)
    trained = {name: value + delta[name] for name, value in adapter.items()}
    save_file({name: value.contiguous() for name, value in trained.items()}, tmp_path / "adapter.safetensors")
    fresh = trained_part_of(manifest, tiny, count=2)[0]
    load_adapter(fresh.model, load_file(tmp_path / "adapter.safetensors"))
    mine, its = logits_of(part, cache), logits_of(fresh, cache)
    assert (mine - its).abs().max() <= 1e-5
    load_adapter(fresh.model, adapter)
    assert (mine - logits_of(fresh, cache)).abs().max() > 1e-3


def test_an_empty_batch_still_adds_noise_of_the_planned_size(tiny: Path) -> None:
    # With nobody in any batch the delta is noise alone: std z*C/divisor*lr on every coordinate.
    manifest, part, cache, adapter = ready(tiny, rank=64)
    manifest["privacy"]["noise_multiplier"] = 1.7
    manifest["privacy"]["clip_norm"] = 0.3
    manifest["privacy"]["divisor"] = 16
    manifest["training"]["local_steps"] = 1
    nobody = cache.take(torch.zeros(0, dtype=torch.int64))
    draws = torch.cat([flat(train_round(part, nobody, adapter, manifest=manifest)) for _ in range(6)])
    assert len(draws) > 20_000  # the standard error of the std is then under 0.5 %
    assert float(draws.std()) == pytest.approx(1.7 * 0.3 / 16 * 0.5, rel=0.02)
    assert abs(float(draws.mean())) < 4 * float(draws.std()) / math.sqrt(len(draws))


def test_a_zero_gradient_gets_the_same_noise_as_an_empty_batch(tiny: Path) -> None:
    # A saturated head: the loss of every example is 0 and so is its gradient.
    manifest, part, cache, adapter = ready(tiny, rank=64)
    manifest["privacy"]["examples"]["rate"] = 1.0
    manifest["training"]["local_steps"] = 1
    sure = cache.take(cache.labels.nonzero().squeeze(1))
    bias = next(name for name in adapter if name.endswith("classifier.bias"))
    start = adapter | {bias: torch.tensor([-500.0, 500.0])}
    draws = torch.cat(
        [
            flat({name: part_ for name, part_ in delta.items() if name != bias})
            for delta in (train_round(part, sure, start, manifest=manifest) for _ in range(6))
        ]
    )
    assert float(draws.std()) == pytest.approx(1.0 / 8 * 0.5, rel=0.02)


def test_momentum_starts_from_rest_in_every_round(tiny: Path) -> None:
    # Noise alone over two steps with momentum m: v1 = g1, v2 = m*g1 + g2, moved by lr*((1+m)*g1 + g2).
    manifest, part, cache, adapter = ready(tiny, rank=64)
    manifest["training"] |= {"local_steps": 2, "momentum": 0.9}
    nobody = cache.take(torch.zeros(0, dtype=torch.int64))
    draws = torch.cat([flat(train_round(part, nobody, adapter, manifest=manifest)) for _ in range(6)])
    assert float(draws.std()) == pytest.approx(0.5 / 8 * math.sqrt(1.9**2 + 1), rel=0.02)


def test_the_proximal_pull_is_added_after_the_noise_and_is_not_clipped(tiny: Path) -> None:
    # Nobody in any batch: x1 = -lr n1, x2 = x1 - lr (n2 + mu x1), so (1 - lr mu) of n1 is left.
    manifest, part, cache, adapter = ready(tiny, rank=64)
    manifest["training"] |= {"local_steps": 2, "momentum": 0.0, "proximal_mu": 1.5}
    nobody = cache.take(torch.zeros(0, dtype=torch.int64))
    draws = torch.cat([flat(train_round(part, nobody, adapter, manifest=manifest)) for _ in range(6)])
    assert float(draws.std()) == pytest.approx(0.5 / 8 * math.sqrt(0.25**2 + 1), rel=0.02)


def test_the_proximal_pull_keeps_an_unprivate_round_nearer_to_its_start(tiny: Path) -> None:
    lengths = []
    for mu in (0.0, 4.0, 16.0):
        manifest, part, cache, adapter = ready(tiny, trust="none")
        manifest["training"] |= {"learning_rate": 0.05, "local_steps": 8, "momentum": 0.0, "proximal_mu": mu}
        delta = train_round(part, cache, adapter, manifest=manifest, order_seed=1)
        lengths.append(float(flat(delta).norm()))
    assert lengths == sorted(lengths, reverse=True)


def corrected(adapter: dict[str, Tensor]) -> tuple[dict[str, Tensor], Turn, dict[str, Tensor]]:
    """An adapter with c, a turn with c_i, and c - c_i: far longer than any bound on a gradient."""
    shared = {
        name: 20.0 + number + torch.zeros_like(one) for number, (name, one) in enumerate(adapter.items())
    }
    own = {name: 3.0 * number + torch.zeros_like(one) for number, (name, one) in enumerate(adapter.items())}
    state = adapter | {f"{name}{VARIATE}": one for name, one in shared.items()}
    return state, Turn(2, variate=own), {name: one - own[name] for name, one in shared.items()}


def test_the_correction_is_added_after_the_noise_and_is_not_clipped(tiny: Path) -> None:
    # Nobody in any batch: each of two steps goes -lr (n + c - c_i), with the plan's noise and c - c_i whole.
    manifest, part, cache, adapter = ready(tiny, rank=64)
    manifest["training"] |= {"local_steps": 2, "momentum": 0.0, "control_variates": "scaffold"}
    nobody = cache.take(torch.zeros(0, dtype=torch.int64))
    state, turn, correction = corrected(adapter)
    rest = [
        {name: one + 2 * 0.5 * correction[name] for name, one in delta.items()}
        for delta in (train_round(part, nobody, state, manifest=manifest, turn=turn) for _ in range(6))
    ]
    draws = torch.cat([flat(one) for one in rest])
    assert float(draws.std()) == pytest.approx(0.5 / 8 * math.sqrt(2), rel=0.02)
    assert abs(float(draws.mean())) < 4 * float(draws.std()) / math.sqrt(len(draws))


def test_the_correction_leaves_each_gradient_and_its_clip_as_they_are(tiny: Path) -> None:
    """One step from one adapter, with and without: they differ by the correction alone."""
    manifest, part, cache, adapter = ready(tiny)
    manifest["privacy"] |= {"clip_norm": 0.01, "noise_multiplier": 1e-6}
    manifest["privacy"]["examples"]["rate"] = 1.0
    manifest["training"] |= {"local_steps": 1, "momentum": 0.0}
    plain = train_round(part, cache, adapter, manifest=manifest)
    state, turn, correction = corrected(adapter)
    manifest["training"]["control_variates"] = "scaffold"
    found = train_round(part, cache, state, manifest=manifest, turn=turn)
    for name, one in found.items():
        assert torch.allclose(one + 0.5 * correction[name], plain[name], atol=1e-5)
    assert float(flat(plain).norm()) <= 0.5 * 24 * 0.01 / 8 + 1e-4


def test_a_variate_of_other_tensors_is_refused(tiny: Path) -> None:
    manifest, part, cache, adapter = ready(tiny)
    manifest["training"] |= {"momentum": 0.0, "control_variates": "scaffold"}
    name = next(iter(adapter))
    with pytest.raises(ClientError) as refused:
        train_round(part, cache, adapter, manifest=manifest, turn=Turn(2, variate={name: adapter[name]}))
    assert refused.value.code == "adapter_unusable"


def plain_step(folder: Path, *, count: int, divisor: float) -> Tensor:
    manifest, part, cache, adapter = ready(folder, trust="none", count=count)
    manifest["privacy"]["examples"]["rate"] = 1.0
    manifest["privacy"]["divisor"] = divisor
    manifest["training"]["local_steps"] = 1
    return flat(train_round(part, cache, adapter, manifest=manifest))


def test_the_sum_is_divided_by_the_manifests_constant_whatever_the_batch(tiny: Path) -> None:
    # Half the divisor doubles the step; a batch of another size is never divided by its own size.
    one, half = plain_step(tiny, count=12, divisor=8), plain_step(tiny, count=12, divisor=4)
    assert torch.allclose(2 * one, half, rtol=1e-4, atol=1e-7)
    manifest, part, cache, adapter = ready(tiny, trust="none", count=12)
    manifest["privacy"] |= {"examples": {"kind": "all"}, "divisor": 8}
    manifest["training"]["local_steps"] = 1
    twice = torch.arange(12).repeat(2)
    doubled = flat(train_round(part, cache.take(twice), adapter, manifest=manifest))
    assert torch.allclose(2 * one, doubled, rtol=1e-4, atol=1e-6)


def test_every_step_is_within_the_clipping_bound_plus_noise(tiny: Path) -> None:
    manifest, part, cache, adapter = ready(tiny)
    manifest["privacy"] |= {"clip_norm": 0.01, "noise_multiplier": 1e-6}
    manifest["privacy"]["examples"]["rate"] = 1.0
    manifest["training"]["local_steps"] = 1
    moved = float(flat(train_round(part, cache, adapter, manifest=manifest)).norm())
    assert 0 < moved <= 24 * 0.01 / 8 * 0.5 * 1.0001


def test_two_private_rounds_differ_in_batches_and_noise(tiny: Path) -> None:
    manifest, part, cache, adapter = ready(tiny)
    torch.manual_seed(0)
    first = train_round(part, cache, adapter, manifest=manifest)
    torch.manual_seed(0)
    second = train_round(part, cache, adapter, manifest=manifest)
    assert not any(torch.equal(first[name], second[name]) for name in first)


def test_training_does_not_touch_the_global_generator(tiny: Path) -> None:
    manifest, part, cache, adapter = ready(tiny)
    before = torch.get_rng_state()
    train_round(part, cache, adapter, manifest=manifest)
    assert torch.equal(before, torch.get_rng_state())


def test_an_unprivate_round_repeats_under_an_order_seed(tiny: Path) -> None:
    manifest, part, cache, adapter = ready(tiny, trust="none")
    runs = [train_round(part, cache, adapter, manifest=manifest, order_seed=seed) for seed in (5, 5, 6)]
    assert torch.equal(flat(runs[0]), flat(runs[1]))
    assert not torch.equal(flat(runs[0]), flat(runs[2]))


def test_one_order_seed_gives_every_round_another_order(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    manifest, part, cache, adapter = ready(tiny, trust="none", count=200)
    taken: list[list[int]] = []
    take = CachedExamples.take

    def recording(self: CachedExamples, positions: Tensor) -> CachedExamples:
        if self is cache:
            taken.append(positions.tolist())
        return take(self, positions)

    monkeypatch.setattr(CachedExamples, "take", recording)
    for start in (adapter, shaken(adapter), adapter):
        train_round(part, cache, start, manifest=manifest, order_seed=5)
    assert taken[:4] != taken[4:8]
    assert taken[:4] == taken[8:]


def test_a_private_round_refuses_an_order_seed(tiny: Path) -> None:
    manifest, part, cache, adapter = ready(tiny)
    with pytest.raises(ClientError) as refusal:
        train_round(part, cache, adapter, manifest=manifest, order_seed=5)
    assert refusal.value.code == "seeded_sampling"


def test_training_learns_what_it_is_shown(tiny: Path) -> None:
    manifest, part, cache, adapter = ready(tiny, trust="none", count=64)
    manifest["privacy"] |= {"divisor": 16}
    manifest["training"] |= {"local_steps": 60}
    train_round(part, cache, adapter, manifest=manifest, order_seed=1)
    with torch.no_grad():
        guesses = part(cache.hidden, cache.mask).argmax(dim=1)
    assert float((guesses == cache.labels).float().mean()) > 0.95


def test_progress_tells_the_step_and_nothing_else(
    tiny: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    manifest, part, cache, adapter = ready(tiny)
    told: list[tuple[int, int]] = []
    train_round(
        part, cache, adapter, manifest=manifest, on_step=lambda step, steps: told.append((step, steps))
    )
    assert told == [(1, 4), (2, 4), (3, 4), (4, 4)]
    captured = capsys.readouterr()
    assert (captured.out, captured.err, caplog.text) == ("", "", "")


def test_a_round_starts_from_the_downloaded_adapter(tiny: Path) -> None:
    manifest, part, cache, adapter = ready(tiny, trust="none")
    elsewhere = shaken(adapter)
    manifest["training"]["learning_rate"] = 1e-6
    load_adapter(part.model, adapter)
    delta = train_round(part, cache, elsewhere, manifest=manifest)
    assert float(flat(delta).abs().max()) < 1e-3


def test_an_adapter_of_another_run_is_refused(tiny: Path) -> None:
    manifest, part, cache, adapter = ready(tiny)
    first = next(iter(adapter))
    for wrong in ({}, adapter | {first: adapter[first] * float("nan")}, adapter | {"x": torch.zeros(1)}):
        with pytest.raises(ClientError) as refusal:
            train_round(part, cache, wrong, manifest=manifest)
        assert refusal.value.code == "adapter_unusable"


@pytest.mark.parametrize(
    ("section", "change"),
    [
        ("training", {"optimizer": "adam"}),
        ("training", {"gradient_checkpointing": True}),
        ("training", {"dtype": "bfloat16"}),
        ("training", {"momentum": 1.0}),
        ("training", {"local_steps": 0}),
        ("training", {"learning_rate": float("inf")}),
        ("lora", {"use_dora": True}),
        ("privacy", {"trust": "central"}),
        ("privacy", {"trust": "distributed"}),
        ("privacy", {"unit": "client"}),
        ("privacy", {"unit": "person"}),
        ("privacy", {"examples": {"kind": "shuffle", "rate": 0.1}}),
        ("privacy", {"examples": {"kind": "poisson", "rate": 1.5}}),
        ("privacy", {"noise_multiplier": None}),
        ("privacy", {"noise_multiplier": 0}),
        ("privacy", {"clip_norm": None}),
        ("privacy", {"divisor": 0}),
    ],
)
def test_a_plan_that_is_not_trained_exactly_is_refused(
    tiny: Path, section: str, change: dict[str, Any]
) -> None:
    manifest, part, cache, adapter = ready(tiny)
    manifest[section] |= change
    with pytest.raises(ClientError) as refusal:
        train_round(part, cache, adapter, manifest=manifest)
    assert refusal.value.code == "unsupported_plan"


def test_a_model_without_exact_gradients_is_refused(tiny: Path) -> None:
    for spoil in ("bfloat16", "checkpointing", "base", "dropout"):
        manifest, part, cache, adapter = ready(tiny)
        if spoil == "bfloat16":
            part.model.to(torch.bfloat16)
        elif spoil == "checkpointing":
            part.model.get_base_model().bert.encoder.layer[2].gradient_checkpointing = True
        elif spoil == "base":
            part.model.get_base_model().bert.encoder.layer[2].output.dense.weight.requires_grad_(True)
        else:
            part.model.get_base_model().dropout.p = 0.1
        with pytest.raises(ClientError) as refusal:
            train_round(part, cache, adapter, manifest=manifest)
        assert refusal.value.code == "unsupported_plan", spoil


def test_an_update_that_must_not_be_sent_is_refused(tiny: Path) -> None:
    _, part, _, adapter = ready(tiny)
    moved = shaken(adapter)
    delta = {name: moved[name] - adapter[name] for name in adapter}
    first = next(iter(delta))
    load_adapter(part.model, moved)
    require_usable(part, adapter, delta)
    wrong = [
        {name: tensor for name, tensor in delta.items() if name != first},
        {f"_module.{name}": tensor for name, tensor in delta.items()},
        delta | {first: delta[first].reshape(-1)},
        delta | {first: delta[first].double()},
        delta | {first: torch.full_like(delta[first], float("nan"))},
        {name: torch.zeros_like(tensor) for name, tensor in delta.items()},
        {name: 2 * tensor for name, tensor in delta.items()},  # not what was trained
    ]
    for update in wrong:
        load_adapter(part.model, moved)
        with pytest.raises(ClientError) as refusal:
            require_usable(part, adapter, update)
        assert refusal.value.code == "update_unusable"
    endless = {
        name: torch.full_like(tensor, 1e38) for name, tensor in delta.items()
    }  # finite; its logits are not
    load_adapter(part.model, {name: adapter[name] + endless[name] for name in adapter})
    with pytest.raises(ClientError, match="reloads"):
        require_usable(part, adapter, endless)


def test_a_round_that_diverges_is_not_sent(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("client.plan.LEARNING_RATES", (1e-8, 1e38))  # further than any plan may go
    manifest, part, cache, adapter = ready(tiny, trust="none")
    manifest["training"] |= {"learning_rate": 1e38, "local_steps": 8}
    with pytest.raises(ClientError) as refusal:
        train_round(part, cache, adapter, manifest=manifest)
    assert refusal.value.code == "update_unusable"


@pytest.mark.parametrize("trust", ["local", "none"])
def test_examples_are_sampled_with_the_manifests_rate_not_with_one_of_their_own(
    tiny: Path, monkeypatch: pytest.MonkeyPatch, trust: str
) -> None:
    """Batches of one size, as a loop over shuffled data has them, would not be what a price is for."""
    sizes: list[int] = []
    take = CachedExamples.take

    def counting(self: CachedExamples, positions: Tensor) -> CachedExamples:
        if self is cache:
            sizes.append(len(positions))
        return take(self, positions)

    manifest, part, cache, adapter = ready(tiny, trust=trust, count=200)
    manifest["privacy"]["examples"] = {"kind": "poisson", "rate": 0.25}
    manifest["training"] |= {"local_steps": 100, "learning_rate": 1e-3}
    monkeypatch.setattr(CachedExamples, "take", counting)
    train_round(part, cache, adapter, manifest=manifest)
    # 20,000 draws at rate .25: standard error of the mean rate .0031; batches vary as a binomial's do
    assert sum(sizes) / 20_000 == pytest.approx(0.25, abs=4 * 0.0031)
    assert 3.5 < float(torch.tensor(sizes, dtype=torch.float64).std()) < 9.0  # sqrt(200*.25*.75) = 6.1
