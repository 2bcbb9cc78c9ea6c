"""Does a row of a hybrid model that waits for others give what it gives alone? Exits 1 if not, 0 if so."""

import sys

import torch
from transformers import FalconH1Config, FalconH1ForCausalLM


def defect() -> str | None:
    """How far a row is off after a single token, or several, that its mask hides."""
    torch.manual_seed(0)
    config = FalconH1Config(
        vocab_size=61, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, initializer_range=0.3, pad_token_id=0, bos_token_id=1, eos_token_id=None,
        mamba_n_heads=4, mamba_d_head=16, mamba_d_state=8, mamba_d_ssm=64, mamba_n_groups=1,
    )  # fmt: skip
    model, ids = FalconH1ForCausalLM(config).eval(), torch.randint(3, 61, (2, 20))

    @torch.no_grad()
    def last(waits: int) -> float:
        mask = torch.ones(2, 12 + waits, dtype=torch.long)
        mask[1, 11 : 11 + waits] = 0
        pos, cache = (mask.cumsum(1) - 1).clamp(min=0), None
        for start, stop in ((0, 11), (11, 11 + waits), (11 + waits, 12 + waits)):
            new, at = ids[:, start:stop], pos[:, start:stop]
            more = {"attention_mask": mask[:, :stop], "position_ids": at, "past_key_values": cache}
            output = model(new, use_cache=True, **more)
            cache = output.past_key_values
        alone = model(ids[1][: 12 + waits][mask[1].bool()][None], use_cache=False).logits
        return (output.logits[1, -1] - alone[0, -1]).abs().max().item()

    off = {waits: last(waits) for waits in (1, 4)}
    wrong = [f"{far:.1g} after {waits}" for waits, far in off.items() if not far <= 1e-3]
    return f"off by {', '.join(wrong)} hidden tokens" if wrong else None


if __name__ == "__main__":
    sys.exit(defect())
