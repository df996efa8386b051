"""Public tables of measured kernels as classes of a timing: each row's Work, what is kept out, what is borrowed."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from helix_sim.core.errors import SpecError
from helix_sim.core.layout import Layout
from helix_sim.core.units import MEGA, bytes_per_value
from helix_sim.core.work import Work
from helix_sim.ops import ffn
from helix_sim.ops.attention import attention_core
from helix_sim.ops.elementwise import memory_pass
from helix_sim.ops.exchange import group_all_reduce, sent
from helix_sim.ops.matmul import BATCHED, matmul
from helix_sim.ops.routing import BusiestRank
from helix_sim.ops.step_input import StepInput
from helix_sim.silicon import aic_tables as silicon
from helix_sim.silicon.fit import Measured, held_out
from helix_sim.silicon.systems import borrowed, check_names, machine_of, tables_of
from helix_sim.specs import kernel_parameters
from helix_sim.specs.attention import GqaAttention, MlaAttention
from helix_sim.specs.ffn import RoutedFfn
from helix_sim.specs.load import load_framework, load_model, load_timing, shipped
from helix_sim.specs.model import Model
from helix_sim.specs.precision import Precision
from helix_sim.specs.public_tables import Borrowed, Gather, LentNetwork, TableName
from helix_sim.specs.timing import KernelClass

if TYPE_CHECKING:
    import pandas as pd

TABLE_FORMAT = {"nvfp4": "nvfp4", "fp8": "fp8", "fp8_block": "fp8-block", "bf16": "bf16"}
MATH = {"nvfp4": "fp4", "fp8": "fp8", "fp8-block": "fp8", "bf16": "bf16"}
DECODE_TOKENS = 4096
"""Most tokens that a decode step runs at once; products of more rows are prefill."""


def largest_of(**columns: Any) -> dict[str, float]:
    return {name: float(np.max(column)) for name, column in columns.items()}


def cited(frame: pd.DataFrame, remark: str = "") -> str:
    """Package, version, tables and kernels of some rows."""
    kernels = ", ".join(sorted(frame["kernel"].unique())[:4])
    tables = ", ".join(sorted(frame["source"].unique()))
    return f"{silicon.DISTRIBUTION} {silicon.VERSION}, {tables} ({kernels}){remark}"


READERS: dict[TableName, Callable[..., pd.DataFrame]] = {
    "attention_mla": silicon.attention_mla,
    "gemm": silicon.gemm,
    "grouped_gemm": silicon.grouped_gemm,
    "dispatched_experts": silicon.dispatched_experts,
    "all_reduce": silicon.all_reduce,
    "expert_exchange": silicon.expert_exchange,
}
"""What reads a table that may borrow."""


def with_borrowed(system: str, framework: str, table: TableName) -> pd.DataFrame:
    """A framework's table on a system; what it borrows, as data says, stands in for its own rows of the same kind.

    `remark` says of each row why it stands in; it is empty for the framework's own.
    """
    import pandas as pd

    lent = list(borrowed(system, framework, table))
    if any(record.format is None and record.kernel is None and not record.more_ranks for record, *_ in lent):
        frame = pd.DataFrame()  # all of it is borrowed
    else:
        frame = READERS[table](system, framework).assign(remark="")
    for record, *lender in lent:
        rows = READERS[table](*lender, record.from_version)
        rows = rows[_lent(record, rows, frame)].assign(remark=record.reason)
        own = [frame[~_lent(record, frame, frame)]] if len(frame) else []
        frame = pd.concat([*own, rows], ignore_index=True) if len(rows) else frame
    return frame


def _lent(record: Borrowed, rows: pd.DataFrame, own: pd.DataFrame) -> npt.NDArray[np.bool_]:
    """Which rows a record of borrowing is about."""
    about = np.ones(len(rows), dtype=bool)
    for column, wanted in (("format", record.format), ("kernel", record.kernel)):
        if wanted is not None:
            about &= (rows[column] == wanted).to_numpy()
    return about & (rows["ranks"] > own["ranks"].max()).to_numpy() if record.more_ranks else about


def _remark(rows: pd.DataFrame, before: str = "; ") -> str:
    """Why rows are borrowed, as their class's source says it."""
    return "".join(f"{before}{remark}" for remark in rows["remark"].unique() if remark)


def _all_borrowed(rows: pd.DataFrame) -> bool:
    return bool((rows["remark"] != "").all())


def floats(frame: pd.DataFrame, *names: str) -> list[npt.NDArray[np.float64]]:
    return [frame[name].to_numpy(dtype=float) for name in names]


# --- Rows as inputs of the ops that serve them -----------------------------------------------------------------------


def row_step(
    *, weights: str = "bf16", kv: str = "bf16", attention_math: str | None = None, hidden: Any = 1, context: Any = 1,
    **widths: Any,
) -> StepInput:  # fmt: skip
    """One step of each row of a table: widths and formats as the row says them, columns where the table has columns.

    The records of a model are built of columns here, so they are not checked against a file's limits.
    """
    formats = {"weights": weights, "kv": kv, "math": MATH.get(weights, "bf16"), "attention_math": attention_math}
    precision = Precision.model_validate({name: text for name, text in formats.items() if text})
    model = Model.model_construct(hidden_size=hidden)
    return StepInput(
        model=model, precision=precision, layout=Layout(**{"tpf": 1.0, **widths}).as_floats(), context=context
    )


def mla_work(kv: str, math: str, batch: Any, context: Any, heads: Any) -> Work:
    """The core of DeepSeek's latent attention on a rank that holds `heads` of its query heads."""
    mla = load_model("deepseek-r1").attention["mla"].model_copy(update={"q_heads": heads})
    assert isinstance(mla, MlaAttention)
    return attention_core(row_step(kv=kv, attention_math=math, batch=batch, context=context), mla)


def gqa_work(kv: str, batch: Any, context: Any, heads: Any, kv_heads: Any, width: Any) -> Work:
    """The core of grouped-query attention on a rank that holds so many query and KV heads, of that width."""
    gqa = GqaAttention.model_construct(kind="gqa", q_heads=heads, kv_heads=kv_heads, head_size=width)
    return attention_core(row_step(kv=kv, attention_math="bf16", batch=batch, context=context), gqa)


def product_work(weights: str, m: Any, k: Any, n: Any, **sizes: Any) -> Work:
    """[m, k] x [k, n] with weights in a format, and the arithmetic that goes with it."""
    return matmul(row_step(weights=weights), rows=m, inner=k, outer=n, **sizes)


def expert_works(
    weights: str, hidden: Any, intermediate: Any, moe_tp: Any, experts: Any, ep: Any, read: Any, pairs: Any, tokens: Any
) -> tuple[Work, Work]:
    """Both products of the gated experts of one rank, which reads `read` of its experts for `pairs` of its tokens."""
    routed = RoutedFfn.model_construct(kind="routed", routed=experts, intermediate_size=intermediate)
    rank = BusiestRank(held=experts / ep, read=read, pairs=pairs, foreign=0.0, arrived=tokens)
    step = row_step(weights=weights, hidden=hidden, batch=tokens, tpf=moe_tp, ep=ep)
    return ffn.routed_up(step, routed, rank), ffn.routed_down(step, routed, rank)


def all_reduce_work(size: Any, ranks: Any) -> Work:
    """Sum of a tensor of `size` bytes over `ranks`."""
    step = row_step(batch=1, tpa=ranks, tpf=ranks)
    hidden = size / step.wire_bytes
    return group_all_reduce(row_step(hidden=hidden, batch=1, tpa=ranks, tpf=ranks))


def routed_work(op: str, ranks: Any, tokens: Any, foreign: Any, hidden: Any, value_bytes: Any) -> Work:
    """Dispatch or combine among `ranks` that each hold `tokens`; `foreign` of the others' come to the busiest."""
    rank = BusiestRank(held=0.0, read=0.0, pairs=0.0, foreign=foreign, arrived=foreign)
    return ffn.routed_exchange(row_step(hidden=hidden, batch=tokens, dp=ranks, ep=ranks), rank, op, value_bytes)


# --- Attention and products ------------------------------------------------------------------------------------------


def mla_classes(system: str, framework: str) -> list[Measured]:
    """attention-mla by KV format."""
    frame = with_borrowed(system, framework, "attention_mla")
    found = []
    for kv, rows in frame.groupby("kv_format"):
        batch, context, heads = floats(rows, "batch", "context", "q_heads")
        work = mla_work(str(kv), rows["math_format"].iloc[0], batch, context, heads)
        found.append(
            Measured(
                name=f"attention-mla-{kv}",
                shape="latent-attention",
                works=(work,),
                seconds=rows["seconds"].to_numpy(),
                held=held_out(rows[["batch", "q_heads", "kv_format"]]),
                source=cited(rows, _remark(rows, "; borrowed: ")),
                largest=largest_of(tokens=context, rows=batch),
                l2_warm=True,
                borrowed=_all_borrowed(rows),
            )
        )
    return found


def gqa_classes(system: str, framework: str) -> list[Measured]:
    """attention-gqa by KV format: full attention, up to 32 queries a KV head (beyond, a slower kernel takes over)."""
    frame = silicon.attention_gqa(system, framework)
    frame = frame[(frame["window"] == 0) & (frame["q_heads"] <= 32 * frame["kv_heads"])]
    frame = frame[frame["head_dim"].isin([64, 128, 256])]
    keys = ["batch", "q_heads", "kv_heads", "head_dim", "kv_format"]
    frame = fastest(frame, [*keys, "context"])
    found = []
    for kv, rows in frame.groupby("kv_format"):
        if len(rows) < 500:
            continue
        batch, context, heads, groups, width = floats(rows, "batch", "context", "q_heads", "kv_heads", "head_dim")
        work = gqa_work(str(kv), batch, context, heads, groups, width)
        found.append(
            Measured(
                name=f"attention-gqa-{kv}",
                shape="head-attention",
                works=(work,),
                seconds=rows["seconds"].to_numpy(),
                held=held_out(rows[keys]),
                source=cited(rows),
                largest=largest_of(tokens=context, rows=batch),
                l2_warm=True,
            )
        )
    return found


def fastest(frame: pd.DataFrame, cell: list[str]) -> pd.DataFrame:
    """The fastest kernel of each cell, where a framework has several to choose from."""
    return frame.loc[frame.groupby(cell, sort=False)["seconds"].idxmin()]


def gemm_classes(system: str, framework: str) -> list[Measured]:
    """gemm by weight format, quantising of the input included where the framework's kernel does it."""
    frame = with_borrowed(system, framework, "gemm")
    frame = frame[(frame["m"] <= DECODE_TOKENS) & (frame["n"] >= 128) & (frame["k"] >= 128)]
    frame = fastest(frame, ["m", "n", "k", "format"])
    found = []
    for table_format, rows in frame.groupby("format"):
        name = TABLE_FORMAT.get(str(table_format))
        if name is None:
            continue
        m, n, k = floats(rows, "m", "n", "k")
        found.append(
            Measured(
                name=f"gemm-{name}",
                shape="gemm",
                works=(product_work(name, m, k, n),),
                seconds=rows["seconds"].to_numpy(),
                held=held_out(rows[["n", "k", "format"]]),
                source=cited(rows, _remark(rows, "; borrowed: ")),
                largest=largest_of(rows=m, inner=k, outer=n),
                borrowed=_all_borrowed(rows),
            )
        )
    return found


def batched_classes(system: str, framework: str) -> list[Measured]:
    """batched-gemm: the absorbed up-projections of MLA, in BF16, timed with their weights in L2."""
    rows = silicon.mla_up_projection(system, framework)
    rows = rows[(rows["format"] == "bf16") & (rows["tokens"] <= DECODE_TOKENS)]
    m, heads, n, k = floats(rows, "tokens", "heads", "n", "k")
    return [
        Measured(
            name="batched-gemm",
            shape="batched-gemm",
            works=(product_work("bf16", m, k, n, copies=heads, **BATCHED),),
            seconds=rows["seconds"].to_numpy(),
            held=held_out(rows[["stage", "heads", "tokens"]]),
            source=cited(rows),
            largest=largest_of(rows=m, copies=heads),
            l2_warm=True,
        )
    ]


def elementwise_classes(system: str, framework: str) -> list[Measured]:
    """elementwise and pointwise: TensorRT-LLM's FP8 quantisation pass stands in for them, for want of other tables."""
    rows = silicon.quantise(system, "trtllm")
    m, moved = floats(rows, "m", "bytes")
    remark = "; a quantisation pass stands in for norms, RoPE and activations"
    made = [
        Measured(
            name=name,
            shape="stream",
            works=(memory_pass(name, moved_bytes=moved, rows=m),),
            seconds=rows["seconds"].to_numpy(),
            held=held_out(rows[["m", "k"]]),
            source=cited(rows, remark),
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
    where T·k ≤ E), scaled to T·k and rounded; what exceeds T tokens goes to the ranks in turn, each to its least loaded
    expert, and so does what rounding lost; what it won is taken from the most loaded. Of the EP ranks, the one with
    most is measured. The mean of 24 draws of a fixed seed stands for the one draw that was timed [ai-dynamo/
    aiconfigurator, collector/helper.py].
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
    load = np.round(load / load.sum(axis=1, keepdims=True) * tokens * top_k)
    over = np.maximum(load - tokens, 0).sum(axis=1)
    by_rank = _raised(np.minimum(load, tokens).reshape(24, ep, -1), over)
    missing = tokens * top_k - by_rank.sum(axis=(1, 2))
    by_rank = -_raised(-_raised(by_rank, np.maximum(missing, 0)), np.maximum(-missing, 0))
    busiest = np.take_along_axis(by_rank, by_rank.sum(axis=2).argmax(axis=1)[:, None, None], axis=1)[:, 0]
    return float((busiest > 0).sum(axis=1).mean()), float(busiest.sum(axis=1).mean())


def _raised(loads: npt.NDArray[np.float64], total: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Loads (draws, ranks, experts) after `total` (draws,) tokens went to the ranks in turn, each to its least expert.

    Filling the least first raises the lowest experts to one level, min over k of (tokens + sum of the k least) / k.

    >>> _raised(np.array([[[0.0, 5.0, 1.0], [2.0, 2.0, 9.0]]]), np.array([7.0]))
    array([[[3., 2., 5.],
            [4., 3., 9.]]])
    """
    ranks, experts = loads.shape[1:]
    mine = (total[:, None] // ranks + (np.arange(ranks) < (total % ranks)[:, None]))[..., None]
    loads = np.sort(loads, axis=2)
    level: Any = np.floor(((mine + loads.cumsum(axis=2)) / np.arange(1, experts + 1)).min(axis=2, keepdims=True))
    left = mine - np.maximum(level - loads, 0).sum(axis=2, keepdims=True)
    extra = np.sort(loads <= level, axis=2)[..., ::-1] & (np.arange(experts) < left)
    raised: npt.NDArray[np.float64] = np.maximum(loads, level) + extra
    return raised


def grouped_classes(system: str, framework: str) -> list[Measured]:
    """grouped-gemm by format and kernel: both products of routed experts and what is fused with them.

    Where a framework has several kernels for a format, each is a class, and the timing runs the faster one.
    """
    return _grouped_classes(_credible(_loaded(with_borrowed(system, framework, "grouped_gemm")), system))


def dispatched_classes(system: str, framework: str) -> list[Measured]:
    """grouped-gemm behind a dispatch, of a framework that has kernels of its own for it: over what arrived alone."""
    if not load_framework(framework).exchange.masked_experts:
        return []
    frame = _loaded(with_borrowed(system, framework, "dispatched_experts"), most_tokens=np.inf)
    found = _grouped_classes(frame, fewest_rows=100)
    return [replace(each, name=f"{each.name.partition('/')[0]}/dispatched", dispatched=True) for each in found]


EXPERT = ["hidden", "intermediate", "experts", "top_k", "moe_tp", "moe_ep", "format", "routing"]


def _loaded(frame: pd.DataFrame, most_tokens: float = DECODE_TOKENS) -> pd.DataFrame:
    """Gated experts of models with many, with the experts read and the pairs computed on the GPU that was measured."""
    frame = frame[frame["gated"] & (frame["tokens"] <= most_tokens) & (frame["experts"] >= 64)]
    frame = frame[(frame["hidden"] >= 2048) & frame["format"].isin(list(TABLE_FORMAT))]
    loads = [
        busiest_rank(*(int(n) for n in cell[:4]), float(cell[4]))
        for cell in frame[["tokens", "experts", "top_k", "moe_ep", "skew"]].itertuples(index=False)
    ]
    return frame.assign(read=[max(read, 0.05) for read, _ in loads], pairs=[max(pairs, 0.05) for _, pairs in loads])


def _credible(frame: pd.DataFrame, system: str) -> pd.DataFrame:
    """Without the balanced rows of a kernel and a model where some read their experts faster than HBM could.

    Kernels that route by themselves (trtllm-gen) choose within groups of experts; a balanced assignment, one pick in
    every group, is not what they run: its rows would read 256 experts at 1.8 times HBM's rate. Which they did read is
    not known, so all balanced rows of that model are left out, of the fit and of its judgement.
    """
    shard = 3 * frame["hidden"] * frame["intermediate"] / frame["moe_tp"]
    weights = frame["read"] * shard * frame["format"].map(lambda name: bytes_per_value(TABLE_FORMAT[name]))
    faster = weights / frame["seconds"] > machine_of(system).hbm_bytes_per_s
    models = [frame[name] for name in ("kernel", "hidden", "intermediate", "experts", "top_k", "format")]
    balanced = frame["routing"] == "balanced"
    return frame[~(balanced & (faster & balanced).groupby(models).transform("any"))]


def _grouped_classes(frame: pd.DataFrame, fewest_rows: int = 1000) -> list[Measured]:
    found = []
    for table_format, of_format in frame.groupby("format"):
        kernels = [str(kernel) for kernel, rows in of_format.groupby("kernel") if len(rows) >= fewest_rows]
        for kernel in kernels:
            name = f"grouped-gemm-{TABLE_FORMAT[str(table_format)]}"
            rows = of_format[of_format["kernel"] == kernel]
            found.append(
                Measured(
                    name=name if len(kernels) == 1 else f"{name}/{kernel}",
                    shape="grouped",
                    works=_expert_works(TABLE_FORMAT[str(table_format)], rows),
                    seconds=rows["seconds"].to_numpy(),
                    held=held_out(rows[EXPERT]),
                    source=cited(rows, f"; permutation, activation and sum included{_remark(rows, '; borrowed: ')}"),
                    largest=largest_of(rows=rows["pairs"], copies=rows["experts"] / rows["moe_ep"]),
                    borrowed=_all_borrowed(rows),
                )
            )
    return found


def _expert_works(weights: str, frame: pd.DataFrame) -> tuple[Work, ...]:
    """The two products of the gated experts that each row measured."""
    names = ("hidden", "intermediate", "moe_tp", "experts", "moe_ep", "read", "pairs", "tokens")
    return expert_works(weights, *floats(frame, *names))


# --- Collectives -----------------------------------------------------------------------------------------------------


def nccl_classes(system: str, framework: str) -> list[Measured]:
    """all-gather, reduce-scatter and all-to-all of NCCL; each also in the other roles that a decode step has for it."""
    frame = silicon.nccl(system)
    roles = {
        "all_gather": ("all-gather", "broadcast", "send"),
        "reduce_scatter": ("reduce-scatter",),
        "all_to_all": ("all-to-all",),
    }
    found = []
    for op, names in roles.items():
        rows = frame[frame["op"] == op]
        ranks, size = floats(rows, "ranks", "bytes")
        for name in names:
            work = sent(name, "all-to-all", size * (ranks - 1) / ranks, ranks, rows=1)
            if name == names[0]:
                found.append(_exchange_class(system, name, rows, work))
            else:
                made = _exchange_class(system, name, rows, work, remark=f"; {op} stands in for it")
                found.append(replace(made, of_another=f"NCCL's {names[0]} stands in for it"))
    return found


def _exchange_rows(system: str, framework: str) -> pd.DataFrame:
    """What was measured of the kernels by which a framework sends tokens to their experts; no rows where nothing."""
    frame = with_borrowed(system, framework, "expert_exchange")
    own = frame["kernel"].isin(load_framework(framework).exchange.kernels)
    stands_in = (frame["remark"] != "") & ~own.groupby(frame["remark"]).transform("any")  # a lender without its kernels
    return frame[own | stands_in] if own.any() else frame[own]


def _off_board(system: str, ranks: Any) -> dict[str, float]:
    """What leaving the board costs [µs], where the rows cannot tell it from what leaving the NVLink domain costs.

    They can where they have more ranks than a board, and the domain has more boards.
    """
    machine = machine_of(system)
    assert machine.off_board_us is not None
    _, _, tray = machine.kernel_facts
    told = ranks.max() > tray and machine.domain > tray
    return {} if told else {"beyond_tray_us": machine.off_board_us.value}


def _exchange_class(
    system: str,
    name: str,
    rows: pd.DataFrame,
    work: Work,
    *,
    shape: str = "exchange",
    remark: str = "",
    known: Mapping[str, float] | None = None,
) -> Measured:
    assert work.collective is not None
    ranks, payload = work.collective.group, work.collective.payload
    cells = [column for column in ("op", "ranks", "bytes", "tokens", "hidden", "format") if column in rows]
    return Measured(
        name=name,
        shape=shape,
        works=(work,),
        seconds=rows["seconds"].to_numpy(),
        held=held_out(rows[cells]),
        source=cited(rows, remark),
        largest=largest_of(ranks=ranks, payload=payload),
        known={**_off_board(system, ranks), **(known or {})},
    )


def all_reduce_classes(system: str, framework: str) -> list[Measured]:
    """all-reduce: the framework's own kernel; beyond the ranks that its table has, that of a like fabric."""
    rows = with_borrowed(system, framework, "all_reduce")
    rows = rows[rows["bytes"] <= 64 * MEGA]
    ranks, size = floats(rows, "ranks", "bytes")
    return [
        Measured(
            name="all-reduce",
            shape="all-reduce",
            works=(all_reduce_work(size, ranks),),
            seconds=rows["seconds"].to_numpy(),
            held=held_out(rows[["ranks", "bytes", "kernel"]]),
            source=cited(rows, _remark(rows)),
            largest=largest_of(ranks=ranks, payload=size),
            known={"nccl_us": _nccl_latency_us(system), **_off_board(system, ranks)},
        )
    ]


def _nccl_latency_us(system: str) -> float:
    """NCCL's all-reduce of small messages over one whole board, median."""
    rows = silicon.nccl(system).query("op == 'all_reduce' and bytes <= 16384")
    return float(rows[rows["ranks"] == rows["ranks"].max()]["seconds"].median() * 1e6)


def expert_exchange_classes(system: str, framework: str) -> list[Measured]:
    """dispatch and combine.

    A framework of whose exchange kernels none was measured here gathers all tokens and scatters their sums with NCCL,
    where its file says so.
    """
    exchange, frame = load_framework(framework).exchange, _exchange_rows(system, framework)
    if exchange.gathers and not len(frame):
        return _gathered_exchange(system, Gather(reason=exchange.gathers))
    domain, (_, _, tray) = machine_of(system).domain, machine_of(system).kernel_facts
    known: dict[str, float] = {}
    remark = _remark(frame)
    if frame["ranks"].max() <= tray and exchange.doubling_us:
        known["doubling_us"] = exchange.doubling_us.value
        remark += f"; {exchange.remark}" if exchange.remark else ""
    crosses = frame["ranks"].max() > domain
    lent = None if crosses else tables_of(system).network
    shape = "network-exchange" if crosses or lent else "exchange"
    frame = frame[frame["tokens"] <= DECODE_TOKENS]
    found: list[Measured] = []
    roles = {"dispatch": ["dispatch"], "combine": ["combine"]}
    for op, names in roles.items():
        rows = frame[frame["op"] == op]
        ranks, tokens, top_k, hidden = floats(rows, "ranks", "tokens", "top_k", "hidden")
        hit = np.where(rows["routing"] == "balanced", np.minimum(ranks, top_k), ranks * (1 - (1 - 1 / ranks) ** top_k))
        value = np.array([_wire_bytes(op, table_format) for table_format in rows["format"]])
        work = routed_work(op, ranks, tokens, hit * (ranks - 1) / ranks * tokens, hidden, value)
        for name in names:
            role = "" if name == op else f"; {op} stands in for it"
            stands_in = replace(work, op_class=name)
            if lent:
                known |= _lent_network(lent, op)
                role += f"; {lent.reason}"
            found.append(_exchange_class(system, name, rows, stands_in, shape=shape, remark=remark + role, known=known))
    if exchange.gathers_on_board and domain == tray:
        across = [replace(each, name=f"{each.name}/across", domains="several") for each in found]
        return [*_gathered_exchange(system, exchange.gathers_on_board), *across]
    return found


def apart(system: str, framework: str, name: str) -> tuple[float, float]:
    """How far a framework's own exchange lies from the one that stands in for it, where both were measured.

    The tenth and the ninetieth centile of ln(own / lender's) over equal cells, 0 among them.
    """
    lent = load_framework(framework).exchange.between_domains
    assert lent is not None
    own, theirs = (silicon.expert_exchange(system, each) for each in (framework, lent.from_framework))
    own = own[own["kernel"].isin(lent.kernels) & (own["op"] == name)]
    cells = ["op", "tokens", "hidden", "top_k", "ranks"]
    both = own.merge(theirs.groupby(cells)["seconds"].median().reset_index(), on=cells, suffixes=("", "_lent"))
    if both.empty:
        kernels = ", ".join(lent.kernels)
        raise SpecError([f"{framework} on {system} has no cell of {kernels} that {lent.from_framework} has as well"])
    low, high = np.quantile(np.log(both["seconds"] / both["seconds_lent"]), [0.1, 0.9])
    return min(float(low), 0.0), max(float(high), 0.0)


def _lent_network(lent: LentNetwork, name: str) -> dict[str, float]:
    """What an exchange of another system reaches between NVLink domains, from its shipped timing."""
    values = lent_class(lent.from_system, lent.from_framework, name).values
    return {parameter: values[parameter] for parameter in kernel_parameters.NETWORK}


def lent_class(system: str, framework: str, name: str) -> KernelClass:
    """A class of a shipped timing that stands in elsewhere; SpecError where that timing has to be made first."""
    timing = f"{system}-{framework}"
    calibration = load_timing(timing).calibration if timing in shipped("timing") else None
    names = [each for each in (name, f"{name}/across") if calibration and each in calibration.classes]
    if calibration is None or not names:
        why = f"class {name} of {timing} stands in for others, and is in no shipped timing yet"
        raise SpecError([f"{why}; calibrate {timing} first, into hardware_profiles/measured_timings"])
    return calibration.classes[names[0]]


def _gathered_exchange(system: str, gathered: Gather) -> list[Measured]:
    """dispatch and combine of a framework that gathers all tokens and scatters their sums, as NCCL does both."""
    frame, found = silicon.nccl(system), []
    value_bytes = bytes_per_value(gathered.format) if gathered.format else 0.0
    for name, op in (("dispatch", "all_gather"), ("combine", "reduce_scatter")):
        rows = frame[frame["op"] == op]
        ranks, size = floats(rows, "ranks", "bytes")
        work = routed_work(name, ranks, size / ranks, size / ranks * (ranks - 1), 1.0, 1.0)
        known = {"value_bytes": value_bytes if name == "dispatch" else 0.0}
        made = _exchange_class(system, name, rows, work, shape="gather", remark=f"; {gathered.reason}", known=known)
        found.append(replace(made, name=f"{name}/gather", domains="one"))
    return found


def _wire_bytes(op: str, table_format: str) -> float:
    """Bytes a value on the wire: results return in BF16; DeepEP sends FP8 with block scales."""
    if op == "combine":
        return 2.0
    return bytes_per_value(TABLE_FORMAT.get(table_format, "fp8-block"))


# --- All of a framework ----------------------------------------------------------------------------------------------

SECTIONS: dict[str, tuple[Callable[[str, str], list[Measured]], ...]] = {
    "mla": (mla_classes,),
    "attention": (gqa_classes,),
    "gemm": (gemm_classes,),
    "mla_bmm": (batched_classes,),
    "moe": (grouped_classes, dispatched_classes),
    "quantize": (elementwise_classes,),
    "comm": (all_reduce_classes, nccl_classes, expert_exchange_classes),
}
"""What makes classes of each family of tables."""


def measurements(system: str, framework: str, families: Iterable[str] = tuple(SECTIONS)) -> list[Measured]:
    """Every class's measurements of one framework on one system, or those of some families of tables."""
    check_names(system, framework)
    found = [m for family in families for section in SECTIONS[family] for m in section(system, framework)]
    return [replace(measured, includes=_included(framework, measured)) for measured in found]


def _included(framework: str, measured: Measured) -> tuple[str, ...]:
    """What a class's time includes beside its own op, as the framework's file says it."""
    parts = [
        part
        for record in load_framework(framework).includes
        if measured.name.startswith(record.of) and (record.kernel is None or f"({record.kernel})" in measured.source)
        for part in record.parts
    ]
    return tuple(dict.fromkeys(parts))
