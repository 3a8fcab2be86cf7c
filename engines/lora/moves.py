"""What a round of `flexlora`, `flora` or `fedex` makes of one module, from its clients' products.

These three look at the products s_i B_i A_i and not at factors by themselves. What an adapter of the run's
rank cannot hold goes into the base weight (`flora`, `fedex`) or is cut off, and said to be (`flexlora`).
"""

import dataclasses

from torch import Tensor

from engines.lora.factors import Pair, norm
from engines.lora.scaling import LoraScale
from engines.lora.spectrum import Projection, Spectrum, cut, rank_by_energy
from engines.lora.target import as_pair, compressed


@dataclasses.dataclass(frozen=True, eq=False)
class Moved:
    """One module after a round."""

    pair: Pair
    """The adapter from which clients go on, float64, of the run's rank and scale."""
    base: Pair | None
    """What the base weight has taken up so far, float64, scale 1, of any rank; None where it takes none."""
    missed: Projection
    """What of the target neither of them holds."""


def by_decomposition(
    target: Spectrum, *, scale: LoraScale, spare_a: Tensor, energy: float | None = None
) -> Moved:
    """FlexLoRA: the nearest adapter of the run's rank, its columns in the order of their weight.

    A client of a smaller rank takes the leading columns, which are the nearest adapter of that rank.

    Args:
        target: of the round's clients.
        scale: rank and alpha of the run.
        spare_a: shape (rank, k): rows of A beyond what the target holds, so that they can be trained.
        energy: threshold tau by which fewer directions than the rank are kept; None keeps the rank. The
            target has to carry its noise already where it is to have any.
    Raises:
        ValueError: an argument is out of range.
    Source: FlexLoRA, arXiv:2402.11505; FLoRIST, arXiv:2506.09199.
    """
    kept = scale.rank if energy is None else min(scale.rank, rank_by_energy(target, energy))
    shorter = Spectrum(target.u[:, :kept], target.values[:kept], target.vt[:kept])
    pair, _ = cut(shorter, scale.rank, scale=scale.factor, spare_a=spare_a)
    _, missed = cut(target, kept, scale=scale.factor)
    return Moved(pair, None, missed)


def by_stacking(target: Spectrum, *, base: Pair, scale: LoraScale, fresh_a: Tensor) -> Moved:
    """FLoRA: the base weight takes all of the target, and adapters start anew.

    Args:
        target: of the round's clients.
        base: what the base weight has taken up before.
        scale: rank and alpha of the run.
        fresh_a: shape (rank, k): the A that the next round starts from; B starts from zero.
    Source: FLoRA, arXiv:2409.05976.
    """
    taken = compressed([base, as_pair(target)])
    fresh = Pair(fresh_a.new_zeros((base.shape[0], scale.rank)), fresh_a, scale.factor).wide()
    return Moved(fresh, taken, Projection(0.0, norm(as_pair(target))))


def by_residual(target: Spectrum, *, mean: Pair, base: Pair) -> Moved:
    """FedEx-LoRA: adapters go on from the mean of factors, and the base weight takes what that misses.

    Args:
        target: of the round's clients.
        mean: the mean of their factors, of the run's rank and scale.
        base: what the base weight has taken up before.
    Source: FedEx-LoRA, arXiv:2410.09432.
    """
    wide = mean.wide()
    whole = norm(as_pair(target))
    summands = wide.scale * float(wide.b.norm() * wide.a.norm())
    rounded = (4 + wide.rank) * max(summands, whole)  # of so many additions, in products and decompositions
    minus = Pair(-wide.b, wide.a, wide.scale)
    taken = compressed([base, as_pair(target), minus], beside=rounded)
    return Moved(wide, taken, Projection(0.0, whole))


def by_factors(target: Spectrum, *, mean: Pair) -> Projection:
    """FedIT: say what the mean of factors misses of the target, their covariance."""
    wide = mean.wide()
    rest = compressed([as_pair(target), Pair(-wide.b, wide.a, wide.scale)])
    return Projection(norm(rest) if rest.rank else 0.0, norm(as_pair(target)))
