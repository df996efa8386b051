"""One layout, op by op."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from rich.console import Console

    from helix_sim.specs.precision import Precision
    from helix_sim.step import Step

from helix_sim.cli.base import (
    ContextOption,
    JsonOption,
    MachineArgument,
    ModelArgument,
    TimingOption,
    app,
    console,
    figure_text,
    new_table,
    print_json,
    show,
    size,
)


@app.command()
def explain(
    model: ModelArgument,
    machine: MachineArgument,
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
    timing: TimingOption = "paper",
    as_json: JsonOption = False,
) -> None:
    """One layout: every op's work, time and bound, memory by kind, latency and throughput."""
    from helix_sim.core.layout import Layout
    from helix_sim.specs.load import load_machine, load_model, load_timing
    from helix_sim.step import decode_step

    on = load_machine(machine)
    grid = tpf if tpf is not None else max(dp * tpa * kvp // ep, 1) if ep > 0 else 1
    step = decode_step(
        load_model(model),
        on,
        Layout(batch=batch, tpa=tpa, kvp=kvp, dp=dp, tpf=grid, ep=ep, pp=pp, chunks=chunks),
        size(context, "--context"),
        precision=_precision(on, weights=weights, kv=kv, math=math, wire=wire),
        timing=load_timing(timing or "paper"),
    )
    if as_json:
        print_json(step_record(step))
    else:
        _print_step(console(), step)


def _precision(machine: Any, **given: str | None) -> Precision:
    """The machine's default formats with those given in their place."""
    from pydantic import ValidationError

    from helix_sim.core.errors import SpecError
    from helix_sim.specs.precision import Precision
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
        "machine": step.machine.name,
        "timing": step.timing.name,
        "context": step.context,
        "precision": step.precision.model_dump(exclude_none=True),
        "layout": step.layout.columns(),
        "gpus": step.layout.gpus,
        "users": step.layout.users,
        "ttl_s": float(step.ttl_s),
        "tokens_per_s_user": float(step.tokens_per_s_user),
        "tokens_per_s_gpu": float(step.tokens_per_s_gpu),
        **(measured if step.timing.calibration else {}),
        "memory_bytes": {
            "weights": float(step.memory.weights),
            "kv_cache": float(step.memory.kv_cache),
            "activations": float(step.memory.activations),
            "resident": float(step.memory.resident_bytes),
            "reserve": step.machine.memory_reserve_GB.value * 1e9,
            "capacity": step.machine.memory_GB.value * 1e9,
        },
        "ops": op_rows(step),
    }


WIDE = 118
"""Columns of a terminal on which the bytes of an op are shown tensor by tensor."""


def _print_step(out: Console, step: Step) -> None:
    from helix_sim.core.units import format_size
    from helix_sim.step import op_rows

    formats = step.precision
    out.print(
        f"[bold]{step.model.name}[/] on [bold]{step.machine.name}[/], {format_size(int(step.context))} tokens, "
        f"timing {step.timing.name}; weights {formats.weights}, KV {formats.kv}, math {formats.math}, "
        f"wire {formats.wire}"
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
    low, high = (float(end) for end in step.ttl_interval_s)
    users, gpus = step.layout.users, step.layout.gpus
    out.print(
        f"80 % interval of the measured kernels: TTL {low * 1e3:.3f} to {high * 1e3:.3f} ms, {1 / high:.1f} to "
        f"{1 / low:.1f} tokens/s/user, {users / high / gpus:.2f} to {users / low / gpus:.2f} tokens/s/GPU"
    )
    if beyond := [name for name, outside in step.extrapolated.items() if outside]:
        out.print(f"extrapolated beyond the measured sizes: {', '.join(beyond)}")
