"""Hydragen (Juravsky et al. 2024): one copy of a long document, many questions or samples at once, exactly.

    with shared_prefix(model, document_ids) as prefix:
        answers = prefix.generate(question_ids, attention_mask=mask, max_new_tokens=50)
        samples = prefix.generate(num_return_sequences=64, do_sample=True)

What comes out is what stock `generate` gives for document and question together; the document is read and stored once,
and in every step the queries of all rows meet it as one matrix product. https://arxiv.org/abs/2402.05099
"""

# B batch, Q tokens of a question, P tokens of the prefix
from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache

from ..anatomy import attention_layers, check_filled_cache, find_decoder
from ..cache.copies import shallow_copy
from ..editing.edit import EditReport
from ..editing.editable import check_vocabulary
from ..patch import Patch, applied, unwrap
from ..storage.fingerprint import model_digest
from ..upstream.caches import generate_cache, given_cache
from .edit import edit_level
from .file import Fingerprint, read_levels, write_levels
from .layers import Level, SharedCache
from .model import Sharing, install, window_of
from .padding import padding_in_front

RESERVED = ("inputs", "inputs_embeds", "position_ids", "token_type_ids", "cache_implementation")


@contextmanager
def shared_prefix(model: Any, document_ids: Tensor, *, chunk: int | None = None) -> Iterator[Prefix]:
    """Read a document once, to answer many questions about it inside the block. At its end the model is as before.

    Args:
        model: a causal language model with eager or sdpa attention and without an attention method of ours; sliding
            windows, GQA and scaled RoPE are fine. Models that are refused are refused by name. Not for several threads.
        document_ids: (P,) or (1, P), at least one token, of the model's vocabulary.
        chunk: read so many tokens at a time; by default all at once.
    """
    ids = _prefix_ids(document_ids, "document_ids")
    _check_chunk(chunk)
    with _sharing(model) as (patch, fingerprint):
        decoder = patch.model
        check_vocabulary(ids, "document_ids", decoder)
        cache: Any = DynamicCache()
        yield Prefix(model, patch, fingerprint, (_read(decoder, cache, ids, 0, chunk),))


@contextmanager
def load_prefix(model: Any, path: str | Path, document_ids: Tensor | None = None) -> Iterator[Prefix]:
    """`shared_prefix` without reading: the prefix comes from a file that `Prefix.save` wrote.

    Args:
        model: the one that read it: a file of another model, or of this one with other methods, is a ValueError.
        path: the file.
        document_ids: what the prefix is expected to be; ValueError if it is something else. None: whatever it is.
    """
    expected = None if document_ids is None else _prefix_ids(document_ids, "document_ids")
    with _sharing(model) as (patch, fingerprint):
        layers: Any = attention_layers(patch.model)
        places = [_place(module) for module in layers]
        levels = read_levels(Path(path), fingerprint, places)
        prefix = Prefix(model, patch, fingerprint, levels)
        if expected is not None and not torch.equal(prefix.ids, expected.cpu()):
            raise ValueError(
                f"{path} holds the keys of {prefix.length} tokens which are not those of document_ids "
                f"({len(expected)} tokens). Read the document again: shared_prefix(model, document_ids)."
            )
        yield prefix


class Prefix:
    """A prefix that is being shared: made by `shared_prefix`, `load_prefix` and `extend`."""

    def __init__(self, model: Any, patch: Patch, fingerprint: Fingerprint, levels: tuple[Level, ...]) -> None:
        self.model, self.levels = model, levels
        self._patch, self._fingerprint = patch, fingerprint

    __copy__ = shallow_copy

    def __deepcopy__(self, memo: Any) -> Prefix:
        return self  # it never changes, and belongs to its model

    def __reduce_ex__(self, protocol: Any) -> Any:
        raise TypeError(
            "a prefix cannot be pickled: it belongs to a model. Save it, prefix.save(path), and use "
            "load_prefix(model, path) where it is needed."
        )

    @property
    def ids(self) -> Tensor:
        """The tokens of all levels, (P,), on the CPU."""
        return torch.cat([level.ids_N for level in self.levels])

    @property
    def length(self) -> int:
        return self.levels[-1].end

    @property
    def nbytes(self) -> int:
        """Bytes of its keys and values, however many rows share them."""
        return sum(level.nbytes() for level in self.levels)

    def __repr__(self) -> str:
        parts = " + ".join(str(len(level.ids_N)) for level in self.levels)
        return f"Prefix({parts} tokens, {self.nbytes / 2**20:.1f} MiB)"

    @torch.no_grad()
    def generate(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        cache: SharedCache | None = None,
        past_key_values: SharedCache | None = None,
        **settings: Any,
    ) -> Any:
        """What `model.generate` returns for the prefix and `input_ids` behind it, without the prefix's own tokens.

        Logits processors, stopping criteria, streamers and `max_length` see the prefix too; processors and criteria see
        the padding of shorter questions in front of it, as in a batch that is padded on the left.

        Args:
            input_ids: (B, Q): a question a row. None: go on from the prefix itself, with `num_return_sequences` rows.
            attention_mask: (B, Q): 0 where a shorter question is padded, on the left.
            cache: from `Prefix.cache()`, for a conversation of several turns; `input_ids` are then everything after
                the prefix so far, as in stock `generate`.
            past_key_values: the same, by its name in transformers before 5.24.
            **settings: for `model.generate`.
        """
        self._check_active()
        if cache is not None and past_key_values is not None:
            raise ValueError("cache and past_key_values are two names of one argument. Give one of them.")
        turns = past_key_values if cache is None else cache
        for name in RESERVED:
            if settings.get(name) is not None:
                raise ValueError(f"{name}: a shared prefix works with token ids and a cache of its own. Leave it out.")
        if settings.get("use_cache") is False:
            raise ValueError("use_cache=False: the prefix is a cache. Leave it out.")
        config = settings.get("generation_config") or self.model.generation_config
        check_filled_cache(lambda name: settings.get(name, getattr(config, name, None)))
        if settings.get("generation_config") is None or getattr(config, "use_cache", None) is False:
            settings["use_cache"] = True  # a model's own settings may say no: Trainer saves them so
        device = self.levels[0].keys[0].device  # that of the first layer, also of an offloaded model
        prefix_P = self.ids.to(device)
        if input_ids is None:
            if attention_mask is not None or turns is not None:
                raise ValueError("attention_mask and cache belong to input_ids, and there are none.")
            ids = prefix_P[None]
            mask = torch.ones_like(ids)
            # its last token is read again, once for every row: nobody kept what it says comes next
            cache = self._cache((*self.levels[:-1], self.levels[-1].without_last()))
        else:
            questions, real = self._questions(input_ids, attention_mask, turns)
            before = prefix_P.expand(len(questions), -1)
            ids = torch.cat([before, questions.to(device)], 1)
            mask = torch.cat([torch.ones_like(before), real.to(device)], 1)
            cache = self.cache() if turns is None else turns
        cache.most = _most(settings, config, ids.shape[1], self.length)
        with padding_in_front(unwrap(self.model), mask):
            out = self.model.generate(ids, attention_mask=mask, **generate_cache(cache), **settings)
        if isinstance(out, Tensor):
            return out[:, self.length :].clone()  # a slice would keep the prefix of every row alive
        out.sequences = out.sequences[:, self.length :].clone()
        return out

    def cache(self) -> SharedCache:
        """An empty cache behind this prefix, for `generate(..., cache=)`: turns of a conversation."""
        return self._cache(self.levels)

    @torch.no_grad()
    def extend(self, ids: Tensor, *, chunk: int | None = None) -> Prefix:
        """A deeper level: this prefix and `ids` behind it, for which this one's tensors are not copied."""
        self._check_active()
        _check_chunk(chunk)
        new = _prefix_ids(ids, "ids")
        check_vocabulary(new, "ids", self._patch.model)
        level = _read(self._patch.model, self.cache(), new, self.length, chunk)
        return Prefix(self.model, self._patch, self._fingerprint, (*self.levels, level))

    @torch.no_grad()
    def edit(self, ids: Tensor, repair: int | None = None) -> tuple[Prefix, EditReport]:
        """This prefix with `ids` in place of its last level's tokens, read as PIE edits a cache: approximate.

        This one stays as it is. Earlier levels are shared with it.

        Args:
            ids: the last level's new text.
            repair: old tokens behind each edit that are read again, as for `hf_longctx.editing.edit.edit`.
        """
        self._check_active()
        level, report = edit_level(self._patch.model, self.levels, _prefix_ids(ids, "ids").cpu(), repair)
        return Prefix(self.model, self._patch, self._fingerprint, (*self.levels[:-1], level)), report

    def save(self, path: str | Path) -> Path:
        """Write everything to a safetensors file, for `load_prefix`. An interrupted save leaves an old file whole."""
        return write_levels(Path(path), self._fingerprint, self.levels)

    def _cache(self, levels: tuple[Level, ...]) -> SharedCache:
        return SharedCache(levels, len(self.levels[0].keys), owner=self)

    def _questions(self, ids: Tensor, mask: Tensor | None, cache: SharedCache | None) -> tuple[Tensor, Tensor]:
        if not isinstance(ids, Tensor) or ids.ndim != 2 or ids.is_floating_point():
            given = tuple(ids.shape) if isinstance(ids, Tensor) else type(ids).__name__
            raise ValueError(f"input_ids: {given}, expected token ids of shape (batch, tokens), a question a row.")
        if not ids.numel():
            raise ValueError(
                f"input_ids of shape {tuple(ids.shape)}: there is nothing in it. Give every row a token at least, or "
                f"leave input_ids out to go on from the prefix itself."
            )
        check_vocabulary(ids, "input_ids", self._patch.model)
        if mask is None:
            pad = self.model.generation_config.pad_token_id
            if pad is not None and len(ids) > 1 and bool((ids == pad).any()):
                raise ValueError(f"input_ids hold the padding token {pad}. Give the attention_mask that goes with it.")
            mask = torch.ones_like(ids)
        if mask.shape != ids.shape:
            raise ValueError(
                f"attention_mask of shape {tuple(mask.shape)}, expected that of input_ids, {tuple(ids.shape)}."
            )
        if not bool(mask[:, -1].all()):
            raise ValueError("attention_mask: a row ends in padding, or is all padding. Pad on the left.")
        if cache is not None:
            if not isinstance(cache, SharedCache) or cache.owner is not self:
                raise ValueError("this is no cache of this prefix. Make one with prefix.cache().")
            if cache.current.step is not None:  # Ctrl-C, after which no hook is called
                cache.end(whole=False)
            cache.check_whole()
            if cache.rows not in (None, len(ids)):
                raise ValueError(f"the cache has {cache.rows} rows and input_ids {len(ids)}: they must be the same.")
            if self.length + ids.shape[1] <= cache.get_seq_length():
                raise ValueError(
                    f"input_ids of {ids.shape[1]} tokens: the cache has read {cache.get_seq_length() - self.length} "
                    f"behind the prefix. Give everything so far, and the new turn behind it."
                )
        return ids, mask.to(ids.dtype)

    def _check_active(self) -> None:
        if not self._patch.active:
            raise RuntimeError(
                "this prefix was shared inside a `with` block that has ended. Save it inside (prefix.save) to go on "
                "later with load_prefix, or share it again."
            )
        newest = applied(self._patch.model)[-1]
        if newest is not self._patch:
            raise RuntimeError(
                f"{newest.method!r} was applied after this prefix was read, which was read without it. Undo it, or "
                f"apply it first and share the prefix then."
            )


def _most(settings: dict[str, Any], config: Any, width: int, prefix: int) -> int | None:
    """How many tokens a suffix will have that is read at the most; None if that is open. The last one is not read."""

    def asked(name: str) -> int | None:
        value: int | None = settings.get(name, getattr(config, name, None))
        return value

    new, total = asked("max_new_tokens"), asked("max_length")
    if new is None and total is None:
        return None
    return (total or 0 if new is None else width + new) - prefix - 1


@contextmanager
def _sharing(model: Any) -> Iterator[tuple[Patch, Fingerprint]]:
    root = unwrap(model)
    decoder = find_decoder(root)
    if root.training:
        raise ValueError("the model is in train mode, where dropout would change what is read. Call model.eval().")
    if not hasattr(model, "generate"):
        raise ValueError(
            f"{type(model).__name__}: cannot generate. Give the whole causal language model, not a part such as "
            f"model.model."
        )
    patch = Patch(method=Sharing(), model=decoder)
    carried = [p.method.spec() for p in applied(decoder)]
    fingerprint = Fingerprint(model_digest(root), tuple(map(str, carried)))
    with patch.recording():
        install(patch, decoder, root)
    try:
        yield patch, fingerprint
    finally:
        if patch.active:
            patch.undo()


@torch.no_grad()
def _read(decoder: Any, cache: Any, ids_P: Tensor, start: int, chunk: int | None) -> Level:
    """Read `ids_P` through `cache`, whose keys and values of them become a level."""
    device = _place(decoder.get_input_embeddings())
    for part in ids_P.split(chunk or len(ids_P)):
        seen = cache.get_seq_length()
        position = torch.arange(seen, seen + len(part), device=device)[None]
        decoder(input_ids=part.to(device)[None], position_ids=position, **given_cache(decoder, cache), use_cache=True)
    layers: Any = attention_layers(decoder)
    keys, values = zip(*(_kept(cache.layers[m.layer_idx], window_of(m)) for m in layers), strict=True)
    return Level(ids_P.cpu(), start, keys, values)


def _kept(layer: Any, window: int | None) -> tuple[Tensor, Tensor]:
    """What later tokens can see. One more than they need, for the prefix without its last token."""
    if window is None or layer.keys.shape[2] <= window:
        return layer.keys, layer.values
    return layer.keys[:, :, -window:].clone(), layer.values[:, :, -window:].clone()


def _place(module: Any) -> torch.device:
    """Where a module computes."""
    weight: torch.device = next(module.parameters()).device
    if weight.type != "meta":
        return weight
    hooks = (getattr(m, "_hf_hook", None) for m in module.modules())  # offloaded, by accelerate
    places = (getattr(hook, "execution_device", None) for hook in hooks)
    return torch.device(next((place for place in places if place is not None), "cpu"))


def _prefix_ids(ids: Any, name: str) -> Tensor:
    if not isinstance(ids, Tensor) or ids.is_floating_point() or ids.ndim not in (1, 2):
        given = f"{ids.dtype} of shape {tuple(ids.shape)}" if isinstance(ids, Tensor) else type(ids).__name__
        raise ValueError(f"{name}: {given}, expected a tensor of token ids of shape (tokens,) or (1, tokens).")
    if ids.ndim == 2 and len(ids) != 1:
        raise ValueError(f"{name} of shape {tuple(ids.shape)}: one prefix is shared by all rows. Give one row.")
    if not ids.numel():
        raise ValueError(f"{name} is empty: there is nothing to share. Give at least one token.")
    return ids.reshape(-1).long()


def _check_chunk(chunk: int | None) -> None:
    if chunk is not None and (type(chunk) is not int or chunk < 1):
        raise ValueError(f"chunk={chunk!r}: expected a number of tokens, at least 1, or None for all at once.")
