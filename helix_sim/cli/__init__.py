"""The command line: parses, calls one library function a verb, prints. Results to stdout, remarks to stderr."""

from helix_sim.cli import steps, sweeps, recommend, layouts, compare, silicon, files, schema  # noqa: F401, I001 - the order of the verbs in --help
from helix_sim.cli.base import app, main

__all__ = ["app", "main"]
