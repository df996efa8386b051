"""The paper's figures and claims into a folder: pictures, the CSV of each, claims.json and claims.md."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from helix_sim.core.display import Short
from helix_sim.core.escape import markdown_code
from helix_sim.core.files import write_csv, write_json, write_text
from helix_sim.paper import reproduce
from helix_sim.paper.reproduce import Claim, ClaimsReport, Searches
from helix_sim.specs.timing import Timing

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

CHOICES = (*reproduce.FIGURES, "claims", "all", "variants", "beyond")


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class Redrawn(Short):
    """What was written, and the claims if they were asked for."""

    files: list[Path]
    claims: list[Claim]
    without_hop_b: dict[str, float] = field(default_factory=dict)
    """On measured kernels: the claims that TensorRT-LLM measured without HOP-B, ours without it too."""


def redraw(
    figure: str, out: Path, timing: Timing, say: Callable[[str], None] = lambda _: None, draws: int = 100
) -> Redrawn:
    """Draw one figure, the claims, or all of both into `out`; `variants`: a table of so many random timings."""
    if figure == "variants":
        say(f"drawing {draws} timings, about a second each …")
        return _write_variants(reproduce.variants(timing, draws), out, say)
    from helix_sim.output import paper_plots, plot

    chosen = {*reproduce.FIGURES, "claims"} if figure == "all" else {figure}
    files: list[Path] = []

    def write(name: str, table: pd.DataFrame, drawn: Figure) -> None:
        files.extend([write_csv(out / f"{name}.csv", table), *plot.save(drawn, out / name)])

    if "fig1" in chosen:
        table = reproduce.figure_1()
        write("fig1", table, paper_plots.figure_1(table))
    if "fig3" in chosen:
        table = reproduce.figure_3()
        write("fig3", table, paper_plots.figure_3(table))
    if not chosen & {"fig5", "fig6", "fig7", "claims"}:
        return Redrawn(files=files, claims=[])

    searches = reproduce.search(timing)
    ours = reproduce.measure(searches)
    for name, key, ids in (
        ("fig5", "r1", ("r1_interactivity", "r1_users")),
        ("fig6", "llama", ("llama_interactivity", "llama_throughput")),
    ):
        if name in chosen:
            title = f"{searches.on[key].plan.model.name}, 1M tokens, {searches.on[key].plan.machine.name}"
            ratios = [f"Helix: {ours[ids[0]].value:.2f}x interactivity, {ours[ids[1]].value:.1f}x throughput"]
            write(
                name,
                reproduce.frontier_table(searches, key),
                paper_plots.figure_pareto(searches.on[key], title, ratios),
            )
    if "fig7" in chosen:
        own = reproduce.search(timing, reproduce.VARIATIONS[reproduce.OWN_LATENCY])
        other = reproduce.measure(own)
        losses = {key: tuple(of[f"hopb_off_{key}"].others["largest"] for of in (ours, other)) for key in searches.on}
        curves = {"hop-b on": searches.on, "hop-b off": searches.off, "hop-b on, chunks pay latency": own.on}
        drawn = paper_plots.figure_7(searches.on, searches.off, own.on, losses)
        write("fig7", reproduce.hop_b_table(curves, searches), drawn)
    if "claims" not in chosen:
        return Redrawn(files=files, claims=[])
    vary = timing.calibration is None  # what is measured is not varied
    if vary:
        say("varying each assumption to see which one decides a claim …")
    report = reproduce.claims(searches, timing, vary=vary)
    files += write_claims(report, out, searches)
    off = {} if vary else reproduce.without_hop_b(searches)
    return Redrawn(files=files, claims=report.claims, without_hop_b=off)


def _write_variants(table: pd.DataFrame, out: Path, say: Callable[[str], None]) -> Redrawn:
    """The table of random timings, and how many of them have both of the paper's losses."""
    for name, count in reproduce.both_losses(table).items():
        say(f"{count} of {len(table)} have R1's loss without HOP-B at 3 % or less and Llama's at 8 % or more ({name})")
    return Redrawn(files=[write_csv(out / "variants.csv", table)], claims=[])


def write_claims(report: ClaimsReport, out: Path, searches: Searches) -> list[Path]:
    """claims.json, a list of records, and claims.md, a table with its notes and every variation."""
    path = write_json(out / "claims.json", [claim.record() for claim in report.claims])
    return [path, write_text(out / "claims.md", claims_markdown(report, searches))]


def stretch_text(claim: Claim) -> str:
    """What a ratio at a latency would be if Helix's TTL were longer or shorter, as one line."""
    return ", ".join(f"{ratio:.3g} at {share}" for share, ratio in (claim.stretched or {}).items())


def claims_markdown(report: ClaimsReport, searches: Searches) -> str:
    """The claims, their notes and the variations as Markdown."""
    timing, layouts = markdown_code(report.timing), sum(result.layouts for result in searches.on.values())
    lines = [
        "# The paper's claims, and ours",
        "",
        f"Timing {timing}; {layouts:,} layouts searched. Each ratio is taken as the paper takes it.",
        "",
        "| id | claim | paper | ours | accepted | held |",
        "|---|---|---|---|---|---|",
    ]
    for c in report.claims:
        held = "yes" if c.held else f"no, by {c.missed_by:.3g}"
        lines.append(f"| {c.id} | {c.claim} | {c.paper:g} | {c.ours:.3g} | {c.low:g} to {c.high:g} | {held} |")
    lines += ["", "## Losses without HOP-B, over the whole frontier", "", "| id | median | largest |", "|---|---|---|"]
    lines += [f"| {c.id} | {c.ours:.2%} | {c.largest:.2%} |" for c in report.claims if c.largest is not None]
    lines += ["", "## Ratios at a latency, if Helix's TTL were longer or shorter", ""]
    lines += [f"- **{c.id}**: {c.ours:.3g}; {stretch_text(c)}" for c in report.claims if c.stretched]
    lines += ["", "## Where each number comes from, and what decides it", ""]
    for c in report.claims:
        lines += [f"- **{c.id}**: {c.layout}; against {c.baseline_layout}. {c.note}"]
    if report.varied:
        ids = [c.id for c in report.claims]
        lines += ["", "## One assumption at a time", "", "| varied | " + " | ".join(ids) + " |"]
        lines += ["|---|" + "---|" * len(ids)]
        for text, values in report.varied.items():
            lines.append(f"| {text} | " + " | ".join(f"{values[key]:.3g}" for key in ids) + " |")
    return "\n".join(lines) + "\n"
