"""The model pages say what the code does: every equation on them is evaluated and held against the op that it names."""

from __future__ import annotations

import ast
import random
import re
from collections import Counter
from pathlib import Path

import numpy as np
import page_equations as equations
import pytest

from helix_sim.core.collectives import all_reduce, direct
from helix_sim.core.layout import AXES, Layout
from helix_sim.core.units import bytes_per_value
from helix_sim.ops import attention, sparse
from helix_sim.ops.layers import KINDS, halves_of
from helix_sim.ops.memory import memory_of, resident_weights
from helix_sim.ops.routing import busiest_rank
from helix_sim.ops.stages import heavy_stages
from helix_sim.ops.step_input import StepInput
from helix_sim.specs.load import load_machine, load_model, shipped
from helix_sim.specs.precision import Precision
from helix_sim.step import op_tables
from helix_sim.timing.overlap import LayerTimes, hidden_by_turns

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
        for _ in range(20):
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
                    index_kvp=random.choice([n for n in (1, 2, x["kvp"]) if x["kvp"] % n == 0])
                    if model.has_indexer
                    else 1,
                    q_shards=random.choice([n for n in (1, 2, x["kvp"]) if x["kvp"] % n == 0]),
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
    given |= {"Nq": x.q_shards}
    given |= {"L": m.layer_count, "Q": a.q_heads, "K": a.kv_heads, "Wo": a.output_width}
    tensors = {"baw": "attention_weights", "bow": "output_weights", "bfw": "dense_weights", "bew": "routed_weights"}
    tensors |= {"bsw": "shared_weights", "bhw": "head_weights", "btw": "embedding_weights", "bw": "weights"}
    tensors |= {"brw": "router_weights", "bkv": "kv", "ba": "activations", "bl": "wire", "bd": "dispatch"}
    given |= {letter: b(tensor) for letter, tensor in tensors.items()}
    if ffn.kind == "dense":
        given |= {"F": ffn.intermediate_size, "M": 2 if ffn.gated is not False else 1}
    elif ffn.kind == "routed":
        rank = busiest_rank(s, ffn)
        given |= {"E": ffn.routed, "k": ffn.top_k, "Fe": ffn.intermediate_size, "He": ffn.latent_size or m.hidden_size}
        given |= {"M": 2 if ffn.gated is not False else 1, "Ns": ffn.shared, "Fs": ffn.shared_intermediate_size}
        given |= {name: float(getattr(rank, name)) for name in ("held", "read", "pairs", "foreign")}
    found = equations.with_letters("index.md", given)
    if a.kind in ("window", "linear"):
        alone = {"TPA": x.token_group, "KVP": 1.0, "chunks": 1.0, "Nq": 1.0}
        own = equations.with_letters("index.md", given | alone)
        found |= alone | {letter: own[letter] for letter in ("Kr", "Qr", "Qp", "Qn", "Sr", "A")}
    if a.kind == "linear":
        return found | linear_letters(s, a, found)
    names = {"cache_width": "Wc", "score_width": "Ws", "value_width": "Wv", "head_size": "Hsz", "q_lora_rank": "Rq"}
    names |= {"kv_lora_rank": "Rkv", "rope_width": "rope", "nope_width": "nope"}
    found |= {letter: getattr(a, name) for name, letter in names.items() if hasattr(a, name)}
    if a.kind == "compressed":
        found |= {"Rkv": a.head_size, "rope": 0, "nope": a.head_size}
    found |= index_letters(s, a, found) | compressed_letters(s, a, found)
    return found | core_letters(s, a, found)


def share(letter_values, tokens, shards, block=16):
    """The formula of Sr on the first page, of other tokens, shards and blocks."""
    formula = equations.formula_of("index.md", "Sr").replace("16", str(block))
    return equations.value(formula, {"S": tokens, "KVP": shards})


def lengths(s: StepInput):
    """Tokens of the request up to each new one."""
    return [s.context - i for i in range(int(s.query_tokens))]


def index_letters(s: StepInput, a, found):
    i = getattr(a, "indexer", None)
    if i is None:
        return {"bi": 0, "Si": 0}
    r, shards, block = a.ratio, sparse.index_shards(s), max(16, i.block_tokens)
    blocks = a.kind == "block-sparse"
    heads = found["Kr"] if blocks else i.heads
    held = share(found, s.context // r, shards, block)
    return {
        "Hi": heads,
        "Hw": 0 if blocks else heads,
        "Ci": heads if blocks else 1,
        "Wi": i.width,
        "ki": i.top_k,
        "blk": i.block_tokens,
        "bi": i.key_bytes,
        "Ni": shards,
        "Es": s.context // r,
        "Oi": (heads + 1) * i.width if blocks else heads + i.width * (a.kind == "sparse"),
        "Ai": 0 if a.kind == "compressed" else share(found, s.query_tokens, shards, block),
        "Si": held,
        "Ki": min(i.top_k, -(-held // i.block_tokens)),
        "Xi": sum(share(found, t // r, shards, block) for t in lengths(s)),
    }


def compressed_letters(s: StepInput, a, found):
    if a.kind != "compressed":
        return {"Wn": found["Qn"] * found["Wo"]}
    x, group = s.layout, a.q_heads // a.output_groups
    columns = np.array_split(np.arange(a.q_heads), int(x.tpa))
    ranks = [part for heads in columns for part in np.array_split(heads, max(int(x.token_group // x.tpa), 1))]
    groups = max(len(set(heads // group)) for heads in ranks)
    sizes = {"z": a.series, "Wz": a.compressed_width, "r": a.ratio or 0, "Rg": a.output_lora_rank, "Gr": groups}
    return sizes | {"Wn": groups * a.output_lora_rank}


def core_letters(s: StepInput, a, found):
    """C and X: what the core reads and multiplies, and Cs, what a compressed layer keeps."""
    kvp, seen = found["KVP"], lengths(s)
    if a.kind in ("gqa", "mla"):
        return {"C": found["Sr"], "X": sum(share(found, t, kvp) for t in seen)}
    if a.kind == "window":
        w = a.window_tokens
        products = sum(min(t, w) for t in seen)
        if a.chunked and s.context > w:
            products = sum(w - i % w for i in range(len(seen)))
        return {"C": min(s.context, w + s.query_tokens - 1), "X": products}
    near = {"C": 0.0, "X": 0.0, "Cs": 0.0}
    if a.kind == "compressed":
        w = a.window_tokens
        c = share(found, min(s.context, w + s.query_tokens - 1), kvp)
        widest = share(found, min(s.context, w), kvp)
        near = {"C": c, "X": sum(min(t, w) if kvp == 1 else widest for t in seen), "Cs": c}
        if not a.ratio:
            return near
    r = a.ratio
    held, every = share(found, s.context // r, kvp), sum(share(found, t // r, kvp) for t in seen)
    if a.indexer is None:
        far = {"C": held, "X": every}
    else:
        picked, k = float(sparse.picked_per_rank(s, a)), a.indexer.picked
        part = sum(min(t // r, k) for t in seen) * picked / max(min(s.context // r, k), 1)
        far = {"C": min(s.query_tokens * picked, held), "X": every if s.context // r <= k else part}
    return {"C": near["C"] + far["C"], "X": near["X"] + far["X"], "Cs": near["Cs"] + held}


def linear_letters(s: StepInput, a, found):
    channels = 2 * found["Kr"] * a.key_width + found["Qr"] * a.value_width
    into = channels + found["Qr"] * (a.value_width * a.output_gate + a.head_gates) + (a.decay_rank or 0)
    return {
        "Wk": a.key_width,
        "Lc": a.conv_tokens,
        "G": min(s.query_tokens, 16),
        "gates": a.head_gates,
        "gated": float(a.output_gate),
        "delta": float(a.delta_rule),
        "Rd": a.decay_rank or 0,
        "bs": bytes_per_value(a.state_format),
        "Ch": channels,
        "Ol": into,
        "Wn": found["Qn"] * found["Wo"],
    }


def tables_and_letters(s: StepInput):
    """Every kind of the step's model: its ops, and the letters of its equations."""
    m = s.model
    attentions, ffns = list(m.attention.values()), list(m.ffn.values())
    for half, table in op_tables(s):
        found = letters(
            s, half.spec if half.half == "attention" else attentions[0], half.spec if half.half == "ffn" else ffns[0]
        )
        if half.half != "attention":  # whatever that attention sees of the layout
            found |= {"TPA": s.layout.tpa, "KVP": s.layout.kvp, "chunks": s.layout.chunks}
        yield half, table, found


def test_every_letter_is_what_the_code_has_under_its_name():
    for s in STEPS:
        for a in s.model.attention.values():
            found, x = letters(s, a, next(iter(s.model.ffn.values()))), s.layout
            own = attention.head_parallel(s) if a.kind in ("window", "linear") else s
            assert found["T"] == s.tokens
            assert found["N"] == x.token_group
            assert found["Kr"] == attention.kv_heads_per_rank(own, a)
            assert found["Qr"] == attention.q_heads_per_rank(own, a)
            assert found["Qn"] == attention.output_heads_per_rank(own, a)
            assert found["Sr"] == attention.kv_tokens_per_rank(own)
            assert found["A"] == attention.fullest_share(s.query_tokens, own.layout.kvp)
            assert (found["P"], found["D"], found["I"]) == (x.pooled_groups, x.dense_group, x.idle_shards)


def test_every_equation_is_the_ops():
    tried = Counter()
    by_op = {op: section for section in SECTIONS for op in section.ops}
    for s in STEPS:
        for half, table, found in tables_and_letters(s):
            for op, work in table.items():
                if op in by_op:
                    check_equation(s, half, op, work, by_op[op], found)
                    tried[by_op[op].function] += 1
    assert {section.function for section in SECTIONS if tried[section.function] < 20} == set()


def check_equation(s, half, op, work, section, found):
    said = {word: equations.value(formula, found) for word, formula in section.work.items()}
    if op == "embedding" and s.model.tied_embeddings:
        said["idle"] *= s.layout.pp > 1
    assert said.keys() <= WORDS.keys() | SENT.keys(), f"{section.function}: unknown words"
    silent = {"pieces": 1.0, "kernels": 0.0 if work.collective else 1.0}
    for word, field in WORDS.items():
        expected = said.get(word, silent.get(word, 0.0))
        assert float(getattr(work, field)) == pytest.approx(expected, rel=1e-12), (op, half.name, word, s.layout)
    assert (work.collective is not None) == bool(SENT.keys() & said.keys()), op
    if work.collective is not None:
        assert ("reduced" in said) == (work.collective.kind == "all-reduce"), op
        for word in SENT.keys() & {"apart", *said}:
            made = float(getattr(work.collective, SENT[word]))
            assert made == pytest.approx(said.get(word, 1.0), rel=1e-12), (op, word, s.layout)


def test_every_op_of_every_model_has_its_section():
    named = [op for section in SECTIONS for op in section.ops]
    assert len(named) == len(set(named)), "an op has two sections"
    assert set(named) == {op for s in STEPS for _, table in op_tables(s) for op in table}


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


def test_two_microbatches_take_what_their_page_says():
    rng = np.random.default_rng(2)
    lines = equations.blocks("timing.md", "turns")[0].splitlines()
    said = dict(re.split(r" {2,}", line, maxsplit=1) for line in lines)
    assert len(said) == 2
    for order, formula in said.items():
        for a0, a1, s, e, d, c in rng.exponential(size=(50, 6)):
            x = LayerTimes(prepare=a0, attend=a1, shared=s, experts=e, dispatch=d, combine=c)
            hidden = hidden_by_turns(x, order)
            found = equations.value(formula, {"A0": a0, "A1": a1, "S": s, "E": e, "D": d, "C": c})
            assert 2 * (x.seconds - hidden.dispatch - hidden.combine) == pytest.approx(found, rel=1e-12)


def test_memory_is_what_its_page_says():
    lines = equations.blocks("memory.md", "memory")[0].splitlines()
    words = dict(re.split(r" {2,}", line, maxsplit=1) for line in lines)
    kept = dict(re.split(r" {2,}", line, maxsplit=1) for line in equations.blocks("memory.md", "kept")[0].splitlines())
    for s in STEPS:
        tables, stages = op_tables(s), heavy_stages(s.model, s.layout.pp)
        for stage in stages:
            memory = memory_of(s, [stage], [resident_weights(tables, stage)], GB200)
            ffn, kv = next(iter(s.model.ffn.values())), 0.0
            for name, a in s.model.attention.items():
                found = letters(s, a, ffn) | {"Lr": stage["attention", name], "last": stage["ends", "closing"]}
                found["kept"] = equations.value(kept[a.kind], found)
                kv += equations.value(words["KV"], found)
            assert float(memory.kv_cache) == pytest.approx(kv, rel=1e-12)
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
