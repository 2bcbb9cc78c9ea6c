"""Files that are damaged or incomplete, so that nobody could load the model: found before anything is sent."""

from __future__ import annotations

import json
import re
from pathlib import Path

from .outgoing import WEIGHTS, Files

# what transformers and PEFT read as a JSON object, beside the index of weights in parts
_OBJECTS = ("config.json", "generation_config.json", "adapter_config.json", "tokenizer.json", "tokenizer_config.json")
_INDEX = ".safetensors.index.json"


def refuse_damaged(files: Files) -> None:
    """Read the settings whole, and of the weights the header.

    Raises:
        ValueError: A file is cut off or cannot be parsed, or a part of the weights is not there. The message names it.
    """
    for path, file in files.items():
        if path in _OBJECTS or path.endswith(_INDEX):
            found = json_object(path, file)
            if path.endswith(_INDEX):
                _refuse_missing(path, found, files)
        elif re.fullmatch(WEIGHTS, path):
            _refuse_cut_off(path, file)
    if "README.md" in files:
        _refuse_metadata(files["README.md"])


def json_object(path: str, file: Path) -> dict[str, object]:
    """The object in a JSON file, which a ValueError calls `path`."""
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is not JSON ({error}). Save the model again.") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} holds a {type(content).__name__}, expected a JSON object. Save the model again.")
    return content


def _refuse_missing(path: str, index: dict[str, object], files: Files) -> None:
    parts = index.get("weight_map")
    beside = path.rpartition("/")[0]
    named = {f"{beside}/{part}".lstrip("/") for part in parts.values()} if isinstance(parts, dict) else set()
    if missing := sorted(named - files.keys()):
        raise ValueError(
            f"{path} names {missing[0]}, which is not there ({len(missing)} of {len(named)} parts are missing). "
            f"Download or save the model again, whole."
        )


def _refuse_cut_off(path: str, file: Path) -> None:
    """A safetensors file says in its header where its last tensor ends."""
    size = file.stat().st_size
    with file.open("rb") as content:
        length = int.from_bytes(content.read(8), "little")
        header = content.read(length) if size > 8 and length <= size - 8 else b""
    try:
        tensors = json.loads(header)
        end = max((entry["data_offsets"][1] for name, entry in tensors.items() if name != "__metadata__"), default=0)
    except (ValueError, TypeError, KeyError, IndexError, AttributeError):
        end = -1
    if 8 + length + end != size:
        raise ValueError(
            f"{path} is cut off or damaged: it has {size:,} bytes, and its header does not fit. Download or save the "
            f"model again."
        )


def _refuse_metadata(card: Path) -> None:
    """The Hub refuses a card whose metadata is not YAML, after everything else was sent."""
    text = card.read_text(encoding="utf-8", errors="replace")
    if not text.startswith("---"):
        return
    from huggingface_hub import ModelCard

    try:
        ModelCard(text)
    except Exception as error:  # yaml's own errors as well
        mark, problem = getattr(error, "problem_mark", None), getattr(error, "problem", None) or str(error)
        where = f" at line {mark.line + 2}" if mark is not None else ""
        raise ValueError(
            f"README.md: its metadata, between the two lines ---, is not valid YAML{where} ({problem}). Correct it, "
            f"or delete README.md, which is then written."
        ) from error
