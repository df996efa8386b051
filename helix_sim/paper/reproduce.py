"""The Helix paper's figures and claims, recomputed: data for figures 1, 3, 5, 6 and 7, and paper beside ours."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from helix_sim.core.numeric import ceil_div
from helix_sim.core.units import GIGA
from helix_sim.search.pareto import Frontier
from helix_sim.search.plan import Plan, plan
from helix_sim.search.sweep import SweepResult, run_plan
from helix_sim.silicon.systems import machine_of
from helix_sim.specs.load import load_sweep
from helix_sim.specs.precision import Precision
from helix_sim.specs.sweep import Sweep
from helix_sim.specs.timing import Timing
from helix_sim.step import cache_with_kernels

if TYPE_CHECKING:
    import pandas as pd

FIGURES = ("fig1", "fig3", "fig5", "fig6", "fig7")
PAPER_SWEEPS = {"r1": "paper-deepseek-r1", "llama": "paper-llama-3.1-405b"}

# --- Figure 1: the paper's own roofline ------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Roofline:
    """The setting of Figure 1 [Helix 2025, appendix A]: a GQA model in FP4 on one GPU's HBM."""

    batch: int = 8
    q_heads: int = 128
    kv_heads: int = 8
    head_size: int = 128
    hidden_size: int = 16384
    intermediate_size: int = 65536
    bytes_per_value: float = 0.5
    hbm_bytes_per_s: float = 8000 * GIGA

    def kv_read_s(self, tpa: Any, kvp: Any, context: Any) -> Any:
        """B · 2 · ceil(K/TPA) · Hsz · (S/KVP) · bytes / MemBW, seconds a layer."""
        tokens = context / kvp
        values = self.batch * 2 * ceil_div(self.kv_heads, tpa) * self.head_size * tokens
        return values * self.bytes_per_value / self.hbm_bytes_per_s

    def weight_read_s(self, tpa: Any, tpf: Any) -> Any:
        """(2·H·(Q/TPA)·Hsz + 2·H·ceil(K/TPA)·Hsz + 3·H·F/TPF) · bytes / MemBW, seconds a layer, as printed.

        The printed form shards the output projection by TPA. `attention.output_projection` shards it over all N ranks,
        as the paper's section 2.1 and our search do.
        """
        queries = 2 * self.hidden_size * (self.q_heads / tpa) * self.head_size
        keys = 2 * self.hidden_size * ceil_div(self.kv_heads, tpa) * self.head_size
        ffn = 3 * self.hidden_size * self.intermediate_size / tpf
        return (queries + keys + ffn) * self.bytes_per_value / self.hbm_bytes_per_s


def figure_1() -> pd.DataFrame:
    """KV and weight read times: against TP width, against context at TP 8, against KVP at TPA 8."""
    import pandas as pd

    roofline = Roofline()
    widths = 2 ** np.arange(7)
    contexts = np.array([1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1000, 2000, 4000]) * 1000
    million = 10**6
    panels = {
        "left": (widths, np.ones_like(widths), np.full_like(widths, million), widths),
        "middle": (np.full_like(contexts, 8), np.ones_like(contexts), contexts, np.full_like(contexts, 8)),
        "right": (np.full_like(widths, 8), widths, np.full_like(widths, million), 8 * widths),
    }
    return pd.concat(
        pd.DataFrame(
            {
                "panel": panel,
                "tp": tp,
                "kvp": kvp,
                "context": context,
                "kv_read_s": roofline.kv_read_s(tp, kvp, context),
                "weight_read_s": roofline.weight_read_s(tp, tpf),
            }
        )
        for panel, (tp, kvp, context, tpf) in panels.items()
    ).reset_index(drop=True)


# --- Figure 3: HOP-B's timeline --------------------------------------------------------------------------------------


def figure_3(requests: int = 8, attention: float = 2.0, communication: float = 1.2) -> pd.DataFrame:
    """Start and end of each request's attention and communication, in lockstep and pipelined, in the paper's units.

    The end of the last row of each mode is `overlap.pipelined` of that schedule.
    """
    import pandas as pd

    rows = []
    total = requests * attention
    for i in range(requests):
        begun = attention + i * max(attention, communication)
        sent = total + i * communication
        rows += [
            ("lockstep", i, "attention", i * attention, (i + 1) * attention),
            ("lockstep", i, "communication", sent, sent + communication),
            ("hop-b", i, "attention", i * attention, (i + 1) * attention),
            ("hop-b", i, "communication", begun, begun + communication),
        ]
    table = pd.DataFrame(rows, columns=["mode", "request", "lane", "start", "end"])
    return table.sort_values(["mode", "lane", "request"], ascending=[False, True, True]).reset_index(drop=True)


# --- The two searches ------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Searches:
    """Each model's search (r1, llama) with HOP-B free, and with it off."""

    on: dict[str, SweepResult]
    off: dict[str, SweepResult]


def search(timing: Timing, change: Callable[[Plan], Plan] = lambda planned: planned) -> Searches:
    """The paper's two searches under a timing; `change` alters each plan, to vary an assumption.

    On a measured timing the KV cache is in a format that has kernels, FP8 in place of the paper's FP4.
    """

    def run(sweep: Sweep) -> SweepResult:
        planned = plan(sweep)
        given = planned.setting.precision.model_dump(exclude_none=True)
        formats = cache_with_kernels(planned.model, planned.machine, timing, given)
        precision = Precision.model_validate(formats)
        return run_plan(change(replace(planned, setting=replace(planned.setting, timing=timing, precision=precision))))

    machine = {"machine": machine_of(timing.calibration.system).name} if timing.calibration else {}
    sweeps = {key: load_sweep(name).model_copy(update=machine) for key, name in PAPER_SWEEPS.items()}
    return Searches(
        on={key: run(sweep) for key, sweep in sweeps.items()},
        off={key: run(sweep.model_copy(update={"chunks": [1]})) for key, sweep in sweeps.items()},
    )


def frontier_table(searches: Searches, key: str) -> pd.DataFrame:
    """Every family's and group's frontier of one model, normalised to the baseline's best as in the paper."""
    import pandas as pd

    result = searches.on[key]
    baseline = result.group("baseline")
    names = [*result.sweep.families, *result.sweep.groups]
    table = pd.concat([result.group(name).to_frame().assign(curve=name) for name in names], ignore_index=True)
    return _ordered(table, baseline, result)


def hop_b_table(curves: dict[str, dict[str, SweepResult]], searches: Searches) -> pd.DataFrame:
    """Helix frontiers of both models under each named setting of HOP-B, normalised to each model's baseline."""
    import pandas as pd

    tables = []
    for key, result in searches.on.items():
        baseline = result.group("baseline")
        for curve, results in curves.items():
            table = results[key].group("all-helix").to_frame().assign(curve=curve)
            tables.append(_ordered(table, baseline, results[key]))
    return pd.concat(tables, ignore_index=True)


def _ordered(table: pd.DataFrame, baseline: Frontier, result: SweepResult) -> pd.DataFrame:
    table = table.drop(columns="family").assign(
        **result.searched,
        relative_interactivity=table["tokens_per_s_user"] / baseline.interactivity[-1],
        relative_throughput=table["tokens_per_s_gpu"] / baseline.throughput[0],
    )
    return table[["curve", *(name for name in table if name != "curve")]]


# --- Claims ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Claim:
    """One claim of the paper beside ours; held where ours lies between low and high."""

    id: str
    claim: str
    paper: float
    ours: float
    low: float
    high: float
    baseline_layout: str
    layout: str
    note: str = ""
    largest: float | None = None
    """Of a loss over a frontier, whose median is ours: the largest."""
    stretched: dict[str, float] | None = None
    """Of a ratio at a latency: what it would be if every TTL of Helix were that much longer, such as +2%."""

    @property
    def held(self) -> bool:
        """Whether ours lies in the accepted range."""
        return self.low <= self.ours <= self.high

    @property
    def missed_by(self) -> float:
        """Distance to the accepted range; 0 where the claim is held."""
        return max(self.low - self.ours, self.ours - self.high, 0.0)

    def record(self) -> dict[str, Any]:
        """The claim as plain data."""
        return {**asdict(self), "held": self.held, "missed_by": self.missed_by}


CLAIMS = {
    "r1_interactivity": ("DeepSeek-R1: best interactivity, Helix over the best baseline", 1.5, 1.4, 1.6),
    "r1_users": ("DeepSeek-R1: users and tokens/s/GPU at a baseline latency, Helix over baseline", 32.0, 24.0, 40.0),
    "llama_interactivity": ("Llama-3.1-405B: best interactivity, Helix over TP", 1.13, 1.10, 1.16),
    "llama_throughput": ("Llama-3.1-405B: tokens/s/GPU at a baseline latency, Helix over TP", 4.0, 3.5, 4.5),
    "hopb_off_r1": ("DeepSeek-R1: tokens/s/user lost without HOP-B, median over tokens/s/GPU", 0.01, 0.0, 0.03),
    "hopb_off_llama": ("Llama-3.1-405B: tokens/s/user lost without HOP-B, median over tokens/s/GPU", 0.12, 0.08, 0.14),
}
"""id: (claim, the paper's value, the lowest and the highest of ours that hold it)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Ratio:
    """A ratio of two frontiers, and the two points that make it; `others` are further fields of its claim."""

    value: float
    over: dict[str, Any]
    under: dict[str, Any]
    others: dict[str, Any] = field(default_factory=dict)


def best_interactivity(ours: Frontier, baseline: Frontier) -> Ratio:
    """Ratio of the two frontiers' largest tokens/s/user."""
    value = float(ours.interactivity[-1] / baseline.interactivity[-1])
    return Ratio(value=value, over=ours.point(-1), under=baseline.point(-1))


def best_throughput(ours: Frontier, baseline: Frontier) -> Ratio:
    """Largest ratio of tokens/s/GPU at a latency, over all latencies at which the baseline frontier has a point."""
    ratios = ours.attained(baseline.interactivity) / baseline.throughput
    best = int(ratios.argmax())
    at = int(ours.index_at(baseline.interactivity[best]))
    # a layout serves whole users, so that the ratio is a stair
    stretched = {
        f"{share:+.0%}": float((ours.attained(baseline.interactivity * (1 + share)) / baseline.throughput).max())
        for share in STRETCHES
    }
    others = {"stretched": stretched}
    return Ratio(value=float(ratios[best]), over=ours.point(at), under=baseline.point(best), others=others)


STRETCHES = (-0.05, -0.02, -0.01, 0.01, 0.02, 0.05)
"""By what share Helix's TTL is made longer, to see how near a ratio is to its next step."""


def loss(on: Frontier, off: Frontier) -> Ratio:
    """Share of tokens/s/user lost from one frontier to the other at the same tokens/s/GPU: the median over its points.

    `others` has the largest as well, and the two points are those that lose it.
    """
    reached = on.throughput <= off.throughput[0]
    at = np.searchsorted(-off.throughput, -on.throughput[reached], side="right") - 1
    losses = np.maximum(1 - off.interactivity[at] / on.interactivity[reached], 0.0)
    worst = int(losses.argmax())
    point = int(np.flatnonzero(reached)[worst])
    return Ratio(
        value=float(np.median(losses)),
        over=on.point(point),
        under=off.point(int(at[worst])),
        others={"largest": float(losses[worst])},
    )


def measure(searches: Searches) -> dict[str, Ratio]:
    """Our value of each claim."""
    r1, llama = searches.on["r1"], searches.on["llama"]
    r1_helix, llama_helix = r1.group("all-helix"), llama.group("all-helix")
    return {
        "r1_interactivity": best_interactivity(r1_helix, r1.group("baseline")),
        "r1_users": best_throughput(r1_helix, r1.group("baseline")),
        "llama_interactivity": best_interactivity(llama_helix, llama.group("tp")),
        "llama_throughput": best_throughput(llama_helix, llama.group("tp")),
        "hopb_off_r1": loss(r1_helix, searches.off["r1"].group("all-helix")),
        "hopb_off_llama": loss(llama_helix, searches.off["llama"].group("all-helix")),
    }


MEASURED = {"r1_interactivity": 1.8, "r1_users": 32.0}
"""What TensorRT-LLM measured for DeepSeek-R1 in FP4 at 1M tokens on GB300 NVL72, without HOP-B [its Helix write-up]."""


def without_hop_b(searches: Searches) -> dict[str, float]:
    """The claims that TensorRT-LLM measured, with HOP-B off, as it measured them."""
    off = searches.off["r1"]
    helix, baseline = off.group("all-helix"), off.group("baseline")
    return {
        "r1_interactivity": best_interactivity(helix, baseline).value,
        "r1_users": best_throughput(helix, baseline).value,
    }


def layout_text(point: dict[str, Any]) -> str:
    """A frontier point as one line: GPUs, widths that are not one, batch, TTL."""
    widths = " ".join(f"{name}{point[name]}" for name in ("tpa", "kvp", "dp", "tpf", "ep", "pp") if point[name] != 1)
    chunks = f" chunks{point['chunks']}" if point["chunks"] != 1 else ""
    return f"{point['gpus']} GPUs {widths}{chunks} batch {point['batch']}, TTL {point['ttl_s'] * 1e3:.2f} ms"


# --- Which assumption decides ----------------------------------------------------------------------------------------


def _scaled(planned: Plan, knob: str, factor: float) -> Plan:
    return replace(planned, setting=planned.setting.scaled(knob, factor))


def _constant(planned: Plan, of: str, name: str, value: Any) -> Plan:
    """The plan with a constant of its machine or its timing set to another value."""
    record: Any = getattr(planned.setting, of)
    changed = record.model_copy(update={name: getattr(record, name).model_copy(update={"value": value})})
    return replace(planned, setting=replace(planned.setting, **{of: changed}))


OWN_LATENCY = "each HOP-B chunk is a launch of its own, and its exchange holds the link for all of its latency"


def _hop_b(planned: Plan, **shares: float) -> Plan:
    """The plan with other shares of a latency that each chunk pays again."""
    timing = planned.timing
    changed = {name: getattr(timing.hop_b, name).model_copy(update={"value": value}) for name, value in shares.items()}
    hop_b = timing.hop_b.model_copy(update=changed)
    varied = timing.model_copy(update={"hop_b": hop_b})
    return replace(planned, setting=replace(planned.setting, timing=varied))


VARIATIONS: dict[str, Callable[[Plan], Plan]] = {
    OWN_LATENCY: lambda p: _hop_b(p, kernel_issue=1.0, exchange_occupancy=1.0),
    "each HOP-B chunk's exchange holds the GPU for a tenth of its latency": lambda p: _hop_b(p, exchange_issue=0.1),
    "each HOP-B chunk is a launch of its own": lambda p: _hop_b(p, kernel_issue=1.0),
    "a kernel takes half its latency": lambda p: _scaled(p, "kernel_latency", 0.5),
    "a kernel takes twice its latency": lambda p: _scaled(p, "kernel_latency", 2.0),
    "a collective takes half its latency": lambda p: _scaled(p, "collective_latency", 0.5),
    "a collective takes twice its latency": lambda p: _scaled(p, "collective_latency", 2.0),
    "NVLink reaches half its datasheet rate": lambda p: _scaled(p, "nvlink_bandwidth", 0.5),
    "HBM reaches 85 % of its datasheet rate": lambda p: _scaled(p, "hbm_bandwidth", 0.85),
    "switches do not reduce": lambda p: _constant(p, "machine", "nvlink_switch_reduces", False),
    "all-reduces do not run behind the products before them": lambda p: _constant(
        p, "timing", "all_reduce_overlap", 0.0
    ),
    "shared experts do not run beside routed ones": lambda p: _constant(p, "timing", "shared_expert_overlap", 0.0),
}
"""Assumptions of the timing and the machine, each with another defensible value."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ClaimsReport:
    """The paper's claims beside ours under one timing, and ours again under each varied assumption."""

    timing: str
    claims: list[Claim]
    varied: dict[str, dict[str, float]]

    def to_frame(self) -> pd.DataFrame:
        """A row a claim."""
        import pandas as pd

        return pd.DataFrame([claim.record() for claim in self.claims])


def claims(searches: Searches, timing: Timing, *, vary: bool = True) -> ClaimsReport:
    """The claims under a timing; with `vary`, each under every variation too, and a note on what that found."""
    ours = measure(searches)
    varied: dict[str, dict[str, float]] = {}
    if vary:
        for text, change in VARIATIONS.items():
            varied[text] = {key: ratio.value for key, ratio in measure(search(timing, change)).items()}
    found = []
    for key, (text, paper, low, high) in CLAIMS.items():
        ratio = ours[key]
        claim = Claim(
            id=key,
            claim=text,
            paper=paper,
            ours=ratio.value,
            low=low,
            high=high,
            baseline_layout=layout_text(ratio.under),
            layout=layout_text(ratio.over),
            **ratio.others,
        )
        found.append(replace(claim, note=_note(claim, varied)))
    return ClaimsReport(timing=timing.name, claims=found, varied=varied)


def _note(claim: Claim, varied: dict[str, dict[str, float]]) -> str:
    """Which varied assumption moves a claim most, and which would hold a missed one."""
    if not varied:
        return ""
    by_move = sorted(varied, key=lambda text: -abs(varied[text][claim.id] - claim.ours))
    decides, value = by_move[0], varied[by_move[0]][claim.id]
    if abs(value - claim.ours) < 1e-12:
        return "None of the varied assumptions moves it."
    moved = f"Moved most when {decides}: {value:.3g}."
    if claim.held:
        return moved
    holding = [text for text in by_move if claim.low <= varied[text][claim.id] <= claim.high]
    mends = " It would hold if " + "; or if ".join(holding) + "." if holding else " No single variation holds it."
    return f"Missed by {claim.missed_by:.3g}. {moved}{mends}"


# --- Whether any constants hold both losses --------------------------------------------------------------------------

DRAWN: dict[str, tuple[float, float]] = {
    "kernel_us": (1.0, 6.0),
    "collective_us": (1.0, 8.0),
    "hbm_share": (0.75, 1.0),
    "nvlink_share": (0.25, 1.0),
    "all_reduce_overlap": (0.0, 1.0),
    "kernel_issue": (0.0, 1.0),
    "exchange_issue": (0.0, 0.5),
    "exchange_occupancy": (0.0, 0.5),
}
"""Constants of a random variant of a timing, each uniform between two ends; the same for both models."""

OFTEN_FREE = ("kernel_issue", "exchange_issue", "exchange_occupancy")
"""What a chunk pays again: nothing in three of four draws each, as in figure 3; little of it makes HOP-B useless."""


def variants(timing: Timing, draws: int, seed: int = 0) -> pd.DataFrame:
    """Our value of every claim under random variants of a timing, a row each, with the constants that were drawn.

    Losses without HOP-B are given as median and as largest. A variant takes about a second.
    """
    import pandas as pd

    rng, rows = np.random.default_rng(seed), []
    for _ in range(draws):
        drawn = {name: float(rng.uniform(*ends)) for name, ends in DRAWN.items()}
        drawn |= {name: 0.0 for name in OFTEN_FREE if rng.random() < 0.75}
        ratios = measure(search(_drawn(timing, drawn)))
        largest = {
            f"{key}_largest": ratio.others["largest"] for key, ratio in ratios.items() if "largest" in ratio.others
        }
        rows.append({**drawn, **{key: ratio.value for key, ratio in ratios.items()}, **largest})
    return pd.DataFrame(rows)


def both_losses(table: pd.DataFrame) -> dict[str, int]:
    """Variants whose losses are both as the paper has them, R1's and Llama's: as medians, and as largest."""
    found = {}
    for name, suffix in (("median", ""), ("largest", "_largest")):
        r1, llama = (table[f"hopb_off_{key}{suffix}"] for key in ("r1", "llama"))
        (_, _, _, most), (_, _, least, _) = CLAIMS["hopb_off_r1"], CLAIMS["hopb_off_llama"]
        found[name] = int(((r1 <= most) & (llama >= least)).sum())
    return found


def _drawn(timing: Timing, drawn: dict[str, float]) -> Timing:
    """The timing with constants that were drawn."""

    def at(record: Any, **values: float) -> Any:
        """A record with other values, which are nobody's measurement."""
        source = "assumed: drawn at random"
        changed = {
            name: getattr(record, name).model_copy(update={"value": value, "source": source})
            for name, value in values.items()
        }
        return record.model_copy(update=changed)

    shares = {name: drawn[name] for name in OFTEN_FREE}
    parts = {
        "kernel": at(timing.kernel, latency_us=drawn["kernel_us"], bandwidth_share=drawn["hbm_share"]),
        "pointwise": at(timing.pointwise, bandwidth_share=drawn["hbm_share"]),
        "collective": at(timing.collective, latency_us=drawn["collective_us"], nvlink_share=drawn["nvlink_share"]),
        "hop_b": at(timing.hop_b, **shares),
    }
    varied: Timing = at(timing, all_reduce_overlap=drawn["all_reduce_overlap"]).model_copy(update=parts)
    return varied
