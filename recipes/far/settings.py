"""The runs that predictions are compared with: two geometries, 8k to 512k tokens, one and two cards; longest first."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from transformers import LlamaConfig

from hf_longctx.planning.train import TrainingRun

from ..benchmarks.geometries import SIZES
from ..benchmarks.plan import SMOLLM2

K = 1024
LLAMA_1B = LlamaConfig(**SIZES["Llama 1.24B"], max_position_embeddings=2**20)
TINY = LlamaConfig(
    vocab_size=512, hidden_size=64, intermediate_size=192, num_hidden_layers=3, num_attention_heads=4,
    num_key_value_heads=2, max_position_embeddings=2**14, tie_word_embeddings=True,
)  # fmt: skip
MODELS = {"1.24B": LLAMA_1B, "SmolLM2-135M": SMOLLM2, "tiny": TINY}


@dataclass(frozen=True)
class Setting:
    """One run: a key of `MODELS`, and how it is trained."""

    model: str
    run: TrainingRun

    @property
    def name(self) -> str:
        """In words."""
        run, words = self.run, []
        words += [] if run.checkpointing else ["no checkpointing"]
        words += [f"tile {run.tile}"] if run.tile else []
        words += ["offload"] if run.offload else []
        words += ["attention kept on the host" if run.keep_on_host else "attention kept"] if run.remat else []
        words += [] if run.precision == "bf16" else [run.precision]
        cards = "1 card" if run.gpus == 1 else f"{run.gpus} cards, {run.kind}"
        return ", ".join([self.model, f"{run.tokens // K}k", cards, *words])


def setting(model: str, tokens: int, gpus: int = 1, **more: Any) -> Setting:
    """One of the runs; a card alone attends as stock does."""
    kind = more.pop("kind", "stock" if gpus == 1 else "auto")
    return Setting(model, TrainingRun(tokens=tokens, gpus=gpus, kind=kind, **more))


SETTINGS = (
    setting("1.24B", 512 * K, tile=8192, offload=True),
    setting("1.24B", 512 * K, 2, tile=8192, offload=True),
    setting("SmolLM2-135M", 512 * K),
    setting("1.24B", 256 * K, tile=8192, offload=True, precision="mixed"),
    setting("1.24B", 256 * K, 2, tile=8192, remat="attention", keep_on_host=True),
    setting("SmolLM2-135M", 512 * K, 2, tile=8192, offload=True),
    setting("1.24B", 128 * K),
    setting("1.24B", 128 * K, 2, kind="ring"),
    setting("SmolLM2-135M", 128 * K, remat="attention"),
    setting("1.24B", 32 * K, 2, kind="gather"),
    setting("1.24B", 8 * K),
    setting("SmolLM2-135M", 8 * K),
)
TINY_SETTINGS = (setting("tiny", 2 * K), setting("tiny", K, precision="fp32"))
