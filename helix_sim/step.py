"""One step: the ordered table of ops, their times, what overlaps, and what a user sees of it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from helix_sim.core.display import Shown
from helix_sim.core.kept import kept_for_records, kept_property
from helix_sim.core.layout import Layout
from helix_sim.core.numeric import Column, larger, smaller
from helix_sim.core.units import FORMAT_BITS
from helix_sim.core.work import Work
from helix_sim.ops.drafts import draft_counts, draft_halves, with_drafts
from helix_sim.ops.layers import Half, OpTable, halves_of, ordered
from helix_sim.ops.memory import Memory, memory_of, resident_weights
from helix_sim.ops.microbatches import SplitLayer, split_kinds, split_layers, split_stage
from helix_sim.ops.stages import Stage, heavy_stages, largest_stage
from helix_sim.ops.step_input import StepInput
from helix_sim.specs.attention import MlaAttention
from helix_sim.specs.draft import Draft
from helix_sim.specs.drafter import drafter_of
from helix_sim.specs.load import load_draft, load_machine, load_model, load_timing
from helix_sim.specs.machine import Machine
from helix_sim.specs.model import Model
from helix_sim.specs.precision import Precision, StoredFormats, narrowest_precision
from helix_sim.specs.public_tables import ServedMemory
from helix_sim.specs.setting import InSetting, Setting, require_measured_here
from helix_sim.specs.timing import Timing
from helix_sim.timing.overlap import (
    HiddenExchanges,
    LayerTimes,
    hidden_by_pipelining,
    hidden_by_streaming,
    hidden_by_turns,
)
from helix_sim.timing.roofline import HOST, SAME_KERNEL, OpTime, measured_classes, op_time, piece_time
from helix_sim.timing.uncertainty import (
    Deviation,
    doublings_beyond,
    interval_deviations,
    step_deviations,
)

if TYPE_CHECKING:
    import pandas as pd


def op_tables(s: StepInput) -> list[tuple[Half, OpTable]]:
    """Each kind of the model, and of what drafts for it, with its ops for one layer, on the busiest GPU."""
    return [(half, half.ops(s)) for half in (*halves_of(s.model), *draft_halves(s.drafter))]


def step_input(setting: Setting, layout: Layout, context: Column, query_tokens: Column = 1) -> StepInput:
    """What the equations see of a step: its sizes in double precision, the drafts that it verifies among new tokens.

    context: cached tokens of each request at a step without drafts; those in flight are cached as well.
    """
    x = layout.as_floats()
    return StepInput(
        model=setting.model,
        precision=setting.precision,
        layout=x,
        context=np.multiply(context, 1.0) + x.draft_tokens,
        query_tokens=np.multiply(query_tokens, 1.0) + x.draft_tokens,
        drafter=setting.drafter,
    )


def step_ops(s: StepInput) -> OpTable:
    """Every op of one step, once, by its name in the step and in order."""
    return ordered(op_tables(s))


def hidden_times(
    half: Half, ops: OpTable, times: Mapping[str, OpTime], chunks: Column, timing: Timing
) -> dict[str, Any]:
    """Seconds per layer that overlap hides among a kind's ops, under the name of the op whose time disappears."""
    hidden: dict[str, Any] = {}
    for core, sent in half.kind.pipelined:
        piece = piece_time(times[core], times[sent], chunks, timing)
        hidden[sent] = hidden_by_pipelining(piece.compute_s + piece.issue_s, piece.occupancy_s, chunks)
    for each in half.kind.streamed:
        overlap = timing.all_reduce_overlap.value
        saved = hidden_by_streaming(times[each.product].body_s, times[each.reduced].body_s, overlap)
        between = ops[each.between].collective if each.between else None
        hidden[each.reduced] = saved * (1 - between.calls) if between else saved
    for shared, routed in half.kind.beside:
        if shared in ops:
            share = timing.shared_expert_overlap.value
            hidden[shared] = smaller(times[shared].latency_s, times[routed].seconds) * share
    return hidden


def exposed_seconds(times: Mapping[str, OpTime], hidden: Mapping[str, Any]) -> Any:
    """Seconds of ops after each other, less what overlap hides of them."""
    return sum(time.seconds for time in times.values()) - sum(hidden.values())


def stage_seconds(
    stage: Stage,
    exposed: Mapping[tuple[str, str], Any],
    host_s: Any,
    turns: Mapping[tuple[str, str], LayerTurns] = MappingProxyType({}),
) -> Any:
    """Seconds of a step on a stage: each kind as often as the stage has it, and what a step takes beside kernels.

    turns: of the layers in which two microbatches take turns, by the key that the stage counts them under.
    """
    seconds = host_s + sum(stage[key] * seconds for key, seconds in exposed.items())
    for key, layer in turns.items():
        seconds = seconds + stage[key] * layer.seconds + (stage[key] > 0) * layer.lost
    return seconds


# --- Two microbatches ------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerTurns:
    """A layer in which two microbatches take turns: both together [s], what is hidden, and what less of it in a run."""

    seconds: Any
    hidden: HiddenExchanges

    @property
    def lost(self) -> Any:
        """Seconds that a run of such layers takes beside them: its first and last exchanges have less to hide behind.

        Each kind of layer of a stage is taken as one run.
        """
        return self.hidden.dispatch_lost + self.hidden.combine_lost


def layer_turns(
    layer: SplitLayer, attention: Mapping[str, Any], ffn: Mapping[str, Any], microbatches: Column, timing: Timing
) -> LayerTurns:
    """What microbatches take in a layer where they take turns, from the seconds of one's ops by their names."""
    seconds = {layer.attention.key: attention, layer.ffn.key: ffn}
    times = LayerTimes(
        **{
            part: sum((seconds[half.key][op] for half, op in ops), 0.0)
            for part, ops in layer.parts(attention, ffn).items()
        }
    )
    hidden = hidden_by_turns(times, timing.microbatch_order)
    return LayerTurns(seconds=microbatches * (times.seconds - hidden.dispatch - hidden.combine), hidden=hidden)


def _hidden_per_execution(
    layers: Iterable[SplitLayer], turns: Mapping[tuple[str, str], LayerTurns], stage: Stage, microbatches: Column
) -> dict[tuple[str, str], dict[str, Any]]:
    """Seconds of dispatch and combine that are hidden, on average over a stage's layers, by the key of the FFN."""
    saved: dict[tuple[str, str], dict[str, Any]] = {}
    for each in layers:
        count, hidden = stage[each.key], turns[each.key].hidden
        own = saved.setdefault(each.ffn.key, {"dispatch": 0.0, "combine": 0.0})
        own["dispatch"] = own["dispatch"] + count * microbatches * hidden.dispatch - (count > 0) * hidden.dispatch_lost
        own["combine"] = own["combine"] + count * microbatches * hidden.combine - (count > 0) * hidden.combine_lost
    return {key: {op: part / larger(stage[key], 1) for op, part in own.items()} for key, own in saved.items()}


@dataclass(frozen=True, kw_only=True)
class Recalled:
    """What a step can still tell that was made of recorded equations: a function of the numbers that it was made of."""

    tell: Callable[..., tuple[Any, ...]]
    numbers: tuple[float, ...]

    @kept_property
    def doubts(self) -> tuple[Any, ...]:
        """Seconds by which the step may be shorter and longer, and whether it rests on extrapolation."""
        return self.tell(*self.numbers)


@dataclass(frozen=True, kw_only=True)
class Step(InSetting, Shown):
    """One step of one layout, or of a column of them: per-op work and time, memory, what a user sees.

    `ops`, `times` and `hidden_s` are per execution. `repeats` executions make the busiest stage's step, and pp batches
    go round pp stages, so each waits its turn there: step_s = pp · (sum of repeats · (seconds - hidden)). With drafts
    it yields several tokens, and its TTL is that of one of them: ttl_s = step_s / accepted_tokens. `stage` counts the
    layers of the busiest stage. `kinds` has each kind of the model with the names of its ops in the step.

    A step of recorded equations knows its seconds; its ops, memory and what else is a field here are evaluated when
    one of them is first asked for.
    """

    recalled: ClassVar[Recalled | None] = None

    setting: Setting
    layout: Layout
    context: Column
    query_tokens: Column
    ops: OpTable
    repeats: dict[str, Any]
    stage: Stage
    times: dict[str, OpTime]
    hidden_s: dict[str, Any]
    memory: Memory
    kinds: tuple[tuple[Half, tuple[str, ...]], ...]

    def __getattr__(self, name: str) -> Any:
        if self.recalled is None or name not in DEFERRED:
            raise AttributeError(f"a step has no {name}")
        whole = evaluate_step(self.setting, self.layout, self.context, self.query_tokens)
        self.__dict__.update({field: whole.__dict__[field] for field in DEFERRED})
        return self.__dict__[name]

    def __repr__(self) -> str:
        rows = np.size(self.ttl_s)
        if rows > 1:
            return f"<Step of {rows} layouts: {self.setting!r}>"
        seen = f"TTL {float(self.ttl_s) * 1e3:.4g} ms, {float(self.tokens_per_s_gpu):.4g} tokens/s/GPU"
        return f"<Step of {self.setting!r}: {self.layout}, context {float(self.context):.0f}: {seen}>"

    @property
    def ttl_s(self) -> Any:
        """Token-to-token latency of one user [s] (TTL, TPOT): the step's, over the tokens that it yields with drafts.

        With several new tokens a request that are no drafts it is the latency of that step, not of each token.
        """
        return self.step_s / self.accepted_tokens

    @property
    def accepted_tokens(self) -> Any:
        """Mean tokens that a request gets from a step with drafts: those accepted and verification's own; else 1."""
        drafter = self.setting.drafter
        return drafter.tokens(self.layout.draft_tokens) if drafter else 1

    @kept_property
    def step_s(self) -> Any:
        """Seconds from one step of a batch to its next, through every stage; its drafts' passes are in it.

        As many batches as stages are in flight, and each is served once before any is served again: a round takes
        pp times what the busiest stage takes, which the other stages wait for.
        """
        return self.layout.pp * stage_seconds(self.stage, self._exposed(), self._host_s)

    @property
    def pass_s(self) -> Any:
        """Seconds in which one batch passes every stage if it never waits: the step of a batch alone in the pipeline.

        All layers, both ends, drafts, pp - 1 hand-overs and the host's time of each stage. The step is longer by what
        the stages are unequal.
        """
        [whole] = heavy_stages(self.model, 1, layers=True)
        counts = split_stage(whole, split_layers(self.model), self.layout.microbatches)
        every = {**counts, ("ends", "handover"): self.layout.pp - 1}
        every |= draft_counts(self.setting.drafter, self.layout.draft_tokens)
        return stage_seconds(every, self._exposed(), self.layout.pp * self._host_s)

    def _exposed(self) -> dict[tuple[str, str], Any]:
        """Seconds of one execution of each kind, less what overlap hides."""
        return {
            half.key: exposed_seconds(
                {name: self.times[name] for name in names},
                {name: self.hidden_s[name] for name in names if name in self.hidden_s},
            )
            for half, names in self.kinds
        }

    @property
    def _host_s(self) -> Any:
        return self.times["host"].seconds if "host" in self.times else 0.0

    @property
    def ttl_interval_s(self) -> tuple[Any, Any]:
        """Ends of the TTL's 80 % interval [s], from what a measured timing knows and does not; else the TTL itself.

        Errors of one cause add up over the ops that share it; different causes add in squares. `deviations` has them.
        """
        below, above = self.spread_s
        return self.ttl_s - below / self.accepted_tokens, self.ttl_s + above / self.accepted_tokens

    @kept_property
    def spread_s(self) -> tuple[Any, Any]:
        """Seconds by which the step may be shorter, and longer, in 80 of 100 cases; `deviations` has what may do it."""
        return self.recalled.doubts[:2] if self.recalled else interval_deviations(self.deviations)

    @property
    def deviations(self) -> list[Deviation]:
        """What may move the step, an entry for each op and cause; empty without measured kernels."""
        halves = {name: half.half for half, names in self.kinds for name in names}
        exposed = (
            (
                work,
                self.layout.pp * self.repeats[name] * (self.times[name].seconds - self.hidden_s.get(name, 0.0)),
                halves.get(name, ""),
            )
            for name, work in self.ops.items()
        )
        return step_deviations(exposed, self.machine, self.timing, ranks_of_experts=self.layout.ep)

    @property
    def extrapolated(self) -> dict[str, Any]:
        """Whether each op that runs is larger than anything its class was measured at."""
        calibration = self.timing.calibration
        found: dict[str, Any] = {}
        for name, work in self.ops.items() if calibration else ():
            classes = [calibration.classes[key] for key in measured_classes(work, self.timing)]  # type: ignore[union-attr]
            if classes:
                beyond = doublings_beyond(work, classes) > 0
                found[name] = beyond & (self.repeats[name] * self.times[name].seconds > 0)
        return found

    @kept_property
    def rests_on_extrapolation(self) -> Any:
        """Whether ops beyond measured sizes make up a hundredth of the step, or more."""
        if self.recalled:
            return self.recalled.doubts[2]
        outside: Any = 0.0
        for name, beyond in self.extrapolated.items():
            exposed = self.times[name].seconds - self.hidden_s.get(name, 0.0)
            outside = outside + beyond * (self.layout.pp * self.repeats[name] * exposed)
        return outside > 0.01 * self.step_s

    @property
    def tokens_per_s_user(self) -> Any:
        """New tokens of one request over the step's latency [tokens/s]; interactivity, 1 / TTL, when decoding."""
        return self.query_tokens / self.ttl_s

    @property
    def tokens_per_s_gpu(self) -> Any:
        """Throughput [tokens/s/GPU]: every request in flight gets its new tokens in one step's latency."""
        return self.query_tokens * self.layout.users / self.layout.gpus / self.ttl_s

    @property
    def usd_per_million_tokens(self) -> Any:
        """Cost of a million new tokens at the machine's price of a GPU [USD]; NaN where it has none."""
        return self.machine.usd_per_million_tokens(self.tokens_per_s_gpu)

    @property
    def joules_per_token(self) -> Any:
        """Energy of a new token at the machine's full power, its plant included [J]; NaN where it has none."""
        return self.machine.joules_per_token(self.tokens_per_s_gpu)

    @property
    def seconds(self) -> dict[str, Any]:
        """Seconds that each op adds to the step before anything is hidden: all its layers, all stages."""
        return {name: self.layout.pp * self.repeats[name] * time.seconds for name, time in self.times.items()}

    def to_frame(self) -> pd.DataFrame:
        """The op table of one layout: a row an op, totals over the busiest stage's step; columns as `op_rows`."""
        import pandas as pd

        return pd.DataFrame(op_rows(self)).set_index("op")


DEFERRED = tuple(
    field.name for field in fields(Step) if field.name not in ("setting", "layout", "context", "query_tokens")
)
"""Fields of a step that recorded equations leave for later."""


def op_rows(step: Step) -> list[dict[str, Any]]:
    """The op table of one layout, a record an op: work of the step on one GPU, seconds in the step, what binds.

    op, op_class, repeats (executions on the busiest stage), flops, weight_bytes, kv_bytes, activation_bytes,
    link_bytes, seconds and hidden_s [s, all stages], share (of the step), binds (latency, math, hbm or link).
    """
    exposed = float(step.step_s)
    pp = int(step.layout.pp)
    rows = []
    for name, work in step.ops.items():
        time, repeats = step.times[name], float(step.repeats[name])
        hidden = pp * repeats * float(step.hidden_s.get(name, 0.0))
        seconds = pp * repeats * float(time.seconds)
        rows.append(
            {
                "op": name,
                "op_class": work.op_class,
                "repeats": int(repeats),
                "flops": repeats * float(work.flops),
                "weight_bytes": repeats * float(work.weight_bytes),
                "kv_bytes": repeats * float(work.kv_bytes),
                "activation_bytes": repeats * float(work.activation_bytes),
                "link_bytes": repeats * float(work.link_bytes),
                "seconds": seconds,
                "hidden_s": hidden,
                "share": (seconds - hidden) / exposed,
                "binds": time.binds if seconds else "-",
            }
        )
    return rows


def served_memory(timing: Timing) -> ServedMemory | None:
    """What the framework of a measured timing leaves free of memory; None where nothing was measured."""
    return timing.calibration.memory if timing.calibration else None


def host_ops(timing: Timing) -> OpTable:
    """What a step takes outside of its kernels, once a stage, where a timing has measured it."""
    return {"host": Work(op_class=HOST)} if timing.calibration else {}


def host_seconds(setting: Setting) -> Any:
    """Seconds that a step takes outside of its kernels, once a stage."""
    return sum(op_time(work, setting.machine, setting.timing).seconds for work in host_ops(setting.timing).values())


def evaluate_step(setting: Setting, layout: Layout, context: Column, query_tokens: Column = 1) -> Step:
    """The step of a layout (or of columns of layouts) that is known to be well formed; memory is not checked.

    context: cached tokens of each request, the new ones among them. query_tokens: new tokens of each request.
    """
    machine, timing = setting.machine, setting.timing
    s = step_input(setting, layout, context, query_tokens)
    split = split_layers(setting.model) if np.any(s.layout.microbatches > 1) else ()
    whole = op_tables(s)
    tables, all_times, all_hidden = [*whole, *((half, half.ops(s)) for half in split_kinds(split))], [], {}
    known: dict[int, OpTime] = {}
    exposed: dict[tuple[str, str], dict[str, Any]] = {}
    for half, ops in tables:
        times = {name: _time_once(work, setting, known) for name, work in ops.items()}
        hidden = hidden_times(half, ops, times, half.input(s).layout.chunks, timing)
        all_times.append((half, times))
        all_hidden[half.key] = hidden
        if split:
            exposed[half.key] = {name: time.seconds - hidden.get(name, 0.0) for name, time in times.items()}
    turns = {
        each.key: layer_turns(each, exposed[each.attention.key], exposed[each.ffn.key], s.layout.microbatches, timing)
        for each in split
    }
    host = host_ops(timing)
    host_times = {name: op_time(work, machine, timing) for name, work in host.items()}
    host_s = sum(time.seconds for time in host_times.values())
    stages = heavy_stages(setting.model, s.layout.pp, layers=bool(split))
    stages = with_drafts(stages, setting.drafter, s.layout.draft_tokens)
    timed = tuple(split_stage(stage, split, s.layout.microbatches) for stage in stages)
    busiest = timed[0]
    if len(timed) > 1:
        alone = {half.key: exposed_seconds(times, all_hidden[half.key]) for half, times in all_times[: len(whole)]}
        busiest = largest_stage(timed, [stage_seconds(stage, alone, host_s, turns) for stage in timed])
    for key, more in _hidden_per_execution(split, turns, busiest, s.layout.microbatches).items():
        all_hidden[key] |= more
    return Step(
        setting=setting,
        layout=layout,
        context=context,
        query_tokens=query_tokens,
        ops=ordered(tables) | host,
        repeats=ordered((half, dict.fromkeys(ops, busiest[half.key])) for half, ops in tables) | dict.fromkeys(host, 1),
        stage=busiest,
        times=ordered(all_times) | host_times,
        hidden_s=ordered((half, all_hidden[half.key]) for half, _ in tables),
        memory=memory_of(
            s, stages, [resident_weights(whole, stage) for stage in stages], machine, served_memory(timing)
        ),
        kinds=tuple((half, tuple(half.op_name(op) for op in ops)) for half, ops in tables),
    )


def _time_once(work: Work, setting: Setting, known: dict[int, OpTime]) -> OpTime:
    """An op's time; the same work under several names (a norm, an all-reduce) is timed once."""
    if id(work) not in known:
        known[id(work)] = op_time(work, setting.machine, setting.timing)
    return known[id(work)]


@kept_for_records
def default_precision(model: Model, machine: Machine, timing: Timing | None = None) -> Precision:
    """The checkpoint's number formats, the first of the model's; without any, the narrowest that the machine has.

    On a measured timing the KV cache is in a format that has kernels: see `cache_with_kernels`.
    """
    if model.formats:
        formats = stored_formats(model, machine, next(iter(model.formats.values())), {})
    else:
        formats = narrowest_precision(machine).model_dump(exclude_none=True)
    return Precision.model_validate(cache_with_kernels(model, machine, timing, formats))


def cache_with_kernels(
    model: Model, machine: Machine, timing: Timing | None, formats: Mapping[str, str]
) -> dict[str, str]:
    """The formats, their KV cache in the next wider format that measured attention kernels read; as they are elsewhere.

    No public kernel reads an FP4 cache: on a measured timing it is FP8 unless asked for, and attention multiplies as
    with such a cache.
    """
    known = timing.calibration.cache_formats if timing and timing.calibration else []
    if not known or formats["kv"] in known:
        return dict(formats)
    wider = [name for name in known if FORMAT_BITS[name] >= FORMAT_BITS[formats["kv"]]]
    kv = wider[0] if wider else known[-1]
    return {**formats, "kv": kv, "attention_math": _attention_math(model, machine, kv)}


def cache_remark(timing: Timing, precision: Precision) -> str | None:
    """A sentence for the user where no kernel of a measured timing reads the cache; None where one does."""
    known = timing.calibration.cache_formats if timing.calibration else []
    if not known or precision.kv in known:
        return None
    others = [name for name in SAME_KERNEL.get(precision.kv, ()) if name in known]
    how = f"it rests on {others[0]}'s kernels, with {precision.kv}'s bytes" if others else "its constants are assumed"
    measured = " and ".join(known)
    return f"{timing.name} has no attention kernel for a cache in {precision.kv}: {how}; measured are {measured}"


def stored_formats(model: Model, machine: Machine, stored: StoredFormats, given: Mapping[str, str]) -> dict[str, str]:
    """A checkpoint's formats by name, as a machine computes in them, with those in `given` in their place.

    Weights stay as they are stored; an arithmetic that the machine has no rate for is BF16, for a kernel widens the
    weights on their way to the tensor cores. Latent attention multiplies in FP8 where its cache has 8 bits or fewer and
    the machine's kernels do so; any other attention in BF16.
    """
    computed = {
        name: "bf16" if name.endswith("math") and text not in machine.math_formats else text
        for name, text in stored.said.items()
    }
    formats = {**computed, **given}
    return {"attention_math": _attention_math(model, machine, formats["kv"]), **formats}


def _attention_math(model: Model, machine: Machine, kv: str) -> str:
    """The attention core's arithmetic: FP8 where the cache is narrow, attention latent, and kernels multiply so."""
    narrow_cache = FORMAT_BITS.get(kv, 16) <= 8.5
    latent = any(isinstance(a, MlaAttention) for a in model.attention.values())
    in_fp8 = "fp8" in machine.math_formats and (machine.fp8_attention is None or machine.fp8_attention.value)
    return "fp8" if narrow_cache and latent and in_fp8 else "bf16"


def setting_of(
    model: Model | str | Path,
    machine: Machine | str | Path,
    *,
    timing: Timing | str | Path | None = None,
    precision: Precision | None = None,
    draft: Draft | str | Path | None = None,
) -> Setting:
    """A setting, with the defaults where something is not given; each part a record, or its name or file.

    timing: the `paper` timing unless given; SpecError for one measured on another system than the machine. precision:
    the checkpoint's number formats unless given; of `model.formats`, as the machine computes in them. draft: what
    drafts for the model; nothing unless given.
    """
    model, machine, timing = load_model(model), load_machine(machine), load_timing(timing or "paper")
    require_measured_here(machine, timing)
    if isinstance(precision, StoredFormats):
        precision = Precision.model_validate(stored_formats(model, machine, precision, {}))
    precision = precision or default_precision(model, machine, timing)
    drafter = _drafter_of(load_draft(draft), model) if draft is not None else None
    return Setting(model=model, machine=machine, timing=timing, precision=precision, drafter=drafter)


_drafter_of = kept_for_records(drafter_of)
