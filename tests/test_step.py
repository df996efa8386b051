"""A step as a whole: its ops sum to its TTL, and move as the machine, the timing and the layout say."""

import pytest
from cases import GB200, IDEAL, LLAMA, PAPER, R1, decode, step

from helix_sim.one_layout import LayoutError
from helix_sim.specs.load import load_machine, load_model
from helix_sim.specs.precision import Precision
from helix_sim.step import step_ops


@pytest.mark.parametrize(
    ("model", "sizes"),
    [
        (R1, {"batch": 8, "kvp": 16, "tpf": 4, "ep": 4, "chunks": 4}),
        (R1, {"batch": 4, "dp": 8, "tpf": 1, "ep": 8}),
        (R1, {"batch": 4, "dp": 4, "kvp": 4, "tpf": 4, "ep": 4}),
        (LLAMA, {"batch": 4, "tpa": 8, "pp": 3, "tpf": 8}),
        (LLAMA, {"batch": 4, "tpa": 8, "kvp": 4, "tpf": 8}),
        (LLAMA, {"batch": 4, "dp": 2, "tpa": 8, "tpf": 16}),
    ],
)
def test_ops_minus_hidden_time_are_the_ttl(model, sizes):
    s = step(model, **sizes)
    ops = s.to_frame()
    assert ops["seconds"].sum() - ops["hidden_s"].sum() == pytest.approx(float(s.ttl_s), rel=1e-12)
    assert ops["share"].sum() == pytest.approx(1.0, rel=1e-12)
    assert (ops["hidden_s"] <= ops["seconds"]).all()


def test_pipeline_stages_pass_a_token_on_and_keep_all_users_in_flight():
    one, three = step(LLAMA, batch=4, tpa=8, tpf=8), step(LLAMA, batch=4, tpa=8, pp=3, tpf=8)
    assert three.layout.users == 12
    assert three.tokens_per_s_user < one.tokens_per_s_user
    assert three.memory.weights < one.memory.weights / 2


def test_the_ideal_timing_is_a_bound():
    for sizes in ({"batch": 8, "tpa": 8, "kvp": 8, "tpf": 64}, {"batch": 1, "tpa": 64, "tpf": 64}):
        assert step(LLAMA, timing=IDEAL, **sizes).ttl_s < step(LLAMA, timing=PAPER, **sizes).ttl_s


def test_without_latencies_helix_wins_as_much_as_a_plain_roofline_says():
    # the paper's digest: no fixed latencies at all gives 2.7x (Llama) and 6.6x (R1); attention and weight reads alone
    def ratio(model, tp, helix):
        return float(step(model, timing=IDEAL, **tp).ttl_s / step(model, timing=IDEAL, **helix).ttl_s)

    llama = ratio(LLAMA, {"tpa": 64, "tpf": 64}, {"tpa": 8, "kvp": 8, "tpf": 64})
    assert llama == pytest.approx(2.7, rel=0.25)


def with_hop_b(**shares):
    """The paper's timing with other shares of a latency that each chunk pays again."""
    changed = {name: getattr(PAPER.hop_b, name).model_copy(update={"value": value}) for name, value in shares.items()}
    return PAPER.model_copy(update={"hop_b": PAPER.hop_b.model_copy(update=changed)})


def test_chunks_of_the_papers_figure_pay_their_latencies_once():
    off, on = (step(LLAMA, batch=8, tpa=8, kvp=8, tpf=64, chunks=n) for n in (1, 8))
    assert on.times["attention_core"].latency_s == pytest.approx(PAPER.kernel.latency_s)
    assert on.times["exchange"].latency_s == pytest.approx(PAPER.collective.latency_s)
    # seven of eight bodies of the exchange run behind attention, and all of its flight but the last one's
    assert on.hidden_s["exchange"] == pytest.approx(7 / 8 * off.times["exchange"].body_s, rel=1e-12)
    assert on.ttl_s < off.ttl_s


def test_a_chunk_pays_its_launch_issue_and_occupancy_again():
    off = step(LLAMA, batch=8, tpa=8, kvp=8, tpf=64)
    on = step(
        LLAMA,
        batch=8,
        tpa=8,
        kvp=8,
        tpf=64,
        chunks=8,
        timing=with_hop_b(kernel_issue=1.0, exchange_issue=0.25, exchange_occupancy=0.5),
    )
    kernel, phase = PAPER.kernel.latency_s, PAPER.collective.latency_s
    assert on.times["attention_core"].latency_s == pytest.approx(8 * kernel)
    assert on.times["exchange"].latency_s == pytest.approx((8 * 0.75 + 0.25) * phase)
    assert on.ttl_s > off.ttl_s


def test_twice_the_gpus_beyond_the_domain_pay_the_network():
    h100 = load_machine("h100-hgx")
    fp8 = Precision(weights="fp8", kv="fp8", math="fp8")
    model = load_model("llama-3.1-70b")
    inside = step(model, 100_000, machine=h100, precision=fp8, tpa=8, tpf=8)
    outside = step(model, 100_000, machine=h100, precision=fp8, tpa=16, tpf=16)
    assert outside.times["attention_all_reduce"].seconds > inside.times["attention_all_reduce"].seconds


def test_sizes_beyond_any_machine_do_not_wrap_around():
    roomy = GB200.model_copy(update={"memory_GB": GB200.memory_GB.model_copy(update={"value": 1e30})})
    one = step(LLAMA, 10**9, machine=roomy, batch=10**3, tpa=8, tpf=8)
    many = step(LLAMA, 10**12, machine=roomy, batch=10**9, tpa=8, tpf=8)
    core = "attention_core"
    assert many.ops[core].flops == pytest.approx(one.ops[core].flops * 1e9, rel=1e-9)
    with pytest.raises(LayoutError, match="context is 1000000000001; it must be a whole number from 1 to 10"):
        step(LLAMA, 10**12 + 1, tpa=8, tpf=8)


def test_op_names_are_those_of_the_model_never_of_the_layout():
    for model in (R1, LLAMA):
        names = {tuple(step_ops(decode(model, **sizes))) for sizes in ({}, {"kvp": 8, "tpf": 8}, {"dp": 8, "tpf": 8})}
        assert len(names) == 1
