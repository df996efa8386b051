"""A sweep is the same equations on columns: each row equals its layout alone, and its frontier is the true one."""

import itertools

import numpy as np
import pytest

from helix_sim.core.layout import AXES, Layout
from helix_sim.feasibility import FLAGS, Reason, memory_reason, shape_reasons
from helix_sim.one_layout import LayoutError
from helix_sim.search.block import evaluate_block
from helix_sim.search.evaluated import Evaluated, Total
from helix_sim.search.family import divisors
from helix_sim.search.frame import decode_step
from helix_sim.search.pareto import SAMPLED, frontier, merge, pareto_order
from helix_sim.search.plan import blocks, layouts_of, plan, ranges
from helix_sim.search.shared_parts import distinct
from helix_sim.search.sweep import run_plan, run_sweep
from helix_sim.specs.load import load_sweep, parse, shipped
from helix_sim.specs.sweep import Sweep
from helix_sim.step import evaluate_step

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
    run_plan(planned, on_points=parts.append)
    order = np.argsort(np.concatenate([part["id"] for part in parts]))
    return {name: np.concatenate([part[name] for part in parts])[order] for name in parts[0]}


@pytest.mark.parametrize("name", SWEEPS)
def test_one_layout_equals_its_row_in_a_sweep_op_by_op(name):
    planned = plan(load_sweep(name))
    rng = np.random.default_rng(11)
    parts = []
    evaluate_block(planned, next(iter(blocks(planned))), parts.append)
    compared = 0
    for columns in (parts[index] for index in rng.permutation(len(parts))):
        picks = rng.choice(len(columns["id"]), size=min(200, len(columns["id"])), replace=False)
        x = Layout(**{axis: columns[axis][picks] for axis in AXES})
        context = int(columns["context"][0])
        many = evaluate_step(planned.setting, x, context)
        for i, pick in enumerate(picks):
            family, at, layout = planned.layout_at(int(columns["id"][pick]))
            assert (list(planned.sweep.families).index(family), at) == (columns["family"][pick], context)
            assert layout == Layout(**{axis: int(columns[axis][pick]) for axis in AXES})
            one = decode_step(
                planned.model, planned.machine, layout, at, precision=planned.sweep.precision, timing=planned.timing
            )
            assert float(one.ttl_s) == pytest.approx(columns["ttl_s"][pick], rel=1e-12)
            assert float(one.tokens_per_s_gpu) == pytest.approx(columns["tokens_per_s_gpu"][pick], rel=1e-12)
            assert float(one.memory.resident_bytes) == pytest.approx(columns["resident_bytes"][pick], rel=1e-12)
            for op, work in one.ops.items():
                for term in ("flops", "hbm_bytes", "link_bytes"):
                    alone, row = getattr(work, term), np.broadcast_to(getattr(many.ops[op], term), len(picks))[i]
                    assert float(alone) == pytest.approx(float(row), rel=1e-12), (op, term)
                row = np.broadcast_to(many.times[op].seconds, len(picks))[i]
                assert float(one.times[op].seconds) == pytest.approx(float(row), rel=1e-12), op
        compared += len(picks)
        if compared >= 1000:
            return
    pytest.fail(f"only {compared} rows compared")


# on boards of eight, groups of most widths start inside one
@pytest.mark.parametrize(
    ("timing", "machine"), [("paper", "gb200-nvl72"), ("ideal", "gb200-nvl72"), ("paper", "b200-hgx")]
)
@pytest.mark.parametrize("name", SWEEPS)
def test_the_sum_of_shared_parts_is_the_step_evaluated_directly(name, timing, machine):
    every = [family for file in SWEEPS for family in load_sweep(file).families]
    spec = load_sweep(name).model_dump(by_alias=True) | {"families": every, "groups": {}, "timing": timing}
    spec |= {"machine": machine}
    spec |= {
        "contexts": ["1M", 100_001],
        "gpus": {"from": 1, "to": 24},
        "batch": {"dense_to": 9, "growth": 2, "to": 99},
    }
    planned = plan(parse(Sweep, spec, "all families"))
    rows = rows_of(planned)
    assert len(rows["id"]) > 5000
    x = Layout(**{axis: rows[axis] for axis in AXES})
    step = evaluate_step(planned.setting, x, rows["context"].astype(float))
    np.testing.assert_allclose(rows["ttl_s"], step.ttl_s, rtol=1e-12, atol=0)
    np.testing.assert_allclose(rows["tokens_per_s_gpu"], step.tokens_per_s_gpu, rtol=1e-12, atol=0)
    np.testing.assert_allclose(rows["resident_bytes"], step.memory.resident_bytes, rtol=1e-12, atol=0)


def test_layouts_are_dropped_for_their_first_reason():
    sizes = {"batch": {"dense_to": 2, "growth": 4, "to": 900}, "gpus": {"from": 1, "to": 6}, "chunks": [1, 4, "batch"]}
    planned = plan(small(contexts=["1M", 40], **sizes))
    counted = run_plan(planned).dropped
    names = {flag: reason.name for reason, flag in FLAGS.items()}
    expected = {name: dict.fromkeys(names, 0) for name in planned.sweep.families}
    for index in range(planned.layouts):
        family, context, x = planned.layout_at(index)
        flags = int(shape_reasons(planned.model, planned.machine, x, context))
        if not flags:
            step = evaluate_step(planned.setting, x, context)
            flags = int(memory_reason(step.memory))
        if flags:
            expected[family][flags & -flags] += 1
    assert counted == {name: {names[flag]: n for flag, n in found.items() if n} for name, found in expected.items()}


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
    dropped = run_plan(planned).dropped
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
            decode_step(planned.model, planned.machine, layout, context, precision=planned.sweep.precision)


def test_the_batch_that_memory_allows_is_the_same_in_the_sweep_and_alone():
    planned = plan(small(batch={"dense_to": 400, "growth": 1.5, "to": 400}, gpus={"from": 1, "to": 6}))
    rows = rows_of(planned)
    for family, (tpa, kvp, dp) in {"tp": (6, 1, 1), "ep": (1, 1, 6), "helix": (1, 6, 1)}.items():
        index = list(planned.sweep.families).index(family)
        mine = (rows["family"] == index) & (rows["tpa"] == tpa) & (rows["kvp"] == kvp) & (rows["dp"] == dp)
        largest = int(rows["batch"][mine & (rows["ep"] == 1)].max())
        fits = Layout(batch=largest, tpa=tpa, kvp=kvp, dp=dp, tpf=6)
        decode_step(planned.model, planned.machine, fits, 10**6, precision=planned.sweep.precision)
        beyond = Layout(batch=largest + 1, tpa=tpa, kvp=kvp, dp=dp, tpf=6)
        with pytest.raises(LayoutError, match="fullest GPU"):
            decode_step(planned.model, planned.machine, beyond, 10**6, precision=planned.sweep.precision)


def test_denser_batches_move_no_frontier_by_more_than_their_step():
    coarse = run_sweep(small(gpus={"from": 1, "to": 16}, batch={"dense_to": 64, "growth": 1.02, "to": 400}))
    dense = run_sweep(small(gpus={"from": 1, "to": 16}, batch={"dense_to": 400, "growth": 1.02, "to": 400}))
    for family in coarse.sweep.families:
        a, b = coarse.group(family), dense.group(family)
        assert (a.attained(b.interactivity) >= b.throughput * (1 - 0.03)).all(), family


def test_blocks_of_any_size_find_the_same_frontier_and_the_same_points(monkeypatch):
    planned = plan(small(contexts=["1M", "200K", "3M"], gpus={"from": 1, "to": 9}))
    expected, points = run_plan(planned), rows_of(planned)
    for contexts, rows, layouts, cells in [(1, 70, 2000, 50), (2, 100, 3000, 2**16), (9, 10**6, 10**9, 1)]:
        monkeypatch.setattr("helix_sim.search.plan.CONTEXTS", contexts)
        monkeypatch.setattr("helix_sim.search.plan.ROWS", rows)
        monkeypatch.setattr("helix_sim.search.block.CELLS", cells)
        monkeypatch.setattr("helix_sim.search.block.ATTENTION_CELLS", 20 * cells)
        monkeypatch.setattr("helix_sim.search.sweep.blocks", lambda planned, layouts=layouts: blocks(planned, layouts))
        sizes = [layouts_of(planned, block) for block in blocks(planned, layouts)]
        assert sum(sizes) == planned.layouts
        assert max(sizes) <= layouts
        found = run_plan(planned)
        assert found.to_frame().equals(expected.to_frame())
        assert found.dropped == expected.dropped
        assert all(np.array_equal(column, points[name]) for name, column in rows_of(planned).items())


def test_blocks_added_in_any_order_are_the_same_sweep(monkeypatch):
    monkeypatch.setattr("helix_sim.search.plan.ROWS", 40)
    planned = plan(small(contexts=["1M", "200K"]))
    parts = [evaluate_block(planned, block) for block in blocks(planned)]
    expected = run_plan(planned)
    rng = np.random.default_rng(1)
    for _ in range(5):
        total = Total()
        for index in rng.permutation(len(parts)):
            total.add(parts[index])
        assert total.sum.layouts == planned.layouts
        assert total.sum.dropped == expected.dropped
        for context, families in expected.frontiers.items():
            for name, found in families.items():
                here = total.sum.frontiers[context][name]
                assert all(np.array_equal(column, found.columns[key]) for key, column in here.columns.items())


def test_nothing_added_is_nothing():
    assert Total().sum == Evaluated()


def test_ranges_cover_everything_once():
    for count in range(1, 40):
        for most in range(1, 45):
            found = ranges(count, most)
            assert [i for first, last in found for i in range(first, last)] == list(range(count))
            assert all(last - first <= most for first, last in found)


def test_distinct_rows_lead_back_to_every_row():
    rng = np.random.default_rng(4)
    columns = rng.integers(1, 4, (3, 200))
    first, place = distinct(columns)
    assert len(first) == len({tuple(row) for row in columns.T})
    assert (columns[:, first][:, place] == columns).all()


def test_a_sample_first_finds_the_same_frontier_of_many_points():
    rng = np.random.default_rng(3)
    for digits in (1, 2, 9):
        x, y = np.round(rng.random((2, 4 * SAMPLED)), digits)
        order = np.lexsort((np.arange(len(x)), -y, -x))
        best, expected = -1.0, []
        for index in order:
            if y[index] > best:
                best = y[index]
                expected.append(index)
        assert pareto_order(x, y, np.arange(len(x))).tolist() == expected[::-1]


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
