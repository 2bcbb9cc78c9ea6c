"""Long-CLIP's training of a stretched CLIP, on one process or on many under accelerate.

from hf_longctx.clip import FineTuning, finetune, read_pairs
model = finetune(model, tokenizer, processor, read_pairs("captions.jsonl"), FineTuning(batch=256), "run")
"""

from __future__ import annotations

import dataclasses
import itertools
import json
import math
import os
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..storage.files import check_folder, write_whole
from ..text.pieces import lines_of
from .batches import check_captions, loader
from .embed import image_embeddings, text_embeddings
from .freeze import FrozenRows
from .loss import long_clip_loss
from .pairs import Pair
from .settings import FineTuning
from .stretch import find_text_embeddings, text_length

_LAYERS = ("q_proj", "k_proj", "v_proj", "out_proj", "fc1", "fc2")
_STATE, _PROGRESS, _LOG = "state", "progress.json", "log.jsonl"


class Pairing(nn.Module):
    """A CLIP as one forward of images and both captions, so that DDP sees a step as one."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.clip = model

    def forward(self, pixels: Tensor, long: Tensor, short: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Normalised embeddings, [B, D] each, and the scale of their similarities, at most 100 as in CLIP."""
        return (
            image_embeddings(self.clip, pixels),
            text_embeddings(self.clip, long),
            text_embeddings(self.clip, short),
            self.clip.logit_scale.exp().clamp(max=100),
        )


def finetune(
    model: Any,
    tokenizer: Any,
    processor: Any,
    pairs: Sequence[Pair],
    settings: FineTuning,
    out: str | os.PathLike[str],
    *,
    accelerator: Any = None,
    resume: bool = False,
    stop_after: int | None = None,
) -> Any:
    """Train `model` in place and return it, adapters merged: a stock CLIP again.

    Args:
        model: A CLIPModel whose positions were stretched.
        tokenizer: The model's.
        processor: The model's, or its image processor alone.
        pairs: From `read_pairs`.
        settings: Of the training.
        out: The folder of `log.jsonl` (one line per step) and of the state to resume from.
        accelerator: accelerate's; by default a new one, which follows `accelerate launch`.
        resume: Continue from the state in `out`: the same batches, losses and weights as without the interruption.
        stop_after: The step, of the whole training, after which it ends early with the state saved.

    Raises:
        ValueError: Too few pairs, a caption that is too long, a model that is no CLIP, or a state of another run.
        FileNotFoundError: Nothing to resume from.
    """
    from accelerate import Accelerator

    accelerator = accelerator or Accelerator()
    folder = Path(out).expanduser()
    steps = _steps(model, pairs, settings, accelerator.num_processes)
    if not settings.truncate:
        check_captions(pairs, tokenizer, text_length(model))
    check_fresh(folder, resume)
    if accelerator.is_main_process:
        folder.mkdir(parents=True, exist_ok=True)
    accelerator.wait_for_everyone()
    data, order = loader(pairs, tokenizer, processor, settings, text_length(model))
    wrapped = Pairing(_with_adapters(model, settings.lora)).train()
    weights = [weight for weight in wrapped.parameters() if weight.requires_grad]
    optimizer = torch.optim.AdamW(weights, lr=settings.learning_rate, weight_decay=settings.weight_decay)
    wrapped, optimizer, data = accelerator.prepare(wrapped, optimizer, data)
    run = _identity(settings, pairs, accelerator.num_processes)
    done = _load(folder, accelerator, run) if resume else 0
    last = min(steps, stop_after or steps)
    with FrozenRows(wrapped, optimizer, settings.keep):
        for step, batch in _batches(data, order, done, last, steps // settings.epochs, accelerator):
            _set_rate(optimizer, settings, step, steps)
            loss = long_clip_loss(
                *wrapped(**batch),
                components=settings.components,
                gathered=settings.gathered,
                short_weight=settings.short_weight,
                label_smoothing=settings.label_smoothing,
            )
            accelerator.backward(loss.total)
            optimizer.step()
            optimizer.zero_grad()
            if accelerator.is_main_process:
                line = {"step": step + 1, "of": steps, "long": loss.long.item(), "short": loss.short.item()}
                with open(folder / _LOG, "a", encoding="utf-8") as log:
                    log.write(json.dumps(line) + "\n")
            if (step + 1) % settings.save_every == 0 or step + 1 == last:
                _save(folder, accelerator, step + 1, run)
    trained = accelerator.unwrap_model(wrapped).clip
    return trained.merge_and_unload() if settings.lora else trained


def _steps(model: Any, pairs: Sequence[Pair], settings: FineTuning, processes: int) -> int:
    if not hasattr(model, "logit_scale") or hasattr(model, "logit_bias"):
        raise ValueError(
            f"{type(model).__name__}: expected a CLIPModel. SigLIP has another loss, and a text tower has no images."
        )
    if settings.gathered and settings.batch * processes < settings.components + 2:
        raise ValueError(
            f"{processes} processes of batch={settings.batch} cannot carry components={settings.components}: "
            f"{settings.components + 2} pairs are needed in all."
        )
    per_epoch = len(pairs) // (settings.batch * processes)
    if per_epoch < 1:
        raise ValueError(
            f"{len(pairs)} pairs do not fill one step of {processes} x {settings.batch}. Give more pairs, or a smaller "
            f"batch of at least {settings.components + 2}."
        )
    return per_epoch * settings.epochs


def _with_adapters(model: Any, rank: int) -> Any:
    if not rank:
        return model
    from peft import LoraConfig, get_peft_model

    adapted = get_peft_model(model, LoraConfig(r=rank, lora_alpha=2 * rank, target_modules=list(_LAYERS)))
    # stretched positions have to be learned whole
    find_text_embeddings(adapted)[1].position_embedding.weight.requires_grad_(True)
    model.logit_scale.requires_grad_(True)
    return adapted


def _batches(
    data: Any, order: Any, done: int, last: int, per_epoch: int, accelerator: Any
) -> Iterator[tuple[int, dict[str, Tensor]]]:
    while done < last:
        order.epoch, skipped = divmod(done, per_epoch)
        rest = accelerator.skip_first_batches(data, skipped) if skipped else data
        for batch in itertools.islice(rest, min(per_epoch - skipped, last - done)):
            yield done, batch
            done += 1


def _set_rate(optimizer: Any, settings: FineTuning, step: int, steps: int) -> None:
    warmup = min(settings.warmup, steps // 10)
    share = (step + 1) / warmup if step < warmup else 0.5 + 0.5 * math.cos(math.pi * (step - warmup) / (steps - warmup))
    for group in optimizer.param_groups:
        group["lr"] = settings.learning_rate * share


def _identity(settings: FineTuning, pairs: Sequence[Pair], processes: int) -> dict[str, Any]:
    """The values that a resumed run must share with the interrupted one."""
    free = ("save_every", "workers")
    kept = {name: value for name, value in dataclasses.asdict(settings).items() if name not in free}
    return {**kept, "pairs": len(pairs), "processes": processes}


def check_fresh(folder: Path, resume: bool) -> None:
    """Whether a training can start, or resume, in this folder.

    Raises:
        ValueError: It holds a training, or is a file.
        FileNotFoundError: Nothing to resume from.
        OSError: It cannot be written, with the reason.
    """
    if not resume and (folder / _PROGRESS).exists():
        raise ValueError(f"{str(folder)!r} holds a training. Resume it (resume=True), or choose another folder.")
    if resume and not (folder / _PROGRESS).exists():
        raise FileNotFoundError(f"{str(folder)!r} has no {_PROGRESS} to resume from. Start without resuming.")
    check_folder(folder)


def _save(folder: Path, accelerator: Any, step: int, identity: dict[str, Any]) -> None:
    # each state has its own folder, named last: an interrupted save leaves the one before it
    name = f"{_STATE}-{step}"
    accelerator.save_state(str(folder / name))
    accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        write_whole(folder / _PROGRESS, json.dumps({"step": step, "state": name, "run": identity}).encode())
        for old in folder.glob(f"{_STATE}-*"):
            if old.name != name:
                shutil.rmtree(old, ignore_errors=True)
    accelerator.wait_for_everyone()


def _load(folder: Path, accelerator: Any, identity: dict[str, Any]) -> int:
    progress = json.loads((folder / _PROGRESS).read_text(encoding="utf-8"))
    other = [name for name in identity if progress["run"].get(name) != identity[name]]
    if other:
        words = ", ".join(f"{name} was {progress['run'].get(name)!r} and is {identity[name]!r}" for name in other)
        raise ValueError(f"{str(folder)!r} is another run: {words}. Resume with the same settings and pairs.")
    accelerator.load_state(str(folder / progress["state"]))
    step = int(progress["step"])
    log = folder / _LOG
    if log.is_file() and accelerator.is_main_process:  # steps after the saved one are repeated
        kept = [line for line in lines_of(log.read_text(encoding="utf-8")) if json.loads(line)["step"] <= step]
        write_whole(log, "".join(line + "\n" for line in kept).encode())
    return step
