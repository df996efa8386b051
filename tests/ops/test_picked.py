"""What an indexer picks, as KV shards hold it: the mean of the fullest shard against a simulation of random picks."""

import numpy as np
import pytest

from helix_sim.core.layout import Layout
from helix_sim.ops.sparse import picked_per_rank
from helix_sim.ops.step_input import StepInput
from helix_sim.specs.load import load_model
from helix_sim.specs.precision import Precision

FP8 = Precision(weights="fp8", kv="fp8", math="fp8")
BLOCK = 16
"""Neighbouring entries of a KV shard's block."""


def simulated(entries, picks, block, shards, trials=400):
    """Mean over trials of the entries on the fullest shard, of `picks` distinct groups of `block` neighbours.

    Entries are dealt to shards in blocks of 16, in turn, as caches are.
    """
    rng, fullest = np.random.default_rng(5), []
    for _ in range(trials):
        first = rng.choice(entries // block, picks, replace=False)[:, None] * block
        chosen = (first + np.arange(block)).ravel()
        fullest.append(np.bincount(chosen // BLOCK % shards, minlength=shards).max())
    return np.mean(fullest)


@pytest.mark.parametrize("shards", [1, 2, 8, 32, 64])
@pytest.mark.parametrize(
    ("name", "kind", "error"),
    [
        ("deepseek-v3.2", "sparse", 0.02),
        ("deepseek-v4-flash", "csa", 0.02),
        ("minimax-m3", "sparse", 0.06),  # 16 blocks on few groups of shards: what one misses, another has
    ],
)
def test_the_fullest_shard_has_as_many_picks_as_in_a_simulation(name, kind, error, shards):
    model, context = load_model(name), 1_048_576
    a = model.attention[kind]
    s = StepInput(model=model, precision=FP8, layout=Layout(kvp=shards, tpf=shards), context=context)
    mean = simulated(context // a.ratio, a.indexer.top_k, a.indexer.block_tokens, shards)
    assert float(picked_per_rank(s, a)) == pytest.approx(mean, rel=error)


def test_a_context_of_no_more_than_the_picks_is_read_as_it_is_dealt():
    model = load_model("deepseek-v3.2")
    (a,) = model.attention.values()
    s = StepInput(model=model, precision=FP8, layout=Layout(kvp=8, tpf=8), context=2048)
    assert float(picked_per_rank(s, a)) == 2048 / 8
