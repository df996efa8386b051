"""A sweep into a folder: frontiers or every point, the picture, and a summary of what was searched and dropped."""

from __future__ import annotations

import contextlib
import time
from pathlib import Path
from typing import Any

from helix_sim import __version__
from helix_sim.load import load_clock
from helix_sim.plan import plan
from helix_sim.spec import Sweep
from helix_sim.sweep import Evaluated, SweepResult, run_plan
from helix_sim.tables import PointsWriter, write_csv, write_json, write_parquet
from helix_sim.units import format_size


def summarise(result: SweepResult) -> dict[str, Any]:
    """What a sweep searched, found and dropped, as plain data."""
    sweep, planned = result.sweep, result.plan
    curves = []
    for context in sweep.contexts:
        for name in (*sweep.families, *sweep.groups):
            curve = result.group(name, context)
            best = {
                "best_tokens_per_s_user": float(curve.interactivity[-1]),
                "best_tokens_per_s_gpu": float(curve.throughput[0]),
            }
            curves.append({"context": context, "curve": name, "points": len(curve), **(best if len(curve) else {})})
    by_reason: dict[str, int] = {}
    for reasons in result.dropped.values():
        for reason, count in reasons.items():
            by_reason[reason] = by_reason.get(reason, 0) + count
    return {
        "helix_sim": __version__,
        "sweep": sweep.name,
        "model": planned.model.name,
        "hardware": planned.hardware.name,
        "clock": planned.clock.name,
        "digests": planned.digests,
        "layouts": result.layouts,
        "layouts_that_run": result.layouts - sum(by_reason.values()),
        "dropped_by_reason": dict(sorted(by_reason.items(), key=lambda item: -item[1])),
        "dropped": result.dropped,
        "curves": curves,
    }


def explore(sweep: Sweep, out: Path, *, every_point: bool = False, progress: Any = None) -> dict[str, Any]:
    """Run a sweep, write its files into `out`, and return the summary that summary.json holds.

    every_point: write each layout that runs (points.parquet, points.csv), not the frontiers alone.
    progress: a rich.progress.Progress, or None for silence.
    """
    load_clock(sweep.clock)
    planned = plan(sweep)
    out.mkdir(parents=True, exist_ok=True)
    with contextlib.ExitStack() as stack:
        writer = stack.enter_context(PointsWriter(out, list(sweep.families))) if every_point else None
        bar = stack.enter_context(progress) if progress else None
        task = bar.add_task("layouts", total=planned.layouts) if bar else None

        def on_block(evaluated: Evaluated) -> None:
            if bar:
                bar.advance(task, evaluated.layouts)

        begun = time.perf_counter()
        result = run_plan(planned, on_block=on_block, on_points=writer.write if writer else None)
        seconds = time.perf_counter() - begun
    return _write(result, out, seconds, every_point)


def _write(result: SweepResult, out: Path, seconds: float, every_point: bool) -> dict[str, Any]:
    from helix_sim import plot

    frame = result.to_frame()
    files = [write_parquet(out / "frontier.parquet", frame), write_csv(out / "frontier.csv", frame)]
    if every_point:
        files += [out / "points.parquet", out / "points.csv"]
    for context in result.sweep.contexts:
        stem = "pareto" if len(result.sweep.contexts) == 1 else f"pareto-{format_size(context)}"
        files += plot.save(plot.pareto(result, context), out / stem)
    summary = summarise(result) | {"evaluation_s": seconds, "files": [path.name for path in files] + ["summary.json"]}
    write_json(out / "summary.json", summary)
    return summary
