"""Bytes and phases of every form of every collective, by hand: 8 ranks a domain."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from helix_sim.core.collectives import Collective, Form, direct, narrowest_piece


def form(nvlink, network, phases, network_phases) -> Form:
    """A form, its numbers to the last digits."""
    return Form(
        nvlink_bytes=pytest.approx(nvlink), network_bytes=pytest.approx(network), phases=phases,
        network_phases=network_phases,
    )  # fmt: skip


def all_reduce(payload: float, group: int, stride: int = 1) -> Collective:
    """An all-reduce among ranks that stand apart."""
    return Collective(kind="all-reduce", payload=payload, group=group, stride=stride)


def test_inside_a_domain_nothing_leaves_it():
    # 4 ranks sum 12 bytes: each writes 12 to 3 others; or sends 3 quarters twice; or 12, and 3 of the result
    shot, ring, switch = all_reduce(12.0, 4).forms(8, switch_reduces=True)
    assert (shot, ring, switch) == (form(36, 0, 1, 0), form(18, 0, 2, 0), form(15, 0, 1, 0))
    assert all_reduce(12.0, 4).forms(8, switch_reduces=False) == (shot, ring)


def test_a_sum_over_two_domains_is_a_ring_in_each_and_one_between_them():
    # 16 ranks sum 32 bytes: 8 of 15 peers outside; 7 eighths twice inside; a half of an eighth twice between
    shot, ring, switch = all_reduce(32.0, 16).forms(8, switch_reduces=True)
    assert shot == form(15 * 32 * 7 / 15, 15 * 32 * 8 / 15, 1, 1)
    assert ring == form(56, 4, 2, 2)
    assert switch == form(36, 4, 1, 2)


def test_a_sum_over_three_domains_has_two_thirds_between_them():
    _, ring = all_reduce(24.0, 24).forms(8, switch_reduces=False)
    assert ring == form(42, 2 * 2 / 3 * 3, 2, 2)


def test_ranks_that_each_have_a_domain_of_their_own_sum_over_the_network_alone():
    # 4 ranks stand 8 apart: no phase inside, none in the switch; three quarters twice between
    shot, ring, switch = all_reduce(12.0, 4, stride=8).forms(8, switch_reduces=True)
    assert (shot, ring, switch) == (form(0, 36, 1, 1), form(0, 18, 0, 2), form(0, 18, 0, 2))


def test_ranks_that_stand_apart_share_a_domain_with_fewer():
    # 4 ranks that stand 4 apart are two domains of two: one of three peers is inside
    (found,) = direct("all-to-all", 30.0, 4, stride=4).forms(8, switch_reduces=False)
    assert found == form(10, 20, 1, 1)
    # 3 apart: domains of 8 and 4 ranks hold three of them and one; each network is as busy as its busiest rank
    assert direct("all-to-all", 30.0, 4, stride=3).forms(8, False)[0] == form(20, 30, 1, 1)
    assert direct("all-to-all", 30.0, 4, stride=16).forms(8, False)[0] == form(0, 30, 1, 1)


def test_a_rank_alone_sends_nothing_in_no_phase():
    for collective in (all_reduce(12.0, 1), direct("send", 12.0, 1), all_reduce(12.0, 1, stride=9)):
        assert collective.calls == collective.link_bytes == 0
        for each in collective.forms(8, switch_reduces=True):
            assert each == form(0, 0, 0, 0)


def test_the_least_that_a_rank_sends_is_the_rings_or_the_payload():
    assert all_reduce(12.0, 4).link_bytes == 18
    assert direct("all-gather", 12.0, 4).link_bytes == 12
    assert (all_reduce(12.0, 4).calls, direct("send", 1.0, 2).calls) == (1, 1)
    assert (all_reduce(12.0, 4).stride, all_reduce(12.0, 4, 3).stride) == (1, 3)


def smallest_piece(width: int, blocks: int, domain: int) -> int:
    """The smallest piece of any block, found by laying the blocks out and cutting them at every edge."""
    edges = range(0, width * blocks + 1, domain)
    cuts = [
        sorted({j * width, (j + 1) * width, *(e for e in edges if j * width < e < (j + 1) * width)})
        for j in range(blocks)
    ]
    return min(b - a for ends in cuts for a, b in itertools.pairwise(ends))


@pytest.mark.parametrize("domain", [1, 4, 8, 9, 72, 300])
def test_the_smallest_piece_is_the_one_that_laying_all_blocks_out_finds(domain):
    width, blocks = np.meshgrid(np.arange(1, 90), np.arange(1, 16))
    laid = np.vectorize(smallest_piece)(width, blocks, domain)
    assert np.array_equal(narrowest_piece(width, blocks, domain), laid)
    assert np.array_equal(narrowest_piece(width * 1.0, blocks * 1.0, domain), laid)
    assert float(narrowest_piece(20, 4, 72)) == 8


def test_the_network_phases_of_a_ring_are_two_between_as_many_domains_as_it_touches():
    # 12 neighbours on domains of 8 are a piece of 8 and one of 4; two blocks of 12 may touch three domains each
    _, ring = all_reduce(24.0, 12).forms(8, switch_reduces=False)
    assert ring == form(2 * 7 / 8 * 24, 2 * 1 / 2 * 24 / 4, 2, 2)
    _, ring, switch = all_reduce(24.0, 9).forms(8, switch_reduces=True)
    assert ring == form(2 * 7 / 8 * 24, 2 * 1 / 2 * 24 / 1, 2, 2)
    assert switch == form(3 / 2 * 24, 24, 1, 2)  # a rank is alone: the others count as two
