"""What a decoding step launches on a GPU, counted without one: torch's kernels, and Triton's by its interpreter.

Tensors say that they are on a GPU, so that the code goes that way; a kernel counts as one launch wherever it is from.

TRITON_INTERPRET=1 python -m tests.generation.launches      # lists them by the line that launches them; needs triton
"""

from __future__ import annotations

import contextlib
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import DynamicCache

from hf_longctx import CodeLookup, LMInfinite
from hf_longctx.cache import addresses, growing
from hf_longctx.ops import pages
from hf_longctx.ops.kernels import bits, ring, turns
from tests.ops.interpreted import ONE_ELEMENT
from tests.tiny import text, tiny

ROOT = str(Path(__file__).parents[2])
# neither a view, nor a kernel on a GPU
FREE = {
    "empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided", "_unsafe_view", "detach", "alias",
    "_local_scalar_dense", "lift_fresh", "scalar_tensor", "_reshape_alias",
}  # fmt: skip


def place() -> str:
    """The innermost line of this project, or of transformers, that is running."""
    frame = sys._getframe(1)
    while frame is not None:
        name = frame.f_code.co_filename
        if name != __file__ and (name.startswith(ROOT + "/hf_longctx") or "/transformers/" in name):
            short = name.removeprefix(ROOT + "/").split("site-packages/")[-1]
            return f"{short}:{frame.f_lineno} {frame.f_code.co_name}"
        frame = frame.f_back
    return "elsewhere"


class Launches(TorchDispatchMode):
    """Counts launches, by (line, name)."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[tuple[str, str]] = Counter()
        self.inside = False  # a kernel that the interpreter runs

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        if not self.inside and not func.is_view and name not in FREE:
            self.counts[place(), name] += 1
        return func(*args, **(kwargs or {}))

    @contextlib.contextmanager
    def triton(self) -> Iterator[None]:
        """Count Triton's kernels too."""
        from triton.runtime.interpreter import InterpretedFunction

        launch = InterpretedFunction.run

        def run(kernel: Any, *args: Any, **kwargs: Any) -> Any:
            self.counts[place(), "triton " + kernel.fn.__name__] += 1
            self.inside = True
            try:
                return launch(kernel, *args, **kwargs)
            finally:
                self.inside = False

        with mock.patch.object(InterpretedFunction, "run", run):
            yield


@contextlib.contextmanager
def as_on_a_gpu() -> Iterator[None]:
    """Tensors say that they are on a GPU, whose kernels the interpreter runs."""
    with contextlib.ExitStack() as stack:
        for what, name, value in (
            (torch.Tensor, "is_cuda", property(lambda _: True)),
            (torch.cuda, "device", lambda _: contextlib.nullcontext()),
            (torch.cuda, "is_current_stream_capturing", lambda: False),
            (addresses, "DEVICES", ("cpu",)),
            (ring, "DEVICES", ("cpu",)),
            (turns, "DEVICES", ("cpu",)),
            (bits, "unsupported_reason", lambda *_: "it is no kernel of the interpreter"),
            (pages, "PAGE", 1024),
            (growing, "PIECE", 1024),
        ):
            stack.enter_context(mock.patch.object(what, name, value))
        yield


@torch.no_grad()
def launches(method: Any, layers: int, batch: int = 1) -> Counter[tuple[str, str]]:
    """Of one step of a tiny model with so many layers; method None: of the stock model."""
    model, ids, cache = tiny(num_hidden_layers=layers), text(batch, 42), DynamicCache()
    with contextlib.nullcontext() if method is None else method.on(model), as_on_a_gpu():
        model(ids[:, :40], past_key_values=cache, use_cache=True)
        for t in (40, 41):  # the first one makes buffers and checks kernels
            counter = Launches()
            pos = torch.full((batch, 1), t)  # as a graph has them
            with counter, counter.triton():
                model(input_ids=ids[:, t : t + 1], position_ids=pos, past_key_values=cache, use_cache=True,
                      logits_to_keep=1)  # fmt: skip
    return counter.counts


def split(method: Any, batch: int = 1) -> tuple[Counter[tuple[str, str]], Counter[tuple[str, str]]]:
    """Those of a forward, and those of each layer."""
    one, three = (launches(method, layers, batch) for layers in (1, 3))
    layer = Counter({key: (three[key] - one[key]) / 2 for key in three if three[key] != one[key]})
    forward = Counter({key: n - layer[key] for key, n in one.items() if n != layer[key]})
    return forward, layer


def own(counts: Counter[tuple[str, str]]) -> Counter[tuple[str, str]]:
    """Those of this package's lines."""
    return Counter({key: n for key, n in counts.items() if key[0].startswith("hf_longctx")})


def listed(counts: Counter[tuple[str, str]]) -> str:
    """What was launched from where, and how often."""
    return "\n".join(f"{n:g} {name} at {where}" for (where, name), n in sorted(counts.items()))


def main() -> None:
    """Print those of the stock model, of the window and of look-ups."""
    window: dict[str, Any] = {"n_global": 2, "n_local": 16}
    for method in (None, LMInfinite(**window), CodeLookup(**window, top_k=3, shortlist=6)):
        forward, layer = split(method)
        print(f"{'stock' if method is None else method.name}: {forward.total():g} a forward, {layer.total():g} a layer")
        print(f"\na forward:\n{listed(forward)}\n\na layer:\n{listed(layer)}\n")


if __name__ == "__main__":
    exec(ONE_ELEMENT)  # what Triton's interpreter needs
    main()
