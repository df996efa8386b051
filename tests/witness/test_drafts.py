"""A verification on the executable layers: as many single steps, exactly; and what is rejected leaves no trace."""

import numpy as np
import pytest
from witness.helix_layer import HelixLayer
from witness.test_witness import GQA, MIXED, MLA, SHARDED, SMALL, layer_of, weights_of

from helix_sim.core.layout import Layout

KINDS = {"gqa": GQA, "mla": MLA, **SMALL}


def twins(layer, layout, old, seed):
    """Two of a layer after the same `old` tokens, and a maker of further tokens."""
    rng = np.random.default_rng(seed)
    weights, rows = weights_of(layer, rng), layout.dp * layout.batch
    pair = [HelixLayer(layer, MIXED, layout, *weights) for _ in range(2)]
    before = rng.normal(size=(rows, old, layer.hidden_size))
    for each in pair:
        each.remember(before)
    return *pair, lambda new: rng.normal(size=(2, rows, new, layer.hidden_size))


def one_by_one(ran, hidden, delta):
    outputs = [ran.step(hidden[:, i : i + 1], delta[:, i : i + 1]) for i in range(hidden.shape[1])]
    return [np.concatenate(parts, axis=1) for parts in zip(*outputs, strict=True)]


def equal(got, want):
    for mine, theirs in zip(got, want, strict=True):
        np.testing.assert_allclose(mine, theirs, rtol=0, atol=1e-10)


@pytest.mark.parametrize("drafts", [1, 3, 8])
@pytest.mark.parametrize(
    "sizes", [SHARDED["helix"], SHARDED["hop-b"], SHARDED["dp, kvp"]], ids=["helix", "hop-b", "dp"]
)
@pytest.mark.parametrize("kind", KINDS)
def test_verification_is_as_many_single_steps_and_a_rejection_leaves_no_trace(kind, sizes, drafts):
    layer, layout = layer_of(KINDS[kind], "dense"), Layout(batch=3, **sizes)
    # block edges of 16 tokens, where the append goes to the next KV shard, before, among and behind the drafts
    for old in (47 - drafts, 46, 48):
        verifying, plain, more = twins(layer, layout, old, seed=drafts)
        for accepted in (1, drafts + 1, max(drafts - 1, 1)):
            hidden, delta = more(drafts + 1)
            outputs = verifying.step(hidden, delta)
            verifying.roll_back(drafts + 1, accepted)
            expected = one_by_one(plain, hidden[:, :accepted], delta[:, :accepted])
            equal([out[:, :accepted] for out in outputs], expected)
            assert verifying.tokens == plain.tokens
        # what follows sees the same cache and the same states
        hidden, delta = more(2)
        equal(one_by_one(verifying, hidden, delta), one_by_one(plain, hidden, delta))


@pytest.mark.parametrize("kind", ["gqa", "mla"])
def test_after_a_rejection_every_shard_holds_what_it_would_have_held(kind):
    layer, layout = layer_of(KINDS[kind], "moe"), Layout(batch=2, **SHARDED["helix"])
    verifying, plain, more = twins(layer, layout, 30, seed=7)
    hidden, delta = more(5)
    verifying.step(hidden, delta)  # tokens 30 to 34: the third opens a block on another shard
    held = [shard.tokens for shard in verifying.cache]
    verifying.roll_back(5, 2)
    one_by_one(plain, hidden[:, :2], delta[:, :2])
    assert [shard.tokens for shard in verifying.cache] != held
    for mine, theirs in zip(verifying.cache, plain.cache, strict=True):
        np.testing.assert_array_equal(mine.positions, theirs.positions)
        np.testing.assert_allclose(mine.values, theirs.values, rtol=0, atol=1e-10)


def test_without_going_back_a_rejected_draft_would_be_seen():
    layer, layout = layer_of(KINDS["gated delta net"], "dense"), Layout(batch=1, **SHARDED["helix"])
    verifying, plain, more = twins(layer, layout, 20, seed=1)
    hidden, delta = more(3)
    verifying.step(hidden, delta)
    one_by_one(plain, hidden[:, :1], delta[:, :1])
    hidden, delta = more(1)
    apart = np.abs(verifying.step(hidden, delta)[0] - plain.step(hidden, delta)[0]).max()
    assert apart > 1e-3
