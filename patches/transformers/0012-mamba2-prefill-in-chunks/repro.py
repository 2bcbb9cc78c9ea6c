"""Can Mamba2 read a prompt in chunks, and is a cache given as past_key_values used? Exits 1 if not, 0 if so."""

import sys

import torch
from transformers import Mamba2Config, Mamba2ForCausalLM


def defect() -> str | None:
    """What reading in chunks, and going on from a cache under either name, differ by."""
    torch.manual_seed(0)
    config = Mamba2Config(
        vocab_size=61, hidden_size=32, num_heads=8, head_dim=8, state_size=8, n_groups=1, num_hidden_layers=2,
        chunk_size=8, pad_token_id=0, eos_token_id=None, bos_token_id=1,
    )  # fmt: skip
    model, ids, wrong = Mamba2ForCausalLM(config).eval(), torch.randint(3, 61, (1, 20)), []
    for parameter in model.parameters():
        if parameter.ndim > 1:
            parameter.data.mul_(3)  # states that matter
    greedy = {"max_new_tokens": 4, "do_sample": False}
    with torch.no_grad():
        whole = model.generate(ids, **greedy)
        try:
            if not torch.equal(model.generate(ids, **greedy, prefill_chunk_size=8), whole):
                wrong.append("in chunks it writes other tokens")
        except Exception as error:  # it differs from release to release
            wrong.append(f"prefill_chunk_size: {type(error).__name__}")
        out = model(ids[:, :19], use_cache=True)
        cache = next(vars(out)[name] for name in ("cache", "past_key_values", "cache_params") if vars(out).get(name))
        try:
            off = (model(ids[:, 19:], past_key_values=cache).logits[:, -1] - model(ids).logits[:, -1]).abs().max()
        except (TypeError, ValueError):
            off = 0.0  # refused, which is no wrong answer
    if not off <= 1e-3:
        wrong.append(f"past_key_values= is swallowed, {off:.1e} off")
    return "; ".join(wrong) or None


if __name__ == "__main__":
    sys.exit(defect())
