"""What runs at the same time: HOP-B's pipeline, all-reduces behind products, and two microbatches that take turns."""

from __future__ import annotations

from dataclasses import dataclass
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


# --- Two microbatches ------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerTimes:
    """Seconds of one layer and one microbatch, by what can run behind what.

    prepare: attention up to its core, and what the layer before it leaves behind its combine. attend: the core, and all
    up to the dispatch. shared, experts: the shared and the routed experts. dispatch, combine: the two exchanges.
    """

    prepare: Any
    attend: Any
    shared: Any
    experts: Any
    dispatch: Any
    combine: Any

    @property
    def seconds(self) -> Any:
        """Seconds of all of them in turn."""
        return self.prepare + self.attend + self.shared + self.experts + self.dispatch + self.combine


@dataclass(frozen=True, slots=True, kw_only=True)
class HiddenExchanges:
    """Seconds of both exchanges that run behind the other microbatch: of one layer and microbatch, and less once a run.

    dispatch_lost, combine_lost: what less is hidden in a whole run of layers, whose first and last have nobody beside.
    """

    dispatch: Any
    combine: Any
    dispatch_lost: Any
    combine_lost: Any


def hidden_by_turns(x: LayerTimes, order: str) -> HiddenExchanges:
    """What two microbatches hide of dispatch D and combine C, of whose GPU time an exchange takes none.

    attention-in-two: D runs behind the own shared experts S and the other's projections A0, C behind the other's core
    A1; a layer takes 2·(max(D, S + A0) + E + max(C, A1)) [DeepSeek's five stages,
    https://github.com/deepseek-ai/open-infra-index, day 6; SGLang, operations_strategy.py].
    attention-whole: with A = A0 + A1, a layer takes max(D, A) + max(D, E) + max(C, S + E) + max(C, S + A) [vLLM,
    https://docs.vllm.ai/en/stable/design/dbo/].

    >>> x = LayerTimes(prepare=1.0, attend=3.0, shared=1.0, experts=2.0, dispatch=4.0, combine=2.0)
    >>> found = hidden_by_turns(x, "attention-in-two")
    >>> 2 * (x.seconds - found.dispatch - found.combine) == 2 * (max(4, 1 + 1) + 2 + max(2, 3))
    True
    """
    if order == "attention-in-two":
        dispatch, combine = smaller(x.dispatch, x.shared + x.prepare), smaller(x.combine, x.attend)
        lost = dispatch - smaller(x.dispatch, x.shared)
        return HiddenExchanges(dispatch=dispatch, combine=combine, dispatch_lost=lost, combine_lost=combine)
    attention = x.prepare + x.attend
    last = smaller(x.combine, x.shared + attention)
    return HiddenExchanges(
        dispatch=(smaller(x.dispatch, attention) + smaller(x.dispatch, x.experts)) / 2,
        combine=(smaller(x.combine, x.shared + x.experts) + last) / 2,
        dispatch_lost=0.0 * last,
        combine_lost=last - smaller(x.combine, x.shared),
    )
