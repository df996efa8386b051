"""Whatever a file holds, reading it gives a record or a sentence: no traceback, no hang, no memory eaten."""

import json
import os
import random
from pathlib import Path

import pytest
import yaml
from fuzz import fuzz
from hypothesis import given, settings
from hypothesis import strategies as st

from helix_sim.core.errors import SpecError
from helix_sim.core.units import parse_size
from helix_sim.specs.load import FOLDERS, KINDS, MOST_BYTES, check_file, data_folder, find, parse, parse_yaml
from helix_sim.specs.sweep import Sweep

CRASHES = sorted((Path(__file__).parent / "crashes").glob("*.yaml"))
SHIPPED = [
    (kind, yaml.safe_load(path.read_bytes()))
    for kind, folder in FOLDERS.items()
    for path in sorted(data_folder(folder).glob("*.yaml"))
    if path.stem != "families"
]


@pytest.mark.parametrize("path", CRASHES, ids=lambda path: path.stem)
def test_what_once_crashed_is_a_sentence(path):
    raw = path.read_bytes()
    for kind in (*KINDS, "check"):
        fuzz.read(kind, raw)
    with pytest.raises(SpecError):
        check_file(path)


BOMBS = {
    "aliases": b"a: &a [x,x,x,x,x,x,x,x,x]\nb: &b [*a,*a,*a,*a,*a,*a,*a,*a,*a]\nc: [*b,*b,*b,*b,*b,*b,*b,*b,*b]\n",
    "merge": b"a: {<<: {b: 1}, <<: {b: 2}}\n",
    "python object": b"!!python/object/apply:os.system ['true']\n",
    "binary": b"name: !!binary " + b"QUJD" * 9000,
    "deep flow": b"[" * 60_000,
    "deep keys": b"? " * 30_000,
    "deep dashes": b"- " * 30_000,
    "wide list": b"a: [" + b"[]," * 20_000 + b"]",
    "wide mapping": b"".join(b"k%d:\n" % number for number in range(7000)),
    "base sixty": b"a: " + b"1:" * 30_000 + b"1",
    "long number": b"hidden_size: " + b"9" * 60_000,
    "long hexadecimal": b"hidden_size: 0x" + b"f" * 60_000,
    "long text": b"name: " + b"a" * 60_000,
    "many problems": b"kind: sweep\nfamilies: [" + b"x," * 20_000 + b"]",
    "UTF-16": "kind: model\n".encode("utf-16"),
    "Latin-1": "kind: mod\xe8le\n".encode("latin-1"),
    "nulls": b"\0" * 1000,
    "control": b"kind: \x1b[2Jmodel\n",
    "directive": b"%YAML 9.9\n---\nkind: model\n",
    "two documents": b"kind: model\n---\nkind: model\n",
    "date": b"kind: model\nname: 2025-99-99\n",
    "not a number": b"kind: model\npublished_parameters_B: .nan\nhidden_size: .inf\n",
}


@pytest.mark.parametrize("raw", BOMBS.values(), ids=BOMBS)
def test_a_bomb_is_a_sentence(raw, tmp_path):
    assert len(raw) <= MOST_BYTES
    (tmp_path / "bomb.yaml").write_bytes(raw)
    with pytest.raises(SpecError) as caught:
        check_file(tmp_path / "bomb.yaml")
    fuzz.sentences(caught.value.problems)
    for kind in KINDS:
        fuzz.read(kind, raw)


@pytest.mark.parametrize(
    "path", ["/dev/zero", "/dev/stdin", "/", "a\0b.yaml", "x" * 5000 + ".yaml", "../../../etc/passwd"]
)
def test_a_path_that_is_no_spec_is_a_sentence(path):
    with pytest.raises(SpecError):
        check_file(path)
    with pytest.raises(SpecError):
        parse_yaml(b"", str(find("model", path)))


def test_a_pipe_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe.yaml")
    with pytest.raises(SpecError, match="not a file"):
        check_file(tmp_path / "pipe.yaml")


def test_an_enormous_file_is_not_read(tmp_path):
    with (tmp_path / "big.yaml").open("wb") as file:
        file.truncate(10**12)
    with pytest.raises(SpecError, match="what is read here is smaller"):
        check_file(tmp_path / "big.yaml")


@pytest.mark.parametrize("name", ["", ".", "..", "-", "families", "deepseek-r1\n", "a" * 10_000, "deepseek-r1.yaml\0"])
def test_a_name_that_is_none_is_a_sentence(name):
    with pytest.raises(SpecError):
        find("model", name)


@settings(max_examples=400, deadline=2000)
@given(st.sampled_from([*KINDS, "check"]), st.binary(max_size=300))
def test_any_bytes_are_a_record_or_a_sentence(kind, raw):
    fuzz.read(kind, raw)


@settings(max_examples=400, deadline=2000)
@given(
    st.sampled_from([*KINDS, "check"]),
    st.text(alphabet="aeknd:-?[]{}&*!|>'\"%@`#,. \n\t0x19_~<\ufeff\x85", max_size=80),
)
def test_any_scrap_of_yaml_is_a_record_or_a_sentence(kind, text):
    fuzz.read(kind, text.encode())


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.sampled_from(["1M", "free", "fp4", "gqa"]),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=12), inner, max_size=4),
    max_leaves=8,
)


@settings(max_examples=400, deadline=2000)
@given(st.sampled_from(SHIPPED), st.integers(0, 10**6), VALUES)
def test_any_value_in_a_shipped_files_place_is_a_record_or_a_sentence(shipped, number, value):
    kind, content = shipped
    places = list(fuzz_places(content))
    place = places[number % len(places)]
    changed = replaced(content, place, value)
    try:
        assert parse(KINDS[kind], changed, "file")
    except SpecError as error:
        fuzz.sentences(error.problems)


def fuzz_places(content, at=()):
    """The path of every value in a file."""
    for key, value in content.items() if isinstance(content, dict) else enumerate(content):
        yield (*at, key)
        if isinstance(value, dict | list):
            yield from fuzz_places(value, (*at, key))


def replaced(content, place, value):
    """A file's content with another value at a path."""
    if not place:
        return value
    if isinstance(content, dict):
        return {**content, place[0]: replaced(content[place[0]], place[1:], value)}
    return [replaced(item, place[1:], value) if index == place[0] else item for index, item in enumerate(content)]


@settings(max_examples=300, deadline=1000)
@given(
    st.text() | st.integers() | st.floats() | st.booleans() | st.from_regex(r"[\d_.,]+ ?[KMGTkmgti]*", fullmatch=True)
)
def test_any_size_is_a_whole_number_or_a_value_error(value):
    try:
        found = parse_size(value)
    except ValueError as error:
        found = len(str(error)) < 300
    assert found >= 1


def test_a_short_fuzz_of_hostile_values():
    # the long form, guided by coverage: python tests/fuzz/fuzz.py values
    rng = random.Random(int(os.environ.get("HELIX_SIM_FUZZ_SEED", "0")))
    for _ in range(int(os.environ.get("HELIX_SIM_FUZZ", "3000"))):
        fuzz.read_values(rng.randbytes(rng.randrange(30)), SHIPPED)


def test_a_short_fuzz_of_shipped_files_bytes():
    rng = random.Random(1)
    files = [(kind, raw) for kind, found in fuzz.seeds().items() for raw in found]
    for _ in range(300):
        kind, raw = rng.choice(files)
        changed = bytearray(raw)
        for _ in range(rng.randrange(1, 8)):
            at = rng.randrange(len(changed) + 1)
            changed[at : at + rng.randrange(12)] = rng.choice(
                [b"", b"\xff", b"{", b"- ", b": ", b"*a", rng.randbytes(4)]
            )
        (fuzz.read if kind in fuzz.SPECS else fuzz.read_file)(kind, bytes(changed))


# --- Configs, answers, baselines and measurements --------------------------------------------------------------------

FILE_BOMBS = {
    "nothing": b"",
    "deep JSON": b'{"a":' + b"[" * 100_000,
    "deep object": b'{"a":' * 50_000,
    "long integer": b'{"hidden_size": ' + b"9" * 100_000 + b"}",
    "beyond floats": b'{"hidden_size": 1e999, "layout": {"batch": -Infinity}, "context": NaN}',
    "half a surrogate": b'{"model_type": "\\ud800", "model": "\\udfff"}',
    "a key twice": b'{"model_type": "llama", "model_type": "qwen3"}',
    "a list": b"[1, 2]",
    "UTF-16": '{"model_type": "llama"}'.encode("utf-16"),
    "byte order mark": b"\xef\xbb\xbf{}",
    "nulls": b"\0" * 1000,
    "a wide cell": b"op,stored\n" + b"a" * 200_000,
    "a cell never closed": b'op,stored\n"a\nb,c\n',
    "many commas": b"," * 200_000,
    "many lines": b"\n" * 200_000,
    "a path for a model": b'{"model": "/dev/zero", "machine": "../../etc/passwd.yaml", "layout": {}}',
}


@pytest.mark.parametrize("raw", FILE_BOMBS.values(), ids=FILE_BOMBS)
@pytest.mark.parametrize("kind", fuzz.FILES)
def test_a_bomb_in_any_other_file_is_a_sentence(kind, raw):
    assert isinstance(fuzz.read_file(kind, raw), list)


@pytest.mark.parametrize("kind", fuzz.FILES)
def test_what_the_fuzzer_starts_from_is_read(kind):
    for raw in fuzz.seeds()[kind][:1]:
        assert not isinstance(fuzz.read_file(kind, raw), list)


@settings(max_examples=300, deadline=2000)
@given(st.sampled_from(fuzz.FILES), st.binary(max_size=300) | st.text(alphabet='{}[]":,\\u d8e+-09.#\n', max_size=80))
def test_any_bytes_of_any_other_file_are_a_record_or_a_sentence(kind, raw):
    fuzz.read_file(kind, raw if isinstance(raw, bytes) else raw.encode())


@settings(max_examples=300, deadline=2000)
@given(st.sampled_from(fuzz.CONFIGS), st.integers(0, 10**6), VALUES)
def test_any_value_in_a_configs_place_is_a_model_or_a_sentence(config, number, value):
    places = list(fuzz_places(config))
    fuzz.read_file("config", json.dumps(replaced(config, places[number % len(places)], value)).encode())


def test_a_short_fuzz_of_hostile_values_in_any_other_file():
    rng = random.Random(int(os.environ.get("HELIX_SIM_FUZZ_SEED", "0")))
    for kind, contents in fuzz.right_files().items():
        for _ in range(int(os.environ.get("HELIX_SIM_FUZZ", "3000")) // 6):
            fuzz.read_edited(kind, rng.randbytes(rng.randrange(30)), contents)


def test_a_sweep_that_names_a_family_twice_has_it_once():
    content = dict(SHIPPED[[kind for kind, _ in SHIPPED].index("sweep")][1])
    content |= {"families": ["tp", "tp"], "groups": {}}
    assert list(parse(Sweep, content, "file").families) == ["tp"]
