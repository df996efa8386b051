"""Launch files against the options that the stacks document, and against the layout they must express."""

from __future__ import annotations

import json
import math
import re
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
from helix_sim.one_layout import LayoutError
from helix_sim.output.export import STACKS, TARGETS, Launch, export, nearest_that_starts
from helix_sim.search.frame import decode_step
from helix_sim.search.layout_source import Options
from helix_sim.specs.load import load_machine, load_model
from helix_sim.specs.precision import Precision, narrowest_precision
from helix_sim.stacks.stack import Option, load_stack
from helix_sim.step import Step

NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*=")


def valid(value: Any, option: Option) -> bool:
    """Whether a value is what an option takes."""
    if option.takes == "count":
        return isinstance(value, int) and not isinstance(value, bool) and value >= 1
    if option.takes in ("flag", "yes or no"):
        return isinstance(value, bool)
    if option.takes == "share":
        return isinstance(value, float) and 0 < value < 1
    return isinstance(value, str) and (option.one_of is None or value in option.one_of)


def flat(content: dict[str, Any], before: str = "") -> dict[str, Any]:
    """Nested options by their names with dots."""
    found: dict[str, Any] = {}
    for name, value in content.items():
        found |= flat(value, f"{before}{name}.") if isinstance(value, dict) else {before + name: value}
    return found


def parsed(written: Launch) -> dict[str, Any]:
    """The options in a launch file, each checked against what the stack documents, with numbers as numbers."""
    documented = load_stack(written.stack).options
    if written.stack == "trtllm":
        content = yaml.safe_load(written.text)
        for name, value in flat(content).items():
            assert valid(value, documented[name]), name
        return dict(content)
    words = shlex.split(written.text.replace("\\\n", " "), comments=True)
    while NAME.match(words[0]):
        words.pop(0)
    start = words.index("--model-path") if written.stack == "sglang" else 3
    found: dict[str, Any] = {}
    while start < len(words):
        name = words[start]
        if documented[name].takes == "flag":
            found[name], start = True, start + 1
            continue
        text = words[start + 1]
        if "${" not in text:  # what each node's shell fills in
            is_share = documented[name].takes == "share"
            found[name] = float(text) if is_share else int(text) if text.isdecimal() else text
            assert valid(found[name], documented[name]), name
        start += 2
    return found


def step_of(
    model: str, *, machine: str = "gb200-nvl72", context: int = 100_000, formats: Any = None, **widths: int
) -> Step:
    formats = formats or Precision(weights="nvfp4", kv="fp8", math="fp4")
    widths.setdefault("tpf", widths.get("dp", 1) * widths.get("tpa", 1) * widths.get("kvp", 1) // widths.get("ep", 1))
    return decode_step(load_model(model), load_machine(machine), Layout(**widths), context, precision=formats)


H100 = Precision(weights="fp8-block", kv="fp8", math="fp8")


def gpus(stack: str, options: dict[str, Any]) -> int:
    """GPUs that a stack starts with these options."""
    names = {
        "trtllm": ("tensor_parallel_size", "pipeline_parallel_size", "context_parallel_size"),
        "vllm": ("--tensor-parallel-size", "--pipeline-parallel-size", "--data-parallel-size"),
        "sglang": ("--tp-size", "--pp-size"),
    }[stack]
    return math.prod(options.get(name, 1) for name in names)


@given(
    model=st.sampled_from(["deepseek-r1", "llama-3.1-70b", "qwen3-235b-a22b"]),
    stack=st.sampled_from(list(STACKS)),
    widths=st.fixed_dictionaries({axis: st.sampled_from([1, 2, 4, 8]) for axis in ("tpa", "kvp", "dp", "ep", "pp")}),
    batch=st.integers(1, 16),
)
@settings(max_examples=150, deadline=None)
def test_what_is_written_is_documented_and_starts_as_many_gpus_and_users_as_the_layout(
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
    assert options["cache_transceiver_config"] == {"backend": "DEFAULT"}


def test_the_same_layout_reaches_vllm_and_sglang_in_their_own_words() -> None:
    step = step_of("deepseek-r1", kvp=8, ep=8, batch=4)
    vllm, sglang = parsed(export(step, to="vllm")), parsed(export(step, to="sglang", checkpoint="a/b"))
    assert vllm["--tensor-parallel-size"] == vllm["--decode-context-parallel-size"] == 8
    assert vllm["--dcp-comm-backend"] == "a2a"
    assert vllm["--dcp-q-replicate"]
    assert vllm["--attention-backend"] == "FLASHINFER_MLA"
    assert vllm["--enable-expert-parallel"]
    assert sglang["--tp-size"] == sglang["--dcp-size"] == sglang["--ep-size"] == 8
    assert sglang["--dcp-comm-backend"] == "fi_a2a"
    assert sglang["--model-path"] == "a/b"


def test_states_beside_latents_launch_with_the_blocks_and_back_ends_that_they_need() -> None:
    step = step_of("kimi-k3", kvp=32, ep=32, batch=4)
    trtllm = parsed(export(step, to="trtllm"))
    assert trtllm["cp_config"]["tokens_per_block"] == trtllm["kv_cache_config"]["tokens_per_block"] == 64
    assert trtllm["cache_transceiver_config"] == {"backend": "NIXL"}
    assert parsed(export(step, to="sglang"))["--attention-backend"] == "cutedsl_mla"
    assert parsed(export(step, to="vllm"))["--attention-backend"] == "FLASHINFER_MLA"


def test_experts_on_amds_machines_are_reached_by_mori() -> None:
    step = step_of("deepseek-r1", machine="mi355x", formats=H100, dp=16, ep=16, batch=4)
    assert parsed(export(step, to="vllm"))["--all2all-backend"] == "mori_low_latency"
    assert parsed(export(step, to="sglang"))["--moe-a2a-backend"] == "mori"
    with pytest.raises(SpecError, match="runs on NVIDIA's GPUs, and mi355x is AMD's"):
        export(step, to="trtllm")


def test_an_index_cache_is_exported_as_the_stack_lays_it_out() -> None:
    sharded = step_of("deepseek-v3.2", kvp=8, ep=8, batch=4, index_kvp=8)
    assert parsed(export(sharded, to="vllm"))["--attention-backend"] == "FLASHINFER_MLA_SPARSE"
    with pytest.raises(SpecError, match="every rank holds the whole index cache"):
        export(sharded, to="sglang")
    copied = export(step_of("deepseek-v3.2", kvp=8, ep=8, batch=4), to="sglang")
    assert parsed(copied)["--attention-backend"] == "dsa"
    assert "without prefill-decode disaggregation" in copied.text
    with pytest.raises(SpecError, match="kvp 8 needs index_kvp 8, not 1"):
        export(step_of("deepseek-v3.2", kvp=8, ep=8, batch=4), to="vllm")


# --- What the TTL depends on -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("stack", "machine", "option", "value"),
    [
        ("sglang", "gb200-nvl72", "--moe-a2a-backend", "flashinfer"),
        ("sglang", "h100-hgx", "--moe-a2a-backend", "deepep"),
        ("vllm", "gb200-nvl72", "--all2all-backend", "flashinfer_nvlink_one_sided"),
        ("vllm", "h100-hgx", "--all2all-backend", "deepep_low_latency"),
        ("trtllm", "gb200-nvl72", "moe_config", {"backend": "WIDEEP", "load_balancer": {"num_slots": 288}}),
    ],
)
def test_wide_expert_parallelism_says_its_dispatch_and_its_copies(
    stack: str, machine: str, option: str, value: Any
) -> None:
    formats = H100 if machine == "h100-hgx" else None
    step = step_of("deepseek-r1", machine=machine, formats=formats, context=2050, batch=64, dp=72, ep=72)
    written = export(step, to=stack)
    assert parsed(written)[option] == value
    copies = {"sglang": "--ep-num-redundant-experts", "vllm": "--eplb-config", "trtllm": "moe_config"}[stack]
    assert "32" in str(written.options[copies]) or "288" in str(written.options[copies])
    if stack == "trtllm":
        assert written.environment["TRTLLM_FORCE_ALLTOALL_METHOD"] == "NVLinkTwoSided"


@pytest.mark.parametrize(
    ("stack", "option", "backend"),
    [("sglang", "--moe-a2a-backend", "deepep"), ("vllm", "--all2all-backend", "deepep_low_latency")],
)
def test_tokens_are_gathered_inside_a_board_as_the_timing_has_it(stack: str, option: str, backend: str) -> None:
    sizes: dict[str, Any] = {"machine": "h200-hgx", "batch": 4, "formats": H100}
    board, two = (step_of("deepseek-r1", dp=n, ep=n, **sizes) for n in (8, 16))
    assert option not in export(board, to=stack).options
    assert export(two, to=stack).options[option] == backend
    in_turns = step_of("deepseek-r1", dp=8, ep=8, microbatches=2, **sizes)
    assert export(in_turns, to=stack).options[option] == backend, "microbatches take turns where tokens are sent"


def test_tensor_parallel_experts_dispatch_nothing() -> None:
    step = step_of("deepseek-r1", tpa=8, ep=8, batch=4)
    assert "--all2all-backend" not in export(step, to="vllm").options
    assert "--moe-a2a-backend" not in export(step, to="sglang").options
    assert export(step, to="trtllm").options["moe_config"] == {"backend": "AUTO"}


def test_flags_follow_whether_a_layout_repeats_or_gathers_its_queries() -> None:
    bf16 = Precision(weights="nvfp4", kv="fp8", math="fp4", attention_weights="bf16")
    flags = {"vllm": "--dcp-q-replicate", "sglang": "--dcp-replicate-q-proj"}
    for shards in (1, 8):
        step = step_of("deepseek-r1", kvp=8, ep=8, batch=4, q_shards=shards, formats=bf16)
        for stack, flag in flags.items():
            written = export(step, to=stack)
            assert (flag in written.options) == (shards == 1)
            assert not any("queries are gathered" in remark for remark in written.remarks)


def test_sglang_repeats_query_projections_of_16_bits_alone_and_says_so() -> None:
    bf16 = Precision(weights="nvfp4", kv="fp8", math="fp4", attention_weights="bf16")
    plain = export(step_of("deepseek-r1", kvp=8, ep=8, batch=4, formats=bf16), to="sglang")
    quantised = export(step_of("deepseek-r1", kvp=8, ep=8, batch=4), to="sglang")
    assert plain.options["--dcp-replicate-q-proj"]
    assert "--dcp-replicate-q-proj" not in quantised.options
    assert any("falls back" in remark for remark in quantised.remarks)


@pytest.mark.parametrize("stack", STACKS)
def test_a_context_above_the_models_limit_carries_the_stacks_override(stack: str) -> None:
    limit = 131_072
    for tokens, above in ((limit, False), (limit + 1, True)):
        written = export(step_of("llama-3.1-405b", tpa=8, context=tokens, batch=1), to=stack)
        name = load_stack(stack).context_override.env
        assert (written.environment.get(name) == "1") == above
        assert (f"{name}=1" in written.text) == above
        assert any("131,072" in remark for remark in written.remarks) == above


def test_memory_fractions_leave_what_the_layout_leaves() -> None:
    step = step_of("deepseek-r1", tpa=8, ep=8, batch=4)
    memory = step.memory
    share = export(step, to="vllm").options["--gpu-memory-utilization"]
    assert share == pytest.approx(float(memory.fillable) / memory.capacity, abs=1e-3)
    static = export(step, to="sglang").options["--mem-fraction-static"]
    assert static <= share
    free = export(step, to="trtllm").options["kv_cache_config"]["free_gpu_memory_fraction"]
    room = free * (memory.capacity - float(memory.weights))
    assert room == pytest.approx(float(memory.kv_room_bytes), rel=2e-3)
    assert float(memory.kv_cache) <= room


def test_several_nodes_are_said() -> None:
    few, many = step_of("llama-3.1-8b", tpa=4, batch=1), step_of("llama-3.1-8b", tpa=8, batch=1)
    for stack, option in (("vllm", "--nnodes"), ("sglang", "--nnodes")):
        assert option not in export(few, to=stack).options
        assert export(many, to=stack).options[option] == 2
        assert "NODE_RANK" in export(many, to=stack).text
    assert "srun -N 2" in export(many, to="trtllm").text
    assert export(step_of("deepseek-r1", dp=8, ep=8, batch=2), to="vllm").options["--data-parallel-size-local"] == 4


def test_a_checkpoint_in_other_formats_than_the_published_is_a_placeholder_that_says_so() -> None:
    quantised, plain = (
        step_of("llama-3.1-8b", batch=1),
        step_of("llama-3.1-8b", batch=1, formats=Precision(weights="bf16", kv="bf16", math="bf16")),
    )
    assert "NVFP4-CHECKPOINT-OF-meta-llama/Llama-3.1-8B" in export(quantised, to="vllm").text
    assert any("--checkpoint" in remark for remark in export(quantised, to="vllm").remarks)
    assert "vllm serve meta-llama/Llama-3.1-8B" in export(plain, to="vllm").text
    assert not any("--checkpoint" in remark for remark in export(plain, to="vllm").remarks)


def test_a_step_that_verifies_drafts_is_not_exported_without_a_draft_model() -> None:
    step = decode_step(
        load_model("llama-3.1-8b"), load_machine("gb200-nvl72"), Layout(batch=2), 10_000,
        precision=Precision(weights="nvfp4", kv="fp8", math="fp4"),
    )  # fmt: skip
    from helix_sim.one_layout import checked_step

    verifying = checked_step(step.setting, step.layout, 10_000, 4)
    with pytest.raises(SpecError, match="draft"):
        export(verifying, to="vllm")


def test_hop_b_is_said_and_the_file_carries_the_time_without_it() -> None:
    step = step_of("llama-3.1-405b", tpa=8, kvp=8, batch=16, chunks=4, context=10**6)
    plain = step_of("llama-3.1-405b", tpa=8, kvp=8, batch=16, context=10**6)
    for stack in STACKS:
        written = export(step, to=stack)
        assert any("HOP-B" in remark for remark in written.remarks)
        assert "HOP-B" in written.text
        assert float(written.runs.ttl_s) == pytest.approx(float(plain.ttl_s), rel=1e-12)
        assert f"TTL {float(plain.ttl_s) * 1e3:.3f} ms as this stack runs it" in written.text


# --- Refusals --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("model", "widths", "stacks", "why"),
    [
        pytest.param("llama-3.1-405b", {"tpa": 8, "kvp": 4, "tpf": 8}, "trtllm vllm sglang", "FFN spans", id="medha"),
        pytest.param("llama-3.1-405b", {"tpa": 4, "kvp": 4}, "vllm sglang", "tpa 8", id="fewer ranks than KV heads"),
        pytest.param("deepseek-r1", {"kvp": 16, "ep": 4, "tpf": 4}, "vllm", "expert parallelism", id="expert grid"),
        pytest.param("llama-3.1-405b", {"tpa": 8, "dp": 2}, "trtllm vllm sglang", "dense", id="pooled FFN"),
        pytest.param("deepseek-r1", {"tpa": 2, "dp": 8, "ep": 16}, "trtllm", "not both", id="DP and TP attention"),
    ],
)
def test_what_a_stack_does_not_start_is_refused_with_the_reason(
    model: str, widths: dict[str, int], stacks: str, why: str
) -> None:
    step = step_of(model, batch=2, **widths)
    for stack in STACKS:
        if stack in stacks.split():
            with pytest.raises(SpecError, match=why):
                export(step, to=stack)
        else:
            assert parsed(export(step, to=stack))


def test_a_refusal_names_the_nearest_layout_that_starts_and_its_cost() -> None:
    step = step_of("deepseek-r1", kvp=64, context=10**6, batch=8)
    near = nearest_that_starts(step, "trtllm")
    assert near is not None
    assert (near.layout.tpf, near.layout.ep, near.layout.kvp) == (32, 2, 64)
    cost = float(near.ttl_s / step.ttl_s) - 1
    with pytest.raises(SpecError) as caught:
        export(step, to="trtllm")
    assert caught.value.problems[-1] == f"the nearest layout that trtllm starts: tpf 32, ep 2: {cost:+.1%} TTL"
    assert parsed(export(near, to="trtllm"))


@given(widths=st.fixed_dictionaries({axis: st.integers(1, 6) for axis in ("tpa", "kvp", "dp")}),
       stack=st.sampled_from(STACKS))  # fmt: skip
@settings(max_examples=15, deadline=None)
def test_the_nearest_layout_is_taken_and_serves_as_many_users(widths: dict[str, int], stack: str) -> None:
    try:
        step = step_of("qwen3-235b-a22b", batch=2, **widths)
    except LayoutError:
        return
    near = nearest_that_starts(step, stack)
    if near is not None:
        assert near.layout.users >= step.layout.users
        assert parsed(export(near, to=stack))


def test_four_bit_formats_of_the_paper_become_those_that_stacks_store() -> None:
    model, machine = load_model("deepseek-r1"), load_machine("gb200-nvl72")
    step = decode_step(model, machine, Layout(batch=4, kvp=8, ep=8), 10**6, precision=narrowest_precision(machine))
    assert (step.precision.weights, step.precision.kv) == ("fp4", "fp4")
    written = export(step, to="trtllm")
    assert (written.runs.precision.weights, written.runs.precision.kv) == ("nvfp4", "nvfp4")
    assert parsed(written)["kv_cache_config"]["dtype"] == "nvfp4"
    assert sum("nvfp4" in remark for remark in written.remarks) >= 2
    assert export(step, to="vllm").runs.precision.kv == "fp8", "no MLA back end of vLLM has an FP4 cache"


def test_a_layout_that_fits_only_in_a_format_the_stack_lacks_is_refused() -> None:
    model, machine = load_model("llama-3.1-405b"), load_machine("gb200-nvl72")
    formats = Precision(weights="nvfp4", kv="fp4", math="fp4")
    step = decode_step(model, machine, Layout(batch=9, tpa=8, tpf=8), 10**6, precision=formats)
    with pytest.raises(SpecError, match="GB"):
        export(step, to="vllm")


# --- Deployments -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("stack", STACKS)
def test_a_dynamo_deployment_starts_the_options_of_the_stack(stack: str) -> None:
    step = step_of("deepseek-r1", dp=16, ep=16, batch=4)
    alone, written = export(step, to=stack), export(step, to="dynamo", stack=stack)
    documents = list(yaml.safe_load_all(written.text))
    graph = documents[-1]
    assert (graph["apiVersion"], graph["kind"]) == ("nvidia.com/v1beta1", "DynamoGraphDeployment")
    assert graph["spec"]["backendFramework"] == stack
    worker = graph["spec"]["components"][1]
    assert worker["multinode"]["nodeCount"] * 4 == 16
    container = worker["podTemplate"]["spec"]["containers"][0]
    assert container["command"] == ["python3", "-m", f"dynamo.{stack}"]
    assert container["resources"]["limits"] == {"nvidia.com/gpu": "4"}
    assert {each["name"] for each in container["env"]} == set(alone.environment)
    if stack == "trtllm":
        assert yaml.safe_load(documents[0]["data"]["engine.yaml"]) == alone.options
    else:
        replaced = load_stack(stack).dynamo.instead
        for name, value in alone.options.items():
            if name not in replaced:
                place = container["args"].index(name)
                assert value is True or container["args"][place + 1] == str(value)


@pytest.mark.parametrize("stack", STACKS)
def test_an_srt_slurm_recipe_starts_the_options_of_the_stack(stack: str) -> None:
    step = step_of("deepseek-r1", dp=16, ep=16, batch=4)
    alone, written = export(step, to=stack), export(step, to="srt-slurm", stack=stack)
    recipe = yaml.safe_load(written.text)
    assert {"name", "model", "resources", "backend"} <= set(recipe)
    assert recipe["resources"]["agg_nodes"] * recipe["resources"]["gpus_per_node"] == 16
    assert recipe["backend"]["type"] == stack
    owned = load_stack(stack).srt_slurm.owned
    said = recipe["backend"][f"{stack}_config"]["aggregated"]
    assert said == {name.removeprefix("--"): v for name, v in alone.options.items() if name not in owned}


def test_a_deployment_takes_the_first_stack_that_starts_the_layout() -> None:
    step = step_of("deepseek-r1", dp=8, tpa=2, ep=16, batch=2)  # TensorRT-LLM has no attention of both kinds
    assert export(step, to="dynamo").stack == "vllm"


def test_a_target_or_a_stack_that_is_none_is_refused() -> None:
    step = step_of("llama-3.1-8b", batch=1)
    with pytest.raises(SpecError, match=", ".join(TARGETS)):
        export(step, to="llamacpp")
    with pytest.raises(SpecError, match="trtllm, vllm, sglang"):
        export(step, to="dynamo", stack="llamacpp")
    with pytest.raises(SpecError, match="leave it out"):
        export(step, to="vllm", stack="sglang")


def test_the_command_writes_the_file_and_says_what_differs(tmp_path: Path) -> None:
    path = tmp_path / "launch.yaml"
    words = ["export", "deepseek-r1", "gb200-nvl72", "--to", "trtllm", "--kvp", "8", "--ep", "8", "--chunks", "1"]
    shown = CliRunner().invoke(app, [*words, "--out", str(path), "--json"])
    assert shown.exit_code == 0, shown.output
    assert json.loads(shown.stdout)["options"] == yaml.safe_load(path.read_text())
    assert "generation servers" in shown.stderr
    printed = CliRunner().invoke(app, [*words, "--checkpoint", "/models/a b"])
    assert "'/models/a b'" in printed.stdout


DRAFTING = {"draft": "deepseek-r1-mtp", "named_formats": "nvfp4", "context": 100_000}


@pytest.mark.parametrize(
    ("to", "said"),
    [
        ("trtllm", ["decoding_type: MTP", "num_nextn_predict_layers: 3"]),
        ("vllm", ["--speculative-config", '"method": "mtp"', '"num_speculative_tokens": 3']),
        ("sglang", ["--speculative-algorithm EAGLE", "--speculative-num-steps 3", "--speculative-num-draft-tokens 4"]),
    ],
)
def test_drafts_are_said_in_each_stacks_words(to, said):
    widths = {"tpa": 8, "ep": 8, "batch": 4, "draft_tokens": 3}
    found = export("deepseek-r1", "gb200-nvl72", Options(widths=widths, **DRAFTING), to=to)
    for words in said:
        assert words in found.text
    assert float(found.runs.accepted_tokens) > 1


@pytest.mark.parametrize(
    ("to", "said"),
    [
        ("trtllm", ["decoding_type: DSpark", "max_draft_len: 7", "speculative_model_dir: Inferact/Kimi-K3-DSpark"]),
        ("vllm", ['"method": "dspark"', '"model": "Inferact/Kimi-K3-DSpark"', '"num_speculative_tokens": 7']),
        ("sglang", ["--speculative-algorithm DSPARK", "--speculative-dspark-block-size 7", "Inferact/Kimi-K3-DSpark"]),
    ],
)
def test_a_block_of_drafts_is_said_in_each_stacks_words(to, said):
    widths = {"tpa": 8, "ep": 8, "batch": 4, "draft_tokens": 7}
    options = Options(widths=widths, draft="kimi-k3-dspark", context=100_000)
    text = export("kimi-k3", "gb300-nvl72", options, to=to).text
    assert all(words in text for words in said), text
    assert "num-steps" not in text


@pytest.mark.parametrize("to", ["trtllm", "sglang"])
def test_drafts_under_kv_parallelism_are_refused_where_the_stack_cannot_verify_them(to):
    widths = {"tpa": 1, "kvp": 8, "ep": 8, "batch": 4, "draft_tokens": 3}
    with pytest.raises(SpecError, match=f"{to} cannot run this layout: draft_tokens = 3 with kvp 8"):
        export("deepseek-r1", "gb200-nvl72", Options(widths=widths, **DRAFTING), to=to)
