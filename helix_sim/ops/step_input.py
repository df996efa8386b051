"""What a step is: requests, the new tokens of each, and the context that they attend to, on a layout of a model."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import wraps
from typing import Any, TypeVar

from helix_sim.core.kept import kept_property
from helix_sim.core.layout import Layout
from helix_sim.core.numeric import Column
from helix_sim.specs.drafter import Drafter
from helix_sim.specs.model import Model
from helix_sim.specs.precision import Precision


@dataclass(frozen=True, kw_only=True)
class StepInput:
    """What an equation may look at: one step of `model` in `precision`, sharded as `layout`.

    Every attention group runs `batch` requests of its layout, each with `query_tokens` new tokens over `context` cached
    ones, the new ones among them. Decoding is one new token, verifying a draft a few, a chunk of prefill thousands. The
    KV cache is read once a request; all else sees requests times new tokens. `drafter` is what drafts beside the step.
    in_turns: whether the batch is one of two that take turns.
    """

    model: Model
    precision: Precision
    layout: Layout
    context: Column
    query_tokens: Column = 1
    drafter: Drafter | None = None
    in_turns: bool = False
    known: dict[Any, Any] = field(default_factory=dict, init=False, repr=False, compare=False)

    @kept_property
    def tokens(self) -> Any:
        """New tokens of one attention group in this step: requests · new tokens of each."""
        return self.layout.batch * self.query_tokens

    @kept_property
    def stage_tokens(self) -> Any:
        """New tokens of all attention groups of a pipeline stage: what its experts see."""
        return self.tokens * self.layout.dp

    @kept_property
    def activation_bytes(self) -> float:
        """Bytes of one activation value in HBM."""
        return self.precision.bytes_of("activations")

    @kept_property
    def wire_bytes(self) -> float:
        """Bytes of one activation value on a link."""
        return self.precision.bytes_of("wire")


Of = TypeVar("Of", bound=Callable[..., Any])


def once_a_step(equation: Of) -> Of:
    """An equation of (step, kind) whose result is kept for the step: several ops ask for it."""

    @wraps(equation)
    def kept(s: StepInput, *kind: Any) -> Any:
        key = (equation, *map(id, kind))
        if key not in s.known:
            s.known[key] = equation(s, *kind), kind  # while the kind is kept, no other has its id
        return s.known[key][0]

    return kept  # type: ignore[return-value]
