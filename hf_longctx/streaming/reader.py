"""Reading and writing indefinitely, in constant memory and time per token, on a model with a bounded method.

with LMInfinite(n_local=4096).on(model):
    reader = stream(model, ids)                # any number of ids, from anywhere, a chunk at a time
    for token in reader.generate(do_sample=False):
        ...
    reader.read(more_ids)                      # with the same cache: several turns are one text
"""

# L tokens of a piece, V vocabulary; the batch is always 1
from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from transformers import DynamicCache

from ..anatomy import refuse_encoder_decoder
from ..attention.caches import adopt_all
from ..attention.state import STATE
from ..attention.without import check_looks_up, without_look_ups
from ..cache.copies import deep_copy
from ..cache.recurrent import lost_between_pieces, states, takes_positions
from ..cache.stock import is_bounded, nbytes
from ..generation.cuda_graph import can_replay, forget, graph_forward
from ..ops.host import sent
from ..patch import applied, unwrap
from ..text.ids import SourceError, blocks
from ..upstream.caches import given_cache
from .chunks import default_chunk
from .rebase import Rebase
from .settings import generation_config as _generation_config

if TYPE_CHECKING:
    from transformers import PreTrainedModel

Progress = Callable[[int], None]


def stream(
    model: PreTrainedModel,
    ids: Iterable[Any] = (),
    *,
    chunk: int | None = None,
    bounded: bool = True,
    recent: int = 1024,
    compile: bool = True,
    progress: Progress | None = None,
    look_up: bool = True,
) -> Reader:
    """Read a text of any length, and return the `Reader` that continues it and reads more.

    Args:
        model: A causal language model in eval mode, usually with a method whose memory is bounded: `LMInfinite` without
            `top_k`, or `StreamingLLM`.
        ids: Token ids of one text: an iterable of whole numbers, or of lists or 1-D tensors of them, or one 1-D tensor,
            memory-mapped or not. They are taken as they are needed, at most `chunk` of them are held at any time, and
            they may stay on the host.
        chunk: Tokens of one forward pass. Memory and speed depend on it, the result does not. None: 16,384; on a GPU up
            to 65,536 with a model that is small, and a method that serves all of its layers (see `default_chunk`).
        bounded: Refuse a model whose cache would grow with the text. False: take any model.
        recent: How many of the last ids are kept, for `repetition_penalty` and other settings that look back.
        compile: On a GPU, replay written tokens from a CUDA graph. False: run each forward as it is.
        progress: Called after each forward pass that read something, with the position reached.
        look_up: As in `Reader.read`.

    Raises:
        ValueError: Something is wrong with the model, the arguments or an id.
        SourceError: `ids` raised while it was read; its `.reader` is usable.
    """
    reader = Reader(model, chunk, bounded, recent, compile, progress)
    reader.read(ids, look_up=look_up)
    return reader


class Reader:
    """One endless text: all that was read and written so far, in the model's own cache. Made by `stream`."""

    def __init__(
        self,
        model: PreTrainedModel,
        chunk: int | None,
        bounded: bool,
        recent: int,
        compile: bool,
        progress: Progress | None,
    ) -> None:
        for name, tokens in (("chunk", chunk), ("recent", recent)):
            if (name, tokens) != ("chunk", None) and (type(tokens) is not int or tokens < 1):
                raise ValueError(f"{name}={tokens!r}: expected a whole number of tokens, at least 1.")
        if progress is not None and not callable(progress):
            raise ValueError(f"progress={progress!r}: expected a function of the position reached, or None.")
        self.model, self._progress = model, progress
        self._base: Any = unwrap(model)
        refuse_encoder_decoder(self._base, "stream")
        self._patches = applied(model)
        self.cache = DynamicCache(config=self._base.config)
        state = next((vars(m)[STATE] for m in self._base.modules() if STATE in vars(m)), None)
        if state is not None:
            adopt_all(state, self.cache)
        if bounded:
            self._refuse_growing()
        self.chunk = chunk = default_chunk(self._base, self.cache) if chunk is None else chunk
        self._rebase = Rebase(self._base, self.cache)
        self._position = self._start = 0
        self._moved_back = 0  # by how much less the positions are that the model is given
        self._pending: int | None = None  # written and handed out, but not yet read by the model
        self._recent: deque[int] = deque(maxlen=recent)
        self._last_V: Tensor | None = None
        self._broken = False
        self._compile = compile
        self._step: Any = None
        self._told = takes_positions(model)
        self._check_model()
        lost = lost_between_pieces(model, chunk)
        if lost is not None:
            raise ValueError(
                f"chunk={chunk}: {type(self._base).__name__} cannot read a text in pieces of {chunk} tokens, since "
                f"{lost}. Pass chunk=1, which is slow, or read the text in one forward pass of the model."
            )

    def __repr__(self) -> str:
        return f"{type(self).__name__}({type(self._base).__name__}, position={self.position:,}, nbytes={self.nbytes:,})"

    def __deepcopy__(self, memo: Any) -> Reader:
        """A reader that continues from here by itself, on the same model."""
        twin = deep_copy(self, memo, self.model, self._base, *self._patches, self._progress, self._step)
        twin._step = None  # a graph belongs to one cache
        return twin

    @property
    def position(self) -> int:
        """Tokens read and written so far."""
        return self._position + (self._pending is not None)

    @property
    def nbytes(self) -> int:
        """Bytes that the cache keeps, recurrent and convolution states included."""
        return nbytes(self.cache)

    @property
    def logits(self) -> Tensor:
        """(V,) fp32: what the model expects after the last token."""
        self._flush()
        if self._last_V is None:
            raise ValueError("nothing has been read yet, so there are no logits. Call reader.read(ids) first.")
        return self._last_V

    def read(self, ids: Iterable[Any], *, look_up: bool = True) -> None:
        """Read more `ids`, as in `stream`.

        `look_up=False`, for methods that look tokens up (`CodeLookup`, `LMInfinite` with `top_k`): what is read now
        sees the window and the first tokens only, which takes time in proportion to its length; what is read or written
        later looks tokens up, in all of the text. ValueError for other methods.

        After an error the reader holds all chunks before it, and can be used.

        Unless a forward pass broke off between two layers (Ctrl-C, no memory): RuntimeError then, for all that follows.
        With recurrent or convolution states any error of a forward pass counts as that, since they do not show it.
        """
        self._check_model()
        if not look_up:
            check_looks_up(self.model, patches=self._patches)
        self._flush()
        vocabulary = self._base.get_input_embeddings().weight.shape[0]
        for block_L in blocks(ids, self.chunk, vocabulary, self._source_error):
            self._check_patches()  # `ids` may have changed them
            recent = block_L[-(self._recent.maxlen or 1) :].tolist()
            with nullcontext() if look_up else without_look_ups(self.model, self._patches):
                # the host need not wait for the chunk before: it makes room and launches meanwhile
                self._forward(sent(block_L, self.model.device)[None], self._forward_many)
            self._recent.extend(recent)
            if self._progress is not None:
                self._progress(self.position)

    def generate(
        self, *, generation_config: Any = None, logits_processor: Any = None, **settings: Any
    ) -> Iterator[int]:
        """Write token by token, as `model.generate` would. Every token that comes out is part of the text.

        An end-of-sequence token comes out too, and is the last. Without `max_new_tokens` writing continues until there
        is one, indefinitely if there is none; stop by leaving the loop.

        Args:
            generation_config: As `model.generate` takes it.
            logits_processor: As `model.generate` takes it.
            **settings: Of a `GenerationConfig`: `max_new_tokens`, `do_sample`, `temperature`, `eos_token_id`...
                The model's own `generation_config` is the default. Those that look back (`repetition_penalty`) see the
                last `recent` ids. `max_length` has no effect.
        """
        self._check_model()
        if not self.position:
            raise ValueError("nothing has been read yet, so there is nothing to continue. Call reader.read(ids) first.")
        config = _generation_config(self._base, generation_config, settings, self._recent.maxlen)
        self._step = None
        forget(self.cache)
        processors = self._base._get_logits_processor(
            config, input_ids_seq_length=len(self._recent), logits_processor=logits_processor, device=self.model.device
        )
        return self._write(config, processors)

    def take_back(self) -> int | None:
        """The token written last, which is then no part of the text; None if the model has read it already."""
        token, self._pending = self._pending, None
        if token is not None:
            self._recent.pop()
        return token

    def _write(self, config: Any, processors: Any) -> Iterator[int]:
        end = set() if config._eos_token_tensor is None else set(config._eos_token_tensor.tolist())
        written = 0
        while config.max_new_tokens is None or written < config.max_new_tokens:
            self._flush()
            self._pending = token = self._choose(processors, config.do_sample)
            self._recent.append(token)
            written += 1
            yield token
            if token in end:
                return

    @torch.no_grad()
    def _choose(self, processors: Any, sample: bool) -> int:
        scores_1V = self.logits[None]
        if processors:
            scores_1V = processors(torch.tensor([list(self._recent)], device=scores_1V.device), scores_1V.clone())
        if sample:
            return int(torch.multinomial(scores_1V.softmax(-1), 1))
        return int(scores_1V.argmax(-1))

    @property
    def _place(self) -> int:
        """The position that the model is given for the next token it reads."""
        return self._position - self._moved_back

    def _forward_one(self, ids_11: Tensor) -> Tensor:
        """The forward pass of one written token, at `self._place`, through `self.cache`: its logits, (1, V).

        The one place where every token written goes through; on a GPU it comes from a CUDA graph.
        """
        if self._step is None:
            replays = self._compile and can_replay(self._base, self.cache)
            self._step = graph_forward(self._base) if replays else self.model
        return self._forward_many(ids_11, self._step)

    def _forward_many(self, ids_1L: Tensor, model: Any = None) -> Tensor:
        pos_1L = torch.arange(self._place, self._place + ids_1L.shape[1], device=ids_1L.device)[None]
        given = {**given_cache(self.model, self.cache), **({"position_ids": pos_1L} if self._told else {})}
        output = (model or self.model)(input_ids=ids_1L, **given, use_cache=True, logits_to_keep=1)
        return output.logits[:, -1]

    @torch.no_grad()
    def _forward(self, ids_1L: Tensor, forward: Callable[[Tensor], Tensor]) -> None:
        if self._broken:
            raise RuntimeError(
                f"a forward pass failed half-way at position {self._position:,}: some layers have read on and others "
                f"have not. Start a new reader."
            )
        self._check_patches()
        self._broken = True  # until the cache is whole again
        self._moved_back += self._rebase.move_back(self._place, ids_1L.shape[1])
        try:
            logits_1V = forward(ids_1L)
        except BaseException as error:
            # states have no length: they cannot be used after a forward of which they may have seen a part
            self._broken = bool(states(self.cache)) or any(n != self._position - self._start for n in self._lengths())
            if isinstance(error, torch.OutOfMemoryError):
                raise torch.OutOfMemoryError(self._out_of_memory(ids_1L.shape[1])) from error
            raise
        self._position += ids_1L.shape[1]
        self._broken = False
        self._last_V = logits_1V[0].to(torch.float32, copy=True)

    def _flush(self) -> None:
        """Let the model read the token that was written last: only when the logits after it are needed."""
        if self._pending is not None:
            self._forward(torch.tensor([[self._pending]], device=self.model.device), self._forward_one)
            self._pending = None

    def _lengths(self) -> list[int]:
        return [int(layer.get_seq_length()) for layer in self.cache.layers if hasattr(layer, "get_seq_length")]

    def _check_model(self) -> None:
        if self.model.training:
            raise ValueError("the model is in train mode, where dropout would change what is read. Call model.eval().")
        patches = applied(self.model)
        now, before = [p.method for p in patches], [p.method for p in self._patches]
        if now != before:
            raise RuntimeError(
                f"the model carried {before or 'no method'} when this reader began, and carries {now or 'none'} now. "
                f"Apply what it began with again, or start a new reader."
            )
        self._patches = patches

    def _check_patches(self) -> None:
        if not all(patch.active for patch in self._patches):  # undone; perhaps applied again
            self._check_model()

    def _refuse_growing(self) -> None:
        growing = [layer for layer in self.cache.layers if not is_bounded(layer)]
        if growing:
            methods = ", ".join(repr(patch.method) for patch in self._patches) or "no method at all"
            named = ((patch.method, getattr(patch.method, "host_setting", "")) for patch in self._patches)
            host = [f"{name}=True" for method, name in named if name and not getattr(method, name)]
            raise ValueError(
                f"under {methods}, {len(growing)} of the {len(self.cache.layers)} layers of this "
                f"{type(self._base).__name__} keep every key, so memory and time per token would grow with the text. "
                f"Apply a method that bounds them (LMInfinite without top_k, StreamingLLM), or pass bounded=False"
                f"{f' (and {host[0]} to the method, to keep keys in host memory)' if host else ''}."
            )

    def _out_of_memory(self, tokens: int) -> str:
        device = self.model.device
        free, total = torch.cuda.mem_get_info(device) if device.type == "cuda" else (0, 0)
        there = f", {free / 2**30:.1f} of {total / 2**30:.1f} GiB were free after it failed" if total else ""
        return (
            f"reading {tokens:,} tokens at once at position {self.position:,} needed more memory than there is{there}. "
            f"Start a new reader with chunk={max(tokens // 4, 1):,}, or take a smaller window; `hf-longctx plan` says "
            f"what fits."
        )

    def _source_error(self, error: Exception, taken: int, dropped: int) -> SourceError:
        return SourceError(
            f"the iterator of token ids raised {type(error).__name__}: {error} (after {taken:,} ids). The reader "
            f"stands at {self.position:,}, after the last whole chunk; the {dropped:,} ids after it were not read. "
            f"Continue with reader.read(...); this exception has the reader as .reader.",
            self,
        )
