"""A sweep as its YAML file says it: what is searched."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import Field, PrivateAttr, StrictInt, model_validator

from helix_sim.core.files import is_path
from helix_sim.core.text import said
from helix_sim.specs.precision import Precision
from helix_sim.specs.values import Count, Number, Record, Size, Text

Axis = Literal["free", "many"] | Count
"""A width of a family: every divisor (`free`), every divisor of at least 2 (`many`), or one number."""


class Family(Record):
    """A way to shard, as data: which widths are free, and what the FFN grid spans."""

    title: Text
    tpa: Axis = 1
    kvp: Axis = 1
    dp: Axis = 1
    pp: Axis = 1
    ep: Axis = 1
    ffn_on: Literal["all", "tpa"] = "all"
    """The FFN grid tpf·ep spans every GPU of the stage, or only the tpa GPUs of one KV shard (Medha)."""
    hop_b: bool = False
    tpa_at_most_kv_heads: bool = False


class GpuRange(Record):
    """GPU counts from the first to the last, each one of them."""

    first: Count = Field(default=1, alias="from")
    last: Count = Field(alias="to")

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.first > self.last:
            raise ValueError(f"from {self.first} is more than to {self.last}")
        if self.last > 4096:
            raise ValueError(f"to {self.last} is more than 4096 GPUs")
        return self


class BatchRange(Record):
    """Batch sizes: every whole number up to `dense_to`, then steps of `growth` up to `to`."""

    dense_to: Count
    growth: Annotated[Number, Field(gt=1, le=4)]
    last: Annotated[StrictInt, Field(ge=1, le=10**6)] = Field(alias="to")

    def values(self) -> list[int]:
        """The batch sizes, rising.

        >>> BatchRange.model_validate({"dense_to": 4, "growth": 1.5, "to": 14}).values()
        [1, 2, 3, 4, 6, 9, 13]
        """
        sizes = list(range(1, min(self.dense_to, self.last) + 1))
        while (following := max(sizes[-1] + 1, int(sizes[-1] * self.growth))) <= self.last:
            sizes.append(following)
        return sizes


class Sweep(Record):
    """A search: one model on one machine, every layout of the families, every batch, every context."""

    kind: Literal["sweep"]
    name: Text
    description: Text
    model: Text
    machine: Text
    timing: Text
    precision: Precision
    contexts: Annotated[list[Size], Field(min_length=1)]
    gpus: GpuRange
    batch: BatchRange
    chunks: Annotated[list[Count | Literal["batch"]], Field(min_length=1)] = [1]
    families: Annotated[dict[Text, Family], Field(min_length=1)]
    groups: dict[Text, Annotated[list[Text], Field(min_length=1)]] = {}
    """Named unions of families whose frontiers are compared, such as baseline and helix."""
    _file: Path | None = PrivateAttr(default=None)

    @property
    def file(self) -> Path | None:
        """The YAML file that the sweep was read from; None of one that was written in Python."""
        return self._file

    def read_from(self, path: Path) -> Self:
        """The sweep, with the file that it was read from: relative paths in it start in that file's folder."""
        copied = self.model_copy()
        copied._file = path.absolute()
        return copied

    def name_of(self, part: Literal["model", "machine", "timing"]) -> str:
        """The sweep's model, machine or timing, as a loader takes it: a shipped name, or a path that can be opened."""
        name: str = getattr(self, part)
        return str(self._file.parent / name) if self._file is not None and is_path(name) else name

    def with_timing(self, timing: str | None) -> Self:
        """The sweep under another timing; a path starts where the process stands. None changes nothing."""
        if timing is None:
            return self
        return self.model_copy(update={"timing": os.path.abspath(timing) if is_path(timing) else timing})

    @model_validator(mode="after")
    def _groups_name_families(self) -> Self:
        for group, members in self.groups.items():
            if group in self.families:
                raise ValueError(f"groups.{group} has the name of a family; give the group another")
            for member in members:
                if member not in self.families:
                    raise ValueError(f"groups.{group} names {said(member)}, which is not a family of this sweep")
        return self
