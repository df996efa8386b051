"""The one door to a layout: its widths, an answer of explain or recommend, or its number in a sweep."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, get_args

from helix_sim.core.errors import SpecError
from helix_sim.core.layout import AXES, LATER, NONE, Layout
from helix_sim.core.text import is_path, said, shortened
from helix_sim.one_layout import checked_step
from helix_sim.search.identity import Input, changed, digest, input_of, load_unchanged, read_input, require_there
from helix_sim.search.plan import Plan, plan
from helix_sim.specs.draft import Draft
from helix_sim.specs.drafter import drafter_of
from helix_sim.specs.load import (
    load_draft,
    load_machine,
    load_model,
    load_sweep,
    load_timing,
    parse_json,
    parse_yaml,
    read_bytes,
    shipped,
)
from helix_sim.specs.machine import Machine
from helix_sim.specs.model import Model
from helix_sim.specs.precision import Precision, narrowest_precision
from helix_sim.specs.quantities import require_readable
from helix_sim.specs.setting import Setting, hop_b_doubt, require_measured_here
from helix_sim.specs.timing import Timing
from helix_sim.specs.values import LIMIT, MathFormat, NumberFormat
from helix_sim.step import Step, cache_remark, cache_with_kernels, stored_formats

FORMATS = tuple(Precision.model_fields)
"""Tensors and arithmetics that have a number format, by the name of their option without dashes."""

MOST_ANSWER_BYTES = 2**24
"""Of an answer: a recommendation of some ten thousand choices."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """What a user says of a layout beside where it comes from; what is unsaid, or None, stays as the source has it.

    context: tokens of each request. query_tokens: new tokens of each request in a step; 1 decodes. timing: a shipped
    name or the path of a YAML file. draft: what drafts the layout's draft_tokens, likewise or as a record. widths: a
    layout's axes by name. formats: number formats by the name of a field of Precision. named_formats: what the rest
    are, a name of the model's formats, `checkpoint`, `narrowest`, or a file of formats.
    """

    context: int | None = None
    query_tokens: int | None = None
    timing: str | None = None
    draft: Draft | str | Path | None = None
    widths: Mapping[str, int | None] = field(default_factory=dict)
    formats: Mapping[str, str | None] = field(default_factory=dict)
    named_formats: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Picked:
    """A layout that runs: its decode step, and which files its inputs came from.

    inputs: model, machine and timing by these names. longest_context: tokens of the longest request, where `step` has
    the mean of a batch that mixes contexts. remarks: sentences for the user on what was picked.
    """

    step: Step
    inputs: Mapping[str, Input]
    longest_context: int
    remarks: tuple[str, ...] = ()

    def at_price(self, usd_per_gpu_hour: float | None) -> Picked:
        """The layout with another price of a GPU [USD/hour]; itself without one. Its inputs are what they were."""
        return replace(self, step=replace(self.step, setting=self.step.setting.at_price(usd_per_gpu_hour)))


@dataclass(frozen=True, slots=True, kw_only=True)
class _Source:
    """A layout as its source says it, before options: `shown` is the source as sentences name it."""

    shown: str
    model: Model
    machine: Machine
    timing: Timing
    inputs: Mapping[str, Input]
    context: int
    longest_context: int
    query_tokens: int
    formats: Mapping[str, str]
    widths: Mapping[str, int]
    draft: Draft | None = None
    remarks: tuple[str, ...] = ()


def pick(layout: Step | Picked | str | Path, machine: str | None = None, options: Options | None = None) -> Picked:
    """A layout that runs, wherever it comes from; SpecError with every reason where there is none.

    layout: a model's name or YAML file (with `machine`); FILE.json of explain or recommend, FILE.json:2 for the second
    choice, `-` for standard input; SWEEP:ID, a layout's number in a sweep, SWEEP:ID@DIGEST, which is refused once the
    sweep or a file it names has changed, or FOLDER:ID, a number in what `sweep --out FOLDER` wrote, refused likewise;
    or a Step, as it is. `options` go before what the source says.
    """
    options = options or Options()
    if isinstance(layout, Step | Picked):
        if machine is not None or options != Options():
            raise SpecError(["a Step has its machine, widths and formats; evaluate another with decode_step"])
        return layout if isinstance(layout, Picked) else _of_step(layout)
    _check_options(options)
    return _picked(_source(str(layout), machine, options), options)


def _source(text: str, machine: str | None, options: Options) -> _Source:
    answer = re.fullmatch(r"(.*\.json)(?::([0-9]{1,9}))?", text, re.DOTALL)
    if text == "-" or answer:
        if machine is not None:
            raise SpecError([f"{text} says its own machine; leave {said(machine)} out"])
        path, number = (answer[1], answer[2]) if answer else ("-", None)
        return _of_answer(chosen(_read(path), int(number or 1), path), path, options)
    if machine is not None:
        return _of_names(text, machine, options)
    if ":" in text:
        return _of_sweep(text, options)
    if is_path(text) or text in shipped("model"):
        raise SpecError([f"{text}: a machine is missing; give it after the model"])
    raise SpecError(
        [f"{said(text)} is no layout; give MODEL MACHINE, FILE.json of explain or recommend, SWEEP:ID or FOLDER:ID"]
    )


def _of_step(step: Step) -> Picked:
    """A step that a program made: its inputs are known by their digests alone."""
    records: dict[str, Any] = {"model": step.model, "machine": step.machine, "timing": step.timing}
    if step.setting.drafter:
        records["draft"] = step.setting.drafter.draft
    inputs = {kind: Input(file="", digest=digest(record)) for kind, record in records.items()}
    return Picked(step=step, inputs=inputs, longest_context=int(step.context))


def _picked(source: _Source, options: Options) -> Picked:
    """The source's layout with the options in place of what it says."""
    given = {name: value for name, value in options.widths.items() if value is not None}
    context = options.context or source.context
    doubt = require_measured_here(source.machine, source.timing)
    precision = precision_of(
        source.model,
        source.machine,
        options.formats,
        source.formats,
        f"{source.shown}: precision.",
        named=options.named_formats,
        timing=source.timing,
    )
    draft = draft_of(options.draft) if options.draft else source.draft
    setting = Setting(
        model=source.model,
        machine=source.machine,
        timing=source.timing,
        precision=precision,
        drafter=drafter_of(draft, source.model) if draft else None,
    )
    query_tokens = options.query_tokens or source.query_tokens
    layout = _widths(source.widths, given)
    if options.draft and "draft_tokens" not in given and not layout.draft_tokens:
        raise SpecError(["--draft says what drafts, and --draft-tokens how many of them: give both, or neither"])
    step = checked_step(setting, layout, context, query_tokens)
    longest = context if options.context else source.longest_context
    overlap = hop_b_doubt(source.timing) if step.layout.chunks > 1 else None
    on_chunks = f"HOP-B in {step.layout.chunks} chunks was asked for: {overlap}" if overlap else None
    remarks = (*source.remarks, *(text for text in (doubt, on_chunks, cache_remark(source.timing, precision)) if text))
    inputs = dict(source.inputs)
    if draft and options.draft:
        inputs["draft"] = input_of(options.draft, draft)
    return Picked(step=step, inputs=inputs, longest_context=longest, remarks=remarks)


def _widths(written: Mapping[str, int], given: Mapping[str, int]) -> Layout:
    """A layout; where widths are given without tpf, tpf is what they leave of dp·tpa·kvp."""
    x = dict(written) | dict(given)
    if "tpf" not in given and {"tpa", "kvp", "dp", "ep"} & given.keys():
        x.pop("tpf", None)
    return Layout(**x)


# --- Options ---------------------------------------------------------------------------------------------------------


def option(name: str) -> str:
    """A width, a format or a limit as the command line writes it.

    >>> option("attention_math")
    '--attention-math'
    """
    return f"--{name.replace('_', '-')}"


def not_whole(value: Any, least: int = 1) -> str | None:
    """What is wrong with a size or a count; None where it is a whole number that the equations take."""
    whole = isinstance(value, int) and not isinstance(value, bool) and least <= value <= LIMIT
    return None if whole else f"{said(value)} is not a whole number from {least} to 10^12"


def _check_options(options: Options) -> None:
    """Every context and width that makes no sense, in one SpecError."""
    given = {"context": options.context, "query_tokens": options.query_tokens, **options.widths}
    unknown = [f"{option(name)}: there is no such width; it is one of {', '.join(AXES)}" for name in options.widths
               if name not in AXES]  # fmt: skip
    problems = unknown + [
        f"{option(name)}: {problem}"
        for name, value in given.items()
        if value is not None and (problem := not_whole(value, NONE.get(name, 1)))
    ]
    if problems:
        raise SpecError(problems)


def format_problems(content: Mapping[str, Any], named: Callable[[str], str]) -> list[str]:
    """What is wrong with number formats by name, a sentence each, with `named` of the tensor in front."""
    problems = []
    for name, value in content.items():
        known = get_args(MathFormat if name.endswith("math") else NumberFormat)
        if name not in FORMATS:
            problems.append(f"{named(str(name))}: there is no such format; it is one of {', '.join(FORMATS)}")
        elif value not in known:
            problems.append(f"{named(name)}: {said(value)} is not one of {', '.join(known)}")
    return problems


def read_formats(path: Path) -> dict[str, str]:
    """Number formats from a YAML or JSON file: a mapping such as {weights: fp8, kv: fp8, head_math: bf16}."""
    raw = read_bytes(path, str(path))
    content = parse_json(raw, str(path)) if path.suffix == ".json" else parse_yaml(raw, str(path))
    if problems := format_problems(content, lambda name: f"{path}: {name}"):
        raise SpecError(problems)
    return content


def precision_of(
    model: Model,
    machine: Machine,
    given: Mapping[str, str | None],
    written: Mapping[str, str] | None = None,
    written_at: str = "precision.",
    named: str | None = None,
    timing: Timing | None = None,
) -> Precision:
    """Number formats: those given as options, then those of `named`, those that a file says, or else the checkpoint's.

    timing: a measured one whose kernels the default KV cache must have; one that is asked for stays.

    named: what --formats says (see `Options`). SpecError where a format is none, or the machine has no such arithmetic.
    written_at: what stands before the name of a format of the file in a sentence.
    """
    options = {name: text for name, text in given.items() if text is not None}
    if named is not None and is_file(named):
        options, named = read_formats(Path(named)) | options, None
    if named is not None or not written:
        formats = _named_formats(model, machine, named, options)
        if named is None and "kv" not in options:
            formats = {**cache_with_kernels(model, machine, timing, formats), **options}
    else:
        formats = {**written, **options}

    def shown(name: str) -> str:
        return option(name) if name in options else f"{written_at}{name}"

    problems = format_problems(formats, shown) or [
        f"{shown(name)}: {machine.name} has no {text} arithmetic; use {' or '.join(machine.math_formats)}"
        for name, text in formats.items()
        if name.endswith("math") and text not in machine.math_formats
    ]
    if problems:
        raise SpecError(problems)
    return Precision.model_validate(formats)


def is_file(formats: str) -> bool:
    """Whether --formats names a file, not the formats of a model."""
    return is_path(formats) or formats.endswith(".json")


def _named_formats(model: Model, machine: Machine, name: str | None, options: Mapping[str, str]) -> dict[str, str]:
    """The formats of a name that --formats takes, the checkpoint's without one, with the options in their place."""
    if name == "narrowest" or (name is None and not model.formats):
        return narrowest_precision(machine).model_dump(exclude_none=True) | dict(options)
    known = {**({"checkpoint": next(iter(model.formats.values()))} if model.formats else {}), **model.formats}
    if name is not None and name not in known:
        names = ", ".join([*model.formats, *(["checkpoint"] if model.formats else []), "narrowest"])
        why = "" if model.formats else "; its file says no formats"
        raise SpecError(
            [f"--formats: {model.name} has no formats named {said(name)}{why}; use {names}, or a file of them"]
        )
    return stored_formats(model, machine, known[name or "checkpoint"], options)


def timing_of(name: str) -> Timing:
    """The timing that --timing names; SpecError with the option's name in front."""
    try:
        return load_timing(name)
    except SpecError as error:
        raise SpecError([f"--timing: {problem}" for problem in error.problems]) from None


def draft_of(name: Draft | str | Path) -> Draft:
    """The draft that --draft names; SpecError with the option's name in front."""
    try:
        return load_draft(name)
    except SpecError as error:
        raise SpecError([f"--draft: {problem}" for problem in error.problems]) from None


# --- MODEL MACHINE ---------------------------------------------------------------------------------------------------


def _of_names(model: str, machine: str, options: Options) -> _Source:
    """A layout of one GPU, a million tokens and the `paper` timing, unless options say otherwise."""
    timing = options.timing or "paper"
    records = {"model": load_model(model), "machine": load_machine(machine), "timing": timing_of(timing)}
    names = {"model": model, "machine": machine, "timing": timing}
    return _Source(
        shown=f"{model} {machine}",
        **records,  # type: ignore[arg-type]
        inputs={kind: input_of(names[kind], record) for kind, record in records.items()},
        context=10**6,
        longest_context=10**6,
        query_tokens=1,
        formats={},
        widths={},
    )


# --- An answer -------------------------------------------------------------------------------------------------------


def _read(path: str) -> dict[str, Any]:
    """The content of an answer's file, or of standard input."""
    if path != "-":
        return parse_json(read_bytes(Path(path), path, MOST_ANSWER_BYTES), path)
    if sys.stdin is None or sys.stdin.closed:
        raise SpecError(["-: standard input is closed"])
    raw = sys.stdin.buffer.read(MOST_ANSWER_BYTES + 1)
    if len(raw) > MOST_ANSWER_BYTES:
        raise SpecError([f"-: more than {MOST_ANSWER_BYTES} bytes; an answer is smaller"])
    return parse_json(raw, "-")


def chosen(content: dict[str, Any], index: int, shown: str) -> dict[str, Any]:
    """An answer, or one of its choices, with every key that a layout needs; SpecError with all that is wrong."""
    require_readable(content, shown)
    record: Any = content
    if "choices" in content:
        choices = content["choices"]
        count = len(choices) if isinstance(choices, list) else 0
        if not 1 <= index <= count:
            raise SpecError([f"{shown}: has {count or 'no'} choices, and {index} is none of them"])
        record = choices[index - 1]
    elif index != 1:
        raise SpecError([f"{shown}: is one layout, and has no choice {index}"])
    if not isinstance(record, dict):
        raise SpecError([f"{shown}: choice {index} is {said(record)}, not an answer"])
    if problems := _problems(record):
        raise SpecError([f"{shown}: {problem}" for problem in problems])
    return record


REQUIRED = tuple(name for name in FORMATS if Precision.model_fields[name].default is not None)
"""Number formats that every answer says; the others follow them."""


def _problems(record: dict[str, Any]) -> list[str]:
    """What an answer lacks, or says in a way that cannot be."""
    problems = [
        f"{kind} is {said(record[kind])}, not a name" if kind in record else f"{kind} is missing"
        for kind in ("model", "machine", "timing")
        if not isinstance(record.get(kind), str)
    ]
    for key in ("context", "longest_context", "query_tokens"):
        if problem := not_whole(record.get(key)):
            problems.append(f"{key}: {problem}" if key in record else f"{key} is missing")
    for key, names, required in (("layout", AXES, AXES), ("precision", FORMATS, REQUIRED)):
        part = record.get(key)
        if not isinstance(part, dict):
            problems.append(f"{key} is {said(part)}, not {key} by name" if key in record else f"{key} is missing")
            continue
        problems += [f"{key}.{name} is missing" for name in required if name not in (*part, *LATER)]
        problems += [f"{key}.{name} is not known" for name in part if name not in names]
        if key == "precision":
            problems += format_problems({k: v for k, v in part.items() if k in FORMATS}, lambda n: f"precision.{n}")
        else:
            found = ((name, not_whole(part[name], NONE.get(name, 1))) for name in AXES if name in part)
            problems += [f"layout.{name}: {problem}" for name, problem in found if problem]
    return problems


def _of_answer(record: dict[str, Any], shown: str, options: Options) -> _Source:
    """The layout of an answer whose keys are all there; its files must hold what they held when it was written."""
    inputs = {kind: read_input(record.get("inputs"), kind, shown) for kind in ("model", "machine", "timing")}
    if options.timing:
        timing = timing_of(options.timing)
        inputs["timing"] = input_of(options.timing, timing)
    else:
        timing = load_unchanged(load_timing, "timing", inputs["timing"], shown)
    draft = None
    if "draft" in (record.get("inputs") or {}):
        inputs["draft"] = read_input(record.get("inputs"), "draft", shown)
        draft = load_unchanged(load_draft, "draft", inputs["draft"], shown)
    source = _Source(
        shown=shown,
        model=load_unchanged(load_model, "model", inputs["model"], shown),
        machine=load_unchanged(load_machine, "machine", inputs["machine"], shown),
        timing=timing,
        inputs=inputs,
        context=record["context"],
        longest_context=record["longest_context"],
        query_tokens=record["query_tokens"],
        formats=record["precision"],
        widths=record["layout"],
        draft=draft,
    )
    held = {"model": source.model.name, "machine": source.machine.name, "timing": timing.name}
    problems = [
        f"{shown}: {kind} is {said(record[kind])}, and {inputs[kind].file} holds {said(name)}"
        for kind, name in held.items()
        if record[kind] != name and not (kind == "timing" and options.timing)
    ]
    if problems:
        raise SpecError(problems)
    return source


# --- A number in a sweep ---------------------------------------------------------------------------------------------


def _of_sweep(text: str, options: Options) -> _Source:
    """The layout with that number in a sweep, as the `id` column of its tables has it."""
    name, _, number = text.rpartition(":")
    match = re.fullmatch(r"([0-9]{1,18})(?:@(.*))?", number)
    if match is None:
        raise SpecError([f"{text}: {said(number)} is not the number of a layout; take one from the id column"])
    index, written = int(match[1]), match[2]
    remarks: tuple[str, ...] = ()
    if name not in shipped("sweep") and os.path.isdir(name):
        planned = _plan_of_folder(Path(name))
    else:
        planned = plan(load_sweep(name))
        if written is None and is_path(name):
            remarks = (f"{text} is a layout of {name} as it is now; {text}@{planned.digest} says so of this content",)
    if written is not None and written != planned.digest:
        changed_since = (
            f"has changed since this number was printed (digest {shortened(written, 12)}, now {planned.digest})"
        )
        raise SpecError([f"{text}: {name}, or a file that it names, {changed_since}: take one from a new run"])
    if index >= planned.layouts:
        raise SpecError([f"{text}: the sweep has {planned.layouts:,} layouts, numbered from 0"])
    _, context, layout = planned.layout_at(index)
    inputs = {kind: part for kind, part in planned.inputs.items() if kind != "sweep"}
    if options.timing:
        inputs["timing"] = input_of(options.timing, timing_of(options.timing))
    return _Source(
        shown=text,
        model=planned.model,
        machine=planned.machine,
        timing=timing_of(options.timing) if options.timing else planned.timing,
        inputs=inputs,
        context=context,
        longest_context=context,
        query_tokens=1,
        formats=planned.sweep.precision.model_dump(exclude_none=True),
        widths=layout.columns(),  # type: ignore[arg-type]
        draft=planned.setting.drafter.draft if planned.setting.drafter else None,
        remarks=remarks,
    )


def _plan_of_folder(folder: Path) -> Plan:
    """The plan of the sweep that wrote a folder; SpecError where one of its files has changed since."""
    shown = str(folder / "summary.json")
    content = parse_json(read_bytes(folder / "summary.json", shown, MOST_ANSWER_BYTES), shown)
    kinds = ["sweep", "model", "machine", "timing"]
    inputs = {kind: read_input(content.get("inputs"), kind, shown) for kind in kinds}
    if "draft" in content["inputs"]:
        inputs["draft"] = read_input(content["inputs"], "draft", shown)
    for kind, written in inputs.items():
        require_there(kind, written, shown)
    sweep = load_sweep(inputs["sweep"].file)
    if input_of(sweep.name_of("timing"), load_timing(sweep.name_of("timing"))).file != inputs["timing"].file:
        sweep = sweep.with_timing(inputs["timing"].file)
    planned = plan(sweep)
    for kind, now in planned.digests.items():
        if now != inputs[kind].digest:
            raise SpecError([changed(inputs[kind].file, str(folder), inputs[kind].digest, now)])
    if content.get("digest") != planned.digest:
        raise SpecError([changed(inputs["sweep"].file, str(folder), str(content.get("digest")), planned.digest)])
    return planned
