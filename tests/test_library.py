"""The library as a researcher uses it: names for records, changed assumptions, searches in memory, tables."""

import json

import numpy as np
import pandas as pd
import pytest
import typer

import helix_sim as hs
from helix_sim.answers.sensitivity import parse_change
from helix_sim.cli import app
from helix_sim.gate.regress import Verdict
from helix_sim.output.calibration import Servings

LLAMA, GB200 = "llama-3.1-405b", "gb200-nvl72"
X = {"batch": 8, "tpa": 8, "kvp": 8}


def test_names_and_text_stand_where_records_and_numbers_do():
    by_name = hs.decode_step(LLAMA, GB200, hs.Layout(**X), "1M", timing="ideal")
    by_record = hs.decode_step(
        hs.load_model(LLAMA), hs.load_machine(GB200), hs.Layout(**X, tpf=64), 10**6, timing=hs.load_timing("ideal")
    )
    assert by_name.ttl_s == by_record.ttl_s
    assert hs.load_model(hs.load_model(LLAMA)) is hs.load_model(LLAMA)


def test_a_width_alone_means_what_it_means_on_the_command_line():
    assert hs.Layout(kvp=8).tpf == 8
    assert hs.Layout(dp=8, ep=4).tpf == 2
    assert hs.Layout(kvp=8, tpf=1).tpf == 1
    assert hs.Layout(kvp=[1, 8]).tpf.tolist() == [1, 8]
    assert hs.explain(LLAMA, GB200, hs.Options(widths=X, context=10**6)).step.layout == hs.Layout(**X)
    with pytest.raises(hs.SpecError, match="ep is 0"):
        hs.decode_step(LLAMA, GB200, hs.Layout(ep=0), 1000)


def test_lists_of_widths_are_the_frame_call():
    table = hs.decode_step(LLAMA, GB200, hs.Layout(batch=[8, 16, 800], tpa=8, kvp=8), ["1M", 10**5, "1M"])
    frame = pd.DataFrame({"batch": [8, 16, 800], "tpa": 8, "kvp": 8, "context": ["1M", "100K", "1M"]})
    pd.testing.assert_frame_equal(table, hs.evaluate(hs.setting_of(LLAMA, GB200), frame))
    assert table["reasons"].tolist() == ["", "", "OUT_OF_MEMORY"]
    one = hs.decode_step(LLAMA, GB200, hs.Layout(**X), "1M")
    assert table["ttl_s"][0] == pytest.approx(float(one.ttl_s), rel=1e-14)
    with pytest.raises(hs.SpecError, match=r"different lengths.*batch 2, context 3"):
        hs.decode_step(LLAMA, GB200, hs.Layout(batch=[1, 2]), [1, 2, 3])
    with pytest.raises(hs.SpecError, match="a list of lists"):
        hs.decode_step(LLAMA, GB200, hs.Layout(batch=[[1, 2], [3, 4]]), 1000)


def test_a_frontier_is_taken_of_the_librarys_own_frames():
    table = hs.decode_step(LLAMA, GB200, hs.Layout(batch=list(range(1, 200)), tpa=8, kvp=8), "1M")
    curve = hs.frontier(table)
    runs = table[table["reasons"] == ""]
    beaten = [
        ((runs["tokens_per_s_user"] >= x) & (runs["tokens_per_s_gpu"] >= y)).sum() > 1
        for x, y in zip(curve.interactivity, curve.throughput, strict=True)
    ]
    assert len(curve) > 5
    assert not any(beaten)
    assert curve.to_frame()["reasons"].eq("").all()
    with pytest.raises(hs.SpecError, match="no column tokens_per_s_user"):
        hs.frontier(pd.DataFrame({"a": [1]}))


def test_a_changed_assumption_says_that_it_is_one():
    timing = hs.load_timing("paper").with_(collective_latency_us=25, source="what if")
    assert (timing.collective.latency_us.value, timing.collective.latency_us.source) == (25, "assumed: what if")
    assert timing.collective.nvlink_share == hs.load_timing("paper").collective.nvlink_share
    machine = hs.load_machine(GB200).with_(hbm_bandwidth_GBps=7000, source="measured: here")
    assert machine.hbm_bandwidth_GBps.source == "measured: here"
    slower = hs.decode_step(LLAMA, machine, hs.Layout(**X), "1M", timing=timing)
    assert slower.ttl_s > hs.decode_step(LLAMA, GB200, hs.Layout(**X), "1M").ttl_s


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        ({"colective_latency_us": 1, "source": "x"}, "did you mean collective_latency_us"),
        ({"collective_latency_us": -1, "source": "x"}, "collective_latency_us: .* greater than or equal to 0"),
        ({"collective_latency_us": float("nan"), "source": "x"}, "collective_latency_us: .* finite"),
        ({"collective_nvlink_share": 2, "source": "x"}, "collective_nvlink_share: .* less than or equal to 1"),
        ({"collective_latency_us": 1}, 'source="what if"'),
    ],
)
def test_an_assumption_that_cannot_be_is_refused_in_a_sentence(values, sentence):
    with pytest.raises(hs.SpecError, match=sentence):
        hs.load_timing("paper").with_(**values)


def test_a_search_is_made_in_memory():
    machine = hs.load_machine(GB200).with_(hbm_bandwidth_GBps=4000, source="what if")
    found = hs.run_sweep(model="llama-3.1-8b", machine=machine, families=["tp", "helix"], contexts="128K", gpus=(1, 8))
    usual = hs.run_sweep(model="llama-3.1-8b", machine=GB200, families=["tp", "helix"], contexts="128K", gpus=(1, 8))
    assert found.group("helix").point(-1)["ttl_s"] > usual.group("helix").point(-1)["ttl_s"]
    assert found.plan.inputs["machine"].file == ""
    assert usual.plan.inputs["machine"].file == GB200
    assert set(found.to_frame()["family"]) == {"tp", "helix"}
    assert found.group("helix").to_frame()["family"].eq("helix").all()
    assert found.group("helix").point(0)["family"] == "helix"


def test_parts_of_a_sweep_stand_in_place_of_its_own():
    shipped = hs.load_sweep("paper-llama-3.1-405b")
    one = hs.run_sweep(shipped, gpus=8, families="tp", groups={})
    assert np.all(one.group("tp").columns["gpus"] == 8)
    assert hs.Sweep(**shipped.model_dump()).model_dump() == shipped.model_dump()
    with pytest.raises(hs.SpecError, match="famlies: unknown key; did you mean families"):
        hs.run_sweep(shipped, famlies=["tp"])
    with pytest.raises(hs.SpecError, match="needs a sweep, or a model, a machine"):
        hs.run_sweep()
    with pytest.raises(hs.SpecError, match="contexts: missing"):
        hs.run_sweep(model=LLAMA, machine=GB200)


def shown():
    """One of each object that a researcher has at hand."""
    step = hs.decode_step(LLAMA, GB200, hs.Layout(**X), "1M")
    found = hs.run_sweep(model="llama-3.1-8b", machine=GB200, families=["tp", "helix"], contexts="128K", gpus=(1, 8))
    timing = hs.load_timing("gb200-trtllm")
    return [step, step.setting, step.model, step.machine, timing, found, found.plan, found.group("helix")]


def test_every_object_is_short_in_a_terminal_and_a_table_or_a_plot_in_a_notebook():
    for each in shown():
        assert len(repr(each)) < 500, type(each)
        if hasattr(each, "_repr_html_"):
            html = each._repr_html_()
            assert html.count("<table>") == html.count("</table>")
            assert "<table>" in html or "<svg" in html
    step, *_ = shown()
    assert all(name in step._repr_html_() for name, seconds in step.seconds.items() if seconds)


def test_a_notebook_shows_text_as_text():
    model = hs.load_model(LLAMA).model_copy(update={"source": "<script>alert(1)</script>"})
    assert "<script>" not in model._repr_html_()
    assert "&lt;script&gt;" in model._repr_html_()


def answers(folder):
    """What each verb of the library returns, by verb; those that take a GPU or minutes are made by hand."""
    model, machine = "llama-3.1-8b", "h100-hgx"
    options = hs.Options(context=64_000, widths={"tpa": 2, "batch": 4}, timing="h100-trtllm")
    asked = hs.Request(model=model, machine=machine, mix=hs.parse_mix("64K"), ttl_s=0.01, gpus=(1, 4))
    question = hs.Comparison(
        kind="comparison", models=[model], machines=[machine], contexts=[64_000], ttl_ms=[10.0], timings=["paper"],
        families=["tp"],
    )  # fmt: skip
    picked = hs.pick(model, machine, options)
    sweep = hs.run_sweep(model=model, machine=machine, contexts="64K", families=["tp"], gpus=(1, 2), chunks=[1])
    config = folder / "config.json"
    config.write_text(json.dumps(LLAMA_CONFIG))
    changes = [parse_change("hbm_bandwidth=2x", sweep.plan)]
    return {
        "pick": picked, "explain": hs.explain(picked), "capacity": hs.capacity(picked), "trace": hs.trace(picked),
        "sensitivity": hs.sensitivity(picked), "export": hs.export(picked, to="vllm"), "recommend": hs.recommend(asked),
        "compare": hs.compare(question), "rows": hs.compare(question).rows(), "run_sweep": sweep, "plan": sweep.plan,
        "frontier": sweep.group("tp"), "frontier_sensitivity": hs.frontier_sensitivity(sweep.plan),
        "what_if": hs.what_if(sweep.plan, changes), "models": hs.models(), "machines": hs.machines(),
        "import_hf": hs.import_hf(config), "check": hs.check([config])[0], "reproduce": hs.reproduce(
            "fig1", folder, hs.load_timing("paper")), "KNOBS": hs.KNOBS, "Request": asked, "Options": options,
        "Comparison": question, "Draft": hs.load_draft("deepseek-r1-mtp"), "Sweep": sweep.sweep,
        "Layout": hs.Layout(batch=list(range(1, 2000))), "Precision": picked.step.setting.precision,
        "Model": hs.load_model("kimi-k3"), "Machine": hs.load_machine(machine), "Timing": picked.step.timing,
        "Setting": picked.step.setting, "Step": picked.step, "memory": picked.step.memory,
        "verdict": Verdict(sweep="x" * 99, title="x" * 99, date="", rtol=1e-6, curves_only=False,
                           curves=[sweep.group("tp")] * 9, terms=[], counts=[], inputs=[]),
        "calibration": Servings(tables={"errors": pd.DataFrame({"a": range(99)})}, files=[folder] * 9),
    }  # fmt: skip


LLAMA_CONFIG = {
    "model_type": "llama", "hidden_size": 4096, "num_hidden_layers": 32, "num_attention_heads": 32,
    "vocab_size": 128256, "num_key_value_heads": 8, "intermediate_size": 14336, "hidden_act": "silu",
    "torch_dtype": "bfloat16", "tie_word_embeddings": False, "architectures": ["LlamaForCausalLM"],
    "rope_theta": 500000.0, "max_position_embeddings": 131072,
}  # fmt: skip


def test_whatever_the_library_returns_is_short_in_a_terminal_and_drawn_in_a_notebook(tmp_path):
    found = answers(tmp_path)
    long = {name: len(repr(each)) for name, each in found.items() if len(repr(each)) >= 500}
    assert long == {}
    assert not [name for name, each in found.items() if "object at 0x" in repr(each) or "\n" in repr(each)]
    for name in ("explain", "recommend", "compare", "rows", "models", "machines"):
        assert "<table>" in found[name]._repr_html_(), name


def test_every_verb_is_a_call_of_the_library():
    calls = {"sweep": ["run_sweep", "write_sweep"], "report": ["write_report"], "import-hf": ["import_hf"],
             "schema": ["json_schema"], "calibrate": ["calibrate_silicon", "calibrate_gpu"],
             "validate": ["validate_kernels", "validate_servings", "validate_measurements"]}  # fmt: skip
    commands = {name: each for name, each in typer.main.get_command(app).commands.items() if not each.hidden}
    for verb in commands:
        for name in calls.get(verb, [verb]):
            assert name in hs.__all__, verb
            assert callable(getattr(hs, name))
            assert name in hs.__doc__, f"{name} is not in help(helix_sim)"


def test_tab_completion_shows_the_public_names_alone():
    assert {name for name in dir(hs) if not name.startswith("__")} == set(hs.__all__)
    assert all(getattr(hs, name) is not None for name in dir(hs))


def test_a_draft_is_loaded_changed_and_decodes():
    draft = hs.load_draft("deepseek-r1-mtp")
    x = hs.Layout(batch=8, kvp=8, ep=8, draft_tokens=2)
    by_record, by_name = (
        hs.decode_step("deepseek-r1", GB200, x, "128K", draft=each).ttl_s for each in (draft, "deepseek-r1-mtp")
    )
    assert by_record == by_name
    with pytest.raises(hs.SpecError, match="did you mean deepseek-r1-mtp"):
        hs.load_draft("deepseek-r1-mpt")


def test_an_id_of_hugging_face_gets_the_nearest_model_and_how_to_read_its_config():
    with pytest.raises(hs.SpecError) as raised:
        hs.load_model("deepseek-ai/DeepSeek-R1")
    assert raised.value.problems == [
        "deepseek-ai/DeepSeek-R1: there is no such file; did you mean deepseek-r1, which is shipped?; "
        "helix-sim import-hf "
        "reads the config.json of a model of Hugging Face"
    ]
    with pytest.raises(hs.SpecError, match=r"there is no such file; helix-sim import-hf"):
        hs.load_model("nobody/nothing-at-all")
    with pytest.raises(hs.SpecError, match=r"there is no such file$"):
        hs.load_model("mine/model.yaml")


def test_what_drafts_is_an_object_like_the_others():
    draft = hs.load_draft("deepseek-r1-mtp")
    assert len(repr(draft)) < 500
    assert "deepseek-r1-mtp" in repr(draft)
    assert {"load_draft", "Draft"} <= set(dir(hs))
    x = hs.Layout(batch=8, kvp=8, ep=8, draft_tokens=2)
    by_name, by_record = (hs.decode_step("deepseek-r1", GB200, x, "1M", draft=each) for each in (draft.name, draft))
    assert by_name.ttl_s == by_record.ttl_s
    found = hs.explain("deepseek-r1", GB200, hs.Options(widths={"kvp": 8, "ep": 8, "draft_tokens": 2}, draft=draft))
    assert found.record()["draft"] == "deepseek-r1-mtp"


def test_a_search_takes_a_draft_as_a_record_too():
    sure = hs.load_draft("deepseek-r1-mtp").with_(acceptance_probabilities=[1.0], source="what if")
    half = {"model": "deepseek-r1", "machine": GB200, "families": ["tp"], "contexts": "64K", "gpus": (8, 8)}
    half["draft_tokens"] = [0, 1]
    plain, drafted = hs.run_sweep(**half, draft="deepseek-r1-mtp"), hs.run_sweep(**half, draft=sure)
    best = [max(each.group("tp").columns["tokens_per_s_user"]) for each in (plain, drafted)]
    assert best[1] > best[0]
    asked = hs.Request(
        model="deepseek-r1", machine=GB200, mix=hs.parse_mix("64K"), ttl_s=0.01, gpus=(8, 8), families=("tp",),
        stack="none", draft=sure, draft_tokens=(1,),
    )  # fmt: skip
    assert len(hs.recommend(asked).choices) > 0
