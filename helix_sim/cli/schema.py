"""The JSON schema of a kind of file, for editors."""

from __future__ import annotations

from typing import Annotated

import typer

from helix_sim.cli.base import app, print_json


@app.command()
def schema(
    kind: Annotated[
        str,
        typer.Argument(
            help="model, machine, timing, sweep, framework, families or comparison; answer: what --json prints"
        ),
    ],
) -> None:
    """The JSON schema of a kind of YAML file, which an editor checks it by, or of every answer that --json prints."""
    from helix_sim.specs.schema import json_schema

    print_json(json_schema(kind))
