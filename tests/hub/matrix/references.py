"""What the loads are compared with: the stock class of transformers, with a method applied by hand."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from hf_longctx import LMInfinite
from hf_longctx.settings import KEY
from tests.hub.matrix.making import TRAINED, WINDOW, YARN
from tests.hub.matrix.rows import EXTENDED, SCALED, STOCK
from tests.tiny import greedy_uncached, logits_of, text

IDS = text(length=TRAINED + 16, seed=3)  # longer than the window and than the trained length
CHAT = " ".join(f"w{i}" for i in text(length=40, seed=4)[0].tolist())
STEPS = 6


@dataclass(frozen=True)
class Reference:
    """What a model says."""

    logits: Tensor
    hidden: Tensor
    tokens: list[int]
    chat: str


def references(root: Path) -> dict[tuple[str, bool], Reference]:
    """By what the model carries, and whether it has the adapter. The models are made of the folder "stock"."""
    plain = root / "adapter-plain"  # without our entry, so that it brings no method
    shutil.copytree(root / "adapter", plain)
    config = json.loads((plain / "adapter_config.json").read_text(encoding="utf-8"))
    del config[KEY]
    (plain / "adapter_config.json").write_text(json.dumps(config), encoding="utf-8")
    words = PreTrainedTokenizerFast.from_pretrained(root / "stock")
    found = {}
    for carries in (STOCK, EXTENDED, SCALED):
        for adapter in (None, plain):
            model = _model(root / "stock", carries, adapter)
            found[carries, adapter is not None] = _reference(model, words)
    return found


def _model(stock: Path, carries: str, adapter: Path | None) -> Any:
    from peft import PeftModel

    config = LlamaConfig.from_pretrained(stock)
    if carries == SCALED:
        own = {"rope_type": YARN["type"], "factor": YARN["factor"], "original_max_position_embeddings": TRAINED}
        config.rope_parameters = {**config.rope_parameters, **own}
        config.max_position_embeddings = int(TRAINED * YARN["factor"])
    model = LlamaForCausalLM.from_pretrained(stock, config=config).eval()
    if carries == EXTENDED:
        LMInfinite(**WINDOW).apply(model)
    return model if adapter is None else PeftModel.from_pretrained(model, adapter).eval()


@torch.no_grad()
def _reference(model: Any, words: Any) -> Reference:
    inner = model.get_base_model() if hasattr(model, "get_base_model") else model
    prompt = words.apply_chat_template(
        [{"role": "user", "content": CHAT}], add_generation_prompt=True, return_tensors="pt", return_dict=True
    )["input_ids"]
    # a full forward for every token: the cache of a load is compared with what needs none
    said = greedy_uncached(model, prompt, STEPS)[0, prompt.shape[1] :]
    return Reference(
        logits_of(model, IDS, use_cache=False)[0],
        inner.model(IDS, use_cache=False).last_hidden_state[0],
        greedy_uncached(model, IDS, STEPS)[0, IDS.shape[1] :].tolist(),
        words.decode(said, skip_special_tokens=True),
    )
