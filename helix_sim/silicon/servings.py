"""Judged by one's own servings: a CSV file of measured decode steps, each beside its prediction, and where they part.

A row says its system, framework, layout, formats, context, batch and time per output token (`COLUMNS`); a file of the
public benchmark InferenceX is read as it is. Rows that a decode step cannot be held against are left out and counted.
"""

from __future__ import annotations

import io
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from helix_sim.core.errors import SpecError
from helix_sim.core.layout import Layout
from helix_sim.core.text import said
from helix_sim.silicon import aic_tables, validate
from helix_sim.silicon.calibrate import as_served
from helix_sim.silicon.systems import machine_of, systems
from helix_sim.specs.draft import Draft
from helix_sim.specs.drafter import Drafter, drafter_of
from helix_sim.specs.load import decoded, load_draft, load_model, load_timing, parse, read_bytes, shipped
from helix_sim.specs.model import Model
from helix_sim.specs.precision import Precision
from helix_sim.specs.setting import Setting, require_measured_here
from helix_sim.specs.timing import Timing
from helix_sim.specs.values import LIMIT
from helix_sim.step import Step, default_precision, evaluate_step, op_rows

if TYPE_CHECKING:
    import pandas as pd

COLUMNS = {
    "system": "the machine's short name: gb200, gb300, b200, b300, h100, h200 [name]",
    "framework": "trtllm, sglang or vllm [name]",
    "tpot_s": "time per output token after the first, as a client sees it; the median over requests [s]",
    "isl": "tokens of a prompt; with osl, unless context is given [tokens]",
    "osl": "tokens of an answer [tokens]",
    "context": "mean tokens in a request's cache; isl + osl/2 unless given [tokens]",
    "batch": "mean requests that one attention group decodes at a time, unless concurrency is given [requests]",
    "concurrency": "requests in flight, over all decode workers [requests]",
    "workers": "decode workers, each of the layout; 1 unless given [workers]",
    "ttft_s": "time to the first token; with concurrency, requests that still wait for it are not decoded [s]",
    "model": "shipped model or path of a YAML file; deepseek-r1 unless given [name]",
    "precision": "fp8 or fp4: a published checkpoint's formats; the model's first formats unless given [format]",
    **dict.fromkeys(Precision.model_fields, "number format in place of the checkpoint's [format]"),
    "tpa": "tensor-parallel width of attention; 1 unless given [GPUs]",
    "kvp": "KV-parallel width; 1 unless given [GPUs]",
    "dp": "data-parallel attention groups of a worker; 1 unless given [groups]",
    "ep": "expert-parallel width; 1 unless given [GPUs]",
    "pp": "pipeline stages; 1 unless given [stages]",
    "redundant_experts": "copies of experts; as the framework's published deployments unless given [experts]",
    "gpus": "GPUs of one worker; a row whose widths give another number is left out [GPUs]",
    "speculation": "none, or how a step drafts: mtp, eagle3; left out where no draft of that kind is shipped [name]",
    "draft_tokens": "drafts of a step; as the framework's published deployments unless given [tokens]",
    "aggregated": "yes where prefill runs on the same GPUs: left out, its time is in tpot_s [yes or no]",
    "software": "the framework's version, whose kernels are taken where tables of its time exist [text]",
    "runs": "measurements of which the row is the median; 1 unless given [runs]",
}
"""Columns of a file of servings, SI units; system, framework and tpot_s must be there, and a context and a batch."""

WIDTHS = ("tpa", "kvp", "dp", "ep", "pp")
MOST_CSV_BYTES = 2**24
MODEL = "deepseek-r1"
HUB = {name: path for path, name in reversed(validate.MODELS.items())}
"""A shipped model's published checkpoint."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Judged:
    """Measured servings beside predictions: `rows` with columns of COLUMNS and predicted_s, low_s, high_s, kind, error.

    left_out: rows that were not predicted, by the reason. apart: the worst rows' ops, by a title that says the row.
    drafting: rows that drafted, likewise and apart from the others, for their acceptance is one more assumption. pairs:
    servings that differ in drafting alone, each with its gain, TPOT without over TPOT with drafts, measured and
    predicted.
    """

    rows: pd.DataFrame
    drafting: pd.DataFrame
    pairs: pd.DataFrame
    left_out: dict[str, int]
    apart: dict[str, pd.DataFrame]


# --- Reading ---------------------------------------------------------------------------------------------------------


def read(path: Path) -> pd.DataFrame:
    """Servings of a CSV file in columns of COLUMNS; SpecError with all that is wrong with it."""
    import pandas as pd

    text = decoded(read_bytes(path, str(path), MOST_CSV_BYTES), str(path))
    try:
        given = pd.read_csv(io.StringIO(text))
    except (pd.errors.ParserError, pd.errors.EmptyDataError) as error:
        raise SpecError([f"{path}: is no CSV file: {said(str(error).strip())}"]) from None
    table = _of_inferencex(given) if set(given) >= set(INFERENCEX) else given
    unknown = [name for name in table if name not in COLUMNS]
    problems = [f"{path}: there is no column {said(str(name))}; known: {', '.join(COLUMNS)}" for name in unknown[:1]]
    problems += [f"{path}: has no column {name}" for name in ("system", "framework", "tpot_s") if name not in table]
    if "context" not in table and not {"isl", "osl"} <= set(table):
        problems.append(f"{path}: has no column context; give it, or isl and osl")
    if "batch" not in table and "concurrency" not in table:
        problems.append(f"{path}: has neither batch nor concurrency")
    for name in (
        "tpot_s",
        "isl",
        "osl",
        "context",
        "batch",
        "concurrency",
        "workers",
        "ttft_s",
        "gpus",
        "redundant_experts",
        *WIDTHS,
    ):
        if name in table and not pd.api.types.is_numeric_dtype(table[name]):
            problems.append(f"{path}: {name} holds text; every row needs a number, or nothing")
        elif name in table and (wrong := ~(table[name].isna() | table[name].between(0, LIMIT))).any():
            problems.append(f"{path}: {name}: row {int(np.argmax(wrong)) + 2} holds {table[name][np.argmax(wrong)]}")
    if not problems and not len(table):
        problems.append(f"{path}: has no rows")
    if problems:
        raise SpecError(problems)
    return table


INFERENCEX = (
    *("hardware", "framework", "precision", "spec_method", "disagg", "decode_tp", "decode_ep", "decode_dp_attention"),
    *("decode_num_workers", "num_decode_gpu", "isl", "osl", "conc", "median_tpot", "median_ttft"),
)
"""Columns by which a file of InferenceX is known."""

MEAN_LENGTH = 0.9
"""InferenceX draws lengths evenly from 0.8 to 1 times the stated ones: --random-range-ratio 0.8,
https://github.com/InferenceMAX/InferenceMAX, benchmarks/benchmark_lib.sh."""


def _of_inferencex(given: pd.DataFrame) -> pd.DataFrame:
    """A file of InferenceX in columns of COLUMNS, repeated runs of one configuration as one row, their medians.

    Caches are FP8 as the benchmark's scripts start servers (https://github.com/InferenceMAX/InferenceMAX, benchmarks/):
    `kv_cache_config: dtype: fp8` of TensorRT-LLM, `--kv-cache-dtype fp8_e4m3` of SGLang on Blackwell. Attention that is
    data-parallel is one group a GPU.
    """
    import pandas as pd

    framework = given["framework"].str.removeprefix("dynamo-").replace({"trt": "trtllm"})
    parallel = given["decode_dp_attention"].astype(bool)
    in_fp8 = given["hardware"].isin([name for name in systems() if aic_tables.multiplies_in_fp8(name)])
    images = given["image"] if "image" in given else pd.Series("", index=given.index)
    tidy = pd.DataFrame(
        {
            "system": given["hardware"],
            "framework": framework,
            "precision": given["precision"],
            "kv": np.where((framework == "trtllm") | in_fp8, "fp8", "bf16"),
            "tpa": np.where(parallel, 1, given["decode_tp"]),
            "dp": np.where(parallel, given["decode_tp"], 1),
            "ep": np.maximum(given["decode_ep"], 1),
            "workers": given["decode_num_workers"].where(given["disagg"].astype(bool), 1),
            "gpus": (
                given["num_decode_gpu"] / given["decode_num_workers"].where(given["decode_num_workers"] > 0)
            ).where(given["disagg"].astype(bool)),
            "isl": given["isl"] * MEAN_LENGTH,
            "osl": given["osl"] * MEAN_LENGTH,
            "concurrency": given["conc"],
            "speculation": given["spec_method"],
            "aggregated": np.where(given["disagg"].astype(bool), "no", "yes"),
            "software": images.fillna("").str.extract(r":v?([0-9.]+(?:(?:\.?post|-?rc)[0-9.]+(?:pre[0-9]+)?)?)")[0],
            "tpot_s": given["median_tpot"],
            "ttft_s": given["median_ttft"],
        }
    )
    configuration = [name for name in tidy if name not in ("software", "tpot_s", "ttft_s")]
    grouped = tidy.groupby(configuration, dropna=False, sort=False)
    return grouped.agg(
        software=("software", "last"), tpot_s=("tpot_s", "median"), ttft_s=("ttft_s", "median"), runs=("tpot_s", "size")
    ).reset_index()


# --- Judging ---------------------------------------------------------------------------------------------------------


def judge(table: pd.DataFrame, timing: Timing | None = None) -> Judged:
    """Every serving that a decode step can be held against, beside its prediction.

    timing: of all rows; the shipped timing of each row's system and framework unless given, with the kernels of the
    row's software where it is stated and the package has tables of its time.
    """
    table = _filled(table)
    reasons = table.apply(lambda row: _why_not(row, timing), axis=1)
    plain = table["speculation"] == "none"
    rows, steps = _predicted(table[(reasons == "") & plain], timing)
    drafting, _ = _predicted(table[(reasons == "") & ~plain], timing)
    worst = rows["error"].abs().to_numpy().argsort()[::-1][:WORST]
    apart = {_title(rows.iloc[place]): _ops(steps[place], rows.iloc[place]) for place in worst.tolist()}
    left_out = {str(reason): int(count) for reason, count in reasons[reasons != ""].value_counts().items()}
    return Judged(
        rows=rows.reset_index(drop=True),
        left_out=left_out,
        apart=apart,
        drafting=drafting.reset_index(drop=True),
        pairs=_pairs(
            table[table.apply(lambda row: _why_not({**row, "aggregated": "no"}, timing), axis=1) == ""], timing
        ),
    )


def _predicted(kept: pd.DataFrame, timing: Timing | None) -> tuple[pd.DataFrame, list[Step]]:
    """Servings beside their predictions, and the steps that these are of."""
    steps = [_step(row, timing) for row in cast(Any, kept.itertuples())]
    ends = [tuple(float(end) for end in step.ttl_interval_s) for step in steps]
    rows = kept.assign(
        kind=[validate.kind_of(step.layout) for step in steps],
        effective_batch=[float(step.layout.batch) for step in steps],
        predicted_s=[float(step.ttl_s) for step in steps],
        low_s=[low for low, _ in ends],
        high_s=[high for _, high in ends],
    )
    rows = rows.assign(
        error=rows["predicted_s"] / rows["tpot_s"] - 1, inside=rows["tpot_s"].between(rows["low_s"], rows["high_s"])
    )
    return rows, steps


MEASURED = ("speculation", "draft_tokens", "software", "runs", "tpot_s", "ttft_s")
"""Columns in which the two servings of a pair may differ."""
YES = ("yes", "True", "true")
AGGREGATED = "aggregated: prefill is in the time per token"


def _pairs(table: pd.DataFrame, timing: Timing | None) -> pd.DataFrame:
    """Servings alike but for drafting, a row a pair; those with prefill in their times too, which tell of it less.

    gain: TPOT without drafts over TPOT with them, measured; predicted_gain: of the two steps, each at the batch that
    its own times say, and with what prefill adds to both where it runs on the same GPUs. error: of the gain.
    """
    import pandas as pd

    alike = [name for name in table if name not in MEASURED]
    found = []
    for _, rows in table.groupby(alike, dropna=False, sort=False):
        without = rows[rows["speculation"] == "none"]
        for _, one in rows[rows["speculation"] != "none"].iterrows():
            if len(without):
                other = without.iloc[int((without["tpot_s"] - without["tpot_s"].median()).abs().argmin())]
                both, steps = _predicted(pd.DataFrame([other, one]), timing)
                stalls = [_stall_s(row, timing) for row in cast(Any, both.itertuples())]
                plain_s, drafted_s = both["predicted_s"] + stalls
                found.append(
                    {
                        **{name: one[name] for name in PAIR},
                        "draft_tokens": int(steps[1].layout.draft_tokens),
                        "gain": other["tpot_s"] / one["tpot_s"],
                        "predicted_gain": plain_s / drafted_s,
                        "error": (plain_s / drafted_s) / (other["tpot_s"] / one["tpot_s"]) - 1,
                    }
                )
    return pd.DataFrame(found, columns=[*PAIR, "draft_tokens", "gain", "predicted_gain", "error"])


PAIR = ("system", "framework", "precision", "tpa", "dp", "ep", "isl", "osl", "concurrency", "aggregated")


WORST, WORST_OPS = 5, 8


def _filled(table: pd.DataFrame) -> pd.DataFrame:
    """The table with every column, defaults where a row says nothing."""
    import pandas as pd

    usual: Mapping[str, Any] = {"model": MODEL, "workers": 1, "runs": 1, "speculation": "none", "aggregated": "no"}
    usual = {**usual, **dict.fromkeys(WIDTHS, 1)}
    filled = {
        name: table[name].where(table[name].notna(), usual.get(name))
        if name in table
        else pd.Series([usual.get(name)] * len(table), index=table.index)
        for name in COLUMNS
    }
    return pd.DataFrame(filled)


def _why_not(row: Any, timing: Timing | None) -> str:
    """Why a serving is not held against a decode step; empty where it is."""
    draft = _draft(row)
    if str(row["speculation"]) != "none" and (draft is None or not _draft_tokens(row, draft)):
        return f"drafts by {row['speculation']}, of which no draft is shipped or no length is known"
    if str(row["aggregated"]) in YES:
        return AGGREGATED
    name = f"{row['system']}-{row['framework']}"
    if row["system"] not in systems() or (timing is None and name not in shipped("timing")):
        return f"no measured kernels of {row['framework']} on {row['system']}"
    widths = [float(row[name]) for name in (*WIDTHS, "workers")]
    if not all(width >= 1 and width == int(width) for width in widths):
        return "a width, or the number of workers, is no whole number of at least 1"
    gpus = np.prod([float(row[width]) for width in WIDTHS if width != "ep"])
    if row["gpus"] is not None and not np.isnan(float(row["gpus"])) and float(row["gpus"]) != gpus:
        return "its widths do not give the GPUs of a worker"
    if not float(row["tpot_s"]) > 0 or not _batch(row) > 0 or not _context(row) >= 1:
        return "no time, batch or context"
    if gpus % float(row["ep"]):
        return "experts are spread over GPUs that the worker does not have"
    return ""


def _draft(row: Any) -> Draft | None:
    """The shipped draft of a row's model by the method that it says; None where there is none."""
    of_model = (load_draft(name) for name in shipped("draft"))
    return next((d for d in of_model if d.target == row["model"] and d.method == str(row["speculation"])), None)


def _draft_tokens(row: Any, draft: Draft) -> int:
    """Drafts of a step: as the row says, or as its framework's published deployments have it; 0 where neither tells."""
    said = _number(row["draft_tokens"])
    served = draft.served.get(str(row["framework"]))
    return int(said) if said == said else served.drafts(_requests(row)) if served else 0


def _drafter(draft: Draft, model: Model, framework: str) -> Drafter:
    """What drafts in a framework's deployments: with their acceptance, where that is not the draft's own."""
    served = draft.served.get(framework)
    if served and served.acceptance:
        draft = draft.model_copy(update={"acceptance": served.acceptance})
    return drafter_of(draft, model)


def _number(value: Any) -> float:
    return float("nan") if value is None else float(value)


def _context(row: Any) -> float:
    given = _number(row["context"])
    return given if given == given else _number(row["isl"]) + _number(row["osl"]) / 2


def _requests(row: Any) -> float:
    """Requests of one attention group, those that wait for a first token among them: as given, or the concurrency's."""
    given = _number(row["batch"])
    if given == given:
        return given
    return _number(row["concurrency"]) / (_number(row["workers"]) * _number(row["dp"]))


def _batch(row: Any) -> float:
    """Mean requests that one attention group decodes: as given, or the concurrency less who waits for a first token.

    concurrency / (workers · dp) · osl·TPOT / (TTFT + osl·TPOT), from the row's own times, never from a prediction.
    """
    nominal = _requests(row)
    if _number(row["batch"]) == nominal:
        return nominal
    decoding_s, waiting_s = _number(row["osl"]) * _number(row["tpot_s"]), _number(row["ttft_s"])
    return nominal if np.isnan(waiting_s + decoding_s) else nominal * decoding_s / (waiting_s + decoding_s)


def _step(row: Any, timing: Timing | None) -> Step:
    """The decode step of a serving; a fractional batch is a mean, and no step runs with less than one request."""
    record = row._asdict()
    draft = _draft(record)
    x, setting = replace(_layout(row), batch=max(_batch(record), 1.0)), _setting(row, timing, draft)
    given = _number(record["redundant_experts"])
    copies = int(given) if given == given else validate.served_copies(row.framework, row.model, setting.machine, x)
    x = replace(x, redundant_experts=copies)
    if draft:
        x = replace(x, draft_tokens=_draft_tokens(record, draft))
    return evaluate_step(setting, x, round(_context(record)))


def _layout(row: Any) -> Layout:
    """A serving's layout with one request in each attention group."""
    gpus = float(row.tpa * row.kvp * row.dp)
    return Layout(batch=1.0, tpa=row.tpa, kvp=row.kvp, dp=row.dp, tpf=gpus / row.ep, ep=row.ep, pp=row.pp)


def _setting(row: Any, timing: Timing | None, draft: Draft | None) -> Setting:
    machine, model = machine_of(row.system), load_model(row.model)
    timing = timing or _timing(row)
    require_measured_here(machine, timing)
    drafter = _drafter(draft, model, str(row.framework)) if draft else None
    return Setting(model=model, machine=machine, timing=timing, precision=_precision(row, timing), drafter=drafter)


def _stall_s(row: Any, timing: Timing | None) -> float:
    """What prefill on the same GPUs adds to a serving's time per token [s]; nothing where it runs on others.

    While a request is answered every other one of its group is prefilled once, and the group does not decode:
    (requests - 1) · T(isl new tokens) / osl, T a step of one prompt in each group, whole.
    """
    record = row._asdict()
    prompt, answer = (_number(record[name]) for name in ("isl", "osl"))
    if str(row.aggregated) not in YES or not prompt >= 1 or not answer >= 1:
        return 0.0
    prefill = evaluate_step(_setting(row, timing, None), _layout(row), round(prompt), round(prompt))
    return max(_requests(record) - 1, 0.0) * float(prefill.step_s) / answer


def _precision(row: Any, timing: Timing) -> Precision:
    """The formats of a published checkpoint, or the model's first, and in their place those that the row says."""
    given = {name: value for name in Precision.model_fields if isinstance(value := getattr(row, name), str)}
    if isinstance(row.precision, str):
        if row.model not in HUB or row.precision not in CHECKPOINTS:
            known = f"{' or '.join(CHECKPOINTS)}, of {', '.join(HUB)}"
            asked = f"precision: there is no checkpoint {said(row.precision)} of {row.model}"
            raise SpecError([f"{asked}; known: {known}; or say the formats in their columns, such as weights and kv"])
        published = SimpleNamespace(
            system=row.system, framework=row.framework, precision=row.precision, model=HUB[row.model]
        )
        formats = validate.formats(published).model_dump(exclude_none=True)
        if given.get("kv") == "fp8" and aic_tables.multiplies_in_fp8(row.system) and row.model in LATENT:
            formats["attention_math"] = "fp8"
    else:
        chosen = default_precision(load_model(row.model), machine_of(row.system), timing)
        formats = chosen.model_dump(exclude_none=True)
    return parse(Precision, formats | given, f"{row.system} {row.framework}")


CHECKPOINTS = ("fp8", "fp4")
LATENT = tuple(name for path, name in validate.MODELS.items() if path.startswith(("deepseek-ai", "moonshotai")))
"""Models whose attention core multiplies in its cache's format."""


def _timing(row: Any) -> Timing:
    """The shipped timing of a row, with kernels of its software where that is stated and tables of it are there."""
    name = f"{row.system}-{row.framework}"
    stated = row.software if isinstance(row.software, str) else ""
    version = aic_tables.served_version(row.framework, stated)
    if not re.match(r"\d", version):
        return load_timing(name)
    try:
        return as_served(name, version)
    except (aic_tables.TablesMissing, aic_tables.NoSuchTable):
        return load_timing(name)


# --- Reporting -------------------------------------------------------------------------------------------------------


GROUPS = (["kind"], ["system"], ["system", "framework"], ["precision"])


def report(judged: Judged) -> dict[str, pd.DataFrame]:
    """Every table that `helix-sim validate --measurements` prints, by its title."""
    import pandas as pd

    rows = judged.rows
    found: dict[str, pd.DataFrame] = {}
    if len(rows):
        for by in GROUPS:
            found[f"by {' and '.join(by)}"] = scores(rows, by)
        found["all rows"] = scores(rows, [])
    if len(judged.drafting):
        found["rows that draft, by framework"] = scores(judged.drafting, ["framework", "speculation"])
        found["how they are taken to draft"] = _taken_to_draft(judged.drafting)
    if len(pairs := judged.pairs):
        found["pairs with and without drafts"] = pairs
        found["gains of pairs"] = pd.DataFrame(
            [
                {
                    "framework": framework,
                    "aggregated": aggregated,
                    "count": len(part),
                    "gain": float(part["gain"].median()),
                    "predicted_gain": float(part["predicted_gain"].median()),
                    "median": float(part["error"].abs().median()),
                    "bias": float(part["error"].median()),
                }
                for (framework, aggregated), part in pairs.groupby(["framework", "aggregated"], sort=True)
            ]
        )
    found["left out"] = pd.DataFrame([{"rows": count, "why": why} for why, count in judged.left_out.items()])
    return found | {f"worst: {title}": ops for title, ops in judged.apart.items()}


def _taken_to_draft(rows: pd.DataFrame) -> pd.DataFrame:
    """What is assumed of servings that drafted, a row a model and framework: lengths, acceptance, and their source."""
    import pandas as pd

    found = []
    for (framework, model, speculation), part in rows.groupby(["framework", "model", "speculation"], sort=True):
        draft = _draft({"model": model, "speculation": speculation})
        served = draft.served.get(str(framework)) if draft else None
        if draft is None:
            continue
        acceptance = (served and served.acceptance) or draft.acceptance
        large = served.large_batches if served else None
        found.append(
            {
                "framework": framework,
                "draft": draft.name,
                "rows": len(part),
                "draft_tokens": served.draft_tokens.value if served else 0,
                "requests_of_large": large.requests if large else 0,
                "draft_tokens_there": large.draft_tokens.value if large else 0,
                "tokens_of_one": float(acceptance.tokens(1)),
                "source": acceptance.source,
            }
        )
    return pd.DataFrame(found)


def scores(rows: pd.DataFrame, by: list[str]) -> pd.DataFrame:
    """Count, runs, median and mean absolute error, bias (median error) and share inside the 80 % interval, by group."""
    import pandas as pd

    def score(part: pd.DataFrame) -> dict[str, Any]:
        return {
            "count": len(part),
            "runs": int(part["runs"].sum()),
            "median": float(part["error"].abs().median()),
            "mean": float(part["error"].abs().mean()),
            "bias": float(part["error"].median()),
            "covered": float(part["inside"].mean()),
        }

    if not by:
        return pd.DataFrame([score(rows)])
    groups = rows.groupby(by, sort=True, dropna=False)
    return pd.DataFrame([{**dict(zip(by, key, strict=True)), **score(part)} for key, part in groups])


def _title(row: Any) -> str:
    widths = ", ".join(f"{name} {int(row[name])}" for name in WIDTHS if row[name] != 1)
    where = f"{row['system']} {row['framework']} {row['precision']}, {widths or 'one GPU'}"
    how = f"batch {row['effective_batch']:.1f}, context {_context(row):,.0f}"
    times = f"{row['tpot_s'] * 1e3:.2f} ms measured, {row['predicted_s'] * 1e3:.2f} predicted ({row['error']:+.1%})"
    return f"{where}, {how}: {times}"


def _ops(step: Step, row: Any) -> pd.DataFrame:
    """The ops that take most of a row's step, in milliseconds, and how many times longer one alone would have to take.

    alone: factor on an op's time by which the prediction would meet the measurement; nothing where none above 0 does.
    """
    import pandas as pd

    ops = sorted(op_rows(step), key=lambda op: -op["share"])[:WORST_OPS]
    missing = float(row["tpot_s"] - row["predicted_s"])
    shown = []
    for op in ops:
        exposed = op["seconds"] - op["hidden_s"]
        alone = (exposed + missing) / exposed if exposed > 0 else np.nan
        shown.append(
            {
                "op": op["op"],
                "ms": exposed * 1e3,
                "share": op["share"],
                "binds": op["binds"],
                "alone": alone if alone > 0 else np.nan,
            }
        )
    return pd.DataFrame(shown)
