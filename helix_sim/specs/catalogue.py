"""What is shipped, as tables: models and machines with what a reader looks for first. And whether files are right."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from helix_sim.core.display import Rows, Short
from helix_sim.core.errors import SpecError
from helix_sim.core.units import GIGA
from helix_sim.specs.load import check_content, load_machine, load_model, read_yaml, shipped
from helix_sim.specs.model import Model
from helix_sim.specs.older_words import older_words
from helix_sim.specs.values import Positive, Record


def models() -> Rows:
    """The shipped models, a record each: parameters computed and published [1e9], layers, KV cache per token."""
    return Rows(_model_row(name) for name in shipped("model"))


def machines() -> Rows:
    """The shipped machines, a record each: rates [GB/s, TFLOP/s], memory [GB], GPUs of the NVLink domain."""
    return Rows(_machine_row(name) for name in shipped("machine"))


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class Checked(Short):
    """A file and what it holds, or what is wrong with it; remarks are sentences on what should be written otherwise."""

    path: Path
    record: Record | None
    problems: list[str]
    remarks: list[str]

    def row(self) -> dict[str, Any]:
        """The file as a row of plain data."""
        kind, name = (getattr(self.record, key, None) for key in ("kind", "name"))
        told = {"problems": self.problems, "remarks": self.remarks}
        return {"path": str(self.path), "kind": kind, "name": name, **told}


def check(paths: Sequence[str | Path]) -> list[Checked]:
    """What each file holds (a model, machine, timing, sweep or framework), or each of its problems in a sentence."""
    return [_checked(Path(path)) for path in paths]


def _checked(path: Path) -> Checked:
    try:
        content = read_yaml(path)
        record = check_content(content, str(path), path.parent)
    except SpecError as error:
        return Checked(path=path, record=None, problems=error.problems, remarks=[])
    doubt = record.doubt if isinstance(record, Model) else None
    remarks = [f"{path}: {text}" for text in (*older_words(content), *([doubt] if doubt else []))]
    return Checked(path=path, record=record, problems=[], remarks=remarks)


def _model_row(name: str) -> dict[str, Any]:
    model = load_model(name)
    return {
        "name": name,
        "attention": ", ".join(sorted({attention.kind for attention in model.attention.values()})),
        "layers": model.layer_count,
        "parameters_B": model.total_parameters / GIGA,
        "published_parameters_B": model.published_parameters_B,
        "kv_values_per_token": model.kv_values_per_token,
    }


def _machine_row(name: str) -> dict[str, Any]:
    machine = load_machine(name)
    rates: dict[str, Positive | None] = {
        kind: getattr(machine, f"{kind}_dense_TFLOPs") for kind in ("bf16", "fp8", "fp4")
    }
    return {
        "name": name,
        "hbm_GBps": machine.hbm_bandwidth_GBps.value,
        "memory_GB": machine.memory_GB.value,
        **{f"{kind}_dense_TFLOPs": rate.value if rate else None for kind, rate in rates.items()},
        "nvlink_GBps": machine.nvlink_per_direction_GBps.value,
        "nvlink_domain": machine.domain,
        "network_GBps": machine.network_per_direction_GBps.value,
    }
