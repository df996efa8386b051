"""Bytes of collectives on NVLink domains against a count over all pairs of ranks, wherever a group starts."""

from collections import Counter
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from helix_sim.core.collectives import all_reduce, direct, narrowest_piece
from helix_sim.core.layout import Layout
from helix_sim.specs.load import load_machine, load_model
from helix_sim.specs.setting import Setting
from helix_sim.step import evaluate_step, setting_of

PAYLOAD = 5040
SEEN = settings(max_examples=60, deadline=None)

groups = st.integers(2, 160)
strides = st.sampled_from([1, 1, 2, 3, 4, 5, 7, 8, 16, 24, 72, 80])
domains = st.sampled_from([4, 8, 36, 72, 10, 7])
counts = st.integers(1, 10)


def groups_of(group, stride, blocks):
    """The places of the members of every group, a row a group, block by block."""
    starts = np.arange(blocks)[:, None] * group * stride + np.arange(stride)
    return starts.reshape(-1, 1) + np.arange(group) * stride


def to_every_peer(group, stride, blocks, domain, size):
    """The most bytes that any rank sends inside its domain, and beyond it, where everybody writes to everybody."""
    home = groups_of(group, stride, blocks) // domain
    together = (home[:, :, None] == home[:, None, :]).sum(axis=2)  # each pair once, oneself among them
    return float((together - 1).max() * size), float((group - together).max() * size)


def sent_by_rank(pairs, domain):
    """The most bytes that any rank sends inside its domain, and beyond it, of bytes by (sender, receiver)."""
    inside, outside = Counter(), Counter()
    for (sender, receiver), size in pairs.items():
        (inside if sender // domain == receiver // domain else outside)[sender] += size
    return max(inside.values(), default=0), max(outside.values(), default=0)


def ring_between_domains(members, payload, domain):
    """An all-reduce inside each domain, then around the domains, each rank for the share that it sums at home."""
    homes = {}
    for rank in members:
        homes.setdefault(rank // domain, []).append(rank)
    pairs = Counter()
    for home in homes.values():
        for i, rank in enumerate(home):  # around the home's ring
            if len(home) > 1:
                pairs[rank, home[(i + 1) % len(home)]] += Fraction(2 * (len(home) - 1), len(home)) * payload
    around = list(homes.values())
    for i, home in enumerate(around):
        other = around[(i + 1) % len(around)]
        for a, rank in enumerate(home):
            for b, peer in enumerate(other):
                shared = min(Fraction(a + 1, len(home)), Fraction(b + 1, len(other)))
                shared -= max(Fraction(a, len(home)), Fraction(b, len(other)))
                if shared > 0 and len(around) > 1:
                    pairs[rank, peer] += Fraction(2 * (len(around) - 1), len(around)) * payload * shared
    return pairs


@SEEN
@given(groups, strides, domains, counts, st.sampled_from(["all-to-all", "all-gather", "reduce-scatter"]))
@example(80, 1, 72, 1, "all-to-all")  # 72 + 8
@example(12, 1, 8, 3, "all-to-all")  # 8 + 4, then 4 + 8
@example(9, 1, 8, 1, "all-to-all")  # 8 + 1
@example(2, 6, 8, 1, "all-to-all")  # only some of the six groups fit
def test_direct_bytes_of_the_busiest_rank_are_a_count_over_all_pairs(group, stride, domain, blocks, kind):
    (form,) = direct(kind, float(PAYLOAD), group, stride, blocks).forms(domain, False)
    inside, outside = to_every_peer(group, stride, blocks, domain, PAYLOAD / (group - 1))
    assert (float(form.nvlink_bytes), float(form.network_bytes)) == pytest.approx((inside, outside), rel=1e-12)
    assert bool(form.network_phases) == (outside > 0)


@SEEN
@given(groups, domains, counts)
@example(80, 72, 1)
@example(14, 8, 4)  # a block that starts at 6 spans three domains
def test_all_reduce_bytes_of_the_busiest_rank_are_a_count_over_all_pairs(group, domain, blocks):
    one_shot, ring, in_switch = all_reduce(float(PAYLOAD), group, blocks).forms(domain, True)
    expected = to_every_peer(group, 1, blocks, domain, PAYLOAD)
    assert [float(one_shot.nvlink_bytes), float(one_shot.network_bytes)] == pytest.approx(expected, rel=1e-12)
    blocks_of = groups_of(group, 1, blocks).tolist()
    found = [sent_by_rank(ring_between_domains(members, PAYLOAD, domain), domain) for members in blocks_of]
    expected = [float(max(column)) for column in zip(*found, strict=True)]
    assert [float(ring.nvlink_bytes), float(ring.network_bytes)] == pytest.approx(expected, rel=1e-12)
    homes = [Counter(rank // domain for rank in members) for members in blocks_of]
    sizes = [size for home in homes for size in home.values()]
    switched = max((PAYLOAD * (size + 1) / size for size in sizes if size > 1), default=0)
    made = float(in_switch.nvlink_bytes)
    assert made == pytest.approx(switched, rel=1e-12) if 1 not in sizes else switched <= made <= 1.5 * PAYLOAD
    assert bool(ring.network_phases) == bool(in_switch.network_phases) == any(len(home) > 1 for home in homes)


@SEEN
@given(st.lists(st.tuples(groups, counts), min_size=1, max_size=20), domains)
def test_a_column_of_blocks_is_cut_as_each_of_them_is(sizes, domain):
    width, blocks = (np.array(column) for column in zip(*sizes, strict=True))
    alone = [float(narrowest_piece(*size, domain)) for size in sizes]
    assert np.broadcast_to(narrowest_piece(width, blocks, domain), width.shape).tolist() == alone


def links_s(step, op):
    """Seconds that an op's bytes are on the links, once."""
    return float(step.times[op].link_s)


def test_the_remainder_of_a_rack_sends_most_of_its_tokens_to_the_other_rack():
    # 72 + 8: 72 of the 79 peers of a rank in the second rack lie in the first
    setting = setting_of(load_model("deepseek-r1"), load_machine("gb200-nvl72"))
    step = evaluate_step(setting, Layout(batch=64, dp=80, ep=80), 100_000)
    for op in ("dispatch", "combine"):
        assert links_s(step, op) == pytest.approx(step.ops[op].link_bytes * 72 / 79 / 100e9, rel=1e-12)
    assert links_s(step, "dispatch") * 1e6 == pytest.approx(86.6, abs=0.1)


def test_ranks_beyond_a_full_board_send_most_of_their_partial_outputs_over_the_network():
    setting: Setting = setting_of(load_model("deepseek-r1"), load_machine("b200-hgx"))
    for kvp, beyond in ((9, 8 / 8), (12, 8 / 11), (16, 8 / 15)):
        step = evaluate_step(setting, Layout(batch=8, kvp=kvp, tpf=kvp), 100_000)
        sent = step.ops["exchange"].link_bytes
        assert links_s(step, "exchange") == pytest.approx(sent * beyond / 50e9, rel=1e-12), kvp
