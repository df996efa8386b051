"""Two microbatches against a simulation of both orders, the step that has them, and the search that tries them."""

import itertools
from dataclasses import replace

import numpy as np
import pytest
from cases import GB200, MOE, PAPER, R1, step

from helix_sim.core.errors import SpecError
from helix_sim.core.layout import AXES, Layout
from helix_sim.core.numeric import ceil_div
from helix_sim.feasibility import Reason, sentences, shape_reasons
from helix_sim.output.export import export
from helix_sim.search.frame import decode_step
from helix_sim.search.plan import plan
from helix_sim.search.sweep import run_plan
from helix_sim.specs.load import load_model, load_sweep, load_timing, parse
from helix_sim.specs.sweep import Sweep
from helix_sim.step import evaluate_step, setting_of
from helix_sim.timing.overlap import LayerTimes, hidden_by_turns

H100 = {"vllm": load_timing("h100-vllm"), "sglang": load_timing("h100-sglang")}
ORDERS = ("attention-in-two", "attention-whole")


def run(program, x):
    """When a GPU has gone through a program of computing, sending and waiting; transfers go on meanwhile."""
    now, link, arrives = 0.0, 0.0, {}
    for word, *rest in program:
        if word == "compute":
            now += getattr(x, rest[0])
        elif word == "send":
            part, batch = rest
            link = max(now, link) + getattr(x, part)
            arrives[part, batch] = link
        else:
            now = max(now, arrives[tuple(rest)])
    return now


def five_stages(layers):
    """SGLang's stages of a microbatch's layers, the second two stages behind the first, one of each in turn."""

    def stages(batch):
        for _ in range(layers):
            yield [("compute", "prepare")]
            yield [("compute", "attend")]
            yield [("send", "dispatch", batch), ("compute", "shared")]
            yield [("wait", "dispatch", batch), ("compute", "experts"), ("send", "combine", batch)]
            yield [("wait", "combine", batch)]

    first, second = stages(0), stages(1)
    order = [*itertools.islice(first, 2)]
    for one, other in itertools.zip_longest(first, second, fillvalue=[]):
        order += [one, other]
    return [word for stage in order for word in stage]


def two_threads(layers):
    """vLLM's order of two threads, as its schedule is drawn."""
    attention = [("compute", "prepare"), ("compute", "attend")]
    program = [*attention]
    for layer in range(layers):
        program += [("send", "dispatch", 1), *attention, ("wait", "dispatch", 1)]
        program += [("send", "dispatch", 0), ("compute", "experts"), ("wait", "dispatch", 0)]
        program += [("send", "combine", 1), ("compute", "shared"), ("compute", "experts"), ("wait", "combine", 1)]
        program += [("send", "combine", 0), ("compute", "shared")]
        program += [*(attention if layer < layers - 1 else []), ("wait", "combine", 0)]
    return program


PROGRAMS = {"attention-in-two": five_stages, "attention-whole": two_threads}


@pytest.mark.parametrize("order", ORDERS)
def test_two_microbatches_take_as_long_as_a_simulation_of_their_turns(order):
    rng = np.random.default_rng(29)
    for _ in range(500):
        x = LayerTimes(**dict(zip(LayerTimes.__slots__, rng.exponential(size=6) * rng.integers(0, 4, 6), strict=True)))
        layers = int(rng.integers(1, 30))
        found = hidden_by_turns(x, order)
        whole = 2 * layers * (x.seconds - found.dispatch - found.combine) + found.dispatch_lost + found.combine_lost
        assert whole == pytest.approx(run(PROGRAMS[order](layers), x), rel=1e-12)


def test_a_layer_takes_the_longer_of_what_is_beside_each_other():
    rng = np.random.default_rng(3)
    for a0, a1, s, e, d, c in rng.exponential(size=(100, 6)):
        x = LayerTimes(prepare=a0, attend=a1, shared=s, experts=e, dispatch=d, combine=c)
        in_two, whole = (hidden_by_turns(x, order) for order in ORDERS)
        period = 2 * (max(d, s + a0) + e + max(c, a1))
        assert 2 * (x.seconds - in_two.dispatch - in_two.combine) == pytest.approx(period, rel=1e-12)
        a = a0 + a1
        period = max(a, d) + max(e, d) + max(s + e, c) + max(s + a, c)
        assert 2 * (x.seconds - whole.dispatch - whole.combine) == pytest.approx(period, rel=1e-12)


@pytest.mark.parametrize("timing", [PAPER, *H100.values()], ids=lambda timing: timing.name)
@pytest.mark.parametrize("pp", [1, 4])
def test_a_step_takes_as_long_as_the_simulation_of_its_busiest_stage(timing, pp):
    machine = GB200 if timing is PAPER else "h100-hgx"
    sizes = {"batch": 24, "dp": 64, "ep": 64, "pp": pp}
    found = decode_step(R1, machine, Layout(**sizes, microbatches=2), 4096, timing=timing)
    kinds = {half.key: (half, names) for half, names in found.kinds}
    exposed = {
        key: {name: float(found.times[name].seconds - found.hidden_s.get(name, 0.0)) for name in names}
        for key, (_, names) in kinds.items()
    }
    attention, ffn = kinds["attention", "mla, half"][1], kinds["ffn", "moe, half"][1]
    times = {n: exposed["attention", "mla, half"][n] for n in attention} | exposed["ffn", "moe, half"]
    times |= {n: float(found.times[n].seconds) for n in ("dispatch[half]", "combine[half]")}
    core = attention.index("attention_core[half]")
    sent, back = ffn.index("dispatch[half]"), ffn.index("combine[half]")
    x = LayerTimes(
        prepare=sum(times[n] for n in (*attention[:core], *ffn[back + 1 :])),
        attend=sum(times[n] for n in (*attention[core:], *ffn[:sent])),
        shared=sum(times[n] for n in ffn if n.startswith("shared")),
        experts=sum(times[n] for n in ffn if n.startswith("routed")),
        dispatch=times["dispatch[half]"],
        combine=times["combine[half]"],
    )
    layers = int(found.stage["layer", "mla, moe"])
    program = PROGRAMS["attention-whole" if timing.name.endswith("vllm") else "attention-in-two"](layers)
    others = sum(found.stage[key] * sum(exposed[key].values()) for key in kinds if not key[1].endswith("half"))
    host = float(found.times["host"].seconds) if "host" in found.times else 0.0
    assert float(found.ttl_s) == pytest.approx(pp * (run(program, x) + others + host), rel=1e-9)
    assert layers in ((58,) if pp == 1 else (15, 16))
    assert not {key for key in kinds if key == ("ffn", "moe") and found.stage[key]}
    if pp == 1:
        assert found.stage["attention", "mla"] == found.stage["ffn", "dense"] == 3


def test_a_microbatch_is_half_of_the_batch_and_memory_is_that_of_the_whole():
    sizes = {"context": 4096, "dp": 64, "ep": 64}
    two, one = step(R1, batch=33, microbatches=2, **sizes), step(R1, batch=33, **sizes)
    half = step(R1, batch=17, **sizes)
    for name in ("attention_core", "routed_up", "dispatch", "moe_norm"):
        assert two.ops[f"{name}[half]"].hbm_bytes == half.ops[name].hbm_bytes
        assert two.ops[f"{name}[half]"].link_bytes == half.ops[name].link_bytes
        assert two.repeats[f"{name}[half]"] == 116
    assert two.ops["dense_up"].flops == one.ops["dense_up"].flops
    assert two.memory == one.memory
    assert float(two.pass_s) == pytest.approx(float(two.ttl_s), rel=1e-12)
    every = sum(two.repeats[name] * (time.seconds - two.hidden_s.get(name, 0.0)) for name, time in two.times.items())
    assert float(two.ttl_s) == pytest.approx(float(every), rel=1e-12)


def test_where_exchanges_take_longest_microbatches_are_worth_it_and_where_they_take_nothing_they_are_not():
    slow = {"context": 8192, "batch": 256, "dp": 64, "ep": 64}
    far = GB200.model_copy(update={"nvlink_per_direction_GBps": GB200.nvlink_per_direction_GBps.scale(0.05)})
    assert float(step(R1, machine=far, microbatches=2, **slow).ttl_s) < float(step(R1, machine=far, **slow).ttl_s)
    few = {"context": 8192, "batch": 4, "dp": 8, "ep": 8}
    assert float(step(R1, microbatches=2, **few).ttl_s) > float(step(R1, **few).ttl_s)


def test_on_eight_h100_boards_and_one_a_batch_pays_from_some_tens_of_requests_on():
    # a gain was seen on H20 from 64 or 128 requests on, and none below [https://github.com/deepseek-ai/DeepEP/pull/390]
    setting = setting_of(R1, "h100-hgx", timing=H100["sglang"])
    x = Layout(batch=np.array([16, 16, 128, 128]), dp=72, ep=72, microbatches=np.array([1, 2, 1, 2]))
    few, few_in_turns, many, many_in_turns = evaluate_step(setting, x, 2048.0).ttl_s
    assert few_in_turns > few
    assert many_in_turns < 0.95 * many


@pytest.mark.parametrize(
    ("model", "sizes", "reason", "said"),
    [
        (R1, {"batch": 8, "dp": 8, "ep": 8, "microbatches": 3}, "MORE_MICROBATCHES_THAN_BATCH", "the 2 that"),
        (R1, {"batch": 1, "dp": 8, "ep": 8, "microbatches": 2}, "MORE_MICROBATCHES_THAN_BATCH", "the 1 that"),
        (R1, {"batch": 8, "tpa": 8, "ep": 8, "microbatches": 2}, "NO_DISPATCH_TO_HIDE", "dp is 1"),
        (load_model("llama-3.1-405b"), {"batch": 8, "dp": 8, "microbatches": 2}, "NO_DISPATCH_TO_HIDE", "no experts"),
        (R1, {"batch": 8, "dp": 4, "kvp": 2, "ep": 8, "microbatches": 2, "chunks": 2}, "SPLIT_TWICE", "same batch"),
    ],
)
def test_a_batch_that_cannot_be_split_has_a_reason(model, sizes, reason, said):
    layout = Layout(**sizes)
    flags = int(shape_reasons(model, GB200, layout, 4096))
    assert flags == Reason[reason].flag
    assert said in sentences(flags, model, GB200, layout, 4096)[0]


HYBRID = R1.model_copy(
    update={
        "name": "two-experts",
        "ffn": {**R1.ffn, "small": MOE.model_copy(update={"routed": 64, "shared": 0})},
        "layers": [run.model_copy(update={"ffn": name, "repeat": count}) for run, (name, count) in zip(
            [R1.layers[0]] * 3, (("dense", 2), ("moe", 30), ("small", 29)), strict=True)],
    }
)  # fmt: skip


@pytest.mark.parametrize(
    ("model", "timing", "machine", "drafts"),
    [(R1, "paper", "gb200-nvl72", {}), (R1, "h100-vllm", "h100-hgx", {}), (HYBRID, "paper", "gb200-nvl72", {}),
     (R1, "gb200-sglang", "gb200-nvl72", {"draft": "deepseek-r1-mtp", "draft_tokens": [0, 2]})],
    ids=lambda each: getattr(each, "name", each),
)  # fmt: skip
def test_a_sweep_tries_microbatches_as_the_step_has_them(model, timing, machine, drafts):
    spec = load_sweep("paper-deepseek-r1").model_dump(by_alias=True) | {"timing": timing, "machine": machine}
    wide = {"title": "wide EP", "dp": "free", "tpa": "free", "pp": "free", "ep": "free", "microbatches": [1, 2]}
    helix = {"title": "Helix", "dp": "many", "kvp": "many", "ep": "many", "hop_b": True, "microbatches": [2, 1]}
    spec |= {"families": {"wide": wide, "helix": helix}, "groups": {}, "contexts": [4096, 65536], "gpus": [12, 32]}
    spec |= {"batch": {"dense_to": 5, "growth": 3, "to": 130}, "chunks": [1, 2], "chunks_anyway": True}
    spec |= {"precision": {"weights": "fp8", "kv": "fp8", "math": "fp8"}, **drafts}
    planned = plan(parse(Sweep, spec, "microbatches"), {"model": model})
    parts = []
    total = run_plan(planned, on_points=parts.append)
    rows = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    x = Layout(**{axis: rows[axis] for axis in AXES})
    assert set(x.microbatches) == {1, 2}
    found = evaluate_step(planned.setting, x, rows["context"].astype(float))
    np.testing.assert_allclose(rows["ttl_s"], found.ttl_s, rtol=1e-12, atol=0)
    np.testing.assert_allclose(rows["resident_bytes"], found.memory.resident_bytes, rtol=1e-12, atol=0)
    for place in np.random.default_rng(1).choice(np.flatnonzero(x.microbatches == 2), 5):
        one = Layout(**{axis: int(rows[axis][place]) for axis in AXES})
        alone = evaluate_step(planned.setting, one, int(rows["context"][place]))
        assert float(alone.ttl_s) == pytest.approx(rows["ttl_s"][place], rel=1e-12)
        assert planned.layout_at(int(rows["id"][place]))[2] == one
    dropped = sum(total.dropped["wide"].values()) + sum(total.dropped["helix"].values())
    assert dropped + len(rows["id"]) == planned.layouts
    best = {(family, context): curve for context, families in total.frontiers.items()
            for family, curve in families.items()}  # fmt: skip
    for (family, context), curve in best.items():
        mine = (rows["family"] == list(planned.sweep.families).index(family)) & (rows["context"] == context)
        assert curve.columns["ttl_s"].min() == rows["ttl_s"][mine].min()
        assert curve.columns["tokens_per_s_gpu"].max() == pytest.approx(rows["tokens_per_s_gpu"][mine].max(), rel=1e-12)


def test_a_layout_of_one_microbatch_is_what_it_was():
    sizes = {"context": 4096, "batch": 64, "dp": 64, "ep": 64}
    one = step(R1, **sizes)
    assert not [name for name in one.ops if "half" in name]
    column = Layout(batch=64, dp=64, ep=64, microbatches=np.array([1, 2]))
    both = evaluate_step(one.setting, column, 4096.0)
    assert both.ttl_s[0] == pytest.approx(float(one.ttl_s), rel=1e-12)
    assert both.ttl_s[1] == pytest.approx(float(step(R1, **sizes, microbatches=2).ttl_s), rel=1e-12)
    assert ceil_div(64, 2) == 32
    assert replace(column, microbatches=1).users == 4096


@pytest.mark.parametrize(
    ("stack", "flag", "backend"),
    [("sglang", "--enable-two-batch-overlap", "deepep"), ("vllm", "--enable-dbo", "deepep_low_latency")],
)
def test_microbatches_are_exported_on_the_back_end_that_has_them(stack, flag, backend):
    sizes = {"context": 4096, "batch": 16, "dp": 64, "ep": 64}
    two, one = (export(step(R1, microbatches=n, **sizes), to=stack).options for n in (2, 1))
    assert two[flag] is True
    assert flag not in one
    assert two.get("--moe-a2a-backend", two.get("--all2all-backend")) == backend
    assert two.get("--dbo-decode-token-threshold", 16) == 16


@pytest.mark.parametrize("framework", ["sglang", "vllm"])
def test_on_one_board_microbatches_are_sent_to_their_experts_where_a_whole_batch_is_gathered(framework):
    calibration = H100[framework].calibration
    sending = {name: each for name, each in calibration.classes.items() if not name.endswith("/gather")}
    never = H100[framework].model_copy(update={"calibration": calibration.model_copy(update={"classes": sending})})
    x = Layout(batch=64, dp=8, ep=8, microbatches=2)
    gathers, sends = (evaluate_step(setting_of(R1, "h100-hgx", timing=t), x, 4096) for t in (H100[framework], never))
    for op in ("dispatch", "combine", "routed_up"):
        assert float(gathers.times[f"{op}[half]"].seconds) == float(sends.times[f"{op}[half]"].seconds)
        assert float(gathers.times[op].seconds) != float(sends.times[op].seconds)


def test_tensorrt_llm_has_no_microbatches():
    with pytest.raises(SpecError, match="does not split a batch of decoding"):
        export(step(R1, context=4096, batch=16, dp=64, ep=64, microbatches=2), to="trtllm")
