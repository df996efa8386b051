"""Copies of experts and where experts lie: held against a simulation of routing, memory, and the search."""

from dataclasses import replace

import numpy as np
import pytest
from cases import GB200, MOE, R1, decode, step

from helix_sim.answers.explain import explain
from helix_sim.core.layout import AXES, Layout
from helix_sim.feasibility import Reason, sentences, shape_reasons
from helix_sim.ops.routing import busiest_rank, packed_experts
from helix_sim.output.export import export
from helix_sim.search.plan import plan
from helix_sim.search.sweep import run_plan
from helix_sim.specs.ffn import Placement, RepeatedExperts
from helix_sim.specs.load import load_sweep, parse
from helix_sim.specs.sweep import Sweep
from helix_sim.step import evaluate_step

BALANCED = Placement(value="balanced", source="assumed: a test")


def of_skew(skew, **more):
    return MOE.model_copy(update={"routing_skew": skew, **more})


def simulated(ffn, tokens, ep, copies, trials=150):
    """Mean largest pairs and distinct experts of ep ranks: tokens pick experts by popularity, and copies at random."""
    rng = np.random.default_rng(5)
    weight = np.arange(1, ffn.routed + 1.0) ** -ffn.routing_skew
    count = np.ones(ffn.routed, dtype=int)
    for _ in range(copies):
        count[np.argmax(weight / count)] += 1
    owner = np.repeat(np.arange(ffn.routed), count)
    load = (weight / count)[owner]
    rank, sums, held = np.empty(len(owner), dtype=int), np.zeros(ep), np.zeros(ep, dtype=int)
    for slot in np.argsort(-load, kind="stable"):
        free = np.flatnonzero(held < len(owner) / ep)
        rank[slot] = free[np.argmin(sums[free])]
        sums[rank[slot]] += load[slot]
        held[rank[slot]] += 1
    first = np.concatenate([[0], np.cumsum(count)[:-1]])
    pairs, read = [], []
    for _ in range(trials):
        keys = np.log(weight) + rng.gumbel(size=(tokens, ffn.routed))  # top-k of these: picks without replacement
        picks = np.argpartition(-keys, ffn.top_k, axis=1)[:, : ffn.top_k].ravel()
        slots = first[picks] + rng.integers(0, 1 << 30, len(picks)) % count[picks]
        hits = np.bincount(slots, minlength=len(owner))
        pairs.append(np.bincount(rank, hits, minlength=ep).max())
        read.append(np.bincount(rank, hits > 0, minlength=ep).max())
    return np.mean(pairs), np.mean(read)


@pytest.mark.parametrize(
    ("tokens", "ep", "copies", "skew"),
    [(2560, 320, 64, 0.0), (256, 320, 64, 0.0), (512, 32, 32, 0.0), (512, 32, 32, 0.6), (1024, 72, 32, 0.6)],
)
def test_the_busiest_rank_with_copies_is_that_of_simulated_routing(tokens, ep, copies, skew):
    rank = busiest_rank(decode(R1, batch=tokens, tpa=ep, ep=ep, redundant_experts=copies), of_skew(skew))
    pairs, read = simulated(MOE if not skew else of_skew(skew), tokens, ep, copies)
    assert rank.held == (256 + copies) / ep
    assert rank.pairs == pytest.approx(pairs, rel=0.06)
    assert rank.read == pytest.approx(read, rel=0.06)


def test_balanced_placement_of_uniform_routing_is_random_placement():
    for sizes in ({"batch": 64, "dp": 32, "ep": 32}, {"batch": 3, "tpa": 8, "ep": 4}):
        s = decode(R1, **sizes)
        packed, lying = busiest_rank(s, of_skew(0, placement=BALANCED)), busiest_rank(s, MOE)
        for name in ("held", "read", "pairs", "foreign", "arrived"):
            assert getattr(packed, name) == pytest.approx(getattr(lying, name), rel=1e-9), name


def test_packing_and_copies_each_spare_the_busiest_rank_of_skewed_routing():
    sizes = {"batch": 64, "dp": 32, "ep": 32}
    lying = busiest_rank(decode(R1, **sizes), of_skew(0.8)).pairs
    packed = busiest_rank(decode(R1, **sizes), of_skew(0.8, placement=BALANCED)).pairs
    copied = busiest_rank(decode(R1, **sizes, redundant_experts=32), of_skew(0.8)).pairs
    assert lying > 1.1 * packed > 1.1 * copied > 64 * 32 * 8 / 32


@pytest.mark.parametrize(("skew", "ep", "copies"), [(0.0, 320, 64), (0.7, 32, 32), (2.0, 48, 32), (0.5, 10, 0)])
def test_packing_loses_no_pick(skew, ep, copies):
    packed = packed_experts(of_skew(skew), ep, copies)
    assert len(packed.slots) == 256 + copies
    assert packed.slots.sum() == pytest.approx(8, rel=1e-9) == packed.loads.sum()
    assert (np.diff(packed.loads) <= 0).all()


def test_a_copy_takes_the_memory_of_an_expert_and_no_more():
    without = step(R1, batch=8, dp=64, ep=64).memory
    copied = step(R1, batch=8, dp=64, ep=64, redundant_experts=64).memory
    expert = 3 * 7168 * 2048 * 0.5  # FP4
    assert copied.weights - without.weights == pytest.approx(58 * expert, rel=1e-12)
    assert copied.kv_cache == without.kv_cache


def test_as_many_ranks_as_experts_and_copies():
    sizes = {"batch": 1, "dp": 320, "ep": 320}
    assert shape_reasons(R1, GB200, Layout(**sizes, redundant_experts=64), 4096) == 0
    assert shape_reasons(R1, GB200, Layout(**sizes), 4096) & Reason.EP_WITHOUT_EXPERTS.flag
    uneven = Layout(batch=1, dp=32, ep=32, redundant_experts=33)
    flags = int(shape_reasons(R1, GB200, uneven, 4096))
    assert flags == Reason.REDUNDANT_EXPERTS.flag
    [text] = sentences(flags, R1, GB200, uneven, 4096)
    assert "33 copies" in text
    assert "set --redundant-experts to 32" in text


def test_the_answer_says_which_routing_is_assumed():
    uniform = explain(step(R1, batch=8, dp=64, ep=64)).record()["routing"]["moe"]
    assert uniform.startswith("uniform over 256 experts, of which it reads the most (assumed)")
    copied = explain(step(R1, batch=8, dp=64, ep=64, redundant_experts=64)).record()["routing"]["moe"]
    assert "64 copies of the busiest packed by popularity" in copied


@pytest.mark.parametrize(
    ("stack", "option", "said"),
    [("sglang", "--ep-num-redundant-experts", "64"), ("vllm", "--eplb-config", "64"), ("trtllm", "moe_config", "320")],
)
def test_copies_are_exported(stack, option, said):
    written = export(step(R1, context=4096, batch=8, dp=64, ep=64, redundant_experts=64), to=stack)
    assert said in str(written.options[option])


@pytest.mark.parametrize("copies", [[0, 32, 48], [0, 16]])  # the second once had no copy among the widest EP
@pytest.mark.parametrize("model", ["deepseek-r1", "kimi-k3"])
def test_a_sweep_searches_copies_as_the_step_has_them(model, copies):
    spec = load_sweep("paper-deepseek-r1").model_dump(by_alias=True) | {"model": model}
    family = {"title": "wide EP", "dp": "many", "tpa": "free", "ep": "many", "redundant_experts": copies}
    spec |= {"families": {"wide": family}, "groups": {}, "contexts": [65536], "gpus": [8, 12, 32, 64, 72]}
    spec |= {"batch": {"dense_to": 3, "growth": 2, "to": 48}}
    planned = plan(parse(Sweep, spec, "copies"))
    parts = []
    run_plan(planned, on_points=parts.append)
    rows = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    assert set(rows["redundant_experts"]) == set(copies)
    found = evaluate_step(planned.setting, Layout(**{axis: rows[axis] for axis in AXES}), 65536.0)
    np.testing.assert_allclose(rows["ttl_s"], found.ttl_s, rtol=1e-12, atol=0)
    np.testing.assert_allclose(rows["resident_bytes"], found.memory.resident_bytes, rtol=1e-12, atol=0)


# --- Tokens of one request that repeat experts -----------------------------------------------------------------------


def repeating(share):
    return MOE.model_copy(update={"repeated": RepeatedExperts(value=share, source="assumed: a test")})


def distinct_of_chains(share, requests, new, trials=300):
    """Mean distinct experts of requests whose tokens keep each expert of the one before with a chance, or draw anew."""
    rng, found = np.random.default_rng(3), []
    for _ in range(trials):
        hit = np.zeros(256, dtype=bool)
        for _ in range(requests):
            picks = rng.permutation(256)[:8]
            hit[picks] = True
            for _ in range(new - 1):
                kept = picks[rng.random(8) < share]
                others = np.setdiff1d(np.arange(256), kept)
                picks = np.concatenate([kept, rng.permutation(others)[: 8 - len(kept)]])
                hit[picks] = True
        found.append(hit.sum())
    return np.mean(found)


@pytest.mark.parametrize(("share", "requests", "new"), [(0.2, 1, 4), (0.2, 8, 4), (0.35, 8, 3), (0.5, 2, 9), (0, 5, 3)])
def test_distinct_experts_of_requests_that_repeat_them_are_those_of_simulated_chains(share, requests, new):
    rank = busiest_rank(replace(decode(R1, batch=requests), query_tokens=new), repeating(share))
    assert float(rank.read) == pytest.approx(distinct_of_chains(share, requests, new), rel=0.02)


def test_one_new_token_a_request_repeats_nothing_and_all_repeated_is_one_token():
    one, many = (replace(decode(R1, batch=6, tpa=4, ep=4), query_tokens=q) for q in (1, 5))
    for name in ("read", "pairs", "foreign", "arrived"):
        assert getattr(busiest_rank(one, repeating(0.9)), name) == getattr(busiest_rank(one, repeating(0)), name), name
    assert busiest_rank(many, repeating(1)).read == pytest.approx(busiest_rank(one, repeating(0)).read)
    assert busiest_rank(many, repeating(1)).pairs == busiest_rank(many, repeating(0)).pairs
    packed = repeating(0.5).model_copy(update={"placement": BALANCED})
    assert busiest_rank(many, packed).read == pytest.approx(busiest_rank(many, repeating(0.5)).read, rel=1e-9)
