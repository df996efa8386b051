"""Baselines: a sweep's frontiers and what they rest on, as one small text file that a pull request can review.

A CSV table below a header of `# key: value` lines. Its rows are every family's frontier, and a few probes: layouts
that run, between them, every op in every way that it can bind, whether or not a frontier uses them. Every row has what
a user sees of it; the probes, and a few points of each frontier, also have their terms: each op's time, and each kind
of memory.
"""

from __future__ import annotations

import csv
import io
import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from helix_sim.core.errors import SpecError
from helix_sim.core.escape import csv_cell, file_stem, text_of_cell
from helix_sim.core.files import write_text
from helix_sim.core.layout import AXES, LATER, NONE, Layout
from helix_sim.core.numeric import broadcast_columns
from helix_sim.core.text import said, shortened
from helix_sim.core.units import GIGA, MICRO
from helix_sim.core.version import __version__
from helix_sim.feasibility import memory_reason, shape_reasons
from helix_sim.gate.code_digests import code_digests, short_hash
from helix_sim.ops.attention import KV_BLOCK_TOKENS
from helix_sim.search.pareto import Frontier, frontier
from helix_sim.search.plan import Plan
from helix_sim.search.sweep import SweepResult
from helix_sim.specs.load import decoded, read_bytes
from helix_sim.specs.values import Record
from helix_sim.step import Step, evaluate_step

FORMAT = "1"
TITLE = "# Pareto frontiers of a sweep, as `helix-sim regress --update` found them."
COLUMNS = ("role", "context", "family", *AXES, "tokens_per_s_user", "tokens_per_s_gpu", "resident_GB", "terms")
KEYS = ("format", "helix_sim", "numpy", "date", "sweep", "digest.sweep", "memory_to_fill_GB", "terms", "rows", "check")
"""Keys that a header must have; the others are values of the inputs, digests of the code, and layouts that run."""

TERM_POINTS = 5
"""Points of each frontier, evenly spread, that are kept with their terms."""

PROBE_BATCHES = 7
"""Batch sizes among which probes are looked for, evenly spread over the sweep's list."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One stored layout: a point of a family's frontier, or a probe; `terms` in µs and GB, empty where not kept."""

    role: str
    context: int
    family: str
    layout: Layout
    tokens_per_s_user: float
    tokens_per_s_gpu: float
    resident_GB: float
    terms: Mapping[str, float]


@dataclass(frozen=True, slots=True, kw_only=True)
class Baseline:
    """A stored sweep: the header's provenance, and the rows."""

    header: Mapping[str, str]
    rows: Sequence[Row]

    def frontier(self, context: int, family: str) -> Frontier:
        """A family's stored frontier; its column `row` is the place of each point in `rows`."""
        chosen = [
            index
            for index, row in enumerate(self.rows)
            if (row.role, row.context, row.family) == ("frontier", context, family)
        ]
        if not chosen:
            return Frontier(name=family, columns={})
        rows = [self.rows[index] for index in chosen]
        x = stacked([row.layout for row in rows])
        columns = {
            "id": np.array(chosen),
            "row": np.array(chosen),
            **{name: np.asarray(column) for name, column in x.columns().items()},
            "gpus": x.gpus,
            "ttl_s": np.array([1 / row.tokens_per_s_user for row in rows]),
            "tokens_per_s_user": np.array([row.tokens_per_s_user for row in rows]),
            "tokens_per_s_gpu": np.array([row.tokens_per_s_gpu for row in rows]),
        }
        return frontier(columns, family)


def stacked(layouts: Sequence[Layout]) -> Layout:
    """Layouts of whole numbers as one layout of columns."""
    return Layout(**{name: np.array([getattr(x, name) for x in layouts], dtype=np.int64) for name in AXES})


# --- What a layout costs today ---------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """Layouts as the code of today evaluates them: a column each, NaN where a layout's shape cannot run."""

    flags: npt.NDArray[Any]
    tokens_per_s_user: npt.NDArray[Any]
    tokens_per_s_gpu: npt.NDArray[Any]
    resident_GB: npt.NDArray[Any]
    fillable_GB: npt.NDArray[Any]
    terms: Mapping[str, npt.NDArray[Any]]


def measure(planned: Plan, context: int, x: Layout) -> Measured:
    """A column of layouts, evaluated at a context: why each cannot run (0: it can), and what it costs."""
    count = len(np.atleast_1d(x.batch))
    flags = np.array(np.broadcast_to(shape_reasons(planned.model, planned.machine, x, context), (count,)))
    sound = np.flatnonzero(flags == 0)
    some = Layout(**{name: np.asarray(column)[sound] for name, column in x.columns().items()})
    step = evaluate_step(planned.setting, some, context)
    flags[sound] |= memory_reason(step.memory)

    def spread(values: Any) -> npt.NDArray[Any]:
        column = np.full(count, np.nan)
        column[sound] = values
        return column

    return Measured(
        flags=flags,
        tokens_per_s_user=spread(step.tokens_per_s_user),
        tokens_per_s_gpu=spread(step.tokens_per_s_gpu),
        resident_GB=spread(step.memory.resident_bytes / GIGA),
        fillable_GB=spread(step.memory.fillable / GIGA),
        terms={name: spread(values) for name, values in terms_of(step).items()},
    )


def terms_of(step: Step) -> dict[str, Any]:
    """What a step's memory and latency are sums of: memory.* in GB; op.*, and what overlap hides of it, in µs."""
    memory = {f"memory.{kind}": getattr(step.memory, kind) / GIGA for kind in ("weights", "kv_cache", "activations")}
    ops = {f"op.{name}": seconds / MICRO for name, seconds in step.seconds.items()}
    hidden = {
        f"hidden.{name}": step.layout.pp * step.repeats[name] * seconds / MICRO
        for name, seconds in step.hidden_s.items()
    }
    return memory | ops | hidden


# --- A sweep's result as a baseline ----------------------------------------------------------------------------------


def snapshot(result: SweepResult, source: str, date: str) -> Baseline:
    """The baseline of a sweep's result. source: the sweep as it was asked for, by name or path."""
    planned = result.plan
    rows: list[Row] = []
    for context, by_family in result.frontiers.items():
        for family, curve in by_family.items():
            if len(curve):
                x = Layout(**{name: curve.columns[name] for name in AXES})
                rows += _rows(planned, "frontier", context, [family] * len(curve), x, _spread_over(len(curve)))
        rows += _probes(planned, context)
    names = list(dict.fromkeys(name for row in rows for name in row.terms))
    header = {
        "format": FORMAT,
        "helix_sim": __version__,
        "numpy": np.__version__,
        "date": date,
        "sweep": source,
        **provenance(planned),
        "memory_to_fill_GB": f"{_memory_to_fill(planned, rows) / GIGA:.9g}",
        **runs(result),
        "terms": " ".join(names),
        "rows": str(len(rows)),
    }
    return Baseline(header=header, rows=rows)


def _memory_to_fill(planned: Plan, rows: Sequence[Row]) -> float:
    """The most that weights, KV cache and activations may fill of a GPU of these rows' layouts [B]."""
    if not rows:
        return planned.machine.memory_bytes
    contexts = np.array([row.context for row in rows])  # the fullest stage is another at another context
    step = evaluate_step(planned.setting, stacked([row.layout for row in rows]), contexts)
    return float(np.max(step.memory.fillable))


def _spread_over(count: int) -> set[int]:
    return set(np.linspace(0, count - 1, min(count, TERM_POINTS)).round().astype(int).tolist())


def _rows(
    planned: Plan, role: str, context: int, families: Sequence[str], x: Layout, with_terms: Iterable[int]
) -> list[Row]:
    """A row for each layout of a column; those of the given places with their terms."""
    today = measure(planned, context, x)
    kept = set(with_terms)
    return [
        Row(
            role=role,
            context=context,
            family=family,
            layout=Layout(**{name: int(column[i]) for name, column in x.columns().items()}),  # type: ignore[index]
            tokens_per_s_user=float(today.tokens_per_s_user[i]),
            tokens_per_s_gpu=float(today.tokens_per_s_gpu[i]),
            resident_GB=float(today.resident_GB[i]),
            terms={name: float(values[i]) for name, values in today.terms.items()} if i in kept else {},
        )
        for i, family in enumerate(families)
    ]


def provenance(planned: Plan) -> dict[str, str]:
    """What a frontier rests on: digests and values of each input, and digests of the code."""
    values: dict[str, str] = {f"digest.{part}": text for part, text in planned.digests.items()}
    for part in ("sweep", "model", "machine", "timing"):
        values |= {f"{part}.{key}": text for key, text in _flat(getattr(planned, part)).items()}
    return values | {f"code.{name}": text for name, text in code_digests().items()}


def _flat(record: Record) -> dict[str, str]:
    """Values of a record by their path, without their sources; defaults are left out."""
    found: dict[str, str] = {}

    def walk(path: str, value: Any) -> None:
        if isinstance(value, dict) and set(value) == {"value", "source"}:
            walk(path, value["value"])
        elif isinstance(value, dict):
            for key, inner in value.items():
                walk(f"{path}.{key}" if path else key, inner)
        elif path not in ("kind", "source", "description"):
            text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
            found[path] = " ".join(text.split())

    walk("", record.model_dump(mode="json", by_alias=True, exclude_defaults=True))
    return found


def runs(result: SweepResult) -> dict[str, str]:
    """How many layouts of each family run, over all contexts: it moves with any rule of feasibility."""
    contexts = len(result.sweep.contexts)
    counts = {}
    for family in result.sweep.families:
        searched = contexts * math.prod(result.plan.sizes(family))
        counts[f"runs.{family}"] = str(searched - sum(result.dropped[family].values()))
    return counts


# --- Probes ----------------------------------------------------------------------------------------------------------


def _probes(planned: Plan, context: int) -> list[Row]:
    """The fewest layouts (greedily) that show every feature that any candidate shows."""
    families, x = _candidates(planned, context)
    flags = measure(planned, context, x).flags
    sound = np.flatnonzero(flags == 0)
    if not sound.size:
        return []
    some = Layout(**{name: column[sound] for name, column in x.columns().items()})  # type: ignore[index]
    step = evaluate_step(planned.setting, some, context)
    names = np.array(families)[sound]
    used = {f"family {name}": names == name for name in planned.sweep.families}
    chosen = sorted(_cover(np.array(list({**used, **_features(step)}.values()))))
    picked = Layout(**{name: column[chosen] for name, column in some.columns().items()})  # type: ignore[index]
    return _rows(planned, "probe", context, names[chosen].tolist(), picked, range(len(chosen)))


def _candidates(planned: Plan, context: int) -> tuple[list[str], Layout]:
    """Every shape of every family at a few batch sizes: lockstep, in two chunks, and in as many as the batch."""
    places = np.linspace(0, len(planned.batches) - 1, min(len(planned.batches), PROBE_BATCHES)).round().astype(int)
    batch = planned.batches[places][None, :, None]
    families: list[str] = []
    parts: list[dict[str, npt.NDArray[Any]]] = []
    for family in planned.sweep.families:
        hop_b = planned.sweep.families[family].hop_b
        chunks = [np.ones_like(batch), *([np.full_like(batch, 2), batch] if hop_b else [])]
        shape = {name: column[:, None, None].astype(np.int64) for name, column in planned.shapes[family].items()}
        unused = {name: NONE.get(name, 1) for name in AXES}
        part = broadcast_columns({**unused, "batch": batch, "chunks": np.concatenate(chunks, axis=2), **shape})
        families += [family] * len(part["batch"])
        parts.append(part)
    return families, Layout(**{name: np.concatenate([part[name] for part in parts]) for name in AXES})


def _features(step: Step) -> dict[str, npt.NDArray[Any]]:
    """What a layout can show, true or false for each: axes in use, each op's binding term, what overlaps with what."""
    x, kv_heads = step.layout, step.model.fewest_kv_heads
    count = len(np.atleast_1d(x.batch))
    found: dict[str, Any] = {f"{name} > 1": getattr(x, name) > 1 for name in AXES}
    found |= {
        "past K": x.tpa > kv_heads,
        "idle shards": x.token_group < x.attention_group,
        "pooled groups": x.pooled_groups > 1,
        "uneven shards": step.context % (KV_BLOCK_TOKENS * x.kvp) != 0,
        "uneven stages": step.model.layer_count % x.pp != 0,
        "HOP-B": x.chunks > 1,
        "HOP-B and groups": np.logical_and(x.chunks > 1, x.dp > 1),
    }
    for name, time in step.times.items():
        used = np.asarray(step.repeats[name] * time.seconds) > 0
        body = np.stack(np.broadcast_arrays(*(np.asarray(t) for t in (time.math_s, time.hbm_s, time.link_s))))
        for place, term in enumerate(("math", "hbm", "link")):
            found[f"{name} {term}"] = used & (body.argmax(axis=0) == place) & (body[place] > 0)
        found[f"{name} latency"] = used & (np.asarray(time.latency_s) > 0)
    found |= {f"{name} hidden": np.asarray(step.repeats[name] * seconds) > 0 for name, seconds in step.hidden_s.items()}
    pairs = [
        (half.op_name(front), half.op_name(behind), part)
        for half, _ in step.kinds
        for front, behind, part in (
            *((core, sent, "seconds") for core, sent in half.kind.pipelined),
            *((each.product, each.reduced, "body_s") for each in half.kind.streamed),
        )
    ]
    for front, behind, part in pairs:
        hides = found[f"{behind} hidden"]
        outlasts = np.asarray(getattr(step.times[behind], part) > getattr(step.times[front], part))
        found |= {f"{behind} outlasts": hides & outlasts, f"{behind} does not outlast": hides & ~outlasts}
    return {name: np.broadcast_to(holds, (count,)) for name, holds in found.items()}


def _cover(shows: npt.NDArray[Any]) -> list[int]:
    """Columns of a feature x candidate table that show every feature some candidate shows, most at once first.

    >>> _cover(np.array([[1, 0, 1], [0, 1, 1], [0, 1, 0]], dtype=bool))
    [1, 0]
    """
    left = shows.any(axis=1)
    chosen: list[int] = []
    while left.any():
        best = int(shows[left].sum(axis=0).argmax())
        chosen.append(best)
        left = left & ~shows[:, best]
    return chosen


# --- Text ------------------------------------------------------------------------------------------------------------


def path_of(folder: Path, sweep_name: str) -> Path:
    """The file of a sweep's baseline in a folder."""
    return folder / f"{file_stem(sweep_name)}.csv"


def render(baseline: Baseline) -> str:
    """A baseline as text: a header of `# key: value` lines, then CSV; its last key is a digest of all the others."""
    names = baseline.header["terms"].split()
    table = io.StringIO()
    writer = csv.writer(table, lineterminator="\n")
    writer.writerow(COLUMNS)
    for row in baseline.rows:
        seen = (row.tokens_per_s_user, row.tokens_per_s_gpu, row.resident_GB)
        terms = " ".join(f"{row.terms[name]:.9g}" for name in names) if row.terms else ""
        widths = row.layout.columns().values()
        writer.writerow(
            [row.role, row.context, csv_cell(row.family), *widths, *(f"{value:.10g}" for value in seen), terms]
        )
    header = [f"# {key}: {csv_cell(value)}" for key, value in baseline.header.items() if key != "check"]
    lines = [TITLE, *header, *table.getvalue().splitlines()]
    lines.insert(1 + len(header), f"# check: {short_hash(chr(10).join(lines))}")
    return "\n".join(lines) + "\n"


def write(path: Path, baseline: Baseline) -> bool:
    """Write a baseline whole or not at all; a file that differs by its date alone stays. Whether it was written."""
    text = render(baseline)
    if path.is_file() and _undated(path.read_text(encoding="utf-8", errors="replace")) == _undated(text):
        return False
    write_text(path, text)
    return True


def _undated(text: str) -> str:
    return re.sub(r"^# (date|check): .*$", "", text, flags=re.MULTILINE)


MOST_BYTES = 2**24


def read(path: Path) -> Baseline:
    """A stored baseline; SpecError with every reason why it is not one."""
    if not path.exists():
        raise SpecError([f"{path}: there is no such baseline; write it with --update"])
    return parse(decoded(read_bytes(path, str(path), MOST_BYTES), f"{path}: {MEND}"), str(path))


MEND = "restore the file, or write it anew with --update"


def parse(text: str, shown: str) -> Baseline:
    """The baseline that a text says; SpecError with every problem found, none of which is repaired."""
    lines = text.splitlines()
    header = header_of(text)
    table = [line for line in lines if not line.startswith("#")]
    problems = [f"its header has no {key!r}" for key in KEYS if key not in header]
    if not problems and header["format"] != FORMAT:
        problems = [f"its format is {header['format']}, and this helix_sim reads {FORMAT}"]
    columns = table[0].split(",") if table else []
    missing = [name for name in COLUMNS if name not in (*columns, *LATER)]
    if missing:
        problems.append(f"it has no column {', '.join(missing)}" if table else "it has no table")
    if problems:
        raise SpecError([f"{shown}: {problem}; {MEND}" for problem in problems])
    rows, problems = _parse_rows(table, header["terms"].split())
    if len(table) - 1 != int(header["rows"] if re.fullmatch(r"[0-9]{1,9}", header["rows"]) else -1):
        problems.insert(0, f"it has {len(table) - 1} rows and its header says {header['rows']}: it is cut short")
    problems += _header_problems(header)
    body = "\n".join(line for line in lines if not line.startswith("# check: "))
    if not problems and short_hash(body) != header["check"]:
        problems.append("it was edited by hand or damaged: its content has another digest than its header says")
    if problems:
        raise SpecError([f"{shown}: {problem}; {MEND}" for problem in problems[:10]])
    return Baseline(header=header, rows=rows)


def _header_problems(header: Mapping[str, str]) -> list[str]:
    """What is wrong with the numbers of a header."""
    problems = [
        f"its {key} is {said(value)}, not a whole number"
        for key, value in header.items()
        if key.startswith("runs.") and not re.fullmatch(r"[0-9]{1,18}", value)
    ]
    try:
        _finite(header["memory_to_fill_GB"], "its memory_to_fill_GB", above=0)
    except ValueError as error:
        problems.append(str(error))
    return problems


def header_of(text: str) -> dict[str, str]:
    """The `# key: value` lines of a baseline's text."""
    pairs = (line[2:].partition(": ") for line in text.splitlines() if line.startswith("# ") and ": " in line)
    return {key: text_of_cell(value) for key, _, value in pairs}


def _parse_rows(table: list[str], names: list[str]) -> tuple[list[Row], list[str]]:
    rows: list[Row] = []
    problems: list[str] = []
    try:
        for number, cells in enumerate(csv.DictReader(table), 1):
            try:
                rows.append(_parse_row(cells, names))
            except (ValueError, TypeError) as error:
                problems.append(f"row {number} of its table: {shortened(str(error))}")
    except csv.Error as error:
        problems.append(f"its table is not CSV: {error}")
    return rows, problems


def _parse_row(cells: Mapping[str, str], names: list[str]) -> Row:
    """One row; ValueError with what is wrong with it."""
    if cells["role"] not in ("frontier", "probe"):
        raise ValueError(f"role is {cells['role']!r}; it must be frontier or probe")
    if any(cells.get(name, "") is None for name in COLUMNS):
        raise ValueError("it ends too early")
    values = [_finite(text, "terms") for text in cells["terms"].split()]
    if values and len(values) != len(names):
        raise ValueError(f"it has {len(values)} terms and the header names {len(names)}")
    return Row(
        role=cells["role"],
        context=_whole(cells["context"], "context"),
        family=text_of_cell(cells["family"]),
        layout=Layout(**{name: _width(cells, name) for name in AXES}),
        tokens_per_s_user=_finite(cells["tokens_per_s_user"], "tokens_per_s_user", above=0),
        tokens_per_s_gpu=_finite(cells["tokens_per_s_gpu"], "tokens_per_s_gpu", above=0),
        resident_GB=_finite(cells["resident_GB"], "resident_GB"),
        terms=dict(zip(names, values, strict=True)) if values else {},
    )


def _width(cells: Mapping[str, str], name: str) -> int:
    """A width of a row, which may be missing where it came later: of a layout that does not use it."""
    least = NONE.get(name, 1)
    text = cells.get(name, str(least))
    return 0 if text == "0" and least == 0 else _whole(text, name)


def _whole(text: str, name: str) -> int:
    if not re.fullmatch(r"[1-9]\d{0,14}", text):
        raise ValueError(f"{name} is {text!r}, not a whole number of at least 1")
    return int(text)


def _finite(text: str, name: str, above: float = -math.inf) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value) or value <= above:
        raise ValueError(f"{name} is {text!r}, not a finite number{' above 0' if above == 0 else ''}")
    return value
