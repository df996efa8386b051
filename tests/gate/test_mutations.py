"""The gate bites: one constant or one term at a time is made wrong, on each shipped sweep; each is caught and named.

`python tests/gate/test_mutations.py` prints the catch table. A mutation that cannot matter to a sweep (top-k routing,
to a model without experts) says why, and is proven not to: every frontier and every stored layout is the same bit for
bit.
"""

from __future__ import annotations

import functools
import random
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest

from helix_sim import step
from helix_sim.core.layout import Layout
from helix_sim.core.work import Work
from helix_sim.gate import baseline, regress
from helix_sim.gate.blame import evaluate_today
from helix_sim.ops import attention, exchange, layers, memory
from helix_sim.ops.layers import Half
from helix_sim.search import block
from helix_sim.search.pareto import COSTS
from helix_sim.search.plan import Plan, plan
from helix_sim.search.sweep import SweepResult, run_plan
from helix_sim.specs.load import load_sweep, shipped
from helix_sim.specs.machine import Machine

SWEEPS = [name for name in shipped("sweep") if name.startswith("paper-")]
Patch = pytest.MonkeyPatch
Edit = Callable[[Patch, Plan], Plan]


@dataclass(frozen=True, kw_only=True)
class Mutation:
    """One thing made wrong, and what the verdict must name: a term, an input, the fate of a point.

    alone: the term must be the first that is named. experts: it is about experts; a model without them is untouched.
    """

    what: str
    apply: Edit
    term: str = ""
    changed: str = ""
    fate: str = ""
    alone: bool = False
    experts: bool = False


# --- Ways to be wrong ------------------------------------------------------------------------------------------------


def value(part: str, path: str, new: Callable[[float], float]) -> Edit:
    """An input's value, as if its file had been edited."""

    def changed(record: Any, names: list[str]) -> Any:
        old = record[names[0]] if isinstance(record, dict) else getattr(record, names[0])
        inner = changed(old, names[1:]) if len(names) > 1 else new(old)
        return record | {names[0]: inner} if isinstance(record, dict) else record.model_copy(update={names[0]: inner})

    def apply(_: Patch, planned: Plan) -> Plan:
        record = changed(getattr(planned, part), path.split("."))
        return replace(planned, setting=replace(planned.setting, **{part: record}))

    return apply


def patched(*changes: tuple[Any, str, Any]) -> Edit:
    """Names of modules or classes, as if the code had been edited."""

    def apply(patch: Patch, planned: Plan) -> Plan:
        for home, name, new in changes:
            patch.setattr(home, name, new)
        return planned

    return apply


def op_table(edit: Callable[[dict[str, Work], Any], dict[str, Work]]) -> Edit:
    """The op table of each kind, which a single step and a sweep both read."""
    return patched((Half, "ops", lambda half, s: edit(TRUE_OPS(half, s), s)))


def op(name: str, wrong: Callable[[Work, Any], Work]) -> Edit:
    """One op's work; nothing where the model has no such op."""
    return op_table(lambda ops, d: {key: wrong(work, d) if key == name else work for key, work in ops.items()})


def both(*several: Edit) -> Edit:
    """Several edits that are one mistake."""
    return lambda patch, planned: functools.reduce(lambda so_far, part: part(patch, so_far), several, planned)


def dropped(work: Work, _: Any) -> Work:
    """An op that somebody forgot: no work, no launch, no message."""
    alone = replace(work.collective, group=1, payload=0.0) if work.collective else None
    return Work(op_class=work.op_class, kernels=0, collective=alone)


def twice_past_k(d: Any) -> Any:
    """2 where more TPA ranks than KV heads share the cache, else 1."""
    return 1 + (d.layout.tpa > d.model.fewest_kv_heads)


TRUE_OPS = Half.ops


TRUE_KV_BYTES = memory.kv_bytes_per_layer
TRUE_MEMORY = memory.memory_of
TRUE_ROUTED = layers.busiest_rank


def heavy_activations(*given: Any) -> Any:
    """memory_of with every activation buffer twice."""
    right = TRUE_MEMORY(*given)
    return replace(right, activations=2 * right.activations)


def every_other_shape(_: Patch, planned: Plan) -> Plan:
    """A search that skips half of its layouts."""
    shapes = {name: {axis: column[::2] for axis, column in shape.items()} for name, shape in planned.shapes.items()}
    return replace(planned, shapes=shapes)


MUTATIONS = [
    Mutation(
        what="HBM bandwidth −1 %",
        apply=value("machine", "hbm_bandwidth_GBps.value", lambda v: v * 0.99),
        term="op.attention_core",
        changed="hbm_bandwidth_GBps",
        alone=True,
    ),
    Mutation(
        what="all-reduce after attention dropped",
        apply=op("attention_all_reduce", dropped),
        term="op.attention_all_reduce",
        alone=True,
    ),
    Mutation(
        what="KV bytes ×2 past TPA = K",
        apply=both(
            op("attention_core", lambda work, d: replace(work, kv_bytes=work.kv_bytes * twice_past_k(d))),
            patched((memory, "kv_bytes_per_layer", lambda d, a: TRUE_KV_BYTES(d, a) * twice_past_k(d))),
        ),
        term="op.attention_core",
        alone=True,
    ),
    Mutation(
        what="top_k off by one, in the model's file",
        apply=value("model", "ffn.moe.top_k", lambda k: k + 1),
        term="op.routed_up",
        changed="ffn.moe.top_k: 8 → 9",
        experts=True,
    ),
    Mutation(
        what="top_k off by one, where routed tokens are counted",
        apply=patched(
            (layers, "busiest_rank", lambda d, moe: TRUE_ROUTED(d, moe.model_copy(update={"top_k": moe.top_k + 1})))
        ),
        term="op.routed_activation",
        experts=True,
    ),
    Mutation(
        what="HOP-B formula lockstep",
        apply=patched((step, "hidden_by_pipelining", lambda held, sent, chunks: 0 * held * sent * chunks)),
        term="hidden.exchange",
        alone=True,
    ),
    Mutation(
        what="memory reserve +1 GB, in the machine's file",
        apply=value("machine", "memory_reserve_GB.value", lambda v: v + 1),
        term="memory.room",
        changed="memory_reserve_GB",
        fate="infeasible",
        alone=True,
    ),
    Mutation(
        what="memory reserve forgotten, in the code",
        apply=patched((Machine, "memory_bytes", property(lambda machine: machine.memory_GB.value * 1e9))),
        term="memory.room",
        fate="better",
        alone=True,
    ),
    Mutation(
        what="kernel latency +1 %",
        apply=value("timing", "kernel.latency_us.value", lambda v: v * 1.01),
        term="op.output_projection",
        changed="kernel.latency_us",
    ),
    Mutation(
        what="collective latency +1 %",
        apply=value("timing", "collective.latency_us.value", lambda v: v * 1.01),
        term="op.exchange",
        changed="collective.latency_us",
    ),
    Mutation(
        what="NVLink bandwidth −1 %",
        apply=value("machine", "nvlink_per_direction_GBps.value", lambda v: v * 0.99),
        term="op.exchange",
        changed="nvlink_per_direction_GBps",
    ),
    Mutation(
        what="log-sum-exps of 2 bytes instead of 4",
        apply=patched((attention, "LSE_BYTES", 2), (exchange, "LSE_BYTES", 2)),
        term="op.exchange",
        alone=True,
    ),
    Mutation(
        what="combine kernel of the partial outputs dropped",
        apply=op("combine_partials", dropped),
        term="op.combine_partials",
        alone=True,
    ),
    Mutation(
        what="KV appended in blocks of 32 instead of 16",
        apply=patched(
            (attention, "KV_BLOCK_TOKENS", 32),
            (attention.fullest_share, "__defaults__", (32,)),
            (attention._summed_shares, "__defaults__", (32,)),
        ),
        term="op.attention_core",
        alone=True,
    ),
    Mutation(
        what="activation buffers counted twice",
        apply=patched((step, "memory_of", heavy_activations), (block, "memory_of", heavy_activations)),
        term="memory.activations",
        alone=True,
    ),
    Mutation(
        what="LM head not sharded",
        apply=op("head", lambda work, d: replace(work, weight_bytes=work.weight_bytes * d.layout.token_group)),
        term="op.head",
        alone=True,
    ),
    Mutation(
        what="pipeline hand-over dropped",
        apply=op("stage_handover", dropped),
        term="op.stage_handover",
        alone=True,
    ),
    Mutation(
        what="dispatch to experts dropped",
        apply=op("dispatch", dropped),
        term="op.dispatch",
        alone=True,
        experts=True,
    ),
    Mutation(
        what="router weights in a quarter of their bytes",
        apply=op("router", lambda work, _: replace(work, weight_bytes=work.weight_bytes / 4)),
        term="op.router",
        experts=True,
    ),
    Mutation(
        what="HOP-B's flights hold the link",
        apply=value("timing", "hop_b.exchange_occupancy.value", lambda _: 1.0),
        term="op.exchange",
        changed="exchange_occupancy",
    ),
    Mutation(
        what="all-reduces not behind the products before them",
        apply=value("timing", "all_reduce_overlap.value", lambda _: 0.0),
        term="hidden.attention_all_reduce",
        changed="all_reduce_overlap",
    ),
    Mutation(
        what="users counted in one pipeline stage",
        apply=patched((Layout, "users", property(lambda x: x.batch * x.dp))),
        term="total.throughput",
        alone=True,
    ),
    Mutation(what="search skips every other shape", apply=every_other_shape, fate="unsearched"),
]


# --- The gate on each ------------------------------------------------------------------------------------------------


@functools.cache
def true_result(name: str) -> SweepResult:
    """A shipped sweep as it is."""
    return run_plan(plan(load_sweep(name)))


@functools.cache
def true_baseline(name: str) -> baseline.Baseline:
    """Its baseline, through text and back."""
    return baseline.parse(baseline.render(baseline.snapshot(true_result(name), name, "2025-01-01")), name)


@functools.cache
def gated(name: str, edit: Edit) -> tuple[SweepResult, regress.Verdict, bool]:
    """A sweep under an edit: what it found, the verdict, and whether every stored layout costs the same, to the bit."""
    right_plan, stored = true_result(name).plan, true_baseline(name)  # before anything is wrong
    right = evaluate_today(stored, right_plan, regress.RTOL)
    with Patch.context() as patch:
        result = run_plan(edit(patch, right_plan))
        verdict = regress.compare(stored, result)
        today = evaluate_today(stored, result.plan, regress.RTOL)
    same = all(
        np.array_equal(today.terms[n].after, right.terms[n].after, equal_nan=True)
        for n in right.terms
        if n in today.terms
    )
    return result, verdict, same and np.array_equal(today.user, right.user)


def matters(name: str, mutation: Mutation) -> bool:
    """Whether the mutated equation is about anything that the sweep's model has."""
    return not mutation.experts or bool(true_result(name).plan.model.routed_kinds)


def cases(wanted: bool) -> list[Any]:
    """(sweep, mutation) pairs that matter, or that do not."""
    pairs = [(name, mutation) for name in SWEEPS for mutation in MUTATIONS if matters(name, mutation) == wanted]
    return [pytest.param(name, mutation, id=f"{name}: {mutation.what}") for name, mutation in pairs]


def ranked(verdict: regress.Verdict, mutation: Mutation) -> list[str]:
    """Terms that the verdict names, the most moved first, of the same kind (time, memory) as the expected one."""
    is_memory = mutation.term.startswith("memory.")
    return [term.name for term in verdict.terms if term.name.startswith("memory.") == is_memory]


def is_named(verdict: regress.Verdict, mutation: Mutation) -> bool:
    """Whether the verdict names the right term (first, where it is alone at fault), the right input, the right fate."""
    names = ranked(verdict, mutation)
    right_term = not mutation.term or mutation.term in (names[:1] if mutation.alone else names)
    changes = [line for change in verdict.inputs for line in change.what]
    right_input = any(mutation.changed in line for line in changes) if mutation.changed else not changes
    kinds = {move.kind for curve in verdict.curves for move in curve.moves}
    return right_term and right_input and (not mutation.fate or mutation.fate in kinds)


@pytest.mark.parametrize(("name", "mutation"), cases(wanted=True))
def test_a_mutation_is_caught_and_the_right_term_is_named(name: str, mutation: Mutation) -> None:
    _, verdict, _ = gated(name, mutation.apply)
    assert not verdict.held
    assert is_named(verdict, mutation), ([t.name for t in verdict.terms], verdict.inputs)


@pytest.mark.parametrize(("name", "mutation"), cases(wanted=False))
def test_a_mutation_that_cannot_matter_leaves_every_bit_as_it_was(name: str, mutation: Mutation) -> None:
    assert not true_result(name).plan.model.routed_kinds
    if mutation.changed:  # the file has no such value to edit
        return
    result, verdict, same_costs = gated(name, mutation.apply)
    assert verdict.held
    assert same_costs
    assert same_frontiers(result, true_result(name))


def same_frontiers(one: SweepResult, other: SweepResult) -> bool:
    """Whether every family's frontier, and every count of dropped layouts, is the same to the last bit.

    A price moves what a token costs, and no layout.
    """
    return one.dropped == other.dropped and all(
        np.array_equal(column, other.frontiers[context][family].columns[key])
        for context, families in one.frontiers.items()
        for family, curve in families.items()
        for key, column in curve.columns.items()
        if key not in COSTS
    )


# --- Every op, and every constant ------------------------------------------------------------------------------------


def named_by_probes(name: str, edit: Edit) -> list[str]:
    """Terms that moved at the stored layouts under an edit, the most moved first; the sweep is not run."""
    right_plan, stored = true_result(name).plan, true_baseline(name)  # before anything is wrong
    with Patch.context() as patch:
        return [term.name for term in evaluate_today(stored, edit(patch, right_plan), regress.RTOL).moves()]


@functools.cache
def ops_in_use(name: str) -> dict[str, bool]:
    """Ops of a sweep's model, and whether any point of any frontier, or any probe, spends time in it."""
    today = evaluate_today(true_baseline(name), true_result(name).plan, regress.RTOL)
    times = {key.removeprefix("op."): term for key, term in today.terms.items() if key.startswith("op.")}
    return {key: bool(np.nan_to_num(term.after).any()) for key, term in times.items()}


def first_ops(name: str, dropped_op: str) -> list[str]:
    """Ops that are named when one is dropped, the most moved first."""
    return [term for term in named_by_probes(name, op(dropped_op, dropped)) if term.startswith("op.")]


@pytest.mark.parametrize("name", SWEEPS)
def test_each_op_dropped_alone_is_the_first_op_named(name: str) -> None:
    for key, used in ops_in_use(name).items():
        names = first_ops(name, key)
        assert names[:1] == ([f"op.{key}"] if used else []), key


@pytest.mark.parametrize("name", SWEEPS)
def test_ops_that_no_stored_layout_runs_are_run_by_no_layout_of_the_sweep(name: str) -> None:
    unused = [key for key, used in ops_in_use(name).items() if not used]
    edits = [op(key, dropped) for key in unused]
    result, verdict, same_costs = gated(name, both(*edits))
    assert verdict.held
    assert same_costs
    assert same_frontiers(result, true_result(name))
    # families without Medha have no idle shards to spread to, and none of the sweep's shares a projection of queries
    assert set(unused) <= {"dense_spread", "moe_spread", "query_gather"}


def constants(name: str) -> dict[str, Edit]:
    """Each number of a sweep's machine and timing made 1 % smaller (a whole number by one, a zero one larger)."""

    def smaller(old: float) -> float:
        return old - 1 if isinstance(old, int) else old * 0.99 if old else 1.0

    planned, found = true_result(name).plan, {}
    for part in ("machine", "timing"):
        for key, text in baseline.provenance(planned).items():
            path = key.removeprefix(f"{part}.")
            if path != key and text.replace(".", "").isdigit():
                found[path] = value(part, f"{path}.value", smaller)
    return found


@functools.cache
def constant_cases(name: str) -> dict[str, bool]:
    """Each constant, and whether changing it moves a term at some stored layout."""
    return {path: bool(named_by_probes(name, edit)) for path, edit in constants(name).items()}


@pytest.mark.parametrize("name", SWEEPS)
def test_each_constant_is_caught_or_leaves_every_bit_as_it_was(name: str) -> None:
    assert sum(constant_cases(name).values()) >= 10
    for path, caught in constant_cases(name).items():
        if not caught:
            result, verdict, same_costs = gated(name, constants(name)[path])
            assert same_costs, path
            assert same_frontiers(result, true_result(name)), path
            assert verdict.held, path
            assert [path in line for change in verdict.inputs for line in change.what] == [True]


# --- What is no mutation ---------------------------------------------------------------------------------------------


def shuffled(ops: dict[str, Work], _: Any) -> dict[str, Work]:
    """The ops in the same arbitrary order in every call."""
    return {name: ops[name] for name in random.Random(405).sample(list(ops), len(ops))}


def one_sum(self: Any) -> Any:
    """Step.ttl_s as one running sum in which what is hidden comes first."""
    total = -sum(self.repeats[name] * seconds for name, seconds in self.hidden_s.items())
    for name in self.ops:
        total = total + self.repeats[name] * self.times[name].seconds
    return total * self.layout.pp


REFACTORS: dict[str, Edit] = {
    "ops summed in reverse": op_table(lambda ops, _: dict(reversed(ops.items()))),
    "ops summed in an arbitrary order": op_table(shuffled),
    "one sum instead of a difference of two": patched((step.Step, "ttl_s", property(one_sum))),
    "a hundredth of the cells added up at a time": patched((block, "CELLS", block.CELLS // 100)),
    "an op renamed": op_table(lambda ops, _: {n if n != "final_norm" else "last_norm": w for n, w in ops.items()}),
}


@pytest.mark.parametrize("name", SWEEPS)
@pytest.mark.parametrize("what", REFACTORS)
def test_a_pure_refactor_is_not_caught(name: str, what: str) -> None:
    _, verdict, _ = gated(name, REFACTORS[what])
    assert verdict.held, verdict.terms[:3]
    assert not verdict.terms


@pytest.mark.parametrize("name", SWEEPS)
def test_summing_in_reverse_does_move_the_last_bits(name: str) -> None:
    result, _, _ = gated(name, REFACTORS["ops summed in reverse"])
    assert not same_frontiers(result, true_result(name))


# --- The catch table -------------------------------------------------------------------------------------------------


def catch_table() -> str:
    """Every mutation on every sweep as Markdown: how many curves moved, by how much, and the term that is named."""
    lines = ["| changed | " + " | ".join(SWEEPS) + " |", "|---|" + "---|" * len(SWEEPS)]
    judged = []
    for mutation in MUTATIONS:
        cells = []
        for name in SWEEPS:
            if not matters(name, mutation):
                cells.append("cannot matter: no experts")
                continue
            _, verdict, _ = gated(name, mutation.apply)
            judged.append((not verdict.held, is_named(verdict, mutation)))
            cells.append(cell(verdict, mutation))
        lines.append(f"| {mutation.what} | {' | '.join(cells)} |")
    caught, named = (sum(column) for column in zip(*judged, strict=True))
    held = sum(gated(name, edit)[1].held for name in SWEEPS for edit in REFACTORS.values())
    return "\n".join(
        [
            *lines,
            "",
            f"Caught: {caught} of {len(judged)}; right cause named: {named} of {len(judged)}.",
            *(exhaustive(name) for name in SWEEPS),
            f"Pure refactors let pass: {held} of {len(SWEEPS) * len(REFACTORS)} ({', '.join(REFACTORS)}).",
        ]
    )


def exhaustive(name: str) -> str:
    """A line about every op and every constant of a sweep."""
    used = [key for key, is_used in ops_in_use(name).items() if is_used]
    right = sum(first_ops(name, key)[:1] == [f"op.{key}"] for key in used)
    caught = [path for path, is_caught in constant_cases(name).items() if is_caught]
    others = [path for path, is_caught in constant_cases(name).items() if not is_caught]
    return (
        f"{name}: each op dropped alone, named first: {right} of {len(used)}; each constant 1 % smaller, caught: "
        f"{len(caught)}, and {len(others)} leave every bit as it was ({', '.join(others)})."
    )


def cell(verdict: regress.Verdict, mutation: Mutation) -> str:
    """Curves that moved, the largest move, and what the verdict names: the expected term and its rank, the input."""
    moved = [curve.largest("distance") for curve in verdict.moved_curves]
    far = max((abs(value) for value in moved if value is not None), default=0)
    by = f"{len(moved)} of {len(verdict.curves)} curves, {far * 100:.2g} %" if moved else "probes alone"
    names = ranked(verdict, mutation)
    label = next((term.label for term in verdict.terms if term.name == mutation.term), mutation.fate)
    rank = f" (no. {names.index(mutation.term) + 1})" if mutation.term in names[1:] else ""
    return f"{by}: {label}{rank}" + (f", {mutation.changed.partition(':')[0]}" if mutation.changed else "")


if __name__ == "__main__":
    print(catch_table())
