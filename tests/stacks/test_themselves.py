"""The stacks' own argument and configuration classes, where their wheels are installed, against what we say of them."""

from __future__ import annotations

import argparse
import importlib.util
from types import SimpleNamespace
from typing import Any

import pytest

from helix_sim.core.layout import Layout
from helix_sim.specs.load import load_machine
from helix_sim.specs.model import Model
from helix_sim.specs.precision import Precision
from helix_sim.stacks.rules import StackRule, stack_flags
from helix_sim.stacks.stack import load_stack

BF16 = Precision(weights="bf16", kv="bf16", math="bf16")


def wheel(name: str) -> Any:
    """Skips unless a stack's wheel is installed."""
    return pytest.mark.skipif(
        importlib.util.find_spec(name) is None, reason=f"{name} is not installed: its own classes are not asked"
    )


def choices_of(parser: argparse.ArgumentParser) -> dict[str, Any]:
    """Every option of a parser by name, with the values it takes where it lists them."""
    return {text: action.choices for action in parser._actions for text in action.option_strings}


def assert_documented(stack: str, known: dict[str, Any]) -> None:
    """Every option that we write is one of the stack's, and every name that we write is one that it takes."""
    for name, option in load_stack(stack).options.items():
        assert name in known, name
        if option.one_of and known[name]:
            assert set(option.one_of) <= set(known[name]), name


@wheel("vllm")
def test_vllm_has_the_options_that_are_written(monkeypatch: pytest.MonkeyPatch) -> None:
    from vllm import platforms
    from vllm.engine.arg_utils import AsyncEngineArgs
    from vllm.utils.argparse_utils import FlexibleArgumentParser

    if not platforms.current_platform.device_type:  # no GPU here: its options do not depend on one
        monkeypatch.setattr(type(platforms.current_platform), "device_type", "cuda")
    parser = AsyncEngineArgs.add_cli_args(FlexibleArgumentParser())
    assert_documented("vllm", choices_of(parser))


@wheel("vllm")
@pytest.mark.parametrize("heads", [(28, 4), (32, 8), (24, 6), (128, 8), (64, 4)])
def test_vllm_refuses_the_heads_that_the_rules_refuse(heads: tuple[int, int]) -> None:
    """ModelConfig.verify_with_parallel_config, which needs no GPU, against QUERY_HEADS, KVP_HEADS and KVP_QUERIES."""
    from vllm.config.model import ModelConfig
    from vllm.config.parallel import ParallelConfig

    q_heads, kv_heads = heads
    of_model = SimpleNamespace(
        model_arch_config=SimpleNamespace(total_num_attention_heads=q_heads), use_mla=False, multimodal_config=None,
        architectures=[], registry=SimpleNamespace(is_pp_supported_model=lambda *_: True),
        get_total_num_kv_heads=lambda: kv_heads,
    )  # fmt: skip
    model, machine = dense(q_heads, kv_heads), load_machine("h100-hgx")
    ours = StackRule.QUERY_HEADS.flag | StackRule.KVP_HEADS.flag | StackRule.KVP_QUERIES.flag
    for tpa in (1, 2, 3, 4, 6, 7, 8, 14):
        for kvp in (1, 2, 3, 4, 7, 8):
            config = ParallelConfig(tensor_parallel_size=tpa * kvp, decode_context_parallel_size=kvp)
            try:
                ModelConfig.verify_with_parallel_config(of_model, config)
                refused = False
            except ValueError:
                refused = True
            x = Layout(tpa=tpa, kvp=kvp, tpf=tpa * kvp)
            assert bool(int(stack_flags("vllm", model, machine, BF16, x)) & ours) == refused, (tpa, kvp)


@wheel("sglang")
def test_sglang_has_the_options_that_are_written() -> None:
    from sglang.srt.server_args import ServerArgs

    parser = argparse.ArgumentParser()
    ServerArgs.add_cli_args(parser)
    assert_documented("sglang", choices_of(parser))


@wheel("tensorrt_llm")
def test_tensorrt_llm_has_the_options_that_are_written() -> None:
    from tensorrt_llm.llmapi.llm_args import TorchLlmArgs

    for name in load_stack("trtllm").options:
        fields = TorchLlmArgs.model_fields
        assert name.split(".")[0] in fields, name


def dense(q_heads: int, kv_heads: int) -> Model:
    """A dense model with these heads."""
    return Model.model_validate(
        {
            "kind": "model", "name": "small", "source": "made for tests", "published_parameters_B": 1.0,
            "hidden_size": 1024, "vocab_size": 64 * 3 * 7 * 14 * 8,
            "attention": {"gqa": {"kind": "gqa", "q_heads": q_heads, "kv_heads": kv_heads, "head_size": 128}},
            "ffn": {"ffn": {"kind": "dense", "intermediate_size": 3 * 7 * 1024}},
            "layers": [{"attention": "gqa", "ffn": "ffn", "repeat": 2}],
        }
    )  # fmt: skip
