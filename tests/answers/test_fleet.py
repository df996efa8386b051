"""Fleets: replicas that fit whole domains, and mixes that no other mix of the same GPUs beats."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from helix_sim.answers.fleet import Fleet


@pytest.mark.parametrize(("gpus", "count"), [(8, 18), (52, 2), (64, 2), (72, 2), (73, 1), (144, 1), (145, 0)])
def test_replicas_do_not_straddle_two_racks(gpus: int, count: int) -> None:
    assert int(Fleet(total=144, domain=72).replicas(gpus)) == count


def test_a_smaller_last_domain_is_filled_too() -> None:
    fleet = Fleet(total=100, domain=72)
    assert fleet.replicas(np.array([28, 29, 72, 100])).tolist() == [3, 2, 1, 1]
    assert fleet.best_mix([72, 28], [10.0, 3.0]) == {0: 1, 1: 1}


def by_trying(total: int, domain: int, sizes: list[int], rates: list[float]) -> float:
    """The best rate of every packing of whole and partial domains by replicas that fit one, by counting them all."""
    parts = [domain] * (total // domain) + [total % domain]
    found = 0.0
    for part in parts:
        counts = itertools.product(*(range(part // size + 1) for size in sizes))
        packed = (count for count in counts if sum(c * s for c, s in zip(count, sizes, strict=True)) <= part)
        found += max(sum(c * r for c, r in zip(count, rates, strict=True)) for count in packed)
    return found


@pytest.mark.parametrize("seed", range(8))
def test_no_packing_that_is_counted_out_beats_the_mix(seed: int) -> None:
    rng = np.random.default_rng(seed)
    domain, total = int(rng.integers(6, 20)), int(rng.integers(20, 50))
    sizes = sorted(set(rng.integers(1, domain + 1, size=3).tolist()))
    rates = rng.uniform(0.5, 1.5, len(sizes)) * sizes
    mix = Fleet(total=total, domain=domain).best_mix(sizes, rates.tolist())
    assert sum(count * rates[place] for place, count in mix.items()) == pytest.approx(
        by_trying(total, domain, sizes, rates.tolist()), rel=1e-12
    )


def test_replicas_across_domains_leave_the_rest_to_others() -> None:
    fleet = Fleet(total=24, domain=8)
    assert fleet.best_mix([12, 4], [30.0, 1.0]) == {0: 1, 1: 3}
    assert fleet.best_mix([24, 4], [5.9, 1.0]) == {1: 6}
    assert fleet.best_mix([24, 4], [6.1, 1.0]) == {0: 1}
    assert Fleet(total=20, domain=8).best_mix([20], [1.0]) == {0: 1}
    assert fleet.best_mix([25], [1.0]) == {}
