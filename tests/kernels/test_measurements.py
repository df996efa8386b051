"""Measurements of the reference kernels: ceilings, the CSV that carries them, and the measuring code itself."""

import subprocess
import sys
import time
from dataclasses import asdict, replace
from itertools import product

import numpy as np
import pytest

from helix_sim.kernels import measure as measuring
from helix_sim.kernels.measurements import (
    COLUMNS,
    Cell,
    Measurement,
    attention_cell,
    ceilings,
    combine_cell,
    read_csv,
    times_the_bound,
    write_csv,
)

PEAKS = {"hbm_bytes_per_s": 4e12, "bf16_flops_per_s": 8e14}


def timed(cell, seconds):
    return Measurement(**asdict(cell), median_s=seconds, low_s=0.99 * seconds, high_s=1.01 * seconds, samples=30)


def ceiling_rows():
    copy = Cell(op="copy", stored="bf16", math="bf16", context=1 << 31, hbm_bytes=8e9)
    matmul = Cell(op="matmul", stored="bf16", math="bf16", batch=1000, context=1000, value_width=1000, flops=8e12)
    return [timed(copy, 8e9 / PEAKS["hbm_bytes_per_s"]), timed(matmul, 8e12 / PEAKS["bf16_flops_per_s"])]


def attention_rows(heads, *, noise, seed=0):
    """A grid of attention cells at 1.2 of the larger of their bounds and a fixed latency."""
    rng = np.random.default_rng(seed)
    cells = [
        attention_cell(
            stored="bf16",
            batch=batch,
            context=context,
            q_heads=q_heads,
            kv_heads=kv_heads,
            score_width=score_width,
            value_width=value_width,
        )
        for (q_heads, kv_heads, score_width, value_width), batch, context in product(
            heads, (1, 4, 16, 64), (1024, 4096, 16384, 65536, 262144)
        )
    ]
    ideal = [max(c.hbm_bytes / PEAKS["hbm_bytes_per_s"], c.flops / PEAKS["bf16_flops_per_s"]) for c in cells]
    seconds = (6e-6 + 1.2 * np.array(ideal)) * (1 + noise * rng.standard_normal(len(cells)))
    return [timed(cell, second) for cell, second in zip(cells, seconds, strict=True)]


def gqa_rows(noise):
    return attention_rows([(8, 1, 128, 128), (64, 8, 128, 128)], noise=noise)


def mla_rows(noise):
    return attention_rows([(heads, 1, 576, 512) for heads in (16, 32, 64, 128)], noise=noise)


# --- ceilings, and who judges -----------------------------------------------------------------------------------------


def test_held_out_cells_are_about_a_fifth():
    rows = mla_rows(0.0)
    assert 0.1 < sum(row.held_out for row in rows) / len(rows) < 0.3


def mla_cell(row):
    return Cell(**{name: value for name, value in asdict(row).items() if name in Cell.__slots__})


def test_splits_chosen_by_the_kernel_do_not_move_a_cell_between_fit_and_judge():
    for row in mla_rows(0.0):
        assert replace(row, partials=7).held_out == row.held_out


def test_a_ceiling_that_was_not_measured_is_named():
    with pytest.raises(ValueError, match="no copy among the measurements"):
        ceilings(mla_rows(0.0))
    with pytest.raises(ValueError, match="no bf16 matmul among the measurements"):
        times_the_bound(mla_rows(0.0)[0], {"hbm_bytes_per_s": 4e12})


def test_ceilings_are_the_best_copy_and_matmul():
    assert ceilings(ceiling_rows()) == pytest.approx(PEAKS)
    slower = [timed(mla_cell(row), 2 * row.median_s) for row in ceiling_rows()]
    assert ceilings([*slower, *ceiling_rows()]) == pytest.approx(PEAKS)


def test_times_the_bound_takes_the_larger_bound():
    cell = attention_cell(
        stored="bf16", batch=8, context=65536, q_heads=128, kv_heads=1, score_width=576, value_width=512
    )
    assert times_the_bound(timed(cell, 1.5 * cell.flops / 8e14), PEAKS) == pytest.approx(1.5)
    gqa = attention_cell(stored="bf16", batch=8, context=65536, q_heads=8, kv_heads=1, score_width=128, value_width=128)
    assert times_the_bound(timed(gqa, gqa.hbm_bytes / (0.85 * 4e12)), PEAKS) == pytest.approx(1 / 0.85)


# --- the file ---------------------------------------------------------------------------------------------------------


def test_csv_returns_what_was_written_and_explains_its_columns(tmp_path):
    rows = [*ceiling_rows(), *gqa_rows(0.02)]
    taken_with = {"gpu": "NVIDIA H200", "date": "2026-01-02T03:04:05+00:00"}
    path = tmp_path / "measurements.csv"
    write_csv(path, rows, taken_with)
    assert read_csv(path) == (rows, taken_with)
    assert all(f"# {name}: " in path.read_text() for name in COLUMNS)


@pytest.mark.parametrize(
    ("old", "new", "sentence"),
    [
        ("median_s,", "median,", "no column median_s"),
        (",30\n", ",many\n", "line 20: samples is 'many', not int"),
        ("0.00198", "0.5", "line 20: times must be 0 < low_s <= median_s <= high_s"),
        (",30\n", "\n", "line 20: samples is None, not int"),
    ],
)
def test_a_damaged_csv_names_its_line(tmp_path, old, new, sentence):
    path = tmp_path / "measurements.csv"
    write_csv(path, ceiling_rows()[:1], {"gpu": "some GPU"})
    path.write_text(path.read_text().replace(old, new))
    with pytest.raises(ValueError, match=sentence):
        read_csv(path)


# --- the measuring ----------------------------------------------------------------------------------------------------


def has_gpu():
    torch = pytest.importorskip("torch", reason="torch is not installed (the extra [gpu])")
    return torch.cuda.is_available()


def test_without_a_gpu_measuring_says_so_in_one_sentence():
    if has_gpu():
        pytest.skip("there is a GPU")
    for call in (measuring.measure, measuring.provenance):
        with pytest.raises(measuring.NoGpu, match=r"^No GPU to measure: [^\n]+\.$"):
            call()


def test_without_torch_the_package_imports_and_measuring_says_what_to_install():
    program = """
import sys
sys.modules["torch"] = None
import helix_sim.kernels.flash_decode, helix_sim.kernels.twin
from helix_sim.kernels.measure import NoGpu, measure
try:
    measure()
except NoGpu as missing:
    print(missing)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "No GPU to measure: torch is not installed (pip install 'helix-sim[gpu]').\n"


def test_the_grid_covers_every_kernel_and_format_and_fits_the_memory():
    cells = measuring.grid(140e9)
    assert {(cell.op, cell.stored) for cell in cells} >= set(
        product(("attention-gqa", "attention-mla", "matmul"), ("bf16", "fp8"))
    )
    assert {"copy", "launch", "combine"} <= {cell.op for cell in cells}
    assert max(cell.hbm_bytes for cell in cells) <= 70e9
    assert len(cells) == len(set(cells))
    gqa_8 = [cell for cell in cells if cell.op == "attention-gqa" and cell.q_heads == 8 * cell.kv_heads]
    assert max(cell.hbm_bytes for cell in gqa_8) > 1e10  # far past what it takes to fill a GPU


def test_every_kind_of_cell_can_be_prepared_and_timed():
    torch = pytest.importorskip("torch", reason="torch is not installed (the extra [gpu])")
    pytest.importorskip("triton", reason="triton is not installed (the extra [gpu])")
    small = {"stored": "bf16", "batch": 2, "context": 40, "q_heads": 16}
    cells = [
        Cell(op="copy", stored="bf16", math="bf16", batch=1, context=1000, hbm_bytes=4000.0),
        measuring.matmul_cell(64, "bf16"),
        Cell(op="launch", stored="fp32", math="fp32"),
        combine_cell(partials=3, batch=2, q_heads=4, value_width=64),
        attention_cell(**small, kv_heads=2, score_width=64, value_width=64),
        attention_cell(**small, kv_heads=1, score_width=80, value_width=64),
        attention_cell(**small | {"stored": "fp8"}, kv_heads=2, score_width=64, value_width=64),
    ]
    native = torch.cuda.is_available()
    timing = measuring.device_clock if native else host_clock
    rows = list(measuring._measured(cells, device="cuda" if native else "cpu", clock=timing))
    assert [row.op for row in rows] == [cell.op for cell in cells]
    assert all(0 < row.low_s <= row.median_s <= row.high_s for row in rows)
    assert all(row.partials >= 1 for row in rows if row.op.startswith("attention"))


def host_clock(calls):
    def seconds(call):
        start = time.perf_counter()
        call()
        return time.perf_counter() - start

    return [seconds(call) for call in calls for _ in range(3)]
