"""Which layout to use, printed: choices, what they rest on, what to relax where none fits."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from rich.console import Console

    from helix_sim.answers.recommendation import Choice, Recommendation, Stacked, Whole

from helix_sim.cli.base import (
    JsonOption,
    MachineArgument,
    ModelArgument,
    app,
    console,
    new_table,
    number,
    number_option,
    print_answer,
    remark,
    remark_on,
    remark_on_costs,
    show,
    size,
    styled,
    working,
)
from helix_sim.cli.options import FamilyOption, FormatOptions, MostGpusOption, PriceOption, draft_lengths, price, spread

DraftOption = Annotated[
    str | None, typer.Option(help="what may draft: a shipped draft, such as deepseek-r1-mtp, or a YAML file")
]
DraftTokensOption = Annotated[
    str | None,
    typer.Option(help="drafts of a step that are tried, such as 0,1,3 or 0..8; 0 to 8 unless given", metavar="N,N"),
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
    from helix_sim.answers.recommend import recommend as search
    from helix_sim.answers.request import Request, parse_mix
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
        draft_tokens=draft_lengths(draft_tokens) if draft_tokens is not None else (),
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
    out.print("lost: throughput below that of the best; stopped by: what one more request of each group would break")
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
