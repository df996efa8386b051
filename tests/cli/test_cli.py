"""The command line as a user meets it: a process, its output, its exit code."""

import json
import os
import subprocess
import sys

import pandas as pd
import pytest

from helix_sim.core.errors import Exit


def helix_sim(*arguments, cwd=None):
    """Run the tool in a process of its own."""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-m", "helix_sim", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, cwd=cwd, env=environment, timeout=300, check=False)


def test_help_lists_the_verbs():
    shown = helix_sim("--help")
    assert shown.returncode == 0
    for verb in ("explain", "sweep", "reproduce", "models", "machine", "check"):
        assert verb in shown.stdout


def test_help_loads_nothing_heavy():
    heavy = ("numpy", "pandas", "scipy", "matplotlib", "pydantic")
    code = f"import sys; from helix_sim.cli import app; print([m for m in {heavy} if m in sys.modules])"
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert shown.stdout.strip() == "[]"


def test_explain_shows_what_binds():
    shown = helix_sim("explain", "llama-3.1-405b", "gb200-nvl72", "--batch", 8, "--tpa", 8, "--kvp", 8)
    assert shown.returncode == 0
    assert "attention_core" in shown.stdout
    assert "tokens/s/GPU" in shown.stdout
    assert shown.stderr == ""


def test_a_narrow_terminal_hides_no_digit():
    from io import StringIO

    from rich.console import Console

    from helix_sim.cli.base import new_table, show

    out = Console(width=30, file=StringIO())
    table = new_table("op", ">µs")
    table.add_row("a_very_long_name_of_an_operation", "1,234,567.89")
    show(out, table)
    assert "1,234,567.89" in out.file.getvalue()
    assert out.width == 30


def test_explain_json_sums_to_its_ttl():
    shown = helix_sim("explain", "deepseek-r1", "gb200-nvl72", "--kvp", 16, "--batch", 4, "--chunks", 2, "--json")
    step = json.loads(shown.stdout)
    assert sum(op["seconds"] - op["hidden_s"] for op in step["ops"]) == pytest.approx(step["ttl_s"], rel=1e-12)
    assert step["gpus"] == 16
    assert step["layout"]["tpf"] == 16
    assert step["memory_bytes"]["resident"] < step["memory_bytes"]["capacity"]


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["explain", "deepseek-r1", "h100-hgx"], "on the fullest GPU"),
        (["explain", "deepseek-r2", "gb200-nvl72"], "did you mean deepseek-r1?"),
        (["explain", "deepseek-r1", "gb200-nvl72", "--context", "1X"], "--context: '1X' is not a size"),
        (["explain", "deepseek-r1", "gb200-nvl72", "--context", "-5"], "--context: '-5' is not a size"),
        (
            ["explain", "deepseek-r1", "gb200-nvl72", "--context", "9999999999G"],
            "--context: 9999999999000000000 is not a whole number from 1 to 10^12",
        ),
        (
            ["explain", "deepseek-r1", "gb200-nvl72", "--kvp", 4, "--batch", 10**21],
            "--batch: 1000000000000000000000 is not a whole number from 1 to 10^12",
        ),
        (["explain", "deepseek-r1", "gb200-nvl72", "--kvp", 0], "--kvp: '0' is not a whole number of at least 1"),
        (["explain", "deepseek-r1", "gb200-nvl72", "--ep", 0], "--ep: '0' is not a whole"),
        (["explain", "deepseek-r1", "gb200-nvl72", "--ep", -3], "--ep: '-3' is not a size"),
        (["explain", "deepseek-r1", "gb200-nvl72", "--weights", "fp5"], "--weights: 'fp5' is not one of fp4, mxfp4"),
        (
            ["explain", "deepseek-r1", "gb200-nvl72", "--timing", "papier"],
            "--timing: there is no timing named 'papier'; did you mean paper?",
        ),
        (
            ["explain", "llama-3.1-8b", "h200-hgx", "--math", "fp4"],
            "--math: h200-hgx has no fp4 arithmetic; use fp8 or bf16",
        ),
        (["explain", "nowhere/model.yaml", "gb200-nvl72"], "there is no such file"),
        (["sweep", "paper-deepseek", "--out", "x"], "did you mean paper-deepseek-r1?"),
        (["sweep", "paper-deepseek-r1", "--out", "x", "--points", "some"], "not one of frontier, all"),
        (["reproduce", "fig2"], "'fig2' is not one of fig1, fig3"),
        (["check", "nowhere.yaml"], "cannot be read"),
    ],
)
def test_a_users_mistake_is_one_sentence_and_exit_code_2(arguments, sentence, tmp_path):
    shown = helix_sim(*arguments, cwd=tmp_path)
    assert shown.returncode == 2
    assert sentence in shown.stderr
    assert "Traceback" not in shown.stderr
    assert shown.stdout == ""
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_written_is_one_sentence(tmp_path):
    (tmp_path / "file").write_text("in the way")
    shown = helix_sim("reproduce", "fig3", "--out", tmp_path / "file")
    assert shown.returncode == Exit.CANNOT_WRITE
    assert shown.stderr == f"helix-sim: {tmp_path / 'file'}: cannot be written: not a directory\n"
    assert (tmp_path / "file").read_text() == "in the way"


def test_check_says_what_is_right_and_what_is_not(tmp_path):
    good = helix_sim("models", "--json")
    assert {row["name"] for row in json.loads(good.stdout)["rows"]} >= {"deepseek-r1", "llama-3.1-405b"}
    (tmp_path / "bad.yaml").write_text("kind: machine\nname: mine\n")
    shown = helix_sim("check", "bad.yaml", cwd=tmp_path)
    assert shown.returncode == 2
    assert "hbm_bandwidth_GBps: missing" in shown.stderr


SMALL = """
kind: sweep
name: small
description: a few hundred layouts
model: llama-3.1-8b
machine: gb200-nvl72
timing: paper
precision: {weights: fp4, kv: fp4, math: fp4}
contexts: [128K, 1M]
gpus: {from: 1, to: 8}
batch: {dense_to: 8, growth: 1.5, to: 64}
chunks: [1, batch]
families: [tp, pp, helix]
groups: {baseline: [tp, pp], all-helix: [helix]}
"""


def test_sweep_writes_what_it_says(tmp_path):
    (tmp_path / "small.yaml").write_text(SMALL)
    shown = helix_sim("sweep", "small.yaml", "--out", "out", "--points", "all", "--json", cwd=tmp_path)
    assert shown.returncode == 0, shown.stderr
    assert shown.stderr == "", "nothing but the result on a pipe"
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    printed = json.loads(shown.stdout)
    assert {key: printed[key] for key in summary} == summary
    assert set(printed) - set(summary) == {"evaluation_s", "layouts_per_s", "layouts_that_run_per_s", "verb"}
    assert {path.name for path in (tmp_path / "out").iterdir()} == set(summary["files"])
    points, frontier = (pd.read_parquet(tmp_path / "out" / name) for name in ("points", "frontier.parquet"))
    listed = pd.read_csv(tmp_path / "out" / "points.csv", engine="pyarrow")  # every digit, in every pandas
    pd.testing.assert_frame_equal(listed, points, check_dtype=False, check_exact=True)
    assert len(points) == summary["layouts_that_run"]
    assert set(frontier["id"]) <= set(points["id"])
    again = pd.read_csv(tmp_path / "out" / "frontier.csv", engine="pyarrow")  # every digit, in every pandas
    pd.testing.assert_frame_equal(again, frontier, check_dtype=False, check_exact=True)
    assert set(frontier["context"]) == {128_000, 1_000_000}


def test_two_runs_write_the_same_bytes(tmp_path):
    (tmp_path / "small.yaml").write_text(SMALL)
    for out in ("a", "b"):
        assert helix_sim("sweep", "small.yaml", "--out", out, cwd=tmp_path).returncode == 0
    for path in (tmp_path / "a").iterdir():
        assert path.read_bytes() == (tmp_path / "b" / path.name).read_bytes(), path.name


def test_a_pipe_that_closes_early_is_no_traceback():
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    command = f"{sys.executable} -m helix_sim models | true"
    shown = subprocess.run(command, shell=True, capture_output=True, text=True, env=environment, check=False)
    assert "Traceback" not in shown.stderr


def test_the_library_orients_a_newcomer():
    code = "import helix_sim as hs; help(hs)"
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    for word in ("decode_step", "run_sweep", "load_model", "Start here"):
        assert word in shown.stdout
