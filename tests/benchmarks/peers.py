"""Layouts a second beside tools that a user might pick instead: one model, one machine, one run, medians of rounds.

    python -m venv aic && aic/bin/pip install aiconfigurator
    python -m venv genz && genz/bin/pip install genz-llm
    python tests/benchmarks/peers.py --aiconfigurator aic/bin/python --genz genz/bin/python

Llama-3.1-70B on H100 at 8,000 tokens, the search of paper-llama-3.1-405b, eight GPUs for the peers; DeepSeek-R1 on
GB200 at a million tokens, the search of paper-deepseek-r1, 64 GPUs (dp = ep = 64, a layout that aiconfigurator has
tables for), without genz-llm, which knows neither. Rounds take turns, so that a noisy machine is noisy for all. Each
peer runs as its documentation says, and then as fast as we found it can: aiconfigurator with its session kept and only
the batch changed, once with its memory check and once for the latency alone. InferSim and LLM-Viewer are not on PyPI.
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
    return api.cli_estimate(mode="static_gen", batch_size=batch, osl=2, **WHAT)
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
from helix_sim.core.layout import Layout
from helix_sim.specs.load import load_sweep, parse
from helix_sim.search.plan import plan
from helix_sim.specs.values import Sweep
from helix_sim.search.frame import decode_step
from helix_sim.search.sweep import run_plan
planned = plan(parse(Sweep, load_sweep(SWEEP).model_dump(by_alias=True) | CHANGED, "benchmark"))
def one(batch): return decode_step(planned.model, planned.machine, Layout(batch=batch, **LAYOUT),
                                   planned.sweep.contexts[0], timing=planned.timing, precision=planned.sweep.precision)
found = run_plan(planned)
dropped = sum(sum(reasons.values()) for reasons in found.dropped.values())
def sweeps(layouts):
    begun = time.perf_counter()
    run_plan(planned)
    print(json.dumps(layouts / (time.perf_counter() - begun)))
"""
)

SUBJECTS = {
    "Llama-3.1-70B, H100, 8,000 tokens": {
        "ours": """
SWEEP, LAYOUT = "paper-llama-3.1-405b", dict(tpa=8, tpf=8)
CHANGED = {"model": "llama-3.1-70b", "machine": "h100-hgx", "contexts": [8000],
           "precision": {"weights": "bf16", "kv": "bf16", "math": "bf16"}}
""",
        "aiconfigurator": """
WHAT = dict(model_path="meta-llama/Meta-Llama-3.1-70B", system_name="h100_sxm", isl=8000, tp_size=8)
""",
        "genz": "",
    },
    "DeepSeek-R1, GB200, 1,000,000 tokens": {
        "ours": """
SWEEP, LAYOUT, CHANGED = "paper-deepseek-r1", dict(dp=64, ep=64), {}
""",
        "aiconfigurator": """
WHAT = dict(model_path="deepseek-ai/DeepSeek-R1", system_name="gb200", isl=1_000_000, tp_size=1, attention_dp_size=64,
            moe_tp_size=1, moe_ep_size=64)
""",
    },
}
"""What is asked of each: model, machine, context, and the peers' layout."""

BATCHES = {"Llama-3.1-70B, H100, 8,000 tokens": "range(1, 33)", "DeepSeek-R1, GB200, 1,000,000 tokens": "range(1, 5)"}
"""Those that fit, for what is asked again and again."""
DISTINCT = "map(at, range(1, 200_001))"
"""Each batch once: a peer that remembers its answers gets no credit for being asked again, as a sweep never asks."""

CASES = {
    "helix_sim, a sweep: layouts that run": ("ours", HELIX_SIM, "sweeps(found.layouts - dropped)"),
    "helix_sim, a sweep: all layouts": ("ours", HELIX_SIM, "sweeps(found.layouts)"),
    "helix_sim, one layout at a time": ("ours", HELIX_SIM, "rate(one, {batches})"),
    "aiconfigurator, its API": ("aiconfigurator", AICONFIGURATOR, "rate(estimate, {batches})"),
    "aiconfigurator, session kept": ("aiconfigurator", AICONFIGURATOR, f"rate(with_memory, {DISTINCT})"),
    "aiconfigurator, session kept, latency alone": ("aiconfigurator", AICONFIGURATOR, f"rate(latency, {DISTINCT})"),
    "genz-llm": ("genz", GENZ, "rate(estimate, {batches})"),
}
"""Name: (whose interpreter, what to import, what to measure)."""


def measured(python, setup, call):
    """Layouts a second of one case in a fresh process."""
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2]) if python == sys.executable else ""}
    run = [python, "-c", f"{setup}\n{call}"]
    shown = subprocess.run(run, capture_output=True, text=True, check=True, env=environment)
    return float(shown.stdout.splitlines()[-1])


def main():
    """Print each case's median, its extremes, and how many times faster a sweep is."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--aiconfigurator", metavar="PYTHON", help="an interpreter that has aiconfigurator")
    parser.add_argument("--genz", metavar="PYTHON", help="an interpreter that has genz-llm")
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    pythons = {"ours": sys.executable, "aiconfigurator": options.aiconfigurator, "genz": options.genz}
    found = {
        subject: {name: [] for name, (whose, _, _) in CASES.items() if pythons[whose] and whose in asked}
        for subject, asked in SUBJECTS.items()
    }
    for _ in range(options.rounds):
        for subject, cases in found.items():
            for name, rates in cases.items():
                whose, setup, call = CASES[name]
                setup = SUBJECTS[subject][whose] + setup
                rates.append(measured(pythons[whose], setup, call.format(batches=BATCHES[subject])))
    for subject, cases in found.items():
        print(f"{subject}: rate, its extremes, how many times more layouts that run, and all, a sweep does")
        run, every, *_ = (statistics.median(rates) for rates in cases.values())
        for name, rates in cases.items():
            middle, extremes = statistics.median(rates), f"({min(rates):,.0f} to {max(rates):,.0f})"
            print(f"  {name:45} {middle:13,.0f}/s  {extremes:28} {run / middle:11,.1f}x {every / middle:11,.1f}x")
    print(json.dumps(found))


if __name__ == "__main__":
    main()
