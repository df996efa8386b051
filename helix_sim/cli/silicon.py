"""Timings fitted to measured kernels, and judged by measured servings."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    import pandas as pd

from helix_sim.cli.base import (
    JsonOption,
    app,
    console,
    one_of,
    out_folder,
    print_answer,
    print_rows,
    refuse,
    remark,
    working,
)


@app.command()
def calibrate(
    what: Annotated[str, typer.Argument(help="silicon: public tables of kernels; gpu: the GPU in this machine")],
    out: Annotated[Path, typer.Option(help="silicon: a folder; gpu: the YAML file, its CSV and picture beside it")],
    system: Annotated[
        str | None, typer.Option(help="silicon: a system with public tables, such as gb200 or b300")
    ] = None,
    framework: Annotated[str | None, typer.Option(help="silicon: trtllm, sglang or vllm")] = None,
    as_of: Annotated[str | None, typer.Option(help="silicon: tables of the time of this framework version")] = None,
    source: Annotated[Path | None, typer.Option("--from", help="gpu: refit a file of measurements instead")] = None,
    as_json: JsonOption = False,
) -> None:
    """Fit a timing to measured kernels: a YAML file that --timing reads, and measured against modelled as a picture."""
    from helix_sim.core.errors import SpecError
    from helix_sim.core.files import require_writable
    from helix_sim.output.calibration import calibrate_gpu, calibrate_silicon

    one_of("calibrate", what, ("silicon", "gpu"))
    require_writable(out, folder=what == "silicon")
    if what == "silicon":
        if system is None or framework is None:
            raise SpecError(["calibrate silicon needs --system and --framework"])
        refuse({"--from": source}, "is for calibrate gpu; leave it out")
        with working("fitting"):
            found = calibrate_silicon(system, framework, out, as_of=as_of, say=remark)
    else:
        refuse(
            {"--system": system, "--framework": framework, "--as-of": as_of},
            "is for calibrate silicon; calibrate gpu measures the GPU in this machine",
        )
        with working("measuring"):
            found = calibrate_gpu(out, measurements=source, say=remark)
    if as_json:
        print_answer("calibrate", {"tables": {"classes": found.rows()}, "files": list(map(str, found.files))})
        return
    print_rows(found.rows())
    console().print(f"files in {found.files[0].parent}: {', '.join(path.name for path in found.files)}")


@app.command()
def validate(
    kernels: Annotated[bool, typer.Option("--kernels", help="held-out errors of each class of kernels")] = False,
    end_to_end: Annotated[bool, typer.Option("--end-to-end", help="decode steps of 274 measured servings")] = False,
    measurements: Annotated[
        Path | None, typer.Option(help="a CSV file of your own measured servings, see the how-to; or one of InferenceX")
    ] = None,
    timing: Annotated[
        str | None,
        typer.Option(help="for --measurements: judge this timing; each row's own system and framework unless given"),
    ] = None,
    system: Annotated[
        str | None, typer.Option(help="for --kernels: a system of public tables; gb200 unless given")
    ] = None,
    framework: Annotated[
        str | None, typer.Option(help="for --kernels: trtllm, sglang or vllm; trtllm unless given")
    ] = None,
    peer: Annotated[
        bool | None, typer.Option(help="for --end-to-end: aiconfigurator's predictions beside ours (a minute more)")
    ] = None,
    out: Annotated[
        Path | None, out_folder("for --end-to-end and --measurements: folder for the files; out/validate unless given")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Calibrated timings against measured silicon: kernels kept out of the fit, and whole servings."""
    from helix_sim.core.errors import SpecError
    from helix_sim.output.calibration import validate_kernels, validate_measurements, validate_servings

    if kernels + end_to_end + (measurements is not None) != 1:
        raise SpecError(["say what to validate: --kernels, --end-to-end or --measurements FILE.csv"])
    if measurements is None:
        refuse({"--timing": timing}, "is for --measurements; leave it out")
    if kernels:
        refuse({"--out": out}, "is for --end-to-end and --measurements; leave it out")
        refuse({"--peer": peer is not None}, "is for --end-to-end; leave it out")
        with working("fitting to the rest"):
            table = validate_kernels(system or "gb200", framework or "trtllm")
        rows = _records(table)
        print_answer("validate", {"tables": {"kernels": rows}}) if as_json else print_rows(rows)
        return
    refuse({"--system": system, "--framework": framework}, "is for --kernels; leave it out")
    if measurements is not None:
        refuse({"--peer": peer is not None}, "is for --end-to-end; leave it out")
        with working("predicting"):
            found = validate_measurements(measurements, out or Path("out/validate"), timing=timing)
    else:
        with working("predicting"):
            found = validate_servings(out or Path("out/validate"), peer=peer is not False)
    if as_json:
        tables = {name: _records(frame) for name, frame in found.tables.items()}
        print_answer("validate", {"tables": tables, "files": list(map(str, found.files))})
        return
    for name, frame in found.tables.items():
        console().print()
        console().print(name)
        print_rows(_records(frame))
    console().print(f"files in {found.files[0].parent}: {', '.join(path.name for path in found.files)}")


def _records(table: pd.DataFrame) -> list[dict[Any, Any]]:
    """A table's rows, with nothing where a number is missing."""
    records: list[dict[Any, Any]] = table.astype(object).where(table.notna(), None).to_dict("records")
    return records
