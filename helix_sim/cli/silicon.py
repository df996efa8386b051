"""Timings fitted to measured kernels, and judged by measured servings."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from helix_sim.cli.base import JsonOption, OutOption, app, console, print_json, print_rows, remark

MOST_CSV_BYTES = 2**24


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
) -> None:
    """Fit a timing to measured kernels: a YAML file that --timing reads, and measured against modelled as a picture."""
    from helix_sim.core.errors import SpecError

    if what == "silicon":
        if system is None or framework is None or source is not None:
            raise SpecError(["calibrate silicon needs --system and --framework, and has no --from"])
        _calibrate_silicon(system, framework, as_of, out)
    elif what == "gpu":
        if system is not None or framework is not None or as_of is not None:
            raise SpecError(["calibrate gpu measures the GPU in this machine: no --system, --framework or --as-of"])
        _calibrate_gpu(out, source)
    else:
        raise SpecError([f"{what!r} is not one of silicon, gpu"])


def _calibrate_silicon(system: str, framework: str, as_of: str | None, out: Path) -> None:
    from helix_sim.silicon.calibrate import calibrate
    from helix_sim.silicon.systems import check_names

    check_names(system, framework)
    made = _with_tables(lambda: calibrate(system, framework, software=as_of, say=remark))
    _write_calibration(made, out / f"{made.timing.name}.yaml")


def _calibrate_gpu(out: Path, source: Path | None) -> None:
    from helix_sim.core.errors import SpecError
    from helix_sim.core.files import appearing
    from helix_sim.kernels import measure, measurements
    from helix_sim.silicon import gpu
    from helix_sim.specs.load import decoded, read_bytes

    if out.suffix != ".yaml":
        raise SpecError([f"--out: {str(out)!r} must end in .yaml"])
    try:
        if source is not None:
            raw = read_bytes(source, str(source), MOST_CSV_BYTES)
            rows, provenance = measurements.parse_csv(decoded(raw, str(source)), str(source))
        else:
            provenance, rows = measure.provenance(), []
            for row in measure.measure():
                remark(f"{row.op_class}: batch {row.batch}, context {row.context}: {row.median_s * 1e6:.1f} µs")
                rows.append(row)
    except measure.NoGpu as missing:
        raise SpecError([str(missing)]) from None
    except ValueError as error:
        raise SpecError([str(error)]) from None
    if source is None:
        with appearing(out.with_suffix(".csv")) as partial:
            measurements.write_csv(partial, rows, provenance)
    _write_calibration(gpu.calibrate(rows, provenance, say=remark), out)


def _write_calibration(made: Any, path: Path) -> None:
    """The timing's file, measured against modelled beside it, and the held-out errors of each class."""
    from helix_sim.core.files import write_text
    from helix_sim.output import plot
    from helix_sim.silicon.fit import yaml_text

    write_text(path, yaml_text(made.timing))
    (picture,) = plot.save(
        plot.calibration(made.fitted, f"{made.timing.name}: measured and modelled"), path.with_suffix(""), ("png",)
    )
    print_rows(
        [
            {
                "class": key,
                "rows": len(each.modelled_s),
                "held_out": each.record.residuals.count,
                "median_error": each.record.residuals.median_error,
                "mean_error": each.record.residuals.mean_error,
            }
            for key, each in made.fitted.items()
        ],
        as_json=False,
    )
    console().print(f"files in {path.parent}: {path.name}, {picture.name}")


def _with_tables(call: Any) -> Any:
    """The call's result; a missing package or table is the user's one sentence."""
    from helix_sim.core.errors import SpecError
    from helix_sim.silicon.aic_tables import NoSuchTable, TablesMissing

    try:
        return call()
    except (NoSuchTable, TablesMissing) as error:
        raise SpecError([str(error)]) from None


@app.command()
def validate(
    kernels: Annotated[bool, typer.Option("--kernels", help="held-out errors of each class of kernels")] = False,
    end_to_end: Annotated[bool, typer.Option("--end-to-end", help="decode steps of 274 measured servings")] = False,
    system: Annotated[str, typer.Option(help="for --kernels: a system with public tables, such as gb200")] = "gb200",
    framework: Annotated[str, typer.Option(help="for --kernels: trtllm, sglang or vllm")] = "trtllm",
    peer: Annotated[bool, typer.Option(help="aiconfigurator's predictions beside ours (a minute more)")] = True,
    out: OutOption = Path("out/validate"),
    as_json: JsonOption = False,
) -> None:
    """Calibrated timings against measured silicon: kernels kept out of the fit, and whole servings."""
    from helix_sim.core.errors import SpecError

    if kernels == end_to_end:
        raise SpecError(["say what to validate: --kernels or --end-to-end"])
    if kernels:
        from helix_sim.silicon.systems import check_names
        from helix_sim.silicon.validate import kernels as judge

        check_names(system, framework)
        table = _with_tables(lambda: judge(system, framework))
        print_rows(table.astype(object).where(table.notna(), None).to_dict("records"), as_json)
    else:
        _validate_end_to_end(out, as_json, peer)


def _validate_end_to_end(out: Path, as_json: bool, peer: bool) -> None:
    from helix_sim.core.files import write_csv
    from helix_sim.output import plot
    from helix_sim.silicon import validate as study

    table = _with_tables(lambda: study.end_to_end(peer=peer))
    report = study.report(table)
    files = [write_csv(out / "end-to-end.csv", table)]
    for reading in study.BATCHES:
        title = f"Decode steps of measured servings, batch {reading.replace('_', ' ')}"
        files += plot.save(plot.end_to_end(table, reading, title), out / f"end-to-end-{reading}")
    if as_json:
        print_json({name: frame.to_dict("records") for name, frame in report.items()})
        return
    for name, frame in report.items():
        console().print(f"\n{name}")
        print_rows(frame.to_dict("records"), as_json=False)
    console().print(f"files in {out}: {', '.join(path.name for path in files)}")
