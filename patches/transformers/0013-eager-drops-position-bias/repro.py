"""Does eager attention add the position_bias that sdpa adds? Exits 1 if not, 0 if it does."""

import sys

import torch
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.models.llama.modeling_llama import eager_attention_forward


class Layer(torch.nn.Module):
    """What attention functions ask of a layer."""

    num_key_value_groups, is_causal = 1, False


def defect() -> str | None:
    """How far the two are apart on the same tensors."""
    torch.manual_seed(0)
    layer = Layer().eval()
    query, key, value = torch.randn(3, 1, 2, 4, 8)
    bias = 3 * torch.randn(1, 2, 4, 4)
    given = {"scaling": 8**-0.5, "dropout": 0.0}
    right = torch.softmax(query @ key.mT * 8**-0.5 + bias, -1) @ value
    sdpa = sdpa_attention_forward(layer, query, key, value, None, position_bias=bias, is_causal=False, **given)[0]
    eager = eager_attention_forward(layer, query, key, value, None, position_bias=bias, **given)[0]
    off = {"sdpa": (sdpa.transpose(1, 2) - right).abs().max(), "eager": (eager.transpose(1, 2) - right).abs().max()}
    wrong = [f"{name} {far:.1e}" for name, far in off.items() if not far <= 1e-4]
    return f"off by: {', '.join(wrong)}" if wrong else None


if __name__ == "__main__":
    sys.exit(defect())
