"""Models on machines side by side: the best layout of each within a latency, what it costs, and surprises explained."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from helix_sim.answers.explain import known
from helix_sim.core.display import Rows, Shown
from helix_sim.core.errors import SpecError
from helix_sim.core.layout import AXES, Layout
from helix_sim.core.units import GIGA
from helix_sim.search.layout_source import precision_of
from helix_sim.search.pareto import Frontier, merge
from helix_sim.search.plan import plan
from helix_sim.search.sweep import SweepResult, run_plan
from helix_sim.specs.comparison import Comparison
from helix_sim.specs.load import load_machine, load_model, load_timing, no_family, parse, shipped, shipped_families
from helix_sim.specs.machine import Machine
from helix_sim.specs.quantities import units_of
from helix_sim.specs.sweep import Sweep
from helix_sim.specs.timing import Timing
from helix_sim.stacks.rules import formats_on_stacks, names_of, stack_flags
from helix_sim.stacks.stack import NAMES
from helix_sim.step import Step, evaluate_step, op_rows
from helix_sim.timing.roofline import measured_classes

if TYPE_CHECKING:
    import pandas as pd

RATES = ("hbm_bandwidth_GBps", "memory_GB", "bf16_dense_TFLOPs", "fp8_dense_TFLOPs", "nvlink_per_direction_GBps")
"""Rates of a machine that make it the better one where none is below the other's."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Cell:
    """One cell of a comparison: what was asked, and its best layout, or why there is none.

    title: the family in words.
    helix_gain: throughput over that of the best layout that does not shard the KV cache by sequence.
    """

    asked: dict[str, Any]
    family: str = ""
    title: str = ""
    step: Step | None = None
    starts_on: tuple[str, ...] = ()
    helix_gain: float | None = None
    why_none: str = ""

    def record(self) -> dict[str, Any]:
        """The cell as a row of plain data; `helix_sim.specs.quantities` has the units."""
        step = self.step
        if step is None:
            return {**self.asked, "note": self.why_none}
        memory, gpu_GB = step.memory, 1 / GIGA
        low, high = (float(end) * 1e3 for end in step.ttl_interval_s)
        measured = step.timing.calibration is not None
        largest = max(op_rows(step), key=lambda row: float(row["share"]))
        return {
            **self.asked,
            "family": self.family,
            "title": self.title,
            "widths": str(step.layout),
            "gpus": int(step.layout.gpus),
            "users": int(step.layout.users),
            "ttl_ms": float(step.ttl_s) * 1e3,
            "ttl_low_ms": low if measured else None,
            "ttl_high_ms": high if measured else None,
            "tokens_per_s_user": float(step.tokens_per_s_user),
            "tokens_per_s_gpu": float(step.tokens_per_s_gpu),
            "usd_per_million_tokens": known(step.usd_per_million_tokens),
            "joules_per_token": known(step.joules_per_token),
            "weights_GB": float(memory.weights) * gpu_GB,
            "kv_cache_GB": float(memory.kv_cache) * gpu_GB,
            "free_GB": float(memory.fillable - memory.resident_bytes) * gpu_GB,
            "largest_op": largest["op"],
            "binds": largest["binds"],
            "extrapolated": bool(step.rests_on_extrapolation),
            "starts_on": ", ".join(self.starts_on),
            "helix_gain": self.helix_gain,
            "note": "",
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class Compared(Shown):
    """A comparison's cells in order, the searches behind them, and sentences on what differs or surprises."""

    comparison: Comparison
    cells: list[Cell]
    searches: list[SweepResult]
    remarks: list[str]

    def __repr__(self) -> str:
        found = sum(cell.step is not None for cell in self.cells)
        return f"<Compared: {len(self.cells)} cells, {found} of them with a layout, from {len(self.searches)} searches>"

    def rows(self) -> Rows:
        """A row of plain data for each cell, every row with every column."""
        rows = [cell.record() for cell in self.cells]
        longest_first: list[dict[str, Any]] = sorted(rows, key=lambda row: -len(row))
        columns = list(dict.fromkeys(itertools.chain.from_iterable(longest_first)))
        return Rows({column: row.get(column) for column in columns} for row in rows)

    @property
    def against(self) -> str:
        """The column that pictures show: throughput, or a cost."""
        return self.comparison.against or "tokens_per_s_gpu"

    def curves(self) -> dict[tuple[str, int], dict[tuple[str, str], Frontier]]:
        """The frontier over all families by (model, context) and by the (machine, timing) that cells are of."""
        found: dict[tuple[str, int], dict[tuple[str, str], Frontier]] = {}
        called = _called(self.searches)
        searches = {
            (called[each.sweep.model], called[each.sweep.machine], called[each.sweep.timing]): each
            for each in self.searches
        }
        for asked in (cell.asked for cell in self.cells):
            search = searches[asked["model"], asked["machine"], asked["timing"]]
            where = (asked["machine"], asked["timing"])
            curve = merge(search.frontiers[asked["context"]].values(), ", ".join(where))
            found.setdefault((asked["model"], asked["context"]), {})[where] = curve
        return found

    def frontiers(self) -> pd.DataFrame:
        """Every family's frontier of every search as one table, a row a point: what pictures of the trade-off draw.

        model, machine and timing are as the comparison's rows call them: two files may hold the same name.
        """
        import pandas as pd

        called = _called(self.searches)
        kinds = ("model", "machine", "timing")
        frames = (
            found.to_frame().assign(**{kind: called[getattr(found.sweep, kind)] for kind in kinds})
            for found in self.searches
        )
        return pd.concat(frames, ignore_index=True)

    def record(self) -> dict[str, Any]:
        """The comparison as plain data: what `compare --json` prints."""
        from helix_sim.core.version import __version__

        inputs = [{kind: each.record() for kind, each in found.plan.inputs.items()} for found in self.searches]
        return {
            "helix_sim": __version__,
            "comparison": self.comparison.model_dump(mode="json", exclude_none=True),
            "searches": inputs,
            "units": units_of(self.rows()[0]),
            "remarks": self.remarks,
            "rows": [
                row | ({"layout": cell.step.layout.columns()} if cell.step else {})
                for row, cell in zip(self.rows(), self.cells, strict=True)
            ],
        }


def compare(comparison: Comparison, on_search: Callable[[int, int, str], None] = lambda *_: None) -> Compared:
    """The best layout of each model on each machine at each context within each latency.

    on_search sees (searches done, searches in all, what comes next), for a progress line. SpecError with every problem
    of the comparison's names before anything is searched.
    """
    wanted = _settings(comparison)
    cells, searches = [], []
    for done, (model, name, machine, timing) in enumerate(wanted):
        on_search(done, len(wanted), f"{model} on {name}, {timing}")
        searches.append(_search(comparison, model, name, machine, timing))
    called = _called(searches)
    for model in comparison.models:
        for machine_name in comparison.machines:
            mine = [found for found in searches if (found.sweep.model, found.sweep.machine) == (model, machine_name)]
            cells += _cells(comparison, mine, called)
    return Compared(comparison=comparison, cells=cells, searches=searches, remarks=_remarks(cells, searches, called))


def _called(searches: Sequence[SweepResult]) -> dict[str, str]:
    """What rows call each model, machine and timing, by how it was given: its name, unless another has the same."""
    names = {
        getattr(found.sweep, kind): getattr(found.plan, kind).name
        for found in searches
        for kind in ("model", "machine", "timing")
    }
    times = Counter(names.values())
    return {given: name if times[name] == 1 else given for given, name in names.items()}


def timings_of(machine: Machine, name: str) -> list[str]:
    """What a name of a timing means on a machine: itself, or with `auto` every timing that was measured there."""
    if name != "auto":
        return [name]
    if machine.public_tables is None:
        return ["paper"]
    measured = [each for each in shipped("timing") if each.startswith(f"{machine.public_tables.system}-")]
    return measured or ["paper"]


def _settings(comparison: Comparison) -> list[tuple[str, str, Machine, str]]:
    """Each search: a model, a machine at its asked price, and a timing; SpecError with every name that is none."""
    problems: list[str] = []
    found: list[tuple[str, str, Machine, str]] = []
    if strangers := comparison.usd_per_gpu_hour.keys() - set(comparison.machines):
        problems.append(f"usd_per_gpu_hour: {', '.join(sorted(strangers))}: not among the machines that are compared")
    for model, name in itertools.product(comparison.models, comparison.machines):
        try:
            load_model(model)
            machine = load_machine(name)
            for timing in dict.fromkeys(t for asked in comparison.timings for t in timings_of(machine, asked)):
                load_timing(timing)
                found.append((model, name, machine.at_price(comparison.usd_per_gpu_hour.get(name)), timing))
        except SpecError as error:
            problems += error.problems
    if problems:
        raise SpecError(list(dict.fromkeys(problems)))
    return found


def _search(comparison: Comparison, model: str, name: str, machine: Machine, timing: str) -> SweepResult:
    """Every layout of a model on a machine under a timing, at all contexts."""
    families, stacks = shipped_families(), names_of(comparison.stack)
    names = comparison.families or list(families)
    if unknown := [name for name in names if name not in families]:
        raise SpecError([f"families: {no_family(name)}" for name in unknown])
    formats = precision_of(load_model(model), machine, {}, named=comparison.formats)
    content = {
        "kind": "sweep",
        "name": comparison.name,
        "description": comparison.description,
        "model": model,
        "machine": name,
        "timing": timing,
        "precision": formats_on_stacks(formats, stacks, machine, load_model(model)),
        "contexts": comparison.contexts,
        "gpus": comparison.gpus or {"from": 1, "to": min(machine.domain, machine.gpus.value)},
        "batch": comparison.batch,
        "chunks": comparison.chunks,
        "families": {name: families[name] for name in names},
        "stacks": list(stacks) or None,
    }
    sweep = parse(Sweep, content, "compare")
    return run_plan(plan(sweep, {} if machine is load_machine(name) else {"machine": machine}))


# --- Cells -----------------------------------------------------------------------------------------------------------


def _cells(comparison: Comparison, searches: Sequence[SweepResult], called: Mapping[str, str]) -> list[Cell]:
    """Cells of one model on one machine: of the timings that `auto` stands for, the one with the best throughput."""
    cells = []
    machine = searches[0].plan.machine
    for context, budget, asked in itertools.product(comparison.contexts, comparison.ttl_ms, comparison.timings):
        names = timings_of(machine, asked)
        tried = [_cell(found, context, budget, called) for found in searches if found.sweep.timing in names]
        cells.append(max(tried, key=lambda cell: float(cell.step.tokens_per_s_gpu) if cell.step else 0.0))
    return cells


def _cell(found: SweepResult, context: int, budget_ms: float, called: Mapping[str, str]) -> Cell:
    planned = found.plan
    asked = {
        "model": called[planned.sweep.model],
        "machine": called[planned.sweep.machine],
        "timing": called[planned.sweep.timing],
        "formats": str(planned.setting.precision),
        "context": context,
        "ttl_budget_ms": budget_ms,
    }
    curves = {name: curve for name, curve in found.frontiers[context].items() if len(curve)}
    fast = 1e3 / budget_ms
    best = {name: curve.index_at(fast) for name, curve in curves.items()}
    best = {name: int(index) for name, index in best.items() if index < len(curves[name])}
    if not best:
        return Cell(asked=asked, why_none=_why_none(found, curves))
    by_throughput = sorted(best, key=lambda name: -curves[name].throughput[best[name]])
    family = by_throughput[0]
    point = curves[family].point(best[family])
    layout = Layout(**{name: point[name] for name in AXES})
    conventional = [name for name in by_throughput if planned.sweep.families[name].kvp == 1]
    gain = (
        float(curves[family].throughput[best[family]] / curves[conventional[0]].throughput[best[conventional[0]]]) - 1
        if conventional
        else None
    )
    s = planned.setting
    starts = [name for name in NAMES if not int(stack_flags(name, s.model, s.machine, s.precision, layout))]
    step = evaluate_step(s, layout, context)
    title = planned.sweep.families[family].title
    return Cell(asked=asked, family=family, title=title, step=step, starts_on=tuple(starts), helix_gain=gain)


def _why_none(found: SweepResult, curves: dict[str, Frontier]) -> str:
    if curves:
        fastest = max(float(curve.interactivity[-1]) for curve in curves.values())
        return f"no layout keeps the budget; the fastest takes {1e3 / fastest:.4g} ms"
    counts: dict[str, int] = {}
    for dropped in found.dropped.values():
        for reason, count in dropped.items():
            counts[reason] = counts.get(reason, 0) + count
    most = sorted(counts, key=lambda name: -counts[name])[:3]
    return f"no layout runs: {', '.join(f'{counts[name]:,} {name}' for name in most)}"


# --- What differs, what surprises ------------------------------------------------------------------------------------


def _remarks(cells: Sequence[Cell], searches: Sequence[SweepResult], called: Mapping[str, str]) -> list[str]:
    remarks = []
    for model in dict.fromkeys(called[found.sweep.model] for found in searches):
        formats = {called[found.sweep.machine]: str(found.plan.setting.precision) for found in searches
                   if called[found.sweep.model] == model}  # fmt: skip
        if len(set(formats.values())) > 1:
            each = "; ".join(f"{machine}: {text}" for machine, text in formats.items())
            remarks.append(f"{model} is not in the same formats on every machine, as they compute: {each}")
    machines = {called[found.sweep.machine]: found.plan.machine for found in searches}
    if unpriced := [name for name, machine in machines.items() if machine.usd_per_gpu_hour is None]:
        remarks.append(f"no price is known of {', '.join(unpriced)}: give --usd-per-gpu-hour MACHINE=USD")
    if priced := [f"{name} {machine.price_in_words}" for name, machine in machines.items() if machine.usd_per_gpu_hour]:
        remarks.append(f"cost is by {'; '.join(priced)}")
    if unknown := [name for name, machine in machines.items() if machine.power is None]:
        remarks.append(f"no power is known of {', '.join(unknown)}: add it to the machine's file")
    return remarks + [text for pair in itertools.permutations(cells, 2) if (text := surprise(*pair))]


def surprise(slower: Cell, faster: Cell) -> str:
    """Why a machine that is nowhere slower by its datasheet is slower here, op by op; empty where it is not so."""
    same = ("model", "context", "ttl_budget_ms")
    a, b = slower.step, faster.step
    if a is None or b is None or any(slower.asked[name] != faster.asked[name] for name in same):
        return ""
    here, there = slower.asked["machine"], faster.asked["machine"]
    if here == there or not _better(a.machine, b.machine):
        return ""
    lost = 1 - float(a.tokens_per_s_gpu / b.tokens_per_s_gpu)
    if lost < 0.01:
        return ""
    moved = evaluate_step(a.setting, b.layout, b.context)
    rows, others = ({row["op"]: row for row in op_rows(step)} for step in (moved, b))
    op = max(rows, key=lambda name: rows[name]["seconds"] - others.get(name, {"seconds": 0.0})["seconds"])
    more = (rows[op]["seconds"] - others.get(op, {"seconds": 0.0})["seconds"]) * 1e6
    where = f"{slower.asked['model']} at {slower.asked['context']:,} tokens within {slower.asked['ttl_budget_ms']:g} ms"
    head = f"{here} gives {lost:.1%} less than {there} on {where}"
    if more <= 0:
        return f"{head}: the layout that is best there does not run or start here, where it would be as fast"
    return f"{head}: on the same layout {op} takes {more:.0f} µs more, {_measured_by(moved, op)}"


def _better(machine: Machine, than: Machine) -> bool:
    """Whether no datasheet rate of a machine is below another's."""
    pairs = [(getattr(machine, name), getattr(than, name)) for name in RATES]
    return all(a is not None and (b is None or a.value >= b.value) for a, b in pairs)


def _measured_by(step: Step, op: str) -> str:
    """The table that an op's time rests on."""
    timing: Timing = step.timing
    names = measured_classes(step.ops[op], timing)
    if not names or timing.calibration is None:
        return f"by the constants of timing {timing.name}"
    return f"by {names[0]} of {timing.name} ({timing.calibration.classes[names[0]].source})"
