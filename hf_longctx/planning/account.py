"""Bytes and FLOPs of a decoder, as pure functions. Elements become bytes where a dtype enters, and names say which.

Conventions: `tokens` are those of one row; a matmul of n parameters costs 2 n FLOPs per token; an attention pair costs
4 * heads * head_dim FLOPs (q k and p v). Nothing here knows a machine or a method.
"""

from __future__ import annotations

from ..ops.codes import code_channels

POSITION_BYTES = 8  # int64
GATHERED = 2**26  # numbers of chosen keys that are gathered at once (ops/kernels/selected.py: GATHERED)
PAGE = 8192  # tokens that a store to look up in makes room for at once on a GPU (ops/pages.py: PAGE)
LOOKUP_BLOCK = 256  # queries whose look-ups are scored at once (attention/lookup.py: BLOCK)


# -- memory ------------------------------------------------------------------------------------------------------------
def weight_bytes(n_parameters: int, dtype_bytes: int) -> int:
    """Parameters in one dtype; tied ones are counted once in `n_parameters`."""
    return n_parameters * dtype_bytes


def kv_token_bytes(kv_heads: int, head_dim: int, dtype_bytes: int) -> int:
    """One token's key and value in one layer. GQA: key/value heads, not query heads."""
    return 2 * kv_heads * head_dim * dtype_bytes


def state_bytes(elements: int, fixed_bytes: int, dtype_bytes: int) -> int:
    """One row's recurrent and convolution states, whatever the length: in the model's dtype and in their own."""
    return elements * dtype_bytes + fixed_bytes


def kept_tokens(tokens: int, kept: int | None) -> int:
    """The tokens a layer's cache holds after `tokens`: all, or at most `kept`."""
    return tokens if kept is None else min(tokens, kept)


def paged_tokens(tokens: int) -> int:
    """The tokens that a store has room for on a GPU: whole pages."""
    return -(-tokens // PAGE) * PAGE


def mlp_phase_token_bytes(hidden: int, mlp: int, head_dim: int, dtype_bytes: int) -> int:
    """Held for every token of a forward at the widest point of an MLP without gradients.

    transformers' decoder keeps the embeddings, the layer's input, the residual and its norm (4 hidden); a gated MLP
    the activated gate, the other projection and their product (3 mlp); and cos and sin and the position. SmolLM2 at
    128k: 14,088 bytes per token predicted, 14,088 measured.
    """
    return (4 * hidden + 3 * mlp + 2 * head_dim) * dtype_bytes + POSITION_BYTES


def attention_phase_token_bytes(hidden: int, heads: int, head_dim: int, dtype_bytes: int) -> int:
    """Held for every token of a forward while attention runs: embeddings, input, norm, rotated queries, output."""
    return (3 * hidden + 2 * heads * head_dim + 2 * head_dim) * dtype_bytes + POSITION_BYTES


def mask_bytes(pairs: int, dtype_bytes: int) -> int:
    """A mask of (query, key) pairs: booleans, and the additive one that SDPA makes of them for one layer at a time."""
    return pairs * (1 + dtype_bytes)


def repeated_kv_bytes(tokens: int, heads: int, kv_heads: int, head_dim: int, dtype_bytes: int) -> int:
    """Keys and values repeated to all heads in one layer: transformers does so for SDPA with a mask, not without."""
    return 0 if heads == kv_heads else tokens * kv_token_bytes(heads, head_dim, dtype_bytes)


def expanded_kv_bytes(tokens: int, heads: int, head_dim: int, dtype_bytes: int) -> int:
    """Keys and values of all heads in one layer, made of what latent attention (MLA) caches in every forward."""
    return tokens * kv_token_bytes(heads, head_dim, dtype_bytes)


def eager_score_bytes(pairs: int, heads: int, dtype_bytes: int) -> int:
    """Scores, their fp32 softmax and its cast, of one layer whose attention writes them."""
    return pairs * heads * (2 * dtype_bytes + 4)


def method_rotation_bytes(queries: int, keys: int, kv_heads: int, head_dim: int, dtype_bytes: int) -> tuple[int, int]:
    """Un-rotated caching: cos and sin of queries and keys, shared by the layers; and one layer's rotated keys."""
    shared = (queries + keys) * (2 * head_dim * dtype_bytes + 2 * POSITION_BYTES)
    return shared, keys * kv_heads * head_dim * dtype_bytes


def code_bytes(kv_heads: int, head_dim: int) -> int:
    """A token's codes of one bit a channel, or two, in one layer: words of 32 bits, and a size of 16."""
    return kv_heads * (code_channels(head_dim) // 8 + 2)


def search_bytes(tokens: int, code_bytes: int, shortlist: int, kv_heads: int, head_dim: int, dtype_bytes: int) -> int:
    """What one query's look-up reads of one layer: all codes and the keys of a shortlist, or else all keys.

    Positions too, once for all heads.
    """
    key = kv_heads * head_dim * dtype_bytes
    return tokens * (code_bytes or key) + min(shortlist, tokens) * key + tokens * POSITION_BYTES


def lookup_bytes(
    queries: int, keys: int, heads: int, head_dim: int, top_k: int, dtype_bytes: int, in_pieces: bool = False
) -> int:
    """Look-ups in one layer: the larger of one block's scores and the chosen keys, gathered in fp32.

    With `in_pieces` they are gathered for some queries at a time, from the keys that the cache returns.
    """
    scores = min(queries, LOOKUP_BLOCK) * keys * (heads * dtype_bytes + POSITION_BYTES + 4)
    chosen = queries * top_k * heads
    numbers = chosen * head_dim
    if in_pieces:
        numbers = min(numbers, max(GATHERED, top_k * heads * head_dim))
    gathered = numbers * (2 * dtype_bytes + 4) + chosen * POSITION_BYTES
    return max(scores, gathered)


def last_logits_bytes(vocab: int, dtype_bytes: int) -> int:
    """One token's logits and the fp32 copy that `generate` makes."""
    return vocab * (dtype_bytes + 4)


def prompt_bytes(tokens: int) -> int:
    """Token ids, attention mask and position ids of a whole prompt."""
    return 3 * POSITION_BYTES * tokens


# -- work --------------------------------------------------------------------------------------------------------------
def causal_pairs(before: int, queries: int, span: int | None) -> int:
    """(query, key) pairs of `queries` tokens after `before` others, each seeing at most its last `span` tokens."""
    last = before + queries

    def up_to(n: int) -> int:
        """The pairs of the first n tokens."""
        short = n if span is None else min(n, span)
        return short * (short + 1) // 2 + (n - short) * (span or 0)

    return up_to(last) - up_to(before)


def matmul_flops(n_active_parameters: float, tokens: int) -> float:
    """Of `tokens` through matrices with that many parameters."""
    return 2.0 * n_active_parameters * tokens


def attention_flops(pairs: int, heads: int, head_dim: int) -> float:
    """Of (query, key) pairs: q k and p v."""
    return 4.0 * pairs * heads * head_dim


def elementwise_token_bytes(
    hidden: int, mlp: int, heads: int, kv_heads: int, head_dim: int, dtype_bytes: int
) -> int:  # fmt: skip
    """Memory traffic of one token in one eager layer, everything but weights and attention's inner loop.

    Counted from transformers' Llama, reads and writes: two norms through fp32 (6 fp32 and 4 own accesses per element),
    rotation of q and k (10), activation and product (5 mlp), two residual sums (6 hidden), inputs and outputs of the
    seven matmuls, the cache's copy and attention's inputs and output.
    """
    queries, keys = heads * head_dim, kv_heads * head_dim
    norms = 2 * hidden * (4 * dtype_bytes + 6 * 4)
    elements = 10 * (queries + keys) + 5 * mlp + 6 * hidden
    elements += 7 * hidden + 2 * queries + 2 * keys + 3 * mlp
    elements += 4 * keys + 2 * queries + 2 * keys
    return norms + elements * dtype_bytes


def lookup_pair_bytes(heads: int, dtype_bytes: int) -> int:
    """Memory traffic of one (query, key) pair that top_k scores: scores written, masked, and passed over by topk.

    Six passes of own dtype per head, and the positions' difference and masks once (about 25 bytes).
    """
    return 6 * heads * dtype_bytes + 25
