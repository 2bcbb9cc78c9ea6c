"""Does torch's flash attention on CPUs survive zero keys, and rows without any? Exits 1 if not, 0 if it does."""

import subprocess
import sys

import torch

NO_KEYS = """
import torch
query, key = torch.zeros(1, 1, 2, 8), torch.zeros(1, 1, 0, 8)
torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(query, key, key)
"""


def defect() -> str | None:
    """How a process ends that gives it no keys, and the log-sum-exp of a row whose keys are all masked."""
    wrong = []
    ended = subprocess.run([sys.executable, "-c", NO_KEYS], capture_output=True, check=False).returncode
    if ended < 0:
        wrong.append(f"zero keys: the process dies of signal {-ended}")
    query = torch.ones(1, 1, 2, 8)
    mask = torch.tensor([[0.0, 0.0], [-torch.inf, -torch.inf]])[None, None]
    lse = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(query, query, query, attn_mask=mask)[1][0, 0, 1]
    if lse != -torch.inf:
        wrong.append(f"all keys masked: log-sum-exp {lse.item()}, expected -inf")
    return "; ".join(wrong) or None


if __name__ == "__main__":
    sys.exit(defect())
