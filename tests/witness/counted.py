"""Ranks in one process that compute with real tensors and count what it would cost a GPU.

A rank counts, op by op, the FLOP of every matrix product from the shapes it multiplies, the bytes of every tensor it
would read from or write to HBM, and the bytes it sends and receives. What is counted and what is not follows the
library's conventions: sums, softmax, norms and gates cost bytes but no FLOP, and a collective costs link bytes only,
its buffers riding in the kernels before and after it. Nothing here imports an equation.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, fields

import numpy as np
import numpy.typing as npt

from helix_sim.core.units import bytes_per_value
from helix_sim.specs.precision import Precision

Array = npt.NDArray[np.float64]


@dataclass(slots=True, kw_only=True)
class Count:
    """What one op has cost one rank so far. Mutable: a rank adds to it while it runs."""

    flops: float = 0
    weight_bytes: float = 0
    kv_bytes: float = 0
    activation_bytes: float = 0
    sent_bytes: float = 0
    received_bytes: float = 0

    @property
    def link_bytes(self) -> float:
        """Bytes sent or received, whichever is more."""
        return max(self.sent_bytes, self.received_bytes)


class Rank:
    """One GPU: it multiplies, moves and sends, and remembers under the name of the op what that took."""

    def __init__(self, precision: Precision) -> None:
        self.precision = precision
        self.counts: defaultdict[str, Count] = defaultdict(Count)

    def bytes_of(self, tensor: str) -> float:
        """Bytes of one value of a tensor; a log-sum-exp is FP32 in every precision."""
        return bytes_per_value("fp32" if tensor == "lse" else self.precision.format_of(tensor))

    def product(self, op: str, a: Array, b: Array) -> Array:
        """a [rows, inner] x b [inner, outer]: 2·rows·inner·outer FLOP; of several, if both have axes before these."""
        self.counts[op].flops += 2 * a.size * b.shape[-1]
        return a @ b

    def moves(self, op: str, *values: npt.NDArray[np.generic], tensor: str = "activations") -> None:
        """Activations read from or written to HBM, each once."""
        self.counts[op].activation_bytes += sum(v.size for v in values) * self.bytes_of(tensor)

    def moves_kv(self, op: str, values: Array, each: float | None = None) -> None:
        """Cached values read or written, of `each` bytes where they are not in the KV cache's format."""
        self.counts[op].kv_bytes += values.size * (self.bytes_of("kv") if each is None else each)

    def linear(self, op: str, x: Array, w: Array, tensor: str = "weights") -> Array:
        """x [rows, inner] through the weights w [inner, outer], which are read once."""
        y = self.product(op, x, w)
        self.counts[op].weight_bytes += w.size * self.bytes_of(tensor)
        self.moves(op, x, y)
        return y


def send(op: str, source: Rank, target: Rank, values: Array, tensor: str = "wire") -> Array:
    """Values on their way from one rank to another; what a rank keeps for itself crosses no link."""
    if source is not target:
        size = values.size * source.bytes_of(tensor)
        source.counts[op].sent_bytes += size
        target.counts[op].received_bytes += size
    return values


def ring_all_reduce(op: str, ranks: Sequence[Rank], parts: Sequence[Array]) -> list[Array]:
    """The sum of every rank's part, left on each: a ring reduce-scatter, then a ring all-gather.

    The tensor is cut into one chunk a rank, and each rank passes n - 1 chunks to its neighbour in either phase.
    """
    n = len(ranks)
    cuts = np.linspace(0, parts[0].size, n + 1).astype(int)
    held = [part.astype(np.float64).ravel() for part in parts]
    for phase in (0, 1):
        for turn in range(n - 1):
            chunks = [slice(cuts[c], cuts[c + 1]) for c in ((r + phase - turn) % n for r in range(n))]
            flying = [send(op, rank, ranks[(r + 1) % n], held[r][chunks[r]].copy()) for r, rank in enumerate(ranks)]
            for r, chunk in enumerate(flying):
                into = held[(r + 1) % n]
                into[chunks[r]] = chunk if phase else into[chunks[r]] + chunk
    return [total.reshape(parts[0].shape) for total in held]


def one_shot_all_reduce(op: str, ranks: Sequence[Rank], parts: Sequence[Array]) -> list[Array]:
    """The same sum in one phase: every rank writes its whole part to every other, and each adds what it got."""
    inbox = [[send(op, source, target, part) for source, part in zip(ranks, parts, strict=True)] for target in ranks]
    return [np.sum(got, axis=0) for got in inbox]


def busiest(ranks: Sequence[Rank], op: str) -> Count:
    """The largest count of any rank, quantity by quantity: the one that sets the time of each."""
    found = [rank.counts.get(op, Count()) for rank in ranks]
    return Count(**{field.name: max(getattr(count, field.name) for count in found) for field in fields(Count)})
