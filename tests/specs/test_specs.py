"""Shipped files say what is published; broken files say what is wrong with them."""

from pathlib import Path
from typing import get_args

import pytest
import yaml

from helix_sim.core.errors import SpecError
from helix_sim.core.layout import Layout
from helix_sim.core.units import FORMAT_BITS
from helix_sim.search.frame import decode_step
from helix_sim.specs.load import FOLDERS, check_file, data_folder, load_machine, load_model, load_sweep, parse, shipped
from helix_sim.specs.model import Model
from helix_sim.specs.values import MathFormat, NumberFormat

BROKEN = Path(__file__).parent / "broken"

# Published totals: the Llama 3.1 model card and paper; DeepSeek-V3/R1 without the multi-token-prediction module.
PARAMETERS_B = {"llama-3.1-405b": 405.85, "llama-3.1-70b": 70.55, "llama-3.1-8b": 8.03, "deepseek-r1": 671.0}


@pytest.mark.parametrize(("name", "published"), PARAMETERS_B.items())
def test_parameters_equal_the_published_count(name, published):
    model = load_model(name)
    assert model.total_parameters / 1e9 == pytest.approx(published, rel=1e-3)
    assert model.published_parameters_B == published


def test_every_shipped_model_equals_its_own_published_count():
    for name in shipped("model"):
        model = load_model(name)
        assert model.total_parameters / 1e9 == pytest.approx(model.published_parameters_B, rel=1e-2), name


@pytest.mark.parametrize(("name", "values"), [("deepseek-r1", 61 * (512 + 64)), ("llama-3.1-405b", 126 * 2 * 8 * 128)])
def test_kv_values_per_token_are_the_known_ones(name, values):
    assert load_model(name).kv_values_per_token == values


@pytest.mark.parametrize("kind", ["model", "machine", "timing", "sweep"])
def test_every_shipped_file_loads_and_is_named_after_itself(kind):
    assert shipped(kind)
    for path in (path for folder in FOLDERS[kind] for path in data_folder(folder).glob("*.yaml")):
        if path.stem != "families":
            assert check_file(path).name == path.stem


def test_every_rate_and_constant_has_a_source():
    def sources(record):
        for value in record.model_dump().values() if not isinstance(record, dict) else record.values():
            if isinstance(value, dict):
                yield from [value["source"]] if "source" in value else sources(value)

    for name in shipped("machine"):
        found = list(sources(load_machine(name)))
        assert len(found) >= 9
        assert all(source.split(":")[0] in ("datasheet", "measured", "assumed") for source in found)


def test_datasheet_rates_are_the_dense_ones():
    # sparse rates are twice as large: 20 PFLOP/s of FP4 on GB200, 3,958 TFLOP/s of FP8 on H100
    assert load_machine("gb200-nvl72").fp4_dense_TFLOPs.value == 10_000
    assert load_machine("h100-hgx").fp8_dense_TFLOPs.value == 1979


def test_formats_of_the_spec_are_those_of_the_units():
    assert set(get_args(NumberFormat)) == set(FORMAT_BITS)
    assert set(get_args(MathFormat)) <= set(FORMAT_BITS)


def test_nvfp4_carries_its_block_scales():
    assert FORMAT_BITS["nvfp4"] == 4 + 8 / 16
    assert FORMAT_BITS["fp4"] == 4.0


# --- Broken files ----------------------------------------------------------------------------------------------------


def broken_files():
    return sorted(BROKEN.glob("*.yaml"))


@pytest.mark.parametrize("path", broken_files(), ids=lambda path: path.stem)
def test_a_broken_file_says_exactly_what_is_wrong(path):
    expected = path.with_suffix(".txt").read_text(encoding="utf-8").splitlines()
    with pytest.raises(SpecError) as caught:
        check_file(path)
    assert [problem.replace(f"{path}: ", "").replace(f"{path}:", "") for problem in caught.value.problems] == expected


def test_every_kind_of_mistake_has_a_broken_file():
    assert {path.stem for path in broken_files()} >= {
        "unknown-key",
        "text-for-a-number",
        "exponent",
        "repeated-key",
        "zero",
        "negative",
        "heads-do-not-divide",
        "nan",
        "missing-source",
    }


def test_one_error_lists_every_problem():
    content = {"kind": "model", "name": "x", "hidden_size": -1, "layerz": 3}
    with pytest.raises(SpecError) as caught:
        parse(Model, content, "x.yaml")
    assert len(caught.value.problems) >= 5


@pytest.mark.parametrize(
    ("kind", "name", "suggestion"),
    [
        ("model", "deepseek-r2", "did you mean deepseek-r1?"),
        ("machine", "gb200", "did you mean gb200-nvl72?"),
        ("sweep", "paper-deepseek", "did you mean paper-deepseek-r1?"),
    ],
)
def test_an_unknown_name_is_answered_with_the_nearest(kind, name, suggestion):
    load = {"model": load_model, "machine": load_machine, "sweep": load_sweep}[kind]
    with pytest.raises(SpecError, match=suggestion.replace("?", r"\?")):
        load(name)


def test_a_path_works_where_a_name_does(tmp_path):
    path = tmp_path / "mine.yaml"
    content = yaml.safe_load((data_folder("model_specs") / "llama-3.1-8b.yaml").read_text())
    path.write_text(yaml.safe_dump({**content, "name": "mine"}))
    assert load_model(path).name == "mine"
    assert load_model(str(path)) == load_model(path)


def test_a_changed_file_is_read_again(tmp_path):
    path = tmp_path / "mine.yaml"
    text = (data_folder("model_specs") / "llama-3.1-8b.yaml").read_text()
    path.write_text(text)
    assert load_model(path).layer_count == 32
    path.write_text(text.replace("repeat: 32", "repeat: 16"))
    assert load_model(path).layer_count == 16


def test_specs_are_frozen():
    with pytest.raises(ValueError, match="frozen"):
        load_model("llama-3.1-8b").hidden_size = 1


ANNOUNCED = ("rubin-nvl144",)
"""Machines that nobody sells yet."""


def test_a_machine_without_fitted_kernels_says_so_and_runs_with_the_assumed_timings():
    fitted = {name for name in shipped("machine") if load_machine(name).public_tables}
    others = set(shipped("machine")) - fitted
    assert others == {"h20-hgx", "mi325x", "mi355x", "rubin-nvl144"}
    for name in others:
        text = (data_folder("hardware_profiles") / f"{name}.yaml").read_text(encoding="utf-8")
        assert "o kernels are fitted" in text, name
        step = decode_step(load_model("llama-3.1-8b"), load_machine(name), Layout(batch=8), 10_000)
        assert 0 < float(step.ttl_s) < 0.1


def test_what_is_only_announced_is_assumed_value_by_value():
    for name in ANNOUNCED:
        machine = load_machine(name).model_dump(exclude_none=True)
        sources = [value["source"] for value in machine.values() if isinstance(value, dict)]
        assert len(sources) > 10
        assert all(source.startswith("assumed: ") for source in sources)
