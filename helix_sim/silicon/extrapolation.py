"""How far a fit may be trusted beyond its table: classes fitted to the small cells alone, and asked for the large ones.

Each size that a class was measured over (`KernelClass.largest`: tokens, rows, ranks, payload, …) is cut at a fraction
of its largest. The class is fitted to what lies below, and its errors above are told apart by their distance in
doublings. What these errors have beyond the fit's own spread grows with the distance: a width for each doubling, which
an interval adds in squares where an op lies beyond everything measured. It comes from tables of kernels alone; no
serving sets it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from helix_sim.silicon.fit import Measured, fit
from helix_sim.silicon.measured_kernels import measurements
from helix_sim.silicon.systems import machine_of
from helix_sim.timing.kernel_shapes import gpu_of
from helix_sim.timing.uncertainty import size_of

if TYPE_CHECKING:
    import pandas as pd

CUT = 8
"""Cells above an eighth of the largest size are asked for."""
FEWEST = 20
"""Cells on either side of the cut; classes and sizes with fewer tell nothing."""
CENTILE = 80


def errors(system: str, framework: str) -> pd.DataFrame:
    """Errors of every class beyond a cut, a row a cell: class, size, doublings beyond the cut, log and own.

    log: ln(measured / modelled). own: the spread of the same fit inside the cut, half of its 80 % interval.
    """
    import pandas as pd

    found = [part for each in measurements(system, framework) for part in _of_class(each, system)]
    return pd.concat(found, ignore_index=True)


def _of_class(measured: Measured, system: str) -> Iterator[pd.DataFrame]:
    import pandas as pd

    machine = machine_of(system)
    for name, largest in measured.largest.items():
        size = np.broadcast_to(np.asarray(size_of(measured.works[0], name), dtype=float), measured.seconds.shape)
        above = size > largest / CUT
        if above.sum() < FEWEST or (~above).sum() < FEWEST:
            continue
        fitted = fit(replace(measured, held=above), gpu_of(machine), machine.flops_per_s, starts=1)
        logs = fitted.log_residuals
        low, high = np.quantile(logs[~above], [0.1, 0.9])
        doublings = np.log2(size[above] / size[~above].max())
        yield pd.DataFrame(
            {
                "class": measured.name,
                "size": name,
                "doublings": doublings,
                "log": logs[above],
                "own": max((high - low) / 2, 1e-3),
            }
        )


def width_per_doubling(table: pd.DataFrame) -> float:
    """The width w of an 80 % interval for each doubling: 80 % of |log| lie within √(own² + (w·doublings)²).

    Every class and size counts alike, however many cells it has.

    >>> import pandas as pd
    >>> cells = {"class": "gemm", "size": "rows", "doublings": 2.0, "log": [0.1, -0.5, 0.3, 0.5, 0.2], "own": 0.3}
    >>> round(width_per_doubling(pd.DataFrame(cells)), 3)
    0.2
    """
    groups = [part for _, part in table.groupby(["class", "size"])]
    weights = np.concatenate([np.full(len(part), 1 / len(part)) for part in groups])
    cells: Any = {name: np.concatenate([part[name] for part in groups]) for name in ("log", "own", "doublings")}
    needed = np.sqrt(np.maximum(cells["log"] ** 2 - cells["own"] ** 2, 0.0)) / cells["doublings"]
    order = np.argsort(needed)
    share = np.cumsum(weights[order]) / weights.sum()
    return float(needed[order][np.searchsorted(share, CENTILE / 100 - 1e-12)])
