"""One step: the ordered table of ops, their times, what overlaps, and what a user sees of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from helix_sim import feasibility
from helix_sim.core.errors import SpecError
from helix_sim.core.layout import Layout
from helix_sim.core.numeric import Column, smaller
from helix_sim.core.text import said
from helix_sim.core.work import Work
from helix_sim.ops.layers import Half, OpTable, halves_of, ordered, stage_size
from helix_sim.ops.memory import Memory, memory_of, resident_weights
from helix_sim.ops.step_input import StepInput
from helix_sim.specs.machine import Machine
from helix_sim.specs.model import Model
from helix_sim.specs.precision import Precision
from helix_sim.specs.setting import Setting, require_measured_here
from helix_sim.specs.timing import Timing
from helix_sim.specs.values import LIMIT
from helix_sim.timing.overlap import hidden_by_pipelining, hidden_by_streaming
from helix_sim.timing.roofline import HOST, OpTime, measured_classes, op_time
from helix_sim.timing.uncertainty import beyond_measured, composition_range, interval_deviations, residual_range

if TYPE_CHECKING:
    import pandas as pd


def op_tables(s: StepInput) -> list[tuple[Half, OpTable]]:
    """Each kind of the model with its ops for one layer, on the busiest GPU."""
    return [(half, half.ops(s)) for half in halves_of(s.model)]


def step_ops(s: StepInput) -> OpTable:
    """Every op of one step, once, by its name in the step and in order."""
    return ordered(op_tables(s))


def hidden_times(
    half: Half, ops: OpTable, times: Mapping[str, OpTime], chunks: Column, timing: Timing
) -> dict[str, Any]:
    """Seconds per layer that overlap hides among a kind's ops, under the name of the op whose time disappears."""
    hidden: dict[str, Any] = {}
    for core, sent in half.kind.pipelined:
        hidden[sent] = hidden_by_pipelining(times[core].seconds, times[sent].seconds, chunks)
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


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """One step of one layout, or of a column of them: per-op work and time, memory, what a user sees.

    `ops`, `times` and `hidden_s` are per execution; `repeats` executions make the busiest stage's step, and the stages
    follow each other: ttl_s = pp · (sum of repeats · (seconds - hidden)). `kinds` has each kind of the model with the
    names of its ops in the step.
    """

    setting: Setting
    layout: Layout
    context: Column
    query_tokens: Column
    ops: OpTable
    repeats: dict[str, Any]
    times: dict[str, OpTime]
    hidden_s: dict[str, Any]
    memory: Memory
    kinds: tuple[tuple[Half, tuple[str, ...]], ...]

    @property
    def model(self) -> Model:
        """The model of the step's setting."""
        return self.setting.model

    @property
    def machine(self) -> Machine:
        """The machine of the step's setting."""
        return self.setting.machine

    @property
    def timing(self) -> Timing:
        """The timing of the step's setting."""
        return self.setting.timing

    @property
    def precision(self) -> Precision:
        """The number formats of the step's setting."""
        return self.setting.precision

    @property
    def ttl_s(self) -> Any:
        """Token-to-token latency of one user [s] (TTL, TPOT): from one step's tokens to the next, through every stage.

        With several new tokens a request it is the latency of that step, not of each token.
        """
        total: Any = 0.0
        for names in self._alike():
            seconds: Any = sum(self.times[name].seconds for name in names)
            hidden: Any = sum(self.hidden_s[name] for name in names if name in self.hidden_s)
            total = total + self.repeats[names[0]] * (seconds - hidden)
        return self.layout.pp * total

    def _alike(self) -> list[tuple[str, ...]]:
        """Names of the ops of each kind, which run equally often; the host's apart."""
        inside = {name for _, names in self.kinds for name in names}
        return [*(names for _, names in self.kinds), *((name,) for name in self.ops if name not in inside)]

    @property
    def ttl_interval_s(self) -> tuple[Any, Any]:
        """Ends of the TTL's 80 % interval [s], from the measured classes' residuals; without these, the TTL itself.

        All ops of a class err together, classes independently, and what they add up to errs as whole measured modules
        do against the sum of their kernels: the deviations T·(1 - e^low) below, and T·(e^high - 1) above, add in
        squares, T being what a class, and then all classes, add to the TTL.
        """
        by_class = self.seconds_by_class
        parts = [(seconds, residual_range(name, self.timing)) for name, seconds in by_class.items()]
        parts.append((sum(by_class.values()), composition_range(self.timing)))
        below, above = interval_deviations(parts)
        return self.ttl_s - below, self.ttl_s + above

    @property
    def seconds_by_class(self) -> dict[str, Any]:
        """Seconds that each measured class adds to the TTL, less what overlap hides."""
        by_class: dict[str, Any] = {}
        for name, work in self.ops.items():
            if names := measured_classes(work, self.timing):
                exposed = self.repeats[name] * (self.times[name].seconds - self.hidden_s.get(name, 0.0))
                key = names[0].partition("/")[0]
                by_class[key] = by_class.get(key, 0.0) + self.layout.pp * exposed
        return by_class

    @property
    def extrapolated(self) -> dict[str, Any]:
        """Whether each op that runs is larger than anything its class was measured at."""
        calibration = self.timing.calibration
        found: dict[str, Any] = {}
        for name, work in self.ops.items() if calibration else ():
            classes = [calibration.classes[key] for key in measured_classes(work, self.timing)]  # type: ignore[union-attr]
            if classes:
                beyond = np.logical_and.reduce([beyond_measured(work, each) for each in classes])
                found[name] = beyond & (np.asarray(self.repeats[name] * self.times[name].seconds) > 0)
        return found

    @property
    def rests_on_extrapolation(self) -> Any:
        """Whether ops beyond measured sizes make up a hundredth of the TTL, or more."""
        outside: Any = 0.0
        for name, beyond in self.extrapolated.items():
            exposed = self.times[name].seconds - self.hidden_s.get(name, 0.0)
            outside = outside + beyond * (self.layout.pp * self.repeats[name] * exposed)
        return outside > 0.01 * self.ttl_s

    @property
    def tokens_per_s_user(self) -> Any:
        """New tokens of one request over the step's latency [tokens/s]; interactivity, 1 / TTL, when decoding."""
        return self.query_tokens / self.ttl_s

    @property
    def tokens_per_s_gpu(self) -> Any:
        """Throughput [tokens/s/GPU]: every request in flight gets its new tokens in one step's latency."""
        return self.query_tokens * self.layout.users / self.layout.gpus / self.ttl_s

    @property
    def seconds(self) -> dict[str, Any]:
        """Seconds that each op adds to the TTL before anything is hidden: all its layers, all stages."""
        return {name: self.layout.pp * self.repeats[name] * time.seconds for name, time in self.times.items()}

    def to_frame(self) -> pd.DataFrame:
        """The op table of one layout: a row an op, totals over the busiest stage's step; columns as `op_rows`."""
        import pandas as pd

        return pd.DataFrame(op_rows(self)).set_index("op")


def op_rows(step: Step) -> list[dict[str, Any]]:
    """The op table of one layout, a record an op: work of the step on one GPU, seconds in the TTL, what binds.

    op, op_class, repeats (executions on the busiest stage), flops, weight_bytes, kv_bytes, activation_bytes,
    link_bytes, seconds and hidden_s [s, all stages], share (of the TTL), binds (latency, math, hbm or link).
    """
    exposed = float(step.ttl_s)
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
    s = StepInput(
        model=setting.model,
        precision=setting.precision,
        layout=layout.as_floats(),
        context=context * 1.0,
        query_tokens=query_tokens * 1.0,
    )
    layers = stage_size(setting.model, s.layout.pp)
    tables, all_times, all_hidden, repeats = [], [], [], []
    known: dict[int, OpTime] = {}
    for half, ops in op_tables(s):
        times = {name: _time_once(work, setting, known) for name, work in ops.items()}
        count = half.repeats(layers)
        tables.append((half, ops))
        all_times.append((half, times))
        all_hidden.append((half, hidden_times(half, ops, times, s.layout.chunks, timing)))
        repeats.append((half, dict.fromkeys(ops, count)))
    host = host_ops(timing)
    op_table, counts = ordered(tables) | host, ordered(repeats) | dict.fromkeys(host, 1)
    return Step(
        setting=setting,
        layout=layout,
        context=context,
        query_tokens=query_tokens,
        ops=op_table,
        repeats=counts,
        times=ordered(all_times) | {name: op_time(work, machine, timing) for name, work in host.items()},
        hidden_s=ordered(all_hidden),
        memory=memory_of(s, resident_weights(op_table, counts)),
        kinds=tuple((half, tuple(half.op_name(op) for op in ops)) for half, ops in tables),
    )


def _time_once(work: Work, setting: Setting, known: dict[int, OpTime]) -> OpTime:
    """An op's time; the same work under several names (a norm, an all-reduce) is timed once."""
    if id(work) not in known:
        known[id(work)] = op_time(work, setting.machine, setting.timing)
    return known[id(work)]


def default_precision(machine: Machine) -> Precision:
    """The narrowest arithmetic of the machine for weights, KV cache and products; BF16 on the wire."""
    narrow = machine.math_formats[0]
    return Precision.model_validate({"weights": narrow, "kv": narrow, "math": narrow})


class LayoutError(SpecError):
    """A layout that cannot run, with a sentence for each reason."""


def setting_of(
    model: Model, machine: Machine, *, timing: Timing | None = None, precision: Precision | None = None
) -> Setting:
    """A setting, with the defaults where something is not given.

    timing: the `paper` timing unless given; SpecError for one measured on another system than the machine. precision:
    the machine's narrowest formats unless given.
    """
    if timing is None:
        from helix_sim.specs.load import load_timing

        timing = load_timing("paper")
    require_measured_here(machine, timing)
    return Setting(model=model, machine=machine, timing=timing, precision=precision or default_precision(machine))


def decode_step(
    model: Model,
    machine: Machine,
    layout: Layout,
    context: int,
    *,
    query_tokens: int = 1,
    precision: Precision | None = None,
    timing: Timing | None = None,
) -> Step:
    """One step of one layout; raises LayoutError with every reason where it cannot run.

    context: tokens in each request's KV cache, the new ones among them. query_tokens: new tokens of each request; 1
    decodes. precision: the machine's narrowest formats unless given. timing: the `paper` timing unless given.
    """
    return checked_step(setting_of(model, machine, timing=timing, precision=precision), layout, context, query_tokens)


def checked_step(setting: Setting, layout: Layout, context: int, query_tokens: int = 1) -> Step:
    """One step of one layout in a setting; raises LayoutError with every reason where it cannot run."""
    sizes = {**layout.columns(), "context": context, "query_tokens": query_tokens}
    problems = [
        f"{name} is {said(value)}; it must be a whole number from 1 to 10^12"
        for name, value in sizes.items()
        if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= LIMIT
    ]
    if not problems and query_tokens > context:
        problems = [
            f"query_tokens {query_tokens} is more than the context of {context}, which the new tokens are part of"
        ]
    if problems:
        raise LayoutError(problems)
    flags = int(feasibility.shape_reasons(setting.model, setting.machine, layout, context))
    if flags:
        raise LayoutError(feasibility.sentences(flags, setting.model, setting.machine, layout, context))
    step = evaluate_step(setting, layout, context, query_tokens)
    flags = int(feasibility.memory_reason(step.memory, setting.machine))
    if flags:
        raise LayoutError(feasibility.sentences(flags, setting.model, setting.machine, layout, context, step.memory))
    return step
