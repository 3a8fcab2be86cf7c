"""All clients' updates as the rows of one matrix that is never held whole: rules read it in tiles of columns.

Row i is the i-th client in the order of client ids: callers sort, so that no rule depends on who came first.
Nothing here knows a rule.
"""

from collections.abc import Iterator, Sequence
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from engines.aggregation.kernels import Numbers, mix

SLAB_BYTES = 16 << 20
"""Read ahead of a source in all: one buffer, however many clients share it."""
_FEWEST_COLUMNS = 64
_DTYPES = ("float32", "float64", "int64")

Weights = NDArray[np.float64]


class Source(Protocol):
    """Where updates lie: files, blobs or memory. Whoever writes one converts narrow dtypes to float32."""

    clients: int
    dimension: int
    dtype: np.dtype[Any]
    """float32 or float64, or int64 for steps of a grid."""

    def read(self, client: int, start: int, stop: int, out: Numbers) -> None:
        """Write values `start` to `stop` - 1 of row `client` to `out`, shape (stop - start,)."""

    def cut(self, stop: int) -> int:
        """Where a piece that may end at `stop` ends best: there, or where nothing is read twice."""


class Rows(Protocol):
    """What every rule takes: n rows of d values, in tiles."""

    clients: int
    dimension: int
    dtype: np.dtype[Any]

    def tiles(self, width: int) -> Iterator[tuple[int, Numbers]]:
        """Yield (first column, tile of shape (n, at most width)), in order and without a gap.

        A tile may be a view of the caller's data or a buffer that the next one overwrites: look, do not
        touch or keep.
        """


class Held:
    """Updates that lie in memory already; tiles are views of them."""

    def __init__(self, matrix: Numbers) -> None:
        """Take a matrix of shape (n, d), float16 (read as float32), float32, float64 or int64.

        Raises:
            ValueError: another dtype or shape: integers are never averaged, only summed on a grid.
        """
        if matrix.ndim != 2 or (matrix.dtype != np.float16 and str(matrix.dtype) not in _DTYPES):
            raise ValueError("updates are a matrix of float16, float32, float64, or int64 steps of a grid")
        _require_size(*matrix.shape)
        self._matrix = matrix
        self.clients, self.dimension = matrix.shape
        self.dtype = np.dtype(np.float32) if matrix.dtype == np.float16 else matrix.dtype

    def tiles(self, width: int) -> Iterator[tuple[int, Numbers]]:
        """Yield views; a float16 tile is widened."""
        for start in range(0, self.dimension, width):
            yield start, self._matrix[:, start : start + width].astype(self.dtype, copy=False)


class Streamed:
    """Updates that are read from a source into one buffer of a fixed size."""

    def __init__(self, source: Source) -> None:
        """Read from `source`; refuse a dtype or size that no rule can use (ValueError)."""
        if str(source.dtype) not in _DTYPES:
            raise ValueError("a source of updates yields float32, float64, or int64 steps of a grid")
        _require_size(source.clients, source.dimension)
        self._source = source
        self.clients, self.dimension, self.dtype = source.clients, source.dimension, source.dtype

    def tiles(self, width: int) -> Iterator[tuple[int, Numbers]]:
        """Read long pieces of every client, and cut them into tiles."""
        columns = max(SLAB_BYTES // (self.clients * self.dtype.itemsize), _FEWEST_COLUMNS)
        slab = np.empty((self.clients, min(columns, self.dimension)), dtype=self.dtype)
        start = 0
        while start < self.dimension:
            stop = min(start + slab.shape[1], self.dimension)
            if stop < self.dimension and (end := self._source.cut(stop)) > start:
                stop = end
            for client in range(self.clients):
                self._source.read(client, start, stop, slab[client, : stop - start])
            for at in range(0, stop - start, width):
                yield start + at, slab[:, at : min(at + width, stop - start)]
            start = stop


class Vectors:
    """A source over flat tensors, one a client; narrow ones are widened as they are read."""

    dtype: np.dtype[Any] = np.dtype(np.float32)

    def __init__(self, vectors: Sequence[torch.Tensor]) -> None:
        """Take tensors of shape (d,), float16, bfloat16 or float32.

        Raises:
            ValueError: none, different lengths, or a dtype that is not one of these.
        """
        allowed = (torch.float16, torch.bfloat16, torch.float32)
        if not vectors or any(one.dim() != 1 or one.numel() != vectors[0].numel() for one in vectors):
            raise ValueError("updates are flat tensors of one length")
        if any(one.dtype not in allowed for one in vectors):
            raise ValueError("updates are float16, bfloat16 or float32; integer tensors are no adapter")
        self._vectors = vectors
        self.clients, self.dimension = len(vectors), vectors[0].numel()

    def read(self, client: int, start: int, stop: int, out: Numbers) -> None:
        """Copy a piece, as float32."""
        torch.from_numpy(out).copy_(self._vectors[client].detach()[start:stop])

    def cut(self, stop: int) -> int:
        """There: memory has no pieces."""
        return stop


class Scaled:
    """Some rows of others, each times its own factor: what clipping and turning clients away leave."""

    def __init__(self, base: Rows, kept: Sequence[int], factors: Weights) -> None:
        """Keep rows `kept` (ascending); factors: shape (len(kept),); a factor of 0 makes the zero row."""
        _require_size(len(kept), base.dimension)
        if np.dtype(base.dtype).kind != "f" or not np.isfinite(factors).all():
            raise ValueError("only floating updates are scaled, by finite factors")
        self._base, self._kept, self._factors = base, np.array(kept, dtype=np.intp), factors
        self.clients, self.dimension, self.dtype = len(kept), base.dimension, base.dtype

    def tiles(self, width: int) -> Iterator[tuple[int, Numbers]]:
        """Multiply in float64 and round once."""
        all_rows = len(self._kept) == self._base.clients
        scaled = np.flatnonzero(self._factors != 1.0)
        for start, tile in self._base.tiles(width):
            kept = tile if all_rows and not len(scaled) else tile[self._kept]
            for row in scaled:
                factor = self._factors[row]
                kept[row] = kept[row].astype(np.float64) * factor if factor else 0.0  # 0 times NaN is NaN
            yield start, kept


class Mixed:
    """Means of other rows: row k is sum_i weights[k, i] * base row i."""

    def __init__(self, base: Rows, weights: Weights, base_gram: Weights | None = None) -> None:
        """Mix `base`.

        Args:
            base: n rows, floating.
            weights: shape (m, n); every row adds up to 1.
            base_gram: the centred Gram matrix of `base`, shape (n, n), if it is known: that of the mixed
                rows then follows without another look at them.
        Raises:
            ValueError: integer rows, or weights of another shape.
        """
        if weights.ndim != 2 or weights.shape[1] != base.clients or base.dtype.kind != "f":
            raise ValueError("a mixture needs floating rows and one weight for each of them")
        self.base, self.weights, self.base_gram = base, weights, base_gram
        self.clients, self.dimension, self.dtype = weights.shape[0], base.dimension, base.dtype

    def tiles(self, width: int) -> Iterator[tuple[int, Numbers]]:
        """Multiply tile by tile, in the rows' own dtype."""
        weights = self.weights.astype(self.dtype)
        buffer = np.empty((self.clients, width), dtype=self.dtype)
        for start, tile in self.base.tiles(width):
            out = buffer[:, : tile.shape[1]]
            mix(weights, tile, out)
            yield start, out


class Anchored:
    """Other rows, and one more at the end that is no client: a centre or a reference."""

    def __init__(self, base: Rows, anchor: Numbers) -> None:
        """Append `anchor`, shape (d,), finite; refuse another (ValueError)."""
        if anchor.shape != (base.dimension,) or not np.isfinite(anchor).all():
            raise ValueError("a centre or reference is finite and has one value for each of an update's")
        self._base, self._anchor = base, anchor
        self.clients, self.dimension, self.dtype = base.clients + 1, base.dimension, base.dtype

    def tiles(self, width: int) -> Iterator[tuple[int, Numbers]]:
        """Copy each tile below its anchor's piece."""
        buffer = np.empty((self.clients, width), dtype=self.dtype)
        for start, tile in self._base.tiles(width):
            out = buffer[:, : tile.shape[1]]
            out[:-1] = tile
            out[-1] = self._anchor[start : start + tile.shape[1]]
            yield start, out


def _require_size(clients: int, dimension: int) -> None:
    if clients < 1 or dimension < 1:
        raise ValueError("there is no update to aggregate")
