"""Models and machines side by side."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from rich.console import Console

    from helix_sim.answers.compare import Compared
    from helix_sim.specs.comparison import Comparison

from helix_sim.cli.base import (
    JsonOption,
    app,
    console,
    new_table,
    number,
    out_folder,
    print_answer,
    refuse,
    remark,
    show,
    working,
)
from helix_sim.cli.options import AgainstOption
from helix_sim.core.text import is_path

Many = list[str] | None


def _several(text: str) -> Any:
    return typer.Option(help=f"{text}; give it again for more")


@app.command()
def compare(
    file: Annotated[Path | None, typer.Argument(help="a comparison's YAML file; options go before it")] = None,
    model: Annotated[Many, _several("a model, by name or file")] = None,
    machine: Annotated[Many, _several("a machine, by name or file")] = None,
    context: Annotated[Many, _several("tokens in each request's cache, e.g. 128K")] = None,
    ttl_ms: Annotated[Many, _several("token-to-token latency (TTL) at most, in milliseconds")] = None,
    timing: Annotated[
        Many, _several("ideal, paper, measured kernels such as gb200-trtllm, or auto: the fastest measured there")
    ] = None,
    formats: Annotated[str | None, typer.Option(help="number formats by name; the checkpoint's unless said")] = None,
    stack: Annotated[str | None, typer.Option(help="trtllm, vllm, sglang, any or none: what must start it")] = None,
    family: Annotated[Many, _several("a family of layouts; all unless said")] = None,
    usd_per_gpu_hour: Annotated[Many, _several("a price: USD for every machine, or MACHINE=USD")] = None,
    against: AgainstOption = None,
    out: Annotated[Path | None, out_folder("folder for CSV, Parquet, XLSX and pictures")] = None,
    as_json: JsonOption = False,
) -> None:
    """Models x machines x contexts x latencies: a row for each best layout, with its cost; surprises explained."""
    from helix_sim.answers.compare import compare as search

    given = {"models": model, "machines": machine, "contexts": context, "timings": timing, "families": family,
             "formats": formats, "stack": stack, "against": against}  # fmt: skip
    if out is None:
        refuse({"--against": against}, "is of pictures: add --out, or leave it out")
    budgets = [number(text, "--ttl-ms") for text in ttl_ms or ()]
    asked = comparison_of(file, given | {"ttl_ms": budgets or None}, usd_per_gpu_hour or [])
    with working("searching") as told:
        found = search(asked, lambda done, of, what: told(f"{done + 1} of {of}: {what}"))
    for text in found.remarks:
        remark(text)
    if out is not None:
        from helix_sim.output.comparison_files import write_comparison

        files = write_comparison(found, out)
        remark(f"files in {out}: {', '.join(path.name for path in files)}")
    if as_json:
        print_answer("compare", found.record())
    else:
        _print_rows(console(), found)
    if not any(cell.step for cell in found.cells):
        from helix_sim.core.errors import Exit

        raise typer.Exit(Exit.MOVED)


def comparison_of(file: Path | None, given: dict[str, Any], prices: list[str]) -> Comparison:
    """The comparison that a file and options ask for; SpecError with every problem.

    Relative paths start in the file's folder, and those of options where the process stands.
    """
    from helix_sim.core.errors import SpecError
    from helix_sim.specs.comparison import Comparison
    from helix_sim.specs.load import parse, read_yaml

    content: dict[str, Any] = read_yaml(file) if file else {"kind": "comparison"}
    content |= {name: _from_here(value) for name, value in given.items() if value is not None}
    named, written = content.get("machines"), content.get("usd_per_gpu_hour", {})
    machines = [each for each in named if isinstance(each, str)] if isinstance(named, list) else []
    by_machine: dict[str, float] = {}
    for text in prices:
        name, _, price = text.rpartition("=")
        usd = number(price, "--usd-per-gpu-hour")
        by_machine |= {name if name in machines else _from_here(name): usd} if name else dict.fromkeys(machines, usd)
    if by_machine and isinstance(written, dict):
        content["usd_per_gpu_hour"] = {**written, **by_machine}
    wanted = {"models": "--model", "machines": "--machine", "contexts": "--context", "ttl_ms": "--ttl-ms"}
    if file is None and (missing := [option for name, option in wanted.items() if name not in content]):
        raise SpecError([f"{', '.join(missing)} missing: a comparison needs each at least once, or a file"])
    return parse(Comparison, content, str(file or "compare")).in_folder(file.parent if file else Path())


def _from_here(value: Any) -> Any:
    """An option's value, whose paths start where the process stands whatever file it is added to."""
    if isinstance(value, list):
        return [_from_here(each) for each in value]
    return os.path.abspath(value) if isinstance(value, str) and is_path(value) else value


def _print_rows(out: Console, found: Compared) -> None:
    """The rows in blocks of one question each, so that 80 columns hold them."""
    asked = ("model", "context", "ttl_budget_ms")
    seen: list[tuple[Any, ...]] = []
    for cell in found.cells:
        question = tuple(cell.asked[name] for name in asked)
        if question in seen:
            continue
        seen.append(question)
        alike = [each for each in found.cells if tuple(each.asked[name] for name in asked) == question]
        model, context, budget = question
        table = new_table("machine, timing", "layout", ">GPUs", ">users", ">TTL ms", ">tokens/s/GPU",
                          ">$/M tokens", ">J/token",
                          title=f"{model}, {context:,} tokens, within {budget:g} ms")  # fmt: skip
        for each in alike:
            row = each.record()
            where = f"{row['machine']} {row['timing']}"
            if each.step is None:
                table.add_row(where, row["note"], *[""] * 6)
                continue
            numbers = (row["ttl_ms"], row["tokens_per_s_gpu"], row["usd_per_million_tokens"], row["joules_per_token"])
            told = ["" if value is None else f"{value:.4g}" for value in numbers]
            table.add_row(where, f"{row['title']}: {row['widths']}", str(row["gpus"]), str(row["users"]), *told)
        show(out, table)
