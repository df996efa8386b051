"""A comparison as files: tidy tables (CSV, Parquet, XLSX with units and provenance) and pictures for slides."""

from __future__ import annotations

import importlib.util
import itertools
from pathlib import Path
from typing import TYPE_CHECKING, Any

from helix_sim.answers.compare import Compared
from helix_sim.core.escape import csv_cell
from helix_sim.core.files import appearing, write_csv, write_json, write_parquet
from helix_sim.output import comparison_plots, plot
from helix_sim.output.report import sourced
from helix_sim.specs.quantities import units_of

if TYPE_CHECKING:
    import pandas as pd


def write_comparison(found: Compared, out: Path) -> list[Path]:
    """Every file of a comparison in a folder; the paths. XLSX where openpyxl is installed (the extra `xlsx`)."""
    import pandas as pd

    out.mkdir(parents=True, exist_ok=True)
    frame, points = pd.DataFrame(found.rows()), found.frontiers()
    files = [write_csv(out / "comparison.csv", frame), write_parquet(out / "comparison.parquet", frame)]
    if len(points):
        files += [write_csv(out / "frontiers.csv", points), write_parquet(out / "frontiers.parquet", points)]
    files.append(write_json(out / "comparison.json", found.record()))
    if importlib.util.find_spec("openpyxl"):
        files.append(_write_workbook(out / "comparison.xlsx", found, frame))
    if frame.get("tokens_per_s_gpu") is not None:
        files += _draw(found, frame, out)
    return files


def _draw(found: Compared, frame: pd.DataFrame, out: Path) -> list[Path]:
    """Bars and frontiers, a slide each: several where one would be crowded."""
    slides = {"bars": comparison_plots.comparison_bars(frame, found.against)}
    slides["frontiers"] = comparison_plots.comparison_frontiers(found.curves(), found.comparison.ttl_ms, found.against)
    files = []
    for kind, figures in slides.items():
        for number, figure in enumerate(figures, start=1):
            page = f"-{number}" if len(figures) > 1 else ""
            files += plot.save(figure, out / f"{kind}{page}")
    return files


def _write_workbook(path: Path, found: Compared, frame: pd.DataFrame) -> Path:
    """Three sheets: the rows with units under their names, what each search rests on, and the remarks."""
    import pandas as pd

    sources = pd.DataFrame(_provenance(found), columns=["search", "what", "value", "source"])
    remarks = pd.DataFrame({"remark": found.remarks})
    units = pd.DataFrame([dict.fromkeys(frame, "") | units_of(frame)])
    sheets = {"rows": pd.concat([units, frame.astype(object)]), "provenance": sources, "remarks": remarks}
    with appearing(path) as partial, pd.ExcelWriter(partial, engine="openpyxl") as book:
        for name, sheet in sheets.items():
            safe = sheet.map(lambda value: csv_cell(value) if isinstance(value, str) else value)
            safe.to_excel(book, sheet_name=name, index=False)
            book.sheets[name].freeze_panes = "A3" if name == "rows" else "A2"
            for cell in itertools.chain.from_iterable(book.sheets[name].iter_rows()):
                if cell.data_type == "e":  # a text such as #N/A, which openpyxl takes for an error's value
                    cell.data_type = "s"
            _set_widths(book.sheets[name])
    return path


WIDEST = 60
"""Characters of a column of a workbook at most; what is longer wraps."""


def _set_widths(sheet: Any) -> None:
    """Columns as wide as what they hold, long texts wrapped, numbers to four digits behind the point."""
    from openpyxl.styles import Alignment  # type: ignore[import-untyped]

    for column in sheet.columns:
        longest = max(len(f"{cell.value:.6g}" if isinstance(cell.value, float) else str(cell.value or ""))
                      for cell in column)  # fmt: skip
        sheet.column_dimensions[column[0].column_letter].width = min(longest, WIDEST) + 2
        for cell in column:
            if isinstance(cell.value, float):
                cell.number_format = "#,##0.0###"
            elif longest > WIDEST:
                cell.alignment = Alignment(wrap_text=True, vertical="top")


def _provenance(found: Compared) -> list[tuple[str, str, Any, str]]:
    """Each value of each machine and timing that was used, with where it comes from."""
    rows = []
    for each in found.searches:
        search = f"{each.plan.model.name} on {each.plan.machine.name}, {each.plan.timing.name}"
        for kind, part in each.plan.inputs.items():
            rows.append((search, f"{kind} digest", part.digest, part.file))
        machine = each.plan.machine
        rows += [(search, f"{machine.name}.{name}", value, source) for name, value, source in sourced(machine)]
        calibration = each.plan.timing.calibration
        for name, kernels in calibration.classes.items() if calibration else ():
            rows.append((search, f"{each.plan.timing.name}.{name}", kernels.shape, kernels.source))
    return rows
