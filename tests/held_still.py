"""Numbers that no change of structure may move: recorded once, computed again, compared.

    python tests/held_still.py compare [RECORD ...]   the largest difference of each record; exit code 1 beyond 1e-12
    python tests/held_still.py record [RECORD ...]    writes records anew: say in the commit which number moved, and why

Records are tables in tests/held_still/. They hold results alone: random layouts are drawn again from their seed. Where
a change moves a number on purpose, its record moves with it in the same commit.
"""

from __future__ import annotations

import functools
import random
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pandas as pd

from helix_sim.core.layout import Layout
from helix_sim.feasibility import shape_reasons
from helix_sim.paper import reproduce
from helix_sim.search.sweep import run_sweep
from helix_sim.silicon import validate
from helix_sim.specs.load import load_machine, load_model, load_timing, shipped
from helix_sim.specs.precision import Precision
from helix_sim.specs.setting import Setting
from helix_sim.step import evaluate_step

FOLDER = Path(__file__).parent / "held_still"
MOST = 1e-12
"""The largest relative difference that is none."""


# --- Random layouts --------------------------------------------------------------------------------------------------

LAYOUTS_OF_A_TIMING = 300
MODELS = ("deepseek-r1", "kimi-k2.5", "llama-3.1-405b", "llama-3.1-70b")
MODELS += ("llama-3.1-8b", "qwen3-235b-a22b", "qwen3-32b")
MACHINES = ("gb200-nvl72", "gb300-nvl72", "b200-hgx", "h200-hgx", "h100-hgx")
BLACKWELL_FORMATS = (
    {"weights": "fp4", "kv": "fp4", "math": "fp4", "wire": "bf16"},
    {
        "weights": "nvfp4",
        "kv": "fp8",
        "math": "fp4",
        "attention_weights": "bf16",
        "projection_math": "bf16",
        "attention_math": "fp8",
        "head_weights": "bf16",
        "head_math": "bf16",
        "dispatch": "nvfp4",
        "output_weights": "nvfp4",
        "output_math": "fp4",
    },
)
HOPPER_FORMATS = (
    {
        "weights": "fp8-block",
        "kv": "bf16",
        "math": "fp8",
        "attention_math": "bf16",
        "head_weights": "bf16",
        "head_math": "bf16",
        "dispatch": "fp8-block",
    },
    {"weights": "fp8", "kv": "fp8", "math": "fp8"},
    {"weights": "bf16", "kv": "bf16", "math": "bf16"},
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """One layout of one model on one machine, to be evaluated."""

    model: str
    machine: str
    timing: str
    formats: dict[str, str]
    layout: Layout
    context: int


def outcome(case: Case) -> tuple[float, float, float, float, int] | None:
    """TTL and both ends of its interval [s], resident bytes, whether it rests on extrapolation; None if impossible."""
    model, machine, timing = load_model(case.model), load_machine(case.machine), load_timing(case.timing)
    if int(shape_reasons(model, machine, case.layout, case.context)):
        return None
    setting = Setting(model=model, machine=machine, timing=timing, precision=Precision.model_validate(case.formats))
    step = evaluate_step(setting, case.layout, case.context)
    seconds = (step.ttl_s, *step.ttl_interval_s)
    return *map(float, seconds), float(step.memory.resident_bytes), int(bool(step.rests_on_extrapolation))


def drawn(rng: random.Random, timing: str) -> Case:
    """A random layout, which need not be possible; a measured timing is drawn on the machine of its measurements."""

    def width(doublings: int) -> int:
        return 2 ** rng.randint(0, doublings) if rng.random() < 0.8 else rng.randint(1, 2**doublings)

    measured_on = [name for name in shipped("machine") if name.split("-")[0] == timing.split("-")[0]]
    machine = measured_on[0] if measured_on else rng.choice(MACHINES)
    model = rng.choice(MODELS)
    tpa, kvp, dp = width(3), width(4), width(5)
    pp = 1 if rng.random() < 0.6 else rng.randint(1, 16)
    ffn_on_one_shard = rng.random() < 0.1  # as Medha has it
    grid = dp * tpa * (1 if ffn_on_one_shard else kvp)
    divisors = [n for n in range(1, grid + 1) if grid % n == 0]
    ep = rng.choice(divisors) if rng.random() < 0.6 else 1
    batch = int(2 ** rng.uniform(0, 10))
    chunks = rng.randint(1, batch) if kvp > 1 and rng.random() < 0.4 else 1
    formats = rng.choice(HOPPER_FORMATS if machine.startswith("h") else BLACKWELL_FORMATS + HOPPER_FORMATS)
    context = int(10 ** rng.uniform(2.5, 6.5))
    layout = Layout(batch=batch, tpa=tpa, kvp=kvp, dp=dp, tpf=grid // ep, ep=ep, pp=pp, chunks=chunks)
    return Case(model=model, machine=machine, timing=timing, formats=formats, layout=layout, context=context)


def layouts(timings: Iterable[str], count: int = LAYOUTS_OF_A_TIMING) -> pd.DataFrame:
    """What the first `count` random layouts of each timing take and hold."""
    rows = []
    for timing in timings:
        rng, found = random.Random(f"held {timing}"), 0
        while found < count:
            result = outcome(drawn(rng, timing))
            if result is not None:
                rows.append((timing, *result))
                found += 1
    return pd.DataFrame(rows, columns=["timing", "ttl_s", "low_s", "high_s", "resident_bytes", "extrapolated"])


# --- Frontiers, claims, validation -----------------------------------------------------------------------------------


def frontier(sweep: str) -> pd.DataFrame:
    """Every frontier of a shipped sweep; its speeds and GPUs follow from these."""
    follows = ["gpus", "users", "tokens_per_s_user", "tokens_per_s_gpu", "usd_per_million_tokens", "joules_per_token"]
    follows += ["model", "machine", "timing", "formats"]
    return run_sweep(sweep).to_frame().drop(columns=follows)


def claims() -> pd.DataFrame:
    """The paper's claims as we find them, and with each assumption changed."""
    timing = load_timing("paper")
    found = reproduce.claims(reproduce.search(timing), timing)
    rows = [("nothing", claim["id"], claim["ours"]) for claim in (claim.record() for claim in found.claims)]
    rows += [(change, name, value) for change, varied in found.varied.items() for name, value in varied.items()]
    return pd.DataFrame(rows, columns=["changed", "claim", "ours"])


def kernels(timings: Iterable[str]) -> pd.DataFrame:
    """Errors of every measured class of timings on the rows kept out of its fit."""
    tables = [validate.kernels(*timing.split("-")).assign(timing=timing) for timing in timings]
    return pd.concat(tables, ignore_index=True)[["timing", "class", "count", "median", "mean", "bias"]]


def measured_timings() -> list[str]:
    """Names of the shipped timings that were fitted to measured kernels."""
    return [name for name in shipped("timing") if load_timing(name).calibration]


@functools.cache
def predicted() -> pd.DataFrame:
    """The published servings and their predictions."""
    return validate.end_to_end()


def servings() -> pd.DataFrame:
    """What is predicted of the published servings, in seconds; their own numbers are in the measured tables."""
    table = predicted()
    return table[[name for name in table if name.endswith("_s") and name not in ("ttft_s", "tpot_s")]]


def report() -> pd.DataFrame:
    """Every number of the tables of `validate --end-to-end`, a row a number."""
    rows = []
    for title, table in validate.report(predicted()).items():
        numbers = table.select_dtypes("number")
        names = table.drop(columns=numbers.columns).astype(str).agg(" ".join, axis=1)
        rows += [
            (title, name, column, float(value))
            for name, (_, row) in zip(names, numbers.iterrows(), strict=True)
            for column, value in row.items()
        ]
    return pd.DataFrame(rows, columns=["table", "row", "column", "value"])


# --- Records ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """A table in a file: how to compute it, of which timings, and below which size differences count absolutely."""

    compute: Callable[..., pd.DataFrame]
    timings: Callable[[], list[str]] | None = None
    floor: float = 0.0


# errors are ratios less one: what is left of a small one is no digit of it
RECORDS = {
    "layouts": Record(compute=layouts, timings=lambda: shipped("timing")),
    "frontier-deepseek-r1": Record(compute=lambda: frontier("paper-deepseek-r1")),
    "frontier-llama-3.1-405b": Record(compute=lambda: frontier("paper-llama-3.1-405b")),
    "claims": Record(compute=claims),
    "kernels": Record(compute=kernels, timings=measured_timings, floor=1.0),
    "servings": Record(compute=servings),
    "report": Record(compute=report, floor=1.0),
}


def recorded(name: str) -> pd.DataFrame:
    """A record's table, to the last digit."""
    return pd.read_csv(FOLDER / f"{name}.csv", engine="pyarrow")


def moved(name: str, column: str, today: pd.DataFrame, then: pd.DataFrame) -> npt.NDArray[np.float64]:
    """How far each row of a column is from its record, relative to the larger of both; 0 or inf where it is text."""
    if not pd.api.types.is_numeric_dtype(then[column]):
        return np.where(today[column].astype(str) == then[column].astype(str), 0.0, np.inf)
    x, y = (values[column].to_numpy(dtype=float, na_value=np.nan) for values in (today, then))
    scale = np.maximum(np.maximum(np.abs(x), np.abs(y)), RECORDS[name].floor)
    far = np.abs(x - y) / np.where(scale == 0, 1.0, scale)
    return np.where(np.isnan(x) & np.isnan(y), 0.0, np.where(np.isnan(far), np.inf, far))


def difference(name: str, today: pd.DataFrame, then: pd.DataFrame) -> tuple[float, str]:
    """The largest relative difference of a record's numbers, and where it is; inf where the tables say other things."""
    if list(today) != list(then) or len(today) != len(then):
        return np.inf, f"{len(today)} rows of {list(today)}, where {len(then)} of {list(then)} were recorded"
    worst, where = 0.0, ""
    for column in then:
        far = moved(name, column, today, then)
        if len(far) and far.max() > worst:
            row = int(far.argmax())
            worst, where = float(far.max()), f"{column} of row {row} is {today[column][row]}, was {then[column][row]}"
    return worst, where


def settled(name: str, today: pd.DataFrame, then: pd.DataFrame) -> pd.DataFrame:
    """Today's table with the recorded digits of every number that has not moved, so that a record shows what has."""
    if "timing" in today and len(today["timing"].unique()) > 1:
        old = {timing: rows.reset_index(drop=True) for timing, rows in then.groupby("timing")}
        groups = [(timing, rows.reset_index(drop=True)) for timing, rows in today.groupby("timing", sort=False)]
        return pd.concat([settled(name, rows, old[timing]) if timing in old else rows for timing, rows in groups])
    if list(today) != list(then) or len(today) != len(then):
        return today
    return today.assign(**{c: today[c].where(moved(name, c, today, then) > MOST, then[c]) for c in today})


def compare(names: list[str]) -> bool:
    """Print each record's largest difference; whether all have stood still."""
    still = True
    for name in names:
        then = recorded(name)
        of = [then["timing"].unique()] if RECORDS[name].timings else []
        worst, where = difference(name, RECORDS[name].compute(*of), then)
        still &= worst <= MOST
        print(f"{name}: {worst:.1e}{f'  {where}' if where else ''}", flush=True)
    return still


def record(names: list[str]) -> None:
    """Write records anew, of every timing that is shipped today; numbers that stand still keep their digits."""
    for name in names:
        timings = RECORDS[name].timings
        today = settled(name, RECORDS[name].compute(*([timings()] if timings else [])), recorded(name))
        today.to_csv(FOLDER / f"{name}.csv", index=False)
        print(f"wrote {FOLDER / name}.csv", flush=True)


if __name__ == "__main__":
    verb, *chosen = sys.argv[1:] or [""]
    if verb not in ("compare", "record") or not set(chosen) <= set(RECORDS):
        sys.exit(f"{__doc__}\nRECORD: {', '.join(RECORDS)}")
    if verb == "record":
        record(chosen or list(RECORDS))
    else:
        sys.exit(0 if compare(chosen or list(RECORDS)) else 1)
