"""A sweep into a folder: frontiers or every point, the picture, and a summary of what was searched and dropped."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from helix_sim.answers.explain import known
from helix_sim.core.errors import SpecError
from helix_sim.core.files import write_csv, write_json, write_parquet, write_points_csv
from helix_sim.core.text import said
from helix_sim.core.units import format_size
from helix_sim.core.version import __version__
from helix_sim.search.evaluated import Evaluated, Total
from helix_sim.search.executors import Task, execute, require_executor
from helix_sim.search.journal import Journal, told
from helix_sim.search.pareto import COSTS
from helix_sim.search.plan import LAYOUTS, Plan, plan
from helix_sim.search.sweep import SweepResult, result_of
from helix_sim.specs.machine import Machine
from helix_sim.specs.quantities import ANSWER_VERSION
from helix_sim.specs.sweep import Sweep


def summarise(result: SweepResult, usd_per_gpu_hour: float | None = None) -> dict[str, Any]:
    """What a sweep searched, found and dropped, as plain data; cost at a price in place of the machine's own."""
    sweep, planned, priced = result.sweep, result.plan, result.at_price(usd_per_gpu_hour)
    curves = []
    for context in sweep.contexts:
        for name in (*sweep.families, *sweep.groups):
            curve = priced.group(name, context)
            row = {"context": context, "curve": name, "points": len(curve)}
            if len(curve):
                row |= {
                    "best_tokens_per_s_user": float(curve.interactivity[-1]),
                    "best_tokens_per_s_gpu": float(curve.throughput[0]),
                    "least_usd_per_million_tokens": known(curve.columns["usd_per_million_tokens"][0]),
                    "least_joules_per_token": known(curve.columns["joules_per_token"][0]),
                }
            curves.append(row)
    by_reason: dict[str, int] = {}
    for reasons in result.dropped.values():
        for reason, count in reasons.items():
            by_reason[reason] = by_reason.get(reason, 0) + count
    return {
        "helix_sim": __version__,
        "answer_version": ANSWER_VERSION,
        "sweep": sweep.name,
        "model": planned.model.name,
        "machine": planned.machine.name,
        "timing": planned.timing.name,
        "digest": planned.digest,
        "digests": planned.digests,
        "families": list(sweep.families),
        "inputs": {kind: each.record() for kind, each in planned.inputs.items()},
        "remarks": planned.remarks,
        "layouts": result.layouts,
        "layouts_that_run": result.layouts - sum(by_reason.values()),
        "dropped_by_reason": dict(sorted(by_reason.items(), key=lambda item: -item[1])),
        "dropped": result.dropped,
        "curves": curves,
    }


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """How far a sweep is."""

    layouts: int
    layouts_in_all: int
    dropped: int
    frontier_points: int
    layouts_per_s: float
    seconds_left: float

    @property
    def dropped_share(self) -> float:
        """Share of the layouts so far that cannot run."""
        return self.dropped / max(self.layouts, 1)


OnProgress = Callable[[Progress], None]


def write_sweep(
    sweep: Sweep,
    out: Path,
    *,
    every_point: bool = False,
    plots: bool = True,
    executor: str = "auto",
    workers: int | None = None,
    scheduler: str | None = None,
    resume: bool = False,
    layouts_per_block: int | None = None,
    on_progress: OnProgress = lambda _: None,
    usd_per_gpu_hour: float | None = None,
    against: str | None = None,
) -> dict[str, Any]:
    """Run a sweep, write its files into `out`, and return the summary that summary.json holds, with the speed.

    A sweep of which no layout runs has a summary that says why, `layouts_that_run` 0, and no picture.

    every_point: write each layout that runs, not the frontiers alone: points/*.parquet, a file a block, and points.csv
    where they are no more than CSV_POINTS.
    plots: draw each context's curves, which takes longer than most searches.
    executor, workers, scheduler: who evaluates the blocks (executors.py). resume: go on with what a stopped run left.
    layouts_per_block: what is lost at most where the run is killed. No result depends on any of these.
    usd_per_gpu_hour: a price in place of the machine's own; it moves the column of cost alone.
    against: the column that pictures draw interactivity against, such as usd_per_million_tokens; as the sweep says
    unless given.
    """
    planned = plan(sweep)
    drawn = against_of(sweep, against, planned.machine.at_price(usd_per_gpu_hour))
    require_executor(executor)
    size = layouts_per_block or (LAYOUTS // 16 if every_point else LAYOUTS)
    with told(out), Journal(out, planned, points=every_point, layouts=size) as journal:
        complete = journal.begin(resume=resume)
        if complete is not None:
            if complete.get("usd_per_gpu_hour") != usd_per_gpu_hour:
                raise SpecError([f"--usd-per-gpu-hour: {out} is complete at another price; leave --resume out"])
            return complete
        total, begun = Total(), time.perf_counter()
        done = set(journal.done())
        for index in done:
            total.add(journal.load(index))
        before = total.sum.layouts
        tasks = [
            Task(index=index, block=block, part=journal.part(index))
            for index, block in enumerate(journal.blocks)
            if index not in done
        ]
        for index, outcome in execute(executor, planned, tasks, workers=workers, scheduler=scheduler):
            journal.save(index, outcome)
            total.add(outcome.evaluated)
            on_progress(_progress(planned, total.sum, before, time.perf_counter() - begun))
        seconds = time.perf_counter() - begun
        result = result_of(planned, total.sum)
        summary = _write(result, out, every_point, drawn if plots else None, usd_per_gpu_hour)
        journal.finish()
    ran = (planned.layouts - before) / seconds
    share = summary["layouts_that_run"] / planned.layouts
    speed = {"evaluation_s": seconds, "layouts_per_s": ran, "layouts_that_run_per_s": ran * share}
    return summary | speed


def _progress(planned: Plan, found: Evaluated, before: int, seconds: float) -> Progress:
    """Progress after `seconds`, of which nothing went into the `before` layouts of an earlier run."""
    speed = (found.layouts - before) / max(seconds, 1e-9)
    return Progress(
        layouts=found.layouts,
        layouts_in_all=planned.layouts,
        dropped=found.dropped_layouts,
        frontier_points=found.frontier_points,
        layouts_per_s=speed,
        seconds_left=(planned.layouts - found.layouts) / max(speed, 1e-9),
    )


def against_of(sweep: Sweep, against: str | None, machine: Machine) -> str:
    """The column that interactivity is drawn against: the given one, or the sweep's, or throughput.

    SpecError where it is none of them, or a cost of which the machine's file says nothing.
    """
    known = ("tokens_per_s_gpu", *COSTS)
    chosen = against or sweep.against or known[0]
    if chosen not in known:
        raise SpecError([f"against {said(chosen)}: it is none of {', '.join(known)}"])
    if problem := machine.lacks(chosen):
        raise SpecError([f"against {chosen}: {problem}"])
    return chosen


CSV_POINTS = 10**7
"""Points up to which they are written as CSV, too: beyond, only Parquet is read by anything in reasonable time."""


def rows_of_points(folder: Path) -> int:
    """Layouts in a folder of Parquet files, by their footers."""
    import pyarrow.parquet as pq

    return sum(pq.read_metadata(part).num_rows for part in folder.glob("part-*.parquet"))


def _write(result: SweepResult, out: Path, every_point: bool, drawn: str | None, price: float | None) -> dict[str, Any]:
    """The files of a result, its pictures against the column `drawn`, or none."""
    priced = result.at_price(price)
    frame = priced.to_frame()
    files = [write_parquet(out / "frontier.parquet", frame), write_csv(out / "frontier.csv", frame)]
    if every_point:
        (out / "points").mkdir(exist_ok=True)
        files.append(out / "points")
        (out / "points.csv").unlink(missing_ok=True)
        if rows_of_points(out / "points") <= CSV_POINTS:
            files.append(write_points_csv(out / "points.csv", out / "points"))
    if drawn:
        files += _draw(priced, out, drawn)
    points: dict[str, Any] = {"written_points": "all" if every_point else "frontier"}
    points |= {"usd_per_gpu_hour": price} if price is not None else {}
    summary = summarise(result, price) | points | {"files": [path.name for path in files] + ["summary.json"]}
    write_json(out / "summary.json", summary)
    return summary


def _draw(result: SweepResult, out: Path, against: str) -> list[Path]:
    """A picture of each context's curves."""
    from helix_sim.output import plot

    files = []
    for context in result.sweep.contexts:
        if not any(len(curve) for curve in result.frontiers[context].values()):
            continue  # nothing runs there: the summary says why
        stem = "pareto" if len(result.sweep.contexts) == 1 else f"pareto-{format_size(context)}"
        files += plot.save(plot.pareto(result, context, against), out / stem)
    return files
