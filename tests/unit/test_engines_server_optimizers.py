"""Server optimizers against exact vectors, their state, step lengths, buffers and the clients' terms."""

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from engines.aggregation import client_terms, steps
from engines.aggregation.optimizers import Optimizer, Server, start, step
from engines.aggregation.rows import Held

ONE = torch.ones(1)
CHANGES = np.array([[1.0, -0.5], [1.0, 0.5], [0.2, -0.5]])
# Exact vectors: x0 = 0, rate 0.1, momentum .9, decay .99, tau .001.
VECTORS = {
    "adam": (
        Server(kind=Optimizer.ADAM, rate=0.1),
        [[0.09900505, -0.09802019], [0.23274115, -0.09103115], [0.36651206, -0.14322471]],
    ),
    "adam, corrected": (
        Server(kind=Optimizer.ADAM, rate=0.1, bias_correction=True),
        [[0.0990099, -0.09803922], [0.19830601, -0.09284963], [0.28337834, -0.12604375]],
    ),
    "yogi": (
        Server(kind=Optimizer.YOGI, rate=0.1),
        [[0.099005, -0.09802], [0.23240865, -0.09104822], [0.3652024, -0.14298393]],
    ),
    "adagrad": (
        Server(kind=Optimizer.ADAGRAD, rate=0.1),
        [[0.09990005, -0.0998002], [0.17056075, -0.02918945], [0.18455375, -0.08685785]],
    ),
    "momentum": (Server(kind=Optimizer.MOMENTUM), [[1.0, -0.5], [2.9, -0.45], [4.81, -0.905]]),
    "average": (Server(kind=Optimizer.AVERAGE), [[1.0, -0.5], [2.0, 0.0], [2.2, -0.5]]),
}


@pytest.mark.parametrize("name", sorted(VECTORS))
def test_an_optimizer_takes_the_papers_steps(name: str) -> None:
    server, expected = VECTORS[name]
    at, state = np.zeros(2), start(server, 2)
    for change, where in zip(CHANGES, expected, strict=True):
        moved, state = step(server, state, change)
        at = at + moved
        assert at == pytest.approx(where, abs=6e-9)
    assert state["steps"] == 3


def test_a_first_corrected_adam_step_is_not_a_quarter_short() -> None:
    """An exponent that starts at 2 makes it .0735."""
    server = Server(kind=Optimizer.ADAM, rate=0.1, bias_correction=True)
    moved, _ = step(server, start(server, 1), np.ones(1))
    assert moved[0] == pytest.approx(0.0990099, abs=1e-7)


@pytest.mark.parametrize("kind", [Optimizer.ADAM, Optimizer.YOGI])
def test_the_variance_follows_the_change_and_not_the_momentum(kind: Optimizer) -> None:
    server = Server(kind=kind)
    _, state = step(server, start(server, 1), np.array([2.0]))
    _, state = step(server, state, np.array([0.0]))
    assert state["momentum"][0] > 0.1
    assert state["variance"][0] == pytest.approx(0.04 * (0.99 if kind is Optimizer.ADAM else 1.0), rel=1e-3)


@pytest.mark.parametrize("name", sorted(VECTORS))
def test_a_state_that_was_stored_goes_on_where_it_was(name: str) -> None:
    server, _ = VECTORS[name]
    state = start(server, 2)
    before = {key: array.copy() for key, array in state.items()}
    _, after = step(server, state, CHANGES[0])
    assert all((state[key] == before[key]).all() for key in before)  # what was handed in stays
    stored = {key: np.frombuffer(array.tobytes()).reshape(array.shape) for key, array in after.items()}
    assert step(server, stored, CHANGES[1])[0].tobytes() == step(server, after, CHANGES[1])[0].tobytes()


@pytest.mark.parametrize(
    ("state", "change"),
    [
        (start(VECTORS["adam"][0], 3), np.ones(2)),
        (start(VECTORS["momentum"][0], 2), np.ones(2)),
        (start(VECTORS["adam"][0], 2), np.array([1.0, math.nan])),
        (start(VECTORS["adam"][0], 2) | {"variance": np.array([math.inf, 0.0])}, np.ones(2)),
        (start(VECTORS["adam"][0], 2), np.ones((1, 2))),
    ],
)
def test_a_state_or_change_that_does_not_fit_is_refused(
    state: dict[str, np.ndarray], change: np.ndarray
) -> None:
    with pytest.raises(ValueError, match=r"state|finite"):
        step(VECTORS["adam"][0], state, change)


@pytest.mark.parametrize(
    "bad",
    [
        {"rate": 0.0},
        {"rate": math.nan},
        {"rate": math.inf},
        {"momentum": 1.0},
        {"momentum": math.nan},
        {"decay": -0.1},
        {"adaptivity": 0.0},
        {"adaptivity": math.nan},
        {"bias_correction": True},
    ],
)
def test_constants_out_of_range_are_refused(bad: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=r"server's|bias"):
        Server(kind=Optimizer.YOGI, **bad)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="dimension"):
        start(Server(kind=Optimizer.YOGI), 0)


def test_extrapolation_is_the_papers_quotient_and_never_under_one() -> None:
    assert steps.extrapolation([2.0, 4.0], np.array([0.6, 0.8])) == pytest.approx(20 / 4)
    assert steps.extrapolation([1.0, 1.0], np.array([1.0, 0.0])) == 1.0
    assert steps.extrapolation([0.0], np.zeros(3)) == 1.0
    assert steps.extrapolation([2.0], np.zeros(3), epsilon=0.5) == 4.0
    for norms, epsilon in (([], 0.0), ([math.nan], 0.0), ([-1.0], 0.0), ([1.0], math.nan)):
        with pytest.raises(ValueError, match="finite norms"):
            steps.extrapolation(norms, np.ones(2), epsilon=epsilon)


def test_extrapolation_weighs_updates_as_the_aggregate_did_and_takes_their_noise_off() -> None:
    change = np.array([0.6, 0.8])
    assert steps.extrapolation([2.0, 4.0, 9.0], change, weights=[1.0, 0.5, 0.0]) == pytest.approx(8 / 2)
    assert steps.extrapolation([2.0, 4.0], change, noise_energy=4.0) == pytest.approx((10 - 4) / 2)
    assert steps.extrapolation([2.0, 4.0], change, noise_energy=99.0) == 1.0
    for weights in ([1.0], [0.0, 0.0], [1.0, -1.0]):
        with pytest.raises(ValueError, match="finite norms"):
            steps.extrapolation([2.0, 4.0], change, weights=weights)


def test_updates_that_are_noise_alone_make_no_longer_step_than_one() -> None:
    """Without the correction the quotient of pure noise is n / 2."""
    draws = np.random.default_rng(5).normal(size=(20, 5000))
    norms, change = np.linalg.norm(draws, axis=1).tolist(), draws.mean(axis=0)
    assert steps.extrapolation(norms, change) == pytest.approx(10.0, rel=0.05)
    assert steps.extrapolation(norms, change, noise_energy=5000.0) == 1.0


@pytest.mark.parametrize(("momentum", "mu"), [(0.0, 0.0), (0.9, 0.0), (0.0, 1.5), (0.5, 0.8)])
def test_carried_noise_is_what_local_steps_on_pure_noise_leave(momentum: float, mu: float) -> None:
    generator = np.random.default_rng(6)
    at, speed = np.zeros(200_000), np.zeros(200_000)
    for _step in range(5):
        speed = momentum * speed + generator.normal(size=at.size) + mu * at
        at = at - 0.5 * speed
    found = steps.carried_noise(local_steps=5, learning_rate=0.5, momentum=momentum, proximal_mu=mu)
    assert found == pytest.approx(float(at.std()), rel=0.01)


@pytest.mark.parametrize(
    "bad", [{"local_steps": 0}, {"learning_rate": 0.0}, {"momentum": 1.0}, {"proximal_mu": math.nan}]
)
def test_noise_is_carried_through_possible_steps_alone(bad: dict[str, float]) -> None:
    usual: dict[str, float] = {"local_steps": 2, "learning_rate": 0.5, "momentum": 0.9}
    with pytest.raises(ValueError, match=r"step|proximal"):
        steps.carried_noise(**usual | bad)  # type: ignore[arg-type]


@given(st.floats(0.0, 10.0))
def test_noise_on_the_aggregate_makes_steps_shorter_and_not_longer(noise: float) -> None:
    quiet = steps.extrapolation([3.0, 3.0], np.array([1.0, 0.0]))
    assert steps.extrapolation([3.0, 3.0], np.array([1.0, noise])) <= quiet


def test_a_buffer_is_divided_by_its_size_and_weighs_by_age() -> None:
    updates = Held(np.array([[1.0], [2.0], [3.0]]))
    assert [steps.staleness_weight(age) for age in (0, 1, 8)] == pytest.approx([1.0, 0.70710678, 0.33333333])
    found = steps.buffered_mean(updates, [0, 1, 8], buffer=3)
    assert found == pytest.approx([1.1380711875], abs=1e-10)
    normalised = found[0] * 3 / sum(steps.staleness_weight(age) for age in (0, 1, 8))
    assert normalised == pytest.approx(1.6732731032, abs=1e-9)  # what others return


@settings(deadline=None)  # the first example compiles a kernel
@given(st.lists(st.integers(0, 5), min_size=11, max_size=11))
def test_how_a_buffer_falls_on_versions_changes_no_unstaled_mean(versions: list[int]) -> None:
    """Averaged per version, one device in a version of its own would weigh as much as ten in another."""
    updates = np.arange(11.0).reshape(11, 1)
    order = np.argsort(versions, kind="stable")
    assert steps.buffered_mean(Held(updates[order]), [0] * 11, buffer=11) == pytest.approx([5.0])


def test_an_update_that_counts_less_or_was_turned_away_does_not_lengthen_the_others() -> None:
    updates = Held(np.array([[1.0], [2.0]]))
    assert steps.buffered_mean(updates, [0, 0], buffer=4, worth=[1.0, 0.5]) == pytest.approx([0.5])


@pytest.mark.parametrize(("ages", "buffer"), [([0, 0], 1), ([0], 2), ([0, -1], 2)])
def test_a_buffer_that_holds_too_many_or_an_impossible_age_is_refused(ages: list[int], buffer: int) -> None:
    with pytest.raises(ValueError, match=r"buffer|version"):
        steps.buffered_mean(Held(np.ones((2, 1))), ages, buffer=buffer)


def test_the_proximal_gradient_is_the_derivative_of_the_proximal_loss() -> None:
    weights = torch.tensor([[1.0, -2.0], [0.5, 3.0]], dtype=torch.float64, requires_grad=True)
    origin = torch.tensor([[0.5, 0.0], [1.0, 3.0]], dtype=torch.float64)
    loss = 0.5 * 0.1 * (weights - origin).square().sum()
    (expected,) = torch.autograd.grad(loss, weights)
    found = client_terms.proximal_gradient(weights.detach(), origin, strength=0.1)
    assert torch.allclose(found, expected, rtol=1e-14)
    assert not client_terms.proximal_gradient(origin, origin, strength=0.1).any()


def test_scaffold_reaches_the_common_optimum_where_plain_local_steps_drift() -> None:
    """Two clients of different curvature; plain local training settles elsewhere."""
    curvature, optimum = np.array([1.0, 10.0]), np.array([0.0, 1.0])
    best = float(curvature @ optimum / curvature.sum())

    def train(*, corrected: bool) -> float:
        zero = torch.zeros(1, dtype=torch.float64)
        at, shared, own = zero, zero, [zero, zero]
        for _ in range(200):
            moves = []
            for client in (0, 1):
                now = at
                for _ in range(5):
                    gradient = curvature[client] * (now - optimum[client])
                    if corrected:
                        gradient = client_terms.corrected_gradient(gradient, own[client], shared)
                    now = now - 0.05 * gradient
                moves.append(now - at)
                own[client] = client_terms.next_own_variate(
                    own[client], shared, moves[-1], steps=5, rate=0.05
                )
            mean = (moves[0] + moves[1]) / 2
            at = at + mean
            shared = client_terms.next_shared_variate(
                shared, mean, cohort=2, population=2, steps=5, rate=0.05
            )
            assert torch.allclose(shared, (own[0] + own[1]) / 2, atol=1e-12)
        return float(at[0])

    assert train(corrected=True) == pytest.approx(best, abs=1e-6)
    assert abs(train(corrected=False) - best) > 0.05


def test_the_shared_variate_moves_by_the_cohorts_share_of_the_population() -> None:
    """Two of twelve: c_i+ - c_i = -1 - Delta_i / (4 * .5) is 2 and 4, and c + (2/12) * 3 is 1.5."""
    one, own = torch.ones(1), torch.zeros(1)
    changes = [torch.tensor([-6.0]), torch.tensor([-10.0])]
    fresh = [client_terms.next_own_variate(own, one, change, steps=4, rate=0.5) for change in changes]
    assert torch.cat(fresh).tolist() == [2.0, 4.0]
    mean = (changes[0] + changes[1]) / 2
    moved = client_terms.next_shared_variate(one, mean, cohort=2, population=12, steps=4, rate=0.5)
    assert moved.tolist() == pytest.approx([1.5])


def test_an_own_variate_is_the_mean_gradient_of_the_steps_whatever_it_was_before() -> None:
    """So a rounding, or a c_i of long ago, is gone once a round has counted the client again."""
    gradients = torch.tensor([[1.0, -2.0], [0.5, 4.0], [0.0, 1.0]], dtype=torch.float64)
    own, shared = torch.tensor([3.0, -1.0]).double(), torch.tensor([0.25, 2.0]).double()
    change = sum(-0.1 * client_terms.corrected_gradient(one, own, shared) for one in gradients)
    found = client_terms.next_own_variate(own, shared, torch.as_tensor(change), steps=3, rate=0.1)
    assert torch.allclose(found, gradients.mean(dim=0), atol=1e-14)


@pytest.mark.parametrize(
    "build",
    [
        lambda: client_terms.proximal_gradient(torch.ones(2), torch.ones(3), strength=0.1),
        lambda: client_terms.proximal_gradient(torch.ones(2), torch.ones(2), strength=math.nan),
        lambda: client_terms.corrected_gradient(torch.ones(2), torch.ones(2), torch.ones(1)),
        lambda: client_terms.next_own_variate(ONE, ONE, torch.ones(2), steps=1, rate=0.1),
        lambda: client_terms.next_own_variate(ONE, ONE, ONE, steps=0, rate=0.1),
        lambda: client_terms.next_own_variate(ONE, ONE, ONE, steps=1, rate=math.nan),
        lambda: client_terms.next_shared_variate(ONE, ONE, cohort=0, population=3, steps=1, rate=0.1),
        lambda: client_terms.next_shared_variate(ONE, ONE, cohort=2, population=1, steps=1, rate=0.1),
        lambda: client_terms.next_shared_variate(ONE, ONE, cohort=1, population=1, steps=1, rate=0.0),
    ],
)
def test_terms_that_do_not_fit_are_refused(build: Callable[[], object]) -> None:
    with pytest.raises(ValueError, match=r"length|shape|strength|step|cohort"):
        build()
