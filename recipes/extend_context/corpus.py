"""Documents without what repeats: some are held back whole, and none of their text is trained on."""

from __future__ import annotations

import hashlib
import sysconfig
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from recipes.texts import read_folder, set_apart, shares_in_training

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

PART = 50_000  # characters that are tokenised at a time
NO_CODE = ("test", "tests", "idlelib", "lib2to3", "site-packages", "pydoc_data", "encodings", "__pycache__")


@dataclass(frozen=True)
class Corpus:
    """Token ids of documents, by name.

    Args:
        training: Those that windows are taken from.
        held: Those that are held back.
        report: Of each document: its tokens, the part dropped as repeated, and its overlap with the training set.
    """

    training: dict[str, Tensor]
    held: dict[str, Tensor]
    report: dict[str, Any]

    @property
    def mark(self) -> str:
        """A short hash of all tokens."""
        made = hashlib.sha256()
        for name, ids in [*self.training.items(), *self.held.items()]:
            made.update(f"{name}/{len(ids)}/".encode() + ids.numpy().tobytes())
        return made.hexdigest()[:16]


def read_texts(config: dict[str, Any]) -> dict[str, str]:
    """The texts of the config's folder, and Python's standard library."""
    return read_folder(config["documents"]) | ({"python_library": python_library()} if config["code"] else {})


def python_library() -> str:
    """The modules of Python's standard library, one after the other."""
    root = Path(sysconfig.get_paths()["stdlib"])
    files = [p for p in sorted(root.rglob("*.py")) if not set(p.relative_to(root).parts[:-1]) & set(NO_CODE)]
    return "\n\n".join(f"# {p.relative_to(root)}\n{p.read_text(encoding='utf-8', errors='replace')}" for p in files)


def prepare(config: dict[str, Any], tokenizer: PreTrainedTokenizerBase) -> Corpus:
    """Documents as token ids, repeats dropped, the held-back ones apart.

    Raises:
        ValueError: A held-back document is missing, trained on as well, or shares too much with the training set; or a
            document, or all of them, are too short.
    """
    apart = set_apart(read_texts(config), config["held_back"])
    held = {name: tokens_of(tokenizer, text) for name, text in apart.held.items()}
    training = {name: tokens_of(tokenizer, text) for name, text in apart.training.items()}
    report: dict[str, Any] = {
        name: {"tokens": len(ids), "repeats dropped": round(apart.dropped[name].share, 4), "held back": name in held}
        for name, ids in (held | training).items()
    }
    lists = [{name: ids.tolist() for name, ids in some.items()} for some in (held, training)]
    for name, share in shares_in_training(*lists, most=config["overlap"]).items():
        report[name]["overlap"] = round(share, 4)
    check_lengths(config, training, held)
    return Corpus(training, held, report)


def tokens_of(tokenizer: PreTrainedTokenizerBase, text: str) -> Tensor:
    """Token ids of a text, which is cut before line ends so that the tokenizer works on all cores."""
    parts, at = [], 0
    while at < len(text):
        cut = text.find("\n", at + PART)
        # white space in a row stays together: its token depends on all of it
        while cut > 0 and text[cut - 1].isspace():
            cut = text.find("\n", cut + 1)
        end = len(text) if cut < 0 else cut
        parts.append(text[at:end])
        at = end
    found = tokenizer(parts or [""], add_special_tokens=False, return_attention_mask=False, verbose=False)["input_ids"]
    return torch.from_numpy(np.concatenate([np.asarray(part, dtype=np.int32) for part in found]))


def check_lengths(config: dict[str, Any], training: dict[str, Tensor], held: dict[str, Tensor]) -> None:
    """ValueError if no document holds the longest window, or a held-back one lacks the longest context."""
    length = config["length"]
    found = {name: len(ids) for name, ids in training.items()}
    longest = max(found, key=lambda name: found[name], default=None)
    if longest is None or found[longest] <= length:
        told = "there is none" if longest is None else f"the longest, {longest}, has {found[longest]} tokens"
        raise ValueError(f"length: {length}: no document to train on is longer than that; {told}.")
    need = max(config["evaluation"]["lengths"])
    short = {name: len(ids) for name, ids in held.items() if len(ids) < need}
    if short:
        raise ValueError(f"evaluation: lengths: {need}: these held-back documents are shorter: {short}.")
