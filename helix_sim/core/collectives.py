"""What each collective sends per rank, in every form it can take. No rates, no latencies: the timing has those."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from helix_sim.core.numeric import Column, ceil_div, larger, smaller


@dataclass(frozen=True, slots=True, kw_only=True)
class Form:
    """One way to run a collective: bytes the busiest rank sends over each network, and its phases in sequence."""

    nvlink_bytes: Column
    network_bytes: Column
    phases: Column
    network_phases: Column


@dataclass(frozen=True, slots=True, kw_only=True)
class Collective:
    """A collective among `group` ranks that stand `stride` ranks apart.

    payload: for an all-reduce, the bytes of the reduced tensor; for every direct kind (all-to-all, all-gather,
    reduce-scatter, broadcast, send), the bytes that the busiest rank sends or receives, whichever is more. Its buffers'
    HBM traffic is left to the kernels before and after it.
    """

    kind: str
    payload: Column
    group: Column
    stride: Column = 1

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

    def forms(self, domain: int, switch_reduces: bool) -> tuple[Form, ...]:
        """Every form of this collective on NVLink domains of `domain` ranks, whose switches may reduce and multicast.

        Ranks are placed in order, so `domain // stride` neighbours of a group share a domain; a group that starts in
        the middle of one is not told apart from an aligned one.
        """
        local = smaller(self.group, larger(domain // self.stride, 1))
        outside = (self.group - local) / larger(self.group - 1, 1)
        if self.kind != "all-reduce":
            return (_direct(self.calls * self.payload, self.calls, outside),)
        one_shot = _direct((self.group - 1) * self.payload, self.calls, outside)
        domains = ceil_div(self.group, local)
        ring = Form(
            nvlink_bytes=2 * (local - 1) / local * self.payload,
            network_bytes=2 * (domains - 1) / domains * self.payload / local,
            phases=2 * (local > 1),
            network_phases=2 * (domains > 1),
        )
        in_switch = Form(
            nvlink_bytes=(local > 1) * (local + 1) / local * self.payload,
            network_bytes=ring.network_bytes,
            phases=1 * (local > 1),
            network_phases=ring.network_phases,
        )
        return (one_shot, ring, in_switch) if switch_reduces else (one_shot, ring)


def _direct(sent: Column, calls: Column, outside: Column) -> Form:
    """Every rank writes straight to every other; `outside` is the share of peers beyond the domain."""
    return Form(
        nvlink_bytes=sent * (1 - outside),
        network_bytes=sent * outside,
        phases=calls,
        network_phases=calls * (outside > 0),
    )


def all_reduce(payload: Column, group: Column, stride: Column = 1) -> Collective:
    """Sum of a tensor of `payload` bytes over `group` ranks, left on each of them.

    One-shot: every rank writes its whole tensor to the n - 1 others, (n - 1)·payload in one phase. Ring
    (reduce-scatter, then all-gather): 2·(n - 1)/n·payload in two phases, inside each domain and then between domains.
    In-switch (NVLink SHARP): the switch adds what it reads from all ranks and multicasts the sum, so a rank sends its
    tensor and its share of the result, (n + 1)/n·payload in one phase.
    """
    return Collective(kind="all-reduce", payload=payload, group=group, stride=stride)


def direct(kind: str, payload: Column, group: Column, stride: Column = 1) -> Collective:
    """A collective in which ranks write straight to their peers; `payload` leaves (or enters) the busiest rank."""
    return Collective(kind=kind, payload=payload, group=group, stride=stride)
