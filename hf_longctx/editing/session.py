"""A text in an editor: it is changed here and there, and the model's cache follows each change without a full read."""

from __future__ import annotations

from typing import Any, SupportsIndex

import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedTokenizerBase

from ..anatomy import find_decoder
from ..attention.caches import adopt_all
from ..attention.state import STATE
from ..cache.copies import deep_copy
from ..patch import unwrap
from ..upstream.caches import CACHE_NAMES, generate_cache, given_cache
from .edit import CHUNK, EditReport, edit
from .editable import check_kinds
from .plan import repair_of

# settings that turn the one row of the cache into several, leave it out, or leave it with other tokens than the text's
_REFUSED: dict[str, tuple[Any, ...]] = {
    "num_beams": (None, 1),
    "num_return_sequences": (None, 1),
    "guidance_scale": (None, 1),
    "assistant_model": (None,),
    "assistant_early_exit": (None,),
    "prompt_lookup_num_tokens": (None,),
    "use_cache": (None, True),
}
# arguments that the session gives `generate` itself, and those that would change what comes back
_OWN = {*CACHE_NAMES, "cache_implementation", "inputs", "input_ids", "inputs_embeds", "attention_mask"}
_OWN |= {"position_ids", "return_dict_in_generate", "custom_generate"}


class EditSession:
    """A text that is edited while a model keeps up with it.

    Text in, text out: `replace` changes the text, `complete` continues it at its end. Each change is tokenised and read
    by `hf_longctx.editing.edit.edit`, which is approximate; `refresh` reads the whole text again.

        session = EditSession(model, tokenizer, source)
        session.replace(120, 124, "name")     # characters, as in source[120:124]
        session.complete(max_new_tokens=32)   # the text written, which is then part of session.text
        session.undo()

    After an error the text and the cache are what they were, or the text is read again before its next use.

    Args:
        model: The causal language model, stock or with a method that keeps all that it has read.
        tokenizer: Its tokenizer; the text is tokenised with its special tokens, as `tokenizer(text)` does.
        text: The text to begin with. It is read at once.
        repair: How many tokens are read again for each edit, as for `edit`.
    """

    def __init__(self, model: Any, tokenizer: PreTrainedTokenizerBase, text: str, *, repair: int | None = None) -> None:
        if not callable(getattr(tokenizer, "decode", None)):
            raise ValueError(f"tokenizer={type(tokenizer).__name__}: expected the tokenizer of the model.")
        if not callable(getattr(model, "generate", None)):
            raise ValueError(
                f"model={type(model).__name__}: cannot generate. Give the whole causal language model, not a part such "
                f"as model.model."
            )
        self.model, self.tokenizer, self.repair = model, tokenizer, repair_of(repair)
        self.text = _string(text)
        self.report: EditReport | None = None  # of the last edit
        self._past: list[str] = []  # the texts before, the last one last
        self._cache: DynamicCache | None = None
        self._held = self._tokenise(text)  # the ids that the cache was made from
        self.refresh()

    def __repr__(self) -> str:
        return f"{type(self).__name__}({len(self.text):,} characters, {len(self._held):,} tokens)"

    def __deepcopy__(self, memo: Any) -> EditSession:
        """The same text, edited by itself from here on, with the same model."""
        return deep_copy(self, memo, self.model, self.tokenizer)

    @property
    def cache(self) -> DynamicCache:
        """The model's cache, which holds all tokens of the text but the last."""
        if self._cache is None:
            self.refresh()
        assert self._cache is not None
        return self._cache

    @property
    def ids(self) -> list[int]:
        """The tokens of the text."""
        return self._tokenise(self.text)

    def replace(self, start: int, end: int, text: str) -> EditReport:
        """Put `text` in place of the characters from `start` to before `end`; the report says what the cache took.

        Raises:
            ValueError: For places outside the text or no whole numbers, a `text` that is no string, or no token left.
                Nothing is changed then.
        """
        _string(text)
        whole = isinstance(start, SupportsIndex) and isinstance(end, SupportsIndex)
        if not whole or not 0 <= start <= end <= len(self.text):
            raise ValueError(
                f"replace({start!r}, {end!r}): expected whole numbers 0 <= start <= end <= {len(self.text)}, the "
                f"length of the text in characters."
            )
        before, after = self.text, self.text[:start] + text + self.text[end:]
        report = self._follow(after)
        if after != before:
            self._past.append(before)
        return report

    def complete(self, max_new_tokens: int = 32, **settings: Any) -> str:
        """Let the model continue the text at its end. The new text is returned, and is part of the text.

        Takes the settings of `generate`, but for those that make several rows (beams), leave the cache out or rewind
        it; a character that `max_new_tokens` cuts in two is left out of the text.
        """
        config = settings.get("generation_config")
        for name, off in _REFUSED.items():
            wanted = settings.get(name, getattr(config, name, None))
            if wanted not in off:
                raise ValueError(f"{name}={wanted!r}: a session has one text and one cache. Leave it out.")
        chosen = getattr(config, "cache_implementation", None)
        if chosen not in (None, self.model.generation_config.cache_implementation):
            raise ValueError(f"cache_implementation={chosen!r}: a session has a cache of its own. Leave it out.")
        for name in settings:
            if name in _OWN:
                raise ValueError(f"{name}: a session keeps its own cache and tokens, and returns text. Leave it out.")
        if self._held != self.ids:  # tokens that were written need not be those that their text has
            self._follow(self.text)
        cache, self._cache = self.cache, None  # it is the text's again once generate has come to its end
        held = torch.tensor([self._held], device=self.model.device)
        # also where the model's own generation_config has something else
        one_row = {name: off[-1] for name, off in _REFUSED.items()} | {
            "return_dict_in_generate": False,
            "cache_implementation": None,
        }
        written = self.model.generate(
            held,
            attention_mask=torch.ones_like(held),
            **generate_cache(cache),
            max_new_tokens=max_new_tokens,
            **{**settings, **one_row},
        )[0]
        text = self._text_of(written[len(self._held) :])
        self._cache, self._held = cache, written.tolist()
        if text:
            self._past.append(self.text)
        self.text += text
        return text

    def undo(self) -> EditReport:
        """Take the last change of the text back: the cache follows as it follows any edit."""
        if not self._past:
            raise ValueError("nothing to undo: the text is what the session began with.")
        report = self._follow(self._past[-1])
        self._past.pop()
        return report

    @torch.no_grad()
    def refresh(self) -> None:
        """Read the whole text again: afterwards nothing in the cache is approximate."""
        base: Any = unwrap(self.model)
        decoder: Any = find_decoder(base)
        ids = self.ids
        cache = DynamicCache(config=decoder.config)
        check_kinds(cache)
        if STATE in vars(decoder):
            adopt_all(vars(decoder)[STATE], cache)
        # at least one token, even if generate then has to have it taken away: an empty cache has no keys to move
        whole = torch.tensor([ids[:-1] or ids], device=self.model.device)
        pos = torch.arange(whole.shape[1], device=whole.device)[None]
        for start in range(0, whole.shape[1], CHUNK):
            part = slice(start, start + CHUNK)
            decoder(input_ids=whole[:, part], position_ids=pos[:, part], **given_cache(decoder, cache), use_cache=True)
        self._cache, self._held = cache, ids
        if len(ids) == 1:
            edit(self.model, cache, ids, ids, 0)

    def _follow(self, text: str) -> EditReport:
        """Make `text` the text, and the cache its own."""
        ids = self._tokenise(text)
        _, report = edit(self.model, self.cache, self._held, ids, self.repair)
        self.text, self._held, self.report = text, ids, report
        return report

    def _tokenise(self, text: str) -> list[int]:
        # the whole text: changes of tokens next to an edit are then found, wherever they are
        ids = list(self.tokenizer(text, verbose=False)["input_ids"])
        if not ids:
            raise ValueError("the text has no tokens, so there is nothing to read. Begin with some text.")
        return ids

    def _text_of(self, ids: Tensor) -> str:
        """The text that these tokens add to the text so far."""
        new = ids.tolist()
        before, *after = (
            self.tokenizer.decode([*self._held, *some], skip_special_tokens=True, clean_up_tokenization_spaces=False)
            # without its last bytes, if they are not a whole character yet: some tokenizers break all bytes before them
            for some in ([], *(new[: len(new) - n] for n in range(min(len(new) + 1, 4))))
        )
        whole = next((text for text in after if not text.endswith("\ufffd")), after[0])
        return str(whole[len(before) :]).rstrip("\ufffd")


def _string(text: Any) -> str:
    if not isinstance(text, str):
        raise ValueError(f"text={type(text).__name__}: expected a string.")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ValueError(
            f"text has {text[error.start]!r} at {error.start}, half of a character (a lone surrogate): expected whole "
            f"ones. Count in code points where the editor counts in UTF-16."
        ) from error
    return text
