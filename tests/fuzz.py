"""Coverage-guided fuzzing of every file that the tool reads: `python tests/fuzz.py KIND [atheris options]`.

KIND: model, hardware, clock or sweep (bytes, as that kind), check (bytes, of any kind), or values (hostile values in
the shipped files' places, past YAML). Needs `pip install atheris`. Starts from the shipped files; an input that gets
anything but a record or a SpecError is a crash, which atheris keeps as crash-*; move it to tests/crashes.
"""

import copy
import os
import sys
import tempfile
from pathlib import Path

KINDS = ("model", "hardware", "clock", "sweep", "check", "values")
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
        assert 0 < len(problem) < 1000, "a sentence, not a page"
    return problems


def read(kind, raw):
    """What the tool does with a file of a kind that holds these bytes, short of running it."""
    from helix_sim.load import KINDS, check_content, parse, parse_yaml
    from helix_sim.spec import SpecError

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
        value = HOSTILE[next(numbers, 0) % len(HOSTILE)]
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
    from helix_sim.load import KINDS, parse
    from helix_sim.spec import SpecError

    kind, content = contents[data[0] % len(contents)] if data else contents[0]
    try:
        return parse(KINDS[kind], edited(data[1:], content), "file")
    except SpecError as error:
        return sentences(error.problems)


def seeds():
    """Shipped files, the broken ones of the tests, and earlier crashes, by kind."""
    from helix_sim.load import FOLDERS, data_folder

    here = Path(__file__).parent
    found = {kind: list(data_folder(folder).glob("*.yaml")) for kind, folder in FOLDERS.items()}
    found["check"] = [*here.glob("broken/*.yaml"), *here.glob("crashes/*")]
    return {kind: [path.read_bytes() for path in paths] for kind, paths in found.items()}


def main():
    """Fuzz until told to stop; atheris prints how many executions there were."""
    import atheris

    with atheris.instrument_imports(include=["helix_sim", "yaml"]):
        import yaml

        import helix_sim.load  # noqa: F401
    kind = sys.argv.pop(1)
    files = seeds()
    contents = [
        (name, yaml.safe_load(raw)) for name in KINDS[:4] for raw in files[name] if b"kind: families" not in raw
    ]
    with tempfile.TemporaryDirectory() as corpus:
        for index, raw in enumerate(files.get(kind, [])):
            Path(corpus, f"seed-{index}").write_bytes(raw)
        words = Path(corpus).parent / f"words-{os.getpid()}"
        words.write_text("".join(f'"{word}"\n' for word in dictionary()))
        options = [*([f"-dict={words}"] * (kind != "values")), "-timeout=2", "-rss_limit_mb=1024", corpus]

        def one(data):
            read_values(data, contents) if kind == "values" else read(kind, data)

        atheris.Setup([*sys.argv, *options], one)
        atheris.Fuzz()


def dictionary():
    """Keys of every record and scraps of YAML that matter."""
    from helix_sim import spec

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
