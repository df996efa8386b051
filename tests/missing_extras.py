"""What the skipped tests of a run wanted, and the command that brings it."""

from __future__ import annotations

import os
import re
import sys
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True, kw_only=True)
class Extra:
    """Something that tests can do without."""

    named: str  # a pattern of the reasons for which tests skip
    what: str
    command: str


def _install(extra: str) -> str:
    here = Path(os.path.relpath(sys.executable))
    python = "python" if here.parts[0] == ".." else here
    return f"{python} -m pip install --editable '.[{extra}]'"


EXTRAS = (
    Extra(named=r"\bplotly\b|extra `report`", what="plotly (the report)", command=_install("report")),
    Extra(named=r"aiconfigurator", what="aiconfigurator-core (measured tables)", command=_install("silicon")),
    Extra(named=r"\btorch\b|\btriton\b", what="torch and Triton", command=_install("gpu")),
    Extra(named=r"\bdistributed\b", what="distributed (sweeps over Dask)", command=_install("distributed")),
    Extra(named=r"\bplaywright\b|extra `test`", what="the test suite's own packages", command=_install("test")),
    Extra(named=r"Chromium", what="a Chromium (the report in a browser)", command="apt-get install chromium"),
    Extra(named=r"perfetto", what="perfetto (its own reader of traces)", command="python -m pip install perfetto"),
    Extra(named=r"\bmkdocs\b|extra `docs`", what="mkdocs (the documentation)", command=_install("docs")),
)


def what_was_missing(reasons: Iterable[str]) -> list[str]:
    """One line for each thing that was missing, and one for each other reason, with how many tests skipped for it.

    >>> what_was_missing(["Skipped: no Chromium on this machine"] * 2 + ["Skipped: there is a GPU"])
    ['2 without a Chromium (the report in a browser): apt-get install chromium', '1 because: there is a GPU']
    """
    counts: Counter[str] = Counter()
    for reason in reasons:
        known = next((extra for extra in EXTRAS if re.search(extra.named, reason)), None)
        because = f"because: {reason.removeprefix('Skipped: ')}"
        counts[f"without {known.what}: {known.command}" if known else because] += 1
    return [f"{count} {line}" for line, count in counts.most_common()]
