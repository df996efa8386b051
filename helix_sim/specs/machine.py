"""A machine as its YAML file says it: one GPU and the networks around it."""

from __future__ import annotations

import math
from functools import cached_property
from typing import Any, Literal, Self, get_args

from pydantic import Field, model_validator

from helix_sim.core.errors import SpecError
from helix_sim.core.units import GIGA, MEGA, TERA
from helix_sim.specs.public_tables import PublicTables
from helix_sim.specs.values import Flag, MathFormat, Name, Positive, Quantity, Record, WholeQuantity

KERNEL_FACTS = ("sms", "l2_MB", "tray_gpus")
"""What measured kernels ask of a machine beyond its rates."""
HOUR = 3600.0
"""Seconds."""
TABLE_FACTS = (*KERNEL_FACTS, "off_board_us", "fp8_attention")
"""What a fit to public tables asks of a machine beyond its rates."""


class Power(Record):
    """What a GPU draws at full load, and what serves it: its share of the host, of the switches, and of the cooling."""

    accelerator_W: Quantity = Field(description="one GPU with its memory, at its limit [W]")
    host_W: Quantity = Field(description="a GPU's share of processors, memory, NICs and fans of its node [W]")
    switch_W: Quantity = Field(description="a GPU's share of the NVLink switches outside its node [W]")
    cooling_share: Quantity = Field(
        description="cooling and conversion on top of all that, as a share of it: PUE less 1 [1]"
    )

    @property
    def watts(self) -> float:
        """Power of the plant for each GPU [W]."""
        drawn = self.accelerator_W.value + self.host_W.value + self.switch_W.value
        return drawn * (1 + self.cooling_share.value)


class Machine(Record):
    """One GPU and the networks around it. Rates are datasheet peaks, dense, per GPU, per direction."""

    kind: Literal["machine"] = Field(description="says that the file is a machine's [name]")
    name: Name = Field(description="the file's name without its ending [name]")
    maker: Literal["amd"] | None = Field(
        None, description="amd, where its kernels are ROCm's; unless said they are CUDA's [name]"
    )
    gpus: WholeQuantity = Field(description="GPUs of the largest system that is searched [GPUs]")
    hbm_bandwidth_GBps: Positive = Field(description="HBM bandwidth of one GPU [GB/s]")
    memory_GB: Positive = Field(description="memory of one GPU as its driver sees it [GB]")
    memory_reserve_GB: Quantity = Field(
        description="memory of one GPU that weights, cache and activations may not fill [GB]"
    )
    bf16_dense_TFLOPs: Positive = Field(description="dense BF16 rate of one GPU's tensor cores [TFLOP/s]")
    fp8_dense_TFLOPs: Positive | None = Field(None, description="dense FP8 rate of one GPU's tensor cores [TFLOP/s]")
    fp4_dense_TFLOPs: Positive | None = Field(None, description="dense FP4 rate of one GPU's tensor cores [TFLOP/s]")
    nvlink_per_direction_GBps: Positive = Field(description="NVLink bandwidth of one GPU in one direction [GB/s]")
    nvlink_domain_gpus: WholeQuantity = Field(description="GPUs that NVLink connects with each other [GPUs]")
    nvlink_switch_reduces: Flag = Field(
        description="whether the NVLink switches add and multicast (NVLink SHARP) [yes or no]"
    )
    network_per_direction_GBps: Positive = Field(description="scale-out bandwidth of one GPU in one direction [GB/s]")
    sms: WholeQuantity | None = Field(
        None, description="streaming multiprocessors of one GPU; measured timings ask [SMs]"
    )
    l2_MB: Positive | None = Field(None, description="L2 cache of one GPU; measured timings ask [MB]")
    tray_gpus: WholeQuantity | None = Field(
        None, description="GPUs that share a board; collectives that leave it pay another latency [GPUs]"
    )
    off_board_us: Quantity | None = Field(
        None, description="latency of leaving the board, where public tables measured one board alone [µs]"
    )
    fp8_attention: Flag | None = Field(
        None, description="whether attention multiplies in FP8 where its cache is FP8 [yes or no]"
    )
    usd_per_gpu_hour: Quantity | None = Field(None, description="what an hour of one GPU costs [USD/hour]")
    power: Power | None = Field(None, description="what one GPU and its share of the plant draw [mapping]")
    public_tables: PublicTables | None = Field(
        None, description="where the public package has this machine's kernels [mapping]"
    )

    @model_validator(mode="after")
    def _tables_have_their_facts(self) -> Self:
        if self.public_tables and (missing := [name for name in TABLE_FACTS if getattr(self, name) is None]):
            raise ValueError(f"public_tables need {', '.join(missing)} as well: fits to them ask")
        return self

    @model_validator(mode="after")
    def _memory_is_left(self) -> Self:
        if self.memory_reserve_GB.value >= self.memory_GB.value:
            reserve, memory = self.memory_reserve_GB.value, self.memory_GB.value
            raise ValueError(f"memory_reserve_GB {reserve:g} leaves nothing of memory_GB {memory:g}")
        return self

    @cached_property
    def hbm_bytes_per_s(self) -> float:
        """Peak HBM bandwidth of one GPU [B/s]."""
        return self.hbm_bandwidth_GBps.value * GIGA

    @cached_property
    def memory_bytes(self) -> float:
        """Memory of one GPU that weights, KV cache and activations may fill [B]."""
        return (self.memory_GB.value - self.memory_reserve_GB.value) * GIGA

    @cached_property
    def nvlink_bytes_per_s(self) -> float:
        """NVLink bandwidth of one GPU in one direction [B/s]."""
        return self.nvlink_per_direction_GBps.value * GIGA

    @cached_property
    def network_bytes_per_s(self) -> float:
        """Scale-out bandwidth of one GPU in one direction [B/s]."""
        return self.network_per_direction_GBps.value * GIGA

    def usd_per_million_tokens(self, tokens_per_s_gpu: Any) -> Any:
        """Cost of a million new tokens at a throughput of each GPU [USD]; NaN where the file has no price."""
        price = self.usd_per_gpu_hour.value if self.usd_per_gpu_hour else math.nan
        return price * 1e6 / HOUR / tokens_per_s_gpu

    def joules_per_token(self, tokens_per_s_gpu: Any) -> Any:
        """Energy of a new token [J] if every GPU and its plant draw full power; NaN where the file has none."""
        return (self.power.watts if self.power else math.nan) / tokens_per_s_gpu

    def at_price(self, usd_per_gpu_hour: float | None) -> Machine:
        """The machine at another price of a GPU [USD/hour], as somebody gives it; itself without one."""
        if usd_per_gpu_hour is None:
            return self
        given = Quantity(value=usd_per_gpu_hour, source="assumed: given in place of the machine's own")
        return self.model_copy(update={"usd_per_gpu_hour": given})

    @property
    def price_in_words(self) -> str:
        """The price of a GPU and the first word of its source, such as `$10.5 a GPU-hour, assumed`; empty of none."""
        price = self.usd_per_gpu_hour
        return f"${price.value:g} a GPU-hour, {price.source.partition(':')[0]}" if price else ""

    def lacks(self, against: str) -> str:
        """Why a cost cannot be said on this machine, with what to do; empty where it can, or nothing of cost is asked.

        against: a column, such as usd_per_million_tokens.
        """
        if against == "usd_per_million_tokens" and self.usd_per_gpu_hour is None:
            return f"{self.name} has no usd_per_gpu_hour in its file: give --usd-per-gpu-hour, or a file that has it"
        if against == "joules_per_token" and self.power is None:
            return f"{self.name} has no power in its file: give a file that has it"
        return ""

    @property
    def domain(self) -> int:
        """GPUs in one NVLink domain."""
        return self.nvlink_domain_gpus.value

    @property
    def math_formats(self) -> list[str]:
        """Arithmetic this machine has a dense tensor-core rate for, fastest first."""
        return [name for name in get_args(MathFormat) if getattr(self, f"{name}_dense_TFLOPs") is not None]

    @cached_property
    def kernel_facts(self) -> tuple[int, float, int]:
        """Streaming multiprocessors, bytes of L2 cache and GPUs on a board; SpecError where the file lacks one."""
        if self.sms is None or self.l2_MB is None or self.tray_gpus is None:
            missing = ", ".join(name for name in KERNEL_FACTS if getattr(self, name) is None)
            raise SpecError(
                [f"{self.name} has no {missing}, which measured timings ask of a machine; add it to its file"]
            )
        return self.sms.value, self.l2_MB.value * MEGA, self.tray_gpus.value

    def flops_per_s(self, number_format: str) -> float:
        """Dense tensor-core rate of one GPU in an arithmetic [FLOP/s]."""
        rate = getattr(self, f"{number_format}_dense_TFLOPs")
        if rate is None:
            known = " or ".join(self.math_formats)
            raise SpecError([f"{self.name} has no {number_format} arithmetic; use {known}"])
        return float(rate.value) * TERA
