"""From a question to a launch file: import, recommend, export, trace, sensitivity."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from rich.console import Console

    from helix_sim.answers.recommend import Choice, Recommendation, Stacked, Whole
    from helix_sim.answers.sensitivity import Sensitivity, WhatIf
    from helix_sim.search.plan import Plan

from helix_sim.cli.base import (
    JsonOption,
    MachineArgument,
    ModelArgument,
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
    remark_on_costs,
    say,
    show,
    size,
    styled,
    working,
)
from helix_sim.cli.options import FormatOptions, LayoutOptions, PriceOption, price, spread

# --- import-hf ------------------------------------------------------------------------------------------------------


@app.command("import-hf")
def import_hf(
    config: Annotated[Path, typer.Argument(help="a Hugging Face config.json, or the folder that holds it")],
    out: Annotated[Path | None, out_file("the file to write; printed unless given")] = None,
    name: Annotated[str | None, typer.Option(help="the model's name; from the config or its path unless given")] = None,
    source: Annotated[str | None, typer.Option(help="where the config comes from, such as its URL")] = None,
    published_parameters: Annotated[
        str | None, number_option("parameters that its publisher counts, in billions")
    ] = None,
    full_attention: Annotated[
        bool, typer.Option("--full-attention", help="read windowed and chunked layers as full attention: a bound")
    ] = False,
    change: Annotated[
        list[str] | None, typer.Option("--set", help="read a field with another value: sliding_window=null; repeat")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """A model spec from a Hugging Face config; what cannot be modelled is refused by the name of its field."""
    from helix_sim.core.files import write_text
    from helix_sim.specs.import_hf import import_file, parse_changes

    published_B = number(published_parameters, "--published-parameters") if published_parameters is not None else None
    found = import_file(
        config,
        name=name,
        source=source,
        published_B=published_B,
        full_attention=full_attention,
        changes=parse_changes(change or ()),
    )
    for text in (found.counts, *found.remarks):
        remark(text)
    if out:
        write_text(out, found.text)
        remark(f"written to {out}")
    if as_json:
        print_answer("import-hf", found.record())
    elif not out:
        print_text(found.text)


# --- recommend -------------------------------------------------------------------------------------------------------

FamilyOption = Annotated[list[str] | None, typer.Option(help="a family of layouts to search; repeat for several")]
MostGpusOption = Annotated[
    str | None, typer.Option(help="most GPUs of a layout; one NVLink domain unless given", metavar="N")
]


DraftOption = Annotated[
    str | None, typer.Option(help="what may draft: a shipped draft, such as deepseek-r1-mtp, or a YAML file")
]
DraftTokensOption = Annotated[
    str | None, typer.Option(help="drafts of a step that are tried, such as 0,1,3; 0 to 8 unless given", metavar="N,N")
]


@app.command()
@spread
def recommend(
    model: ModelArgument,
    machine: MachineArgument,
    formats: FormatOptions,
    ttl_ms: Annotated[
        str | None, number_option("budget for a user's token-to-token latency (TTL), in milliseconds")
    ] = None,
    tokens_per_second: Annotated[
        str | None, number_option("the same budget as tokens a second of one user; instead of --ttl-ms")
    ] = None,
    context: Annotated[str, typer.Option(help="tokens per request: 1M, or a mix with shares: 32K:0.7,1M:0.3")] = "1M",
    total_gpus: Annotated[
        str | None, number_option("GPUs to fill with replicas; their tokens/s together is then what counts")
    ] = None,
    racks: Annotated[str | None, number_option("the same total as NVLink domains: 2 is 144 GPUs of NVL72")] = None,
    objective: Annotated[
        str | None, typer.Option(help="fleet: tokens/s of the total, the default with one; per-gpu: of the GPUs used")
    ] = None,
    confidence: Annotated[
        str | None, number_option("chance with which the budget must hold, by a measured timing: 0.9")
    ] = None,
    gpus: Annotated[str | None, number_option("exactly this many GPUs a layout")] = None,
    gpus_at_most: MostGpusOption = None,
    min_users: Annotated[str, number_option("fewest users that a layout must serve at once")] = "1",
    family: FamilyOption = None,
    stack: Annotated[
        str, typer.Option(help="the serving stack that must start a layout: trtllm, vllm, sglang, any, or none")
    ] = "any",
    draft: DraftOption = None,
    draft_tokens: DraftTokensOption = None,
    choices: Annotated[str, number_option("how many choices to list")] = "5",
    usd_per_gpu_hour: PriceOption = None,
    as_json: JsonOption = False,
) -> None:
    """The layouts with the best throughput under a latency budget, or which one limit to relax if there is none."""
    from helix_sim.answers.recommend import Request, parse_mix
    from helix_sim.answers.recommend import recommend as search
    from helix_sim.core.errors import Exit, SpecError

    if gpus is not None and gpus_at_most is not None:
        raise SpecError(["--gpus and --gpus-at-most exclude each other; give one"])
    exactly, most = (size(text, name) if text is not None else None for text, name in
                     ((gpus, "--gpus"), (gpus_at_most, "--gpus-at-most")))  # fmt: skip
    request = Request(
        model=model,
        machine=machine,
        mix=parse_mix(context),
        ttl_s=_budget_s(ttl_ms, tokens_per_second),
        timing=formats.name() or "paper",
        precision=formats.precision(model, machine),
        gpus=(exactly, exactly) if exactly is not None else (1, most) if most is not None else None,
        families=tuple(family or ()),
        min_users=size(min_users, "--min-users"),
        choices=size(choices, "--choices"),
        stack=stack,
        total_gpus=_total_gpus(total_gpus, racks, machine),
        objective=objective,
        confidence=number(confidence, "--confidence") if confidence is not None else None,
        usd_per_gpu_hour=price(usd_per_gpu_hour),
        draft=draft,
        draft_tokens=tuple(
            0 if text == "0" else size(text, "--draft-tokens") for text in (draft_tokens or "").split(",") if text
        ),
    )
    with working("searching") as on_search:
        found = search(request, on_search)
    for text in found.plan.remarks:
        remark(text)
    remark_on(found.plan.model)
    remark_on_costs(found.plan.machine)
    if as_json:
        print_answer("recommend", found.record())
    else:
        _print_recommendation(console(), found)
    if not found.choices:
        raise typer.Exit(Exit.MOVED)


def _budget_s(ttl_ms: str | None, tokens_per_second: str | None) -> float:
    """The latency budget [s], said in one of two ways."""
    from helix_sim.core.errors import SpecError

    if (ttl_ms is None) == (tokens_per_second is None):
        raise SpecError(["give the latency budget of a user as --ttl-ms or as --tokens-per-second, one of them"])
    if ttl_ms is not None:
        return number(ttl_ms, "--ttl-ms") / 1e3
    return 1 / number(tokens_per_second or "", "--tokens-per-second")


def _total_gpus(total: str | None, racks: str | None, machine: str) -> int | None:
    """The GPUs to fill, said in one of two ways, or not at all."""
    from helix_sim.core.errors import SpecError
    from helix_sim.specs.load import load_machine

    if total is not None and racks is not None:
        raise SpecError(["--total-gpus and --racks exclude each other; give one"])
    if racks is not None:
        return size(racks, "--racks") * load_machine(machine).domain
    return size(total, "--total-gpus") if total is not None else None


def _print_recommendation(out: Console, found: Recommendation) -> None:
    request, planned = found.request, found.plan
    users = f", at least {request.min_users} users" if request.min_users > 1 else ""
    chance = f" with a chance of {request.confidence:g}" if request.confidence is not None else ""
    out.print(
        styled(
            *((planned.model.name, "bold"), " on ", (planned.machine.name, "bold")),
            f", context {request.mix}, timing {planned.timing.name}; token-to-token latency (TTL) within "
            f"{request.ttl_s * 1e3:g} ms{chance}{users}, {planned.sweep.searched_gpus} GPUs; "
            f"{planned.layouts:,} layouts",
        )
    )
    out.print(str(planned.setting.precision))
    if len(request.mix.contexts) > 1:
        out.print(
            f"mixed batches: one request of the longest context each, the rest with mean {request.mix.mean:,.0f} tokens"
        )
    if found.stacked:
        _print_stacked(out, found.stacked, request.stack)
    if not found.choices:
        _print_relaxations(out, found)
        return
    by = f"by tokens/s of {request.total_gpus} GPUs" if request.counts_fleet else "by tokens/s of each GPU"
    _print_choices(out, found.choices, f"best layouts {by}, one of each attention group")
    others = [choice for choice in found.by_family if choice not in found.choices]
    if others:
        _print_choices(out, others, "best of every other family", numbered=False)
    if found.whole:
        _print_whole(out, found.whole)
    if found.helix:
        pair, gain = found.helix, found.helix.gain
        out.print(
            f"Helix against the best conventional layout: {gain:+.1%} throughput "
            f"({pair.choice.title}: {pair.choice.step.layout}; {pair.conventional.title}: "
            f"{pair.conventional.step.layout})"
        )
    if len(found.choices) > 1:
        _print_runner_up(out, *found.choices[:2])
    _print_families_without(out, found)


def _print_families_without(out: Console, found: Recommendation) -> None:
    for name, why in found.without.items():
        out.print(f"no {found.plan.sweep.families[name].title} ({name}): {why}")


def _print_choices(out: Console, choices: list[Choice], title: str, numbered: bool = True) -> None:
    measured = choices[0].chance is not None
    fleet = choices[0].filled is not None
    table = new_table(
        "layout", "widths", ">GPUs", ">users", ">TTL ms", *([">80 % interval", ">in budget"] if measured else []),
        ">tokens/s/GPU", *([">replicas", ">idle GPUs", ">users of all", ">tokens/s of all"] if fleet else []), ">lost",
        ">$/M tokens", ">J/token", ">GB free", "largest op", "stopped by", "starts on",
        *(["rests on"] if measured else []), title=title,
    )  # fmt: skip
    for place, choice in enumerate(choices, start=1):
        step, binds = choice.step, choice.binds
        low, high = (float(end) * 1e3 for end in step.ttl_interval_s)
        cost, energy = float(step.usd_per_million_tokens), float(step.joules_per_token)
        filled = choice.filled
        table.add_row(
            f"{place}: {choice.title}" if numbered else choice.title,
            str(step.layout),
            str(step.layout.gpus),
            str(step.layout.users),
            f"{float(step.ttl_s) * 1e3:.2f}",
            *([f"{low:.2f} to {high:.2f}", f"{choice.chance:.0%}"] if measured else []),
            f"{float(step.tokens_per_s_gpu):.2f}",
            *([str(filled.replicas), str(filled.idle_gpus), str(filled.users), f"{filled.tokens_per_s:,.0f}"]
              if filled else []),
            f"{choice.throughput_lost:.1%}",
            f"{cost:.3g}" if cost == cost else "-",
            f"{energy:.3g}" if energy == energy else "-",
            f"{choice.headroom_bytes / 1e9:.1f}",
            f"{binds['op']} {binds['share']:.0%} ({binds['binds']})",
            choice.stopped_by,
            ", ".join(choice.stacks) or "not asked",
            *([_rests_on(choice)] if measured else []),
        )  # fmt: skip
    show(out, table)


def _rests_on(choice: Choice) -> str:
    """The ops of a choice that are beyond what was measured, or on kernels that stand in."""
    from helix_sim.answers.explain import borrowed_ops, extrapolated_ops

    beyond, borrowed = extrapolated_ops(choice.step), borrowed_ops(choice.step)
    parts = [f"extrapolated: {', '.join(beyond)}"] if beyond else []
    parts += [f"borrowed: {', '.join(borrowed)}"] if borrowed else []
    return "; ".join(parts) or "measured"


def _print_whole(out: Console, whole: Whole) -> None:
    """The best way to fill the total of GPUs."""
    filled = whole.filled
    parts = " and ".join(f"{count} x {choice.title} ({choice.step.layout})" for count, choice in whole.parts)
    mixed = f", {whole.adds:.1%} more than replicas of one layout" if whole.adds else ""
    cost = filled.usd_per_million_tokens
    price = f", ${cost:.3g} a million tokens" if cost == cost else ""
    out.print(
        f"the whole of {filled.total_gpus} GPUs: {parts}; {filled.users:,} users, {filled.tokens_per_s:,.0f} tokens/s"
        f"{mixed}, {filled.idle_gpus} GPUs idle{price}"
    )


def _print_stacked(out: Console, stacked: Stacked, stack: str) -> None:
    """What the stacks' rules removed, and what that costs."""
    who = "some stack starts" if stack == "any" else f"{stack} starts"
    refused = sum(stacked.refused.values())
    by_rule = ", ".join(f"{rule} {count:,}" for rule, count in sorted(stacked.refused.items(), key=lambda i: -i[1]))
    out.print(
        f"of {stacked.kept:,} layouts within the limits {who} {stacked.kept - refused:,}"
        + (f"; refused by {by_rule}" if by_rule else "")
    )
    if stacked.physics and 0.0005 <= stacked.physics.adds < float("inf"):
        rules = ", ".join(stacked.physics.rules)
        out.print(f"physics alone would add {stacked.physics.adds:.1%}: {stacked.physics.layout} ({rules})")
    if stacked.costliest and 0.0005 <= stacked.costliest.adds < float("inf"):
        gain = stacked.costliest
        out.print(f"the rule that costs most is {gain.rules[0]}: {gain.adds:.1%} without it, by {gain.layout}")


def _print_runner_up(out: Console, best: Choice, second: Choice) -> None:
    """What taking the second choice costs, and what it is better at."""
    ttl = float(second.step.ttl_s / best.step.ttl_s) - 1
    gpus = int(second.step.layout.gpus - best.step.layout.gpus)
    room = (second.headroom_bytes - best.headroom_bytes) / 1e9
    out.print(
        f"runner-up: {second.title}, {second.step.layout}: {second.throughput_lost:.2%} less throughput, "
        f"TTL {ttl:+.1%}, GPUs {gpus:+d}, free memory {room:+.1f} GB"
    )


def _print_relaxations(out: Console, found: Recommendation) -> None:
    out.print(styled(("no layout keeps every limit", "bold")))
    _print_families_without(out, found)
    if not found.relaxations:
        out.print("and relaxing one limit alone is not enough")
        return
    table = new_table("relax this alone", ">given", ">needed", ">factor", "which lets through")
    for relaxed in found.relaxations:
        words = {"families": (", ".join(found.request.families), "all"), "stack": (found.request.stack, "none")}
        factor = f"{relaxed.factor:.3g}" if relaxed.limit not in words else ""
        numbers = (f"{relaxed.given:,.4g}", f"{relaxed.needed:,.4g}")
        given, needed = words.get(relaxed.limit, numbers)
        table.add_row(relaxed.limit, given, needed, factor, str(relaxed.layout))
    show(out, table)


# --- export, trace, sensitivity --------------------------------------------------------------------------------------


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
    say(f"{out}: {events:,} events of one step, TTL {ttl_ms:.3f} ms; open it in ui.perfetto.dev")


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

    text = layout.source
    of_layout = layout.machine is not None or ":" in text or text == "-" or text.endswith(".json")
    if of_layout and not (frontier or change):
        refuse({"--ttl-ms": ttl_ms, "--gpus-at-most": gpus_at_most, "--family": family},
                "is of a search; add --frontier or --set, or leave it out")  # fmt: skip
        with working("evaluating"):
            limits = sensitivity(layout.pick())
        _report_sensitivity(limits, out, as_json)
        return
    refuse({f"--{name}": width for name, width in layout.widths().items()},
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
    from helix_sim.answers.recommend import Mix, Request, search_plan
    from helix_sim.search.layout_source import option
    from helix_sim.search.plan import plan
    from helix_sim.specs.load import load_sweep

    if layout.machine is None:
        given = {"--context": layout.context, "--gpus-at-most": gpus_at_most, "--family": family}
        given |= {"--formats": layout.formats}
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
