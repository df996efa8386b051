"""Tables to files: Parquet, CSV and JSON, each of which appears whole or not at all."""

from __future__ import annotations

import contextlib
import json
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import pandas as pd


PARTIAL = ".partial-"
"""How the names of files begin that are still being written, or that a killed process left."""


@contextlib.contextmanager
def appearing(path: Path) -> Iterator[Path]:
    """A temporary path beside `path` that takes its place when the block ends, and is removed if it fails."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=f"{PARTIAL}{path.name}.", suffix=path.suffix, dir=path.parent)
    os.close(handle)
    partial = Path(name)
    try:
        yield partial
        partial.chmod(0o644)
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> Path:
    """UTF-8 text."""
    with appearing(path) as partial:
        partial.write_text(text, encoding="utf-8")
    return path


def write_json(path: Path, content: Any) -> Path:
    """Indented JSON, numpy numbers as numbers."""
    return write_text(path, json.dumps(content, indent=2, ensure_ascii=False, default=plain) + "\n")


def write_csv(path: Path, frame: pd.DataFrame) -> Path:
    """CSV whose floats read back as they were."""
    with appearing(path) as partial:
        frame.to_csv(partial, index=False, lineterminator="\n")
    return path


def write_parquet(path: Path, frame: pd.DataFrame) -> Path:
    """Parquet, compressed."""
    with appearing(path) as partial:
        frame.to_parquet(partial, index=False, compression="zstd")
    return path


def plain(value: Any) -> Any:
    """A numpy number or column as plain data, for JSON."""
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, np.ndarray):
        return value.tolist()
    raise TypeError(f"{type(value).__name__} is not JSON")


def write_bytes(path: Path, content: bytes) -> Path:
    """Bytes as they are."""
    with appearing(path) as partial:
        partial.write_bytes(content)
    return path


def write_points_csv(path: Path, folder: Path) -> Path:
    """The Parquet files of a folder as one CSV, in their order, a batch of rows at a time."""
    import pyarrow.csv as arrow_csv
    import pyarrow.parquet as pq

    parts = sorted(folder.glob("part-*.parquet"))
    with appearing(path) as partial:
        if parts:
            with arrow_csv.CSVWriter(partial, pq.read_schema(parts[0])) as writer:
                for part in parts:
                    for batch in pq.ParquetFile(part).iter_batches():
                        writer.write_batch(batch)
    return path


class PointsWriter:
    """Layouts that run into one Parquet file, some columns at a time; it appears when closed, if there were any."""

    def __init__(self, path: Path, families: list[str]) -> None:
        self._path, self._families = path, families
        self._stack = contextlib.ExitStack()
        self._parquet: Any = None

    def __enter__(self) -> PointsWriter:
        return self

    def write(self, columns: dict[str, Any]) -> None:
        """Append rows."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        names = pa.DictionaryArray.from_arrays(pa.array(columns["family"]), pa.array(self._families))
        table = pa.table({**columns, "family": names.cast(pa.string())})
        if self._parquet is None:
            partial = self._stack.enter_context(appearing(self._path))
            self._parquet = self._stack.enter_context(pq.ParquetWriter(partial, table.schema, compression="zstd"))
        self._parquet.write_table(table)

    def __exit__(self, *error: Any) -> None:
        self._stack.__exit__(*error)
