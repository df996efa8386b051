"""What is shipped, whether a file is right, and the version."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    pass

from helix_sim.cli.base import JsonOption, app, print_rows


@app.command()
def models(as_json: JsonOption = False) -> None:
    """The shipped models: parameters computed and published, layers, KV cache per token."""
    from helix_sim.specs.load import load_model, shipped

    rows = []
    for name in shipped("model"):
        model = load_model(name)
        rows.append(
            {
                "name": name,
                "attention": ", ".join(sorted({a.kind for a in model.attention.values()})),
                "layers": model.layer_count,
                "parameters_B": model.total_parameters / 1e9,
                "published_parameters_B": model.published_parameters_B,
                "kv_values_per_token": model.kv_values_per_token,
            }
        )
    print_rows(rows, as_json)


@app.command()
def hardware(as_json: JsonOption = False) -> None:
    """The shipped machines: rates, memory, NVLink domain."""
    from helix_sim.specs.load import load_machine, shipped

    rows = []
    for name in shipped("machine"):
        machine = load_machine(name)
        rows.append(
            {
                "name": name,
                "hbm_GBps": machine.hbm_bandwidth_GBps.value,
                "memory_GB": machine.memory_GB.value,
                **{f"{kind}_dense_TFLOPs": _rate(machine, kind) for kind in ("bf16", "fp8", "fp4")},
                "nvlink_GBps": machine.nvlink_per_direction_GBps.value,
                "nvlink_domain": machine.domain,
                "network_GBps": machine.network_per_direction_GBps.value,
            }
        )
    print_rows(rows, as_json)


def _rate(machine: Any, kind: str) -> float | None:
    quantity = getattr(machine, f"{kind}_dense_TFLOPs")
    return quantity.value if quantity else None


@app.command()
def check(files: Annotated[list[Path], typer.Argument(help="model, machine, timing or sweep YAML files")]) -> None:
    """Whether files are right: each problem in a sentence, with its place and what would be right."""
    from helix_sim.core.errors import SpecError
    from helix_sim.specs.load import check_file

    problems: list[str] = []
    for path in files:
        try:
            record = check_file(path)
            print(f"{path}: a {getattr(record, 'kind', 'file')} named {getattr(record, 'name', '?')}, no problem")
        except SpecError as error:
            problems += error.problems
    if problems:
        raise SpecError(problems)


@app.callback(invoke_without_command=True)
def version(show: Annotated[bool, typer.Option("--version", help="print the version and stop")] = False) -> None:
    """Options before the verb."""
    if show:
        from helix_sim import __version__

        print(f"helix-sim {__version__}")
        raise typer.Exit
