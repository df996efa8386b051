"""One layout, op by op."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from rich.console import Console

    from helix_sim.answers.capacity import Capacity
    from helix_sim.search.layout_source import Picked
    from helix_sim.step import Step

from helix_sim.cli.base import (
    JsonOption,
    app,
    console,
    figure_text,
    new_table,
    print_answer,
    refuse,
    remark,
    remark_on_costs,
    show,
    styled,
)
from helix_sim.cli.options import LayoutOptions, PriceOption, price, spread


@app.command()
@spread
def explain(layout: LayoutOptions, usd_per_gpu_hour: PriceOption = None, as_json: JsonOption = False) -> None:
    """One layout: every op's work, time and bound, memory by kind, latency and throughput."""
    from helix_sim.answers.explain import explain

    found = explain(layout.pick().at_price(price(usd_per_gpu_hour)))
    remark_on_costs(found.step.machine)
    if as_json:
        print_answer("explain", found.record())
    else:
        _print_step(console(), found.picked)


@app.command()
@spread
def capacity(
    layout: LayoutOptions,
    mix: Annotated[
        str | None,
        typer.Option(help="the requests' contexts with shares: 32K:0.7,1M:0.3; --context unless said"),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """How many tokens of cache and how many users a layout has memory for, and which change would buy more.

    Without --context or --mix, requests are as long as the model is published for, 1M tokens at most.
    """
    from helix_sim.answers.capacity import capacity
    from helix_sim.answers.request import parse_mix

    if mix is not None:
        refuse({"--context": layout.context}, "is the one context of requests, and --mix has them all; leave one out")
    refuse({"--query-tokens": layout.query_tokens}, "is of a step's time, and this is of memory; leave it out")
    if layout.batch is not None:
        remark("--batch is left aside: capacity says how many requests fit")
    found = capacity(layout.source, layout.machine, layout.options(), parse_mix(mix) if mix is not None else None)
    for text in found.remarks:
        remark(text)
    if as_json:
        print_answer("capacity", found.record())
    else:
        _print_capacity(console(), found)


def _print_capacity(out: Console, found: Capacity) -> None:
    step, memory = found.step, found.memory
    names = ((step.model.name, "bold"), " on ", (step.machine.name, "bold"))
    out.print(styled(*names, f", timing {step.timing.name}; {step.precision}"))
    x = step.layout
    widths = f"{x.widths} = " if x.widths else ""
    out.print(f"{widths}{x.gpus} GPU{'s' * (x.gpus > 1)}, {x.dp} attention group{'s' * (x.dp > 1)}")
    out.print()
    table = new_table("memory of the fullest GPU", ">GB")
    rows = {"capacity": memory.capacity, "reserve": memory.reserve, "weights": memory.weights,
            "activations": memory.activations, "left for the KV cache": memory.kv_room_bytes}  # fmt: skip
    for name, size in rows.items():
        table.add_row(name, f"{float(size) / 1e9:.2f}")
    show(out, table)
    each = f" in each of {x.dp} attention groups" if x.dp > 1 else ""
    out.print(styled("GPU KV cache size: ", (f"{found.kv_tokens_per_group:,}", "bold"), f" tokens{each}"))
    also = " in each" if x.dp > 1 else ""
    out.print(f"Maximum concurrency for {found.mix.mean:,.0f} tokens per request: {found.concurrency:.2f}x{also}")
    contexts = found.mix.contexts
    asked = f"{contexts[0]:,} tokens" if len(contexts) == 1 else str(found.mix)
    out.print(styled(f"users of {asked} at once: ", (f"{found.users:,}", "bold")))
    if found.more:
        of_all = " of all groups" if x.dp > 1 else ""
        more = new_table("what would buy more", "change", f">KV tokens{of_all}", ">factor")
        for change in found.more:
            now = max(found.kv_tokens, 1)
            more.add_row(change.kind, change.change, f"{change.kv_tokens:,}", f"{change.kv_tokens / now:.2f}x")
        show(out, more)


WIDE = 118
"""Columns of a terminal on which the bytes of an op are shown tensor by tensor."""


def _print_step(out: Console, picked: Picked) -> None:
    from helix_sim.answers.explain import kv_tokens, routing_of
    from helix_sim.core.units import format_size
    from helix_sim.step import op_rows

    step = picked.step
    x = step.layout
    context = f"{format_size(int(step.context))} tokens"
    if picked.longest_context != step.context:
        context += f" on average ({format_size(picked.longest_context)} at most)"
    if step.query_tokens != 1:
        context += f", {step.query_tokens} of them new"
    names = ((step.model.name, "bold"), " on ", (step.machine.name, "bold"))
    out.print(styled(*names, f", {context}, timing {step.timing.name}; {step.precision}"))
    gpus, users = (f"{n} {what}{'s' * (n != 1)}" for n, what in ((x.gpus, "GPU"), (x.users, "user")))
    out.print(f"{x} = {gpus}, {users}")
    out.print()
    wide = out.width >= WIDE
    amounts = (">MB weights", ">MB KV", ">MB act.") if wide else (">MB HBM",)
    times = (">µs", ">hidden µs", ">share")
    table = new_table(
        "op", ">times", ">GFLOP", *amounts, ">MB link", *times, "binds", title="one decode step on one GPU"
    )
    for row in op_rows(step):
        if not row["seconds"]:
            continue
        moved = [row[f"{tensor}_bytes"] / 1e6 for tensor in ("weight", "kv", "activation")]
        table.add_row(
            row["op"],
            str(row["repeats"]),
            figure_text(row["flops"] / 1e9),
            *(figure_text(each) for each in (moved if wide else [sum(moved)])),
            figure_text(row["link_bytes"] / 1e6),
            figure_text(row["seconds"] * 1e6),
            figure_text(row["hidden_s"] * 1e6),
            f"{row['share']:.1%}",
            row["binds"],
        )
    show(out, table)
    memory = new_table("memory of the fullest GPU", ">GB")
    for kind in ("weights", "kv_cache", "activations"):
        memory.add_row(kind.replace("_", " "), f"{float(getattr(step.memory, kind)) / 1e9:.2f}")
    memory.add_row("reserve", f"{float(step.memory.reserve) / 1e9:.2f}")
    memory.add_row("capacity", f"{step.memory.capacity / 1e9:.2f}")
    show(out, memory)
    out.print(f"KV cache: {kv_tokens(step):,} tokens fit, {kv_tokens(step) // int(step.context):,} such requests")
    ttl_ms, per_user, per_gpu = float(step.ttl_s) * 1e3, float(step.tokens_per_s_user), float(step.tokens_per_s_gpu)
    out.print(
        styled(
            *(
                "token-to-token latency (TTL) ",
                (f"{ttl_ms:.3f} ms", "bold"),
                "   interactivity ",
                (f"{per_user:.1f}", "bold"),
                " tokens/s/user",
            ),
            *("   throughput ", (f"{per_gpu:.2f}", "bold"), " tokens/s/GPU"),
        )
    )
    if (n := step.layout.draft_tokens) and step.setting.drafter:
        out.print(
            f"a step of {float(step.step_s) * 1e3:.3f} ms verifies {n} {'draft' if n == 1 else 'drafts'} of "
            f"{step.setting.drafter.draft.name} and yields {float(step.accepted_tokens):.2f} tokens on average: "
            "TTL and rates are of these"
        )
    if (usd := float(step.usd_per_million_tokens)) == usd:
        out.print(f"${usd:.4g} a million tokens ({step.machine.price_in_words})")
    if (joules := float(step.joules_per_token)) == joules:
        out.print(f"{joules:.4g} J a token, at full power, with a GPU's share of host, switches and cooling")
    if step.layout.pp > 1:
        out.print(
            f"{step.layout.pp} batches go round {step.layout.pp} stages at the pace of the busiest, shown above; "
            f"one alone would pass all stages in {float(step.pass_s) * 1e3:.3f} ms"
        )
    for name, text in routing_of(step).items():
        out.print(f"routing{f' of {name}' if len(step.model.routed_kinds) > 1 else ''}: {text}")
    if step.timing.calibration:
        _print_interval(out, step)


def _print_interval(out: Console, step: Step) -> None:
    """The 80 % interval on measured kernels, what lies beyond their sizes, and what no kernel of its own times."""
    from helix_sim.answers.explain import borrowed_ops

    low, high = (float(end) for end in step.ttl_interval_s)
    users, gpus = step.layout.users, step.layout.gpus
    out.print(
        f"80 % interval of the measured kernels: TTL {low * 1e3:.3f} to {high * 1e3:.3f} ms, {1 / high:.1f} to "
        f"{1 / low:.1f} tokens/s/user, {users / high / gpus:.2f} to {users / low / gpus:.2f} tokens/s/GPU"
    )
    if beyond := [name for name, outside in step.extrapolated.items() if outside]:
        out.print(f"extrapolated beyond the measured sizes: {', '.join(beyond)}")
    alike: dict[tuple[str, str, str], list[str]] = {}
    for name, lent in borrowed_ops(step).items():
        alike.setdefault((lent["reason"], f"{lent['low']:.2g}", f"{lent['high']:.2g}"), []).append(name)
    for (reason, least, most), names in alike.items():
        out.print(f"borrowed: {', '.join(names)}, {least} to {most} times what is said: {reason}")
