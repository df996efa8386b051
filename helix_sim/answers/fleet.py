"""GPUs filled with replicas of layouts: how many fit, and which mix of them decodes most tokens together.

Replicas serve requests of their own and share nothing, so that users and tokens add up. A replica keeps the speed that
it was evaluated with: it starts at the edge of an NVLink domain if it is larger than one, and stays inside one if not.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from helix_sim.core.numeric import ceil_div

Mix = dict[int, int]
"""How many replicas there are of each size, by its place in the list of sizes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Fleet:
    """GPUs to fill: `total` of them in NVLink domains of `domain`, the last of which may be smaller."""

    total: int
    domain: int

    def replicas(self, gpus: Any) -> Any:
        """Replicas of a layout of that many GPUs (or of a column of layouts) that fit; 0 where none does.

        >>> Fleet(total=144, domain=72).replicas(np.array([8, 52, 64, 100, 144, 145])).tolist()
        [18, 2, 2, 1, 1, 0]
        """
        gpus = np.asarray(gpus)
        inside = self.total // self.domain * (self.domain // gpus) + self.total % self.domain // gpus
        each = ceil_div(gpus, self.domain) * self.domain
        across = np.where(gpus <= self.total, (self.total - gpus) // each + 1, 0)
        return np.where(gpus <= self.domain, inside, across)

    def best_mix(self, sizes: Sequence[int], rates: Sequence[float]) -> Mix:
        """Replicas of each size, by its place in `sizes`, that decode most tokens/s together; empty where none fits.

        sizes: GPUs of a replica. rates: tokens/s of one. Every mix is tried that packs domains by the rule above, by
        the best of each number of GPUs in a domain, and then of each number of domains.

        >>> Fleet(total=72, domain=72).best_mix([64, 8, 52], [640.0, 60.0, 540.0])
        {0: 1, 1: 1}
        """
        inside = [(place, size) for place, size in enumerate(sizes) if size <= self.domain]
        across = [(place, size) for place, size in enumerate(sizes) if self.domain < size <= self.total]
        packed: list[tuple[float, Mix]] = [(0.0, {})]
        for left in range(1, min(self.domain, self.total) + 1):
            fits = [_with(packed[left - size], place, rates) for place, size in inside if size <= left]
            packed.append(max([packed[left - 1], *fits], key=lambda each: each[0]))
        filled: list[tuple[float, Mix]] = [packed[self.total % self.domain]]  # from the last, smaller domain on
        for domains in range(1, self.total // self.domain + 1):
            gpus = domains * self.domain + self.total % self.domain
            options = [(packed[self.domain], filled[domains - 1], NOTHING)]
            for place, size in across:
                if size > gpus:
                    continue
                taken = ceil_div(size, self.domain)
                rest, after = (taken * self.domain - size, filled[domains - taken]) if taken <= domains else (
                    gpus - size, NOTHING)  # fmt: skip
                options.append((packed[rest], after, (rates[place], {place: 1})))
            within, before, replica = max(options, key=lambda each: sum(part[0] for part in each))
            filled.append(_both(_both(within, before), replica))
        return dict(sorted(filled[-1][1].items()))


NOTHING: tuple[float, Mix] = (0.0, {})
"""No replica."""


def _with(found: tuple[float, Mix], place: int, rates: Sequence[float]) -> tuple[float, Mix]:
    """A mix with one replica more."""
    return _both(found, (rates[place], {place: 1}))


def _both(one: tuple[float, Mix], other: tuple[float, Mix]) -> tuple[float, Mix]:
    """Two mixes beside each other."""
    return one[0] + other[0], {place: one[1].get(place, 0) + other[1].get(place, 0) for place in one[1] | other[1]}
