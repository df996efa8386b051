"""Which file an input of an answer came from, and what was in it: its identity, which its name is not."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from helix_sim.core.errors import SpecError
from helix_sim.core.text import is_path, said, shortened
from helix_sim.specs.draft import Draft
from helix_sim.specs.load import find, load_model, shipped
from helix_sim.specs.sweep import Sweep
from helix_sim.specs.values import Record

R = TypeVar("R", bound=Record)


@dataclass(frozen=True, slots=True, kw_only=True)
class Input:
    """A model, machine, timing or sweep of an answer.

    file: its shipped name, or the absolute path of its YAML file; empty of a record that was made in Python.
    digest: twelve hex digits of its values.
    """

    file: str
    digest: str

    def record(self) -> dict[str, str]:
        """The input as plain data, as an answer holds it."""
        return {"file": self.file, "digest": self.digest} if self.file else {"digest": self.digest}


def digest(record: Record) -> str:
    """Twelve hex digits that change with any value of a record or of the model that a draft names, and nothing else."""
    content = record.model_dump(mode="json", exclude_none=True)
    if isinstance(record, Draft) and record.model is not None:
        content["model"] = load_model(record.located(record.model)).model_dump(mode="json", exclude_none=True)
    return digest_of(content)


def digest_of(content: Any) -> str:
    """Twelve hex digits that change with any value of plain data."""
    text = json.dumps(content, sort_keys=True, ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def sweep_input(sweep: Sweep) -> Input:
    """The sweep as an input: its shipped name, or the path of the file that it was read from."""
    name = str(sweep.file or "")
    if (
        sweep.file is not None
        and sweep.file.stem in shipped("sweep")
        and find("sweep", sweep.file.stem).absolute() == sweep.file
    ):
        name = sweep.file.stem
    return Input(file=os.path.realpath(name) if is_path(name) else name, digest=digest(sweep))


def input_of(name: Record | str | Path, record: Record) -> Input:
    """The input that a name or a path has loaded; one made in Python has no file."""
    named = "" if isinstance(name, Record) else str(name)
    return Input(file=os.path.realpath(named) if is_path(named) else named, digest=digest(record))


def read_input(content: Any, kind: str, shown: str) -> Input:
    """One of the `inputs` of an answer; SpecError where it is none, or has no file."""
    part = content.get(kind) if isinstance(content, Mapping) else None
    if not isinstance(part, Mapping) or not isinstance(part.get("digest"), str):
        raise SpecError([f"{shown}: inputs.{kind} is missing: the file and the digest of its {kind}"])
    if not isinstance(part.get("file"), str):
        raise SpecError([f"{shown}: inputs.{kind} has no file: that {kind} was made in Python, and is no more"])
    return Input(file=part["file"], digest=part["digest"])


def load_unchanged(load: Callable[[str], R], kind: str, written: Input, shown: str) -> R:
    """The record that an answer was computed with; SpecError where its file is gone, or holds other values by now."""
    require_there(kind, written, shown)
    found = load(written.file)
    if (now := digest(found)) != written.digest:
        raise SpecError([changed(written.file, shown, written.digest, now)])
    return found


def require_there(kind: str, written: Input, shown: str) -> None:
    """SpecError where the file of an input of an answer is gone."""
    try:
        find(kind, written.file)
    except SpecError:
        file = said(written.file)
        raise SpecError([f"{shown}: its {kind} {file} is gone; put it back, or run again what wrote {shown}"]) from None


def changed(file: str, shown: str, before: str, now: str) -> str:
    """The sentence on an input that is not what it was."""
    digests = f"digest {shortened(before, 12)}, now {now}"
    return f"{file} has changed since {shown} was written ({digests}): run again what wrote {shown}"
