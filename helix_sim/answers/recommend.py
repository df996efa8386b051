"""Which layout to use: the best throughput under a latency budget, the price of another, what to relax if none.

The search is a sweep written in code: every family, every divisor layout of every GPU count, every batch. Of each shape
(its widths) the batch with the best throughput within the limits is kept.

A layout is an answer where a serving stack starts it (`helix_sim.stacks`): all layouts are searched, those that no
stack starts are put aside by the rule that stands against them, and the answer says what they would have added.

A mix of contexts is decoded together: a step reads the caches of all requests in its batch. Each attention group's
batch of B is taken to hold one request of the longest context and B - 1 that are the mix, so that its mean context is
mean + (longest - mean)/B; time and memory are those of a batch of that context, in which both are linear.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from helix_sim import __version__
from helix_sim.answers.explain import answer_record
from helix_sim.core.errors import SpecError
from helix_sim.core.layout import AXES, Layout
from helix_sim.core.numeric import ceil_div
from helix_sim.core.text import said
from helix_sim.core.units import GIGA, format_size, parse_size
from helix_sim.feasibility import memory_reason
from helix_sim.search.layout_source import not_whole
from helix_sim.search.pareto import Columns
from helix_sim.search.plan import Plan, plan
from helix_sim.search.sweep import run_plan
from helix_sim.specs.load import load_machine, load_model, load_timing, shipped_families
from helix_sim.specs.precision import Precision
from helix_sim.specs.sweep import Sweep
from helix_sim.stacks.rules import StackRule, formats_on_stacks, names_of, stack_flags, start_flags
from helix_sim.stacks.stack import NAMES
from helix_sim.step import Step, default_precision, evaluate_step, op_rows

BATCHES = {"dense_to": 64, "growth": 1.02, "to": 8192}
CHUNKS = [1, 2, 4, 8, 16, 32, "batch"]
MOST_GPUS = 4096
EVEN_MORE_MEMORY = 1e4
"""A factor on memory after which no layout is too large."""

CHOICES_OF_STACK = (*NAMES, "any", "none")

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
    stack, formats are those it stores: 4-bit values with their block scales. draft: what may draft, by name or file;
    nothing unless given. draft_tokens: drafts of a step that are tried; 0 to 8 unless given.
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

    @property
    def stacks(self) -> tuple[str, ...]:
        """The stacks of which one must start a layout."""
        return names_of(self.stack)


def search_plan(request: Request) -> Plan:
    """The sweep of a request, with its files loaded: every layout at the mix's mean context."""
    machine = load_machine(request.machine)
    first, last = request.gpus or (1, min(machine.domain, machine.gpus.value))
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
    problems = [
        f"--family: there is no family named {name!r}; {_nearest(name, list(known))}"
        for name in request.families
        if name not in known
    ]
    if not 1 <= first <= last <= min(most, MOST_GPUS):
        problems.append(f"--gpus: {request.machine} has 1 to {min(most, MOST_GPUS)} GPUs, not {first} to {last}")
    if request.stack not in CHOICES_OF_STACK:
        problems.append(f"--stack: {said(request.stack)} is not one of {', '.join(CHOICES_OF_STACK)}")
    if not 0 < request.ttl_s < np.inf:
        problems.append(f"--ttl-ms: {request.ttl_s * 1e3:g} must be more than 0")
    for option, count in (("--min-users", request.min_users), ("--choices", request.choices)):
        if problem := not_whole(count):
            problems.append(f"{option}: {problem}")
    if problems:
        raise SpecError(problems)


def _nearest(word: str, known: list[str]) -> str:
    close = difflib.get_close_matches(word, known, n=1, cutoff=0.6)
    return f"did you mean {close[0]}?" if close else f"known: {', '.join(known)}"


# --- The search ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What a layout must keep: seconds a token, and users it serves at once."""

    ttl_s: float
    min_users: int

    def kept(self, columns: Columns) -> Any:
        """Which rows keep both."""
        return (columns["ttl_s"] <= self.ttl_s) & (columns["users"] >= self.min_users)


def throughput(columns: Columns) -> Any:
    """The score of a recommendation: tokens/s/GPU."""
    return columns["tokens_per_s_gpu"]


def best_of_each_shape(
    planned: Plan, mix: Mix, limits: Limits, score: Score = throughput, stacks: Sequence[str] = ()
) -> Columns:
    """Of every shape that has a batch within the limits, the batch with the best score, best shape first.

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
        if len(columns["id"]) and len(mix.contexts) > 1:
            columns = _at_mix(planned, columns, mix)
            columns = _rows(columns, limits.kept(columns))
        if len(columns["id"]):
            found.append(_best_batches(planned, columns, score))

    run_plan(planned, on_points=on_points)
    if not found:
        return {}
    table = {name: np.concatenate([part[name] for part in found]) for name in found[0]}
    table = _best_batches(planned, table, score)
    return _rows(table, np.lexsort((table["id"], -score(table))))


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
        shape[mine] = before + (columns["id"][mine] - planned.first_id(0, family)) // (batches * chunks)
        before += shapes
    return shape


def _best_batches(planned: Plan, columns: Columns, score: Score) -> Columns:
    """Of each shape among the rows, split and unsplit, the batch with the best score; of equals, the first layout."""
    shape = 2 * _shape_of(planned, columns) + (columns["chunks"] > 1)
    order = np.lexsort((columns["id"], -score(columns), shape))
    _, first = np.unique(shape[order], return_index=True)
    return _rows(columns, order[first])


def _at_mix(planned: Plan, columns: Columns, mix: Mix) -> Columns:
    """Rows whose batches hold the mix: time, throughput and memory evaluated anew; those that no longer fit drop."""
    x = Layout(**{name: columns[name] for name in AXES})
    context = mix.of_batch(x.batch)
    step = evaluate_step(planned.setting, x, context)
    seconds = np.asarray(step.ttl_s)
    columns = {
        **columns,
        "context": context,
        "ttl_s": seconds,
        "tokens_per_s_user": 1 / seconds,
        "tokens_per_s_gpu": np.asarray(step.tokens_per_s_gpu),
        "resident_bytes": np.broadcast_to(step.memory.resident_bytes, seconds.shape),
    }
    return _rows(columns, memory_reason(step.memory) == 0)


# --- What is answered ------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """A layout within the limits.

    step: its decode step, at the context of its batch. price: share of the best layout's throughput that it gives up.
    stopped_by: what keeps a larger batch out: `ttl`, `memory`, or `nothing` where it would not decode faster. stacks:
    the serving stacks that start it, among those asked for.
    """

    family: str
    step: Step
    price: float
    stopped_by: str
    stacks: tuple[str, ...] = ()

    @property
    def headroom_bytes(self) -> float:
        """Memory of the fullest GPU that is left, after its reserve."""
        return float(self.step.memory.left_bytes)

    @property
    def binds(self) -> dict[str, Any]:
        """The op that takes most of the TTL, the term that binds it, and its share."""
        row = max(op_rows(self.step), key=lambda row: float(row["share"]))
        return {name: row[name] for name in ("op", "binds", "share")}

    def record(self, planned: Plan, mix: Mix) -> dict[str, Any]:
        """The choice as plain data, an answer of its own."""
        return {
            **answer_record(self.step, planned.inputs, max(mix.contexts)),
            "family": self.family,
            "price": self.price,
            "resident_bytes": float(self.step.memory.resident_bytes),
            "headroom_bytes": self.headroom_bytes,
            "binds": self.binds,
            "stopped_by": self.stopped_by,
            "stacks": list(self.stacks),
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class Relaxation:
    """One limit that, alone relaxed from `given` to `needed`, lets a layout through. Units are in the name."""

    limit: str
    given: float
    needed: float
    layout: str

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
            "layout": self.layout,
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class WithoutRules:
    """What the best layout would add if some rules of the stacks were no hindrance.

    rules: the rules left out, by name; those against that layout where all are. adds: throughput above the best layout
    that starts, as a share of it; infinite where none starts. layout: the layout in words. tokens_per_s_gpu: its
    throughput.
    """

    rules: tuple[str, ...]
    adds: float
    layout: str
    tokens_per_s_gpu: float

    def record(self) -> dict[str, Any]:
        """The gain as plain data; `adds` is missing where no layout starts."""
        found = {"rules": list(self.rules), "layout": self.layout, "tokens_per_s_gpu": self.tokens_per_s_gpu}
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
    what the stacks' rules removed, and what that costs; None where physics alone was asked.
    """

    request: Request
    plan: Plan
    choices: list[Choice]
    by_family: list[Choice]
    relaxations: list[Relaxation]
    stacked: Stacked | None = None

    def record(self) -> dict[str, Any]:
        """The answer as plain data: what `recommend --json` prints."""
        request, planned = self.request, self.plan
        sweep, mix = planned.sweep, request.mix
        return {
            "helix_sim": __version__,
            "model": planned.model.name,
            "machine": planned.machine.name,
            "timing": planned.timing.name,
            "inputs": {kind: planned.inputs[kind].record() for kind in ("model", "machine", "timing")},
            "contexts": dict(zip(map(str, mix.contexts), mix.shares, strict=True)),
            "ttl_s": request.ttl_s,
            "min_users": request.min_users,
            "gpus": [sweep.gpu_counts[0], sweep.most_gpus],
            "stack": request.stack,
            "stacks": self.stacked.record() if self.stacked else None,
            "families": list(sweep.families),
            "layouts": planned.layouts,
            "choices": [choice.record(planned, mix) for choice in self.choices],
            "by_family": [choice.record(planned, mix) for choice in self.by_family],
            "relax": [relaxation.record() for relaxation in self.relaxations],
        }


def recommend(request: Request) -> Recommendation:
    """The layouts with the best throughput within the limits; where there is none, each limit that could be relaxed."""
    planned = search_plan(request)
    limits = Limits(ttl_s=request.ttl_s, min_users=request.min_users)
    whole = best_of_each_shape(planned, request.mix, limits)
    table, stacked = _that_start(planned, whole, request.stacks)
    if not table:
        relaxations = sorted(_relaxations(request, planned, whole), key=lambda r: r.factor)
        return Recommendation(
            request=request, plan=planned, choices=[], by_family=[], relaxations=relaxations, stacked=stacked
        )
    wanted = sorted({*_first_of_each(table, ALIKE)[: request.choices], *_first_of_each(table, ("family",))})
    found = sorted((_choice(planned, _rows(table, i), request, limits) for i in wanted), key=lambda c: c.price)
    top = float(found[0].step.tokens_per_s_gpu)
    priced = [replace(c, price=1 - float(c.step.tokens_per_s_gpu) / top) for c in found]
    by_family = [next(c for c in priced if c.family == name) for name in dict.fromkeys(c.family for c in priced)]
    return Recommendation(
        request=request, plan=planned, choices=priced[: request.choices], by_family=by_family, relaxations=[],
        stacked=stacked,
    )  # fmt: skip


def _that_start(planned: Plan, table: Columns, stacks: Sequence[str]) -> tuple[Columns, Stacked | None]:
    """The rows of a table, best first, that one of the stacks starts, and what becomes of the others."""
    if not stacks or not table:
        return table, None
    x = Layout(**{name: table[name] for name in AXES})
    each = [stack_flags(name, planned.model, planned.machine, planned.setting.precision, x) for name in stacks]
    flags = start_flags(stacks, planned.model, planned.machine, planned.setting.precision, x)
    started = flags == 0
    best = float(table["tokens_per_s_gpu"][started].max()) if started.any() else 0.0
    refused = {rule.name: int(count) for rule in StackRule if (count := (flags & -flags == rule.flag).sum())}

    def without(row: int, rules: tuple[str, ...]) -> WithoutRules:
        rate = float(table["tokens_per_s_gpu"][row])
        layout = str(Layout(**{name: int(table[name][row]) for name in AXES}))
        return WithoutRules(rules=rules, adds=rate / best - 1 if best else np.inf, layout=layout, tokens_per_s_gpu=rate)

    def first_without(rule: StackRule) -> int:
        return int(np.argmax(np.any([mine & ~rule.flag == 0 for mine in each], axis=0)))

    alone = [
        without(row, (rule.name,))
        for rule in StackRule
        if not started[row := first_without(rule)] and any(mine[row] & ~rule.flag == 0 for mine in each)
    ]
    physics = without(0, tuple(rule.name for rule in StackRule if int(flags[0]) & rule.flag)) if flags[0] else None
    costliest = max((gain for gain in alone if gain.adds > 0), key=lambda gain: gain.tokens_per_s_gpu, default=None)
    rows = _rows(table, started) if started.any() else {}
    return rows, Stacked(kept=len(flags), refused=refused, physics=physics, costliest=costliest)


ALIKE = ("family", "tpa", "kvp", "pp")
"""Layouts that agree in these are one choice: the same attention group, more or fewer of them, or another FFN grid."""


def _first_of_each(table: Columns, keys: tuple[str, ...]) -> list[int]:
    """The first row of each combination of values, in order."""
    _, first = np.unique(np.stack([table[key] for key in keys]), axis=1, return_index=True)
    return sorted(map(int, first))


def _choice(planned: Plan, row: Columns, request: Request, limits: Limits) -> Choice:
    """A row as a choice, its batch raised within the step of the sweep's batch list; price is still its throughput."""
    mix, widths = request.mix, {name: int(row[name]) for name in AXES if name != "batch"}
    batch = int(row["batch"])
    later = planned.batches[planned.batches > batch]
    candidates = np.arange(batch, int(later[0]) if len(later) else batch + 1)
    steps = _steps(planned, Layout(batch=candidates, **widths), mix)
    kept = np.asarray(steps.ttl_s <= limits.ttl_s) & (memory_reason(steps.memory) == 0)
    rate = np.where(kept, steps.tokens_per_s_gpu, -np.inf)
    chosen = Layout(batch=int(candidates[int(np.argmax(rate))]), **widths)
    step = _steps(planned, chosen, mix)
    family = list(planned.sweep.families)[int(row["family"])]
    price = -float(step.tokens_per_s_gpu)
    setting = planned.setting
    starting = [
        n for n in request.stacks if not stack_flags(n, setting.model, setting.machine, setting.precision, chosen)
    ]
    return Choice(
        family=family, step=step, price=price, stopped_by=_stopped_by(planned, chosen, mix, limits),
        stacks=tuple(starting),
    )  # fmt: skip


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
    return "ttl" if more.ttl_s > limits.ttl_s else "nothing"


# --- If nothing fits -------------------------------------------------------------------------------------------------


def _relaxations(request: Request, planned: Plan, physics: Columns) -> list[Relaxation]:
    """Each single limit whose relaxation lets a layout through, and how far, by searching without that limit.

    physics: layouts within the limits, whether a stack starts them or not.
    """
    limits = Limits(ttl_s=request.ttl_s, min_users=request.min_users)
    mix, machine = request.mix, planned.machine
    found = []

    def first(planned: Plan, limits: Limits, score: Score) -> Columns:
        table = best_of_each_shape(planned, mix, limits, score, request.stacks)
        return _rows(table, 0) if table else {}

    def add(limit: str, given: float, needed: float, row: Columns) -> None:
        widths = Layout(**{name: int(row[name]) for name in AXES})
        found.append(Relaxation(limit=limit, given=given, needed=needed, layout=str(widths)))

    smallest = _smallest_batches(planned, limits)
    if row := first(smallest, replace(limits, ttl_s=np.inf), lambda c: -c["ttl_s"]):
        add("ttl_ms", request.ttl_s * 1e3, float(row["ttl_s"]) * 1e3, row)
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
