"""Layouts a second beside tools that a user might pick instead: one model, one machine, one run, medians of rounds.

    python -m venv aic && aic/bin/pip install aiconfigurator
    python -m venv genz && genz/bin/pip install genz-llm
    git clone https://github.com/alibaba/InferSim && git clone https://github.com/hahnyuan/LLM-Viewer
    python tests/benchmarks/peers.py --aiconfigurator aic/bin/python --genz genz/bin/python --infersim InferSim \\
        --llm-viewer LLM-Viewer

Llama-3.1-70B on H100 at 8,000 tokens, the search of paper-llama-3.1-405b, eight GPUs for the peers; DeepSeek-R1 on
GB200 at a million tokens, the search of paper-deepseek-r1, 64 GPUs (dp = ep = 64, a layout that aiconfigurator has
tables for). Each peer is asked what it knows: genz-llm and LLM-Viewer the first, InferSim the second, aiconfigurator
both; one that is not given is skipped, and the output says so. Rounds take turns, so that a noisy machine is noisy for
all, and count the CPU time of one process. Each peer runs as its documentation says, and then as fast as we found it
can: aiconfigurator with its session kept and only the batch changed, once with its memory check and once for the
latency alone; InferSim without what it prints and with its files read once; LLM-Viewer with its model's config at hand.
"""

import argparse
import os
import statistics
import subprocess
import sys
from pathlib import Path

COMMON = """
import json, sys, time
def rate(call, items, each=1, seconds=1.0):
    items, begun, count = list(items), time.process_time(), 0
    while time.process_time() - begun < seconds:
        call(items[count % len(items)])
        count += 1
    print(json.dumps(each * count / (time.process_time() - begun)))
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
import pandas as pd
from helix_sim.core.layout import Layout
from helix_sim.search.frame import decode_step, evaluate
from helix_sim.search.plan import plan
from helix_sim.specs.load import load_sweep, parse
from helix_sim.specs.sweep import Sweep
from helix_sim.search.sweep import run_plan
planned = plan(parse(Sweep, load_sweep(SWEEP).model_dump(by_alias=True) | CHANGED, "benchmark"))
def one(batch): return decode_step(planned.model, planned.machine, Layout(batch=batch, **LAYOUT),
                                   planned.sweep.contexts[0], timing=planned.timing, precision=planned.sweep.precision)
found = run_plan(planned)
dropped = sum(sum(reasons.values()) for reasons in found.dropped.values())
def sweeps(layouts): rate(lambda _: run_plan(planned), range(1), layouts)
frame = pd.DataFrame([LAYOUT | {"batch": batch} for batch in range(1, 1025)])
def rows(_): evaluate(planned.setting, frame, context=planned.sweep.contexts[0])
"""
)

INFERSIM = (
    COMMON
    + """
import builtins, functools, io, os
from types import SimpleNamespace
os.chdir(FOLDER)
sys.path.insert(0, FOLDER)
from config.model_config import ModelConfig
from models.model import Model
quiet, kept = io.StringIO(), {}
def read_once(path, mode="r", *rest, real=builtins.open, **options):
    if "bench_data" not in str(path):
        return real(path, mode, *rest, **options)
    if path not in kept:
        kept[path] = real(path, mode, *rest, **options).read()
    return io.StringIO(kept[path])
import contextlib
options = dict(world_size=64, tp_size=1, num_nodes=1, max_prefill_tokens=4096, target_tgs=2560, target_tpot=50,
               target_osl=2, use_fp8_gemm=True, use_fp8_kv=True, enable_deepep=False, enable_tbo=False, sm_ratio=1.0)
config = ModelConfig(options.pop("config_path", CONFIG))
def estimate(batch):
    with contextlib.redirect_stdout(quiet):
        model = Model(SimpleNamespace(**options, **WHAT, decode_bs=batch), config)
        model.print_weights_info(); model.print_kvcache_info(); model.print_flops_info(); model.decoding()
    quiet.seek(0); quiet.truncate()
model = Model(SimpleNamespace(**options, **WHAT, decode_bs=8), config)
with contextlib.redirect_stdout(quiet):
    model.print_weights_info(); model.print_kvcache_info(); model.print_flops_info()
def decoding(batch):
    model.target_bs = batch
    with contextlib.redirect_stdout(quiet):
        model.decoding()
    quiet.seek(0); quiet.truncate()
def keep_files(): builtins.open = read_once
"""
)

LLM_VIEWER = (
    COMMON
    + """
import importlib, os
from types import ModuleType, SimpleNamespace
os.chdir(FOLDER)
sys.path.insert(0, FOLDER)
sys.modules["transformers"] = hub = ModuleType("transformers")  # it downloads configs; the one it needs is here
hub.AutoTokenizer = hub.AutoConfig = hub.AutoModelForCausalLM = None
from model_analyzer import ModelAnalyzer
analyzer = ModelAnalyzer.__new__(ModelAnalyzer)
analyzer.model_id, analyzer.hardware, analyzer.results = "Llama", HARDWARE, None
analyzer.model_params = SimpleNamespace(**MODEL)
analyzer.config = importlib.import_module("configs.Llama")
def estimate(batch): analyzer.analyze(seqlen=8000, batchsize=batch, w_bit=16, a_bit=16, kv_bit=16)
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
        "llm_viewer": """
HARDWARE = "nvidia_H100"
MODEL = dict(hidden_size=8192, intermediate_size=28672, num_attention_heads=64, num_key_value_heads=8,
             num_hidden_layers=80, vocab_size=128256)
""",
    },
    "DeepSeek-R1, GB200, 1,000,000 tokens": {
        "ours": """
SWEEP, LAYOUT, CHANGED = "paper-deepseek-r1", dict(dp=64, ep=64), {}
""",
        "aiconfigurator": """
WHAT = dict(model_path="deepseek-ai/DeepSeek-R1", system_name="gb200", isl=1_000_000, tp_size=1, attention_dp_size=64,
            moe_tp_size=1, moe_ep_size=64)
""",
        "infersim": """
CONFIG, WHAT = "hf_configs/deepseek_v3_config.json", dict(device_type="GB200", target_isl=1_000_000)
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
    "helix_sim, a frame of 1,024 layouts": ("ours", HELIX_SIM, "rate(rows, range(1), len(frame))"),
    "helix_sim, one layout at a time": ("ours", HELIX_SIM, "rate(one, {batches})"),
    "aiconfigurator, its API": ("aiconfigurator", AICONFIGURATOR, "rate(estimate, {batches})"),
    "aiconfigurator, session kept": ("aiconfigurator", AICONFIGURATOR, f"rate(with_memory, {DISTINCT})"),
    "aiconfigurator, session kept, latency alone": ("aiconfigurator", AICONFIGURATOR, f"rate(latency, {DISTINCT})"),
    "genz-llm": ("genz", GENZ, "rate(estimate, {batches})"),
    "InferSim": ("infersim", INFERSIM, "rate(estimate, {batches})"),
    "InferSim, model and files kept, decoding alone": ("infersim", INFERSIM, "keep_files(); rate(decoding, {batches})"),
    "LLM-Viewer": ("llm_viewer", LLM_VIEWER, "rate(estimate, {batches})"),
}
"""Name: (whose interpreter or folder, what to import, what to measure)."""

SUM = """
import numpy as np
a, b, c = (np.full((64, 1024), value) for value in (2.0, 3.0, 0.0))
def bare(_):
    np.multiply(a, 61.0, out=c)
    np.add(c, b, out=c)
rate(bare, range(1), c.size)
"""
"""The least that a search does for a layout that it adds up: attention times layers and the rest, 24 bytes."""


def measured(python, setup, call):
    """Layouts a second of one case in a fresh process."""
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2]) if python == sys.executable else ""}
    run = [python, "-c", f"{setup}\n{call}"]
    shown = subprocess.run(run, capture_output=True, text=True, check=False, env=environment)
    if shown.returncode:
        raise SystemExit(f"{python}: {shown.stderr.strip()[-2000:]}")
    return float(shown.stdout.splitlines()[-1])


def measure(given, rounds):
    """Rates of every case of whose peer is given, by subject and name, and of numpy's bare sum."""
    found = {
        subject: {name: [] for name, (whose, _, _) in CASES.items() if given.get(whose) and whose in asked}
        for subject, asked in SUBJECTS.items()
    }
    sums = []
    for _ in range(rounds):
        sums.append(measured(sys.executable, COMMON, SUM))
        for subject, cases in found.items():
            for name, rates in cases.items():
                whose, setup, call = CASES[name]
                python = given[whose] if whose in ("aiconfigurator", "genz") else sys.executable
                setup = f"FOLDER = {given[whose]!r}\n{SUBJECTS[subject][whose]}{setup}"
                rates.append(measured(python, setup, call.format(batches=BATCHES[subject])))
    return found, sums


SKIPPED = {
    "aiconfigurator": "--aiconfigurator names no interpreter that has it",
    "genz": "--genz names no interpreter that has genz-llm",
    "infersim": "--infersim names no folder of it",
    "llm_viewer": "--llm-viewer names no folder of it",
}
"""Why a peer is not among the cases."""


def as_markdown(found, sums, given):
    """The medians of each subject as a table, their extremes, and how many times more a sweep does."""
    lines = []
    for subject, cases in found.items():
        lines += [f"{subject}:", "", "| what | layouts/s | least to most | a sweep that runs, of all |"]
        lines += ["| --- | ---: | ---: | ---: |"]
        run, every, *_ = (statistics.median(rates) for rates in cases.values())
        for name, rates in cases.items():
            middle = statistics.median(rates)
            times = f"{run / middle:,.1f} x, {every / middle:,.1f} x"
            lines.append(f"| {name} | {middle:,.0f} | {min(rates):,.0f} to {max(rates):,.0f} | {times} |")
        lines.append("")
    limit = statistics.median(sums)
    lines.append(
        f"The limit of one core: numpy adds up {limit / 1e6:,.0f} million layouts a second from columns that are in "
        "its cache, attention times layers and the rest, 24 bytes a layout. A search finds those, too, and compares."
    )
    lines += [
        f"\nSkipped: {name.replace('_', '-')}, since {why}." for name, why in SKIPPED.items() if not given.get(name)
    ]
    return "\n".join(lines)


def main():
    """Print each case's median, its extremes, and how many times faster a sweep is."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    at_hand = {name: os.environ.get(f"HELIX_SIM_{name.upper()}") for name in SKIPPED}
    for name, what in (("aiconfigurator", "aiconfigurator"), ("genz", "genz-llm")):
        parser.add_argument(
            f"--{name}", metavar="PYTHON", help=f"an interpreter that has {what}", default=at_hand[name]
        )
    for name, what in (("infersim", "InferSim"), ("llm_viewer", "LLM-Viewer")):
        option = f"--{name.replace('_', '-')}"
        parser.add_argument(option, metavar="FOLDER", help=f"a checkout of {what}", default=at_hand[name])
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    given = {"ours": sys.executable, **{name: getattr(options, name) for name in SKIPPED}}
    given |= {name: str(Path(given[name]).resolve()) for name in ("infersim", "llm_viewer") if given[name]}
    print(as_markdown(*measure(given, options.rounds), given))


if __name__ == "__main__":
    main()
