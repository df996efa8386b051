"""The timeline of a step: what it sums to, what may overlap, and that trace viewers can read it."""

from __future__ import annotations

import json
import subprocess
from collections import Counter, defaultdict
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from helix_sim.cli import app
from helix_sim.core.layout import Layout
from helix_sim.one_layout import LayoutError
from helix_sim.ops.microbatches import split_layers, split_stage
from helix_sim.output.trace import TRACKS, Slice, chrome_trace, timeline
from helix_sim.search.frame import decode_step
from helix_sim.specs.load import load_machine, load_model, load_timing
from helix_sim.specs.precision import Precision
from helix_sim.step import Step
from helix_sim.timing.overlap import pipelined


def step_of(model: str, timing: str = "paper", context: int = 10**6, **widths: int) -> Step:
    widths.setdefault("tpf", widths.get("dp", 1) * widths.get("tpa", 1) * widths.get("kvp", 1) // widths.get("ep", 1))
    machine, formats = load_machine("gb200-nvl72"), Precision(weights="fp4", kv="fp4", math="fp4")
    return decode_step(
        load_model(model), machine, Layout(**widths), context, timing=load_timing(timing), precision=formats
    )


HELIX = {"tpa": 8, "kvp": 8, "batch": 16, "chunks": 4}
STEPS = [
    pytest.param(step_of("llama-3.1-405b", **HELIX), id="Helix, HOP-B"),
    pytest.param(step_of("llama-3.1-405b", tpa=8, kvp=4, tpf=8, batch=4), id="Medha"),
    pytest.param(step_of("deepseek-r1", kvp=8, ep=8, batch=16, chunks=4), id="MoE, HOP-B"),
    pytest.param(
        step_of("deepseek-r1", kvp=8, ep=8, batch=16, chunks=4, timing="gb200-trtllm"), id="MoE, chunks issued"
    ),
    pytest.param(step_of("deepseek-r1", kvp=4, dp=4, ep=16, batch=8, timing="ideal"), id="groups, ideal timing"),
    pytest.param(step_of("deepseek-r1", kvp=4, pp=3, ep=4, batch=2), id="three stages"),
    pytest.param(step_of("llama-3.1-8b", batch=1), id="one GPU"),
    pytest.param(step_of("deepseek-r1", context=4096, dp=32, ep=32, batch=48, microbatches=2), id="in turns"),
    pytest.param(
        step_of("deepseek-r1", "gb200-vllm", context=4096, dp=16, tpa=2, ep=32, batch=64, microbatches=2),
        id="in turns, attention whole",
    ),
    pytest.param(
        step_of("deepseek-r1", "gb200-sglang", context=4096, dp=16, kvp=2, ep=32, batch=64, microbatches=2),
        id="in turns, KVP",
    ),
]


def on_track(slices: list[Slice], track: str) -> list[Slice]:
    return sorted((piece for piece in slices if piece.track == track), key=lambda piece: piece.start_s)


def assert_is_timeline_of(step: Step) -> None:
    """Every law of a timeline, for one step."""
    slices = timeline(step)
    ttl = float(step.ttl_s)
    path = on_track(slices, "critical path")
    assert sum(piece.end_s - piece.start_s for piece in path) == pytest.approx(ttl, rel=1e-9)
    assert path[0].start_s == 0
    assert max(piece.end_s for piece in slices) == pytest.approx(ttl, rel=1e-9)
    for before, after in pairwise(path):
        assert after.start_s == pytest.approx(before.end_s, abs=1e-12 + 1e-9 * ttl)
    for track in TRACKS:
        for before, after in pairwise(on_track(slices, track)):
            assert after.start_s >= before.end_s - 1e-9 * ttl, f"{before.name} and {after.name} overlap on {track}"
    ran: dict[str, float] = defaultdict(float)
    exposed: dict[str, float] = defaultdict(float)
    for piece in slices:
        if piece.op:
            into = exposed if piece.track == "critical path" else ran
            into[piece.op] += piece.end_s - piece.start_s
    executed = executions(step)
    for name, time in step.times.items():
        assert ran[name] == pytest.approx(executed[name] * float(time.seconds), rel=1e-9, abs=1e-15), name
    pair = ("attention_core", "exchange")  # a long exchange hides attention: only their sum is the model's
    left = {
        name: executed[name] * float(time.seconds - step.hidden_s.get(name, 0.0)) for name, time in step.times.items()
    }
    assert sum(exposed[name] for name in pair) == pytest.approx(sum(left[name] for name in pair), rel=1e-9, abs=1e-15)
    for name in step.ops:
        if name not in pair:
            assert exposed[name] == pytest.approx(left[name], rel=1e-9, abs=1e-9 * ttl), name


def executions(step: Step) -> dict[str, int]:
    """How often each op runs on all stages together: once a layer, the ends once, between stages and on each."""
    pp = int(step.layout.pp)
    counts = step.model.kind_counts | Counter(("layer", ", ".join(layer)) for layer in step.model.layer_list)
    counts = split_stage(counts, split_layers(step.model), int(step.layout.microbatches))
    often = counts | {("ends", "opening"): 1, ("ends", "closing"): 1, ("ends", "handover"): pp - 1}
    return {"host": pp} | {op: often[half.key] for half, ops in step.kinds for op in ops}


@pytest.mark.parametrize("step", STEPS)
def test_the_critical_path_has_no_gap_and_sums_to_the_ttl(step: Step) -> None:
    assert_is_timeline_of(step)


@given(
    model=st.sampled_from(["deepseek-r1", "llama-3.1-70b"]),
    widths=st.fixed_dictionaries({axis: st.sampled_from([1, 2, 4]) for axis in ("tpa", "kvp", "dp", "ep", "pp")}),
    batch=st.integers(1, 12),
    chunks=st.integers(1, 12),
    context=st.sampled_from([1000, 50_000, 400_000]),
    timing=st.sampled_from(["paper", "ideal"]),
)
@settings(max_examples=60, deadline=None)
def test_every_layout_that_runs_has_such_a_timeline(
    model: str, widths: dict[str, int], batch: int, chunks: int, context: int, timing: str
) -> None:
    try:
        step = step_of(model, timing, context, batch=batch, chunks=chunks, **widths)
    except LayoutError:
        return
    assert_is_timeline_of(step)


def test_both_microbatches_are_seen_and_a_dispatch_runs_behind_the_other_ones_attention() -> None:
    step = step_of("deepseek-r1", "gb200-sglang", context=4096, dp=32, ep=32, batch=128, microbatches=2)
    slices = timeline(step)
    cores = [[p for p in on_track(slices, f"microbatch {n}") if p.op == "attention_core[half]"] for n in (1, 2)]
    assert len(cores[0]) == len(cores[1]) == 58
    sent = [p for p in on_track(slices, "dispatch and combine") if p.op == "dispatch[half]"]
    assert len(sent) == 116
    first, behind = sent[0], on_track(slices, "microbatch 2")[0]
    assert behind.start_s < first.end_s
    assert {p.layer for p in (first, behind)} == {"layer 4, microbatch 1", "layer 4, microbatch 2"}
    slower = timeline(step_of("deepseek-r1", "gb200-sglang", context=4096, dp=32, ep=32, batch=128))
    assert not [p for p in slower if p.track.startswith("microbatch")]


def test_hop_b_is_seen_chunk_by_chunk() -> None:
    step = step_of("llama-3.1-405b", **HELIX)
    slices = [piece for piece in timeline(step) if piece.layer.startswith("layer 1 ")]
    cores = [piece for piece in slices if piece.op == "attention_core" and piece.track == "compute"]
    sent = [piece for piece in slices if piece.op == "exchange" and piece.track == "communication"]
    assert len(cores) == len(sent) == 4
    for i, (core, exchange) in enumerate(zip(cores, sent, strict=True)):
        assert exchange.start_s >= core.end_s - 1e-15
        if i < 3:
            assert exchange.start_s < cores[i + 1].end_s, "the exchange of a chunk runs behind the next attention"
    whole = sent[-1].end_s - cores[0].start_s
    a, c = float(step.times["attention_core"].seconds) / 4, float(step.times["exchange"].body_s) / 4
    flight = float(step.times["exchange"].latency_s)
    assert whole == pytest.approx(float(pipelined(a, c, 4, flight=flight)), rel=1e-9)


def test_without_hop_b_the_exchange_follows_the_attention() -> None:
    slices = timeline(step_of("llama-3.1-405b", **{**HELIX, "chunks": 1}))
    core = next(piece for piece in slices if piece.op == "attention_core" and piece.track == "compute")
    sent = next(piece for piece in slices if piece.op == "exchange" and piece.track == "communication")
    assert sent.start_s == pytest.approx(core.end_s)


def test_every_layer_of_every_stage_is_there_dense_ones_first() -> None:
    step = step_of("deepseek-r1", kvp=4, ep=4, batch=2, pp=1)
    titles = [piece.name for piece in on_track(timeline(step), "layers")]
    assert len(titles) == 61 + 2
    assert [("dense" in title) for title in titles[1:-1]] == [True] * 3 + [False] * 58
    halves = timeline(step_of("deepseek-r1", kvp=4, ep=4, batch=2, pp=2))
    assert {piece.stage for piece in halves} == {0, 1}


def test_an_all_reduce_starts_while_its_product_runs() -> None:
    slices = timeline(step_of("llama-3.1-405b", "ideal", tpa=8, batch=4, context=10**5))
    product = next(piece for piece in slices if piece.op == "output_projection" and piece.track == "compute")
    reduced = next(p for p in slices if p.op == "attention_all_reduce" and p.track == "communication")
    assert product.start_s <= reduced.start_s < product.end_s


# --- The file --------------------------------------------------------------------------------------------------------


def assert_is_chrome_trace(content: dict[str, Any]) -> None:
    """The trace event format: named tracks, complete events with times, and nothing on a track half over another."""
    tracks: dict[tuple[int, int], list[tuple[float, float]]] = defaultdict(list)
    named = set()
    for event in content["traceEvents"]:
        assert event["ph"] in ("X", "M")
        assert isinstance(event["name"], str)
        assert isinstance(event["pid"], int)
        assert isinstance(event["tid"], int)
        if event["ph"] == "M":
            assert event["name"] in ("process_name", "thread_name", "thread_sort_index")
            named.add((event["pid"], event["tid"]))
            continue
        assert event["ts"] >= 0
        assert event["dur"] >= 0
        tracks[event["pid"], event["tid"]].append((event["ts"], event["ts"] + event["dur"]))
    assert tracks.keys() <= named
    for times in tracks.values():
        for before, after in pairwise(sorted(times)):
            assert after[0] >= before[1] - 1e-6


@pytest.mark.parametrize("step", STEPS)
def test_the_file_is_a_chrome_trace_whose_critical_path_sums_to_the_ttl(step: Step) -> None:
    content = json.loads(json.dumps(chrome_trace(step)))
    assert_is_chrome_trace(content)
    tid = TRACKS.index("critical path") + 1
    total = sum(event["dur"] for event in content["traceEvents"] if event["ph"] == "X" and event["tid"] == tid)
    assert total == pytest.approx(float(step.ttl_s) * 1e6, abs=2e-3)


def test_perfettos_trace_processor_loads_the_file(tmp_path: Path) -> None:
    processor = pytest.importorskip("perfetto.trace_processor", reason="perfetto is not installed")
    step = step_of("llama-3.1-405b", **HELIX)
    path = tmp_path / "step.json"
    path.write_text(json.dumps(chrome_trace(step)))
    try:
        loaded = processor.TraceProcessor(trace=str(path))
    except (OSError, subprocess.SubprocessError) as error:  # its download of the trace processor's binary
        pytest.skip(f"Perfetto's trace processor cannot be fetched here: {type(error).__name__}")
    with loaded as trace:
        named = "slice join thread_track on track_id = thread_track.id join thread using (utid)"
        (found,) = trace.query(f"select sum(dur) as ns from {named} where thread.name = 'critical path'")
        assert found.ns == pytest.approx(float(step.ttl_s) * 1e9, abs=2)
        (wrong,) = trace.query("select sum(value) as n from stats where severity = 'error'")
        assert not wrong.n


def test_the_command_writes_the_file_and_says_the_ttl(tmp_path: Path) -> None:
    path = tmp_path / "step.json"
    words = ["trace", "llama-3.1-8b", "h100-hgx", "--tpa", "2", "--kvp", "2", "--batch", "4", "--context", "128K"]
    shown = CliRunner().invoke(app, [*words, "--out", str(path)])
    assert shown.exit_code == 0, shown.output
    content = json.loads(path.read_text())
    assert_is_chrome_trace(content)
    assert f"{content['otherData']['ttl_us'] / 1e3:.3f} ms" in shown.stdout


@pytest.mark.parametrize("pp", [1, 2])
def test_a_step_that_drafts_shows_verification_and_then_each_draft_and_lasts_as_long_as_the_step(pp):
    x = Layout(batch=8, tpa=1, kvp=8, ep=8, pp=pp, draft_tokens=3)
    step = decode_step("deepseek-r1", "gb200-nvl72", x, 10**6, draft="deepseek-r1-mtp")
    slices = timeline(step)
    path = [piece for piece in slices if piece.track == "critical path"]
    assert sum(piece.end_s - piece.start_s for piece in path) == pytest.approx(float(step.step_s), rel=1e-9)
    titles = [piece.name for piece in slices if piece.track == "layers" and piece.stage == pp - 1]
    assert [title for title in titles if "wait" not in title][-4:] == [
        "end (verified 4 tokens)", "draft 1", "draft 2", "draft 3",
    ]  # fmt: skip
    drawn = {piece.op for piece in path if piece.layer == "draft 2"}
    assert {"attention_core[later draft]", "head[draft]"} <= drawn
    assert not any("first draft" in op for op in drawn)


def test_a_block_of_drafts_is_drawn_as_one_pass_and_its_corrections():
    x = Layout(batch=4, tpa=8, ep=8, draft_tokens=3)
    slices = timeline(decode_step("kimi-k3", "gb300-nvl72", x, 65_536, draft="kimi-k3-dspark"))
    path = [piece for piece in slices if piece.track == "critical path"]
    drawn = [{piece.op for piece in path if piece.layer == f"draft {number}"} for number in (1, 2, 3)]
    assert {"attention_core[block]", "head[block]", "markov_correction[draft]"} <= drawn[0]
    assert drawn[1] == drawn[2] == {"markov_correction[draft]", "logits_gather[draft]", "sampling[draft]"}
    assert sum(piece.op == "attention_core[block]" for piece in path) == 5
