"""Launch files against a schema of the stacks' documented options, and against the layout they must express."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from helix_sim.cli import app
from helix_sim.core.errors import SpecError
from helix_sim.core.layout import Layout
from helix_sim.output.export import GPUS_OF_A_HOST, STACKS, Launch, export
from helix_sim.specs.load import load_machine, load_model
from helix_sim.specs.precision import Precision, narrowest_precision
from helix_sim.step import LayoutError, Step, decode_step

POSITIVE = "whole number of at least 1"

# nvidia.github.io/TensorRT-LLM features/helix and llm_args (1.3), read in 2026
TRTLLM: dict[str, Any] = {
    "backend": {"pytorch"},
    "tensor_parallel_size": POSITIVE,
    "pipeline_parallel_size": POSITIVE,
    "context_parallel_size": POSITIVE,
    "moe_tensor_parallel_size": POSITIVE,
    "moe_expert_parallel_size": POSITIVE,
    "enable_attention_dp": {True, False},
    "max_batch_size": POSITIVE,
    "max_seq_len": POSITIVE,
    "cp_config": {"cp_type": {"HELIX"}, "tokens_per_block": POSITIVE, "use_nccl_for_alltoall": {True, False}},
    "kv_cache_config": {"tokens_per_block": POSITIVE, "dtype": {"auto", "fp8", "nvfp4"}},
}
# docs.vllm.ai configuration/engine_args, ParallelConfig and CacheConfig (0.25), read in 2026
VLLM: dict[str, Any] = {
    "--tensor-parallel-size": POSITIVE,
    "--pipeline-parallel-size": POSITIVE,
    "--data-parallel-size": POSITIVE,
    "--enable-expert-parallel": None,
    "--decode-context-parallel-size": POSITIVE,
    "--dcp-comm-backend": {"ag_rs", "a2a"},
    "--max-num-seqs": POSITIVE,
    "--max-model-len": POSITIVE,
    "--kv-cache-dtype": {"auto", "bfloat16", "fp8", "fp8_e4m3", "fp8_e5m2", "nvfp4"},
}
# docs.sglang.io advanced_features/server_arguments and advanced_features/dcp, read in 2026
SGLANG: dict[str, Any] = {
    "--model-path": "text",
    "--tp-size": POSITIVE,
    "--pp-size": POSITIVE,
    "--dp-size": POSITIVE,
    "--enable-dp-attention": None,
    "--ep-size": POSITIVE,
    "--dcp-size": POSITIVE,
    "--dcp-comm-backend": {"ag_rs", "a2a", "fi_a2a"},
    "--dcp-replicate-q-proj": None,
    "--max-running-requests": POSITIVE,
    "--context-length": POSITIVE,
    "--kv-cache-dtype": {"auto", "bfloat16", "fp8_e5m2", "fp8_e4m3", "fp4_e2m1"},
}


def valid(value: Any, kind: Any) -> bool:
    """Whether a value is of the kind that a schema says."""
    if isinstance(kind, dict):
        return isinstance(value, dict) and all(key in kind and valid(v, kind[key]) for key, v in value.items())
    if kind == POSITIVE:
        return isinstance(value, int) and not isinstance(value, bool) and value >= 1
    return value in kind if isinstance(kind, set) else isinstance(value, str)


def parsed(written: Launch) -> dict[str, Any]:
    """The options in a launch file, each checked against the stack's schema, with numbers as numbers."""
    if written.stack == "trtllm":
        content = yaml.safe_load(written.text)
        assert valid(content, TRTLLM)
        return dict(content)
    schema = VLLM if written.stack == "vllm" else SGLANG
    words = shlex.split(written.text.replace("\\\n", " "), comments=True)
    start = words.index("--model-path") if written.stack == "sglang" else 3
    found: dict[str, Any] = {}
    while start < len(words):
        name = words[start]
        if schema[name] is None:
            found[name], start = True, start + 1
            continue
        found[name] = int(words[start + 1]) if words[start + 1].isdecimal() else words[start + 1]
        assert valid(found[name], schema[name]), name
        start += 2
    return found


def step_of(model: str, *, machine: str = "gb200-nvl72", context: int = 100_000, **widths: int) -> Step:
    formats = Precision(weights="nvfp4", kv="fp8", math="fp4")
    widths.setdefault("tpf", widths.get("dp", 1) * widths.get("tpa", 1) * widths.get("kvp", 1) // widths.get("ep", 1))
    return decode_step(load_model(model), load_machine(machine), Layout(**widths), context, precision=formats)


def gpus(stack: str, options: dict[str, Any]) -> int:
    """GPUs that a stack starts with these options."""
    names = {
        "trtllm": ("tensor_parallel_size", "pipeline_parallel_size", "context_parallel_size"),
        "vllm": ("--tensor-parallel-size", "--pipeline-parallel-size", "--data-parallel-size"),
        "sglang": ("--tp-size", "--pp-size"),
    }[stack]
    a, b, c = (*(options.get(name, 1) for name in names), 1)[:3]
    return int(a * b * c)


@given(
    model=st.sampled_from(["deepseek-r1", "llama-3.1-70b"]),
    stack=st.sampled_from(list(STACKS)),
    widths=st.fixed_dictionaries({axis: st.sampled_from([1, 2, 4, 8]) for axis in ("tpa", "kvp", "dp", "ep", "pp")}),
    batch=st.integers(1, 16),
)
@settings(max_examples=200, deadline=None)
def test_what_is_written_is_valid_and_starts_as_many_gpus_and_users_as_the_layout(
    model: str, stack: str, widths: dict[str, int], batch: int
) -> None:
    try:
        step = step_of(model, batch=batch, **widths)
    except LayoutError:
        return
    try:
        written = export(step, to=stack)
    except SpecError:
        return
    options, x = parsed(written), step.layout
    assert gpus(stack, options) == x.gpus
    users = {
        "trtllm": lambda: options["max_batch_size"] * x.dp * x.pp,
        "vllm": lambda: options["--max-num-seqs"] * options.get("--data-parallel-size", 1),
        "sglang": lambda: options["--max-running-requests"],
    }
    assert users[stack]() == x.users


def test_helix_on_tensorrt_llm_is_as_its_documentation_writes_it() -> None:
    options = parsed(export(step_of("deepseek-r1", kvp=8, ep=4, batch=4), to="trtllm"))
    assert options["context_parallel_size"] == 8
    assert options["cp_config"]["cp_type"] == "HELIX"
    assert options["cp_config"]["tokens_per_block"] == options["kv_cache_config"]["tokens_per_block"] == 32
    assert options["moe_tensor_parallel_size"] * options["moe_expert_parallel_size"] == 8


def test_the_same_layout_reaches_vllm_and_sglang_in_their_own_words() -> None:
    step = step_of("deepseek-r1", kvp=8, ep=8, batch=4)
    vllm, sglang = parsed(export(step, to="vllm")), parsed(export(step, to="sglang"))
    assert vllm["--tensor-parallel-size"] == vllm["--decode-context-parallel-size"] == 8
    assert vllm["--dcp-comm-backend"] == "a2a"
    assert vllm["--enable-expert-parallel"]
    assert sglang["--tp-size"] == sglang["--dcp-size"] == sglang["--ep-size"] == 8
    assert sglang["--model-path"] == "deepseek-ai/DeepSeek-R1"


def test_hop_b_is_said_and_the_file_carries_the_time_without_it() -> None:
    step = step_of("llama-3.1-405b", tpa=8, kvp=8, batch=16, chunks=4, context=10**6)
    plain = step_of("llama-3.1-405b", tpa=8, kvp=8, batch=16, context=10**6)
    for stack in STACKS:
        written = export(step, to=stack)
        assert any("HOP-B" in remark for remark in written.remarks)
        assert "HOP-B" in written.text
        assert float(written.runs.ttl_s) == pytest.approx(float(plain.ttl_s), rel=1e-12)
        assert f"TTL {float(plain.ttl_s) * 1e3:.3f} ms as this stack runs it" in written.text


@pytest.mark.parametrize(
    ("model", "widths", "stacks", "why"),
    [
        pytest.param("llama-3.1-405b", {"tpa": 8, "kvp": 4, "tpf": 8}, "trtllm vllm sglang", "FFN spans", id="medha"),
        pytest.param("llama-3.1-405b", {"tpa": 4, "kvp": 4}, "vllm sglang", "tpa 8", id="fewer ranks than KV heads"),
        pytest.param("deepseek-r1", {"kvp": 16, "ep": 4, "tpf": 4}, "vllm", "expert parallelism", id="expert grid"),
        pytest.param("llama-3.1-405b", {"tpa": 8, "dp": 2}, "trtllm vllm", "dense", id="pooled FFN"),
        pytest.param("deepseek-r1", {"tpa": 2, "dp": 8, "ep": 16}, "trtllm", "not both", id="DP and TP attention"),
    ],
)
def test_what_a_stack_cannot_run_is_refused_with_the_reason(
    model: str, widths: dict[str, int], stacks: str, why: str
) -> None:
    step = step_of(model, batch=2, **widths)
    for stack in STACKS:
        if stack in stacks.split():
            with pytest.raises(SpecError, match=why):
                export(step, to=stack)
        else:
            assert parsed(export(step, to=stack))


def test_four_bit_formats_of_the_paper_become_those_that_stacks_store() -> None:
    model, machine = load_model("deepseek-r1"), load_machine("gb200-nvl72")
    step = decode_step(model, machine, Layout(batch=4, kvp=8, ep=8), 10**6, precision=narrowest_precision(machine))
    assert (step.precision.weights, step.precision.kv) == ("fp4", "fp4")
    written = export(step, to="trtllm")
    assert (written.runs.precision.weights, written.runs.precision.kv) == ("nvfp4", "nvfp4")
    assert parsed(written)["kv_cache_config"]["dtype"] == "nvfp4"
    assert sum("nvfp4" in remark for remark in written.remarks) >= 2


def test_a_layout_that_fits_only_in_a_format_the_stack_lacks_is_refused() -> None:
    model, machine = load_model("llama-3.1-405b"), load_machine("gb200-nvl72")
    formats = Precision(weights="nvfp4", kv="fp4", math="fp4")
    step = decode_step(model, machine, Layout(batch=9, tpa=8, tpf=8), 10**6, precision=formats)
    with pytest.raises(SpecError, match="GB"):
        export(step, to="vllm")


def test_several_hosts_are_remarked_upon() -> None:
    few, many = step_of("llama-3.1-8b", tpa=GPUS_OF_A_HOST, batch=1), step_of("llama-3.1-8b", tpa=8, batch=1)
    assert not any("hosts" in remark for remark in export(few, to="vllm").remarks)
    assert any("hosts" in remark for remark in export(many, to="vllm").remarks)


def test_a_stack_that_is_none_is_refused() -> None:
    with pytest.raises(SpecError, match="trtllm, vllm, sglang"):
        export(step_of("llama-3.1-8b", batch=1), to="llamacpp")


def test_the_command_writes_the_file_and_says_what_differs(tmp_path: Path) -> None:
    path = tmp_path / "launch.yaml"
    words = ["export", "deepseek-r1", "gb200-nvl72", "--to", "trtllm", "--kvp", "8", "--ep", "8", "--chunks", "1"]
    shown = CliRunner().invoke(app, [*words, "--out", str(path), "--json"])
    assert shown.exit_code == 0, shown.output
    assert json.loads(shown.stdout)["options"] == yaml.safe_load(path.read_text())
    assert "generation servers" in shown.stderr
    printed = CliRunner().invoke(app, [*words, "--checkpoint", "/models/a b"])
    assert "'/models/a b'" in printed.stdout
