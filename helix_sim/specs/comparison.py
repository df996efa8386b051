"""A comparison as its YAML file says it: models on machines at contexts within latencies, each cell's best layout."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import Field

from helix_sim.core.text import is_path
from helix_sim.specs.sweep import AGAINST, Against, BatchRange, Gpus
from helix_sim.specs.values import LIMIT, Count, Name, Number, Record, Size, Text


class Comparison(Record):
    """Models x machines x contexts x latency budgets x timings; the best layout of each is a row of the answer."""

    kind: Literal["comparison"] = Field(description="what this file describes [name]")
    name: Name = Field(default="comparison", description="the comparison in titles and file names [name]")
    description: Text = Field(default="best layouts side by side", description="one line for titles [text]")
    models: Annotated[list[Text], Field(min_length=1)] = Field(
        description="shipped models, or paths of models' files [list of names]"
    )
    machines: Annotated[list[Text], Field(min_length=1)] = Field(
        description="shipped machines, or paths of machines' files [list of names]"
    )
    contexts: Annotated[list[Size], Field(min_length=1)] = Field(
        description="tokens in each request's KV cache [list of tokens]"
    )
    ttl_ms: Annotated[list[Annotated[Number, Field(ge=1 / LIMIT, le=LIMIT)]], Field(min_length=1)] = Field(
        description="latency budgets of a token [list of ms]"
    )
    timings: Annotated[list[Text], Field(min_length=1)] = Field(
        default=["auto"],
        description="timings by name or path; auto is the fastest of those measured on the machine, paper where none "
        "is [list of names]",
    )
    formats: Text | None = Field(
        default=None, description="number formats, as --formats takes them; the checkpoint's unless given [name]"
    )
    stack: Literal["any", "none", "trtllm", "vllm", "sglang"] = Field(
        default="any", description="serving stack that must start a layout; any of them, or none asked [name]"
    )
    families: list[Text] | None = Field(
        default=None, description="families of layouts that are searched; all that are shipped unless given [list]"
    )
    gpus: Gpus | None = Field(
        default=None, description="GPU counts of a layout; up to one NVLink domain unless given [mapping or list]"
    )
    batch: BatchRange = Field(
        default=BatchRange.model_validate({"dense_to": 64, "growth": 1.05, "to": 8192}),
        description="requests that one attention group decodes at a time [mapping]",
    )
    chunks: Annotated[list[Count | Literal["batch"]], Field(min_length=1)] = Field(
        default=[1, 4, "batch"], description="HOP-B pieces of the batch that families with hop_b try [list]"
    )
    usd_per_gpu_hour: dict[Text, Annotated[Number, Field(gt=0, le=LIMIT)]] = Field(
        default={}, description="prices by machine, in place of the machines' own [mapping, USD/hour]"
    )
    against: Against | None = Field(default=None, description=AGAINST)

    def in_folder(self, folder: Path) -> Self:
        """The comparison, with relative paths in it as paths that start in a folder, such as that of its file."""

        def at(name: str) -> str:
            return os.path.abspath(folder / name) if is_path(name) or name.endswith(".json") else name

        several = {field: [at(name) for name in getattr(self, field)] for field in ("models", "machines", "timings")}
        prices = {at(name): usd for name, usd in self.usd_per_gpu_hour.items()}
        formats = at(self.formats) if self.formats is not None else None
        return self.model_copy(update={**several, "formats": formats, "usd_per_gpu_hour": prices})
