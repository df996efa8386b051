"""Which layout to use: the best throughput under a latency budget, what another gives up, what to relax if none.

The search is a sweep written in code: every family, every divisor layout of every GPU count, every batch. Of each shape
(its widths) the batch with the best throughput within the limits is kept.

A layout is an answer where a serving stack starts it (`helix_sim.stacks`): all layouts are searched, those that no
stack starts are put aside by the rule that stands against them, and the answer says what they would have added.

With a total of GPUs the score is what the whole decodes: replicas of a layout, each within its NVLink domain or from
the edge of one (`helix_sim.answers.fleet`), over all GPUs, those that stay idle among them.

A mix of contexts is decoded together: a step reads the caches of all requests in its batch. Each attention group's
batch of B is taken to hold one request of the longest context and B - 1 that are the mix, so that its mean context is
mean + (longest - mean)/B; time and memory are those of a batch of that context, in which both are linear.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from helix_sim import __version__
from helix_sim.answers.explain import answer_record, known, uncertainty_record
from helix_sim.answers.fleet import Fleet
from helix_sim.core.errors import SpecError
from helix_sim.core.layout import AXES, Layout
from helix_sim.core.numeric import ceil_div
from helix_sim.core.text import said
from helix_sim.core.units import GIGA, format_size, parse_size
from helix_sim.feasibility import Reason, memory_reason
from helix_sim.search.identity import Input
from helix_sim.search.layout_source import not_whole
from helix_sim.search.pareto import Columns
from helix_sim.search.plan import Plan, plan
from helix_sim.search.sweep import SweepResult, run_plan
from helix_sim.specs.load import load_machine, load_model, load_timing, no_family, shipped_families
from helix_sim.specs.precision import Precision
from helix_sim.specs.quantities import ANSWER_VERSION
from helix_sim.specs.sweep import Sweep
from helix_sim.stacks.rules import StackRule, formats_on_stacks, names_of, stack_flags, start_flags
from helix_sim.stacks.stack import NAMES
from helix_sim.step import Step, default_precision, evaluate_step, op_rows
from helix_sim.timing.uncertainty import chance_below, held_at

BATCHES = {"dense_to": 64, "growth": 1.02, "to": 8192}
CHUNKS = [1, 2, 4, 8, 16, 32, "batch"]
MOST_GPUS = 4096
EVEN_MORE_MEMORY = 1e4
"""A factor on memory after which no layout is too large."""

CHOICES_OF_STACK = (*NAMES, "any", "none")
OBJECTIVES = ("fleet", "per-gpu")

Score = Callable[[Columns], Any]


# --- What is asked ---------------------------------------------------------------------------------------------------


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
    price in place of the machine's own. draft: what may draft, by name or file; nothing unless given. draft_tokens:
    drafts of a step that are tried; 0 to 8 unless given.
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
    draft: str | None = None
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
    sweep = Sweep.model_validate(
        {
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
            "draft": request.draft,
            "draft_tokens": list(request.draft_tokens) or None,
        }
    )
    return plan(sweep)


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
    problems += _fleet_problems(request, first) + _confidence_problems(request)
    if problems:
        raise SpecError(problems)


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


# --- The search ------------------------------------------------------------------------------------------------------


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


def best_of_each_shape(
    planned: Plan, mix: Mix, limits: Limits, score: Score = throughput, stacks: Sequence[str] = ()
) -> Columns:
    """The table of `search_shapes`."""
    return search_shapes(planned, mix, limits, score, stacks)[0]


def search_shapes(
    planned: Plan, mix: Mix, limits: Limits, score: Score = throughput, stacks: Sequence[str] = ()
) -> tuple[Columns, SweepResult]:
    """Of every shape that has a batch within the limits, the batch with the best score, best first; and the search.

    A shape has two rows where it has HOP-B: the best of its unsplit batches, and of the others. stacks: of which one
    must start a layout, or it is left out.
    """
    found: list[Columns] = []
    starts = _starts(planned, stacks)

    def on_points(columns: Columns) -> None:
        # a longer context only adds time and memory: what fails at the mean fails in a batch of the mix
        columns = _rows(columns, limits.kept(columns))
        if stacks:
            columns = _rows(columns, (columns["chunks"] == 1) & starts[_shape_of(planned, columns)])
        if len(columns["id"]) and (len(mix.contexts) > 1 or limits.confidence is not None):
            columns = _at_mix(planned, columns, mix, limits)
            columns = _rows(columns, limits.kept(columns))
        if len(columns["id"]):
            found.append(_best_batches(planned, columns, score))

    result = run_plan(planned, on_points=on_points, within_s=limits.ttl_s)
    if not found:
        return {}, result
    table = {name: np.concatenate([part[name] for part in found]) for name in found[0]}
    table = _best_batches(planned, table, score)
    return _rows(table, np.lexsort((table["id"], -score(table)))), result


def _rows(columns: Columns, which: Any) -> Columns:
    return {name: column[which] for name, column in columns.items()}


def _starts(planned: Plan, stacks: Sequence[str]) -> Any:
    """Whether one of the stacks starts each shape of a plan, in the plan's order."""
    shapes = sum(planned.sizes(family)[0] for family in planned.sweep.families)
    x = Layout(**planned.row_shapes((0, shapes)))
    return start_flags(stacks, planned.model, planned.machine, planned.setting.precision, x) == 0


def _shape_of(planned: Plan, columns: Columns) -> Any:
    """The place of each row's shape in the plan."""
    shape, before = np.zeros(len(columns["id"]), dtype=np.int64), 0
    for index, family in enumerate(planned.sweep.families):
        shapes, batches, chunks = planned.sizes(family)
        mine = columns["family"] == index
        shape[mine] = before + (columns["id"][mine] - planned.first_ids[index]) // (batches * chunks)
        before += shapes
    return shape


def _best_batches(planned: Plan, columns: Columns, score: Score) -> Columns:
    """Of each shape among the rows, split and unsplit, the batch with the best score; of equals, the first layout."""
    shape = 2 * _shape_of(planned, columns) + (columns["chunks"] > 1)
    order = np.lexsort((columns["id"], -score(columns), shape))
    _, first = np.unique(shape[order], return_index=True)
    return _rows(columns, order[first])


def _at_mix(planned: Plan, columns: Columns, mix: Mix, limits: Limits) -> Columns:
    """Rows whose batches hold the mix: time, throughput and memory evaluated anew; those that no longer fit drop."""
    x = Layout(**{name: columns[name] for name in AXES})
    context = mix.of_batch(x.batch)
    step = evaluate_step(planned.setting, x, context)
    seconds = np.asarray(step.ttl_s)
    columns = {
        **columns,
        "context": context,
        "ttl_s": seconds,
        "held_s": np.asarray(limits.held_s(step)),
        "tokens_per_s_user": 1 / seconds,
        "tokens_per_s_gpu": np.asarray(step.tokens_per_s_gpu),
        "resident_bytes": np.broadcast_to(step.memory.resident_bytes, seconds.shape),
    }
    return _rows(columns, memory_reason(step.memory) == 0)


# --- What is answered ------------------------------------------------------------------------------------------------


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
class Recommendation:
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


def recommend(request: Request, on_search: Callable[[str], None] = lambda _: None) -> Recommendation:
    """The layouts with the best throughput within the limits; where there is none, each limit that could be relaxed.

    on_search is told what is searched, for a progress line.
    """
    searched = search_plan(request)
    on_search(f"{searched.layouts:,} layouts")
    score = score_of(request, searched.machine.domain)
    whole, result = search_shapes(searched, request.mix, request.limits, score)
    planned = replace(searched, setting=searched.setting.at_price(request.usd_per_gpu_hour))
    table, stacked = _that_start(planned, whole, request.stacks, score)
    found = Recommendation(
        request=request, plan=planned, inputs=searched.inputs, choices=[], by_family=[], relaxations=[],
        stacked=stacked, without=_families_without(request, result, whole, table),
    )  # fmt: skip
    if not table:
        on_search("what to relax")
        return replace(found, relaxations=sorted(_relaxations(request, searched, whole), key=lambda r: r.factor))
    listed = {*_first_of_each(table, ALIKE)[: request.choices], *_first_of_each(table, ("family",))}
    mixed = _mixed(request, planned, table)
    made = {row: _choice(planned, _rows(table, row), request) for row in sorted(listed | mixed.keys())}
    rate = {row: float(score(_seen(choice.step))) for row, choice in made.items()}
    ordered = sorted(made, key=lambda row: -rate[row])
    top = max(rate[row] for row in listed)
    made = {row: replace(made[row], throughput_lost=1 - rate[row] / top) for row in ordered}
    choices = [choice for row, choice in made.items() if row in listed]
    by_family = [next(c for c in choices if c.family == name) for name in dict.fromkeys(c.family for c in choices)]
    return replace(
        found,
        choices=choices[: request.choices],
        by_family=by_family,
        whole=_whole(request, choices[0], [(count, made[row]) for row, count in mixed.items()]),
        helix=_helix(planned, by_family),
    )


def _seen(step: Step) -> Columns:
    """What a score asks of a layout."""
    return {"tokens_per_s_gpu": step.tokens_per_s_gpu, "gpus": np.asarray(step.layout.gpus)}


def _mixed(request: Request, planned: Plan, table: Columns) -> dict[int, int]:
    """Replicas by row of the table whose mix decodes most together; empty where no fleet is asked for."""
    fleet = request.fleet(planned.machine.domain)
    if fleet is None or not request.counts_fleet:
        return {}
    rows = _first_of_each(table, ("gpus",))  # of layouts on as many GPUs, the first is the fastest
    sizes = [int(table["gpus"][row]) for row in rows]
    rates = [float(table["tokens_per_s_gpu"][row]) * size for row, size in zip(rows, sizes, strict=True)]
    return {rows[place]: count for place, count in fleet.best_mix(sizes, rates).items()}


def _whole(request: Request, best: Choice, mixed: list[tuple[int, Choice]]) -> Whole | None:
    """The mix, if it decodes more than the replicas of the best layout do; else those."""
    if best.filled is None or request.total_gpus is None:
        return None
    if mixed:
        parts = tuple((count, choice.step) for count, choice in mixed)
        filled = Filled(total_gpus=request.total_gpus, parts=parts)
        adds = filled.tokens_per_s / best.filled.tokens_per_s - 1
        if adds > 1e-9:
            return Whole(parts=tuple(mixed), filled=filled, adds=adds)
    return Whole(parts=((best.filled.replicas, best),), filled=best.filled, adds=0.0)


def _helix(planned: Plan, by_family: Sequence[Choice]) -> Helix | None:
    """The best layout of KV parallelism against the best without it, by what either gives up of the best of all."""
    families = planned.sweep.families
    sharded = [choice for choice in by_family if families[choice.family].is_helix]
    others = [choice for choice in by_family if families[choice.family].is_conventional]
    if not sharded or not others:
        return None
    gain = (1 - sharded[0].throughput_lost) / (1 - others[0].throughput_lost) - 1
    return Helix(choice=sharded[0], conventional=others[0], gain=gain)


def _families_without(request: Request, result: SweepResult, whole: Columns, table: Columns) -> dict[str, str]:
    """Why each family that was searched has no layout among the rows of `table`, best of those in `whole`."""
    found = {}
    for place, name in enumerate(result.sweep.families):
        if table and (table["family"] == place).any():
            continue
        (curve,) = (by_family[name] for by_family in result.frontiers.values())
        fastest_s = 1 / float(curve.interactivity[-1]) if len(curve) else np.inf
        mine = _rows(whole, whole["family"] == place) if whole else {}
        if not len(curve):
            found[name] = _why_none_runs(result.dropped[name])
        elif mine and len(mine["id"]):
            found[name] = _why_none_starts(request, result.plan, mine)
        elif fastest_s > request.ttl_s:
            found[name] = f"its fastest layout takes {fastest_s * 1e3:.4g} ms"
        elif request.confidence is not None:
            found[name] = f"none holds the budget with a chance of {request.confidence:g}"
        else:
            found[name] = f"none within the budget serves {request.min_users} users of these contexts"
    return found


def _why_none_runs(dropped: Mapping[str, int]) -> str:
    counts = sorted(dropped.items(), key=lambda item: -item[1])[:2]
    if not counts:
        return "no layout of these GPUs has its widths"
    return "no layout runs: " + "; ".join(f"{count:,} by {Reason[name].title}" for name, count in counts)


def _why_none_starts(request: Request, planned: Plan, rows: Columns) -> str:
    x, s = Layout(**{name: rows[name] for name in AXES}), planned.setting
    flags = start_flags(request.stacks, s.model, s.machine, s.precision, x)
    counts = {rule.name: int((flags & -flags == rule.flag).sum()) for rule in StackRule}
    most = max(counts, key=lambda name: counts[name])
    return f"no stack starts one of its {len(flags):,} layouts within the limits; {most} stands against most"


def _that_start(planned: Plan, table: Columns, stacks: Sequence[str], score: Score) -> tuple[Columns, Stacked | None]:
    """The rows of a table, best first, that one of the stacks starts, and what becomes of the others."""
    if not stacks or not table:
        return table, None
    x = Layout(**{name: table[name] for name in AXES})
    each = [stack_flags(name, planned.model, planned.machine, planned.setting.precision, x) for name in stacks]
    flags = start_flags(stacks, planned.model, planned.machine, planned.setting.precision, x)
    started = flags == 0
    scores = score(table)
    best = float(scores[started].max()) if started.any() else 0.0
    refused = {rule.name: int(count) for rule in StackRule if (count := (flags & -flags == rule.flag).sum())}

    def without(row: int, rules: tuple[str, ...]) -> WithoutRules:
        rate = float(table["tokens_per_s_gpu"][row])
        layout = Layout(**{name: int(table[name][row]) for name in AXES})
        adds = float(scores[row]) / best - 1 if best else np.inf
        return WithoutRules(rules=rules, adds=adds, layout=layout, tokens_per_s_gpu=rate)

    def first_without(rule: StackRule) -> int:
        return int(np.argmax(np.any([mine & ~rule.flag == 0 for mine in each], axis=0)))

    alone = [
        without(row, (rule.name,))
        for rule in StackRule
        if not started[row := first_without(rule)] and any(mine[row] & ~rule.flag == 0 for mine in each)
    ]
    physics = without(0, tuple(rule.name for rule in StackRule if int(flags[0]) & rule.flag)) if flags[0] else None
    costliest = max(
        (gain for gain in alone if gain.adds > 0), key=lambda gain: (gain.adds, gain.tokens_per_s_gpu), default=None
    )
    rows = _rows(table, started) if started.any() else {}
    return rows, Stacked(kept=len(flags), refused=refused, physics=physics, costliest=costliest)


ALIKE = ("family", "tpa", "kvp", "pp")
"""Layouts that agree in these are one choice: the same attention group, more or fewer of them, or another FFN grid."""


def _first_of_each(table: Columns, keys: tuple[str, ...]) -> list[int]:
    """The first row of each combination of values, in order."""
    _, first = np.unique(np.stack([table[key] for key in keys]), axis=1, return_index=True)
    return sorted(map(int, first))


def _choice(planned: Plan, row: Columns, request: Request) -> Choice:
    """A row as a choice, its batch raised within the step of the sweep's batch list; what it loses is not known yet."""
    mix, limits = request.mix, request.limits
    widths = {name: int(row[name]) for name in AXES if name != "batch"}
    batch = int(row["batch"])
    later = planned.batches[planned.batches > batch]
    candidates = np.arange(batch, int(later[0]) if len(later) else batch + 1)
    steps = _steps(planned, Layout(batch=candidates, **widths), mix)
    kept = np.asarray(limits.held_s(steps) <= limits.ttl_s) & (memory_reason(steps.memory) == 0)
    rate = np.where(kept, steps.tokens_per_s_gpu, -np.inf)
    chosen = Layout(batch=int(candidates[int(np.argmax(rate))]), **widths)
    step = _steps(planned, chosen, mix)
    name = list(planned.sweep.families)[int(row["family"])]
    s, fleet = planned.setting, request.fleet(planned.machine.domain)
    replicas = int(fleet.replicas(chosen.gpus)) if fleet else 0
    return Choice(
        family=name,
        title=planned.sweep.families[name].title,
        step=step,
        throughput_lost=0.0,
        stopped_by=_stopped_by(planned, chosen, mix, limits),
        stacks=tuple(n for n in request.stacks if not stack_flags(n, s.model, s.machine, s.precision, chosen)),
        chance=_chance(step, limits.ttl_s),
        filled=Filled(total_gpus=fleet.total, parts=((replicas, step),)) if fleet else None,
    )


def _chance(step: Step, ttl_s: float) -> float | None:
    """Chance that a step's TTL is at most ttl_s, by its interval; None where its timing has none."""
    if step.timing.calibration is None:
        return None
    low, high = (float(end) for end in step.ttl_interval_s)
    return chance_below(ttl_s, float(step.ttl_s), low, high)


def _steps(planned: Plan, x: Layout, mix: Mix) -> Step:
    """The step of a layout (or of a column of batches) whose batches hold the mix."""
    context = mix.of_batch(x.batch)
    context = int(context) if np.ndim(context) == 0 else context
    return evaluate_step(planned.setting, x, context)


def _stopped_by(planned: Plan, x: Layout, mix: Mix, limits: Limits) -> str:
    """What one more request per group would break."""
    more = _steps(planned, replace(x, batch=x.batch + 1), mix)
    if memory_reason(more.memory):
        return "memory"
    return "ttl" if limits.held_s(more) > limits.ttl_s else "nothing"


# --- If nothing fits -------------------------------------------------------------------------------------------------


def _relaxations(request: Request, planned: Plan, physics: Columns) -> list[Relaxation]:
    """Each single limit whose relaxation lets a layout through, and how far, by searching without that limit.

    physics: layouts within the limits, whether a stack starts them or not.
    """
    limits = request.limits
    mix, machine = request.mix, planned.machine
    found = []

    def first(planned: Plan, limits: Limits, score: Score) -> Columns:
        table = best_of_each_shape(planned, mix, limits, score, request.stacks)
        return _rows(table, 0) if table else {}

    def add(limit: str, given: float, needed: float, row: Columns) -> None:
        widths = Layout(**{name: int(row[name]) for name in AXES})
        found.append(Relaxation(limit=limit, given=given, needed=needed, layout=widths))

    smallest = _smallest_batches(planned, limits)
    if row := first(smallest, replace(limits, ttl_s=np.inf), lambda c: -c.get("held_s", c["ttl_s"])):
        add("ttl_ms", request.ttl_s * 1e3, float(row.get("held_s", row["ttl_s"])) * 1e3, row)
    if request.min_users > 1 and (row := first(planned, replace(limits, min_users=1), lambda c: c["users"])):
        add("users", request.min_users, int(row["users"]), row)
    if row := first(_scaled_memory(smallest, EVEN_MORE_MEMORY), limits, lambda c: -c["resident_bytes"]):
        x = Layout(**{name: int(row[name]) for name in AXES})
        needed = float(_steps(planned, x, mix).memory.capacity_needed) / GIGA
        add("memory_GB", machine.memory_GB.value, needed, row)
    if row := _more_gpus(request, planned, first, limits):
        add("gpus", planned.sweep.most_gpus, int(row["gpus"]), row)
    if row := _shorter(request, smallest, limits):
        add("context", request.mix.mean, float(row.pop("mean")), row)
    if request.families and (row := first(search_plan(replace(request, families=())), limits, throughput)):
        add("families", 1, 1, row)
    if request.stacks and physics:
        add("stack", 1, 1, _rows(physics, 0))
    return found


def _smallest_batches(planned: Plan, limits: Limits) -> Plan:
    """The plan with the smallest batches that serve the users, ceil(users / groups): if they fail, larger ones do."""
    groups = np.arange(1, planned.sweep.most_gpus + 1)
    return replace(planned, batches=np.unique(ceil_div(limits.min_users, groups)))


def _scaled_memory(planned: Plan, factor: float) -> Plan:
    return replace(planned, setting=planned.setting.scaled("hbm_capacity", factor))


def _more_gpus(request: Request, planned: Plan, first: Callable[..., Columns], limits: Limits) -> Columns:
    """The layout within the limits on the fewest GPUs above those allowed, doubling the search up to the machine's."""
    last, most = planned.sweep.most_gpus, min(planned.machine.gpus.value, MOST_GPUS)
    while last < most:
        upto = min(2 * last, most)
        wider = _smallest_batches(search_plan(replace(request, gpus=(last + 1, upto))), limits)
        if row := first(wider, limits, lambda c: -c["gpus"]):
            return row
        last = upto
    return {}


def _shorter(request: Request, planned: Plan, limits: Limits) -> Columns:
    """The longest contexts within the limits, all scaled alike, to 1 %; empty where even a thousandth is too long."""

    def at(factor: float) -> Columns:
        mix = request.mix.scaled(factor)
        sweep = planned.sweep.model_copy(update={"contexts": [int(np.ceil(mix.mean))]})
        table = best_of_each_shape(replace(planned, sweep=sweep), mix, limits, stacks=request.stacks)
        return {**_rows(table, 0), "mean": np.asarray(mix.mean)} if table else {}

    low, high = 1e-3, 1.0
    best = at(low)
    while best and high / low > 1.01:
        middle = (low * high) ** 0.5
        if row := at(middle):
            best, low = row, middle
        else:
            high = middle
    return best
