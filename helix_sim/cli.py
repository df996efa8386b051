"""The command line: parses, calls one library function a verb, prints. Results to stdout, remarks to stderr."""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    import rich.progress
    from rich.console import Console
    from rich.table import Table

    from helix_sim.spec import Precision
    from helix_sim.step import Step
    from helix_sim.studies.explore import Progress

app = typer.Typer(
    name="helix-sim",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="How fast a model decodes, sharded every way a rack allows: latency, throughput, and what binds.",
)

BAD_INPUT = 2

ModelArgument = Annotated[str, typer.Argument(help="shipped model or path of a YAML file (see: helix-sim models)")]
HardwareArgument = Annotated[
    str, typer.Argument(help="shipped machine or path of a YAML file (see: helix-sim hardware)")
]
ContextOption = Annotated[str, typer.Option(help="tokens in each request's KV cache, e.g. 128K, 1M, 1Mi")]
ClockOption = Annotated[str | None, typer.Option(help="ideal, paper, or the path of a clock's YAML file")]
JsonOption = Annotated[bool, typer.Option("--json", help="print JSON for programs")]
OutOption = Annotated[Path, typer.Option(help="folder for the files")]


def main() -> None:
    """Entry point: a user's mistake is one sentence on stderr and exit code 2, never a traceback."""
    from helix_sim.spec import SpecError, Stopped

    try:
        app()
    except SpecError as error:
        fail(error.problems)
    except Stopped as error:
        fail([error.sentence], error.code)
    except BrokenPipeError:
        sys.stderr.close()
        sys.exit(1)
    except OSError as error:
        fail([f"{error.filename}: {error.strerror}" if error.filename else str(error)])


def fail(problems: list[str], code: int = BAD_INPUT) -> None:
    """Say what is wrong, and end with an exit code: the one for bad input unless given."""
    for problem in problems:
        print(f"helix-sim: {problem}", file=sys.stderr)
    sys.exit(code)


def console() -> Console:
    """Rich output: coloured on a terminal, plain and wide on a pipe."""
    from rich.console import Console

    return Console() if sys.stdout.isatty() else Console(width=160, no_color=True)


def remark(text: str) -> None:
    """One line to stderr."""
    print(text, file=sys.stderr)


def print_json(content: Any) -> None:
    """JSON to stdout."""
    from helix_sim.tables import plain

    print(json.dumps(content, indent=2, ensure_ascii=False, default=plain))


def size(text: str, option: str) -> int:
    """A size such as 1M; SpecError naming the option otherwise."""
    from helix_sim.spec import SpecError
    from helix_sim.units import parse_size

    try:
        return parse_size(text)
    except ValueError as error:
        raise SpecError([f"{option}: {error}"]) from None


# --- explain ---------------------------------------------------------------------------------------------------------


@app.command()
def explain(
    model: ModelArgument,
    hardware: HardwareArgument,
    context: ContextOption = "1M",
    batch: Annotated[int, typer.Option(help="requests that one attention group decodes at a time")] = 1,
    tpa: Annotated[int, typer.Option(help="tensor-parallel width of attention")] = 1,
    kvp: Annotated[int, typer.Option(help="KV-parallel width: sequence shards of the KV cache")] = 1,
    dp: Annotated[int, typer.Option(help="data-parallel attention groups")] = 1,
    tpf: Annotated[
        int | None, typer.Option(help="tensor-parallel width of the FFN; dp·tpa·kvp/ep unless given")
    ] = None,
    ep: Annotated[int, typer.Option(help="expert-parallel width of the FFN")] = 1,
    pp: Annotated[int, typer.Option(help="pipeline stages")] = 1,
    chunks: Annotated[int, typer.Option(help="HOP-B pieces of the batch; 1 is off")] = 1,
    weights: Annotated[str | None, typer.Option(help="number format of the weights")] = None,
    kv: Annotated[str | None, typer.Option(help="number format of the KV cache")] = None,
    math: Annotated[str | None, typer.Option(help="number format of the arithmetic: fp4, fp8, bf16")] = None,
    wire: Annotated[str | None, typer.Option(help="number format on the links")] = None,
    clock: ClockOption = "paper",
    as_json: JsonOption = False,
) -> None:
    """One layout: every op's work, time and bound, memory by kind, latency and throughput."""
    from helix_sim.layout import Layout
    from helix_sim.load import load_clock, load_hardware, load_model
    from helix_sim.step import decode_step

    machine = load_hardware(hardware)
    grid = tpf if tpf is not None else max(dp * tpa * kvp // ep, 1) if ep > 0 else 1
    step = decode_step(
        load_model(model),
        machine,
        Layout(batch=batch, tpa=tpa, kvp=kvp, dp=dp, tpf=grid, ep=ep, pp=pp, chunks=chunks),
        size(context, "--context"),
        precision=_precision(machine, weights=weights, kv=kv, math=math, wire=wire),
        clock=load_clock(clock or "paper"),
    )
    if as_json:
        print_json(step_record(step))
    else:
        _print_step(console(), step)


def _precision(machine: Any, **given: str | None) -> Precision:
    """The machine's default formats with those given in their place."""
    from pydantic import ValidationError

    from helix_sim.spec import Precision, SpecError
    from helix_sim.step import default_precision

    formats = default_precision(machine).model_dump() | {name: text for name, text in given.items() if text}
    try:
        return Precision.model_validate(formats)
    except ValidationError as error:
        raise SpecError(
            [
                f"--{problem['loc'][0]}: {problem['input']!r} is not one of {problem['ctx']['expected']}".replace(
                    "'", ""
                )
                for problem in error.errors()
            ]
        ) from None


def step_record(step: Step) -> dict[str, Any]:
    """One step as plain data, for --json."""
    from helix_sim.step import op_rows

    return {
        "model": step.model.name,
        "hardware": step.hardware.name,
        "clock": step.clock.name,
        "context": step.context,
        "precision": step.precision.model_dump(exclude_none=True),
        "layout": step.layout.columns(),
        "gpus": step.layout.gpus,
        "users": step.layout.users,
        "ttl_s": float(step.ttl_s),
        "tokens_per_s_user": float(step.tokens_per_s_user),
        "tokens_per_s_gpu": float(step.tokens_per_s_gpu),
        "memory_bytes": {
            "weights": float(step.memory.weights),
            "kv_cache": float(step.memory.kv_cache),
            "activations": float(step.memory.activations),
            "resident": float(step.memory.resident_bytes),
            "reserve": step.hardware.memory_reserve_GB.value * 1e9,
            "capacity": step.hardware.memory_GB.value * 1e9,
        },
        "ops": op_rows(step),
    }


def _print_step(out: Console, step: Step) -> None:
    from helix_sim.step import op_rows
    from helix_sim.units import format_size

    formats = step.precision
    out.print(
        f"[bold]{step.model.name}[/] on [bold]{step.hardware.name}[/], {format_size(int(step.context))} tokens, "
        f"clock {step.clock.name}; weights {formats.weights}, KV {formats.kv}, math {formats.math}, wire {formats.wire}"
    )
    out.print(f"{step.layout} = {step.layout.gpus} GPUs, {step.layout.users} users\n")
    amounts = (">GFLOP", ">MB weights", ">MB KV", ">MB act.", ">MB link", ">µs", ">hidden µs", ">share")
    table = _table("op", ">times", *amounts, "binds", title="one decode step on the busiest GPU")
    for row in op_rows(step):
        if not row["seconds"]:
            continue
        table.add_row(
            row["op"],
            str(row["repeats"]),
            _figure(row["flops"] / 1e9),
            _figure(row["weight_bytes"] / 1e6),
            _figure(row["kv_bytes"] / 1e6),
            _figure(row["activation_bytes"] / 1e6),
            _figure(row["link_bytes"] / 1e6),
            _figure(row["seconds"] * 1e6),
            _figure(row["hidden_s"] * 1e6),
            f"{row['share']:.1%}",
            row["binds"],
        )
    out.print(table)
    memory = _table("memory of the fullest GPU", ">GB")
    for kind in ("weights", "kv_cache", "activations"):
        memory.add_row(kind.replace("_", " "), f"{float(getattr(step.memory, kind)) / 1e9:.2f}")
    memory.add_row("reserve", f"{step.hardware.memory_reserve_GB.value:.2f}")
    memory.add_row("capacity", f"{step.hardware.memory_GB.value:.2f}")
    out.print(memory)
    out.print(
        f"TTL [bold]{float(step.ttl_s) * 1e3:.3f} ms[/]   interactivity [bold]{float(step.tokens_per_s_user):.1f}[/] "
        f"tokens/s/user   throughput [bold]{float(step.tokens_per_s_gpu):.2f}[/] tokens/s/GPU"
    )


def _table(*columns: str, title: str | None = None) -> Table:
    """A rich table; a column whose name starts with > is aligned right."""
    from rich import box
    from rich.table import Table

    table = Table(title=title, box=box.SIMPLE_HEAD, title_justify="left", pad_edge=False)
    for column in columns:
        table.add_column(column.removeprefix(">"), justify="right" if column.startswith(">") else "left", no_wrap=True)
    return table


def _figure(value: float) -> str:
    """Four significant digits without an exponent; nothing for zero."""
    return f"{value:,.{max(0, 3 - len(str(int(abs(value)))))}f}" if value else ""


# --- sweep -----------------------------------------------------------------------------------------------------------


@app.command()
def sweep(
    sweep: Annotated[str, typer.Argument(help="shipped sweep or path of a YAML file")],
    out: OutOption,
    points: Annotated[
        str, typer.Option(help="frontier: the frontiers alone; all: every layout that runs, too")
    ] = "frontier",
    clock: ClockOption = None,
    executor: Annotated[
        str, typer.Option(help="serial, processes or dask; auto takes processes for large sweeps")
    ] = "auto",
    workers: Annotated[int | None, typer.Option(min=1, help="processes; one a core unless given")] = None,
    scheduler: Annotated[
        str | None, typer.Option(help="address of a Dask scheduler, e.g. tcp://host:8786; a local cluster unless given")
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="go on with what a stopped run left in --out")] = False,
    block: Annotated[str | None, typer.Option(help="layouts between two saves at most, e.g. 4M")] = None,
    progress: Annotated[
        str, typer.Option(help="auto: a bar on a terminal; json: lines for programs on stderr; none")
    ] = "auto",
    as_json: JsonOption = False,
) -> None:
    """A whole search: frontiers (or every point) as Parquet and CSV, a picture, a summary.

    Stopped at any moment, it goes on with --resume. Exit codes: 2 a mistake in a file or an option, 3 the folder holds
    another sweep, 4 the folder holds this sweep unfinished, 5 another process is writing there, 6 the disk is full,
    7 the folder cannot be written, 8 a file of a finished block is damaged, 9 workers died again and again,
    130 interrupted.
    """
    from helix_sim.load import load_sweep
    from helix_sim.studies.explore import explore

    _one_of("--points", points, ("frontier", "all"))
    _one_of("--progress", progress, ("auto", "json", "none"))
    spec = load_sweep(sweep)
    spec = spec.model_copy(update={"clock": clock}) if clock else spec
    with _progress(progress) as on_progress:
        summary = explore(
            spec,
            out,
            every_point=points == "all",
            executor=executor,
            workers=workers,
            scheduler=scheduler,
            resume=resume,
            layouts_per_block=size(block, "--block") if block else None,
            on_progress=on_progress,
        )
    if as_json:
        print_json(summary)
    else:
        _print_summary(console(), summary, out)


def _one_of(option: str, given: str, known: tuple[str, ...]) -> None:
    from helix_sim.spec import SpecError

    if given not in known:
        raise SpecError([f"{option}: {given!r} is not one of {', '.join(known)}"])


@contextlib.contextmanager
def _progress(kind: str) -> Iterator[Callable[[Progress], None]]:
    """What to do with a sweep's progress: a bar on stderr where that is a terminal, a JSON line, or nothing."""
    if kind == "json":
        yield lambda now: print(json.dumps(_progress_record(now)), file=sys.stderr, flush=True)
    elif kind == "auto" and sys.stderr.isatty():
        with _bar() as bar:
            task = bar.add_task("", total=None, note="")
            yield lambda now: bar.update(
                task, completed=now.layouts, total=now.layouts_in_all, note=_progress_note(now)
            )
    else:
        yield lambda _: None


def _bar() -> rich.progress.Progress:
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

    columns = (BarColumn(), TaskProgressColumn(), TextColumn("{task.fields[note]}"), TimeRemainingColumn())
    return Progress(*columns, console=Console(stderr=True))


def _progress_record(now: Progress) -> dict[str, Any]:
    from dataclasses import asdict

    return asdict(now) | {"dropped_share": now.dropped_share}


def _progress_note(now: Progress) -> str:
    return (
        f"{now.layouts:,} of {now.layouts_in_all:,} layouts, {now.layouts_per_s / 1e6:.1f} M/s, "
        f"{now.dropped_share:.0%} dropped, {now.frontier_points} points"
    )


def _print_summary(out: Console, summary: dict[str, Any], folder: Path) -> None:
    table = _table("context", "curve", ">points", ">best tokens/s/user", ">best tokens/s/GPU")
    for row in summary["curves"]:
        best = [
            f"{row[key]:.1f}" if row["points"] else "-" for key in ("best_tokens_per_s_user", "best_tokens_per_s_gpu")
        ]
        table.add_row(f"{row['context']:,}", row["curve"], str(row["points"]), *best)
    out.print(table)
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
def reproduce(
    figure: Annotated[str, typer.Argument(help="fig1, fig3, fig5, fig6, fig7, claims or all")] = "all",
    out: OutOption = Path("out/reproduce"),
    clock: ClockOption = "paper",
    as_json: JsonOption = False,
) -> None:
    """The Helix paper's figures redrawn, each with its data as CSV, and its claims beside ours."""
    from helix_sim.load import load_clock
    from helix_sim.spec import SpecError
    from helix_sim.studies.redraw import CHOICES, redraw

    if figure not in CHOICES:
        raise SpecError([f"{figure!r} is not one of {', '.join(CHOICES)}"])
    written = redraw(figure, out, load_clock(clock or "paper"), say=remark)
    if as_json:
        print_json([claim.record() for claim in written.claims])
        return
    if written.claims:
        table = _table("id", "claim", ">paper", ">ours", ">accepted", "held")
        for claim in written.claims:
            held = "yes" if claim.held else f"no, by {claim.missed_by:.3g}"
            accepted = f"{claim.low:g} to {claim.high:g}"
            table.add_row(claim.id, claim.claim, f"{claim.paper:g}", f"{claim.ours:.3g}", accepted, held)
        console().print(table)
        console().print("claims.md names the layouts, and the assumption that decides each number")
    console().print(f"files in {out}: {', '.join(path.name for path in written.files)}")


# --- what there is ---------------------------------------------------------------------------------------------------


@app.command()
def models(as_json: JsonOption = False) -> None:
    """The shipped models: parameters computed and published, layers, KV cache per token."""
    from helix_sim.load import load_model, shipped

    rows = []
    for name in shipped("model"):
        model = load_model(name)
        rows.append(
            {
                "name": name,
                "attention": model.attention.kind,
                "layers": model.layers,
                "parameters_B": model.total_parameters / 1e9,
                "published_parameters_B": model.published_parameters_B,
                "kv_values_per_token_and_layer": model.kv_values_per_token,
            }
        )
    _print_rows(rows, as_json)


@app.command()
def hardware(as_json: JsonOption = False) -> None:
    """The shipped machines: rates, memory, NVLink domain."""
    from helix_sim.load import load_hardware, shipped

    rows = []
    for name in shipped("hardware"):
        machine = load_hardware(name)
        rows.append(
            {
                "name": name,
                "hbm_GBps": machine.hbm_bandwidth_GBps.value,
                "memory_GB": machine.memory_GB.value,
                **{f"{kind}_dense_TFLOPs": _rate(machine, kind) for kind in ("bf16", "fp8", "fp4")},
                "nvlink_GBps": machine.nvlink_per_direction_GBps.value,
                "nvlink_domain": machine.domain,
                "network_GBps": machine.network_per_direction_GBps.value,
            }
        )
    _print_rows(rows, as_json)


def _rate(machine: Any, kind: str) -> float | None:
    quantity = getattr(machine, f"{kind}_dense_TFLOPs")
    return quantity.value if quantity else None


def _print_rows(rows: list[dict[str, Any]], as_json: bool) -> None:
    if as_json:
        print_json(rows)
        return
    table = _table(*(name if name in ("name", "attention") else f">{name}" for name in rows[0]))
    for row in rows:
        table.add_row(
            *(
                "-" if value is None else f"{value:,.6g}" if isinstance(value, float) else str(value)
                for value in row.values()
            )
        )
    console().print(table)


@app.command()
def check(files: Annotated[list[Path], typer.Argument(help="model, hardware, clock or sweep YAML files")]) -> None:
    """Whether files are right: each problem in a sentence, with its place and what would be right."""
    from helix_sim.load import check_file
    from helix_sim.spec import SpecError

    problems: list[str] = []
    for path in files:
        try:
            record = check_file(path)
            print(f"{path}: a {getattr(record, 'kind', 'file')} named {getattr(record, 'name', '?')}, no problem")
        except SpecError as error:
            problems += error.problems
    if problems:
        raise SpecError(problems)


@app.callback(invoke_without_command=True)
def version(show: Annotated[bool, typer.Option("--version", help="print the version and stop")] = False) -> None:
    """Options before the verb."""
    if show:
        from helix_sim import __version__

        print(f"helix-sim {__version__}")
        raise typer.Exit
