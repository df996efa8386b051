"""What every test runs under: Triton's interpreter, hypothesis's profile, and the last words of a run.

Without a GPU the kernels run in Triton's interpreter, which has to be chosen before triton is first imported. Where
the variable CI is set, property tests draw the same examples in every run; a seed found elsewhere becomes an @example.
"""

from __future__ import annotations

import os
import shutil

import pytest
from hypothesis import settings
from missing_extras import what_was_missing

if shutil.which("nvidia-smi") is None:
    os.environ.setdefault("TRITON_INTERPRET", "1")

settings.register_profile("ci", derandomize=True, deadline=None, print_blob=True)
settings.register_profile("dev", deadline=None)
settings.load_profile("ci" if os.environ.get("CI") else "dev")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--held-still", action="store_true", help="hold every record of tests/held_still, not a sample")
    parser.addoption("--all-questions", action="store_true", help="ask all 200 questions of tests/stacks, not a few")


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Say what was skipped for want of what, and the one command that brings each."""
    reports = terminalreporter.stats.get("skipped", [])
    lines = what_was_missing([str(report.longrepr[2]) for report in reports if isinstance(report.longrepr, tuple)])
    if lines:
        terminalreporter.section("skipped")
    for line in lines:
        terminalreporter.write_line(line)
