"""What one of several processes, or a single one, makes of a batch and of a training."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from accelerate import Accelerator
from torch import Tensor
from transformers import AutoImageProcessor, AutoTokenizer, CLIPModel

from hf_longctx.clip import FineTuning, finetune, gather_rows, long_clip_loss, read_pairs, stretch_positions
from hf_longctx.clip.stretch import text_length

K, WIDTH, SCALE = 5, 12, 14.0


def embeddings(rows: int, seed: int = 0) -> list[Tensor]:
    """Images, long and short captions."""
    generator = torch.Generator().manual_seed(seed)
    made = torch.randn(3, rows, WIDTH, generator=generator, dtype=torch.float64)
    made[1:] = made[:1] + 0.3 * made[1:]
    return [F.normalize(one, dim=-1).requires_grad_() for one in made]


def losses() -> dict[str, Any]:
    """This process' losses and its rows' gradients, and what unequal batches are told."""
    rank = Accelerator(cpu=True).process_index
    found: dict[str, Any] = {}
    for gathered in (False, True):
        mine = embeddings(9, seed=rank)
        loss = long_clip_loss(*mine, SCALE, components=K, gathered=gathered, label_smoothing=0.1)
        loss.total.backward()
        found[str(gathered)] = {"loss": loss.total.detach(), "grads": [one.grad for one in mine]}
    try:
        gather_rows(torch.zeros(2 + rank, 3))
    except ValueError as error:
        found["unequal"] = str(error)
    return found


def parts(folder: Path) -> tuple[Any, Any, Any, Any]:
    """Model, stretched; tokenizer, image processor, pairs."""
    model = stretch_positions(CLIPModel.from_pretrained(folder / "clip"))
    tokenizer = AutoTokenizer.from_pretrained(folder / "clip")
    processor = AutoImageProcessor.from_pretrained(folder / "clip")
    assert text_length(model) == 248
    return model, tokenizer, processor, read_pairs(folder / "pairs/captions.jsonl")


def training(folder: Path) -> dict[str, Tensor]:
    """The weights after steps of sixteen pairs, on whichever process they are."""
    torch.set_num_threads(1)
    accelerator = Accelerator(cpu=True)
    batch = 16 // accelerator.num_processes
    settings = FineTuning(batch=batch, epochs=2, learning_rate=1e-3, components=8, gathered=True, save_every=3)
    out = folder / f"run-{accelerator.num_processes}"
    trained = finetune(*parts(folder), settings, out, accelerator=accelerator)
    return {name: weight.detach() for name, weight in trained.state_dict().items()}
