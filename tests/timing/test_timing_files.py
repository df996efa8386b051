"""A timing that extends another holds only what differs; its latencies scale together with its rates."""

import random
from dataclasses import replace

import pytest
import yaml

from helix_sim.core.collectives import all_reduce, direct
from helix_sim.core.errors import SpecError
from helix_sim.core.work import COMPUTE_CLASSES, Work
from helix_sim.search.plan import digest
from helix_sim.silicon.systems import machine_of
from helix_sim.specs.extending import differences, extend
from helix_sim.specs.load import check_file, data_folder, load_machine, load_timing, read_yaml, shipped
from helix_sim.timing.roofline import HOST, measured_classes, op_time

MEASURED = sorted(path.stem for path in data_folder("hardware_profiles/measured_timings").glob("*.yaml"))


def written(folder, name, **content):
    """A timing's file with little of its own."""
    path = folder / f"{name}.yaml"
    path.write_text(yaml.safe_dump({"kind": "timing", "name": name, "description": "a test's", **content}))
    return path


# --- What a file says, and what it leaves to the one it extends ------------------------------------------------------


def test_a_timing_has_the_values_of_the_one_it_extends_but_for_what_it_says(tmp_path):
    latency = {"value": 7, "source": "assumed: a test"}
    mine = load_timing(written(tmp_path, "mine", extends="paper", kernel={"latency_us": latency}))
    paper = load_timing("paper")
    assert (mine.kernel.latency_us.value, mine.kernel.bandwidth_share) == (7, paper.kernel.bandwidth_share)
    assert mine.kernel.latency_us.source == "assumed: a test"
    assert (mine.collective, mine.pointwise, mine.hop_b) == (
        paper.collective,
        paper.pointwise,
        paper.hop_b,
    )
    assert (mine.name, mine.extends, paper.extends) == ("mine", "paper", None)


def test_a_path_is_read_beside_the_file_that_says_it(tmp_path):
    written(tmp_path, "base", extends="paper", shared_expert_overlap={"value": 0.5, "source": "assumed: a test"})
    path = written(tmp_path, "mine", extends="base.yaml")
    assert load_timing(path).shared_expert_overlap.value == 0.5
    assert check_file(path) == load_timing(path)


def test_a_change_of_the_base_is_a_change_of_what_extends_it(tmp_path):
    written(tmp_path, "base", extends="paper")
    path = written(tmp_path, "mine", extends="base.yaml")
    assert load_timing(path).shared_expert_overlap.value == 1
    written(tmp_path, "base", extends="paper", shared_expert_overlap={"value": 0.25, "source": "assumed: a test"})
    assert load_timing(path).shared_expert_overlap.value == 0.25


def test_a_digest_is_of_the_values_and_not_of_how_the_file_says_them(tmp_path):
    whole = load_timing("paper").model_dump(exclude={"name", "kind"})
    short = written(tmp_path, "mine", extends="paper", description=whole["description"])
    (tmp_path / "other").mkdir()
    assert digest(load_timing(short)) == digest(load_timing(written(tmp_path / "other", "mine", **whole)))


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ({"extends": "papier"}, "extends: there is no timing named 'papier'; did you mean paper?"),
        ({"extends": "gone.yaml"}, "gone.yaml: there is no such file"),
        ({"extends": "mine.yaml"}, "extends: goes in a circle, mine.yaml → mine.yaml"),
        ({"extends": "first.yaml"}, "extends: goes in a circle, first.yaml → second.yaml → first.yaml"),
        ({"extends": "paper", "kernel": {"latency_us": {"value": 7}}}, "kernel.latency_us.source: missing"),
        ({"extends": "paper", "kernle": {}}, "kernle: unknown key; did you mean kernel?"),
    ],
)
def test_a_wrong_base_is_one_sentence(content, sentence, tmp_path):
    written(tmp_path, "first", extends="second.yaml")
    written(tmp_path, "second", extends="first.yaml")
    path = written(tmp_path, "mine", **content)
    for read in (load_timing, check_file):
        with pytest.raises(SpecError) as caught:
            read(path)
        assert len(caught.value.problems) == 1
        assert sentence in caught.value.problems[0]


def test_a_file_without_a_base_has_to_say_everything(tmp_path):
    with pytest.raises(SpecError) as caught:
        load_timing(written(tmp_path, "mine"))
    assert len(caught.value.problems) == 6


@pytest.mark.parametrize("name", MEASURED)
def test_a_measured_timing_says_only_what_was_measured(name):
    content = read_yaml(data_folder("hardware_profiles/measured_timings") / f"{name}.yaml")
    assert set(content) == {"kind", "name", "description", "extends", "calibration"}
    assert content["extends"] == "serving-stack"


def test_what_differs_over_a_base_gives_the_content_back():
    base = load_timing("paper").model_dump(exclude_none=True)
    for name in shipped("timing"):
        content = load_timing(name).model_dump(exclude_none=True)
        assert extend(base, differences(content, base)) == content


# --- Rates and latencies scale together ------------------------------------------------------------------------------


def works(seed, timing, formats):
    """Random ops of every class, of any size that a step may have."""
    rng = random.Random(seed)
    known = {name.partition("/")[0] for name in timing.calibration.classes} if timing.calibration else set()

    def size(most):
        return float(round(10 ** rng.uniform(0, most)))

    for op_class in COMPUTE_CLASSES:
        yield Work(
            op_class=op_class,
            flops=10 ** rng.uniform(3, 15),
            weight_bytes=10 ** rng.uniform(3, 11),
            kv_bytes=10 ** rng.uniform(3, 11),
            activation_bytes=10 ** rng.uniform(2, 10),
            pieces=rng.choice([1, 1, 4]),
            math=rng.choice(formats),
            weights=rng.choice(["bf16", "fp8", "fp8-block", "nvfp4", "fp4"]),
            rows=size(4),
            inner=size(5),
            outer=size(5),
            copies=size(2),
            experts_read=size(2),
            heads=size(2),
            tokens=size(6),
            arrived=size(5),
        )
    for kind in (
        "all-reduce",
        "all-gather",
        "reduce-scatter",
        "all-to-all",
        "partial-exchange",
        "broadcast",
        "send",
        "dispatch",
        "combine",
    ):
        sizes = (10 ** rng.uniform(0, 9), rng.choice([1, 2, 3, 4, 8, 12, 16, 64, 100, 128]))
        sent = all_reduce(*sizes) if kind == "all-reduce" else direct(kind, *sizes)
        work = Work(
            op_class=kind,
            kernels=0,
            collective=replace(sent, stride=rng.choice([1, 2, 8])),
            needed=rng.random(),
            rows=size(4),
            heads=size(2),
        )
        assert kind in known or not known
        yield work
    yield Work(op_class=HOST)


def slower(machine, factor):
    """The machine with every rate divided by a factor."""
    names = [
        name for name in type(machine).model_fields if name.endswith(("GBps", "TFLOPs")) and getattr(machine, name)
    ]
    return machine.model_copy(update={name: getattr(machine, name).scale(1 / factor) for name in names})


@pytest.mark.parametrize("name", shipped("timing"))
def test_rates_divided_and_latencies_multiplied_by_a_factor_multiply_every_time_by_it(name):
    timing = load_timing(name)
    machine = machine_of(timing.calibration.system) if timing.calibration else load_machine("gb200-nvl72")
    rng = random.Random(f"homogeneous {name}")
    seen = set()
    for seed in range(60):
        x = 10 ** rng.uniform(-1, 1)
        scaled = timing.scale_latencies(kernel=x, collective=x, network=x, host=x)
        for work in works(f"{name} {seed}", timing, machine.math_formats):
            before, after = op_time(work, machine, timing), op_time(work, slower(machine, x), scaled)
            assert float(after.seconds) == pytest.approx(x * float(before.seconds), rel=1e-9, abs=1e-30), work
            seen |= set(measured_classes(work, timing))
    if timing.calibration:
        assert seen == set(timing.calibration.classes), "a class that no op reached"


@pytest.mark.parametrize("name", ["paper", "gb200-trtllm"])
def test_a_knob_scales_what_it_names_and_says_so(name):
    timing = load_timing(name)
    machine = load_machine("gb200-nvl72")
    gemm = Work(op_class="gemm", flops=1.0, weight_bytes=1.0, activation_bytes=1.0, math="fp4", weights="nvfp4")
    reduce = Work(op_class="all-reduce", kernels=0, collective=all_reduce(16.0, 4))
    host = Work(op_class=HOST)

    def times(scaled):
        return [float(op_time(work, machine, scaled).seconds) for work in (gemm, reduce, host)]

    before = times(timing)
    for knob, op in (("kernel", 0), ("collective", 1), ("host", 2)):
        after = times(timing.scale_latencies(**{knob: 0.5}))
        assert after[op] == pytest.approx(0.5 * before[op], rel=1e-3), knob
        assert [time for i, time in enumerate(after) if i != op] == [t for i, t in enumerate(before) if i != op]
    half = timing.scale_latencies(kernel=0.5)
    assert half.kernel.latency_us.source == f"assumed: 0.5 times what it was ({timing.kernel.latency_us.source})"
    assert timing.scale_latencies() == timing


def test_a_machine_without_what_measured_kernels_ask_is_a_sentence():
    machine = load_machine("gb200-nvl72").model_copy(update={"sms": None, "tray_gpus": None})
    with pytest.raises(SpecError, match="gb200-nvl72 has no sms, tray_gpus, which measured timings ask of a machine"):
        op_time(Work(op_class="elementwise", activation_bytes=1.0), machine, load_timing("gb200-trtllm"))
