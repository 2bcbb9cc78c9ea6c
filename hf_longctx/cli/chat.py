"""`hf-longctx chat`: a conversation in constant memory."""

from __future__ import annotations

from typing import Annotated

import typer

from .options import (
    ChunkSize,
    Device,
    Dtype,
    MethodName,
    Model,
    Sample,
    Settings,
    load_model,
    method_of,
    notes,
    reader_on,
    sampling,
)


def chat(
    model: Model,
    method: MethodName = None,
    settings: Settings = None,
    system: Annotated[str | None, typer.Option(help="What the conversation begins with.")] = None,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Of an answer.")] = 1024,
    prefill_chunk_size: ChunkSize = None,
    sample: Sample = False,
    dtype: Dtype = "auto",
    device: Device = None,
) -> None:
    """Talk for as long as you like: a turn costs the same however long the conversation is."""
    chosen = method_of(method, settings)
    from ..streaming.chat import Chat
    from ..streaming.terminal import converse

    loaded, tokenizer = load_model(model, dtype, device)
    talk = Chat(reader_on(loaded, chosen, prefill_chunk_size), tokenizer, system)
    converse(talk, notes(), max_new_tokens=max_new_tokens, **sampling(sample))
