"""Layers in which two microbatches take turns, drawn: what a GPU computes, sends and waits for, one after another."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from typing import Literal, NamedTuple


class Turn(NamedTuple):
    """What a GPU does next: a part of a layer, by the names of `timing.overlap.LayerTimes`, of a microbatch, 0 or 1."""

    does: Literal["compute", "send", "wait"]
    part: str
    microbatch: int
    layer: int


def five_stages(layers: int) -> Iterator[Turn]:
    """SGLang's order: five stages a layer, the second microbatch two stages behind the first.

    [`_compute_moe_deepseek_blog_decode` in python/sglang/srt/batch_overlap/operations_strategy.py,
    https://github.com/sgl-project/sglang]
    """

    def stages(which: int) -> Iterator[list[Turn]]:
        for layer in range(layers):
            yield [Turn("compute", "prepare", which, layer)]
            yield [Turn("compute", "attend", which, layer)]
            yield [Turn("send", "dispatch", which, layer), Turn("compute", "shared", which, layer)]
            yield [
                Turn("wait", "dispatch", which, layer),
                Turn("compute", "experts", which, layer),
                Turn("send", "combine", which, layer),
            ]
            yield [Turn("wait", "combine", which, layer)]

    first, second = stages(0), stages(1)
    begun = list(itertools.islice(first, 2))
    pairs = itertools.chain.from_iterable(itertools.zip_longest(first, second, fillvalue=[]))
    yield from itertools.chain.from_iterable([*begun, *pairs])


def two_threads(layers: int) -> Iterator[Turn]:
    """vLLM's order: a thread a microbatch, which hand the GPU to each other at every exchange.

    [dual batch overlap, https://docs.vllm.ai/en/stable/design/dbo/]
    """

    def attention(which: int, layer: int) -> list[Turn]:
        return [Turn("compute", "prepare", which, layer), Turn("compute", "attend", which, layer)]

    yield from attention(0, 0)
    for layer in range(layers):
        yield Turn("send", "dispatch", 0, layer)
        yield from attention(1, layer)
        yield Turn("wait", "dispatch", 0, layer)
        yield Turn("send", "dispatch", 1, layer)
        yield Turn("compute", "experts", 0, layer)
        yield Turn("wait", "dispatch", 1, layer)
        yield Turn("send", "combine", 0, layer)
        yield Turn("compute", "shared", 0, layer)
        yield Turn("compute", "experts", 1, layer)
        yield Turn("wait", "combine", 0, layer)
        yield Turn("send", "combine", 1, layer)
        yield Turn("compute", "shared", 1, layer)
        if layer < layers - 1:
            yield from attention(0, layer + 1)
        yield Turn("wait", "combine", 1, layer)


ORDERS: dict[str, Callable[[int], Iterator[Turn]]] = {"attention-in-two": five_stages, "attention-whole": two_threads}
"""By the names of a timing's `microbatch_order`."""
