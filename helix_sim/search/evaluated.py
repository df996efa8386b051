"""What blocks of a sweep have shown: frontiers of what runs, counts of what was dropped; they add up in any order."""

from __future__ import annotations

from dataclasses import dataclass, field

from helix_sim.search.pareto import Frontier, merge

Frontiers = dict[int, dict[str, Frontier]]
"""A frontier for each context and family."""

Dropped = dict[str, dict[str, int]]
"""How many layouts of each family were dropped, by their first reason."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Evaluated:
    """What one block, or several, have shown: how many layouts, the frontiers of those that run, those dropped."""

    layouts: int = 0
    frontiers: Frontiers = field(default_factory=dict)
    dropped: Dropped = field(default_factory=dict)

    def __add__(self, other: Evaluated) -> Evaluated:
        frontiers = {context: dict(families) for context, families in self.frontiers.items()}
        for context, families in other.frontiers.items():
            here = frontiers.setdefault(context, {})
            for name, found in families.items():
                here[name] = merge([here[name], found], name) if name in here else found
        dropped = {name: dict(reasons) for name, reasons in self.dropped.items()}
        for name, reasons in other.dropped.items():
            counts = dropped.setdefault(name, {})
            for reason, count in reasons.items():
                counts[reason] = counts.get(reason, 0) + count
        return Evaluated(layouts=self.layouts + other.layouts, frontiers=frontiers, dropped=dropped)

    @property
    def dropped_layouts(self) -> int:
        """Layouts that cannot run."""
        return sum(sum(reasons.values()) for reasons in self.dropped.values())

    @property
    def frontier_points(self) -> int:
        """Points of all frontiers."""
        return sum(len(found) for families in self.frontiers.values() for found in families.values())


class Total:
    """The sum of many blocks, added in pairs like a tree, so that adding stays cheap; any order gives the same sum."""

    def __init__(self) -> None:
        self._levels: list[Evaluated | None] = []

    def add(self, part: Evaluated) -> None:
        """Take one more."""
        for level, waiting in enumerate(self._levels):
            if waiting is None:
                self._levels[level] = part
                return
            part, self._levels[level] = waiting + part, None
        self._levels.append(part)

    @property
    def sum(self) -> Evaluated:
        """All that was taken so far."""
        return sum((part for part in self._levels if part is not None), Evaluated())
