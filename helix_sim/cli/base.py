"""What every verb uses: the application, its common options, messages and tables."""

from __future__ import annotations

import contextlib
import io
import os
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn, TypeVar

import typer

from helix_sim.cli.help import Verb
from helix_sim.core.escape import json_text, terminal_line, terminal_lines

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Column, Table
    from rich.text import Text

    from helix_sim.specs.machine import Machine
    from helix_sim.specs.model import Model


F = TypeVar("F", bound=Callable[..., Any])


class Verbs(typer.Typer):
    """The application: every verb's help ends as `Verb` has it."""

    def command(self, name: str | None = None, **how: Any) -> Callable[[F], F]:
        """A decorator that makes a function a verb."""
        return super().command(name, cls=Verb, **how)


app = Verbs(
    name="helix-sim",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="How fast a model decodes, sharded every way a rack allows: latency, throughput, and what binds.",
)

ModelArgument = Annotated[str, typer.Argument(help="shipped model or path of a YAML file (see: helix-sim models)")]
MachineArgument = Annotated[
    str, typer.Argument(help="shipped machine or path of a YAML file (see: helix-sim machines)")
]
JsonOption = Annotated[bool, typer.Option("--json", help="print JSON for programs")]


def _writable_file(path: Path | None) -> Path | None:
    from helix_sim.core.files import require_writable

    if path is not None:
        require_writable(path)
    return path


def _writable_folder(path: Path | None) -> Path | None:
    from helix_sim.core.files import require_writable

    if path is not None:
        require_writable(path, folder=True)
    return path


OutFile = Annotated[Path, typer.Option(help="the file to write", callback=_writable_file)]
OutFolder = Annotated[Path, typer.Option(help="folder for the files", callback=_writable_folder)]
"""Where a verb writes: whether it can is asked before the work begins."""


def out_file(text: str, *names: str) -> Any:
    """An option that names a file to write."""
    return typer.Option(*names, help=text, callback=_writable_file)


def out_folder(text: str) -> Any:
    """An option that names a folder to write into."""
    return typer.Option(help=text, callback=_writable_folder)


def number_option(text: str) -> Any:
    """An option that is a number, which the verb reads with `size` or `number`."""
    return typer.Option(help=text, metavar="N")


# --- The process -----------------------------------------------------------------------------------------------------

USAGE_ERROR: type[Exception] = typer.BadParameter.__mro__[1]
"""typer's error for a command line that is none, which newer versions define and older ones have from click."""


def main() -> None:
    """Entry point: a user's mistake is one sentence on stderr and an exit code of `core.errors.Exit`, no traceback."""
    from helix_sim.core.errors import Exit, SpecError, Stopped

    _take_any_text()
    try:
        code = _run()
    except SpecError as error:
        fail(error.problems)
    except Stopped as error:
        fail([error.sentence], error.code)
    except USAGE_ERROR as error:
        fail([_usage(error)])
    except KeyboardInterrupt:
        fail(["interrupted"], Exit.INTERRUPTED)
    except OSError as error:
        _fail_to_write(error)
    except Exception:
        _report_bug()
    sys.exit(code)


def _run() -> int:
    """Run the verb; its exit code."""
    from helix_sim.core.errors import Exit

    try:
        code = app(standalone_mode=False)
        sys.stdout.flush()
    except SystemExit as stop:  # typer's answer to a closed pipe is exit code 1, which here means moved
        _close_outputs()
        return int(Exit.CLOSED_PIPE) if stop.code == 1 else int(stop.code or 0)
    return int(code or 0)


def _take_any_text() -> None:
    """Let print neither fail on a closed output nor on a character that the terminal's encoding lacks."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115 - as long as the process lives
        elif isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def _usage(error: Any) -> str:
    """typer's complaint as a sentence, what it is about in front; empty where it has shown the help instead."""
    context: Any = getattr(error, "ctx", None)
    parameter: Any = getattr(error, "param", None)
    option, text = getattr(error, "option_name", None), error.format_message().rstrip(".")
    match type(error).__name__:
        case "MissingParameter":
            name = parameter.opts[0] if parameter.opts[0].startswith("-") else parameter.name.upper()
            text = f"{name} is missing"
        case "NoSuchOption":
            near = f"; did you mean {error.possibilities[0]}?" if error.possibilities else ""
            text = f"{option}: there is no such option{near}"
        case "BadOptionUsage":
            text = f"{option}: its value is missing" if "requires" in text else f"{option}: {text}"
        case _ if parameter is not None:
            text = f"{parameter.opts[0]}: {error.message}"
    return f"{text}; see {context.command_path if context else 'helix-sim'} --help" if text else ""


def _fail_to_write(error: OSError) -> NoReturn:
    """End with a sentence on an output that cannot be written, or quietly where its reader has gone."""
    from helix_sim.core.errors import Exit, Stopped, cannot_write

    if error.filename is None:
        _close_outputs()
    try:
        raise cannot_write(error.filename or "standard output", error)
    except Stopped as stop:
        fail([] if stop.code == Exit.CLOSED_PIPE else [stop.sentence], stop.code)
    except OSError:
        _report_bug()


def _report_bug() -> NoReturn:
    """The traceback of a bug, which nobody catches, and an exit code that says so."""
    import traceback

    from helix_sim.core.errors import Exit

    with contextlib.suppress(OSError):  # where nobody reads it, it is still no 1
        print(terminal_lines(traceback.format_exc()), end="", file=sys.stderr)
    fail(["this is a fault of helix_sim, not yours; please report the lines above, and the command"], Exit.BUG)


def _close_outputs() -> None:
    """Let nothing that is still to be written fail once more when the process ends."""
    with contextlib.suppress(OSError, ValueError):
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, 1)
        os.close(nowhere)


def fail(problems: list[str], code: int | None = None) -> NoReturn:
    """Say what is wrong, and end with an exit code: the one for bad input unless given."""
    from helix_sim.core.errors import Exit

    with contextlib.suppress(OSError):
        for problem in problems:
            if problem:
                print(f"helix-sim: {terminal_line(problem)}", file=sys.stderr)
    sys.exit(int(Exit.BAD_INPUT if code is None else code))


def console() -> Console:
    """Rich output: coloured on a terminal, plain on a pipe and as wide as COLUMNS says (160 without it).

    Text is shown as it is, never read as markup.
    """
    from rich.console import Console

    class Literal(Console):
        """A console on which a text is one line of itself: rich asks this of every line, title and cell."""

        def render_str(self, text: str, **options: Any) -> Text:
            return super().render_str(terminal_line(text), **options)

    wished = os.environ.get("COLUMNS", "")
    width = int(wished) if wished.isdecimal() and 20 <= int(wished) <= 1000 else 160
    shown = {} if sys.stdout.isatty() else {"width": width, "no_color": True}
    return Literal(markup=False, emoji=False, **shown)  # type: ignore[arg-type]


def styled(*parts: str | tuple[str, str]) -> Text:
    """A line for the console, some of whose parts have a style: (text, style)."""
    from rich.text import Text

    pairs = ((part, "") if isinstance(part, str) else part for part in parts)
    return Text.assemble(*((terminal_line(text), style) for text, style in pairs))


def say(text: str) -> None:
    """One line to stdout."""
    print(terminal_line(text))


def remark(text: str) -> None:
    """One line to stderr."""
    print(terminal_line(text), file=sys.stderr)


def remark_on(model: Model) -> None:
    """To stderr, what makes a model's file doubtful; nothing where all is well."""
    if model.doubt:
        remark(model.doubt)


def remark_on_costs(machine: Machine) -> None:
    """To stderr, which costs cannot be said of a machine, and what to do; nothing where they can."""
    for text in filter(None, map(machine.lacks, ("usd_per_million_tokens", "joules_per_token"))):
        remark(text)


@contextlib.contextmanager
def working(what: str) -> Iterator[Callable[[str], None]]:
    """A line on a terminal's stderr that says what is done now, and for how long, until it is done; nothing elsewhere.

    Yields the function that changes what comes after `what`.
    """
    if not sys.stderr.isatty():
        yield lambda _: None
        return
    from rich.console import Console
    from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    parts = (SpinnerColumn(), TextColumn("{task.description}", markup=False), TimeElapsedColumn())
    with Progress(*parts, console=Console(stderr=True), transient=True) as shown:
        task = shown.add_task(what, total=None)
        yield lambda now: shown.update(task, description=terminal_line(f"{what} {now}"))


def print_text(text: str) -> None:
    """A file's text to stdout."""
    print(terminal_lines(text), end="")


def print_json(content: Any) -> None:
    """JSON to stdout, with characters as escapes where its encoding may lack them."""
    from helix_sim.core.files import plain

    ascii_only = (sys.stdout.encoding or "").lower() not in ("utf-8", "utf8")
    print(json_text(content, ascii_only=ascii_only, default=plain))


def print_answer(verb: str, content: Any) -> None:
    """What a verb found as JSON to stdout, by the keys of `helix-sim schema answer`."""
    from helix_sim.specs.quantities import answer

    print_json(answer(verb, content))


def size(text: str, option: str) -> int:
    """A whole number such as 8 or 1M; SpecError with the option's name in front otherwise."""
    from helix_sim.core.errors import SpecError
    from helix_sim.core.units import parse_size
    from helix_sim.search.layout_source import not_whole

    try:
        found = parse_size(text)
    except ValueError as error:
        raise SpecError([f"{option}: {error}"]) from None
    if problem := not_whole(found):
        raise SpecError([f"{option}: {problem}"])
    return found


def number(text: str, option: str) -> float:
    """A number above zero that arithmetic survives; SpecError with the option's name in front otherwise."""
    from math import isfinite, nan

    from helix_sim.core.errors import SpecError
    from helix_sim.core.text import said
    from helix_sim.specs.values import LIMIT

    try:
        found = float(text) if re.fullmatch(r"[0-9.eE+-]+", text) else nan
    except ValueError:
        found = nan
    if not isfinite(found) or found <= 0:
        raise SpecError([f"{option}: {said(text)} is not a number above 0"])
    if not 1 / LIMIT <= found <= LIMIT:
        raise SpecError([f"{option}: {said(text)} is not from {1 / LIMIT:g} to {LIMIT:g}"])
    return found


def show(out: Console, table: Table) -> None:
    """Print a table within the terminal's width: texts fold, then columns continue in a second table; digits stay."""
    from rich.measure import Measurement

    unlimited = out.options.update(width=1000)
    if Measurement.get(out, unlimited, table).maximum <= out.width:
        out.print(table)
        return
    for column in table.columns:
        column.no_wrap = column.justify == "right"
        column.overflow = "fold"
    sizes = [Measurement.get(out, unlimited, each) for each in _alone(table)]
    least = [size.maximum if column.no_wrap else size.minimum
             for size, column in zip(sizes, table.columns, strict=True)]  # fmt: skip
    for part in _parts(table, least, out.width):
        out.print(part, crop=False)


def _alone(table: Table) -> list[Table]:
    """Each column of a table as a table of its own."""
    return [_of_columns(table, [index]) for index in range(len(table.columns))]


def _of_columns(table: Table, which: list[int], title: bool = False) -> Table:
    """Some columns of a table, with its look."""
    from rich.table import Table

    part = Table(box=table.box, title=table.title if title else None, title_justify="left", pad_edge=table.pad_edge)
    columns = [table.columns[index] for index in which]
    for column in columns:
        part.add_column(column.header, justify=column.justify, no_wrap=column.no_wrap, overflow=column.overflow)
    for cells in zip(*(column.cells for column in columns), strict=True):
        part.add_row(*cells)
    return part


MOST_FOLDED = 26
"""Characters that a column of texts keeps at least before the table's other columns move below."""


def _parts(table: Table, least: list[int], width: int) -> list[Table]:
    """A table in as few parts as fit a width, each with its key in front: the first column, or the first two.

    least: characters that each column, its margins among them, needs.
    """
    widths = [size if column.no_wrap else max(size, min(MOST_FOLDED, _longest(column)) + 2)
              for size, column in zip(least, table.columns, strict=True)]  # fmt: skip
    first = list(table.columns[0].cells) if table.columns else []
    key = [0] if len(set(first)) == len(first) or len(widths) < 3 else [0, 1]
    groups = [list(key)]
    for index in range(len(key), len(widths)):
        group = (*groups[-1], index)
        if len(groups[-1]) > len(key) and sum(widths[i] for i in group) + len(group) - 1 > width:
            groups.append(list(key))
        groups[-1].append(index)
    return [_of_columns(table, group, title=not number) for number, group in enumerate(groups)]


def _longest(column: Column) -> int:
    return max((len(str(cell)) for cell in column.cells), default=0)


def new_table(*columns: str, title: str | None = None) -> Table:
    """A rich table; a column whose name starts with > is aligned right."""
    from rich import box
    from rich.table import Table

    table = Table(title=title, box=box.SIMPLE_HEAD, title_justify="left", pad_edge=False)
    for column in columns:
        table.add_column(column.removeprefix(">"), justify="right" if column.startswith(">") else "left", no_wrap=True)
    return table


def figure_text(value: float) -> str:
    """Four significant digits without an exponent; nothing for zero."""
    return f"{value:,.{max(0, 3 - len(str(int(abs(value)))))}f}" if value else ""


def print_rows(rows: Sequence[Mapping[Any, Any]]) -> None:
    if not rows:
        console().print("none")
        return
    columns = list(dict.fromkeys(name for row in rows for name in row))
    table = new_table(*(f">{name}" if _is_number(rows[0].get(name)) else name for name in columns))
    for row in rows:
        table.add_row(
            *(
                "-" if value is None else f"{value:,.6g}" if isinstance(value, float) else str(value)
                for value in row.values()
            )
        )
    show(console(), table)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) or value is None


def one_of(option: str, given: str, known: tuple[str, ...]) -> None:
    from helix_sim.core.errors import SpecError

    if given not in known:
        raise SpecError([f"{option}: {given!r} is not one of {', '.join(known)}"])


def refuse(given: Mapping[str, Any], why: str) -> None:
    """SpecError naming each option that was given and would do nothing."""
    from helix_sim.core.errors import SpecError

    if names := [name for name, value in given.items() if value]:
        raise SpecError([f"{name} {why}" for name in names])
