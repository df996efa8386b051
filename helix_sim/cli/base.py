"""What every verb uses: the application, its common options, messages and tables."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table


app = typer.Typer(
    name="helix-sim",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="How fast a model decodes, sharded every way a rack allows: latency, throughput, and what binds.",
)

BAD_INPUT = 2

ModelArgument = Annotated[str, typer.Argument(help="shipped model or path of a YAML file (see: helix-sim models)")]
MachineArgument = Annotated[
    str, typer.Argument(help="shipped machine or path of a YAML file (see: helix-sim hardware)")
]
ContextOption = Annotated[str, typer.Option(help="tokens in each request's KV cache, e.g. 128K, 1M, 1Mi")]
TimingOption = Annotated[
    str | None, typer.Option(help="ideal, paper, measured kernels such as gb200-trtllm, or a timing's YAML file")
]
JsonOption = Annotated[bool, typer.Option("--json", help="print JSON for programs")]
OutOption = Annotated[Path, typer.Option(help="folder for the files")]


def main() -> None:
    """Entry point: a user's mistake is one sentence on stderr and exit code 2, never a traceback."""
    from helix_sim.core.errors import SpecError, Stopped

    try:
        app()
    except SpecError as error:
        fail(error.problems)
    except Stopped as error:
        fail([error.sentence], error.code)
    except BrokenPipeError:
        sys.stderr.close()
        sys.exit(1)
    except OSError as error:
        fail([f"{error.filename}: {error.strerror}" if error.filename else str(error)])


def fail(problems: list[str], code: int = BAD_INPUT) -> None:
    """Say what is wrong, and end with an exit code: the one for bad input unless given."""
    for problem in problems:
        print(f"helix-sim: {problem}", file=sys.stderr)
    sys.exit(code)


def console() -> Console:
    """Rich output: coloured on a terminal, plain and wide on a pipe."""
    from rich.console import Console

    return Console() if sys.stdout.isatty() else Console(width=160, no_color=True)


def remark(text: str) -> None:
    """One line to stderr."""
    print(text, file=sys.stderr)


def print_json(content: Any) -> None:
    """JSON to stdout."""
    from helix_sim.core.files import plain

    print(json.dumps(content, indent=2, ensure_ascii=False, default=plain))


def size(text: str, option: str) -> int:
    """A size such as 1M; SpecError naming the option otherwise."""
    from helix_sim.core.errors import SpecError
    from helix_sim.core.units import parse_size

    try:
        return parse_size(text)
    except ValueError as error:
        raise SpecError([f"{option}: {error}"]) from None


def show(out: Console, table: Table) -> None:
    """Print a table at its own width: on a narrow terminal its lines wrap, but no number loses its digits."""
    from rich.measure import Measurement

    terminal = out.width
    out.width = max(terminal, Measurement.get(out, out.options.update(width=1000), table).maximum)
    out.print(table, crop=False)
    out.width = terminal


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


def print_rows(rows: Sequence[Mapping[Any, Any]], as_json: bool) -> None:
    if as_json:
        print_json(rows)
        return
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
