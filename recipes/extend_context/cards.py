"""One command on several GPUs: each works on its share of the variants, in a process of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from recipes.cards import VISIBLE


def over_cards(
    module: str, words: Sequence[str], variants: Sequence[str], cards: Sequence[str], out: Path
) -> Iterator[dict[str, Any]]:
    """The rows of `python -m MODULE WORDS --variants ...` on these cards, as soon as each has ended.

    Args:
        module: What is run.
        words: Its arguments, without variants and result file.
        variants: Shared out in turn.
        cards: At most as many as variants, as CUDA_VISIBLE_DEVICES names them.
        out: The result file, beside which each card has its own for a while.

    Raises:
        RuntimeError: At the end, if a process failed. What it had measured comes before.
    """
    began = [_begin(module, words, variants[n :: len(cards)], card, out) for n, card in enumerate(cards)]
    failed = []
    try:
        for card, (process, file) in zip(cards, began, strict=True):
            if process.wait():
                failed.append(card)
            if file.exists():
                yield from json.loads(file.read_text(encoding="utf-8"))["rows"]
                file.unlink()
    finally:
        for process, _ in began:
            if process.poll() is None:
                process.terminate()
                process.wait()
    if failed:
        raise RuntimeError(f"the variants of card {', '.join(failed)} ended with an error, which is told above.")


def _begin(
    module: str, words: Sequence[str], variants: Sequence[str], card: str, out: Path
) -> tuple[subprocess.Popen[bytes], Path]:
    file = out.with_name(f"{out.stem}-card-{card}.json")
    command = [sys.executable, "-m", module, *words, "--variants", *variants, "--out", str(file)]
    return subprocess.Popen(command, env=os.environ | {VISIBLE: card}), file
