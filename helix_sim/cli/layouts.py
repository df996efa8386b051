"""What is made of a layout: a launch file, a timeline, what limits it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from rich.console import Console

    from helix_sim.answers.sensitivity import Sensitivity, WhatIf
    from helix_sim.search.plan import Plan

from helix_sim.cli.base import (
    JsonOption,
    OutFile,
    app,
    console,
    new_table,
    number,
    number_option,
    out_file,
    out_folder,
    print_answer,
    print_text,
    refuse,
    remark,
    remark_on,
    show,
    size,
    styled,
    working,
)
from helix_sim.cli.options import FamilyOption, LayoutOptions, MostGpusOption, spread


@app.command()
@spread
def export(
    layout: LayoutOptions,
    to: Annotated[str, typer.Option(help="trtllm, vllm or sglang; dynamo or srt-slurm, a deployment of --stack")],
    stack: Annotated[
        str | None, typer.Option(help="the stack of a deployment; the first that starts the layout unless given")
    ] = None,
    out: Annotated[Path | None, out_file("the file to write; printed unless given")] = None,
    checkpoint: Annotated[str | None, typer.Option(help="path or Hugging Face name of the weights")] = None,
    as_json: JsonOption = False,
) -> None:
    """The launch configuration of a layout for a serving stack; one that it does not start is refused by its rule."""
    from helix_sim.core.files import write_text
    from helix_sim.output.export import export

    with working("writing"):
        written = export(layout.pick(), to=to, checkpoint=checkpoint, stack=stack)
    if out:
        write_text(out, written.text)
        remark(f"written to {out}")
    if as_json:
        print_answer("export", written.record())
    elif not out:
        print_text(written.text)
    for text in written.remarks:
        remark(text)


@app.command()
@spread
def trace(layout: LayoutOptions, out: OutFile = Path("step.json"), as_json: JsonOption = False) -> None:
    """One decode step as a timeline that Perfetto opens (ui.perfetto.dev): streams, layers, HOP-B chunk by chunk."""
    from helix_sim.answers.explain import answer_record
    from helix_sim.core.files import write_text
    from helix_sim.output.trace import trace

    with working("writing"):
        picked = layout.pick()
        content = trace(picked)
    write_text(out, json.dumps(content) + "\n")
    events, ttl_ms = len(content["traceEvents"]), content["otherData"]["ttl_us"] / 1e3
    if as_json:
        about = answer_record(picked.step, picked.inputs, picked.longest_context)
        print_answer("trace", about | {"file": str(out), "events": events})
        return
    console().print(f"{out}: {events:,} events of one step, TTL {ttl_ms:.3f} ms; open it in ui.perfetto.dev")


@app.command()
@spread
def sensitivity(
    layout: LayoutOptions,
    frontier: Annotated[
        bool, typer.Option("--frontier", help="of the best of a whole search (of MODEL MACHINE, or of a sweep's file)")
    ] = False,
    change: Annotated[
        list[str] | None, typer.Option("--set", help="what if: nvlink_bandwidth=2x, hbm_capacity=288; searches again")
    ] = None,
    ttl_ms: Annotated[
        str | None, number_option("TTL within which a search's best throughput is taken, in milliseconds")
    ] = None,
    gpus_at_most: MostGpusOption = None,
    family: FamilyOption = None,
    out: Annotated[Path | None, out_folder("folder for the tornado plot")] = None,
    as_json: JsonOption = False,
) -> None:
    """What limits a layout or a whole frontier: percent that TTL and throughput change by for 1 % more of each knob."""
    from helix_sim.answers.sensitivity import frontier_sensitivity, parse_change, sensitivity, what_if
    from helix_sim.search.layout_source import option

    text = layout.source
    of_layout = layout.machine is not None or ":" in text or text == "-" or text.endswith(".json")
    if of_layout and not (frontier or change):
        refuse({"--ttl-ms": ttl_ms, "--gpus-at-most": gpus_at_most, "--family": family},
                "is of a search; add --frontier or --set, or leave it out")  # fmt: skip
        with working("evaluating"):
            limits = sensitivity(layout.pick())
        _report_sensitivity(limits, out, as_json)
        return
    refuse({option(name): width for name, width in layout.widths().items()},
            "is of one layout, and a search tries them all; leave it, or --frontier and --set, out")  # fmt: skip
    refuse({"--query-tokens": layout.query_tokens}, "is of one layout, and a search decodes; leave it out")
    planned = _searched(layout, gpus_at_most, family)
    for remarked in planned.remarks:
        remark(remarked)
    remark_on(planned.model)
    ttl_s = number(ttl_ms, "--ttl-ms") / 1e3 if ttl_ms is not None else None
    if change:
        refuse({"--out": out}, "is for the tornado plot, and a what-if has none; leave it out")
        with working("searching before and after"):
            moved = what_if(planned, [parse_change(text, planned) for text in change], ttl_s)
        _report_what_if(moved, planned, as_json)
    else:
        with working("searching, once a knob"):
            limits = frontier_sensitivity(planned, ttl_s)
        _report_sensitivity(limits, out, as_json)


def _searched(layout: LayoutOptions, gpus_at_most: str | None, family: list[str] | None) -> Plan:
    """The search of a sweep's file, or of a model on a machine."""
    from helix_sim.answers.request import Mix, Request, search_plan
    from helix_sim.search.layout_source import option
    from helix_sim.search.plan import plan
    from helix_sim.specs.load import load_sweep

    if layout.machine is None:
        given = {"--context": layout.context, "--gpus-at-most": gpus_at_most, "--family": family}
        given |= {"--formats": layout.formats, "--draft": layout.draft}
        refuse(given | {option(name): text for name, text in layout.format_names().items()},
                "is said by the sweep's file; change it there")  # fmt: skip
        return plan(load_sweep(layout.source).with_timing(layout.name()))
    context = size(layout.context or "1M", "--context")
    request = Request(
        model=layout.source,
        machine=layout.machine,
        mix=Mix(contexts=(context,), shares=(1.0,)),
        ttl_s=1.0,
        timing=layout.name() or "paper",
        precision=layout.precision(layout.source, layout.machine),
        gpus=(1, size(gpus_at_most, "--gpus-at-most")) if gpus_at_most is not None else None,
        families=tuple(family or ()),
        stack="none",
        draft=layout.draft,
    )
    return search_plan(request)


def _report_sensitivity(found: Sensitivity, out: Path | None, as_json: bool) -> None:
    from helix_sim.core.errors import Exit

    files: list[Path] = []
    if out:
        from helix_sim.output import plot

        bars = {each.knob: (each.ttl, each.throughput) for each in found.elasticities}
        title = f"{found.of}, timing {found.timing}"
        files = plot.save(plot.tornado(bars, title, found.panels), out / "tornado")
    if as_json:
        print_answer("sensitivity", found.record())
    else:
        _print_sensitivity(console(), found, out, files)
    if found.ttl_s is None:
        remark("no layout runs, so that nothing limits one")
        raise typer.Exit(Exit.MOVED)


def _print_sensitivity(out_console: Console, found: Sensitivity, out: Path | None, files: list[Path]) -> None:
    out_console.print(styled((found.of, "bold"), f", timing {found.timing}"))
    table = new_table("1 % more of", *(f">% {panel}" for panel in found.panels))
    for each in sorted(found.elasticities, key=lambda each: -abs(each.ttl)):
        table.add_row(each.knob, *(f"{value:+.3f}" if value == value else "-" for value in (each.ttl, each.throughput)))
    show(out_console, table)
    if files:
        out_console.print(f"files in {out}: {', '.join(path.name for path in files)}")


def _report_what_if(found: WhatIf, planned: Plan, as_json: bool) -> None:
    from helix_sim.core.errors import Exit

    if as_json:
        print_answer("sensitivity", found.record())
    else:
        _print_what_if(console(), found, planned)
    if found.before.fastest is None and found.after.fastest is None:
        remark("no layout runs, before or after")
        raise typer.Exit(Exit.MOVED)


def _print_what_if(out: Console, found: WhatIf, planned: Plan) -> None:
    turned = ", ".join(f"{c.knob} x {c.factor:g}" for c in found.changes)
    out.print(styled((f"{planned.model.name} on {planned.machine.name}", "bold"), f": {turned}, searched again"))
    within = f" within {found.ttl_s * 1e3:g} ms" if found.ttl_s else ""
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
