"""One layout, op by op."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console

    from helix_sim.search.layout_source import Picked
    from helix_sim.step import Step

from helix_sim.cli.base import JsonOption, app, console, figure_text, new_table, print_json, show
from helix_sim.cli.options import LayoutOptions, spread


@app.command()
@spread
def explain(layout: LayoutOptions, as_json: JsonOption = False) -> None:
    """One layout: every op's work, time and bound, memory by kind, latency and throughput."""
    from helix_sim.answers.explain import explain

    found = explain(layout.pick())
    if as_json:
        print_json(found.record())
    else:
        _print_step(console(), found.picked)


WIDE = 118
"""Columns of a terminal on which the bytes of an op are shown tensor by tensor."""


def _print_step(out: Console, picked: Picked) -> None:
    from helix_sim.core.units import format_size
    from helix_sim.step import op_rows

    step, formats = picked.step, picked.step.precision
    context = f"{format_size(int(step.context))} tokens"
    if picked.longest_context != step.context:
        context += f" on average ({format_size(picked.longest_context)} at most)"
    if step.query_tokens != 1:
        context += f", {step.query_tokens} of them new"
    out.print(
        f"[bold]{step.model.name}[/] on [bold]{step.machine.name}[/], {context}, timing {step.timing.name}; "
        f"weights {formats.weights}, KV {formats.kv}, math {formats.math}, wire {formats.wire}"
    )
    out.print(f"{step.layout} = {step.layout.gpus} GPUs, {step.layout.users} users\n")
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
    memory.add_row("reserve", f"{step.machine.memory_reserve_GB.value:.2f}")
    memory.add_row("capacity", f"{step.machine.memory_GB.value:.2f}")
    show(out, memory)
    out.print(
        f"TTL [bold]{float(step.ttl_s) * 1e3:.3f} ms[/]   interactivity [bold]{float(step.tokens_per_s_user):.1f}[/] "
        f"tokens/s/user   throughput [bold]{float(step.tokens_per_s_gpu):.2f}[/] tokens/s/GPU"
    )
    if step.timing.calibration:
        _print_interval(out, step)


def _print_interval(out: Console, step: Step) -> None:
    """The 80 % interval on measured kernels, and what lies beyond the measured sizes."""
    from helix_sim.answers.explain import borrowed_ops

    low, high = (float(end) for end in step.ttl_interval_s)
    users, gpus = step.layout.users, step.layout.gpus
    out.print(
        f"80 % interval of the measured kernels: TTL {low * 1e3:.3f} to {high * 1e3:.3f} ms, {1 / high:.1f} to "
        f"{1 / low:.1f} tokens/s/user, {users / high / gpus:.2f} to {users / low / gpus:.2f} tokens/s/GPU"
    )
    if beyond := [name for name, outside in step.extrapolated.items() if outside]:
        out.print(f"extrapolated beyond the measured sizes: {', '.join(beyond)}")
    for name, lent in borrowed_ops(step).items():
        out.print(f"borrowed: {name}, {lent['low']:.2g} to {lent['high']:.2g} times what it says: {lent['reason']}")
