"""What KV parallelism buys beyond the paper's models, into a folder: gains as CSV, frontiers and gains as pictures."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from helix_sim.core.files import write_csv
from helix_sim.paper.beyond import BUDGET_MS, Gain, gains, search_beyond
from helix_sim.search.sweep import SweepResult


@dataclass(frozen=True, slots=True, kw_only=True)
class Beyond:
    """The searches, the gains of each model by its sweep's name, and the files that were written."""

    searches: list[SweepResult]
    gains: dict[str, list[Gain]]
    files: list[Path]


def write_beyond(out: Path, *, timing: str | None = None, budget_ms: float = BUDGET_MS) -> Beyond:
    """Search, take gains within a latency [ms], and write beyond.csv, beyond.png/svg and beyond-gains.png/svg."""
    import pandas as pd

    from helix_sim.output import paper_plots, plot

    searches = search_beyond(timing)
    found = {each.sweep.name: gains(each, budget_ms) for each in searches}
    table = pd.json_normalize([gain.record() for of_model in found.values() for gain in of_model])
    files = [
        write_csv(out / "beyond.csv", table),
        *plot.save(paper_plots.beyond_frontiers(searches, budget_ms), out / "beyond"),
        *plot.save(paper_plots.beyond_gains(searches, found, budget_ms), out / "beyond-gains"),
    ]
    return Beyond(searches=searches, gains=found, files=files)
