"""Files: a model made of a config, what is shipped, whether a file is right, and the version."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from helix_sim.cli.base import (
    JsonOption,
    app,
    number,
    number_option,
    out_file,
    print_answer,
    print_rows,
    print_text,
    remark,
    say,
)


@app.command("import-hf")
def import_hf(
    config: Annotated[Path, typer.Argument(help="a Hugging Face config.json, or the folder that holds it")],
    out: Annotated[Path | None, out_file("the file to write; printed unless given")] = None,
    name: Annotated[str | None, typer.Option(help="the model's name; from the config or its path unless given")] = None,
    source: Annotated[str | None, typer.Option(help="where the config comes from, such as its URL")] = None,
    published_parameters: Annotated[
        str | None, number_option("parameters that its publisher counts, in billions")
    ] = None,
    full_attention: Annotated[
        bool, typer.Option("--full-attention", help="read windowed and chunked layers as full attention: a bound")
    ] = False,
    change: Annotated[
        list[str] | None, typer.Option("--set", help="read a field with another value: sliding_window=null; repeat")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """A model spec from a Hugging Face config; what cannot be modelled is refused by the name of its field."""
    from helix_sim.core.files import write_text
    from helix_sim.specs.import_hf import import_file, parse_changes

    published_B = number(published_parameters, "--published-parameters") if published_parameters is not None else None
    found = import_file(
        config,
        name=name,
        source=source,
        published_B=published_B,
        full_attention=full_attention,
        changes=parse_changes(change or ()),
    )
    for text in (found.counts, *found.remarks):
        remark(text)
    if out:
        write_text(out, found.text)
        remark(f"written to {out}")
    if as_json:
        print_answer("import-hf", found.record())
    elif not out:
        print_text(found.text)


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
        from helix_sim.core.version import __version__

        say(f"helix-sim {__version__}")
        raise typer.Exit
