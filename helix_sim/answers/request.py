"""What `recommend` is asked: a model on a machine, the requests that it serves, and the limits that they set.

A mix of contexts is decoded together: a step reads the caches of all requests in its batch. Each attention group's
batch of B is taken to hold one request of the longest context and B - 1 that are the mix, so that its mean context is
mean + (longest - mean)/B; time and memory are those of a batch of that context, in which both are linear.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from helix_sim.answers.fleet import Fleet
from helix_sim.core.errors import SpecError
from helix_sim.core.text import said
from helix_sim.core.units import format_size, parse_size
from helix_sim.search.layout_source import not_whole
from helix_sim.search.pareto import Columns
from helix_sim.search.plan import Plan, plan
from helix_sim.specs.draft import MOST_DRAFTS, Draft
from helix_sim.specs.load import load_machine, load_model, load_timing, no_family, parse, shipped_families
from helix_sim.specs.precision import Precision
from helix_sim.specs.sweep import Sweep
from helix_sim.stacks.rules import formats_on_stacks, names_of
from helix_sim.stacks.stack import NAMES
from helix_sim.step import Step, default_precision
from helix_sim.timing.uncertainty import held_at

BATCHES = {"dense_to": 64, "growth": 1.02, "to": 8192}
CHUNKS = [1, 2, 4, 8, 16, 32, "batch"]
MOST_GPUS = 4096
MOST_TOTAL_GPUS = 10**5
"""A total that is filled, at most: its domains are packed one by one."""

CHOICES_OF_STACK = (*NAMES, "any", "none")
OBJECTIVES = ("fleet", "per-gpu")

Score = Callable[[Columns], Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What a layout must keep: seconds a token, with a chance unless None, and users it serves at once."""

    ttl_s: float
    min_users: int
    confidence: float | None = None

    def kept(self, columns: Columns) -> Any:
        """Which rows keep both; a row without its `held_s` is taken by its TTL."""
        return (columns.get("held_s", columns["ttl_s"]) <= self.ttl_s) & (columns["users"] >= self.min_users)

    def held_s(self, step: Step) -> Any:
        """Seconds that the TTL of a step, or of a column of them, stays below with the chance; the TTL without one."""
        if self.confidence is None:
            return step.ttl_s
        return held_at(self.confidence, step.ttl_s, step.ttl_interval_s[1])


@dataclass(frozen=True, slots=True, kw_only=True)
class Mix:
    """Contexts [tokens] of the requests in flight, and the share of requests that has each; shares sum to 1."""

    contexts: tuple[int, ...]
    shares: tuple[float, ...]

    @property
    def mean(self) -> float:
        """Mean context."""
        return sum(c * share for c, share in zip(self.contexts, self.shares, strict=True))

    def of_batch(self, batch: Any) -> Any:
        """Mean context of a batch with one request of the longest context and the mix for the rest, rounded up.

        >>> parse_mix("32K:0.75,1M:0.25").of_batch(np.array([1, 4, 1000])).tolist()
        [1000000, 455500, 274726]
        """
        return np.ceil(self.mean + (max(self.contexts) - self.mean) / batch).astype(np.int64)

    def record(self) -> list[dict[str, Any]]:
        """The mix as plain data, a row a context."""
        parts = zip(self.contexts, self.shares, strict=True)
        return [{"context": context, "share": share} for context, share in parts]

    def scaled(self, factor: float) -> Mix:
        """Every context times a factor."""
        return replace(self, contexts=tuple(max(1, round(c * factor)) for c in self.contexts))

    def __str__(self) -> str:
        if len(self.contexts) == 1:
            return format_size(self.contexts[0])
        parts = zip(self.contexts, self.shares, strict=True)
        return ", ".join(f"{format_size(c)}: {share:g}" for c, share in parts)


def parse_mix(text: str) -> Mix:
    """A context such as 1M, or several with the share of requests that has each, such as 32K:0.7,1M:0.3.

    >>> parse_mix("1M").contexts, parse_mix("32K:0.7,1M:0.3").shares
    ((1000000,), (0.7, 0.3))
    """
    parts = [part.split(":") for part in text.split(",")]
    how = "write one size such as 1M, or sizes with shares that sum to 1 such as 32K:0.7,1M:0.3"
    try:
        alone = len(parts) == 1 and len(parts[0]) == 1
        sizes = (parse_size(text),) if alone else tuple(parse_size(size) for size, _ in parts)
        shares = (1.0,) if alone else tuple(float(share) for _, share in parts)
    except ValueError:
        raise SpecError([f"--context: {said(text)} is not a context; {how}"]) from None
    if too_long := [problem for size in sizes if (problem := not_whole(size))]:
        raise SpecError([f"--context: {problem}" for problem in too_long])
    if not all(share > 0 for share in shares) or not abs(sum(shares) - 1) <= 1e-6:
        raise SpecError([f"--context: the shares of {said(text)} sum to {sum(shares):g}; {how}"])
    together = {size: sum(s for c, s in zip(sizes, shares, strict=True) if c == size) for size in sizes}
    return Mix(contexts=tuple(together), shares=tuple(together.values()))


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """A model (name or file) on a machine, the requests it serves, and the limits it must keep.

    gpus: fewest and most GPUs of a layout; one NVLink domain unless given. families: all that are shipped unless given.
    stack: the serving stack that must start a layout: trtllm, vllm, sglang, any of them, or none, physics alone. With a
    stack, formats are those it stores: 4-bit values with their block scales. total_gpus: GPUs that replicas of a layout
    fill; one replica alone unless given. objective: most tokens/s of the whole (`fleet`, the default where a total is
    known), or of each GPU that is used (`per-gpu`). confidence: the chance with which a layout must keep
    ttl_s by a measured timing's interval, 0.5 or more; unless given, the TTL itself must keep it. usd_per_gpu_hour: a
    price in place of the machine's own. draft: what may draft, a record, its name or file; nothing unless given.
    draft_tokens: drafts of a step that are tried; 0 to 8 unless given.
    """

    model: str
    machine: str
    mix: Mix
    ttl_s: float
    timing: str = "paper"
    precision: Precision | None = None
    gpus: tuple[int, int] | None = None
    families: tuple[str, ...] = ()
    min_users: int = 1
    choices: int = 5
    stack: str = "any"
    draft: Draft | str | None = None
    draft_tokens: tuple[int, ...] = ()
    total_gpus: int | None = None
    objective: str | None = None
    confidence: float | None = None
    usd_per_gpu_hour: float | None = None

    @property
    def limits(self) -> Limits:
        """What a layout must keep."""
        return Limits(ttl_s=self.ttl_s, min_users=self.min_users, confidence=self.confidence)

    @property
    def counts_fleet(self) -> bool:
        """Whether the whole's throughput is the objective."""
        return self.total_gpus is not None and self.objective != "per-gpu"

    def fleet(self, domain: int) -> Fleet | None:
        """The GPUs to fill, in NVLink domains of that many; None where no total is known."""
        return Fleet(total=self.total_gpus, domain=domain) if self.total_gpus is not None else None

    @property
    def stacks(self) -> tuple[str, ...]:
        """The stacks of which one must start a layout."""
        return names_of(self.stack)


def search_plan(request: Request) -> Plan:
    """The sweep of a request, with its files loaded: every layout at the mix's mean context."""
    machine = load_machine(request.machine)
    most = min(machine.domain, machine.gpus.value, request.total_gpus or MOST_GPUS)
    first, last = request.gpus or (1, max(1, most))
    last = min(last, max(first, request.total_gpus or last))
    _check(request, first, last, machine.gpus.value)
    known = shipped_families()
    model = load_model(request.model)
    formats = request.precision or default_precision(model, machine, load_timing(request.timing))
    precision = formats_on_stacks(formats, request.stacks, machine, model)
    content = {
        "kind": "sweep",
        "name": "recommend",
        "description": "layouts under a latency budget",
        "model": request.model,
        "machine": request.machine,
        "timing": request.timing,
        "precision": precision,
        "contexts": [int(np.ceil(request.mix.mean))],
        "gpus": {"from": first, "to": last},
        "batch": BATCHES,
        "chunks": CHUNKS,
        "families": {name: known[name] for name in request.families or known},
        "draft": request.draft.name if isinstance(request.draft, Draft) else request.draft,
        "draft_tokens": list(request.draft_tokens) or None,
    }
    return plan(parse(Sweep, content, "recommend"))


def _check(request: Request, first: int, last: int, most: int) -> None:
    """Every problem of a request in one SpecError."""
    known = shipped_families()
    problems = [f"--family: {no_family(name)}" for name in request.families if name not in known]
    if not 1 <= first <= last <= min(most, MOST_GPUS):
        problems.append(f"--gpus: {request.machine} has 1 to {min(most, MOST_GPUS)} GPUs, not {first} to {last}")
    if request.stack not in CHOICES_OF_STACK:
        problems.append(f"--stack: {said(request.stack)} is not one of {', '.join(CHOICES_OF_STACK)}")
    if not 0 < request.ttl_s < np.inf:
        problems.append(f"--ttl-ms: {request.ttl_s * 1e3:g} must be more than 0")
    for option, count in (("--min-users", request.min_users), ("--choices", request.choices)):
        if problem := not_whole(count):
            problems.append(f"{option}: {problem}")
    problems += _draft_problems(request) + _fleet_problems(request, first) + _confidence_problems(request)
    if problems:
        raise SpecError(problems)


def _draft_problems(request: Request) -> list[str]:
    """What is wrong with the drafts of a step that are to be tried."""
    if request.draft_tokens and request.draft is None:
        return ["--draft-tokens says how many drafts, and --draft, which must be given too, what drafts them"]
    return [f"--draft-tokens: {said(n)} is not a whole number from 0 to {MOST_DRAFTS}" for n in request.draft_tokens
            if not_whole(n, 0) or n > MOST_DRAFTS]  # fmt: skip


def _fleet_problems(request: Request, first: int) -> list[str]:
    """What is wrong with a total of GPUs and the objective."""
    total = request.total_gpus
    if request.objective is not None and request.objective not in OBJECTIVES:
        return [f"--objective: {said(request.objective)} is not one of {', '.join(OBJECTIVES)}"]
    if total is None:
        return ["--objective is of a total of GPUs; give --total-gpus or --racks, or leave it out"] * bool(
            request.objective
        )
    if problem := not_whole(total):
        return [f"--total-gpus: {problem}"]
    if total > MOST_TOTAL_GPUS:
        return [f"--total-gpus: {total:,} is more than {MOST_TOTAL_GPUS:,}; fill a part of them"]
    if first > total:
        return [f"--total-gpus: a layout of {first} GPUs does not fit into {total}; give fewer --gpus"]
    return []


def _confidence_problems(request: Request) -> list[str]:
    """What is wrong with a confidence."""
    if request.confidence is None:
        return []
    if not 0.5 <= request.confidence < 1:
        return [f"--confidence: {request.confidence:g} is not between 0.5 and 1; 0.9 holds nine times of ten"]
    if load_timing(request.timing).calibration is None:
        return [f"--confidence: timing {request.timing} has no interval; give a measured --timing such as gb200-trtllm"]
    return []


def throughput(columns: Columns) -> Any:
    """The score of a recommendation: tokens/s/GPU."""
    return columns["tokens_per_s_gpu"]


def score_of(request: Request, domain: int) -> Score:
    """What a request's layouts are ordered by: tokens/s over all GPUs of its fleet, or over those that are used."""
    fleet = request.fleet(domain)
    if fleet is None or not request.counts_fleet:
        return throughput
    return lambda columns: (
        columns["tokens_per_s_gpu"] * (fleet.replicas(columns["gpus"]) * columns["gpus"] / fleet.total)
    )
