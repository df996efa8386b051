"""A frame of layouts in, a frame of times, memory and reasons out: the step's equations over columns."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from helix_sim.core.errors import SpecError
from helix_sim.core.layout import AXES, NONE, Layout
from helix_sim.core.text import said
from helix_sim.core.units import parse_size
from helix_sim.feasibility import FLAGS, memory_reason, shape_reasons
from helix_sim.one_layout import checked_step
from helix_sim.specs.draft import Draft
from helix_sim.specs.drafter import draft_problems
from helix_sim.specs.machine import Machine
from helix_sim.specs.model import Model
from helix_sim.specs.precision import Precision
from helix_sim.specs.setting import Setting
from helix_sim.specs.timing import Timing
from helix_sim.specs.values import LIMIT
from helix_sim.step import evaluate_step, setting_of

if TYPE_CHECKING:
    import pandas as pd

ROWS = 16384
"""Rows that are evaluated at a time: their columns stay in cache. No result depends on it."""

SIZES = (*AXES, "context", "query_tokens")
"""Columns of a frame of layouts."""

Columns = dict[str, npt.NDArray[Any]]


def evaluate(
    setting: Setting, layouts: pd.DataFrame, *, context: int | str | None = None, query_tokens: int | None = None
) -> pd.DataFrame:
    """Times, memory and reasons of a table of layouts, a row each, in the order and with the index of `layouts`.

    layouts: columns batch, tpa, kvp, dp, tpf, ep, pp, chunks (whole numbers; 1 where a column is missing, and tpf what
    dp·tpa·kvp/ep leaves), draft_tokens (0 where it is missing), context (cached tokens of each request, unless given
    for all) and query_tokens (new tokens of each request, 1 unless given); other columns are ignored.

    Returns columns gpus, users, ttl_s [s], tokens_per_s_user, tokens_per_s_gpu, on a measured timing also ttl_low_s,
    ttl_high_s and extrapolated; weights_bytes, kv_cache_bytes, activation_bytes, resident_bytes of the fullest GPU; and
    reasons: names of why a row cannot run, comma between, empty where it runs. Times are NaN where it does not run,
    memory where its widths are impossible. Every row equals `decode_step` of its layout. SpecError where a column holds
    something else than whole numbers from 1 to 10^12.
    """
    import pandas as pd

    context = _sizes(context)
    given = {name: np.ascontiguousarray(_as_numbers(layouts[name].to_numpy())) for name in SIZES if name in layouts}
    given |= {
        name: np.full(len(layouts), value)
        for name, value in (("context", context), ("query_tokens", query_tokens))
        if value is not None
    }
    columns = _checked(given, len(layouts))
    if problems := draft_problems(setting.drafter, setting.model, columns["draft_tokens"]):
        raise SpecError(problems)
    parts = [
        _evaluated(setting, {name: column[start : start + ROWS] for name, column in columns.items()})
        for start in range(0, len(layouts), ROWS)
    ]
    empty = _evaluated(setting, columns) if not parts else {}
    found = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]} if parts else empty
    flags = found.pop("flags")
    return pd.DataFrame({**found, "reasons": _names(flags)}, index=layouts.index)


def decode_step(
    model: Model | str | Path,
    machine: Machine | str | Path,
    layout: Layout,
    context: Any,
    *,
    query_tokens: Any = 1,
    precision: Precision | None = None,
    timing: Timing | str | Path | None = None,
    draft: Draft | str | Path | None = None,
) -> Any:
    """One step of one layout, or a table of them where a width, the context or the query tokens are a list.

    model, machine, timing: records, or their names or files; the `paper` timing unless given. context: tokens in each
    request's KV cache, the new ones among them, as a number or as text such as "1M". query_tokens: new tokens of each
    request; 1 decodes. precision: the checkpoint's number formats unless given; `model.formats["nvfp4"]` is what
    `--formats nvfp4` says. draft: what drafts the layout's `draft_tokens`, a record, a shipped name such as
    deepseek-r1-mtp, or a file; nothing unless given.

    Returns a Step; LayoutError with every reason where the layout cannot run. With lists or arrays, of one length or
    of one element, the table that `evaluate` returns of them: a row each, with its reasons where it cannot run.
    """
    setting = setting_of(model, machine, timing=timing, precision=precision, draft=draft)
    sizes = {**layout.columns(), "context": _sizes(context), "query_tokens": _sizes(query_tokens)}
    if all(isinstance(size, int) or np.ndim(size) == 0 for size in sizes.values()):
        return checked_step(setting, layout, sizes["context"], sizes["query_tokens"])
    import pandas as pd

    try:
        columns = dict(zip(sizes, np.broadcast_arrays(*map(np.atleast_1d, sizes.values())), strict=True))
    except ValueError:
        lengths = ", ".join(f"{name} {np.size(size)}" for name, size in sizes.items() if np.ndim(size))
        raise SpecError([f"lists of different lengths do not make a table: {lengths}"]) from None
    if np.ndim(columns["batch"]) > 1:
        raise SpecError(["a list of lists makes no table of layouts; give one list, or numpy's ravel() of it"])
    return evaluate(setting, pd.DataFrame(columns))


def _sizes(given: Any) -> Any:
    """A size, or an array of them, that may be text such as 1M."""
    try:
        if isinstance(given, str):
            return parse_size(given)
        if isinstance(given, list | tuple):
            return np.array([parse_size(each) if isinstance(each, str) else each for each in given])
    except ValueError as error:
        raise SpecError([str(error)]) from None
    return given


def _as_numbers(column: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """A column of a table with sizes as text read; itself where it holds something else, which is refused by row."""
    if column.dtype.kind not in "OU":
        return column
    try:
        return np.array([parse_size(each) for each in column])
    except ValueError:
        return column


def _checked(given: Columns, rows: int) -> Columns:
    """Every column of a frame as whole numbers, defaults where one is missing."""
    if "context" not in given:
        raise SpecError(["the table has no column context; add it, or give context= for all rows"])
    problems = []
    for name, column in given.items():
        numbers = column.dtype.kind in "iuf"
        least = NONE.get(name, 1)
        good = (column >= least) & (column <= LIMIT) if numbers else np.zeros(rows, bool)
        if column.dtype.kind == "f":
            good &= column == np.floor(column)
        if not good.all():
            row = int(np.argmin(good))
            number = f"a whole number from {least} to 10^12"
            problems.append(f"{name}: row {row} holds {said(column[row])}; it must be {number}")
    if problems:
        raise SpecError(problems)
    one = np.ones(rows, dtype=np.int64)
    whole = {name: column.astype(np.int64) for name, column in given.items()}
    widths: dict[str, Any] = {
        name: whole.get(name, None if name == "tpf" else NONE.get(name, 1) * one) for name in AXES
    }
    columns: dict[str, Any] = Layout(**widths).columns()
    columns |= {name: whole.get(name, one) for name in ("context", "query_tokens")}
    if (both := (columns["draft_tokens"] > 0) & (columns["query_tokens"] > 1)).any():
        raise SpecError(
            [f"query_tokens: row {int(np.argmax(both))} has draft_tokens, which are new tokens: leave it at 1"]
        )
    if (beyond := columns["query_tokens"] > columns["context"]).any():
        raise SpecError([f"query_tokens: row {int(np.argmax(beyond))} has more than its context, which counts them"])
    return columns


def _evaluated(setting: Setting, columns: Columns) -> dict[str, npt.NDArray[Any]]:
    """Some rows: those evaluated that can be, and blank where they cannot."""
    rows, sizes = len(columns["context"]), {name: _alike(column) for name, column in columns.items()}
    x = Layout(**{name: sizes[name] for name in AXES})
    flags = np.array(np.broadcast_to(shape_reasons(setting.model, setting.machine, x, sizes["context"]), rows))
    sound = np.flatnonzero(flags == 0)
    if len(sound) < rows:
        sizes = {name: size[sound] if isinstance(size, np.ndarray) else size for name, size in sizes.items()}
    safe = Layout(**{name: sizes[name] for name in AXES})
    step = evaluate_step(setting, safe, sizes["context"], sizes["query_tokens"])

    def spread(values: Any, blank: Any = np.nan) -> npt.NDArray[Any]:
        found = np.full(rows, blank)
        found[sound] = values
        return found

    memory = step.memory
    flags[sound] = memory_reason(memory)
    runs, ttl_s = flags == 0, spread(step.ttl_s)
    ttl_s[~runs] = np.nan
    measured: dict[str, Any] = {}
    if setting.timing.calibration is not None:
        low, high = (np.where(runs, spread(end), np.nan) for end in step.ttl_interval_s)
        extrapolated = spread(step.rests_on_extrapolation, False) & runs
        measured = {"ttl_low_s": low, "ttl_high_s": high, "extrapolated": extrapolated}
    return {
        "gpus": np.broadcast_to(x.gpus, rows),
        "users": np.broadcast_to(x.users, rows),
        "ttl_s": ttl_s,
        "tokens_per_s_user": columns["query_tokens"] / ttl_s,
        "tokens_per_s_gpu": columns["query_tokens"] * x.users / x.gpus / ttl_s,
        **measured,
        "weights_bytes": spread(memory.weights),
        "kv_cache_bytes": spread(memory.kv_cache),
        "activation_bytes": spread(memory.activations),
        "resident_bytes": spread(memory.resident_bytes),
        "flags": flags,
    }


def _alike(column: npt.NDArray[Any]) -> Any:
    """A column, or the one number that it has in every row: what a frame leaves out costs no column of ones."""
    return int(column[0]) if len(column) and (column == column[0]).all() else column


def _names(flags: npt.NDArray[Any]) -> pd.Categorical[str]:
    """Names of each row's reasons."""
    import pandas as pd

    distinct = np.flatnonzero(np.bincount(flags, minlength=1))
    place = np.searchsorted(distinct, flags)
    texts = [", ".join(reason.name for reason, flag in FLAGS.items() if found & flag) for found in distinct.tolist()]
    return pd.Categorical.from_codes(place, categories=pd.Index(texts))
