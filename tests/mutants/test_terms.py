"""Every term of every op is held by a check: each is made half as large again, alone, and a named check must fail.

An op of a layer is held by the witness, which really runs it and counts: the last byte of what is read, computed and
sent, and the weights that the fullest rank keeps. An op of the two ends is held by its hand numbers. Ops and terms are
not listed here: they are those of the op tables that are not zero on every legal layout, so that a new op without a
check fails.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
from ops import test_ends
from witness.counted import busiest
from witness.helix_layer import HelixLayer
from witness.test_witness import (
    GQA,
    LATENT,
    MIXED,
    SHARDED,
    SMALL,
    check_residency,
    compare,
    layer_of,
    legal_layouts,
    picking_everything,
    run_step,
    step_input,
)

from helix_sim.core.layout import Layout
from helix_sim.core.work import Work
from helix_sim.ops.layers import ENDS, KINDS, OpTable
from helix_sim.ops.step_input import StepInput
from helix_sim.specs.attention import AttentionKind
from helix_sim.specs.ffn import FfnKind

FACTOR = 1.5
TERMS = ("flops", "weight_bytes", "kv_bytes", "activation_bytes", "idle_weight_bytes", "payload")
"""What an op asks for, by name; the payload is that of its collective."""
MODELS = {
    "gqa": (SMALL["gqa with sinks and a gate"], "dense"),
    "mla": (SMALL["mla with a gate"], "dense"),
    "window": (SMALL["window"], "dense"),
    "block-sparse": (SMALL["block-sparse"], "dense"),
    "sparse": (SMALL["sparse"], "dense"),
    "compressed": (SMALL["compressed and picked"], "dense"),
    "linear": (SMALL["kda"], "dense"),
    "dense": (GQA, "dense"),
    "routed": (LATENT, "moe"),
}
"""A small model, and its FFN, in whose layer each kind runs."""
CONTEXT, NEW = 83, 5
"""Of every step here: five new tokens of each request, across the edge of a block of 16."""


# --- The checks ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Ran:
    """A step that the witness ran. spec: the kind that is looked at; every: the same, its tokens picking all experts.

    All experts are picked where the step ran: what its ranks counted has no chance left in it.
    """

    s: StepInput
    spec: AttentionKind | FfnKind
    every: AttentionKind | FfnKind
    layer: HelixLayer


@functools.cache
def witnessed(kind: str) -> tuple[Ran, ...]:
    """A kind on one GPU, and on each way to shard."""
    model, ffn = MODELS[kind]
    layer = layer_of(model, ffn)
    every = picking_everything(layer)
    half = "ffn" if kind in ("dense", "routed") else "attention"
    found = []
    index = [{"tpa": 2, "kvp": 4, "tpf": 2, "ep": 4, "index_kvp": n} for n in (2, 4)] if model.has_indexer else []
    gathered = {"tpa": 2, "kvp": 4, "tpf": 2, "ep": 4, "q_shards": 2}
    for sizes in ({}, *SHARDED.values(), *index, gathered):
        s = step_input(model, Layout(batch=3, **sizes), MIXED, CONTEXT, NEW)
        ran, _, _ = run_step(every, s.layout, MIXED, CONTEXT, np.random.default_rng(0), NEW)
        found.append(Ran(s=s, spec=getattr(layer, half), every=getattr(every, half), layer=ran))
    return tuple(found)


def counted(kind: str, op: str) -> None:
    """The witness: what the busiest rank counted of an op."""
    for ran in witnessed(kind):
        work = KINDS[kind].ops(ran.s, ran.every)[op]
        compare(ran.s, ran.layer.spec, op, work, work, busiest(ran.layer.ranks, op))


def resident(kind: str, op: str) -> None:
    """The witness: the weights that the fullest rank holds for an op, those that lie idle too."""
    for ran in witnessed(kind):
        check_residency(ran.s, ran.layer, op, KINDS[kind].ops(ran.s, ran.spec)[op])


def by_hand(kind: str, op: str) -> None:
    """The hand numbers of both ends, all of them."""
    for name, check in inspect.getmembers(test_ends, inspect.isfunction):
        if name.startswith("test_") and not inspect.signature(check).parameters:
            check()


CHECKS = {**dict.fromkeys(KINDS, (counted, resident)), **dict.fromkeys(ENDS, (by_hand,))}
"""The checks that hold the ops of each kind, and of both ends."""


def failing(kind: str, op: str) -> list[str]:
    """Names of the checks of an op that fail."""
    found = []
    for check in CHECKS[kind]:
        try:
            check(kind, op)
        except AssertionError:
            found.append(check.__name__)
    return found


# --- The mutants -----------------------------------------------------------------------------------------------------


def terms_of(work: Work) -> dict[str, Any]:
    """Every term of an op, by name."""
    sent = work.link_bytes * work.collective.payload if work.collective else 0
    return {term: getattr(work, term) for term in TERMS if term != "payload"} | {"payload": sent}


def made_wrong(work: Work, term: str) -> Work:
    """The work with one term half as large again."""
    if term != "payload":
        return replace(work, **{term: FACTOR * getattr(work, term)})
    assert work.collective is not None
    return replace(work, collective=replace(work.collective, payload=FACTOR * work.collective.payload))


def mutants() -> Iterator[tuple[str, str, str]]:
    """(kind, op, term) of every term that some layout of up to twelve ranks has."""
    for kind, (model, ffn) in {**MODELS, **dict.fromkeys(ENDS, (GQA, "dense"))}.items():
        shapes = legal_layouts(model, CONTEXT, 12)
        columns = {axis: np.array([shape[axis] for shape in shapes]) for axis in shapes[0]}
        x = Layout(batch=3, pp=2, index_kvp=columns["kvp"] if model.has_indexer else 1, **columns)
        layer, s = layer_of(model, ffn), step_input(model, x, MIXED, CONTEXT, NEW)
        spec = layer.ffn if kind in ("dense", "routed") else layer.attention
        ops: OpTable = ENDS[kind].ops(s, None) if kind in ENDS else KINDS[kind].ops(s, spec)
        for op, work in ops.items():
            yield from ((kind, op, term) for term, amount in terms_of(work).items() if np.any(amount))


def break_op(patch: pytest.MonkeyPatch, kind: str, op: str, term: str) -> None:
    """One term of one op, wrong in the op table that a step looks it up in."""
    table = ENDS if kind in ENDS else KINDS
    true = table[kind]

    def wrong(s: StepInput, spec: Any, *given: Any) -> OpTable:
        ops = true.ops(s, spec, *given)
        return ops | {op: made_wrong(ops[op], term)}

    patch.setitem(table, kind, replace(true, ops=wrong))


@pytest.mark.parametrize("kind", CHECKS)
def test_every_check_holds_of_the_equations_as_they_are(kind):
    for op in dict.fromkeys(op for of, op, _ in mutants() if of == kind):
        for check in CHECKS[kind]:
            check(kind, op)


def test_every_kind_and_every_term_has_mutants():
    found = list(mutants())
    assert {kind for kind, _, _ in found} == {*KINDS, *ENDS}
    assert {term for _, _, term in found} == set(TERMS)


@pytest.mark.parametrize(("kind", "op", "term"), [pytest.param(*each, id="-".join(each)) for each in mutants()])
def test_a_term_half_as_large_again_is_caught(kind, op, term, monkeypatch):
    break_op(monkeypatch, kind, op, term)
    assert failing(kind, op), f"no check holds {term} of {op}: add a hand number, or let the witness count it"
