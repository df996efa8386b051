"""Whole verbs on hostile files: `python tests/fuzz/verbs.py [KIND …] --count 10000 --seed 0`.

KIND: explain, capacity, draft, check, sweep, regress, report, recommend, fleet (recommend of a total of GPUs, with a
price and a draft), compare, answer (export, trace, explain, capacity and sensitivity of a tampered answer), folder (a
tampered folder of a sweep), formats, import, options (any verb, with words that mean something to somebody in its
options); all of them unless given. Each run changes a few places of files that are right, to values of another type or
to extremes of their own, and runs the verb in this process, as its command does. A traceback, 2 s of processor time or
1 GB of memory is a failure, which is printed with its seed.
"""

import argparse
import collections
import contextlib
import copy
import functools
import io
import json
import os
import random
import resource
import shutil
import signal
import sys
import tempfile
import time
import traceback
from pathlib import Path

import yaml

if __name__ == "__main__":  # from this folder's parent, as the suite has it
    sys.path[0] = str(Path(__file__).parents[1])
from fuzz import fuzz

MOST_SECONDS = 2.0
MOST_BYTES = 2**30
MOST_LAYOUTS = 30_000
"""Of a search that is run: a larger one takes its time rightly, and is planned alone."""

SWEEP = {
    "kind": "sweep",
    "name": "small",
    "description": "a few hundred layouts",
    "model": "./model.yaml",
    "machine": "./machine.yaml",
    "timing": "./timing.yaml",
    "precision": {"weights": "fp8", "kv": "fp8", "math": "fp8"},
    "contexts": ["128K", 4096],
    "gpus": {"from": 1, "to": 4},
    "batch": {"dense_to": 2, "growth": 2.0, "to": 8},
    "chunks": [1, "batch"],
    "families": {
        "tp": {"title": "tensor parallel", "tpa": "free"},
        "helix": {"title": "Helix", "tpa": "free", "kvp": "many", "ep": "free", "hop_b": True},
    },
    "groups": {"both": ["tp", "helix"]},
}
EXTREMES = [0, 1, 2, 3, 7, 63, 4097, 10**6, 10**9, 10**12, 10**15, 2**63, 1e-300, 5e-324, 1e-9, 0.5, 1e9, 1e30, 1e300]
WORDS = [
    "1M",
    "fp4",
    "bf16",
    "nvfp4",
    "mla",
    "routed",
    "free",
    "batch",
    "9" * 30,
    "1e999",
    "../model.yaml",
    "/dev/zero",
]
WORDS += ["llama-3.1-8b", "paper", "$x$ $y$", "$", "[b]", "\u202e"]
CELLS = ("", "0", "-1", "nan", "inf", "1e300", "9" * 14, "tp", "x", '"', "=1", "\x1b", "1e-300")
DEEP: dict = functools.reduce(lambda inner, _: {"a": [inner]}, range(40), {})
HUGE = [
    *fuzz.HOSTILE[:-2],
    DEEP,
    [1] * 20_000,
    ["tp"] * 5_000,
    {f"k{i}": i for i in range(3_000)},
    "\u202e",
    "\x9b2J",
    "1:30",
]


class Hang(BaseException):
    """A verb that takes too long; nothing that it runs catches this."""


# --- Files that are right --------------------------------------------------------------------------------------------


@functools.cache
def right(name):
    """The content of a shipped file, by folder and name."""
    from helix_sim.specs.load import data_folder

    folder, _, stem = name.rpartition("/")
    return yaml.safe_load((data_folder(folder) / f"{stem}.yaml").read_bytes())


def spec_files(rng):
    """A model, a machine and a timing that are right: shipped files by the name of their own."""
    from helix_sim.specs.load import shipped

    model, machine = rng.choice(["llama-3.1-8b", *shipped("model")]), rng.choice(shipped("machine"))
    timing = rng.choice(["timings/paper", "timings/paper", "timings/ideal"])
    named = f"{machine.partition('-')[0]}-vllm"
    measured = f"measured_timings/{named}" if named in shipped("timing") else timing
    chosen = {
        "model.yaml": f"model_specs/{model}",
        "machine.yaml": f"hardware_profiles/{machine}",
        "timing.yaml": f"hardware_profiles/{measured if rng.random() < 0.2 else timing}",
    }
    return chosen


@functools.cache
def pool():
    """A folder for files that stay as they are; a link to one of them is read once."""
    return Path(tempfile.mkdtemp(prefix="fuzz-"))


def put(path, name):
    """A shipped file, by folder and name, at a path."""
    kept = pool() / f"{name.replace('/', '.')}.yaml"
    if not kept.exists():
        write(kept, right(name))
    path.unlink(missing_ok=True)
    os.link(kept, path)


# --- Changes ---------------------------------------------------------------------------------------------------------


def changed(rng, content):
    """The content with a few places changed."""
    mild = rng.random() < 0.5  # numbers by numbers alone: such files are read, and computed with
    for _ in range(rng.choice([1, 1, 1, 2, 4])):
        parent, key = place(rng, content, numbers=mild)
        if key is None:
            return content
        old = parent[key]
        kind = 9 if mild else rng.randrange(10)
        if kind == 0 and isinstance(parent, dict):
            del parent[key]
        elif kind == 1 and isinstance(parent, dict):
            parent[rng.choice(["", "a b", "=1", "__proto__", "\x1b[2J", "x" * 300, "kind", str(key).upper()])] = old
        elif kind == 2:
            parent[key] = copy.deepcopy(rng.choice(HUGE))
        elif kind == 3 and isinstance(old, list):
            parent[key] = rng.choice([old * 50, old[::-1], old[:1], [old], []])
        elif isinstance(old, int | float) and not isinstance(old, bool):
            near = [old * 2, old / 2, old + 1, old * 10, old / 64]
            number = rng.choice(rng.choice([near, near, [old * 1000, -old], EXTREMES] if mild else [near, EXTREMES]))
            parent[key] = int(number) if isinstance(old, int) and rng.random() < 0.8 else number
        elif isinstance(old, str):
            among = [
                old.upper(),
                old + "\n",
                f" {old}",
                "1M",
                "fp4",
                "bf16",
                "nvfp4",
                "mla",
                "routed",
                "free",
                "batch",
                "9" * 30,
            ]
            parent[key] = rng.choice(
                [*among, "1e999", "../model.yaml", "/dev/zero", "llama-3.1-8b", "paper", "$x$ $y$"]
            )
        else:
            parent[key] = copy.deepcopy(rng.choice(HUGE))
    return content


def place(rng, content, numbers=False):
    """Some place in nested data, of a number if so asked: (what holds it, its key); (None, None) for none."""
    if numbers:
        found = [(parent, key) for parent, key in places(content) if type(parent[key]) in (int, float)]
        return rng.choice(found or [(None, None)])
    here, parent, key = content, None, None
    while isinstance(here, dict | list) and here and (key is None or rng.random() < 0.85):
        parent, key = here, rng.choice(list(here)) if isinstance(here, dict) else rng.randrange(len(here))
        here = parent[key]
    return parent, key


def places(content):
    """Every place in nested data: (what holds it, its key)."""
    for key, value in content.items() if isinstance(content, dict) else enumerate(content):
        yield content, key
        if isinstance(value, dict | list):
            yield from places(value)


class Anyhow(yaml.SafeDumper):
    """Writes what YAML has no word for as text."""


class Fast(getattr(yaml, "CSafeDumper", yaml.SafeDumper)):
    """The same, ten times as fast, but not of halves of surrogate pairs."""


for _dumper in (Anyhow, Fast):
    _dumper.add_representer(None, lambda dumper, value: dumper.represent_str(repr(value)[:200]))
    _dumper.ignore_aliases = lambda self, value: True


def write(path, content):
    """Content as JSON or YAML, in whatever way it can be written."""
    if path.suffix == ".json":
        text = json.dumps(content, default=str, skipkeys=True)
    else:
        try:
            text = yaml.dump(content, Dumper=Fast, sort_keys=False)
        except UnicodeEncodeError:
            text = yaml.dump(content, Dumper=Anyhow, sort_keys=False)
    path.unlink(missing_ok=True)  # it may be a link to a file that stays as it is
    path.write_bytes(text.encode("utf-8", "surrogatepass"))


def write_specs(rng, folder, *more):
    """A model, a machine and a timing into a folder, with `more` by name; some of them changed."""
    files = spec_files(rng) | dict(more)
    touched = rng.sample(list(files), rng.choice([1, 1, 2]))
    for name, content in files.items():
        if name not in touched and isinstance(content, str):
            put(folder / name, content)
        else:
            own = copy.deepcopy(right(content)) if isinstance(content, str) else content
            write(folder / name, changed(rng, own) if name in touched else own)


# --- Verbs -----------------------------------------------------------------------------------------------------------


def a_layout(rng, folder):
    """A verb's words for some layout of the folder's model and machine."""
    axis = rng.choice(["tpa", "kvp", "ep", "batch", "index-kvp", "q-shards", "microbatches", "redundant-experts"])
    odd = f"--{axis}={rng.choice([0, 2, 3, 64, 10**12])}"
    usual = ["--tpa=1", "--tpa=2", "--tpa=8", "--tpa=8", "--tpa=8 --ep=8", "--dp=8 --ep=8", "--dp=4 --tpa=2 --ep=8"]
    usual += ["--tpa=2 --kvp=4 --batch=8 --chunks=4", "--tpa=4 --pp=2", "--dp=8 --ep=8 --batch=8 --microbatches=2"]
    usual += ["--kvp=8 --index-kvp=2", "--tpa=2 --kvp=4 --q-shards=4", "--dp=8 --ep=8 --redundant-experts=8"]
    words = rng.choice([*usual, *usual, odd, f"{rng.choice(usual)} {odd}"]).split()
    files = [str(folder / "model.yaml"), str(folder / "machine.yaml"), f"--timing={folder / 'timing.yaml'}"]
    context = f"--context={rng.choice(['8K', '8K', '8K', '100K', '1', '1T'])}"
    return [*files, *words, context, *rng.choice([[], ["--json"]])]


def of_explain(rng, folder):
    write_specs(rng, folder)
    return ["explain", *a_layout(rng, folder), *rng.choice([[], [], ["--usd-per-gpu-hour=2"]])]


def of_capacity(rng, folder):
    write_specs(rng, folder)
    return [
        "capacity",
        *a_layout(rng, folder),
        *rng.choice([[], [], ["--mix=32K:0.7,1M:0.3"], ["--mix=1:1e-300,1T:1"]]),
    ]


def of_draft(rng, folder):
    from helix_sim.specs.load import shipped

    draft = copy.deepcopy(right(f"model_specs/drafts/{rng.choice(shipped('draft'))}"))
    if rng.random() < 0.2:
        draft = {key: draft[key] for key in ("kind", "name", "target", "source", "acceptance")}
        draft |= {"method": "external", "model": rng.choice(["llama-3.1-8b", "model.yaml", "x"])}
    model = next((name for name in shipped("model") if name == draft.get("target")), "deepseek-r1")
    put(folder / "model.yaml", f"model_specs/{model}")
    if rng.random() < 0.25:
        write(folder / "model.yaml", changed(rng, copy.deepcopy(right(f"model_specs/{model}"))))
    else:
        draft = changed(rng, draft)
    write(folder / "draft.yaml", draft)
    given = [str(folder / "model.yaml"), "gb200-nvl72", f"--draft={folder / 'draft.yaml'}", "--context=8K"]
    if rng.random() < 0.2:
        few = ["--gpus=8", "--family=tp", "--ttl-ms=50", f"--draft-tokens={rng.choice(['0,1', '2', '65', '1,1'])}"]
        return ["recommend", *given, *few]
    drafts = f"--draft-tokens={rng.choice([0, 1, 1, 2, 3, 8, 64, 65, 10**9])}"
    verb = rng.choice(["explain", "explain", "capacity", "trace", "sensitivity"])
    out = [f"--out={folder / 'trace.json'}"] if verb == "trace" else []
    return [verb, *given, "--tpa=8", drafts, *out, *rng.choice([[], ["--batch=64"], ["--json"]])]


def of_check(rng, folder):
    write_specs(rng, folder, ("sweep.yaml", copy.deepcopy(SWEEP)))
    return ["check", *(str(path) for path in sorted(folder.glob("*.yaml")))]


def small_sweep(rng, folder):
    """A sweep's file, or None where it is of too many layouts to run here."""
    write_specs(rng, folder, ("sweep.yaml", copy.deepcopy(SWEEP)))
    return small(folder / "sweep.yaml")


def small(path):
    """A sweep's file, or None where it is of too many layouts to run here."""
    from helix_sim.core.errors import SpecError
    from helix_sim.search.plan import plan
    from helix_sim.specs.load import load_sweep

    try:
        return path if plan(load_sweep(path)).layouts <= MOST_LAYOUTS else None
    except SpecError:
        return path


def of_sweep(rng, folder):
    path = small_sweep(rng, folder)
    return path and [
        "sweep",
        str(path),
        f"--out={folder / 'out'}",
        "--executor=serial",
        *rng.choice([[], ["--json"], ["--points=all"]]),
    ]


def of_report(rng, folder):
    path = small_sweep(rng, folder)
    return path and ["report", str(path), f"--out={folder / 'report.html'}"]


@functools.cache
def right_baseline():
    """The text of a baseline of the small sweep, and the files that it rests on."""
    from helix_sim.cli.base import app

    with tempfile.TemporaryDirectory() as name, silence():
        folder = Path(name)
        files = {each: right(name) for each, name in spec_files(random.Random(0)).items()} | {"sweep.yaml": SWEEP}
        for each, content in files.items():
            write(folder / each, content)
        app(["regress", str(folder / "sweep.yaml"), f"--baseline={folder}", "--update"], standalone_mode=False)
        return (folder / "small.csv").read_text(), files


def of_regress(rng, folder):
    from helix_sim.gate import baseline

    text, files = right_baseline()
    files = copy.deepcopy(files)
    if rng.random() < 0.3:
        name = rng.choice(list(files))
        files[name] = changed(rng, files[name])
    for each, content in files.items():
        write(folder / each, content)
    lines = text.splitlines()
    for _ in range(rng.choice([0, 1, 1, 3])):
        at = rng.randrange(len(lines))
        cells = lines[at].split(",") if not lines[at].startswith("#") else lines[at].split(": ", 1)
        cells[rng.randrange(len(cells))] = rng.choice(
            ["", "0", "-1", "nan", "inf", "1e300", "9" * 14, "tp", "x", '"', "=1", "\x1b", "1e-300"]
        )
        lines[at] = (": " if lines[at].startswith("#") else ",").join(cells)
        if rng.random() < 0.2:
            del lines[at]
    body = "\n".join(line for line in lines if not line.startswith("# check: "))
    if rng.random() < 0.9:
        right = f"# check: {baseline.short_hash(body)}"
        lines = [right if line.startswith("# check: ") else line for line in lines]
    (folder / "small.csv").write_text("\n".join(lines) + "\n")
    outs = [f"--{name}={folder / name}" for name in ("markdown", "junit", "json-file")]
    more = rng.choice([[], ["--update"], ["--curves-only"]])
    path = small(folder / "sweep.yaml")
    return path and ["regress", str(path), f"--baseline={folder}", *outs, *more]


def of_recommend(rng, folder):
    write_specs(rng, folder)
    files = [str(folder / "model.yaml"), str(folder / "machine.yaml"), f"--timing={folder / 'timing.yaml'}"]
    context = rng.choice(["1", "8K", "1M", "32K:0.7,1M:0.3", "1K:1e-300,1M:1", "1T"])
    return [
        "recommend",
        *files,
        "--gpus=2",
        "--family=tp",
        f"--ttl-ms={rng.choice(['5', '1e-3', '1e300'])}",
        f"--context={context}",
    ]


def of_fleet(rng, folder):
    write_specs(rng, folder)
    files = [str(folder / "model.yaml"), str(folder / "machine.yaml"), f"--timing={folder / 'timing.yaml'}"]
    total = rng.choice(["--total-gpus=1", "--total-gpus=7", "--total-gpus=144", "--racks=2", "--total-gpus=1T"])
    more = rng.choice([[], ["--objective=per-gpu"], ["--confidence=0.9"], ["--min-users=1G"], ["--json"]])
    price = rng.choice([[], ["--usd-per-gpu-hour=1e-300"], ["--usd-per-gpu-hour=1e300"]])
    few = ["--gpus-at-most=2", "--family=tp", f"--ttl-ms={rng.choice(['5', '50', '1e300'])}", "--context=8K"]
    return ["recommend", *files, *few, total, *more, *price]


COMPARISON = {
    "kind": "comparison",
    "name": "small",
    "models": ["model.yaml"],
    "machines": ["machine.yaml"],
    "contexts": ["128K", 4096],
    "ttl_ms": [5, 50.0],
    "timings": ["timing.yaml"],
    "stack": "none",
    "families": ["tp", "helix"],
    "gpus": {"from": 1, "to": 4},
    "batch": {"dense_to": 2, "growth": 2.0, "to": 8},
    "chunks": [1, "batch"],
    "usd_per_gpu_hour": {"machine.yaml": 3},
}


def of_compare(rng, folder):
    write_specs(rng, folder)
    content = copy.deepcopy(COMPARISON) | rng.choice([{}, {}, {"stack": "any"}, {"formats": "narrowest"}])
    content = changed(rng, content) if rng.random() < 0.7 else content
    write(folder / "comparison.yaml", content)
    if not is_small_comparison(folder / "comparison.yaml"):
        return None
    out = [f"--out={folder / 'out'}"] if rng.random() < 0.05 else []
    return ["compare", str(folder / "comparison.yaml"), *out, *rng.choice([[], ["--json"]])]


def is_small_comparison(path):
    """Whether a comparison is refused, or of few enough layouts to run here."""
    from helix_sim.cli.compare import comparison_of
    from helix_sim.core.errors import SpecError
    from helix_sim.specs.sweep import GpuRange

    try:
        asked = comparison_of(path, {}, [])
    except SpecError:
        return True
    cells = len(asked.models) * len(asked.machines) * len(asked.contexts) * len(asked.timings)
    gpus = asked.gpus.last if isinstance(asked.gpus, GpuRange) else max(asked.gpus or [72])
    return cells * gpus * asked.batch.dense_to * len(asked.chunks) < 200 and asked.batch.last <= 10**4


@functools.cache
def right_answers():
    """Answers of explain and recommend, as plain data."""
    from helix_sim.answers.explain import explain
    from helix_sim.answers.recommend import recommend
    from helix_sim.answers.request import Request, parse_mix
    from helix_sim.search.layout_source import Options

    one = explain("llama-3.1-8b", "gb200-nvl72", Options(widths={"tpa": 2}, context=8192)).record()
    asked = Request(
        model="llama-3.1-8b", machine="gb200-nvl72", mix=parse_mix("8K:0.5,64K:0.5"), ttl_s=0.1, gpus=(2, 2)
    )
    return json.loads(json.dumps([one, recommend(asked).record()], default=float))


def of_answer(rng, folder):
    write(folder / "answer.json", changed(rng, copy.deepcopy(rng.choice(right_answers()))))
    source = f"{folder / 'answer.json'}{rng.choice(['', '', ':1', ':2'])}"
    verbs = [["export", source, f"--to={stack}"] for stack in ("trtllm", "vllm", "sglang")]
    verbs += [["trace", source, f"--out={folder / 'trace.json'}"], ["capacity", source], ["explain", source]]
    return rng.choice([*verbs, ["export", source, "--to=dynamo"], ["sensitivity", source]])


@functools.cache
def right_folder():
    """summary.json of the small sweep's folder, and the files that it rests on, by name."""
    from helix_sim.cli.base import app

    folder = Path(tempfile.mkdtemp())
    for each, name in spec_files(random.Random(0)).items():
        put(folder / each, name)
    write(folder / "sweep.yaml", SWEEP)
    with silence():
        app(
            ["sweep", str(folder / "sweep.yaml"), f"--out={folder / 'out'}", "--executor=serial"], standalone_mode=False
        )
    return json.loads((folder / "out" / "summary.json").read_text())


def of_folder(rng, folder):
    write(folder / "summary.json", changed(rng, copy.deepcopy(right_folder())))
    return ["explain", f"{folder}:{rng.choice([0, 1, 40, 10**9])}"]


def of_formats(rng, folder):
    content = {"weights": "fp8", "kv": "fp8", "math": "fp8", "head_math": "bf16"}
    path = folder / rng.choice(["formats.yaml", "formats.json"])
    write(path, changed(rng, content))
    return ["explain", "llama-3.1-8b", "h100-hgx", "--context=8K", f"--formats={path}"]


def of_import(rng, folder):
    config = changed(rng, copy.deepcopy(rng.choice(fuzz.CONFIGS)))
    write(folder / "config.json", config)
    return ["import-hf", str(folder), *rng.choice([[], ["--full-attention"], [f"--out={folder / 'model.yaml'}"]])]


QUICK = {
    "explain": ["llama-3.1-8b", "h100-hgx", "--context=8K"],
    "capacity": ["llama-3.1-8b", "h100-hgx", "--context=8K"],
    "export": ["llama-3.1-8b", "h100-hgx", "--context=8K", "--to=vllm"],
    "sensitivity": ["llama-3.1-8b", "h100-hgx", "--context=8K"],
    "trace": ["llama-3.1-8b", "h100-hgx", "--context=8K"],
    "recommend": ["llama-3.1-8b", "h100-hgx", "--context=8K", "--ttl-ms=50", "--gpus=2", "--family=tp"],
    "compare": ["--model=llama-3.1-8b", "--machine=h100-hgx", "--context=8K", "--ttl-ms=50", "--family=tp"],
    "check": [],
    "models": [],
    "machines": [],
    "schema": [],
}
"""Words with which a verb ends soon."""

FOR_OPTIONS = [
    *("", " ", "0", "-1", "-0", "1.5", "nan", "inf", "-inf", "1e999", "1e-320", "1e300", "1T", "10**3", "1_0", "0x10"),
    *("9" * 5000, "1:30", "½", "٣", "1M:0.5", "1M:nan", "1M:1,1M:1", "1:1e300,2:1e300", ",", "0,0", "1,2,3", "a=b"),
    *("=1", "h100-hgx=nan", "h100-hgx=1e300", "hbm_bandwidth=0x", "hbm_bandwidth=nanx", "hbm_capacity=1e300", "x=2x"),
    *("\x1b[2J", "\n", "a\0b", "\ud800", "\u202e", "[bold", "$(reboot)", "../..", "/", "/dev/null", "/dev/zero", "-"),
    *(
        "fp4",
        "bf16",
        "narrowest",
        "checkpoint",
        "any",
        "none",
        "vllm",
        "trtllm",
        "tp",
        "helix",
        "auto",
        "ideal",
        "paper",
    ),
    *(
        "gb200-trtllm",
        "h100-vllm",
        "deepseek-r1",
        "llama-3.1-8b",
        "deepseek-r1-mtp",
        "2",
        "3",
        "8",
        "64",
        "2:0",
        "x.json",
    ),
]
"""Values of options; the machine's, the model's and the search's own names among them."""

KEPT = ("--out", "--help", "--version", "--progress")
"""Options that write where they say, or run nothing."""


def of_options(rng, folder):
    from typer.main import get_command

    verb = rng.choice(list(QUICK))
    command = get_command(base_app()).commands[verb]
    options = [each for each in command.params if each.opts[0].startswith("--") and each.opts[0] not in KEPT]
    words = [verb, *QUICK[verb]]
    for each in rng.sample(options, min(len(options), rng.choice([1, 1, 2, 3]))):
        words += [each.opts[0]] if getattr(each, "is_flag", False) else [f"{each.opts[0]}={rng.choice(FOR_OPTIONS)}"]
    if not QUICK[verb] and rng.random() < 0.5:
        words.append(rng.choice(FOR_OPTIONS))
    if "out" in {each.name for each in command.params} and verb in ("trace", "export"):
        words.append(f"--out={folder / 'out'}")
    return words


def base_app():
    """The application, with every verb."""
    import helix_sim.cli

    return helix_sim.cli.app


KINDS = {name.removeprefix("of_"): found for name, found in list(globals().items()) if name.startswith("of_")}


# --- Running ---------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def silence():
    """Nothing is printed; what would be is kept."""
    with contextlib.redirect_stdout(io.StringIO()) as out, contextlib.redirect_stderr(io.StringIO()) as err:
        yield out, err


def _hang(*_):
    raise Hang


@contextlib.contextmanager
def at_most(seconds):
    """Hang after so many seconds of this process's time."""
    before = signal.signal(signal.SIGVTALRM, _hang)
    signal.setitimer(signal.ITIMER_VIRTUAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        signal.signal(signal.SIGVTALRM, before)


def build_the_command_once():
    """Let typer make one command of the application, not one a run: half the time of a short verb."""
    import typer.main

    typer.main.get_command = functools.cache(typer.main.get_command)


def run(arguments):
    """A command in this process: its exit code, and what it said."""
    from helix_sim.cli import base

    given = sys.argv
    sys.argv = ["helix-sim", *arguments]
    with silence() as (out, err):
        try:
            base.main()
        except SystemExit as stop:
            return stop.code, out.getvalue(), err.getvalue()
        finally:
            sys.argv = given
    return 0, out.getvalue(), err.getvalue()


def most_memory():
    """Bytes of memory that this process has held at most."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def failure(kind, seed, most_s=MOST_SECONDS):
    """(What a run of a kind does wrong, or nothing; its exit code)."""
    from helix_sim.core.errors import Exit

    rng, before = random.Random(f"{kind} {seed}"), most_memory()
    with work_folder() as folder, warnings_as_errors():
        try:
            with at_most(most_s):
                arguments = KINDS[kind](rng, folder)
                if not arguments:
                    return "", "large"
                code, out, said = run(arguments)
        except Hang:
            return "more than 2 s: " + "".join(traceback.format_exc().splitlines(keepends=True)[-9:-1]), "hang"
        except Exception:
            return traceback.format_exc(), "error"
        if code == Exit.BUG:
            return said, code
        if most_memory() > max(before, MOST_BYTES):
            return "more than 1 GB of memory", code
        if any(ord(c) < 32 and c not in "\n\t" for c in out + said):
            return f"a control character: {out + said!r}", code
        if code and not said and code != Exit.MOVED:
            return f"exit code {code} without a word", code
    return "", code


@contextlib.contextmanager
def work_folder():
    """An empty folder, always the same one, in which links to what was read before need no reading."""
    folder = pool() / "work"
    folder.mkdir()
    try:
        yield folder
    finally:
        shutil.rmtree(folder)


@contextlib.contextmanager
def warnings_as_errors():
    """A warning of the equations is a fault, as in the suite."""
    import warnings

    with warnings.catch_warnings():
        warnings.filterwarnings("error", category=RuntimeWarning, module="helix_sim")
        yield


def without_pictures(every):
    """Draw one picture of so many: each takes a second."""
    from helix_sim.output import plot, report

    save, count = plot.save, iter(range(10**9))

    def saved(figure, stem, formats=("png", "svg")):
        if next(count) % every == 0:
            return save(figure, stem, formats)
        plot.plt.close(figure)
        return [stem]

    plot.save, report.plotly_script = saved, lambda: ""


def main():
    """Run until the count is reached, and say how each kind ended."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("kinds", nargs="*", default=list(KINDS))
    parser.add_argument("--count", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args()
    without_pictures(200)
    build_the_command_once()
    failed = 0
    for kind in asked.kinds:
        failure(kind, "what is imported and kept", most_s=60)
        begun, codes, seen = time.process_time(), collections.Counter(), collections.Counter()
        for seed in range(asked.seed, asked.seed + asked.count):
            wrong, code = failure(kind, seed)
            codes[str(code)] += 1
            if wrong:
                last = "\n".join(wrong.strip().splitlines()[-6:])
                seen[last] += 1
                if seen[last] == 1:
                    print(f"--- {kind} {seed}\n{wrong}", flush=True)
        failed += sum(seen.values())
        ends = ", ".join(f"{code}: {count}" for code, count in codes.most_common())
        print(
            f"{kind}: {asked.count} runs, {sum(seen.values())} failures, {time.process_time() - begun:.0f} s; {ends}",
            flush=True,
        )
    shutil.rmtree(pool())
    sys.exit(bool(failed))


if __name__ == "__main__":
    os.environ.setdefault("MPLBACKEND", "Agg")
    main()
