"""A sweep as one HTML file that needs no network: its frontiers to hover over and compare, and where they come from."""

from __future__ import annotations

import base64
import gzip
import importlib.resources
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from helix_sim.core.errors import SpecError
from helix_sim.core.escape import html_data
from helix_sim.core.files import plain, write_text
from helix_sim.core.layout import AXES, Layout
from helix_sim.core.units import GIGA, MICRO, format_size
from helix_sim.core.version import __version__
from helix_sim.feasibility import Reason
from helix_sim.output.sweep_folder import against_of
from helix_sim.paper import reproduce
from helix_sim.search.pareto import COSTS, Frontier
from helix_sim.search.plan import Plan, plan
from helix_sim.search.sweep import SweepResult, run_plan
from helix_sim.specs.load import load_machine, load_sweep, load_timing
from helix_sim.specs.machine import Machine
from helix_sim.specs.sweep import Sweep
from helix_sim.specs.values import Record
from helix_sim.stacks.rules import StackRule
from helix_sim.step import Step, evaluate_step, op_rows
from helix_sim.timing.roofline import TERMS

DARK_GROUND = "#15181d"
"""The page's background where the reader prefers dark."""

LEAST_CONTRAST = 4.5
"""Of a line and its label against their background [WCAG 2.2, 1.4.3]."""

SYMBOLS = {
    "o": "circle",
    "s": "square",
    "p": "pentagon",
    "^": "triangle-up",
    "v": "triangle-down",
    "D": "diamond",
    "P": "cross",
    "X": "x",
    ".": "circle",
}
"""matplotlib's markers, which plot.MARKERS gives each family, by plotly's names."""


def write_report(
    sweep: Sweep,
    out: Path,
    *,
    against: str | None = None,
    usd_per_gpu_hour: float | None = None,
    on_search: Callable[[str], None] = lambda _: None,
) -> dict[str, Any]:
    """Run a sweep and write its report to the file `out`; returns what was written, as plain data.

    against: the column that interactivity is drawn against when the page opens, such as usd_per_million_tokens; as the
    sweep says unless given. usd_per_gpu_hour: a price in place of the machine's own. on_search sees what is done now,
    for a progress line.
    """
    if out.is_dir():
        raise SpecError([f"--out: {out} is a folder; name a file, such as {out / 'report.html'}"])
    script = plotly_script()
    machine = load_machine(sweep.name_of("machine")).at_price(usd_per_gpu_hour)
    first = against_of(sweep, against, machine)
    on_search("layouts")
    result, claims = search(sweep)
    on_search("what each point's ops take")
    page = render(content(result.at_price(usd_per_gpu_hour), claims) | {"first_against": first}, script)
    write_text(out, page)
    return {
        "sweep": result.sweep.name,
        "file": str(out),
        "bytes": len(page.encode()),
        "layouts": result.layouts,
        "points": sum(len(curve) for by_family in result.frontiers.values() for curve in by_family.values()),
        "claims": [claim["id"] for claim in claims],
        "dropped_by_reason": {row["reason"]: row["total"] for row in dropped_by_reason(result)},
    }


def plotly_script() -> str:
    """The plotting library's own script, to be written into the page."""
    try:
        from plotly.offline import get_plotlyjs
    except ImportError:
        raise SpecError(["the report draws with plotly, which is not here; pip install 'helix-sim[report]'"]) from None
    return str(get_plotlyjs())


def search(sweep: Sweep) -> tuple[SweepResult, list[dict[str, Any]]]:
    """What a sweep finds, and the paper's claims about it where it is one of the paper's (else none)."""
    timing = load_timing(sweep.name_of("timing"))
    for key, name in reproduce.PAPER_SWEEPS.items():
        if load_sweep(name).model_copy(update={"timing": sweep.timing}) == sweep:
            searches = reproduce.search(timing)
            found = reproduce.claims(searches, timing, vary=False).claims
            return searches.on[key], [claim.record() for claim in found if key in claim.id.split("_")]
    return run_plan(plan(sweep)), []


def render(found: dict[str, Any], script: str) -> str:
    """The page: the template with the library and the data in it, the same bytes for the same input."""
    template = importlib.resources.files("helix_sim.output").joinpath("report.html").read_text(encoding="utf-8")
    text = json.dumps(html_data(found), ensure_ascii=False, separators=(",", ":"), default=plain)
    packed = base64.b64encode(gzip.compress(text.encode(), mtime=0)).decode()
    return template.replace("<!-- data -->", packed).replace("/* plotly */", script.replace("</script", "<\\/script"))


# --- What the page shows ---------------------------------------------------------------------------------------------


def _accepted(planned: Plan) -> list[dict[str, Any]]:
    """Mean tokens that a step yields, by drafts that the sweep tries, with their source; none without a draft."""
    if (drafter := planned.setting.drafter) is None:
        return []
    source, of = drafter.draft.acceptance.source, f"draft {drafter.draft.name}"
    return [
        {"of": of, "name": f"tokens of a step, draft_tokens {n}", "value": float(drafter.tokens(n)), "source": source}
        for n in planned.sweep.draft_counts
        if n
    ]


def content(result: SweepResult, claims: list[dict[str, Any]]) -> dict[str, Any]:
    """Everything the page shows, as plain data: curves with each point's ops, claims, dropped layouts, provenance."""
    planned, sweep = result.plan, result.sweep
    dropped = dropped_by_reason(result)
    return {
        "name": sweep.name,
        "description": sweep.description,
        "model": planned.model.name,
        "machine": planned.machine.name,
        "layouts": result.layouts,
        "run": result.layouts - sum(row["total"] for row in dropped),
        "curves": [_looks(result, name) for name in (*sweep.families, *sweep.groups)],
        "against": list(_drawn_against(planned.machine)),
        "first_against": sweep.against or "tokens_per_s_gpu",
        "terms": TERMS,
        "contexts": [_context(result, context) for context in sweep.contexts],
        "claims": claims,
        "dropped": dropped,
        "provenance": provenance(planned),
        "constants": [
            {"of": f"{kind} {record.name}", "name": path, "value": value, "source": source}
            for kind, record in (("machine", planned.machine), ("timing", planned.timing))
            for path, value, source in sourced(record)
        ]
        + _accepted(planned),
    }


def _drawn_against(machine: Machine) -> Iterator[dict[str, Any]]:
    """What a point may be drawn against: throughput, and costs that are known; these are `over` the throughput."""
    from helix_sim.output.plot import DRAWN

    for column, label in DRAWN.items():
        over = float(getattr(machine, column)(1.0)) if column in COSTS else None
        if not machine.lacks(column):
            yield {"column": column, "label": label, "unit": label.partition("(")[2].rstrip(")"), "over": over}


def _looks(result: SweepResult, name: str) -> dict[str, Any]:
    """Title, colours and marker of a family, or of a group of families."""
    from helix_sim.output.plot import COLOURS, MARKERS, looks_of

    looks = looks_of(result.sweep.families)
    family = result.sweep.families.get(name)
    members = result.sweep.groups.get(name, [])
    own = looks.get(name) or looks[members[0]]
    colour = COLOURS.get(name, own[0])
    titles = [result.sweep.families[member].title for member in members]
    return {
        "name": name,
        "title": family.title if family else f"best of {name}",
        "members": titles,
        "colour": colour,
        "dark": lightened(colour),
        "symbol": SYMBOLS[MARKERS.get(name, own[1])],
        "group": family is None,
    }


def lightened(colour: str, ground: str = DARK_GROUND) -> str:
    """A colour mixed with as little white as shows it against a dark ground.

    >>> lightened("#D55E00"), lightened("#404040") > "#404040"
    ('#d55e00', True)
    """
    rgb = [int(colour[i : i + 2], 16) for i in (1, 3, 5)]
    for percent in range(0, 101, 5):
        mixed = [round(part + (255 - part) * percent / 100) for part in rgb]
        found = "#{:02x}{:02x}{:02x}".format(*mixed)
        if contrast(found, ground) >= LEAST_CONTRAST:
            return found
    return "#ffffff"


def contrast(one: str, other: str) -> float:
    """Contrast ratio of two colours [WCAG 2.2].

    >>> contrast("#000000", "#ffffff")
    21.0
    """
    dark, light = sorted((_luminance(one), _luminance(other)))
    return round((light + 0.05) / (dark + 0.05), 6)


def _luminance(colour: str) -> float:
    parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return sum(weight * part for weight, part in zip((0.2126, 0.7152, 0.0722), linear, strict=True))


def _context(result: SweepResult, context: int) -> dict[str, Any]:
    """Every curve at one context: families with each point's ops, groups with the layouts at their knees."""
    families = {name: family_points(result, name, context) for name in result.sweep.families}
    groups = {name: _group_points(result.group(name, context)) for name in result.sweep.groups}
    return {"tokens": context, "label": format_size(context), "curves": families | groups}


def _group_points(curve: Frontier) -> dict[str, Any]:
    from helix_sim.output.plot import knees, short_label

    if not len(curve):
        return {"x": [], "y": [], "knees": []}
    labels = [{"at": index, "text": short_label(curve.point(index))} for index in knees(curve)]
    return {"x": _digits(curve.interactivity), "y": _digits(curve.throughput), "knees": labels}


def family_points(result: SweepResult, name: str, context: int) -> dict[str, Any]:
    """A family's frontier: its layouts, what a user sees of them, and the op table of each in µs."""
    curve, planned = result.frontiers[context][name], result.plan
    if not len(curve):
        return {"x": [], "y": []}
    steps = [_step(planned, curve.point(index), context) for index in range(len(curve))]
    tables = [op_rows(step) for step in steps]
    each = [float(step.accepted_tokens) for step in steps]  # an op's share of a token, as the TTL is a token's
    ops = [row["op"] for row in tables[0]]
    across = [[rows[i] for rows in tables] for i in range(len(ops))]
    return {
        "x": _digits(curve.interactivity),
        "y": _digits(curve.throughput),
        **{axis: curve.columns[axis].tolist() for axis in (*AXES, "gpus", "users", "id")},
        "ttl_ms": _digits(curve.columns["ttl_s"] * 1e3),
        "memory_GB": _digits(curve.columns["resident_bytes"] / GIGA),
        "to_fill_GB": _digits(float(step.memory.fillable) / GIGA for step in steps),
        "ops": ops,
        "us": [_digits([row["seconds"] / MICRO / n for row, n in zip(rows, each, strict=True)]) for rows in across],
        "hidden_us": [
            _digits([row["hidden_s"] / MICRO / n for row, n in zip(rows, each, strict=True)]) for rows in across
        ],
        "binds": [_letters([row["binds"] for row in rows]) for rows in across],
    }


def _step(planned: Plan, point: dict[str, Any], context: int) -> Step:
    layout = Layout(**{axis: point[axis] for axis in AXES})
    return evaluate_step(planned.setting, layout, context)


def _digits(values: Any) -> list[float]:
    """Six significant digits each: more than anyone reads, and half the size."""
    return [float(f"{value:.6g}") for value in values]


def _letters(binds: list[str]) -> str:
    """What binds each point, a character a point: the term's place in `terms`, or - for an op that takes no time."""
    return "".join(str(TERMS.index(term)) if term in TERMS else "-" for term in binds)


def dropped_by_reason(result: SweepResult) -> list[dict[str, Any]]:
    """Dropped layouts by their first reason, most first, each with the families that lost them."""
    rows = []
    for reason in (*Reason, *StackRule):
        by_family = {
            result.sweep.families[name].title: count
            for name, counts in result.dropped.items()
            if (count := counts.get(reason.name, 0))
        }
        if by_family:
            total = sum(by_family.values())
            rows.append({"reason": reason.name, "says": reason.title, "total": total, "families": by_family})
    return sorted(rows, key=lambda row: -row["total"])


def provenance(planned: Plan) -> dict[str, Any]:
    """What made the numbers: version, the inputs by name and digest, formats, and the published source of the model."""
    sweep = planned.sweep
    names = {
        "sweep": sweep.name,
        "model": planned.model.name,
        "machine": planned.machine.name,
        "timing": f"{planned.timing.name}: {planned.timing.description}",
        **({"draft": drafter.draft.name} if (drafter := planned.setting.drafter) else {}),
    }
    return {
        "version": __version__,
        "inputs": [{"kind": kind, "name": names[kind], "digest": mark} for kind, mark in planned.digests.items()],
        "model_source": planned.model.source,
        "precision": sweep.precision.model_dump(exclude_none=True),
        "searched": f"{sweep.searched_gpus} GPUs, batches up to {sweep.batch.last}, "
        f"contexts {', '.join(format_size(context) for context in sweep.contexts)}",
    }


def sourced(record: Record) -> Iterator[tuple[str, Any, str]]:
    """Every value of a record that names its source: its path, the value, the source.

    >>> from helix_sim.specs.load import load_timing
    >>> next(sourced(load_timing("paper")))[:2]
    ('kernel.latency_us', 3.5)
    """
    return _sourced(record.model_dump(), "")


def _sourced(content: dict[str, Any], path: str) -> Iterator[tuple[str, Any, str]]:
    for name, value in content.items():
        here = f"{path}.{name}" if path else name
        if isinstance(value, dict) and {"value", "source"} <= value.keys():
            yield here, value["value"], value["source"]
        elif isinstance(value, dict):
            yield from _sourced(value, here)
