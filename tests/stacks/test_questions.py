"""Plain questions end in launch files that start: some of them, and all where --all-questions is given."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from helix_sim.answers.recommend import recommend
from helix_sim.answers.request import Mix, Request
from helix_sim.cli import app
from helix_sim.core.errors import SpecError
from helix_sim.core.layout import Layout
from helix_sim.output.export import export, launch
from helix_sim.search.frame import decode_step
from helix_sim.search.layout_source import Picked
from helix_sim.specs.load import load_machine, load_model
from helix_sim.specs.precision import Precision


def _questions() -> Any:
    """The script beside this file, which is no test and so no module of its own."""
    spec = importlib.util.spec_from_file_location("questions", Path(__file__).with_name("questions.py"))
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules["questions"] = module
    spec.loader.exec_module(module)
    return module


questions = _questions()


def one(model: str, machine: str, context: int, ttl_ms: float, **others: Any) -> Request:
    mix = Mix(contexts=(context,), shares=(1.0,))
    return Request(model=model, machine=machine, mix=mix, ttl_s=ttl_ms / 1e3, **others)


def test_every_file_of_the_first_choices_starts(tmp_path: Path, pytestconfig: pytest.Config) -> None:
    every = questions.questions(tmp_path)
    assert len(every) == 200
    found = questions.asked(every if pytestconfig.getoption("--all-questions") else questions.some(every, 8))
    assert found.wrong == []
    assert found.files >= found.choices > 0


def test_a_file_that_does_not_start_is_noticed() -> None:
    """The checks of the files are not the rules: a file of a layout that a rule refuses fails them too."""
    formats = Precision(weights="nvfp4", kv="fp8", math="fp4")
    step = decode_step(
        load_model("deepseek-r1"), load_machine("gb200-nvl72"), Layout(dp=64, ep=64, batch=2), 1000, precision=formats
    )
    written = launch(Picked(step=step, inputs={}, longest_context=1000), "sglang", "sglang")
    assert not list(questions.complaints(written))
    written.options["--tp-size"] = written.options["--ep-size"] = written.options["--attn-dp-size"] = 65
    assert len(list(questions.complaints(written))) == 2


# --- Files and questions of people who do this job -------------------------------------------------------------------


def test_a_model_of_28_heads_is_cut_in_divisors_of_28(tmp_path: Path) -> None:
    model = questions.odd_models(tmp_path)[0]
    for stack in ("any", "vllm"):
        found = recommend(one(model, "h100-hgx", 32_000, 20, gpus=(1, 8), stack=stack))
        assert found.choices
        for choice in found.choices:
            assert 28 % choice.step.layout.attention_group == 0
    assert found.stacked is not None
    assert found.stacked.refused["QUERY_HEADS"] > 0


def test_fp8_blocks_keep_qwen3_235b_from_tensor_parallelism_of_8() -> None:
    formats = Precision(weights="fp8-block", kv="fp8", math="fp8")
    step = decode_step(
        load_model("qwen3-235b-a22b"), load_machine("b200-hgx"), Layout(tpa=8, tpf=8), 128_000, precision=formats
    )
    for stack in ("trtllm", "vllm", "sglang"):
        with pytest.raises(SpecError, match="1536/8 = 192 wide, no multiple of"):
            export(step, to=stack)
    found = recommend(one("qwen3-235b-a22b", "b200-hgx", 128_000, 20, precision=formats, stack="vllm"))
    for choice in found.choices:
        assert 1536 // choice.step.layout.tpf % 128 == 0


def test_r1_at_a_million_tokens_is_not_answered_by_65_gpus() -> None:
    formats = Precision(weights="nvfp4", kv="fp8", math="fp4")
    found = recommend(one("deepseek-r1", "gb200-nvl72", 10**6, 20, precision=formats))
    assert len(found.choices) == 5
    for choice in found.choices:
        x = choice.step.layout
        assert x.gpus % 4 == 0 or x.gpus < 4
        assert 128 % x.attention_group == 0
        assert 256 % x.ep == 0 or (x.ep == x.gpus // x.pp and x.dp > 1)


def test_a_million_tokens_of_llama_are_told_to_each_stack() -> None:
    words = ["export", "llama-3.1-405b", "gb200-nvl72", "--tpa", "8", "--weights", "nvfp4", "--kv", "fp8"]
    for stack, name in (("vllm", "VLLM_ALLOW_LONG_MAX_MODEL_LEN"), ("trtllm", "TLLM_ALLOW_LONG_MAX_MODEL_LEN")):
        shown = CliRunner().invoke(app, [*words, "--context", "1M", "--to", stack])
        assert f"{name}=1" in shown.stdout
        assert "131,072" in shown.stderr


# --- What the rules cost ---------------------------------------------------------------------------------------------


def test_what_physics_alone_would_add_is_what_it_adds() -> None:
    request = one("deepseek-r1", "gb200-nvl72", 10**6, 20, gpus=(1, 20))
    any_stack, vllm = (
        recommend(request),
        recommend(one("deepseek-r1", "gb200-nvl72", 10**6, 20, gpus=(1, 20), stack="vllm")),
    )
    for found in (any_stack, vllm):
        assert found.stacked is not None
        best = float(found.choices[0].step.tokens_per_s_gpu)
        for gain in (found.stacked.physics, found.stacked.costliest):
            if gain is not None:
                assert gain.adds >= 0
                # the choice's batch was raised after the search, within one step of the list of batches
                assert gain.tokens_per_s_gpu / best - 1 == pytest.approx(gain.adds, abs=0.03)
        assert sum(found.stacked.refused.values()) < found.stacked.kept
    assert any_stack.choices[0].step.tokens_per_s_gpu >= vllm.choices[0].step.tokens_per_s_gpu


def test_without_stacks_physics_alone_answers() -> None:
    found = recommend(one("llama-3.1-8b", "h100-hgx", 64_000, 10, gpus=(1, 8), stack="none"))
    assert found.stacked is None
    assert found.choices[0].stacks == ()
    assert found.record()["stack_rules"] is None


def test_where_no_stack_starts_a_layout_the_stack_is_a_limit() -> None:
    found = recommend(one("llama-3.1-8b", "gb200-nvl72", 64_000, 10, gpus=(6, 6)))
    assert not found.choices
    assert [relaxed.limit for relaxed in found.relaxations if relaxed.limit == "stack"] == ["stack"]


def test_a_stack_that_is_none_is_refused_by_name() -> None:
    with pytest.raises(SpecError, match="--stack: 'llamacpp' is not one of trtllm, vllm, sglang, any, none"):
        recommend(one("llama-3.1-8b", "h100-hgx", 64_000, 10, stack="llamacpp"))
