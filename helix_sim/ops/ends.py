"""The two ends of the model, on the first and the last pipeline stage, and what each stage hands to the next."""

from __future__ import annotations

from helix_sim.core.numeric import ceil_div
from helix_sim.core.work import Work
from helix_sim.ops.elementwise import hidden_norm, memory_pass
from helix_sim.ops.exchange import group_all_reduce, sent
from helix_sim.ops.matmul import matmul
from helix_sim.ops.step_input import StepInput


def embedding(s: StepInput) -> Work:
    """Lookup of each token's row in a table that is cut by vocabulary over the token group.

    A table that is also the head's is the head's to keep, unless the head is on another pipeline stage.
    """
    m = s.model
    table = m.hidden_size * ceil_div(m.vocab_size, s.layout.token_group) * s.precision.bytes_of("embedding_weights")
    return Work(
        op_class="pointwise",
        activation_bytes=2 * s.tokens * m.hidden_size * s.activation_bytes,
        idle_weight_bytes=table * (s.layout.pp > 1) if m.tied_embeddings else table,
        rows=s.tokens,
    )


def head(s: StepInput) -> Work:
    """Logits: H x vocabulary / N on each of the N ranks of the token group, for every new token."""
    shard = ceil_div(s.model.vocab_size, s.layout.token_group)
    return matmul(s, rows=s.tokens, inner=s.model.hidden_size, outer=shard, weights="head_weights", math="head_math")


def logits_gather(s: StepInput) -> Work:
    """All-gather of the logits of the other ranks' share of the vocabulary."""
    x = s.layout
    payload = s.tokens * (x.token_group - 1) * ceil_div(s.model.vocab_size, x.token_group) * s.wire_bytes
    return sent("all-gather", "all-gather", payload, x.token_group, rows=s.tokens)


def sampling(s: StepInput) -> Work:
    """One pass over the logits of every new token."""
    return memory_pass("elementwise", moved_bytes=s.tokens * s.model.vocab_size * s.activation_bytes, rows=s.tokens)


def stage_handover(s: StepInput) -> Work:
    """[tokens, H] to the next pipeline stage; nothing where there is one stage.

    The last stage sends nothing: the sampled tokens' numbers, 4 bytes each, go back with the scheduler's word.
    """
    x = s.layout
    payload = s.tokens * s.model.hidden_size * s.wire_bytes
    return sent("send", "send", payload, 1 + (x.pp > 1), stride=x.dp * x.attention_group, rows=s.tokens)


def opening_ops(s: StepInput) -> dict[str, Work]:
    """Ops in front of the first layer, in order."""
    return {"embedding": embedding(s), "embedding_all_reduce": group_all_reduce(s)}


def closing_ops(s: StepInput) -> dict[str, Work]:
    """Ops behind the last layer, in order."""
    return {
        "final_norm": hidden_norm(s),
        "head": head(s),
        "logits_gather": logits_gather(s),
        "sampling": sampling(s),
    }


def handover_ops(s: StepInput) -> dict[str, Work]:
    """Ops between two pipeline stages."""
    return {"stage_handover": stage_handover(s)}
