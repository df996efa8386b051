"""Writes what docs/ and the README take from the code, between `generated` and `end` comments.

    python docs/generate.py             references from the code, tables from the YAML files, answers of commands
    python docs/generate.py --measured  also what takes minutes: claims, speed, accuracy (needs the extra `silicon`)
    python docs/generate.py --check     writes nothing; exit code 1 and a line for each page that is stale

A region stands between `<!-- generated: NAME ARGUMENT -->` and `<!-- end -->`; PRODUCERS has every name. In a block of
kind `console`, a line `$ helix-sim …` is run and what follows it is what it printed; `…` there stands for any text.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime
import inspect
import io
import itertools
import json
import os
import re
import shlex
import sys
import tempfile
import textwrap
import typing
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from yaml import safe_load

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"
sys.path.insert(0, str(ROOT))  # the pages are of the checkout that they stand in

REGION = re.compile(r"(<!-- generated: (?P<name>[\w-]+)(?: (?P<argument>[^>]*?))? -->\n).*?(<!-- end -->)", re.DOTALL)
CONSOLE = re.compile(r"(?P<open>^```console\n)(?P<body>.*?)(?P<close>^```$)", re.DOTALL | re.MULTILINE)


def pages() -> list[Path]:
    """The README and every page of docs/, sorted."""
    return [ROOT / "README.md", *sorted(DOCS.rglob("*.md"))]


# --- Markdown --------------------------------------------------------------------------------------------------------


def table(columns: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """A Markdown table; a column whose name starts with > is aligned right."""
    rule = ["---:" if name.startswith(">") else "---" for name in columns]
    lines = [[name.removeprefix(">") for name in columns], rule, *[[_cell(cell) for cell in row] for row in rows]]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _cell(content: object) -> str:
    return str(content).replace("|", "\\|").replace("\n", " ").strip()


def code(text: str, language: str = "text") -> str:
    return f"```{language}\n{text.rstrip()}\n```"


def from_docstring(text: str | None) -> str:
    """A docstring as Markdown: doctests and aligned lines become blocks of code, the rest stays prose."""
    paragraphs = re.split(r"\n\s*\n", inspect.cleandoc(text or "").strip())
    blocks = []
    for paragraph in paragraphs:
        if paragraph.startswith(">>>"):
            blocks.append(code(paragraph, "pycon"))
        elif paragraph.startswith("    "):
            inside = textwrap.dedent(paragraph)
            blocks.append(code(inside, "pycon" if inside.startswith(">>>") else "text"))
        elif paragraph.startswith("|"):
            blocks.append(paragraph)
        elif re.search(r"\S {3,}\S|^\w[^.\n]{0,30}: {2,}", paragraph, re.MULTILINE):
            blocks.append(code(paragraph))
        else:
            blocks.append(re.sub(r"<(?=\w)", "&lt;", paragraph))
    return "\n\n".join(blocks)


# --- The command line ------------------------------------------------------------------------------------------------


@cache
def verbs() -> dict[str, Any]:
    """Every verb's command by name, in the order of --help."""
    import typer

    from helix_sim.cli import app

    root: Any = typer.main.get_command(app)
    return {name: command for name, command in root.commands.items() if not command.hidden}


def options(command: Any, kind: str = "option") -> list[Any]:
    """A verb's options (or its arguments), without --help."""
    shown = (each for each in command.params if not getattr(each, "hidden", False) and "--help" not in each.opts)
    return [each for each in shown if each.param_type_name == kind]


def usage(name: str, command: Any) -> str:
    """How a verb is called."""
    words = [f"helix-sim {name}"]
    for argument in options(command, "argument"):
        word = argument.name.upper().replace("_", "-") + (" …" if argument.nargs == -1 else "")
        words.append(word if argument.required else f"[{word}]")
    words += [f"{option.opts[0]} {_takes(command, option)}" for option in options(command) if option.required]
    return " ".join([*words, "[OPTIONS]"])


VALUES = {int: "INTEGER", float: "NUMBER", Path: "PATH", str: "TEXT"}


def _takes(command: Any, param: Any) -> str:
    """What an option's value is, from the annotation of the function behind the verb; nothing of a flag."""
    if getattr(param, "is_flag", False):
        return ""
    if param.metavar:
        return str(param.metavar)
    hint = typing.get_type_hints(command.callback)[param.name]
    inside = [hint, *typing.get_args(hint), *(leaf for part in typing.get_args(hint) for leaf in typing.get_args(part))]
    return next(word for kind, word in VALUES.items() if kind in inside)


def _default(param: Any) -> str:
    if param.required:
        return "required"
    value = param.default
    if isinstance(value, bool):
        return f"`{param.opts[0]}`" if value and param.secondary_opts else ""
    return f"`{value}`" if isinstance(value, str | int | float | Path) else ""


def cli(name: str) -> str:
    """A verb: how it is called, what it does, its arguments and options."""
    command = verbs()[name]
    parts = [code(usage(name, command)), from_docstring(command.help)]
    if arguments := options(command, "argument"):
        rows = [(f"`{a.name.upper().replace('_', '-')}`", _default(a), a.help) for a in arguments]
        parts.append(_parameters(("argument", "default", "what it is"), rows))
    panels: dict[str, list[tuple[str, str, str]]] = {}
    for each in options(command):
        panels.setdefault(getattr(each, "rich_help_panel", None) or "", []).append(_option_row(command, each))
    for title, rows in sorted(panels.items(), key=lambda panel: panel[0] != ""):
        parts += [*([f"{title}:"] if title else []), _parameters(("option", "default", "what it does"), rows)]
    return "\n\n".join(parts)


def _parameters(columns: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """A table of parameters, without the column of defaults where none has one."""
    kept = [place for place in range(len(columns)) if place != 1 or any(row[1] for row in rows)]
    return table([columns[place] for place in kept], [[row[place] for place in kept] for row in rows])


def _option_row(command: Any, option: Any) -> tuple[str, str, str]:
    names = ", ".join(f"`{name}`" for name in [*option.opts, *option.secondary_opts])
    takes = _takes(command, option)
    return f"{names} {takes}".strip(), _default(option), option.help or ""


def verb_list(_: str) -> str:
    """Every verb with its first sentence."""
    rows = [(f"[{name}](#{name})", _first_sentence(command.help)) for name, command in verbs().items()]
    return table(("verb", "what it answers"), rows)


def _first_sentence(text: str) -> str:
    return " ".join(text.strip().split("\n\n")[0].split())


# --- YAML ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Field:
    """A key of a YAML file as its reference shows it."""

    record: str
    key: str
    kind: str
    unit: str
    text: str
    default: str


def yaml_records(kind: str) -> dict[str, tuple[str, list[Field]]]:
    """Every record that a file of a kind may hold, by title: what it is, and its keys; the file itself first."""
    from helix_sim.specs.schema import json_schema

    schema = json_schema(kind)
    top = schema["title"].removeprefix("helix-sim ")
    known = {top: schema, **schema.get("$defs", {})}
    reached = _reached(schema, known)
    return {
        title: (known[title].get("description", ""), list(_fields(title, known[title])))
        for title in [top, *reached]
        if "properties" in known[title]
    }


def _reached(schema: Any, known: Mapping[str, Any]) -> list[str]:
    """Names of the definitions that a schema refers to, in the order in which a reader meets them."""
    found: dict[str, None] = {}

    def visit(part: Any) -> None:
        if isinstance(part, list):
            for each in part:
                visit(each)
        if not isinstance(part, dict):
            return
        name = str(part.get("$ref", "")).rpartition("/")[2]
        if name and name not in found:
            found[name] = None
            visit(known[name])
        for key, each in part.items():
            if key not in ("$defs", "discriminator"):
                visit(each)

    visit(schema)
    return list(found)


def _fields(title: str, schema: Mapping[str, Any]) -> Iterator[Field]:
    required = schema.get("required", [])
    for key, each in schema["properties"].items():
        text, _, unit = each.get("description", "").rpartition(" [")
        default = "required" if key in required else _yaml_default(each.get("default"))
        yield Field(record=title, key=key, kind=_kind(each), unit=unit.removesuffix("]"), text=text, default=default)


def _yaml_default(value: object) -> str:
    return "" if value is None or value == {} else f"`{json.dumps(value)}`"


def _kind(schema: Mapping[str, Any]) -> str:
    """What a value may be, in words."""
    if name := str(schema.get("$ref", "")).rpartition("/")[2]:
        return f"[{name}](#{name.lower()})"
    if "const" in schema:
        return f"`{schema['const']}`"
    if "enum" in schema:
        return ", ".join(f"`{each}`" for each in schema["enum"])
    if some := schema.get("anyOf") or schema.get("oneOf"):
        return " or ".join(dict.fromkeys(_kind(each) for each in some if each.get("type") != "null"))
    kind = schema.get("type")
    if kind == "array":
        return f"list of {_kind(schema['items'])}"
    if kind == "object":
        inside = schema.get("additionalProperties")
        return f"name: {_kind(inside)}" if isinstance(inside, dict) else "mapping"
    words = {"integer": "whole number", "number": "number", "string": "text", "boolean": "true or false"}
    if "(datasheet|measured|assumed)" in schema.get("pattern", ""):
        return "text from `datasheet`, `measured` or `assumed` on"
    if "[KMGT]" in schema.get("pattern", ""):
        return "size such as `128K`"
    return words.get(str(kind), "anything") + _limits(schema)


def _limits(schema: Mapping[str, Any]) -> str:
    """Limits of a number: at least, more than, at most, less than."""
    low = [f"{s} {_figure(schema[k])}" for k, s in (("minimum", "≥"), ("exclusiveMinimum", ">")) if k in schema]
    high = [f"{s} {_figure(schema[k])}" for k, s in (("maximum", "≤"), ("exclusiveMaximum", "<")) if k in schema]
    return (" " + ", ".join([*low, *high])) if low or high else ""


def _figure(value: float) -> str:
    power = len(str(int(value))) - 1
    return f"10^{power}" if value == 10**power and power > 4 else f"{value:g}"


def yaml(kind: str) -> str:
    """Every key of a kind of file: record by record, with type, limits, unit, default and meaning."""
    parts = []
    for index, (title, (about, fields)) in enumerate(yaml_records(kind).items()):
        rows = [(f"`{f.key}`", f.text, f.unit, f.kind, f.default) for f in fields]
        heading = "## The file" if index == 0 else f"## {title}"
        parts += [heading, from_docstring(about), table(("key", "what it is", "unit", "type", "default"), rows)]
    return "\n\n".join(parts)


def file(path: str) -> str:
    """A file of the repository as it is."""
    return code((ROOT / path).read_text(encoding="utf-8"), "yaml" if path.endswith(".yaml") else "text")


def constants(kind: str) -> str:
    """Every value of the shipped machines (or assumed timings) with its source."""
    from helix_sim.specs import load

    read: Callable[[str], Any] = load.load_machine if kind == "machine" else load.load_timing
    shown = [name for name in load.shipped(kind) if kind == "machine" or read(name).calibration is None]
    parts = []
    for name in shown:
        rows = [(f"`{key}`", value, _linked(source)) for key, value, source in _quantities(read(name).model_dump())]
        parts += [f"### {name}", table(("key", ">value", "source"), rows)]
    return "\n\n".join(parts)


def _quantities(content: Mapping[str, Any], above: str = "") -> Iterator[tuple[str, str, str]]:
    """(key, value, source) of everything that has a source, in the order of the file."""
    for key, each in content.items():
        if isinstance(each, dict) and {"value", "source"} <= each.keys():
            value = each["value"]
            shown = ("yes" if value else "no") if isinstance(value, bool) else f"{value:,.10g}"
            yield above + key, shown, each["source"]
        elif isinstance(each, dict):
            yield from _quantities(each, f"{above}{key}.")


def _linked(text: str) -> str:
    return re.sub(r"(https?://[^\s,;)]+)", r"<\1>", text)


def formats(_: str) -> str:
    """Every number format: bits a stored value, and where they come from."""
    from helix_sim.core.units import FORMAT_BITS

    content = safe_load((ROOT / "helix_sim" / "core" / "formats.yaml").read_text(encoding="utf-8"))
    rows = [(f"`{name}`", f"{bits:.6g}", _linked(content[name]["source"])) for name, bits in FORMAT_BITS.items()]
    return table(("format", ">bits", "what it is"), rows)


def models(_: str) -> str:
    """The shipped models."""
    from helix_sim.specs.load import load_model, shipped

    rows = [
        (f"`{name}`", f"{model.total_parameters / 1e9:,.1f}", model.hidden_size, _linked(model.source))
        for name, model in ((name, load_model(name)) for name in shipped("model"))
    ]
    return table(("name", ">parameters [10^9]", ">H", "source"), rows)


def families(_: str) -> str:
    """The shipped families: which widths are free."""
    from helix_sim.specs.load import shipped_families

    axes = ("tpa", "kvp", "dp", "pp", "ep")
    rows = [
        (f"`{name}`", f.title, *(getattr(f, axis) for axis in axes), f.ffn_on, "yes" if f.hop_b else "no")
        for name, f in shipped_families().items()
    ]
    return table(("family", "in legends", *axes, "FFN on", "HOP-B"), rows)


# --- The package -----------------------------------------------------------------------------------------------------


def tree(_: str) -> str:
    """Every folder and module of the package with the first line of its docstring."""
    lines = ["helix_sim/"]
    package = ROOT / "helix_sim"
    for folder in [package, *sorted(path for path in package.iterdir() if (path / "__init__.py").exists())]:
        depth = len(folder.relative_to(ROOT).parts)
        if folder != package:
            lines.append(f"    {folder.name + '/':<26}{_purpose(folder / '__init__.py')}".rstrip())
        for path in sorted(folder.glob("*.py")):
            if path.stem not in ("__init__", "__main__"):
                indent = "    " * depth
                lines.append(f"{indent}{path.name:<{30 - len(indent)}}{_purpose(path)}".rstrip())
        inner = (path for path in folder.iterdir() if folder != package and (path / "__init__.py").exists())
        for path in sorted(inner):
            lines.append(f"        {path.name + '/':<22}{_purpose(path / '__init__.py')}".rstrip())
    return code("\n".join(lines))


def _purpose(path: Path) -> str:
    """The first line of a module's docstring."""
    import ast

    text = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
    return text.split("\n")[0]


def docstring(name: str) -> str:
    """The docstring of a module of helix_sim, or of what stands in it: `timing.overlap:pipelined`."""
    import importlib

    module, _, attributes = name.partition(":")
    found: Any = importlib.import_module(f"helix_sim.{module}")
    for attribute in attributes.split(".") if attributes else []:
        found = getattr(found, attribute)
    quoted = from_docstring(found.__doc__).splitlines()
    shown = f"`{attributes}` in " if attributes else ""
    head = f"{shown}`helix_sim/{module.replace('.', '/')}.py`:"
    return "\n".join([head, "", *(f"> {line}".rstrip() for line in quoted)])


def exits(_: str) -> str:
    """Every exit code and what it means."""
    from helix_sim.core.errors import Exit

    return table((">code", "name", "what it means"), [(int(each), f"`{each.name}`", each.meaning) for each in Exit])


def reasons(_: str) -> str:
    """Every reason for which a layout is refused."""
    from helix_sim.feasibility import Reason

    return table(("reason", "what it says"), [(f"`{each.name}`", each.title) for each in Reason])


def stack_rules(_: str) -> str:
    """Every rule of the stacks: what it is about, and which file of each stack refuses."""
    from helix_sim.stacks.rules import StackRule
    from helix_sim.stacks.stack import NAMES, load_stack

    stacks = [load_stack(name) for name in NAMES]
    rows = [
        (
            f"`{rule.name}`",
            rule.title,
            "<br>".join(
                f"{s.title}: {s.rules[rule.name].source}".replace("__", r"\_\_") for s in stacks if rule.name in s.rules
            ),
        )
        for rule in StackRule
    ]
    return table(("rule", "what is refused", "by, and where it stands"), rows)


def stack_versions(_: str) -> str:
    """Which version of each stack was read, when, and where it lies."""
    from helix_sim.stacks.stack import NAMES, load_stack

    stacks = [load_stack(name) for name in NAMES]
    return table(("stack", "version", "read", "where"), [(s.title, s.version, s.read, s.url) for s in stacks])


def stack_formats(_: str) -> str:
    """Formats that each stack has kernels for, and the machines and kinds of attention that they are for."""
    from helix_sim.stacks.stack import NAMES, Support, load_stack

    def said(support: Support | None) -> str:
        if support is None:
            return "no"
        also = f", or of {' and '.join(support.or_attention)} models" if support.or_attention else ""
        only = [f"with {support.needs}{also}"] if support.needs else []
        only += [f"not with {support.not_with}"] if support.not_with else []
        only += [f"for {' and '.join(support.attention)}"] if support.attention else []
        only += [] if support.on_amd else ["not on AMD's"]
        return ", ".join(only) or "yes"

    stacks = [load_stack(name) for name in NAMES]
    rows = [
        (f"{kind} `{name}`", *(said(getattr(stack, field).get(name)) for stack in stacks))
        for kind, field in (("weights", "weights"), ("KV cache", "kv"))
        for name in dict.fromkeys(name for stack in stacks for name in getattr(stack, field))
    ]
    return table(("format", *(stack.title for stack in stacks)), rows)


def included(_: str) -> str:
    """What the measured time of each framework's classes includes beside their own op, and how that is known."""
    from helix_sim.specs.load import load_framework, shipped

    rows = [
        (framework.title, f"`{each.of}`", each.kernel or "all", ", ".join(each.parts), _linked(each.source))
        for framework in map(load_framework, shipped("framework"))
        for each in framework.includes
    ]
    return table(("framework", "classes", "kernels", "include", "source"), rows)


def stack_options(name: str) -> str:
    """Every option that a launch file of a stack may say, what it takes, and where the stack has it."""
    from helix_sim.stacks.stack import load_stack

    options = load_stack(name).options.items()
    rows = [(f"`{n}`", ", ".join(o.one_of) if o.one_of else o.takes, o.source) for n, o in options]
    return table(("option", "takes", "source"), rows)


def stack_answers(_: str) -> str:
    """What each rule removed from the answers to 200 plain questions, and whether their launch files start."""
    import importlib.util

    path = ROOT / "tests" / "stacks" / "questions.py"
    spec = importlib.util.spec_from_file_location("questions", path)
    assert spec
    assert spec.loader
    asking = importlib.util.module_from_spec(spec)
    sys.modules["questions"] = asking
    spec.loader.exec_module(asking)
    with tempfile.TemporaryDirectory() as folder:
        found = asking.asked(asking.questions(Path(folder)))
    printed = _by("python docs/generate.py --measured --page reference/stacks.md")
    return "\n\n".join([printed, asking.summary(found), table(asking.COLUMNS, asking.rows(found))])


def stack_choices(_: str) -> str:
    """The first choices for two models of production, at three contexts, that some stack starts."""
    import helix_sim as hs
    from helix_sim.answers.request import Mix

    rows = []
    for model, machine in itertools.product(("deepseek-r1", "kimi-k2.5"), ("h200-hgx", "gb200-nvl72")):
        for context in (8_000, 128_000, 1_000_000):
            mix = Mix(contexts=(context,), shares=(1.0,))
            found = hs.recommend(
                hs.Request(model=model, machine=machine, mix=mix, ttl_s=50e-3, gpus=(1, 72), choices=1)
            )
            for choice in found.choices:
                step = choice.step
                rows.append((f"`{model}`", f"`{machine}`", f"{context:,}", step.layout, step.layout.gpus,
                             f"{float(step.ttl_s) * 1e3:.1f}", ", ".join(choice.stacks)))  # fmt: skip
    columns = ("model", "machine", ">context", "first choice within 50 ms", ">GPUs", ">TTL ms", "starts on")
    printed = _by("python docs/generate.py --measured --page reference/stacks.md")
    return f"{printed}\n\n{table(columns, rows)}"


def columns(_: str) -> str:
    """Keys of answers and columns of tables."""
    from helix_sim.specs.quantities import quantities

    rows = [(f"`{name}`", each.type, each.unit, each.meaning) for name, each in quantities().items()]
    return table(("key", "type", "unit", "what it is"), rows)


def columns_of_one_file(_: str) -> str:
    """Columns that one file alone has."""
    from helix_sim.specs.quantities import columns_of_files

    rows = [
        (f"`{file}`", f"`{name}`", each.type, each.unit, each.meaning)
        for file, keys in columns_of_files().items()
        for name, each in keys.items()
    ]
    return table(("file", "column", "type", "unit", "what it is"), rows)


def knobs(_: str) -> str:
    """Every knob that a setting can be scaled by."""
    from helix_sim.specs.setting import KNOBS

    return table(
        ("knob", "what it turns", "unit"), [(f"`{name}`", each.meaning, each.unit) for name, each in KNOBS.items()]
    )


def servings_columns(_: str) -> str:
    """Every column of a file of measured servings."""
    from helix_sim.silicon.servings import COLUMNS

    return table(("column", "what it holds"), [(f"`{name}`", text) for name, text in COLUMNS.items()])


def api(_: str) -> str:
    """Every public name of helix_sim, with its signature and docstring; functions first, then records."""
    import helix_sim

    names = sorted(helix_sim.__all__, key=str.lower)
    functions = [name for name in names if inspect.isfunction(getattr(helix_sim, name))]
    constants = [name for name in names if not callable(getattr(helix_sim, name))]
    parts = ["## Functions"]
    for name in functions:
        function = getattr(helix_sim, name)
        parts += [f"### {name}", _signature(name, function), from_docstring(function.__doc__)]
    parts.append("## Records and errors")
    for name in (name for name in names if name not in [*functions, *constants]):
        parts += [f"### {name}", *_record(name, getattr(helix_sim, name))]
    parts.append("## Constants")
    for name in constants:
        parts += [f"### {name}", _constant(name)]
    return "\n\n".join(parts)


def _constant(name: str) -> str:
    """What stands below a public constant in its module."""
    import ast

    import helix_sim

    tree = ast.parse((ROOT / "helix_sim" / (helix_sim._MODULE_OF[name].replace(".", "/") + ".py")).read_text("utf-8"))
    for node, below in itertools.pairwise(tree.body):
        named = node.target if isinstance(node, ast.AnnAssign) else None
        if isinstance(named, ast.Name) and named.id == name and isinstance(below, ast.Expr):
            return from_docstring(ast.literal_eval(below.value))
    raise LookupError(f"{name} has no docstring below it")


def _signature(name: str, function: Any) -> str:
    """How a function is called, a parameter a line where one line is too short for all."""
    signature = inspect.signature(function)
    parameters = [re.sub(r"<.*>", "…", str(each)) for each in signature.parameters.values()]
    keywords = [place for place, each in enumerate(signature.parameters.values()) if each.kind == each.KEYWORD_ONLY]
    if keywords:
        parameters.insert(keywords[0], "*")
    returned = f" -> {signature.return_annotation}" if signature.return_annotation is not signature.empty else ""
    one = f"hs.{name}({', '.join(parameters)}){returned}"
    if len(one) > 100:
        one = f"hs.{name}(\n    " + ",\n    ".join(parameters) + f",\n){returned}"
    return code(one.replace("'", ""), "python")


YAML_PAGES = {"Model": "model", "Machine": "machine", "Timing": "timing", "Sweep": "sweep", "Precision": "sweep"}
"""Records whose keys a page of the YAML reference lists."""


def _record(name: str, record: Any) -> list[str]:
    """A class: its docstring, and its public properties and methods with the first paragraph of theirs."""
    parts = [from_docstring(record.__doc__)]
    if name in YAML_PAGES:
        parts.append(f"Its fields are the keys of its [YAML file](yaml/{YAML_PAGES[name]}.md).")
    rows = []
    for key, member in list(vars(record).items()):  # a record is built when it is first read
        target = member.fget if isinstance(member, property) else getattr(member, "__func__", member)
        if key.startswith("_") or not inspect.isfunction(target) or target.__module__.startswith("pydantic"):
            continue
        if isinstance(member, property) or target.__doc__:
            called = key if isinstance(member, property) else f"{key}{_arguments(target)}"
            rows.append((f"`.{called}`", _first_sentence(inspect.cleandoc(target.__doc__ or ""))))
    return [*parts, table(("member", "what it is"), rows)] if rows else parts


def _arguments(function: Any) -> str:
    names = [name for name in inspect.signature(function).parameters if name not in ("self", "cls")]
    return f"({', '.join(names)})"


# --- What takes minutes ----------------------------------------------------------------------------------------------


def _by(command: str) -> str:
    from helix_sim.core.version import __version__

    return f"Printed by `{command}`, helix-sim {__version__}, {datetime.date.today().isoformat()}."


def claims(timing: str) -> str:
    """The paper's claims beside ours on one timing; on `paper`, what decides each."""
    from helix_sim.paper import reproduce
    from helix_sim.specs.load import load_timing

    loaded = load_timing(timing)
    searches = reproduce.search(loaded)
    report = reproduce.claims(searches, loaded, vary=loaded.calibration is None)
    rows = []
    for c in report.claims:
        held = "yes" if c.held else f"no, by {c.missed_by:.2g}"
        rows.append((c.claim, f"{c.paper:g}", f"{c.ours:.3g}", f"{c.low:g} to {c.high:g}", held))
    chosen = "" if timing == "paper" else f" --timing {timing}"
    parts = [_by(f"helix-sim reproduce claims{chosen}"), table(("claim", ">paper", ">ours", ">accepted", "held"), rows)]
    if loaded.calibration:
        ours = reproduce.without_hop_b(searches)
        beside = [
            (c.claim, f"{reproduce.MEASURED[c.id]:g}", f"{ours[c.id]:.3g}") for c in report.claims if c.id in ours
        ]
        parts.append("Beside what TensorRT-LLM's authors measured on GB300, without HOP-B, both with an FP8 cache:")
        parts.append(table(("claim", ">measured", ">ours"), beside))
    if report.varied:
        named = {c.id: c.id.replace("_", " ") for c in report.claims}
        notes = [f"- **{named[c.id]}**: {c.layout}; against {c.baseline_layout}. {c.note}" for c in report.claims]
        varied = [(text, *(f"{values[key]:.3g}" for key in named)) for text, values in report.varied.items()]
        parts += ["\n".join(notes), "What each becomes with one assumption varied at a time:"]
        parts.append(table(("varied", *(f">{name}" for name in named.values())), varied))
    return "\n\n".join(parts)


def kernels(_: str) -> str:
    """Held-out errors of every calibrated timing, by group of classes: median / mean, in percent."""
    from helix_sim.silicon.aic_tables import NoSuchTable
    from helix_sim.silicon.validate import GROUPS
    from helix_sim.silicon.validate import kernels as judge
    from helix_sim.specs.load import load_timing, shipped

    rows = []
    for name in shipped("timing"):
        measured = load_timing(name).calibration
        if measured is None:
            continue
        with contextlib.suppress(NoSuchTable):
            found = judge(measured.system, measured.framework).set_index("class")
            cells = [
                _percents(*found.loc[f"all {group}", ["median", "mean"]]) if f"all {group}" in found.index else ""
                for group in GROUPS
            ]
            rows.append((f"`{name}`", *cells))
    return "\n\n".join(
        [
            _by("helix-sim validate --kernels --system SYSTEM --framework FRAMEWORK"),
            table(("timing", *(f">{group}" for group in GROUPS)), rows),
        ]
    )


def _percents(*values: float) -> str:
    return " / ".join("" if value != value else f"{100 * value:.1f}" for value in values)


@cache
def _servings() -> Any:
    from helix_sim.silicon import validate

    return validate.report(validate.end_to_end(peer=True))


def servings(_: str) -> str:
    """Decode steps of measured servings: median / mean error by half and by system, coverage, the peer beside ours."""
    found = _servings()
    parts = [_by("helix-sim validate --end-to-end")]
    for reading in ("effective", "as given"):
        rows = []
        for which in ("all rows", "without doubtful rows"):
            frame = found[f"batch {reading}: by half, {which}"]
            rows += [
                (row["half"], which, row["count"], _percents(row["median"], row["mean"]), _percents(row["covered"]))
                for row in frame.to_dict("records")
            ]
        parts.append(f"### Batch {reading}: by half")
        parts.append(table(("half", "rows", ">count", ">median / mean error, %", ">inside the interval, %"), rows))
        kinds = found[f"batch {reading}: by kind of layout"].to_dict("records")
        rows = [
            (row["kind"], row["count"], _percents(row["median"], row["mean"]), _percents(row["covered"]))
            for row in kinds
        ]
        parts.append(f"### Batch {reading}: by kind of layout (DEP: data-parallel attention)")
        parts.append(table(("kind", ">count", ">median / mean error, %", ">inside the interval, %"), rows))
        peer = next(frame for title, frame in found.items() if title.startswith(f"batch {reading}: beside"))
        ours = found[f"batch {reading}: DeepSeek by system"].set_index("system")
        rows = [
            (
                row["system"], row["count"], _percents(*ours.loc[row["system"], ["median", "mean"]]),
                row["peer_predicts"], _percents(row["peer_median"], row["peer_mean"]),
                _percents(row["our_median_there"], row["our_mean_there"]),
            )
            for row in peer.to_dict("records")
        ]  # fmt: skip
        parts.append(f"### Batch {reading}: DeepSeek by system, median / mean error in percent")
        columns = ("system", ">rows", ">ours", ">rows aiconfigurator predicts", ">aiconfigurator there", ">ours there")
        parts.append(table(columns, rows))
    current = next(frame for title, frame in found.items() if "shipped timings" in title)
    rows = [(row["half"], row["count"], _percents(row["median"], row["mean"])) for row in current.to_dict("records")]
    parts.append("### Batch effective, on the shipped timings of today's software")
    parts.append(table(("half", ">count", ">median / mean error, %"), rows))
    overheads = next(frame for title, frame in found.items() if title.startswith("step overhead"))
    parts.append("### Step overhead that the development half asks for")
    parts.append(table(list(overheads.columns), overheads.astype(object).values.tolist()))
    return "\n\n".join(parts)


def mutants(_: str) -> str:
    """The score of `make mutants` by file, and the mutants that are no different, with why."""
    import csv

    import yaml

    folder = ROOT / "tests" / "mutants"
    if not (folder / "score.csv").exists():
        return 'Not yet counted: `make mutants ARGS="--write"` does it.'
    head, *lines = (folder / "score.csv").read_text(encoding="utf-8").splitlines()
    found = list(csv.DictReader(lines))
    counts = ("mutants", "killed", "equal", "survived")
    total = {name: sum(int(row[name]) for row in found) for name in counts}
    rows = [(f"`{row['path']}`", *(row[name] for name in counts)) for row in found]
    rows.append(("all", *(total[name] for name in counts)))
    equal = [
        (f"`{each['path'].removeprefix('helix_sim/')}`", f"`{each['where']}`", f"`{each['change']}`", each["why"])
        for each in yaml.safe_load((folder / "equal.yaml").read_text(encoding="utf-8"))
    ]
    command, _, score = head.removeprefix("# ").partition(": ")
    return "\n\n".join(
        [
            f"`{command}`: {score}.",
            table(("file", *(f">{name}" for name in counts)), rows),
            "### No different",
            table(("file", "where", "change", "why nothing can tell"), equal),
        ]
    )


def speed(_: str) -> str:
    """How long searches take here: medians of the CPU time of rounds that take turns."""
    from statistics import median
    from time import process_time

    import helix_sim as hs
    from helix_sim.search.plan import plan
    from helix_sim.search.sweep import run_plan

    long = range(2**14, 2**20 + 1, 2**14)
    searches = {
        "`paper-deepseek-r1`": hs.load_sweep("paper-deepseek-r1"),
        "the same at 64 contexts": hs.load_sweep("paper-deepseek-r1").model_copy(update={"contexts": list(long)}),
        "the same on `gb200-trtllm`": hs.load_sweep("paper-deepseek-r1").with_timing("gb200-trtllm"),
        "`paper-llama-3.1-405b`": hs.load_sweep("paper-llama-3.1-405b"),
    }
    plans = {name: plan(sweep) for name, sweep in searches.items()}
    seconds: dict[str, list[float]] = {job: [] for job in plans}
    found = {}
    for _round in range(4):
        for job, each in plans.items():
            begun = process_time()
            found[job] = run_plan(each)
            seconds[job].append(process_time() - begun)
    rows = []
    for job, times in seconds.items():
        took = median(times[1:])
        layouts = found[job].layouts
        run = layouts - sum(sum(reasons.values()) for reasons in found[job].dropped.values())
        rows.append((job, f"{layouts:,}", f"{run:,}", f"{took * 1e3:,.3g}", _rate(layouts / took), _rate(run / took)))
    day = datetime.date.today().isoformat()
    head = f"Printed by `python docs/generate.py --measured`, helix-sim {hs.__version__}, {day}, CPU time of one core."
    columns = ("what", ">layouts", ">that run", ">ms", ">layouts/s", ">that run, a second")
    return f"{head}\n\n{table(columns, rows)}"


def peers(_: str) -> str:
    """Layouts a second beside other tools: what `tests/benchmarks/peers.py` prints, given them by its variables."""
    import subprocess

    command = "tests/benchmarks/peers.py"
    shown = subprocess.run([sys.executable, str(ROOT / command)], capture_output=True, text=True, check=True)
    return f"{_by(f'python {command}')} CPU time of one core.\n\n{shown.stdout.strip()}"


def _rate(value: float) -> str:
    return f"{value / 1e6:,.3g} million" if value >= 1e6 else f"{value:,.3g}"


PRODUCERS: dict[str, Callable[[str], str]] = {
    "cli": cli,
    "verbs": verb_list,
    "yaml": yaml,
    "file": file,
    "constants": constants,
    "formats": formats,
    "models": models,
    "families": families,
    "tree": tree,
    "docstring": docstring,
    "api": api,
    "exits": exits,
    "reasons": reasons,
    "stack-rules": stack_rules,
    "stack-versions": stack_versions,
    "stack-formats": stack_formats,
    "stack-options": stack_options,
    "included": included,
    "knobs": knobs,
    "columns": columns,
    "columns-of-one-file": columns_of_one_file,
    "mutants": mutants,
    "servings-columns": servings_columns,
}
MEASURED: dict[str, Callable[[str], str]] = {
    "claims": claims,
    "kernels": kernels,
    "servings": servings,
    "speed": speed,
    "peers": peers,
    "stack-answers": stack_answers,
    "stack-choices": stack_choices,
}
"""What takes minutes: written on request alone, with the command and the day."""


# --- Commands and their answers --------------------------------------------------------------------------------------


def answer(command: str) -> str:
    """What a command of helix-sim prints, run here in this process; `> FILE` takes its standard output."""
    from helix_sim.cli import main

    words = shlex.split(command)
    target = None
    if ">" in words:
        target = words[words.index(">") + 1]
        words = words[: words.index(">")]
    out, everything = io.StringIO(), io.StringIO()
    argv, sys.argv = sys.argv, words
    asked_width = os.environ.pop("COLUMNS", None)  # pages are as wide wherever they are made
    try:
        with (
            contextlib.redirect_stdout(out if target else everything),
            contextlib.redirect_stderr(everything),
            contextlib.suppress(SystemExit),
        ):
            main()
    finally:
        if asked_width is not None:
            os.environ["COLUMNS"] = asked_width
        sys.argv = argv
    if "Traceback (most recent call last)" in everything.getvalue():
        raise RuntimeError(f"{command} is a fault:\n{everything.getvalue()}")
    if target:
        Path(target).write_text(out.getvalue(), encoding="utf-8")
    return "\n".join(line.rstrip() for line in everything.getvalue().splitlines()).strip("\n")


@contextlib.contextmanager
def elsewhere() -> Iterator[None]:
    """A folder of its own for what commands write."""
    with tempfile.TemporaryDirectory() as folder:
        before = os.getcwd()
        os.chdir(folder)
        try:
            yield
        finally:
            os.chdir(before)


def commands(body: str) -> Iterator[tuple[str, str]]:
    """Each command of a console block, and what the block says it prints."""
    for part in re.split(r"^\$ ", body, flags=re.MULTILINE)[1:]:
        command, _, printed = part.partition("\n")
        yield command, printed.strip("\n")


def agrees(said: str, printed: str) -> bool:
    """Whether a block says what was printed; `…` in it stands for any text."""
    pattern = ".*?".join(re.escape(part) for part in said.split("…"))
    return re.fullmatch(pattern, printed, re.DOTALL) is not None


def _kept_open(said: str, printed: str) -> str:
    """What was printed, with the lines of the block that stand for any text as they were."""
    open_lines = [line for line in said.splitlines() if "…" in line]
    lines = printed.splitlines()
    return "\n".join(next((line for line in open_lines if agrees(line, text)), text) for text in lines)


def _console(body: str) -> str:
    lines = []
    for command, said in commands(body):
        printed = answer(command)
        lines += [f"$ {command}", *([said if agrees(said, printed) else _kept_open(said, printed)] if printed else [])]
    return "\n".join(lines) + "\n"


# --- Writing ---------------------------------------------------------------------------------------------------------


def written(text: str, measured: bool = False) -> str:
    """A page with its regions and its answers as the code has them now."""

    def region(match: re.Match[str]) -> str:
        name, argument = match["name"], match["argument"] or ""
        if name in MEASURED and not measured:
            return match[0]
        made = (PRODUCERS | MEASURED)[name](argument)
        return f"{match[1]}\n{made}\n\n{match[4]}"

    with elsewhere():
        text = REGION.sub(region, text)
        return CONSOLE.sub(lambda match: f"{match['open']}{_console(match['body'])}{match['close']}", text)


def main() -> int:
    """Write the pages, or say which are stale."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--measured", action="store_true", help="also what takes minutes")
    parser.add_argument("--page", help="this page alone, such as performance.md")
    parser.add_argument("--check", action="store_true", help="write nothing; exit code 1 if a page is stale")
    given = parser.parse_args()
    stale = []
    for path in pages():
        if given.page and not str(path).endswith(given.page):
            continue
        before = path.read_text(encoding="utf-8")
        after = written(before, given.measured)
        if after != before:
            stale.append(path.relative_to(ROOT))
            if not given.check:
                path.write_text(after, encoding="utf-8")
    for name in stale:
        print(f"{name}: {'stale; run python docs/generate.py' if given.check else 'written anew'}")
    return 1 if given.check and stale else 0


if __name__ == "__main__":
    sys.exit(main())
