"""Several new tokens a request: what grows with them, what is read once for all of them, and the causal triangle."""

from dataclasses import fields, replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from ops.random_models import layouts, models, precisions

from helix_sim.core.layout import Layout
from helix_sim.core.work import Work
from helix_sim.one_layout import LayoutError
from helix_sim.ops.attention import attention_core, fullest_share, keys_seen_per_rank
from helix_sim.ops.ends import closing_ops, opening_ops
from helix_sim.ops.layers import KINDS
from helix_sim.ops.memory import memory_of, resident_weights
from helix_sim.ops.stages import heavy_stages
from helix_sim.ops.step_input import StepInput
from helix_sim.search.frame import decode_step
from helix_sim.specs.load import load_machine, load_model, load_timing
from helix_sim.specs.precision import Precision
from helix_sim.specs.setting import Setting
from helix_sim.step import evaluate_step, op_tables

FP4 = Precision(weights="fp4", kv="fp4", math="fp4")
R1, LLAMA = load_model("deepseek-r1"), load_model("llama-3.1-405b")
GB200 = load_machine("gb200-nvl72")
TIMINGS = {name: load_timing(name) for name in ("ideal", "paper", "gb200-trtllm")}
FP8 = Precision(weights="fp8", kv="fp8", math="fp8")
BLOCK = 16
"""Tokens that a KV shard takes before it is the next one's turn, as the paper has it; said again on purpose."""


@st.composite
def steps(draw):
    """Any step of several new tokens, of a model with one kind of attention and one of FFN."""
    model, new = draw(models()), draw(st.integers(1, 5000))
    layout, context = draw(layouts(model)), new + draw(st.integers(0, 1_000_000))
    return StepInput(model=model, precision=draw(precisions()), layout=layout, context=context, query_tokens=new)


def halves(s):
    """The only attention and the only FFN of a step's model."""
    return next(iter(s.model.attention.values())), next(iter(s.model.ffn.values()))


def ops_of(s):
    """Ops of one layer of each kind, and of both ends."""
    parts = [KINDS[kind.kind].ops(s, kind) for kind in halves(s)]
    return opening_ops(s) | parts[0] | parts[1] | closing_ops(s)


def amounts(work):
    """What an op asks for: every quantity by name, the payload of its collective too."""
    payload = work.collective.payload if work.collective else 0
    names = ("flops", "weight_bytes", "kv_bytes", "activation_bytes", "idle_weight_bytes", "kernels")
    return {name: getattr(work, name) for name in names} | {"payload": payload}


@settings(max_examples=200)
@given(steps(), st.integers(1, 40))
def test_the_cache_is_read_once_a_request_however_many_its_new_tokens(s, less):
    few = replace(s, query_tokens=max(1, s.query_tokens - less))
    assert attention_core(few, halves(s)[0]).kv_bytes == attention_core(s, halves(s)[0]).kv_bytes > 0


@settings(max_examples=200)
@given(steps())
def test_all_but_the_core_and_the_append_see_requests_times_new_tokens(s):
    # to them, q new tokens of B requests are one new token of each of B·q requests
    flat = replace(s, query_tokens=1, layout=replace(s.layout, batch=s.layout.batch * s.query_tokens))
    flat_ops = ops_of(flat)
    for name, work in ops_of(s).items():
        if name not in ("attention_core", "rope_and_append"):
            for field in fields(Work):
                assert getattr(work, field.name) == getattr(flat_ops[name], field.name), (name, field.name)


@settings(max_examples=200)
@given(steps())
def test_all_but_the_core_the_append_and_the_choice_of_experts_grow_as_the_new_tokens(s):
    ones = ops_of(replace(s, query_tokens=1))
    for name, work in ops_of(s).items():
        if name in ("attention_core", "rope_and_append", "dispatch", "combine") or name.startswith("routed"):
            continue
        many, one = amounts(work), amounts(ones[name])
        for quantity in ("flops", "activation_bytes", "payload"):
            assert many[quantity] == s.query_tokens * one[quantity], (name, quantity)
        for quantity in ("weight_bytes", "idle_weight_bytes", "kernels"):
            assert many[quantity] == one[quantity], (name, quantity)


@settings(max_examples=200)
@given(steps())
def test_what_is_not_the_triangle_grows_as_the_new_tokens_in_the_core_too(s):
    a = halves(s)[0]
    many, one = attention_core(s, a), attention_core(replace(s, query_tokens=1), a)
    assert many.activation_bytes == s.query_tokens * one.activation_bytes
    assert many.heads == s.query_tokens * one.heads
    assert many.flops <= s.query_tokens * one.flops


@settings(max_examples=200)
@given(steps())
def test_experts_compute_pairs_of_all_new_tokens_and_none_is_read_twice(s):
    many, one = ops_of(s), ops_of(replace(s, query_tokens=1))
    for name in ("routed_up", "routed_down"):
        if name in many:
            assert many[name].resident_weight_bytes == pytest.approx(one[name].resident_weight_bytes, rel=1e-12)
            assert many[name].weight_bytes >= one[name].weight_bytes * (1 - 1e-12)
            assert many[name].experts_read <= many[name].copies
            assert many[name].flops >= one[name].flops * (1 - 1e-12)


# --- The causal triangle ---------------------------------------------------------------------------------------------


def request(context, new, kvp):
    """One request of DeepSeek-R1 over so many KV shards."""
    layout = Layout(kvp=kvp, tpf=kvp)
    return StepInput(model=R1, precision=FP8, layout=layout, context=context, query_tokens=new)


def keys_by_hand(context, new, kvp):
    """Query-key products of one request on each KV shard, token by token: each sees those before it, and itself."""
    shards = np.arange(context) // BLOCK % kvp
    seen = [np.bincount(shards[: last + 1], minlength=kvp) for last in range(context - new, context)]
    return np.sum(seen, axis=0)


@settings(max_examples=300)
@given(st.integers(1, 700), st.integers(1, 9), st.data())
def test_the_fullest_shard_sees_what_a_loop_over_tokens_counts(context, kvp, data):
    new = data.draw(st.integers(1, context))
    assert keys_seen_per_rank(request(context, new, kvp)) == keys_by_hand(context, new, kvp).max()


def test_the_shard_that_sees_most_is_the_fullest_one_at_every_length():
    for kvp in (2, 3, 5):
        for context in (1, 16, 17, 80, 161):
            for new in range(1, context + 1):
                assert keys_by_hand(context, new, kvp).argmax() == 0


@settings(max_examples=200)
@given(steps())
def test_without_kv_shards_the_keys_seen_are_the_causal_triangle(s):
    whole = replace(s, layout=replace(s.layout, kvp=1, chunks=1))
    q = s.query_tokens
    assert keys_seen_per_rank(whole) == q * s.context - q * (q - 1) // 2


@settings(max_examples=200)
@given(steps(), st.lists(st.integers(1, 3000), min_size=1, max_size=6))
def test_a_prefill_computes_the_same_products_in_any_chunks(s, chunks):
    a, total = halves(s)[0], sum(chunks)
    ends = np.cumsum(chunks).tolist()
    start = s.context
    parts = [replace(s, context=start + end, query_tokens=size) for end, size in zip(ends, chunks, strict=True)]
    at_once = replace(s, context=start + total, query_tokens=total)
    assert sum(attention_core(part, a).flops for part in parts) == attention_core(at_once, a).flops
    assert (
        sum(attention_core(part, a).activation_bytes for part in parts) == attention_core(at_once, a).activation_bytes
    )


@settings(max_examples=200)
@given(st.integers(1, 2000), st.integers(1, 9))
def test_neighbouring_tokens_fill_the_fullest_shard_as_a_loop_counts_at_the_worst_start(tokens, kvp):
    shards = np.arange(tokens + BLOCK * kvp) // BLOCK % kvp
    most = max(np.bincount(shards[start : start + tokens], minlength=kvp).max() for start in range(BLOCK * kvp))
    assert fullest_share(tokens, kvp) == most


def test_long_prefills_do_not_lose_a_key():
    # a million new tokens: 5e11 products by the formula, and as sums of what each chunk of 1000 sees
    s = request(10**6, 10**6, kvp=7)
    chunks = [replace(s, context=end, query_tokens=1000) for end in range(1000, 10**6 + 1, 1000)]
    assert keys_seen_per_rank(s) == sum(keys_seen_per_rank(chunk) for chunk in chunks)
    assert keys_seen_per_rank(replace(s, layout=Layout())) == 10**6 * (10**6 + 1) // 2


# --- A step of them --------------------------------------------------------------------------------------------------


@settings(max_examples=200)
@given(steps())
def test_activations_in_memory_grow_as_the_new_tokens_and_the_cache_does_not(s):
    for stage in heavy_stages(s.model, s.layout.pp):
        many, one = (memory_of(each, [stage], [0], GB200) for each in (s, replace(s, query_tokens=1)))
        assert many.activations == s.query_tokens * one.activations
        assert many.kv_cache == one.kv_cache


def ran(s, timing="paper", new=None):
    """The step on the NVL72 in that timing; its memory is not checked."""
    setting = Setting(model=s.model, machine=GB200, timing=TIMINGS[timing], precision=s.precision)
    return evaluate_step(setting, s.layout, s.context, s.query_tokens if new is None else new)


@settings(max_examples=100)
@given(steps())
def test_weights_in_memory_are_those_of_one_new_token(s):
    for stage in heavy_stages(s.model, s.layout.pp):
        many, one = (resident_weights(op_tables(each), stage) for each in (s, replace(s, query_tokens=1)))
        assert many == pytest.approx(one, rel=1e-12)


@settings(max_examples=100)
@given(steps())
def test_a_column_of_new_tokens_equals_each_of_them(s):
    new = np.unique(np.minimum(s.context, [1, 2, 15, 16, 17, 100, s.query_tokens]))
    setting = Setting(model=s.model, machine=GB200, timing=TIMINGS["gb200-trtllm"], precision=s.precision)
    many = evaluate_step(setting, s.layout, s.context, new)
    for place, count in enumerate(new.tolist()):
        one = evaluate_step(setting, s.layout, s.context, count)
        for quantity in ("ttl_s", "tokens_per_s_user", "tokens_per_s_gpu"):
            column = np.broadcast_to(getattr(many, quantity), len(new))
            assert float(column[place]) == pytest.approx(float(getattr(one, quantity)), rel=1e-12), quantity


@pytest.mark.parametrize("timing", TIMINGS)
def test_a_step_of_one_new_token_is_the_step_that_says_nothing_of_them(timing):
    for model, layout in (
        (R1, Layout(batch=8, kvp=16, tpf=4, ep=4, chunks=4)),
        (LLAMA, Layout(batch=4, dp=2, tpa=8, tpf=16)),
    ):
        plain = decode_step(model, GB200, layout, 10**6, timing=TIMINGS[timing], precision=FP4)
        one = decode_step(model, GB200, layout, 10**6, query_tokens=1, timing=TIMINGS[timing], precision=FP4)
        assert plain.ops == one.ops
        assert plain.ttl_s == one.ttl_s
        assert plain.tokens_per_s_user == 1 / plain.ttl_s


@settings(max_examples=100)
@given(steps(), st.sampled_from(["ideal", "paper"]))
def test_new_tokens_at_once_take_no_longer_than_one_after_another_and_no_less_than_one(s, timing):
    many, one = ran(s, timing), ran(s, timing, new=1)
    assert one.ttl_s * (1 - 1e-9) <= many.ttl_s <= s.query_tokens * one.ttl_s * (1 + 1e-9)


def test_more_new_tokens_than_the_context_are_refused_in_a_sentence():
    with pytest.raises(LayoutError, match="query_tokens 17 is more than the context of 16, which the new tokens are"):
        decode_step(R1, GB200, Layout(), 16, query_tokens=17)
