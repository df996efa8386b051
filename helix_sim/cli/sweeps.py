"""Searches and what is made of them: frontiers, the paper, the gate, the report."""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer

if TYPE_CHECKING:
    import rich.progress
    from rich.console import Console

    from helix_sim.gate.regress import Verdict
    from helix_sim.output.sweep_folder import Progress
    from helix_sim.paper.beyond import Gain

from helix_sim.cli.base import (
    JsonOption,
    OutFile,
    OutFolder,
    app,
    console,
    new_table,
    number,
    number_option,
    one_of,
    out_file,
    out_folder,
    print_answer,
    refuse,
    remark,
    remark_on,
    remark_on_costs,
    show,
    size,
    styled,
    working,
)
from helix_sim.cli.options import AgainstOption, PriceOption, TimingOptions, price, spread

# --- sweep -----------------------------------------------------------------------------------------------------------


SweepArgument = Annotated[str, typer.Argument(help="shipped sweep or path of a YAML file")]


@app.command()
@spread
def sweep(
    sweep: SweepArgument,
    out: Annotated[Path, typer.Option(help="folder for the files")],
    timing: TimingOptions,
    points: Annotated[
        str, typer.Option(help="frontier: the frontiers alone; all: every layout that runs, too (CSV to 10M)")
    ] = "frontier",
    executor: Annotated[
        str, typer.Option(help="serial, processes or dask; auto takes processes for what takes long")
    ] = "auto",
    workers: Annotated[str | None, number_option("processes; one a core unless given")] = None,
    scheduler: Annotated[
        str | None, typer.Option(help="address of a Dask scheduler, e.g. tcp://host:8786; a local cluster unless given")
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="go on with what a stopped run left in --out")] = False,
    usd_per_gpu_hour: PriceOption = None,
    against: AgainstOption = None,
    block: Annotated[str | None, typer.Option(help="layouts between two saves at most, e.g. 4M")] = None,
    no_plots: Annotated[
        bool, typer.Option("--no-plots", help="draw nothing, which takes longer than most searches")
    ] = False,
    progress: Annotated[
        str, typer.Option(help="auto: a bar on a terminal; json: lines for programs on stderr; none")
    ] = "auto",
    as_json: JsonOption = False,
) -> None:
    """A whole search: frontiers (or every point) as Parquet and CSV, a picture, a summary.

    Stopped at any moment, it goes on with --resume. Each way to stop has its own exit code.
    """
    from helix_sim.output.sweep_folder import write_sweep
    from helix_sim.specs.load import load_machine, load_model, load_sweep

    one_of("--points", points, ("frontier", "all"))
    one_of("--progress", progress, ("auto", "json", "none"))
    if no_plots:
        refuse({"--against": against}, "is of pictures, and --no-plots draws none; leave one of them out")
    if executor != "dask":
        refuse({"--scheduler": scheduler}, "is for --executor dask; leave it out")
    if executor == "serial" or scheduler:
        refuse({"--workers": workers}, "is for processes that this command starts; leave it out")
    spec = load_sweep(sweep).with_timing(timing.name())
    remark_on(load_model(spec.name_of("model")))
    with _progress(progress) as on_progress:
        summary = write_sweep(
            spec,
            out,
            every_point=points == "all",
            plots=not no_plots,
            executor=executor,
            workers=size(workers, "--workers") if workers is not None else None,
            scheduler=scheduler,
            resume=resume,
            layouts_per_block=size(block, "--block") if block is not None else None,
            on_progress=on_progress,
            usd_per_gpu_hour=price(usd_per_gpu_hour),
            against=against,
        )
    for text in summary.get("remarks", ()):
        remark(text)
    remark_on_costs(load_machine(spec.name_of("machine")).at_price(price(usd_per_gpu_hour)))
    if as_json:
        print_answer("sweep", summary)
    else:
        _print_summary(console(), summary, out)
    if not summary["layouts_that_run"]:
        _end_where_nothing_runs(summary["dropped_by_reason"])


def _end_where_nothing_runs(dropped: dict[str, int]) -> NoReturn:
    """Say why no layout of a search runs, and end with the exit code of that."""
    from helix_sim.core.errors import Exit

    why = ", ".join(f"{count:,} {reason}" for reason, count in dropped.items())
    remark(f"no layout runs: {why}")
    raise typer.Exit(Exit.MOVED)


@contextlib.contextmanager
def _progress(kind: str) -> Iterator[Callable[[Progress], None]]:
    """What to do with a sweep's progress: a bar on stderr where that is a terminal, a JSON line, or nothing."""
    if kind == "json":
        yield lambda now: remark(json.dumps(_progress_record(now)))
    elif kind == "auto" and sys.stderr.isatty():
        with _bar() as bar:
            task = bar.add_task("", total=None, note="")
            yield lambda now: bar.update(
                task, completed=now.layouts, total=now.layouts_in_all, note=_progress_note(now)
            )
    else:
        yield lambda _: None


def _bar() -> rich.progress.Progress:
    """Percentage, counts and time left, behind a bar where the terminal has room for one."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, ProgressColumn, TaskProgressColumn, TextColumn, TimeRemainingColumn

    console = Console(stderr=True)
    columns: list[ProgressColumn] = [
        TaskProgressColumn(),
        TextColumn("{task.fields[note]}", markup=False),
        TimeRemainingColumn(compact=True),
    ]
    return Progress(*([BarColumn()] if console.width >= WIDE else []), *columns, console=console)


WIDE = 110
"""Columns of a terminal that shows a bar."""


def _progress_record(now: Progress) -> dict[str, Any]:
    from dataclasses import asdict

    return asdict(now) | {"dropped_share": now.dropped_share}


def _progress_note(now: Progress) -> str:
    return (
        f"{now.layouts / 1e6:,.1f}M layouts, {now.layouts_per_s / 1e6:.0f}M/s, {now.dropped_share:.0%} dropped, "
        f"{now.frontier_points} points"
    )


def _print_summary(out: Console, summary: dict[str, Any], folder: Path) -> None:
    best = {"best_tokens_per_s_user": ".1f", "best_tokens_per_s_gpu": ".1f", "least_usd_per_million_tokens": ".3g",
            "least_joules_per_token": ".3g"}  # fmt: skip
    table = new_table("context", "curve", ">points", ">best tokens/s/user", ">best tokens/s/GPU", ">least $/M tokens",
                      ">least J/token")  # fmt: skip
    for row in summary["curves"]:
        cells = [f"{value:{form}}" if (value := row.get(key)) is not None else "-" for key, form in best.items()]
        table.add_row(f"{row['context']:,}", row["curve"], str(row["points"]), *cells)
    show(out, table)
    dropped = sum(sum(reasons.values()) for reasons in summary["dropped"].values())
    out.print(
        f"{summary['layouts']:,} layouts, {dropped:,} dropped "
        f"({', '.join(f'{reason} {count:,}' for reason, count in summary['dropped_by_reason'].items())})"
    )
    if "evaluation_s" in summary:
        out.print(
            f"{summary['evaluation_s']:.2f} s: {summary['layouts_per_s'] / 1e6:,.1f} M layouts/s, of which "
            f"{summary['layouts_that_run_per_s'] / 1e6:,.1f} M/s run"
        )
    out.print(f"files in {folder}: {', '.join(summary['files'])}")


# --- reproduce -------------------------------------------------------------------------------------------------------


@app.command()
@spread
def reproduce(
    timing: TimingOptions,
    figure: Annotated[
        str, typer.Argument(help="fig1, fig3, fig5, fig6, fig7, claims, all of these, variants or beyond")
    ] = "all",
    out: OutFolder = Path("out/reproduce"),
    draws: Annotated[str | None, number_option("random timings of `variants`; 100 unless given")] = None,
    ttl_ms: Annotated[
        str | None, number_option("latency within which `beyond` compares, in milliseconds; 25 unless given")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """The Helix paper's figures redrawn, each with its data as CSV, and its claims beside ours.

    `beyond`: whether KV parallelism still pays where attention is sparse, compressed or hybrid, and which op decides.
    """
    from helix_sim.core.errors import SpecError
    from helix_sim.output.paper_files import CHOICES, redraw, stretch_text
    from helix_sim.paper.reproduce import MEASURED
    from helix_sim.specs.load import load_timing

    if figure not in CHOICES:
        raise SpecError([f"{figure!r} is not one of {', '.join(CHOICES)}"])
    if figure != "beyond":
        refuse({"--ttl-ms": ttl_ms}, "is for reproduce beyond; leave it out")
    if figure in ("fig1", "fig3"):
        refuse({"--timing": timing.name()}, f"does not change {figure}, which no kernel enters; leave it out")
    if figure != "variants":
        refuse({"--draws": draws}, "is for reproduce variants; leave it out")
    if figure == "beyond":
        _reproduce_beyond(out, timing.name(), ttl_ms, as_json=as_json)
        return
    many = size(draws, "--draws") if draws is not None else 100
    with working("searching and drawing"):
        written = redraw(figure, out, load_timing(timing.name() or "paper"), say=remark, draws=many)
    if as_json:
        claims = [claim.record() for claim in written.claims]
        print_answer("reproduce", {"claims": claims, "files": list(map(str, written.files))})
        return
    if written.claims:
        table = new_table("id", "claim", ">paper", ">ours", ">accepted", "held")
        for claim in written.claims:
            held = "yes" if claim.held else f"no, by {claim.missed_by:.3g}"
            accepted = f"{claim.low:g} to {claim.high:g}"
            table.add_row(claim.id, claim.claim, f"{claim.paper:g}", f"{claim.ours:.3g}", accepted, held)
        show(console(), table)
        for claim in written.claims:
            if claim.largest is not None:
                console().print(f"{claim.id}: median {claim.ours:.1%}, largest {claim.largest:.1%} over the frontier")
            if claim.stretched:
                console().print(f"{claim.id}, if Helix's TTL were longer or shorter: {stretch_text(claim)}")
        console().print("claims.md names the layouts, and the assumption that decides each number")
    for name, off in written.without_hop_b.items():
        measured = MEASURED[name]
        console().print(f"{name}: TensorRT-LLM measured {measured:g} on GB300 without HOP-B; ours without it {off:.3g}")
    console().print(f"files in {out}: {', '.join(path.name for path in written.files)}")


def _reproduce_beyond(out: Path, timing: str | None, ttl_ms: str | None, *, as_json: bool) -> None:
    from helix_sim.output.beyond_files import write_beyond
    from helix_sim.paper.beyond import BUDGET_MS

    budget_ms = number(ttl_ms, "--ttl-ms") if ttl_ms is not None else BUDGET_MS
    written = write_beyond(out, timing=timing, budget_ms=budget_ms)
    if as_json:
        rows = [gain.record() for of_model in written.gains.values() for gain in of_model]
        print_answer("reproduce", {"rows": rows, "files": list(map(str, written.files))})
        return
    setting = written.searches[0].plan.setting
    console().print(
        f"{setting.machine.name}, {setting.timing.name}, within {budget_ms:g} ms a token. gain: tokens/s/GPU with KV "
        "shards over without; faster: tokens/s/user at no less throughput; decides: the op that moves most of a "
        "token's GPU time, over all of it without"
    )
    for found in written.searches:
        index = ["index"] if found.plan.model.has_indexer else []
        table = new_table(
            "context", *index, ">gain", ">80 %", ">faster", "with", "decides", title=found.plan.model.name
        )
        for gain in written.gains[found.sweep.name]:
            table.add_row(*_gain_row(gain, indexed=bool(index)))
        show(console(), table)
    console().print(f"files in {out}: {', '.join(path.name for path in written.files)}")


def _gain_row(gain: Gain, *, indexed: bool) -> list[str]:
    """Context, index cache, gain with its interval, speedup, widths and the deciding op of one gain, as texts."""
    from helix_sim.core.units import format_size

    step, ends, decider = gain.sharded or gain.faster, gain.interval, gain.decider()
    index = []
    if indexed:
        shards = int(step.layout.index_kvp) if step and gain.family == "kvp-shards" else 1
        index = [f"{shards} shards" if shards > 1 else "copies"]
    widths = ("tpa", "kvp", "dp", "pp")
    of = [f"{name}{getattr(step.layout, name)}" for name in widths if getattr(step.layout, name) > 1] if step else []
    return [
        format_size(gain.context),
        *index,
        gain.verdict if gain.ratio is None else f"{gain.ratio:.2f}",
        f"{ends[0]:.2f}-{ends[1]:.2f}" if ends else "",
        f"{gain.interactivity:.2f}" if gain.interactivity else "-",
        " ".join(of),
        f"{decider[0].partition('[')[0]} {decider[1]:+.0%}" if decider else "",
    ]


# --- regress ---------------------------------------------------------------------------------------------------------


@app.command()
def regress(
    sweeps: Annotated[
        list[str] | None, typer.Argument(help="shipped sweeps or paths; those with a baseline unless given")
    ] = None,
    baseline: Annotated[Path | None, typer.Option(help="folder of baselines; the shipped one unless given")] = None,
    update: Annotated[bool, typer.Option("--update", help="write the baselines anew")] = False,
    rtol: Annotated[str, number_option("relative tolerance")] = "1e-6",
    curves_only: Annotated[
        bool,
        typer.Option("--curves-only", help="judge the curves alone, not the probes or the count of layouts that run"),
    ] = False,
    markdown: Annotated[Path | None, out_file("verdict for a pull-request comment")] = None,
    junit: Annotated[Path | None, out_file("verdict for a CI system")] = None,
    json_file: Annotated[Path | None, out_file("verdict for programs, with every moved point", "--json-file")] = None,
    out: Annotated[Path | None, out_folder("folder for all three, and a picture of each sweep")] = None,
    as_json: JsonOption = False,
) -> None:
    """Pareto curves against stored ones: exit code 0 if they held, 1 if they moved, 2 for bad input."""
    from helix_sim.core.errors import Exit, SpecError
    from helix_sim.core.files import require_writable
    from helix_sim.gate import regress as study
    from helix_sim.gate.verdict import record as gate_record
    from helix_sim.output import gate_files as gate
    from helix_sim.specs.load import data_folder

    tolerance = number(rtol, "--rtol")
    if as_json and (files := [name for name in sweeps or () if name.endswith(".json")]):
        raise SpecError([f"--json prints the verdict, as in every verb; write it with --json-file {files[0]}"])
    if update and baseline is None:
        raise SpecError(["--update needs --baseline, the folder to write to"])
    if update and curves_only:
        raise SpecError(["--curves-only is for judging, and --update writes every baseline whole; leave it out"])
    if update and baseline is not None:
        require_writable(baseline, folder=True)
    folder = baseline or data_folder("sweeps") / "baselines"
    with working("searching again"):
        updates = study.update(sweeps or [], folder, rtol=tolerance) if update else []
        verdicts = (
            [each.verdict for each in updates if each.verdict]
            if update
            else study.regress(sweeps or [], folder, rtol=tolerance, curves_only=curves_only)
        )
    if as_json:
        print_answer("regress", gate_record(verdicts))
    else:
        _print_verdicts(console(), verdicts)
    for path in gate.write(verdicts, markdown=markdown, junit=junit, json_file=json_file, out=out):
        remark(f"wrote {path}")
    if update:
        for each in updates:
            remark(f"{'wrote' if each.written else 'already right:'} {each.path}, {each.rows} layouts")
    elif not all(verdict.held for verdict in verdicts):
        raise typer.Exit(Exit.MOVED)


def _print_verdicts(out: Console, verdicts: list[Verdict]) -> None:
    from helix_sim.gate.verdict import headline, tables

    for verdict in verdicts:
        out.print(styled((headline(verdict), f"bold {'green' if verdict.held else 'red'}")))
        for table in tables(verdict):
            shown = new_table(*table.columns, title=table.title)
            for column in shown.columns:
                column.no_wrap = False
            for row in table.rows:
                shown.add_row(*row)
            show(out, shown)


# --- report ----------------------------------------------------------------------------------------------------------


@app.command()
@spread
def report(
    sweep: SweepArgument,
    out: OutFile,
    timing: TimingOptions,
    against: AgainstOption = None,
    usd_per_gpu_hour: PriceOption = None,
    as_json: JsonOption = False,
) -> None:
    """A whole search as one HTML file that needs no network: hover, toggle families, compare two layouts."""
    from helix_sim.output.report import write_report
    from helix_sim.specs.load import load_model, load_sweep

    spec = load_sweep(sweep).with_timing(timing.name())
    remark_on(load_model(spec.name_of("model")))
    with working("searching") as on_search:
        written = write_report(
            spec, out, against=against, usd_per_gpu_hour=price(usd_per_gpu_hour), on_search=on_search
        )
    if as_json:
        print_answer("report", written)
    else:
        console().print(
            f"{written['points']:,} points of {written['layouts']:,} layouts in {out}, {written['bytes'] / 1e6:.1f} MB"
        )
    if not written["points"]:
        _end_where_nothing_runs(written["dropped_by_reason"])
