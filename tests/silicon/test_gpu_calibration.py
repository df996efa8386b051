"""A GPU's own measurements become a timing that predicts them; synthetic ones, whose truth is known, come back."""

import os
import shutil
import subprocess
import sys
from dataclasses import asdict
from itertools import product

import numpy as np
import pytest

from helix_sim.core.errors import SpecError
from helix_sim.core.layout import Layout
from helix_sim.kernels.measurements import Cell, Measurement, attention_cell, combine_cell, write_csv
from helix_sim.search.frame import decode_step
from helix_sim.silicon.fit import modelled_s, yaml_text
from helix_sim.silicon.gpu import calibrate, measured_classes, system_of
from helix_sim.silicon.systems import systems
from helix_sim.specs import kernel_parameters
from helix_sim.specs.load import load_machine, load_model, load_timing, parse, parse_yaml
from helix_sim.specs.precision import Precision
from helix_sim.specs.timing import Timing
from helix_sim.timing.kernel_shapes import gpu_of

H200 = load_machine("h200-hgx")
TAKEN = {"gpu": "NVIDIA H200", "driver": "580.1", "torch": "2.13.0", "date": "2026-01-02", "commit": "abc"}
TRUTH = {"latency_us": 7.0, "bandwidth_share": 0.8, "math_share": 0.5}


def timed(cell, seconds):
    return Measurement(**asdict(cell), median_s=seconds, low_s=0.99 * seconds, high_s=1.01 * seconds, samples=30)


def cells(heads, stored="bf16"):
    sizes = product(heads, (1, 4, 16, 64), (1024, 4096, 16384, 65536, 262144))
    names = ("q_heads", "kv_heads", "score_width", "value_width")
    return [
        attention_cell(stored=stored, batch=batch, context=context, **dict(zip(names, widths, strict=True)))
        for widths, batch, context in sizes
    ]


def true_times(grid, noise=0.0, seed=0):
    """Times of a grid by the very shape that is fitted, with parameters known beforehand."""
    rows = [timed(cell, 1.0) for cell in grid]
    (measured,) = measured_classes(rows)
    values = {name: p.start for name, p in kernel_parameters.SHAPES[measured.shape].parameters.items()} | TRUTH
    seconds = modelled_s(measured.shape, measured.works, gpu_of(H200), H200.flops_per_s, values)
    seconds = seconds * (1 + noise * np.random.default_rng(seed).standard_normal(len(seconds)))
    return [timed(cell, float(second)) for cell, second in zip(grid, seconds, strict=True)]


def measurements(noise=0.0):
    copy = Cell(op="copy", stored="bf16", math="bf16", context=1 << 31, hbm_bytes=8e9)
    matmul = Cell(op="matmul", stored="bf16", math="bf16", batch=1000, context=1000, value_width=1000, flops=8e12)
    launch = Cell(op="launch", stored="fp32", math="fp32")
    combines = [
        combine_cell(partials=partials, batch=batch, q_heads=128, value_width=width)
        for partials, batch, width in product((2, 8, 32), (1, 8, 64, 256), (128, 512))
    ]
    return [
        timed(copy, 8e9 / 4.2e12),
        timed(matmul, 8e12 / 7e14),
        timed(launch, 2.1e-6),
        *[timed(cell, 3e-6 + cell.hbm_bytes / (0.7 * 4.8e12)) for cell in combines],
        *true_times(cells([(8, 1, 128, 128), (16, 1, 128, 128), (64, 8, 128, 128)]), noise),
        *true_times(cells([(heads, 1, 576, 512) for heads in (16, 32, 64, 128)]), noise),
    ]


@pytest.fixture(scope="module")
def made():
    return calibrate(measurements(noise=0.02), TAKEN)


def test_the_fit_predicts_cells_that_it_never_saw(made):
    for name in ("attention-gqa-bf16", "attention-mla-bf16", "elementwise"):
        residuals = made.timing.calibration.classes[name].residuals
        assert residuals.count >= 3
        assert residuals.mean_error < 0.05, name


def test_the_fit_finds_the_rates_that_the_measurements_were_made_with(made):
    for name in ("attention-gqa-bf16", "attention-mla-bf16"):
        assert made.timing.calibration.classes[name].values["bandwidth_share"] == pytest.approx(0.8, rel=0.08)
    stream = made.timing.calibration.classes["elementwise"].values
    assert stream["latency_us"] == pytest.approx(3.0, rel=0.02)
    assert stream["bandwidth_share"] == pytest.approx(0.7, rel=0.02)


def test_ceilings_and_the_launch_set_the_other_kernels(made):
    kernel = made.timing.kernel
    assert kernel.bandwidth_share.value == pytest.approx(4.2 / 4.8, rel=1e-3)
    assert kernel.math_share.value == pytest.approx(700 / 989, rel=1e-3)
    assert kernel.latency_us.value == pytest.approx(2.1)


def test_the_file_says_where_its_numbers_come_from_and_reads_back(made):
    text = yaml_text(made.timing)
    for value in TAKEN.values():
        assert value in text
    assert parse(Timing, parse_yaml(text.encode(), "timing.yaml"), "timing.yaml") == made.timing


def test_the_file_says_what_it_extends_and_only_what_was_measured(made):
    content = parse_yaml(yaml_text(made.timing).encode(), "timing.yaml")
    assert content["extends"] == "serving-stack"
    assert made.timing.unknowns == load_timing("serving-stack").unknowns
    assert not made.timing.hop_b.searched.value
    assert set(content["kernel"]) == {"latency_us", "bandwidth_share", "math_share"}
    assert not {"pointwise", "collective", "hop_b", "all_reduce_overlap"} & set(content)


def test_the_timing_runs_a_step_with_an_interval(made):
    bf16 = Precision(weights="bf16", kv="bf16", math="bf16")
    model, layout = load_model("llama-3.1-8b"), Layout(batch=8)
    step = decode_step(model, H200, layout, 100_000, precision=bf16, timing=made.timing)
    low, high = step.ttl_interval_s
    assert low < step.ttl_s < high


def test_too_few_cells_are_refused():
    with pytest.raises(SpecError, match="attention-gqa-bf16: 5 measured cells; a fit needs at least 20"):
        measured_classes([timed(cell, 1e-5) for cell in cells([(8, 1, 128, 128)])[:5]])


def test_measurements_without_a_copy_are_refused():
    with pytest.raises(SpecError, match="no copy among the measurements"):
        calibrate([timed(cell, 1e-5) for cell in cells([(8, 1, 128, 128)])], TAKEN)


def run(*arguments, cwd):
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-m", "helix_sim", "calibrate", *arguments]
    return subprocess.run(command, capture_output=True, text=True, cwd=cwd, env=environment, check=False)


def test_a_file_of_measurements_is_refitted_without_a_gpu(tmp_path):
    write_csv(tmp_path / "measured.csv", measurements(noise=0.02), TAKEN)
    done = run("gpu", "--from", "measured.csv", "--out", "timing.yaml", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert {path.name for path in tmp_path.iterdir()} == {"measured.csv", "timing.yaml", "timing.png"}
    assert parse(Timing, parse_yaml((tmp_path / "timing.yaml").read_bytes(), "x"), "x").name == "h200-reference"


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["gpu", "--out", "timing.txt"], "must end in .yaml"),
        (["gpu", "--out", "timing.yaml", "--from", "nowhere.csv"], "nowhere.csv: cannot be read: No such file"),
        (["gpu", "--out", "timing.yaml", "--from", "bad.csv"], "bad.csv: no column op"),
        (["gpu", "--out", "timing.yaml", "--system", "h200"], "--system is for calibrate silicon"),
        (["silicon", "--out", "x"], "needs --system and --framework"),
        (["tpu", "--out", "x"], "'tpu' is not one of silicon, gpu"),
    ],
)
def test_a_mistake_is_one_sentence(arguments, sentence, tmp_path):
    (tmp_path / "bad.csv").write_text("a,b\n1,2\n")
    done = run(*arguments, cwd=tmp_path)
    assert done.returncode == 2
    assert sentence in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_without_a_gpu_it_says_so_and_writes_nothing(tmp_path):
    if shutil.which("nvidia-smi"):
        pytest.skip("there is a GPU")
    done = run("gpu", "--out", "timing.yaml", cwd=tmp_path)
    assert done.returncode == 2
    assert done.stderr.startswith("helix-sim: No GPU to measure")
    assert list(tmp_path.iterdir()) == []


def test_every_machine_is_known_by_its_gpus_name():
    for system in systems():
        assert system_of(f"NVIDIA {system.upper()} something") == system
    with pytest.raises(SpecError, match="no machine profile for the GPU 'Tesla V100'"):
        system_of("Tesla V100")
