"""A gate's verdicts in words: sentences and tables, once, and from them text for a terminal, Markdown and JUnit XML."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any
from xml.etree import ElementTree

from helix_sim.core import escape
from helix_sim.core.units import format_size
from helix_sim.gate.blame import TermMove
from helix_sim.gate.regress import CurveCheck, PointMove, Verdict

MOST_ROWS = 8
"""Rows of a table; the JSON has all of them."""

KINDS = ("slower", "infeasible", "unsearched", "better")


@dataclass(frozen=True, slots=True, kw_only=True)
class Table:
    """A titled table of text; a column whose name starts with > is aligned right."""

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]


def headline(verdict: Verdict) -> str:
    """Whether a sweep's curves held; if not: how many moved, what did it, and what changed, in a few sentences."""
    name, count = verdict.sweep, len(verdict.curves)
    if verdict.held:
        kept = f"; ops moved beside them ({_names(verdict.terms)})" if verdict.terms or verdict.counts else ""
        return f"{name}: held; {count} curves within {verdict.rtol:g} of the baseline of {verdict.date}{kept}"
    moved = verdict.moved_curves
    largest = max((value for curve in moved if (value := curve.largest("distance")) is not None), key=abs, default=None)
    far = f", by up to {_percent(largest)}" if largest is not None else ""
    what = f"{len(moved)} of {count} curves{far}" if moved else "no curve, but what its probes or its search rest on"
    return f"{name}: moved: {what}. {_cause(verdict)}"


def _cause(verdict: Verdict) -> str:
    moved = f"Moved most: {_names(verdict.terms)}. " if verdict.terms else "No op's time or memory term moved. "
    changes = "; ".join(f"{change.name} ({', '.join(change.what[:4])})" for change in verdict.inputs)
    return moved + (f"Changed since: {changes}." if changes else "No input file and no module of the engine changed.")


def _names(terms: Iterable[TermMove]) -> str:
    return ", ".join(term.label for term in list(terms)[:3]) or "the count of layouts that run"


def tables(verdict: Verdict) -> list[Table]:
    """What a person needs to judge a failure: curves, points, terms, layouts that run, inputs. None where all held."""
    every = [
        _curve_table(verdict),
        _point_table(verdict),
        _term_table(verdict),
        _count_table(verdict),
        _input_table(verdict),
    ]
    moved = bool(verdict.moved_curves or verdict.terms or verdict.counts)
    return [table for table in every if table.rows] if moved else []


def _curve_table(verdict: Verdict) -> Table:
    kinds = [f">{kind}" for kind in KINDS]
    columns = ("context", "curve", ">points", ">hypervolume", ">move", ">vertical", ">horizontal", *kinds)
    return Table(title="curves that moved", columns=columns, rows=[_curve_row(curve) for curve in verdict.moved_curves])


def _curve_row(curve: CurveCheck) -> list[str]:
    moves = [_percent(curve.largest(direction)) for direction in ("distance", "vertical", "horizontal")]
    points = f"{len(curve.before)} → {len(curve.after)}"
    counts = [str(curve.count(kind) or "") for kind in KINDS]
    return [format_size(curve.context), curve.curve, points, _percent(curve.hypervolume_change), *moves, *counts]


def _point_table(verdict: Verdict) -> Table:
    columns = ("curve", "what", ">tokens/s/user", ">tokens/s/GPU was", ">is", ">move", "layout was", "layout is", "why")
    moves = _worst((curve, move) for curve in verdict.moved_curves for move in curve.moves)
    shown = f"the {len(moves)} points that moved most" if len(moves) > 1 else "the point that moved"
    return Table(title=shown, columns=columns, rows=[_point_row(curve, move) for curve, move in moves])


def _worst(moves: Iterable[tuple[CurveCheck, PointMove]]) -> list[tuple[CurveCheck, PointMove]]:
    """The largest moves first, but one of every kind and of every curve before any more."""
    ranked = sorted(moves, key=lambda item: -abs(item[1].distance or float("inf")))
    kinds = {move.kind: (curve, move) for curve, move in reversed(ranked)}
    curves = {(curve.context, curve.curve): (curve, move) for curve, move in reversed(ranked)}
    first = [*kinds.values(), *curves.values(), *ranked]
    return list({id(move): (curve, move) for curve, move in first}.values())[:MOST_ROWS]


def _point_row(curve: CurveCheck, move: PointMove) -> list[str]:
    before, after = (f"{value:.4g}" if value is not None else "out of reach" for value in (move.before, move.after))
    values = [f"{move.tokens_per_s_user:.4g}", before, after, _percent(move.distance)]
    return [curve.curve, move.kind, *values, move.old_layout, move.new_layout, move.why]


def _term_table(verdict: Verdict) -> Table:
    columns = ("op or memory term", ">was", ">is", "unit", ">change", ">share of the whole", ">layouts", "most at")
    return Table(
        title="terms that moved", columns=columns, rows=[_term_row(term) for term in verdict.terms[:MOST_ROWS]]
    )


def _term_row(term: TermMove) -> list[str]:
    change = _percent(term.after / term.before - 1) if term.before else "new"
    values = [f"{value:,.6g}" for value in (term.before, term.after)]
    return [term.label, *values, term.unit, change, _percent(term.share), f"{term.layouts} of {term.of}", term.layout]


def _count_table(verdict: Verdict) -> Table:
    rows = [[c.family, f"{c.before:,}", f"{c.after:,}", f"{c.after - c.before:+,}"] for c in verdict.counts]
    return Table(title="layouts that run", columns=("family", ">was", ">is", ">change"), rows=rows)


def _input_table(verdict: Verdict) -> Table:
    rows = [[change.name, line] for change in verdict.inputs for line in change.what]
    return Table(title="changed since the baseline", columns=("input", "what"), rows=rows)


def _percent(value: float | None) -> str:
    """A relative move, with as many digits as it takes to see it."""
    if value is None:
        return "-"
    return f"{value:+.2%}" if abs(value) >= 1e-4 or value == 0 else f"{value * 100:+.1e}%"


# --- Markdown --------------------------------------------------------------------------------------------------------


def markdown(verdicts: Sequence[Verdict]) -> str:
    """Every verdict for a pull-request comment or a job summary."""
    held = all(verdict.held for verdict in verdicts)
    lines = [f"## Pareto curves: {'held' if held else 'moved'}", ""]
    for verdict in verdicts:
        lines += [f"{'✅' if verdict.held else '❌'} {escape.markdown(headline(verdict))}", ""]
        for table in tables(verdict):
            lines += [f"**{table.title}**", "", *_markdown_rows(table), ""]
    if not held:
        lines += [
            "If that is meant, write the baselines anew with `helix-sim regress --baseline DIR --update`; say why."
        ]
    return "\n".join(lines).rstrip() + "\n"


def _markdown_rows(table: Table) -> list[str]:
    names = " | ".join(name.removeprefix(">") for name in table.columns)
    rule = "|".join("---:" if name.startswith(">") else "---" for name in table.columns)
    rows = (f"| {' | '.join(map(escape.markdown, row))} |" for row in table.rows)
    return [f"| {names} |", f"|{rule}|", *rows]


# --- Text and JUnit --------------------------------------------------------------------------------------------------


def text(verdict: Verdict) -> str:
    """A verdict as plain lines."""
    lines = [headline(verdict)]
    for table in tables(verdict):
        lines += ["", f"{table.title}:"]
        lines += [
            "  "
            + "; ".join(f"{n.removeprefix('>')} {cell}" for n, cell in zip(table.columns, row, strict=True) if cell)
            for row in table.rows
        ]
    return "\n".join(lines)


def junit(verdicts: Sequence[Verdict]) -> str:
    """JUnit XML: a suite a sweep, a case a curve, one for the probes and one for the layouts that run."""
    suites = ElementTree.Element("testsuites", name="helix-sim regress")
    for verdict in verdicts:
        cases = _cases(verdict)
        failures = sum(bool(message) for _, message, _ in cases)
        suite = ElementTree.SubElement(
            suites, "testsuite", name=escape.xml_text(verdict.sweep), tests=str(len(cases)), failures=str(failures),
            errors="0",
        )  # fmt: skip
        for name, message, details in cases:
            of, name, message, details = map(escape.xml_text, (verdict.sweep, name, message, details))
            case = ElementTree.SubElement(suite, "testcase", classname=of, name=name)
            if message:
                ElementTree.SubElement(case, "failure", message=message, type="moved").text = details
    ElementTree.indent(suites)
    return ElementTree.tostring(suites, encoding="unicode", xml_declaration=True) + "\n"


def _cases(verdict: Verdict) -> list[tuple[str, str, str]]:
    """(name, message of a failure or nothing, details) of each case."""
    whole = "" if verdict.held else text(verdict)
    cases = []
    for curve in verdict.curves:
        far, area = _percent(curve.largest("distance")), _percent(curve.hypervolume_change)
        message = "" if curve.held else f"moved by {far}, hypervolume by {area}; {_cause(verdict)}"
        details = "" if curve.held else text(replace(verdict, curves=[curve]))
        cases.append((f"{curve.curve} at {format_size(curve.context)}", message, details))
    if not verdict.curves_only:
        cases += [
            ("probes", f"moved: {_names(verdict.terms)}" if verdict.terms else "", whole),
            ("layouts that run", ", ".join(" ".join(row) for row in _count_table(verdict).rows), whole),
        ]
    return cases


def record(verdicts: Sequence[Verdict]) -> dict[str, Any]:
    """Every verdict as plain data, for JSON."""
    return {"held": all(verdict.held for verdict in verdicts), "sweeps": [verdict.record() for verdict in verdicts]}
