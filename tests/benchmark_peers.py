"""Layouts a second beside tools that a user might pick instead: one model, one machine, one run, medians of rounds.

    python -m venv aic && aic/bin/pip install aiconfigurator
    python -m venv genz && genz/bin/pip install genz-llm
    python tests/benchmark_peers.py --aiconfigurator aic/bin/python --genz genz/bin/python

Llama-3.1-70B on H100, 8,000 tokens of context, eight GPUs for the peers. Rounds take turns, so that a noisy machine is
noisy for all. Each peer runs as its documentation says, and then as fast as we found it can: aiconfigurator with its
session kept and only the batch changed, once with its memory check and once for the latency alone.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
from pathlib import Path

COMMON = """
import json, sys, time
def rate(call, items, seconds=2.0):
    items, begun, count = list(items), time.perf_counter(), 0
    while time.perf_counter() - begun < seconds:
        call(items[count % len(items)])
        count += 1
    print(json.dumps(count / (time.perf_counter() - begun)))
"""

AICONFIGURATOR = (
    COMMON
    + """
import copy, logging
logging.disable(logging.CRITICAL)
from aiconfigurator.cli import api
from aiconfigurator.sdk.inference_session import InferenceSession
kept, real = [], InferenceSession.run_static
def spy(session, *arguments, **options):
    kept.append((session, options))
    return real(session, *arguments, **options)
InferenceSession.run_static = spy
def estimate(batch):
    return api.cli_estimate("meta-llama/Meta-Llama-3.1-70B", "h100_sxm", mode="static_gen", batch_size=batch,
                            isl=8000, osl=2, tp_size=8)
estimate(8)
session, options = kept[0]
def at(batch):
    config = copy.copy(options["runtime_config"])
    config.batch_size = batch
    return config
def with_memory(config): return real(session, **options | {"runtime_config": config})
def latency(config): return session.run_static_latency_only(config, "static_gen")
"""
)

GENZ = (
    COMMON
    + """
import warnings
warnings.simplefilter("ignore")
from GenZ import decode_moddeling
def estimate(batch):
    return decode_moddeling(model="meta-llama/Llama-3.1-70B", batch_size=batch, Bb=1, input_tokens=8000,
                            output_tokens=1, system_name="H100_GPU", tensor_parallel=8, bits="bf16",
                            parallelism_heirarchy="TP{8}_EP{1}_PP{1}")
estimate(8)
"""
)

HELIX_SIM = (
    COMMON
    + """
from helix_sim.layout import Layout
from helix_sim.load import load_clock, load_hardware, load_model, load_sweep, parse
from helix_sim.plan import plan
from helix_sim.spec import Sweep
from helix_sim.step import decode_step
from helix_sim.sweep import run_plan
spec = load_sweep("paper-llama-3.1-405b").model_dump(by_alias=True) | {
    "model": "llama-3.1-70b", "hardware": "h100-hgx", "contexts": [8000],
    "precision": {"weights": "bf16", "kv": "bf16", "math": "bf16"}}
planned = plan(parse(Sweep, spec, "benchmark"))
model, hardware, clock = load_model("llama-3.1-70b"), load_hardware("h100-hgx"), load_clock("paper")
def sweep(_): return run_plan(planned)
def one(batch): return decode_step(model, hardware, Layout(batch=batch, tpa=8, tpf=8), 8000, clock=clock,
                                   precision=planned.sweep.precision)
found = sweep(0)
dropped = sum(sum(reasons.values()) for reasons in found.dropped.values())
def sweeps(times):
    begun = time.perf_counter()
    run_plan(planned)
    print(json.dumps(times / (time.perf_counter() - begun)))
"""
)

BATCHES = "range(1, 33)"
DISTINCT = "range(1, 200_001)"
"""Each batch once: a peer that remembers its answers gets no credit for being asked again, as a sweep never asks."""

CASES = {
    "helix_sim, a sweep: layouts that run": ("ours", HELIX_SIM, "sweeps(found.layouts - dropped)"),
    "helix_sim, a sweep: all layouts": ("ours", HELIX_SIM, "sweeps(found.layouts)"),
    "helix_sim, one layout at a time": ("ours", HELIX_SIM, f"rate(one, {BATCHES})"),
    "aiconfigurator, its API": ("aiconfigurator", AICONFIGURATOR, f"rate(estimate, {BATCHES})"),
    "aiconfigurator, session kept": ("aiconfigurator", AICONFIGURATOR, f"rate(with_memory, map(at, {DISTINCT}))"),
    "aiconfigurator, session kept, latency alone": (
        "aiconfigurator",
        AICONFIGURATOR,
        f"rate(latency, map(at, {DISTINCT}))",
    ),
    "genz-llm": ("genz", GENZ, f"rate(estimate, {BATCHES})"),
}
"""Name: (whose interpreter, what to import, what to measure)."""


def measured(python, setup, call):
    """Layouts a second of one case in a fresh process."""
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[1]) if python == sys.executable else ""}
    run = [python, "-c", f"{setup}\n{call}"]
    shown = subprocess.run(run, capture_output=True, text=True, check=True, env=environment)
    return float(shown.stdout.splitlines()[-1])


def main():
    """Print each case's median, its extremes, and how many times the first case is faster."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--aiconfigurator", metavar="PYTHON", help="an interpreter that has aiconfigurator")
    parser.add_argument("--genz", metavar="PYTHON", help="an interpreter that has genz-llm")
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    pythons = {"ours": sys.executable, "aiconfigurator": options.aiconfigurator, "genz": options.genz}
    found = {name: [] for name, (whose, _, _) in CASES.items() if pythons[whose]}
    for _ in range(options.rounds):
        for name, rates in found.items():
            whose, setup, call = CASES[name]
            rates.append(measured(pythons[whose], setup, call))
    first = statistics.median(next(iter(found.values())))
    for name, rates in found.items():
        middle = statistics.median(rates)
        print(f"{name:45} {middle:14,.0f}/s  ({min(rates):,.0f} to {max(rates):,.0f})  {first / middle:12,.1f}x")
    print(json.dumps(found))


if __name__ == "__main__":
    main()
