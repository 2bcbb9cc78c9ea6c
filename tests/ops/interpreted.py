"""Triton kernels without a GPU: in processes of their own, as Triton asks the environment once how it is to run."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

needs_triton = pytest.mark.skipif(
    importlib.util.find_spec("triton") is None, reason="needs triton (pip install triton)"
)

# Triton 3.6 makes numbers of arrays with one element, which NumPy 2.4 no longer does for those with dimensions
ONE_ELEMENT = """
from triton.runtime import interpreter as _interpreter
_patched = _interpreter._patch_lang_tensor
def _patch(tensor, scope):
    _patched(tensor, scope)
    scope.set_attr(tensor, "__index__", lambda self: int(self.handle.data.item()))
_interpreter._patch_lang_tensor = _patch
"""
BOUNDS = """
from tests.ops.bounds import watch as _watch
_watch()
"""


def run(code: str, interpret: str) -> None:
    """Run `code` from the checkout's root; `interpret` is "1" for Triton's interpreter, "0" to compile.

    The interpreter is watched: see `bounds`.
    """
    code = ONE_ELEMENT + BOUNDS + code if interpret == "1" else code
    environment = {**os.environ, "TRITON_INTERPRET": interpret, "OMP_NUM_THREADS": "1"}
    root = Path(__file__).parents[2]
    done = subprocess.run([sys.executable, "-c", code], cwd=root, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]


def compile_for_h100(function: Any, sizes: dict[str, Any], kinds: dict[str, str], **options: Any) -> Any:
    """Compile a kernel for an H100. What `kinds` says nothing of is an int32, and `scale` a float."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    names = function.arg_names
    kinds = {"scale": "fp32", **kinds}
    signature = {name: "constexpr" if name in sizes else kinds.get(name, "i32") for name in names}
    constants = {(names.index(name),): value for name, value in sizes.items()}
    source = ASTSource(fn=function, signature=signature, constexprs=constants)
    return triton.compile(source, target=GPUTarget("cuda", 90, 32), options=options)


def compile_launches() -> list[Any]:
    """From now on every launch compiles its kernel for an H100, for the arguments that it has, and runs nothing.

    Returns a list that will hold the kernels. What a launch says of its arguments is part of it: Triton makes a number
    that is 1 a constant, and takes addresses and numbers that are multiples of 16 as such.
    """
    from triton.backends.compiler import GPUTarget
    from triton.runtime import driver
    from triton.runtime.jit import JITFunction

    class Card:
        def get_current_target(self) -> GPUTarget:
            return GPUTarget("cuda", 90, 32)

        def get_current_device(self) -> int:
            return 0

        def get_current_stream(self, device: int) -> int:
            return 0

    kernels: list[Any] = []
    launch = JITFunction.run

    def run(self: Any, *args: Any, grid: Any, warmup: bool, **settings: Any) -> None:
        assert all(0 < n < most for n, most in zip(grid, (2**31, 2**16, 2**16), strict=False)), (self.__name__, grid)
        kernel = launch(self, *args, grid=grid, warmup=True, **settings)
        assert kernel.metadata.shared < 227 * 1024, (self.__name__, kernel.metadata.shared)
        kernels.append(kernel)

    driver.set_active(Card())
    JITFunction.run = run
    return kernels
