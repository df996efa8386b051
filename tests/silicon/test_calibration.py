"""Fits: shipped files, held-out cells, and parameters recovered from times that a shape made."""

import re
from importlib import metadata

import numpy as np
import pytest
import yaml

from helix_sim.core.errors import SpecError
from helix_sim.core.work import Work
from helix_sim.silicon import aic_tables as silicon
from helix_sim.silicon import fit
from helix_sim.silicon import measured_kernels as classes
from helix_sim.silicon.calibrate import as_served, calibrate
from helix_sim.silicon.composition import composition
from helix_sim.silicon.systems import borrowed, check_names, systems
from helix_sim.specs import kernel_parameters
from helix_sim.specs.load import check_file, data_folder, load_machine, load_timing, parse, read_yaml, shipped
from helix_sim.specs.timing import Timing
from helix_sim.timing import kernel_shapes

try:
    installed = metadata.version(silicon.DISTRIBUTION)
except metadata.PackageNotFoundError:
    installed = None

measured = pytest.mark.skipif(
    installed != silicon.VERSION,
    reason=f"needs {silicon.DISTRIBUTION} {silicon.VERSION} (pip install 'helix-sim[silicon]'), found {installed}",
)

FOLDER = data_folder("hardware_profiles/measured_timings")
SHIPPED = sorted(path.stem for path in FOLDER.glob("*.yaml"))
GPU = kernel_shapes.gpu_of(load_machine("gb200-nvl72"))
RATE = load_machine("gb200-nvl72").flops_per_s


def test_every_system_has_a_calibration_of_every_framework():
    assert set(SHIPPED) == {f"{s}-{f}" for s, machine in systems().items() for f in machine.public_tables.frameworks}


@pytest.mark.parametrize("name", SHIPPED)
def test_a_shipped_calibration_loads_by_name_and_says_where_its_numbers_come_from(name):
    timing = load_timing(name)
    assert name in shipped("timing")
    assert check_file(FOLDER / f"{name}.yaml") == timing
    assert f"{timing.calibration.system}-{timing.calibration.framework}" == name == timing.name
    for label, each in timing.calibration.classes.items():
        assert f"{silicon.DISTRIBUTION} {silicon.VERSION}" in each.source, label
        assert "rows fitted" in each.source
        assert each.residuals.count > 0
        assert all(quantity.source for quantity in each.parameters.values())


@pytest.mark.parametrize("name", SHIPPED)
def test_no_share_of_a_datasheet_rate_is_above_one(name):
    for each in load_timing(name).calibration.classes.values():
        for parameter, value in each.values.items():
            if parameter.endswith("_share") and not parameter.startswith(("l2", "load", "reread")):
                assert 0 < value <= 1


def test_a_timing_survives_being_written_and_read():
    timing = load_timing("gb200-trtllm")
    assert parse(Timing, yaml.safe_load(fit.yaml_text(timing)), "again") == timing


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda c: c.update(shape="cubic"), "'cubic' is not one of"),
        (lambda c: c["parameters"].pop("latency_us"), "parameters.latency_us: missing"),
        (lambda c: c["parameters"]["bandwidth_share"].update(value=1.2), "1.2 is not between 0.02 and 1"),
        (lambda c: c["parameters"].update(speed={"value": 1, "source": "assumed: x"}), "speed: unknown"),
    ],
)
def test_a_wrong_class_is_a_sentence_with_its_place(change, sentence):
    content = read_yaml(FOLDER / "gb200-trtllm.yaml")
    change(content["calibration"]["classes"]["gemm-bf16"])
    with pytest.raises(SpecError, match=r"gemm-bf16") as error:
        parse(Timing, content, "mine.yaml")
    assert sentence in str(error.value)


def synthetic(shape, works, truth):
    """Times that a shape makes with known parameters, with 3 % of noise; a fifth of them held out."""
    seconds = fit.modelled_s(shape, works, GPU, RATE, truth)
    rng = np.random.default_rng(3)
    return fit.Measured(
        name="made-up",
        shape=shape,
        works=works,
        seconds=seconds * np.exp(rng.normal(0, 0.03, len(seconds))),
        held=rng.random(len(seconds)) < 0.2,
        source="made-up",
        largest={},
    )


def test_a_fit_recovers_the_parameters_of_a_stream():
    moved = np.geomspace(1e4, 1e10, 200)
    truth = {"latency_us": 2.5, "bandwidth_share": 0.8}
    work = Work(op_class="elementwise", activation_bytes=moved, rows=moved)
    found = fit.fit(synthetic("stream", (work,), truth), GPU, RATE).record
    assert found.values == pytest.approx(truth, rel=0.03)
    assert found.residuals.median_error == pytest.approx(0.02, abs=0.01)
    assert found.residuals.high == pytest.approx(1.28 * 0.03, rel=0.4)


def test_a_fit_recovers_what_binds_in_attention():
    batch, context, heads = (
        axis.ravel() for axis in np.meshgrid(2.0 ** np.arange(11), 2.0 ** np.arange(4, 18), [16.0, 64.0, 128.0])
    )
    work = Work(
        op_class="attention-mla",
        flops=2 * batch * context * heads * 1088,
        kv_bytes=batch * context * 576,
        activation_bytes=batch * heads * 1088 * 2,
        math="fp8",
        weights="fp8",
        rows=batch,
        heads=heads,
        tokens=context,
    )
    truth = {**load_timing("gb200-trtllm").calibration.classes["attention-mla-fp8"].values, "math_share": 0.6}
    found = fit.fit(synthetic("latent-attention", (work,), truth), GPU, RATE).record
    assert found.residuals.median_error < 0.03
    for name in ("latency_us", "bandwidth_share", "math_share", "request_us"):
        assert found.values[name] == pytest.approx(truth[name], rel=0.08), name


def test_outliers_do_not_move_a_fit():
    moved = np.geomspace(1e4, 1e10, 200)
    truth = {"latency_us": 2.5, "bandwidth_share": 0.8}
    clean = synthetic("stream", (Work(op_class="elementwise", activation_bytes=moved, rows=moved),), truth)
    clean.seconds[::20] *= 4
    assert fit.fit(clean, GPU, RATE).record.values == pytest.approx(truth, rel=0.05)


def test_held_out_cells_are_whole_curves_and_about_a_fifth():
    import pandas as pd

    cells = pd.DataFrame({"n": np.repeat(np.arange(500), 7), "k": np.repeat(np.arange(500) % 9, 7)})
    held = fit.held_out(cells).reshape(500, 7)
    assert (held.all(axis=1) == held.any(axis=1)).all()
    assert 0.15 < held.mean() < 0.25
    assert (fit.held_out(cells[::-1])[::-1].reshape(500, 7) == held).all()


def test_balanced_loads_are_counted_by_hand():
    # 2 tokens of top 4 among 8 experts: stride 2, token i takes experts floor(i) + 0, 2, 4, 6
    assert classes.busiest_rank(2, 8, 4, 1, 0.0) == (8.0, 8.0)
    assert classes.busiest_rank(1, 8, 4, 2, 0.0) == (2.0, 2.0)
    assert classes.busiest_rank(1024, 256, 8, 8, 0.0) == (32.0, 1024.0)


def test_skewed_loads_fall_on_the_busiest_gpu():
    _, balanced = classes.busiest_rank(1024, 256, 8, 8, 0.0)
    read, pairs = classes.busiest_rank(1024, 256, 8, 8, 1.2)
    assert pairs > 1.2 * balanced
    assert read <= 32


def test_ranks_in_turn_raise_their_least_expert():
    rng = np.random.default_rng(3)
    for _ in range(50):
        loads, tokens = rng.integers(0, 6, (1, 4, 5)).astype(float), int(rng.integers(0, 60))
        one_by_one = loads.copy()
        for token in range(tokens):
            rank = one_by_one[0, token % 4]
            rank[rank.argmin()] += 1
        filled = classes._raised(loads, np.array([float(tokens)]))
        assert (np.sort(filled) == np.sort(one_by_one)).all()


def test_a_skewed_load_is_whole_and_no_expert_has_more_than_every_token():
    assert classes.busiest_rank(1, 256, 8, 8, 1.2) == (1.0, 1.0)  # one pick to each of eight ranks
    for tokens in (1, 3, 16, 300):
        read, pairs = classes.busiest_rank(tokens, 128, 4, 1, 1.01)
        assert pairs == 4 * tokens
        assert read >= 4


@pytest.mark.parametrize(("system", "framework"), [("gb900", "trtllm"), ("gb200", "llamacpp")])
def test_an_unknown_table_is_a_sentence(system, framework):
    with pytest.raises(SpecError, match="is not one of"):
        check_names(system, framework)


def test_a_version_that_is_none_is_a_sentence():
    with pytest.raises(SpecError, match="is not a version of trtllm, such as"):
        calibrate("gb200", "trtllm", software="newest")


def test_a_lender_without_a_timing_is_a_sentence_before_any_fit(monkeypatch):
    monkeypatch.setattr("helix_sim.silicon.composition.shipped", lambda kind: ["paper"])
    with pytest.raises(SpecError, match="calibrate gb200-trtllm first, into hardware_profiles/measured_timings"):
        calibrate("gb200", "sglang")


@measured
@pytest.mark.parametrize("section", [classes.elementwise_classes, classes.all_reduce_classes])
def test_a_refit_gives_the_shipped_parameters(section):
    classes = load_timing("gb200-trtllm").calibration.classes
    for each in section("gb200", "trtllm"):
        found = fit.fit(each, GPU, RATE).record
        for name, value in found.values.items():
            assert value == pytest.approx(classes[each.name].values[name], rel=0.02, abs=1e-2), (each.name, name)


@measured
def test_every_system_and_framework_has_measurements_of_every_group():
    for system, framework in (("h100", "vllm"), ("gb300", "sglang")):
        names = {each.name for each in classes.measurements(system, framework)}
        for start in ("attention-mla", "attention-gqa", "gemm", "grouped-gemm", "all-reduce", "dispatch", "combine"):
            assert any(name.startswith(start) for name in names), (system, framework, start)


@measured
def test_no_balanced_row_that_is_fitted_reads_faster_than_hbm():
    rate = load_machine("gb200-nvl72").hbm_bytes_per_s
    for each in classes.grouped_classes("gb200", "trtllm"):
        moved = sum(work.weight_bytes for work in each.works) / each.seconds
        assert np.mean(moved > rate) < 0.002, each.name  # a skewed row times one draw of its loads
    left = {each.name: len(each.seconds) for each in classes.grouped_classes("gb200", "trtllm")}
    assert left["grouped-gemm-nvfp4/moe_torch_flow_cutlass"] == 30429  # this kernel is told its experts: all rows stay


@measured
def test_what_is_lent_says_so():
    lent = {each.name: each.source for each in classes.grouped_classes("gb300", "trtllm") if "borrowed" in each.source}
    assert set(lent) == {
        "grouped-gemm-fp8-block/sglang_flashinfer_trtllm_moe",
        "grouped-gemm-nvfp4/moe_torch_flow_min_latency",
    }
    assert "gb200/moe/trtllm" in lent["grouped-gemm-nvfp4/moe_torch_flow_min_latency"]


@pytest.mark.parametrize("name", SHIPPED)
def test_every_shipped_timing_says_how_well_its_kernels_add_up(name):
    system, framework = name.split("-")
    sums = load_timing(name).calibration.composition
    assert sums.residuals.low < 0 < sums.residuals.high
    assert ("borrowed" in sums.source) == bool(list(borrowed(system, framework, "mla_module")))


@measured
@pytest.mark.parametrize("name", SHIPPED)
def test_an_exchange_is_judged_by_rows_of_the_kernels_that_it_was_fitted_to(name):
    # rows of another kernel of the same lender were judged with them once
    recorded = load_timing(name).calibration.classes
    for each in classes.expert_exchange_classes(*name.split("-")):
        assert int(each.held.sum()) == recorded[each.name].residuals.count, each.name


@measured
def test_summing_is_judged_by_modules_that_no_fit_has_seen():
    timing = load_timing("gb200-trtllm")
    assert composition(timing) == timing.calibration.composition
    assert timing.calibration.composition.residuals.count > 5000
    tables = re.findall(r"\S+_module_perf", timing.calibration.composition.source)
    assert tables
    assert not any(table in each.source for table in tables for each in timing.calibration.classes.values())


@measured
def test_a_timing_as_served_differs_only_where_older_tables_are():
    shipped = load_timing("b200-trtllm")
    assert as_served("b200-trtllm", "1.3.0rc20") is shipped
    then = as_served("b200-trtllm", "1.2.0rc6").calibration.classes
    today = shipped.calibration.classes
    assert [name for name in then if then[name] != today[name]] == ["all-reduce"]
    assert "/1.2.0rc5/" in then["all-reduce"].source


def test_every_class_of_a_calibration_has_a_shape():
    for name in SHIPPED:
        assert {each.shape for each in load_timing(name).calibration.classes.values()} <= set(kernel_shapes.SHAPES)


def test_every_shape_has_its_parameters_and_its_equation():
    assert set(kernel_parameters.SHAPES) == set(kernel_shapes.SHAPES)
