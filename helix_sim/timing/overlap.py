"""What runs at the same time: HOP-B's pipeline of attention and exchange, and all-reduces behind matrix multiplies."""

from __future__ import annotations

from typing import Any

from helix_sim.core.numeric import Column, larger, smaller


def pipelined(compute: Column, occupancy: Column, chunks: Column, *, issue: Column = 0.0, flight: Column = 0.0) -> Any:
    """Time [s] of `chunks` equal pieces of attention, each followed by its exchange; all times are of one piece.

    c + i + (n - 1) * max(c + i, o) + o + f                          [Helix 2025, figure 3: i = f = 0]

    compute: attention of a piece. issue: what the GPU spends to send it, before it goes on to the next. occupancy: how
    long it holds the link. flight: what is left until it has arrived; flights overlap with everything, so that only the
    last one is waited for.

    >>> float(round(pipelined(2.0, 1.2, chunks=8), 6))
    17.2
    >>> float(round(pipelined(16.0, 9.6, chunks=1), 6))
    25.6
    >>> pipelined(2.0, 1.0, chunks=3, issue=0.5, flight=5.0)
    13.5
    """
    held = compute + issue
    return held + (chunks - 1) * larger(held, occupancy) + occupancy + flight


def hidden_by_pipelining(held: Column, occupancy: Column, chunks: Column) -> Any:
    """Seconds that HOP-B saves over running all pieces and their exchanges in turn: all but one piece's shorter half.

    held, occupancy: of one piece, what it holds the GPU for, issue included, and what it holds the link for [s].

    >>> float(round(hidden_by_pipelining(2.0, 1.2, chunks=8), 6))
    8.4
    """
    return (chunks - 1) * smaller(held, occupancy)


def hidden_by_streaming(compute: Column, communication: Column, overlap: float) -> Any:
    """Seconds saved by sending the tiles of a product while the next are multiplied.

    The shorter of the two bodies [s] disappears, times `overlap`; both latencies stay exposed.

    >>> float(hidden_by_streaming(3.0, 2.0, overlap=1.0))
    2.0
    """
    return overlap * smaller(compute, communication)
