"""The command line: parses, calls one library function a verb, prints. Results to stdout, remarks to stderr."""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    import rich.progress
    from rich.console import Console
    from rich.table import Table

    from helix_sim.plan import Plan
    from helix_sim.spec import Precision
    from helix_sim.step import Step
    from helix_sim.studies.explore import Progress
    from helix_sim.studies.recommend import Choice, Recommendation
    from helix_sim.studies.regress import Verdict

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
ClockOption = Annotated[
    str | None, typer.Option(help="ideal, paper, measured kernels such as gb200-trtllm, or a clock's YAML file")
]
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

    low, high = (float(end) for end in step.ttl_interval_s)
    measured = {
        "ttl_low_s": low,
        "ttl_high_s": high,
        "extrapolated": [name for name, beyond in step.extrapolated.items() if beyond],
    }
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
        **(measured if step.clock.calibration else {}),
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


WIDE = 118
"""Columns of a terminal on which the bytes of an op are shown tensor by tensor."""


def _print_step(out: Console, step: Step) -> None:
    from helix_sim.step import op_rows
    from helix_sim.units import format_size

    formats = step.precision
    out.print(
        f"[bold]{step.model.name}[/] on [bold]{step.hardware.name}[/], {format_size(int(step.context))} tokens, "
        f"clock {step.clock.name}; weights {formats.weights}, KV {formats.kv}, math {formats.math}, wire {formats.wire}"
    )
    out.print(f"{step.layout} = {step.layout.gpus} GPUs, {step.layout.users} users\n")
    wide = out.width >= WIDE
    amounts = (">MB weights", ">MB KV", ">MB act.") if wide else (">MB HBM",)
    times = (">µs", ">hidden µs", ">share")
    table = _table("op", ">times", ">GFLOP", *amounts, ">MB link", *times, "binds", title="one decode step on one GPU")
    for row in op_rows(step):
        if not row["seconds"]:
            continue
        moved = [row[f"{tensor}_bytes"] / 1e6 for tensor in ("weight", "kv", "activation")]
        table.add_row(
            row["op"],
            str(row["repeats"]),
            _figure(row["flops"] / 1e9),
            *(_figure(each) for each in (moved if wide else [sum(moved)])),
            _figure(row["link_bytes"] / 1e6),
            _figure(row["seconds"] * 1e6),
            _figure(row["hidden_s"] * 1e6),
            f"{row['share']:.1%}",
            row["binds"],
        )
    show(out, table)
    memory = _table("memory of the fullest GPU", ">GB")
    for kind in ("weights", "kv_cache", "activations"):
        memory.add_row(kind.replace("_", " "), f"{float(getattr(step.memory, kind)) / 1e9:.2f}")
    memory.add_row("reserve", f"{step.hardware.memory_reserve_GB.value:.2f}")
    memory.add_row("capacity", f"{step.hardware.memory_GB.value:.2f}")
    show(out, memory)
    out.print(
        f"TTL [bold]{float(step.ttl_s) * 1e3:.3f} ms[/]   interactivity [bold]{float(step.tokens_per_s_user):.1f}[/] "
        f"tokens/s/user   throughput [bold]{float(step.tokens_per_s_gpu):.2f}[/] tokens/s/GPU"
    )
    if step.clock.calibration:
        _print_interval(out, step)


def _print_interval(out: Console, step: Step) -> None:
    """The 80 % interval on measured kernels, and what lies beyond the measured sizes."""
    low, high = (float(end) for end in step.ttl_interval_s)
    users, gpus = step.layout.users, step.layout.gpus
    out.print(
        f"80 % interval of the measured kernels: TTL {low * 1e3:.3f} to {high * 1e3:.3f} ms, {1 / high:.1f} to "
        f"{1 / low:.1f} tokens/s/user, {users / high / gpus:.2f} to {users / low / gpus:.2f} tokens/s/GPU"
    )
    if beyond := [name for name, outside in step.extrapolated.items() if outside]:
        out.print(f"extrapolated beyond the measured sizes: {', '.join(beyond)}")


def show(out: Console, table: Table) -> None:
    """Print a table at its own width: on a narrow terminal its lines wrap, but no number loses its digits."""
    from rich.measure import Measurement

    terminal = out.width
    out.width = max(terminal, Measurement.get(out, out.options.update(width=1000), table).maximum)
    out.print(table, crop=False)
    out.width = terminal


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
        str, typer.Option(help="frontier: the frontiers alone; all: every layout that runs, too (CSV to 10M)")
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
    from helix_sim.studies.reproduce import MEASURED

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
        show(console(), table)
        console().print("claims.md names the layouts, and the assumption that decides each number")
    for name, off in written.without_hop_b.items():
        measured = MEASURED[name]
        console().print(f"{name}: TensorRT-LLM measured {measured:g} on GB300 without HOP-B; ours without it {off:.3g}")
    console().print(f"files in {out}: {', '.join(path.name for path in written.files)}")


# --- import-hf ------------------------------------------------------------------------------------------------------


@app.command("import-hf")
def import_hf(
    config: Annotated[Path, typer.Argument(help="a Hugging Face config.json, or the folder that holds it")],
    out: Annotated[Path | None, typer.Option(help="the file to write; printed unless given")] = None,
    name: Annotated[str | None, typer.Option(help="the model's name; from the config or its path unless given")] = None,
    source: Annotated[str | None, typer.Option(help="where the config comes from, such as its URL")] = None,
    published_parameters: Annotated[
        float | None, typer.Option(min=1e-6, help="parameters that its publisher counts, in billions")
    ] = None,
    full_attention: Annotated[
        bool, typer.Option("--full-attention", help="read windowed and chunked layers as full attention: a bound")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """A model spec from a Hugging Face config; what cannot be modelled is refused by the name of its field."""
    from helix_sim.import_hf import import_file
    from helix_sim.tables import write_text

    found = import_file(
        config, name=name, source=source, published_B=published_parameters, full_attention=full_attention
    )
    for text in (found.counts, *found.remarks):
        remark(text)
    if out:
        write_text(out, found.text)
        remark(f"written to {out}")
    if as_json:
        print_json(found.record())
    elif not out:
        print(found.text, end="")


# --- recommend -------------------------------------------------------------------------------------------------------

WeightsOption = Annotated[str | None, typer.Option(help="number format of the weights")]
KvOption = Annotated[str | None, typer.Option(help="number format of the KV cache")]
MathOption = Annotated[str | None, typer.Option(help="number format of the arithmetic: fp4, fp8, bf16")]
WireOption = Annotated[str | None, typer.Option(help="number format on the links")]
FamilyOption = Annotated[list[str] | None, typer.Option(help="a family of layouts to search; repeat for several")]
MostGpusOption = Annotated[int | None, typer.Option(help="most GPUs of a layout; one NVLink domain unless given")]


@app.command()
def recommend(
    model: ModelArgument,
    hardware: HardwareArgument,
    ttl_ms: Annotated[float, typer.Option(help="budget for the token-to-token latency of a user")],
    context: Annotated[str, typer.Option(help="tokens per request: 1M, or a mix with shares: 32K:0.7,1M:0.3")] = "1M",
    gpus: Annotated[int | None, typer.Option(help="exactly this many GPUs")] = None,
    gpus_at_most: MostGpusOption = None,
    min_users: Annotated[int, typer.Option(help="fewest users that a layout must serve at once")] = 1,
    family: FamilyOption = None,
    choices: Annotated[int, typer.Option(help="how many choices to list")] = 5,
    weights: WeightsOption = None,
    kv: KvOption = None,
    math: MathOption = None,
    wire: WireOption = None,
    clock: ClockOption = "paper",
    as_json: JsonOption = False,
) -> None:
    """The layouts with the best throughput under a latency budget, or which one limit to relax if there is none."""
    from helix_sim.load import load_hardware
    from helix_sim.pick import precision_of
    from helix_sim.spec import SpecError
    from helix_sim.studies.recommend import Request, parse_mix
    from helix_sim.studies.recommend import recommend as search

    if gpus is not None and gpus_at_most is not None:
        raise SpecError(["--gpus and --gpus-at-most exclude each other; give one"])
    formats = {"weights": weights, "kv": kv, "math": math, "wire": wire}
    found = search(
        Request(
            model=model,
            hardware=hardware,
            mix=parse_mix(context),
            ttl_s=ttl_ms / 1e3,
            clock=clock or "paper",
            precision=precision_of(load_hardware(hardware), {}, formats),
            gpus=(gpus, gpus) if gpus is not None else (1, gpus_at_most) if gpus_at_most is not None else None,
            families=tuple(family or ()),
            min_users=min_users,
            choices=choices,
        )
    )
    if as_json:
        print_json(found.record())
    else:
        _print_recommendation(console(), found)
    if not found.choices:
        raise typer.Exit(1)


def _print_recommendation(out: Console, found: Recommendation) -> None:
    request, planned = found.request, found.plan
    users = f", at least {request.min_users} users" if request.min_users > 1 else ""
    out.print(
        f"[bold]{planned.model.name}[/] on [bold]{planned.hardware.name}[/], context {request.mix}, clock "
        f"{planned.clock.name}; TTL within {request.ttl_s * 1e3:g} ms{users}, {planned.sweep.gpus.first} to "
        f"{planned.sweep.gpus.last} GPUs; {planned.layouts:,} layouts"
    )
    if len(request.mix.contexts) > 1:
        out.print(
            f"mixed batches: one request of the longest context each, the rest with mean {request.mix.mean:,.0f} tokens"
        )
    if not found.choices:
        _print_relaxations(out, found)
        return
    _print_choices(out, found.choices, "best layouts, one of each attention group")
    others = [choice for choice in found.by_family if choice not in found.choices]
    if others:
        _print_choices(out, others, "best of every other family")
    if len(found.choices) > 1:
        _print_runner_up(out, *found.choices[:2])


def _print_choices(out: Console, choices: list[Choice], title: str) -> None:
    table = _table("family", "layout", ">GPUs", ">users", ">TTL ms", ">tokens/s/GPU", ">price", ">GB free",
                   "largest op", "stopped by", title=title)  # fmt: skip
    for choice in choices:
        step, binds = choice.step, choice.binds
        table.add_row(
            choice.family,
            str(step.layout),
            str(step.layout.gpus),
            str(step.layout.users),
            f"{float(step.ttl_s) * 1e3:.2f}",
            f"{float(step.tokens_per_s_gpu):.2f}",
            f"{choice.price:.1%}",
            f"{choice.headroom_bytes / 1e9:.1f}",
            f"{binds['op']} {binds['share']:.0%} ({binds['binds']})",
            choice.stopped_by,
        )
    show(out, table)


def _print_runner_up(out: Console, best: Choice, second: Choice) -> None:
    """What taking the second choice costs, and what it is better at."""
    ttl = float(second.step.ttl_s / best.step.ttl_s) - 1
    gpus = int(second.step.layout.gpus - best.step.layout.gpus)
    room = (second.headroom_bytes - best.headroom_bytes) / 1e9
    out.print(
        f"runner-up: {second.family}, {second.step.layout}: {second.price:.2%} less throughput, TTL {ttl:+.1%}, "
        f"GPUs {gpus:+d}, free memory {room:+.1f} GB"
    )


def _print_relaxations(out: Console, found: Recommendation) -> None:
    out.print("[bold]no layout keeps every limit[/]")
    if not found.relaxations:
        out.print("and relaxing one limit alone is not enough")
        return
    table = _table("relax this alone", ">given", ">needed", ">factor", "which lets through")
    for relaxed in found.relaxations:
        factor = f"{relaxed.factor:.3g}" if relaxed.limit != "families" else ""
        given, needed = (f"{value:,.4g}" for value in (relaxed.given, relaxed.needed))
        if relaxed.limit == "families":
            given, needed = ", ".join(found.request.families), "all"
        table.add_row(relaxed.limit, given, needed, factor, relaxed.layout)
    show(out, table)


# --- export, trace, sensitivity: a layout picked by its widths, from a JSON file or from a sweep ---------------------

SourceArgument = Annotated[
    str, typer.Argument(help="a model (with a machine), FILE.json of explain or recommend, or SWEEP:ID")
]
MachineArgument = Annotated[str | None, typer.Argument(help="the machine, where the first argument is a model")]
PickedContext = Annotated[str | None, typer.Option(help="tokens in each request's KV cache, e.g. 128K; 1M unless said")]
BatchOption = Annotated[int | None, typer.Option(help="requests that one attention group decodes at a time")]
TpaOption = Annotated[int | None, typer.Option(help="tensor-parallel width of attention")]
KvpOption = Annotated[int | None, typer.Option(help="KV-parallel width: sequence shards of the KV cache")]
DpOption = Annotated[int | None, typer.Option(help="data-parallel attention groups")]
TpfOption = Annotated[int | None, typer.Option(help="tensor-parallel width of the FFN; what is left unless given")]
EpOption = Annotated[int | None, typer.Option(help="expert-parallel width of the FFN")]
PpOption = Annotated[int | None, typer.Option(help="pipeline stages")]
ChunksOption = Annotated[int | None, typer.Option(help="HOP-B pieces of the batch; 1 is off")]


def _picked(source: str, hardware: str | None, context: str | None, clock: str | None, **said: Any) -> Step:
    """The step of the layout that a verb's arguments say."""
    from helix_sim.pick import FORMATS, Options, pick

    formats = {name: said.pop(name) for name in FORMATS}
    tokens = size(context, "--context") if context else None
    return pick(source, hardware, Options(context=tokens, clock=clock, widths=said, formats=formats))


@app.command()
def export(
    source: SourceArgument,
    hardware: MachineArgument = None,
    *,
    to: Annotated[str, typer.Option(help="trtllm, vllm or sglang")],
    out: Annotated[Path | None, typer.Option(help="the file to write; printed unless given")] = None,
    checkpoint: Annotated[str | None, typer.Option(help="path or Hugging Face name of the weights")] = None,
    context: PickedContext = None,
    batch: BatchOption = None,
    tpa: TpaOption = None,
    kvp: KvpOption = None,
    dp: DpOption = None,
    tpf: TpfOption = None,
    ep: EpOption = None,
    pp: PpOption = None,
    chunks: ChunksOption = None,
    weights: WeightsOption = None,
    kv: KvOption = None,
    math: MathOption = None,
    wire: WireOption = None,
    clock: ClockOption = None,
    as_json: JsonOption = False,
) -> None:
    """The launch configuration of a layout for a serving stack; what the stack cannot run is refused or commented."""
    from helix_sim.export import launch
    from helix_sim.tables import write_text

    step = _picked(source, hardware, context, clock, batch=batch, tpa=tpa, kvp=kvp, dp=dp, tpf=tpf, ep=ep, pp=pp,
                   chunks=chunks, weights=weights, kv=kv, math=math, wire=wire)  # fmt: skip
    written = launch(step, to, checkpoint)
    if out:
        write_text(out, written.text)
        remark(f"written to {out}")
    if as_json:
        print_json(written.record())
    elif not out:
        print(written.text, end="")
    for text in written.remarks:
        remark(text)


@app.command()
def trace(
    source: SourceArgument,
    hardware: MachineArgument = None,
    *,
    out: Annotated[Path, typer.Option(help="the file to write")] = Path("step.json"),
    context: PickedContext = None,
    batch: BatchOption = None,
    tpa: TpaOption = None,
    kvp: KvpOption = None,
    dp: DpOption = None,
    tpf: TpfOption = None,
    ep: EpOption = None,
    pp: PpOption = None,
    chunks: ChunksOption = None,
    weights: WeightsOption = None,
    kv: KvOption = None,
    math: MathOption = None,
    wire: WireOption = None,
    clock: ClockOption = None,
) -> None:
    """One decode step as a timeline that Perfetto opens (ui.perfetto.dev): streams, layers, HOP-B chunk by chunk."""
    from helix_sim.tables import write_text
    from helix_sim.trace import chrome_trace

    step = _picked(source, hardware, context, clock, batch=batch, tpa=tpa, kvp=kvp, dp=dp, tpf=tpf, ep=ep, pp=pp,
                   chunks=chunks, weights=weights, kv=kv, math=math, wire=wire)  # fmt: skip
    content = chrome_trace(step)
    write_text(out, json.dumps(content) + "\n")
    events = len(content["traceEvents"])
    print(f"{out}: {events:,} events of one step, TTL {float(step.ttl_s) * 1e3:.3f} ms; open it in ui.perfetto.dev")


@app.command()
def sensitivity(
    source: Annotated[
        str, typer.Argument(help="a model (with a machine), FILE.json, SWEEP:ID, or a sweep for its frontier")
    ],
    hardware: MachineArgument = None,
    *,
    frontier: Annotated[
        bool, typer.Option("--frontier", help="of the best of a whole search, not of one layout")
    ] = False,
    change: Annotated[
        list[str] | None, typer.Option("--set", help="what if: nvlink_bandwidth=2x, hbm_capacity=288; searches again")
    ] = None,
    ttl_ms: Annotated[float | None, typer.Option(help="TTL within which a frontier's best throughput is taken")] = None,
    gpus_at_most: MostGpusOption = None,
    family: FamilyOption = None,
    out: Annotated[Path | None, typer.Option(help="folder for the tornado plot")] = None,
    context: PickedContext = None,
    batch: BatchOption = None,
    tpa: TpaOption = None,
    kvp: KvpOption = None,
    dp: DpOption = None,
    tpf: TpfOption = None,
    ep: EpOption = None,
    pp: PpOption = None,
    chunks: ChunksOption = None,
    weights: WeightsOption = None,
    kv: KvOption = None,
    math: MathOption = None,
    wire: WireOption = None,
    clock: ClockOption = None,
    as_json: JsonOption = False,
) -> None:
    """What limits a layout or a whole frontier: percent that TTL and throughput change by for 1 % more of each knob."""
    widths = {"batch": batch, "tpa": tpa, "kvp": kvp, "dp": dp, "tpf": tpf, "ep": ep, "pp": pp, "chunks": chunks}
    formats = {"weights": weights, "kv": kv, "math": math, "wire": wire}
    of_layout = hardware is not None or ":" in source or source == "-" or source.endswith(".json")
    if not (frontier or change) and of_layout:
        step = _picked(source, hardware, context, clock, **widths, **formats)
        _report_sensitivity(_layout_sensitivity(step), out, as_json)
        return
    _no_widths(widths)
    ttl_s = ttl_ms / 1e3 if ttl_ms is not None else None
    planned = _searched(source, hardware, context, clock, gpus_at_most, family, formats)
    if change:
        _report_what_if(planned, change, ttl_s, as_json)
    else:
        _report_sensitivity(_frontier_sensitivity(planned, ttl_s), out, as_json)


def _no_widths(widths: dict[str, int | None]) -> None:
    """SpecError where widths are given for a search, which has all of them."""
    from helix_sim.spec import SpecError

    given = [f"--{name}" for name, value in widths.items() if value is not None]
    if given:
        raise SpecError([f"{', '.join(given)}: a search tries every layout; leave --frontier and --set out for one"])


def _searched(
    source: str,
    hardware: str | None,
    context: str | None,
    clock: str | None,
    gpus_at_most: int | None,
    family: list[str] | None,
    formats: dict[str, str | None],
) -> Plan:
    """The search of a sweep's file, or of a model on a machine."""
    from helix_sim.load import load_hardware, load_sweep
    from helix_sim.pick import precision_of
    from helix_sim.plan import plan
    from helix_sim.spec import SpecError
    from helix_sim.studies.recommend import Request, parse_mix, search_plan

    if hardware is None:
        given = {"--context": context, "--gpus-at-most": gpus_at_most, "--family": family, **formats}
        if any(given.values()):
            raise SpecError(["a sweep's file says its contexts, GPUs, families and formats; change them there"])
        sweep = load_sweep(source)
        return plan(sweep.model_copy(update={"clock": clock}) if clock else sweep)
    request = Request(
        model=source,
        hardware=hardware,
        mix=parse_mix(context or "1M"),
        ttl_s=1.0,
        clock=clock or "paper",
        precision=precision_of(load_hardware(hardware), {}, formats),
        gpus=(1, gpus_at_most) if gpus_at_most is not None else None,
        families=tuple(family or ()),
    )
    return search_plan(request)


def _layout_sensitivity(step: Step) -> dict[str, Any]:
    from helix_sim.studies.sensitivity import elasticities
    from helix_sim.units import format_size

    return {
        "of": f"{step.model.name} on {step.hardware.name}, {format_size(int(step.context))} tokens, {step.layout}",
        "clock": step.clock.name,
        "panels": ["TTL of this layout", "throughput of this layout"],
        "ttl_s": float(step.ttl_s),
        "tokens_per_s_gpu": float(step.tokens_per_s_gpu),
        "elasticities": [found.record() for found in elasticities(step)],
    }


def _frontier_sensitivity(planned: Plan, ttl_s: float | None) -> dict[str, Any]:
    from helix_sim.studies.sensitivity import ends, frontier_elasticities
    from helix_sim.sweep import run_plan
    from helix_sim.units import format_size

    now = ends(run_plan(planned), ttl_s)
    context = format_size(planned.sweep.contexts[0])
    within = f" within {ttl_s * 1e3:g} ms" if ttl_s else ""
    return {
        "of": f"{planned.model.name} on {planned.hardware.name}, {context} tokens, best of {planned.layouts:,} layouts",
        "clock": planned.clock.name,
        "panels": ["lowest TTL", f"best throughput{within}"],
        "ttl_s": now.fastest["ttl_s"] if now.fastest else None,
        "tokens_per_s_gpu": now.best["tokens_per_s_gpu"] if now.best else None,
        "elasticities": [found.record() for found in frontier_elasticities(planned, ttl_s)],
    }


def _report_sensitivity(found: dict[str, Any], out: Path | None, as_json: bool) -> None:
    rows = found["elasticities"]
    files: list[Path] = []
    if out:
        from helix_sim import plot

        bars = {row["knob"]: (row["ttl"], row["throughput"]) for row in rows}
        files = plot.save(
            plot.tornado(bars, f"{found['of']}, clock {found['clock']}", found["panels"]), out / "tornado"
        )
    if as_json:
        print_json({**found, "elasticities": [{k: v if v == v else None for k, v in row.items()} for row in rows]})
        return
    out_console = console()
    out_console.print(f"[bold]{found['of']}[/], clock {found['clock']}")
    table = _table("1 % more of", *(f">% {panel}" for panel in found["panels"]))
    for row in sorted(rows, key=lambda row: -abs(row["ttl"])):
        table.add_row(
            row["knob"], *(f"{row[key]:+.3f}" if row[key] == row[key] else "-" for key in ("ttl", "throughput"))
        )
    show(out_console, table)
    if files:
        out_console.print(f"files in {out}: {', '.join(path.name for path in files)}")


def _report_what_if(planned: Plan, change: list[str], ttl_s: float | None, as_json: bool) -> None:
    from helix_sim.studies.sensitivity import parse_change, what_if

    found = what_if(planned, [parse_change(text, planned) for text in change], ttl_s)
    if as_json:
        print_json(found.record())
        return
    out = console()
    turned = ", ".join(f"{c.knob} x {c.factor:g}" for c in found.changes)
    out.print(f"[bold]{planned.model.name} on {planned.hardware.name}[/]: {turned}, searched again")
    within = f" within {ttl_s * 1e3:g} ms" if ttl_s else ""
    for end, title in (("fastest", "lowest TTL"), ("best", f"best throughput{within}")):
        table = _table(title, ">TTL ms", ">tokens/s/GPU", ">GPUs", "layout")
        for name, part in (("before", found.before), ("after", found.after), ("after, layout of before", found.kept)):
            point = getattr(part, end)
            table.add_row(name, *(_point_cells(point) if point else ["-", "-", "-", "none fits"]))
        show(out, table)


def _point_cells(point: dict[str, Any]) -> list[str]:
    from helix_sim.layout import AXES, Layout

    x = Layout(**{name: point[name] for name in AXES})
    return [f"{point['ttl_s'] * 1e3:.3f}", f"{point['tokens_per_s_gpu']:.2f}", str(x.gpus), str(x)]


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


def _print_rows(rows: Sequence[Mapping[Any, Any]], as_json: bool) -> None:
    if as_json:
        print_json(rows)
        return
    if not rows:
        console().print("none")
        return
    columns = list(dict.fromkeys(name for row in rows for name in row))
    table = _table(*(f">{name}" if _is_number(rows[0].get(name)) else name for name in columns))
    for row in rows:
        table.add_row(
            *(
                "-" if value is None else f"{value:,.6g}" if isinstance(value, float) else str(value)
                for value in row.values()
            )
        )
    show(console(), table)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) or value is None


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


# --- Measured silicon ------------------------------------------------------------------------------------------------


@app.command()
def calibrate(
    what: Annotated[str, typer.Argument(help="silicon: public tables of kernels; gpu: the GPU in this machine")],
    out: Annotated[Path, typer.Option(help="silicon: a folder; gpu: the YAML file, its CSV and picture beside it")],
    system: Annotated[str | None, typer.Option(help="silicon: gb200, gb300, b200, h200 or h100")] = None,
    framework: Annotated[str | None, typer.Option(help="silicon: trtllm, sglang or vllm")] = None,
    source: Annotated[Path | None, typer.Option("--from", help="gpu: refit a file of measurements instead")] = None,
) -> None:
    """Fit a clock to measured kernels: a YAML file that --clock reads, and measured against modelled as a picture."""
    from helix_sim.spec import SpecError

    if what == "silicon":
        if system is None or framework is None or source is not None:
            raise SpecError(["calibrate silicon needs --system and --framework, and has no --from"])
        _calibrate_silicon(system, framework, out)
    elif what == "gpu":
        if system is not None or framework is not None:
            raise SpecError(["calibrate gpu measures the GPU in this machine: it has no --system or --framework"])
        _calibrate_gpu(out, source)
    else:
        raise SpecError([f"{what!r} is not one of silicon, gpu"])


def _calibrate_silicon(system: str, framework: str, out: Path) -> None:
    from helix_sim import calibration

    calibration.check_names(system, framework)
    made = _with_tables(lambda: calibration.calibrate(system, framework, say=remark))
    _write_calibration(made, out / f"{made.clock.name}.yaml")


def _calibrate_gpu(out: Path, source: Path | None) -> None:
    from helix_sim import gpu_calibration
    from helix_sim.kernels import measure, measurements
    from helix_sim.spec import SpecError
    from helix_sim.tables import appearing

    if out.suffix != ".yaml":
        raise SpecError([f"--out: {str(out)!r} must end in .yaml"])
    try:
        if source is not None:
            rows, provenance = measurements.read_csv(source)
        else:
            provenance, rows = measure.provenance(), []
            for row in measure.measure():
                remark(f"{row.op_class}: batch {row.batch}, context {row.context}: {row.median_s * 1e6:.1f} µs")
                rows.append(row)
    except measure.NoGpu as missing:
        raise SpecError([str(missing)]) from None
    except ValueError as error:
        raise SpecError([str(error)]) from None
    if source is None:
        with appearing(out.with_suffix(".csv")) as partial:
            measurements.write_csv(partial, rows, provenance)
    _write_calibration(gpu_calibration.calibrate(rows, provenance, say=remark), out)


def _write_calibration(made: Any, path: Path) -> None:
    """The clock's file, measured against modelled beside it, and the held-out errors of each class."""
    from helix_sim import calibration, plot
    from helix_sim.tables import write_text

    write_text(path, calibration.yaml_text(made.clock))
    (picture,) = plot.save(
        plot.calibration(made.fitted, f"{made.clock.name}: measured and modelled"), path.with_suffix(""), ("png",)
    )
    _print_rows(
        [
            {
                "class": key,
                "rows": len(each.modelled_s),
                "held_out": each.record.residuals.count,
                "median_error": each.record.residuals.median_error,
                "mean_error": each.record.residuals.mean_error,
            }
            for key, each in made.fitted.items()
        ],
        as_json=False,
    )
    console().print(f"files in {path.parent}: {path.name}, {picture.name}")


def _with_tables(call: Any) -> Any:
    """The call's result; a missing package or table is the user's one sentence."""
    from helix_sim.silicon import NoSuchTable, TablesMissing
    from helix_sim.spec import SpecError

    try:
        return call()
    except (NoSuchTable, TablesMissing) as error:
        raise SpecError([str(error)]) from None


@app.command()
def validate(
    kernels: Annotated[bool, typer.Option("--kernels", help="held-out errors of each class of kernels")] = False,
    end_to_end: Annotated[bool, typer.Option("--end-to-end", help="decode steps of 274 measured servings")] = False,
    system: Annotated[str, typer.Option(help="for --kernels: gb200, gb300, b200, h200 or h100")] = "gb200",
    framework: Annotated[str, typer.Option(help="for --kernels: trtllm, sglang or vllm")] = "trtllm",
    peer: Annotated[bool, typer.Option(help="aiconfigurator's predictions beside ours (a minute more)")] = True,
    out: OutOption = Path("out/validate"),
    as_json: JsonOption = False,
) -> None:
    """Calibrated clocks against measured silicon: kernels kept out of the fit, and whole servings."""
    from helix_sim.spec import SpecError

    if kernels == end_to_end:
        raise SpecError(["say what to validate: --kernels or --end-to-end"])
    if kernels:
        from helix_sim import calibration
        from helix_sim.studies.validate import kernels as judge

        calibration.check_names(system, framework)
        table = _with_tables(lambda: judge(system, framework))
        _print_rows(table.astype(object).where(table.notna(), None).to_dict("records"), as_json)
    else:
        _validate_end_to_end(out, as_json, peer)


def _validate_end_to_end(out: Path, as_json: bool, peer: bool) -> None:
    from helix_sim import plot
    from helix_sim.studies import validate as study
    from helix_sim.tables import write_csv

    table = _with_tables(lambda: study.end_to_end(peer=peer))
    report = study.report(table)
    files = [write_csv(out / "end-to-end.csv", table)]
    for reading in study.BATCHES:
        title = f"Decode steps of measured servings, batch {reading.replace('_', ' ')}"
        files += plot.save(plot.end_to_end(table, reading, title), out / f"end-to-end-{reading}")
    if as_json:
        print_json({name: frame.to_dict("records") for name, frame in report.items()})
        return
    for name, frame in report.items():
        console().print(f"\n{name}")
        _print_rows(frame.to_dict("records"), as_json=False)
    console().print(f"files in {out}: {', '.join(path.name for path in files)}")


# --- regress ---------------------------------------------------------------------------------------------------------

MOVED = 1


@app.command()
def regress(
    sweeps: Annotated[
        list[str] | None, typer.Argument(help="shipped sweeps or paths; those with a baseline unless given")
    ] = None,
    baseline: Annotated[Path | None, typer.Option(help="folder of baselines; the shipped one unless given")] = None,
    update: Annotated[bool, typer.Option("--update", help="write the baselines anew")] = False,
    rtol: Annotated[float, typer.Option(help="relative tolerance")] = 1e-6,
    curves_only: Annotated[
        bool,
        typer.Option("--curves-only", help="judge the curves alone, not the probes or the count of layouts that run"),
    ] = False,
    markdown: Annotated[Path | None, typer.Option(help="verdict for a pull-request comment")] = None,
    junit: Annotated[Path | None, typer.Option(help="verdict for a CI system")] = None,
    json_file: Annotated[
        Path | None, typer.Option("--json", help="verdict for programs, with every moved point")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="folder for all three, and a picture of each sweep")] = None,
) -> None:
    """Pareto curves against stored ones: exit code 0 if they held, 1 if they moved, 2 for bad input."""
    from helix_sim.load import data_folder
    from helix_sim.spec import SpecError
    from helix_sim.studies import gate
    from helix_sim.studies import regress as study

    if update and baseline is None:
        raise SpecError(["--update needs --baseline, the folder to write to"])
    folder = baseline or data_folder("sweeps") / "baselines"
    if update:
        updates = study.update(sweeps or [], folder, rtol=rtol)
        verdicts = [each.verdict for each in updates if each.verdict]
    else:
        verdicts = study.regress(sweeps or [], folder, rtol=rtol, curves_only=curves_only)
    _print_verdicts(console(), verdicts)
    for path in gate.write(verdicts, markdown=markdown, junit=junit, json_file=json_file, out=out):
        remark(f"wrote {path}")
    if update:
        for each in updates:
            remark(f"{'wrote' if each.written else 'already right:'} {each.path}, {each.rows} layouts")
    elif not all(verdict.held for verdict in verdicts):
        raise typer.Exit(MOVED)


def _print_verdicts(out: Console, verdicts: list[Verdict]) -> None:
    from rich.markup import escape

    from helix_sim.studies.verdict import headline, tables

    for verdict in verdicts:
        out.print(f"[bold {'green' if verdict.held else 'red'}]{escape(headline(verdict))}[/]")
        for table in tables(verdict):
            shown = _table(*table.columns, title=table.title)
            for column in shown.columns:
                column.no_wrap = False
            for row in table.rows:
                shown.add_row(*(escape(cell) for cell in row))
            show(out, shown)


@app.callback(invoke_without_command=True)
def version(show: Annotated[bool, typer.Option("--version", help="print the version and stop")] = False) -> None:
    """Options before the verb."""
    if show:
        from helix_sim import __version__

        print(f"helix-sim {__version__}")
        raise typer.Exit


# --- report ----------------------------------------------------------------------------------------------------------


@app.command()
def report(
    sweep: Annotated[str, typer.Argument(help="shipped sweep or path of a YAML file")],
    out: Annotated[Path, typer.Option(help="the HTML file to write")],
    clock: ClockOption = None,
    as_json: JsonOption = False,
) -> None:
    """A whole search as one HTML file that needs no network: hover, toggle families, compare two layouts."""
    from helix_sim.load import load_sweep
    from helix_sim.report import write_report

    spec = load_sweep(sweep)
    written = write_report(spec.model_copy(update={"clock": clock}) if clock else spec, out)
    if as_json:
        print_json(written)
    else:
        print(
            f"{written['points']:,} points of {written['layouts']:,} layouts in {out}, {written['bytes'] / 1e6:.1f} MB"
        )
