"""Recorded numbers stand still: a sample of the layouts, every frontier and claim; all records with `--held-still`."""

from importlib import metadata

import held_still
import pytest
from held_still import MOST, RECORDS, difference, recorded

from helix_sim.silicon import aic_tables as tables

SAMPLE = 60


@pytest.fixture
def everything(request):
    if not request.config.getoption("--held-still"):
        pytest.skip("takes minutes: make test ARGS=--held-still")


@pytest.fixture
def installed_tables():
    try:
        installed = metadata.version(tables.DISTRIBUTION)
    except metadata.PackageNotFoundError:
        installed = None
    if installed != tables.VERSION:
        pytest.skip(f"needs {tables.DISTRIBUTION} {tables.VERSION}, found {installed}")


def holds(name, today, then):
    moved, where = difference(name, today, then)
    assert moved <= MOST, f"{name}: {where}"


def test_random_layouts_take_and_hold_what_they_did(pytestconfig):
    then = recorded("layouts")
    if not pytestconfig.getoption("--held-still"):
        then = then.groupby("timing", sort=False).head(SAMPLE).reset_index(drop=True)
    timings = then["timing"].value_counts(sort=False)
    holds("layouts", held_still.layouts(timings.index, count=timings.min()), then)


@pytest.mark.parametrize("name", ["frontier-deepseek-r1", "frontier-llama-3.1-405b", "claims"])
def test_frontiers_and_claims_are_what_they_were(name):
    holds(name, RECORDS[name].compute(), recorded(name))


@pytest.mark.parametrize("timing", recorded("kernels")["timing"].unique())
def test_measured_kernels_are_predicted_as_they_were(timing, everything, installed_tables):
    then = recorded("kernels").query("timing == @timing").reset_index(drop=True)
    holds("kernels", held_still.kernels([timing]), then)


@pytest.mark.parametrize("name", ["servings", "report"])
def test_servings_are_predicted_as_they_were(name, everything, installed_tables):
    holds(name, RECORDS[name].compute(), recorded(name))


def test_a_number_that_moves_in_its_twelfth_digit_is_seen():
    then = recorded("claims")
    for factor, still in ((1 + 1e-13, True), (1 + 1e-11, False)):
        moved = then.assign(ours=then["ours"].where(then.index != 3, then["ours"] * factor))
        assert (difference("claims", moved, then)[0] <= MOST) is still
    assert difference("claims", then.drop(index=3), then)[0] == float("inf")
    assert difference("claims", then.assign(claim=then["claim"] + "x"), then)[0] == float("inf")
