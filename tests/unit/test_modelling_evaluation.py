from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import accuracy_score, roc_auc_score

from modelling.adapters import load_adapter
from modelling.evaluation import accuracy, auc, example_losses, logits_of
from tests.unit.tiny_model import manifest_of, shaken, trained_part_of, write_tiny_bert


@given(st.lists(st.tuples(st.integers(-5, 5), st.booleans()), min_size=2, max_size=60))
def test_auc_equals_scikit_learns_ties_included(pairs: list[tuple[int, bool]]) -> None:
    scores, kinds = [float(score) for score, _ in pairs], [kind for _, kind in pairs]
    if len(set(kinds)) == 2:
        expected = roc_auc_score(kinds, scores)
        assert auc(torch.tensor(scores), torch.tensor(kinds)) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("kinds", [[True, True], [False, False]])
def test_auc_of_one_kind_is_refused(kinds: list[bool]) -> None:
    with pytest.raises(ValueError, match="positives"):
        auc(torch.tensor([0.1, 0.2]), torch.tensor(kinds))


def test_auc_of_a_score_that_is_no_number_is_refused() -> None:
    with pytest.raises(ValueError, match="numbers"):
        auc(torch.tensor([0.1, float("nan")]), torch.tensor([True, False]))


def test_accuracy_equals_scikit_learns() -> None:
    logits = torch.randn(50, 3, generator=torch.Generator().manual_seed(0))
    labels = torch.arange(50) % 3
    assert accuracy(logits, labels) == accuracy_score(labels.numpy(), np.argmax(logits.numpy(), axis=1))


def test_accuracy_of_nobody_is_refused() -> None:
    with pytest.raises(ValueError, match="example"):
        accuracy(torch.zeros(0, 2), torch.zeros(0, dtype=torch.int64))


def test_each_loss_is_that_of_its_example_alone(tmp_path: Path) -> None:
    folder = write_tiny_bert(tmp_path)
    part, cache, adapter = trained_part_of(manifest_of(folder), folder)
    load_adapter(part.model, shaken(adapter))
    losses = example_losses(part, cache)
    for position in range(3):
        alone = cache.take(torch.tensor([position]))
        log_chances = logits_of(part, alone).log_softmax(dim=1)
        assert float(losses[position]) == pytest.approx(-float(log_chances[0, alone.labels[0]]), abs=1e-5)
