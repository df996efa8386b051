"""Pareto curves as a gate: a sweep's frontiers of today against its stored ones, and what moved them.

Three checks. Curves: at each stored point's interactivity today's frontier attains its throughput, and the reverse.
Terms: at the stored probes, and at the points that are kept with their terms, each op takes its time and each kind of
memory its bytes. Counts: as many layouts of each family run. The first two hold within a relative tolerance.
"""

from __future__ import annotations

import datetime
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from helix_sim.core.display import Short
from helix_sim.core.errors import SpecError
from helix_sim.core.version import __version__
from helix_sim.gate import baseline as stored
from helix_sim.gate.baseline import Baseline
from helix_sim.gate.blame import TermMove, Today, evaluate_today, layout_text
from helix_sim.gate.code_digests import changed_modules
from helix_sim.search.pareto import Frontier, merge
from helix_sim.search.plan import Plan, plan
from helix_sim.search.sweep import SweepResult, run_plan
from helix_sim.specs.load import FOLDERS, load_sweep, shipped

RTOL = 1e-6
"""Relative tolerance of every comparison but counts. A baseline keeps nine digits or more, and another order of
summation or another libm moves the last of sixteen: both are far below. The smallest change worth a review, a
log-sum-exp of 2 bytes instead of 4, moves the exchange by 5e-5 of its time: far above."""

LEAST_RTOL = 1e-8
"""Below this the digits that a baseline keeps would be compared."""

T = TypeVar("T")


# --- Records ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class PointMove:
    """A stored point that today's frontier misses, or one of today's that the stored frontier misses.

    kind: slower, infeasible, unsearched (it would still do, but the search no longer finds it), or better.
    before, after: best tokens/s/GPU at that interactivity; None past the frontier's end.
    vertical, horizontal: relative moves of throughput at that interactivity, and of interactivity at that throughput,
    whole stairs of the frontier; None from or to a place past the end.
    distance: the least factor, less one, by which the frontier that misses it must grow on both axes to attain it;
    negative where today's frontier is the one that misses; None where it has no point at all.
    """

    kind: str
    tokens_per_s_user: float
    before: float | None
    after: float | None
    vertical: float | None
    horizontal: float | None
    distance: float | None
    old_layout: str
    new_layout: str
    why: str


@dataclass(frozen=True, slots=True, kw_only=True)
class CurveCheck:
    """One curve, a family's or a group's, against its stored one."""

    context: int
    curve: str
    group: bool
    before: Frontier
    after: Frontier
    hypervolume_change: float
    moves: list[PointMove]

    @property
    def held(self) -> bool:
        """Whether each frontier attains every point of the other."""
        return not self.moves

    def count(self, kind: str) -> int:
        """Moved points of a kind."""
        return sum(move.kind == kind for move in self.moves)

    def largest(self, direction: str) -> float | None:
        """The largest `vertical`, `horizontal` or `distance` of the moves that have one, in reach of both curves."""
        found = [value for move in self.moves if (value := getattr(move, direction)) is not None]
        return max(found, key=abs, default=None)

    def record(self) -> dict[str, Any]:
        """The check as plain data."""
        return {
            "context": self.context,
            "curve": self.curve,
            "held": self.held,
            "points_before": len(self.before),
            "points_after": len(self.after),
            "hypervolume_change": self.hypervolume_change,
            "largest_vertical_move": self.largest("vertical"),
            "largest_horizontal_move": self.largest("horizontal"),
            "largest_distance": self.largest("distance"),
            "moves": [asdict(move) for move in self.moves],
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class CountMove:
    """A family of which more, or fewer, layouts run."""

    family: str
    before: int
    after: int


@dataclass(frozen=True, slots=True, kw_only=True)
class InputChange:
    """An input file, or the code, that is not what it was; `what` has a line for each difference."""

    name: str
    what: list[str]


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class Verdict(Short):
    """A sweep against its baseline."""

    sweep: str
    title: str
    date: str
    rtol: float
    curves_only: bool
    curves: list[CurveCheck]
    terms: list[TermMove]
    counts: list[CountMove]
    inputs: list[InputChange]

    @property
    def moved_curves(self) -> list[CurveCheck]:
        """Curves that did not hold."""
        return [curve for curve in self.curves if not curve.held]

    @property
    def held(self) -> bool:
        """Whether the gate lets this sweep pass."""
        return not self.moved_curves and (self.curves_only or not (self.terms or self.counts))

    def record(self) -> dict[str, Any]:
        """The verdict as plain data."""
        return {
            "sweep": self.sweep,
            "held": self.held,
            "rtol": self.rtol,
            "curves_only": self.curves_only,
            "baseline_date": self.date,
            "curves": [curve.record() for curve in self.curves],
            "terms": [asdict(term) for term in self.terms],
            "counts": [asdict(count) for count in self.counts],
            "inputs": [asdict(change) for change in self.inputs],
        }


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class Update(Short):
    """A baseline that was written, or was right already, and how today's curves compare with what it held."""

    path: Path
    written: bool
    rows: int
    verdict: Verdict | None


# --- Sweeps and their files ------------------------------------------------------------------------------------------


def regress(sweeps: Sequence[str], folder: Path, *, rtol: float = RTOL, curves_only: bool = False) -> list[Verdict]:
    """Each sweep, by name or path, against its baseline in a folder; those that have one there if none is named.

    SpecError, with every problem of every sweep and baseline, before anything is computed.
    """
    _require_rtol(rtol)
    pairs = _collect(_chosen(sweeps, folder), lambda source: _loaded(source, folder))
    return [compare(baseline, run_plan(planned), rtol=rtol, curves_only=curves_only) for baseline, planned in pairs]


def update(sweeps: Sequence[str], folder: Path, *, rtol: float = RTOL, date: str | None = None) -> list[Update]:
    """Write each sweep's baseline into a folder, whole or not at all; a file that would differ by its date alone stays.

    If no sweep is named: those that have a baseline there, or where there is none at all, every shipped one.
    """
    _require_rtol(rtol)
    day = date or datetime.date.today().isoformat()
    chosen = _chosen(sweeps, folder) if sweeps or _baselines(folder) else shipped("sweep")
    plans = _collect(chosen, lambda source: plan(load_sweep(source)))
    paths = [stored.path_of(folder, planned.sweep.name) for planned in plans]
    if len(set(paths)) < len(paths):
        raise SpecError(["two of these sweeps have the same name, so their baselines would be one file; rename one"])
    return [_update(*each, rtol, day) for each in zip(chosen, plans, paths, strict=True)]


def _update(source: str, planned: Plan, path: Path, rtol: float, date: str) -> Update:
    result = run_plan(planned)
    try:
        old = stored.read(path)
        _require_same_search(old, planned, str(path))
        verdict = compare(old, result, rtol=rtol)
    except SpecError:  # nothing there, or nothing comparable: what an update is for
        verdict = None
    new = stored.snapshot(result, source, date)
    return Update(path=path, written=stored.write(path, new), rows=len(new.rows), verdict=verdict)


def _require_rtol(rtol: float) -> None:
    if not LEAST_RTOL <= rtol < 1:
        raise SpecError([f"--rtol: {rtol} is not between {LEAST_RTOL:g}, the digits that a baseline keeps, and 1"])


def _baselines(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.csv"))


def _chosen(sweeps: Sequence[str], folder: Path) -> list[str]:
    """The sweeps asked for, or those that have a baseline in the folder."""
    if sweeps:
        return list(dict.fromkeys(sweeps))
    if not _baselines(folder):
        raise SpecError([f"{folder}: there is no baseline in this folder; write them with --update"])
    return _collect(_baselines(folder), _source)


def _source(path: Path) -> str:
    """The sweep that a baseline's header names."""
    source = stored.header_of(path.read_text(encoding="utf-8", errors="replace")).get("sweep")
    if not source:
        raise SpecError([f"{path}: its header names no sweep; {stored.MEND}, naming the sweep"])
    return source


def _loaded(source: str, folder: Path) -> tuple[Baseline, Plan]:
    """A sweep's baseline and plan; SpecError where they do not belong together."""
    planned = plan(load_sweep(source))
    path = stored.path_of(folder, planned.sweep.name)
    baseline = stored.read(path)
    _require_same_search(baseline, planned, str(path))
    return baseline, planned


def _collect(sources: Sequence[Any], load: Callable[[Any], T]) -> list[T]:
    """Each source loaded, with the problems of all of them in one SpecError."""
    found: list[T] = []
    problems: list[str] = []
    for source in sources:
        try:
            found.append(load(source))
        except SpecError as error:
            problems += error.problems
    if problems:
        raise SpecError(problems)
    return found


def _require_same_search(baseline: Baseline, planned: Plan, shown: str) -> None:
    """SpecError where a baseline is stale: of another search than the sweep is today."""
    known = {(context, family) for context in planned.sweep.contexts for family in planned.sweep.families}
    strangers = sorted({(row.context, row.family) for row in baseline.rows} - known)
    if baseline.header["digest.sweep"] != planned.digests["sweep"]:
        what = "; ".join(_changes(baseline, planned, "sweep")[:4]) or "its description, or a default of the format"
        problem = f"it is of another search than the sweep {planned.sweep.name} is today ({what})"
    elif strangers:
        context, family = strangers[0]
        problem = f"it has points of family {family} at context {context}, which {planned.sweep.name} does not search"
    else:
        return
    raise SpecError([f"{shown}: {problem}; review that, and write the baseline anew with --update"])


# --- The comparison --------------------------------------------------------------------------------------------------


def compare(baseline: Baseline, result: SweepResult, *, rtol: float = RTOL, curves_only: bool = False) -> Verdict:
    """A sweep's result of today against its baseline."""
    planned = result.plan
    today = evaluate_today(baseline, planned, rtol)
    names = (*planned.sweep.groups, *planned.sweep.families)
    return Verdict(
        sweep=planned.sweep.name,
        title=f"{planned.model.name} on {planned.machine.name}",
        date=baseline.header["date"],
        rtol=rtol,
        curves_only=curves_only,
        curves=[_check(today, result, context, name) for context in planned.sweep.contexts for name in names],
        terms=today.moves(),
        counts=_counts(baseline, result),
        inputs=_inputs(baseline, planned),
    )


def _check(today: Today, result: SweepResult, context: int, name: str) -> CurveCheck:
    """A family's or a group's stored frontier and today's, each against the other."""
    members = result.sweep.groups.get(name, [name])
    before = merge((today.baseline.frontier(context, member) for member in members), name)
    after = result.group(name, context)
    old, new = hypervolume(before), hypervolume(after)
    return CurveCheck(
        context=context,
        curve=name,
        group=name in result.sweep.groups,
        before=before,
        after=after,
        hypervolume_change=new / old - 1 if old else float(new > 0),
        moves=_lost(today, before, after) + _gained(today, context, before, after),
    )


def hypervolume(curve: Frontier) -> float:
    """Area below a frontier's staircase, from zero interactivity and throughput.

    >>> hypervolume(Frontier(name="f", columns={"tokens_per_s_user": np.array([1.0, 3.0]),
    ...                                         "tokens_per_s_gpu": np.array([5.0, 2.0])}))
    9.0
    """
    return float(np.sum(np.diff(curve.interactivity, prepend=0.0) * curve.throughput)) if len(curve) else 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Gap:
    """Where one frontier misses points of another: its throughput at each, and the moves to it, NaN past its end.

    distance: by what share it must grow on both axes to attain each. by: the point that serves each; the number of
    points past the end.
    """

    missed: npt.NDArray[np.intp]
    attained: npt.NDArray[Any]
    vertical: npt.NDArray[Any]
    horizontal: npt.NDArray[Any]
    distance: npt.NDArray[Any]
    by: npt.NDArray[np.intp]


def gap(points: Frontier, other: Frontier, rtol: float) -> Gap:
    """Which points `other` does not attain, with a slack of rtol in both directions."""
    nothing, every = np.full(len(points), np.nan), np.arange(len(points))
    if not len(points) or not len(other):
        return Gap(missed=every, attained=nothing, vertical=nothing, horizontal=nothing, distance=nothing, by=every * 0)
    x, enough = points.interactivity, points.throughput * (1 - rtol)
    by = other.index_at(x * (1 - rtol))
    attained = np.append(other.throughput, np.nan)[by]
    reach = np.searchsorted(-other.throughput, -enough, side="right") - 1
    across = np.where(reach >= 0, other.interactivity[reach], np.nan)
    return Gap(
        missed=np.flatnonzero(~(attained >= enough)),
        attained=attained,
        vertical=attained / points.throughput - 1,
        horizontal=across / x - 1,
        distance=np.min(np.maximum(*(np.divide.outer(a, b) for a, b in _axes(points, other))), axis=1) - 1,
        by=by,
    )


def _axes(a: Frontier, b: Frontier) -> tuple[tuple[Any, Any], tuple[Any, Any]]:
    return (a.interactivity, b.interactivity), (a.throughput, b.throughput)


def _lost(today: Today, before: Frontier, after: Frontier) -> list[PointMove]:
    """Stored points that today's frontier does not attain."""
    found = gap(before, after, today.rtol)
    moves = []
    for i in found.missed:
        kind, why = today.fate(int(before.columns["row"][i]))
        moves.append(
            PointMove(
                kind=kind,
                tokens_per_s_user=float(before.interactivity[i]),
                before=float(before.throughput[i]),
                after=_known(found.attained[i]),
                vertical=_known(found.vertical[i]),
                horizontal=_known(found.horizontal[i]),
                distance=_known(-found.distance[i]),
                old_layout=layout_text(before.point(int(i))),
                new_layout=_layout_at(after, int(found.by[i])),
                why=why,
            )
        )
    return moves


def _gained(today: Today, context: int, before: Frontier, after: Frontier) -> list[PointMove]:
    """Today's points that the stored frontier does not attain."""
    found = gap(after, before, today.rtol)
    moves = []
    for i in found.missed:
        point = after.point(int(i))
        moves.append(
            PointMove(
                kind="better",
                tokens_per_s_user=float(after.interactivity[i]),
                before=_known(found.attained[i]),
                after=float(after.throughput[i]),
                vertical=_known(1 / (1 + found.vertical[i]) - 1),
                horizontal=_known(1 / (1 + found.horizontal[i]) - 1),
                distance=_known(found.distance[i]),
                old_layout=_layout_at(before, int(found.by[i])),
                new_layout=layout_text(point),
                why=today.gain(context, point),
            )
        )
    return moves


def _layout_at(curve: Frontier, index: int) -> str:
    return layout_text(curve.point(index)) if index < len(curve) else "-"


def _known(value: Any) -> float | None:
    return float(value) if np.isfinite(value) else None


# --- What changed since ----------------------------------------------------------------------------------------------


def _counts(baseline: Baseline, result: SweepResult) -> list[CountMove]:
    """Families of which another number of layouts runs."""
    return [
        CountMove(family=key.removeprefix("runs."), before=int(was), after=int(now))
        for key, now in stored.runs(result).items()
        if (was := baseline.header.get(key, "0")) != now
    ]


def _inputs(baseline: Baseline, planned: Plan) -> list[InputChange]:
    """Input files with other content, modules of the engine with other text, other versions."""
    now = stored.provenance(planned)
    found = []
    for part in ("model", "machine", "timing"):
        if baseline.header.get(f"digest.{part}") != now[f"digest.{part}"]:
            what = _changes(baseline, planned, part) or ["no value; its sources, or its description"]
            found.append(InputChange(name=_file(part, getattr(planned.sweep, part)), what=what))
    was, is_now = (
        {key.removeprefix("code."): text for key, text in values.items() if key.startswith("code.")}
        for values in (baseline.header, now)
    )
    if modules := changed_modules(was, is_now):
        found.append(InputChange(name="code", what=modules))
    versions = {"helix_sim": __version__, "numpy": np.__version__}
    what = [f"{name} {baseline.header[name]} → {now}" for name, now in versions.items() if baseline.header[name] != now]
    return [*found, InputChange(name="versions", what=what)] if what else found


def _file(kind: str, asked: str) -> str:
    is_path = "/" in asked or asked.endswith((".yaml", ".yml"))
    return asked if is_path else f"{FOLDERS[kind]}/{asked}.yaml"


def _different(baseline: Baseline, now: Mapping[str, str], part: str) -> list[str]:
    keys = dict.fromkeys(key for key in (*baseline.header, *now) if key.startswith(f"{part}."))
    return [key for key in keys if baseline.header.get(key) != now.get(key)]


def _changes(baseline: Baseline, planned: Plan, part: str) -> list[str]:
    """Values of an input that are not what they were, a line each."""
    now = stored.provenance(planned)
    return [
        f"{key.removeprefix(f'{part}.')}: {baseline.header.get(key, 'default')} → {now.get(key, 'default')}"
        for key in _different(baseline, now, part)
    ]
