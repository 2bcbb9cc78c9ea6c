"""Which tokens of a chat are the assistant's: as its template marks them, or by what the template adds for each."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from ...text.joins import ids_of_parts

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_MARKED = re.compile(r"\{%-?\s*generation\s*-?%\}")


def answers_of(
    tokenizer: PreTrainedTokenizerBase, messages: list[dict[str, Any]], where: str
) -> tuple[list[int], list[bool]]:
    """The ids of a chat, and whether each belongs to an answer. `where` names the chat in errors."""
    template = tokenizer.get_chat_template()
    if _MARKED.search(template) and tokenizer.is_fast:
        found: Any = tokenizer.apply_chat_template(
            messages, return_dict=True, return_assistant_tokens_mask=True, tokenizer_kwargs={"verbose": False}
        )
        return list(found["input_ids"]), [bool(x) for x in found["assistant_masks"]]
    parts = _parts(tokenizer, messages, where)
    each = ids_of_parts(tokenizer, *parts)
    ids = [token for part in each for token in part]
    return ids, [bool(number % 2) for number, part in enumerate(each) for _ in part]


def _parts(tokenizer: PreTrainedTokenizerBase, messages: list[dict[str, Any]], where: str) -> list[str]:
    """The text of a chat in parts, of which every second one is an answer."""
    whole, parts, at = _text(tokenizer, messages), list[str](), 0
    for number, message in enumerate(messages):
        if message["role"] != "assistant":
            continue
        if number == 0:
            raise ValueError(f"{where} begins with an answer: expected a message of the user before it.")
        before = _text(tokenizer, messages[:number], ask=True)
        after = _text(tokenizer, messages[: number + 1])
        if not (whole.startswith(after) and after.startswith(before) and len(before) >= at):
            raise ValueError(
                f"{where}: the chat template writes message {number} otherwise when others follow, so its answers "
                f"cannot be found. Put {{% generation %}} ... {{% endgeneration %}} around them in the template."
            )
        parts += [whole[at : len(before)], whole[len(before) : len(after)]]
        at = len(after)
    return [*parts, whole[at:]]


def _text(tokenizer: PreTrainedTokenizerBase, messages: list[dict[str, Any]], ask: bool = False) -> str:
    return str(tokenizer.apply_chat_template(messages, add_generation_prompt=ask, tokenize=False))
