"""Long texts to measure on."""

# N documents, L tokens of a document
from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def load_text(path_or_name: str | Path, *, holds: str = "text in it, or 'python-docs'") -> str:
    """A text by name, or the contents of a UTF-8 file.

    Args:
        path_or_name: "python-docs" for the language reference that comes with CPython (`pydoc_data.topics`, about
            465,000 characters; it differs a little between Python versions), otherwise a path.
        holds: What a file that is empty should have had, as its error says.

    Raises:
        FileNotFoundError: There is no such file or name.
        ValueError: The file is empty, is a folder, or isn't UTF-8 text.
    """
    if path_or_name == "python-docs":
        return _python_docs()
    path = Path(path_or_name).expanduser()
    if path.is_dir():
        raise ValueError(f"{path} is a folder: give one text file, or 'python-docs'.")
    if not path.exists():
        raise FileNotFoundError(f"No text file at {path}. Give the path of a UTF-8 file, or 'python-docs'.")
    data = path.read_bytes()
    if b"\0" in data:
        raise ValueError(f"{path} holds zero bytes, so it isn't plain text. Convert it to UTF-8 text first.")
    try:
        text = data.decode("utf-8-sig").replace("\r\n", "\n")
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{path} isn't UTF-8: byte {error.start} is 0x{data[error.start]:02x}. "
            "Convert it first, for example with `iconv -f latin1 -t utf-8`."
        ) from error
    if not text.strip():
        raise ValueError(f"{path} is empty. Give a file with {holds}.")
    return text


def tokenize_documents(tokenizer: PreTrainedTokenizerBase, text: str, length: int, n: int) -> Tensor:
    """Spans of a text that don't overlap, spread evenly over it, without special tokens.

    Returns:
        (n, length) int64 token ids on the CPU.

    Raises:
        ValueError: The text has fewer than `n * length` tokens, or `n` or `length` is below 1.
    """
    if n < 1 or length < 1:
        raise ValueError(f"n={n}, length={length}: expected at least one document of at least one token.")
    ids = tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
    if len(ids) < n * length:
        raise ValueError(
            f"The text has {len(ids):,} tokens; {n} documents of {length:,} need {n * length:,}. "
            "Give a longer text, fewer documents or a shorter length."
        )
    return torch.tensor(ids)[: len(ids) // n * n].view(n, -1)[:, :length].contiguous()


def _python_docs() -> str:
    try:
        from pydoc_data.topics import topics
    except ImportError as error:
        raise FileNotFoundError(
            "This Python comes without pydoc_data, so 'python-docs' isn't there. Give the path of a text file."
        ) from error
    return "\n\n".join(topics[name].strip() for name in sorted(topics))
