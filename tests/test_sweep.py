"""A sweep is the same equations on columns: each row equals its layout alone, and its frontier is the true one."""

import itertools

import numpy as np
import pytest

from helix_sim.family import divisors
from helix_sim.feasibility import Reason
from helix_sim.layout import AXES, Layout
from helix_sim.load import load_sweep, shipped
from helix_sim.pareto import frontier, merge, pareto_order
from helix_sim.step import LayoutError, decode_step, evaluate
from helix_sim.sweep import BLOCK_SHAPES, blocks, evaluate_block, plan, run_plan, run_sweep

SWEEPS = [name for name in shipped("sweep") if name.startswith("paper-")]


@pytest.fixture(scope="module", params=SWEEPS)
def result(request):
    return run_sweep(request.param)


def small(**changes):
    """A sweep of a few thousand layouts."""
    sizes = {"gpus": {"from": 1, "to": 12}, "batch": {"dense_to": 6, "growth": 1.5, "to": 40}} | changes
    content = load_sweep("paper-deepseek-r1").model_dump(by_alias=True) | sizes
    return type(load_sweep("paper-deepseek-r1")).model_validate(content)


def rows_of(planned):
    """Columns of every layout that runs."""
    parts = []
    run_plan(planned, on_block=lambda block: parts.append(block.columns), every_chunk_count=True)
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


@pytest.mark.parametrize("name", SWEEPS)
def test_one_layout_equals_its_row_in_a_sweep_op_by_op(name):
    planned = plan(load_sweep(name))
    rng = np.random.default_rng(11)
    every = list(blocks(planned))
    compared = 0
    for index in rng.permutation(len(every)):
        block = every[index]
        columns = evaluate_block(planned, block, best_chunks=False).columns
        if not len(columns["id"]):
            continue
        picks = rng.choice(len(columns["id"]), size=min(60, len(columns["id"])), replace=False)
        x = Layout(**{axis: columns[axis][picks] for axis in AXES})
        context = planned.sweep.contexts[block.context_index]
        many = evaluate(planned.model, planned.hardware, planned.clock, planned.sweep.precision, x, context)
        for i, pick in enumerate(picks):
            family, at, layout = planned.layout_at(int(columns["id"][pick]))
            assert (family, at) == (block.family, context)
            one = decode_step(
                planned.model, planned.hardware, layout, at, precision=planned.sweep.precision, clock=planned.clock
            )
            assert float(one.ttl_s) == pytest.approx(columns["ttl_s"][pick], rel=1e-12)
            assert float(one.memory.resident_bytes) == pytest.approx(columns["resident_bytes"][pick], rel=1e-12)
            for op, work in one.ops.items():
                for term in ("flops", "hbm_bytes", "link_bytes"):
                    alone, row = getattr(work, term), np.broadcast_to(getattr(many.ops[op], term), len(picks))[i]
                    assert float(alone) == pytest.approx(float(row), rel=1e-12), (op, term)
                row = np.broadcast_to(many.times[op].seconds, len(picks))[i]
                assert float(one.times[op].seconds) == pytest.approx(float(row), rel=1e-12), op
        compared += len(picks)
        if compared >= 2000:
            return
    pytest.fail(f"only {compared} rows compared")


def test_the_search_is_far_larger_than_the_papers(result):
    ran = result.layouts - sum(sum(reasons.values()) for reasons in result.dropped.values())
    assert ran > 100_000


def test_every_gpu_count_is_searched_not_only_powers_of_two(result):
    for family in ("tp", "ep", "helix"):
        columns = result.plan.shapes[family]
        gpus = columns["dp"] * columns["tpa"] * columns["kvp"] * columns["pp"]
        assert set(range(2, 65)) <= set(gpus.tolist()), family


def test_every_divisor_layout_of_a_gpu_count_is_there():
    planned = plan(small(gpus={"from": 12, "to": 12}))
    columns = planned.shapes["helix-dp"]
    found = set(zip(*(columns[axis].tolist() for axis in ("tpa", "kvp", "dp", "tpf", "ep")), strict=True))
    expected = {
        (1, kvp, dp, 12 // ep, ep)
        for kvp in range(2, 13)
        for dp in range(2, 13)
        for ep in range(1, 13)
        if kvp * dp == 12 and 12 % ep == 0
    }
    assert found == expected


def test_frontier_equals_brute_force():
    planned = plan(small())
    rows = rows_of(planned)
    result = run_plan(planned)
    for index, family in enumerate(planned.sweep.families):
        mine = rows["family"] == index
        x, y = rows["tokens_per_s_user"][mine], rows["tokens_per_s_gpu"][mine]
        best = {(a, b) for a, b in zip(x, y, strict=True) if not ((x >= a) & (y >= b) & ((x > a) | (y > b))).any()}
        found = result.frontiers[planned.sweep.contexts[0]][family]
        assert set(zip(found.interactivity, found.throughput, strict=True)) == best


def test_what_runs_and_what_is_dropped_sum_to_all():
    planned = plan(small())
    rows = rows_of(planned)
    dropped = run_plan(planned, every_chunk_count=True).dropped
    assert len(rows["id"]) + sum(sum(reasons.values()) for reasons in dropped.values()) == planned.layouts
    assert len(np.unique(rows["id"])) == len(rows["id"])


def test_a_dropped_layout_alone_is_refused_for_the_same_reason():
    planned = plan(small(gpus={"from": 1, "to": 4}))
    ran = set(rows_of(planned)["id"].tolist())
    rng = np.random.default_rng(5)
    lost = [i for i in rng.permutation(planned.layouts) if i not in ran][:200]
    assert lost
    for index in lost:
        _, context, layout = planned.layout_at(int(index))
        with pytest.raises(LayoutError):
            decode_step(planned.model, planned.hardware, layout, context, precision=planned.sweep.precision)


def test_the_batch_that_memory_allows_is_the_same_in_the_sweep_and_alone():
    planned = plan(small(batch={"dense_to": 400, "growth": 1.5, "to": 400}, gpus={"from": 1, "to": 6}))
    rows = rows_of(planned)
    for family, (tpa, kvp, dp) in {"tp": (6, 1, 1), "ep": (1, 1, 6), "helix": (1, 6, 1)}.items():
        index = list(planned.sweep.families).index(family)
        mine = (rows["family"] == index) & (rows["tpa"] == tpa) & (rows["kvp"] == kvp) & (rows["dp"] == dp)
        largest = int(rows["batch"][mine & (rows["ep"] == 1)].max())
        fits = Layout(batch=largest, tpa=tpa, kvp=kvp, dp=dp, tpf=6)
        decode_step(planned.model, planned.hardware, fits, 10**6, precision=planned.sweep.precision)
        beyond = Layout(batch=largest + 1, tpa=tpa, kvp=kvp, dp=dp, tpf=6)
        with pytest.raises(LayoutError, match="fullest GPU"):
            decode_step(planned.model, planned.hardware, beyond, 10**6, precision=planned.sweep.precision)


def test_denser_batches_move_no_frontier_by_more_than_their_step():
    coarse = run_sweep(small(gpus={"from": 1, "to": 16}, batch={"dense_to": 64, "growth": 1.02, "to": 400}))
    dense = run_sweep(small(gpus={"from": 1, "to": 16}, batch={"dense_to": 400, "growth": 1.02, "to": 400}))
    for family in coarse.sweep.families:
        a, b = coarse.group(family), dense.group(family)
        assert (a.attained(b.interactivity) >= b.throughput * (1 - 0.03)).all(), family


def test_keeping_only_the_fastest_chunk_count_loses_no_frontier_point():
    planned = plan(small())
    for family in ("helix", "helix-dp"):
        every, best = (run_plan(planned, every_chunk_count=flag).group(family) for flag in (True, False))
        assert every.columns["id"].tolist() == best.columns["id"].tolist()


def test_blocks_of_any_size_find_the_same_frontier(monkeypatch):
    planned = plan(small())
    expected = run_plan(planned).to_frame()
    monkeypatch.setattr("helix_sim.sweep.BLOCK_SHAPES", BLOCK_SHAPES // 5)
    assert run_plan(planned).to_frame().equals(expected)


def test_a_ties_winner_is_the_first_layout():
    columns = {
        "id": np.array([7, 3, 5]),
        "tokens_per_s_user": np.array([2.0, 2.0, 1.0]),
        "tokens_per_s_gpu": np.array([4.0, 4.0, 4.0]),
    }
    assert frontier(columns).columns["id"].tolist() == [3]


def test_merging_is_the_frontier_of_the_union():
    rng = np.random.default_rng(2)
    columns = {"id": np.arange(3000), "tokens_per_s_user": rng.random(3000), "tokens_per_s_gpu": rng.random(3000)}
    parts = [frontier({k: v[i::7] for k, v in columns.items()}) for i in range(7)]
    for order in itertools.islice(itertools.permutations(parts), 5):
        assert merge(order, "all").columns["id"].tolist() == frontier(columns).columns["id"].tolist()


def test_an_empty_frontier_is_empty():
    nothing = np.zeros(0)
    assert pareto_order(nothing, nothing, nothing).tolist() == []


def test_attained_throughput_steps_at_each_point():
    columns = {
        "id": np.arange(2),
        "tokens_per_s_user": np.array([10.0, 20.0]),
        "tokens_per_s_gpu": np.array([5.0, 3.0]),
    }
    assert frontier(columns).attained([5, 10, 15, 20, 25]).tolist() == [5, 5, 3, 3, 0]


def test_divisors_are_all_of_them():
    for n in range(1, 100):
        assert [k for k in range(1, n + 1) if n % k == 0] == list(divisors(n))


def test_layouts_dropped_name_their_reason(result):
    names = {reason.name for reason in Reason}
    assert all(set(reasons) <= names for reasons in result.dropped.values())
    assert any("OUT_OF_MEMORY" in reasons for reasons in result.dropped.values())


def test_a_sweep_without_any_layout_that_runs_is_empty_not_an_error():
    result = run_sweep(small(contexts=["100G"], gpus={"from": 1, "to": 2}))
    assert len(result.group("baseline")) == 0
    assert len(result.to_frame()) == 0
