"""Pipeline stages: which layers each holds, and the few among which the busiest and the fullest of a layout are."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt

from helix_sim.core.numeric import Column, chosen
from helix_sim.specs.model import Model

Stage = Mapping[tuple[str, str], Any]
"""How often each kind runs on a stage in a step, by ("attention", "ffn", "ends" or "layer", name): numbers, columns."""

ENDS = (("ends", "opening"), ("ends", "closing"), ("ends", "handover"))


def layers_dealt(layers: int, stages: int) -> list[int]:
    """Layers of each pipeline stage, first to last: equal shares, what is left over kept from the two ends.

    The stages before the last get one more each, from the back on, so that the last, which has the head, and if it can
    be the first, which has the embedding, get none [vLLM, get_pp_indices in vllm/distributed/utils.py,
    https://github.com/vllm-project/vllm]. TensorRT-LLM deals what is left to the first stages, which spares the last
    one alike; SGLang to the last ones. All three take a list from the user as well.

    >>> layers_dealt(61, 4), layers_dealt(7, 4)
    ([15, 15, 16, 15], [2, 2, 2, 1])
    """
    share, left = divmod(layers, stages)
    return [share + (stages - 1 - left <= place < stages - 1) for place in range(stages)]


def stage_layers(model: Model, stages: int) -> list[tuple[tuple[str, str], ...]]:
    """(attention, ffn) of every layer of each stage, in order."""
    sizes = layers_dealt(model.layer_count, stages)
    return [model.layer_list[end - size : end] for end, size in zip(np.cumsum(sizes), sizes, strict=True)]


def heavy_stages(model: Model, pp: Column, layers: bool = False) -> tuple[Stage, ...]:
    """The stages of which one is the busiest and one the fullest, whatever a layer takes: none has more of all kinds.

    pp: pipeline stages, a number or a column; each stage's counts are of its shape. Where a layout has fewer such
    stages than another of the column, its first comes again. layers: whether whole layers are counted as well, by
    ("layer", "attention, FFN").
    """
    kinds = tuple(model.kind_counts)
    if layers:
        kinds += tuple(("layer", ", ".join(layer)) for layer in dict.fromkeys(model.layer_list))
    keys = (*kinds, *ENDS)
    if isinstance(pp, int | float):
        rows = _heavy_stages(model.layer_list, kinds, int(pp))
        return tuple(dict(zip(keys, map(int, row), strict=True)) for row in rows)
    values, place = np.unique(np.asarray(pp if np.size(pp) else [1]), return_inverse=True)
    found = [_heavy_stages(model.layer_list, kinds, int(value)) for value in values]
    table = np.stack([[of[j if j < len(of) else 0] for of in found] for j in range(max(map(len, found)))])
    place = place[: np.size(pp)].reshape(np.shape(pp))
    return tuple({key: stage[place, k] for k, key in enumerate(keys)} for stage in table)


@lru_cache(maxsize=4096)
def _heavy_stages(
    layers: tuple[tuple[str, str], ...], kinds: tuple[tuple[str, str], ...], stages: int
) -> npt.NDArray[np.float64]:
    """Counts (stage, kind) of the stages that no other has at least as much of everything as; largest first.

    The last three columns are those of ENDS: the model's beginning, its end, and a hand-over to the next stage.
    """
    sizes = layers_dealt(len(layers), stages)
    of_layer = [{("attention", a), ("ffn", f), ("layer", f"{a}, {f}")} for a, f in layers]
    of_kind = np.array([[kind in own for kind in kinds] for own in of_layer], dtype=float)
    before = np.vstack([np.zeros(len(kinds)), np.cumsum(of_kind, axis=0)])
    ends = np.cumsum(sizes)
    number = np.arange(stages)
    edges = np.stack([number == 0, number == stages - 1, number < stages - 1], axis=1)
    of_stages = np.hstack([before[ends] - before[ends - sizes], edges]).tolist()
    counts = np.array(sorted(set(map(tuple, of_stages)), reverse=True))
    covered = (counts[:, None] <= counts[None]).all(axis=2).sum(axis=1) > 1  # each covers itself
    left: npt.NDArray[np.float64] = counts[~covered]
    return np.asarray(left[np.argsort(-left[:, : len(kinds)].sum(axis=1), kind="stable")])


def largest_stage(stages: tuple[Stage, ...], totals: list[Any]) -> Stage:
    """Layout by layout, the stage with the largest total, the first among equals."""
    best, most = dict(stages[0]), totals[0]
    for stage, total in zip(stages[1:], totals[1:], strict=True):
        more = total > most
        most = chosen(more, total, most)
        best = {key: chosen(more, stage[key], count) for key, count in best.items()}
    return best
