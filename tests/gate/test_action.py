"""The GitHub action's own script, run as GitHub runs it, with a `helix-sim` that only writes down how it was called."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from helix_sim.core.errors import Exit

ACTION = Path(__file__).parents[2] / ".github" / "actions" / "pareto-gate" / "action.yml"
pytestmark = pytest.mark.skipif(not ACTION.exists(), reason="the archive has no GitHub action")

STAND_IN = """#!/usr/bin/env bash
printf '%s\\n' "$@" > "$CALLED"
while [ "$#" -gt 0 ]; do [ "$1" = --out ] && mkdir -p "$2" && echo verdict > "$2/regress.md"; shift; done
exit "$ENDS_WITH"
"""


def run_gate(folder: Path, *, ends_with: int = 0, **given: str) -> tuple[int, list[str], str]:
    """The action's exit code, what it called helix-sim with, and its verdict."""
    action: dict[str, Any] = yaml.safe_load(ACTION.read_text(encoding="utf-8"))
    (step,) = (step for step in action["runs"]["steps"] if step.get("id") == "gate")
    inputs = {name: each.get("default", "") for name, each in action["inputs"].items()} | {"baseline": "b"} | given
    called, output = folder / "called", folder / "output"
    tool = folder / "pareto-gate" / "bin" / "helix-sim"
    tool.parent.mkdir(parents=True)
    tool.write_text(STAND_IN)
    tool.chmod(0o755)
    variables = {
        name: inputs[value.removeprefix("${{ inputs.").removesuffix(" }}")] for name, value in step["env"].items()
    }
    environment = {"PATH": "/usr/bin:/bin", "RUNNER_TEMP": str(folder), "GITHUB_OUTPUT": str(output)}
    environment |= {"GITHUB_STEP_SUMMARY": str(folder / "summary"), "CALLED": str(called), "ENDS_WITH": str(ends_with)}
    shell = ["bash", "--noprofile", "--norc", "-eo", "pipefail", "-c", step["run"]]
    done = subprocess.run(shell, cwd=folder, env=environment | variables, capture_output=True, check=False)
    return done.returncode, called.read_text().splitlines(), output.read_text().strip()


@pytest.mark.parametrize(
    ("sweeps", "checked"),
    [
        ("", []),
        ("one.yaml", ["one.yaml"]),
        ("one.yaml two.yaml", ["one.yaml", "two.yaml"]),
        ("one.yaml\ntwo.yaml\nthree.yaml\n", ["one.yaml", "two.yaml", "three.yaml"]),
        ("  one.yaml\n\n  two.yaml three.yaml", ["one.yaml", "two.yaml", "three.yaml"]),
        ("*.yaml", ["*.yaml"]),
    ],
)
def test_every_line_of_sweeps_is_checked(sweeps: str, checked: list[str], tmp_path: Path) -> None:
    (tmp_path / "here.yaml").touch()
    code, called, verdict = run_gate(tmp_path, sweeps=sweeps)
    assert called[: called.index("--baseline")] == ["regress", *checked]
    assert (code, verdict) == (0, "verdict=held")


@pytest.mark.parametrize("code", list(Exit))
def test_only_exit_code_1_is_moved(code: Exit, tmp_path: Path) -> None:
    ended, _, verdict = run_gate(tmp_path, ends_with=int(code))
    assert ended == code
    assert verdict == {Exit.DONE: "verdict=held", Exit.MOVED: "verdict=moved"}.get(code, "verdict=error")
