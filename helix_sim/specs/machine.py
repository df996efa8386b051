"""A machine as its YAML file says it: one GPU and the networks around it."""

from __future__ import annotations

from typing import Literal, get_args

from helix_sim.core.errors import SpecError
from helix_sim.core.units import GIGA, TERA
from helix_sim.specs.values import Flag, MathFormat, Positive, Quantity, Record, Text, WholeQuantity


class Machine(Record):
    """One GPU and the networks around it. Rates are datasheet peaks, dense, per GPU, per direction."""

    kind: Literal["machine"]
    name: Text
    gpus: WholeQuantity
    hbm_bandwidth_GBps: Positive
    memory_GB: Positive
    memory_reserve_GB: Quantity
    bf16_dense_TFLOPs: Positive
    fp8_dense_TFLOPs: Positive | None = None
    fp4_dense_TFLOPs: Positive | None = None
    nvlink_per_direction_GBps: Positive
    nvlink_domain_gpus: WholeQuantity
    nvlink_switch_reduces: Flag
    network_per_direction_GBps: Positive

    @property
    def hbm_bytes_per_s(self) -> float:
        """Peak HBM bandwidth."""
        return self.hbm_bandwidth_GBps.value * GIGA

    @property
    def memory_bytes(self) -> float:
        """Memory that weights, KV cache and activations may fill."""
        return (self.memory_GB.value - self.memory_reserve_GB.value) * GIGA

    @property
    def nvlink_bytes_per_s(self) -> float:
        """NVLink bandwidth of one GPU in one direction."""
        return self.nvlink_per_direction_GBps.value * GIGA

    @property
    def network_bytes_per_s(self) -> float:
        """Scale-out bandwidth of one GPU in one direction."""
        return self.network_per_direction_GBps.value * GIGA

    @property
    def domain(self) -> int:
        """GPUs in one NVLink domain."""
        return self.nvlink_domain_gpus.value

    @property
    def math_formats(self) -> list[str]:
        """Arithmetic this machine has a dense tensor-core rate for, fastest first."""
        return [name for name in get_args(MathFormat) if getattr(self, f"{name}_dense_TFLOPs") is not None]

    def flops_per_s(self, number_format: str) -> float:
        """Dense tensor-core rate of an arithmetic."""
        rate = getattr(self, f"{number_format}_dense_TFLOPs")
        if rate is None:
            known = " or ".join(self.math_formats)
            raise SpecError([f"{self.name} has no {number_format} arithmetic; use {known}"])
        return float(rate.value) * TERA
