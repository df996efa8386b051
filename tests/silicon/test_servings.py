"""One's own measured servings as a CSV file: read, held against predictions, left out with a reason, taken apart."""

from dataclasses import replace

import pandas as pd
import pytest

from helix_sim import validate_measurements
from helix_sim.core.errors import SpecError
from helix_sim.core.layout import Layout
from helix_sim.silicon import servings
from helix_sim.specs.drafter import drafter_of
from helix_sim.specs.load import load_draft, load_machine, load_model, load_timing
from helix_sim.step import evaluate_step

ROW = {
    "system": "gb200",
    "framework": "trtllm",
    "precision": "fp4",
    "dp": 8,
    "ep": 8,
    "context": 8192,
    "batch": 64,
    "tpot_s": 0.02,
}
INFERENCEX = {
    "hardware": "gb200",
    "framework": "dynamo-trt",
    "precision": "fp8",
    "spec_method": "none",
    "disagg": True,
    "decode_tp": 8,
    "decode_ep": 8,
    "decode_dp_attention": True,
    "decode_num_workers": 2,
    "num_decode_gpu": 16,
    "isl": 8192,
    "osl": 1024,
    "conc": 1024,
    "median_tpot": 0.03,
    "median_ttft": 3.0,
    "image": "nvcr.io/nvidia/ai-dynamo/tensorrtllm-runtime:0.8.1.post2",
}


def file_of(tmp_path, *rows):
    path = tmp_path / "servings.csv"
    pd.DataFrame(list(rows)).to_csv(path, index=False)
    return path


def judged(tmp_path, *rows, timing="gb200-trtllm"):
    return servings.judge(servings.read(file_of(tmp_path, *rows)), load_timing(timing))


def test_a_serving_that_takes_what_is_predicted_has_no_error_and_one_twice_as_slow_is_half_missed(tmp_path):
    right = judged(tmp_path, ROW).rows["predicted_s"][0]
    rows = judged(tmp_path, ROW | {"tpot_s": right}, ROW | {"tpot_s": 2 * right}).rows
    assert rows["error"].tolist() == pytest.approx([0.0, -0.5], abs=1e-9)
    assert rows["inside"].tolist() == [True, False]


def test_requests_that_wait_for_their_first_token_are_not_decoded(tmp_path):
    # 1024 requests on 2 workers of 8 groups are 64 a group; 10 s of 40 are spent waiting
    row = {name: value for name, value in ROW.items() if name != "batch"}
    asked = row | {"concurrency": 1024, "workers": 2, "osl": 1500, "ttft_s": 10.0}
    rows = judged(tmp_path, asked).rows
    assert rows["effective_batch"][0] == pytest.approx(48)
    assert rows["predicted_s"][0] == pytest.approx(judged(tmp_path, ROW | {"batch": 48}).rows["predicted_s"][0])


def test_a_context_may_be_said_by_its_lengths(tmp_path):
    row = {name: value for name, value in ROW.items() if name != "context"}
    said = judged(tmp_path, row | {"isl": 7680, "osl": 1024}, ROW).rows["predicted_s"]
    assert said[0] == said[1]


def test_what_a_step_cannot_be_held_against_is_left_out_and_counted(tmp_path):
    found = judged(
        tmp_path,
        ROW | {"speculation": "dflash"},
        ROW | {"aggregated": "yes"},
        ROW | {"system": "mi355x"},
        ROW | {"gpus": 24},
        ROW | {"workers": 0},
        ROW | {"gpus": 8},
        timing="gb200-trtllm",
    )
    assert len(found.rows) == 1
    assert sorted(found.left_out.values()) == [1] * 5
    assert sum(servings.report(found)["left out"]["rows"]) == 5


def test_a_cache_in_another_format_than_the_checkpoints_is_read_from_its_column(tmp_path):
    times = judged(tmp_path, ROW | {"precision": "fp8"}, ROW | {"precision": "fp8", "kv": "fp8"}).rows["predicted_s"]
    model, rate = load_model("deepseek-r1"), load_machine("gb200-nvl72").hbm_bytes_per_s
    # a byte less for each of a token's 576 cached values, in every layer
    unread_s = len(model.layer_list) * ROW["batch"] * ROW["context"] * 576 / rate
    assert times[1] < times[0] - unread_s


def test_groups_are_told_by_kind_of_layout_with_bias_and_coverage(tmp_path):
    rows = [ROW, ROW | {"dp": 1, "tpa": 8, "batch": 4}, ROW | {"dp": 1, "kvp": 8, "batch": 4, "context": 100_000}]
    right = judged(tmp_path, *rows).rows["predicted_s"]
    found = judged(tmp_path, *({**row, "tpot_s": 1.25 * s} for row, s in zip(rows, right, strict=True)))
    by_kind = servings.report(found)["by kind"].set_index("kind")
    assert set(by_kind.index) == {"DEP", "KVP", "TP"}
    assert by_kind["bias"].tolist() == pytest.approx([-0.2] * 3, abs=1e-6)


def test_the_worst_rows_are_taken_apart_and_their_ops_add_up(tmp_path):
    found = judged(tmp_path, ROW, ROW | {"tpot_s": 0.2})
    title, ops = next(iter(found.apart.items()))
    row = found.rows.iloc[1]
    assert "200.00 ms measured" in title
    assert ops["ms"].sum() <= row["predicted_s"] * 1e3
    first = ops.iloc[0]
    grown = row["predicted_s"] * 1e3 + (first["alone"] - 1) * first["ms"]
    assert grown == pytest.approx(row["tpot_s"] * 1e3)


def test_a_file_of_inferencex_is_read_as_it_is_and_its_runs_become_medians(tmp_path):
    runs = [INFERENCEX | {"median_tpot": t} for t in (0.03, 0.031, 0.05)]
    table = servings.read(file_of(tmp_path, *runs, INFERENCEX | {"decode_dp_attention": False}))
    parallel, tensor = table.iloc[0], table.iloc[1]
    assert (parallel["tpa"], parallel["dp"], parallel["runs"], parallel["tpot_s"]) == (1, 8, 3, 0.031)
    assert (tensor["tpa"], tensor["dp"], tensor["runs"]) == (8, 1, 1)
    assert (parallel["framework"], parallel["kv"], parallel["software"]) == ("trtllm", "fp8", "0.8.1.post2")
    assert (parallel["isl"], parallel["gpus"]) == (pytest.approx(0.9 * 8192), 8)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"tpot": 1}, "there is no column 'tpot'; known: system, framework"),
        ({"tpot_s": None}, "has no column tpot_s"),
        ({"context": None}, "has no column context; give it, or isl and osl"),
        ({"batch": None}, "has neither batch nor concurrency"),
        ({"batch": "many"}, "batch holds text"),
        ({"tpot_s": -1.0}, "tpot_s: row 2 holds -1.0"),
    ],
)
def test_a_file_that_is_none_is_a_sentence(tmp_path, change, sentence):
    row = {name: value for name, value in (ROW | change).items() if value is not None}
    with pytest.raises(SpecError) as error:
        servings.read(file_of(tmp_path, row))
    assert any(sentence in problem for problem in error.value.problems)


def test_a_timing_of_another_system_is_refused(tmp_path):
    with pytest.raises(SpecError, match="was measured on h100"):
        judged(tmp_path, ROW, timing="h100-trtllm")


def test_an_empty_file_is_a_sentence(tmp_path):
    path = tmp_path / "empty.csv"
    path.write_text("", encoding="utf-8")
    with pytest.raises(SpecError, match="is no CSV file"):
        servings.read(path)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"kv": "fp9"}, "kv: 'fp9' is not one of"),
        ({"precision": "int4"}, "there is no checkpoint 'int4' of deepseek-r1; known: fp8 or fp4"),
        ({"model": "llama-3.1-8b"}, "there is no checkpoint 'fp4' of llama-3.1-8b"),
        ({"model": "nomodel", "precision": None}, "there is no model named 'nomodel'"),
    ],
)
def test_a_row_whose_formats_or_model_are_none_is_a_sentence(tmp_path, change, sentence):
    with pytest.raises(SpecError) as error:
        judged(tmp_path, {name: value for name, value in (ROW | change).items() if value is not None})
    assert any(sentence in problem for problem in error.value.problems)


def test_one_call_judges_a_file_and_writes_every_row(tmp_path):
    found = validate_measurements(file_of(tmp_path, ROW, ROW), tmp_path / "out", timing="gb200-trtllm")
    assert found.tables["all rows"]["count"].tolist() == [2]
    written = pd.read_csv(found.files[0])
    assert written["predicted_s"].between(written["low_s"], written["high_s"]).all()


def test_a_row_that_drafted_is_predicted_with_its_frameworks_length_and_told_apart(tmp_path):
    found = judged(tmp_path, ROW, ROW | {"speculation": "mtp"}, ROW | {"speculation": "mtp", "draft_tokens": 1})
    plain, three, one = found.rows["predicted_s"][0], *found.drafting["predicted_s"]
    assert len(found.rows) == 1
    assert len({plain, three, one}) == 3
    tables = servings.report(found)
    assumed = tables["how they are taken to draft"].iloc[0]
    assert assumed[["draft", "draft_tokens", "requests_of_large", "draft_tokens_there"]].tolist() == [
        "deepseek-r1-mtp", 3, 128, 1,
    ]  # fmt: skip
    assert assumed["tokens_of_one"] == pytest.approx(1.67)
    assert assumed["source"].startswith("assumed: between the values of least error")
    assert tables["all rows"]["count"].tolist() == [1]
    assert tables["rows that draft, by framework"]["count"].tolist() == [2]


def test_servings_alike_but_for_drafting_are_a_pair_with_a_gain(tmp_path):
    found = judged(tmp_path, ROW, ROW | {"speculation": "mtp"})
    predicted = found.rows["predicted_s"][0] / found.drafting["predicted_s"][0]
    again = judged(tmp_path, ROW | {"tpot_s": 0.03}, ROW | {"speculation": "mtp", "tpot_s": 0.02}).pairs
    assert again["gain"].tolist() == pytest.approx([1.5])
    assert again["predicted_gain"].tolist() == pytest.approx([predicted])
    assert again["draft_tokens"].tolist() == [3]
    other = judged(tmp_path, ROW, ROW | {"speculation": "mtp", "batch": 63})
    assert len(other.pairs) == 0


def test_large_groups_draft_as_long_as_recipes_of_theirs_do(tmp_path):
    drafted = ROW | {"speculation": "mtp"}
    few, many = (drafted | {"batch": batch} for batch in (127, 128))
    rows = judged(tmp_path, few, few | {"draft_tokens": 3}, many, many | {"draft_tokens": 1}).drafting["predicted_s"]
    assert rows[0] == rows[1]
    assert rows[2] == rows[3]


def test_a_frameworks_deployments_have_one_acceptance_of_their_own(tmp_path):
    served = load_draft("deepseek-r1-mtp").served
    assert {name: each.acceptance.probabilities for name, each in served.items()} == {
        "trtllm": [0.67],
        "sglang": [0.45],
    }
    row = ROW | {"speculation": "mtp", "draft_tokens": 2}
    found = judged(tmp_path, row).drafting["predicted_s"][0]
    layout = Layout(batch=64, dp=8, ep=8, draft_tokens=2)
    draft = load_draft("deepseek-r1-mtp").with_(acceptance_probabilities=[0.67], source="a test")
    (step,) = servings._predicted(servings._filled(servings.read(file_of(tmp_path, row))), load_timing("gb200-trtllm"))[
        1
    ]
    own = evaluate_step(replace(step.setting, drafter=drafter_of(draft, step.setting.model)), layout, 8192)
    assert found == pytest.approx(float(own.ttl_s), rel=1e-12)


def test_prefill_on_the_same_gpus_is_in_both_times_of_a_pair_and_dilutes_its_gain(tmp_path):
    row = ROW | {"isl": 7000, "osl": 1000}
    apart, together = (
        judged(tmp_path, row | how, row | how | {"speculation": "mtp"}).pairs["predicted_gain"][0]
        for how in ({"aggregated": "no"}, {"aggregated": "yes"})
    )
    assert 1 < together < apart
    alone = judged(tmp_path, *({**row, "aggregated": "yes", "batch": 1, "speculation": s} for s in ("none", "mtp")))
    own = judged(tmp_path, *({**row, "batch": 1, "speculation": s} for s in ("none", "mtp")))
    assert alone.pairs["predicted_gain"].tolist() == own.pairs["predicted_gain"].tolist()


def test_rows_that_draft_and_pairs_are_written_too(tmp_path):
    found = validate_measurements(
        file_of(tmp_path, ROW, ROW | {"speculation": "mtp"}), tmp_path / "out", timing="gb200-trtllm"
    )
    rows, pairs = map(pd.read_csv, found.files)
    assert rows["speculation"].tolist() == ["none", "mtp"]
    assert len(pairs) == 1


def test_copies_of_experts_are_those_of_published_deployments_unless_a_row_says_them(tmp_path):
    wide = ROW | {"system": "gb300", "framework": "sglang", "precision": "fp8", "dp": 32, "ep": 32}
    served, said, none = (
        judged(tmp_path, wide | change, timing="gb300-sglang").rows["predicted_s"][0]
        for change in ({}, {"redundant_experts": 32}, {"redundant_experts": 0})
    )
    assert served == said > none, "nine experts a GPU are read, not eight"
    gathered = wide | {"system": "h200", "dp": 8, "ep": 8}
    alike = (gathered, gathered | {"redundant_experts": 0})
    assert len({judged(tmp_path, row, timing="h200-sglang").rows["predicted_s"][0] for row in alike}) == 1


PUBLISHED = """system,framework,precision,kv,tpa,dp,ep,isl,osl,concurrency,aggregated,speculation,tpot_s,ttft_s
h200,trtllm,fp8,fp8,8,1,8,7372.8,921.6,4,yes,none,0.01503,0.379
h200,trtllm,fp8,fp8,8,1,8,7372.8,921.6,4,yes,mtp,0.00934,0.410
h200,trtllm,fp8,fp8,8,1,8,7372.8,921.6,16,yes,none,0.02531,0.403
h200,trtllm,fp8,fp8,8,1,8,7372.8,921.6,16,yes,mtp,0.01797,0.420
h200,trtllm,fp8,fp8,1,8,8,7372.8,921.6,128,no,none,0.03651,6.27
h200,trtllm,fp8,fp8,1,8,8,7372.8,921.6,128,no,mtp,0.02387,1.10
"""
"""Medians of InferenceX's runs of DeepSeek-R1 on H200, December 2025 to May 2026; lengths as it draws them."""


def test_gains_of_published_pairs_are_predicted_to_an_eighth_and_fall_with_concurrency(tmp_path):
    path = tmp_path / "published.csv"
    path.write_text(PUBLISHED, encoding="utf-8")
    pairs = servings.judge(servings.read(path), load_timing("h200-trtllm")).pairs.set_index("concurrency")
    assert pairs["error"].abs().max() < 0.125
    assert pairs.loc[4, "predicted_gain"] > pairs.loc[16, "predicted_gain"]
    assert pairs.loc[4, "gain"] > pairs.loc[16, "gain"]
