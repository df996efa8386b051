"""Pareto curves as a gate: what fails it, what does not, what it says, and that it never harms a baseline."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from helix_sim import cli
from helix_sim.core.errors import Exit, SpecError
from helix_sim.core.layout import Layout
from helix_sim.gate import baseline, code_digests, regress, verdict
from helix_sim.search.pareto import Frontier, frontier
from helix_sim.search.plan import plan
from helix_sim.search.sweep import run_plan, run_sweep
from helix_sim.specs.load import data_folder, load_sweep

BASELINES = data_folder("sweeps") / "baselines"

SWEEP = {
    "kind": "sweep",
    "name": "small",
    "description": "a search of a second's fraction",
    "model": "llama-3.1-8b",
    "machine": "gb200-nvl72",
    "timing": "paper",
    "precision": {"weights": "fp4", "kv": "fp4", "math": "fp4", "wire": "bf16"},
    "contexts": ["64K", "1M"],
    "gpus": {"from": 1, "to": 16},
    "batch": {"dense_to": 16, "growth": 1.5, "to": 64},
    "chunks": [1, 2],
    "families": ["tp", "pp", "helix"],
    "groups": {"baseline": ["tp", "pp"]},
}


@pytest.fixture
def small(tmp_path: Path) -> Path:
    """The file of a small sweep on a machine whose file can be edited."""
    machine = (data_folder("hardware_profiles") / "gb200-nvl72.yaml").read_text(encoding="utf-8")
    (tmp_path / "machine.yaml").write_text(machine, encoding="utf-8")
    return write_sweep(tmp_path, machine=str(tmp_path / "machine.yaml"))


def write_sweep(folder: Path, **changed: object) -> Path:
    path = folder / "small.yaml"
    path.write_text(yaml.safe_dump(SWEEP | changed, sort_keys=False), encoding="utf-8")
    return path


def edit(path: Path, old: str, new: str) -> None:
    text = path.read_text(encoding="utf-8")
    assert old in text
    path.write_text(text.replace(old, new), encoding="utf-8")


def run(*arguments: object) -> int:
    """The exit code of a command line."""
    old, sys.argv = sys.argv, ["helix-sim", "regress", *map(str, arguments)]
    try:
        cli.main()
    except SystemExit as stop:
        return int(stop.code or 0)
    finally:
        sys.argv = old
    return 0


def points(*pairs: tuple[float, float]) -> Frontier:
    x, y = np.array(pairs).T
    return frontier({"tokens_per_s_user": x, "tokens_per_s_gpu": y, "id": np.arange(len(x))})


# --- The shipped baselines -------------------------------------------------------------------------------------------


def test_shipped_frontiers_are_what_their_baselines_say() -> None:
    verdicts = regress.regress([], BASELINES)
    assert {v.sweep for v in verdicts} >= {"paper-deepseek-r1", "paper-llama-3.1-405b"}
    assert [verdict.headline(v) for v in verdicts if not v.held] == []


def test_every_sweep_with_a_baseline_is_a_file_of_less_than_200_kB_and_names_no_folder_of_its_author() -> None:
    for path in BASELINES.glob("*.csv"):
        assert path.stat().st_size < 200_000
        assert load_sweep(baseline.read(path).header["sweep"]).name == path.stem


def test_the_modules_whose_digests_are_kept_hold_every_equation_and_nothing_that_only_reads_or_writes() -> None:
    kept, package = set(code_digests.engine()), Path(baseline.__file__).parent.parent
    for folder in ("ops", "timing"):
        names = {f"{folder}/{path.stem}" for path in (package / folder).glob("*.py")} - {f"{folder}/__init__"}
        assert names <= kept
    assert {"step", "feasibility", "search/block", "specs/model", "core/collectives"} <= kept
    assert {name.partition("/")[0] for name in kept} <= {"core", "specs", "ops", "timing", "stacks", "search", "step",
                                                         "feasibility"}  # fmt: skip
    assert not kept & code_digests.READERS


def test_a_module_that_only_moved_is_not_blamed_and_one_that_changed_on_the_way_is() -> None:
    text = 'from helix_sim.units import ceil_div\n\n\ndef shares(a, b):\n    """Shares."""\n    return ceil_div(a, b)\n'
    moved = text.replace("helix_sim.units", "helix_sim.core.numeric").replace("Shares.", "Shares of a.")
    digest = code_digests.code_digest
    assert code_digests.changed_modules({"ffn": digest(text)}, {"ops/ffn": digest(moved)}) == []
    wrong = digest(moved.replace("ceil_div(a, b)", "ceil_div(b, a)"))
    assert code_digests.changed_modules({"ffn": digest(text)}, {"ops/ffn": wrong}) == [
        "helix_sim/ffn.py (gone)",
        "helix_sim/ops/ffn.py (new)",
    ]


# --- Attainment ------------------------------------------------------------------------------------------------------


def test_moves_of_a_point_are_measured_along_both_axes_and_to_the_nearest() -> None:
    found = regress.gap(points((10, 8), (20, 4)), points((8, 10), (19, 4), (20, 3)), 1e-6)
    assert found.missed.tolist() == [0, 1]
    assert found.vertical == pytest.approx([4 / 8 - 1, 3 / 4 - 1])
    assert found.horizontal == pytest.approx([8 / 10 - 1, 19 / 20 - 1])
    assert found.distance == pytest.approx([10 / 8 - 1, 20 / 19 - 1])


def test_past_the_end_of_a_frontier_a_move_is_unknown_and_the_distance_is_not() -> None:
    found = regress.gap(points((10, 8), (20, 4)), points((10, 8)), 1e-6)
    assert found.missed.tolist() == [1]
    assert np.isnan(found.vertical[1])
    assert found.horizontal[1] == pytest.approx(-0.5)
    assert found.distance[1] == pytest.approx(1.0)


def test_hypervolume_is_the_area_below_the_stairs() -> None:
    assert regress.hypervolume(points((10, 8), (20, 4))) == 10 * 8 + 10 * 4
    assert regress.hypervolume(Frontier(name="none", columns={})) == 0


pairs_of_floats = st.lists(st.tuples(st.floats(1, 1e3), st.floats(1, 1e3)), min_size=1, max_size=30)


@given(pairs_of_floats, st.randoms(use_true_random=False))
@settings(max_examples=100, deadline=None)
def test_points_that_swap_by_rounding_do_not_move_a_frontier(pairs: list[tuple[float, float]], chance) -> None:  # type: ignore[no-untyped-def]
    noisy = [(x * (1 + chance.uniform(-1e-9, 1e-9)), y * (1 + chance.uniform(-1e-9, 1e-9))) for x, y in pairs]
    one, other = points(*pairs), points(*noisy)
    assert not regress.gap(one, other, 1e-6).missed.size
    assert not regress.gap(other, one, 1e-6).missed.size


@given(pairs_of_floats, st.integers(0, 29))
@settings(max_examples=100, deadline=None)
def test_a_frontier_without_one_of_its_points_misses_that_point_alone(
    pairs: list[tuple[float, float]], place: int
) -> None:
    whole = points(*pairs)
    place %= len(whole)
    rest = frontier({name: np.delete(column, place) for name, column in whole.columns.items()})
    missed = regress.gap(whole, rest, 1e-12).missed.tolist()
    assert missed in ([place], [])  # nothing, where a neighbour is as good but for rounding
    assert not regress.gap(rest, whole, 1e-12).missed.size


# --- What became of a point ------------------------------------------------------------------------------------------


def kinds(found: regress.Verdict) -> set[str]:
    return {move.kind for curve in found.curves for move in curve.moves}


def test_a_point_that_no_longer_fits_is_told_apart_from_one_that_got_slower(small: Path) -> None:
    planned = plan(load_sweep(small))
    stored = baseline.snapshot(run_plan(planned), str(small), "2025-01-01")
    memory, bandwidth = planned.machine.memory_GB, planned.machine.hbm_bandwidth_GBps
    less = planned.machine.model_copy(update={"memory_GB": memory.model_copy(update={"value": 60.0})})
    lost = regress.compare(stored, run_plan(replace(planned, setting=replace(planned.setting, machine=less))))
    assert kinds(lost) == {"infeasible"}
    why = next(move.why for curve in lost.moved_curves for move in curve.moves)
    assert re.match(r"OUT_OF_MEMORY: it needs \d+\.\d GB on the fullest GPU, and gb200-nvl72 has 50\.0 GB", why)
    slow = planned.machine.model_copy(update={"hbm_bandwidth_GBps": bandwidth.model_copy(update={"value": 4000.0})})
    assert kinds(
        regress.compare(stored, run_plan(replace(planned, setting=replace(planned.setting, machine=slow))))
    ) == {"slower"}


def test_a_point_that_the_search_no_longer_visits_is_told_apart(small: Path) -> None:
    planned = plan(load_sweep(small))
    stored = baseline.snapshot(run_plan(planned), str(small), "2025-01-01")
    found = regress.compare(stored, run_plan(replace(planned, batches=planned.batches[1:])))
    assert kinds(found) == {"unsearched"}


def test_a_better_frontier_is_a_move_too(small: Path) -> None:
    planned = plan(load_sweep(small))
    stored = baseline.snapshot(run_plan(replace(planned, batches=planned.batches[1:])), str(small), "2025-01-01")
    assert kinds(regress.compare(stored, run_plan(planned))) == {"better"}


def test_a_family_without_any_layout_that_runs_holds_and_one_that_begins_to_run_is_a_move(small: Path) -> None:
    planned = plan(load_sweep(small))
    tiny = planned.machine.model_copy(
        update={"memory_GB": planned.machine.memory_GB.model_copy(update={"value": 10.5})}
    )
    nothing = run_plan(replace(planned, setting=replace(planned.setting, machine=tiny)))
    stored = baseline.parse(baseline.render(baseline.snapshot(nothing, "small", "2025-01-01")), "small")
    assert regress.compare(stored, nothing).held
    assert kinds(regress.compare(stored, run_plan(planned))) == {"better"}
    both_ways = baseline.snapshot(run_plan(planned), "small", "2025-01-01")
    assert kinds(regress.compare(both_ways, nothing)) == {"infeasible"}


def test_with_curves_only_the_probes_and_the_counts_do_not_judge(small: Path) -> None:
    result = run_sweep(small)
    stored = baseline.snapshot(result, str(small), "2025-01-01")
    probe = next(place for place, row in enumerate(stored.rows) if row.role == "probe")
    terms = {**stored.rows[probe].terms, "op.head": stored.rows[probe].terms["op.head"] * 2}
    rows = [replace(row, terms=terms) if place == probe else row for place, row in enumerate(stored.rows)]
    changed = replace(stored, rows=rows)
    assert not regress.compare(changed, result).held
    assert regress.compare(changed, result, curves_only=True).held


# --- Baselines as files ----------------------------------------------------------------------------------------------


def test_a_baseline_reads_back_as_it_was_written(small: Path) -> None:
    text = baseline.render(baseline.snapshot(run_sweep(small), "small", "2025-01-01"))
    assert baseline.render(baseline.parse(text, "small")) == text
    assert baseline.render(baseline.parse(text.replace("\n", "\r\n"), "small")) == text


def test_probes_use_what_frontiers_may_not(small: Path) -> None:
    rows = [row for row in baseline.snapshot(run_sweep(small), "small", "2025-01-01").rows if row.role == "probe"]
    assert {row.family for row in rows} == {"tp", "pp", "helix"}
    for axis in ("tpa", "kvp", "pp", "chunks"):
        assert any(getattr(row.layout, axis) > 1 for row in rows)
    assert all(row.terms for row in rows)


def test_an_update_that_would_change_the_date_alone_leaves_the_file(small: Path, tmp_path: Path) -> None:
    (first,) = regress.update([str(small)], tmp_path / "baselines", date="2025-01-01")
    before = first.path.read_bytes()
    (second,) = regress.update([str(small)], tmp_path / "baselines", date="2025-06-01")
    assert (first.written, second.written) == (True, False)
    assert second.path.read_bytes() == before


CORRUPTIONS = {
    "it is cut short": lambda text: "\n".join(text.splitlines()[:-3]) + "\n",
    "it has no column resident_GB": lambda text: text.replace("resident_GB", "resident"),
    "tokens_per_s_user is 'nan', not a finite number above 0": lambda text: re.sub(
        r"^(frontier,.*?,tp(?:,\d+){13}),[\d.]+", r"\1,nan", text, count=1, flags=re.MULTILINE
    ),
    "resident_GB is 'inf', not a finite number": lambda text: re.sub(
        r"^(frontier,.*?,tp(?:,\d+){13},[\d.]+,[\d.]+),[\d.]+", r"\1,inf", text, count=1, flags=re.MULTILINE
    ),
    "batch is '-1', not a whole number of at least 1": lambda text: re.sub(
        r"^(frontier,\d+,tp),\d+", r"\1,-1", text, count=1, flags=re.MULTILINE
    ),
    "role is 'fronteir'; it must be frontier or probe": lambda text: text.replace("\nfrontier", "\nfronteir", 1),
    "terms and the header names": lambda text: text.replace("op.embedding ", "", 1),
    "edited by hand or damaged": lambda text: text.replace("model.hidden_size: 4096", "model.hidden_size: 4095"),
    "its header has no 'terms'": lambda text: re.sub(r"^# terms: .*\n", "", text, flags=re.MULTILINE),
    "its format is 9": lambda text: text.replace("# format: 1", "# format: 9"),
    "it has no table": lambda text: "\n".join(line for line in text.splitlines() if line.startswith("#")),
    "its header has no 'format'": lambda text: "",
    "row 1 of its table: it ends too early": lambda text: re.sub(
        r"^(frontier,\d+,tp,\d+).*$", r"\1", text, count=1, flags=re.MULTILINE
    ),
}


@pytest.mark.parametrize("problem", CORRUPTIONS)
def test_a_corrupt_baseline_is_a_clear_error_and_stays_until_an_update(
    problem: str, small: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "baselines"
    (written,) = regress.update([str(small)], folder)
    whole = written.path.read_text(encoding="utf-8")
    damaged = CORRUPTIONS[problem](whole)
    assert damaged != whole
    written.path.write_text(damaged, encoding="utf-8")
    assert run(small, "--baseline", folder) == Exit.BAD_INPUT
    said = capsys.readouterr().err
    assert problem in said
    assert "--update" in said
    assert "Traceback" not in said
    assert written.path.read_text(encoding="utf-8") == damaged
    assert run(small, "--baseline", folder, "--update") == 0
    assert run(small, "--baseline", folder) == 0


def test_a_baseline_that_is_not_text_is_a_clear_error(
    small: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "small.csv").write_bytes(b"\xff\xfe\x00")
    assert run(small, "--baseline", tmp_path) == Exit.BAD_INPUT
    assert "byte 0 is not UTF-8" in capsys.readouterr().err


def test_a_stale_baseline_says_what_the_search_was_and_stays_until_an_update(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write_sweep(tmp_path)
    run(path, "--baseline", tmp_path, "--update")
    before = (tmp_path / "small.csv").read_bytes()
    write_sweep(tmp_path, chunks=[1, 4])
    assert run(path, "--baseline", tmp_path) == Exit.BAD_INPUT
    assert "of another search than the sweep small is today (chunks: [1, 2] → [1, 4])" in capsys.readouterr().err
    assert (tmp_path / "small.csv").read_bytes() == before
    assert run(path, "--baseline", tmp_path, "--update") == 0
    assert run(path, "--baseline", tmp_path) == 0


def test_a_write_that_fails_leaves_the_old_baseline_and_nothing_else(
    small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "baselines"
    (written,) = regress.update([str(small)], folder)
    before = written.path.read_bytes()
    edit(tmp_path / "machine.yaml", "value: 8000,", "value: 7920,")
    monkeypatch.setattr(Path, "write_text", lambda *_, **__: (_ for _ in ()).throw(OSError(28, "No space left")))
    with pytest.raises(OSError, match="No space left"):
        regress.update([str(small)], folder)
    assert [path.read_bytes() for path in folder.iterdir()] == [before]


def test_problems_of_several_sweeps_are_told_at_once(small: Path, tmp_path: Path) -> None:
    with pytest.raises(SpecError) as caught:
        regress.regress([str(small), "paper-deepseek-r2", "paper-deepseek-r1"], tmp_path)
    assert len(caught.value.problems) == 3


def test_two_sweeps_of_one_name_are_not_written_over_each_other(small: Path, tmp_path: Path) -> None:
    twin = tmp_path / "twin.yaml"
    twin.write_bytes(small.read_bytes())
    with pytest.raises(SpecError, match="have the same name"):
        regress.update([str(small), str(twin)], tmp_path)
    assert not list(tmp_path.glob("*.csv"))


# --- The command line ------------------------------------------------------------------------------------------------


def test_without_arguments_the_shipped_baselines_are_checked(capsys: pytest.CaptureFixture[str]) -> None:
    assert run() == 0
    assert "paper-deepseek-r1: held; 9 curves" in capsys.readouterr().out


def test_a_failure_explains_itself_in_every_form(
    small: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, out = tmp_path / "baselines", tmp_path / "out"
    assert run(small, "--baseline", folder, "--update") == 0
    assert run("--baseline", folder) == 0
    edit(tmp_path / "machine.yaml", "value: 8000,", "value: 7920,")
    capsys.readouterr()
    single = ("--markdown", tmp_path / "v.md", "--junit", tmp_path / "v.xml", "--json-file", tmp_path / "v.json")
    assert run("--baseline", folder, "--out", out, *single) == Exit.MOVED
    said = capsys.readouterr().out
    for words in ("small: moved", "attention_core", "machine.yaml", "hbm_bandwidth_GBps: 8000.0 → 7920.0"):
        assert "".join(words.split()) in "".join(said.split())  # a long path folds
    for name, other in (("regress.md", "v.md"), ("regress.xml", "v.xml"), ("regress.json", "v.json")):
        assert (out / name).read_bytes() == (tmp_path / other).read_bytes()
    for size in ("64K", "1M"):
        assert (out / f"small-{size}.png").read_bytes().startswith(b"\x89PNG")
        assert "<svg" in (out / f"small-{size}.svg").read_text(encoding="utf-8")

    markdown = (out / "regress.md").read_text(encoding="utf-8")
    assert "## Pareto curves: moved" in markdown
    assert "| attention\\_core |" in markdown
    suite = ElementTree.parse(out / "regress.xml").getroot()[0]
    assert (suite.get("tests"), suite.get("failures")) == ("10", "9")  # 4 curves at 2 contexts, probes; counts held
    record = json.loads((out / "regress.json").read_text(encoding="utf-8"))
    assert record["held"] is False
    curve = record["sweeps"][0]["curves"][0]
    assert curve["moves"][0]["kind"] == "slower"
    assert -0.02 < curve["largest_distance"] < 0
    assert -0.02 < curve["hypervolume_change"] < 0
    assert record["sweeps"][0]["terms"][0]["name"] == "op.attention_core"


def test_an_update_shows_what_it_changes_and_then_holds(
    small: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run(small, "--baseline", tmp_path, "--update")
    edit(tmp_path / "machine.yaml", "value: 8000,", "value: 7920,")
    capsys.readouterr()
    assert run("--baseline", tmp_path, "--update", "--markdown", tmp_path / "before-after.md") == 0
    assert "small: moved" in " ".join(capsys.readouterr().out.split())
    assert "attention" in (tmp_path / "before-after.md").read_text(encoding="utf-8")
    assert run("--baseline", tmp_path) == 0


def test_an_edited_source_of_a_value_is_told_and_does_not_fail(small: Path, tmp_path: Path) -> None:
    regress.update([str(small)], tmp_path)
    edit(
        tmp_path / "machine.yaml", "NVIDIA GB200 NVL72, 576 TB/s per rack", "NVIDIA GB200 NVL72 sheet, 576 TB/s a rack"
    )
    (found,) = regress.regress([str(small)], tmp_path)
    assert found.held
    assert [change.what for change in found.inputs] == [["no value; its sources, or its description"]]


def test_changed_code_is_named_by_its_module(small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    digests = code_digests.code_digests()
    monkeypatch.setattr(baseline, "code_digests", lambda: {**digests, "ops/ffn": "0" * 12})
    regress.update([str(small)], tmp_path)
    monkeypatch.undo()
    (found,) = regress.regress([str(small)], tmp_path)
    assert [(change.name, change.what) for change in found.inputs] == [("code", ["helix_sim/ops/ffn.py"])]


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (("--update",), "--update needs --baseline"),
        (("--baseline", "nowhere"), "there is no baseline in this folder"),
        (("paper-deepseek-r1", "--baseline", "nowhere"), "there is no such baseline; write it with --update"),
        (("paper-deepseek-r2",), "there is no sweep named 'paper-deepseek-r2'; did you mean paper-deepseek-r1?"),
        (("--rtol", "1e-9"), "--rtol: 1e-09 is not between 1e-08"),
        (("--rtol", "0"), "--rtol: '0' is not a number above 0"),
        (("--rtol", "nan"), "--rtol: 'nan' is not a number above 0"),
    ],
)
def test_bad_input_is_one_sentence_and_exit_code_2(
    arguments: tuple[str, ...], problem: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(*arguments) == Exit.BAD_INPUT
    said = capsys.readouterr().err
    assert problem in said
    assert len(said.splitlines()) == 1


def test_a_looser_tolerance_lets_a_smaller_move_pass(small: Path, tmp_path: Path) -> None:
    regress.update([str(small)], tmp_path)
    edit(tmp_path / "machine.yaml", "value: 8000,", "value: 7999,")
    assert not regress.regress([str(small)], tmp_path)[0].held
    assert regress.regress([str(small)], tmp_path, rtol=1e-3)[0].held


# --- The composite action --------------------------------------------------------------------------------------------

ACTION = Path(__file__).parents[2] / ".github" / "actions" / "pareto-gate" / "action.yml"


def run_action(folder: Path, sweeps: str) -> tuple[int, str, str]:
    """Exit code, outputs and job summary of the action's gate step, run as a runner would, its inputs at default."""
    action = yaml.safe_load(ACTION.read_text(encoding="utf-8"))
    step = next(step for step in action["runs"]["steps"] if step.get("id") == "gate")
    program = folder / "pareto-gate" / "bin" / "helix-sim"
    program.parent.mkdir(parents=True, exist_ok=True)
    program.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m helix_sim "$@"\n', encoding="utf-8")
    program.chmod(0o755)
    given = {"sweeps": sweeps, "baseline": str(folder / "baselines"), "out": str(folder / "verdict")}
    inputs = {name: str(spec.get("default", "")) for name, spec in action["inputs"].items()} | given
    environment = {
        name: re.sub(r"\$\{\{ inputs\.([\w-]+) \}\}", lambda match: inputs[match[1]], text)
        for name, text in step["env"].items()
    }
    files = {"GITHUB_OUTPUT": folder / "output", "GITHUB_STEP_SUMMARY": folder / "summary"}
    for path in files.values():
        path.write_text("", encoding="utf-8")
    done = subprocess.run(
        ["bash", "--noprofile", "--norc", "-eo", "pipefail", "-c", step["run"]],
        env=os.environ | environment | {name: str(path) for name, path in files.items()} | {"RUNNER_TEMP": str(folder)},
        capture_output=True,
        check=False,
    )
    return done.returncode, *(path.read_text(encoding="utf-8") for path in files.values())  # type: ignore[return-value]


@pytest.mark.skipif(not ACTION.is_file() or shutil.which("bash") is None, reason="needs a checkout, and bash")
def test_the_action_passes_fails_and_writes_the_job_summary(small: Path, tmp_path: Path) -> None:
    regress.update([str(small)], tmp_path / "baselines")
    code, output, summary = run_action(tmp_path, sweeps="")
    assert (code, output) == (0, "verdict=held\n")
    assert summary.startswith("## Pareto curves: held")
    edit(tmp_path / "machine.yaml", "value: 8000,", "value: 7920,")
    code, output, summary = run_action(tmp_path, sweeps=str(small))
    assert (code, output) == (1, "verdict=moved\n")
    assert "hbm" in summary
    code, output, summary = run_action(tmp_path, sweeps="no-such-sweep")
    assert (code, output, summary) == (2, "verdict=error\n", "")


# --- Words -----------------------------------------------------------------------------------------------------------


def test_markdown_and_xml_take_any_name(small: Path) -> None:
    result = run_sweep(small)
    held = regress.compare(baseline.snapshot(result, "small", "2025-01-01"), result)
    odd = replace(held, sweep="a|b <c> & \x00\x1b[31m`d`")
    assert "a\\|b \\<c\\>" in verdict.markdown([odd])
    assert ElementTree.fromstring(verdict.junit([odd]))[0].get("name") == "a|b <c> & \\x00\\x1b[31m`d`"


def test_a_layout_in_words_has_its_widths_other_than_one() -> None:
    x = Layout(batch=8, tpa=8, kvp=8, tpf=64)
    assert regress.layout_text(x.columns()) == "64 GPUs tpa8 kvp8 tpf64 batch 8"
    assert regress.layout_text(Layout().columns()) == "1 GPU batch 1"
