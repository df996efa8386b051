"""What a GPU measurement is, which of them judge the fit instead of entering it, and its CSV file."""

from __future__ import annotations

import csv
import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path

from helix_sim.core.escape import comment
from helix_sim.core.text import said

COLUMNS = {
    "op": "copy | matmul | launch | attention-gqa | attention-mla | combine",
    "stored": "format of the data in HBM: bf16, fp8 (e4m3), fp32",
    "math": "format of the arithmetic, which names its ceiling: bf16 (FP16 runs at the same rate), fp8, fp32",
    "batch": "requests; a matmul's rows",
    "context": "token rows of each request; a matmul's inner width",
    "q_heads": "query heads",
    "kv_heads": "KV heads, 1 for MLA",
    "score_width": "columns of a key",
    "value_width": "columns of a value, for MLA of its latent; a matmul's columns",
    "partials": "splits that attention wrote, or partials that combine summed",
    "hbm_bytes": "least bytes through HBM: each input read once, each output written once",
    "flops": "floating-point operations of the matrix products, a multiply-add being two",
    "median_s": "median time of one call [s]",
    "low_s": "10 % quantile of it [s]",
    "high_s": "90 % quantile of it [s]",
    "samples": "timings behind the median",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Cell:
    """One point of the measured grid; `COLUMNS` says what each field means, and zero that it does not apply."""

    op: str
    stored: str
    math: str
    batch: int = 0
    context: int = 0
    q_heads: int = 0
    kv_heads: int = 0
    score_width: int = 0
    value_width: int = 0
    partials: int = 0
    hbm_bytes: float = 0.0
    flops: float = 0.0

    @property
    def held_out(self) -> bool:
        """Whether this cell judges the fit: a fifth of them, by hash of the shape, so the same fifth on every GPU."""
        shape = (self.op, self.stored, self.batch, self.context, self.q_heads, self.kv_heads, self.score_width)
        # A combine's grid is over its partials; an attention's splits follow from the GPU and are no part of its shape.
        summed = self.partials if self.op == "combine" else 0
        digest = hashlib.sha256(repr((*shape, self.value_width, summed)).encode()).digest()
        return digest[0] % 5 == 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Measurement(Cell):
    """A cell with its time: median and spread over `samples` timings [s]."""

    median_s: float
    low_s: float
    high_s: float
    samples: int

    @property
    def op_class(self) -> str:
        """The calibration entry that this measurement belongs to, such as attention-gqa-bf16."""
        return f"{self.op}-{self.stored}"


FORMAT_BYTES = {"bf16": 2, "fp8": 1, "fp32": 4}


def attention_cell(
    *, stored: str, batch: int, context: int, q_heads: int, kv_heads: int, score_width: int, value_width: int
) -> Cell:
    """Decode attention: reads every KV row and query, writes one FP32 output and log-sum-exp per (token, head).

    MLA (values narrower than scores) reads one row for both uses. FLOPs are 2 · B · S · Q · (score + value width).

    >>> cell = attention_cell(
    ...     stored="bf16", batch=1, context=1000, q_heads=128, kv_heads=1, score_width=576, value_width=512
    ... )
    >>> cell.op, int(cell.flops), int(cell.hbm_bytes)  # 1000·1152 + 128·1152 + 128·513·4
    ('attention-mla', 278528000, 1562112)
    """
    latent = score_width > value_width
    row_values = kv_heads * (score_width if latent else score_width + value_width)
    return Cell(
        op="attention-mla" if latent else "attention-gqa",
        stored=stored,
        math="bf16",
        batch=batch,
        context=context,
        q_heads=q_heads,
        kv_heads=kv_heads,
        score_width=score_width,
        value_width=value_width,
        hbm_bytes=batch
        * (
            context * row_values * FORMAT_BYTES[stored]
            + q_heads * score_width * FORMAT_BYTES["bf16"]
            + q_heads * (value_width + 1) * FORMAT_BYTES["fp32"]
        ),
        flops=2.0 * batch * context * q_heads * (score_width + value_width),
    )


def combine_cell(*, partials: int, batch: int, q_heads: int, value_width: int) -> Cell:
    """Sum of FP32 partials: reads each with its log-sum-exp and writes one.

    >>> int(combine_cell(partials=3, batch=1, q_heads=2, value_width=127).hbm_bytes)  # (3 + 1) · 2 · 128 · 4
    4096
    """
    return Cell(
        op="combine",
        stored="fp32",
        math="fp32",
        batch=batch,
        q_heads=q_heads,
        value_width=value_width,
        partials=partials,
        hbm_bytes=(partials + 1.0) * batch * q_heads * (value_width + 1) * FORMAT_BYTES["fp32"],
    )


def write_csv(path: Path, rows: Sequence[Measurement], provenance: Mapping[str, str]) -> None:
    """Measurements as CSV; comment lines above the header hold the provenance and explain the columns."""
    with path.open("w", newline="", encoding="utf-8") as file:
        file.writelines(f"{comment(f'{key}: {value}')}\n" for key, value in provenance.items())
        file.write("#\n")
        file.writelines(f"# {name}: {meaning}\n" for name, meaning in COLUMNS.items())
        table = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        table.writeheader()
        table.writerows(asdict(row) for row in rows)


def read_csv(path: Path) -> tuple[list[Measurement], dict[str, str]]:
    """Measurements and provenance of a file that `write_csv` wrote; ValueError says which line is wrong, and how."""
    return parse_csv(path.read_text(encoding="utf-8"), str(path))


def parse_csv(text: str, path: str) -> tuple[list[Measurement], dict[str, str]]:
    """Measurements and provenance that such a file's text says."""
    lines = text.splitlines()
    comments = [line.removeprefix("#").strip() for line in lines if line.startswith("#")]
    stated = comments[: comments.index("")] if "" in comments else []
    provenance = {key: value for key, _, value in (comment.partition(": ") for comment in stated)}
    numbered = [(number, line) for number, line in enumerate(lines, 1) if line and not line.startswith("#")]
    try:
        table = csv.DictReader((line for _, line in numbered), strict=True)
        missing = [name for name in COLUMNS if name not in (table.fieldnames or ())]
        records = list(table)
    except csv.Error as error:
        raise ValueError(f"{path}: not readable as CSV: {error}") from None
    if missing:
        raise ValueError(f"{path}: no column {', '.join(missing)}")
    if len(records) != len(numbered) - 1:
        raise ValueError(f"{path}: a quoted cell runs over several lines")
    return [_row(path, number, record) for (number, _), record in zip(numbered[1:], records, strict=True)], provenance


def _row(path: str, number: int, record: Mapping[str, str | None]) -> Measurement:
    """One line's measurement, each field read as its type."""
    readers = {"str": str, "int": int, "float": float}
    values = {}
    for field in fields(Measurement):
        text = record[field.name]
        try:
            values[field.name] = readers[str(field.type)](text)
        except (TypeError, ValueError):
            raise ValueError(f"{path}, line {number}: {field.name} is {said(text)}, not {field.type}") from None
    row = Measurement(**values)
    if not 0 < row.low_s <= row.median_s <= row.high_s or math.isinf(row.high_s):
        raise ValueError(f"{path}, line {number}: times must be 0 < low_s <= median_s <= high_s")
    return row


def ceilings(rows: Sequence[Measurement]) -> dict[str, float]:
    """Best measured rates: copy bandwidth [bytes/s], counting bytes read and written, and FLOP/s by format.

    >>> copy = Measurement(op="copy", stored="bf16", math="bf16", hbm_bytes=8e9, median_s=2e-3, low_s=2e-3, high_s=2e-3,
    ...     samples=9)
    >>> ceilings([copy])
    {'hbm_bytes_per_s': 4000000000000.0}
    """
    copies = [row.hbm_bytes / row.median_s for row in rows if row.op == "copy"]
    if not copies:
        raise ValueError("no copy among the measurements: without it there is no bandwidth to take a share of")
    best = {"hbm_bytes_per_s": max(copies)}
    for row in rows:
        if row.op == "matmul":
            name = f"{row.math}_flops_per_s"
            best[name] = max(best.get(name, 0.0), row.flops / row.median_s)
    return best


def times_the_bound(row: Measurement, limits: Mapping[str, float]) -> float:
    """Measured time over the larger of its two bounds at the measured ceilings: 1 is perfect.

    >>> row = Measurement(op="combine", stored="fp32", math="fp32", hbm_bytes=4e9, median_s=2e-3, low_s=2e-3,
    ...     high_s=2e-3, samples=9)
    >>> times_the_bound(row, {"hbm_bytes_per_s": 4e12})
    2.0
    """
    return row.median_s / max(row.hbm_bytes / limits["hbm_bytes_per_s"], row.flops / _rate(row, limits))


def _rate(row: Measurement, limits: Mapping[str, float]) -> float:
    """FLOP/s ceiling of the row's arithmetic; infinite for a row without any."""
    if row.flops == 0:
        return math.inf
    name = f"{row.math}_flops_per_s"
    if name not in limits:
        raise ValueError(f"no {row.math} matmul among the measurements, which {row.op} takes a share of")
    return limits[name]
