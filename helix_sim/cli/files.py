"""What is shipped, whether a file is right, and the version."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from helix_sim.cli.base import JsonOption, app, print_answer, print_rows, remark, say


@app.command()
def models(as_json: JsonOption = False) -> None:
    """The shipped models: parameters computed and published, layers, KV cache per token."""
    from helix_sim.specs.catalogue import models

    rows = models()
    print_answer("models", rows) if as_json else print_rows(rows)


@app.command()
def machines(as_json: JsonOption = False) -> None:
    """The shipped machines: rates, memory, NVLink domain."""
    from helix_sim.specs.catalogue import machines

    rows = machines()
    print_answer("machines", rows) if as_json else print_rows(rows)


@app.command("hardware", hidden=True)
def hardware(as_json: JsonOption = False) -> None:
    """The name that `machines` had."""
    remark("hardware is now machines, and goes with the next release")
    machines(as_json)


@app.command()
def check(
    files: Annotated[list[Path], typer.Argument(help="model, machine, timing or sweep YAML files")],
    as_json: JsonOption = False,
) -> None:
    """Whether files are right: each problem in a sentence, with its place and what would be right."""
    from helix_sim.core.errors import SpecError
    from helix_sim.specs.catalogue import check

    problems: list[str] = []
    checked = check(files)
    for found in checked:
        problems += found.problems
        for text in found.remarks:
            remark(text)
        if found.record is not None and not as_json:
            kind, name = (getattr(found.record, key, "?") for key in ("kind", "name"))
            say(f"{found.path}: a {kind} named {name}, no problem")
    if as_json:
        print_answer("check", [found.row() for found in checked])
    if problems:
        raise SpecError(problems)


@app.callback(invoke_without_command=True)
def version(show: Annotated[bool, typer.Option("--version", help="print the version and stop")] = False) -> None:
    """Options before the verb."""
    if show:
        from helix_sim import __version__

        say(f"helix-sim {__version__}")
        raise typer.Exit
