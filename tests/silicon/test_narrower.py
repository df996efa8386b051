"""A narrower format is slower only where the tables say so too."""

from __future__ import annotations

from importlib import metadata

import numpy as np
import pytest
from silicon.narrower import KINDS, MEASURED, pairs

from helix_sim.silicon import aic_tables

try:
    installed = metadata.version(aic_tables.DISTRIBUTION)
except metadata.PackageNotFoundError:
    installed = None

NEEDED = f"{aic_tables.DISTRIBUTION} {aic_tables.VERSION} (pip install 'helix-sim[silicon]')"
pytestmark = pytest.mark.skipif(installed != aic_tables.VERSION, reason=f"needs {NEEDED}, found {installed}")


QUICK = ("gb200-trtllm", "h100-vllm")
"""Timings that are looked at in every run; the others take minutes."""


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("timing", MEASURED)
def test_where_a_narrower_format_is_modelled_slower_it_was_measured_slower(
    timing: str, kind: str, request: pytest.FixtureRequest
) -> None:
    if timing not in QUICK and not request.config.getoption("--held-still"):
        pytest.skip("takes minutes: make test ARGS=--held-still")
    for pair in pairs(timing, kind):
        slower = pair.modelled > 1 + pair.error
        what = f"{timing}: {kind} in {pair.narrow} beside {pair.wide}"
        if np.mean(slower) > 0.01:
            assert np.mean(pair.measured[slower] > 1) > 0.8, what
        assert np.mean(slower) <= np.mean(pair.measured > 1 + pair.error) + 0.1, what


@pytest.mark.parametrize("timing", ["h100-vllm", "h200-vllm", "h100-sglang", "h200-sglang"])
def test_latent_attention_in_fp8_is_measured_several_times_slower_there(timing: str) -> None:
    (pair,) = pairs(timing, "attention-mla")
    assert pair.slower_measured > 0.99
    assert np.median(pair.measured) == pytest.approx(2.0, abs=0.1)
    assert np.quantile(pair.measured, 0.9) > 5
    assert np.median(pair.modelled) == pytest.approx(2.9, abs=0.3)
