"""A frame of layouts in, a frame out: every row is the step of its layout, whatever stands beside it."""

import numpy as np
import pandas as pd
import pytest

import helix_sim as hs
from helix_sim.feasibility import FLAGS


def rows_of(rng: np.random.Generator, count: int, experts: bool) -> pd.DataFrame:
    """Random layouts, of which some cannot run."""
    tpa, kvp, dp = (2 ** rng.integers(0, most, count) for most in (5, 6, 4))
    frame = pd.DataFrame({"tpa": tpa, "kvp": kvp, "dp": dp, "pp": rng.integers(1, 4, count)})
    frame["ep"] = np.minimum(2 ** rng.integers(0, 7, count), tpa * kvp * dp) if experts else 1
    frame["batch"] = rng.integers(1, 400, count)
    frame["chunks"] = np.where(rng.random(count) < 0.3, rng.integers(1, 9, count), 1)
    frame["query_tokens"] = rng.choice([1, 1, 4, 300], count)
    frame["context"] = rng.integers(400, 2_000_000, count)
    return frame


@pytest.mark.parametrize("timing", ["paper", "gb200-trtllm"])
@pytest.mark.parametrize("model", ["deepseek-r1", "llama-3.1-405b"])
def test_every_row_is_the_step_of_its_layout(model: str, timing: str) -> None:
    machine = hs.load_machine("gb200-nvl72")
    setting = hs.setting_of(model, machine, timing=timing, precision=hs.Precision(weights="fp4", kv="fp4", math="fp4"))
    frame = rows_of(np.random.default_rng(3), 400, experts=model == "deepseek-r1")
    found = hs.evaluate(setting, frame)
    assert 20 < (found["reasons"] == "").sum() < 380
    for (_, row), (_, got) in zip(frame.iterrows(), found.iterrows(), strict=True):
        sizes = {name: int(value) for name, value in row.items()}
        context, query_tokens = sizes.pop("context"), sizes.pop("query_tokens")
        x = hs.Layout(tpf=max(sizes["dp"] * sizes["tpa"] * sizes["kvp"] // sizes["ep"], 1), **sizes)
        try:
            step = hs.decode_step(
                setting.model, machine, x, context, query_tokens=query_tokens,
                timing=setting.timing, precision=setting.precision,
            )  # fmt: skip
        except hs.LayoutError as error:
            refused = error.problems
        else:
            refused = []
        if refused:
            assert len(got["reasons"].split(", ")) == len(refused)
            assert np.isnan(got["ttl_s"])
            continue
        assert got["reasons"] == ""
        assert got["ttl_s"] == pytest.approx(float(step.ttl_s), rel=1e-12)
        assert got["tokens_per_s_gpu"] == pytest.approx(float(step.tokens_per_s_gpu), rel=1e-12)
        assert got["tokens_per_s_user"] == pytest.approx(float(step.tokens_per_s_user), rel=1e-12)
        assert got["resident_bytes"] == pytest.approx(float(step.memory.resident_bytes), rel=1e-12)
        if setting.timing.calibration:
            low, high = (float(end) for end in step.ttl_interval_s)
            assert [got["ttl_low_s"], got["ttl_high_s"]] == pytest.approx([low, high], rel=1e-12)


def test_rows_keep_their_index_and_do_not_see_each_other() -> None:
    setting = hs.setting_of(hs.load_model("deepseek-r1"), hs.load_machine("gb200-nvl72"))
    frame = rows_of(np.random.default_rng(4), 20_000, experts=True)
    whole = hs.evaluate(setting, frame)
    some = frame.sample(500, random_state=0)
    pd.testing.assert_frame_equal(
        hs.evaluate(setting, some).astype({"reasons": str}), whole.loc[some.index].astype({"reasons": str}), rtol=1e-12
    )


def test_reasons_are_those_of_the_layout_and_memory_is_told_where_only_memory_is_short() -> None:
    setting = hs.setting_of(hs.load_model("llama-3.1-405b"), hs.load_machine("gb200-nvl72"))
    frame = pd.DataFrame({"tpa": [8, 256, 1], "ep": [1, 1, 2], "batch": [1, 1, 10**6]})
    found = hs.evaluate(setting, frame, context=1000)
    assert set(", ".join(found["reasons"]).replace("  ", "").split(", ")) - {""} <= {reason.name for reason in FLAGS}
    assert found["reasons"].tolist()[0] == ""
    assert "MORE_RANKS_THAN_HEADS" in found["reasons"].tolist()[1]
    assert np.isnan(found["resident_bytes"][1])
    full = hs.evaluate(setting, pd.DataFrame({"tpa": [8], "batch": [10**6]}), context=1000)
    assert full["reasons"].tolist() == ["OUT_OF_MEMORY"]
    assert full["resident_bytes"][0] > setting.machine.memory_bytes
    assert np.isnan(full["ttl_s"][0])


def test_an_empty_frame_gives_an_empty_frame_with_its_columns() -> None:
    setting = hs.setting_of(hs.load_model("llama-3.1-8b"), hs.load_machine("gb200-nvl72"))
    found = hs.evaluate(setting, pd.DataFrame({"batch": [], "context": []}))
    assert len(found) == 0
    assert {"ttl_s", "reasons", "resident_bytes"} <= set(found)


@pytest.mark.parametrize(
    ("frame", "sentence"),
    [
        ({"batch": [1]}, "no column context"),
        ({"batch": [1, 0], "context": 1000}, "batch: row 1 holds .*0.*whole number from 1"),
        ({"batch": ["many"], "context": 1000}, "batch: row 0 holds"),
        ({"batch": [1.5], "context": 1000}, "batch: row 0 holds"),
        ({"batch": [np.nan], "context": 1000}, "batch: row 0 holds"),
        ({"batch": [1], "context": 10, "query_tokens": 11}, "query_tokens: row 0 has more than its context"),
    ],
)
def test_what_is_no_layout_is_one_sentence(frame: dict[str, object], sentence: str) -> None:
    setting = hs.setting_of(hs.load_model("llama-3.1-8b"), hs.load_machine("gb200-nvl72"))
    with pytest.raises(hs.SpecError, match=sentence):
        hs.evaluate(setting, pd.DataFrame(frame))


def test_every_public_name_of_the_library_says_what_it_is() -> None:
    for name in hs.__all__:
        assert isinstance(getattr(hs, name), dict) or (getattr(hs, name).__doc__ or "").strip(), name
