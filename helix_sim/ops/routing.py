"""Routing of tokens to experts, as the busiest rank sees it: expectations over random choices."""

from __future__ import annotations

import functools
import heapq
from dataclasses import dataclass, fields, replace
from functools import lru_cache
from statistics import NormalDist
from typing import Any

import numpy as np
import numpy.typing as npt

from helix_sim.core.layout import Layout
from helix_sim.core.numeric import NUMBERS, Column, ceil_div, chosen, distinct, larger, smaller
from helix_sim.core.recorded import called_whole
from helix_sim.ops.step_input import StepInput
from helix_sim.specs.ffn import RoutedFfn


def expert_popularity(ffn: RoutedFfn) -> list[tuple[int, float]]:
    """(experts, probability that a token picks each of them) in classes from hot to cold; one class if uniform.

    Popularity falls as rank^-skew; classes double in size, and no probability exceeds one.

    >>> expert_popularity(RoutedFfn(kind="routed", routed=256, top_k=8, intermediate_size=2048))
    [(256, 0.03125)]
    """
    if not ffn.routing_skew:
        return [(ffn.routed, ffn.top_k / ffn.routed)]
    picked = _picked(ffn)
    starts = [2**i for i in range(ffn.routed.bit_length())]
    classes = [picked[start - 1 : 2 * start - 1] for start in starts]
    return [(len(members), float(members.mean())) for members in classes]


def _picked(ffn: RoutedFfn) -> npt.NDArray[np.float64]:
    """Probability (experts,) that a token picks each expert, from hot to cold."""
    rank = np.arange(1, ffn.routed + 1)
    weight = rank**-ffn.routing_skew
    picked: npt.NDArray[np.float64] = np.minimum(1.0, ffn.top_k * weight / weight.sum())
    for _ in range(ffn.top_k):  # what the cap takes from the hottest goes to the rest
        free = picked < 1
        if not free.any():
            break
        picked[free] *= (ffn.top_k - (~free).sum()) / picked[free].sum()
        picked = np.minimum(1.0, picked)
    return picked


# --- Placement -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class PackedExperts:
    """Experts and copies of busy ones on ranks, packed by their popularity; picks are of one token.

    slots: probability (slots,) that a token is sent to each expert or copy. loads: expected picks (ep,) of each rank's
    slots, falling. spreads: their variances, in the same order.
    """

    slots: npt.NDArray[np.float64]
    loads: npt.NDArray[np.float64]
    spreads: npt.NDArray[np.float64]


@functools.lru_cache(maxsize=1024)
def packed_experts(ffn: RoutedFfn, ep: int, copies: int) -> PackedExperts:
    """Where EPLB places experts: the next copy to whichever has most to do, then each to the idlest rank with room.

    Tokens of an expert are shared evenly by its copies [DeepSeek EPLB, https://github.com/deepseek-ai/EPLB: replication
    and packing of its global policy].

    >>> moe = RoutedFfn(kind="routed", routed=4, top_k=1, intermediate_size=64)
    >>> packed_experts(moe, ep=6, copies=2).loads.tolist()
    [0.25, 0.25, 0.125, 0.125, 0.125, 0.125]
    """
    picked = _picked(ffn)
    shared = [(-float(p), 1, expert) for expert, p in enumerate(picked)]
    heapq.heapify(shared)
    for _ in range(copies):
        _, count, expert = shared[0]
        heapq.heapreplace(shared, (-float(picked[expert]) / (count + 1), count + 1, expert))
    slots = np.sort(np.concatenate([np.full(count, -load) for load, count, _ in shared]))[::-1]
    room = -(-len(slots) // ep)
    ranks = [(0.0, rank, 0, 0.0) for rank in range(ep)]
    full = []
    for slot in slots.tolist():
        load, rank, count, spread = heapq.heappop(ranks)
        more = (load + slot, rank, count + 1, spread + slot * (1 - slot))
        if count + 1 < room:
            heapq.heappush(ranks, more)
        else:
            full.append(more)
    order = sorted(full + ranks, reverse=True)
    return PackedExperts(
        slots=slots, loads=np.array([each[0] for each in order]), spreads=np.array([each[3] for each in order])
    )


EXACT_UP_TO = 16
"""Experts or tokens up to which the spread of the busiest rank is summed exactly; beyond it, a normal law is close."""


@called_whole
def largest_normal(ranks: Column) -> Any:
    """Expected largest of `ranks` independent standard normals, by Blom's approximation: Φ⁻¹((r - 3/8) / (r + 1/4)).

    Whole numbers of ranks, of which a column has few different ones: each is looked up once.

    >>> float(largest_normal(1)), largest_normal(np.array([4.0, 1.0, 4.0])).round(4).tolist()
    (0.0, [1.0491, 0.0, 1.0491])
    """
    if isinstance(ranks, NUMBERS) or np.ndim(ranks) == 0:
        return _largest_normal(float(ranks))
    column = np.asarray(ranks, dtype=np.int64)
    found = np.zeros(int(np.max(column, initial=0)) + 1)
    for count in np.flatnonzero(np.bincount(column.ravel())).tolist():
        found[count] = _largest_normal(count)
    return found[column]


@lru_cache(maxsize=4096)
def _largest_normal(ranks: float) -> float:
    return NormalDist().inv_cdf((ranks - 0.375) / (ranks + 0.25))


@called_whole
def largest_binomial(n: Column, p: Column, ranks: Column) -> Any:
    """Expected largest of `ranks` independent binomial(n, p) counts.

    Up to n = 16 the exact sum over j of 1 - P(count <= j)^ranks. Beyond: mean + sd · z + (1 - 2p) · (z² - 1) / 6, with
    z the expected largest of that many standard normals (`largest_normal`) and the binomial's skewness, which fades
    with a spread below one count.

    >>> float(largest_binomial(32, 1.0, 8))
    32.0
    """
    one = all(isinstance(size, NUMBERS) for size in (n, p, ranks))
    if one and 0 < n <= EXACT_UP_TO:
        return _largest_of_few(n, p, ranks)
    z, spread = largest_normal(ranks), np.sqrt(n * p * (1 - p))
    skewness = (ranks > 1) * (1 - 2 * p) * (z**2 - 1) / 6 * smaller(spread, 1)
    largest = smaller(larger(n * p + spread * z + skewness, 0), n)
    if one:
        return largest
    largest = np.array(largest)
    few = np.broadcast_to((n > 0) & (n <= EXACT_UP_TO), np.shape(largest))
    largest[few] = _largest_of_few(*(np.broadcast_to(size, np.shape(largest))[few] for size in (n, p, ranks)))
    return largest[()]


def _largest_of_few(n: Any, p: Any, ranks: Any) -> Any:
    """The exact sum, for columns of n up to EXACT_UP_TO."""
    least = np.exp2(-60 / ranks)  # its power vanishes beside 1; numpy takes 40 times as long where a power underflows
    q = smaller(p, 1 - 1e-12)
    pmf = (1 - q) ** n
    below: Any = pmf
    largest: Any = 0.0
    for j in range(int(n if isinstance(n, NUMBERS) else np.max(n, initial=0))):
        largest += (n > j) * (1 - smaller(larger(below, least), 1.0) ** ranks)
        pmf = pmf * (n - j) / (j + 1) * q / (1 - q)
        below = below + pmf
    return largest


@dataclass(frozen=True, slots=True, kw_only=True)
class BusiestRank:
    """Routing as the busiest EP rank sees it: experts it holds and reads, token-expert pairs it computes.

    foreign: tokens of other attention groups that picked an expert here, each once. arrived: all tokens that a dispatch
    leaves here, those of its own group among them; of one group alone every token, since nothing is dispatched.
    """

    held: Column
    read: Column
    pairs: Column
    foreign: Column
    arrived: Column


def busiest_rank(s: StepInput, ffn: RoutedFfn) -> BusiestRank:
    """Expectation over random routing of what the busiest of ep ranks reads and computes.

    Experts lie on ranks at random, or, where they are balanced or some have copies, as `packed_experts` packs them:
    then a rank's share is what its experts are picked for, and a copy takes its part of an expert's tokens.

    Distinct experts: E/ep · (1 - (1 - k/E)^T) on average, and the largest of ep binomial counts on the busiest. Pairs:
    T·k/ep on average, plus the largest deviation of ep such loads. Both are held against a simulation in the tests.
    Of a request's several new tokens only the first chooses all its experts; those after it repeat some of the one's
    before, so the distinct experts are those of T = dp · B · (1 + (q - 1) · (1 - repeated)) tokens.

    Of columns of shapes (n, 1) it is evaluated once for each distinct (ep, dp, copies, new tokens), wide EP (where a
    rank holds so few experts that they are summed exactly) apart from the rest (where a law does).
    """
    seen = (s.layout.ep, s.layout.dp, s.query_tokens)
    if all(np.ndim(column) < 2 for column in seen):
        return _busiest_rank(s, ffn)
    ep, dp, new = (column[:, 0] for column in np.broadcast_arrays(*map(np.atleast_2d, seen)))
    copies = np.broadcast_to(s.layout.redundant_experts, (len(ep), 1))[:, 0]
    first, place = distinct((ep, dp, copies, new))
    few = int(np.sum(ceil_div(ffn.routed, ep[first]) > EXACT_UP_TO))
    ranks = []
    for rows in (first[:few], first[few:]):
        shape = {"dp": dp[rows, None], "ep": ep[rows, None], "redundant_experts": copies[rows, None]}
        x = Layout(batch=s.layout.batch, **shape)
        ranks.append(_busiest_rank(replace(s, layout=x, query_tokens=new[rows, None]), ffn))
    names = [field.name for field in fields(BusiestRank)]
    return BusiestRank(**{name: _stacked([getattr(rank, name) for rank in ranks])[place] for name in names})


def _stacked(columns: list[npt.NDArray[Any]]) -> npt.NDArray[Any]:
    """Columns (n, 1) or (n, b) below each other, as wide as the widest."""
    wide = max(column.shape[1] for column in columns)
    return np.concatenate([np.broadcast_to(column, (len(column), wide)) for column in columns])


def _choosing_tokens(s: StepInput, ffn: RoutedFfn) -> Any:
    """New tokens of one attention group as experts would see them, were each to choose all of its experts anew."""
    return s.layout.batch * (1 + (s.query_tokens - 1) * ffn.chosen_anew)


def _busiest_rank(s: StepInput, ffn: RoutedFfn) -> BusiestRank:
    x, names = s.layout, [field.name for field in fields(BusiestRank)]
    packed = (x.redundant_experts > 0) | ffn.balanced
    if not np.any(packed):
        return _of_random_ranks(s, ffn)
    if all(np.ndim(each) == 0 for each in (packed, x.ep, s.stage_tokens)):
        numbers = _of_one_packed(ffn, x.ep, x.redundant_experts, s.tokens, _choosing_tokens(s, ffn), x.dp)
        return BusiestRank(**{name: numbers[place] for place, name in enumerate(names)})
    found = _of_random_ranks(s, ffn)
    packed, ep, copies, tokens, choosing, dp, *values = np.broadcast_arrays(
        packed, x.ep, x.redundant_experts, s.tokens * 1.0, _choosing_tokens(s, ffn) * 1.0, x.dp,
        *(getattr(found, name) for name in names),
    )  # fmt: skip
    columns = {name: np.array(column, dtype=float) for name, column in zip(names, values, strict=True)}
    for ranks, more in {(int(a), int(b)) for a, b in zip(ep[packed], copies[packed], strict=True)}:
        here = packed & (ep == ranks) & (copies == more)
        part = _of_packed_ranks(packed_experts(ffn, ranks, more), ffn, ranks, tokens[here], choosing[here], dp[here])
        for name, column in columns.items():
            column[here] = getattr(part, name)
    return BusiestRank(**{name: column[()] for name, column in columns.items()})


@called_whole
def _of_one_packed(ffn: RoutedFfn, ep: Any, copies: Any, own: Any, choosing: Any, dp: Any) -> list[float]:
    """The fields of `_of_packed_ranks`, of one layout."""
    packed = packed_experts(ffn, int(ep), int(copies))
    rank = _of_packed_ranks(packed, ffn, int(ep), np.array([own]), np.array([choosing]), np.array([dp]))
    return [float(np.ravel(getattr(rank, field.name))[0]) for field in fields(BusiestRank)]


def _of_packed_ranks(packed: PackedExperts, ffn: RoutedFfn, ep: int, own: Any, choosing: Any, dp: Any) -> BusiestRank:
    """The busiest of ranks whose experts are packed; own: tokens of one of dp groups, choosing: as experts see them.

    The largest of what the k busiest ranks expect of their least, and the largest deviation of k such loads on top.
    """
    tokens, others = own * dp, 1 - 1 / ep
    held = -(-len(packed.slots) // ep)
    picked, counts = np.unique(packed.slots, return_counts=True)
    drawn = choosing * dp
    hit = -np.expm1(drawn[:, None] * np.log1p(-np.minimum(picked, 1 - 1e-12))) @ (counts / counts.sum())
    read = np.clip(largest_binomial(held, hit, np.asarray(ep)), 1, smaller(held, drawn * ffn.top_k))
    last = np.flatnonzero(np.diff(packed.loads.round(12), append=-1))
    z = largest_normal(last + 1.0)
    deviation = np.sqrt(others * tokens[:, None] * packed.spreads[last])
    skewness = others * (1 - 2 * ffn.top_k / ffn.routed) * (z**2 - 1) / 6 * np.minimum(deviation, 1) * (last > 0)
    pairs = (tokens[:, None] * packed.loads[last] + deviation * z + skewness).max(axis=1)
    pairs = np.clip(pairs, read, tokens * smaller(held, ffn.top_k))
    here = _share_here(packed.loads[0] * ffn.routed / ffn.top_k, ffn)
    foreign = largest_binomial(own * (dp - 1), here, np.asarray(ep))
    arrived = foreign + own * np.where(dp > 1, here, 1.0)
    return BusiestRank(held=held, read=read, pairs=pairs, foreign=foreign, arrived=arrived)


def _of_random_ranks(s: StepInput, ffn: RoutedFfn) -> BusiestRank:
    x, tokens = s.layout, s.stage_tokens
    held = ceil_div(ffn.routed, x.ep)
    classes, share = expert_popularity(ffn), ffn.top_k / ffn.routed
    drawn = _choosing_tokens(s, ffn) * x.dp
    hit = sum(count / ffn.routed * -np.expm1(drawn * np.log1p(-min(picked, 1 - 1e-12))) for count, picked in classes)
    read = np.clip(largest_binomial(held, hit, x.ep), 1, smaller(held, drawn * ffn.top_k))

    picked_or_not = sum(count * picked * (1 - picked) for count, picked in classes) / ffn.routed
    popularity = sum(count * (picked - share) ** 2 for count, picked in classes) / ffn.routed
    others = 1 - 1 / x.ep
    deviation = np.sqrt(held * others * (tokens * picked_or_not + tokens**2 * popularity))
    z = largest_normal(x.ep)
    skewness = others * (1 - 2 * share) * (z**2 - 1) / 6 * np.minimum(deviation, 1)
    pairs = tokens * ffn.top_k * held / ffn.routed + deviation * z + skewness
    if ffn.routing_skew:  # the rank of the hottest expert has that one, and an average share of the others
        hottest = classes[0][1]
        pairs = larger(pairs, tokens * (hottest + (held - 1) * (ffn.top_k - hottest) / max(ffn.routed - 1, 1)))
    pairs = np.clip(pairs, read, tokens * smaller(held, ffn.top_k))
    here = share_of_tokens_here(s, ffn)
    foreign = largest_binomial(s.tokens * (x.dp - 1), here, x.ep)
    arrived = foreign + s.tokens * chosen(x.dp > 1, here, 1.0)
    return BusiestRank(held=held, read=read, pairs=pairs, foreign=foreign, arrived=arrived)


def share_of_tokens_here(s: StepInput, ffn: RoutedFfn) -> Any:
    """Probability that a token picks at least one expert of a given EP rank, under uniform routing.

    1 - C(E - E/ep, k) / C(E, k): each of the k picks misses what is left.
    """
    return _share_here(ceil_div(ffn.routed, s.layout.ep), ffn)


def _share_here(local: Column, ffn: RoutedFfn) -> Any:
    missed: Any = 1.0
    for pick in range(ffn.top_k):
        missed = missed * larger(1 - local / (ffn.routed - pick), 0)
    return 1 - missed
