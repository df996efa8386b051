"""A frame of layouts in, a frame of their times, memory and reasons out: the step's equations over columns."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from helix_sim.core.errors import SpecError
from helix_sim.core.layout import AXES, Layout
from helix_sim.core.text import said
from helix_sim.feasibility import FLAGS, memory_reason, shape_reasons
from helix_sim.specs.setting import Setting
from helix_sim.specs.values import LIMIT
from helix_sim.step import evaluate_step

if TYPE_CHECKING:
    import pandas as pd

ROWS = 8192
"""Rows that are evaluated at a time: their columns stay in cache. No result depends on it."""

SIZES = (*AXES, "context", "query_tokens")
"""Columns of a frame of layouts."""

Columns = dict[str, npt.NDArray[Any]]


def evaluate(
    setting: Setting, layouts: pd.DataFrame, *, context: int | None = None, query_tokens: int | None = None
) -> pd.DataFrame:
    """Times, memory and reasons of a table of layouts, a row each, in the order and with the index of `layouts`.

    layouts: columns batch, tpa, kvp, dp, tpf, ep, pp, chunks (whole numbers; 1 where a column is missing, and tpf what
    dp·tpa·kvp/ep leaves), context (cached tokens of each request, unless given for all) and query_tokens (new tokens of
    each request, 1 unless given); other columns are ignored.

    Returns columns gpus, users, ttl_s [s], tokens_per_s_user, tokens_per_s_gpu, on a measured timing also ttl_low_s,
    ttl_high_s and extrapolated; weights_bytes, kv_cache_bytes, activation_bytes, resident_bytes of the fullest GPU; and
    reasons: names of why a row cannot run, comma between, empty where it runs. Times are NaN where it does not run,
    memory where its widths are impossible. Every row equals `decode_step` of its layout. SpecError where a column holds
    something else than whole numbers from 1 to 10^12.
    """
    import pandas as pd

    given = {name: np.ascontiguousarray(layouts[name]) for name in SIZES if name in layouts}
    given |= {
        name: np.full(len(layouts), value)
        for name, value in (("context", context), ("query_tokens", query_tokens))
        if value is not None
    }
    columns = _checked(given, len(layouts))
    parts = [
        _evaluated(setting, {name: column[start : start + ROWS] for name, column in columns.items()})
        for start in range(0, len(layouts), ROWS)
    ]
    empty = _evaluated(setting, columns) if not parts else {}
    found = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]} if parts else empty
    flags = found.pop("flags")
    return pd.DataFrame({**found, "reasons": _names(flags)}, index=layouts.index)


def _checked(given: Columns, rows: int) -> Columns:
    """Every column of a frame as whole numbers, defaults where one is missing."""
    if "context" not in given:
        raise SpecError(["the table has no column context; add it, or give context= for all rows"])
    problems = []
    for name, column in given.items():
        numbers = column.dtype.kind in "iuf"
        good = (column >= 1) & (column <= LIMIT) if numbers else np.zeros(rows, bool)
        if column.dtype.kind == "f":
            good &= column == np.floor(column)
        if not good.all():
            row = int(np.argmin(good))
            problems.append(f"{name}: row {row} holds {said(column[row])}; it must be a whole number from 1 to 10^12")
    if problems:
        raise SpecError(problems)
    one = np.ones(rows, dtype=np.int64)
    columns = {name: given[name].astype(np.int64) if name in given else one for name in SIZES}
    if "tpf" not in given:
        columns["tpf"] = np.maximum(columns["dp"] * columns["tpa"] * columns["kvp"] // columns["ep"], 1)
    if (beyond := columns["query_tokens"] > columns["context"]).any():
        raise SpecError([f"query_tokens: row {int(np.argmax(beyond))} has more than its context, which counts them"])
    return columns


def _evaluated(setting: Setting, columns: Columns) -> dict[str, npt.NDArray[Any]]:
    """Some rows: all of them evaluated, and blanked where they cannot be."""
    x = Layout(**{name: columns[name] for name in AXES})
    context = columns["context"]
    flags = np.array(np.broadcast_to(shape_reasons(setting.model, setting.machine, x, context), context.shape))
    sound = flags == 0
    # what is impossible is evaluated as the smallest layout, and blanked: cheaper than cutting every column
    safe = x if sound.all() else Layout(**{name: np.where(sound, columns[name], 1) for name in AXES})
    step = evaluate_step(setting, safe, context, columns["query_tokens"])
    memory, resident = step.memory, step.memory.resident_bytes
    flags |= sound * memory_reason(memory)
    runs, nan = flags == 0, np.nan
    measured: dict[str, Any] = {}
    if setting.timing.calibration is not None:
        low, high = step.ttl_interval_s
        extrapolated = np.logical_and(step.rests_on_extrapolation, runs)
        measured = {"ttl_low_s": np.where(runs, low, nan), "ttl_high_s": np.where(runs, high, nan)}
        measured |= {"extrapolated": extrapolated}
    ttl_s = np.where(runs, step.ttl_s, nan)
    return {
        "gpus": x.gpus,
        "users": x.users,
        "ttl_s": ttl_s,
        "tokens_per_s_user": columns["query_tokens"] / ttl_s,
        "tokens_per_s_gpu": columns["query_tokens"] * x.users / x.gpus / ttl_s,
        **measured,
        "weights_bytes": np.where(sound, memory.weights, nan),
        "kv_cache_bytes": np.where(sound, memory.kv_cache, nan),
        "activation_bytes": np.where(sound, memory.activations, nan),
        "resident_bytes": np.where(sound, resident, nan),
        "flags": flags,
    }


def _names(flags: npt.NDArray[Any]) -> pd.Categorical[str]:
    """Names of each row's reasons."""
    import pandas as pd

    distinct = np.flatnonzero(np.bincount(flags, minlength=1))
    place = np.searchsorted(distinct, flags)
    texts = [", ".join(reason.name for reason, flag in FLAGS.items() if found & flag) for found in distinct.tolist()]
    return pd.Categorical.from_codes(place, categories=pd.Index(texts))
