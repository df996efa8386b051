"""Specs: a model, a machine, a clock, a sweep, as YAML files say them. Frozen, and checked on construction."""

from __future__ import annotations

import math
from typing import Annotated, Any, Literal, Self, get_args

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    StrictBool,
    StrictInt,
    StrictStr,
    model_validator,
)
from pydantic.functional_validators import BeforeValidator

from helix_sim.units import GIGA, MICRO, TERA, bytes_per_value, parse_size, said, shortened

LIMIT = 10**12
"""The largest size that is read: beyond any machine, within double precision."""


def _size(value: Any) -> Any:
    return parse_size(value) if isinstance(value, str | int | float) else value


Size = Annotated[int, BeforeValidator(_size), Field(ge=1, le=LIMIT)]
"""A whole number of at least 1; text such as 128K or 1M is read by `units.parse_size`."""
Count = Annotated[StrictInt, Field(ge=1, le=10**9)]
NaturalCount = Annotated[StrictInt, Field(ge=0, le=10**9)]
NumberFormat = Literal["fp4", "mxfp4", "nvfp4", "int4", "fp8", "fp8-block", "int8", "bf16", "fp16", "fp32"]
"""Names of `units.FORMAT_BITS`."""
MathFormat = Literal["fp4", "fp8", "bf16"]
"""Formats that tensor cores multiply in; the machine's profile gives the dense rate of each."""
Text = Annotated[StrictStr, Field(min_length=1)]


class Record(BaseModel):
    """Frozen, and no key that it does not know."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


def _number(value: Any) -> Any:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError(f"{said(value)} is not a number{_exponent_hint(value)}")
    if isinstance(value, int) and value.bit_length() > 1000:
        raise ValueError(f"{said(value)} is too large")
    if not math.isfinite(value):
        raise ValueError(f"{value} is not a finite number")
    return value


def _exponent_hint(value: Any) -> str:
    """YAML 1.1 reads 8e12 as text: say how to write it."""
    if not isinstance(value, str):
        return ""
    try:
        number = float(value)
    except ValueError:
        return ""
    return f"; YAML reads it as text, write {number:.1e}" if math.isfinite(number) else ""


Number = Annotated[float, BeforeValidator(_number)]
Source = Annotated[StrictStr, Field(pattern=r"^(datasheet|measured|assumed)\b.*\S")]


class Quantity(Record):
    """A number and where it comes from: `datasheet: …`, `measured: …` or `assumed: …`."""

    value: Annotated[Number, Field(ge=0)]
    source: Source


class Positive(Quantity):
    """A quantity above zero."""

    value: Annotated[Number, Field(gt=0)]


class Share(Quantity):
    """A share of a datasheet rate that is reached, in (0, 1]."""

    value: Annotated[Number, Field(gt=0, le=1)]


class Fraction(Quantity):
    """A share that may be none, in [0, 1]."""

    value: Annotated[Number, Field(ge=0, le=1)]


class WholeQuantity(Record):
    """A whole number and where it comes from."""

    value: Count
    source: Source


class Flag(Record):
    """A yes or no and where it comes from."""

    value: StrictBool
    source: Source


# --- Model -----------------------------------------------------------------------------------------------------------


class GqaAttention(Record):
    """Grouped-query attention: `kv_heads` heads of keys and values, shared by q_heads / kv_heads queries each."""

    kind: Literal["gqa"]
    q_heads: Count
    kv_heads: Count
    head_size: Count

    @model_validator(mode="after")
    def _heads_divide(self) -> Self:
        if self.q_heads % self.kv_heads:
            raise ValueError(f"q_heads {self.q_heads} is not a multiple of kv_heads {self.kv_heads}")
        return self

    @property
    def cache_width(self) -> int:
        """Values cached per token and KV head: a key and a value."""
        return 2 * self.head_size

    @property
    def score_width(self) -> int:
        """Dimensions of one query-key product."""
        return self.head_size

    @property
    def value_width(self) -> int:
        """Dimensions of one head's (partial) attention output."""
        return self.head_size

    @property
    def output_width(self) -> int:
        """Dimensions of one head's input to the output projection."""
        return self.head_size

    def parameters(self, hidden_size: int) -> int:
        """Weights of the attention block of one layer."""
        return hidden_size * self.head_size * (2 * self.q_heads + 2 * self.kv_heads)


class MlaAttention(Record):
    """Multi-head latent attention, decoded in its absorbed form: one latent per token, shared by all heads."""

    kind: Literal["mla"]
    q_heads: Count
    q_lora_rank: Count
    kv_lora_rank: Count
    rope_width: Count
    nope_width: Count
    output_width: Count

    @property
    def kv_heads(self) -> int:
        """One latent serves every query head."""
        return 1

    @property
    def cache_width(self) -> int:
        """Values cached per token: the latent and the rotary key."""
        return self.kv_lora_rank + self.rope_width

    @property
    def score_width(self) -> int:
        """Dimensions of one absorbed query-key product."""
        return self.kv_lora_rank + self.rope_width

    @property
    def value_width(self) -> int:
        """Dimensions of one head's attention output, still in latent space."""
        return self.kv_lora_rank

    def parameters(self, hidden_size: int) -> int:
        """Weights of the attention block of one layer, with the norms of its two latents."""
        down = hidden_size * (self.q_lora_rank + self.cache_width)
        q_up = self.q_lora_rank * self.q_heads * (self.nope_width + self.rope_width)
        kv_up = self.kv_lora_rank * self.q_heads * (self.nope_width + self.output_width)
        return (
            down + q_up + kv_up + self.q_heads * self.output_width * hidden_size + self.q_lora_rank + self.kv_lora_rank
        )


class Experts(Record):
    """Routed and shared experts of a mixture-of-experts (MoE) layer, each a gated FFN."""

    routed: Count
    top_k: Count
    intermediate_size: Count
    shared: NaturalCount = 0
    shared_intermediate_size: NaturalCount = 0
    routing_skew: Annotated[Number, Field(ge=0, le=4)] = 0.0
    """Exponent of the power law of expert popularity; 0 is uniform routing."""

    @model_validator(mode="after")
    def _top_k_fits(self) -> Self:
        if self.top_k > self.routed:
            raise ValueError(f"top_k {self.top_k} is more than the {self.routed} routed experts")
        if self.shared and not self.shared_intermediate_size:
            raise ValueError("shared experts need shared_intermediate_size, the width of each")
        return self


class Model(Record):
    """A decoder: its attention, its dense layers and its MoE layers."""

    kind: Literal["model"]
    name: Text
    source: Text
    published_parameters_B: Annotated[Number, Field(gt=0)]
    hidden_size: Count
    vocab_size: Count
    tied_embeddings: bool = False
    attention: Annotated[GqaAttention | MlaAttention, Field(discriminator="kind")]
    dense_layers: NaturalCount
    dense_intermediate_size: NaturalCount = 0
    moe_layers: NaturalCount = 0
    experts: Experts | None = None

    @model_validator(mode="after")
    def _layers_are_described(self) -> Self:
        if self.layers == 0:
            raise ValueError("dense_layers and moe_layers are both 0: the model has no layer")
        if self.dense_layers and not self.dense_intermediate_size:
            raise ValueError(f"{self.dense_layers} dense_layers need dense_intermediate_size")
        if bool(self.moe_layers) != (self.experts is not None):
            raise ValueError("moe_layers and experts go together: give both, or neither")
        return self

    @property
    def layers(self) -> int:
        """Decoder layers of any kind."""
        return self.dense_layers + self.moe_layers

    def parameters(self) -> dict[str, int]:
        """Parameters by group; they sum to the model's published count."""
        h, moe = self.hidden_size, self.experts
        return {
            "embedding": self.vocab_size * h,
            "head": 0 if self.tied_embeddings else self.vocab_size * h,
            "norms": h * (2 * self.layers + 1),
            "attention": self.layers * self.attention.parameters(h),
            "dense FFN": self.dense_layers * 3 * h * self.dense_intermediate_size,
            "routed experts": self.moe_layers * moe.routed * 3 * h * moe.intermediate_size if moe else 0,
            "shared experts": self.moe_layers * moe.shared * 3 * h * moe.shared_intermediate_size if moe else 0,
            "router": self.moe_layers * moe.routed * h if moe else 0,
        }

    @property
    def total_parameters(self) -> int:
        """All parameters, without multi-token-prediction modules."""
        return sum(self.parameters().values())

    @property
    def kv_values_per_token(self) -> int:
        """Values cached per token and layer: 2·K·Hsz, or the latent of MLA."""
        return self.attention.kv_heads * self.attention.cache_width


FOLLOWS = {
    "attention_weights": "weights",
    "head_weights": "weights",
    "attention_math": "math",
    "projection_math": "math",
    "output_weights": "attention_weights",
    "output_math": "projection_math",
    "head_math": "math",
    "dispatch": "wire",
    "router_weights": "activations",
}
"""Which format a tensor or an arithmetic has where the file is silent."""


class Precision(Record):
    """Number formats of weights, KV cache, arithmetic and wire; the optional ones follow the first four."""

    weights: NumberFormat
    kv: NumberFormat
    math: MathFormat
    wire: NumberFormat = "bf16"
    activations: NumberFormat = "bf16"
    attention_weights: NumberFormat | None = None
    attention_math: MathFormat | None = None
    projection_math: MathFormat | None = None
    output_weights: NumberFormat | None = None
    """Of the attention's output projection, which checkpoints may quantise where they leave the others in BF16."""
    output_math: MathFormat | None = None
    head_weights: NumberFormat | None = None
    head_math: MathFormat | None = None
    dispatch: NumberFormat | None = None

    def format_of(self, tensor: str) -> str:
        """The format of a tensor or an arithmetic, following its default where the file is silent."""
        if tensor == "router_math":
            return "bf16"
        named: str | None = None if tensor == "router_weights" else getattr(self, tensor)
        return named or self.format_of(FOLLOWS[tensor])

    def bytes_of(self, tensor: str) -> float:
        """Bytes a value of that tensor takes, block scales included."""
        return bytes_per_value(self.format_of(tensor))


# --- Hardware --------------------------------------------------------------------------------------------------------


class Hardware(Record):
    """One GPU and the networks around it. Rates are datasheet peaks, dense, per GPU, per direction."""

    kind: Literal["hardware"]
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


class OpConstants(Record):
    """What a class of ops reaches: a latency for each launch, and a share of each datasheet rate."""

    latency_us: Quantity
    bandwidth_share: Share
    math_share: Share

    @property
    def latency_s(self) -> float:
        """Latency of one launch."""
        return self.latency_us.value * MICRO


class CollectiveConstants(Record):
    """What collectives reach: a latency for each phase, and a share of each link's datasheet rate."""

    latency_us: Quantity
    network_latency_us: Quantity
    nvlink_share: Share
    network_share: Share

    @property
    def latency_s(self) -> float:
        """Latency of one phase inside a domain."""
        return self.latency_us.value * MICRO

    @property
    def network_latency_s(self) -> float:
        """Latency of one phase between domains, on top of the phase inside."""
        return self.network_latency_us.value * MICRO


class Residuals(Record):
    """Measured over modelled time on cells kept out of the fit, as natural logarithms: quantiles and errors."""

    count: NaturalCount
    low: Number
    """A tenth of the cells lie below: they are faster than modelled by this much."""
    median: Number
    high: Number
    """A tenth of the cells lie above."""
    median_error: Annotated[Number, Field(ge=0)]
    mean_error: Annotated[Number, Field(ge=0)]
    """Absolute errors |modelled / measured - 1|."""

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if not self.low <= self.median <= self.high:
            raise ValueError(f"low {self.low}, median {self.median} and high {self.high} do not rise")
        return self


class KernelClass(Record):
    """One class of kernels as measured: the name of its shape, the shape's parameters, what was measured, how well."""

    shape: Text
    source: Source
    parameters: dict[Text, Quantity]
    largest: dict[Text, Annotated[Number, Field(gt=0)]] = {}
    """Largest measured size by name of a Work's field; what is larger is extrapolated."""
    residuals: Residuals

    @property
    def values(self) -> dict[str, float]:
        """Parameters by name, without their sources."""
        return {name: quantity.value for name, quantity in self.parameters.items()}


class Composition(Record):
    """How well kernels add up: whole modules of a step, timed as one, over the sum of their kernels."""

    source: Source
    low: Annotated[Number, Field(gt=-1, le=0)]
    """Of the sum: an 80 % interval's lower end, less what the kernels' own residuals explain."""
    high: Annotated[Number, Field(ge=0)]
    residuals: Residuals
    """Measured over summed, as it is."""


class Calibration(Record):
    """Measured kernels of one framework on one system, by class, and what its steps take outside of kernels."""

    system: Text
    framework: Text
    package: Text
    sms: WholeQuantity
    l2_MB: Positive
    tray_gpus: WholeQuantity
    """GPUs that share a board; collectives that leave it pay another latency."""
    step_overhead_us: Quantity
    """Host and launch overhead of one step, outside all kernels."""
    composition: Composition | None = None
    """What all kernels of a step share of its interval."""
    classes: dict[Text, KernelClass]
    """By op class and number format: gemm-nvfp4; an op class alone serves all formats."""


class Clock(Record):
    """Constants that turn Work into seconds: the same for every model, layout and figure."""

    kind: Literal["clock"]
    name: Text
    description: Text
    kernel: OpConstants
    pointwise: OpConstants
    collective: CollectiveConstants
    all_reduce_overlap: Fraction
    """Share of an all-reduce's transfer, or of the product before it, that runs behind the other."""
    chunk_latency: Fraction
    """Share of its latencies that each HOP-B chunk after the first pays; 0 splits one latency among all."""
    shared_expert_overlap: Fraction
    """Share of the shared experts' launch latency that runs behind the routed experts."""
    calibration: Calibration | None = None
    """Measured kernels; the constants above stand in where a class was not measured."""

    def of(self, op_class: str) -> OpConstants:
        """Constants of a class of kernels."""
        return self.pointwise if op_class in ("pointwise", "grouped-pointwise") else self.kernel


# --- Sweep -----------------------------------------------------------------------------------------------------------

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
    hardware: Text
    clock: Text
    precision: Precision
    contexts: Annotated[list[Size], Field(min_length=1)]
    gpus: GpuRange
    batch: BatchRange
    chunks: Annotated[list[Count | Literal["batch"]], Field(min_length=1)] = [1]
    families: Annotated[dict[Text, Family], Field(min_length=1)]
    groups: dict[Text, Annotated[list[Text], Field(min_length=1)]] = {}
    """Named unions of families whose frontiers are compared, such as baseline and helix."""

    @model_validator(mode="after")
    def _groups_name_families(self) -> Self:
        for group, members in self.groups.items():
            if group in self.families:
                raise ValueError(f"groups.{group} has the name of a family; give the group another")
            for member in members:
                if member not in self.families:
                    raise ValueError(f"groups.{group} names {said(member)}, which is not a family of this sweep")
        return self


class Stopped(Exception):
    """A long job that cannot go on, in a sentence for the user; `code` is the command's exit code."""

    def __init__(self, code: int, sentence: str) -> None:
        self.code, self.sentence = code, sentence
        super().__init__(code, sentence)


class SpecError(ValueError):
    """Every problem found in a file or a request, each a sentence, however long the value that it quotes."""

    def __init__(self, problems: list[str]) -> None:
        self.problems = [shortened(problem, 900) for problem in problems]
        super().__init__("\n".join(self.problems))
