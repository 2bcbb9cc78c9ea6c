"""What is fast is compared with the plain computation on its first use, then trusted or left out."""

from __future__ import annotations

import functools
from collections.abc import Callable, Hashable, Iterable
from typing import Any, TypeVar, cast
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

T = TypeVar("T")
Check = TypeVar("Check", bound=Callable[..., Any])

# half precision keeps 8 (bf16) or 11 (fp16) bits; sums of a few hundred terms lose about one more
KERNEL_TOLERANCE = {torch.bfloat16: 2e-2, torch.float16: 4e-3, torch.float32: 1e-5, torch.float64: 1e-9}
# two ways through a layer, or a model, differ by rounding only; what is wrong differs by its whole size
_LAYER_TOLERANCE = {torch.float64: 1e-6, torch.float32: 1e-3, torch.float16: 2e-2, torch.bfloat16: 6e-2}
_results: WeakKeyDictionary[Any, dict[Hashable, Any]] = WeakKeyDictionary()


def layer_tolerance(dtype: torch.dtype) -> float:
    """The relative error that rounding explains, of what a layer or a model computes in `dtype`."""
    return _LAYER_TOLERANCE.get(dtype, 6e-2)


def relative_error(got: Tensor, truth: Tensor) -> float:
    """The norm of the difference over the norm of the truth; nan where something is."""
    got, truth = got.double(), truth.double()
    return float((got - truth).norm() / truth.norm().clamp(min=1e-30))


def disagreement(got: Callable[[], Iterable[Tensor]], truth: dict[str, Tensor], dtype: torch.dtype) -> str | None:
    """What is wrong with a kernel whose check gives `got`, each of which should be the `truth` of that place."""
    try:
        off = {name: relative_error(x, truth[name]) for name, x in zip(truth, got(), strict=True)}
    except Exception as error:  # Triton, its compiler, the driver and third-party kernels raise whatever they like
        return f"its check raised {type(error).__name__}: {error}"
    for name, size in off.items():
        if not size <= KERNEL_TOLERANCE[dtype]:
            return f"its {name} is off by {size:.1e} (relative), more than {KERNEL_TOLERANCE[dtype]:.0e}"
    return None


def checked_once(owner: Any, key: Hashable, check: Callable[[], T]) -> T:
    """`check()` of the first call with this owner and key, kept as long as the owner lives; an error is not kept."""
    results = _results.get(owner)
    if results is None:
        results = _results.setdefault(owner, {})
    if key not in results:
        results[key] = check()
    found: T = results[key]
    return found


def by_itself(check: Check) -> Check:
    """A check, whose first argument is the device, that finds the same whatever runs around it.

    A model's first forward may be under autocast, which takes sums and products of a check in half precision, and does
    not concatenate another half than its own. And a check has no gradients.
    """

    @functools.wraps(check)
    def run(device: torch.device, *rest: Any) -> Any:
        with torch.no_grad(), torch.autocast(device.type, enabled=False):
            return check(device, *rest)

    return cast(Check, run)


def randoms(device: torch.device, dtype: torch.dtype) -> Callable[..., Tensor]:
    """Draws the same numbers for a check on every device."""
    generator = torch.Generator(device).manual_seed(0)

    def random(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, device=device, dtype=torch.float32).to(dtype)

    return random
