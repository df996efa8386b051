"""Beyond the paper: what KV parallelism buys where attention is sparse, compressed or hybrid, and which op decides.

Each model is searched with KV shards and without, and where it has an indexer with a copy of the index cache on every
shard and with the cache sharded. Both searches are free in every other width, so that a gain is never one of theirs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from helix_sim.core.layout import AXES, Layout
from helix_sim.search.pareto import Frontier
from helix_sim.search.plan import plan
from helix_sim.search.sweep import SweepResult, run_plan
from helix_sim.specs.load import load_sweep
from helix_sim.step import Step, evaluate_step, op_rows

BEYOND_SWEEPS = (
    "beyond-llama-3.1-405b",
    "beyond-deepseek-r1",
    "beyond-kimi-k3",
    "beyond-deepseek-v3.2",
    "beyond-deepseek-v4-pro",
)
"""Shipped sweeps, from attention over everything to attention over little."""

BUDGET_MS = 25.0
"""Latency of a token at which gains are taken unless another is asked for: 40 tokens/s/user [ms]."""


def search_beyond(
    timing: str | None = None, contexts: Sequence[int] | None = None, names: Sequence[str] = BEYOND_SWEEPS
) -> list[SweepResult]:
    """Each model's search, on another timing of the machine or at other contexts where these are given.

    SpecError for a timing that is none, or was measured on another system.
    """
    sweeps = [load_sweep(name).with_timing(timing) for name in names]
    given = {"contexts": list(contexts)} if contexts else {}
    return [run_plan(plan(sweep.model_copy(update=given))) for sweep in sweeps]


@dataclass(frozen=True, slots=True, kw_only=True)
class Gain:
    """What a way to shard the cache by sequence buys a model at a context, against the best layout that does not.

    family: the sweep's. without, sharded: the best of either within the budget, None where none keeps it. fastest: the
    fastest that does not shard, `without` where there is one. faster: the fastest that shards at no less throughput
    than that, None where none has as much.
    """

    model: str
    context: int
    family: str
    budget_ms: float
    without: Step | None
    fastest: Step | None
    sharded: Step | None
    faster: Step | None

    @property
    def ratio(self) -> float | None:
        """Tokens/s/GPU within the budget over those without KV shards; None where either has no layout."""
        if self.without is None or self.sharded is None:
            return None
        return float(self.sharded.tokens_per_s_gpu / self.without.tokens_per_s_gpu)

    @property
    def interval(self) -> tuple[float, float] | None:
        """Ends of the ratio's 80 % interval, for these two layouts; None without a ratio or without measured kernels.

        An error of one cause is the same in both layouts, and moves the ratio by what it moves one more than the
        other.
        """
        if self.ratio is None or not self.without.deviations:  # type: ignore[union-attr]
            return None
        low, high = _ratio_range(self.without, self.sharded)  # type: ignore[arg-type]
        return self.ratio * low, self.ratio * high

    @property
    def interactivity(self) -> float | None:
        """Tokens/s/user at no less throughput, over those of the layout without KV shards; None where none has that."""
        if self.fastest is None or self.faster is None:
            return None
        return float(self.faster.tokens_per_s_user / self.fastest.tokens_per_s_user)

    @property
    def verdict(self) -> str:
        """Whether it pays within the budget, in a word or two."""
        if self.ratio is None:
            return "only KVP" if self.sharded else "no KVP" if self.without else "neither"
        low, high = self.interval or (self.ratio, self.ratio)
        return "pays" if low > 1 else "loses" if high < 1 else "even"

    @property
    def pair(self) -> tuple[Step, Step] | None:
        """The two layouts that `moved` compares: those within the budget, or the nearest to it; None without two."""
        shown = self.sharded or self.faster
        return (self.fastest, shown) if self.fastest is not None and shown is not None else None

    def moved(self) -> dict[str, float]:
        """What each op gives or takes: GPU time of a token with KV shards less that without, over all of the latter's.

        1 / (tokens/s/GPU) is a sum over ops, so that these add up to 1 / ratio - 1. Empty where there is no pair.
        """
        if self.pair is None:
            return {}
        before, after = (gpu_seconds_per_token(step) for step in self.pair)
        whole = sum(before.values())
        names = dict.fromkeys([*before, *after])
        return {name: (after.get(name, 0.0) - before.get(name, 0.0)) / whole for name in names}

    def decider(self) -> tuple[str, float] | None:
        """The op that moves most in the direction in which all together move, and by how much; None without a pair."""
        moved = self.moved()
        if not moved:
            return None
        sign = 1 if sum(moved.values()) > 0 else -1
        return max(moved.items(), key=lambda each: sign * each[1])

    def record(self) -> dict[str, Any]:
        """The gain as a row of plain data; `helix_sim.specs.quantities` has the units."""
        low, high = self.interval or (None, None)
        op, change = self.decider() or (None, None)
        return {
            "model": self.model,
            "context": self.context,
            "family": self.family,
            "ttl_budget_ms": self.budget_ms,
            "verdict": self.verdict,
            "kvp_gain": self.ratio,
            "kvp_gain_low": low,
            "kvp_gain_high": high,
            "kvp_speedup": self.interactivity,
            "deciding_op": op,
            "deciding_share": change,
            "without": _seen(self.without or self.fastest),
            "with": _seen(self.sharded or self.faster),
        }


def _seen(step: Step | None) -> dict[str, Any]:
    """A layout and what a user sees of it; empty where there is none."""
    if step is None:
        return {}
    low, high = (float(end) * 1e3 for end in step.ttl_interval_s)
    return {
        "widths": str(step.layout),
        "ttl_ms": float(step.ttl_s) * 1e3,
        "ttl_low_ms": low,
        "ttl_high_ms": high,
        "tokens_per_s_user": float(step.tokens_per_s_user),
        "tokens_per_s_gpu": float(step.tokens_per_s_gpu),
        "extrapolated": bool(step.rests_on_extrapolation),
    }


def gains(found: SweepResult, budget_ms: float = BUDGET_MS) -> list[Gain]:
    """The gain of each family with KV shards at each context of one of the searches, within a latency [ms]."""
    families = found.sweep.families
    conventional = [name for name, family in families.items() if family.is_conventional]
    sharding = [name for name in families if name not in conventional]
    return [
        _gain(found, context, name, found.frontiers[context][conventional[0]], budget_ms)
        for context in found.sweep.contexts
        for name in sharding
    ]


def _gain(found: SweepResult, context: int, family: str, plain: Frontier, budget_ms: float) -> Gain:
    curve = found.frontiers[context][family]

    def step(of: Frontier, index: int) -> Step | None:
        if not 0 <= index < len(of):
            return None
        layout = Layout(**{name: value for name, value in of.point(index).items() if name in AXES})
        return evaluate_step(found.plan.setting, layout, context)

    inside, sharded = (int(of.index_at(1e3 / budget_ms)) if len(of) else 0 for of in (plain, curve))
    nearest = min(inside, len(plain) - 1)
    enough = curve.throughput >= plain.throughput[nearest] if len(plain) and len(curve) else np.zeros(0, dtype=bool)
    return Gain(
        model=found.plan.model.name,
        context=context,
        family=family,
        budget_ms=budget_ms,
        without=step(plain, inside),
        fastest=step(plain, nearest),
        sharded=step(curve, sharded),
        faster=step(curve, int(np.flatnonzero(enough).max(initial=-1))),
    )


def gpu_seconds_per_token(step: Step) -> dict[str, float]:
    """What each op takes of all GPUs for one token [GPU seconds], by its name; overlap taken off.

    Its sum is 1 / (tokens/s/GPU).
    """
    per_token = float(step.layout.gpus / step.layout.users / step.query_tokens / step.accepted_tokens)
    return {row["op"]: (row["seconds"] - row["hidden_s"]) * per_token for row in op_rows(step)}


def _ratio_range(before: Step, after: Step) -> tuple[float, float]:
    """Both ends of the 80 % interval of TTL before over TTL after, over that ratio itself.

    Of each cause, the difference of what it does to the logarithm of either at its lower and at its upper end; causes
    add in squares.
    """
    shifts: dict[str, list[list[float]]] = {}
    for which, step in enumerate((before, after)):
        for part in step.deviations:
            ends = shifts.setdefault(part.cause, [[0.0, 0.0], [0.0, 0.0]])
            for end, log in enumerate((part.low, part.high)):
                ends[end][which] += float(part.seconds * np.expm1(log) / step.step_s)
    down = up = 0.0
    for ends in shifts.values():
        moves = [float(np.log1p(of_before) - np.log1p(of_after)) for of_before, of_after in ends]
        down += min(*moves, 0.0) ** 2
        up += max(*moves, 0.0) ** 2
    return float(np.exp(-np.sqrt(down))), float(np.exp(np.sqrt(up)))
