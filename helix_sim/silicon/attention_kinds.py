"""Classes of windowed, sparse, compressed, block-sparse and linear attention, from the public tables that have them.

What was measured alone (windows, convolutions, states, an indexer's scores and its choice) is fitted as any class is.
The cores of sparse kinds were measured inside of whole modules: `module_fit` takes off the kernels that have classes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from helix_sim.core.layout import Layout
from helix_sim.core.work import Work
from helix_sim.ops import linear
from helix_sim.ops.attention import window_core
from helix_sim.ops.layers import KINDS
from helix_sim.ops.sparse import SCORE_BYTES, index_logits, index_top_k
from helix_sim.ops.step_input import StepInput
from helix_sim.silicon import aic_tables as silicon
from helix_sim.silicon import kind_tables
from helix_sim.silicon.composition import alone_s
from helix_sim.silicon.fit import Fitted, Measured, fit, held_out
from helix_sim.silicon.kind_tables import Kind
from helix_sim.silicon.measured_kernels import MATH, TABLE_FORMAT, cited, fastest, floats, largest_of, row_step
from helix_sim.silicon.module_fit import Group, Modules, fit_modules
from helix_sim.silicon.systems import machine_of
from helix_sim.specs.load import load_framework, load_model
from helix_sim.specs.model import LinearAttention, WindowAttention
from helix_sim.specs.precision import Precision
from helix_sim.specs.timing import Calibration, Timing
from helix_sim.timing.kernel_shapes import gpu_of

if TYPE_CHECKING:
    import pandas as pd

MODELS = {
    "deepseek-ai/DeepSeek-V3.2": "deepseek-v3.2",
    "zai-org/GLM-5": "glm-5",
    "zai-org/GLM-5-FP8": "glm-5",
    "sgl-project/DeepSeek-V4-Flash-FP8": "deepseek-v4-flash",
    "MiniMaxAI/MiniMax-M3": "minimax-m3",
}
"""Shipped models by the names that the tables have for them; rows of others are left out."""

ATTENTION: dict[Kind, str] = {"sparse": "sparse", "csa": "csa", "hca": "hca", "block-sparse": "sparse"}
"""A kind's entry in such a model's `attention`."""

TOGETHER: tuple[tuple[Kind, ...], ...] = (("sparse",), ("csa", "hca"), ("block-sparse",))
"""Kinds whose modules are fitted together, for their cores are of one class."""

OUTSIDE = ("attention_norm", "attention_all_reduce", "exchange", "combine_partials", "index_exchange", "index_merge")
"""Ops of a layer's attention that no module of one GPU has."""

PLAIN = {"splits": 1.0, "lone_head": 0.0}
"""What only block-sparse attention's tables tell: of others, a rank has several heads, and walks are short."""

WALKED_ALONE = {"splits": 1.0, "split_kB": 0.0}
"""A choice by one block a row, however long: SGLang's, which was measured up to a million scores."""

FP8_KEY_BYTES = 132
"""An index key of 128 values in FP8 with an FP32 scale, where a machine has no narrower arithmetic."""

FEWEST_ROWS = 100
"""Rows of a table, at least, for a class of its own."""


def kind_classes(timing: Timing, say: Callable[[str], None] = lambda _: None) -> dict[str, Fitted]:
    """Every class of these kinds, fitted to a framework's tables on a system, beside a timing's own classes."""
    calibration = timing.calibration
    assert calibration is not None
    system, framework = calibration.system, calibration.framework
    machine = machine_of(system)
    found: dict[str, Fitted] = {}

    def add(fitted: Mapping[str, Fitted]) -> None:
        for name, each in fitted.items():
            errors = each.record.residuals
            say(f"{name}: {errors.count} held out, median {errors.median_error:.1%}, mean {errors.mean_error:.1%}")
        found.update(fitted)

    alone = [*window_classes(system, framework), *linear_classes(system, framework)]
    if framework == "sglang":
        alone += index_classes(system)
    for measured in alone:
        add({measured.name: fit(measured, gpu_of(machine), machine.flops_per_s)})
    of_dummies = index_classes(system, alike=True) if framework == "sglang" else []
    in_modules = {each.name: fit(each, gpu_of(machine), machine.flops_per_s, starts=1) for each in of_dummies}
    for kinds in TOGETHER:
        known = calibration.model_copy(
            update={
                "classes": {**calibration.classes, **{name: each.record for name, each in (found | in_modules).items()}}
            }
        )
        for modules in module_classes(timing.model_copy(update={"calibration": known}), kinds):
            add(fit_modules(modules, gpu_of(machine), machine.flops_per_s))
    return found


# --- Measured alone --------------------------------------------------------------------------------------------------


def window_classes(system: str, framework: str) -> list[Measured]:
    """attention-window by KV format: the kernels of grouped-query attention that were told where to begin."""
    frame = silicon.attention_gqa(system, framework)
    frame = frame[(frame["window"] > 0) & (frame["context"] > frame["window"])]
    frame = frame[(frame["q_heads"] <= 32 * frame["kv_heads"]) & frame["head_dim"].isin([64, 128, 256])]
    keys = ["batch", "q_heads", "kv_heads", "head_dim", "kv_format", "window"]
    frame = fastest(frame, [*keys, "context"])
    found = []
    for kv, rows in frame.groupby("kv_format"):
        if len(rows) < FEWEST_ROWS:
            continue
        names = ("batch", "context", "q_heads", "kv_heads", "head_dim", "window")
        batch, context, heads, groups, width, window = floats(rows, *names)
        work = window_work(str(kv), batch, context, heads, groups, width, window)
        found.append(
            Measured(
                name=f"attention-window-{kv}",
                shape="head-attention",
                works=(work,),
                seconds=rows["seconds"].to_numpy(),
                held=held_out(rows[keys]),
                source=cited(rows),
                largest=largest_of(tokens=work.tokens, rows=batch),
                l2_warm=True,
            )
        )
    return found


def window_work(kv: str, batch: Any, context: Any, heads: Any, kv_heads: Any, width: Any, window: Any) -> Work:
    """The core of windowed attention on a rank that holds so many query and KV heads, of that width."""
    spec = WindowAttention.model_construct(
        kind="window", q_heads=heads, kv_heads=kv_heads, head_size=width, window_tokens=window
    )
    return window_core(row_step(kv=kv, attention_math="bf16", batch=batch, context=context), spec)


def linear_classes(system: str, framework: str) -> list[Measured]:
    """convolution and linear-state; a kernel that does both is taken for the update of the state alone."""
    frame = kind_tables.linear_attention(system, framework)
    found = []
    for op, shape in (("convolution", "stream"), ("state", "state")):
        rows = frame[frame["op"] == op]
        if op == "convolution":  # of gated delta nets TensorRT-LLM's has the keys' channels alone
            rows = rows[rows["kind"] == ("mamba2" if framework == "trtllm" else "gdn")]
        if op == "state":  # what fuses the convolution as well stands in only where tokens are verified
            rows = rows[~rows["kernel"].str.contains("fused_decode|fused_kda_decode$") | (rows["query_tokens"] > 1)]
        cells = [str(name) for name in rows if name not in ("seconds", "kernel", "source")]
        rows = fastest(rows, cells)
        if len(rows) < FEWEST_ROWS // 4:
            continue
        work = linear_work(op, rows)
        found.append(
            Measured(
                name=str(work.op_class),
                shape=shape,
                works=(work,),
                seconds=rows["seconds"].to_numpy(),
                held=held_out(rows[[name for name in cells if name != "query_tokens"]]),
                source=cited(rows),
                largest=largest_of(rows=work.rows, **({"tokens": work.tokens} if op == "state" else {})),
                l2_warm=shape == "state",
            )
        )
    return found


def linear_work(op: str, rows: pd.DataFrame) -> Work:
    """The convolution or the update of the state of each row's heads."""
    names = ("batch", "query_tokens", "key_heads", "value_heads", "key_width", "value_width", "conv_tokens")
    batch, tokens, key_heads, value_heads, key_width, value_width, _ = floats(rows, *names)
    (state_format,), (conv_tokens,) = rows["state_format"].unique(), rows["conv_tokens"].unique()
    spec = LinearAttention.model_construct(
        kind="linear",
        key_heads=key_heads,
        value_heads=value_heads,
        key_width=key_width,
        value_width=value_width,
        conv_tokens=int(conv_tokens),
        delta_rule=True,
        head_gates=2,
        output_gate=True,
        decay_rank=None,
        state_format=state_format,
    )
    step = replace(row_step(batch=batch), query_tokens=tokens)
    return linear.convolution(step, spec) if op == "convolution" else linear.state_update(step, spec)


def index_classes(system: str, *, alike: bool = False) -> list[Measured]:
    """index-logits-fp8 and index-top-k, of the kernels that SGLang runs; of a choice among scores all alike."""
    scores, choices = kind_tables.index_logits(system), kind_tables.index_top_k(system, alike=alike)
    v4, v32 = load_model("deepseek-v4-flash").attention["csa"], load_model("deepseek-v3.2").attention["sparse"]
    in_fp8 = {"indexer": v4.indexer.model_copy(update={"key_bytes": FP8_KEY_BYTES, "math": "fp8"})}  # type: ignore[union-attr]
    scores = scores[scores["context"] >= 4]
    return [
        Measured(
            name="index-logits-fp8",
            shape="picked-attention",
            works=(index_logits(_row_steps(scores), v4.model_copy(update=in_fp8)),),  # type: ignore[arg-type]
            seconds=scores["seconds"].to_numpy(),
            held=held_out(scores[["batch", "context"]]),
            source=cited(scores),
            largest=largest_of(tokens=scores["context"] / 4, rows=scores["batch"]),
            l2_warm=True,
            known=PLAIN,
        ),
        Measured(
            name="index-top-k",
            shape="row-walk",
            works=(index_top_k(_row_steps(choices), v32),),  # type: ignore[arg-type]
            seconds=choices["seconds"].to_numpy(),
            held=held_out(choices[["batch", "context"]]),
            source=cited(choices),
            largest=largest_of(tokens=choices["context"], rows=choices["batch"]),
            known=WALKED_ALONE,
        ),
    ]


def _row_steps(rows: pd.DataFrame) -> StepInput:
    batch, context = floats(rows, "batch", "context")
    return row_step(batch=batch, context=context)


# --- Measured in whole modules ---------------------------------------------------------------------------------------


def module_classes(timing: Timing, kinds: tuple[Kind, ...]) -> Iterator[Modules]:
    """The classes of kinds that no table has alone, and the modules that they are fitted to; none without a table."""
    groups: list[Group] = []
    sources = []
    for kind in kinds:
        found, source = _groups_of(timing, kind)
        groups += found
        sources += [source] if found else []
    shapes: dict[str, str] = {}
    for group in groups:
        shapes |= {name: "row-walk" if name == "index-top-k" else "picked-attention" for name in group.works}
    if shapes and sum(len(group.seconds) for group in groups) >= FEWEST_ROWS:
        plain = {name: PLAIN for name, shape in shapes.items() if shape == "picked-attention"}
        known: dict[str, Mapping[str, float]] = {} if kinds == ("block-sparse",) else dict(plain)
        told: dict[str, Mapping[str, str]] = {}
        if "index-top-k" in shapes:
            known["index-top-k"], told["index-top-k"] = _long_rows(timing)
        yield Modules(groups=groups, shapes=shapes, source="; ".join(sources), known=known, told=told)


def _long_rows(timing: Timing) -> tuple[Mapping[str, float], Mapping[str, str]]:
    """How a framework's choice shares a long row among blocks, and where that is known from."""
    assert timing.calibration is not None
    split = load_framework(timing.calibration.framework).long_rows
    if split is None:
        return WALKED_ALONE, {}
    known = {"splits": split.blocks.value, "split_kB": split.from_scores.value * SCORE_BYTES / 1e3}
    return known, {"splits": split.blocks.source, "split_kB": split.from_scores.source}


def _groups_of(timing: Timing, kind: Kind) -> tuple[list[Group], str]:
    """A kind's modules by model and formats, and where they are from."""
    calibration = timing.calibration
    assert calibration is not None
    try:
        frame = kind_tables.attention_module(calibration.system, calibration.framework, kind)
    except silicon.NoSuchTable:
        return [], ""
    frame = frame[frame["model"].isin(list(MODELS)) & frame["gemm_format"].isin(list(TABLE_FORMAT))]
    frame = frame[frame["q_heads"] <= frame["model"].map(lambda name: _spec(name, kind).q_heads)]
    frame = frame.assign(kv_format=frame["kv_format"].replace({"fp8_e4m3": "fp8"}))
    frame = frame[frame["context"] > frame["model"].map(lambda name: _least_context(_spec(name, kind)))]
    if frame.empty:
        return [], ""
    kept = frame[~_undercut(frame)]
    remark = f"; {len(frame) - len(kept)} of {len(frame)} rows left out, whose contexts a longer one undercuts"
    groups = [_group(rows, timing, kind, *key) for key, rows in kept.groupby(["model", "kv_format", "gemm_format"])]
    return groups, cited(kept, remark)


def _undercut(frame: pd.DataFrame) -> Any:
    """Rows at whose context, for some batch, a longer one takes a seventh less: the choice degenerates there.

    Weights are dummies and scores all alike, where a kernel that picks by digits of the score takes up to 120 µs more.
    """
    cell = ["model", "q_heads", "kv_format", "gemm_format", "kernel"]
    longest_first = frame.sort_values("context", ascending=False)
    least = longest_first.groupby([*cell, "batch"])["seconds"].cummin().reindex(frame.index)
    worst = (frame["seconds"] / least).groupby([frame[name] for name in [*cell, "context"]]).transform("max")
    return worst > 1 / (1 - 1 / 7)


def _spec(name: str, kind: Kind) -> Any:
    """A kind's attention in one of the tables' models."""
    return load_model(MODELS[name]).attention[ATTENTION[kind]]


def _least_context(spec: Any) -> int:
    """Tokens up to which a query sees all there is: a module of no more skips the indexer."""
    return int(spec.ratio * spec.indexer.picked) if spec.indexer else int(spec.window_tokens)


def _group(rows: pd.DataFrame, timing: Timing, kind: Kind, name: str, kv: str, gemm_format: str) -> Group:
    """Modules of one model and its formats: each op by its class, where the timing has none, or by its seconds."""
    calibration = timing.calibration
    assert calibration is not None
    weights = TABLE_FORMAT[gemm_format]
    latent_in_fp8 = kv == "fp8" and kind != "block-sparse" and silicon.multiplies_in_fp8(calibration.system)
    precision = Precision.model_validate(
        {
            "weights": weights,
            "math": MATH[weights],
            "kv": kv,
            "attention_math": "fp8" if latent_in_fp8 else "bf16",
        }
    )
    model = load_model(MODELS[name])
    spec, spec_name = _spec(name, kind), ATTENTION[kind]
    if spec.indexer and spec.indexer.math not in machine_of(calibration.system).math_formats:
        in_fp8 = spec.indexer.model_copy(update={"math": "fp8", "key_bytes": FP8_KEY_BYTES})
        spec = spec.model_copy(update={"indexer": in_fp8})
    batch, context, heads = floats(rows, "batch", "context", "q_heads")
    layout = Layout(batch=batch, tpa=spec.q_heads / heads, tpf=spec.q_heads / heads)
    step = StepInput(model=model, precision=precision, layout=layout, context=context)
    rest: Any = np.zeros(len(rows))
    works: dict[str, Work] = {}
    for op, work in KINDS[spec.kind].ops(step, spec).items():
        if op in OUTSIDE:
            continue
        own = class_name(work)
        if own is not None and not any(name in calibration.classes for name in (own, *_alone(own, calibration))):
            works[own] = work
        else:
            rest = rest + alone_s(work, timing)
    return Group(
        alike=f"{model.name} {spec_name} {gemm_format}",
        works=works,
        rest_s=rest * np.ones(len(rows)),
        seconds=rows["seconds"].to_numpy(),
        held=held_out(rows[["model", "kv_format", "gemm_format", "q_heads", "batch"]]),
    )


def _alone(name: str, calibration: Calibration) -> list[str]:
    """The class of scores in FP8 where a table has these alone: the kernel that a framework has for all formats."""
    alone = calibration.framework == "sglang" and name.startswith("index-logits") and not name.endswith("bf16")
    return ["index-logits-fp8"] if alone else []


def class_name(work: Work) -> str | None:
    """The class that an op of these kinds is timed by; None where a class of every kind of attention times it."""
    if work.op_class.startswith("attention"):
        return f"{work.op_class}-{work.weights}"
    if work.op_class == "index-logits":
        return f"{work.op_class}-{work.math}"
    return work.op_class if work.op_class == "index-top-k" else None
