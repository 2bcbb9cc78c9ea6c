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


def run(code: str, interpret: str) -> None:
    """Run `code` from the checkout's root; `interpret` is "1" for Triton's interpreter, "0" to compile."""
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
