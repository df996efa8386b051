"""How a command ends: one table of codes, 1 for moved or none alone, and no traceback for whatever reads the output."""

from __future__ import annotations

import os
import re
import stat
import subprocess
import sys
from pathlib import Path

import pytest

import helix_sim
from helix_sim.core.errors import Exit, SpecError, Stopped, cannot_write
from helix_sim.specs.load import data_folder

PACKAGE = Path(helix_sim.__file__).parent
ENVIRONMENT = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}


def ended(command: str, **more: str) -> tuple[int, str, str]:
    """Exit code, output and messages of a shell command, in which `hs` is the tool."""
    script = f'hs() {{ "{sys.executable}" -m helix_sim "$@"; }}\n{command}'
    shell = ["bash", "-c", script]
    done = subprocess.run(shell, capture_output=True, env=ENVIRONMENT | more, timeout=120, check=False)
    return done.returncode, done.stdout.decode(errors="replace"), done.stderr.decode(errors="replace")


def test_the_codes_are_a_table_with_a_sentence_each() -> None:
    assert len({int(code) for code in Exit}) == len(Exit)
    assert all(code.meaning and "\n" not in code.meaning for code in Exit)
    assert {Exit.DONE: 0, Exit.MOVED: 1, Exit.BAD_INPUT: 2}.items() <= {code: int(code) for code in Exit}.items()


def test_no_code_is_written_where_the_table_is_not() -> None:
    for path in PACKAGE.rglob("*.py"):
        found = re.findall(r"(?:sys\.exit|typer\.Exit|Stopped)\((?:code=)?-?\d", path.read_text(encoding="utf-8"))
        assert not found, path


@pytest.mark.parametrize("verb", ["models", "explain llama-3.1-8b h100-hgx --context 8K", "--help", "machines --json"])
def test_a_closed_pipe_ends_in_silence_and_is_not_moved(verb: str) -> None:
    code, _, said = ended(f"hs {verb} | true; exit ${{PIPESTATUS[0]}}")
    assert code in (Exit.DONE, Exit.CLOSED_PIPE)  # a short output may be in the pipe before it closes
    assert said == ""
    code, _, said = ended(f"(sleep 1; hs {verb}) | true; exit ${{PIPESTATUS[0]}}")
    assert code == Exit.CLOSED_PIPE
    assert said == ""


@pytest.mark.parametrize("verb", ["models", "models --json", "--help", "explain llama-3.1-8b h100-hgx --context 8K"])
def test_a_full_output_is_one_sentence(verb: str) -> None:
    code, _, said = ended(f"hs {verb} > /dev/full")
    assert code == Exit.DISK_FULL
    assert said == "helix-sim: standard output: the disk is full\n"


BROKEN_VERB = "import helix_sim.specs.catalogue as c, helix_sim.cli as i; c.models = lambda: 1 / 0; i.main()"
CRASH = f'"{sys.executable}" -c "{BROKEN_VERB}" models'


def test_a_bug_shows_its_traceback_and_is_not_moved() -> None:
    code, _, said = ended(CRASH)
    assert code == Exit.BUG
    assert "ZeroDivisionError" in said
    assert said.splitlines()[-1].startswith("helix-sim: this is a fault of helix_sim")


@pytest.mark.parametrize("nobody_reads", ["2>&-", "2>/dev/full", "2> >(true)"])
def test_a_bug_whose_traceback_nobody_reads_is_not_moved(nobody_reads: str) -> None:
    assert ended(f"{CRASH} {nobody_reads}")[0] == Exit.BUG


@pytest.mark.parametrize("library", ["typer", "numpy", "yaml"])
def test_a_library_that_cannot_be_imported_is_not_moved(library: str, tmp_path: Path) -> None:
    (tmp_path / library).mkdir()
    (tmp_path / library / "__init__.py").write_text("raise ImportError('broken')")
    path = os.pathsep.join([str(tmp_path), *sys.path])
    code, _, said = ended("hs regress paper-llama-3.1-405b", PYTHONPATH=path)
    assert code == Exit.BUG
    assert "broken" in said


def test_closed_outputs_and_a_closed_input_are_no_traceback() -> None:
    assert ended("hs models >&-")[::2] == (Exit.DONE, "")
    assert ended("hs models 2>&-; exit $?")[0] == Exit.DONE
    assert ended("hs explain nowhere h100-hgx 2>&- >&-")[::2] == (Exit.BAD_INPUT, "")
    assert ended("hs explain - <&-")[::2] == (Exit.BAD_INPUT, "helix-sim: -: standard input is closed\n")


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "cp1252", "utf-8"])
def test_a_narrow_encoding_is_no_traceback(encoding: str) -> None:
    verb = "hs explain llama-3.1-8b h100-hgx --context 8K"
    code, _, said = ended(verb, PYTHONIOENCODING=encoding)
    assert (code, said) == (0, "")
    code, _, said = ended(f"{verb} --tpa µ; {verb} --json | hs explain -", PYTHONIOENCODING=encoding)
    assert code == 0
    assert "--tpa: " in said
    assert "Traceback" not in said


@pytest.mark.parametrize(
    ("command", "code", "sentence"),
    [
        ("hs", Exit.BAD_INPUT, ""),
        ("hs nothing", Exit.BAD_INPUT, "helix-sim: No such command 'nothing'; see "),
        ("hs explain", Exit.BAD_INPUT, "helix-sim: SOURCE is missing; see "),
        ("hs sweep paper-deepseek-r1", Exit.BAD_INPUT, "helix-sim: --out is missing; see "),
        ("hs explain a b --kvpp 3", Exit.BAD_INPUT, "helix-sim: --kvpp: there is no such option; did you mean --kvp?"),
        ("hs explain a b --kvp", Exit.BAD_INPUT, "helix-sim: --kvp: its value is missing"),
        ("hs explain llama-3.1-8b", Exit.BAD_INPUT, "helix-sim: llama-3.1-8b: a machine is missing"),
    ],
)
def test_a_command_line_that_is_none_is_one_sentence(command: str, code: int, sentence: str) -> None:
    found, shown, said = ended(command)
    assert found == code
    assert said.startswith(sentence)
    assert said.count("\n") == bool(sentence)
    assert bool(shown) == (command == "hs")


def test_only_an_error_about_a_file_is_a_sentence() -> None:
    assert (
        cannot_write("a", PermissionError(13, "Permission denied")).sentence
        == "a: cannot be written: permission denied"
    )
    with pytest.raises(OSError, match="Bad file descriptor"):
        cannot_write("a", OSError(9, "Bad file descriptor"))
    assert not issubclass(Stopped, SpecError)


# --- Where nothing runs ----------------------------------------------------------------------------------------------

NOTHING_RUNS = """
kind: sweep
name: nothing-runs
description: a large model on one GPU
model: deepseek-r1
machine: h100-hgx
timing: paper
precision: {weights: fp8, kv: fp8, math: fp8}
contexts: [1M, 1K]
gpus: {from: 1, to: 1}
batch: {dense_to: 2, growth: 1.5, to: 3}
families: [tp, helix]
groups: {all: [tp, helix]}
"""


@pytest.mark.parametrize(
    "verb", ["sweep", "sweep --points all", "report", "sensitivity", "sensitivity --set math_rate=2x"]
)
def test_a_search_of_which_nothing_runs_says_so_and_ends_with_1(verb: str, tmp_path: Path) -> None:
    if verb == "report":
        pytest.importorskip("plotly")
    (tmp_path / "nothing.yaml").write_text(NOTHING_RUNS)
    name, *more = verb.split()
    out = "" if name == "sensitivity" else f"--out {tmp_path}/out"
    code, _, said = ended(f"hs {name} {tmp_path}/nothing.yaml {' '.join(more)} {out}")
    assert code == Exit.MOVED
    assert said.startswith("no layout runs")
    assert said.count("\n") == 1


def test_a_sweep_of_which_one_family_runs_at_one_context_is_done(tmp_path: Path) -> None:
    text = NOTHING_RUNS.replace("deepseek-r1", "llama-3.1-8b").replace("[1M, 1K]", "[64M, 1K]")
    (tmp_path / "some.yaml").write_text(text)
    code, shown, said = ended(f"hs sweep {tmp_path}/some.yaml --out {tmp_path}/out")
    assert (code, said) == (Exit.DONE, "")
    assert {path.name for path in (tmp_path / "out").glob("*.png")} == {"pareto-1K.png"}
    assert "dropped" in shown


# --- Outputs ---------------------------------------------------------------------------------------------------------

LAYOUT = "llama-3.1-8b h100-hgx --context 8K"
WRITES = {
    "export": f"export {LAYOUT} --to vllm --out",
    "trace": f"trace {LAYOUT} --out",
    "import-hf": f"import-hf {data_folder('model_specs').parent}/nowhere/config.json --out",
    "report": "report paper-llama-3.1-405b --out",
    "regress": "regress paper-llama-3.1-405b --json-file",
}
WRITES_FOLDERS = {
    "sweep": "sweep paper-llama-3.1-405b --out",
    "reproduce": "reproduce fig3 --out",
    "sensitivity": f"sensitivity {LAYOUT} --out",
    "validate": "validate --end-to-end --out",
    "regress": "regress paper-llama-3.1-405b --out",
    "update": "regress paper-llama-3.1-405b --update --baseline",
    "calibrate": "calibrate silicon --system gb200 --framework trtllm --out",
}


@pytest.mark.parametrize("command", [*WRITES.values(), *WRITES_FOLDERS.values()], ids=[*WRITES, *WRITES_FOLDERS])
def test_a_place_that_cannot_be_written_is_one_sentence_before_the_work(command: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    code, shown, said = ended(f"hs {command} {tmp_path}/file/x")
    assert code == Exit.CANNOT_WRITE
    assert said.startswith(f"helix-sim: {tmp_path}/file/x: cannot be written: not a directory")
    assert said.count("\n") == 1
    assert shown == ""


@pytest.mark.parametrize("command", [WRITES["export"], WRITES["trace"]], ids=["export", "trace"])
def test_a_link_a_device_and_standard_output_are_written_as_the_user_pointed(command: str, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path / "real.json")
    assert ended(f"hs {command} {tmp_path}/link")[0] == 0
    assert (tmp_path / "link").is_symlink()
    content = (tmp_path / "real.json").read_text()
    code, shown, _ = ended(f"hs {command} /dev/stdout")
    assert code == 0
    assert shown.startswith(content)
    code, _, _ = ended(f"hs {command} /dev/stdout > {tmp_path}/shown")
    assert code == 0
    assert (tmp_path / "shown").read_text() == shown
    assert ended(f"hs {command} /dev/null")[0] == 0
    assert stat.S_ISCHR(Path("/dev/null").stat().st_mode)
    code, shown, _ = ended(
        f"hs {command} >(cat > {tmp_path}/through) > {tmp_path}/said; sleep 1; cat {tmp_path}/through"
    )
    assert (code, shown) == (0, content)
    assert ended(f"hs {command} /dev/full")[0] == Exit.DISK_FULL
