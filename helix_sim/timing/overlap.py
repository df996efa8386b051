"""What runs at the same time: HOP-B's pipeline of attention and exchange, and all-reduces behind matrix multiplies."""

from __future__ import annotations

from typing import Any

from helix_sim.core.numeric import Column, larger, smaller


def pipelined(a: Column, c: Column, chunks: Column) -> Any:
    """Time of `chunks` equal pieces of compute `a` [s], each followed by its communication `c` [s].

    a + c + (n - 1) * max(a, c), for one piece's a and c            [Helix 2025, figure 3]

    >>> float(round(pipelined(2.0, 1.2, chunks=8), 6))
    17.2
    >>> float(round(pipelined(16.0, 9.6, chunks=1), 6))
    25.6
    """
    return a + c + (chunks - 1) * larger(a, c)


def hidden_by_pipelining(compute: Column, communication: Column, chunks: Column) -> Any:
    """Seconds that HOP-B saves on a batch whose pieces sum to these totals.

    >>> float(round(hidden_by_pipelining(16.0, 9.6, chunks=8), 6))
    8.4
    """
    return compute + communication - pipelined(compute / chunks, communication / chunks, chunks)


def hidden_by_streaming(compute: Column, communication: Column, overlap: float) -> Any:
    """Seconds saved by sending the tiles of a product while the next are multiplied.

    The shorter of the two bodies [s] disappears, times `overlap`; both latencies stay exposed.

    >>> float(hidden_by_streaming(3.0, 2.0, overlap=1.0))
    2.0
    """
    return overlap * smaller(compute, communication)
