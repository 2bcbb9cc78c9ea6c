"""Does clip_skip of Stable Diffusion work? Exits 1 if not, 0 if so, 3 without diffusers."""

import sys
from types import SimpleNamespace

import torch
from transformers import BatchEncoding, CLIPTextConfig, CLIPTextModel

try:
    from diffusers import StableDiffusionPipeline
except ImportError:
    print("needs diffusers")
    sys.exit(3)


def defect() -> str | None:
    """What encoding a prompt raises, by the pipeline's own method, on what it reads of a pipeline."""
    ids = torch.tensor([[1, 5, 6, 2]])
    config = CLIPTextConfig(
        vocab_size=61, hidden_size=16, intermediate_size=16, num_hidden_layers=2, num_attention_heads=2,
        max_position_embeddings=4, pad_token_id=0, bos_token_id=1, eos_token_id=2,
    )  # fmt: skip

    def tokenizer(*texts: object, **settings: object) -> BatchEncoding:
        return BatchEncoding({"input_ids": ids, "attention_mask": torch.ones_like(ids)})

    tokenizer.model_max_length = 4
    pipeline = SimpleNamespace(text_encoder=CLIPTextModel(config).eval(), tokenizer=tokenizer, unet=None)
    try:
        StableDiffusionPipeline.encode_prompt(pipeline, "a cat", torch.device("cpu"), 1, False, clip_skip=1)
    except AttributeError as error:
        return f"AttributeError: {error}"
    return None


if __name__ == "__main__":
    sys.exit(defect())
