"""A layout picked by what is at hand: its widths, the JSON of explain or recommend, or its number in a sweep."""

from __future__ import annotations

import re
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from helix_sim.core.errors import SpecError
from helix_sim.core.layout import AXES, Layout
from helix_sim.search.plan import plan
from helix_sim.specs.load import MOST_BYTES, load_machine, load_model, load_sweep, load_timing, parse_json, read_bytes
from helix_sim.specs.machine import Machine
from helix_sim.specs.precision import Precision
from helix_sim.step import Step, decode_step, default_precision

FORMATS = ("weights", "kv", "math", "wire")


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """What a user said of a layout; None is unsaid, and keeps what the source says or the default.

    widths: batch, tpa, kvp, dp, tpf, ep, pp, chunks by name. formats: weights, kv, math, wire by name.
    """

    context: int | None = None
    timing: str | None = None
    widths: dict[str, int | None]
    formats: dict[str, str | None]


def pick(source: str, machine: str | None, options: Options) -> Step:
    """The decode step of a layout that runs.

    source: a model's name or YAML file (with `machine`); FILE.json of explain or recommend, `-` for standard input,
    FILE.json:2 for the second choice; or SWEEP:ID, a layout's number in a sweep. `options` go before what is read.
    """
    if machine is not None:
        return _step({"model": source, "machine": machine, "layout": {}}, options)
    if source == "-" or re.fullmatch(r".*\.json(:\d+)?", source, re.DOTALL):
        return _step(_from_json(source), options)
    if ":" in source:
        return _step(_from_sweep(source), options)
    raise SpecError(
        [f"{source}: give a model and a machine, a .json file of explain or recommend, or SWEEP:ID, a layout's number"]
    )


def precision_of(machine: Machine, said: dict[str, Any], given: dict[str, str | None]) -> Precision:
    """The machine's default formats, then those a file says, then those given as options."""
    chosen = {name: text for name, text in given.items() if text}
    formats = (said or default_precision(machine).model_dump()) | chosen
    try:
        return Precision.model_validate(formats)
    except ValidationError as error:
        raise SpecError([f"{'.'.join(map(str, p['loc']))}: {p['msg']}" for p in error.errors()]) from None


def _step(said: dict[str, Any], options: Options) -> Step:
    """The step of a record with model, machine and layout, and perhaps timing, context and precision."""
    machine = load_machine(said["machine"])
    given = {name: value for name, value in options.widths.items() if value is not None}
    layout = _widths(said["layout"], given)
    context = options.context or said.get("context", 10**6)
    return decode_step(
        load_model(said["model"]),
        machine,
        layout,
        context,
        precision=precision_of(machine, said.get("precision", {}), options.formats),
        timing=load_timing(options.timing or said.get("timing", "paper")),
    )


def _widths(said: dict[str, int], given: dict[str, int]) -> Layout:
    """A layout; where widths are given without tpf, tpf is what they leave of dp·tpa·kvp."""
    x = {"batch": 1, "chunks": 1, "tpa": 1, "kvp": 1, "dp": 1, "pp": 1, "ep": 1} | said | given
    free = "tpf" not in said or bool({"tpa", "kvp", "dp", "ep"} & given.keys())
    if "tpf" not in given and free:
        x["tpf"] = max(x["dp"] * x["tpa"] * x["kvp"] // max(x["ep"], 1), 1)
    return Layout(**x)


# --- Where from ------------------------------------------------------------------------------------------------------


def _from_json(source: str) -> dict[str, Any]:
    """The record in a file of explain, or the choice of that number in one of recommend."""
    path, _, number = source.partition(".json:")
    shown = f"{path}.json" if number else source
    return chosen(_read(shown), int(number[:9] or 1), shown)


def chosen(content: dict[str, Any], index: int, shown: str) -> dict[str, Any]:
    """The record of an answer, or that of one of its choices, checked."""
    if isinstance(content.get("choices"), list):
        if not 1 <= index <= len(content["choices"]):
            raise SpecError([f"{shown}: has {len(content['choices'])} choices, and {index} is none of them"])
        content = content["choices"][index - 1]
    return _checked(content, shown)


def _read(path: str) -> dict[str, Any]:
    raw = sys.stdin.buffer.read(MOST_BYTES) if path == "-" else read_bytes(Path(path), path)
    return parse_json(raw, path)


def _checked(content: Any, shown: str) -> dict[str, Any]:
    """A record with texts for model and machine and whole numbers for widths, or a SpecError with what is wrong."""
    record = content if isinstance(content, dict) else {}
    layout = record.get("layout")
    problems = [
        f"{shown}: {key} must be a name or the path of a YAML file, as explain --json writes it"
        for key in ("model", "machine")
        if not isinstance(record.get(key), str)
    ]
    if not isinstance(layout, dict) or not layout.keys() <= set(AXES):
        problems.append(f"{shown}: layout must hold widths by name: {', '.join(AXES)}")
    elif not all(isinstance(value, int) and not isinstance(value, bool) for value in layout.values()):
        problems.append(f"{shown}: layout must hold whole numbers")
    if not isinstance(record.get("context", 1), int) or not isinstance(record.get("timing", ""), str):
        problems.append(f"{shown}: context must be a whole number of tokens, and timing a name")
    if not isinstance(record.get("precision", {}), dict):
        problems.append(f"{shown}: precision must hold number formats by name")
    if problems:
        raise SpecError(problems)
    return record


def _from_sweep(source: str) -> dict[str, Any]:
    """The layout with that number in a sweep, as the `id` column of its tables says it."""
    name, _, number = source.rpartition(":")
    sweep = load_sweep(name)
    if not number.isdecimal() or len(number) > 18:
        raise SpecError([f"{source}: {number!r} is not the number of a layout; take one from the id column"])
    planned = plan(sweep)
    if int(number) >= planned.layouts:
        raise SpecError([f"{source}: the sweep has {planned.layouts:,} layouts, numbered from 0"])
    _, context, layout = planned.layout_at(int(number))
    return {
        "model": sweep.model,
        "machine": sweep.machine,
        "timing": sweep.timing,
        "context": context,
        "precision": sweep.precision.model_dump(),
        "layout": layout.columns(),
    }
