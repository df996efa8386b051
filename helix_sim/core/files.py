"""Tables to files: Parquet, CSV and JSON, each of which appears whole or not at all, where the user pointed."""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
import shutil
import stat
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import numpy as np

from helix_sim.core.errors import cannot_write
from helix_sim.core.escape import csv_cell, json_text

if TYPE_CHECKING:
    import pandas as pd


PARTIAL = ".partial-"
"""How the names of files begin that are still being written, or that a killed process left."""

PROBE_BYTES = 4096
"""Written and removed again before the work begins: a block of most disks."""


@contextlib.contextmanager
def appearing(path: Path) -> Iterator[Path]:
    """A temporary path whose content becomes that of `path` when the block ends, and is removed if it fails.

    A link is followed. A plain file is replaced whole and keeps its mode; a new one has that of the umask. Into a
    device or a pipe the content is written when it is complete. An OSError names `path`.
    """
    with _naming(path):
        there = _stat(path)
        if there is not None and (not stat.S_ISREG(there.st_mode) or _own_output(there) is not None):
            if stat.S_ISDIR(there.st_mode):
                raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
            with tempfile.TemporaryDirectory() as folder:
                partial = Path(folder) / f"content{path.suffix}"
                partial.touch()
                yield partial
                with partial.open("rb") as content, _opened(path, there) as device:
                    shutil.copyfileobj(content, device)
            return
        target = Path(os.path.realpath(path)) if path.is_symlink() else path
        target.parent.mkdir(parents=True, exist_ok=True)
        partial = create_beside(target)
        try:
            yield partial
            if there is not None:
                if not os.access(target, os.W_OK):
                    raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))
                partial.chmod(stat.S_IMODE(there.st_mode))
            partial.replace(target)
        finally:
            partial.unlink(missing_ok=True)


def create_beside(path: Path) -> Path:
    """A new, empty file in the folder of `path`, with the mode of the umask and a name that says it is not yet done."""
    partial = path.with_name(f"{PARTIAL}{path.stem[:32]}.{secrets.token_hex(4)}{path.suffix[:16]}")
    os.close(os.open(partial, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))
    return partial


@contextlib.contextmanager
def _naming(path: Path) -> Iterator[None]:
    """An OSError of the block speaks of the path that the user gave, not of a temporary one."""
    try:
        yield
    except OSError as error:
        if error.errno is None or (error.filename is not None and PARTIAL not in str(error.filename)):
            raise
        raise OSError(error.errno, error.strerror or str(error), str(path)) from error


def _stat(path: Path) -> os.stat_result | None:
    """What the system says of a path, links followed; None where there is nothing."""
    try:
        return path.stat()
    except (FileNotFoundError, NotADirectoryError):
        return None


def _own_output(there: os.stat_result) -> int | None:
    """The process's own output that a path such as /dev/stdout names, with what is still to be printed before it."""
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError, AttributeError):
            if os.path.samestat(os.fstat(stream.fileno()), there):
                stream.flush()
                return stream.fileno()
    return None


def _opened(path: Path, there: os.stat_result) -> IO[bytes]:
    """A device or a pipe, open for writing; the process's own output goes on where it is."""
    own = _own_output(there)
    return path.open("wb") if own is None else os.fdopen(os.dup(own), "wb")


def require_writable(path: Path, *, folder: bool = False) -> None:
    """Stopped, with a sentence and the path, where it cannot be written; no trace is left.

    folder: the path is of a folder for files, which need not be there yet.
    """
    try:
        there = _stat(path)
        if there is not None and not folder:
            if stat.S_ISDIR(there.st_mode):
                raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
            if not os.access(path, os.W_OK):
                raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
            if not stat.S_ISREG(there.st_mode):
                return
        place = Path(os.path.realpath(path)) / "x" if folder else Path(os.path.realpath(path))
        while not place.parent.exists():
            place = place.parent
        partial = create_beside(place)
        try:
            partial.write_bytes(bytes(PROBE_BYTES))
        finally:
            partial.unlink(missing_ok=True)
    except OSError as error:
        raise cannot_write(path, error) from None


def write_text(path: Path, text: str) -> Path:
    """UTF-8 text."""
    with appearing(path) as partial:
        partial.write_text(text, encoding="utf-8")
    return path


def write_json(path: Path, content: Any) -> Path:
    """Indented JSON, numpy numbers as numbers."""
    return write_text(path, json_text(content, default=plain) + "\n")


def write_csv(path: Path, frame: pd.DataFrame) -> Path:
    """CSV whose floats read back as they were, and whose texts are `escape.csv_cell`s."""
    texts = frame.select_dtypes(exclude="number")
    cells: dict[str, Any] = {str(name): texts[name].map(_cell, na_action="ignore") for name in texts}
    with appearing(path) as partial:
        frame.assign(**cells).rename(columns=csv_cell).to_csv(partial, index=False, lineterminator="\n")
    return path


def _cell(value: Any) -> Any:
    return csv_cell(value) if isinstance(value, str) else value


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
                        writer.write_batch(_with_cells(batch))
    return path


def _with_cells(batch: Any) -> Any:
    """A batch of Arrow rows, its texts as cells of CSV; there are few, each of many rows."""
    import pyarrow as pa

    for place, name in enumerate(batch.schema.names):
        if pa.types.is_string(batch.column(place).type):
            coded = batch.column(place).dictionary_encode()
            words = pa.array([csv_cell(word) for word in coded.dictionary.to_pylist()], pa.string())
            cells = pa.DictionaryArray.from_arrays(coded.indices, words).cast(pa.string())
            batch = batch.set_column(place, name, cells)
    return batch


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
