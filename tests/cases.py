"""What hand numbers are worked out for: two models on one machine, and one step of them."""

from helix_sim.core.layout import Layout
from helix_sim.ops.step_input import StepInput
from helix_sim.search.frame import decode_step
from helix_sim.specs.load import load_machine, load_model, load_timing
from helix_sim.specs.precision import Precision

FP4 = Precision(weights="fp4", kv="fp4", math="fp4")
GB200 = load_machine("gb200-nvl72")
PAPER = load_timing("paper")
IDEAL = load_timing("ideal")
R1 = load_model("deepseek-r1")
LLAMA = load_model("llama-3.1-405b")
MLA = R1.attention["mla"]
MOE = R1.ffn["moe"]
GQA = LLAMA.attention["gqa"]
DENSE = LLAMA.ffn["dense"]
MILLION = 1_000_000


def decode(model, context=MILLION, precision=FP4, **sizes):
    return StepInput(model=model, precision=precision, layout=Layout(**sizes), context=context)


def step(model, context=MILLION, timing=PAPER, precision=FP4, machine=GB200, **sizes):
    return decode_step(model, machine, Layout(**sizes), context, precision=precision, timing=timing)
