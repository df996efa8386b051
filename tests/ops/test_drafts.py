"""Drafting: n passes of a small module and one verification of n + 1 tokens, over the tokens that are accepted."""

from dataclasses import replace

import numpy as np
import pytest
import yaml

from helix_sim.core.errors import SpecError
from helix_sim.core.layout import AXES, Layout
from helix_sim.one_layout import LayoutError
from helix_sim.ops.ends import closing_ops, opening_ops
from helix_sim.search.frame import decode_step
from helix_sim.search.plan import plan
from helix_sim.search.sweep import run_plan
from helix_sim.specs.draft import Acceptance, Draft
from helix_sim.specs.drafter import drafter_of
from helix_sim.specs.load import load_draft, load_model, load_sweep, parse, shipped
from helix_sim.specs.precision import Precision
from helix_sim.specs.sweep import Sweep
from helix_sim.step import evaluate_step, setting_of, step_input

R1 = load_model("deepseek-r1")
MTP = load_draft("deepseek-r1-mtp")
HELIX = Layout(batch=8, tpa=1, kvp=8, ep=8, pp=2, chunks=4)


def drafting(n, x=HELIX, timing="paper", draft=MTP, model=R1, context=10**6):
    return decode_step(model, "gb200-nvl72", replace(x, draft_tokens=n), context, timing=timing, draft=draft)


def passes(step, name):
    """Ops of a step that belong to some passes of its draft, by their own names."""
    return {op.removesuffix(f"[{name}]"): step.ops[op] for op in step.ops if op.endswith(f"[{name}]")}


@pytest.mark.parametrize("timing", ["paper", "gb200-trtllm"])
def test_without_drafts_nothing_changes_whether_or_not_something_could_draft(timing):
    plain = decode_step(R1, "gb200-nvl72", HELIX, 10**6, timing=timing)
    able = drafting(0, timing=timing)
    for name in ("ttl_s", "step_s", "pass_s", "tokens_per_s_gpu", "ttl_interval_s"):
        assert getattr(able, name) == getattr(plain, name), name
    for name in ("weights", "kv_cache", "activations", "fillable"):
        assert getattr(able.memory, name) == getattr(plain.memory, name), name
    assert plain.accepted_tokens == able.accepted_tokens == 1


@pytest.mark.parametrize("n", [1, 3])
def test_a_step_verifies_n_plus_1_tokens_and_then_drafts_n_of_which_the_first_pass_takes_in_all(n):
    step, verified = drafting(n), decode_step(R1, "gb200-nvl72", HELIX, 10**6 + n, query_tokens=n + 1)
    for op, work in verified.ops.items():
        assert work == step.ops[op], op
    first, later, each = (passes(step, name) for name in ("first draft", "later draft", "draft"))
    module = replace(step_input(step.setting, step.layout, 10**6), model=drafter_of(MTP, R1).module, drafter=None)
    assert first["embedding"] == opening_ops(replace(module, query_tokens=n + 1))["embedding"]
    assert each["head"] == closing_ops(replace(module, query_tokens=1))["head"]
    assert first["routed_up"] == step.ops["routed_up"]
    assert first["attention_core"].kv_bytes == later["attention_core"].kv_bytes == step.ops["attention_core"].kv_bytes
    counts = [step.repeats[f"attention_core[{name}]"] for name in ("first draft", "later draft")]
    assert counts == [1, n - 1]
    assert step.repeats["head[draft]"] == n


def test_the_fusing_projection_makes_one_state_of_two():
    fuse = passes(drafting(1), "first draft")["fuse"]
    assert fuse.flops == 2 * 8 * 2 * (2 * 7168 / 8) * 7168  # 8 requests of 2 tokens; 2 states over 8 ranks


def test_the_ttl_is_the_steps_time_over_its_accepted_tokens_and_throughput_counts_these():
    step = drafting(2)
    accepted = 1 + 0.85 + 0.85 * 0.608
    assert step.accepted_tokens == pytest.approx(accepted)
    assert step.ttl_s == pytest.approx(step.step_s / accepted)
    assert step.tokens_per_s_user == pytest.approx(accepted / step.step_s)
    assert step.tokens_per_s_gpu == pytest.approx(accepted * step.layout.users / step.layout.gpus / step.step_s)
    rows = step.to_frame()
    assert (rows["seconds"] - rows["hidden_s"]).sum() == pytest.approx(step.step_s)
    assert rows["share"].sum() == pytest.approx(1)


def test_weights_of_a_module_are_held_once_and_its_embedding_and_head_are_the_models():
    one, four = (drafting(n, HELIX).memory for n in (1, 4))
    assert one.weights == four.weights
    x = replace(HELIX, pp=1)
    added = drafting(1, x).memory.weights - drafting(0, x).memory.weights
    step = drafting(1, x)
    own = passes(step, "first draft")
    expected = sum(work.resident_weight_bytes for name, work in own.items() if name != "embedding")
    assert added == pytest.approx(expected, rel=1e-9)


def test_a_later_stage_holds_the_embedding_again():
    own = passes(drafting(1), "first draft")["embedding"]
    assert own.resident_weight_bytes > 0
    assert passes(drafting(1, replace(HELIX, pp=1)), "first draft")["embedding"].resident_weight_bytes == 0


def test_a_module_that_a_checkpoint_leaves_unquantised_is_read_in_its_own_format():
    in_fp4 = Precision(weights="nvfp4", kv="fp8", math="fp4")
    setting = setting_of(R1, "gb200-nvl72", precision=in_fp4, draft=MTP)
    step = evaluate_step(setting, replace(HELIX, draft_tokens=1), 10**6)
    own, layer = passes(step, "first draft")["routed_up"], step.ops["routed_up"]
    assert (own.weights, own.math) == ("bf16", "bf16")
    assert own.weight_bytes == pytest.approx(layer.weight_bytes * 16 / 4.5)
    cores = passes(step, "first draft")["attention_core"], step.ops["attention_core"]
    assert cores[0].kv_bytes == cores[1].kv_bytes
    assert cores[0].math == cores[1].math == "fp4"
    unnamed = evaluate_step(setting_of(R1, "gb200-nvl72", draft=MTP), replace(HELIX, draft_tokens=1), 10**6)
    assert passes(unnamed, "first draft")["routed_up"].weights == unnamed.ops["routed_up"].weights == "fp8-block"


def test_a_cache_has_the_drafts_in_flight_and_the_modules_own_layer():
    x = Layout(batch=4, tpa=8, ep=8)
    kv = {n: float(drafting(n, x, context=1000).memory.kv_cache) for n in (0, 1, 3)}
    per_token = 4 * 576 * 2
    assert kv[0] == 61 * 1000 * per_token
    assert kv[1] == 62 * 1001 * per_token
    assert kv[3] == 62 * 1003 * per_token


def test_linear_layers_keep_a_state_of_each_position_to_go_back_to():
    model = load_model("qwen3.5-397b-a17b")
    draft = load_draft("qwen3.5-397b-a17b-mtp")
    x = Layout(batch=1, tpa=8, ep=8)
    state = [
        op.kv_bytes for n in (0, 3) for op in [drafting(n, x, draft=draft, model=model).ops["state_update[delta]"]]
    ]
    # one read and as many written as there are positions: 2 and 5
    assert state[1] == pytest.approx(state[0] * 5 / 2)
    caches = [drafting(n, x, draft=draft, model=model, context=64).memory.kv_cache for n in (0, 1)]
    assert caches[1] > 1.8 * caches[0]  # at a short context the states are most of it


def test_drafts_run_on_the_stage_that_has_the_models_end_and_may_make_it_the_busiest():
    few, many = drafting(1, replace(HELIX, pp=2)), drafting(4, replace(HELIX, pp=4))
    assert many.stage["ends", "closing"] == 1
    assert many.repeats["attention_core[later draft]"] == 3
    lone = few.pass_s + 1e-12
    assert lone < few.step_s


def test_hop_b_is_of_verification_alone():
    step = drafting(2)
    assert step.hidden_s["exchange"] > 0
    assert step.hidden_s["exchange[first draft]"] == 0


def test_a_column_of_draft_lengths_equals_each_alone():
    frame = decode_step(
        R1, "gb200-nvl72", replace(HELIX, draft_tokens=[0, 1, 2, 5]), "1M", draft=MTP, timing="gb200-trtllm"
    )
    for n, row in zip((0, 1, 2, 5), frame.itertuples(), strict=True):
        one = drafting(n, timing="gb200-trtllm")
        assert row.ttl_s == pytest.approx(float(one.ttl_s), rel=1e-12)
        assert row.tokens_per_s_gpu == pytest.approx(float(one.tokens_per_s_gpu), rel=1e-12)
        assert row.resident_bytes == pytest.approx(float(one.memory.resident_bytes), rel=1e-12)


def sweep(**changes):
    content = load_sweep("paper-deepseek-r1").model_dump(by_alias=True, exclude_none=True)
    content |= {
        "draft": "deepseek-r1-mtp", "draft_tokens": [0, 1, 3], "contexts": ["1M", 100_001],
        "gpus": [1, 4, 8, 12], "batch": {"dense_to": 3, "growth": 3, "to": 60}, "chunks": [1, 2],
    }  # fmt: skip
    return parse(Sweep, content | changes, "a sweep that drafts")


@pytest.mark.parametrize(
    ("model", "draft", "timing"),
    [
        ("deepseek-r1", "deepseek-r1-mtp", "paper"),
        ("deepseek-r1", "deepseek-r1-mtp", "gb200-trtllm"),
        ("llama-3.1-8b", "llama-3.1-8b-eagle3", "gb200-trtllm"),
        ("qwen3.5-397b-a17b", "qwen3.5-397b-a17b-mtp", "paper"),
        ("kimi-k2.5", "kimi-k2.5-eagle3", "paper"),
    ],
)
def test_every_layout_of_a_sweep_that_drafts_equals_its_step_evaluated_directly(model, draft, timing):
    planned, parts = plan(sweep(model=model, draft=draft, timing=timing, chunks_anyway=True)), []
    run_plan(planned, on_points=parts.append)
    rows = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    assert set(rows["draft_tokens"]) == {0, 1, 3}
    assert len(rows["id"]) > 500
    step = evaluate_step(planned.setting, Layout(**{axis: rows[axis] for axis in AXES}), rows["context"].astype(float))
    for name, found in (
        ("ttl_s", step.ttl_s),
        ("tokens_per_s_gpu", step.tokens_per_s_gpu),
        ("resident_bytes", step.memory.resident_bytes),
    ):
        np.testing.assert_allclose(rows[name], found, rtol=1e-12, atol=0)
    for place in np.random.default_rng(2).choice(len(rows["id"]), 10, replace=False):
        _, context, x = planned.layout_at(int(rows["id"][place]))
        assert {axis: int(rows[axis][place]) for axis in AXES} == x.columns()
        assert context == rows["context"][place]


def test_a_frontier_drafts_where_that_pays_and_contains_the_one_without():
    found = run_plan(plan(sweep(contexts=["1M"], draft_tokens=None)))
    plain = run_plan(plan(sweep(contexts=["1M"], draft=None, draft_tokens=None)))
    for name, curve in found.frontiers[10**6].items():
        if len(without := plain.frontiers[10**6][name]):
            assert (curve.attained(without.interactivity) >= without.throughput * (1 - 1e-12)).all()
            assert max(curve.columns["draft_tokens"]) > 0


def test_a_draft_of_another_model_takes_as_long_as_that_model(tmp_path):
    file = tmp_path / "external.yaml"
    file.write_text(yaml.safe_dump({
        "kind": "draft", "name": "by-8b", "method": "external", "target": "llama-3.1-70b", "source": "an example",
        "model": "llama-3.1-8b", "acceptance": {"probabilities": [0.7], "source": "assumed: an example"},
    }))  # fmt: skip
    model, x = load_model("llama-3.1-70b"), Layout(batch=4, tpa=4, draft_tokens=1)
    step = decode_step(model, "gb200-nvl72", x, 9999, draft=file)
    setting = replace(step.setting, model=load_model("llama-3.1-8b"), drafter=None)
    own = evaluate_step(setting, replace(x, draft_tokens=0), 10_000, query_tokens=2)
    drafted = passes(step, "first draft")
    for op, work in own.ops.items():
        if op in drafted:
            assert drafted[op] == work, op
    weights = step.memory.weights - decode_step(model, "gb200-nvl72", replace(x, draft_tokens=0), 9999).memory.weights
    assert weights == pytest.approx(float(own.memory.weights), rel=1e-9)


def test_acceptance_by_probability_is_a_sum_of_products_and_by_length_a_table():
    by_share = Acceptance(probabilities=[0.9, 0.5], source="assumed: an example")
    assert by_share.tokens(np.array([0, 1, 2, 3])).tolist() == pytest.approx([1, 1.9, 2.35, 2.575])
    table = Acceptance(lengths=[1.7, 2.2], source="assumed: an example")
    assert table.tokens(np.array([0, 1, 2])).tolist() == [1, 1.7, 2.2]


# --- A block of drafts in one pass -----------------------------------------------------------------------------------

K3 = load_model("kimi-k3")
BLOCK = Layout(batch=4, tpa=16, ep=16)


def blocks(n):
    return drafting(n, BLOCK, draft=load_draft("kimi-k3-dspark"), model=K3, context=65_536)


def test_a_block_of_drafts_is_one_pass_of_its_layers_and_a_small_correction_each():
    few, many = blocks(2), blocks(7)
    for step, n in ((few, 2), (many, 7)):
        assert step.repeats["attention_core[block]"] == 5
        assert step.repeats["head[block]"] == 1
        assert step.repeats["markov_correction[draft]"] == n
        rows = passes(step, "block")
        assert rows["head"].flops == 2 * 4 * n * 7168 * 163840 / 16
        assert rows["dense_down"].flops == 2 * 4 * (n + 1) * 7168 * 14336 / 16
        assert passes(step, "draft")["markov_correction"].flops == 2 * 4 * 256 * 163840 / 16
    assert "attention_core[later draft]" not in many.ops


@pytest.mark.parametrize(
    ("name", "beside", "published_B"),
    [
        # fusion, and the two matrices of the correction; the publisher counts the model's embedding
        ("kimi-k3-dspark", 5 * 7168**2 + 2 * 256 * 163840, 3.56),
        # head, fusion, and the doubled input of queries, keys and values; 6,149,993,396 bytes of BF16
        ("minimax-m3-eagle3", 200064 * 6144 + 3 * 6144**2 + 6144 * (64 + 8) * 128, 3.075),
        # head, fusion, and the doubled input of both latents; 6 GB of BF16
        ("kimi-k2.5-eagle3", 163840 * 7168 + 3 * 7168**2 + 7168 * (1536 + 576), 3.0),
    ],
)
def test_weights_of_a_trained_drafter_are_those_that_its_publisher_counts(name, beside, published_B):
    draft = load_draft(name)
    module = drafter_of(draft, load_model(draft.target)).module
    assert (module.total_parameters + beside) / 1e9 == pytest.approx(published_B, rel=0.01)


def test_more_acceptance_is_more_drafts_accepted_and_never_more_than_all():
    drafter = drafter_of(MTP, R1)
    assert drafter.scaled(1.1).tokens(2) - 1 == pytest.approx(1.1 * (drafter.tokens(2) - 1))
    assert drafter.scaled(100).tokens(np.array([0, 1, 4])).tolist() == [1, 2, 5]


@pytest.mark.parametrize("name", shipped("draft"))
def test_a_shipped_draft_is_of_a_shipped_model_and_says_where_its_acceptance_comes_from(name):
    draft = load_draft(name)
    assert draft.name == name
    drafter = drafter_of(draft, load_model(draft.target))
    assert "https://" in draft.acceptance.source
    longest = min(draft.acceptance.longest, 8)
    assert (np.diff(drafter.tokens(np.arange(longest + 1))) > 0).all()


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"acceptance": {"source": "assumed: x"}}, "give lengths or probabilities, one of the two"),
        (
            {"acceptance": {"lengths": [2.5], "source": "assumed: x"}},
            "a step of 1 drafts yields 1 to 2 tokens, not 2.5",
        ),
        ({"acceptance": {"probabilities": [1.5], "source": "assumed: x"}}, "acceptance.probabilities"),
        ({"layers": []}, "give layers, or the model of an external draft"),
        ({"model": "llama-3.1-8b"}, "an external draft names its model, and no other does"),
        ({"vocab_size": 10}, "vocab_size is of a head of its own"),
        ({"layers": [{"attention": "mla", "ffn": "huge"}]}, "ffn 'huge' is neither its own nor of deepseek-r1"),
        ({"target": "glm-5"}, "drafts for glm-5, not for deepseek-r1; use deepseek-r1-mtp"),
    ],
)
def test_a_draft_that_cannot_be_is_a_sentence(change, sentence):
    content = MTP.model_dump(exclude_none=True) | change
    with pytest.raises(SpecError) as error:
        drafter_of(parse(Draft, content, "draft.yaml"), R1)
    assert sentence in str(error.value)


@pytest.mark.parametrize(
    ("layout", "options", "sentence"),
    [
        (Layout(draft_tokens=2), {}, "draft_tokens 2 needs a draft: name its file; use deepseek-r1-mtp"),
        (Layout(draft_tokens=-1), {"draft": MTP}, "it must be a whole number from 0 to"),
        (Layout(draft_tokens=65), {"draft": MTP}, "draft_tokens 65 is more than the 64 that deepseek-r1-mtp has"),
        (Layout(draft_tokens=1), {"draft": MTP, "query_tokens": 2}, "draft_tokens 1 are new tokens already"),
    ],
)
def test_drafts_that_cannot_be_are_a_sentence(layout, options, sentence):
    with pytest.raises(LayoutError) as error:
        decode_step(R1, "gb200-nvl72", layout, 100, **options)
    assert sentence in str(error.value)


def test_a_frame_with_drafts_and_no_draft_is_a_sentence():
    with pytest.raises(SpecError, match="needs a draft"):
        decode_step(R1, "gb200-nvl72", Layout(draft_tokens=[0, 1]), 100)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"draft": None}, "what drafts them"),
        ({"draft_tokens": {"from": 3, "to": 2}}, "from 3 to 2 is no range"),
        ({"draft_tokens": [99]}, "99 must be at most 64"),
        ({"draft": "qwen3.5-397b-a17b-mtp"}, "not for deepseek-r1; use deepseek-r1-mtp"),
    ],
)
def test_a_sweep_that_cannot_draft_is_a_sentence(changes, sentence):
    with pytest.raises(SpecError) as error:
        plan(sweep(**changes))
    assert sentence in str(error.value)


def test_a_setting_names_its_draft():
    assert setting_of(R1, "gb200-nvl72", draft="deepseek-r1-mtp").drafter.draft.name == "deepseek-r1-mtp"
