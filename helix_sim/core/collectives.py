"""What each collective sends per rank, in every form it can take. No rates, no latencies: the timing has those."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt

from helix_sim.core.numeric import Column, ceil_div, chosen, floor_div, larger, smaller
from helix_sim.core.recorded import called_whole


@dataclass(frozen=True, slots=True, kw_only=True)
class Form:
    """One way to run a collective: bytes the busiest rank sends over each network, and its phases in sequence."""

    nvlink_bytes: Column
    network_bytes: Column
    phases: Column
    network_phases: Column


@dataclass(frozen=True, slots=True, kw_only=True)
class Collective:
    """A collective among `group` ranks that stand `stride` ranks apart, in each of `blocks` neighbouring blocks.

    payload: for an all-reduce, the bytes of the reduced tensor; for every direct kind (all-to-all, all-gather,
    reduce-scatter, broadcast, send), the bytes that the busiest rank sends or receives, whichever is more. Its buffers'
    HBM traffic is left to the kernels before and after it. A block is group·stride ranks, in which `stride` such groups
    interleave; blocks follow each other from the edge of an NVLink domain, so that most start inside one.
    """

    kind: str
    payload: Column
    group: Column
    stride: Column = 1
    blocks: Column = 1

    @property
    def calls(self) -> Any:
        """1 where there is somebody to talk to, else 0."""
        return (self.group > 1) * 1

    @property
    def link_bytes(self) -> Any:
        """Bytes the busiest rank sends, in the form that sends least.

        A ring cuts its tensor into equal pieces here: where n does not divide it, a rank sends up to one value more in
        each of the two phases.

        >>> Collective(kind="all-reduce", payload=64.0, group=4).link_bytes
        96.0
        """
        if self.kind == "all-reduce":
            return 2 * (self.group - 1) / self.group * self.payload
        return self.calls * self.payload

    def neighbours(self, domain: int) -> tuple[Any, Any]:
        """Ranks of one group that share an NVLink domain of `domain` ranks: where they are fewest, and where most.

        A piece of w neighbouring ranks holds floor(w/stride) or ceil(w/stride) of every group that it touches. The
        rank with the fewest sends most outside, the one with the most sends most over NVLink.

        >>> [tuple(map(float, direct("all-to-all", 1.0, n).neighbours(8))) for n in (8, 9, 12, 20)]
        [(8.0, 8.0), (1.0, 8.0), (4.0, 8.0), (4.0, 8.0)]
        """
        width = self.group * self.stride
        fewest = larger(floor_div(narrowest_piece(width, self.blocks, domain), self.stride), 1)
        return fewest, ceil_div(smaller(width, domain), self.stride)

    def forms(self, domain: int, switch_reduces: bool) -> tuple[Form, ...]:
        """Every form of this collective on NVLink domains of `domain` ranks, whose switches may reduce and multicast.

        Both networks carry at once, so each form has the bytes of the rank that is busiest on either. Where some rank
        is alone in its domain, the in-switch form counts no more than two ranks in the domain of another.
        """
        fewest, most = self.neighbours(domain)
        alone = larger(self.group - 1, 1)
        inside, outside = (most - 1) / alone, (self.group - fewest) / alone
        if self.kind != "all-reduce":
            return (_direct(self.calls * self.payload, self.calls, inside, outside),)
        one_shot = _direct((self.group - 1) * self.payload, self.calls, inside, outside)
        width = self.group * self.stride
        left = width - floor_div(width, domain) * domain
        domains = smaller(floor_div(width, domain) + (left > 0) + (left > fewest * self.stride), self.group)
        ring = Form(
            nvlink_bytes=2 * (most - 1) / most * self.payload,
            network_bytes=2 * (domains - 1) / domains * self.payload / fewest,
            phases=2 * (most > 1),
            network_phases=2 * (domains > 1),
        )
        few = larger(fewest, smaller(most, 2))
        in_switch = Form(
            nvlink_bytes=(most > 1) * (few + 1) / few * self.payload,
            network_bytes=ring.network_bytes,
            phases=1 * (most > 1),
            network_phases=ring.network_phases,
        )
        return (one_shot, ring, in_switch) if switch_reduces else (one_shot, ring)


@called_whole
def narrowest_piece(width: Column, blocks: Column, domain: int) -> Any:
    """Ranks in the smallest piece into which domains of `domain` ranks cut `blocks` neighbouring blocks of `width`.

    The first block starts at a domain's edge, block j at j·width mod domain: the smallest piece is the least distance
    of a block's end from an edge. Those distances fall as the remainders of Euclid's algorithm do, stopped at so many
    blocks; unstopped, they end at the greatest common divisor of both widths.

    >>> [float(narrowest_piece(12, blocks, 72)) for blocks in (1, 6, 7)]
    [12.0, 12.0, 12.0]
    >>> [float(narrowest_piece(20, blocks, 72)) for blocks in (1, 3, 4, 9)]
    [20.0, 20.0, 8.0, 4.0]
    """
    whole, step = smaller(width, domain), width - floor_div(width, domain) * domain
    cut = (width * blocks > domain) & (step > 0)
    if cut is False or not np.any(cut):
        return whole
    steps, counts = chosen(cut, step, 1), smaller(blocks, domain)  # more blocks end where these did
    if domain > MOST_TABLED:
        low, count = np.broadcast_arrays(steps, counts)
        nearest = _nearest_end(low * 1.0, count * 1.0, domain)
    elif cut is True:
        nearest = float(_nearest_ends(domain)[int(steps), int(counts)])
    else:
        nearest = _nearest_ends(domain)[steps.astype(np.intp), np.asarray(counts, dtype=np.intp)]
    return chosen(cut, smaller(nearest, whole), whole)


MOST_TABLED = 256
"""Ranks of an NVLink domain up to which `_nearest_end` is looked up: 65 thousand numbers, racks have fewer."""


@lru_cache(maxsize=16)
def _nearest_ends(domain: int) -> npt.NDArray[np.float64]:
    """`_nearest_end` of blocks that end 1, 2, … ranks further (row), of as many as there are ranks at most (column)."""
    steps, counts = np.meshgrid(np.arange(1.0, domain), np.arange(1.0, domain + 1), indexing="ij")
    table = np.full((domain, domain + 1), float(domain))
    table[1:, 1:] = _nearest_end(steps, counts, domain)
    return table


def _nearest_end(low: Any, count: Any, domain: int) -> Any:
    """The least distance from an edge of the ends of `count` blocks, each `low` ranks further around the domain."""
    last = np.mod(count * low, domain)
    high, low_at, high_at = domain - low, np.ones_like(low), np.ones_like(low)
    while (on := (low_at + high_at < count) & (low != high)).any():
        falls = low > high
        more, less = np.where(falls, low, high), np.where(falls, high, low)
        at, by = np.where(falls, low_at, high_at), np.where(falls, high_at, low_at)
        times = on * np.minimum(np.ceil(more / less) - 1, np.floor((count - 1 - at) / by))
        low, high = low - falls * times * high, high - ~falls * times * low
        low_at, high_at = low_at + falls * times * high_at, high_at + ~falls * times * low_at
    nearest = np.minimum(low, np.where(count > 1, high, domain))
    return np.minimum(nearest, np.where(last > 0, last, domain))


def _direct(sent: Column, calls: Column, inside: Column, outside: Column) -> Form:
    """Every rank writes straight to every other; `inside` and `outside` are the most peers in a domain and beyond it.

    Both as shares of all peers: of the rank with the most of each kind.
    """
    return Form(
        nvlink_bytes=sent * inside,
        network_bytes=sent * outside,
        phases=calls,
        network_phases=calls * (outside > 0),
    )


def all_reduce(payload: Column, group: Column, blocks: Column = 1) -> Collective:
    """Sum of a tensor of `payload` bytes over `group` neighbouring ranks, left on each of them, in each of `blocks`.

    One-shot: every rank writes its whole tensor to the n - 1 others, (n - 1)·payload in one phase. Ring
    (reduce-scatter, then all-gather): 2·(n - 1)/n·payload in two phases, inside each domain and then between domains,
    where a rank sends the share of the tensor that it holds of its own domain's sum: most where a domain has fewest.
    In-switch (NVLink SHARP): the switch adds what it reads from all ranks and multicasts the sum, so a rank sends its
    tensor and its share of the result, (n + 1)/n·payload in one phase.
    """
    return Collective(kind="all-reduce", payload=payload, group=group, blocks=blocks)


def direct(kind: str, payload: Column, group: Column, stride: Column = 1, blocks: Column = 1) -> Collective:
    """A collective in which ranks write straight to their peers; `payload` leaves (or enters) the busiest rank."""
    return Collective(kind=kind, payload=payload, group=group, stride=stride, blocks=blocks)
