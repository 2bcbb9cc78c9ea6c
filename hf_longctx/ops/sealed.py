"""Tensors that torch forbids to write to: those made in inference mode, outside of it.

What is kept from one forward to the next and written in place is made again there. A text may be read inside
`torch.inference_mode()` and continued outside, as `DynamicCache` allows.
"""

from __future__ import annotations

from torch import Tensor, is_inference_mode_enabled


def is_sealed(tensor: Tensor) -> bool:
    """Would writing to it be an error now?"""
    return not is_inference_mode_enabled() and tensor.is_inference()
