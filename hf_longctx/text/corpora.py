"""Long texts to measure on."""

# N documents, L tokens of a document
from __future__ import annotations

from array import array
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

import torch
from torch import Tensor

from ..console.progress import Progress
from .pieces import CutError, _decoded, encode_pieces

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

LARGE = 2**20  # bytes of a file, from which on only the needed part is read


def load_text(path_or_name: str | Path, *, holds: str = "text in it, or 'python-docs'") -> str:
    """A text by name, or the contents of a UTF-8 file.

    Args:
        path_or_name: "python-docs" for the language reference that comes with CPython (`pydoc_data.topics`, about
            465,000 characters; it differs a little between Python versions), otherwise a path.
        holds: What a file that is empty should have had, as its error says.

    Raises:
        FileNotFoundError: There is no such file or name.
        ValueError: The file is empty, is a folder, or is not UTF-8 text.
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
        raise ValueError(f"{path} holds zero bytes, so it is not plain text. Convert it to UTF-8 text first.")
    try:
        text = data.decode("utf-8-sig").replace("\r\n", "\n")
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{path} is not UTF-8: byte {error.start} is 0x{data[error.start]:02x}. "
            "Convert it first, for example with `iconv -f latin1 -t utf-8`."
        ) from error
    if not text.strip():
        raise ValueError(f"{path} is empty. Give a file with {holds}.")
    return text


def tokenize_documents(tokenizer: PreTrainedTokenizerBase, text: str, length: int, n: int) -> Tensor:
    """Spans of a text that do not overlap, spread evenly over it, without special tokens.

    Returns:
        (n, length) int64 token ids on the CPU.

    Raises:
        ValueError: The text has fewer than `n * length` tokens, or `n` or `length` is below 1.
    """
    if n < 1 or length < 1:
        raise ValueError(f"n={n}, length={length}: expected at least one document of at least one token.")
    return _spread(torch.tensor(tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]), length, n)


def _spread(ids: Tensor, length: int, n: int) -> Tensor:
    if len(ids) < n * length:
        raise ValueError(
            f"The text has {len(ids):,} tokens; {n} documents of {length:,} need {n * length:,}. "
            "Give a longer text, fewer documents or a shorter length."
        )
    return ids[: len(ids) // n * n].view(n, -1)[:, :length].long().contiguous()


def is_large(path_or_name: str | Path) -> bool:
    """Whether it is a file of which only the needed part should be read."""
    if path_or_name == "python-docs":
        return False
    path = Path(path_or_name).expanduser()
    return path.is_file() and path.stat().st_size > LARGE


def read_documents(tokenizer: PreTrainedTokenizerBase, path: str | Path, length: int, n: int) -> Tensor:
    """`tokenize_documents` of a large file: it reads no more of it than the documents take.

    They begin at equal distances in bytes, at the start of a line. A file that has hardly more tokens than they need is
    read to its end, and divided by tokens.

    Raises:
        ValueError: The text has fewer than `n * length` tokens, is not UTF-8, or `n` or `length` is below 1.
    """
    if n < 1 or length < 1:
        raise ValueError(f"n={n}, length={length}: expected at least one document of at least one token.")
    path = Path(path).expanduser()
    try:
        with path.open("rb") as file:
            size = path.stat().st_size
            starts = [_line_start(file, size * i // n) for i in range(n)]
            rows = []
            for start, stop in zip(starts, [*starts[1:], size], strict=True):
                ids = _ids(tokenizer, _Part(file, start, stop), path, length)
                if len(ids) < length:
                    break
                rows.append(torch.tensor(ids))
            else:
                return torch.stack(rows)
            with Progress("tokens of the text") as progress:
                ids = _ids(tokenizer, _Part(file, 0, size), path, progress=progress)
    except CutError:
        return tokenize_documents(tokenizer, load_text(path), length, n)
    return _spread(torch.tensor(ids), length, n)


def beginning_ids(tokenizer: PreTrainedTokenizerBase, path: str | Path, most: int) -> list[int]:
    """The first tokens of a large file, `most` or all it has. Errors as `read_documents`."""
    path = Path(path).expanduser()
    try:
        with path.open("rb") as file:
            return list(_ids(tokenizer, _Part(file, 0, path.stat().st_size), path, most))
    except CutError:
        return list(tokenizer(load_text(path), add_special_tokens=False, verbose=False)["input_ids"][:most])


def beginning(path: str | Path, characters: int) -> str:
    """The text of a large file up to a line end near `characters` characters. Errors as `load_text`."""
    path, found, count = Path(path).expanduser(), list[str](), 0
    with path.open("rb") as file:
        for piece in _decoded(file, str(path)):
            count += len(piece)
            found.append(piece)
            if count >= characters:
                break
    text = "".join(found)
    end = text.rfind("\n")
    return text[:end] if end > characters // 2 else text


def documents(tokenizer: PreTrainedTokenizerBase, text: str, length: int, n: int) -> Tensor:
    """`tokenize_documents` of a text by its name or path, of a large file without reading all of it."""
    if is_large(text):
        return read_documents(tokenizer, text, length, n)
    return tokenize_documents(tokenizer, load_text(text), length, n)


class _Part:
    """A part of a file as one that ends."""

    def __init__(self, file: BinaryIO, start: int, stop: int) -> None:
        file.seek(start)
        self._file, self._left = file, stop - start

    def read(self, size: int) -> bytes:
        data = self._file.read(min(size, self._left))
        self._left -= len(data)
        return data


def _ids(
    tokenizer: PreTrainedTokenizerBase,
    part: _Part,
    path: Path,
    most: int | None = None,
    progress: Progress | None = None,
) -> array[int]:
    """The tokens of a part, at most `most`; four bytes each, and none of the text is kept."""
    ids = array("i")
    for some in encode_pieces(tokenizer, _decoded(part, str(path)), bos=False):
        ids.extend(some)
        if progress is not None:
            progress.advance(len(some))
        if most is not None and len(ids) >= most:
            return ids[:most]
    return ids


def _line_start(file: BinaryIO, at: int) -> int:
    """Where the next line begins, or at least the next character, where there is no line end for long."""
    if at == 0:
        return 0
    file.seek(at)
    data = file.read(1 << 16)
    line = data.find(b"\n") + 1
    return at + (line or next((i for i, byte in enumerate(data) if byte & 0xC0 != 0x80), 0))


def _python_docs() -> str:
    try:
        from pydoc_data.topics import topics
    except ImportError as error:
        raise FileNotFoundError(
            "This Python comes without pydoc_data, so 'python-docs' is missing. Give the path of a text file."
        ) from error
    return "\n\n".join(topics[name].strip() for name in sorted(topics))
