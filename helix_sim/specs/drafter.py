"""A draft bound to the model that it drafts for: the module that runs, as a model of its own."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from helix_sim.core.errors import SpecError
from helix_sim.core.numeric import Column
from helix_sim.core.text import said
from helix_sim.specs.draft import Draft
from helix_sim.specs.load import load_draft, load_model, parse, shipped
from helix_sim.specs.model import Model, Pattern


@dataclass(frozen=True, slots=True, kw_only=True)
class Drafter:
    """What drafts for a model: `draft` as its file says it, and `module`, its layers as a model.

    The module of `mtp` and `eagle3` shares the model's embedding, and unless it has its own the head: neither is held
    twice.
    """

    draft: Draft
    module: Model

    @property
    def shares_head(self) -> bool:
        """Whether its head is the model's."""
        return self.draft.method != "external" and not self.draft.own_head

    def tokens(self, drafts: Column) -> Any:
        """Mean tokens that a step with that many drafts yields."""
        return self.draft.acceptance.tokens(drafts)

    def scaled(self, factor: float) -> Drafter:
        """The drafter with `factor` times as many of its drafts accepted."""
        return replace(self, draft=self.draft.model_copy(update={"acceptance": self.draft.acceptance.scale(factor)}))


def drafter_of(draft: Draft | str | Path, model: Model) -> Drafter:
    """A draft, or the shipped name or path of one, bound to its model; SpecError where it is not of that model."""
    draft = load_draft(draft)
    if draft.target != model.name:
        raise SpecError([f"{draft.name} drafts for {draft.target}, not for {model.name}{_others(model)}"])
    return Drafter(draft=draft, module=load_model(draft.located(draft.model)) if draft.model else _module(draft, model))


def _others(model: Model) -> str:
    """What is shipped for a model, as the end of a sentence."""
    names = [name for name in shipped("draft") if load_draft(name).target == model.name]
    return f"; use {' or '.join(names)}" if names else ""


def _module(draft: Draft, model: Model) -> Model:
    runs = [run for entry in draft.layers for run in (entry.pattern if isinstance(entry, Pattern) else [entry])]
    known: dict[str, dict[str, Any]] = {
        half: getattr(model, half) | getattr(draft, half) for half in ("attention", "ffn")
    }
    used = {half: dict.fromkeys(getattr(run, half) for run in runs) for half in known}
    missing = [f"{draft.name}: layers: {half} {said(name)} is neither its own nor of {model.name}"
               for half, names in used.items() for name in names if name not in known[half]]  # fmt: skip
    if missing:
        raise SpecError(missing)
    content = {
        "kind": "model",
        "name": draft.name,
        "source": draft.source,
        "published_parameters_B": model.published_parameters_B,
        "hidden_size": model.hidden_size,
        "vocab_size": draft.vocab_size or model.vocab_size,
        "tied_embeddings": True,  # the embedding is the model's: held again where a later stage needs it
        "layers": draft.layers,
        **{half: {name: known[half][name] for name in names} for half, names in used.items()},
    }
    return parse(Model, content, draft.name)


def draft_problems(drafter: Drafter | None, model: Model, drafts: Column) -> list[str]:
    """What stands against so many drafts a step, a sentence each; none where there are no drafts."""
    most = int(np.max(drafts, initial=0))
    if most and drafter is None:
        return [f"draft_tokens {most} needs a draft: name its file{_others(model)}"]
    if drafter and most > (longest := drafter.draft.acceptance.longest):
        return [f"draft_tokens {most} is more than the {longest} that {drafter.draft.name} has an acceptance for"]
    return []
