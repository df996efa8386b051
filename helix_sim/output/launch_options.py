"""What a layout's launch says, for each serving stack: options by the stack's names, environment, remarks.

All that the modelled time of a step depends on is said: widths, expert dispatch and its back end, copies of experts,
the exchange of KV parallelism and its attention back end, repeated query projections, formats, how much of a GPU's
memory is used, the longest request. Which values an option takes is in the stack's YAML file.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from helix_sim.core.numeric import ceil_div
from helix_sim.specs.attention import LatentAttention, LinearAttention
from helix_sim.stacks.rules import Placed, longest_context
from helix_sim.stacks.stack import Stack
from helix_sim.step import Step


@dataclass(slots=True, kw_only=True)
class Draft:
    """A launch being written: options by name, environment variables, sentences on what differs from the layout.

    of_node: options whose value is known on each node alone, as text for its shell.
    """

    options: dict[str, Any] = field(default_factory=dict)
    environment: dict[str, str] = field(default_factory=dict)
    of_node: dict[str, str] = field(default_factory=dict)
    remarks: list[str] = field(default_factory=list)


@dataclass(frozen=True, slots=True, kw_only=True)
class Launched:
    """A step that a stack runs, and what its options depend on.

    tokens: the longest request's. placed: the layout as the stack places it.
    """

    step: Step
    tokens: int
    placed: Placed

    @property
    def stack(self) -> Stack:
        """The stack that runs the step."""
        return self.placed.stack

    @property
    def nodes(self) -> int:
        """Trays or nodes that the layout spans, at least 1."""
        return int(ceil_div(self.step.layout.gpus, self.gpus_of_node))

    @property
    def gpus_of_node(self) -> int:
        """GPUs of the layout on one tray or node."""
        tray = self.step.machine.tray_gpus
        gpus = int(self.step.layout.gpus)
        return min(tray.value, gpus) if tray else gpus

    @property
    def blackwell(self) -> bool:
        """Whether the machine has FP4 arithmetic."""
        return "fp4" in self.step.machine.math_formats

    @property
    def mla(self) -> bool:
        """Whether every kind of attention that has a cache caches a latent (MLA, and sparse attention over it)."""
        caching = [a for a in self.step.model.attention.values() if not isinstance(a, LinearAttention)]
        return all(isinstance(a, LatentAttention) for a in caching)

    @property
    def dispatched(self) -> bool:
        """Whether tokens are sent to their experts."""
        return bool(self.step.model.routed_kinds) and bool(self.placed.dispatched)

    @property
    def gathers(self) -> bool:
        """Whether the stack gathers all tokens in place of sending them: a stage of one board that is the domain.

        Not for microbatches, which take turns where tokens are sent alone.
        """
        machine, x = self.step.machine, self.step.layout
        board = machine.tray_gpus is not None and machine.tray_gpus.value == machine.domain
        gathers = not self.stack.dispatch.on_board and x.microbatches == 1
        return gathers and board and int(x.dp * x.attention_group) <= machine.domain

    @property
    def dispatch(self) -> str:
        """The stack's back end of dispatch and combine on this machine; microbatches take turns on DeepEP's alone."""
        if self.step.machine.maker == "amd" and self.stack.dispatch.amd:
            return self.stack.dispatch.amd
        reach = self.step.machine.domain > self.gpus_of_node and self.step.layout.microbatches == 1
        return self.stack.dispatch.one_domain if reach else self.stack.dispatch.several

    @property
    def copies(self) -> int:
        """Copies of experts: the layout's, or as many as fill every rank alike."""
        x = self.step.layout
        if x.redundant_experts:
            return int(x.redundant_experts)
        most = max((f.routed for f in self.step.model.routed_kinds.values()), default=0)
        return int(ceil_div(most, x.ep) * x.ep - most) if x.ep > 1 else 0

    @property
    def attention_backend(self) -> str:
        """The attention back end that KV parallelism needs."""
        kvp = self.placed.kvp
        assert kvp
        assert kvp.backend
        return kvp.backend.blackwell if self.blackwell else kvp.backend.other

    @property
    def block_tokens(self) -> int | None:
        """Tokens of a KV block, where KV parallelism fixes them."""
        return self.placed.kvp.block_tokens if self.placed.kvp else None

    @property
    def transceiver(self) -> str:
        """What carries caches and states from prefill servers, under KV parallelism."""
        return (self.placed.kvp and self.placed.kvp.transceiver) or "DEFAULT"

    def share(self, part: float, whole: float) -> float:
        """A share of memory, rounded down to a thousandth."""
        return math.floor(1000 * min(part / whole, 0.99)) / 1000


def written(launched: Launched) -> Draft:
    """The options, environment and remarks of a launch."""
    draft = Draft()
    WRITERS[launched.stack.name](launched, draft)
    kvp = launched.placed.kvp
    if launched.step.layout.kvp > 1 and kvp and kvp.remark:
        draft.remarks.append(kvp.remark)
    override = launched.stack.context_override
    if longest_context(launched.step.model, launched.tokens):
        limit = launched.step.model.max_position_embeddings
        draft.environment[override.env] = override.value
        draft.remarks.append(
            f"{launched.tokens:,} tokens are more than the {limit:,} of the model's config: without {override.env} "
            f"{launched.stack.title} {override.otherwise}; answers beyond it are the model's own affair (RoPE scaling)"
        )
    return draft


GATHERED = "queries are gathered over the KV shards, where the layout repeats their projection (q_shards 1)"
"""Where a stack does not do as the layout says."""


def _trtllm(launched: Launched, draft: Draft) -> None:
    step, x = launched.step, launched.step.layout
    draft.options |= {
        "backend": "pytorch",
        "gpus_per_node": launched.gpus_of_node,
        "tensor_parallel_size": x.tpa * x.dp,
        "pipeline_parallel_size": x.pp,
    }
    if x.kvp > 1:
        draft.options |= {
            "context_parallel_size": x.kvp,
            "cp_config": {
                "cp_type": "HELIX",
                "tokens_per_block": launched.block_tokens,
                "use_nccl_for_alltoall": False,
            },
            "cache_transceiver_config": {"backend": launched.transceiver},
        }
        draft.remarks.append(
            "Helix runs on the generation servers of a disaggregated deployment; prefill needs its own"
        )
        if not launched.mla:
            draft.remarks.append("Helix is documented for MLA; the code of other attention has it too")
    if step.model.routed_kinds:
        draft.options |= {"moe_tensor_parallel_size": x.tpf, "moe_expert_parallel_size": x.ep}
        moe: dict[str, Any] = {"backend": "WIDEEP" if launched.dispatched else "AUTO"}
        if launched.dispatched:
            draft.environment["TRTLLM_FORCE_ALLTOALL_METHOD"] = launched.dispatch
            if launched.dispatch.startswith("DeepEP"):
                draft.environment["TRTLLM_CAN_USE_DEEP_EP"] = "1"
        if launched.copies:
            experts = max(f.routed for f in step.model.routed_kinds.values())
            moe["load_balancer"] = {"num_slots": experts + launched.copies}
        draft.options["moe_config"] = moe
    if x.dp > 1:
        draft.options["enable_attention_dp"] = True
    if n := _drafts(step):
        own = {"num_nextn_predict_layers": n}
        trained = {"max_draft_len": n, "speculative_model_dir": draft_checkpoint(step)}
        draft.options["speculative_config"] = {
            "decoding_type": _method(launched), **(own if _in_checkpoint(step) else trained)
        }  # fmt: skip
    free = step.memory.capacity - float(step.memory.weights)
    blocks = {"tokens_per_block": launched.block_tokens} if x.kvp > 1 else {}
    draft.options |= {
        "max_batch_size": x.batch,
        "max_num_tokens": max(8192, int(x.batch) * (1 + _drafts(step))),
        "max_seq_len": launched.tokens,
        "cuda_graph_config": {"enable_padding": True, "max_batch_size": x.batch},
        "kv_cache_config": {
            **blocks,
            "dtype": _kv(launched),
            "free_gpu_memory_fraction": launched.share(float(step.memory.kv_room_bytes), free),
        },
    }


def _vllm(launched: Launched, draft: Draft) -> None:
    step, x = launched.step, launched.step.layout
    draft.options |= {"--tensor-parallel-size": x.attention_group, "--pipeline-parallel-size": x.pp}
    if x.dp > 1:
        draft.options["--data-parallel-size"] = x.dp
    if step.model.routed_kinds and x.ep > 1:
        draft.options["--enable-expert-parallel"] = True
        if launched.dispatched and not launched.gathers:
            draft.options["--all2all-backend"] = launched.dispatch
        if x.microbatches > 1:
            draft.options |= {"--enable-dbo": True, "--dbo-decode-token-threshold": x.batch}
        if launched.copies:
            draft.options |= {
                "--enable-eplb": True,
                "--eplb-config": json.dumps({"num_redundant_experts": launched.copies}),
            }
    if x.kvp > 1:
        draft.options |= {
            "--decode-context-parallel-size": x.kvp,
            "--dcp-comm-backend": "a2a",
            "--attention-backend": launched.attention_backend,
        }
        if x.q_shards == 1 and launched.mla:
            draft.options["--dcp-q-replicate"] = True
        elif x.q_shards == 1:
            draft.remarks.append(f"{GATHERED}: its option to repeat it is for MLA")
    if n := _drafts(step):
        model = {} if _in_checkpoint(step) else {"model": draft_checkpoint(step)}
        speculative = {"method": _method(launched), **model, "num_speculative_tokens": n}
        draft.options["--speculative-config"] = json.dumps(speculative)
    memory = step.memory
    draft.options |= {
        "--max-num-seqs": x.batch * x.pp,
        "--max-model-len": launched.tokens,
        "--kv-cache-dtype": _kv(launched),
        "--gpu-memory-utilization": launched.share(float(memory.fillable), memory.capacity),
    }
    if launched.nodes > 1:
        local = launched.gpus_of_node // (x.attention_group * x.pp)
        if x.dp > 1 and local:
            draft.options["--data-parallel-size-local"] = local
            draft.of_node |= {
                "--data-parallel-start-rank": f'"$(( {local} * ${{NODE_RANK:?the number of this node}} ))"',
                "--data-parallel-address": '"${HEAD_ADDRESS:?the address of node 0}"',
            }
            draft.remarks.append(f"start it on each of {launched.nodes} nodes, with --headless on all but node 0")
        else:
            draft.options["--nnodes"] = launched.nodes
            draft.of_node |= {
                "--node-rank": '"${NODE_RANK:?the number of this node}"',
                "--master-addr": '"${HEAD_ADDRESS:?the address of node 0}"',
            }
            draft.remarks.append(f"start it on each of {launched.nodes} nodes, with --headless on all but node 0")


def _sglang(launched: Launched, draft: Draft) -> None:
    step, x = launched.step, launched.step.layout
    draft.options |= {"--tp-size": x.dp * x.attention_group, "--pp-size": x.pp}
    if x.dp > 1:
        draft.options["--attn-dp-size"] = x.dp
        if x.attention_group == 1 and launched.placed.dense:
            draft.options["--moe-dense-tp-size"] = 1
    if step.model.routed_kinds:
        draft.options["--ep-size"] = x.ep
        if launched.dispatched and not launched.gathers:
            if x.microbatches > 1:
                draft.options["--enable-two-batch-overlap"] = True
            # flashinfer's back end sends from every rank, each with tokens of its own
            single = x.attention_group == 1
            draft.options["--moe-a2a-backend"] = launched.dispatch if single else launched.stack.dispatch.several
        if launched.copies:
            draft.options |= {"--ep-num-redundant-experts": launched.copies, "--enable-eplb": True}
    if x.kvp > 1:
        exchange = "fi_a2a" if launched.blackwell and step.machine.domain % x.kvp == 0 else "a2a"
        draft.options |= {
            "--dcp-size": x.kvp,
            "--dcp-comm-backend": exchange,
            "--attention-backend": launched.attention_backend,
        }
        in_16_bits = step.precision.format_of("attention_weights") in ("bf16", "fp16")
        if x.q_shards == 1 and launched.mla and in_16_bits:
            draft.options["--dcp-replicate-q-proj"] = True
        elif x.q_shards == 1 and launched.mla:
            draft.remarks.append(
                f"{GATHERED}: --dcp-replicate-q-proj falls back to that without a word on quantised projections"
            )
        if not launched.mla:
            draft.remarks.append("decode context parallelism of GQA depends on the model's code and its back end")
    if n := _drafts(step):
        block = {"--speculative-dspark-block-size": n}
        chain = {"--speculative-num-steps": n, "--speculative-eagle-topk": 1}
        draft.options |= {
            "--speculative-algorithm": _method(launched),
            **(block if _drafts_a_block(step) else chain),
            "--speculative-num-draft-tokens": n + 1,
        }
        if not _in_checkpoint(step):
            draft.options["--speculative-draft-model-path"] = draft_checkpoint(step)
    memory = step.memory
    static = float(memory.fillable) - float(memory.activations)
    draft.options |= {
        "--max-running-requests": x.users,
        "--context-length": launched.tokens,
        "--kv-cache-dtype": _kv(launched),
        "--mem-fraction-static": launched.share(static, memory.capacity),
    }
    if launched.nodes > 1:
        draft.options["--nnodes"] = launched.nodes
        draft.of_node |= {
            "--node-rank": '"${NODE_RANK:?the number of this node}"',
            "--dist-init-addr": '"${HEAD_ADDRESS:?the address of node 0}:20000"',
        }
        draft.remarks.append(f"start it on each of {launched.nodes} nodes")


def _drafts(step: Step) -> int:
    """Drafts of a step; none where nothing drafts."""
    return int(step.layout.draft_tokens) if step.setting.drafter else 0


def _method(launched: Launched) -> str:
    """How the step drafts, by the stack's own name."""
    assert launched.step.setting.drafter is not None
    return launched.stack.draft_methods[launched.step.setting.drafter.draft.method]


def _in_checkpoint(step: Step) -> bool:
    """Whether the model's own checkpoint has what drafts."""
    return step.setting.drafter is not None and step.setting.drafter.draft.method == "mtp"


def _drafts_a_block(step: Step) -> bool:
    """Whether one pass drafts all of a step's tokens."""
    return step.setting.drafter is not None and step.setting.drafter.draft.method == "dspark"


def draft_checkpoint(step: Step) -> str:
    """The Hugging Face name of what drafts, as its file says; else a placeholder."""
    assert step.setting.drafter is not None
    draft, module = step.setting.drafter.draft, step.setting.drafter.module
    match = re.search(r"https://huggingface\.co/([\w.-]+/[\w.-]+)", module.source)
    return match[1].rstrip(",") if match else f"CHECKPOINT-OF-{draft.name}"


def _kv(launched: Launched) -> str:
    """The KV cache's format in the stack's own name."""
    return str(launched.stack.kv[launched.step.precision.kv].option)


WRITERS: dict[str, Callable[[Launched, Draft], None]] = {"trtllm": _trtllm, "vllm": _vllm, "sglang": _sglang}
