"""Public tables of measured kernels as classes of a timing: each row's Work, what is kept out, what is borrowed."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from helix_sim.core.collectives import all_reduce, direct
from helix_sim.core.errors import SpecError
from helix_sim.core.units import MEGA, bytes_per_value
from helix_sim.core.work import Work
from helix_sim.silicon import aic_tables as silicon
from helix_sim.silicon.fit import MACHINES, TRAY, Measured, held_out
from helix_sim.specs.load import load_machine

if TYPE_CHECKING:
    import pandas as pd

TABLE_FORMAT = {"nvfp4": "nvfp4", "fp8": "fp8", "fp8_block": "fp8-block", "bf16": "bf16"}
MATH = {"nvfp4": "fp4", "fp8": "fp8", "fp8-block": "fp8", "bf16": "bf16"}
DECODE_TOKENS = 4096
"""Most tokens that a decode step runs at once; products of more rows are prefill."""


def _largest(**columns: Any) -> dict[str, float]:
    return {name: float(np.max(column)) for name, column in columns.items()}


def _cited(frame: pd.DataFrame, remark: str = "") -> str:
    """Package, version, tables and kernels of some rows."""
    kernels = ", ".join(sorted(frame["kernel"].unique())[:4])
    tables = ", ".join(sorted(frame["source"].unique()))
    return f"{silicon.DISTRIBUTION} {silicon.VERSION}, {tables} ({kernels}){remark}"


def _floats(frame: pd.DataFrame, *names: str) -> list[npt.NDArray[np.float64]]:
    return [frame[name].to_numpy(dtype=float) for name in names]


def mla_classes(system: str, framework: str) -> list[Measured]:
    """attention-mla by KV format. vLLM has whole modules only, and borrows SGLang's kernel (both run FlashInfer's)."""
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

    Where a framework has several kernels for a format, each is a class, and the timing runs the faster one. On
    Blackwell TensorRT-LLM runs FP8 experts on its own trtllm-gen kernels as well, which only SGLang's table has measured, and
    SGLang runs them on DeepGEMM behind DeepEP, which only TensorRT-LLM's table has. TensorRT-LLM's low-latency FP4
    kernel is measured on GB200 and B200 but not on GB300, whose SMs and HBM run at the same rates: GB200's stands in.
    """
    import pandas as pd

    frames = [silicon.grouped_gemm(system, framework).assign(remark="")]
    for lender, table_format, kernel, why in _lent_kernels(system, framework):
        lent = silicon.grouped_gemm(*lender)
        lent = lent[(lent["format"] == table_format) & (lent["kernel"] == kernel)]
        frames.append(lent.assign(remark=f"; borrowed: {why}"))
    return _grouped_classes(_credible(_loaded(pd.concat(frames, ignore_index=True)), system))


EXPERT = ["hidden", "intermediate", "experts", "top_k", "moe_tp", "moe_ep", "format", "routing"]


def _loaded(frame: pd.DataFrame) -> pd.DataFrame:
    """Gated experts of models with many, with the experts read and the pairs computed on the GPU that was measured."""
    frame = frame[frame["gated"] & (frame["tokens"] <= DECODE_TOKENS) & (frame["experts"] >= 64)]
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
    faster = weights / frame["seconds"] > load_machine(MACHINES[system]).hbm_bytes_per_s
    models = [frame[name] for name in ("kernel", "hidden", "intermediate", "experts", "top_k", "format")]
    balanced = frame["routing"] == "balanced"
    return frame[~(balanced & (faster & balanced).groupby(models).transform("any"))]


def _lent_kernels(system: str, framework: str) -> list[tuple[tuple[str, str], str, str, str]]:
    """What a framework runs and its own table lacks: ((system, framework) that has it, format, kernel, why)."""
    found, runs = [], f"{framework} runs this kernel as well"
    if framework == "trtllm" and system in ("gb200", "gb300", "b200"):
        found.append(((system, "sglang"), "fp8_block", "sglang_flashinfer_trtllm_moe", runs))
    if framework == "sglang" and system in ("gb200", "gb300", "b200"):
        found.append(((system, "trtllm"), "fp8_block", "deepgemm", runs))
    if framework == "trtllm" and system == "gb300":
        found.append(
            (("gb200", "trtllm"), "nvfp4", "moe_torch_flow_min_latency", "this system's table lacks this kernel")
        )
    return found


def _grouped_classes(frame: pd.DataFrame) -> list[Measured]:
    found = []
    for table_format, of_format in frame.groupby("format"):
        kernels = [str(kernel) for kernel, rows in of_format.groupby("kernel") if len(rows) >= 1000]
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
                    source=_cited(rows, f"; permutation, activation and sum included{rows['remark'].iloc[0]}"),
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
    rows = silicon.nccl(system).query("op == 'all_reduce' and bytes <= 16384")
    return float(rows[rows["ranks"] == rows["ranks"].max()]["seconds"].median() * 1e6)


def expert_exchange_classes(system: str, framework: str) -> list[Measured]:
    """dispatch and combine, and the all-to-all of partial attention outputs where it runs on the same kernels.

    TensorRT-LLM on racks: its one-sided NVLink kernels, measured on GB200 over 2 to 32 ranks. On HGX it gathers all
    tokens and scatters the sums with NCCL. SGLang and vLLM: DeepEP's low-latency kernels, measured on one board; what
    more ranks and boards cost is what they cost TensorRT-LLM on GB200.
    """
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


# --- All of a framework ----------------------------------------------------------------------------------------------

SECTIONS: dict[str, tuple[Callable[[str, str], list[Measured]], ...]] = {
    "mla": (mla_classes,),
    "attention": (gqa_classes,),
    "gemm": (gemm_classes,),
    "mla_bmm": (batched_classes,),
    "moe": (grouped_classes,),
    "quantize": (elementwise_classes,),
    "comm": (all_reduce_classes, nccl_classes, expert_exchange_classes),
}
"""What makes classes of each family of tables."""


def check_names(system: str, framework: str) -> None:
    """SpecError where there are no tables of that name."""
    from helix_sim.silicon import aic_tables as silicon

    problems = []
    if system not in silicon.SYSTEMS:
        problems.append(f"--system: {system!r} is not one of {', '.join(silicon.SYSTEMS)}")
    if framework not in silicon.FRAMEWORKS:
        problems.append(f"--framework: {framework!r} is not one of {', '.join(silicon.FRAMEWORKS)}")
    if problems:
        raise SpecError(problems)


def measurements(system: str, framework: str, families: Iterable[str] = tuple(SECTIONS)) -> list[Measured]:
    """Every class's measurements of one framework on one system, or those of some families of tables."""
    check_names(system, framework)
    return [measured for family in families for section in SECTIONS[family] for measured in section(system, framework)]
