"""From a question to a launch file: import, recommend, export, trace, sensitivity."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from rich.console import Console

    from helix_sim.answers.recommend import Choice, Recommendation
    from helix_sim.search.plan import Plan
    from helix_sim.step import Step

from helix_sim.cli.base import (
    JsonOption,
    MachineArgument,
    ModelArgument,
    TimingOption,
    app,
    console,
    new_table,
    print_json,
    remark,
    show,
    size,
)

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
    from helix_sim.core.files import write_text
    from helix_sim.specs.import_hf import import_file

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
    machine: MachineArgument,
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
    timing: TimingOption = "paper",
    as_json: JsonOption = False,
) -> None:
    """The layouts with the best throughput under a latency budget, or which one limit to relax if there is none."""
    from helix_sim.answers.recommend import Request, parse_mix
    from helix_sim.answers.recommend import recommend as search
    from helix_sim.core.errors import SpecError
    from helix_sim.search.layout_source import precision_of
    from helix_sim.specs.load import load_machine

    if gpus is not None and gpus_at_most is not None:
        raise SpecError(["--gpus and --gpus-at-most exclude each other; give one"])
    formats = {"weights": weights, "kv": kv, "math": math, "wire": wire}
    found = search(
        Request(
            model=model,
            machine=machine,
            mix=parse_mix(context),
            ttl_s=ttl_ms / 1e3,
            timing=timing or "paper",
            precision=precision_of(load_machine(machine), {}, formats),
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
        f"[bold]{planned.model.name}[/] on [bold]{planned.machine.name}[/], context {request.mix}, timing "
        f"{planned.timing.name}; TTL within {request.ttl_s * 1e3:g} ms{users}, {planned.sweep.gpus.first} to "
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
    table = new_table("family", "layout", ">GPUs", ">users", ">TTL ms", ">tokens/s/GPU", ">price", ">GB free",
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
    table = new_table("relax this alone", ">given", ">needed", ">factor", "which lets through")
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
PickedMachine = Annotated[str | None, typer.Argument(help="the machine, where the first argument is a model")]
PickedContext = Annotated[str | None, typer.Option(help="tokens in each request's KV cache, e.g. 128K; 1M unless said")]
BatchOption = Annotated[int | None, typer.Option(help="requests that one attention group decodes at a time")]
TpaOption = Annotated[int | None, typer.Option(help="tensor-parallel width of attention")]
KvpOption = Annotated[int | None, typer.Option(help="KV-parallel width: sequence shards of the KV cache")]
DpOption = Annotated[int | None, typer.Option(help="data-parallel attention groups")]
TpfOption = Annotated[int | None, typer.Option(help="tensor-parallel width of the FFN; what is left unless given")]
EpOption = Annotated[int | None, typer.Option(help="expert-parallel width of the FFN")]
PpOption = Annotated[int | None, typer.Option(help="pipeline stages")]
ChunksOption = Annotated[int | None, typer.Option(help="HOP-B pieces of the batch; 1 is off")]


def _picked(source: str, machine: str | None, context: str | None, timing: str | None, **said: Any) -> Step:
    """The step of the layout that a verb's arguments say."""
    from helix_sim.search.layout_source import FORMATS, Options, pick

    formats = {name: said.pop(name) for name in FORMATS}
    tokens = size(context, "--context") if context else None
    return pick(source, machine, Options(context=tokens, timing=timing, widths=said, formats=formats))


@app.command()
def export(
    source: SourceArgument,
    machine: PickedMachine = None,
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
    timing: TimingOption = None,
    as_json: JsonOption = False,
) -> None:
    """The launch configuration of a layout for a serving stack; what the stack cannot run is refused or commented."""
    from helix_sim.core.files import write_text
    from helix_sim.output.export import launch

    step = _picked(source, machine, context, timing, batch=batch, tpa=tpa, kvp=kvp, dp=dp, tpf=tpf, ep=ep, pp=pp,
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
    machine: PickedMachine = None,
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
    timing: TimingOption = None,
) -> None:
    """One decode step as a timeline that Perfetto opens (ui.perfetto.dev): streams, layers, HOP-B chunk by chunk."""
    from helix_sim.core.files import write_text
    from helix_sim.output.trace import chrome_trace

    step = _picked(source, machine, context, timing, batch=batch, tpa=tpa, kvp=kvp, dp=dp, tpf=tpf, ep=ep, pp=pp,
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
    machine: PickedMachine = None,
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
    timing: TimingOption = None,
    as_json: JsonOption = False,
) -> None:
    """What limits a layout or a whole frontier: percent that TTL and throughput change by for 1 % more of each knob."""
    widths = {"batch": batch, "tpa": tpa, "kvp": kvp, "dp": dp, "tpf": tpf, "ep": ep, "pp": pp, "chunks": chunks}
    formats = {"weights": weights, "kv": kv, "math": math, "wire": wire}
    of_layout = machine is not None or ":" in source or source == "-" or source.endswith(".json")
    if not (frontier or change) and of_layout:
        step = _picked(source, machine, context, timing, **widths, **formats)
        _report_sensitivity(_layout_sensitivity(step), out, as_json)
        return
    _no_widths(widths)
    ttl_s = ttl_ms / 1e3 if ttl_ms is not None else None
    planned = _searched(source, machine, context, timing, gpus_at_most, family, formats)
    if change:
        _report_what_if(planned, change, ttl_s, as_json)
    else:
        _report_sensitivity(_frontier_sensitivity(planned, ttl_s), out, as_json)


def _no_widths(widths: dict[str, int | None]) -> None:
    """SpecError where widths are given for a search, which has all of them."""
    from helix_sim.core.errors import SpecError

    given = [f"--{name}" for name, value in widths.items() if value is not None]
    if given:
        raise SpecError([f"{', '.join(given)}: a search tries every layout; leave --frontier and --set out for one"])


def _searched(
    source: str,
    machine: str | None,
    context: str | None,
    timing: str | None,
    gpus_at_most: int | None,
    family: list[str] | None,
    formats: dict[str, str | None],
) -> Plan:
    """The search of a sweep's file, or of a model on a machine."""
    from helix_sim.answers.recommend import Request, parse_mix, search_plan
    from helix_sim.core.errors import SpecError
    from helix_sim.search.layout_source import precision_of
    from helix_sim.search.plan import plan
    from helix_sim.specs.load import load_machine, load_sweep

    if machine is None:
        given = {"--context": context, "--gpus-at-most": gpus_at_most, "--family": family, **formats}
        if any(given.values()):
            raise SpecError(["a sweep's file says its contexts, GPUs, families and formats; change them there"])
        sweep = load_sweep(source)
        return plan(sweep.model_copy(update={"timing": timing}) if timing else sweep)
    request = Request(
        model=source,
        machine=machine,
        mix=parse_mix(context or "1M"),
        ttl_s=1.0,
        timing=timing or "paper",
        precision=precision_of(load_machine(machine), {}, formats),
        gpus=(1, gpus_at_most) if gpus_at_most is not None else None,
        families=tuple(family or ()),
    )
    return search_plan(request)


def _layout_sensitivity(step: Step) -> dict[str, Any]:
    from helix_sim.answers.sensitivity import elasticities
    from helix_sim.core.units import format_size

    return {
        "of": f"{step.model.name} on {step.machine.name}, {format_size(int(step.context))} tokens, {step.layout}",
        "timing": step.timing.name,
        "panels": ["TTL of this layout", "throughput of this layout"],
        "ttl_s": float(step.ttl_s),
        "tokens_per_s_gpu": float(step.tokens_per_s_gpu),
        "elasticities": [found.record() for found in elasticities(step)],
    }


def _frontier_sensitivity(planned: Plan, ttl_s: float | None) -> dict[str, Any]:
    from helix_sim.answers.sensitivity import ends, frontier_elasticities
    from helix_sim.core.units import format_size
    from helix_sim.search.sweep import run_plan

    now = ends(run_plan(planned), ttl_s)
    context = format_size(planned.sweep.contexts[0])
    within = f" within {ttl_s * 1e3:g} ms" if ttl_s else ""
    return {
        "of": f"{planned.model.name} on {planned.machine.name}, {context} tokens, best of {planned.layouts:,} layouts",
        "timing": planned.timing.name,
        "panels": ["lowest TTL", f"best throughput{within}"],
        "ttl_s": now.fastest["ttl_s"] if now.fastest else None,
        "tokens_per_s_gpu": now.best["tokens_per_s_gpu"] if now.best else None,
        "elasticities": [found.record() for found in frontier_elasticities(planned, ttl_s)],
    }


def _report_sensitivity(found: dict[str, Any], out: Path | None, as_json: bool) -> None:
    rows = found["elasticities"]
    files: list[Path] = []
    if out:
        from helix_sim.output import plot

        bars = {row["knob"]: (row["ttl"], row["throughput"]) for row in rows}
        files = plot.save(
            plot.tornado(bars, f"{found['of']}, timing {found['timing']}", found["panels"]), out / "tornado"
        )
    if as_json:
        print_json({**found, "elasticities": [{k: v if v == v else None for k, v in row.items()} for row in rows]})
        return
    out_console = console()
    out_console.print(f"[bold]{found['of']}[/], timing {found['timing']}")
    table = new_table("1 % more of", *(f">% {panel}" for panel in found["panels"]))
    for row in sorted(rows, key=lambda row: -abs(row["ttl"])):
        table.add_row(
            row["knob"], *(f"{row[key]:+.3f}" if row[key] == row[key] else "-" for key in ("ttl", "throughput"))
        )
    show(out_console, table)
    if files:
        out_console.print(f"files in {out}: {', '.join(path.name for path in files)}")


def _report_what_if(planned: Plan, change: list[str], ttl_s: float | None, as_json: bool) -> None:
    from helix_sim.answers.sensitivity import parse_change, what_if

    found = what_if(planned, [parse_change(text, planned) for text in change], ttl_s)
    if as_json:
        print_json(found.record())
        return
    out = console()
    turned = ", ".join(f"{c.knob} x {c.factor:g}" for c in found.changes)
    out.print(f"[bold]{planned.model.name} on {planned.machine.name}[/]: {turned}, searched again")
    within = f" within {ttl_s * 1e3:g} ms" if ttl_s else ""
    for end, title in (("fastest", "lowest TTL"), ("best", f"best throughput{within}")):
        table = new_table(title, ">TTL ms", ">tokens/s/GPU", ">GPUs", "layout")
        for name, part in (("before", found.before), ("after", found.after), ("after, layout of before", found.kept)):
            point = getattr(part, end)
            table.add_row(name, *(_point_cells(point) if point else ["-", "-", "-", "none fits"]))
        show(out, table)


def _point_cells(point: dict[str, Any]) -> list[str]:
    from helix_sim.core.layout import AXES, Layout

    x = Layout(**{name: point[name] for name in AXES})
    return [f"{point['ttl_s'] * 1e3:.3f}", f"{point['tokens_per_s_gpu']:.2f}", str(x.gpus), str(x)]
