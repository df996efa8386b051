"""A gate's verdicts into files: Markdown, JUnit XML, JSON, and an overlay of stored and today's curves."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from helix_sim.core.escape import file_stem
from helix_sim.core.files import write_json, write_text
from helix_sim.core.units import format_size
from helix_sim.gate import verdict as words
from helix_sim.gate.regress import CurveCheck, Verdict


def write(
    verdicts: Sequence[Verdict],
    *,
    markdown: Path | None = None,
    junit: Path | None = None,
    json_file: Path | None = None,
    out: Path | None = None,
) -> list[Path]:
    """Write what was asked for: single files, or all of them and the pictures into the folder `out`."""
    written = []
    for path in (markdown, out and out / "regress.md"):
        if path:
            written.append(write_text(path, words.markdown(verdicts)))
    for path in (junit, out and out / "regress.xml"):
        if path:
            written.append(write_text(path, words.junit(verdicts)))
    for path in (json_file, out and out / "regress.json"):
        if path:
            written.append(write_json(path, words.record(verdicts)))
    return written + ([path for verdict in verdicts for path in draw(verdict, out)] if out else [])


def draw(verdict: Verdict, folder: Path) -> list[Path]:
    """A picture of each context: stored curves and today's, one over the other."""
    from helix_sim.output import plot

    written = []
    for context in dict.fromkeys(curve.context for curve in verdict.curves):
        shown = _shown(verdict, context)
        size, state = format_size(context), "held" if verdict.held else "moved"
        figure = plot.overlay(
            {curve.curve: (curve.before, curve.after) for curve in shown},
            {curve.curve: [(m.tokens_per_s_user, m.distance) for m in curve.moves if m.distance] for curve in shown},
            f"{verdict.title} at {size} tokens: {state}",
            f"stored {verdict.date}",
        )
        written += plot.save(figure, folder / file_stem(f"{verdict.sweep}-{size}"))
    return written


def _shown(verdict: Verdict, context: int) -> list[CurveCheck]:
    """The sweep's groups, or if it has none all of its families; and families that moved where no group did."""
    here = [curve for curve in verdict.curves if curve.context == context]
    groups = [curve for curve in here if curve.group] or here
    return groups if any(not curve.held for curve in groups) else groups + [c for c in here if not c.held]
