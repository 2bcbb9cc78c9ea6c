"""Bytes and seconds of one model, one length and one way of reading: a roofline over `account`'s sums."""

from __future__ import annotations

from dataclasses import dataclass

from . import account
from .hardware import H100_HOST, Calibration, Machine
from .shape import Layer, Shape

CHUNKS = tuple(2**n for n in range(17, 6, -1))  # 131072 down to 128
SAMPLED = 4096  # chunks of a long reading whose seconds are calculated
WORTH = 1.1  # a chunk may be so much slower than the fastest if it is smaller


@dataclass(frozen=True, kw_only=True)
class Prediction:
    """Bytes at the peak of reading, and seconds. `chunk` is how many tokens a forward reads at once."""

    chunk: int
    weight_bytes: int
    kv_bytes: int
    activation_bytes: int  # of one chunk, masks and look-ups included
    logits_bytes: int
    runtime_bytes: int
    read_seconds: float
    decode_seconds_eager: float
    decode_seconds_graph: float | None

    @property
    def peak_bytes(self) -> int:
        """What the device must have."""
        return self.weight_bytes + self.runtime_bytes + self.above_weights_bytes

    @property
    def above_weights_bytes(self) -> int:
        """What torch's allocator holds at most beside the weights."""
        return self.kv_bytes + self.activation_bytes + self.logits_bytes


@dataclass(frozen=True, kw_only=True)
class Job:
    """Tokens of each of `batch` rows, in a dtype, on a machine, within its memory."""

    tokens: int
    machine: Machine
    memory_bytes: int
    batch: int = 1
    dtype_bytes: int = 2
    calibration: Calibration = H100_HOST


def predict(shape: Shape, job: Job, chunk: int | None = None) -> Prediction:
    """The numbers of reading in chunks of `chunk` tokens (None: `best_chunk`), and of each token then written."""
    chunk = best_chunk(shape, job) if chunk is None else chunk
    eager, graph = decode_seconds(shape, job)
    return Prediction(
        chunk=min(chunk, job.tokens),
        **_memory(shape, job, chunk),
        read_seconds=read_seconds(shape, job, chunk),
        decode_seconds_eager=eager,
        decode_seconds_graph=graph,
    )


def fits(shape: Shape, job: Job, chunk: int | None = None) -> bool:
    """Whether a chunk size (the one given, or some) fits."""
    sizes = (chunk,) if chunk is not None else (*CHUNKS, job.tokens)
    return any(peak_bytes(shape, job, size) <= job.memory_bytes for size in sizes)


def peak_bytes(shape: Shape, job: Job, chunk: int) -> int:
    """What the device must have to read in chunks of `chunk`."""
    return sum(_memory(shape, job, chunk).values())


def best_chunk(shape: Shape, job: Job) -> int:
    """The smallest chunk that fits the memory and is nearly as fast as the fastest one that does.

    If none fits, the one that needs least.
    """
    sizes = sorted({min(size, job.tokens) for size in (*CHUNKS, job.tokens)})
    fitting = [size for size in sizes if fits(shape, job, size)]
    if not fitting:
        return min(sizes, key=lambda size: peak_bytes(shape, job, size))
    seconds = {size: read_seconds(shape, job, size) for size in fitting}
    fastest = min(seconds.values())
    near = [size for size in fitting if seconds[size] <= WORTH * fastest]
    return min(near, key=lambda size: (peak_bytes(shape, job, size), size))


# -- memory ------------------------------------------------------------------------------------------------------------
def _memory(shape: Shape, job: Job, chunk: int) -> dict[str, int]:
    """The parts of a `Prediction` that the device must have."""
    return {
        "weight_bytes": account.weight_bytes(shape.parameters, job.dtype_bytes),
        "kv_bytes": kv_bytes(shape, job),
        "activation_bytes": activation_bytes(shape, job, chunk),
        "logits_bytes": job.batch * account.last_logits_bytes(shape.vocab, job.dtype_bytes),
        "runtime_bytes": job.calibration.runtime_bytes,
    }


def kv_bytes(shape: Shape, job: Job) -> int:
    """The cache on the device after reading, of all rows. Of keys and values on the host, the page that is visiting."""
    on_device = sum(layer_kv_bytes(layer, job, True) * n for layer, n in shape.layers)
    each = (layer.kv_elements * job.dtype_bytes for layer, _ in shape.layers if layer.on_host)
    visiting = min(job.tokens, account.PAGE) * max(each, default=0)
    states = account.state_bytes(shape.state_elements, shape.state_bytes, job.dtype_bytes)
    loose = shape.loose_elements * job.dtype_bytes * job.tokens
    return on_device + visiting + job.batch * (states + loose)


def layer_kv_bytes(layer: Layer, job: Job, on_device: bool = False) -> int:
    """One layer's cache after all tokens; un-rotated ones hold their slots' positions, bounded ones columns too.

    `on_device`: without the keys and values that are in host memory.
    """
    columns = layer.kept is not None or layer.twice is not None
    numbers = 1 + columns if layer.patched and layer.kv_elements else 0
    each = layer.kv_elements * job.dtype_bytes + numbers * account.POSITION_BYTES
    twice = 0 if layer.twice is None else account.kept_tokens(job.tokens, layer.twice)
    kept = account.kept_tokens(job.tokens, layer.kept)
    if layer.twice is not None and job.machine.graphs:
        kept = account.paged_tokens(kept)
    away = layer.kv_elements * job.dtype_bytes * kept if on_device and layer.on_host else 0
    return job.batch * (each * (kept + twice) + layer.code_bytes * kept - away)


def read_kv_bytes(layer: Layer, job: Job, tokens: int | None = None) -> int:
    """What one layer reads after `tokens` (None: all), be it its own cache or another layer's."""
    each = account.kv_token_bytes(layer.kv_heads, layer.head_dim, job.dtype_bytes)
    each += account.POSITION_BYTES if layer.patched else 0
    read = job.tokens if tokens is None else tokens
    # what is looked up is searched by codes, or else by the keys themselves
    searched = layer.code_bytes or (each if layer.twice is not None else 0)
    return job.batch * (each * account.kept_tokens(read, layer.handed) + searched * read)


def activation_bytes(shape: Shape, job: Job, chunk: int) -> int:
    """What the last chunk's forward holds beside weights and cache: the wider of its MLP and its attention."""
    chunk = min(chunk, job.tokens)
    before, wide, dtype = job.tokens - chunk, shape.widest, job.dtype_bytes
    # masks and rotations are made once for all layers that read alike
    shared = sum(_shared_bytes(shape, layer, before, chunk, dtype) for layer in {layer for layer, _ in shape.layers})
    mlp = chunk * account.mlp_phase_token_bytes(shape.hidden, shape.mlp, wide.head_dim, dtype)
    attention = chunk * account.attention_phase_token_bytes(shape.hidden, wide.heads, wide.head_dim, dtype)
    attention += max(_layer_bytes(shape, layer, before, chunk, dtype) for layer, _ in shape.layers)
    return job.batch * (shared + max(mlp, attention) + account.prompt_bytes(job.tokens))


def _shared_bytes(shape: Shape, layer: Layer, before: int, chunk: int, dtype: int) -> int:
    """Held through the whole forward: the boolean mask of stock layers, or the rotations of patched ones."""
    keys = account.kept_tokens(before, layer.handed) + chunk
    if layer.patched:  # of a first chunk they are the model's own
        return account.method_rotation_bytes(chunk, keys, layer.kv_heads, layer.head_dim, dtype)[0] if before else 0
    return chunk * keys if _masked(shape, layer, before, chunk) else 0


def _layer_bytes(shape: Shape, layer: Layer, before: int, chunk: int, dtype: int) -> int:
    """Held only while one layer of this kind attends."""
    heads, kv_heads, dim = layer.heads, layer.kv_heads, layer.head_dim
    keys = account.kept_tokens(before, layer.handed) + chunk
    made = account.expanded_kv_bytes(keys, heads, dim, dtype) if layer.expansion else 0
    if layer.patched:
        rotated = account.method_rotation_bytes(chunk, keys, kv_heads, dim, dtype)[1]
        cached = layer.kv_elements * dtype if layer.expansion else account.kv_token_bytes(kv_heads, dim, dtype)
        readable = 0 if layer.handed is None else keys * cached
        searched = account.kept_tokens(before, layer.kept) + chunk
        lookup = 0
        if layer.top_k:
            apart = layer.twice is not None  # what is looked up is kept apart from what the cache returns
            lookup = account.lookup_bytes(chunk, searched, heads, dim, layer.top_k, dtype, in_pieces=not apart)
        return rotated + readable + made + lookup + chunk * heads * dim * dtype  # and the rotated queries
    if not _masked(shape, layer, before, chunk):
        return made
    scores = account.eager_score_bytes(chunk * keys, heads, dtype) if shape.implementation == "eager" else 0
    additive = account.mask_bytes(chunk * keys, dtype) - chunk * keys
    return made + scores + additive + account.repeated_kv_bytes(keys, heads, kv_heads, dim, dtype)


def _masked(shape: Shape, layer: Layer, before: int, chunk: int) -> bool:
    """Whether a stock layer gets a mask: transformers leaves it out only for a first chunk within the window.

    `masking_utils._ignore_causal_mask_sdpa`. Flash attention never has one.
    """
    if chunk == 1 or "flash" in shape.implementation:
        return False
    outgrown = layer.span is not None and before + chunk >= layer.span
    return before > 0 or outgrown or shape.implementation == "eager"


# -- time --------------------------------------------------------------------------------------------------------------
def read_seconds(shape: Shape, job: Job, chunk: int) -> float:
    """All chunks, one after the other: each takes what the device or what the host needs, whichever is more.

    Of more than `SAMPLED`, some are looked at, evenly spaced: between two, the time grows evenly from chunk to chunk.
    """
    chunk = min(chunk, job.tokens)
    patched = any(layer.patched for layer, _ in shape.layers)
    launch = shape.n_layers * (job.calibration.method_launch_s if patched else job.calibration.read_launch_s)

    def seconds(before: int, size: int) -> float:
        work = layers_seconds(shape, job, size)
        work += sum(n * attention_seconds(shape, layer, job, before, size) for layer, n in shape.layers)
        blocks = sum(n * -(-size // account.LOOKUP_BLOCK) for layer, n in shape.layers if layer.top_k)
        return max(work, launch + blocks * job.calibration.lookup_block_s)

    whole, rest = divmod(job.tokens, chunk)
    every = range(whole) if whole <= SAMPLED else [i * (whole - 1) // SAMPLED for i in range(SAMPLED + 1)]
    found = [seconds(number * chunk, chunk) for number in every]
    total = sum(found)
    if whole > SAMPLED:
        total = (found[0] + found[-1]) / 2
        total += sum(
            (later - number) * (one + other) / 2
            for number, later, one, other in zip(every, every[1:], found, found[1:], strict=False)
        )
    return total + (seconds(whole * chunk, rest) if rest else 0.0)


def layers_seconds(shape: Shape, job: Job, tokens: int) -> float:
    """Matmuls and element-wise work of `tokens` tokens through all layers; weights are read once."""
    of, machine, wide = job.calibration, job.machine, shape.widest
    tokens *= job.batch
    matmul = account.matmul_flops(shape.active, tokens) / (of.matmul * machine.peak_flops(job.dtype_bytes))
    traffic = tokens * account.elementwise_token_bytes(
        shape.hidden, shape.mlp, wide.heads, wide.kv_heads, wide.head_dim, job.dtype_bytes
    )
    return max(matmul, _moved(job, shape.active * job.dtype_bytes)) + _moved(job, shape.n_layers * traffic)


def attention_seconds(shape: Shape, layer: Layer, job: Job, before: int, size: int) -> float:
    """One layer's attention for `size` tokens after `before` others."""
    of = job.calibration
    keys = account.kept_tokens(before, layer.handed) + size
    pairs, share = account.causal_pairs(before, size, layer.span), of.causal_attention
    if layer.patched:
        share = of.window_attention if layer.span is not None else of.causal_attention
    elif _masked(shape, layer, before, size):
        pairs = size * keys  # a mask does not spare the work on what it hides
        share = of.eager_attention if shape.implementation == "eager" else of.masked_attention
    peak = job.machine.peak_flops(job.dtype_bytes)
    seconds = job.batch * account.attention_flops(pairs, layer.heads, layer.head_dim) / (share * peak)
    seconds += expansion_seconds(layer, job, keys)
    if layer.top_k:
        scored = job.batch * size * (account.kept_tokens(before, layer.kept) + size)
        scoring = account.attention_flops(scored, layer.heads, layer.head_dim) / 2 / (of.matmul * peak)
        seconds += scoring + _moved(job, scored * account.lookup_pair_bytes(layer.heads, job.dtype_bytes))
    # what is cached is copied, and rotated again under a method, once per chunk
    return seconds + _moved(job, read_kv_bytes(layer, job, before) * _passes(layer, graph=False))


def expansion_seconds(layer: Layer, job: Job, keys: int) -> float:
    """What a layer needs to make keys and values of what it caches, in a prefill's chunk as for a single token."""
    flops = account.matmul_flops(layer.expansion, job.batch * keys)
    return flops / (job.calibration.matmul * job.machine.peak_flops(job.dtype_bytes))


def decode_seconds(shape: Shape, job: Job) -> tuple[float, float | None]:
    """Seconds per token of each row, eager and replayed from a graph (stock: a static cache and torch.compile).

    Eager hides the device behind the host unless the device is slower. A graph pays the latency of its kernels, or
    the reading of the weights where that takes longer, and then the cache and what look-ups search. None where no graph
    can be: machines without, methods whose layers grow with the text; and where keys are on the host, whose transfers
    are not counted.
    """
    of = job.calibration
    weights = _moved(job, (shape.active + shape.lm_head) * job.dtype_bytes)
    eager = graph = 0.0
    for layer, n in shape.layers:
        each = _moved(job, n * read_kv_bytes(layer, job))
        made = n * expansion_seconds(layer, job, account.kept_tokens(job.tokens, layer.handed))
        eager += made + each * _passes(layer, graph=False)
        graph += made + n * _moved(job, replayed_bytes(layer, job))
    eager = max(shape.n_layers * of.decode_eager_s, weights + eager)
    grows = any(layer.patched and layer.handed is None for layer, _ in shape.layers)
    if not job.machine.graphs or grows or any(layer.on_host for layer, _ in shape.layers):
        return eager, None
    looking = sum(n for layer, n in shape.layers if layer.top_k)
    latency = shape.n_layers * of.decode_graph_s + looking * of.lookup_graph_s
    return eager, max(latency, weights) + graph


def replayed_bytes(layer: Layer, job: Job) -> int:
    """What a replayed step moves of one layer's cache: the keys that attention gets, and what a look-up searches."""
    heads, dim, dtype = layer.kv_heads, layer.head_dim, job.dtype_bytes
    each = account.kv_token_bytes(heads, dim, dtype) + (account.POSITION_BYTES if layer.patched else 0)
    moved = each * account.kept_tokens(job.tokens, layer.handed) * _passes(layer, graph=True)
    if layer.top_k:
        moved += account.search_bytes(job.tokens, layer.code_bytes, layer.shortlist, heads, dim, dtype)
    return job.batch * moved


def _passes(layer: Layer, *, graph: bool) -> int:
    """How often a decoding step moves a layer's cache.

    Eager: growing by `torch.cat` reads and writes it, attention reads it; a patched layer rotates the keys and copies
    what it keeps besides. Graph: stock's static cache has a mask, so that keys and values are repeated to all heads
    (read, written and read again, R = heads / kv_heads times: the 7 passes of 9/3 heads explain 10.5 ms at 128k); a
    ring is rotated and read.
    """
    repeats = layer.heads // layer.kv_heads
    if graph:
        return 3 if layer.patched else 1 + (2 * repeats if repeats > 1 else 0)
    return 8 if layer.patched else 3


def _moved(job: Job, n_bytes: float) -> float:
    return n_bytes / (job.calibration.bandwidth * 1e9 * job.machine.bandwidth_gb_s)
