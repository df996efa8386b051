"""What a notebook shows of a record, a step, a frontier or a sweep: a table with units and sources, or a plot."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from functools import singledispatch
from html import escape
from typing import Any

from helix_sim.answers.compare import Compared
from helix_sim.answers.explain import Explanation
from helix_sim.answers.recommendation import Recommendation
from helix_sim.core.display import Rows
from helix_sim.core.units import GIGA, format_size
from helix_sim.search.pareto import Frontier
from helix_sim.search.sweep import SweepResult
from helix_sim.specs.setting import Setting
from helix_sim.specs.values import Record
from helix_sim.step import Step, op_rows

MOST_ROWS = 60
"""Rows of a table that are shown."""


@singledispatch
def html_of(shown: object) -> str:
    """An object as HTML: a table or a plot where there is one for its type, its repr otherwise."""
    return f"<pre>{escape(repr(shown))}</pre>"


@html_of.register
def _(shown: Record) -> str:
    rows = list(_fields(shown))
    return _table(f"{type(shown).__name__} {getattr(shown, 'name', '')}", ("field", "value", "unit", "source"), rows)


@html_of.register
def _(shown: Setting) -> str:
    parts = (shown.model, shown.machine, shown.timing, shown.precision)
    return "".join(html_of(part) for part in parts)


@html_of.register
def _(shown: Step) -> str:
    if any(getattr(value, "ndim", 0) for value in (shown.ttl_s, shown.context)):
        return f"<pre>{escape(repr(shown))}</pre>"
    names = ("op", "binds", "µs", "hidden µs", "share", "GFLOP", "weights MB", "KV MB", "links MB")
    scales = {"seconds": 1e6, "hidden_s": 1e6, "share": 1, "flops": 1e-9}
    scales |= dict.fromkeys(("weight_bytes", "kv_bytes", "link_bytes"), 1e-6)
    rows = [
        [row["op"], row["binds"], *(float(row[name]) * scale for name, scale in scales.items())]
        for row in op_rows(shown)
        if row["seconds"]
    ]
    memory, title = shown.memory, f"{shown.setting!r}: {shown.layout}, {format_size(float(shown.context))} tokens"
    seen = (
        f"TTL {float(shown.ttl_s) * 1e3:.4g} ms · {float(shown.tokens_per_s_user):.4g} tokens/s/user · "
        f"{float(shown.tokens_per_s_gpu):.4g} tokens/s/GPU · {float(memory.resident_bytes) / GIGA:.4g} of "
        f"{float(memory.fillable) / GIGA:.4g} GB on the fullest GPU"
    )
    return _table(title, names, rows, seen)


@html_of.register
def _(shown: Frontier) -> str:
    if not len(shown):
        return f"<p>{escape(shown.name)}: no layout runs</p>"
    from helix_sim.output.plot import one_frontier, svg_text

    return svg_text(one_frontier(shown))


@html_of.register
def _(shown: SweepResult) -> str:
    from helix_sim.output.plot import pareto, svg_text

    contexts = [context for context, found in shown.frontiers.items() if any(map(len, found.values()))]
    drawn = [svg_text(pareto(shown, context)) for context in contexts]
    dropped: dict[str, int] = {}
    for counts in shown.dropped.values():
        for reason, count in counts.items():
            dropped[reason] = dropped.get(reason, 0) + count
    table = _table(f"{shown.layouts:,} layouts, of which dropped", ("reason", "layouts"), list(dropped.items()))
    return "".join([*drawn, table])


@html_of.register
def _(shown: Rows) -> str:
    names = list(dict.fromkeys(name for row in shown for name in row))
    return _table("", names, [[row.get(name, "") for name in names] for row in shown])


@html_of.register
def _(shown: Compared) -> str:
    remarks = "".join(f"<p>{escape(text)}</p>" for text in shown.remarks)
    return html_of(shown.rows()) + remarks


@html_of.register
def _(shown: Explanation) -> str:
    return html_of(shown.step)


@html_of.register
def _(shown: Recommendation) -> str:
    if not shown.choices:
        return f"<pre>{escape(repr(shown))}</pre>"
    names = (*("layout", "widths", "GPUs", "users", "TTL ms", "tokens/s/GPU"),
             *("lost", "$/M tokens", "J/token", "stopped by", "starts on"))  # fmt: skip
    rows = [
        (each.title, str(each.step.layout), int(each.step.layout.gpus), int(each.step.layout.users),
         float(each.step.ttl_s) * 1e3, float(each.step.tokens_per_s_gpu), each.throughput_lost,
         float(each.step.usd_per_million_tokens), float(each.step.joules_per_token), each.stopped_by,
         ", ".join(each.stacks))
        for each in shown.choices
    ]  # fmt: skip
    return _table(repr(shown).strip("<>"), names, rows)


def _fields(record: Record, path: str = "") -> Iterator[tuple[str, Any, str, str]]:
    """(place, value, unit, source) of each value in a record; quantities with their sources."""
    for name, field in type(record).model_fields.items():
        value = getattr(record, name)
        unit = re.search(r"\[([^\]]*)\]$", field.description or "")
        yield from _values(f"{path}{name}", value, unit[1] if unit else "")


def _values(place: str, value: Any, unit: str) -> Iterator[tuple[str, Any, str, str]]:
    if isinstance(value, Record) and {"value", "source"} <= set(type(value).model_fields):
        yield place, value.value, unit, value.source  # type: ignore[attr-defined]
    elif isinstance(value, Record):
        yield from _fields(value, f"{place}.")
    elif isinstance(value, dict):
        for key, each in value.items():
            yield from _values(f"{place}.{key}", each, unit)
    elif isinstance(value, list | tuple) and any(isinstance(each, Record) for each in value):
        for index, each in enumerate(value):
            yield from _values(f"{place}.{index}", each, unit)
    elif value is not None:
        yield place, value, unit, ""


def _table(title: str, names: Sequence[str], rows: Sequence[Sequence[Any]], below: str = "") -> str:
    """A table of any text, of which each cell is escaped."""
    head = "".join(f"<th>{escape(name)}</th>" for name in names)
    body = "".join(f"<tr>{''.join(f'<td>{_cell(value)}</td>' for value in row)}</tr>" for row in rows[:MOST_ROWS])
    more = f"<p>and {len(rows) - MOST_ROWS} rows more</p>" if len(rows) > MOST_ROWS else ""
    caption = f"<p><b>{escape(title)}</b></p>"
    return f"{caption}<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>{more}<p>{escape(below)}</p>"


def _cell(value: Any) -> str:
    return escape(f"{value:.4g}" if isinstance(value, float) else str(value))
