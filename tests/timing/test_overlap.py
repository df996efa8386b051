"""HOP-B against figure 3 of the paper and against a queue simulation, and when searches try it."""

import heapq
from itertools import count

import numpy as np
import pytest
from cases import GB200, LLAMA, PAPER

from helix_sim.core.layout import Layout
from helix_sim.search.frame import decode_step
from helix_sim.search.plan import plan
from helix_sim.specs.load import load_sweep, load_timing
from helix_sim.specs.precision import Precision
from helix_sim.timing.overlap import hidden_by_pipelining, pipelined

STACK = load_timing("gb200-trtllm")


def simulated(compute, issue, occupancy, flight, chunks):
    """When the last piece has arrived: events of a GPU that computes and sends in turn, and a link that takes turns."""
    events, number = [], count()
    waiting, gpu_busy, link_busy, arrived, left = [], False, False, 0.0, list(range(chunks))

    def at(time, what, piece):
        heapq.heappush(events, (time, next(number), what, piece))

    at(0.0, "gpu free", None)
    while events:
        now, _, what, piece = heapq.heappop(events)
        if what == "gpu free":
            gpu_busy = False
        elif what == "computed":
            at(now + issue, "issued", piece)
        elif what == "issued":
            waiting.append(piece)
            at(now, "gpu free", None)
        elif what == "sent":
            link_busy = False
            at(now + flight, "arrived", piece)
        else:
            arrived = max(arrived, now)
        if not gpu_busy and left and what == "gpu free":
            gpu_busy = True
            at(now + compute, "computed", left.pop(0))
        if not link_busy and waiting:
            link_busy = True
            at(now + occupancy, "sent", waiting.pop(0))
    return arrived


def test_hop_b_takes_as_long_as_a_simulation_of_its_queues():
    rng = np.random.default_rng(13)
    for _ in range(500):
        compute, issue, occupancy, flight = rng.exponential(size=4) * rng.integers(0, 2, size=4)
        chunks = int(rng.integers(1, 65))
        whole = simulated(compute, issue, occupancy, flight, chunks)
        assert pipelined(compute, occupancy, chunks, issue=issue, flight=flight) == pytest.approx(whole, rel=1e-12)
        in_turn = chunks * (compute + issue + occupancy) + flight
        saved = hidden_by_pipelining(compute + issue, occupancy, chunks)
        assert in_turn - saved == pytest.approx(whole, rel=1e-12)


def test_hop_b_reproduces_figure_3():
    assert pipelined(16.0, 9.6, chunks=1) == pytest.approx(25.6)
    assert pipelined(2.0, 1.2, chunks=8) == pytest.approx(17.2) == pytest.approx(simulated(2.0, 0.0, 1.2, 0.0, 8))


@pytest.mark.parametrize("timing", [PAPER, STACK], ids=lambda timing: timing.name)
@pytest.mark.parametrize("chunks", [1, 2, 4, 16])
def test_a_step_waits_for_its_exchanges_as_long_as_the_simulation(timing, chunks):
    fp8 = Precision(weights="fp8", kv="fp8", math="fp8")
    step = decode_step(
        LLAMA, GB200, Layout(batch=16, tpa=8, kvp=8, tpf=64, chunks=chunks), 10**6, precision=fp8, timing=timing
    )
    core, sent = step.times["attention_core"], step.times["exchange"]
    shares = timing.hop_b
    latency = float(sent.latency_s) / (
        1 + (chunks - 1) * (shares.exchange_issue.value + shares.exchange_occupancy.value)
    )
    whole = simulated(
        float(core.seconds) / chunks,
        shares.exchange_issue.value * latency,
        float(sent.body_s) / chunks + shares.exchange_occupancy.value * latency,
        (1 - shares.exchange_issue.value - shares.exchange_occupancy.value) * latency,
        chunks,
    )
    assert float(core.seconds + sent.seconds - step.hidden_s["exchange"]) == pytest.approx(whole, rel=1e-9)


def test_searches_try_chunks_where_the_kernels_can_overlap_or_where_a_sweep_insists():
    sweep = load_sweep("paper-deepseek-r1")
    assert plan(sweep).chunk_axis("helix") == list(sweep.chunks)
    assert not plan(sweep).remarks
    stack = plan(sweep.with_timing("gb200-trtllm"))
    assert stack.chunk_axis("helix") == [1]
    assert any("helixAllToAll.cu" in remark and "chunks_anyway: true" in remark for remark in stack.remarks)
    insisting = plan(sweep.with_timing("gb200-trtllm").model_copy(update={"chunks_anyway": True}))
    assert insisting.chunk_axis("helix") == list(sweep.chunks)
    assert not insisting.remarks
