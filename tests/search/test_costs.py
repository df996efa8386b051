"""Frontiers of cost: on one machine those of throughput, so a search by throughput is exact; across machines not."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from helix_sim.core.errors import SpecError
from helix_sim.search.pareto import COSTS, frontier
from helix_sim.search.sweep import SweepResult, run_plan, run_sweep
from helix_sim.specs.load import load_machine


def search(machine: str) -> SweepResult:
    return run_sweep(
        model="llama-3.1-8b", machine=machine, contexts="64K", families=["tp", "helix"], gpus=(1, 8), chunks=[1]
    )


@pytest.mark.parametrize("cost", COSTS)
def test_every_point_of_a_search_gives_the_same_frontier_by_cost_as_by_throughput(cost: str) -> None:
    found, parts = search("h100-hgx"), []
    run_plan(found.plan, on_points=lambda columns: parts.append(pd.DataFrame(columns)))
    table, machine = pd.concat(parts, ignore_index=True), found.plan.machine
    table[cost] = getattr(machine, cost)(table["tokens_per_s_gpu"])
    by_throughput, by_cost = frontier(table), frontier(table, against=cost)
    assert len(by_cost) > 10
    assert by_cost.columns["id"].tolist() == by_throughput.columns["id"].tolist()
    kept = found.to_frame()
    assert set(frontier(kept, against=cost).columns["id"]) == set(by_cost.columns["id"])


@given(rates=st.lists(st.integers(1, 10**6), min_size=1, max_size=40), usd=st.floats(0.01, 100))
@settings(max_examples=50, deadline=None, derandomize=True)
def test_a_constant_over_the_throughput_orders_layouts_as_it_does(rates: list[int], usd: float) -> None:
    throughput = np.array(rates, dtype=float)
    speed = np.arange(len(rates), dtype=float)[::-1] + 1
    table = {"tokens_per_s_user": speed, "tokens_per_s_gpu": throughput, "usd_per_million_tokens": usd / throughput}
    found = [frontier(table, against=each).columns["tokens_per_s_user"].tolist()
             for each in ("tokens_per_s_gpu", "usd_per_million_tokens")]  # fmt: skip
    assert found[0] == found[1]


def test_across_machines_the_cheaper_one_wins_by_cost_and_the_faster_one_by_throughput() -> None:
    both = {name: search(name) for name in ("h100-hgx", "h200-hgx")}
    dear = load_machine("h200-hgx").usd_per_gpu_hour
    assert dear is not None
    both["h200-hgx"] = both["h200-hgx"].at_price(dear.value * 100)
    table = pd.concat([each.to_frame() for each in both.values()], ignore_index=True)
    by_throughput, by_cost = frontier(table), frontier(table, against="usd_per_million_tokens")
    slowest = {name: curve.point(0)["machine"] for name, curve in (("rate", by_throughput), ("cost", by_cost))}
    assert slowest == {"rate": "h200-hgx", "cost": "h100-hgx"}
    with pytest.raises(SpecError, match="no column joules"):
        frontier(table.drop(columns="joules_per_token"), against="joules_per_token")


def test_a_price_moves_cost_alone() -> None:
    own = search("h100-hgx")
    other = own.at_price(36.0).to_frame()
    moved = [name for name in other if not other[name].equals(own.to_frame()[name])]
    assert moved == ["usd_per_million_tokens"]
    assert other["usd_per_million_tokens"].tolist() == pytest.approx((1e4 / other["tokens_per_s_gpu"]).tolist())
    assert own.at_price(None).to_frame().equals(own.to_frame())
