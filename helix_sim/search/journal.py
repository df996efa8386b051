"""A sweep's folder while it is under way: what is done is kept, whatever happens, and nobody else's files are touched.

`unfinished/` holds manifest.json (which sweep, cut how, by which code), a lock, and a file for each finished block.
Every file appears whole or not at all; the folder goes when the sweep is complete.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import io
import json
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import numpy as np

from helix_sim.core.errors import Exit, Stopped, cannot_write
from helix_sim.core.files import PARTIAL, write_bytes, write_json
from helix_sim.search.evaluated import Evaluated
from helix_sim.search.pareto import Frontier
from helix_sim.search.plan import Block, Plan, blocks

GO_ON = "the same command with --resume goes on"


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What a block has shown, and the SHA-256 of the file with its points (empty where there is none)."""

    evaluated: Evaluated
    points: str = ""


@contextlib.contextmanager
def told(out: Path) -> Iterator[None]:
    """A full disk, a folder that cannot be written and Ctrl-C as sentences, each with its exit code."""
    try:
        yield
    except KeyboardInterrupt:
        raise Stopped(Exit.INTERRUPTED, f"interrupted; what is done is kept in {out}: {GO_ON}") from None
    except OSError as error:
        stop = cannot_write(out, error)
        if stop.code == Exit.CLOSED_PIPE:
            raise
        full = f"what is done is kept: free some space, then {GO_ON}"
        raise Stopped(
            stop.code, f"{stop.sentence}; {full if stop.code == Exit.DISK_FULL else 'give another --out'}"
        ) from None


@functools.cache
def code_digest() -> str:
    """Changes with the equations, the search and the libraries that compute: what began a sweep resumes it."""
    found = hashlib.sha256(f"numpy {np.__version__}".encode())
    package = Path(__file__).parent.parent
    folders = (package / name for name in ("core", "specs", "ops", "timing", "stacks", "search"))
    for path in sorted([*package.glob("*.py"), *(path for folder in folders for path in folder.glob("*.py"))]):
        found.update(path.read_bytes())
    return found.hexdigest()[:12]


def file_digest(path: Path) -> str:
    """SHA-256 of a file; empty where there is none."""
    if not path.is_file():
        return ""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


class Journal:
    """The folder of one sweep, locked while it is open."""

    def __init__(self, out: Path, planned: Plan, *, points: bool, layouts: int) -> None:
        self.out, self.plan, self.points = out, planned, points
        self.folder = out / "unfinished"
        self.manifest: dict[str, Any] = {
            "sweep": planned.sweep.name,
            "digests": planned.digests,
            "families": list(planned.sweep.families),
            "code": code_digest(),
            "points": "all" if points else "frontier",
            "layouts_per_block": layouts,
        }
        self.blocks: list[Block] = list(blocks(planned, layouts))
        self._stack = contextlib.ExitStack()

    def __enter__(self) -> Journal:
        self.folder.mkdir(parents=True, exist_ok=True)
        self._stack.enter_context(_locked(self.folder / "lock", self.out))
        return self

    def __exit__(self, *error: object) -> None:
        if self.folder.is_dir() and not (self.folder / "manifest.json").exists():
            shutil.rmtree(self.folder)  # nothing was begun: leave no trace in somebody else's folder
        self._stack.close()

    def begin(self, *, resume: bool) -> dict[str, Any] | None:
        """Check whose folder this is and clean up after a killed run; the summary, where there is nothing to do."""
        summary, unfinished = self._summary(), _json(self.folder / "manifest.json")
        if unfinished is None and summary is not None:
            self._same(summary, "the results of another sweep", ("digests", "families"))
        if unfinished is not None:
            self._same(unfinished, "another sweep that is unfinished", ("digests", "families", "points"))
            if not resume:
                done = f"{len(self.done())} of {len(self.blocks)} blocks done"
                raise Stopped(Exit.UNFINISHED, f"{self.out} holds this sweep, unfinished ({done}): {GO_ON}")
            self._same(unfinished, "this sweep, begun otherwise", ("code", "layouts_per_block"))
        self._tidy()
        if (
            unfinished is None
            and resume
            and summary is not None
            and summary.get("written_points") == self.manifest["points"]
        ):
            self._remove()
            return summary
        if unfinished is None:
            self._clear_points(known=summary is not None)
            write_json(self.folder / "manifest.json", self.manifest)
        return None

    def _tidy(self) -> None:
        """Remove what killed processes left half written."""
        for left in (*self.out.glob(f"{PARTIAL}*"), *self.out.glob(f"*/{PARTIAL}*")):
            shutil.rmtree(left) if left.is_dir() else left.unlink(missing_ok=True)

    def _clear_points(self, *, known: bool) -> None:
        """Remove the points of an earlier run of this sweep; stop where they are somebody else's."""
        parts = list((self.out / "points").glob("part-*.parquet")) if self.points else []
        if parts and not known:
            sentence = f"{self.out / 'points'} holds points of an unknown sweep; give another --out, or remove it"
            raise Stopped(Exit.OTHER_SWEEP, sentence)
        for path in parts:
            path.unlink()

    def _summary(self) -> dict[str, Any] | None:
        return _json(self.out / "summary.json")

    def _same(self, found: dict[str, Any], what: str, keys: tuple[str, ...]) -> None:
        """Stop where a folder's own description differs from this sweep's."""
        for key in keys:
            mine, theirs = self.manifest[key], found.get(key)
            if mine != theirs:
                if isinstance(mine, dict) and isinstance(theirs, dict):
                    key = " and ".join(part for part in mine if mine[part] != theirs.get(part))
                raise Stopped(
                    Exit.OTHER_SWEEP,
                    f"{self.out} holds {what} ({found.get('sweep', 'unknown')!s:.60}: its {key} differs); "
                    "give another --out, or remove that folder",
                )

    def _path(self, index: int) -> Path:
        return self.folder / f"{index:06d}.block"

    def part(self, index: int) -> Path | None:
        """Where a block's points go, if they are kept."""
        return self.out / "points" / f"part-{index:06d}.parquet" if self.points else None

    def done(self) -> list[int]:
        """Blocks that are finished."""
        return sorted(int(path.stem) for path in self.folder.glob("*.block"))

    def save(self, index: int, outcome: Outcome) -> None:
        """Keep a finished block."""
        content = _packed(outcome)
        write_bytes(self._path(index), hashlib.sha256(content).digest() + content)

    def load(self, index: int) -> Evaluated:
        """A finished block; Stopped where its file, or that of its points, is not as it was written."""
        path, part = self._path(index), self.part(index)
        content = path.read_bytes()
        if index >= len(self.blocks) or hashlib.sha256(content[32:]).digest() != content[:32]:
            self._damaged(path, path)
        outcome = _unpacked(content[32:], self.plan)
        if part is not None and file_digest(part) != outcome.points:
            self._damaged(part, path)
        return outcome.evaluated

    def _damaged(self, what: Path, record: Path) -> NoReturn:
        sentence = f"{what} is damaged; remove {record}, and {GO_ON}: only that block is evaluated again"
        raise Stopped(Exit.DAMAGED, sentence)

    def finish(self) -> None:
        """The sweep is complete and its files are written: nothing is left to resume."""
        self._tidy()
        self._remove()

    def _remove(self) -> None:
        gone = self.out / f"{PARTIAL}unfinished"
        self.folder.replace(gone)
        shutil.rmtree(gone)


@contextlib.contextmanager
def _locked(path: Path, out: Path) -> Iterator[None]:
    """Hold a lock file, which the system frees when the process ends, however it ends."""
    try:
        import fcntl
    except ImportError:  # no such lock on this system: two sweeps into one folder are the user's to avoid
        yield
        return
    with path.open("ab") as file:
        os.register_at_fork(after_in_child=file.close)  # a worker that outlives this process by a moment holds no lock
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            mine = path.stat().st_ino == os.fstat(file.fileno()).st_ino
        except (BlockingIOError, FileNotFoundError):
            mine = False
        if not mine:
            raise Stopped(Exit.BUSY, f"{out}: another sweep is writing here; wait for it, or give another --out")
        yield


def _json(path: Path) -> dict[str, Any] | None:
    """A JSON file's mapping; an empty one where it is something else, None where there is no file."""
    try:
        found = json.loads(path.read_bytes())
    except FileNotFoundError:
        return None
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def _packed(outcome: Outcome) -> bytes:
    """An outcome as an npz: the frontiers' columns one below another, the counts as JSON."""
    found = outcome.evaluated
    parts = [f.columns for by_family in found.frontiers.values() for f in by_family.values() if len(f)]
    columns: dict[str, Any] = (
        {name: np.concatenate([part[name] for part in parts]) for name in parts[0]} if parts else {}
    )
    counts = {"layouts": found.layouts, "dropped": found.dropped, "points": outcome.points}
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **columns, counts=np.array(json.dumps(counts)))
    return buffer.getvalue()


def _unpacked(content: bytes, planned: Plan) -> Outcome:
    with np.load(io.BytesIO(content), allow_pickle=False) as arrays:
        columns = {name: arrays[name] for name in arrays.files}
    counts = json.loads(str(columns.pop("counts")))
    frontiers: dict[int, dict[str, Frontier]] = {}
    for context in np.unique(columns["context"]) if columns else ():
        for index, name in enumerate(planned.sweep.families):
            mine = (columns["context"] == context) & (columns["family"] == index)
            part = Frontier(name=name, columns={key: column[mine] for key, column in columns.items()})
            frontiers.setdefault(int(context), {})[name] = part
    evaluated = Evaluated(layouts=counts["layouts"], dropped=counts["dropped"], frontiers=frontiers)
    return Outcome(evaluated=evaluated, points=counts["points"])
