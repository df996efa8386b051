"""Models and machines side by side: rows that equal a search of their own, remarks that say what differs."""

import json
from itertools import pairwise

import pandas as pd
import pytest
from typer.testing import CliRunner

import helix_sim as hs
from helix_sim.answers.compare import compare, timings_of
from helix_sim.cli import app
from helix_sim.output.comparison_files import write_comparison
from helix_sim.specs.comparison import Comparison
from helix_sim.specs.load import data_folder
from helix_sim.step import evaluate_step

SMALL = {
    "kind": "comparison",
    "models": ["llama-3.1-8b"],
    "machines": ["gb200-nvl72", "h200-hgx"],
    "contexts": ["32K", "128K"],
    "ttl_ms": [2, 10],
    "timings": ["paper"],
    "families": ["tp", "helix"],
    "gpus": {"from": 1, "to": 8},
}


def of(**changes):
    return Comparison.model_validate(SMALL | changes)


@pytest.fixture(scope="module")
def found():
    return compare(of())


def test_every_cell_is_a_row_in_the_order_of_the_question(found):
    asked = [(row["machine"], row["context"], row["ttl_budget_ms"]) for row in found.rows()]
    assert asked == [(m, c, b) for m in SMALL["machines"] for c in (32_000, 128_000) for b in (2, 10)]


def test_a_row_is_the_best_layout_of_a_search_within_its_budget(found):
    for cell in found.cells:
        search = next(each for each in found.searches if each.plan.machine.name == cell.asked["machine"])
        curves = [curve for curve in search.frontiers[cell.asked["context"]].values() if len(curve)]
        best = max(float(curve.attained(1e3 / cell.asked["ttl_budget_ms"])) for curve in curves)
        if cell.step is None:
            assert best == 0
            continue
        again = evaluate_step(search.plan.setting, cell.step.layout, cell.asked["context"])
        assert float(again.ttl_s) * 1e3 <= cell.asked["ttl_budget_ms"] * (1 + 1e-12)
        assert float(again.tokens_per_s_gpu) == pytest.approx(best, rel=1e-12)
        assert cell.record()["tokens_per_s_gpu"] == pytest.approx(best, rel=1e-12)


def test_a_looser_budget_never_costs_throughput(found):
    for tight, loose in pairwise(found.cells):
        if tight.asked | {"ttl_budget_ms": 0} == loose.asked | {"ttl_budget_ms": 0} and tight.step and loose.step:
            assert loose.step.tokens_per_s_gpu >= tight.step.tokens_per_s_gpu


def test_cost_is_the_price_over_the_tokens(found):
    for row in found.rows():
        if row["note"] == "":
            price = hs.load_machine(row["machine"]).usd_per_gpu_hour.value
            tokens_an_hour = row["tokens_per_s_gpu"] * 3600
            assert row["usd_per_million_tokens"] == pytest.approx(price / tokens_an_hour * 1e6)
            assert row["joules_per_token"] * row["tokens_per_s_gpu"] == pytest.approx(
                hs.load_machine(row["machine"]).power.watts
            )


def test_a_price_that_is_given_stands_in_place_of_the_machines_own():
    (dear, _), (usual, _) = (
        compare(of(contexts=["32K"], ttl_ms=[10], usd_per_gpu_hour=prices)).cells
        for prices in ({"gb200-nvl72": 21.0}, {})
    )
    assert dear.record()["usd_per_million_tokens"] == pytest.approx(2 * usual.record()["usd_per_million_tokens"])


def test_prices_that_lack_are_said_and_those_that_are_assumed_too():
    remarks = "\n".join(compare(of(machines=["h20-hgx", "h200-hgx"], contexts=["32K"], ttl_ms=[10])).remarks)
    assert "no price is known of h20-hgx" in remarks
    assert "no power is known of h20-hgx" in remarks
    assert "cost is by h200-hgx $6.305 a GPU-hour, assumed" in remarks


def test_auto_is_every_timing_that_was_measured_there():
    assert timings_of(hs.load_machine("h100-hgx"), "auto") == ["h100-sglang", "h100-trtllm", "h100-vllm"]
    assert timings_of(hs.load_machine("h100-hgx"), "ideal") == ["ideal"]
    (cell,) = compare(of(machines=["h100-hgx"], contexts=["32K"], ttl_ms=[20], timings=["auto"], gpus=[8])).cells
    assert cell.asked["timing"].startswith("h100-")
    assert cell.record()["ttl_low_ms"] < cell.record()["ttl_ms"] < cell.record()["ttl_high_ms"]


def test_a_faster_machine_that_is_slower_here_is_explained():
    slow = hs.load_machine("gb200-nvl72").model_copy(update={"name": "slower-links"})
    fast = hs.load_machine("h200-hgx")
    assert slow.hbm_bandwidth_GBps.value > fast.hbm_bandwidth_GBps.value
    from helix_sim.answers.compare import Cell, surprise

    model, x = hs.load_model("llama-3.1-8b"), hs.Layout(batch=8, tpa=4)
    timing = hs.load_timing("paper").with_(collective_latency_us=50, source="what if")
    asked = {"model": "llama-3.1-8b", "context": 32_000, "ttl_budget_ms": 20.0}
    a, b = (
        Cell(asked={**asked, "machine": m.name}, step=hs.decode_step(model, m, x, 32_000, timing=t))
        for m, t in ((slow, timing), (fast, hs.load_timing("paper")))
    )
    told = surprise(a, b)
    assert "slower-links gives" in told
    assert "all_reduce takes" in told
    assert surprise(b, a) == ""


def test_the_files_hold_the_rows_with_units_and_sources(found, tmp_path):
    pytest.importorskip("openpyxl", reason="the extra xlsx: python -m pip install openpyxl")
    files = write_comparison(found, tmp_path)
    rows = found.rows()
    assert len(pd.read_csv(tmp_path / "comparison.csv")) == len(rows)
    assert pd.read_parquet(tmp_path / "comparison.parquet").to_dict("records")[0]["widths"] == rows[0]["widths"]
    book = pd.read_excel(tmp_path / "comparison.xlsx", sheet_name=None)
    assert book["rows"].loc[0, "ttl_ms"] == "ms"
    assert book["provenance"]["source"].str.contains("datasheet").any()
    assert {path.suffix for path in files} >= {".csv", ".parquet", ".xlsx", ".png", ".svg"}


def test_the_command_prints_rows_and_takes_a_file(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text(json.dumps({**SMALL, "contexts": [32_000], "ttl_ms": [10]}))
    result = CliRunner().invoke(app, ["compare", str(path), "--usd-per-gpu-hour", "3", "--json"])
    assert result.exit_code == 0, result.output
    answer = json.loads(result.stdout)
    assert [row["machine"] for row in answer["rows"]] == SMALL["machines"]
    assert answer["comparison"]["usd_per_gpu_hour"] == dict.fromkeys(SMALL["machines"], 3.0)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--model", "llama-3.1-8b"], "--machine, --context, --ttl-ms missing"),
        (["--model", "lama-3.1-8b", "--machine", "h100-hgx", "--context", "1K", "--ttl-ms", "9"], "did you mean llama"),
        (["--model", "llama-3.1-8b", "--machine", "h100-hgx", "--context", "1K", "--ttl-ms", "-1"], "--ttl-ms"),
    ],
)
def test_a_question_that_is_none_is_one_sentence(arguments, sentence):
    result = CliRunner().invoke(app, ["compare", *arguments])
    assert sentence in str(result.exception) + result.output


def test_points_of_two_machines_of_one_name_are_told_apart_as_their_rows_are(tmp_path):
    shipped = (data_folder("hardware_profiles") / "h200-hgx.yaml").read_text(encoding="utf-8")
    mine = tmp_path / "mine.yaml"
    mine.write_text(shipped.replace("GBps: {value: 4800", "GBps: {value: 9600"), encoding="utf-8")
    found = compare(of(machines=["h200-hgx", str(mine)], contexts=["32K"], ttl_ms=[10]))
    rows = {row["machine"] for row in found.rows()}
    assert len(rows) == 2
    assert set(found.frontiers()["machine"]) == rows
