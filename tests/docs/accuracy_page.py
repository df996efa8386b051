"""Numbers of the accuracy page, by the heading and the row that they stand in: what tests hold against the tables."""

from __future__ import annotations

import re
from pathlib import Path

PAGE = Path(__file__).parents[2] / "docs" / "accuracy.md"

Row = dict[str, str]


def region(name: str) -> str:
    """What stands between a region's comments."""
    found = re.search(rf"<!-- generated: {name} -->\n(.*?)<!-- end -->", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    assert found, f"{PAGE.name} has no region {name}"
    return found[1]


def rows_of(text: str) -> list[Row]:
    """The rows of the first Markdown table of a text, by the names of its columns."""
    lines = [line.strip("| ").split(" | ") for line in text.splitlines() if line.startswith("|")]
    names, _, *rows = [[cell.strip().strip("`") for cell in line] for line in lines]
    return [dict(zip(names, row, strict=True)) for row in rows]


def section(text: str, heading: str) -> str:
    """What stands below a heading of the third level."""
    return text.split(f"### {heading}\n")[1].split("\n### ")[0]


def percents(cell: str) -> list[float]:
    """The numbers of a cell, such as 5.4 / 9.0, as shares of one."""
    return [float(part) / 100 for part in cell.split("/") if part.strip()]
