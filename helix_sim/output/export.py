"""Launch configurations of a layout: TensorRT-LLM (YAML), vLLM and SGLang (command line).

Each stack is a function from a layout to its options, with what the stack runs differently (a comment in the file) and
what it cannot run at all (a refusal). Nothing of a layout is dropped in silence: the file carries the TTL of what the
stack will run, recomputed where that differs from what was asked.

Options are those documented in 2026: TensorRT-LLM's docs/source/features/helix.md and llm_args, vLLM's
docs/serving/context_parallel_deployment.md and its ParallelConfig, SGLang's pages on DCP and on server arguments.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import yaml

from helix_sim import __version__
from helix_sim.core.errors import SpecError
from helix_sim.core.escape import comment, shell_word
from helix_sim.core.text import said
from helix_sim.core.units import FORMAT_BITS, format_size
from helix_sim.feasibility import memory_reason, sentences
from helix_sim.search.layout_source import Options, Picked, pick
from helix_sim.step import Step, evaluate_step

TRTLLM_BLOCK_TOKENS = 32
"""Tokens per KV block in TensorRT-LLM's Helix; the cache is dealt to its ranks in such blocks."""

GPUS_OF_A_HOST = 4
"""Fewest GPUs of a host (a GB200 tray); more of them may need a launcher over several hosts."""


@dataclass(slots=True, kw_only=True)
class Draft:
    """A launch being written: options by name, sentences on what differs, and what makes it impossible."""

    options: dict[str, Any] = field(default_factory=dict)
    remarks: list[str] = field(default_factory=list)
    refusals: list[str] = field(default_factory=list)


@dataclass(frozen=True, slots=True, kw_only=True)
class Launch:
    """A launch configuration: the text of the file, its options, and the step that the stack will run.

    runs: the step of what the stack runs, without HOP-B and in the number formats that it has.
    """

    stack: str
    text: str
    options: dict[str, Any]
    remarks: list[str]
    runs: Step

    def record(self) -> dict[str, Any]:
        """The launch as plain data."""
        return {
            "stack": self.stack,
            "options": self.options,
            "remarks": self.remarks,
            "ttl_s": float(self.runs.ttl_s),
            "text": self.text,
        }


def export(
    layout: Step | Picked | str | Path,
    machine: str | None = None,
    options: Options | None = None,
    *,
    to: str,
    checkpoint: str | None = None,
) -> Launch:
    """The launch configuration of a layout for a serving stack; SpecError with all that the stack cannot express.

    layout, machine, options: as `helix_sim.search.layout_source.pick` takes them. to: trtllm, vllm or sglang.
    checkpoint: the path or Hugging Face name of the weights; from the model's source unless given.
    """
    if to not in STACKS:
        raise SpecError([f"--to: {said(to)} is not one of {', '.join(STACKS)}"])
    return launch(pick(layout, machine, options), to, checkpoint)


def launch(picked: Picked, stack: str, checkpoint: str | None = None) -> Launch:
    """The launch configuration of a layout that was picked, for one of the STACKS."""
    to, step, longest = STACKS[stack], picked.step, picked.longest_context
    draft = Draft()
    runs = _as_run(step, to, draft)
    to.write(runs, longest, to.kv_formats[runs.precision.kv], draft)
    if longest != step.context:
        room = f"memory holds {step.layout.batch} requests of a batch's mean, {_size(step.context)} tokens"
        draft.remarks.append(f"requests of up to {_size(longest)} tokens are mixed: {room}, not of the longest")
    if draft.refusals:
        raise SpecError([f"{stack} cannot run this layout: {refusal}" for refusal in draft.refusals])
    if runs.layout.gpus > GPUS_OF_A_HOST:
        draft.remarks.append(f"{runs.layout.gpus} GPUs: where they span hosts, add the stack's options for that")
    text = to.text(draft.options, checkpoint or checkpoint_name(step))
    head = "".join(f"{comment(line)}\n" for line in _head(picked, runs, to, draft.remarks))
    return Launch(stack=stack, text=head + text, options=draft.options, remarks=draft.remarks, runs=runs)


def checkpoint_name(step: Step) -> str:
    """The Hugging Face name in the model's source, or the model's own name."""
    match = re.match(r"https://huggingface\.co/([\w.-]+/[\w.-]+)", step.model.source)
    return match[1] if match else step.model.name


def _head(picked: Picked, runs: Step, to: Stack, remarks: list[str]) -> list[str]:
    """The comment on top: what was asked, what it takes, what runs differently."""
    step = picked.step
    tokens = f"{_size(step.context)} tokens{'' if picked.longest_context == step.context else ' on average'}"
    lines = [
        f"{to.title} launch of {step.model.name} on {step.machine.name}, written by helix_sim {__version__}",
        f"layout: {step.layout}: {step.layout.gpus} GPUs, {step.layout.users} users at {tokens}",
        f"TTL {_ms(step)} as asked (timing {step.timing.name})",
    ]
    if remarks and _ms(runs) != _ms(step):
        lines.append(f"TTL {_ms(runs)} as this stack runs it, with what follows")
    return [*lines, *(f"- {remark}" for remark in remarks)]


def _size(context: Any) -> str:
    return format_size(int(context))


def _ms(step: Step) -> str:
    return f"{float(step.ttl_s) * 1e3:.3f} ms"


# --- What the stacks run ---------------------------------------------------------------------------------------------


def _as_run(step: Step, to: Stack, draft: Draft) -> Step:
    """The step as the stack runs it: no HOP-B, formats that it has; a remark on each change, or a refusal."""
    x, precision = step.layout, step.precision
    if x.ffn_group != x.dp * x.attention_group:
        draft.refusals.append(
            f"its FFN spans {x.ffn_group} of a stage's {x.dp * x.attention_group} GPUs (tpf·ep against dp·tpa·kvp), "
            "and no option leaves GPUs idle"
        )
    if x.chunks > 1:
        draft.remarks.append(f"HOP-B ({x.chunks} chunks) is not in {to.title}: attention and exchange take turns")
    changes: dict[str, str] = {}
    for tensor in ("weights", "attention_weights", "head_weights"):
        if getattr(precision, tensor) == "fp4":
            changes[tensor] = "nvfp4"
    if changes:
        draft.remarks.append("4-bit weights are stored as nvfp4, 4.5 bits with block scales, not as fp4's 4.0")
    kv = min((f for f in to.kv_formats if FORMAT_BITS[f] >= FORMAT_BITS[precision.kv]), key=FORMAT_BITS.__getitem__,
             default="bf16")  # fmt: skip
    if kv != precision.kv:
        draft.remarks.append(f"{to.title} has no {precision.kv} KV cache; {kv} is written")
    if precision.wire != "bf16" or precision.dispatch not in (None, "bf16"):
        draft.remarks.append("number formats on the links have no option here; BF16 is assumed")
    draft.remarks.append(f"the checkpoint must be stored in {changes.get('weights', precision.weights)}")
    formats = precision.model_copy(update={**changes, "kv": kv, "wire": "bf16", "dispatch": None})
    runs = evaluate_step(replace(step.setting, precision=formats), replace(x, chunks=1), step.context)
    flags = int(memory_reason(runs.memory))
    draft.refusals += (
        sentences(flags, step.model, step.machine, runs.layout, int(step.context), runs.memory) if flags else []
    )
    return runs


def _trtllm(step: Step, tokens: int, kv: str, draft: Draft) -> None:
    x, moe = step.layout, bool(step.model.routed_kinds)
    if x.dp > 1 and x.tpa > 1:
        draft.refusals.append(f"attention is data-parallel or tensor-parallel, not both: dp {x.dp}, tpa {x.tpa}")
    if x.dp > 1 and not moe:
        draft.refusals.append("under attention DP a dense FFN is not sharded over the groups")
    draft.options |= {
        "backend": "pytorch",
        "tensor_parallel_size": x.tpa * x.dp,
        "pipeline_parallel_size": x.pp,
    }
    if x.kvp > 1:
        draft.options |= {
            "context_parallel_size": x.kvp,
            "cp_config": {
                "cp_type": "HELIX",
                "tokens_per_block": TRTLLM_BLOCK_TOKENS,
                "use_nccl_for_alltoall": False,
            },
        }
        draft.remarks.append(
            "Helix runs on the generation servers of a disaggregated deployment; prefill needs its own"
        )
        if "fp4" not in step.machine.math_formats:
            draft.remarks.append("Helix is documented for Blackwell GPUs")
    if moe:
        draft.options |= {"moe_tensor_parallel_size": x.tpf, "moe_expert_parallel_size": x.ep}
    if x.dp > 1:
        draft.options["enable_attention_dp"] = True
    blocks = {"tokens_per_block": TRTLLM_BLOCK_TOKENS} if x.kvp > 1 else {}
    draft.options |= {
        "max_batch_size": x.batch,
        "max_seq_len": tokens,
        "kv_cache_config": {**blocks, "dtype": kv},
    }


def _vllm(step: Step, tokens: int, kv: str, draft: Draft) -> None:
    x, moe = step.layout, bool(step.model.routed_kinds)
    if x.dp > 1 and not moe:
        draft.refusals.append("data parallelism of a dense model makes copies that share no FFN")
    if moe and x.ep not in (1, x.ffn_group):
        draft.refusals.append(
            f"expert parallelism is off or over all {x.ffn_group} GPUs: ep {x.ep} x tpf {x.tpf} is neither"
        )
    _refuse_shared_heads(step, draft)
    draft.options |= {"--tensor-parallel-size": x.attention_group, "--pipeline-parallel-size": x.pp}
    if x.dp > 1:
        draft.options["--data-parallel-size"] = x.dp
    if moe and x.ep > 1:
        draft.options["--enable-expert-parallel"] = True
    if x.kvp > 1:
        draft.options |= {"--decode-context-parallel-size": x.kvp, "--dcp-comm-backend": "a2a"}
        draft.remarks.append("queries are gathered over the KV shards, where the layout repeats their projection")
    draft.options |= {
        "--max-num-seqs": x.batch * x.pp,
        "--max-model-len": tokens,
        "--kv-cache-dtype": kv,
    }


def _sglang(step: Step, tokens: int, kv: str, draft: Draft) -> None:
    x, moe = step.layout, bool(step.model.routed_kinds)
    _refuse_shared_heads(step, draft)
    draft.options |= {"--tp-size": x.dp * x.attention_group, "--pp-size": x.pp}
    if x.dp > 1:
        draft.options |= {"--dp-size": x.dp, "--enable-dp-attention": True}
        draft.remarks.append("DP attention is per model: check that this one has it")
    if moe:
        draft.options["--ep-size"] = x.ep
    if x.kvp > 1:
        draft.options |= {"--dcp-size": x.kvp, "--dcp-comm-backend": "a2a", "--dcp-replicate-q-proj": True}
        if any(a.kind == "gqa" for a in step.model.attention.values()):
            draft.remarks.append("decode context parallelism is documented for MLA; for GQA it depends on the backend")
    draft.options |= {
        "--max-running-requests": x.users,
        "--context-length": tokens,
        "--kv-cache-dtype": kv,
    }


def _refuse_shared_heads(step: Step, draft: Draft) -> None:
    """Decode context parallelism reuses TP ranks that hold the same KV heads: TP/K of them, at least KVP."""
    x, heads = step.layout, step.model.fewest_kv_heads
    if x.kvp > 1 and x.tpa < heads:
        draft.refusals.append(
            f"it shards the cache over TP ranks with the same KV heads: kvp {x.kvp} needs tpa {heads} "
            f"(the model's KV heads), not {x.tpa}"
        )


# --- Text ------------------------------------------------------------------------------------------------------------


def _yaml_text(options: dict[str, Any], checkpoint: str) -> str:
    start = f"# trtllm-serve {shell_word(checkpoint)} --extra_llm_api_options THIS_FILE\n"
    return start + yaml.safe_dump(options, sort_keys=False)


def _command(start: str, checkpoint_flag: str = "") -> Callable[[dict[str, Any], str], str]:
    """A command line, one option a line."""

    def text(options: dict[str, Any], checkpoint: str) -> str:
        words = [f"{start} {checkpoint_flag}{shell_word(checkpoint)}"]
        words += [name if value is True else f"{name} {shell_word(value)}" for name, value in options.items()]
        return " \\\n  ".join(words) + "\n"

    return text


@dataclass(frozen=True, slots=True, kw_only=True)
class Stack:
    """A serving stack: its options for a step and its longest request, its KV cache formats by its names, its file."""

    title: str
    write: Callable[[Step, int, str, Draft], None]
    kv_formats: dict[str, str]
    text: Callable[[dict[str, Any], str], str]


STACKS = {
    "trtllm": Stack(
        title="TensorRT-LLM",
        write=_trtllm,
        kv_formats={"bf16": "auto", "fp8": "fp8", "nvfp4": "nvfp4"},
        text=_yaml_text,
    ),
    "vllm": Stack(
        title="vLLM",
        write=_vllm,
        kv_formats={"bf16": "bfloat16", "fp8": "fp8", "nvfp4": "nvfp4"},
        text=_command("vllm serve"),
    ),
    "sglang": Stack(
        title="SGLang",
        write=_sglang,
        kv_formats={"bf16": "bfloat16", "fp8": "fp8_e4m3", "nvfp4": "fp4_e2m1"},
        text=_command("python3 -m sglang.launch_server", "--model-path "),
    ),
}
