"""The model pages say what the code does: every equation on them is evaluated and held against the op that it names."""

from __future__ import annotations

import ast
import random
import re
from pathlib import Path

import page_equations as equations
import pytest

from helix_sim.core.collectives import all_reduce, direct
from helix_sim.core.layout import AXES, Layout
from helix_sim.ops import attention
from helix_sim.ops.layers import KINDS, halves_of
from helix_sim.ops.memory import memory_of, resident_weights
from helix_sim.ops.routing import busiest_rank
from helix_sim.ops.stages import heavy_stages
from helix_sim.ops.step_input import StepInput
from helix_sim.specs.load import load_machine, load_model, shipped
from helix_sim.specs.precision import Precision
from helix_sim.step import op_tables, step_ops

ROOT = Path(__file__).parents[2]
GB200 = load_machine("gb200-nvl72")
SECTIONS = list(equations.sections())
FORMATS = Precision.model_validate(
    {
        "weights": "nvfp4",
        "kv": "fp8",
        "math": "fp4",
        "wire": "fp16",
        "activations": "fp32",
        "attention_weights": "fp8-block",
        "output_weights": "mxfp4",
        "head_weights": "int4",
        "dispatch": "int8",
    }
)
"""A different width for every tensor that the pages tell apart; the wire's is that of BF16."""
WORDS = {
    "FLOP": "flops",
    "weights": "weight_bytes",
    "idle": "idle_weight_bytes",
    "KV": "kv_bytes",
    "activations": "activation_bytes",
    "kernels": "kernels",
    "pieces": "pieces",
}
SENT = {"reduced": "payload", "sent": "payload", "among": "group", "apart": "stride"}


def steps():
    """Random steps of every shipped model: layouts with and without each width, decoding and several new tokens."""
    random.seed(7)
    for name in shipped("model"):
        model = load_model(name)
        experts = bool(model.routed_kinds)
        for _ in range(40):
            x = {axis: random.choice((1, 1, 2, 3, 4, 8)) for axis in ("tpa", "kvp", "dp")}
            grid = x["dp"] * x["tpa"] * (1 if random.random() < 0.2 else x["kvp"])
            ep = random.choice([n for n in range(1, grid + 1) if grid % n == 0]) if experts else 1
            batch = random.randint(1, 40)
            yield StepInput(
                model=model,
                precision=FORMATS,
                layout=Layout(
                    **x,
                    ep=ep,
                    tpf=grid // ep,
                    pp=random.choice((1, 1, 2, 4)),
                    batch=batch,
                    chunks=random.randint(1, batch) if x["kvp"] > 1 else 1,
                ).as_floats(),
                context=float(random.randint(200, 100_000)),
                query_tokens=float(random.choice((1, 1, 1, 2, 5, 100))),
            )


STEPS = list(steps())


def letters(s: StepInput, a, ffn):
    """Every letter of the pages for one step, one kind of attention and one of FFN."""
    m, x, b = s.model, s.layout, s.precision.bytes_of
    given = {axis.upper() if axis not in ("batch", "chunks") else axis: getattr(x, axis) for axis in AXES}
    given |= {"B": x.batch, "q": s.query_tokens, "S": s.context, "H": m.hidden_size, "V": m.vocab_size}
    given |= {"L": m.layer_count, "Q": a.q_heads, "K": a.kv_heads, "Wc": a.cache_width, "Ws": a.score_width}
    given |= {"Wv": a.value_width, "Wo": a.output_width}
    if a.kind == "gqa":
        given |= {"Hsz": a.head_size}
    else:
        given |= {"Rq": a.q_lora_rank, "Rkv": a.kv_lora_rank, "rope": a.rope_width, "nope": a.nope_width}
    tensors = {"baw": "attention_weights", "bow": "output_weights", "bfw": "dense_weights", "bew": "routed_weights"}
    tensors |= {"bsw": "shared_weights", "bhw": "head_weights", "btw": "embedding_weights"}
    tensors |= {"brw": "router_weights", "bkv": "kv", "ba": "activations", "bl": "wire", "bd": "dispatch"}
    given |= {letter: b(tensor) for letter, tensor in tensors.items()}
    if ffn.kind == "dense":
        given |= {"F": ffn.intermediate_size}
    else:
        rank = busiest_rank(s, ffn)
        given |= {"E": ffn.routed, "k": ffn.top_k, "Fe": ffn.intermediate_size}
        given |= {"Ns": ffn.shared, "Fs": ffn.shared_intermediate_size}
        given |= {name: float(getattr(rank, name)) for name in ("held", "read", "pairs", "foreign")}
    found = equations.with_letters("index.md", given)
    share = equations.formula_of("index.md", "Sr")
    new = range(int(s.query_tokens))
    return found | {"X": sum(equations.value(share, {"S": s.context - i, "KVP": x.kvp}) for i in new)}


def kinds_of(s: StepInput, op: str):
    """The attention and the FFN whose letters an op's equation uses."""
    m = s.model
    ffn = next((f for f in m.ffn.values() if op in KINDS[f.kind].ops(s, f)), next(iter(m.ffn.values())))
    return next(iter(m.attention.values())), ffn


def test_every_letter_is_what_the_code_has_under_its_name():
    for s in STEPS:
        a, ffn = kinds_of(s, "")
        found, x = letters(s, a, ffn), s.layout
        assert found["T"] == s.tokens
        assert found["N"] == x.token_group
        assert found["Kr"] == attention.kv_heads_per_rank(s, a)
        assert found["Qr"] == attention.q_heads_per_rank(s, a)
        assert found["Qn"] == attention.output_heads_per_rank(s, a)
        assert found["Sr"] == attention.kv_tokens_per_rank(s)
        assert found["A"] == attention.fullest_share(s.query_tokens, x.kvp)
        assert found["X"] == attention.keys_seen_per_rank(s)
        assert (found["P"], found["D"], found["I"]) == (x.pooled_groups, x.dense_group, x.idle_shards)


@pytest.mark.parametrize("section", SECTIONS, ids=lambda section: section.function)
def test_every_equation_is_the_ops(section):
    tried = 0
    for s in STEPS:
        ops = step_ops(s)
        for op in section.ops:
            if op not in ops:
                continue
            work, found = ops[op], letters(s, *kinds_of(s, op))
            said = {word: equations.value(formula, found) for word, formula in section.work.items()}
            if op == "embedding" and s.model.tied_embeddings:
                said["idle"] *= s.layout.pp > 1
            assert said.keys() <= WORDS.keys() | SENT.keys(), f"{section.function}: unknown words"
            silent = {"pieces": 1.0, "kernels": 0.0 if work.collective else 1.0}
            for word, field in WORDS.items():
                expected = said.get(word, silent.get(word, 0.0))
                assert float(getattr(work, field)) == pytest.approx(expected, rel=1e-12), (op, word, s.layout)
            assert (work.collective is not None) == bool(SENT.keys() & said.keys()), op
            if work.collective is not None:
                assert ("reduced" in said) == (work.collective.kind == "all-reduce"), op
                for word in SENT.keys() & {"apart", *said}:
                    made = float(getattr(work.collective, SENT[word]))
                    assert made == pytest.approx(said.get(word, 1.0), rel=1e-12), (op, word, s.layout)
            tried += 1
    assert tried >= 20, f"{section.function} was hardly tried"


def test_every_op_of_every_model_has_its_section():
    named = [op for section in SECTIONS for op in section.ops]
    assert len(named) == len(set(named)), "an op has two sections"
    made = {op for s in STEPS for op in step_ops(s)}
    assert set(named) == made


def test_every_kind_of_layer_is_among_the_shipped_models():
    tried = {half.kind.title for s in STEPS for half in halves_of(s.model)}
    assert {kind.title for kind in KINDS.values()} <= tried


def test_every_section_names_the_function_where_it_stands():
    for section in SECTIONS:
        tree = ast.parse((ROOT / section.file).read_text(encoding="utf-8"))
        functions = {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}
        assert section.function in functions, f"{section.file} has no {section.function}"


def test_the_list_of_a_layers_ops_on_the_first_page_is_complete():
    text = (equations.MODEL / "index.md").read_text(encoding="utf-8")
    layers = {op for s in STEPS for half in halves_of(s.model) if half.half != "ends" for op in half.ops(s)}
    assert layers <= set(re.findall(r"`(\w+)`", text))


def test_memory_is_what_its_page_says():
    lines = equations.blocks("memory.md", "memory")[0].splitlines()
    words = dict(re.split(r" {2,}", line, maxsplit=1) for line in lines)
    for s in STEPS:
        tables, stages = op_tables(s), heavy_stages(s.model, s.layout.pp)
        for stage in stages:
            memory = memory_of(s, [stage], [resident_weights(tables, stage)], GB200)
            last = {"Lr": stage["attention", next(iter(s.model.attention))], "last": stage["ends", "closing"]}
            found = letters(s, *kinds_of(s, "")) | last
            assert float(memory.kv_cache) == pytest.approx(equations.value(words["KV"], found), rel=1e-12)
            assert float(memory.activations) == pytest.approx(equations.value(words["activations"], found), rel=1e-12)
            resident = sum(
                stage[half.key] * (work.weight_bytes + work.idle_weight_bytes)
                for half, ops in tables
                for work in ops.values()
            )
            assert float(memory.weights) == pytest.approx(float(resident), rel=1e-12)
        whole = memory_of(s, stages, [resident_weights(tables, stage) for stage in stages], GB200)
        alone = [memory_of(s, [stage], [resident_weights(tables, stage)], GB200).resident_bytes for stage in stages]
        assert float(whole.resident_bytes) == max(map(float, alone))


FORM = re.compile(r"^\| ([\w-]+) \| `(.*?)` \| `(.*?)` \| `(.*?)` \| `(.*?)` \|$", re.MULTILINE)


@pytest.mark.parametrize("row", FORM.findall((equations.MODEL / "collectives.md").read_text(encoding="utf-8")))
def test_every_form_of_a_collective_is_what_the_page_says(row):
    name, *formulas = row
    order = {"one-shot": 0, "ring": 1, "in-switch": 2, "direct": 0}
    for n in (1, 2, 3, 8, 64, 72, 100):
        for apart in (1, 2, 8, 72):
            for domain in (8, 72):
                if name != "direct" and apart > 1:
                    continue  # the ranks of an all-reduce are neighbours
                sent = direct("all-to-all", 1000.0, n, apart) if name == "direct" else all_reduce(1000.0, n)
                made = sent.forms(domain, switch_reduces=True)[order[name]]
                given = {"n": n, "apart": apart, "domain": domain, "M": 1000.0}
                found = equations.with_letters("collectives.md", given)
                said = [equations.value(formula, found) for formula in formulas]
                fields = (made.nvlink_bytes, made.network_bytes, made.phases, made.network_phases)
                assert [float(field) for field in fields] == pytest.approx(said, rel=1e-12), (n, apart, domain)


def test_the_page_of_collectives_has_every_form():
    names = {name for name, *_ in FORM.findall((equations.MODEL / "collectives.md").read_text(encoding="utf-8"))}
    assert names == {"one-shot", "ring", "in-switch", "direct"}
