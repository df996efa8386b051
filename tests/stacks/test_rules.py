"""Each rule of each stack by a layout just inside it and one just outside; what stacks store; rules as columns."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from helix_sim.core.layout import Layout
from helix_sim.feasibility import Candidate, Reason
from helix_sim.specs.load import load_machine, load_model
from helix_sim.specs.model import Model
from helix_sim.specs.precision import Precision
from helix_sim.stacks.rules import (
    REASONS,
    StackRule,
    first_reason,
    formats_on_stacks,
    longest_context,
    rules_of,
    stack_flags,
    stack_sentences,
    start_flags,
)
from helix_sim.stacks.stack import NAMES, load_stack

AMD = "mi355x"
ELSEWHERE = {
    ("MACHINE", "trtllm"): AMD,
    ("KVP_MACHINE", "vllm"): AMD,
    ("KVP_MACHINE", "trtllm"): "h100-hgx",
    ("KVP_MACHINE", "sglang"): "h100-hgx",
}
"""Rules that stand against a machine, by stack: one that they refuse the same layout on."""
R1, LLAMA, QWEN = "deepseek-r1", "llama-3.1-405b", "qwen3-235b-a22b"
RACK, BOARD = "gb200-nvl72", "h100-hgx"


@functools.cache
def gqa(q_heads: int = 28, kv_heads: int = 4, dense: int = 0, vocab: int = 152064, experts: int = 60) -> Model:
    """A small model of 4 layers; a mixture of experts unless `dense` is the inner width of its FFN."""
    moe = {"kind": "routed", "routed": experts, "top_k": 4, "intermediate_size": 1536}
    return Model.model_validate(
        {
            "kind": "model",
            "name": "small",
            "source": "made for tests",
            "published_parameters_B": 1.0,
            "hidden_size": 128 * q_heads,
            "vocab_size": vocab,
            "attention": {"gqa": {"kind": "gqa", "q_heads": q_heads, "kv_heads": kv_heads, "head_size": 128}},
            "ffn": {"ffn": {"kind": "dense", "intermediate_size": dense} if dense else moe},
            "layers": [{"attention": "gqa", "ffn": "ffn", "repeat": 4}],
        }
    )


def formats(weights: str = "nvfp4", kv: str = "fp8", math: str = "fp8") -> Precision:
    return Precision.model_validate({"weights": weights, "kv": kv, "math": math})


def broken(
    stack: str, model: str | Model, machine: str, precision: Precision, widths: dict[str, int]
) -> dict[str, str]:
    """The rules that a stack has against a layout by name, each with its sentence."""
    widths = {"tpf": widths.get("dp", 1) * widths.get("tpa", 1) * widths.get("kvp", 1) // widths.get("ep", 1)} | widths
    loaded = load_model(model) if isinstance(model, str) else model
    hardware, layout = load_machine(machine), Layout(**widths)
    flags = int(stack_flags(stack, loaded, hardware, precision, layout))
    told = stack_sentences(stack, Candidate(model=loaded, machine=hardware, layout=layout, context=1), precision)
    names = [rule.name for rule in rules_of(stack) if flags & rule.flag]
    return dict(zip(names, told, strict=True))


NVFP4, FP8_BLOCK, BF16 = formats(), formats("fp8-block"), formats("bf16")

# rule: stacks, model, machine, formats, a layout just inside, one just outside
Case = tuple[str, str | Model, str, Precision, dict[str, int], dict[str, int]]
CASES: dict[str, list[Case]] = {
    "HOP_B": [("trtllm vllm sglang", R1, RACK, NVFP4, {"kvp": 4, "batch": 8}, {"kvp": 4, "batch": 8, "chunks": 2})],
    "KVP_DRAFTS": [
        ("trtllm sglang", R1, RACK, NVFP4, {"tpa": 4, "draft_tokens": 1}, {"kvp": 4, "draft_tokens": 1}),
        ("trtllm sglang", R1, RACK, NVFP4, {"kvp": 4}, {"kvp": 4, "draft_tokens": 1}),
    ],
    "GATHERED_QUERIES": [
        ("vllm sglang", R1, RACK, NVFP4, {"kvp": 8, "q_shards": 8}, {"kvp": 8, "q_shards": 2}),
        ("trtllm", R1, RACK, NVFP4, {"kvp": 8}, {"kvp": 8, "q_shards": 8}),
    ],
    "IDLE_GPUS": [("trtllm vllm sglang", LLAMA, RACK, NVFP4, {"tpa": 8, "kvp": 4}, {"tpa": 8, "kvp": 4, "tpf": 8})],
    "WHOLE_TRAYS": [
        ("trtllm vllm sglang", R1, RACK, NVFP4, {"dp": 64, "ep": 64}, {"dp": 65, "ep": 65}),
        ("vllm sglang", R1, BOARD, FP8_BLOCK, {"dp": 16, "ep": 16}, {"dp": 12, "ep": 12}),
    ],
    "PIPELINE": [("trtllm vllm sglang", gqa(), RACK, BF16, {"pp": 4}, {"pp": 8})],
    "PIPELINE_KIND": [("trtllm", "kimi-k3", RACK, NVFP4, {"tpa": 8, "ep": 8}, {"tpa": 8, "ep": 8, "pp": 4})],
    "QUERY_HEADS": [
        ("trtllm vllm sglang", gqa(28, 4), BOARD, BF16, {"tpa": 4}, {"tpa": 8}),
        ("trtllm", R1, RACK, NVFP4, {"kvp": 8}, {"kvp": 12}),
    ],
    "KV_HEADS": [
        ("vllm sglang", gqa(24, 6), BOARD, BF16, {"tpa": 6}, {"tpa": 4}),
        ("trtllm", gqa(24, 6), BOARD, BF16, {"tpa": 6}, {"tpa": 4}),
        ("vllm", gqa(32, 4), BOARD, BF16, {"tpa": 8}, {"tpa": 6}),
    ],
    "KVP_KIND": [("trtllm vllm sglang", "gpt-oss-120b", RACK, NVFP4, {"tpa": 8}, {"tpa": 8, "kvp": 2})],
    "STATE_HEADS": [
        ("trtllm", "kimi-k3", RACK, NVFP4, {"kvp": 32, "ep": 32}, {"kvp": 64, "ep": 64}),
        ("vllm sglang", "qwen3.5-397b-a17b", RACK, NVFP4, {"tpa": 16, "ep": 16}, {"tpa": 32, "ep": 32}),
    ],
    "KVP_DP": [("trtllm", "kimi-k3", RACK, NVFP4, {"kvp": 8, "ep": 8}, {"kvp": 4, "dp": 2, "ep": 8})],
    "INDEX_CACHE": [
        ("sglang", "deepseek-v3.2", RACK, NVFP4, {"kvp": 8, "ep": 8}, {"kvp": 8, "ep": 8, "index_kvp": 2}),
        ("vllm", "glm-5", RACK, NVFP4, {"kvp": 8, "ep": 8, "index_kvp": 8}, {"kvp": 8, "ep": 8, "index_kvp": 4}),
    ],
    "KVP_HEADS": [
        ("vllm sglang", LLAMA, RACK, NVFP4, {"tpa": 8, "kvp": 4}, {"tpa": 4, "kvp": 4}),
        ("sglang", "qwen3-next-80b", RACK, NVFP4, {"tpa": 2, "kvp": 4, "ep": 8}, {"kvp": 8, "ep": 8}),
    ],
    "KVP_QUERIES": [
        ("vllm", QWEN, RACK, NVFP4, {"tpa": 4, "kvp": 16, "ep": 64}, {"tpa": 4, "kvp": 3, "ep": 12}),
    ],
    "MACHINE": [("trtllm", LLAMA, RACK, BF16, {"tpa": 8}, {"tpa": 8})],
    "KVP_MACHINE": [
        ("vllm", R1, RACK, FP8_BLOCK, {"kvp": 8, "ep": 8}, {"kvp": 8, "ep": 8}),
        ("trtllm", R1, RACK, FP8_BLOCK, {"kvp": 8, "ep": 8}, {"kvp": 8, "ep": 8}),
        ("sglang", "deepseek-v3.2", RACK, FP8_BLOCK, {"kvp": 8, "ep": 8}, {"kvp": 8, "ep": 8}),
    ],
    "ATTENTION_DP": [("trtllm", R1, RACK, NVFP4, {"dp": 8, "ep": 8}, {"dp": 4, "tpa": 2, "ep": 8})],
    "DENSE_DP": [("trtllm vllm sglang", LLAMA, RACK, NVFP4, {"tpa": 8}, {"tpa": 8, "dp": 2})],
    "EXPERT_GRID": [("vllm", R1, RACK, NVFP4, {"kvp": 16, "ep": 16}, {"kvp": 16, "ep": 4})],
    "EXPERTS": [
        ("sglang", gqa(48, 4), RACK, BF16, {"tpa": 12, "ep": 12}, {"tpa": 24, "ep": 24}),
        ("trtllm vllm sglang", R1, RACK, NVFP4, {"dp": 72, "ep": 72}, {"dp": 48, "ep": 24, "tpf": 2}),
    ],
    "MICROBATCHES": [
        (
            "vllm sglang",
            R1,
            RACK,
            NVFP4,
            {"dp": 64, "ep": 64, "batch": 8, "microbatches": 2},
            {"dp": 64, "ep": 32, "tpf": 2, "batch": 8, "microbatches": 2},
        ),
        (
            "trtllm",
            R1,
            RACK,
            NVFP4,
            {"dp": 64, "ep": 64, "batch": 8},
            {"dp": 64, "ep": 64, "batch": 8, "microbatches": 2},
        ),
    ],
    "EXPERT_COPIES": [
        (
            "trtllm vllm sglang",
            R1,
            RACK,
            NVFP4,
            {"dp": 64, "ep": 64, "redundant_experts": 64},
            {"dp": 64, "ep": 32, "tpf": 2, "redundant_experts": 32},
        ),
    ],
    "EXPERT_SHARDS": [("trtllm vllm sglang", R1, RACK, NVFP4, {"dp": 8}, {"dp": 12})],
    "EXPERT_TILES": [
        ("vllm sglang trtllm", QWEN, BOARD, FP8_BLOCK, {"tpa": 4}, {"tpa": 8}),
        ("trtllm", R1, RACK, NVFP4, {"kvp": 32}, {"kvp": 64}),
        ("vllm", R1, BOARD, FP8_BLOCK, {"dp": 16}, {"dp": 32}),
    ],
    "DENSE_SHARDS": [("trtllm vllm sglang", gqa(28, 4, dense=1024), BOARD, BF16, {"tpa": 4}, {"tpa": 7})],
    "DENSE_TILES": [
        ("vllm sglang", R1, BOARD, FP8_BLOCK, {"tpa": 16, "ep": 16}, {"tpa": 32, "ep": 32}),
        ("trtllm", gqa(32, 4, dense=1024), BOARD, FP8_BLOCK, {"tpa": 8}, {"tpa": 16}),
    ],
    "ATTENTION_TILES": [("vllm sglang", R1, BOARD, FP8_BLOCK, {"tpa": 64, "ep": 64}, {"tpa": 128, "ep": 128})],
    "VOCABULARY": [("vllm", gqa(28, 4), BOARD, BF16, {"tpa": 4, "ep": 4}, {"tpa": 7, "ep": 7})],
}
FORMATS: list[tuple[str, str, str, str, Precision, Precision]] = [
    ("WEIGHT_FORMAT", "trtllm", R1, BOARD, FP8_BLOCK, NVFP4),
    ("WEIGHT_FORMAT", "trtllm", R1, RACK, FP8_BLOCK, formats("int4")),
    ("WEIGHT_FORMAT", "vllm", R1, RACK, NVFP4, formats("fp4")),
    ("WEIGHT_FORMAT", "sglang", R1, RACK, NVFP4, formats("fp4")),
    ("KV_FORMAT", "trtllm", R1, BOARD, formats(kv="fp8"), formats(kv="nvfp4")),
    ("KV_FORMAT", "vllm", R1, RACK, formats(kv="fp8"), formats(kv="nvfp4")),
    ("KV_FORMAT", "sglang", R1, BOARD, formats(kv="fp8"), formats(kv="nvfp4")),
]
ROWS = [
    pytest.param(rule, stack, *case[1:], id=f"{rule}-{stack}-{place}")
    for rule, cases in CASES.items()
    for place, case in enumerate(cases)
    for stack in case[0].split()
]


@pytest.mark.parametrize(("rule", "stack", "model", "machine", "precision", "inside", "outside"), ROWS)
def test_a_rule_takes_the_layout_just_inside_it_and_refuses_the_one_just_outside(
    rule: str,
    stack: str,
    model: Any,
    machine: str,
    precision: Precision,
    inside: dict[str, int],
    outside: dict[str, int],
) -> None:
    there = ELSEWHERE.get((rule, stack), machine)
    assert rule not in broken(stack, model, machine, precision, inside)
    told = broken(stack, model, there, precision, outside)
    assert rule in told
    assert "{" not in told[rule]
    assert ";" in told[rule], "it says what to change"


@pytest.mark.parametrize(("rule", "stack", "model", "machine", "inside", "outside"), FORMATS)
def test_a_format_is_taken_where_the_stack_has_kernels_for_it(
    rule: str, stack: str, model: str, machine: str, inside: Precision, outside: Precision
) -> None:
    assert rule not in broken(stack, model, machine, inside, {"dp": 8, "ep": 8})
    assert rule in broken(stack, model, machine, outside, {"dp": 8, "ep": 8})


def test_every_rule_of_every_stack_is_shown_inside_and_outside() -> None:
    shown = {(rule, stack) for rule, cases in CASES.items() for case in cases for stack in case[0].split()}
    shown |= {(rule, stack) for rule, stack, *_ in FORMATS}
    assert shown == {(rule.name, stack) for stack in NAMES for rule in rules_of(stack)}


@pytest.mark.parametrize("stack", NAMES)
def test_every_rule_names_the_file_of_the_stack_that_refuses(stack: str) -> None:
    spec = load_stack(stack)
    assert spec.version
    assert spec.read >= "2026-11-01"
    for name, text in spec.rules.items():
        assert name in StackRule.__members__
        assert ".py" in text.source or ".md" in text.source or "/quantization" in text.source, name


def test_tensorrt_llm_takes_moe_tp_32_of_r1_and_refuses_64() -> None:
    assert not broken("trtllm", R1, RACK, NVFP4, {"kvp": 32})
    (told,) = broken("trtllm", R1, RACK, NVFP4, {"kvp": 64}).values()
    assert "2048/64 = 32" in told


@pytest.mark.parametrize(
    ("model", "stacks"),
    [
        ("deepseek-r1", {"trtllm", "vllm", "sglang"}),
        ("kimi-k3", {"trtllm", "vllm", "sglang"}),
        ("deepseek-v3.2", {"vllm", "sglang"}),
        ("qwen3.5-397b-a17b", {"vllm", "sglang"}),
        ("gpt-oss-120b", set()),
        ("deepseek-v4-flash", set()),
        ("minimax-m3", set()),
    ],
)
def test_kinds_have_kv_parallelism_where_a_stack_has_them_side_by_side(model: str, stacks: set[str]) -> None:
    kinds = {a.kind for a in load_model(model).attention.values()}
    assert {name for name in NAMES if load_stack(name).kvp_of(kinds)} == stacks


def test_wide_expert_parallelism_is_taken_with_copies_of_experts() -> None:
    """32 GPUs with 256 + 32 experts is how DeepSeek's own decoding places them; 72 GPUs take 288 slots likewise."""
    for stack in NAMES:
        assert not broken(stack, R1, RACK, NVFP4, {"dp": 72, "ep": 72})


@given(
    stack=st.sampled_from(NAMES),
    model=st.sampled_from([R1, LLAMA, QWEN]),
    widths=st.lists(st.tuples(*[st.integers(1, 16)] * 6), min_size=1, max_size=8),
)
@settings(max_examples=60, deadline=None)
def test_a_layout_has_the_flags_of_its_row(stack: str, model: str, widths: list[tuple[int, ...]]) -> None:
    axes = ("tpa", "kvp", "dp", "tpf", "ep", "pp")
    columns = Layout(**{axis: np.array(column) for axis, column in zip(axes, zip(*widths, strict=True), strict=True)})
    loaded, machine = load_model(model), load_machine(RACK)
    together = stack_flags(stack, loaded, machine, NVFP4, columns)
    for row, one in enumerate(widths):
        alone = stack_flags(stack, loaded, machine, NVFP4, Layout(**dict(zip(axes, one, strict=True))))
        assert int(alone) == int(together[row])


def test_any_stack_is_one_that_starts_it() -> None:
    model, machine = load_model(R1), load_machine(RACK)
    grid = Layout(kvp=16, ep=4, tpf=4)  # vLLM alone refuses its experts
    assert int(start_flags(("vllm",), model, machine, NVFP4, grid)) == StackRule.EXPERT_GRID.flag
    assert int(start_flags(NAMES, model, machine, NVFP4, grid)) == 0
    odd = Layout(kvp=5, dp=13, ep=65)
    flags = int(start_flags(NAMES, model, machine, NVFP4, odd))
    assert {rule.name for rule in StackRule if flags & rule.flag} == {"WHOLE_TRAYS", "QUERY_HEADS"}
    assert int(start_flags((), model, machine, NVFP4, odd)) == 0


def test_a_layout_that_every_stack_refuses_by_another_rule_is_counted_as_such() -> None:
    model, machine = load_model(R1), load_machine(RACK)
    both = Layout(kvp=64, tpf=16, ep=4)
    assert int(start_flags(("vllm", "trtllm"), model, machine, NVFP4, both)) == 0
    two = Layout(dp=4, tpa=2, tpf=2, ep=4)  # TensorRT-LLM: DP and TP attention; vLLM: the expert grid
    assert int(start_flags(("vllm", "trtllm"), model, machine, NVFP4, two)) == StackRule.NO_ONE_STACK.flag


def test_the_first_reason_is_counted_physics_before_stacks() -> None:
    names = list(REASONS)
    flags = np.array([Reason.OUT_OF_MEMORY.flag | StackRule.HOP_B.flag, StackRule.EXPERTS.flag | StackRule.HOP_B.flag])
    assert [names[place] for place in first_reason(flags)] == ["OUT_OF_MEMORY", "EXPERTS"]
    assert len(set(REASONS.values())) == len(REASONS)


def test_a_longer_context_than_the_config_allows_is_told_apart() -> None:
    model = load_model(R1)
    assert not longest_context(model, 163_840)
    assert longest_context(model, 163_841)
    assert not longest_context(gqa(), 10**9)


def test_gpt_oss_starts_on_hopper_where_triton_has_its_experts_and_other_mxfp4_on_blackwell_alone() -> None:
    stored = Precision(weights="mxfp4", kv="bf16", math="bf16")
    for stack in NAMES:
        assert "WEIGHT_FORMAT" not in broken(stack, "gpt-oss-120b", BOARD, stored, {"tpa": 8})
    assert "WEIGHT_FORMAT" in broken("trtllm", "kimi-k3", BOARD, stored, {"dp": 8, "ep": 8})


def test_amds_machines_have_rocms_back_ends_and_formats() -> None:
    assert not broken("vllm", R1, AMD, FP8_BLOCK, {"dp": 16, "ep": 16})
    assert not broken("sglang", R1, AMD, FP8_BLOCK, {"dp": 16, "ep": 16})
    for stack in ("vllm", "sglang"):
        assert {"WEIGHT_FORMAT"} == set(broken(stack, LLAMA, AMD, formats(kv="fp8"), {"tpa": 8}))
        assert {"KV_FORMAT"} == set(broken(stack, LLAMA, AMD, formats("mxfp4", kv="nvfp4"), {"tpa": 8}))
        assert "MICROBATCHES" in broken(stack, R1, AMD, FP8_BLOCK, {"dp": 16, "ep": 16, "batch": 2, "microbatches": 2})
    narrow = formats_on_stacks(formats("fp4", "fp4", "fp4"), NAMES, load_machine(AMD), load_model(R1))
    assert (narrow.weights, narrow.kv) == ("mxfp4", "fp8")


def test_formats_become_those_that_a_stack_stores() -> None:
    rack, model = load_machine(RACK), load_model(R1)
    paper = formats("fp4", "fp4", "fp4")
    assert formats_on_stacks(paper, (), rack, model) == paper
    for stack, kv in (("trtllm", "nvfp4"), ("vllm", "fp8"), ("sglang", "nvfp4")):
        found = formats_on_stacks(paper, (stack,), rack, model)
        assert (found.weights, found.kv) == ("nvfp4", kv)
    assert formats_on_stacks(formats("bf16", "int8"), ("vllm",), rack, model).kv == "fp8"


def test_no_rule_of_a_stack_has_the_name_of_a_physical_reason() -> None:
    assert len(REASONS) == len(Reason) + len(StackRule)
    assert len(set(REASONS.values())) == len(REASONS)
