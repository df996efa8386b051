"""Which layout to use: the best throughput under a latency budget, what another gives up, what to relax if none.

A layout is an answer where a serving stack starts it (`helix_sim.stacks`): all layouts are searched, those that no
stack starts are put aside by the rule that stands against them, and the answer says what they would have added.

With a total of GPUs the score is what the whole decodes: replicas of a layout, each within its NVLink domain or from
the edge of one (`helix_sim.answers.fleet`), over all GPUs, those that stay idle among them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import numpy as np

from helix_sim.answers.recommendation import (
    Choice,
    Filled,
    Helix,
    Recommendation,
    Relaxation,
    Stacked,
    Whole,
    WithoutRules,
)
from helix_sim.answers.request import MOST_GPUS, Limits, Mix, Request, Score, score_of, search_plan, throughput
from helix_sim.answers.shape_search import best_of_each_shape, rows_of, search_shapes
from helix_sim.core.layout import AXES, Layout
from helix_sim.core.numeric import ceil_div
from helix_sim.core.units import GIGA
from helix_sim.feasibility import Reason, memory_reason
from helix_sim.search.pareto import Columns
from helix_sim.search.plan import Plan
from helix_sim.search.sweep import SweepResult
from helix_sim.stacks.rules import StackRule, stack_flags, start_flags
from helix_sim.step import Step, evaluate_step
from helix_sim.timing.uncertainty import chance_below

EVEN_MORE_MEMORY = 1e4
"""A factor on memory after which no layout is too large."""


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
    made = {row: _choice(planned, rows_of(table, row), request) for row in sorted(listed | mixed.keys())}
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
        mine = rows_of(whole, whole["family"] == place) if whole else {}
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
    rows = rows_of(table, started) if started.any() else {}
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
        return rows_of(table, 0) if table else {}

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
        add("stack", 1, 1, rows_of(physics, 0))
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
        return {**rows_of(table, 0), "mean": np.asarray(mix.mean)} if table else {}

    low, high = 1e-3, 1.0
    best = at(low)
    while best and high / low > 1.01:
        middle = (low * high) ** 0.5
        if row := at(middle):
            best, low = row, middle
        else:
            high = middle
    return best
