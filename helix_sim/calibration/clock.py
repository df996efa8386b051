"""A clock of one framework on one system: every class fitted, and what a step takes outside of kernels."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from helix_sim import silicon
from helix_sim.calibration.classes import measurements
from helix_sim.calibration.composition import composition
from helix_sim.calibration.fit import L2_MB, MACHINES, SMS, TRAY, Calibrated, Fitted, bare_gpu, fit
from helix_sim.load import load_clock, load_hardware
from helix_sim.spec import Calibration, Clock, KernelClass, Positive, Quantity, WholeQuantity


def calibrate(
    system: str,
    framework: str,
    say: Callable[[str], None] = lambda _: None,
) -> Calibrated:
    """Fit every class of one framework on one system, and make a clock of them."""
    hardware = load_hardware(MACHINES[system]) if system in MACHINES else None
    found = measurements(system, framework)
    assert hardware is not None
    gpu = bare_gpu(hardware, system)
    fitted: dict[str, Fitted] = {}
    for measured in found:
        fitted[measured.name] = fit(measured, gpu, hardware.flops_per_s)
        errors = fitted[measured.name].record.residuals
        say(f"{measured.name}: {errors.count} held out, median {errors.median_error:.1%}, mean {errors.mean_error:.1%}")
    made = _clock(system, framework, fitted)
    assert made.calibration is not None
    sums = composition(made)
    say(f"whole modules over the sum of their kernels: {sums.residuals.low:+.1%} to {sums.residuals.high:+.1%}")
    whole = made.calibration.model_copy(update={"composition": sums})
    return Calibrated(clock=made.model_copy(update={"calibration": whole}), fitted=fitted)


STEP_OVERHEAD_US = {"trtllm": (310, 73), "sglang": (420, 32), "vllm": (810, 6)}
"""What a step takes outside of kernels, and how many development servings ask for it (studies.validate.overheads)."""


def _step_overhead(framework: str) -> Quantity:
    value, rows = STEP_OVERHEAD_US[framework]
    asked = "helix-sim validate --end-to-end: least mean |ln error|"
    return Quantity(value=value, source=f"measured: {rows} development servings of {framework}, {asked}")


NETWORK_SHARE = {
    "value": 0.75,
    "source": "measured: DeepEP low latency over two nodes of H100, 36 to 39 GB/s of 50, aiconfigurator-core 0.12.0",
}


def _clock(system: str, framework: str, fitted: Mapping[str, Fitted]) -> Clock:

    paper = load_clock("paper").model_dump()
    classes = {name: each.record for name, each in fitted.items()}
    classes["grouped-pointwise"] = _inside_grouped(classes)
    return Clock.model_validate(
        paper
        | {
            "name": f"{system}-{framework}",
            "description": f"kernels of {framework} as measured on {system.upper()}, {silicon.DISTRIBUTION} "
            f"{silicon.VERSION}",
            "all_reduce_overlap": {"value": 0, "source": "assumed: these frameworks reduce after the product"},
            "collective": paper["collective"] | {"network_share": NETWORK_SHARE},
            "calibration": Calibration(
                system=system,
                framework=framework,
                package=f"{silicon.DISTRIBUTION} {silicon.VERSION}",
                sms=WholeQuantity(value=SMS[system], source="datasheet: streaming multiprocessors of this GPU"),
                l2_MB=Positive(value=L2_MB[system], source="datasheet: L2 cache of this GPU"),
                tray_gpus=WholeQuantity(value=TRAY[system], source="datasheet: GPUs on one board"),
                step_overhead_us=_step_overhead(framework),
                classes=classes,
            ),
        }
    )


def _inside_grouped(classes: Mapping[str, KernelClass]) -> KernelClass:
    """The activation between the products of routed experts: inside the measured kernel, so its bytes alone."""
    of = next(record for name, record in classes.items() if name.startswith("grouped-gemm"))
    return of.model_copy(
        update={
            "shape": "stream",
            "parameters": {
                "latency_us": Quantity(value=0, source="measured: fused with the products"),
                "bandwidth_share": of.parameters["bandwidth_share"],
            },
            "largest": {},
        }
    )
