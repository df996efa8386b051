"""Routing of tokens to experts, as the busiest rank sees it: expectations over random choices."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
from scipy.special import ndtri

from helix_sim.core.layout import Layout
from helix_sim.core.numeric import Column, ceil_div, chosen, distinct, larger, smaller
from helix_sim.ops.step_input import StepInput
from helix_sim.specs.model import RoutedFfn


def expert_popularity(ffn: RoutedFfn) -> list[tuple[int, float]]:
    """(experts, probability that a token picks each of them) in classes from hot to cold; one class if uniform.

    Popularity falls as rank^-skew; classes double in size, and no probability exceeds one.

    >>> expert_popularity(RoutedFfn(kind="routed", routed=256, top_k=8, intermediate_size=2048))
    [(256, 0.03125)]
    """
    if not ffn.routing_skew:
        return [(ffn.routed, ffn.top_k / ffn.routed)]
    rank = np.arange(1, ffn.routed + 1)
    weight = rank**-ffn.routing_skew
    picked = np.minimum(1.0, ffn.top_k * weight / weight.sum())
    for _ in range(ffn.top_k):  # what the cap takes from the hottest goes to the rest
        free = picked < 1
        if not free.any():
            break
        picked[free] *= (ffn.top_k - (~free).sum()) / picked[free].sum()
        picked = np.minimum(1.0, picked)
    starts = [2**i for i in range(ffn.routed.bit_length())]
    classes = [picked[start - 1 : 2 * start - 1] for start in starts]
    return [(len(members), float(members.mean())) for members in classes]


EXACT_UP_TO = 16
"""Experts or tokens up to which the spread of the busiest rank is summed exactly; beyond it, a normal law is close."""


def largest_binomial(n: Column, p: Column, ranks: Column) -> Any:
    """Expected largest of `ranks` independent binomial(n, p) counts.

    Up to n = 16 the exact sum over j of 1 - P(count <= j)^ranks. Beyond: mean + sd · z + (1 - 2p) · (z² - 1) / 6, with
    z the expected largest of that many standard normals (Blom's approximation) and the binomial's skewness, which fades
    with a spread below one count.

    >>> float(largest_binomial(32, 1.0, ranks=8))
    32.0
    """
    z, spread = ndtri((ranks - 0.375) / (ranks + 0.25)), np.sqrt(n * p * (1 - p))
    skewness = (ranks > 1) * (1 - 2 * p) * (z**2 - 1) / 6 * np.minimum(spread, 1)
    normal = n * p + spread * z + skewness
    largest = np.array(np.clip(normal, 0, n))
    few = np.broadcast_to((n > 0) & (n <= EXACT_UP_TO), np.shape(largest))
    largest[few] = _largest_of_few(*(np.broadcast_to(size, np.shape(largest))[few] for size in (n, p, ranks)))
    return largest[()]


def _largest_of_few(n: Any, p: Any, ranks: Any) -> Any:
    """The exact sum, for columns of n up to EXACT_UP_TO."""
    least = np.exp2(-60 / ranks)  # its power vanishes beside 1; numpy takes 40 times as long where a power underflows
    q = np.minimum(p, 1 - 1e-12)
    pmf = (1 - q) ** n
    below, largest = pmf, np.zeros_like(pmf)
    for j in range(int(np.max(n, initial=0))):
        largest += (n > j) * (1 - np.clip(below, least, 1.0) ** ranks)
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

    Distinct experts: E/ep · (1 - (1 - k/E)^T) on average, and the largest of ep binomial counts on the busiest. Pairs:
    T·k/ep on average, plus the largest deviation of ep such loads. Both are held against a simulation in the tests.
    Of columns of shapes (n, 1) it is evaluated once for each distinct (ep, dp, new tokens), wide EP (where a rank holds so few
    experts that they are summed exactly) apart from the rest (where a law does).
    """
    seen = (s.layout.ep, s.layout.dp, s.query_tokens)
    if all(np.ndim(column) < 2 for column in seen):
        return _busiest_rank(s, ffn)
    ep, dp, new = (column[:, 0] for column in np.broadcast_arrays(*map(np.atleast_2d, seen)))
    first, place = distinct((ep, dp, new))
    few = int(np.sum(ceil_div(ffn.routed, ep[first]) > EXACT_UP_TO))
    ranks = []
    for rows in (first[:few], first[few:]):
        x = Layout(batch=s.layout.batch, dp=dp[rows, None], ep=ep[rows, None])
        ranks.append(_busiest_rank(replace(s, layout=x, query_tokens=new[rows, None]), ffn))
    names = [field.name for field in fields(BusiestRank)]
    return BusiestRank(**{name: np.concatenate([getattr(rank, name) for rank in ranks])[place] for name in names})


def _busiest_rank(s: StepInput, ffn: RoutedFfn) -> BusiestRank:
    x, tokens = s.layout, s.stage_tokens
    held = ceil_div(ffn.routed, x.ep)
    classes, share = expert_popularity(ffn), ffn.top_k / ffn.routed
    hit = sum(count / ffn.routed * -np.expm1(tokens * np.log1p(-min(picked, 1 - 1e-12))) for count, picked in classes)
    read = np.clip(largest_binomial(held, hit, x.ep), 1, smaller(held, tokens * ffn.top_k))

    picked_or_not = sum(count * picked * (1 - picked) for count, picked in classes) / ffn.routed
    popularity = sum(count * (picked - share) ** 2 for count, picked in classes) / ffn.routed
    others = 1 - 1 / x.ep
    deviation = np.sqrt(held * others * (tokens * picked_or_not + tokens**2 * popularity))
    z = ndtri((x.ep - 0.375) / (x.ep + 0.25))
    skewness = others * (1 - 2 * share) * (z**2 - 1) / 6 * np.minimum(deviation, 1)
    pairs = tokens * ffn.top_k * held / ffn.routed + deviation * z + skewness
    pairs = np.clip(pairs, read, tokens * smaller(held, ffn.top_k))
    here = share_of_tokens_here(s, ffn)
    foreign = largest_binomial(s.tokens * (x.dp - 1), here, x.ep)
    arrived = foreign + s.tokens * chosen(x.dp > 1, here, 1.0)
    return BusiestRank(held=held, read=read, pairs=pairs, foreign=foreign, arrived=arrived)


def share_of_tokens_here(s: StepInput, ffn: RoutedFfn) -> Any:
    """Probability that a token picks at least one expert of a given EP rank, under uniform routing.

    1 - C(E - E/ep, k) / C(E, k): each of the k picks misses what is left.
    """
    local = ceil_div(ffn.routed, s.layout.ep)
    missed: Any = 1.0
    for pick in range(ffn.top_k):
        missed = missed * larger(1 - local / (ffn.routed - pick), 0)
    return 1 - missed
