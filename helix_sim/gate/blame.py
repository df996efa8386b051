"""Stored layouts evaluated by the code of today: which op's time or which kind of memory moved, what became of each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from helix_sim.core.layout import AXES, NONE, Layout
from helix_sim.core.units import GIGA, MICRO
from helix_sim.feasibility import Reason, sentences
from helix_sim.gate.baseline import Baseline, Measured, Row, measure, stacked
from helix_sim.search.plan import Plan
from helix_sim.step import evaluate_step

DUST = 1e-9
"""Share of the latency, or of the memory, below which a move is rounding: hidden time is a difference of sums."""

BATCH_WEIGHT = 0.1
"""What a doubling of the batch counts, beside one of a width, in how far apart two layouts are."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TermMove:
    """A term of the latency or of the memory that moved, at the stored layout where it matters most.

    name: op.* and hidden.* (time that overlap hides of an op) in µs, memory.* in GB (memory.room: the most
    that a GPU may fill), total.ttl, total.throughput.
    share: the move over that layout's latency (or resident memory); positive is slower, or more memory.
    layouts: stored layouts at which it moved, `of` those that have it.
    """

    name: str
    before: float
    after: float
    share: float
    layout: str
    layouts: int
    of: int

    @property
    def label(self) -> str:
        """The op's or the kind's own name."""
        kind, _, name = self.name.partition(".")
        return {"op": name, "total": name}.get(kind, f"{name} ({kind})")

    @property
    def unit(self) -> str:
        """Of before and after."""
        kind = self.name.partition(".")[0]
        return "GB" if kind == "memory" else "tokens/s/GPU" if self.name == "total.throughput" else "µs"


@dataclass(frozen=True, slots=True, kw_only=True)
class Term:
    """One term at every kept layout: stored, today, the move as a share of the whole, and whether it is a move."""

    before: npt.NDArray[Any]
    after: npt.NDArray[Any]
    share: npt.NDArray[Any]
    moved: npt.NDArray[np.bool_]


@dataclass(frozen=True, slots=True, kw_only=True)
class Today:
    """Every stored row as the code of today evaluates it, beside what was stored.

    kept: places of the rows that are stored with their terms, and whose shape can run today; each of `terms` has a
    value for each of them. fillable_GB: the most that a GPU of a stored layout may fill.
    """

    baseline: Baseline
    planned: Plan
    rtol: float
    fillable_GB: float
    flags: npt.NDArray[Any]
    user: npt.NDArray[Any]
    gpu: npt.NDArray[Any]
    kept: npt.NDArray[np.intp]
    terms: Mapping[str, Term]
    places: Mapping[tuple[int, Layout], int]

    def moves(self) -> list[TermMove]:
        """Terms that moved, the largest share first; totals only where no op explains them.

        Where an op is only in the baseline, or only in the code of today (it was renamed, split or merged), the totals
        judge, and the ops explain.
        """
        found = [self._move(name) for name, term in self.terms.items() if term.moved.any()]
        totals = [move for move in found if move.name.startswith("total.")]
        parts = sorted((move for move in found if move not in totals), key=lambda move: -abs(move.share))
        if self._ops_differ():
            parts = parts if totals else [move for move in parts if not _is_time(move.name)]
        elif any(_is_time(move.name) for move in parts):
            totals = []
        return [*parts, *totals, *self._room()]

    def _room(self) -> list[TermMove]:
        """The most memory that a GPU of the stored layouts may fill, if it moved: capacity less what stays free."""
        before, after = float(self.baseline.header["memory_to_fill_GB"]), self.fillable_GB
        if np.isclose(before, after, rtol=self.rtol, atol=0):
            return []
        share, count = (before - after) / before, len(self.baseline.rows)
        return [
            TermMove(
                name="memory.room",
                before=before,
                after=after,
                share=share,
                layout="every GPU",
                layouts=count,
                of=count,
            )
        ]

    def _ops_differ(self) -> bool:
        return any(_on_one_side(term) for name, term in self.terms.items() if _is_time(name))

    def _move(self, name: str) -> TermMove:
        term = self.terms[name]
        worst = int(np.where(term.moved, np.abs(term.share), -1).argmax())
        row = self.baseline.rows[self.kept[worst]]
        return TermMove(
            name=name,
            before=float(np.nan_to_num(term.before[worst])),
            after=float(np.nan_to_num(term.after[worst])),
            share=float(term.share[worst]),
            layout=f"{row.family}: {layout_text(row.layout.columns())}",
            layouts=int(term.moved.sum()),
            of=int(np.logical_or(np.nan_to_num(term.before), np.nan_to_num(term.after)).sum()),
        )

    def fate(self, place: int) -> tuple[str, str]:
        """What became of a stored layout, and why: infeasible and the reasons, slower and the ops, or unsearched."""
        was, user = self.baseline.rows[place], self.user[place]
        if self.flags[place]:
            return "infeasible", self._reasons(was, int(self.flags[place]))
        if not user >= was.tokens_per_s_user * (1 - self.rtol):
            return "slower", f"TTL {was.tokens_per_s_user / user - 1:+.3%}: {self.culprits(place)}"
        if not self.gpu[place] >= was.tokens_per_s_gpu * (1 - self.rtol):
            return "slower", "TTL as it was, but its users or GPUs are counted otherwise"
        return "unsearched", "it would do as well as it did, but the search no longer finds it"

    def _reasons(self, was: Row, flags: int) -> str:
        """A layout's reasons of today, each by its name and with its sentence."""
        p, memory, note = self.planned, None, ""
        if flags == Reason.OUT_OF_MEMORY.flag:
            memory = evaluate_step(p.setting, was.layout, was.context).memory
            if not np.isclose(float(memory.resident_bytes) / GIGA, was.resident_GB, rtol=self.rtol, atol=0):
                note = f" (it needed {was.resident_GB:.1f} GB)"
        texts = sentences(flags, p.model, p.machine, was.layout, was.context, memory)
        names = [reason.name for reason in Reason if flags & reason.flag]
        return "; ".join(f"{name}: {text}{note}" for name, text in zip(names, texts, strict=True))

    def gain(self, context: int, point: Mapping[str, Any]) -> str:
        """Why a point of today beats the stored frontier."""
        place = self.places.get((context, Layout(**{name: point[name] for name in AXES})))
        if place is not None:
            before = self.baseline.rows[place].tokens_per_s_user
            return f"TTL {before * point['ttl_s'] - 1:+.3%}: {self.culprits(place)}"
        needs, had = point["resident_bytes"] / GIGA, float(self.baseline.header["memory_to_fill_GB"])
        if needs > had * (1 + self.rtol):
            return f"it did not fit: it needs {needs:.1f} GB, and a GPU had at most {had:.1f} GB to fill"
        return f"not on the stored frontier; near it: {self._culprits_at(self._nearest(point))}"

    def culprits(self, place: int) -> str:
        """The ops that moved most at a stored layout, or at the nearest one that is kept with its terms."""
        own = np.flatnonzero(self.kept == place)
        at = int(own[0]) if own.size else self._nearest(self.baseline.rows[place].layout.columns())
        return self._culprits_at(at)

    def _culprits_at(self, at: int | None) -> str:
        if at is None:
            return "no stored layout has its ops' times"
        moved = [(name, term) for name, term in self.terms.items() if _is_time(name) and term.moved[at]]
        moved.sort(key=lambda item: -abs(item[1].share[at]))
        texts = [
            f"{_spoken(name)} {_digits(term.before[at])} → {_digits(term.after[at])} µs" for name, term in moved[:2]
        ]
        return ", ".join(texts) or "no op's time moved there"

    def _nearest(self, point: Mapping[str, Any]) -> int | None:
        """The kept layout, by its place in `kept`, that is the fewest doublings of widths away."""
        if not self.kept.size:
            return None
        kept = stacked([self.baseline.rows[place].layout for place in self.kept])
        weight = {name: BATCH_WEIGHT if name == "batch" else 1.0 for name in AXES}
        apart = sum(
            weight[name] * np.abs(np.log2(np.maximum(getattr(kept, name), 1) / max(point[name], 1))) for name in AXES
        )
        return int(np.argmin(apart))


def layout_text(point: Mapping[str, Any]) -> str:
    """A layout as a few words: GPUs, widths other than one, chunks, batch."""
    widths = "".join(f"{axis}{point[axis]} " for axis in AXES if axis != "batch" and point[axis] != NONE.get(axis, 1))
    gpus = point["dp"] * point["tpa"] * point["kvp"] * point["pp"]
    return f"{gpus} GPU{'s' * (gpus > 1)} {widths}batch {point['batch']}"


def _is_time(name: str) -> bool:
    return name.startswith(("op.", "hidden."))


def _spoken(name: str) -> str:
    kind, _, op = name.partition(".")
    return f"hidden of {op}" if kind == "hidden" else op


def _digits(value: float) -> str:
    """Four digits or more, without an exponent: what makes a move of a part in a thousand visible."""
    return f"{value:,.0f}" if abs(value) >= 10_000 else f"{np.nan_to_num(value):,.4g}"


def _on_one_side(term: Term) -> bool:
    """Whether a term that takes time is known to the baseline alone, or to the code of today alone."""
    known = [not np.isnan(values).all() for values in (term.before, term.after)]
    return known[0] != known[1] and bool(np.any(np.nan_to_num(term.before) + np.nan_to_num(term.after)))


# --- Building it -----------------------------------------------------------------------------------------------------


def evaluate_today(baseline: Baseline, planned: Plan, rtol: float) -> Today:
    """Evaluate every stored row of a baseline with the inputs and the code of today."""
    rows = baseline.rows
    parts = []
    for context in planned.sweep.contexts:
        here = np.array([place for place, row in enumerate(rows) if row.context == context], dtype=np.intp)
        if here.size:
            parts.append((here, measure(planned, context, stacked([rows[int(place)].layout for place in here]))))
    user, gpu, flags, fillable = (
        _gathered(parts, name, len(rows)) for name in ("tokens_per_s_user", "tokens_per_s_gpu", "flags", "fillable_GB")
    )
    has_terms = np.array([bool(row.terms) for row in rows], dtype=bool)
    kept = np.flatnonzero(has_terms & np.isfinite(user))
    return Today(
        baseline=baseline,
        planned=planned,
        rtol=rtol,
        fillable_GB=float(np.nanmax(fillable)) if np.isfinite(fillable).any() else planned.machine.memory_bytes / GIGA,
        flags=flags.astype(np.int64),
        user=user,
        gpu=gpu,
        kept=kept,
        terms=_terms(
            [rows[int(place)] for place in kept], _today_terms(parts, len(rows), kept), user[kept], gpu[kept], rtol
        ),
        places={(row.context, row.layout): place for place, row in enumerate(rows)},
    )


Parts = list[tuple[npt.NDArray[np.intp], Measured]]


def _gathered(parts: Parts, column: str, count: int) -> npt.NDArray[Any]:
    whole = np.full(count, np.nan)
    for here, part in parts:
        whole[here] = getattr(part, column)
    return whole


def _today_terms(parts: Parts, count: int, kept: npt.NDArray[np.intp]) -> dict[str, npt.NDArray[Any]]:
    """Every term of today at the kept rows."""
    found: dict[str, npt.NDArray[Any]] = {}
    for here, part in parts:
        for name, values in part.terms.items():
            found.setdefault(name, np.full(count, np.nan))[here] = values
    return {name: values[kept] for name, values in found.items()}


def _terms(
    rows: Sequence[Row], now: Mapping[str, npt.NDArray[Any]], user: Any, gpu: Any, rtol: float
) -> dict[str, Term]:
    """Each stored term beside its value of today; a term that one side does not know is NaN there."""
    nothing = np.full(len(rows), np.nan)
    ttl_us = np.array([1 / row.tokens_per_s_user for row in rows]) / MICRO
    throughput = np.array([row.tokens_per_s_gpu for row in rows])
    resident = np.array([row.resident_GB for row in rows])
    names = dict.fromkeys([*(rows[0].terms if rows else ()), *now])
    found = {}
    for name in names:
        before = np.array([row.terms.get(name, np.nan) for row in rows])
        scale = resident if name.startswith("memory.") else ttl_us
        sign = -1 if name.startswith("hidden.") else 1
        found[name] = _term(before, now.get(name, nothing), scale, sign, rtol)
    found["total.ttl"] = _term(ttl_us, 1 / user / MICRO, ttl_us, 1, rtol)
    found["total.throughput"] = _term(throughput, gpu, throughput, -1, rtol)
    return found


def _term(before: Any, after: Any, scale: Any, sign: int, rtol: float) -> Term:
    was, now = np.nan_to_num(before), np.nan_to_num(after)
    limit = np.maximum(rtol * np.maximum(np.abs(was), np.abs(now)), DUST * scale)
    return Term(before=before, after=after, share=sign * (now - was) / scale, moved=np.abs(now - was) > limit)
