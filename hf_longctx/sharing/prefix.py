"""Hydragen (Juravsky et al. 2024): one copy of a long document, many questions or samples at once, exactly.

    with shared_prefix(model, document_ids) as prefix:
        answers = prefix.generate(question_ids, attention_mask=mask, max_new_tokens=50)
        samples = prefix.generate(num_return_sequences=64, do_sample=True)

The output is that of stock `generate` for document and question together; the document is read and stored once, and in
every step the queries of all rows attend to it in one matrix product. https://arxiv.org/abs/2402.05099
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

from ..anatomy import attention_layers, find_decoder, weight_of
from ..cache.copies import shallow_copy
from ..editing.edit import EditReport
from ..editing.editable import check_vocabulary
from ..patch import Patch, applied, unwrap
from ..storage.fingerprint import model_digest
from ..upstream.caches import generate_cache, given_cache
from ..upstream.versions import check_filled_cache
from .edit import edit_level
from .file import Fingerprint, read_levels, write_levels
from .inputs import RESERVED, check_cache, check_chunk, check_questions, longest_suffix, mask_of, prefix_ids
from .layers import Level, SharedCache
from .model import Sharing, check, install, window_of
from .padding import padding_in_front


@contextmanager
def shared_prefix(model: Any, document_ids: Tensor, *, chunk: int | None = None) -> Iterator[Prefix]:
    """Read a document once, to answer many questions about it inside the block. At its end the model is as before.

    Args:
        model: A causal language model with eager or sdpa attention and without an attention method of hf_longctx;
            sliding windows, GQA and scaled RoPE work. Other models are refused by name. Not for several threads.
        document_ids: (P,) or (1, P), at least one token, of the model's vocabulary.
        chunk: The prefill chunk size, in tokens; None: all at once.
    """
    ids = prefix_ids(document_ids, "document_ids")
    check_chunk(chunk)
    with _sharing(model) as (patch, fingerprint):
        decoder = patch.model
        check_vocabulary(ids, "document_ids", decoder)
        cache: Any = DynamicCache()
        _read(decoder, cache, ids, chunk)
        yield Prefix(model, patch, fingerprint, (_level(decoder, cache, ids, 0),))


@contextmanager
def load_prefix(model: Any, path: str | Path, document_ids: Tensor | None = None) -> Iterator[Prefix]:
    """`shared_prefix` without reading: the prefix comes from a file that `Prefix.save` wrote.

    Args:
        model: The model that read it: a file of another model, or of this one with other methods, is a ValueError.
        path: The file.
        document_ids: The expected tokens; ValueError if the prefix has others. None: any.
    """
    expected = None if document_ids is None else prefix_ids(document_ids, "document_ids")
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
    """A prefix that is being shared, made by `shared_prefix`, `load_prefix`, `extend` and `edit`."""

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
        """Tokens of all levels."""
        return self.levels[-1].end

    @property
    def nbytes(self) -> int:
        """Bytes of its keys and values, for any number of rows."""
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
        """The output of `model.generate` for the prefix and `input_ids` after it, without the prefix's own tokens.

        Logits processors, stopping criteria, streamers and `max_length` see the prefix too; processors and criteria see
        the padding of shorter questions before it, as in a batch that is padded on the left.

        Args:
            input_ids: (B, Q): a question per row. None: continue from the prefix, with `num_return_sequences` rows.
            attention_mask: (B, Q): 0 where a shorter question is padded, on the left.
            cache: From `Prefix.cache()`, for a conversation of several turns; `input_ids` are then all tokens after
                the prefix so far, as in stock `generate`.
            past_key_values: The same, by its name in transformers before 5.24.
            **settings: For `model.generate`.
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
            # its last token is read again, once per row: its logits were not kept
            cache = self._cache((*self.levels[:-1], self.levels[-1].without_last()))
        else:
            check_questions(input_ids)
            check_vocabulary(input_ids, "input_ids", self._patch.model)
            real = mask_of(input_ids, attention_mask, self.model.generation_config.pad_token_id)
            if turns is not None:
                check_cache(turns, self, input_ids)
            before = prefix_P.expand(len(input_ids), -1)
            ids = torch.cat([before, input_ids.to(device)], 1)
            mask = torch.cat([torch.ones_like(before), real.to(device)], 1)
            cache = self.cache() if turns is None else turns
        cache.most = longest_suffix(settings, config, ids.shape[1], self.length)
        with padding_in_front(unwrap(self.model), mask):
            out = self.model.generate(ids, attention_mask=mask, **generate_cache(cache), **settings)
        if isinstance(out, Tensor):
            return out[:, self.length :].clone()  # a slice would keep the prefix of every row alive
        out.sequences = out.sequences[:, self.length :].clone()
        return out

    def cache(self) -> SharedCache:
        """An empty cache after this prefix, for `generate(..., cache=)`: turns of a conversation."""
        return self._cache(self.levels)

    @torch.no_grad()
    def extend(self, ids: Tensor, *, chunk: int | None = None) -> Prefix:
        """A deeper level: this prefix and `ids` after it. The tensors of this prefix are not copied."""
        self._check_active()
        check_chunk(chunk)
        new = prefix_ids(ids, "ids")
        check_vocabulary(new, "ids", self._patch.model)
        decoder, cache = self._patch.model, self.cache()
        _read(decoder, cache, new, chunk)
        cache.to_order()  # a last chunk of one token leaves buffers with empty columns
        level = _level(decoder, cache, new, self.length)
        return Prefix(self.model, self._patch, self._fingerprint, (*self.levels, level))

    @torch.no_grad()
    def edit(self, ids: Tensor, repair: int | None = None) -> tuple[Prefix, EditReport]:
        """This prefix with `ids` in place of its last level's tokens, edited as PIE edits a cache: approximate.

        This prefix is not changed, and earlier levels are shared with it.

        Args:
            ids: The last level's new text.
            repair: Old tokens that are read again for each edit, as for `hf_longctx.editing.edit`.
        """
        self._check_active()
        level, report = edit_level(self._patch.model, self.levels, prefix_ids(ids, "ids").cpu(), repair)
        return Prefix(self.model, self._patch, self._fingerprint, (*self.levels[:-1], level)), report

    def save(self, path: str | Path) -> Path:
        """Write the prefix to a safetensors file, for `load_prefix`. An interrupted save leaves an old file whole."""
        return write_levels(Path(path), self._fingerprint, self.levels)

    def _cache(self, levels: tuple[Level, ...]) -> SharedCache:
        return SharedCache(levels, len(self.levels[0].keys), owner=self)

    def _check_active(self) -> None:
        if not self._patch.active:
            raise RuntimeError(
                "this prefix was shared inside a `with` block that has ended. Save it inside (prefix.save) to continue "
                "later with load_prefix, or share it again."
            )
        newest = applied(self._patch.model)[-1]
        if newest is not self._patch:
            raise RuntimeError(
                f"{newest.method!r} was applied after this prefix was read, which was read without it. Undo it, or "
                f"apply it first and share the prefix then."
            )


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
    check(decoder)
    fingerprint = Fingerprint(model_digest(root), tuple(str(p.method.spec()) for p in applied(decoder)))
    patch = Patch(method=Sharing(), model=decoder)
    with patch.recording():
        install(patch, decoder, root)
    with patch.inside():
        yield patch, fingerprint


@torch.no_grad()
def _read(decoder: Any, cache: Any, ids_P: Tensor, chunk: int | None) -> None:
    """Read `ids_P` into `cache`."""
    device = _place(decoder.get_input_embeddings())
    for part in ids_P.split(chunk or len(ids_P)):
        seen = cache.get_seq_length()
        position = torch.arange(seen, seen + len(part), device=device)[None]
        decoder(input_ids=part.to(device)[None], position_ids=position, **given_cache(decoder, cache), use_cache=True)


def _level(decoder: Any, cache: Any, ids_P: Tensor, start: int) -> Level:
    """The keys and values of a cache that has read `ids_P`, whose layers are in order."""
    layers: Any = attention_layers(decoder)
    keys, values = zip(*(_kept(cache.layers[m.layer_idx], window_of(m)) for m in layers), strict=True)
    return Level(ids_P.cpu(), start, keys, values)


def _kept(layer: Any, window: int | None) -> tuple[Tensor, Tensor]:
    """The keys and values that later tokens attend to, and one more, for the prefix without its last token."""
    cut = slice(None) if window is None else slice(-window, None)
    return _alone(layer.keys[:, :, cut]), _alone(layer.values[:, :, cut])


def _alone(kept: Tensor) -> Tensor:
    """The same tensor, without memory around it."""
    return kept if kept.untyped_storage().nbytes() == kept.nbytes else kept.clone()


def _place(module: Any) -> torch.device:
    """The device on which a module computes."""
    weight: torch.device = weight_of(module).device
    if weight.type != "meta":
        return weight
    hooks = (getattr(m, "_hf_hook", None) for m in module.modules())  # offloaded, by accelerate
    places = (getattr(hook, "execution_device", None) for hook in hooks)
    return torch.device(next((place for place in places if place is not None), "cpu"))
