"""Number formats are data: bits, block and scale of each with a source, and a new row is all that one takes."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from helix_sim.core import units
from helix_sim.core.units import FORMAT_BITS, FORMATS, format_bits


def test_bits_of_every_format_by_hand() -> None:
    by_hand = {"fp4": 4.0, "mxfp4": 4 + 8 / 32, "nvfp4": 4 + 8 / 16, "int4": 4 + 16 / 128,
               "int4-zero": 4 + 20 / 128, "int4-g64": 4 + 16 / 64, "int4-g64-zero": 4 + 20 / 64,
               "int4-g32": 4 + 16 / 32, "int4-g32-zero": 4 + 20 / 32, "fp8": 8.0, "fp8-block": 8 + 32 / 128**2,
               "mxfp8": 8 + 8 / 32, "int8": 8.0, "int8-g128": 8 + 16 / 128, "int8-g128-zero": 8 + 24 / 128,
               "bf16": 16.0, "fp16": 16.0, "fp32": 32.0}  # fmt: skip
    assert {name: FORMAT_BITS[name] for name in by_hand} == by_hand


@pytest.mark.parametrize("name", FORMATS)
def test_a_format_has_whole_bits_a_block_for_its_scale_and_a_source(name: str) -> None:
    row = FORMATS[name]
    assert row.keys() <= {"bits", "block", "scale_bits", "zero_bits", "source"}
    assert all(isinstance(value, int) and value > 0 for key, value in row.items() if key != "source")
    assert ("block" in row) == ("scale_bits" in row)
    assert row["source"].split(":")[0] in ("datasheet", "measured", "assumed")
    assert "https://" in row["source"]
    assert FORMAT_BITS[name] == format_bits(row)


NEW = """
import importlib.resources, pathlib, sys
import yaml
read = yaml.safe_load
def with_one_more(text):
    content = read(text)
    if isinstance(content, dict) and "nvfp4" in content:
        content["fp6"] = {"bits": 6, "block": 32, "scale_bits": 8, "source": "assumed: a test"}
    return content
yaml.safe_load = with_one_more
import helix_sim as hs
step = hs.explain("llama-3.1-8b", "h100-hgx", hs.Options(context=1000, formats={"weights": "fp6"})).step
eight = hs.explain("llama-3.1-8b", "h100-hgx", hs.Options(context=1000, formats={"weights": "fp8"})).step
print(float(step.ops["dense_up"].weight_bytes / eight.ops["dense_up"].weight_bytes))
print("fp6" in str(hs.json_schema("sweep")))
"""


def test_a_row_is_all_that_a_new_format_takes() -> None:
    root = Path(units.__file__).parents[2]
    shown = subprocess.run([sys.executable, "-c", NEW], capture_output=True, text=True, cwd=root, check=False)
    assert shown.stdout.split() == [str((6 + 8 / 32) / 8), "True"], shown.stderr
