"""The JSON schema of a kind of file, for editors."""

from __future__ import annotations

from typing import Annotated

import typer

from helix_sim.cli.base import app, print_json


@app.command()
def schema(kind: Annotated[str, typer.Argument(help="model, machine, timing, sweep, framework or families")]) -> None:
    """The JSON schema of a kind of YAML file, with which an editor completes and checks it while it is written."""
    from helix_sim.specs.schema import json_schema

    print_json(json_schema(kind))
