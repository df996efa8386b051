"""One step of one layer, really run: N in-process ranks with real tensors, sharded as a Layout says.

The independent witness of the equations. Each rank holds its own weights and KV shard, computes in float64, exchanges
arrays with the others and counts what that takes, under the op names of the step. It shares no arithmetic with the
equations: which heads, experts and tokens a rank holds is dealt out here, thing by thing.

Shapes on one rank: B requests of its attention group, n new tokens of each, H hidden, q and k of the Q query and K KV
heads, S cached tokens; `rows` are the B·n new tokens, those of one request side by side. Ranks are placed in order:
attention group, then KV shard, then tpa column. Tokens are appended to the KV shards round-robin in blocks of 16
[Helix 2025, section 2.3].
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from itertools import pairwise
from math import gcd

import numpy as np
import numpy.typing as npt
from witness.counted import Array, Rank, ring_all_reduce, send
from witness.plain_layer import LayerSpec, Weights, choose_experts, gated, rms_norm, rotate, score_scale

from helix_sim.core.layout import Layout
from helix_sim.kernels.twin import combine
from helix_sim.specs.model import AttentionKind, GqaAttention, RoutedFfn
from helix_sim.specs.precision import Precision

Positions = npt.NDArray[np.int64]
"""Places of tokens in their request, from 0."""

BLOCK_TOKENS = 16
"""Tokens that one KV shard takes before it is the next one's turn."""


# --- Who holds what --------------------------------------------------------------------------------------------------


def deal(things: int, ranks: int) -> list[range]:
    """Neighbouring shares of `things`, one a rank, sizes within one of each other and the larger ones first.

    >>> deal(5, 3)
    [range(0, 2), range(2, 4), range(4, 5)]
    """
    small, larger = divmod(things, ranks)
    starts = [small * r + min(r, larger) for r in range(ranks + 1)]
    return [range(a, b) for a, b in pairwise(starts)]


def deal_heads(q_heads: int, kv_heads: int, tpa: int) -> list[tuple[range, range]]:
    """(query heads, KV heads) of each tpa column; queries stay with their KV head, or with a copy of it.

    Up to TPA = K the KV heads are dealt to columns. Past it the columns are dealt to KV heads as copies, and each
    head's queries to its copies.

    >>> deal_heads(8, 2, 4)
    [(range(0, 2), range(0, 1)), (range(2, 4), range(0, 1)), (range(4, 6), range(1, 2)), (range(6, 8), range(1, 2))]
    """
    share = q_heads // kv_heads
    if tpa <= kv_heads:
        return [(range(share * kv.start, share * kv.stop), kv) for kv in deal(kv_heads, tpa)]
    return [
        (range(share * head + part.start, share * head + part.stop), range(head, head + 1))
        for head, copies in enumerate(deal(tpa, kv_heads))
        for part in deal(share, len(copies))
    ]


@dataclass(frozen=True, slots=True, kw_only=True)
class Widths:
    """One layout, in whole numbers, of one pipeline stage."""

    batch: int
    tpa: int
    kvp: int
    dp: int
    tpf: int
    ep: int
    chunks: int

    @classmethod
    def of(cls, layout: Layout) -> Widths:
        """The widths of a layout; it must be one layout, not a column of them."""
        return cls(**{field.name: int(getattr(layout, field.name)) for field in fields(cls)})

    @property
    def keepers(self) -> int:
        """KV shards that keep tokens after the exchange: those whose ranks are in the FFN grid."""
        return self.kvp if self.tpf * self.ep == self.dp * self.tpa * self.kvp else 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Seat:
    """Where a rank stands, and the heads it has: `kept` are those of its query heads whose full output it owns."""

    group: int
    shard: int
    q_heads: range
    kv_heads: range
    kept: range


def seats_of(a: AttentionKind, x: Widths) -> list[Seat]:
    """Every rank of a pipeline stage, in order. The exchange deals a column's heads to the shards that keep tokens."""
    columns = deal_heads(a.q_heads, a.kv_heads, x.tpa)
    return [
        Seat(group=group, shard=shard, q_heads=q, kv_heads=kv, kept=kept)
        for group in range(x.dp)
        for shard in range(x.kvp)
        for q, kv in columns
        for kept in [deal(len(q), x.keepers)[shard] if shard < x.keepers else range(0)]
    ]


@dataclass(frozen=True, slots=True, kw_only=True)
class Parts:
    """Which values of a cached vector are key and value, and which are rotated (the query's are in the same place)."""

    key: slice
    value: slice
    rotated: slice


def parts_of(a: AttentionKind) -> Parts:
    """GQA caches a rotated key beside a value; MLA a latent, which is the value, beside a rotary key."""
    if isinstance(a, GqaAttention):
        return Parts(key=slice(a.head_size), value=slice(a.head_size, None), rotated=slice(a.head_size))
    return Parts(key=slice(None), value=slice(a.kv_lora_rank), rotated=slice(a.kv_lora_rank, None))


class KvShard:
    """The cached vectors of one rank, [B, tokens, k, cached values], and the position of each token in its request."""

    def __init__(self, batch: int, kv_heads: int, width: int) -> None:
        self.values: Array = np.empty((batch, 0, kv_heads, width))
        self.positions: Positions = np.empty(0, dtype=np.int64)

    @property
    def tokens(self) -> int:
        """Tokens of each request that are cached so far."""
        return len(self.positions)

    def append(self, entries: Array, positions: Positions) -> None:
        """More tokens of every request, [B, tokens, k, cached values]."""
        self.values = np.concatenate([self.values, entries], axis=1)
        self.positions = np.concatenate([self.positions, positions])


# --- Attention on one rank -------------------------------------------------------------------------------------------


def hold_attention(a: AttentionKind, w: Weights, seat: Seat) -> Weights:
    """A rank's shard of the attention weights: its heads' columns side by side, and the rows of the heads it keeps."""
    q, kv = list(seat.q_heads), list(seat.kv_heads)
    kept = [q[i] for i in seat.kept]
    held = {"o": w["o"][kept].reshape(-1, w["o"].shape[-1])}
    if isinstance(a, GqaAttention):
        return held | {"qkv": _side_by_side(np.concatenate([w["q"][q], w["k"][kv], w["v"][kv]]))}
    down = np.concatenate([w["q_down"], w["kv_down"]], axis=1)
    return held | {"down": down, "q_up": _side_by_side(w["q_up"][q]), "k_up": w["k_up"][q], "v_up": w["v_up"][kept]}


MULTIPLIED_BY = {
    "qkv": "qkv_projection",
    "down": "latent_down_projection",
    "q_up": "query_up_projection",
    "k_up": "key_absorption",
    "v_up": "value_up_projection",
    "o": "output_projection",
}
"""The op for which a rank holds each tensor of its attention."""


def _side_by_side(heads: Array) -> Array:
    """[heads, inner, width] as one matrix [inner, heads·width]."""
    return heads.transpose(1, 0, 2).reshape(heads.shape[1], -1)


def project(a: AttentionKind, rank: Rank, seat: Seat, w: Weights, x: Array) -> tuple[Array, Array]:
    """x [rows, H] to the queries [rows, q, score width] and what to cache [rows, k, cached values], not yet rotated."""
    tensor = "attention_weights"
    if isinstance(a, GqaAttention):
        heads = rank.linear("qkv_projection", x, w["qkv"], tensor).reshape(len(x), -1, a.head_size)
        query, key, value = np.split(heads, [len(seat.q_heads), len(seat.q_heads) + len(seat.kv_heads)], axis=1)
        return query, np.concatenate([key, value], axis=-1)
    down = rank.linear("latent_down_projection", x, w["down"], tensor)
    q_latent, latent, turning = np.split(down, [a.q_lora_rank, a.q_lora_rank + a.kv_lora_rank], axis=1)
    normed = rms_norm(q_latent), rms_norm(latent)
    rank.moves("latent_norm", q_latent, latent, *normed)
    query = rank.linear("query_up_projection", normed[0], w["q_up"], tensor)
    query = query.reshape(len(x), -1, a.nope_width + a.rope_width)
    absorbed = each_head("key_absorption", rank, query[..., : a.nope_width], w["k_up"])
    entry = np.concatenate([normed[1], turning], axis=-1)[:, None]
    return np.concatenate([absorbed, query[..., a.nope_width :]], axis=-1), entry


def each_head(op: str, rank: Rank, x: Array, w: Array) -> Array:
    """x [rows, heads, inner], each head through its own weights w [heads, inner, outer]."""
    outputs = [rank.linear(op, x[:, head], w[head], "attention_weights") for head in range(len(w))]
    return np.stack(outputs, axis=1) if outputs else np.zeros((len(x), 0, w.shape[2]))


def rotated(values: Array, part: slice, positions: Positions) -> Array:
    """A copy of values [B, n, heads, width] whose `part` of the last axis is turned to the n tokens' positions."""
    turned = values.copy()
    turned[..., part] = rotate(values[..., part], positions)
    return turned


def partial_attention(
    rank: Rank, query: Array, cached: Array, seen: Positions, parts: Parts, scale: float
) -> tuple[Array, Array]:
    """Attention over the local shard alone: partial outputs [B, n, q, value width] and log-sum-exps [B, n, q].

    query [B, n, q, score width], cached [B, tokens, k, cached values]; of its tokens, which are in order, each of the n
    new ones sees the first `seen`. Every cached vector is read once, for all of them. Where nothing is seen the answer
    is zeros and a log-sum-exp of minus infinity: it has no say in the sum.
    """
    heads, kv_heads = query.shape[2], cached.shape[2]
    out = np.zeros((*query.shape[:3], cached[..., parts.value].shape[-1]))
    lse = np.full(query.shape[:3], -np.inf)
    share = heads // kv_heads
    for row, head in np.ndindex(len(query), kv_heads if cached.shape[1] and heads else 0):
        mine, vectors = slice(share * head, share * (head + 1)), cached[row, :, head]
        rank.moves_kv("attention_core", vectors)
        for new in np.flatnonzero(seen):
            before = vectors[: seen[new]]
            scores = rank.product("attention_core", query[row, new, mine], before[:, parts.key].T) * scale
            top = scores.max(axis=1, keepdims=True)
            raised = np.exp(scores - top)
            total = raised.sum(axis=1, keepdims=True)
            out[row, new, mine] = rank.product("attention_core", raised, before[:, parts.value]) / total
            lse[row, new, mine] = (top + np.log(total))[:, 0]
    rank.moves("attention_core", query, out)
    return out, lse


# --- Feed-forward shards ---------------------------------------------------------------------------------------------


def hold_ffn(gate: Array, up: Array, down: Array, columns: range) -> Weights:
    """A shard of a gated FFN: its columns of gate and up side by side, its rows of down."""
    mine = list(columns)
    return {"up": np.concatenate([gate[:, mine], up[:, mine]], axis=1), "down": down[mine]}


def run_ffn(rank: Rank, name: str, x: Array, w: Weights) -> Array:
    """x [rows, H] through a shard of a gated FFN: a partial sum [rows, H]; `name` starts the names of its three ops."""
    gate, up = np.split(rank.linear(f"{name}_up", x, w["up"], f"{name}_weights"), 2, axis=1)
    inner = gated(gate, up)
    rank.moves(f"{name}_activation", gate, up, inner)
    return rank.linear(f"{name}_down", inner, w["down"], f"{name}_weights")


# --- The layer -------------------------------------------------------------------------------------------------------

Held = dict[int, Array]
"""A tensor by rank, for the ranks that have one."""


class HelixLayer:
    """One decoder layer on the dp·tpa·kvp ranks of a pipeline stage, and its KV cache.

    The same code runs plain TP (kvp = 1, past TPA = K with duplicated KV heads), data-parallel attention with expert
    parallelism (dp > 1), Helix (kvp > 1, the FFN grid on every rank) and Medha (kvp > 1, the FFN grid on the first KV
    shard's ranks). `attention` and `ffn` hold the tensors that the layer's two kinds have.
    """

    def __init__(
        self, layer: LayerSpec, precision: Precision, layout: Layout, attention: Weights, ffn: Weights
    ) -> None:
        self.spec, self.attention, self.widths = layer, layer.attention, Widths.of(layout)
        self.experts = layer.ffn if isinstance(layer.ffn, RoutedFfn) else None
        self.seats = seats_of(layer.attention, self.widths)
        self.ranks = [Rank(precision) for _ in self.seats]
        self.weights = [hold_attention(layer.attention, attention, seat) for seat in self.seats]
        width = layer.attention.cache_width
        self.cache = [KvShard(self.widths.batch, len(seat.kv_heads), width) for seat in self.seats]
        self.tokens = 0
        self.groups = self._token_groups()
        self.grid = [rank for group in self.groups for rank in group]
        self._hold_ffn(ffn)

    def _token_groups(self) -> list[list[int]]:
        """Ranks that keep each attention group's tokens after the exchange."""
        return [
            [r for r, seat in enumerate(self.seats) if seat.group == group and seat.shard < self.widths.keepers]
            for group in range(self.widths.dp)
        ]

    # Set-up of the FFN: shards by rank

    def _hold_ffn(self, ffn: Weights) -> None:
        self.ffn: dict[int, Weights] = {}
        self.local_experts: dict[int, range] = {}
        if self.experts is None:
            for pool in self.pools():
                self._shard_ffn(pool, ffn["gate"], ffn["up"], ffn["down"])
            return
        self.router = ffn["router"]
        for group in self.groups:
            self._shard_ffn(group, ffn["shared_gate"], ffn["shared_up"], ffn["shared_down"])
        self._shard_experts(ffn)

    def _shard_ffn(self, members: list[int], gate: Array, up: Array, down: Array) -> None:
        for rank, columns in zip(members, deal(down.shape[0], len(members)), strict=True):
            self.ffn[rank] = hold_ffn(gate, up, down, columns)

    def _shard_experts(self, ffn: Weights) -> None:
        """tpf neighbours of the grid share a group of experts, each with a slice of every expert's width."""
        x, moe = self.widths, self.experts
        assert moe is not None
        widths, shares = deal(moe.intermediate_size, x.tpf), deal(moe.routed, x.ep)
        self.expert_weights: dict[tuple[int, int], Weights] = {}
        for place, rank in enumerate(self.grid):
            self.local_experts[rank] = shares[place // x.tpf]
            for e in self.local_experts[rank]:
                tensors = ffn["gate"][e], ffn["up"][e], ffn["down"][e]
                self.expert_weights[rank, e] = hold_ffn(*tensors, widths[place % x.tpf])

    def pools(self) -> list[list[int]]:
        """Ranks that share a dense FFN: whole token groups, equally many, as wide as tpf or one group at least."""
        spanned = max(self.widths.tpf // len(self.groups[0]), 1)
        pooled = gcd(self.widths.dp, spanned)
        starts = range(0, self.widths.dp, pooled)
        return [[rank for group in self.groups[at : at + pooled] for rank in group] for at in starts]

    def held(self, r: int) -> dict[str, int]:
        """Values of the weights that a rank holds, whether a step reads them or not, by the op that they are for."""
        found = {MULTIPLIED_BY[name]: tensor.size for name, tensor in self.weights[r].items()}
        if r in self.ffn:
            name = "dense" if self.experts is None else "shared"
            found |= {f"{name}_{tensor}": values.size for tensor, values in self.ffn[r].items()}
        if r in self.local_experts:
            mine = [self.expert_weights[r, e] for e in self.local_experts[r]]
            found |= {f"routed_{tensor}": sum(w[tensor].size for w in mine) for tensor in ("up", "down")}
            found["router"] = self.router.size
        return found

    # One step

    def fill(self, cache: Array) -> None:
        """Appends earlier tokens [dp·B, tokens, K, cached values], as earlier steps would have; nothing is counted."""
        positions = self._next_positions(cache.shape[1])
        for r, seat in enumerate(self.seats):
            mine = self._turns(positions) == seat.shard
            self.cache[r].append(self._own(seat, cache)[:, mine][:, :, list(seat.kv_heads)], positions[mine])
        self.tokens += len(positions)

    def step(self, residual: Array, delta: Array) -> list[Array]:
        """New tokens of every request: residual + delta [dp·B, n, H] in, every rank's new hidden state [B, n, H] out.

        `delta` is what the layer before left in its all-reduce, which the first norm adds to the residual.
        """
        hidden = residual.shape[2]
        residuals, deltas = (
            {r: self._own(seat, given).reshape(-1, hidden) for r, seat in enumerate(self.seats)}
            for given in (residual, delta)
        )
        residuals, deltas = self.attend(residuals, deltas)
        return [rows.reshape(self.widths.batch, -1, hidden) for rows in self.feed_forward(residuals, deltas)]

    def _own(self, seat: Seat, values: Array) -> Array:
        """What belongs to the requests of a rank's own attention group."""
        return values[self.widths.batch * seat.group : self.widths.batch * (seat.group + 1)]

    def _next_positions(self, new: int) -> Positions:
        """Places of the next tokens in their request."""
        return self.tokens + np.arange(new)

    def _turns(self, positions: Positions) -> Positions:
        """The KV shard that the token at each position goes to."""
        return positions // BLOCK_TOKENS % self.widths.kvp

    def _norm(self, op: str, residuals: Held, deltas: Held) -> tuple[Held, Held]:
        """residual + delta, and its norm: two tensors read and two written."""
        sums = {r: residuals[r] + delta for r, delta in deltas.items()}
        normed = {r: rms_norm(total) for r, total in sums.items()}
        for r in sums:
            self.ranks[r].moves(op, residuals[r], deltas[r], sums[r], normed[r])
        return sums, normed

    def _all_reduce(self, op: str, members: list[int], parts: Held) -> Held:
        """The sum over some ranks, on each of them."""
        sums = ring_all_reduce(op, [self.ranks[r] for r in members], [parts[r] for r in members])
        return dict(zip(members, sums, strict=True))

    # Attention

    def attend(self, residuals: Held, deltas: Held) -> tuple[Held, Held]:
        """Attention of every group; the residual, and what is to be added to it, on the ranks that keep the tokens."""
        residuals, normed = self._norm("attention_norm", residuals, deltas)
        positions = self._next_positions(len(normed[0]) // self.widths.batch)
        queries = self._project_and_append(normed, positions)
        pieces = [self._attend_piece(queries, positions, some) for some in deal(self.widths.batch, self.widths.chunks)]
        kept = {r: np.concatenate([piece[r] for piece in pieces]) for r in self.grid}
        projected = {r: self._project_output(r, out) for r, out in kept.items()}
        sums: Held = {}
        for group in self.groups:
            sums |= self._all_reduce("attention_all_reduce", group, projected)
        return {r: residuals[r] for r in self.grid}, sums

    def _project_and_append(self, normed: Held, positions: Positions) -> Held:
        """Rotated queries [B, n, q, score width] of every rank; each new token joins the KV shard whose turn it is."""
        part, queries = parts_of(self.attention).rotated, {}
        for r, seat in enumerate(self.seats):
            rank, mine = self.ranks[r], self._turns(positions) == seat.shard
            made = project(self.attention, rank, seat, self.weights[r], normed[r])
            query, entries = (rows.reshape(self.widths.batch, len(positions), *rows.shape[1:]) for rows in made)
            queries[r] = rotated(query, part, positions)
            kept = rotated(entries[:, mine], part, positions[mine])
            self.cache[r].append(kept, positions[mine])
            rank.moves("rope_and_append", query, queries[r], kept)
            rank.moves_kv("rope_and_append", kept)
        self.tokens += len(positions)
        return queries

    def _attend_piece(self, queries: Held, positions: Positions, some: range) -> Held:
        """One HOP-B piece of the requests: local attention on every rank, the exchange, and the combined heads kept.

        [rows of the piece, kept heads, value width] of every rank that keeps tokens.
        """
        piece, scale = slice(some.start, some.stop), score_scale(self.attention)
        partial = {}
        for r, query in queries.items():
            cache = self.cache[r]
            seen = np.searchsorted(cache.positions, positions, side="right")
            each = partial_attention(
                self.ranks[r], query[piece], cache.values[piece], seen, parts_of(self.attention), scale
            )
            partial[r] = tuple(values.reshape(-1, *values.shape[2:]) for values in each)
        if self.widths.kvp == 1:
            return {r: out for r, (out, _) in partial.items()}
        for r, (_, lse) in partial.items():
            self.ranks[r].moves("attention_core", lse, tensor="lse")
        return {r: self._exchange(r, partial) for r in self.grid}

    def _exchange(self, target: int, partial: dict[int, tuple[Array, ...]]) -> Array:
        """The heads that a rank keeps, from every shard of its column: one row of the all-to-all, and the exact sum."""
        seat, rank, columns = self.seats[target], self.ranks[target], self.widths.tpa
        first = target - seat.shard * columns
        mine = list(seat.kept)
        sources = [(self.ranks[r], *partial[r]) for r in range(first, first + columns * self.widths.kvp, columns)]
        outs = np.stack([send("exchange", source, rank, out[:, mine]) for source, out, _ in sources])
        lses = np.stack([send("exchange", source, rank, lse[:, mine], "lse") for source, _, lse in sources])
        combined, _ = combine(outs, lses)
        rank.moves("combine_partials", outs, tensor="wire")
        rank.moves("combine_partials", lses, tensor="lse")
        rank.moves("combine_partials", combined)
        return combined

    def _project_output(self, r: int, out: Array) -> Array:
        """The kept heads [rows, kept, value width] through their part of the output projection: a partial sum."""
        rank, w = self.ranks[r], self.weights[r]
        if "v_up" in w:
            out = each_head("value_up_projection", rank, out, w["v_up"])
        return rank.linear("output_projection", out.reshape(len(out), -1), w["o"], "output_weights")

    # Feed-forward

    def feed_forward(self, residuals: Held, deltas: Held) -> list[Array]:
        """Norm, FFN and its sum; where only one KV shard ran it, the others are told. Every rank's hidden state."""
        name = "dense" if self.experts is None else "moe"
        residuals, normed = self._norm(f"{name}_norm", residuals, deltas)
        partial = self._dense(normed) if self.experts is None else self._moe(normed, self.experts)
        hidden: Held = {}
        for group in self.groups:
            sums = self._all_reduce(f"{name}_all_reduce", group, partial)
            hidden |= {r: residuals[r] + sums[r] for r in group}
        for r in range(len(self.seats)):
            if r not in hidden:  # a chain along the column: each shard passes the rows on to the next
                before = r - self.widths.tpa
                hidden[r] = send(f"{name}_spread", self.ranks[before], self.ranks[r], hidden[before])
        return [hidden[r] for r in range(len(self.seats))]

    def _dense(self, normed: Held) -> Held:
        """Partial sums [rows, H] of each rank's own tokens, from the rows of all token groups in its pool."""
        partial: Held = {}
        for pool in self.pools():
            inner: dict[int, list[Array]] = {}
            for r in pool:
                rows = [send("dense_gather", self.ranks[p], self.ranks[r], normed[p]) for p in self._peers(r, pool)]
                inner[r] = np.split(run_ffn(self.ranks[r], "dense", np.concatenate(rows), self.ffn[r]), len(rows))
            for r in pool:
                peers = self._peers(r, pool)
                mine = peers.index(r)
                sums = [send("dense_scatter", self.ranks[p], self.ranks[r], inner[p][mine]) for p in peers]
                partial[r] = np.sum(sums, axis=0)
        return partial

    def _peers(self, r: int, pool: Sequence[int]) -> list[int]:
        """Ranks of a pool that stand where `r` stands in its own token group, one a group, itself included."""
        width = len(self.groups[0])
        return [pool[at] for at in range(pool.index(r) % width, len(pool), width)]

    def _moe(self, normed: Held, moe: RoutedFfn) -> Held:
        """Partial sums [rows, H] of each rank's own tokens: its experts', those of ranks it asked, and shared ones.

        A rank asks its peers of other groups for the rows that picked an expert here, and answers with a partial sum.
        """
        routes = {r: self._route(self.ranks[r], x, moe) for r, x in normed.items()}
        partial = {r: np.zeros_like(x) for r, x in normed.items()}
        for r in self.grid:
            rank, peers = self.ranks[r], self._peers(r, self.grid)
            picked = {p: np.flatnonzero(np.isin(routes[p][0], self.local_experts[r]).any(axis=1)) for p in peers}
            rows = [send("dispatch", self.ranks[p], rank, normed[p][picked[p]], "dispatch") for p in peers]
            chosen, gates = (np.concatenate([routes[p][i][picked[p]] for p in peers]) for i in (0, 1))
            sums = self._run_experts(r, np.concatenate(rows), chosen, gates)
            for p, answer in zip(peers, np.split(sums, np.cumsum([len(part) for part in rows])[:-1]), strict=True):
                partial[p][picked[p]] += send("combine", rank, self.ranks[p], answer)
            if moe.shared:
                partial[r] += run_ffn(rank, "shared", normed[r], self.ffn[r])
        return partial

    def _route(self, rank: Rank, x: Array, moe: RoutedFfn) -> tuple[npt.NDArray[np.int64], Array]:
        """The experts of each of the group's own tokens and their gates, both [rows, top_k]; every rank finds them."""
        scores = rank.linear("router", x, self.router, "router_weights")
        chosen, gates = choose_experts(scores, moe.top_k)
        rank.moves("top_k", scores, chosen, gates)
        return chosen, gates

    def _run_experts(self, r: int, x: Array, chosen: npt.NDArray[np.int64], gates: Array) -> Array:
        """x [rows, H] through those of its chosen experts that are here, weighted by their gates: [rows, H]."""
        sums = np.zeros_like(x)
        for e in self.local_experts[r]:
            rows, slot = np.nonzero(chosen == e)
            if rows.size:
                out = run_ffn(self.ranks[r], "routed", x[rows], self.expert_weights[r, e])
                sums[rows] += gates[rows, slot][:, None] * out
        return sums
