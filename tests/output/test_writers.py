"""Random Unicode, control characters and markup in every name, through every writer: each target shows it, and no more."""

import shutil
import subprocess

import pytest
import yaml
from cases import GB200, LLAMA, PAPER
from hostile_text import TEXTS
from hypothesis import given, settings

from helix_sim.core.layout import Layout
from helix_sim.core.units import MEGA
from helix_sim.output.export import STACKS, export
from helix_sim.specs.precision import Precision
from helix_sim.step import decode_step

BASH = shutil.which("bash")
FORMATS = Precision(weights="nvfp4", kv="fp8", math="fp4")
FEW = {"max_examples": 40, "deadline": None}


def renamed(name):
    """A step of a model, a machine and a timing of that name, as a file could not say it: files restrict names."""
    records = (record.model_copy(update={"name": name}) for record in (LLAMA, GB200, PAPER))
    model, machine, timing = records
    model = model.model_copy(update={"source": name})
    layout = Layout(batch=4, tpa=8, tpf=8)
    return decode_step(model, machine, layout, int(MEGA / 10), precision=FORMATS, timing=timing)


# --- Launch files ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("stack", STACKS)
@settings(**FEW)
@given(name=TEXTS, checkpoint=TEXTS.filter(bool))
def test_a_launch_file_runs_nothing_of_a_name(stack, name, checkpoint, tmp_path_factory):
    folder = tmp_path_factory.getbasetemp() / "launch"
    folder.mkdir(exist_ok=True)
    for given_checkpoint in (checkpoint, None):
        written = export(renamed(name), to=stack, checkpoint=given_checkpoint)
        if stack == "trtllm":
            assert yaml.safe_load(written.text) == written.options
        elif BASH:
            text = (name if given_checkpoint is None else given_checkpoint).replace("\0", "")  # bash has no such byte
            assert started_by(written.text, folder) == [text.encode("utf-8", "replace")]
            assert not list(folder.iterdir())


def started_by(script, folder):
    """The checkpoints that a launch file starts its server with, in a folder with nothing to run but a stand-in."""
    stand_in = "vllm() { printf '%s\\0' \"$2\"; }; python3() { printf '%s\\0' \"$4\"; }; "
    for options in (["-n"], []):
        ran = subprocess.run(
            [BASH, *options, "-c", stand_in + "\n" + script], cwd=folder, capture_output=True, check=False
        )
        assert (ran.returncode, ran.stderr) == (0, b"")
    return ran.stdout.split(b"\0")[:-1]
