"""Every accuracy figure of the documentation stands on one page, and is what the shipped timings say of themselves.

The figures of servings are held against the tables by `tests/silicon/test_validate.py`, which has them.
"""

from __future__ import annotations

import re

import pytest
from docs.accuracy_page import percents, region, rows_of
from docs.test_pages import PAGES, name_of, text_of

from helix_sim.silicon.validate import GROUPS
from helix_sim.specs.load import load_timing, shipped

MEASURED = [name for name in shipped("timing") if load_timing(name).calibration is not None]


def test_accuracy_figures_stand_on_the_accuracy_page_alone():
    figure = re.compile(
        r"(median|mean)\b[^\n.]{0,40}\berrors?\b[^\n.]{0,30}\d[\d.]* ?%|\berrors? of \d[\d.]* ?%", re.IGNORECASE
    )
    for path in PAGES:
        if path.name != "accuracy.md":
            assert not figure.search(text_of(path)), name_of(path)


def test_the_page_has_every_measured_timing():
    assert [row["timing"] for row in rows_of(region("kernels"))] == MEASURED


@pytest.mark.parametrize("name", MEASURED)
@pytest.mark.parametrize("group", GROUPS)
def test_the_mean_error_of_a_group_is_that_of_its_classes(name: str, group: str):
    (row,) = (row for row in rows_of(region("kernels")) if row["timing"] == name)
    classes = load_timing(name).calibration.classes
    mine = [
        each.residuals
        for key, each in classes.items()
        if key.startswith(GROUPS[group]) and "borrowed" not in each.source
    ]
    if any("borrowed" in each.source for key, each in classes.items() if key.startswith(GROUPS[group])):
        pytest.skip("some of the group is borrowed; the page pools the framework's own alone")
    pooled = sum(each.count * each.mean_error for each in mine) / sum(each.count for each in mine)
    assert percents(row[group])[1] == pytest.approx(pooled, abs=0.001)
