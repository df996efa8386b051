"""Two hundred plain questions, whose launch files are checked against the stacks' conditions, written here anew.

    python tests/stacks/questions.py        all of them, and the table of what each rule removed
    python tests/stacks/questions.py 20     twenty of them

The checks read a launch file's options and the model's numbers alone, not the predicates of helix_sim.stacks.
"""

from __future__ import annotations

import itertools
import json
import sys
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median

import yaml

from helix_sim.answers.recommend import recommend
from helix_sim.answers.recommendation import Recommendation
from helix_sim.answers.request import Mix, Request
from helix_sim.core.units import format_size
from helix_sim.output.export import Launch, launch
from helix_sim.search.layout_source import Picked
from helix_sim.specs.model import Model
from helix_sim.stacks.rules import StackRule

MODELS = (
    "deepseek-r1", "deepseek-v3.2", "kimi-k2.5", "llama-3.1-405b", "llama-3.1-70b", "qwen3-235b-a22b", "gpt-oss-120b",
)  # fmt: skip
MACHINES = ("h100-hgx", "h200-hgx", "b200-hgx", "gb200-nvl72")
BUDGETS = ((5, 8_000), (10, 32_000), (20, 128_000), (50, 128_000), (50, 1_000_000))
"""Milliseconds a token, and tokens of context."""

ODD = {
    "28-heads": {
        "q_heads": 28, "kv_heads": 4, "vocab_size": 152064, "ffn": {"kind": "dense", "intermediate_size": 18944}},
    "24-heads-6-kv": {
        "q_heads": 24, "kv_heads": 6, "vocab_size": 151936, "ffn": {"kind": "dense", "intermediate_size": 12288}},
    "60-experts": {
        "q_heads": 40, "kv_heads": 8, "vocab_size": 151936,
        "ffn": {"kind": "routed", "routed": 60, "top_k": 4, "intermediate_size": 1408}},
}  # fmt: skip
"""Models whose numbers divide badly, as those of real ones do."""


def odd_models(folder: Path) -> list[str]:
    """Files of the ODD models."""
    files = []
    for name, each in ODD.items():
        content = {
            "kind": "model",
            "name": name,
            "source": "made for tests",
            "published_parameters_B": 1.0,
            "hidden_size": 128 * each["q_heads"],
            "vocab_size": each["vocab_size"],
            "max_position_embeddings": 131072,
            "attention": {
                "gqa": {"kind": "gqa", "q_heads": each["q_heads"], "kv_heads": each["kv_heads"], "head_size": 128}
            },
            "ffn": {"ffn": each["ffn"]},
            "layers": [{"attention": "gqa", "ffn": "ffn", "repeat": 28}],
        }
        counted = Model.model_validate(content).total_parameters / 1e9
        files.append(str(folder / f"{name}.yaml"))
        Path(files[-1]).write_text(yaml.safe_dump(content | {"published_parameters_B": round(counted, 2)}))
    return files


def questions(folder: Path) -> list[Request]:
    """Ten models on four machines under five budgets."""
    models = [*MODELS, *odd_models(folder)]
    return [
        Request(
            model=model, machine=machine, mix=Mix(contexts=(context,), shares=(1.0,)), ttl_s=ttl_ms / 1e3,
            gpus=(1, 32) if machine == "gb200-nvl72" else (1, 16),
        )
        for model, machine, (ttl_ms, context) in itertools.product(models, MACHINES, BUDGETS)
    ]  # fmt: skip


def some(requests: list[Request], count: int) -> list[Request]:
    """Some of the questions, over all models, machines and budgets alike."""
    step = max(len(requests) // count, 1)
    return requests[:: step + (step > 1 and step % 5 == 0)]  # no multiple of the budgets, or all were the same


# --- A launch file against the stack's conditions --------------------------------------------------------------------


def complaints(written: Launch) -> Iterator[str]:
    """What keeps a stack from starting a file: its own conditions, from its options and the model's numbers."""
    options, model, machine = written.options, written.runs.model, written.runs.machine
    trtllm, vllm = written.stack == "trtllm", written.stack == "vllm"
    get = options.get
    if trtllm:
        dp = get("tensor_parallel_size") if get("enable_attention_dp") else 1
        kvp, pp, tpf, ep = (
            get(name, 1)
            for name in (
                "context_parallel_size",
                "pipeline_parallel_size",
                "moe_tensor_parallel_size",
                "moe_expert_parallel_size",
            )
        )
        heads_over = get("tensor_parallel_size") // dp * kvp
        kv_over, gpus = heads_over // kvp, get("tensor_parallel_size") * kvp * pp
        if model.routed_kinds and tpf * ep != get("tensor_parallel_size") * kvp:
            yield "moe_tp·moe_ep is not tp·cp"
    elif vllm:
        dp, kvp, pp = (
            get(f"--{name}-size", 1) for name in ("data-parallel", "decode-context-parallel", "pipeline-parallel")
        )
        heads_over = kv_over = get("--tensor-parallel-size")
        gpus = heads_over * dp * pp
        ep = heads_over * dp if get("--enable-expert-parallel") else 1
        tpf = heads_over * dp // ep
        if -(-model.vocab_size // 64) * 64 % heads_over:
            yield "vocabulary"
    else:
        dp, kvp, pp, ep = (get(f"--{name}-size", 1) for name in ("attn-dp", "dcp", "pp", "ep"))
        heads_over = kv_over = get("--tp-size") // dp
        gpus, tpf = get("--tp-size") * pp, get("--tp-size") // ep
    tray = machine.tray_gpus.value
    if gpus > tray and gpus % tray:
        yield f"{gpus} GPUs of trays of {tray}"
    for attention in model.attention.values():
        if attention.q_heads % heads_over:
            yield f"{attention.q_heads} heads over {heads_over}"
        if attention.kind in ("gqa", "window"):
            few, many = sorted((attention.kv_heads, kv_over))
            if many % few:
                yield f"{attention.kv_heads} KV heads over {kv_over}"
            if kvp > 1 and not trtllm and heads_over < attention.kv_heads * kvp:
                yield "ranks of a KV group hold different heads"
            if kvp > 1 and vllm and (attention.q_heads // attention.kv_heads) % kvp:
                yield "queries of a KV head over dcp"
    tile = {"fp8-block": 128, "nvfp4": 64 if trtllm else 16}.get(written.runs.precision.format_of("routed_weights"), 1)
    for ffn in model.routed_kinds.values():
        copies = {
            "trtllm": get("moe_config", {}).get("load_balancer", {}).get("num_slots", ffn.routed) - ffn.routed,
            "vllm": json.loads(get("--eplb-config", "{}")).get("num_redundant_experts", 0),
            "sglang": get("--ep-num-redundant-experts", 0),
        }[written.stack]
        if (ffn.routed + copies) % ep:
            yield f"{ffn.routed} + {copies} experts over {ep}"
        if ffn.intermediate_size % tpf or (tpf > 1 and ffn.intermediate_size // tpf % tile):
            yield f"an expert of {ffn.intermediate_size} over {tpf}"
    if dp > 1 and not model.routed_kinds:
        yield "attention DP of a dense model"
    longest = next(options[name] for name in ("max_seq_len", "--max-model-len", "--context-length") if name in options)
    limit = model.max_position_embeddings
    if limit and longest > limit and not any("LONG" in name for name in written.environment):
        yield f"{longest} tokens above {limit}"


# --- Asked -----------------------------------------------------------------------------------------------------------


@dataclass(slots=True, kw_only=True)
class Asked:
    """What the questions have shown so far."""

    questions: int = 0
    answered: int = 0
    choices: int = 0
    files: int = 0
    wrong: list[str] = field(default_factory=list)
    refused: Counter[str] = field(default_factory=Counter)
    in_questions: Counter[str] = field(default_factory=Counter)
    costliest: dict[str, list[float]] = field(default_factory=dict)
    physics: list[float] = field(default_factory=list)

    def add(self, request: Request, found: Recommendation) -> None:
        """Take one answer: each choice is written for every stack that is said to start it."""
        self.questions += 1
        self.answered += bool(found.choices)
        for choice in found.choices:
            self.choices += 1
            assert choice.stacks, "a choice that no stack starts"
            for stack in choice.stacks:
                picked = Picked(step=choice.step, inputs={}, longest_context=max(request.mix.contexts))
                written = launch(picked, stack, stack)
                self.files += 1
                context = format_size(max(request.mix.contexts))
                self.wrong += [
                    f"{request.model} {request.machine} {context} {stack} {choice.step.layout}: {complaint}"
                    for complaint in complaints(written)
                ]
        if (stacked := found.stacked) is None:
            return
        self.refused.update(stacked.refused)
        self.in_questions.update(stacked.refused.keys())
        if found.choices:
            self.physics.append(stacked.physics.adds if stacked.physics else 0.0)
            if stacked.costliest:
                self.costliest.setdefault(stacked.costliest.rules[0], []).append(stacked.costliest.adds)


def asked(requests: Iterable[Request]) -> Asked:
    """Every question asked and its files checked."""
    so_far = Asked()
    for request in requests:
        so_far.add(request, recommend(request))
    return so_far


def rows(so_far: Asked) -> list[tuple[str, ...]]:
    """What each rule removed: its name, questions, layouts within the limits, where it cost most, and how much."""
    found = []
    for rule in StackRule:
        if count := so_far.refused[rule.name]:
            gains = so_far.costliest.get(rule.name, [])
            found.append(
                (f"`{rule.name}`", str(so_far.in_questions[rule.name]), f"{count:,}", str(len(gains)),
                 f"{median(gains):.1%}" if gains else "", f"{max(gains):.1%}" if gains else "")
            )  # fmt: skip
    return found


COLUMNS = ("rule", ">questions", ">layouts removed", ">costs most in", ">median gain without it", ">largest")


def summary(so_far: Asked) -> str:
    """One sentence on all questions."""
    wrong = f"{len(so_far.wrong)} of which a stack would not start"
    return (
        f"{so_far.questions} questions, {so_far.answered} with an answer; {so_far.choices} choices, {so_far.files} "
        f"launch files, {wrong}. Physics alone would add {median(so_far.physics):.1%} in the median, "
        f"{max(so_far.physics):.1%} at most."
    )


if __name__ == "__main__":
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        every = questions(Path(folder))
        wanted = int(sys.argv[1]) if len(sys.argv) > 1 else len(every)
        shown = asked(some(every, wanted))
    print(summary(shown))
    for row in (COLUMNS, *rows(shown)):
        print("  ".join(cell.removeprefix(">") for cell in row))
    print("\n".join(shown.wrong))
    sys.exit(bool(shown.wrong))
