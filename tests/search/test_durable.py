"""A sweep stopped in any way loses nothing, harms nobody's files, and ends as if it had never been stopped."""

import contextlib
import errno
import json
import multiprocessing
import os
import random
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from helix_sim.core.errors import Exit, SpecError, Stopped
from helix_sim.gate.code_digests import engine
from helix_sim.output.sweep_folder import write_sweep
from helix_sim.search import executors, journal
from helix_sim.search.block import evaluate_block
from helix_sim.search.evaluated import Total
from helix_sim.search.journal import Journal, Outcome, told
from helix_sim.search.plan import blocks, plan
from helix_sim.search.sweep import result_of, run_plan
from helix_sim.specs.load import load_sweep, parse, parse_yaml
from helix_sim.specs.sweep import Sweep

SMALL = b"""
kind: sweep
name: small
description: some ten thousand layouts
model: llama-3.1-8b
machine: gb200-nvl72
timing: paper
precision: {weights: fp4, kv: fp4, math: fp4}
contexts: [128K, 300K, 1M]
gpus: {from: 1, to: 8}
batch: {dense_to: 8, growth: 1.5, to: 64}
chunks: [1, 4, batch]
families: [tp, pp, helix]
groups: {baseline: [tp, pp], all-helix: [helix]}
"""
BLOCK = 400
"""Layouts in a block of these tests: about forty blocks."""


def small(**changes):
    """The sweep above, with changes."""
    return parse(Sweep, parse_yaml(SMALL, "small") | changes, "small")


def files_of(folder):
    """Every file of a folder and its bytes."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def contents(folder):
    """Every file of a folder and its bytes; of the summary without where its sweep's own file lies."""
    found = files_of(folder)
    if "summary.json" in found:
        summary = json.loads(found["summary.json"])
        summary["inputs"].pop("sweep", None)
        found["summary.json"] = json.dumps(summary).encode()
    return found


def moved(folder, then):
    """Names of the files of a folder that are not what they were, or that one of both lacks."""
    now = contents(folder)
    return sorted(name for name in {*now, *then} if now.get(name) != then.get(name))


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The files of an uninterrupted run, with every point."""
    out = tmp_path_factory.mktemp("whole") / "out"
    write_sweep(small(), out, every_point=True, layouts_per_block=BLOCK)
    return contents(out)


def command(folder, *options):
    """The command line of the same run."""
    path = folder / "small.yaml"
    path.write_bytes(SMALL)
    arguments = ["sweep", path, "--out", folder / "out", "--points", "all", "--block", BLOCK, *options]
    return [sys.executable, "-m", "helix_sim", *map(str, arguments)]


def started(folder, *options):
    """That run in a process of its own."""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    return subprocess.Popen(
        command(folder, *options), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
    )


SLOWLY = """
import signal, sys, time
from helix_sim.cli import main
from helix_sim.search.journal import Journal

signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job is born deaf to it
save = Journal.save
Journal.save = lambda *given: (save(*given), time.sleep(0.05))
sys.exit(main())
"""
"""The command line with a pause after each block, so that a signal finds it at work on any machine."""


def started_slowly(folder, *options):
    """That run in a process of its own, for two seconds or more."""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    return subprocess.Popen(
        [sys.executable, "-c", SLOWLY, *command(folder, *options)[3:]],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment,
    )  # fmt: skip


def finished(folder, *options):
    """That run's exit code and what it said on stderr."""
    process = started(folder, *options)
    _, said = process.communicate(timeout=120)
    return process.returncode, said


def stop_after(count):
    """Progress that stops a run after so many blocks, as Ctrl-C does."""
    seen = []

    def on_progress(now):
        seen.append(now)
        if len(seen) == count:
            raise KeyboardInterrupt

    return on_progress


def interrupted(out, count=5, **options):
    """A run into `out` that was stopped after some blocks."""
    with pytest.raises(Stopped) as caught:
        write_sweep(small(), out, every_point=True, layouts_per_block=BLOCK, on_progress=stop_after(count), **options)
    assert caught.value.code == Exit.INTERRUPTED


# --- The same results, whoever evaluates -----------------------------------------------------------------------------


@pytest.mark.parametrize(("executor", "workers"), [("serial", None), ("processes", 1), ("processes", 3), ("dask", 2)])
def test_files_are_the_same_whoever_evaluates(executor, workers, whole, tmp_path):
    if executor == "dask":
        pytest.importorskip("distributed")
    options = {"executor": executor, "workers": workers}
    write_sweep(small(), tmp_path / "out", every_point=True, layouts_per_block=BLOCK, **options)
    assert moved(tmp_path / "out", whole) == []


@pytest.mark.parametrize("layouts", [1, 150, 10**9])
def test_frontiers_are_the_same_for_any_size_of_block(layouts, whole, tmp_path):
    sweep = small(gpus={"from": 1, "to": 2}) if layouts == 1 else small()
    write_sweep(sweep, tmp_path / "out", layouts_per_block=layouts)
    if layouts == 1:
        write_sweep(sweep, tmp_path / "other")
        assert moved(tmp_path / "out", contents(tmp_path / "other")) == []
    else:
        found = contents(tmp_path / "out")
        assert all(found[name] == whole[name] for name in found if name != "summary.json")


def test_points_are_the_same_for_any_size_of_block(whole, tmp_path):
    write_sweep(small(), tmp_path / "one", every_point=True, layouts_per_block=10**9)
    write_sweep(small(), tmp_path / "many", every_point=True, layouts_per_block=BLOCK)
    one, many = (pd.read_parquet(tmp_path / name / "points").sort_values("id") for name in ("one", "many"))
    pd.testing.assert_frame_equal(one.reset_index(drop=True), many.reset_index(drop=True), check_exact=True)


def test_a_worker_that_dies_is_replaced(whole, tmp_path):
    killed = []

    def on_progress(now):
        if not killed:
            killed.append(multiprocessing.active_children()[0])
            killed[0].kill()

    options = {"executor": "processes", "workers": 2, "layouts_per_block": BLOCK, "on_progress": on_progress}
    write_sweep(small(), tmp_path / "out", every_point=True, **options)
    assert killed
    assert moved(tmp_path / "out", whole) == []


def test_workers_that_die_again_and_again_stop_the_sweep(monkeypatch, tmp_path):
    def broken(*_):
        raise executors.BrokenProcessPool

    monkeypatch.setattr(executors, "_bounded", broken)
    with pytest.raises(Stopped, match="died 4 times in a row") as caught:
        write_sweep(small(), tmp_path / "out", executor="processes")
    assert caught.value.code == Exit.WORKERS_DIED


@pytest.mark.parametrize(
    ("block_s", "start_s", "here"), [(0.1, 0.05, 99), (9.0, 0.05, 0), (0.0, 1e-9, 1), (0.0, 1e9, 99)]
)
def test_auto_hands_over_what_is_left_once_that_takes_longer_than_processes_take_to_start(
    monkeypatch, block_s, start_s, here
):
    handed = []
    monkeypatch.setattr(executors, "cores", lambda: 2)
    monkeypatch.setattr(executors, "BLOCK_S", block_s)
    monkeypatch.setattr(executors, "START_S", dict.fromkeys(executors.START_S, start_s))
    monkeypatch.setattr(executors, "_processes", lambda _, tasks, workers: iter(handed.append((tasks, workers)) or ()))
    planned = plan(small())
    tasks = [executors.Task(index=index, block=block) for index, block in enumerate(list(blocks(planned, BLOCK))[:9])]
    done = [index for index, _ in executors.execute("auto", planned, tasks)]
    assert done == [task.index for task in tasks[:here]]
    assert handed == ([(tasks[here:], 2)] if here < len(tasks) else [])


@pytest.mark.parametrize("executor", ["serial", "processes", "auto"])
def test_whoever_evaluates_the_blocks_finds_the_same(executor, monkeypatch):
    monkeypatch.setattr(executors, "BLOCK_S", 9.0)
    planned = plan(small())
    tasks = [executors.Task(index=index, block=block) for index, block in enumerate(blocks(planned, 10**4))]
    total = Total()
    for _, outcome in executors.execute(executor, planned, tasks, workers=2):
        total.add(outcome.evaluated)
    assert result_of(planned, total.sum).to_frame().equals(run_plan(planned).to_frame())


def test_a_scheduler_that_does_not_answer_is_a_mistake(tmp_path):
    pytest.importorskip("distributed")
    with pytest.raises(SpecError, match="no Dask scheduler answers at nonsense"):
        write_sweep(small(), tmp_path / "out", executor="dask", scheduler="nonsense://x")


def test_an_unknown_executor_is_a_mistake(tmp_path):
    with pytest.raises(SpecError, match="not one of auto, serial, processes, dask"):
        write_sweep(small(), tmp_path / "out", executor="threads")
    assert not (tmp_path / "out").exists()


# --- Stopped and resumed ---------------------------------------------------------------------------------------------


def test_an_interrupted_sweep_goes_on_where_it_was(whole, tmp_path):
    interrupted(tmp_path / "out")
    seen = []
    options = {"every_point": True, "layouts_per_block": BLOCK, "on_progress": seen.append}
    write_sweep(small(), tmp_path / "out", resume=True, **options)
    assert moved(tmp_path / "out", whole) == []
    count = len(list(blocks(plan(small()), BLOCK)))
    assert len(seen) == count - 5
    assert seen[-1].layouts == seen[-1].layouts_in_all


def killed_until_done(folder, rng, most, *options):
    """How often a run was killed at a random moment after it began its folder, before a resumed one came to its end."""
    kills = 0
    while True:
        process = started(folder, "--resume", *options)
        try:
            process.communicate(timeout=most * rng.random())
        except subprocess.TimeoutExpired:
            kills += (folder / "out").exists()
            process.kill()
            process.communicate()
        else:
            assert process.returncode == 0
            return kills


def test_a_sweep_killed_at_random_moments_ends_as_if_it_never_was(whole, tmp_path):
    # HELIX_SIM_KILLS=50 for the long form
    wanted = int(os.environ.get("HELIX_SIM_KILLS", "4"))
    rng, kills, runs = random.Random(7), 0, 0
    while kills < wanted:
        folder = tmp_path / str(runs)
        folder.mkdir()
        executor = ("serial", "processes")[runs % 2]
        workers = ("--workers", "2") if executor == "processes" else ()
        kills += killed_until_done(folder, rng, 6.0, "--executor", executor, *workers)
        assert moved(folder / "out", whole) == [], f"run {runs} after {kills} kills"
        runs += 1
    print(f"{kills} kills in {runs} runs")


def test_ctrl_c_is_one_sentence_and_loses_nothing(whole, tmp_path):
    process = started_slowly(tmp_path, "--executor", "processes", "--workers", "2")
    while not list(tmp_path.glob("out/unfinished/*.block")):
        assert process.poll() is None
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=60)
    assert process.returncode == Exit.INTERRUPTED
    assert said.startswith("helix-sim: interrupted; what is done is kept")
    assert said.count("\n") == 1
    assert finished(tmp_path, "--resume") == (0, "")
    assert moved(tmp_path / "out", whole) == []


@pytest.mark.parametrize("moment", range(0, 45, 3))
def test_a_run_that_fails_at_any_write_is_resumed(moment, monkeypatch, whole, tmp_path):
    from helix_sim.core import files

    real, calls = files.create_beside, []

    def full(path):  # every file that appears whole begins here
        calls.append(path)
        if len(calls) > moment:
            raise OSError(errno.ENOSPC, "No space left on device")
        return real(path)

    monkeypatch.setattr(files, "create_beside", full)
    with pytest.raises(Stopped, match="the disk is full; what is done is kept") as caught:
        write_sweep(small(), tmp_path / "out", every_point=True, layouts_per_block=BLOCK)
    assert caught.value.code == Exit.DISK_FULL
    monkeypatch.setattr(files, "create_beside", real)
    write_sweep(small(), tmp_path / "out", every_point=True, layouts_per_block=BLOCK, resume=True)
    assert moved(tmp_path / "out", whole) == []


# --- Other folders, other sweeps -------------------------------------------------------------------------------------


def stopped(out, sweep=None, **options):
    """The exit code and sentence of a run that is refused; the folder is as it was."""
    before = files_of(out)
    with pytest.raises(Stopped) as caught:
        write_sweep(sweep or small(), out, every_point=True, layouts_per_block=BLOCK, **options)
    assert {name for name, raw in files_of(out).items() if before.get(name) != raw} == set()
    assert files_of(out).keys() == before.keys()
    return caught.value.code, caught.value.sentence


def test_an_unfinished_sweep_is_not_begun_again_by_accident(tmp_path):
    interrupted(tmp_path / "out")
    code, sentence = stopped(tmp_path / "out")
    assert code == Exit.UNFINISHED
    assert "5 of" in sentence
    assert "--resume" in sentence


@pytest.mark.parametrize("resume", [False, True])
def test_a_folder_of_another_sweep_is_left_alone(resume, tmp_path):
    out = tmp_path / "out"
    write_sweep(small(), out, every_point=True, layouts_per_block=BLOCK)
    code, sentence = stopped(out, small(contexts=["2M"]), resume=resume)
    assert code == Exit.OTHER_SWEEP
    assert "its sweep differs" in sentence
    interrupted(tmp_path / "unfinished")
    code, sentence = stopped(tmp_path / "unfinished", small(timing="ideal"), resume=resume)
    assert code == Exit.OTHER_SWEEP
    assert "its sweep and timing differs" in sentence


def test_a_sweep_of_the_same_families_in_another_order_is_another_sweep(tmp_path):
    interrupted(tmp_path)
    whole = small()
    turned = whole.model_copy(update={"families": dict(reversed(whole.families.items()))})
    code, sentence = stopped(tmp_path, turned, resume=True)
    assert code == Exit.OTHER_SWEEP
    assert "its families differs" in sentence


def test_a_sweep_is_resumed_only_by_the_code_that_began_it(monkeypatch, tmp_path):
    interrupted(tmp_path / "out")
    monkeypatch.setattr(journal, "code_digest", lambda: "another")
    code, sentence = stopped(tmp_path / "out", resume=True)
    assert code == Exit.OTHER_SWEEP
    assert "its code differs" in sentence


def test_a_foreign_summary_is_left_alone(tmp_path):
    (tmp_path / "summary.json").write_text("[1, 2")
    assert stopped(tmp_path)[0] == Exit.OTHER_SWEEP


def test_points_of_an_unknown_sweep_are_left_alone(tmp_path):
    (tmp_path / "points").mkdir()
    (tmp_path / "points" / "part-000000.parquet").write_text("somebody's")
    code, _ = stopped(tmp_path)
    assert code == Exit.OTHER_SWEEP


def test_a_finished_sweep_can_be_run_again_and_resuming_it_does_nothing(whole, tmp_path):
    for resume in (False, True, False):
        seen = []
        options = {"every_point": True, "layouts_per_block": BLOCK, "on_progress": seen.append}
        write_sweep(small(), tmp_path / "out", resume=resume, **options)
        assert bool(seen) != resume
        assert moved(tmp_path / "out", whole) == []


def test_two_sweeps_into_one_folder_at_once_are_refused(tmp_path):
    planned = plan(small())
    with Journal(tmp_path / "out", planned, points=False, layouts=BLOCK):
        code, said = finished(tmp_path)
    assert code == Exit.BUSY
    assert said == f"helix-sim: {tmp_path}/out: another sweep is writing here; wait for it, or give another --out\n"


@pytest.mark.parametrize("what", ["block", "points", "cut", "gone"])
def test_a_damaged_file_is_found_and_only_its_block_evaluated_again(what, whole, tmp_path):
    out = tmp_path / "out"
    interrupted(out)
    block = out / "unfinished" / "000002.block"
    path = block if what in ("block", "cut") else out / "points" / "part-000002.parquet"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content[: len(content) // 3] if what == "cut" else content)
    if what == "gone":
        path.unlink()
    code, sentence = stopped(out, resume=True)
    assert code == Exit.DAMAGED
    assert f"remove {block}" in sentence
    block.unlink()
    write_sweep(small(), out, every_point=True, layouts_per_block=BLOCK, resume=True)
    assert moved(out, whole) == []


@pytest.mark.parametrize("number", [errno.EROFS, errno.EACCES])
def test_a_folder_that_cannot_be_written_is_one_sentence(number, monkeypatch, tmp_path):
    def refuse(*_, **__):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr("pathlib.Path.mkdir", refuse)
    with pytest.raises(Stopped, match=r"cannot be written: (read-only file system|permission denied)") as caught:
        write_sweep(small(), tmp_path / "out")
    assert caught.value.code == Exit.CANNOT_WRITE


def test_a_file_where_the_folder_should_be_is_one_sentence(tmp_path):
    (tmp_path / "out").write_text("in the way")
    code, said = finished(tmp_path)
    assert code == Exit.CANNOT_WRITE
    assert said.count("\n") == 1
    assert (tmp_path / "out").read_text() == "in the way"


def test_a_bug_is_not_taken_for_a_full_disk(tmp_path):
    with pytest.raises(OSError, match="odd"), told(tmp_path):
        raise OSError(errno.EBADF, "odd")


def test_what_is_kept_of_a_block_is_what_it_showed(tmp_path):
    planned = plan(load_sweep("paper-deepseek-r1"))
    with Journal(tmp_path, planned, points=False, layouts=10**5) as kept:
        for index, block in list(enumerate(kept.blocks))[::17]:
            shown = evaluate_block(planned, block)
            kept.save(index, Outcome(evaluated=shown))
            again = kept.load(index)
            assert (again.layouts, again.dropped) == (shown.layouts, shown.dropped)
            for context, families in shown.frontiers.items():
                for name, found in families.items():
                    here = again.frontiers.get(context, {}).get(name)
                    for key, column in found.columns.items():
                        assert np.array_equal(here.columns[key], column)
                        assert here.columns[key].dtype == column.dtype


# --- Progress and memory ---------------------------------------------------------------------------------------------


def test_progress_for_programs_is_a_json_line_a_block(tmp_path):
    code, said = finished(tmp_path, "--progress", "json")
    lines = [json.loads(line) for line in said.splitlines()]
    assert code == 0
    assert len(lines) == len(list(blocks(plan(small()), BLOCK)))
    assert [line["layouts"] for line in lines] == sorted(line["layouts"] for line in lines)
    assert lines[-1]["layouts"] == lines[-1]["layouts_in_all"] == plan(small()).layouts
    assert set(lines[0]) >= {"layouts_per_s", "frontier_points", "dropped", "dropped_share", "seconds_left"}


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="there is no /proc to ask for a process's memory")
def test_memory_is_flat_in_the_number_of_layouts():
    code = """
import sys
from helix_sim.specs.load import load_sweep
from helix_sim.search.sweep import run_sweep
spec = load_sweep("paper-deepseek-r1").model_copy(update={"contexts": [50_000 * i for i in range(1, int(sys.argv[1]))]})
layouts = run_sweep(spec).layouts
status = open("/proc/self/status").read()  # ru_maxrss would count what the parent held before this program was started
print(layouts, status.split("VmHWM:")[1].split()[0])
"""
    found = {}
    for contexts in (5, 21):
        run = [sys.executable, "-c", code, str(contexts)]
        layouts, kilobytes = subprocess.run(run, capture_output=True, text=True, check=True).stdout.split()
        found[int(layouts)] = int(kilobytes)
    few, many = sorted(found)
    assert many > 10**8
    assert found[many] < 500_000
    assert found[many] < 1.2 * found[few]


@pytest.mark.parametrize("columns", [60, 120])
def test_progress_on_a_terminal_fits_it_and_says_speed_dropped_share_frontier_and_time_left(tmp_path, columns):
    pty = pytest.importorskip("pty")
    child, terminal = pty.fork()
    if not child:
        environment = os.environ | {"COLUMNS": str(columns), "TERM": "xterm"}
        command = [sys.executable, "-m", "helix_sim", "sweep", "paper-deepseek-r1", "--out", str(tmp_path / "out")]
        os.execve(sys.executable, command, environment)
    shown = b""
    with contextlib.suppress(OSError):  # the terminal goes with the child
        while part := os.read(terminal, 65536):
            shown += part
    assert os.waitpid(child, 0)[1] == 0
    lines = re.split(r"[\r\n]+", re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", shown.decode()))
    (last,) = {line.rstrip() for line in lines if "100%" in line}
    assert re.search(r"100% 5\.4M layouts, \d+M/s, \d+% dropped, \d+ points (--|\d\d):", last), last
    assert len(last) <= columns
    assert ("━" in last) == (columns == 120)


def test_a_sweep_without_plots_has_all_files_but_the_pictures(tmp_path):
    drawn = write_sweep(small(), tmp_path / "drawn")
    plain = write_sweep(small(), tmp_path / "plain", plots=False)
    pictures = {path.name for path in (tmp_path / "drawn").glob("pareto*")}
    assert set(drawn["files"]) - set(plain["files"]) == pictures != set()
    assert (tmp_path / "plain/frontier.csv").read_bytes() == (tmp_path / "drawn/frontier.csv").read_bytes()
    assert not pictures & {path.name for path in (tmp_path / "plain").iterdir()}


def test_a_sweep_at_another_price_is_the_same_sweep(tmp_path):
    for price in (3.0, 4.0, 4.0):  # one that took the price for another machine refused its own folder
        found = write_sweep(small(), tmp_path / "out", layouts_per_block=BLOCK, usd_per_gpu_hour=price)
        assert found["usd_per_gpu_hour"] == price
    frame = pd.read_csv(tmp_path / "out" / "frontier.csv")
    assert np.allclose(frame["usd_per_million_tokens"], 4 / 3600 / frame["tokens_per_s_gpu"] * 1e6, rtol=1e-4)


def test_a_resumed_sweep_asks_for_the_same_equations_and_not_for_the_same_search_alone(monkeypatch):
    read, real = set(), Path.read_bytes
    monkeypatch.setattr(Path, "read_bytes", lambda path: read.add(path) or real(path))
    journal.code_digest.__wrapped__()
    package = Path(journal.__file__).parent.parent
    assert {package / f"{name}.py" for name in engine()} <= read
