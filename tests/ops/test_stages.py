"""Pipelines: which layers each stage holds, how long a round of the batches takes, what the fullest GPU holds."""

from collections import Counter, deque

import numpy as np
import pytest
from cases import GB200, IDEAL, LLAMA, PAPER, R1
from hypothesis import given, settings
from hypothesis import strategies as st
from ops.random_models import model_of, models

from helix_sim.core.layout import Layout
from helix_sim.ops.stages import heavy_stages, largest_stage, layers_dealt, stage_layers
from helix_sim.search.frame import decode_step
from helix_sim.specs.load import load_timing
from helix_sim.specs.precision import Precision, narrowest_precision
from helix_sim.specs.setting import Setting
from helix_sim.step import evaluate_step

FP8 = Precision(weights="fp8", kv="fp8", math="fp8")


def setting_of(model, timing=PAPER):
    return Setting(model=model, machine=GB200, timing=timing, precision=FP8)


def counts_of(model, pp):
    """Counts of every kind on every stage, from the list of layers."""
    for number, layers in enumerate(stage_layers(model, pp)):
        ends = {"opening": number == 0, "closing": number == pp - 1, "handover": number < pp - 1}
        kinds = Counter(("attention", a) for a, _ in layers) + Counter(("ffn", f) for _, f in layers)
        yield {key: kinds[key] for key in model.kind_counts} | {("ends", name): int(on) for name, on in ends.items()}


def dealt_as_vllm_does(layers, stages):
    """The published rule, step by step: what is left goes to the last stage but one, the one before it, and so on."""
    sizes = [layers // stages] * stages
    for back in range(2, layers % stages + 2):
        sizes[-back] += 1
    return sizes


@given(st.integers(1, 200), st.integers(1, 64))
def test_layers_are_dealt_as_vllm_deals_them(layers, stages):
    assert layers_dealt(layers, stages) == dealt_as_vllm_does(layers, stages)


@given(models(kinds=2), st.integers(1, 12))
def test_the_stages_are_the_models_layers_in_order(model, pp):
    stages = stage_layers(model, pp)
    assert len(stages) == pp
    assert tuple(layer for stage in stages for layer in stage) == model.layer_list


@settings(max_examples=60)
@given(models(kinds=3), st.lists(st.integers(1, 12), min_size=1, max_size=5), st.integers(0, 2**31))
def test_whatever_a_layer_takes_the_busiest_stage_is_among_the_heavy_ones(model, stages, seed):
    rng = np.random.default_rng(seed)
    keys = list(heavy_stages(model, 1)[0])
    takes = dict(zip(keys, rng.exponential(size=len(keys)) ** 3, strict=True))

    def total(stage):
        return sum(stage[key] * seconds for key, seconds in takes.items())

    column = np.array(stages)
    busiest = largest_stage(found := heavy_stages(model, column), [total(stage) for stage in found])
    for place, pp in enumerate(stages):
        every = [total(stage) for stage in counts_of(model, pp)]
        assert total(busiest)[place] == pytest.approx(max(every), rel=1e-12)
        assert max(total(stage) for stage in heavy_stages(model, pp)) == pytest.approx(max(every), rel=1e-12)


# --- Time ------------------------------------------------------------------------------------------------------------


def stages_of(step):
    """Seconds of each stage of a step, from the ops of the layers that it really holds."""
    names = {half.key: ops for half, ops in step.kinds}
    takes = {
        key: sum(float(step.times[op].seconds - step.hidden_s.get(op, 0.0)) for op in ops) for key, ops in names.items()
    }
    host = float(step.times["host"].seconds) if "host" in step.times else 0.0
    return [
        host + sum(count * takes[key] for key, count in stage.items())
        for stage in counts_of(step.model, int(step.layout.pp))
    ]


def round_of_queues(seconds, rounds=60):
    """Mean time of a batch's round, of as many batches as stages; each stage serves in turn."""
    stages = len(seconds)
    waiting = [deque() for _ in seconds]
    waiting[0].extend((0.0, batch) for batch in range(stages))
    free, left = [0.0] * stages, {batch: [] for batch in range(stages)}
    while min(map(len, left.values())) < rounds:
        # the stage that can begin first serves the batch that waits longest there
        begins = [max(free[s], waiting[s][0][0]) if waiting[s] else np.inf for s in range(stages)]
        stage = int(np.argmin(begins))
        _, batch = waiting[stage].popleft()
        free[stage] = begins[stage] + seconds[stage]
        waiting[(stage + 1) % stages].append((free[stage], batch))
        if stage == stages - 1:
            left[batch].append(free[stage])
    return float(
        np.mean([(times[-1] - times[rounds // 2]) / (len(times) - 1 - rounds // 2) for times in left.values()])
    )


PIPELINES = [
    (R1, {"batch": 1, "kvp": 2, "tpf": 2, "pp": 31}, 100_000),
    (R1, {"batch": 4, "kvp": 2, "tpf": 2, "pp": 4}, 100_000),
    (LLAMA, {"batch": 8, "tpa": 8, "tpf": 8, "pp": 9}, 100_000),
    (LLAMA, {"batch": 8, "tpa": 8, "tpf": 8, "pp": 4}, 100_000),
    (LLAMA, {"batch": 1, "tpa": 1, "tpf": 1, "pp": 63}, 1000),
]


@pytest.mark.parametrize("timing", ["ideal", "paper", "gb200-trtllm"])
@pytest.mark.parametrize(("model", "sizes", "context"), PIPELINES)
def test_a_step_takes_what_a_round_of_queues_takes(model, sizes, context, timing):
    step = evaluate_step(setting_of(model, load_timing(timing)), Layout(**sizes), context)
    seconds = stages_of(step)
    assert float(step.pass_s) == pytest.approx(sum(seconds), rel=1e-12)
    assert float(step.ttl_s) == pytest.approx(len(seconds) * max(seconds), rel=1e-12)
    assert float(step.ttl_s) == pytest.approx(round_of_queues(seconds), rel=1e-9)
    # every request in flight gets a token a round, and the busiest stage sends out a batch each time it is done
    assert float(step.tokens_per_s_gpu) * step.layout.gpus == pytest.approx(
        step.layout.batch * step.layout.dp / max(seconds), rel=1e-12
    )


@settings(max_examples=100)
@given(st.lists(st.floats(0.1, 10), min_size=1, max_size=9))
def test_a_round_of_queues_waits_for_the_busiest_stage(seconds):
    assert round_of_queues(seconds) == pytest.approx(len(seconds) * max(seconds), rel=1e-9)


def test_the_ends_are_charged_to_the_stages_that_have_them():
    # 61 layers on 31 stages: thirty of two, and one on the last, beside the head
    step = decode_step(R1, GB200, Layout(batch=1, kvp=2, tpf=2, pp=31), 100_000, precision=narrowest_precision(GB200))
    assert [len(layers) for layers in stage_layers(R1, 31)] == [2] * 30 + [1]
    assert (step.repeats["attention_core"], step.repeats["head"], step.repeats["embedding"]) == (2, 0, 0)
    assert (step.repeats["routed_up"], step.repeats["stage_handover"]) == (2, 1)
    # with the embedding, the head and sampling on every stage it was a third more
    assert float(step.ttl_s) == pytest.approx(4.662e-3, rel=1e-3)
    assert float(step.pass_s) == pytest.approx(4.605e-3, rel=1e-3)


def test_equal_stages_wait_for_the_one_with_the_head():
    # Llama's 126 layers on 9 stages of 14
    step = evaluate_step(setting_of(LLAMA), Layout(batch=8, tpa=8, tpf=8, pp=9), 100_000)
    assert (step.repeats["head"], step.repeats["embedding"], step.repeats["stage_handover"]) == (1, 0, 0)
    assert step.pass_s < step.ttl_s


def test_one_stage_has_both_ends_and_never_waits():
    step = evaluate_step(setting_of(R1), Layout(batch=2, kvp=2, tpf=2), 100_000)
    assert (step.repeats["head"], step.repeats["embedding"], step.repeats["stage_handover"]) == (1, 1, 0)
    assert (step.repeats["routed_up"], step.repeats["dense_up"]) == (58, 3)
    assert float(step.pass_s) == pytest.approx(float(step.ttl_s), rel=1e-12)


# --- Memory ----------------------------------------------------------------------------------------------------------


@settings(max_examples=40)
@given(models(kinds=2), st.integers(1, 12), st.integers(1, 64))
def test_the_fullest_gpu_is_that_of_the_fullest_stage(model, pp, batch):
    setting = setting_of(model, IDEAL)
    step = evaluate_step(setting, Layout(batch=batch, pp=min(pp, model.layer_count)), 1000)
    pp = int(step.layout.pp)
    weights = {half.key: sum(float(step.ops[op].resident_weight_bytes) for op in ops) for half, ops in step.kinds}
    cached = {
        ("attention", name): batch * pp * 1000 * a.kv_heads * a.cache_width for name, a in model.attention.items()
    }
    buffers = 4 * batch * model.hidden_size * 2
    totals = [
        sum(count * (weights[key] + cached.get(key, 0)) for key, count in stage.items())
        + buffers
        + stage["ends", "closing"] * batch * model.vocab_size * 2
        for stage in counts_of(model, pp)
    ]
    assert float(step.memory.resident_bytes) == pytest.approx(max(totals), rel=1e-12)


def test_a_stage_with_less_weight_but_a_wider_cache_is_not_missed():
    wide, narrow = ({"kind": "gqa", "q_heads": 8, "kv_heads": heads, "head_size": 64} for heads in (8, 1))
    ffn = {name: {"kind": "dense", "intermediate_size": f} for name, f in (("big", 9000), ("small", 64))}
    layers = [*30 * [("narrow", "big")], *30 * [("wide", "small")]]
    model = model_of({"wide": wide, "narrow": narrow}, ffn, layers)
    few, many = (evaluate_step(setting_of(model), Layout(batch=b, pp=2), 1000).memory for b in (1, 4096))
    # at a small batch the first half's weights fill a GPU, at a large one the second half's cache
    assert few.weights > many.weights
    assert few.kv_cache == 2 * 30 * 2 * 64 * 1000
    assert many.kv_cache == 4096 * 2 * 30 * 8 * 2 * 64 * 1000


def test_a_table_that_is_also_the_heads_is_kept_by_both_end_stages():
    tied = LLAMA.model_copy(update={"tied_embeddings": True})
    one, two = (evaluate_step(setting_of(tied), Layout(tpa=8, tpf=8, pp=pp), 1000) for pp in (1, 2))
    assert one.ops["embedding"].resident_weight_bytes == 0
    assert two.ops["embedding"].resident_weight_bytes == two.ops["head"].resident_weight_bytes > 0
