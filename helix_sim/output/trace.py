"""One decode step as a Chrome trace, which Perfetto and chrome://tracing open.

A process is the busiest GPU of a pipeline stage; its tracks are the layers, the critical path, and the streams:
compute, the shared experts beside it, communication. Stream slices show each op where it runs, with its whole time, so
overlap is seen as slices above each other. The critical path is the same step without what overlap hides: its slices
follow each other without a gap, and their durations sum to the step: the TTL, or with drafts that times the tokens it
yields. Drafts follow the end of the model that verifies those of the step before.

Every stage is drawn with its own layers, and with the model's ends where it has them. As many batches as stages are in
flight, so a batch's turn at any stage lasts as long as at the busiest one: what a stage takes less is drawn as a wait.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from helix_sim.core.display import Named
from helix_sim.core.errors import SpecError
from helix_sim.core.version import __version__
from helix_sim.ops.drafts import pass_of
from helix_sim.ops.layers import Half
from helix_sim.ops.stages import stage_layers
from helix_sim.search.layout_source import Options, Picked, pick
from helix_sim.step import Step
from helix_sim.timing.roofline import piece_time

TRACKS = ("layers", "critical path", "compute", "compute beside", "communication")


@dataclass(frozen=True, slots=True, kw_only=True)
class Slice:
    """Something that runs from `start_s` to `end_s` after the step began, on a track of a pipeline stage."""

    name: str
    track: str
    start_s: float
    end_s: float
    stage: int = 0
    op: str = ""
    layer: str = ""


def trace(
    layout: Step | Picked | str | Path, machine: str | None = None, options: Options | None = None
) -> dict[str, Any]:
    """One decode step of a layout in Chrome's trace event format, which ui.perfetto.dev opens.

    layout, machine, options: as `helix_sim.search.layout_source.pick` takes them.
    """
    return Named(chrome_trace(pick(layout, machine, options).step))


# --- The timeline ----------------------------------------------------------------------------------------------------


def timeline(step: Step) -> list[Slice]:
    """Every slice of one step of one layout, stage after stage; SpecError where microbatches take turns."""
    if step.layout.microbatches > 1:
        raise SpecError(["microbatches that take turns are not drawn; set --microbatches to 1, or see `explain`"])
    slices: list[Slice] = []
    now, turn = 0.0, float(step.step_s) / int(step.layout.pp)
    for stage in range(int(step.layout.pp)):
        for layer, ops in _sections(step, stage):
            begun = now
            for piece in _section(step, ops, now):
                slices.append(replace(piece, stage=stage, layer=layer))
                now = max(now, piece.end_s) if piece.track == "critical path" else now
            if now > begun:
                slices.append(Slice(name=layer, track="layers", start_s=begun, end_s=now, stage=stage))
        if (end := (stage + 1) * turn) - now > 1e-9 * turn:
            wait = Slice(name="wait", track="critical path", start_s=now, end_s=end, stage=stage, layer="wait")
            slices += [wait, replace(wait, name="wait for the busiest stage", track="layers", layer="")]
            now = end
    return slices


def _sections(step: Step, stage: int) -> Iterator[tuple[str, list[tuple[Half, str]]]]:
    """Title and (kind, op) of each part of a stage, in order: the model's beginning, its layers, the model's end."""
    own = {half.key: (half, _beside_each_other(half, list(ops))) for half, ops in step.kinds}
    stages = stage_layers(step.model, int(step.layout.pp))
    first = sum(map(len, stages[:stage])) + 1

    def end(*names: str) -> list[tuple[Half, str]]:
        return [(half, op) for half, ops in (own["ends", name] for name in names) for op in ops]

    if stage == 0:
        yield "beginning", end("opening")
    for number, layer in enumerate(stages[stage], first):
        halves = [own[of] for of in zip(("attention", "ffn"), layer, strict=True)]
        title = halves[1][0].kind.title + "".join(half.suffix for half, _ in halves)
        yield f"layer {number} ({title})", [(half, op) for half, inside in halves for op in inside]
    # a last stage hands nothing on, and only the last one has the model's end
    last = end("closing" if stage == len(stages) - 1 else "handover")
    host = [(last[0][0], name) for name in step.ops if name == "host"]
    if stage < len(stages) - 1 or not step.layout.draft_tokens:
        yield "end", [*last, *host]
        return
    yield f"end (verified {step.query_tokens + step.layout.draft_tokens} tokens)", [*last, *host]
    for number in range(1, int(step.layout.draft_tokens) + 1):
        sections = pass_of(step.setting.drafter, number)
        yield f"draft {number}", [(half, op) for key in sections for half, ops in (own[key],) for op in ops]


def _beside_each_other(half: Half, names: list[str]) -> list[str]:
    """A kind's ops with each op of the shared experts right before the routed one it runs beside."""
    for shared, routed in _pairs_beside(half):
        if shared in names:
            names.remove(shared)
            names.insert(names.index(routed), shared)
    return names


def _pairs_beside(half: Half) -> list[tuple[str, str]]:
    """(op of the shared experts, op of the routed ones that it is drawn beside), by their names in the step."""
    pairs = half.kind.beside
    return [(half.op_name(a), half.op_name(b)) for a, b in (*pairs, *(ACTIVATIONS if pairs else ()))]


ACTIVATIONS = (("shared_activation", "routed_activation"),)
"""Drawn beside each other, like the products around them."""


def _section(step: Step, ops: list[tuple[Half, str]], now: float) -> Iterator[Slice]:
    """The slices of ops that follow each other from `now` on: on the critical path, and on their streams."""
    for half, name in ops:
        seconds, hidden = _seconds(step, name), _hidden(step, name)
        pieces = {half.op_name(core): half.op_name(sent) for core, sent in half.kind.pipelined}
        if name in pieces:
            sent = pieces[name]
            yield from _pipelined(step, name, sent, now)
            now += seconds + _seconds(step, sent) - _hidden(step, sent)
            continue
        if name in pieces.values() or not seconds:
            continue
        early = hidden if name in {half.op_name(each.reduced) for each in half.kind.streamed} else 0.0
        track = _track(step, half, name)
        yield Slice(name=name, op=name, track=track, start_s=now - early, end_s=now - early + seconds)
        if seconds > hidden:
            yield Slice(name=name, op=name, track="critical path", start_s=now, end_s=now + seconds - hidden)
        now += seconds - hidden


def _pipelined(step: Step, core: str, exchange: str, now: float) -> Iterator[Slice]:
    """An op and its exchange, chunk by chunk: a chunk's exchange runs behind the compute of the next.

    On the link a chunk is drawn as long as it holds it, the last one with its flight; where sending holds the GPU, that
    is drawn behind the chunk's compute.
    """
    chunks = int(step.layout.chunks)
    piece = piece_time(step.times[core], step.times[exchange], chunks, step.timing)
    a, issue, c, flight = (float(each) for each in (piece.compute_s, piece.issue_s, piece.occupancy_s, piece.flight_s))
    held = a + issue
    for i in range(chunks):
        of = f" {i + 1}/{chunks}" if chunks > 1 else ""
        last = i == chunks - 1
        begun, sent = now + i * held, now + held + i * max(held, c)
        tracks = ("compute", *(("critical path",) if i == 0 or held >= c else ()))
        for track in tracks:
            yield Slice(name=f"{core}{of}", op=core, track=track, start_s=begun, end_s=begun + a)
            if issue:
                yield Slice(
                    name=f"{exchange}{of} issue", op=exchange, track=track, start_s=begun + a, end_s=begun + held
                )
        arrived = sent + c + (flight if last else 0.0)
        if arrived > sent:
            tracks = ("communication", *(("critical path",) if last or c > held else ()))
            for track in tracks:
                yield Slice(name=f"{exchange}{of}", op=exchange, track=track, start_s=sent, end_s=arrived)


def _seconds(step: Step, name: str) -> float:
    """Seconds of one execution of an op."""
    return float(step.times[name].seconds)


def _hidden(step: Step, name: str) -> float:
    """Seconds of one execution of an op that overlap hides."""
    return float(step.hidden_s.get(name, 0.0))


def _track(step: Step, half: Half, name: str) -> str:
    if step.ops[name].collective is not None:
        return "communication"
    return "compute beside" if name in dict(_pairs_beside(half)) else "compute"


# --- Chrome's trace format -------------------------------------------------------------------------------------------


def chrome_trace(step: Step) -> dict[str, Any]:
    """The step in Chrome's trace event format: complete events with microseconds, whole nanoseconds each."""
    slices = timeline(step)
    used = {(piece.stage, piece.track) for piece in slices}
    names = [event for stage in range(int(step.layout.pp)) for event in _names(step, stage, used)]
    return {
        "traceEvents": names + [_event(step, piece) for piece in slices],
        "displayTimeUnit": "ns",
        "otherData": {
            "helix_sim": __version__,
            "model": step.model.name,
            "machine": step.machine.name,
            "timing": step.timing.name,
            "context": int(step.context),
            "layout": str(step.layout),
            "ttl_us": float(step.ttl_s) * 1e6,
            "accepted_tokens": float(step.accepted_tokens),
        },
    }


def _names(step: Step, stage: int, used: set[tuple[int, str]]) -> list[dict[str, Any]]:
    """Metadata events: what a stage and its tracks are called."""
    stages = f", pipeline stage {stage + 1} of {step.layout.pp}" if step.layout.pp > 1 else ""
    title = f"{step.model.name} on {step.machine.name}: busiest GPU{stages}"
    events = [{"ph": "M", "name": "process_name", "pid": stage + 1, "tid": 0, "args": {"name": title}}]
    for tid, track in enumerate(TRACKS, start=1):
        if (stage, track) in used:
            common = {"ph": "M", "pid": stage + 1, "tid": tid}
            events.append({**common, "name": "thread_name", "args": {"name": track}})
            events.append({**common, "name": "thread_sort_index", "args": {"sort_index": tid}})
    return events


def _event(step: Step, piece: Slice) -> dict[str, Any]:
    # whole nanoseconds: what follows without a gap in seconds does so in the file, and nothing overlaps by rounding
    start, end = round(piece.start_s * 1e9), round(piece.end_s * 1e9)
    return {
        "ph": "X",
        "name": piece.name,
        "cat": step.ops[piece.op].op_class if piece.op else "layer",
        "pid": piece.stage + 1,
        "tid": TRACKS.index(piece.track) + 1,
        "ts": start / 1000,
        "dur": (end - start) / 1000,
        "args": _args(step, piece),
    }


def _args(step: Step, piece: Slice) -> dict[str, Any]:
    """What the viewer shows of a clicked slice: the op's work on this GPU, once, and what binds it."""
    if not piece.op:
        return {}
    work, time = step.ops[piece.op], step.times[piece.op]
    return {
        "layer": piece.layer,
        "binds": time.binds,
        "latency_us": float(time.latency_s) * 1e6,
        "hidden_us": _hidden(step, piece.op) * 1e6,
        "GFLOP": float(work.flops) / 1e9,
        "HBM_MB": float(work.hbm_bytes) / 1e6,
        "link_MB": float(work.link_bytes) / 1e6,
    }
