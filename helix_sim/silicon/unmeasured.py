"""How far off the constants of a timing are where no kernel was measured: asked of the kernels that were.

Every measured cell of GEMMs, attention and experts is timed by its timing's constants alone, as if its class were not
there. What is measured is mostly slower: no constant knows of a kernel's fill, tiles and waves. The ninetieth centile
of ln(measured / by the constants) is how far above them an op without a class may lie, `Unknowns.unmeasured`:

    from helix_sim.silicon import unmeasured
    unmeasured.ninetieth(unmeasured.errors(*name) for name in (("gb200", "trtllm"), ("h200", "sglang")))
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import numpy as np

from helix_sim.silicon.measured_kernels import measurements
from helix_sim.silicon.systems import machine_of
from helix_sim.specs.load import load_timing
from helix_sim.timing.roofline import op_time

if TYPE_CHECKING:
    import pandas as pd

KINDS = ("attention", "gemm", "batched-gemm", "grouped-gemm")
"""How the names of the classes begin that tell of an op of a step; a pointwise kernel is mostly its launch."""


def errors(system: str, framework: str) -> pd.DataFrame:
    """Every measured cell of one framework on one system, a row each: its class, and log.

    log: ln(measured / what the constants of the shipped timing say without its classes).
    """
    import pandas as pd

    machine = machine_of(system)
    constants = load_timing(f"{system}-{framework}").model_copy(update={"calibration": None})
    found = []
    for each in measurements(system, framework):
        if each.name.startswith(KINDS):
            modelled_s: Any = sum(op_time(work, machine, constants).seconds for work in each.works)
            found.append(pd.DataFrame({"class": f"{framework} {each.name}", "log": np.log(each.seconds / modelled_s)}))
    return pd.concat(found, ignore_index=True)


def ninetieth(tables: Iterable[pd.DataFrame]) -> float:
    """The ninetieth centile of log over the classes of several tables, each class alike however many cells it has.

    >>> import pandas as pd
    >>> small = pd.DataFrame({"class": "gemm", "log": [0.1, 0.2]})
    >>> large = pd.DataFrame({"class": "attention", "log": [0.3] * 98 + [1.0] * 2})
    >>> ninetieth([small, large]), ninetieth([small])
    (0.3, 0.2)
    """
    groups = [part["log"].to_numpy() for table in tables for _, part in table.groupby("class")]
    logs, weights = np.concatenate(groups), np.concatenate([np.full(len(part), 1 / len(part)) for part in groups])
    order = np.argsort(logs)
    share = np.cumsum(weights[order]) / len(groups)
    return float(logs[order][np.searchsorted(share, 0.9 - 1e-12)])
