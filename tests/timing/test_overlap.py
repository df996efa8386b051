"""HOP-B against figure 3 of the paper, and its bounds."""

import numpy as np
import pytest

from helix_sim.timing.overlap import hidden_by_pipelining, pipelined


def test_hop_b_reproduces_figure_3():
    assert pipelined(16.0, 9.6, chunks=1) == pytest.approx(25.6)
    assert pipelined(2.0, 1.2, chunks=8) == pytest.approx(17.2)


def test_hop_b_never_costs_more_than_lockstep_and_never_less_than_the_longer_part():
    rng = np.random.default_rng(3)
    a, c, n = rng.random(1000), rng.random(1000), rng.integers(1, 64, 1000)
    hidden = hidden_by_pipelining(a, c, n)
    assert (hidden >= -1e-15).all()
    assert (a + c - hidden >= np.maximum(a, c) - 1e-12).all()
