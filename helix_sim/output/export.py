"""Launch files of a layout: TensorRT-LLM (YAML), vLLM and SGLang (command line), NVIDIA Dynamo, srt-slurm.

What a stack accepts, and by which options, is data (`helix_sim.stacks`). A layout that it would not start is refused by
the rule's sentence, with the nearest layout that starts and what that costs. Nothing of a layout is dropped in silence:
the file carries the TTL of what the stack will run, recomputed where that differs from what was asked.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from helix_sim.core.display import Short
from helix_sim.core.errors import SpecError
from helix_sim.core.escape import comment
from helix_sim.core.layout import Layout
from helix_sim.core.text import said
from helix_sim.core.units import format_size
from helix_sim.core.version import __version__
from helix_sim.feasibility import Candidate, memory_reason, sentences, shape_reasons
from helix_sim.output.launch_files import command_text, dynamo_text, srt_slurm_text, trtllm_text
from helix_sim.output.launch_options import Draft, Launched, written
from helix_sim.search.family import divisors
from helix_sim.search.layout_source import Options, Picked, pick
from helix_sim.specs.precision import Precision
from helix_sim.stacks.rules import Placed, formats_on_stacks, stack_flags, stack_sentences, weight_tensors
from helix_sim.stacks.stack import NAMES, Stack, load_stack
from helix_sim.step import Step, evaluate_step

STACKS = NAMES
"""The serving stacks that a launch file can be for."""

Text = Callable[[Launched, Draft, str], str]

DEPLOYMENTS: dict[str, Text] = {"dynamo": dynamo_text, "srt-slurm": srt_slurm_text}
"""What writes a stack's launch for an orchestrator instead of a shell."""

TARGETS = (*STACKS, *DEPLOYMENTS)
"""What `to` may be."""

WIDTHS = ("tpa", "kvp", "dp", "pp", "tpf", "ep")


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class Launch(Short):
    """A launch configuration: the text of the file, its options, and the step that the stack will run.

    to: the stack, or the orchestrator whose file it is. environment: variables that the stack must find. runs: the step
    of what the stack runs, without HOP-B and in the number formats that it has.
    """

    to: str
    stack: str
    text: str
    options: dict[str, Any]
    environment: dict[str, str]
    remarks: list[str]
    runs: Step

    def record(self) -> dict[str, Any]:
        """The launch as plain data."""
        return {
            "to": self.to,
            "stack": self.stack,
            "options": self.options,
            "environment": self.environment,
            "remarks": self.remarks,
            "ttl_s": float(self.runs.ttl_s),
            "text": self.text,
        }


def export(
    layout: Step | Picked | str | Path,
    machine: str | None = None,
    options: Options | None = None,
    *,
    to: str,
    checkpoint: str | None = None,
    stack: str | None = None,
) -> Launch:
    """The launch configuration of a layout; SpecError with every rule by which the stack refuses it.

    layout, machine, options: as `helix_sim.search.layout_source.pick` takes them. to: trtllm, vllm or sglang; dynamo or
    srt-slurm for a deployment of `stack`, which is the first stack that starts the layout unless given. checkpoint: the
    path or Hugging Face name of the weights; from the model's source unless given.
    """
    if to not in TARGETS:
        raise SpecError([f"--to: {said(to)} is not one of {', '.join(TARGETS)}"])
    if stack is not None and stack not in STACKS:
        raise SpecError([f"--stack: {said(stack)} is not one of {', '.join(STACKS)}"])
    if to in STACKS and stack not in (None, to):
        raise SpecError([f"--stack: {to} is written for {to}; leave it out, or give --to dynamo or srt-slurm"])
    picked = pick(layout, machine, options)
    return launch(picked, to, to if to in STACKS else stack or _first_stack(picked.step), checkpoint)


def launch(picked: Picked, to: str, stack: str, checkpoint: str | None = None) -> Launch:
    """The launch configuration of a layout that was picked, for one of the TARGETS."""
    spec, step, longest = load_stack(stack), picked.step, picked.longest_context
    runs, remarks = _as_run(step, spec)
    if refusals := _refusals(runs, spec):
        raise SpecError([f"{stack} cannot run this layout: {refusal}" for refusal in refusals] + _way_out(runs, spec))
    launched = Launched(step=runs, tokens=longest, placed=_placed(runs, spec))
    draft = written(launched)
    remarks += draft.remarks
    if longest != step.context:
        room = f"memory holds {step.layout.batch} requests of a batch's mean, {_size(step.context)} tokens"
        remarks.append(f"requests of up to {_size(longest)} tokens are mixed: {room}, not of the longest")
    name = checkpoint or checkpoint_name(runs)
    if not checkpoint and _published(runs) is None:
        remarks.append(f"{name} stands for a checkpoint in these formats: name yours with --checkpoint")
    files = {**DEPLOYMENTS, "trtllm": trtllm_text}
    text = files.get(to, command_text)(launched, draft, name)
    head = "".join(f"{comment(line)}\n" for line in _head(picked, runs, spec, remarks))
    return Launch(
        to=to, stack=stack, text=head + text, options=draft.options, environment=draft.environment, remarks=remarks,
        runs=runs,
    )  # fmt: skip


def checkpoint_name(step: Step) -> str:
    """The Hugging Face name of a checkpoint in the step's formats, as the model's file says; else a placeholder."""
    return _published(step) or f"{step.precision.format_of('weights').upper()}-CHECKPOINT-OF-{_origin(step)}"


def _published(step: Step) -> str | None:
    """The Hugging Face name of a checkpoint whose weights have the step's formats; None where the file names none."""
    tensors = weight_tensors(step.precision)
    for stored in step.model.formats.values():
        if all(stored.format_of(tensor) == step.precision.format_of(tensor) for tensor in tensors):
            return _hugging_face(stored.source)
    plain = all(step.precision.format_of(tensor) in ("bf16", "fp16") for tensor in tensors)
    return _origin(step) if plain and not step.model.formats else None


def _origin(step: Step) -> str:
    return _hugging_face(step.model.source) or step.model.name


def _hugging_face(source: str) -> str | None:
    match = re.search(r"https://huggingface\.co/([\w.-]+/[\w.-]+)", source)
    return match[1] if match else None


def _several(count: Any, word: str) -> str:
    return f"{count} {word}{'' if count == 1 else 's'}"


def _head(picked: Picked, runs: Step, spec: Stack, remarks: list[str]) -> list[str]:
    """The comment on top: what was asked, what it takes, what runs differently."""
    step = picked.step
    tokens = f"{_size(step.context)} tokens{'' if picked.longest_context == step.context else ' on average'}"
    lines = [
        f"{spec.title} launch of {step.model.name} on {step.machine.name}, written by helix_sim {__version__} for "
        f"{spec.title} {spec.version}",
        f"layout: {step.layout}: {_several(step.layout.gpus, 'GPU')}, {_several(step.layout.users, 'user')} at "
        f"{tokens}",
        f"TTL {_ms(step)} as asked (timing {step.timing.name})",
    ]
    if remarks and _ms(runs) != _ms(step):
        lines.append(f"TTL {_ms(runs)} as this stack runs it, with what follows")
    return [*lines, *(f"- {remark}" for remark in remarks)]


def _size(context: Any) -> str:
    return format_size(int(context))


def _ms(step: Step) -> str:
    return f"{float(step.ttl_s) * 1e3:.3f} ms"


# --- What the stack runs ---------------------------------------------------------------------------------------------


def _as_run(step: Step, spec: Stack) -> tuple[Step, list[str]]:
    """The step as the stack runs it, without HOP-B and in formats that it has, and a remark on each change."""
    x, precision = step.layout, step.precision
    if step.query_tokens != 1:
        raise SpecError(
            [
                f"{step.query_tokens} new tokens a request verify a draft or are a chunk of prefill, and no draft "
                "model is named; export the step of 1 (--query-tokens 1)"
            ]
        )
    remarks = []
    if x.chunks > 1:
        remarks.append(f"HOP-B ({x.chunks} chunks) is not in {spec.title}: attention and exchange take turns")
    formats = formats_on_stacks(precision, (spec.name,), step.machine, step.model)
    if formats.format_of("weights") != precision.format_of("weights"):
        remarks.append("4-bit weights are stored as nvfp4, 4.5 bits with block scales, not as fp4's 4.0")
    if formats.kv != precision.kv:
        remarks.append(f"{spec.title} has no {precision.kv} KV cache; {formats.kv} is written")
    if precision.wire != "bf16" or precision.dispatch not in (None, "bf16"):
        remarks.append("number formats on the links have no option here; BF16 is assumed")
    remarks.append(f"the checkpoint must be stored in {_stored(formats)}")
    return evaluate_step(replace(step.setting, precision=formats), replace(x, chunks=1), step.context), remarks


def _stored(formats: Precision) -> str:
    """The weights' format, and those of tensors that differ, in words."""
    main = formats.format_of("weights")
    others = {
        name.removesuffix("_weights"): formats.format_of(name)
        for name in type(formats).model_fields
        if name.endswith("_weights") and getattr(formats, name) not in (None, main)
    }
    return main + "".join(f", {tensor} {format_}" for tensor, format_ in others.items())


def _placed(step: Step, spec: Stack) -> Placed:
    return Placed(
        model=step.model, machine=step.machine, layout=step.layout, context=step.context, stack=spec,
        precision=step.precision,
    )  # fmt: skip


def _refusals(runs: Step, spec: Stack) -> list[str]:
    """Every reason against the step on the stack, in sentences."""
    candidate = Candidate(model=runs.model, machine=runs.machine, layout=runs.layout, context=runs.context)
    found = stack_sentences(spec.name, candidate, runs.precision)
    flags = int(memory_reason(runs.memory))
    return found + (
        sentences(flags, runs.model, runs.machine, runs.layout, int(runs.context), runs.memory) if flags else []
    )


def _first_stack(step: Step) -> str:
    """The first stack that starts a layout, in formats that it has; the first of all where none does."""
    return next(
        (name for name in STACKS if not _refusals(_as_run(step, load_stack(name))[0], load_stack(name))), STACKS[0]
    )


# --- The nearest layout that starts ----------------------------------------------------------------------------------


def _way_out(runs: Step, spec: Stack) -> list[str]:
    """The nearest layout that the stack starts, with its cost, as a sentence; none where no such layout is found."""
    near = nearest_that_starts(runs, spec.name)
    if near is None:
        return []
    changed = [name for name in WIDTHS if getattr(near.layout, name) != getattr(runs.layout, name)]
    if near.layout.batch != runs.layout.batch:
        changed.append("batch")
    words = ", ".join(f"{name} {getattr(near.layout, name)}" for name in changed)
    cost = float(near.ttl_s / runs.ttl_s) - 1
    gpus = "" if near.layout.gpus == runs.layout.gpus else f" on {near.layout.gpus} GPUs"
    return [f"the nearest layout that {spec.name} starts{gpus}: {words or 'chunks 1'}: {cost:+.1%} TTL"]


def nearest_that_starts(step: Step, stack: str) -> Step | None:
    """The layout nearest to a step's, for as many users at least, that a stack starts; None where there is none.

    Nearest: in the sum of the widths' ratios as powers of two, and of equals the one with the lowest TTL, on as many
    GPUs, or the next larger number of whole trays, up to twice as many.
    """
    gpus, tray = int(step.layout.gpus), step.machine.tray_gpus.value if step.machine.tray_gpus else 1
    most = min(2 * gpus, step.machine.gpus.value)
    larger = range((gpus // tray + 1) * tray, most + 1, tray)
    for count in (gpus, *larger):
        if (found := _nearest_on(step, stack, count)) is not None:
            return found
    return None


def _nearest_on(step: Step, stack: str, gpus: int) -> Step | None:
    rows = np.array(list(_shapes(gpus, bool(step.model.routed_kinds))), dtype=np.int64)
    columns = dict(zip(WIDTHS, rows.T, strict=True))
    batch = -(-int(step.layout.users) // (columns["dp"] * columns["pp"]))
    drafts = int(step.layout.draft_tokens)
    x = Layout(batch=batch, draft_tokens=drafts, **columns)
    flags = shape_reasons(step.model, step.machine, x, step.context)
    flags = flags | stack_flags(stack, step.model, step.machine, step.precision, x)
    able = np.flatnonzero(np.asarray(flags) == 0)
    if not able.size:
        return None
    some = Layout(batch=batch[able], draft_tokens=drafts, **{n: c[able] for n, c in columns.items()})
    steps = evaluate_step(step.setting, some, step.context)
    fits = np.asarray(memory_reason(steps.memory)) == 0
    if not fits.any():
        return None
    distance = sum(np.abs(np.log2(columns[name][able] / getattr(step.layout, name))) for name in WIDTHS)
    order = np.lexsort((np.asarray(steps.ttl_s), np.round(distance, 9), ~np.broadcast_to(fits, able.shape)))
    best = able[order[0]]
    near = Layout(
        batch=int(batch[best]), draft_tokens=drafts, **{name: int(column[best]) for name, column in columns.items()}
    )
    return evaluate_step(step.setting, near, step.context)


def _shapes(gpus: int, moe: bool) -> Iterator[tuple[int, ...]]:
    """Every layout of a number of GPUs whose FFN spans the whole stage, in the order of WIDTHS."""
    for pp in divisors(gpus):
        stage = gpus // pp
        for dp in divisors(stage):
            for kvp in divisors(stage // dp):
                for ep in divisors(stage) if moe else (1,):
                    yield stage // dp // kvp, kvp, dp, pp, stage // ep, ep
