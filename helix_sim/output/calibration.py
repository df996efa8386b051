"""Calibrated timings into files, and their judgement by measurements that the fit has not seen."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from helix_sim.core.display import Short
from helix_sim.core.errors import SpecError
from helix_sim.core.files import appearing, write_csv, write_text

if TYPE_CHECKING:
    import pandas as pd

    from helix_sim.silicon.fit import Calibrated

MOST_CSV_BYTES = 2**24
"""Of measurements: some hundred thousand rows."""

T = TypeVar("T")
Say = Callable[[str], None]


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class Calibration(Short):
    """A timing as fitted, and the files that hold it: its YAML, and measured against modelled as a picture."""

    made: Calibrated
    files: list[Path]

    def rows(self) -> list[dict[str, Any]]:
        """Each class of kernels: rows of its table, cells kept out of the fit, and the errors on these."""
        return [
            {
                "class": key,
                "rows": len(each.modelled_s),
                "held_out": each.record.residuals.count,
                "median_error": each.record.residuals.median_error,
                "mean_error": each.record.residuals.mean_error,
            }
            for key, each in self.made.fitted.items()
        ]


def calibrate_silicon(
    system: str, framework: str, out: Path, *, as_of: str | None = None, say: Say = lambda _: None
) -> Calibration:
    """Fit a timing to public tables of measured kernels, and write it into the folder `out`.

    system: a machine with public tables, such as gb200. framework: trtllm, sglang or vllm. as_of: a version of the
    framework whose time the tables should be of. say: told of each class as it is fitted.
    """
    from helix_sim.silicon.calibrate import calibrate
    from helix_sim.silicon.systems import check_names

    check_names(system, framework)
    made = _with_tables(lambda: calibrate(system, framework, software=as_of, say=say))
    return _written(made, out / f"{made.timing.name}.yaml")


def calibrate_gpu(out: Path, *, measurements: Path | None = None, say: Say = lambda _: None) -> Calibration:
    """Measure the reference kernels on the GPU of this machine, fit a timing to them, and write it to the file `out`.

    measurements: a CSV of an earlier run, refitted instead; without, one is written beside `out`. say: told of each
    kernel as it is measured, and of each class as it is fitted.
    """
    from helix_sim.kernels import measure
    from helix_sim.kernels import measurements as table
    from helix_sim.silicon import gpu
    from helix_sim.specs.load import decoded, read_bytes

    if out.suffix != ".yaml":
        raise SpecError([f"--out: {str(out)!r} must end in .yaml"])
    try:
        if measurements is not None:
            raw = read_bytes(measurements, str(measurements), MOST_CSV_BYTES)
            rows, provenance = table.parse_csv(decoded(raw, str(measurements)), str(measurements))
        else:
            provenance, rows = measure.provenance(), []
            for row in measure.measure():
                say(f"{row.op_class}: batch {row.batch}, context {row.context}: {row.median_s * 1e6:.1f} µs")
                rows.append(row)
    except measure.NoGpu as missing:
        raise SpecError([str(missing)]) from None
    except ValueError as error:
        raise SpecError([str(error)]) from None
    if measurements is None:
        with appearing(out.with_suffix(".csv")) as partial:
            table.write_csv(partial, rows, provenance)
    return _written(gpu.calibrate(rows, provenance, say=say), out)


def _written(made: Calibrated, path: Path) -> Calibration:
    """The timing's file, and the picture beside it."""
    from helix_sim.output import calibration_plots, plot
    from helix_sim.silicon.fit import yaml_text

    write_text(path, yaml_text(made.timing))
    drawn = calibration_plots.calibration(made.fitted, f"{made.timing.name}: measured and modelled")
    return Calibration(made=made, files=[path, *plot.save(drawn, path.with_suffix(""), ("png",))])


def _with_tables(call: Callable[[], T]) -> T:
    """The call's result; a missing package or table is the user's one sentence."""
    from helix_sim.silicon.aic_tables import NoSuchTable, TablesMissing

    try:
        return call()
    except (NoSuchTable, TablesMissing) as error:
        raise SpecError([str(error)]) from None


# --- Judgement -------------------------------------------------------------------------------------------------------


def validate_kernels(system: str, framework: str) -> pd.DataFrame:
    """Errors of a fitted timing on the kernels kept out of its fit, a row a class.

    system: a machine with public tables, such as gb200. framework: trtllm, sglang or vllm.
    """
    from helix_sim.silicon.systems import check_names
    from helix_sim.silicon.validate import kernels

    check_names(system, framework)
    return _with_tables(lambda: kernels(system, framework))


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class Servings(Short):
    """Decode steps of measured servings beside ours: tables of errors by name, and the files with every row."""

    tables: dict[str, pd.DataFrame]
    files: list[Path]


def validate_servings(out: Path, *, peer: bool = True) -> Servings:
    """Decode steps of 274 measured servings beside ours; every row as CSV and in pictures, into the folder `out`.

    peer: aiconfigurator's own predictions beside ours, which take a minute more.
    """
    from helix_sim.output import calibration_plots, plot
    from helix_sim.silicon import validate as study

    table = _with_tables(lambda: study.end_to_end(peer=peer))
    files = [write_csv(out / "end-to-end.csv", table)]
    for reading in study.BATCHES:
        title = f"Decode steps of measured servings, batch {reading.replace('_', ' ')}"
        files += plot.save(calibration_plots.end_to_end(table, reading, title), out / f"end-to-end-{reading}")
    return Servings(tables=study.report(table), files=files)


def validate_measurements(measurements: Path, out: Path, *, timing: str | None = None) -> Servings:
    """Measured servings of a CSV file beside ours: error by group, coverage, what was left out, the worst op by op.

    measurements: columns of helix_sim.silicon.servings.COLUMNS, or a file of InferenceX. timing: of all rows, a name or
    a YAML file; that of each row's system and framework unless given. Every row that is predicted goes into the folder
    `out` as CSV, and every pair with and without drafts.
    """
    import pandas as pd

    from helix_sim.silicon import servings
    from helix_sim.specs.load import load_timing

    table = servings.read(measurements)
    chosen = load_timing(timing) if timing else None
    judged = _with_tables(lambda: servings.judge(table, chosen))
    files = [write_csv(out / "measurements.csv", pd.concat([judged.rows, judged.drafting], ignore_index=True))]
    if len(judged.pairs):
        files.append(write_csv(out / "pairs.csv", judged.pairs))
    return Servings(tables=servings.report(judged), files=files)
