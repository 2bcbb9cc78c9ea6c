"""Tuned readers that are kept for the next calls on the same machine: the lesson takes longer than many a part."""

from __future__ import annotations

import hashlib
import json
from contextlib import AbstractContextManager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_model, save_model

from hf_longctx.evaluation.results import environment
from hf_longctx.storage.files import claimed, write_whole

from ..reader import Lesson

PATIENCE = 600.0  # seconds that a lesson may take


class KeptReaders:
    """A folder of readers. One is found again only by the same lesson, weights, texts, commit, hardware and versions.

    Args:
        folder: Where they are; made if it is missing.
        model: Before it is taught.
        documents: The folder of the texts.
    """

    def __init__(self, folder: Path, model: torch.nn.Module, documents: Path) -> None:
        self.folder, self.model = folder, model
        texts = {path.name: path.stat().st_size for path in sorted(documents.glob("*.txt"))}
        first = next(model.parameters()).detach()[:64].float().cpu().numpy().tobytes()
        size = sum(parameter.numel() for parameter in model.parameters())
        self.given = {"weights": [size, hashlib.sha256(first).hexdigest()], "texts": texts}

    def path(self, lesson: Lesson) -> Path:
        """The file of the reader of a lesson."""
        decides = self.given | {"lesson": asdict(lesson)} | environment()
        digest = hashlib.sha256(json.dumps(decides, sort_keys=True).encode()).hexdigest()
        return self.folder / f"reader-{digest[:16]}.safetensors"

    def alone(self, lesson: Lesson) -> AbstractContextManager[None]:
        """Inside the block no other call teaches the reader of this lesson: it waits, and finds it taught."""
        return claimed(self.path(lesson).with_suffix(".taught"), "--keep", file=True, wait=PATIENCE)

    def load_(self, lesson: Lesson) -> dict[str, Any] | None:
        """Put the weights of a reader into the model, in place, and return what was noted; None: there is none."""
        noted = self.path(lesson).with_suffix(".json")
        if not noted.exists():  # written last
            return None
        load_model(self.model, self.path(lesson), device=str(next(self.model.parameters()).device))
        found: dict[str, Any] = json.loads(noted.read_text(encoding="utf-8"))
        return found

    def save(self, lesson: Lesson, noted: dict[str, Any]) -> None:
        """Keep the model, which is taught now, with what is to be noted."""
        self.folder.mkdir(parents=True, exist_ok=True)
        save_model(self.model, str(self.path(lesson)))
        write_whole(self.path(lesson).with_suffix(".json"), json.dumps(noted).encode())
