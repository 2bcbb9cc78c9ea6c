"""Long-CLIP's training of a stretched CLIP, on one process or on many under accelerate.

from hf_longctx.clip import FineTuning, finetune, read_pairs
model = finetune(model, tokenizer, processor, read_pairs("captions.jsonl"), FineTuning(batch=256), "run")
"""

from __future__ import annotations

import dataclasses
import json
import math
import os
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..storage.files import check_folder, write_whole
from ..text.pieces import lines_of
from .batches import check_captions, loader
from .components import COMPONENTS
from .embed import image_embeddings, text_embeddings
from .freeze import FrozenRows
from .loss import long_clip_loss
from .pairs import Pair
from .stretch import _text_embeddings, text_length

_LAYERS = ("q_proj", "k_proj", "v_proj", "out_proj", "fc1", "fc2")
_STATE, _PROGRESS, _LOG = "state", "progress.json", "log.jsonl"


@dataclass(frozen=True, kw_only=True)
class FineTuning:
    """Settings of `finetune`; the defaults are those of Long-CLIP's own training instructions, its batch aside.

    Args:
        batch: Pairs a process and step; at least `components` + 2, unless `gathered`. Long-CLIP's is 2,048 in all.
        epochs: Passes over the pairs.
        learning_rate: After `warmup` steps; it falls as a cosine to 0.
        warmup: Steps in which it rises; at most a tenth of all.
        weight_decay: AdamW's. The kept rows do not decay.
        components: Primary components that short captions are matched with.
        gathered: Analyse the components of all processes' pairs together, not each process' own.
        short_weight: Of the short captions' part of the loss.
        label_smoothing: The published code's; the paper has none.
        keep: First rows of the positions that do not train; by default those that stretching kept.
        lora: Rank of adapters on all layers instead of training them; positions train in any case. 0: train everything.
        truncate: Cut captions at the model's length instead of refusing them.
        save_every: Steps between two states to resume from.
        workers: Processes that load images, for each training process.
        seed: Of the order of the pairs.
    """

    batch: int = 256
    epochs: int = 6
    learning_rate: float = 1e-6
    warmup: int = 200
    weight_decay: float = 1e-2
    components: int = COMPONENTS
    gathered: bool = False
    short_weight: float = 1.0
    label_smoothing: float = 0.1
    keep: int | None = None
    lora: int = 0
    truncate: bool = False
    save_every: int = 1000
    workers: int = 0
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("batch", "epochs", "components", "save_every"):
            _whole(name, getattr(self, name), 1)
        for name in ("warmup", "lora", "workers"):
            _whole(name, getattr(self, name), 0)
        for name in ("learning_rate", "weight_decay", "short_weight", "label_smoothing"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value < math.inf:
                raise ValueError(f"{name}={value!r}: expected a number from 0 on. (YAML reads 1e-6 as a word: 1.0e-6.)")
        if self.label_smoothing >= 1:
            raise ValueError(f"label_smoothing={self.label_smoothing}: expected a share below 1, such as 0.1.")
        if not self.gathered and self.batch < self.components + 2:
            raise ValueError(
                f"batch={self.batch} cannot carry components={self.components}: expected at least "
                f"{self.components + 2} pairs a process, or gathered=True on several processes."
            )


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
        tokenizer, processor: Of the model; a processor may be the image processor alone.
        pairs: Of `read_pairs`.
        settings: How.
        out: Where `log.jsonl` (a line a step) and the state to resume from are written.
        accelerator: accelerate's; by default a new one, which follows `accelerate launch`.
        resume: Go on from the state in `out`: the same batches, losses and weights as without the interruption.
        stop_after: End early, after so many steps of the whole, with the state saved.

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
    _fresh(folder, resume, accelerator)
    limit, trained = text_length(model), _with_adapters(model, settings.lora)
    data, order = loader(
        pairs,
        tokenizer,
        processor,
        limit=limit,
        batch=settings.batch,
        truncate=settings.truncate,
        seed=settings.seed,
        workers=settings.workers,
    )
    wrapped = Pairing(trained).train()
    weights = [weight for weight in wrapped.parameters() if weight.requires_grad]
    optimizer = torch.optim.AdamW(weights, lr=settings.learning_rate, weight_decay=settings.weight_decay)
    wrapped, optimizer, data = accelerator.prepare(wrapped, optimizer, data)
    per_epoch, done = steps // settings.epochs, 0
    if resume:
        done = _load(folder, accelerator, _identity(settings, pairs, accelerator.num_processes))
    last = min(steps, stop_after or steps)
    with FrozenRows(wrapped, optimizer, settings.keep):
        for step, batch in _batches(data, order, done, last, per_epoch, accelerator):
            _set_rate(optimizer, settings, step, steps)
            loss = long_clip_loss(
                *wrapped(batch["pixels"], batch["long"], batch["short"]),
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
                _save(folder, accelerator, step + 1, _identity(settings, pairs, accelerator.num_processes))
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
    # what stretching made has to be learned whole
    _text_embeddings(adapted)[1].position_embedding.weight.requires_grad_(True)
    model.logit_scale.requires_grad_(True)
    return adapted


def _batches(
    data: Any, order: Any, done: int, last: int, per_epoch: int, accelerator: Any
) -> Iterator[tuple[int, dict[str, Tensor]]]:
    step = done
    while step < last:
        order.epoch, skipped = divmod(step, per_epoch)
        rest = accelerator.skip_first_batches(data, skipped) if skipped else data
        for batch in rest:
            yield step, batch
            step += 1
            if step >= last or step % per_epoch == 0:
                break


def _set_rate(optimizer: Any, settings: FineTuning, step: int, steps: int) -> None:
    warmup = min(settings.warmup, steps // 10)
    share = (step + 1) / warmup if step < warmup else 0.5 + 0.5 * math.cos(math.pi * (step - warmup) / (steps - warmup))
    for group in optimizer.param_groups:
        group["lr"] = settings.learning_rate * share


def _identity(settings: FineTuning, pairs: Sequence[Pair], processes: int) -> dict[str, Any]:
    """What must be the same for a resumed run to be the same run."""
    free = ("save_every", "workers")
    kept = {name: value for name, value in dataclasses.asdict(settings).items() if name not in free}
    return {**kept, "pairs": len(pairs), "processes": processes}


def check_fresh(folder: Path, resume: bool) -> None:
    """Refuse to train into a folder that holds a training, to resume where there is none, or where nothing is written.

    Raises:
        ValueError: It holds a training, or is a file.
        FileNotFoundError: Nothing to resume from.
        OSError: It cannot be written, and why.
    """
    if not resume and (folder / _PROGRESS).exists():
        raise ValueError(f"{str(folder)!r} holds a training. Resume it (resume=True), or choose another folder.")
    if resume and not (folder / _PROGRESS).exists():
        raise FileNotFoundError(f"{str(folder)!r} has no {_PROGRESS} to resume from. Start without resuming.")
    check_folder(folder)


def _fresh(folder: Path, resume: bool, accelerator: Any) -> None:
    check_fresh(folder, resume)
    if accelerator.is_main_process:
        folder.mkdir(parents=True, exist_ok=True)
    accelerator.wait_for_everyone()


def _save(folder: Path, accelerator: Any, step: int, identity: dict[str, Any]) -> None:
    # a state of its own, named last: an interrupted save leaves the one before it
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
    if log.is_file() and accelerator.is_main_process:  # steps after the saved one will be taken again
        kept = [line for line in lines_of(log.read_text(encoding="utf-8")) if json.loads(line)["step"] <= step]
        write_whole(log, "".join(line + "\n" for line in kept).encode())
    return step


def _whole(name: str, value: Any, least: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise ValueError(f"{name}={value!r}: expected a whole number from {least} on.")
