"""From measured kernels to a calibrated clock: tables to Work, least squares of each class's shape, residuals.

A class is fitted in the logarithms of its parameters to the logarithm of measured over modelled time, with a loss that
large residuals enter linearly (soft L1). A fifth of the grid's cells is kept out: whole curves, chosen by the CRC-32 of
their coordinates, so that a held-out point has no neighbour of its own curve in the fit. Errors and residual quantiles
are those of the held-out cells.
"""

from __future__ import annotations

import datetime
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from helix_sim.collectives import all_reduce, direct
from helix_sim.kernel_time import SHAPES, Gpu
from helix_sim.load import load_hardware
from helix_sim.spec import (
    Calibration,
    Clock,
    Hardware,
    KernelClass,
    Positive,
    Quantity,
    Residuals,
    SpecError,
    WholeQuantity,
)
from helix_sim.units import MEGA, bytes_per_value
from helix_sim.work import Work

if TYPE_CHECKING:
    import pandas as pd

MACHINES = {
    "gb200": "gb200-nvl72",
    "gb300": "gb300-nvl72",
    "b200": "b200-hgx",
    "h200": "h200-hgx",
    "h100": "h100-hgx",
}
SMS = {"gb200": 148, "gb300": 148, "b200": 148, "h200": 132, "h100": 132}
L2_MB = {"gb200": 126, "gb300": 126, "b200": 126, "h200": 50, "h100": 50}
TRAY = {"gb200": 4, "gb300": 4, "b200": 8, "h200": 8, "h100": 8}
TABLE_FORMAT = {"nvfp4": "nvfp4", "fp8": "fp8", "fp8_block": "fp8-block", "bf16": "bf16"}
MATH = {"nvfp4": "fp4", "fp8": "fp8", "fp8-block": "fp8", "bf16": "bf16"}
MOST_ROWS = 4000
"""Rows that enter a fit; larger tables are sampled, with a fixed seed."""
DECODE_TOKENS = 4096
"""Most tokens that a decode step runs at once; products of more rows are prefill."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """One class's measurements: the ops that each measured kernel does, its seconds, and what is kept out of the fit.

    A fused kernel is several ops, whose times add up to the measured one.
    """

    name: str
    shape: str
    works: tuple[Work, ...]
    seconds: npt.NDArray[np.float64]
    held: npt.NDArray[np.bool_]
    source: str
    largest: dict[str, float]
    l2_warm: bool = False
    known: Mapping[str, float] | None = None
    """Parameters that these measurements cannot tell, and the values they are set to."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Fitted:
    """A class as fitted, with each measurement's modelled time."""

    measured: Measured
    record: KernelClass
    modelled_s: npt.NDArray[np.float64]

    @property
    def log_residuals(self) -> npt.NDArray[np.float64]:
        """Logarithm of measured over modelled time."""
        logs: npt.NDArray[np.float64] = np.log(self.measured.seconds / self.modelled_s)
        return logs


# --- Fitting ---------------------------------------------------------------------------------------------------------


def held_out(cells: pd.DataFrame) -> npt.NDArray[np.bool_]:
    """Whether each row's cell is kept out of the fit: CRC-32 of its coordinates divisible by five."""
    text = cells.astype(str).agg("|".join, axis=1)
    chosen = {cell: zlib.crc32(cell.encode()) % 5 == 0 for cell in text.unique()}
    return text.map(chosen).to_numpy(dtype=bool)


def rows_of(work: Work, keep: npt.NDArray[Any]) -> Work:
    """Some rows of a column of ops."""

    def cut(value: Any) -> Any:
        return value[keep] if isinstance(value, np.ndarray) and value.ndim else value

    changed: dict[str, Any] = {name: cut(getattr(work, name)) for name in _SIZES}
    sent = work.collective
    if sent is not None:
        changed["collective"] = replace(sent, payload=cut(sent.payload), group=cut(sent.group))
    return replace(work, **changed)


_SIZES = (
    *("flops", "weight_bytes", "kv_bytes", "activation_bytes", "rows", "inner", "outer", "copies"),
    *("experts_read", "heads", "tokens", "needed", "kernels"),
)


def modelled_s(
    shape: str, works: Sequence[Work], gpu: Gpu, rate: Callable[[str], float], p: Mapping[str, float]
) -> Any:
    """Seconds of a kernel that does these ops, one after the other."""
    total: Any = 0.0
    for work in works:
        terms = SHAPES[shape].time(work, gpu, rate(work.math) if work.collective is None else 1.0, p)
        total = total + terms.latency_s + np.maximum(np.maximum(terms.math_s, terms.hbm_s), terms.link_s)
    return total


def fit(measured: Measured, gpu: Gpu, rate: Callable[[str], float], *, starts: int = 3) -> Fitted:
    """The class's parameters, and how well they predict the cells kept out."""
    from scipy.optimize import least_squares

    known = dict(measured.known or {})
    free = {k: v for k, v in SHAPES[measured.shape].parameters.items() if k not in known}
    gpu = replace(gpu, l2_warm=measured.l2_warm)
    train = np.flatnonzero(~measured.held)
    train = train if len(train) <= MOST_ROWS else np.random.default_rng(0).choice(train, MOST_ROWS, replace=False)
    works = [rows_of(work, train) for work in measured.works]
    target = np.log(measured.seconds[train])

    def values(logs: Any) -> dict[str, float]:
        return {**known, **dict(zip(free, np.exp(logs).tolist(), strict=True))}

    def residual(logs: Any) -> Any:
        return np.log(modelled_s(measured.shape, works, gpu, rate, values(logs))) - target

    low = np.log([max(p.low, 1e-4) for p in free.values()])
    high = np.log([p.high for p in free.values()])
    start = np.log([p.start for p in free.values()])
    rng, best = np.random.default_rng(1), None
    for attempt in range(starts):
        first = np.clip(start + attempt * rng.normal(0, 0.4, len(start)), low + 1e-6, high - 1e-6)
        found = least_squares(residual, first, bounds=(low, high), loss="soft_l1", f_scale=0.08, max_nfev=100)
        best = found if best is None or found.cost < best.cost else best
    assert best is not None
    chosen = values(best.x)
    modelled = modelled_s(measured.shape, measured.works, gpu, rate, chosen)
    return Fitted(measured=measured, record=_record(measured, chosen, known, modelled), modelled_s=modelled)


def _record(measured: Measured, values: Mapping[str, float], known: Mapping[str, float], modelled: Any) -> KernelClass:
    """The fitted class as a clock's file says it."""
    today = datetime.datetime.now(tz=datetime.UTC).date().isoformat()
    used = int((~measured.held).sum())
    parameters = {
        name: {
            "value": float(f"{values[name]:.4g}"),
            "source": "assumed: not told by these measurements" if name in known else "measured: fitted, see the class",
        }
        for name in SHAPES[measured.shape].parameters
    }
    return KernelClass.model_validate(
        {
            "shape": measured.shape,
            "source": f"measured: {measured.source}; {used} rows fitted, {len(modelled) - used} held out; {today}",
            "parameters": parameters,
            "largest": measured.largest,
            "residuals": residuals(measured.seconds, modelled, measured.held),
        }
    )


def residuals(seconds: Any, modelled: Any, held: Any) -> Residuals:
    """Quantiles of ln(measured / modelled), and errors, over the held-out rows (over all where none is held out)."""
    keep = held if held.any() else np.ones_like(held)
    logs = np.log(seconds[keep] / modelled[keep])
    errors = np.abs(np.expm1(-logs))
    low, median, high = (float(f"{q:.4g}") for q in np.quantile(logs, [0.1, 0.5, 0.9]))
    return Residuals(
        count=int(keep.sum()),
        low=low,
        median=median,
        high=high,
        median_error=float(f"{np.median(errors):.4g}"),
        mean_error=float(f"{errors.mean():.4g}"),
    )


# --- Tables to Work --------------------------------------------------------------------------------------------------


def _largest(**columns: Any) -> dict[str, float]:
    return {name: float(np.max(column)) for name, column in columns.items()}


def _cited(frame: pd.DataFrame, remark: str = "") -> str:
    """Package, version, tables and kernels of some rows."""
    from helix_sim import silicon

    kernels = ", ".join(sorted(frame["kernel"].unique())[:4])
    tables = ", ".join(sorted(frame["source"].unique()))
    return f"{silicon.DISTRIBUTION} {silicon.VERSION}, {tables} ({kernels}){remark}"


def _floats(frame: pd.DataFrame, *names: str) -> list[npt.NDArray[np.float64]]:
    return [frame[name].to_numpy(dtype=float) for name in names]


def mla_classes(system: str, framework: str) -> list[Measured]:
    """attention-mla by KV format. vLLM has whole modules only, and borrows SGLang's kernel (both run FlashInfer's)."""
    from helix_sim import silicon

    remark = "; borrowed: this framework's table has whole modules only" if framework == "vllm" else ""
    frame = silicon.attention_mla(system, "sglang" if framework == "vllm" else framework)
    found = []
    for kv, rows in frame.groupby("kv_format"):
        batch, context, heads = _floats(rows, "batch", "context", "q_heads")
        work = Work(
            op_class="attention-mla",
            flops=2 * batch * context * heads * (576 + 512),
            kv_bytes=batch * context * 576 * bytes_per_value(str(kv)),
            activation_bytes=batch * heads * (576 + 512) * 2.0,
            math=rows["math_format"].iloc[0],
            weights=str(kv),
            rows=batch,
            inner=576,
            outer=512,
            heads=heads,
            tokens=context,
        )
        found.append(
            Measured(
                name=f"attention-mla-{kv}",
                shape="latent-attention",
                works=(work,),
                seconds=rows["seconds"].to_numpy(),
                held=held_out(rows[["batch", "q_heads", "kv_format"]]),
                source=_cited(rows, remark),
                largest=_largest(tokens=context, rows=batch),
                l2_warm=True,
            )
        )
    return found


def gqa_classes(system: str, framework: str) -> list[Measured]:
    """attention-gqa by KV format: full attention, up to 32 queries a KV head (beyond, a slower kernel takes over)."""
    from helix_sim import silicon

    frame = silicon.attention_gqa(system, framework)
    frame = frame[(frame["window"] == 0) & (frame["q_heads"] <= 32 * frame["kv_heads"])]
    frame = frame[frame["head_dim"].isin([64, 128, 256])]
    keys = ["batch", "q_heads", "kv_heads", "head_dim", "kv_format"]
    frame = _fastest(frame, [*keys, "context"])
    found = []
    for kv, rows in frame.groupby("kv_format"):
        if len(rows) < 500:
            continue
        batch, context, heads, groups, width = _floats(rows, "batch", "context", "q_heads", "kv_heads", "head_dim")
        work = Work(
            op_class="attention-gqa",
            flops=4 * batch * context * heads * width,
            kv_bytes=2 * batch * context * groups * width * bytes_per_value(str(kv)),
            activation_bytes=4 * batch * heads * width,
            math="bf16",
            weights=str(kv),
            rows=batch,
            inner=width,
            outer=width,
            copies=groups,
            heads=heads,
            tokens=context,
        )
        found.append(
            Measured(
                name=f"attention-gqa-{kv}",
                shape="head-attention",
                works=(work,),
                seconds=rows["seconds"].to_numpy(),
                held=held_out(rows[keys]),
                source=_cited(rows),
                largest=_largest(tokens=context, rows=batch),
                l2_warm=True,
            )
        )
    return found


def _fastest(frame: pd.DataFrame, cell: list[str]) -> pd.DataFrame:
    """The fastest kernel of each cell, where a framework has several to choose from."""
    return frame.loc[frame.groupby(cell, sort=False)["seconds"].idxmin()]


def gemm_classes(system: str, framework: str) -> list[Measured]:
    """gemm by weight format, quantising of the input included where the framework's kernel does it.

    vLLM's table of FP8 blocks has floors of 50 to 250 µs, which are a host's and not a kernel's: SGLang's DeepGEMM, the
    library that vLLM calls as well, stands in for it.
    """
    import pandas as pd

    from helix_sim import silicon

    frame, remark = silicon.gemm(system, framework), {}
    if framework == "vllm":
        own, borrowed = frame["format"] != "fp8_block", silicon.gemm(system, "sglang").query("format == 'fp8_block'")
        frame = pd.concat([frame[own], borrowed], ignore_index=True)
        remark = {"fp8_block": "; borrowed: vLLM's table times the host's launches"}
    frame = frame[(frame["m"] <= DECODE_TOKENS) & (frame["n"] >= 128) & (frame["k"] >= 128)]
    frame = _fastest(frame, ["m", "n", "k", "format"])
    found = []
    for table_format, rows in frame.groupby("format"):
        name = TABLE_FORMAT.get(str(table_format))
        if name is None:
            continue
        m, n, k = _floats(rows, "m", "n", "k")
        found.append(
            Measured(
                name=f"gemm-{name}",
                shape="gemm",
                works=(_product("gemm", name, m, k, n),),
                seconds=rows["seconds"].to_numpy(),
                held=held_out(rows[["n", "k", "format"]]),
                source=_cited(rows, remark.get(str(table_format), "")),
                largest=_largest(rows=m, inner=k, outer=n),
            )
        )
    return found


def _product(op_class: str, weights: str, m: Any, k: Any, n: Any, copies: Any = 1) -> Work:
    return Work(
        op_class=op_class,
        flops=2 * copies * m * k * n,
        weight_bytes=copies * k * n * bytes_per_value(weights),
        activation_bytes=copies * m * (k + n) * 2.0,
        math=MATH[weights],
        weights=weights,
        rows=m,
        inner=k,
        outer=n,
        copies=copies,
    )


def batched_classes(system: str, framework: str) -> list[Measured]:
    """batched-gemm: the absorbed up-projections of MLA, in BF16, timed with their weights in L2."""
    from helix_sim import silicon

    rows = silicon.mla_up_projection(system, framework)
    rows = rows[(rows["format"] == "bf16") & (rows["tokens"] <= DECODE_TOKENS)]
    m, heads, n, k = _floats(rows, "tokens", "heads", "n", "k")
    return [
        Measured(
            name="batched-gemm",
            shape="batched-gemm",
            works=(_product("batched-gemm", "bf16", m, k, n, heads),),
            seconds=rows["seconds"].to_numpy(),
            held=held_out(rows[["stage", "heads", "tokens"]]),
            source=_cited(rows),
            largest=_largest(rows=m, copies=heads),
            l2_warm=True,
        )
    ]


def elementwise_classes(system: str, framework: str) -> list[Measured]:
    """elementwise and pointwise: TensorRT-LLM's FP8 quantisation pass stands in for them, for want of other tables."""
    from helix_sim import silicon

    rows = silicon.quantise(system, "trtllm")
    m, moved = _floats(rows, "m", "bytes")
    remark = "; a quantisation pass stands in for norms, RoPE and activations"
    made = [
        Measured(
            name=name,
            shape="stream",
            works=(Work(op_class=name, activation_bytes=moved, rows=m),),
            seconds=rows["seconds"].to_numpy(),
            held=held_out(rows[["m", "k"]]),
            source=_cited(rows, remark),
            largest={},
        )
        for name in ("elementwise", "pointwise")
    ]
    return made


# --- Routed experts --------------------------------------------------------------------------------------------------


@cache
def busiest_rank(tokens: int, experts: int, top_k: int, ep: int, skew: float) -> tuple[float, float]:
    """(distinct experts read, token-expert pairs) of the GPU that the MoE tables measured.

    Balanced: token i picks i + j·ceil(E/k). Else loads are drawn from a power law x^-skew on [1, 0.8·T] (on [0.01, 2]
    where T·k ≤ E), scaled to T·k and rounded; of the EP ranks, the one with most is measured. The mean of 24 draws of a
    fixed seed stands for the one draw that was timed [ai-dynamo/aiconfigurator, collector/helper.py].
    """
    if not skew:
        stride = -(-experts // top_k)
        if tokens >= stride:
            return experts / ep, tokens * top_k / ep
        picks = np.floor(np.arange(tokens)[:, None] * stride / tokens + np.arange(top_k)[None, :] * stride)
        load = np.bincount(picks.astype(int).ravel() % experts, minlength=experts)[: experts // ep]
        return float((load > 0).sum()), float(load.sum())
    rng, low, high, power = np.random.default_rng(0), 0.01, 2.0, 1 - skew
    if tokens * top_k > experts:
        low, high = 1.0, 0.8 * tokens
    drawn = rng.random((24, experts))
    load = ((high**power - low**power) * drawn + low**power) ** (1 / power)
    load = np.round(np.minimum(load / load.sum(axis=1, keepdims=True) * tokens * top_k, tokens))
    by_rank = load.reshape(24, ep, -1)
    busiest = np.take_along_axis(by_rank, by_rank.sum(axis=2).argmax(axis=1)[:, None, None], axis=1)[:, 0]
    return float((busiest > 0).sum(axis=1).mean()), float(busiest.sum(axis=1).mean())


def grouped_classes(system: str, framework: str) -> list[Measured]:
    """grouped-gemm by format and kernel: both products of routed experts and what is fused with them.

    Where a framework has several kernels for a format, each is a class, and the clock runs the faster one. On Blackwell
    TensorRT-LLM runs FP8 experts on its own trtllm-gen kernels as well, which only SGLang's table has measured, and
    SGLang runs them on DeepGEMM behind DeepEP, which only TensorRT-LLM's table has.
    """
    from helix_sim import silicon

    found = _grouped_classes(silicon.grouped_gemm(system, framework))
    lender = {"trtllm": "sglang", "sglang": "trtllm"}.get(framework)
    if lender is None or system.startswith("h"):
        return found
    kernel = {"sglang": "sglang_flashinfer_trtllm_moe", "trtllm": "deepgemm"}[lender]
    table = silicon.grouped_gemm(system, lender)
    table = table[(table["format"] == "fp8_block") & (table["kernel"] == kernel)]
    (borrowed,) = _grouped_classes(
        table, f"; borrowed from the table of {lender}: {framework} runs this kernel as well"
    )
    found = [replace(each, name=f"{each.name}/own") if each.name == borrowed.name else each for each in found]
    return [*found, replace(borrowed, name=f"{borrowed.name}/{kernel.removeprefix('sglang_flashinfer_')}")]


def _grouped_classes(frame: pd.DataFrame, remark: str = "") -> list[Measured]:
    frame = frame[frame["gated"] & (frame["tokens"] <= DECODE_TOKENS) & (frame["experts"] >= 64)]
    frame = frame[frame["hidden"] >= 2048]
    keys = ["hidden", "intermediate", "experts", "top_k", "moe_tp", "moe_ep", "format", "routing"]
    loads = [
        busiest_rank(*(int(n) for n in cell[:4]), float(cell[4]))
        for cell in frame[["tokens", "experts", "top_k", "moe_ep", "skew"]].itertuples(index=False)
    ]
    frame = frame.assign(read=[max(read, 0.05) for read, _ in loads], pairs=[max(pairs, 0.05) for _, pairs in loads])
    found = []
    for table_format, of_format in frame.groupby("format"):
        kernels = [str(kernel) for kernel, rows in of_format.groupby("kernel") if len(rows) >= 1000]
        for kernel in kernels if str(table_format) in TABLE_FORMAT else []:
            name = f"grouped-gemm-{TABLE_FORMAT[str(table_format)]}"
            rows = of_format[of_format["kernel"] == kernel]
            found.append(
                Measured(
                    name=name if len(kernels) == 1 else f"{name}/{kernel}",
                    shape="grouped",
                    works=_expert_works(TABLE_FORMAT[str(table_format)], rows),
                    seconds=rows["seconds"].to_numpy(),
                    held=held_out(rows[keys]),
                    source=_cited(rows, f"; permutation, activation and sum included{remark}"),
                    largest=_largest(rows=rows["pairs"], copies=rows["experts"] / rows["moe_ep"]),
                )
            )
    return found


def _expert_works(weights: str, frame: pd.DataFrame) -> tuple[Work, ...]:
    """The two products of a gated expert's shard, as ffn.routed_up and ffn.routed_down say them."""
    names = ("hidden", "intermediate", "moe_tp", "experts", "moe_ep", "read", "pairs", "tokens")
    hidden, intermediate, moe_tp, experts, ep, read, pairs, tokens = _floats(frame, *names)
    width = intermediate / moe_tp

    def product(inner: Any, outer: Any) -> Work:
        return Work(
            op_class="grouped-gemm",
            flops=2 * pairs * inner * outer,
            weight_bytes=read * inner * outer * bytes_per_value(weights),
            activation_bytes=pairs * (inner + outer) * 2.0,
            math=MATH[weights],
            weights=weights,
            rows=pairs,
            inner=inner,
            outer=outer,
            copies=experts / ep,
            experts_read=read,
            tokens=tokens,
        )

    return product(hidden, 2 * width), product(width, hidden)


# --- Collectives -----------------------------------------------------------------------------------------------------

OFF_BOARD_US = {"gb200": 1.36, "gb300": 1.36, "b200": 0.0, "h200": 0.0, "h100": 0.0}
"""What leaving the board costs where only one board was measured: on racks the step of TensorRT-LLM's dispatch, fitted
over 2 to 32 GPUs of GB200; on HGX the board is the NVLink domain, and the network's own latency is charged."""


def nccl_classes(system: str, framework: str) -> list[Measured]:
    """all-gather, reduce-scatter and all-to-all of NCCL; each also in the other roles that a decode step has for it."""
    from helix_sim import silicon

    frame = silicon.nccl(system)
    roles = {"all_gather": ("all-gather", "broadcast", "send"), "reduce_scatter": ("reduce-scatter",)}
    if not _own_exchange(system, framework):
        roles["all_to_all"] = ("all-to-all",)
    found = []
    for op, names in roles.items():
        rows = frame[frame["op"] == op]
        ranks, size = _floats(rows, "ranks", "bytes")
        for name in names:
            remark = "" if name == names[0] else f"; {op} stands in for it"
            found.append(_exchange_class(system, name, rows, ranks, size * (ranks - 1) / ranks, remark=remark))
    return found


def _own_exchange(system: str, framework: str) -> bool:
    """Whether the framework has NVLink kernels of its own that span a rack."""
    return framework == "trtllm" and system in ("gb200", "gb300")


def _exchange_class(
    system: str,
    name: str,
    rows: pd.DataFrame,
    ranks: Any,
    sent: Any,
    *,
    shape: str = "exchange",
    remark: str = "",
    known: Mapping[str, float] | None = None,
) -> Measured:
    work = Work(op_class=name, kernels=0, collective=direct("all-to-all", sent, ranks))
    cells = [column for column in ("op", "ranks", "bytes", "tokens", "hidden", "format") if column in rows]
    off_board = {} if ranks.max() > TRAY[system] else {"beyond_tray_us": OFF_BOARD_US[system]}
    return Measured(
        name=name,
        shape=shape,
        works=(work,),
        seconds=rows["seconds"].to_numpy(),
        held=held_out(rows[cells]),
        source=_cited(rows, remark),
        largest=_largest(ranks=ranks, payload=sent),
        known={**off_board, **(known or {})},
    )


def all_reduce_classes(system: str, framework: str) -> list[Measured]:
    """all-reduce: the framework's own kernel; GB200's beyond one board (4 GPUs) borrows GB300's, on the same fabric."""
    import pandas as pd

    from helix_sim import silicon

    rows, remark = silicon.all_reduce(system, framework), ""
    if system == "gb200":
        wide = silicon.all_reduce("gb300", framework)
        wide = wide[wide["ranks"] > rows["ranks"].max()]
        if not len(wide):
            wide = silicon.all_reduce("gb300", "trtllm").query("ranks > 4")
        rows = pd.concat([rows, wide], ignore_index=True)
        remark = "; beyond 4 ranks GB300's rows, the same fabric"
    elif system == "gb300" and rows["ranks"].max() <= 4:
        rows = pd.concat([rows, silicon.all_reduce("gb300", "trtllm").query("ranks > 4")], ignore_index=True)
        remark = "; beyond 4 ranks TensorRT-LLM's rows"
    rows = rows[rows["bytes"] <= 64 * MEGA]
    ranks, size = _floats(rows, "ranks", "bytes")
    return [
        Measured(
            name="all-reduce",
            shape="all-reduce",
            works=(Work(op_class="all-reduce", kernels=0, collective=all_reduce(size, ranks)),),
            seconds=rows["seconds"].to_numpy(),
            held=held_out(rows[["ranks", "bytes", "kernel"]]),
            source=_cited(rows, remark),
            largest=_largest(ranks=ranks, payload=size),
            known={
                "nccl_us": _nccl_latency_us(system),
                **({} if ranks.max() > TRAY[system] else {"beyond_tray_us": OFF_BOARD_US[system]}),
            },
        )
    ]


def _nccl_latency_us(system: str) -> float:
    """NCCL's all-reduce of small messages over one whole board, median."""
    from helix_sim import silicon

    rows = silicon.nccl(system).query("op == 'all_reduce' and bytes <= 16384")
    return float(rows[rows["ranks"] == rows["ranks"].max()]["seconds"].median() * 1e6)


def expert_exchange_classes(system: str, framework: str) -> list[Measured]:
    """dispatch and combine, and the all-to-all of partial attention outputs where it runs on the same kernels.

    TensorRT-LLM on racks: its one-sided NVLink kernels, measured on GB200 over 2 to 32 ranks. On HGX it gathers all
    tokens and scatters the sums with NCCL. SGLang and vLLM: DeepEP's low-latency kernels, measured on one board; what
    more ranks and boards cost is what they cost TensorRT-LLM on GB200.
    """
    from helix_sim import silicon

    if framework == "trtllm" and not _own_exchange(system, framework):
        return _gathered_exchange(system)
    if _own_exchange(system, framework):
        frame = silicon.expert_exchange("gb200", "trtllm").query("kernel == 'NVLinkOneSided'")
        remark, known = "; measured on GB200, the same fabric" if system == "gb300" else "", None
    else:
        frame = silicon.expert_exchange(system, framework)
        frame = frame[frame["kernel"].isin(["deepep", "deepep_ll"])]
        remark, known = "; one board measured, more ranks cost what they cost TensorRT-LLM on GB200", ONE_BOARD
    frame = frame[frame["tokens"] <= DECODE_TOKENS]
    found = []
    roles = {"dispatch": ["dispatch"], "combine": ["combine"]}
    if _own_exchange(system, framework):
        roles["dispatch"] += ["all-to-all"]
    for op, names in roles.items():
        rows = frame[frame["op"] == op]
        ranks, tokens, top_k, hidden = _floats(rows, "ranks", "tokens", "top_k", "hidden")
        hit = np.where(rows["routing"] == "balanced", np.minimum(ranks, top_k), ranks * (1 - (1 - 1 / ranks) ** top_k))
        value = np.array([_wire_bytes(op, table_format) for table_format in rows["format"]])
        sent = hit * (ranks - 1) / ranks * tokens * hidden * value
        for name in names:
            role = "" if name == op else f"; {op} stands in for it"
            found.append(_exchange_class(system, name, rows, ranks, sent, remark=remark + role, known=known))
    return found


ONE_BOARD = {"doubling_us": 1.14}
"""What a doubling of ranks costs TensorRT-LLM's dispatch on GB200."""


def _gathered_exchange(system: str) -> list[Measured]:
    from helix_sim import silicon

    frame, found = silicon.nccl(system), []
    for name, op in (("dispatch", "all_gather"), ("combine", "reduce_scatter")):
        rows = frame[frame["op"] == op]
        ranks, size = _floats(rows, "ranks", "bytes")
        sent, remark = size * (ranks - 1) / ranks, "; this framework gathers every token on HGX"
        found.append(_exchange_class(system, name, rows, ranks, sent, shape="gather", remark=remark))
    return found


def _wire_bytes(op: str, table_format: str) -> float:
    """Bytes a value on the wire: results return in BF16; DeepEP sends FP8 with block scales."""
    if op == "combine":
        return 2.0
    return bytes_per_value(TABLE_FORMAT.get(table_format, "fp8-block"))


# --- A whole clock ---------------------------------------------------------------------------------------------------

SECTIONS: tuple[Callable[[str, str], list[Measured]], ...] = (
    mla_classes,
    gqa_classes,
    gemm_classes,
    batched_classes,
    grouped_classes,
    elementwise_classes,
    all_reduce_classes,
    nccl_classes,
    expert_exchange_classes,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Calibrated:
    """A clock from measured kernels, and each class as fitted."""

    clock: Clock
    fitted: dict[str, Fitted]


def bare_gpu(hardware: Hardware, system: str) -> Gpu:
    """The GPU that a system's tables were measured on."""
    return Gpu(
        hbm_bytes_per_s=hardware.hbm_bytes_per_s,
        nvlink_bytes_per_s=hardware.nvlink_bytes_per_s,
        network_bytes_per_s=hardware.network_bytes_per_s,
        network_latency_s=0.0,
        domain=hardware.domain,
        tray=TRAY[system],
        sms=SMS[system],
        l2_bytes=L2_MB[system] * MEGA,
    )


def package_version() -> str:
    """Version of the package of measured tables."""
    from helix_sim import silicon

    return silicon.VERSION


def check_names(system: str, framework: str) -> None:
    """SpecError where there are no tables of that name."""
    from helix_sim import silicon

    problems = []
    if system not in silicon.SYSTEMS:
        problems.append(f"--system: {system!r} is not one of {', '.join(silicon.SYSTEMS)}")
    if framework not in silicon.FRAMEWORKS:
        problems.append(f"--framework: {framework!r} is not one of {', '.join(silicon.FRAMEWORKS)}")
    if problems:
        raise SpecError(problems)


def measurements(system: str, framework: str) -> list[Measured]:
    """Every class's measurements of one framework on one system."""
    check_names(system, framework)
    return [measured for section in SECTIONS for measured in section(system, framework)]


def calibrate(
    system: str,
    framework: str,
    overhead_us: Mapping[str, Any] | None = None,
    say: Callable[[str], None] = lambda _: None,
) -> Calibrated:
    """Fit every class of one framework on one system, and make a clock of them."""
    hardware = load_hardware(MACHINES[system]) if system in MACHINES else None
    found = measurements(system, framework)
    assert hardware is not None
    gpu = bare_gpu(hardware, system)
    fitted: dict[str, Fitted] = {}
    for measured in found:
        fitted[measured.name] = fit(measured, gpu, hardware.flops_per_s)
        errors = fitted[measured.name].record.residuals
        say(f"{measured.name}: {errors.count} held out, median {errors.median_error:.1%}, mean {errors.mean_error:.1%}")
    return Calibrated(clock=_clock(system, framework, fitted), fitted=fitted)


STEP_OVERHEAD_US = {"trtllm": (0, 73), "sglang": (0, 32), "vllm": (280, 6)}
"""What a step takes outside of kernels, and how many development servings ask for it (studies.validate.overheads)."""


def _step_overhead(framework: str) -> Quantity:
    value, rows = STEP_OVERHEAD_US[framework]
    asked = "helix-sim validate --end-to-end: least mean |ln error|"
    return Quantity(value=value, source=f"measured: {rows} development servings of {framework}, {asked}")


NETWORK_SHARE = {
    "value": 0.75,
    "source": "measured: DeepEP low latency over two nodes of H100, 36 to 39 GB/s of 50, aiconfigurator-core 0.12.0",
}


def _clock(system: str, framework: str, fitted: Mapping[str, Fitted]) -> Clock:
    from helix_sim import silicon
    from helix_sim.load import load_clock

    paper = load_clock("paper").model_dump()
    classes = {name: each.record for name, each in fitted.items()}
    classes["grouped-pointwise"] = _inside_grouped(classes)
    return Clock.model_validate(
        paper
        | {
            "name": f"{system}-{framework}",
            "description": f"kernels of {framework} as measured on {system.upper()}, {silicon.DISTRIBUTION} "
            f"{silicon.VERSION}",
            "all_reduce_overlap": {"value": 0, "source": "assumed: these frameworks reduce after the product"},
            "collective": paper["collective"] | {"network_share": NETWORK_SHARE},
            "calibration": Calibration(
                system=system,
                framework=framework,
                package=f"{silicon.DISTRIBUTION} {silicon.VERSION}",
                sms=WholeQuantity(value=SMS[system], source="datasheet: streaming multiprocessors of this GPU"),
                l2_MB=Positive(value=L2_MB[system], source="datasheet: L2 cache of this GPU"),
                tray_gpus=WholeQuantity(value=TRAY[system], source="datasheet: GPUs on one board"),
                step_overhead_us=_step_overhead(framework),
                classes=classes,
            ),
        }
    )


def _inside_grouped(classes: Mapping[str, KernelClass]) -> KernelClass:
    """The activation between the products of routed experts: inside the measured kernel, so its bytes alone."""
    of = next(record for name, record in classes.items() if name.startswith("grouped-gemm"))
    return of.model_copy(
        update={
            "shape": "stream",
            "parameters": {
                "latency_us": Quantity(value=0, source="measured: fused with the products"),
                "bandwidth_share": of.parameters["bandwidth_share"],
            },
            "largest": {},
        }
    )


def yaml_text(clock: Clock) -> str:
    """The clock as its file: numbers with their sources, one a line."""
    import yaml

    assert clock.calibration is not None
    content = clock.model_dump(exclude_none=True)
    head = "# Written by `helix-sim calibrate`; refit instead of editing. Only parameters are here, no measurement.\n"
    return head + yaml.safe_dump(content, sort_keys=False, width=100000, default_flow_style=None, allow_unicode=True)
