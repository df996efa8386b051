"""Options that several verbs share, each declared once: a layout, its number formats, a timing.

A verb takes a group as one parameter, and `spread` shows the group's fields as options of the command:

    @app.command()
    @spread
    def trace(layout: LayoutOptions, out: OutFile = Path("step.json")) -> None: ...
"""

from __future__ import annotations

import functools
import inspect
import re
from collections.abc import Callable
from dataclasses import MISSING, dataclass, fields
from typing import TYPE_CHECKING, Annotated, Any, TypeVar, get_type_hints

import typer

if TYPE_CHECKING:
    from helix_sim.search.layout_source import Options, Picked
    from helix_sim.specs.precision import Precision

from helix_sim.cli.base import number, remark, remark_on, size

DRAFTS = r"\s*(\d{1,9})(?:\.\.(\d{1,9}))?\s*"
"""How numbers of drafts are written: one, or the first and the last of a range."""


def draft_lengths(text: str) -> tuple[int, ...]:
    """Drafts of a step as --draft-tokens says them, such as 2, 0,1,3 or 0..8; SpecError otherwise."""
    from helix_sim.core.errors import SpecError
    from helix_sim.core.text import said
    from helix_sim.specs.draft import MOST_DRAFTS

    found: dict[int, None] = {}
    for part in text.split(","):
        read = re.fullmatch(DRAFTS, part)
        first, last = (int(read[1]), int(read[2] or read[1])) if read else (0, -1)
        if first > last or (last > MOST_DRAFTS and first < last):
            how = f"write a whole number from 0 to {MOST_DRAFTS}, or where several are tried 0,1,3 or 0..8"
            raise SpecError([f"--draft-tokens: {said(part)} is no number of drafts; {how}"])
        found |= dict.fromkeys(range(first, last + 1))
    return tuple(found)


def one_length(text: str) -> int:
    """Drafts of a layout's step; SpecError where several are said, or none that can be."""
    from helix_sim.core.errors import SpecError
    from helix_sim.core.text import said

    found = draft_lengths(text)
    if len(found) > 1:
        tried = "recommend --draft tries several, and so does a sweep"
        raise SpecError([f"--draft-tokens: a layout has one number of drafts, not {said(text)}; {tried}"])
    return found[0]


F = TypeVar("F", bound=Callable[..., Any])


def spread(verb: F) -> F:
    """A verb whose parameters that are groups of options appear as these options, one by one."""
    hints = get_type_hints(verb, include_extras=True)
    groups = {name: kind for name, kind in hints.items() if isinstance(kind, type) and issubclass(kind, Group)}
    shown: dict[str, inspect.Parameter] = {}
    for parameter in inspect.signature(verb).parameters.values():
        own = groups[parameter.name].parameters() if parameter.name in groups else [parameter]
        for each in own:
            annotation = hints[each.name] if parameter.name not in groups else each.annotation
            shown[each.name] = each.replace(annotation=annotation, kind=inspect.Parameter.KEYWORD_ONLY)

    @functools.wraps(verb)
    def command(**given: Any) -> Any:
        taken = {name: group(**{f.name: given.pop(f.name) for f in fields(group)}) for name, group in groups.items()}
        return verb(**given, **taken)

    signature: Any = command
    signature.__signature__ = inspect.Signature(list(shown.values()))
    signature.__annotations__ = {name: each.annotation for name, each in shown.items()}
    return signature  # type: ignore[no-any-return]


@dataclass(frozen=True, slots=True, kw_only=True)
class Group:
    """Options that belong together: a dataclass whose fields are annotated as typer's parameters are."""

    @classmethod
    def parameters(cls) -> list[inspect.Parameter]:
        """The fields as parameters of a command, a group's own before those that it inherits."""
        hints = get_type_hints(cls, include_extras=True)
        known = {each.name: each.default for each in fields(cls)}
        return [
            inspect.Parameter(
                name,
                inspect.Parameter.KEYWORD_ONLY,
                default=inspect.Parameter.empty if known[name] is MISSING else known[name],
                annotation=hints[name],
            )
            for group in cls.__mro__
            for name in vars(group).get("__annotations__", {})
        ]


FamilyOption = Annotated[list[str] | None, typer.Option(help="a family of layouts to search; repeat for several")]
MostGpusOption = Annotated[
    str | None, typer.Option(help="most GPUs of a layout; one NVLink domain unless given", metavar="N")
]
PriceOption = Annotated[
    str | None,
    typer.Option(help="what an hour of one GPU costs in USD, in place of the machine's own price", metavar="N"),
]


AgainstOption = Annotated[
    str | None,
    typer.Option(
        help="what pictures draw interactivity against: tokens_per_s_gpu, usd_per_million_tokens or joules_per_token",
        metavar="COLUMN",
    ),
]


def price(text: str | None) -> float | None:
    """What --usd-per-gpu-hour says; None without it."""
    return number(text, "--usd-per-gpu-hour") if text is not None else None


# --- Timing ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class TimingOptions(Group):
    """--timing, and the name that it had."""

    timing: Annotated[
        str | None,
        typer.Option(help="ideal, paper, measured kernels such as gb200-trtllm, or a timing's YAML file"),
    ] = None
    clock: Annotated[str | None, typer.Option(hidden=True)] = None

    def name(self) -> str | None:
        """The timing that was asked for, which can be loaded; None where the source, or the default, decides."""
        from helix_sim.core.errors import SpecError
        from helix_sim.search.layout_source import timing_of

        if self.clock is not None:
            if self.timing is not None:
                raise SpecError(["--clock is now --timing; give --timing alone"])
            remark("--clock is now --timing, and goes with the next release")
        name = self.clock if self.timing is None else self.timing
        if name is not None:
            timing_of(name)
        return name


# --- Number formats --------------------------------------------------------------------------------------------------

FORMATS_PANEL = "Number formats (fp4, nvfp4, fp8, bf16, …)"


def _format(text: str) -> Any:
    return typer.Option(help=text, rich_help_panel=FORMATS_PANEL, metavar="FORMAT")


@dataclass(frozen=True, slots=True, kw_only=True)
class FormatOptions(TimingOptions):
    """Number formats of tensors and arithmetics, one option each, or a file of them; and the timing."""

    formats: Annotated[
        str | None,
        typer.Option(help="a name of the model's formats; checkpoint, which is its first; narrowest, the machine's; or "
                     "a YAML or JSON file of formats by these names; options go before", metavar="NAME|FILE",
                     rich_help_panel=FORMATS_PANEL),
    ] = None  # fmt: skip
    weights: Annotated[str | None, _format("of the weights; the checkpoint's unless said")] = None
    kv: Annotated[str | None, _format("of the KV cache; the checkpoint's unless said")] = None
    math: Annotated[str | None, _format("of the arithmetic: fp4, fp8 or bf16; the checkpoint's unless said")] = None
    wire: Annotated[str | None, _format("on the links; bf16 unless said")] = None
    activations: Annotated[str | None, _format("of activations in memory; bf16 unless said")] = None
    attention_weights: Annotated[str | None, _format("of attention's projections; as --weights")] = None
    attention_math: Annotated[str | None, _format("of the attention core's arithmetic; as --math")] = None
    projection_math: Annotated[str | None, _format("of the projections' arithmetic; as --math")] = None
    output_weights: Annotated[str | None, _format("of the output projection; as --attention-weights")] = None
    output_math: Annotated[str | None, _format("of the output projection's arithmetic; as --projection-math")] = None
    router_weights: Annotated[str | None, _format("of the router; as --activations")] = None
    routed_weights: Annotated[str | None, _format("of the routed experts; as --weights")] = None
    routed_math: Annotated[str | None, _format("of the routed experts' arithmetic; as --math")] = None
    shared_weights: Annotated[str | None, _format("of the shared experts; as --weights")] = None
    shared_math: Annotated[str | None, _format("of the shared experts' arithmetic; as --math")] = None
    dense_weights: Annotated[str | None, _format("of dense layers' FFNs; as --weights")] = None
    dense_math: Annotated[str | None, _format("of dense layers' FFNs' arithmetic; as --math")] = None
    head_weights: Annotated[str | None, _format("of the LM head; as --weights")] = None
    head_math: Annotated[str | None, _format("of the LM head's arithmetic; as --math")] = None
    embedding_weights: Annotated[str | None, _format("of the embedding; as --head-weights")] = None
    dispatch: Annotated[str | None, _format("of tokens sent to experts; as --wire")] = None

    def format_names(self) -> dict[str, str]:
        """The formats that were said one by one, by tensor."""
        from helix_sim.search.layout_source import FORMATS

        return {name: text for name in FORMATS if (text := getattr(self, name)) is not None}

    def precision(self, model: str, machine: str) -> Precision:
        """The number formats of a model on a machine, both by name or file: as said, or else the checkpoint's."""
        from helix_sim.search.layout_source import precision_of, timing_of
        from helix_sim.specs.load import load_machine, load_model

        timing = timing_of(name) if (name := self.timing or self.clock) else None
        formats = self.format_names()
        return precision_of(load_model(model), load_machine(machine), formats, named=self.formats, timing=timing)


# --- A layout --------------------------------------------------------------------------------------------------------

WIDTHS_PANEL = "Layout"


def _width(text: str) -> Any:
    return typer.Option(help=text, rich_help_panel=WIDTHS_PANEL, metavar="N")


@dataclass(frozen=True, slots=True, kw_only=True)
class LayoutOptions(FormatOptions):
    """A layout and how its step is evaluated: where it comes from, its widths, context, formats and timing."""

    source: Annotated[
        str,
        typer.Argument(
            help="a model, with a machine after it; FILE.json of explain or recommend, FILE.json:2 for its second "
            "choice, - for standard input; SWEEP:ID, or FOLDER:ID of what sweep --out FOLDER wrote"
        ),
    ]
    machine: Annotated[str | None, typer.Argument(help="the machine, where the first argument is a model")] = None
    context: Annotated[
        str | None,
        typer.Option(help="tokens in each request's KV cache, e.g. 128K, 1M, 1Mi; 1M unless said",
                     rich_help_panel=WIDTHS_PANEL),
    ] = None  # fmt: skip
    query_tokens: Annotated[
        str | None, _width("new tokens of each request in one step, part of its context: 1, unless said, decodes")
    ] = None
    batch: Annotated[str | None, _width("requests that one attention group decodes at a time; 1 unless said")] = None
    tpa: Annotated[str | None, _width("tensor-parallel width of attention")] = None
    kvp: Annotated[str | None, _width("KV-parallel width: sequence shards of the KV cache")] = None
    dp: Annotated[str | None, _width("data-parallel attention groups")] = None
    tpf: Annotated[str | None, _width("tensor-parallel width of the FFN; dp·tpa·kvp/ep unless said")] = None
    ep: Annotated[str | None, _width("expert-parallel width of the FFN")] = None
    pp: Annotated[str | None, _width("pipeline stages")] = None
    chunks: Annotated[str | None, _width("HOP-B pieces of the batch; 1 is off")] = None
    index_kvp: Annotated[
        str | None, _width("sequence shards of an indexer's cache, a divisor of kvp; 1 is a copy on every rank")
    ] = None
    q_shards: Annotated[
        str | None, _width("KV shards that share a projection of queries and gather them; 1 repeats it on each")
    ] = None
    redundant_experts: Annotated[
        str | None, _width("copies of busy experts beside the model's own, over all of ep; 0, unless said, is none")
    ] = None
    draft_tokens: Annotated[
        str | None, _width("drafts of each request that a step verifies; 0, unless said, is no drafting")
    ] = None
    draft: Annotated[
        str | None,
        typer.Option(help="what drafts them: a shipped draft, such as deepseek-r1-mtp, or the path of a YAML file",
                     rich_help_panel=WIDTHS_PANEL, metavar="NAME|FILE"),
    ] = None  # fmt: skip
    microbatches: Annotated[
        str | None, _width("parts of the batch, 2 of which take turns in layers with experts; 1 is the whole batch")
    ] = None

    def widths(self) -> dict[str, int | None]:
        """The widths that were said, by name."""
        from helix_sim.core.layout import AXES, NONE

        given = {name: getattr(self, name) for name in AXES if name != "draft_tokens"}
        found: dict[str, int | None] = {
            name: 0 if text == "0" and NONE.get(name) == 0 else size(text, f"--{name.replace('_', '-')}")
            for name, text in given.items()
            if text is not None
        }
        return found | ({"draft_tokens": one_length(self.draft_tokens)} if self.draft_tokens is not None else {})

    def pick(self) -> Picked:
        """The layout, wherever it comes from; what is to be said of it goes to stderr."""
        from helix_sim.search.layout_source import pick

        picked = pick(self.source, self.machine, self.options())
        for text in picked.remarks:
            remark(text)
        remark_on(picked.step.model)
        return picked

    def options(self) -> Options:
        """What was said of the layout, checked one by one."""
        from helix_sim.search.layout_source import Options

        return Options(
            context=size(self.context, "--context") if self.context is not None else None,
            query_tokens=size(self.query_tokens, "--query-tokens") if self.query_tokens is not None else None,
            timing=self.name(),
            draft=self.draft,
            widths=self.widths(),
            formats=self.format_names(),
            named_formats=self.formats,
        )
