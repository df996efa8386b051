"""One decode step: the ordered table of ops, their times, what overlaps, and what a user sees of it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from helix_sim import feasibility
from helix_sim.core.collectives import direct
from helix_sim.core.errors import SpecError
from helix_sim.core.layout import Layout
from helix_sim.core.numeric import Column, ceil_div, smaller
from helix_sim.core.text import said
from helix_sim.core.work import Work
from helix_sim.ops import attention, ffn
from helix_sim.ops.attention import Decode, matmul
from helix_sim.ops.memory import Memory, memory_of, stage_layers
from helix_sim.specs.machine import Machine
from helix_sim.specs.model import Model
from helix_sim.specs.precision import Precision
from helix_sim.specs.timing import Timing
from helix_sim.specs.values import LIMIT
from helix_sim.timing.overlap import hidden_by_pipelining, hidden_by_streaming
from helix_sim.timing.roofline import (
    HOST,
    OpTime,
    beyond_measured,
    composition_range,
    interval_deviations,
    measured_classes,
    op_time,
    residual_range,
)

if TYPE_CHECKING:
    import pandas as pd


def attention_ops(d: Decode) -> dict[str, Work]:
    """Ops of one layer's attention, in order."""
    a = d.model.attention
    if a.kind == "mla":
        projections = {
            "latent_down_projection": attention.latent_down_projection(d, a),
            "latent_norm": attention.latent_norm(d, a),
            "query_up_projection": attention.query_up_projection(d, a),
            "key_absorption": attention.key_absorption(d, a),
        }
        value_up = {"value_up_projection": attention.value_up_projection(d, a)}
    else:
        projections, value_up = {"qkv_projection": attention.qkv_projection(d)}, {}
    return {
        "attention_norm": attention.hidden_norm(d),
        **projections,
        "rope_and_append": attention.rope_and_append(d),
        "attention_core": attention.attention_core(d),
        "exchange": attention.exchange(d),
        "combine_partials": attention.combine_partials(d),
        **value_up,
        "output_projection": attention.output_projection(d),
        "attention_all_reduce": attention.group_all_reduce(d),
    }


def dense_ops(d: Decode) -> dict[str, Work]:
    """Ops of a dense layer's FFN, in order."""
    return {
        "dense_norm": attention.hidden_norm(d),
        "dense_gather": ffn.gather_tokens(d),
        "dense_up": ffn.dense_up(d),
        "dense_activation": ffn.dense_activation(d),
        "dense_down": ffn.dense_down(d),
        "dense_scatter": ffn.scatter_sums(d),
        "dense_all_reduce": attention.group_all_reduce(d),
        "dense_spread": attention.spread_to_shards(d),
    }


def moe_ops(d: Decode, rank: ffn.BusiestRank | None = None) -> dict[str, Work]:
    """Ops of an MoE layer's FFN, in order; `rank` where a caller has evaluated the routing already."""
    moe = d.model.experts
    assert moe is not None
    rank = rank or ffn.busiest_rank(d, moe)
    shared = {
        "shared_up": ffn.shared_up(d, moe),
        "shared_activation": ffn.shared_activation(d, moe),
        "shared_down": ffn.shared_down(d, moe),
    }
    return {
        "moe_norm": attention.hidden_norm(d),
        "router": ffn.router(d, moe),
        "top_k": ffn.top_k(d, moe),
        "dispatch": ffn.dispatch(d, rank),
        **(shared if moe.shared else {}),
        "routed_up": ffn.routed_up(d, moe, rank),
        "routed_activation": ffn.routed_activation(d, moe, rank),
        "routed_down": ffn.routed_down(d, moe, rank),
        "combine": ffn.combine(d, rank),
        "moe_all_reduce": attention.group_all_reduce(d),
        "moe_spread": attention.spread_to_shards(d),
    }


def end_ops(d: Decode) -> dict[str, Work]:
    """Ops at the two ends of the model and between stages: once a step and stage, on the token group."""
    m, x = d.model, d.layout
    hidden_bytes = x.batch * m.hidden_size * d.wire_bytes
    shard = ceil_div(m.vocab_size, x.token_group)
    logit_bytes = x.batch * (x.token_group - 1) * shard * d.wire_bytes
    table = m.hidden_size * shard * d.precision.bytes_of("head_weights")
    return {
        "embedding": Work(
            op_class="pointwise",
            activation_bytes=2 * x.batch * m.hidden_size * d.activation_bytes,
            idle_weight_bytes=0 if m.tied_embeddings else table,
            rows=x.batch,
        ),
        "embedding_all_reduce": attention.group_all_reduce(d),
        "final_norm": attention.hidden_norm(d),
        "head": matmul(d, rows=x.batch, inner=m.hidden_size, outer=shard, weights="head_weights", math="head_math"),
        "logits_gather": Work(
            op_class="all-gather", kernels=0, collective=direct("all-gather", logit_bytes, x.token_group), rows=x.batch
        ),
        "sampling": Work(
            op_class="elementwise", activation_bytes=x.batch * m.vocab_size * d.activation_bytes, rows=x.batch
        ),
        "stage_handover": Work(
            op_class="send",
            kernels=0,
            collective=direct("send", hidden_bytes, group=1 + (x.pp > 1), stride=x.dp * x.attention_group),
            rows=x.batch,
        ),
    }


def stage_repeats(model: Model, pp: Column) -> dict[str, Any]:
    """How often each part of a step runs on the busiest pipeline stage.

    The largest stage holds layers/PP, its MoE layers first, and is charged with both ends of the model.
    """
    layers = stage_layers(model.layers, pp)
    moe_layers = smaller(model.moe_layers, layers)
    return {"ends": 1, "attention": layers, "dense": layers - moe_layers, "moe": moe_layers}


def layer_ops(d: Decode) -> dict[str, Work]:
    """Every op of one step on the busiest pipeline stage, in order, with how often it runs there."""
    m, repeats = d.model, stage_repeats(d.model, d.layout.pp)
    ops = end_ops(d)
    opening = {name: ops.pop(name) for name in ("embedding", "embedding_all_reduce")}
    body = {name: (work, repeats["attention"]) for name, work in attention_ops(d).items()}
    if m.dense_layers:
        body |= {name: (work, repeats["dense"]) for name, work in dense_ops(d).items()}
    if m.moe_layers:
        body |= {name: (work, repeats["moe"]) for name, work in moe_ops(d).items()}
    return opening | {name: replace(work, repeats=repeats) for name, (work, repeats) in body.items()} | ops


STREAMED = (
    ("output_projection", "attention_all_reduce", None),
    ("dense_down", "dense_all_reduce", "dense_scatter"),
    ("routed_down", "moe_all_reduce", "combine"),
)
"""(product, the all-reduce that its tiles stream into, the collective that would stand between them)."""

BESIDE = (("shared_up", "routed_up"), ("shared_down", "routed_down"))
"""(op of the shared experts, op of the routed ones that it runs beside): they share HBM, but not their latencies."""


def hidden_times(d: Decode, ops: dict[str, Work], times: dict[str, OpTime], timing: Timing) -> dict[str, Any]:
    """Seconds per step that overlap hides among these ops, under the name of the op whose time disappears."""
    hidden: dict[str, Any] = {}
    if "exchange" in ops:
        core, sent = times["attention_core"], times["exchange"]
        hop_b = hidden_by_pipelining(core.seconds, sent.seconds, d.layout.chunks)
        hidden["exchange"] = ops["exchange"].repeats * hop_b
    for product, reduced, between in STREAMED:
        if product in ops:
            saved = hidden_by_streaming(times[product].body_s, times[reduced].body_s, timing.all_reduce_overlap.value)
            apart = ops[between].collective.calls if between else 0  # type: ignore[union-attr]
            hidden[reduced] = ops[reduced].repeats * saved * (1 - apart)
    for shared, routed in BESIDE:
        if shared in ops:
            saved = smaller(times[shared].latency_s, times[routed].seconds) * timing.shared_expert_overlap.value
            hidden[shared] = ops[shared].repeats * saved
    return hidden


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """One decode step of one layout, or of a column of them: per-op work and time, memory, what a user sees.

    `ops` and `times` are per execution; `Work.repeats` executions make the busiest stage's step, and the stages follow
    each other: ttl_s = pp · (sum of repeats · seconds - hidden).
    """

    model: Model
    machine: Machine
    timing: Timing
    precision: Precision
    layout: Layout
    context: Column
    ops: dict[str, Work]
    times: dict[str, OpTime]
    hidden_s: dict[str, Any]
    memory: Memory

    @property
    def ttl_s(self) -> Any:
        """Token-to-token latency of one user (TTL, TPOT): a token passes every stage."""
        busy = sum(work.repeats * self.times[name].seconds for name, work in self.ops.items())
        return self.layout.pp * (busy - sum(self.hidden_s.values()))

    @property
    def ttl_interval_s(self) -> tuple[Any, Any]:
        """Ends of the TTL's 80 % interval, from the calibration's residuals; without these, the TTL itself.

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
                exposed = work.repeats * self.times[name].seconds - self.hidden_s.get(name, 0.0)
                key = names[0].partition("/")[0]
                by_class[key] = by_class.get(key, 0.0) + self.layout.pp * exposed
        return by_class

    @property
    def extrapolated(self) -> dict[str, Any]:
        """Whether each op that runs is larger than anything its class was measured at."""
        calibration = self.timing.calibration
        found: dict[str, Any] = {}
        for name, work in self.ops.items() if calibration else ():
            for measured in measured_classes(work, self.timing)[:1]:
                beyond = beyond_measured(work, calibration.classes[measured])  # type: ignore[union-attr]
                found[name] = beyond & (np.asarray(work.repeats * self.times[name].seconds) > 0)
        return found

    @property
    def rests_on_extrapolation(self) -> Any:
        """Whether ops beyond measured sizes make up a hundredth of the TTL, or more."""
        seconds, beyond = self.seconds, self.extrapolated
        outside: Any = 0.0
        for name, each in beyond.items():
            outside = outside + each * (seconds[name] - self.layout.pp * self.hidden_s.get(name, 0.0))
        return outside > 0.01 * self.ttl_s

    @property
    def tokens_per_s_user(self) -> Any:
        """Interactivity: 1 / TTL."""
        return 1 / self.ttl_s

    @property
    def tokens_per_s_gpu(self) -> Any:
        """Throughput: every user in flight gets a token per TTL."""
        return self.layout.users / self.layout.gpus / self.ttl_s

    @property
    def seconds(self) -> dict[str, Any]:
        """Seconds that each op adds to the TTL before anything is hidden: all its layers, all stages."""
        return {name: self.layout.pp * w.repeats * self.times[name].seconds for name, w in self.ops.items()}

    def to_frame(self) -> pd.DataFrame:
        """The op table of one layout: a row an op, totals over the busiest stage's step."""
        import pandas as pd

        return pd.DataFrame(op_rows(self)).set_index("op")


def op_rows(step: Step) -> list[dict[str, Any]]:
    """The op table of one layout, a record an op: work of the step on one GPU, seconds in the TTL, what binds."""
    exposed = float(step.ttl_s)
    pp = int(step.layout.pp)
    rows = []
    for name, work in step.ops.items():
        time, repeats = step.times[name], float(work.repeats)
        hidden = pp * float(step.hidden_s.get(name, 0.0))
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


def host_ops(timing: Timing) -> dict[str, Work]:
    """What a step takes outside of its kernels, where a calibration says so."""
    return {"host": Work(op_class=HOST)} if timing.calibration else {}


def host_seconds(machine: Machine, timing: Timing) -> Any:
    """Seconds of it, once a step and stage."""
    return sum(op_time(work, machine, timing).seconds for work in host_ops(timing).values())


def evaluate(
    model: Model, machine: Machine, timing: Timing, precision: Precision, layout: Layout, context: Column
) -> Step:
    """The step of a layout (or of columns of layouts) that is known to be well formed; memory is not checked."""
    d = Decode(model=model, precision=precision, layout=layout.as_floats(), context=context * 1.0)
    ops = layer_ops(d) | host_ops(timing)
    times = {name: op_time(work, machine, timing) for name, work in ops.items()}
    return Step(
        model=model,
        machine=machine,
        timing=timing,
        precision=precision,
        layout=layout,
        context=context,
        ops=ops,
        times=times,
        hidden_s=hidden_times(d, ops, times, timing),
        memory=memory_of(d, ops),
    )


def default_precision(machine: Machine) -> Precision:
    """The narrowest arithmetic of the machine for weights, KV cache and products; BF16 on the wire."""
    narrow = machine.math_formats[0]
    return Precision.model_validate({"weights": narrow, "kv": narrow, "math": narrow})


class LayoutError(SpecError):
    """A layout that cannot run, with a sentence for each reason."""


def decode_step(
    model: Model,
    machine: Machine,
    layout: Layout,
    context: int,
    *,
    precision: Precision | None = None,
    timing: Timing | None = None,
) -> Step:
    """One decode step of one layout; raises LayoutError with every reason where it cannot run.

    context: tokens in each request's KV cache. precision: the machine's narrowest formats unless given. timing: the
    `paper` timing unless given.
    """
    if timing is None:
        from helix_sim.specs.load import load_timing

        timing = load_timing("paper")
    problems = [
        f"{name} is {said(value)}; it must be a whole number from 1 to 10^12"
        for name, value in {**layout.columns(), "context": context}.items()
        if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= LIMIT
    ]
    if problems:
        raise LayoutError(problems)
    flags = int(feasibility.shape_reasons(model, machine, layout, context))
    if flags:
        raise LayoutError(feasibility.sentences(flags, model, machine, layout, context))
    step = evaluate(model, machine, timing, precision or default_precision(machine), layout, context)
    flags = int(feasibility.memory_reason(step.memory, machine))
    if flags:
        raise LayoutError(feasibility.sentences(flags, model, machine, layout, context, step.memory))
    return step
