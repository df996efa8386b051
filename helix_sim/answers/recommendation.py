"""The answer of `recommend` as records: choices, what fills a total of GPUs, what rules cost, what to relax."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from helix_sim.answers.explain import answer_record, known, uncertainty_record
from helix_sim.answers.request import Mix, Request
from helix_sim.core.display import Shown
from helix_sim.core.layout import Layout
from helix_sim.core.version import __version__
from helix_sim.search.identity import Input
from helix_sim.search.plan import Plan
from helix_sim.specs.quantities import ANSWER_VERSION
from helix_sim.step import Step, op_rows


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """A layout within the limits.

    family, title: its family by name and in words. step: its decode step, at the context of its batch.
    throughput_lost: share of the best layout's throughput (of the whole, where a total of GPUs is known) that it gives
    up. stopped_by: what keeps a larger batch out: `ttl`, `memory`, or `nothing` where it would not decode faster.
    stacks: the serving stacks that start it, among those asked for. chance: that it keeps the budget, by a measured
    timing's interval; None on another. filled: what replicas of it make of the total of GPUs; None without one.
    """

    family: str
    title: str
    step: Step
    throughput_lost: float
    stopped_by: str
    stacks: tuple[str, ...] = ()
    chance: float | None = None
    filled: Filled | None = None

    @property
    def headroom_bytes(self) -> float:
        """Memory of the fullest GPU that is left, after its reserve."""
        return float(self.step.memory.left_bytes)

    @property
    def binds(self) -> dict[str, Any]:
        """The op that takes most of the TTL, the term that binds it, and its share."""
        row = max(op_rows(self.step), key=lambda row: float(row["share"]))
        return {name: row[name] for name in ("op", "binds", "share")}

    def record(self, inputs: Mapping[str, Input], mix: Mix) -> dict[str, Any]:
        """The choice as plain data, an answer of its own."""
        return {
            **answer_record(self.step, inputs, max(mix.contexts)),
            **uncertainty_record(self.step),
            **({"chance_within_budget": self.chance} if self.chance is not None else {}),
            "family": self.family,
            "title": self.title,
            "throughput_lost": self.throughput_lost,
            "largest": self.binds,
            "stopped_by": self.stopped_by,
            "stacks": list(self.stacks),
            **({"fleet": self.filled.record()} if self.filled else {}),
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class Filled:
    """A total of GPUs filled with replicas: how many of which step, and what they decode together."""

    total_gpus: int
    parts: tuple[tuple[int, Step], ...]

    @property
    def replicas(self) -> int:
        """Replicas of all layouts."""
        return sum(count for count, _ in self.parts)

    @property
    def idle_gpus(self) -> int:
        """GPUs that no replica has room on."""
        return self.total_gpus - sum(count * int(step.layout.gpus) for count, step in self.parts)

    @property
    def users(self) -> int:
        """Requests in flight."""
        return sum(count * int(step.layout.users) for count, step in self.parts)

    @property
    def tokens_per_s(self) -> float:
        """Tokens of all users a second."""
        return sum(count * float(step.tokens_per_s_gpu) * int(step.layout.gpus) for count, step in self.parts)

    @property
    def usd_per_million_tokens(self) -> float:
        """Cost of a million tokens with every GPU paid for, idle ones too [USD]; NaN without a price."""
        return float(self.parts[0][1].machine.usd_per_million_tokens(self.tokens_per_s / self.total_gpus))

    def record(self) -> dict[str, Any]:
        """The same as plain data."""
        return {
            "total_gpus": self.total_gpus,
            "replicas": self.replicas,
            "idle_gpus": self.idle_gpus,
            "users": self.users,
            "tokens_per_s": self.tokens_per_s,
            "usd_per_million_tokens": known(self.usd_per_million_tokens),
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class Whole:
    """The best way to fill a total of GPUs: replicas of each choice, and what they make together.

    adds: throughput above that of the best single layout's replicas, as a share of it; 0 where no mix wins.
    """

    parts: tuple[tuple[int, Choice], ...]
    filled: Filled
    adds: float

    def record(self, inputs: Mapping[str, Input], mix: Mix) -> dict[str, Any]:
        """The same as plain data, each part with the answer that it is."""
        parts = [{"replicas": count, **choice.record(inputs, mix)} for count, choice in self.parts]
        return {**self.filled.record(), "adds": self.adds, "parts": parts}


@dataclass(frozen=True, slots=True, kw_only=True)
class Helix:
    """The best layout that shards the KV cache by sequence beside the best that does not.

    gain: throughput above the conventional one's, as a share of it.
    """

    choice: Choice
    conventional: Choice
    gain: float

    def record(self) -> dict[str, Any]:
        """The same as plain data."""
        pair = {"sharded": self.choice, "conventional": self.conventional}
        return {"gain": self.gain} | {
            name: {"family": each.family, "layout": each.step.layout.columns()} for name, each in pair.items()
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class Relaxation:
    """One limit that, alone relaxed from `given` to `needed`, lets a layout through. Units are in the name."""

    limit: str
    given: float
    needed: float
    layout: Layout

    @property
    def factor(self) -> float:
        """How far it must move, as a factor above 1."""
        return max(self.needed / self.given, self.given / self.needed)

    def record(self) -> dict[str, Any]:
        """The relaxation as plain data."""
        return {
            "limit": self.limit,
            "given": self.given,
            "needed": self.needed,
            "factor": self.factor,
            "layout": self.layout.columns(),
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class WithoutRules:
    """What the best layout would add if some rules of the stacks were no hindrance.

    rules: the rules left out, by name; those against that layout where all are. adds: throughput above the best layout
    that starts, as a share of it; infinite where none starts. layout, tokens_per_s_gpu: the layout and its throughput.
    """

    rules: tuple[str, ...]
    adds: float
    layout: Layout
    tokens_per_s_gpu: float

    def record(self) -> dict[str, Any]:
        """The gain as plain data; `adds` is missing where no layout starts."""
        layout, rate = self.layout.columns(), self.tokens_per_s_gpu
        found: dict[str, Any] = {"rules": list(self.rules), "layout": layout, "tokens_per_s_gpu": rate}
        return found | ({"adds": self.adds} if np.isfinite(self.adds) else {})


@dataclass(frozen=True, slots=True, kw_only=True)
class Stacked:
    """What the stacks' rules did to a search.

    kept: layouts (the best batch of each shape) within the limits. refused: those that no stack starts, by the first
    rule that stands against them. physics: what physics alone would add. costliest: which one rule costs most, and what
    would be gained without it; None where no single rule costs anything.
    """

    kept: int
    refused: dict[str, int]
    physics: WithoutRules | None
    costliest: WithoutRules | None

    def record(self) -> dict[str, Any]:
        """The same as plain data."""
        return {
            "within_limits": self.kept,
            "refused": self.refused,
            "physics_alone": self.physics.record() if self.physics else None,
            "costliest_rule": self.costliest.record() if self.costliest else None,
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class Recommendation(Shown):
    """The answer: the best layouts of different attention groups, the best of each family, or what to relax if none.

    relaxations: by how far the limit must move, the least first; empty, too, where no single limit is enough. stacked:
    what the stacks' rules removed, and what that costs; None where physics alone was asked. without: why a family that
    was searched has no layout here, by its name. whole: the best way to fill the total of GPUs; None without a total.
    helix: the best of KV parallelism against the best without; None where either has no layout. inputs: the files.
    """

    request: Request
    plan: Plan
    inputs: Mapping[str, Input]
    choices: list[Choice]
    by_family: list[Choice]
    relaxations: list[Relaxation]
    stacked: Stacked | None = None
    without: Mapping[str, str] = field(default_factory=dict)
    whole: Whole | None = None
    helix: Helix | None = None

    def __repr__(self) -> str:
        best = f"best {self.choices[0].step.layout}" if self.choices else "no layout keeps every limit"
        return f"<Recommendation for {self.plan.setting!r} within {self.request.ttl_s * 1e3:g} ms: {best}>"

    def record(self) -> dict[str, Any]:
        """The answer as plain data: what `recommend --json` prints."""
        request, planned, inputs = self.request, self.plan, self.inputs
        sweep, mix = planned.sweep, request.mix
        return {
            "helix_sim": __version__,
            "answer_version": ANSWER_VERSION,
            "model": planned.model.name,
            "machine": planned.machine.name,
            "timing": planned.timing.name,
            "inputs": {kind: inputs[kind].record() for kind in ("model", "machine", "timing")},
            "mix": mix.record(),
            "ttl_s": request.ttl_s,
            "confidence": request.confidence,
            "min_users": request.min_users,
            "gpus_from": sweep.gpu_counts[0],
            "gpus_to": sweep.most_gpus,
            "total_gpus": request.total_gpus,
            "objective": "fleet" if request.counts_fleet else "per-gpu",
            "stack": request.stack,
            "stack_rules": self.stacked.record() if self.stacked else None,
            "families": list(sweep.families),
            "families_without": dict(self.without),
            "layouts": planned.layouts,
            "choices": [choice.record(inputs, mix) for choice in self.choices],
            "by_family": [choice.record(inputs, mix) for choice in self.by_family],
            "fleet": self.whole.record(inputs, mix) if self.whole else None,
            "helix": self.helix.record() if self.helix else None,
            "relax": [relaxation.record() for relaxation in self.relaxations],
        }
