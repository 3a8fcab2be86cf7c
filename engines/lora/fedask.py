"""FedASK: both factors trained, and yet only sums sent, by a randomised decomposition in two messages.

Each client sketches its own s_i B_i A_i, so ranks and alphas may be mixed. The server (or secure aggregation)
adds the messages with the clients' shares.

In rounds: an odd one takes Y in the place of B and leaves Q in the state; the even one after it takes P^T in
the place of A, and the decomposition is the next adapter.
"""

from collections.abc import Mapping

import torch
from torch import Tensor

from engines.lora.factors import Pair
from engines.lora.moves import Moved, by_decomposition
from engines.lora.scaling import LoraScale
from engines.lora.seeding import seeded_a
from engines.lora.spectrum import Spectrum


def test_matrix(seed: int, module: str, *, columns: int, width: int) -> Tensor:
    """Draw the public matrix that all clients multiply with.

    Args:
        seed: the run's public seed.
        module: path of the module; others get independent matrices.
        columns: k of the weight.
        width: p, numbers of the sketch; the result is exact if p is at least the target's rank.
    Returns:
        Shape (k, p), float64, the same bits everywhere.
    Raises:
        ValueError: a length or the seed is out of range.
    """
    return seeded_a(seed, f"{module}.sketch", (width, columns)).to(torch.float64).T


def first_message(pair: Pair, omega: Tensor) -> Tensor:
    """Return s B (A Omega): shape (d, p), float64."""
    wide = pair.wide()
    return pair.scale * (wide.b @ (wide.a @ omega))


def basis(summed: Tensor) -> Tensor:
    """Return the basis that the server sends back: Q of the QR of the first messages' sum, shape (d, p).

    Raises:
        ValueError: p is over d, where a sketch saves nothing.
    """
    if summed.dim() != 2 or summed.shape[1] > summed.shape[0]:
        raise ValueError("a sketch has at most as many columns as the weight has rows")
    q: Tensor = torch.linalg.qr(summed)[0]
    return q


def second_message(pair: Pair, q: Tensor) -> Tensor:
    """Return s A^T (B^T Q): shape (k, p), float64."""
    wide = pair.wide()
    return pair.scale * (wide.a.T @ (wide.b.T @ q))


def combine(q: Tensor, summed: Tensor) -> Spectrum:
    """Decompose the target from the second messages' sum P: T = Q Q^T T = Q P^T.

    Args:
        q: shape (d, p), what the clients were sent.
        summed: P = sum w_i s_i A_i^T B_i^T Q, shape (k, p).
    Returns:
        At most p singular triplets, float64: all of T where p is at least its rank, else the randomised
        decomposition's approximation.
    Source: FedASK, arXiv:2507.09990; Halko et al. 2011, arXiv:0909.4061, Algorithm 5.1.
    """
    u, values, vt = torch.linalg.svd(summed.T, full_matrices=False)
    return Spectrum(u=q @ u, values=values, vt=vt)


def sketches(
    pairs: Mapping[str, Pair], shapes: Mapping[str, tuple[int, int]], *, seed: int, number: int
) -> dict[str, Tensor]:
    """Return a client's messages of an odd round, by the names of the B factors, float32.

    Args:
        pairs: the client's trained factors by module path.
        shapes: of the messages, by factor name.
        seed: the run's public seed.
        number: of the round, from 1; each has test matrices of its own.
    """
    found = {}
    for module, pair in pairs.items():
        width, columns = shapes[f"{module}.lora_A.weight"]
        omega = test_matrix(seed, f"{module}.round.{number}", columns=columns, width=width)
        found[f"{module}.lora_B.weight"] = first_message(pair, omega).to(torch.float32)
    return found


def answers(pairs: Mapping[str, Pair], bases: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return a client's messages of an even round, P^T by the names of the A factors, float32.

    Args:
        pairs: the same factors as in the round before, by module path.
        bases: what the server made of the sketches, by module path.
    Raises:
        KeyError: a module has no basis.
        ValueError: a basis does not fit its module.
    """
    found = {}
    for module, pair in pairs.items():
        if bases[module].dim() != 2 or bases[module].shape[0] != pair.shape[0]:
            raise ValueError(f"{module}: its basis does not have the weight's rows")
        message = second_message(pair, bases[module].to(torch.float64))
        found[f"{module}.lora_A.weight"] = message.T.to(torch.float32).contiguous()
    return found


def decomposed(q: Tensor, summed: Tensor, *, scale: LoraScale, spare_a: Tensor) -> Moved:
    """Return the adapter of the run's rank nearest to the target, as `flexlora` writes it.

    Args:
        q: shape (d, p).
        summed: P^T, the mean of the second messages, shape (p, k).
        scale: rank and alpha of the run.
        spare_a: shape (rank, k): rows of A beyond what the target holds.
    """
    target = combine(q.to(torch.float64), summed.to(torch.float64).T)
    return by_decomposition(target, scale=scale, spare_a=spare_a)
