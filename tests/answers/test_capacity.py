"""What a layout has room for, beside what servers print of their caches, and laws of what buys more."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from typer.testing import CliRunner

from helix_sim.answers.capacity import Capacity, capacity
from helix_sim.answers.explain import kv_tokens
from helix_sim.answers.request import parse_mix
from helix_sim.cli import app
from helix_sim.core.errors import SpecError
from helix_sim.core.layout import Layout
from helix_sim.search.layout_source import Options
from helix_sim.stacks.rules import start_flags
from helix_sim.stacks.stack import NAMES
from helix_sim.step import evaluate_step

GIB = 2**30


def of(model: str, machine: str, **widths: int) -> Capacity:
    """The capacity of a layout in the formats that the model's first checkpoint has, with an FP8 cache."""
    return capacity(model, machine, Options(context=100_000, widths=widths, formats={"kv": "fp8"}))


def test_a_server_of_llama_8b_holds_860_320_tokens_of_fp8_cache_in_52_51_gib() -> None:
    found = of("llama-3.1-8b", "h100-hgx")
    memory = found.memory
    room = replace(memory, fillable=memory.weights + memory.activations + 52.51 * GIB, stages=())
    assert kv_tokens(replace(found.step, memory=room)) == pytest.approx(860_320, rel=2e-4)


@pytest.mark.parametrize(("kvp", "published"), [(2, 1.98), (4, 3.96), (8, 7.85)])
def test_decode_context_parallelism_multiplies_the_tokens_of_latent_attention(kvp: int, published: float) -> None:
    # servers keep attention's projections on 1/8 of the GPUs' heads; here those of KV shards are copies
    whole = of("deepseek-r1", "b200-hgx", tpa=8, tpf=8)
    cut = of("deepseek-r1", "b200-hgx", tpa=8 // kvp, kvp=kvp, tpf=8)
    assert cut.kv_tokens / whole.kv_tokens == pytest.approx(published, rel=0.04)


def test_users_fit_and_one_more_a_group_does_not() -> None:
    found = of("llama-3.1-70b", "b200-hgx", tpa=2, dp=4, tpf=8)
    batch = found.users // 4
    assert batch * 4 == found.users

    def left(more: int) -> float:
        step = evaluate_step(found.step.setting, replace(found.step.layout, batch=batch + more), 100_000)
        return float(step.memory.left_bytes)

    assert left(0) >= 0 > left(1)


def test_tokens_are_the_room_over_the_bytes_of_a_token() -> None:
    found = of("qwen3-32b", "h200-hgx", tpa=2, tpf=2)
    # 64 layers, 4 of 8 KV heads on each GPU, keys and values of 128 in FP8
    assert found.kv_tokens == int(float(found.memory.kv_room_bytes) / (64 * 4 * 2 * 128))
    assert found.concurrency == found.kv_tokens / 100_000


def test_a_mix_holds_no_more_users_than_its_shortest_and_no_fewer_than_its_longest() -> None:
    options = Options(widths={"tpa": 8, "tpf": 8})
    users = {
        text: capacity("llama-3.1-70b", "h200-hgx", options, parse_mix(text)).users
        for text in ("32K", "32K:0.9,128K:0.1", "128K")
    }
    assert users["128K"] < users["32K:0.9,128K:0.1"] < users["32K"]


def test_each_change_buys_more_tokens_and_is_as_large_as_it_says() -> None:
    found = capacity("deepseek-r1", "b200-hgx", Options(context=100_000, widths={"tpa": 8, "tpf": 8}))
    assert {each.kind for each in found.more} == {"layout", "KV cache", "formats"}
    assert all(each.kv_tokens > found.kv_tokens for each in found.more)
    cache = next(each for each in found.more if each.kind == "KV cache")
    kv = {"kv": cache.change.removeprefix("--kv ")}
    narrow = capacity("deepseek-r1", "b200-hgx", Options(context=100_000, widths={"tpa": 8, "tpf": 8}, formats=kv))
    assert narrow.kv_tokens == cache.kv_tokens


def test_a_cache_in_a_format_that_the_machine_lacks_is_no_change_to_make() -> None:
    found = capacity("llama-3.1-8b", "h100-hgx", Options(context=1000, formats={"kv": "fp8"}))
    assert all(each.kind != "KV cache" for each in found.more)


def test_a_context_that_does_not_fit_has_no_users_and_still_a_number_of_tokens() -> None:
    found = capacity("llama-3.1-70b", "h200-hgx", Options(context=10**7, widths={"tpa": 2, "tpf": 2}))
    assert found.users == 0
    assert 0 < found.kv_tokens < 10**7


def test_weights_that_do_not_fit_are_refused() -> None:
    with pytest.raises(SpecError, match="it needs 8"):
        capacity("llama-3.1-405b", "h200-hgx", Options(context=1000))


def test_explain_says_how_many_tokens_fit() -> None:
    shown = CliRunner().invoke(app, ["explain", "llama-3.1-8b", "h100-hgx", "--context", "8K", "--json"])
    found = capacity("llama-3.1-8b", "h100-hgx", Options(context=8000))
    assert json.loads(shown.stdout)["kv_tokens"] == found.kv_tokens


def test_the_verb_prints_what_servers_print() -> None:
    shown = CliRunner().invoke(app, ["capacity", "llama-3.1-8b", "h100-hgx", "--context", "8K", "--dp", "2"])
    found = capacity("llama-3.1-8b", "h100-hgx", Options(context=8000, widths={"dp": 2}))
    assert f"GPU KV cache size: {found.kv_tokens // 2:,} tokens in each of 2 attention groups" in shown.stdout
    assert f"Maximum concurrency for 8,000 tokens per request: {found.concurrency:.2f}x" in shown.stdout
    record = json.loads(CliRunner().invoke(app, ["capacity", "llama-3.1-8b", "h100-hgx", "--json"]).stdout)
    assert record["kv_tokens"] == record["kv_tokens_per_group"] * record["attention_groups"]


@pytest.mark.parametrize("model", ["llama-3.1-70b", "qwen3-235b-a22b", "deepseek-r1"])
def test_a_change_of_layout_is_one_that_a_stack_starts(model: str) -> None:
    found = capacity(model, "h200-hgx", Options(context=32_000, widths={"tpa": 8, "tpf": 8}))
    for each in found.more:
        if each.kind == "layout":
            widths = dict(pair.split() for pair in each.change.split(", "))
            x = Layout(**{name: int(value) for name, value in widths.items()})
            assert not int(start_flags(NAMES, found.step.model, found.step.machine, found.step.precision, x))


def test_no_batch_is_printed_where_none_was_asked_for() -> None:
    printed = CliRunner().invoke(app, ["capacity", "deepseek-r1", "b200-hgx", "--dp", "8", "--ep", "8"]).stdout
    assert "batch" not in printed
    assert "dp 8, ep 8 = 8 GPUs, 8 attention groups" in printed


def test_requests_are_as_long_as_the_model_allows_unless_said() -> None:
    assert capacity("llama-3.1-8b", "h100-hgx").mix.contexts == (131_072,)
    assert capacity("llama-3.1-8b", "h100-hgx", Options(context=1_000_000)).mix.contexts == (1_000_000,)
