"""Read by Python when it starts, for the jobs that have a part of a card: torch then holds no more of its memory.

Without it the first process of a card would keep all memory that it has ever used, and the others would find none.
"""

import os

SHARE = "HF_LONGCTX_SHARE"

if os.environ.get(SHARE):
    import torch

    if torch.cuda.is_available():
        # once CUDA is there: a process that only starts others makes no context
        torch.cuda._lazy_call(lambda: torch.cuda.set_per_process_memory_fraction(float(os.environ[SHARE])))
