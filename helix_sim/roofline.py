"""The clock: Work to seconds, with a machine's rates and a clock's constants. It knows no model and no layout."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from helix_sim.spec import Clock, Hardware
from helix_sim.units import Column
from helix_sim.work import Work

TERMS = ("latency", "math", "hbm", "link")


@dataclass(frozen=True, slots=True, kw_only=True)
class OpTime:
    """Seconds of one op, once, by term: latency, then whichever of math, HBM and link takes longest."""

    latency_s: Column
    math_s: Column
    hbm_s: Column
    link_s: Column

    @property
    def body_s(self) -> Any:
        """Time at full rate: the slowest of arithmetic, memory and link."""
        return np.maximum(np.maximum(self.math_s, self.hbm_s), self.link_s)

    @property
    def seconds(self) -> Any:
        """Latency, then the body."""
        return self.latency_s + self.body_s

    @property
    def binds(self) -> str:
        """The largest term, for one layout."""
        terms = (self.latency_s, self.math_s, self.hbm_s, self.link_s)
        return TERMS[int(np.argmax([float(term) for term in terms]))]


def op_time(work: Work, hardware: Hardware, clock: Clock) -> OpTime:
    """Time of one op on one GPU.

    kernels:     launches · latency + max(FLOP / (share · rate), bytes / (share · HBM bandwidth))
    collectives: phases · latency + max(NVLink bytes / bandwidth, network bytes / bandwidth), in its fastest form
    """
    if work.collective is not None:
        return _collective_time(work, hardware, clock)
    constants = clock.of(work.op_class)
    rate = hardware.flops_per_s(work.math) * constants.math_share.value
    bandwidth = hardware.hbm_bytes_per_s * constants.bandwidth_share.value
    return OpTime(
        latency_s=work.kernels * _launches(work, clock) * constants.latency_s,
        math_s=work.flops / rate,
        hbm_s=work.hbm_bytes / bandwidth,
        link_s=0.0,
    )


def _launches(work: Work, clock: Clock) -> Any:
    """Latencies that an op's pieces pay together."""
    return 1 + (work.pieces - 1) * clock.chunk_latency.value


def _collective_time(work: Work, hardware: Hardware, clock: Clock) -> OpTime:
    assert work.collective is not None
    constants = clock.collective
    nvlink = hardware.nvlink_bytes_per_s * constants.nvlink_share.value
    network = hardware.network_bytes_per_s * constants.network_share.value
    launches = _launches(work, clock)
    latency: Any = np.inf
    link: Any = np.inf
    for form in work.collective.forms(hardware.domain, hardware.nvlink_switch_reduces.value):
        form_latency = launches * (
            form.phases * constants.latency_s + form.network_phases * constants.network_latency_s
        )
        form_link = np.maximum(form.nvlink_bytes / nvlink, form.network_bytes / network)
        better = form_latency + form_link < latency + link
        latency = np.where(better, form_latency, latency)
        link = np.where(better, form_link, link)
    return OpTime(latency_s=latency, math_s=0.0, hbm_s=0.0, link_s=link)
