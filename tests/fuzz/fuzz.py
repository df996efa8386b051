"""Coverage-guided fuzzing of every file that the tool reads: `python tests/fuzz/fuzz.py KIND [atheris options]`.

KIND, as bytes: model, machine, timing, sweep, check (a spec of any kind), config (Hugging Face's), answer (of explain
or recommend), baseline, measurements. Or hostile values in the places of files that are right, past YAML, JSON and CSV:
values (specs), config-values, answer-values, baseline-values, measurements-values. Needs `pip install atheris`. What
gets anything but a record or sentences is a crash, which atheris keeps as crash-*; move it to tests/fuzz/crashes.
"""

import copy
import csv
import io
import json
import os
import sys
import tempfile
from pathlib import Path

SPECS = ("model", "machine", "timing", "sweep", "check")
FILES = ("config", "answer", "baseline", "measurements")
KINDS = (*SPECS, *FILES, "values", *(f"{kind}-values" for kind in FILES))
HOSTILE = [
    *(None, True, False, 0, 1, -1, 2, 64, 10**6, 10**9, 10**12, 10**18, 2**63, 2**64, -(2**63), 10**400, 0.0, -0.0),
    *(
        0.5,
        1.5,
        1e-300,
        1e300,
        float("inf"),
        float("-inf"),
        float("nan"),
        "",
        " ",
        "1M",
        "1e9",
        "9" * 5000,
        "1" + "0" * 400,
    ),
    *("½", "٣", "١K", "\x00", "\ud800", "free", "many", "batch", "fp4", "gqa", "mla", "model", "sweep", "datasheet: x"),
    *(
        "../../etc/passwd",
        "/dev/zero",
        "/",
        "a" * 100_000,
        b"bytes",
        [],
        {},
        [[]],
        [None],
        {"a": 1},
        {"": {}},
        {"kind": "mla"},
    ),
    *([1, 2], ["tp", "tp"], [["tp"]], [{}], {"value": 1}, {"value": float("nan"), "source": "datasheet: x"}),
    *({"value": 1e308, "source": "assumed"}, {"value": 1, "source": "datasheet: x"}, {1: 2}, (), {3}, 1 + 2j),
]
"""Values where a file has others; YAML can say most of them."""


def sentences(problems):
    """Problems, which are there and can be read and printed."""
    assert problems
    assert len(problems) <= 102
    for problem in problems:
        assert 0 < len(problem) < 1000, f"a sentence, not a page: {problem[:200]}"
    return problems


def read(kind, raw):
    """What the tool does with a file of a kind that holds these bytes, short of running it."""
    from helix_sim.core.errors import SpecError
    from helix_sim.specs.load import KINDS, check_content, parse, parse_yaml

    try:
        content = parse_yaml(raw, "file")
        return check_content(content, "file") if kind == "check" else parse(KINDS[kind], content, "file")
    except SpecError as error:
        return sentences(error.problems)


def edited(data, content):
    """A file's content with hostile values in some places, as fuzzed bytes choose: a place, then a value, and again."""
    content = copy.deepcopy(content)
    numbers = iter(data)
    for number in numbers:
        here, key = content, None
        while isinstance(here, dict | list) and here:
            keys = list(here) if isinstance(here, dict) else range(len(here))
            parent, key = here, keys[number % len(keys)]
            here = parent[key]
            number = next(numbers, 0)
            if number % 5 == 0:
                break
        if key is None:
            return content
        value = copy.deepcopy(HOSTILE[next(numbers, 0) % len(HOSTILE)])
        match number % 4:
            case 0 if isinstance(parent, dict):
                del parent[key]
            case 1 if isinstance(parent, dict) and isinstance(value, str):
                parent[value] = parent.pop(key)
            case _:
                parent[key] = value
    return content


def read_values(data, contents):
    """The reader's checks on an edited file."""
    from helix_sim.core.errors import SpecError
    from helix_sim.specs.load import KINDS, parse

    kind, content = contents[data[0] % len(contents)] if data else contents[0]
    try:
        return parse(KINDS[kind], edited(data[1:], content), "file")
    except SpecError as error:
        return sentences(error.problems)


# --- Files that are no specs -----------------------------------------------------------------------------------------


def read_file(kind, raw):
    """What the tool does with a config, an answer, a baseline or measurements that hold these bytes."""
    from helix_sim.core.errors import SpecError
    from helix_sim.specs.load import decoded, parse_json

    try:
        return use(kind, parse_json(raw, "file") if kind in ("config", "answer") else decoded(raw, "file"))
    except SpecError as error:
        return sentences(error.problems)


def use(kind, content):
    """The reader's work past JSON, or past the decoding of a CSV file."""
    from helix_sim.core.errors import SpecError
    from helix_sim.gate import baseline
    from helix_sim.kernels.measurements import parse_csv
    from helix_sim.search.layout_source import Options, _of_answer, _picked, chosen
    from helix_sim.specs.import_hf import import_config

    try:
        match kind:
            case "config":
                return import_config(content, name="file", source="file", quantisation=content.get("quantisation"))
            case "answer":
                return _picked(_of_answer(chosen(content, 1, "file"), "file", Options()), Options())
            case "baseline":
                body = "\n".join(line for line in content.splitlines() if not line.startswith("# check: "))
                return baseline.parse(f"# check: {baseline.short_hash(body)}\n{body}", "file")
            case "measurements":
                return parse_csv(content, "file")
    except SpecError as error:
        return sentences(error.problems)
    except ValueError as error:
        if not (kind == "measurements" and str(error).startswith("file")):  # else the command makes it one sentence
            raise
        return sentences([str(error)])


def read_edited(kind, data, contents):
    """The same for a file that is right but for hostile values in a few places."""
    content = edited(data[1:], contents[data[0] % len(contents)] if data else contents[0])
    if kind in ("baseline", "measurements"):
        head, table = content
        if not (isinstance(head, str) and isinstance(table, list) and all(isinstance(row, list) for row in table)):
            return None
        text = io.StringIO()
        csv.writer(text, lineterminator="\n").writerows(table)
        return read_file(kind, (head + text.getvalue()).encode("utf-8", "replace"))
    return read_file(kind, json.dumps(content, default=str, skipkeys=True).encode())


def right_files():
    """Contents that are right, by kind: JSON as data, CSV as its comments and a table."""
    from helix_sim.answers.explain import explain
    from helix_sim.search.layout_source import Options
    from helix_sim.specs.load import data_folder

    folder = data_folder("sweeps") / "baselines"
    texts = [path.read_text() for path in folder.glob("*.csv")]
    found = explain("llama-3.1-8b", "gb200-nvl72", Options(widths={"tpa": 2}, context=8192))
    answer = json.loads(json.dumps(found.record()))
    return {
        "config": CONFIGS,
        "answer": [answer, {"choices": [answer]}],
        "baseline": [cut(text, 30) for text in texts],
        "measurements": [cut(MEASUREMENTS, 30)],
    }


def cut(text, most):
    """A CSV file's comments, and its first rows as cells."""
    lines = text.splitlines(keepends=True)
    head = [line for line in lines if line.startswith("#") and not line.startswith("# rows: ")]
    table = [line for line in lines if not line.startswith("#")][: most + 1]
    return ["".join(head) + f"# rows: {len(table) - 1}\n", list(csv.reader(table))]


LLAMA = {
    "model_type": "llama",
    "hidden_size": 4096,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "intermediate_size": 14336,
    "vocab_size": 128256,
    "torch_dtype": "bfloat16",
}
CONFIGS = [
    LLAMA,
    {"model_type": "mllama", "text_config": {**LLAMA, "sliding_window": 4096}, "tie_word_embeddings": True},
    {
        **LLAMA,
        "model_type": "deepseek_v3",
        "q_lora_rank": 1536,
        "kv_lora_rank": 512,
        "qk_rope_head_dim": 64,
        "qk_nope_head_dim": 128,
        "v_head_dim": 128,
        "n_routed_experts": 256,
        "num_experts_per_tok": 8,
        "n_shared_experts": 1,
        "moe_intermediate_size": 2048,
        "first_k_dense_replace": 3,
        "moe_layer_freq": 1,
        "quantization_config": {"quant_method": "fp8", "weight_block_size": [128, 128]},
        "quantisation": {"quantization": {"quant_algo": "NVFP4", "kv_cache_quant_algo": "FP8"}},
    },
]
MEASUREMENTS = """# gpu: none
#
op,stored,math,batch,context,q_heads,kv_heads,score_width,value_width,partials,hbm_bytes,flops,median_s,low_s,high_s,samples
copy,bf16,bf16,0,2147483648,0,0,0,0,0,8e9,0.0,2e-3,1.9e-3,2.1e-3,30
attention-gqa,bf16,bf16,8,4096,64,8,128,128,8,1.3e8,2.1e9,5e-5,4.9e-5,5.2e-5,30
"""


def seeds():
    """Shipped files, the broken ones of the tests, and earlier crashes, by kind."""
    from helix_sim.specs.load import FOLDERS, data_folder

    crashes, broken = Path(__file__).parent / "crashes", Path(__file__).parents[1] / "specs" / "broken"
    found = {kind: list(data_folder(folder).glob("*.yaml")) for kind, folder in FOLDERS.items()}
    found["check"] = [*broken.glob("*.yaml"), *crashes.glob("*.yaml")]
    seeds = {kind: [path.read_bytes() for path in paths] for kind, paths in found.items()}
    for kind, contents in right_files().items():
        seeds[kind] = [path.read_bytes() for path in crashes.glob(f"*.{kind}")]
        for content in contents:
            table = content[0] + "".join(",".join(row) + "\n" for row in content[1]) if kind in FILES[2:] else None
            seeds[kind].append((table or json.dumps(content)).encode())
    return seeds


def main():
    """Fuzz until told to stop; atheris prints how many executions there were."""
    import atheris

    with atheris.instrument_imports(include=["helix_sim", "yaml", "json"]):
        import yaml

    kind = sys.argv.pop(1)
    files = seeds()
    contents = [
        (name, yaml.safe_load(raw)) for name in SPECS[:4] for raw in files[name] if b"kind: families" not in raw
    ]
    right = right_files()
    with tempfile.TemporaryDirectory() as corpus:
        for index, raw in enumerate(files.get(kind, [])):
            Path(corpus, f"seed-{index}").write_bytes(raw)
        words = Path(corpus).parent / f"words-{os.getpid()}"
        words.write_text("".join(f'"{word}"\n' for word in dictionary()))
        options = [*([f"-dict={words}"] * (kind in SPECS)), "-timeout=2", "-rss_limit_mb=1024", corpus]

        def one(data):
            match kind:
                case "values":
                    read_values(data, contents)
                case _ if kind.endswith("-values"):
                    read_edited(kind.removesuffix("-values"), data, right[kind.removesuffix("-values")])
                case _:
                    (read if kind in SPECS else read_file)(kind, data)

        atheris.Setup([*sys.argv, *options], one)
        atheris.Fuzz()


def dictionary():
    """Keys of every record and scraps of YAML that matter."""
    from helix_sim.specs import values as spec

    records = [value for value in vars(spec).values() if isinstance(value, type) and issubclass(value, spec.Record)]
    keys = {name for record in records for name in record.model_fields}
    scraps = {
        "&a",
        "*a",
        "<<:",
        "!!python/name:os",
        "!!binary",
        "---",
        ".inf",
        ".nan",
        "1e999",
        "0x10",
        "1_0",
        "{",
        "[",
    }
    return sorted(keys | scraps | {"gqa", "mla", "fp4", "datasheet: x", "1M", "\\xff\\xfe", "\\x00"})


if __name__ == "__main__":
    main()
