"""The measured tables mean what `helix_sim.silicon` says: checked by physics, on every system that it reads.

Absent package, absent tests: they skip with a reason.
"""

import zlib
from importlib import metadata

import numpy as np
import pytest
import yaml

from helix_sim.silicon import aic_tables as tables
from helix_sim.silicon.systems import machine_of, systems
from helix_sim.specs.load import shipped

try:
    installed = metadata.version(tables.DISTRIBUTION)
except metadata.PackageNotFoundError:
    installed = None

measured = pytest.mark.skipif(
    installed != tables.VERSION,
    reason=f"needs {tables.DISTRIBUTION} {tables.VERSION} (pip install 'helix-sim[silicon]'), found {installed}",
)

DATASHEET = {
    name: (machine.hbm_bytes_per_s, machine.flops_per_s("bf16"), machine.nvlink_bytes_per_s)
    for name, machine in systems().items()
}
"""Of each system, per GPU: HBM bytes/s, dense BF16 FLOP/s, NVLink bytes/s in one direction."""
L2_BYTES = {name: machine.kernel_facts[1] for name, machine in systems().items()}
FRAMEWORKS = shipped("framework")
BYTES = {"bf16": 2.0, "fp8": 1.0, "fp8_block": 1.0, "nvfp4": 0.5625}
RATE = {"bf16": 1, "fp8": 2, "fp8_block": 2, "nvfp4": 4}

each_system = pytest.mark.parametrize("system", systems())


def test_an_absent_package_is_one_sentence_that_says_what_to_install(monkeypatch):
    def absent(name):
        raise metadata.PackageNotFoundError(name)

    tables.root.cache_clear()
    monkeypatch.setattr(tables.metadata, "distribution", absent)
    with pytest.raises(tables.TablesMissing, match=r"pip install 'helix-sim\[silicon\]'") as error:
        tables.root()
    assert str(error.value).count("\n") == 0
    tables.root.cache_clear()


def test_another_version_is_refused_because_its_meaning_was_not_checked(monkeypatch):
    class Other:
        version = "0.13.0"

    tables.root.cache_clear()
    monkeypatch.setattr(tables.metadata, "distribution", lambda name: Other())
    with pytest.raises(tables.TablesMissing, match=r"0\.13\.0 is installed"):
        tables.root()
    tables.root.cache_clear()


@measured
def test_the_declared_version_is_read_and_not_a_newer_partial_one():
    assert tables.versions("gb200", "moe", "trtllm", "moe_perf")[-1] == "1.3.0rc23"
    assert tables.default_version("gb200", "moe", "trtllm", "moe_perf") == "1.3.0rc20"


@measured
def test_a_table_that_does_not_exist_says_so():
    with pytest.raises(tables.NoSuchTable, match="vllm on gb200"):
        tables.attention_mla("gb200", "vllm")


@measured
@each_system
@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_every_cell_is_once_and_takes_between_a_microsecond_and_a_second(system, framework):
    for read in (tables.mla_module, tables.gemm, tables.grouped_gemm, tables.mla_up_projection, tables.quantise):
        frame = read(system, framework)
        keys = [c for c in frame.columns if c not in ("seconds", "source")]
        assert not frame.duplicated(keys).any()
        assert frame.notna().all(axis=None)
        assert frame.seconds.between(1e-6, 1.0).all()


@measured
@each_system
def test_mla_reads_each_latent_once_and_never_faster_than_hbm(system):
    hbm, bf16, _ = DATASHEET[system]
    frame = tables.attention_mla(system, "trtllm")
    moved = frame.batch * frame.context * 576.0 * frame.kv_format.map(BYTES)
    cold = moved > 2 * L2_BYTES[system]
    share = (moved / frame.seconds / hbm)[cold]
    assert share.max() < 1.0
    assert share.max() > 0.75
    flops = 2.0 * frame.batch * frame.context * frame.q_heads * (576 + 512)
    assert (flops / frame.seconds < bf16 * frame.math_format.map(RATE)).all()


@measured
@each_system
def test_an_fp8_cache_is_multiplied_in_fp8_where_the_machine_says_so(system):
    frame = tables.attention_mla(system, "trtllm").query("kv_format == 'fp8'")
    flops = 2.0 * frame.batch * frame.context * frame.q_heads * (576 + 512)
    assert ((flops / frame.seconds).max() > 1.1 * DATASHEET[system][1]) == machine_of(system).fp8_attention.value


@measured
@each_system
def test_a_machines_board_is_the_node_of_the_package_and_its_frameworks_have_tables(system):
    machine = machine_of(system)
    said = yaml.safe_load((tables.root() / f"{machine.public_tables.folder}.yaml").read_text(encoding="utf-8"))
    assert said["node"]["num_gpus_per_node"] == machine.tray_gpus.value
    assert said["gpu"]["bfloat16_tc_flops"] == machine.flops_per_s("bf16")
    for framework in machine.public_tables.frameworks:
        assert tables.versions(system, "gemm", framework, "gemm_perf")


@measured
@each_system
def test_gqa_reads_k_and_v_once_and_never_faster_than_hbm(system):
    frame = tables.attention_gqa(system, "trtllm").query("window == 0")
    moved = 2.0 * frame.batch * frame.context * frame.kv_heads * frame.head_dim * frame.kv_format.map(BYTES)
    share = (moved / frame.seconds / DATASHEET[system][0])[moved > 2 * L2_BYTES[system]]
    assert 0.85 < share.max() < 1.0


@measured
def test_attention_within_l2_is_measured_warm():
    frame = tables.attention_gqa("gb200", "trtllm").query("window == 0 and kv_format == 'bf16' and head_dim == 128")
    cell = frame.query("q_heads == 64 and kv_heads == 8 and batch == 64").set_index("context").seconds
    # 67, 134, 268 and 537 MB: halving inside L2's 126 MB saves half, halving far above it saves the bytes' time only
    assert cell[512] / cell[256] > 1.8
    assert (cell[2048] - cell[1024]) / (268e6 / 8e12) == pytest.approx(1.08, abs=0.1)


@measured
@each_system
@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_attention_time_does_not_fall_with_context(system, framework):
    frame = tables.attention_gqa(system, framework).query("window == 0 and head_dim == 128 and context >= 256")
    curves = frame.pivot_table(
        index=["kernel", "batch", "q_heads", "kv_heads", "kv_format"], columns="context", values="seconds"
    )
    ratio = curves.to_numpy()[:, 2:] / curves.to_numpy()[:, :-2]  # a factor of 4 in context
    ratio = ratio[np.isfinite(ratio)]
    assert np.quantile(ratio, 0.02) > 0.85


@measured
@each_system
@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_gemm_weights_come_from_hbm_and_arithmetic_stays_below_the_datasheet(system, framework):
    hbm, bf16, _ = DATASHEET[system]
    frame = tables.gemm(system, framework)
    frame = frame[frame.format.isin(list(BYTES))]
    weights = frame.n * frame.k * frame.format.map(BYTES)
    assert (weights / frame.seconds / hbm).max() < 1.0
    assert (2.0 * frame.m * frame.n * frame.k / frame.seconds < bf16 * frame.format.map(RATE)).all()


@measured
def test_the_gemm_rows_above_hbm_rate_are_the_known_23():
    frame = tables.gemm("gb200", "trtllm").query("format == 'bf16'")
    moved = 2.0 * (frame.n * frame.k + frame.m * frame.k + frame.m * frame.n)
    fast = frame[moved / frame.seconds > DATASHEET["gb200"][0]]
    assert len(fast) == 23
    assert (fast.m >= 3584).all()
    assert (fast.n <= 128).all()


@measured
def test_balanced_routing_reads_distinct_experts():
    frame = tables.grouped_gemm("gb200", "trtllm")
    frame = frame.query("format == 'fp8_block' and routing == 'balanced' and hidden == 7168 and intermediate == 2048")
    cell = frame.query("experts == 256 and moe_tp == 1 and moe_ep == 1").set_index("tokens").seconds
    an_expert_s = 3 * 7168 * 2048 / 8e12
    for few, many in ((4, 8), (8, 16), (16, 32)):
        per_expert = (cell[many] - cell[few]) / ((many - few) * 8)
        assert 1.0 < per_expert / an_expert_s < 1.4
    assert cell[256] / cell[32] == pytest.approx(1.0, abs=0.05)


@measured
@each_system
@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_an_all_reduce_moves_its_bytes_within_nvlink(system, framework):
    frame = tables.all_reduce(system, framework)
    moved = 2.0 * (frame.ranks - 1) / frame.ranks * frame.bytes
    share = moved / frame.seconds / DATASHEET[system][2]
    # with switches that add (NVLS) a rank sends and receives its buffer once: half of the ring's bytes
    assert share.max() < 2.0
    assert share.max() > 0.5


@measured
@each_system
def test_message_size_counts_elements(system):
    """NCCL and the framework's own kernel agree on large messages only if both columns are elements of their type."""
    own = tables.all_reduce(system, "trtllm").query("ranks == 4").set_index("bytes").seconds
    nccl = tables.nccl(system).query("op == 'all_reduce' and ranks == 4").set_index("bytes").seconds
    large = 2**29
    assert own[large] / nccl[large] == pytest.approx(1.0, abs=0.1)


@measured
@each_system
def test_gathers_scatters_and_exchanges_stay_within_nvlink(system):
    frame = tables.nccl(system).query("op != 'all_reduce'")
    share = (frame.ranks - 1) / frame.ranks * frame.bytes / frame.seconds / DATASHEET[system][2]
    assert (share < 1.0).all()
    assert (share.groupby(frame.op).max() > 0.5).all()


@measured
@each_system
@pytest.mark.parametrize("framework", ["trtllm", "sglang"])
def test_an_expert_exchange_stays_within_nvlink(system, framework):
    frame = tables.expert_exchange(system, framework)
    frame = frame[frame.format.isin(list(BYTES)) & frame.op.isin(["dispatch", "combine"])]
    frame = frame[frame.ranks <= machine_of(system).kernel_facts[2] * (18 if system == "gb200" else 1)]
    spread = np.minimum(frame.ranks, frame.top_k)
    drawn = frame.ranks * (1 - (1 - 1 / frame.ranks) ** frame.top_k)
    copies = np.where(frame.routing == "balanced", spread, drawn) * (frame.ranks - 1) / frame.ranks
    wire = np.where(frame.op == "combine", 2.0, frame.format.map(BYTES))
    share = copies * frame.tokens * frame.hidden * wire / frame.seconds / DATASHEET[system][2]
    assert share.max() < 1.0
    assert share.max() > 0.2


@measured
@each_system
@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_one_token_takes_microseconds_in_every_exchange(system, framework):
    frame = tables.expert_exchange(system, framework)
    assert frame[frame.tokens == 1].seconds.between(5e-6, 500e-6).all()


@measured
def test_the_one_sided_exchange_sends_a_token_once_to_each_rank_that_holds_its_experts():
    """... so that one share of NVLink explains 4 to 32 ranks."""
    frame = tables.expert_exchange("gb200", "trtllm").query("kernel == 'NVLinkOneSided' and tokens == 20480")
    combine = frame.query("op == 'combine'").set_index("ranks")
    copies = np.minimum(combine.index, 8) * (combine.index - 1) / combine.index
    share = copies * 20480 * 7168 * 2 / combine.seconds / 900e9
    assert share.between(0.70, 0.76).all()


@measured
def test_the_exchange_over_gb200_reaches_across_trays():
    ranks = tables.expert_exchange("gb200", "trtllm").ranks
    assert sorted(set(ranks)) == [2, 4, 8, 16, 32, 64]


@measured
def test_end_to_end_has_274_rows_whose_layouts_multiply():
    rows = tables.disaggregated_decode()
    assert len(rows) == 274
    deepseek = rows[rows.model == "deepseek-ai/DeepSeek-V3"]
    assert len(deepseek) == 235
    moe = rows[rows.model.str.contains("DeepSeek|Kimi")]
    assert (moe.gpus == moe.moe_tp * moe.moe_ep).all()
    stated = rows[rows.concurrency.notna()]
    nominal = stated.concurrency / (stated.workers * stated.dp)
    assert len(stated) == 267
    assert (stated.batch == nominal).all()
    assert (rows.effective_batch <= rows.batch).all()


@measured
def test_the_blind_half_is_odd_ids_and_all_of_gb300():
    rows = tables.disaggregated_decode()
    for row in rows.itertuples():
        even = zlib.crc32(row.id.encode()) % 2 == 0
        assert (row.half == "development") == (even and row.system != "gb300")


@measured
def test_tables_of_a_softwares_time_are_the_newest_not_newer_or_the_oldest_there_are():
    table = ("h200", "comm", "trtllm", "custom_allreduce_perf")
    have = tables.versions(*table)
    assert tables.default_version(*table) == "1.3.0rc20"
    for wanted, found in (("1.2.0rc6.post1", "1.2.0rc5"), ("1.1.0rc5", have[0]), ("1.3.0rc10", "1.3.0rc10")):
        with tables.software("trtllm", wanted):
            assert tables.default_version(*table) == found
            assert tables.default_version("h200", "comm", "sglang", "custom_allreduce_perf") == "0.5.14"
    assert tables.default_version(*table) == "1.3.0rc20"


@measured
def test_every_serving_names_a_software_older_than_the_current_tables():
    for row in tables.disaggregated_decode().itertuples():
        served = tables.served_version(row.framework, row.framework_version)
        table = ("gemm", row.framework, "gemm_perf")
        current = tables.default_version(row.system, *table)
        with tables.software(row.framework, served):
            assert tables._version_key(tables.default_version(row.system, *table)) <= tables._version_key(current)
        assert tables._version_key(served) < tables._version_key(current)
