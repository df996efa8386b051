"""What lies in a GPU's memory, against the model's own totals."""

import pytest
from cases import GB200, IDEAL, LLAMA, R1, step

from helix_sim.core.layout import Layout
from helix_sim.specs.precision import Precision
from helix_sim.specs.setting import Setting
from helix_sim.step import evaluate_step

SHARDED = [
    (LLAMA, {"tpa": 8, "tpf": 8}, 8),
    (LLAMA, {"tpa": 8, "kvp": 8, "tpf": 64}, 64),
    (R1, {"tpa": 8, "tpf": 2, "ep": 4}, 8),
]


@pytest.mark.parametrize(("model", "sizes", "gpus"), SHARDED)
def test_weights_on_one_gpu_are_those_of_the_unsharded_model(model, sizes, gpus):
    weights = step(
        model, timing=IDEAL, precision=Precision(weights="fp8", kv="fp4", math="fp4"), **sizes
    ).memory.weights
    assert gpus * weights >= (model.total_parameters - model.parameters()["norms"]) * 0.999
    if model is LLAMA and sizes.get("kvp", 1) == 1:
        # every weight is on exactly one GPU: the shards sum to the model
        assert gpus * weights == pytest.approx(model.total_parameters - model.parameters()["norms"], rel=1e-12)


def test_unsharded_memory_is_the_model():
    fp8 = Precision(weights="fp8", kv="fp8", math="fp8")
    single = evaluate_step(Setting(model=R1, machine=GB200, timing=IDEAL, precision=fp8), Layout(), 1000)
    p = R1.parameters()
    latent_norms = R1.layer_count * (1536 + 512)
    router_in_bf16 = p["router"]
    expected = R1.total_parameters - p["norms"] - latent_norms + router_in_bf16
    assert single.memory.weights == pytest.approx(expected, rel=1e-9)
    assert single.memory.kv_cache == 61 * 576 * 1000
