"""Judged by silicon: each class of kernels on shapes kept out of its fit, and whole decode steps of real servings.

End to end, a step is predicted for every one of the 274 measured servings whose decode layout is stated, none refused.
Rows of the development half (even CRC-32 of the id, and not GB300) may set one number per framework, the step's host
and launch overhead; the blind half sets nothing.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cache
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from helix_sim.core.layout import Layout
from helix_sim.silicon import aic_tables as silicon
from helix_sim.silicon.aic_tables import served_version
from helix_sim.silicon.calibrate import as_served
from helix_sim.silicon.fit import Measured, modelled_s, rows_of
from helix_sim.silicon.measured_kernels import measurements
from helix_sim.silicon.systems import machine_of, tables_of
from helix_sim.specs.load import load_framework, load_model, load_timing
from helix_sim.specs.machine import Machine
from helix_sim.specs.precision import Precision
from helix_sim.specs.setting import Setting
from helix_sim.specs.timing import Timing
from helix_sim.step import Step, evaluate_step
from helix_sim.timing.kernel_shapes import gpu_of

if TYPE_CHECKING:
    import pandas as pd

# --- Kernels ---------------------------------------------------------------------------------------------------------

GROUPS = {
    "attention": ("attention-mla", "attention-gqa"),
    "gemm": ("gemm",),
    "grouped-gemm": ("grouped-gemm",),
    "collectives": ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "dispatch", "combine"),
}
"""Classes whose held-out cells are pooled, and held against the target: median at most 6 %, mean at most 10 %."""
TARGET_MEDIAN, TARGET_MEAN = 0.06, 0.10


def kernels(system: str, framework: str, timing: Timing | None = None) -> pd.DataFrame:
    """Held-out errors of a shipped calibration, a row a class, and a row for each pooled group.

    A group pools this framework's own tables; what is borrowed from another is in its class's row alone.
    """
    import pandas as pd

    timing = timing or load_timing(f"{system}-{framework}")
    found = measurements(system, framework)
    parts: dict[str, Any] = {each.name: _held_out_errors(each, system, timing) for each in found}
    rows = [{"class": name, **_statistics(errors)} for name, errors in parts.items()]
    for group, members in GROUPS.items():
        inside = [parts[each.name] for each in found if each.name.startswith(members) and not each.borrowed]
        if not inside:
            continue
        pooled = _statistics(np.concatenate(inside))
        met = pooled["median"] <= TARGET_MEDIAN and pooled["mean"] <= TARGET_MEAN
        rows.append({"class": f"all {group}", **pooled, "target": "met" if met else "missed"})
    return pd.DataFrame(rows)


def _held_out_errors(measured: Measured, system: str, timing: Timing) -> Any:
    """modelled / measured - 1 of the held-out cells."""
    assert timing.calibration is not None
    machine = machine_of(system)
    gpu = replace(gpu_of(machine), l2_warm=measured.l2_warm)
    record = timing.calibration.classes[measured.name]
    keep = measured.held if measured.held.any() else np.ones_like(measured.held)
    works = [rows_of(work, keep) for work in measured.works]
    modelled = modelled_s(record.shape, works, gpu, machine.flops_per_s, record.values)
    return modelled / measured.seconds[keep] - 1


def _statistics(errors: Any) -> dict[str, Any]:
    return {
        "count": len(errors),
        "median": float(np.median(np.abs(errors))),
        "mean": float(np.mean(np.abs(errors))),
        "bias": float(np.median(errors)),
    }


# --- End to end ------------------------------------------------------------------------------------------------------

MODELS = {
    "deepseek-ai/DeepSeek-V3": "deepseek-r1",
    "moonshotai/Kimi-K2.5": "kimi-k2.5",
    "Qwen/Qwen3-235B-A22B-FP8": "qwen3-235b-a22b",
    "Qwen/Qwen3-32B": "qwen3-32b",
    "nvidia/Qwen3-32B-NVFP4": "qwen3-32b",
}


def formats(row: Any) -> Precision:
    """Number formats of a serving's checkpoint.

    FP8: 128 x 128 blocks everywhere but the head. NVFP4 DeepSeek: the down and up projections of attention stay BF16,
    the output projection does not; Kimi: all of attention stays BF16; Qwen: all linear layers are NVFP4. The cache is
    what the frameworks' `auto` makes of the checkpoint: FP8 where it says so (NVFP4), else BF16.
    """
    in_fp8 = silicon.multiplies_in_fp8(row.system)
    fp4 = row.precision == "fp4"
    latent = row.model.startswith(("deepseek-ai", "moonshotai"))
    kv = "fp8" if fp4 else "bf16"
    chosen: dict[str, Any] = {
        "weights": "nvfp4" if fp4 else "fp8-block",
        "math": "fp4" if fp4 else "fp8",
        "kv": kv,
        "attention_math": "fp8" if in_fp8 and kv == "fp8" and latent else "bf16",
        "head_weights": "bf16",
        "head_math": "bf16",
        "dispatch": load_framework(row.framework).dispatch[row.precision].value,
    }
    if fp4 and latent:
        chosen |= {"attention_weights": "bf16", "projection_math": "bf16"}
        if row.model.startswith("deepseek-ai"):
            chosen |= {"output_weights": "nvfp4", "output_math": "fp4"}
    return Precision.model_validate(chosen)


def layout_of(row: Any, batch: float) -> Layout:
    """A serving's decode layout; an unstated FFN grid (vLLM's, and those of dense models) is tensor-parallel.

    Across boards a framework may spread experts over every GPU, whatever width the serving's label has.
    """
    machine, everywhere = machine_of(row.system), load_framework(row.framework).exchange.over_every_gpu
    _, _, tray = machine.kernel_facts
    wide = row.dp > 1 and row.gpus > tray and row.moe_tp * row.moe_ep > 1 and everywhere and everywhere.value
    ep = row.gpus if wide else max(row.moe_ep, 1)
    tpf = row.moe_tp if row.moe_tp * ep == row.gpus else row.gpus // ep
    x = Layout(batch=batch, tpa=row.tp, dp=row.dp, tpf=tpf, ep=ep)
    return replace(x, redundant_experts=served_copies(row.framework, MODELS[row.model], machine, x))


def served_copies(framework: str, model: str, machine: Machine, x: Layout) -> int:
    """Copies of experts that a framework's published deployments of a model have; 0 where no token is sent to experts.

    None is where all tokens are gathered, on a board that is the NVLink domain, or experts are not over every GPU.
    """
    exchange = load_framework(framework).exchange
    _, _, tray = machine.kernel_facts
    sent = x.dp > 1 and x.ep == x.gpus and not (exchange.gathers_on_board and machine.domain == tray >= x.gpus)
    return exchange.redundant_experts[model].value if sent and model in exchange.redundant_experts else 0


def kind_of(x: Layout) -> str:
    """Which kind of layout: KVP where the cache is sharded, DEP where attention is data-parallel, else TP.

    >>> kind_of(Layout(kvp=8, tpf=8)), kind_of(Layout(dp=8, ep=8)), kind_of(Layout(tpa=8, tpf=8))
    ('KVP', 'DEP', 'TP')
    """
    return "KVP" if x.kvp > 1 else "DEP" if x.dp > 1 else "TP"


def predict(row: Any, batch: float, timing: Timing | None = None) -> Step:
    """The decode step of a serving; a fractional batch is a mean, and no step runs with less than one request."""
    timing = timing or load_timing(f"{row.system}-{row.framework}")
    setting = Setting(
        model=load_model(MODELS[row.model]),
        machine=machine_of(row.system),
        timing=timing,
        precision=formats(row),
    )
    return evaluate_step(setting, layout_of(row, max(batch, 1.0)), int(row.context))


BATCHES = {"as_given": "batch", "effective": "effective_batch"}


def end_to_end(*, peer: bool = False) -> pd.DataFrame:
    """Every serving beside its prediction, under both readings of its batch; with `peer`, aiconfigurator's as well.

    Kernels are those of the software that served, where the package has tables nearer to its time than today's.

    Columns of silicon.disaggregated_decode, and: kind (of layout), as_given_s, as_given_low_s, as_given_high_s,
    effective_s, …, current_s (effective batch, on the shipped timing of today's software), light_s (the `ideal` timing
    at the stated batch), beyond_light; as_given_peer_s, … where asked for.
    """
    rows = silicon.disaggregated_decode()
    ideal = load_timing("ideal")
    columns: dict[str, list[float]] = {}
    for row in cast(Any, rows.itertuples()):
        served = as_served(f"{row.system}-{row.framework}", served_version(row.framework, row.framework_version))
        found = {
            "light_s": float(predict(row, row.batch, ideal).ttl_s),
            "current_s": float(predict(row, row.effective_batch).ttl_s),
        }
        for name, batch in BATCHES.items():
            step = predict(row, getattr(row, batch), served)
            low, high = step.ttl_interval_s
            found |= {f"{name}_s": float(step.ttl_s), f"{name}_low_s": float(low), f"{name}_high_s": float(high)}
            if peer:
                found[f"{name}_peer_s"] = peer_s(row, getattr(row, batch))
        for name, value in found.items():
            columns.setdefault(name, []).append(value)
    table = rows.assign(**columns)
    return table.assign(
        overhead_s=[_overhead_s(row) for row in table.itertuples()],
        beyond_light=table["tpot_s"] < table["light_s"],
        kind=[kind_of(layout_of(row, 1)) for row in table.itertuples()],
    )


LEAST_GAIN = 1.2
"""TPOT without drafts over TPOT with them, at least, of published servings with a median batch: 1.27 at 32 requests of
TensorRT-LLM's, https://github.com/SemiAnalysisAI/InferenceX, DeepSeek-R1 on H200, January 2026."""
ALIKE = (
    *("model", "system", "framework", "precision", "isl", "osl", "tp", "dp", "pp", "moe_tp", "moe_ep"),
    *("gemm_format", "moe_format"),
)
"""Columns in which servings that differ in their requests alone are the same."""


def drafting_doubt(rows: pd.DataFrame) -> pd.DataFrame:
    """What tells of each serving whether it drafted, as the table has no column for it.

    More requests in flight never make a step shorter, and drafts do by LEAST_GAIN or more. So a serving that is that
    much faster than one alike with no more requests in flight must have drafted. Columns: alike, how many such stand
    beside it; seems_drafted. A whole curve of servings that all drafted passes for one that did not; `beyond_light`
    finds it where it is faster than memory allows.
    """
    import pandas as pd

    groups = rows.groupby(list(ALIKE), sort=False, dropna=False)
    seems_drafted = pd.Series(data=False, index=rows.index)
    for _, part in groups:
        fewer = part["effective_batch"].to_numpy()[:, None] >= part["effective_batch"].to_numpy()
        slower = part["tpot_s"].to_numpy()[:, None] * LEAST_GAIN < part["tpot_s"].to_numpy()
        seems_drafted[part.index[np.flatnonzero((fewer & slower).any(axis=1))]] = True
    return pd.DataFrame({"alike": groups["tpot_s"].transform("size") - 1, "seems_drafted": seems_drafted})


def _kept_out(table: pd.DataFrame) -> pd.DataFrame:
    """How rows that drafted are kept out of a table that does not say which did."""
    import pandas as pd

    beside, drafted = table["alike"] > 0, table["seems_drafted"]
    return pd.DataFrame(
        [
            {
                "rows": int((beside & ~drafted).sum()),
                "finding": "no faster than rows alike with fewer requests in flight: no drafts",
            },
            {
                "rows": int(drafted.sum()),
                "finding": f"{LEAST_GAIN:g} times faster than a row alike: left out as drafting",
            },
            {"rows": int((~beside).sum()), "finding": "no row alike beside it: only what light allows tells"},
        ]
    )


def peer_s(row: Any, batch: float) -> float:
    """aiconfigurator's own prediction of a DeepSeek serving's decode step; NaN where it refuses, or has no data.

    Of other models it would fetch the configurations from the network.
    """
    from aiconfigurator_core.sdk.errors import PerfDataNotAvailableError

    if not row.model.startswith("deepseek"):
        return float("nan")
    wide = layout_of(row, batch).ep == row.gpus
    grid = (1, row.gpus) if wide else (max(row.moe_tp, 1), max(row.moe_ep, 1))
    try:
        engine = _peer_engine(
            row.model, row.system, row.framework, row.tp, row.pp, row.dp, *grid, row.gemm_format, row.moe_format
        )
        return float(engine.predict_decode_latency(max(round(batch), 1), int(row.context), 2)) * 1e-3
    except (PerfDataNotAvailableError, ValueError):  # its two ways to refuse: no table, or no such layout
        return float("nan")


@cache
def _peer_engine(
    model: str, system: str, framework: str, tp: int, pp: int, dp: int, moe_tp: int, moe_ep: int, gemm: str, moe: str
) -> Any:
    from aiconfigurator_core.sdk.engine import EngineHandle

    return EngineHandle.compile(
        model, tables_of(system).folder, framework, tp_size=tp, pp_size=pp, attention_dp_size=dp, moe_tp_size=moe_tp,
        moe_ep_size=moe_ep, gemm_quant_mode=gemm, moe_quant_mode=moe,
    )  # fmt: skip


def beside_peer(table: pd.DataFrame, reading: str) -> pd.DataFrame:
    """aiconfigurator's errors and ours on the DeepSeek rows that it predicts, and ours on those it refuses."""
    import pandas as pd

    rows = []
    deepseek = _deepseek(table)
    for system, part in [*deepseek.groupby("system"), ("all", deepseek)]:
        peers = (part[f"{reading}_peer_s"] / part["tpot_s"] - 1).abs()
        ours, has = errors(part, reading).abs(), peers.notna()
        rows.append(
            {
                "system": system,
                "count": len(part),
                "peer_predicts": int(has.sum()),
                "peer_median": peers.median(),
                "peer_mean": peers.mean(),
                "our_median_there": ours[has].median(),
                "our_mean_there": ours[has].mean(),
                "our_mean_where_it_refuses": ours[~has].mean(),
            }
        )
    return pd.DataFrame(rows)


def _overhead_s(row: Any) -> float:
    measured = load_timing(f"{row.system}-{row.framework}").calibration
    return measured.step_overhead_us.value * 1e-6 if measured else 0.0


def errors(table: pd.DataFrame, reading: str) -> pd.Series[float]:
    """predicted / measured - 1."""
    return table[f"{reading}_s"] / table["tpot_s"] - 1


def scores(table: pd.DataFrame, by: list[str], reading: str) -> pd.DataFrame:
    """Count, median and mean absolute error, bias and coverage of the 80 % interval, a row a group."""
    import pandas as pd

    def score(part: pd.DataFrame) -> dict[str, Any]:
        error = errors(part, reading)
        inside = part["tpot_s"].between(part[f"{reading}_low_s"], part[f"{reading}_high_s"])
        return {
            "count": len(part),
            "median": float(error.abs().median()),
            "mean": float(error.abs().mean()),
            "bias": float(error.median()),
            "covered": float(inside.mean()),
        }

    if not by:
        return pd.DataFrame([score(table)])
    return pd.DataFrame(
        [{**dict(zip(by, key, strict=True)), **score(part)} for key, part in table.groupby(by, sort=True)]
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Overhead:
    """A framework's step overhead as its development rows ask for it."""

    framework: str
    rows: int
    microseconds: float


def overheads(table: pd.DataFrame) -> list[Overhead]:
    """The one number per framework: the overhead with the least mean |ln(predicted / measured)| on development rows.

    With effective batch, and without the rows that no prediction can mean: beyond light.
    """
    usable = table[(table["half"] == "development") & ~table["beyond_light"]]
    found = []
    for framework, part in usable.groupby("framework"):
        bare = (part["effective_s"] - part["overhead_s"]).to_numpy()
        tried = np.arange(0, 10001, 10) * 1e-6
        loss = [np.abs(np.log((bare + more) / part["tpot_s"])).mean() for more in tried]
        found.append(
            Overhead(framework=str(framework), rows=len(part), microseconds=round(tried[int(np.argmin(loss))] * 1e6))
        )
    return found


WORST = 10
SPLIT = ["half"]


def report(table: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """Every table that `helix-sim validate --end-to-end` prints, by its title."""
    told = table.join(drafting_doubt(table))
    table = told[~told["seems_drafted"]]
    found: dict[str, pd.DataFrame] = {}
    for reading in BATCHES:
        title = f"batch {reading.replace('_', ' ')}"
        found[f"{title}: by half, all rows"] = _with_total(table, SPLIT, reading)
        found[f"{title}: by half, without doubtful rows"] = _with_total(table[~table["beyond_light"]], SPLIT, reading)
        found[f"{title}: DeepSeek by system"] = _with_total(_deepseek(table), ["system"], reading)
        found[f"{title}: by kind of layout"] = _with_total(table, ["kind"], reading)
        if f"{reading}_peer_s" in table:
            found[f"{title}: beside aiconfigurator {silicon.VERSION}, DeepSeek"] = beside_peer(table, reading)
        found[f"{title}: by half, system, model and framework"] = scores(
            table, ["half", "system", "model", "framework"], reading
        )
    found["batch effective, on the shipped timings of today's software: by half"] = _with_total(
        table.assign(current_low_s=np.nan, current_high_s=np.nan), SPLIT, "current"
    ).drop(columns="covered")
    worst = table.assign(error=errors(table, "effective"))
    found[f"the {WORST} worst development rows, batch effective"] = _listed(worst[worst["half"] == "development"])
    found[f"the {WORST} worst blind rows, batch effective"] = _listed(worst[worst["half"] == "blind"])
    found["faster than light at the stated batch"] = _listed(worst[worst["beyond_light"]], most=len(table))
    found["step overhead that development rows ask for"] = _overhead_table(table)
    found["speculation, which the table does not label"] = _kept_out(told)
    return found


def _deepseek(table: pd.DataFrame) -> pd.DataFrame:
    return table[table["model"].str.startswith("deepseek")]


def _with_total(table: pd.DataFrame, by: list[str], reading: str) -> pd.DataFrame:
    import pandas as pd

    total = scores(table, [], reading)
    total.insert(0, by[0], "all")
    return pd.concat([scores(table, by, reading), total], ignore_index=True)


def _listed(rows: pd.DataFrame, most: int = WORST) -> pd.DataFrame:
    """Rows with the largest errors first, times in milliseconds."""
    order = rows["error"].abs().sort_values(ascending=False).index[:most]
    rows = rows.loc[order]
    return rows[["half", "system", "framework", "precision", "tp", "dp", "moe_tp", "moe_ep", "isl", "osl"]].assign(
        batch=rows["batch"].round(1),
        effective=rows["effective_batch"].round(1),
        measured_ms=rows["tpot_s"] * 1e3,
        predicted_ms=rows["effective_s"] * 1e3,
        light_ms=rows["light_s"] * 1e3,
        error=rows["error"],
    )


def _overhead_table(table: pd.DataFrame) -> pd.DataFrame:
    import pandas as pd

    return pd.DataFrame(
        [
            {"framework": o.framework, "development_rows": o.rows, "overhead_us": o.microseconds}
            for o in overheads(table)
        ]
    )
