"""What makes no sense is refused or remarked upon: never computed with in silence."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from helix_sim.cli import app
from helix_sim.core.errors import SpecError
from helix_sim.specs.load import data_folder, load_model, shipped

OF_8B = ["llama-3.1-8b", "h100-hgx"]
SEARCH = ["--gpus-at-most", "2", "--family", "tp", "--context", "8K"]


def run(*words: str) -> Any:
    return CliRunner().invoke(app, list(words))


def problems(*words: str) -> str:
    found = run(*words)
    assert isinstance(found.exception, SpecError), found.output
    return "\n".join(found.exception.problems)


def changed(folder: str, name: str, into: Path, **values: Any) -> str:
    """A shipped file with other values, as a file of one's own."""
    content = yaml.safe_load((data_folder(folder) / f"{name}.yaml").read_text()) | values
    path = into / f"{name}.yaml"
    path.write_text(yaml.safe_dump(content))
    return str(path)


@pytest.mark.parametrize("published", [6.9, 9.1, 80])
def test_a_count_far_from_the_published_one_is_remarked_upon_by_every_verb(published: float, tmp_path: Path) -> None:
    model = changed("model_specs", "llama-3.1-8b", tmp_path, published_parameters_B=published)
    for words in (["check", model], ["explain", model, "h100-hgx", "--context", "8K"],
                  ["recommend", model, "h100-hgx", "--ttl-ms", "50", *SEARCH],
                  ["sensitivity", model, "h100-hgx", "--frontier", *SEARCH]):  # fmt: skip
        found = run(*words)
        assert found.exit_code == 0, words
        assert f"has 8.03 B parameters by its widths, and its published_parameters_B says {published}" in found.stderr


def test_no_shipped_model_is_doubtful() -> None:
    assert not [name for name in shipped("model") if load_model(name).doubt]


def test_a_reserve_above_the_memory_is_refused(tmp_path: Path) -> None:
    reserve = {"value": 100, "source": "assumed: more than there is"}
    machine = changed("hardware_profiles", "h100-hgx", tmp_path, memory_reserve_GB=reserve)
    assert "memory_reserve_GB 100 leaves nothing of memory_GB" in problems("check", machine)


@pytest.mark.parametrize("text", ["nan", "inf", "-inf", "1e999", "0", "-1", "1_0", "0x10", "١", "", " 5", "1:30"])
def test_what_is_no_finite_number_above_0_is_refused_by_each_option(text: str) -> None:
    of_search = ["recommend", *OF_8B, "--gpus", "2", "--family", "tp", "--context", "8K"]
    assert "is not a number above 0" in problems(*of_search, "--ttl-ms", text)
    assert "is not a number above 0" in problems("regress", "--rtol", text)
    assert "is not a number above 0" in problems("import-hf", "x", "--published-parameters", text)


@pytest.mark.parametrize("text", ["1e13", "1e308", "1e-13", "5e-324"])
def test_a_number_that_arithmetic_does_not_survive_is_refused_by_each_option(text: str) -> None:
    of_search = ["recommend", *OF_8B, "--gpus", "2", "--family", "tp", "--context", "8K"]
    for words in ([*of_search, "--ttl-ms"], [*of_search, "--tokens-per-second"], ["regress", "--rtol"],
                  ["explain", *OF_8B, "--context", "8K", "--usd-per-gpu-hour"],
                  [*of_search, "--ttl-ms", "50", "--usd-per-gpu-hour"]):  # fmt: skip
        assert f"{words[-1]}: '{text}' is not from 1e-12 to 1e+12" in problems(*words, text)


def test_a_quantity_that_arithmetic_does_not_survive_is_refused(tmp_path: Path) -> None:
    high, low = (1e308, "at most"), (1e-300, "at least")
    for field, (number, bound) in {"usd_per_gpu_hour": high, "memory_GB": high, "bf16_dense_TFLOPs": low}.items():
        value = {"value": number, "source": "assumed: no such thing"}
        machine = changed("hardware_profiles", "h100-hgx", tmp_path, **{field: value})
        assert f"{field}.value: {number:g} must be {bound}" in problems("check", machine)


@pytest.mark.parametrize("text", ["nan", "inf", "1:30", "", "١", "1e3"])
def test_what_is_no_size_is_refused(text: str) -> None:
    assert "is not a size" in problems("explain", *OF_8B, "--batch", text)
    assert "is not a size" in problems("sweep", "paper-deepseek-r1", "--out", "/tmp/none", "--block", text)


def test_an_option_that_the_mode_ignores_is_refused() -> None:
    search = ["sensitivity", *OF_8B, "--frontier", *SEARCH]
    assert "--query-tokens is of one layout" in problems(*search, "--query-tokens", "4")
    for figure in ("fig1", "fig3"):
        assert f"--timing does not change {figure}" in problems("reproduce", figure, "--timing", "ideal")


def test_a_squared_relu_counts_two_matrices_in_a_file(tmp_path: Path) -> None:
    whole = load_model("llama-3.1-8b")
    (name, ffn), *_ = whole.ffn.items()
    plain = {name: {"kind": "dense", "intermediate_size": ffn.narrowest, "gated": False}}
    found = load_model(changed("model_specs", "llama-3.1-8b", tmp_path, ffn=plain))
    less = whole.total_parameters - found.total_parameters
    assert less == whole.layer_count * whole.hidden_size * ffn.narrowest
