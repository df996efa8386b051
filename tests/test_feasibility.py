"""Layouts that cannot run say why, every reason at once."""

import pytest
from cases import LLAMA, R1, step

from helix_sim.one_layout import LayoutError
from helix_sim.specs.load import load_machine, load_model


@pytest.mark.parametrize(
    ("model", "sizes", "sentence"),
    [
        (LLAMA, {"tpa": 256, "tpf": 256}, "256 ranks share 128 query heads"),
        (LLAMA, {"tpa": 8, "tpf": 4}, r"tpf·ep = 4 spans neither all 8 GPUs"),
        (LLAMA, {"tpa": 8, "tpf": 4, "ep": 2}, "a dense FFN is one expert"),
        (LLAMA, {"tpa": 8, "tpf": 8, "pp": 127}, "more than the 126 layers"),
        (LLAMA, {"tpa": 8, "tpf": 8, "chunks": 2}, "more than the batch of 1"),
        (LLAMA, {"batch": 4, "tpa": 8, "tpf": 8, "chunks": 2}, "nothing to overlap"),
        (LLAMA, {"tpa": 1, "tpf": 1}, r"needs 3\d\d\.\d GB on the fullest GPU"),
        (LLAMA, {"batch": 0}, "batch is 0; it must be a whole number from 1"),
        (R1, {"dp": 512, "tpf": 1, "ep": 512}, "512 is more than the 256 routed experts"),
        (R1, {"dp": 1024, "tpf": 4, "ep": 256}, "needs 1024 GPUs"),
    ],
)
def test_a_layout_that_cannot_run_says_why(model, sizes, sentence):
    with pytest.raises(LayoutError, match=sentence):
        step(model, **sizes)


def test_every_reason_is_told_at_once():
    with pytest.raises(LayoutError) as caught:
        step(LLAMA, tpa=8, tpf=4, pp=500, chunks=3)
    assert len(caught.value.problems) >= 3


def test_a_format_the_machine_cannot_multiply_is_named_with_those_it_can():
    with pytest.raises(ValueError, match="h200-hgx has no fp4 arithmetic; use fp8 or bf16"):
        step(load_model("llama-3.1-8b"), 1000, machine=load_machine("h200-hgx"))
