"""Files to specs: YAML by name or by path, checked once, with every problem in one SpecError."""

from __future__ import annotations

import difflib
import functools
import json
import os
import re
import stat
from pathlib import Path
from typing import Any, TypeVar, get_args

import yaml
from pydantic import BaseModel, ValidationError

from helix_sim.core.errors import SpecError
from helix_sim.core.text import is_path, said, shortened
from helix_sim.specs.comparison import Comparison
from helix_sim.specs.draft import Draft
from helix_sim.specs.extending import extend
from helix_sim.specs.machine import Machine
from helix_sim.specs.model import Model, listed_layers
from helix_sim.specs.older_words import in_todays_words
from helix_sim.specs.public_tables import Framework
from helix_sim.specs.sweep import Family, Sweep
from helix_sim.specs.timing import Timing, shape_problems
from helix_sim.specs.values import NamesFiles, Record

FOLDERS = {
    "model": "model_specs",
    "machine": "hardware_profiles",
    "timing": "hardware_profiles/timings",
    "sweep": "sweeps",
    "framework": "hardware_profiles/frameworks",
    "draft": "model_specs/drafts",
}
CALIBRATIONS = "hardware_profiles/measured_timings"
"""Timings fitted to measured kernels; they load by name like the others."""
KINDS: dict[str, type[Record]] = {
    "model": Model,
    "machine": Machine,
    "timing": Timing,
    "sweep": Sweep,
    "framework": Framework,
    "comparison": Comparison,
    "draft": Draft,
}
MOST_BYTES = 2**18
"""Of a file: the shipped ones have a few thousand, and the worst of this size takes about a second."""
MOST_DEPTH = 32
MOST_PROBLEMS = 100

R = TypeVar("R", bound=Record)

Held = tuple[Path, int, int, int]
"""What changes with a file's content, wherever the process stands: its place, inode, size and time of last change."""
State = tuple[Path, Held]


def data_folder(folder: str) -> Path:
    """Where shipped files lie: inside the installed package, or at the top of a checkout."""
    package = Path(__file__).parents[1]
    installed = package / "data"
    return (installed if installed.is_dir() else package.parent) / folder


def shipped(kind: str) -> list[str]:
    """Names of the shipped files of a kind (model, machine, timing, sweep, framework, draft), sorted."""
    return sorted(_shipped_files(kind))


def _shipped_files(kind: str) -> dict[str, Path]:
    folders = (FOLDERS[kind], *([CALIBRATIONS] if kind == "timing" else []))
    paths = (path for folder in folders for path in data_folder(folder).glob("*.yaml"))
    return {path.stem: path for path in paths if path.stem != "families"}


def load_model(name: Model | str | Path) -> Model:
    """A model by its shipped name (`deepseek-r1`) or the path of a YAML file; a record is itself."""
    return name if isinstance(name, Model) else _load(Model, "model", name)


def load_machine(name: Machine | str | Path) -> Machine:
    """A machine by its shipped name (`gb200-nvl72`) or the path of a YAML file; a record is itself."""
    return name if isinstance(name, Machine) else _load(Machine, "machine", name)


def load_timing(name: Timing | str | Path) -> Timing:
    """A timing by its shipped name (`paper`, `gb200-trtllm`) or the path of a YAML file; a record is itself."""
    return name if isinstance(name, Timing) else _load(Timing, "timing", name)


def load_sweep(name: Sweep | str | Path) -> Sweep:
    """A sweep by its shipped name (`paper-deepseek-r1`) or the path of a YAML file; a record is itself."""
    return name if isinstance(name, Sweep) else _load(Sweep, "sweep", name)


def load_draft(name: Draft | str | Path) -> Draft:
    """A way to draft by its shipped name (`deepseek-r1-mtp`) or the path of a YAML file; a record is itself."""
    return name if isinstance(name, Draft) else _load(Draft, "draft", name)


def load_framework(name: str | Path) -> Framework:
    """A serving framework by its shipped name (`trtllm`) or the path of a YAML file."""
    return _load(Framework, "framework", name)


def check_file(path: str | Path) -> Record:
    """The spec in a file, of whichever kind its `kind` key says; SpecError with every problem otherwise."""
    return check_content(read_yaml(Path(path)), str(path), Path(path).parent)


def check_content(content: dict[str, Any], shown: str, folder: Path | None = None) -> Record:
    """The spec in a file's content; SpecError with every problem otherwise. folder: where the file lies."""
    kind = in_todays_words(content).get("kind")
    if not isinstance(kind, str) or kind not in KINDS:
        raise SpecError([f"{shown}: kind is {said(kind)}; it must be one of {', '.join(KINDS)}"])
    return parse(KINDS[kind], content, shown, folder)


def _load(record: type[R], kind: str, name: str | Path) -> R:
    known = _named.get((kind, name))
    if known and _unchanged(known[0]):
        same: R = known[1]
        return same
    path = find(kind, name)
    states = _states(path) if record is Timing else (_state(path),)
    loaded: R = _load_path(record, path, states)
    if isinstance(name, str) and not is_path(name):
        _named[kind, name] = states, loaded
    return loaded


_named: dict[tuple[str, str | Path], tuple[tuple[State, ...], Any]] = {}
"""What a shipped name last meant: the files that it rested on, and the spec."""


def _unchanged(states: tuple[State, ...]) -> bool:
    """Whether files are still as they were."""
    try:
        found = [(now.st_ino, now.st_size, now.st_mtime_ns) for now in (os.stat(path) for path, _ in states)]
    except OSError:
        return False
    return found == [held[1:] for _, held in states]


@functools.lru_cache(maxsize=256)
def _load_path(record: type[R], path: Path, states: tuple[State, ...]) -> R:
    """The spec in a file; states: the files that it rests on, and what tells their contents apart."""
    checked = parse(record, _content(*states[0]), _shown(path), path.parent)
    return checked.read_from(path) if isinstance(checked, NamesFiles) else checked


@functools.lru_cache(maxsize=64)
def _content(path: Path, held: Held) -> dict[str, Any]:
    return read_yaml(path)


def _state(path: Path) -> State:
    now = path.stat()
    return path, (path.absolute(), now.st_ino, now.st_size, now.st_mtime_ns)


def find(kind: str, name: str | Path) -> Path:
    """The file that a name or a path means; SpecError with the nearest name where there is none."""
    text = str(name)
    if is_path(text):
        path = Path(text)
        if not os.path.isfile(text):  # says no where a path cannot even be one, which Path.is_file does not
            raise SpecError([f"{shortened(text)}: there is no such file{_of_hugging_face(text, kind)}"])
        return path
    files = _shipped_files(kind)
    if text not in files:
        raise SpecError(
            [f"there is no {kind} named {said(text)}{_nearest(text, sorted(files))}; or give the path of a .yaml file"]
        )
    return files[text]


def _of_hugging_face(text: str, kind: str) -> str:
    """What to do with a model's id on Hugging Face, as the rest of a sentence; nothing where it is none."""
    if kind != "model" or not re.fullmatch(r"[\w.-]+/[\w.-]+", text) or text.endswith((".yaml", ".yml", ".json")):
        return ""
    known = {name.lower(): name for name in _shipped_files(kind)}
    near = difflib.get_close_matches(text.partition("/")[2].lower()[:80], known, n=1, cutoff=0.6)
    shipped_one = f"; did you mean {known[near[0]]}, which is shipped?" if near else ""
    return f"{shipped_one}; helix-sim import-hf reads the config.json of a model of Hugging Face"


def _shown(path: Path) -> str:
    """A shipped file by its folder and name, a user's own as it was given."""
    if not os.path.exists(path):
        return shortened(str(path))
    shipped_folders = {data_folder(folder).resolve() for folder in (*FOLDERS.values(), CALIBRATIONS)}
    return f"{path.parent.name}/{path.name}" if path.resolve().parent in shipped_folders else str(path)


def _nearest(word: str, known: list[str]) -> str:
    close = difflib.get_close_matches(word[:80], known, n=1, cutoff=0.6)
    return f"; did you mean {close[0]}?" if close else f"; known: {', '.join(known)}"


# --- A timing that extends another -----------------------------------------------------------------------------------


def _states(path: Path) -> tuple[State, ...]:
    """A timing's file, those that it extends and its framework's, each with what tells its content.

    SpecError where files extend each other in a circle.
    """
    states, frameworks, seen = [], [], [path.resolve()]
    while True:
        states.append(_state(path))
        content = _content(*states[-1])
        calibration = content.get("calibration")
        name = calibration.get("framework") if isinstance(calibration, dict) else None
        if isinstance(name, str) and (framework := _shipped_files("framework").get(name)):
            frameworks.append(_state(framework))
        if not isinstance(content.get("extends"), str):
            return (*states, *frameworks)
        base = _base_path(content["extends"], _shown(path), path.parent)
        if (base_file := base.resolve()) in seen:
            circle = " → ".join(each.name for each in (*seen[seen.index(base_file) :], base_file))
            raise SpecError(
                [shortened(f"{_shown(path)}: extends: goes in a circle, {circle}; let one extend no other")]
            )
        seen.append(base_file)
        if len(seen) > MOST_DEPTH:
            raise SpecError([f"{_shown(path)}: extends: more than {MOST_DEPTH} timings after one another"])
        path = base


def _base_path(name: str, shown: str, folder: Path | None) -> Path:
    """The file of a timing that a file at a place extends, by shipped name or by a path beside that file."""
    try:
        return find("timing", str(folder / name) if is_path(name) and folder else name)
    except SpecError as error:
        raise SpecError([f"{shown}: extends: {problem}" for problem in error.problems]) from None


def _with_base(content: dict[str, Any], shown: str, folder: Path | None) -> dict[str, Any]:
    """A timing's content over that of the timing it extends; name and description are never another's."""
    name = content.get("extends")
    if not isinstance(name, str):
        return content
    base = _load(Timing, "timing", _base_path(name, shown, folder))
    own = {"name", "description"}
    return extend({key: value for key, value in base.model_dump().items() if key not in own}, content)


def _with_framework(content: dict[str, Any]) -> dict[str, Any]:
    """A measured timing's content with what its framework's file says of memory and microbatches, unless it does."""
    calibration = content.get("calibration")
    if not isinstance(calibration, dict):
        return content
    name = calibration.get("framework")
    if not isinstance(name, str) or name not in _shipped_files("framework"):
        return content
    framework = load_framework(name)
    said = {
        key: part.model_dump()
        for key in ("memory", "microbatches")
        if calibration.get(key) is None and (part := getattr(framework, key)) is not None
    }
    return {**content, "calibration": {**calibration, **said}}


# --- YAML ------------------------------------------------------------------------------------------------------------


class _StrictLoader(yaml.SafeLoader):
    """Plain data only: a repeated key, an alias or an unhashable key is an error instead of a surprise."""

    depth = 0

    def compose_node(self, parent: Any, index: Any) -> Any:
        event: Any = self.peek_event()  # type: ignore[no-untyped-call]
        mark: Any = event.start_mark
        if isinstance(event, yaml.AliasEvent):
            problem = "aliases (*name) are not read; write the value out"
            raise yaml.MarkedYAMLError(problem=problem, problem_mark=mark)
        self.depth += 1
        if self.depth > MOST_DEPTH:
            raise yaml.MarkedYAMLError(problem=f"nested deeper than {MOST_DEPTH} levels", problem_mark=mark)
        node = super().compose_node(parent, index)
        self.depth -= 1
        return node

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        seen: set[Any] = set()
        for key_node, _ in node.value:
            key = key_node.value if isinstance(key_node, yaml.ScalarNode) else None
            if key is None or not isinstance(self.construct_object(key_node), str):
                raise yaml.MarkedYAMLError(problem="a key that is not text", problem_mark=key_node.start_mark)
            if key in seen:
                raise yaml.MarkedYAMLError(problem=f"the key {said(key)} is repeated", problem_mark=key_node.start_mark)
            seen.add(key)
        return super().construct_mapping(node, deep)

    def construct_number(self, node: Any) -> int | float:
        """A number; YAML 1.1 reads 1:30 as base sixty and 010 as base eight, which nobody means."""
        text = str(node.value).replace("_", "").lstrip("+-")
        if ":" in text or re.fullmatch(r"0[0-9]+", text):
            base = "sixty" if ":" in text else "eight"
            problem = f"{said(node.value)} is read in base {base}; write it in base ten, or as text in quotes"
            raise yaml.MarkedYAMLError(problem=problem, problem_mark=node.start_mark)
        whole = node.tag.endswith(":int")
        return super().construct_yaml_int(node) if whole else super().construct_yaml_float(node)


for _tag in ("tag:yaml.org,2002:int", "tag:yaml.org,2002:float"):
    _StrictLoader.add_constructor(_tag, _StrictLoader.construct_number)


def read_bytes(path: Path, shown: str, most: int = MOST_BYTES) -> bytes:
    """A file's content; SpecError where it is none, cannot be read, or holds more than any file of its kind."""
    try:
        raw = None
        if stat.S_ISREG(path.stat().st_mode):  # a pipe would wait for ever, a device never end
            with path.open("rb") as file:
                raw = file.read(most + 1)
    except OSError as error:
        raise SpecError([f"{shown}: cannot be read: {error.strerror}"]) from None
    except ValueError as error:
        raise SpecError([f"{shown!r}: cannot be read: {error}"]) from None
    if raw is None:
        raise SpecError([f"{shown}: cannot be read: not a file"])
    if len(raw) > most:
        raise SpecError([f"{shown}: more than {most} bytes; what is read here is smaller"])
    return raw


def decoded(raw: bytes, shown: str) -> str:
    """UTF-8 text, with or without a byte order mark; SpecError with the first byte that is not."""
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise SpecError([f"{shown}: byte {error.start} is not UTF-8; save the file as UTF-8"]) from None


def read_yaml(path: Path) -> dict[str, Any]:
    """The mapping in a YAML file; SpecError with the place of the problem otherwise."""
    shown = _shown(path)
    return parse_yaml(read_bytes(path, shown), shown)


def parse_json(raw: bytes, shown: str) -> dict[str, Any]:
    """The mapping that JSON text says; SpecError with the place of the problem otherwise."""

    def pairs(found: list[tuple[str, Any]]) -> dict[str, Any]:
        content = dict(found)
        if len(content) < len(found):
            seen: set[str] = set()
            twice = next(key for key, _ in found if key in seen or seen.add(key))  # type: ignore[func-returns-value]
            raise SpecError([f"{shown}: the key {said(twice)} is repeated"])
        return content

    try:
        content = json.loads(decoded(raw, shown), object_pairs_hook=pairs)
    except SpecError:
        raise
    except json.JSONDecodeError as error:
        raise SpecError([f"{shown}: line {error.lineno}, column {error.colno}: {error.msg}; it must be JSON"]) from None
    except (RecursionError, ValueError):
        raise SpecError([f"{shown}: not readable as JSON: nested too deeply, or a number too long"]) from None
    if not isinstance(content, dict):
        raise SpecError([f"{shown}: holds {_kind_of(content)}; it must hold keys and values"])
    if b"\\u" in raw and any(0xD800 <= ord(char) <= 0xDFFF for char in json.dumps(content, ensure_ascii=False)):
        raise SpecError([f"{shown}: holds half of a surrogate pair (\\ud800 to \\udfff), which no text can"])
    return content


def parse_yaml(raw: bytes, shown: str) -> dict[str, Any]:
    """The mapping that YAML text says; SpecError with the place of the problem otherwise."""
    text = decoded(raw, shown)
    try:
        content = yaml.load(text, _StrictLoader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        where = f" line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        raise SpecError([f"{shown}:{where}: {error.problem or error.context}"]) from None
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise SpecError([f"{shown}: not readable as YAML: {reason}"]) from None
    if not isinstance(content, dict):
        raise SpecError([f"{shown}: holds {_kind_of(content)}; it must hold keys and values"])
    return content


def _kind_of(content: Any) -> str:
    return "nothing" if content is None else f"a {type(content).__name__}"


# --- Checking --------------------------------------------------------------------------------------------------------


def parse(record: type[R], content: dict[str, Any], shown: str, folder: Path | None = None) -> R:
    """A checked record; SpecError with a sentence for each problem, its path in front. folder: where the file lies."""
    content = in_todays_words(content)
    if record is Sweep:
        content = _with_families(content, shown)
    if record is Model:
        content = listed_layers(content)
    if record is Timing:
        content = _with_framework(_with_base(content, shown, folder))
    try:
        checked = record.model_validate(content)
    except ValidationError as error:
        problems = error.errors(include_url=False)
        more = [f"{shown}: and {len(problems) - MOST_PROBLEMS} problems more"] if len(problems) > MOST_PROBLEMS else []
        sentences = (_sentence(problem, record) for problem in problems[:MOST_PROBLEMS])
        raise SpecError([f"{shown}: {shortened(text)}" for text in sentences] + more) from None
    if isinstance(checked, Timing) and checked.calibration and (wrong := shape_problems(checked.calibration)):
        raise SpecError([f"{shown}: calibration.classes.{problem}" for problem in wrong])
    return checked


def _with_families(content: dict[str, Any], shown: str) -> dict[str, Any]:
    """A sweep whose families are listed by name gets their definitions from sweeps/families.yaml."""
    names = content.get("families")
    if not isinstance(names, list):
        return content
    known = shipped_families()
    problems = [
        f"{shown}: families: {no_family(name)}"
        for name in names[:MOST_PROBLEMS]
        if not isinstance(name, str) or name not in known
    ]
    if problems:
        raise SpecError(problems)
    return {**content, "families": {name: known[name] for name in names}}


@functools.cache
def shipped_families() -> dict[str, Family]:
    """The families of sweeps/families.yaml by name."""
    content = read_yaml(data_folder("sweeps") / "families.yaml")
    return {
        name: parse(Family, family, f"sweeps/families.yaml: {name}") for name, family in content["families"].items()
    }


def no_family(name: Any) -> str:
    """The sentence on a name that no shipped family has, with the nearest that one has."""
    return f"there is no family named {said(name)}{_nearest(str(name), list(shipped_families()))}"


TAGGED = {"attention": 2, "ffn": 2, "layers": 2, "gpus": 1}
"""Keys below which pydantic puts the kind that it checked against into a place, and where; the file has no such level.
"""


def _sentence(problem: Any, record: type[Record]) -> str:
    """One pydantic problem in plain words, its place first."""
    tag = TAGGED.get(problem["loc"][0]) if problem["loc"] else None
    place = [part for level, part in enumerate(problem["loc"]) if part != "[key]" and level != tag]
    path, kind, given, context = (
        ".".join(map(str, place)),
        problem["type"],
        said(problem.get("input")),
        problem.get("ctx", {}),
    )
    at = f"{path}: " if path else ""
    if kind == "extra_forbidden":
        return f"{at}unknown key{_nearest(str(place[-1]), _keys_at(record, problem['loc'][:-1]))}"
    if kind == "missing":
        extra = "; say where the value comes from: datasheet, measured or assumed" if place[-1] == "source" else ""
        return f"{at}missing{extra}"
    if kind == "value_error":
        return f"{at}{context.get('error')}"
    if kind in ("int_type", "int_parsing", "int_from_float"):
        return f"{at}{given} is not a whole number"
    if kind in ("greater_than", "greater_than_equal", "less_than", "less_than_equal"):
        sign = {"gt": "more than", "ge": "at least", "lt": "less than", "le": "at most"}
        (key, limit), *_ = context.items()
        return f"{at}{given} must be {sign[key]} {limit}"
    if kind == "string_pattern_mismatch":
        return f"{at}{given} is no source; start with datasheet, measured or assumed, and say which"
    if kind in ("model_type", "model_attributes_type") and not isinstance(problem["input"], dict):
        needs = " with a value and a source: {value: …, source: …}" if _is_quantity(record, problem["loc"]) else ""
        return f"{at}{given} is not a mapping{needs}"
    if kind == "too_short":
        return f"{at}is empty; it needs at least {context['min_length']} entry"
    if kind == "literal_error":
        return f"{at}{given} is not one of {str(context['expected']).replace(chr(39), '')}"
    return f"{at}{problem['msg']}"


def _record_at(record: type[BaseModel], loc: tuple[Any, ...]) -> type[BaseModel] | None:
    """The record type that a place in a file is checked against."""
    here: Any = record
    for part in loc:
        if isinstance(here, type) and issubclass(here, BaseModel) and part in here.model_fields:
            here = here.model_fields[part].annotation
        options = [t for t in (here, *_leaves(here)) if isinstance(t, type) and issubclass(t, BaseModel)]
        tagged = [
            t for t in options if "kind" in t.model_fields and part in get_args(t.model_fields["kind"].annotation)
        ]
        here = (tagged or options or [here])[0] if len(options) <= 1 or tagged else here
    return here if isinstance(here, type) and issubclass(here, BaseModel) else None


def _leaves(annotation: Any) -> list[Any]:
    return [leaf for part in get_args(annotation) for leaf in (part, *_leaves(part))]


def _keys_at(record: type[BaseModel], loc: tuple[Any, ...]) -> list[str]:
    found = _record_at(record, loc)
    return [field.alias or name for name, field in found.model_fields.items()] if found else []


def _is_quantity(record: type[BaseModel], loc: tuple[Any, ...]) -> bool:
    found = _record_at(record, loc)
    return found is not None and {"value", "source"} <= set(found.model_fields)
