"""Gluon kernels without a GPU: as Triton, for its interpreter. Layouts are dropped, and products of bits counted.

What layouts say, and the instructions of a product of bits, is not tested by this: the kernels check them on a GPU.
"""

from __future__ import annotations

import importlib.util
import re
import sys
from pathlib import Path
from typing import Any

KERNELS = Path(__file__).parents[2] / "hf_longctx/ops/kernels"
COUNTED = '''
@triton.jit
def _ones(x):
    """How many bits are 1."""
    x = x.to(tl.uint32, bitcast=True)
    x = x - ((x >> 1) & 0x55555555)
    x = (x & 0x33333333) + ((x >> 2) & 0x33333333)
    return ((((x + (x >> 4)) & 0x0F0F0F0F) * 0x01010101) >> 24).to(tl.int32)


@triton.jit
def _counted(codes, held):
    """Of 64 codes and four heads, the sums of the heads' numbers over the bits of a code that are 1."""
    row, head = tl.arange(0, 64), tl.arange(0, 4)
    total = tl.zeros((64, 4), tl.int32)
    for bit in tl.static_range(QUERY_BITS):
        wanted = (row[None] == (bit // 2 * 8 + 2 * head + bit % 2)[:, None]).to(tl.int32)  # (4, 64)
        words = tl.sum(wanted[:, :, None] * held[None], 1)  # (4, 4): of each head
        ones = tl.sum(_ones(codes[:, None] & words[None]), 2)
        total += ones * ((1 << bit) if bit < QUERY_BITS - 1 else -(1 << bit))
    return total


'''
SAME = """
@triton.jit
def _same(x, layout):
    return x


"""
ASM = r"gl\.inline_asm_elementwise\("
RULES = (
    (r"from triton\.experimental.*\n", ""),
    (r"from __future__ import annotations\n", "import triton\nimport triton.language as tl\n"),
    (r"gluon\.jit\(([\w.]+)\.fn\)", r"\1"),
    (r"@gluon\.jit", "@triton.jit"),
    (r"gl\.SliceLayout\(\d, LAYOUT\)", "0"),
    (r"(LAYOUT|ROWS): gl\.constexpr = gl\.BlockedLayout\(.*\)", r"\1: tl.constexpr = 0"),
    (r"gl\.arange\((\d+), (\d+), (?:0|ROWS)\)", r"tl.arange(\1, \2)"),
    (r"gl\.full\((\[\d+\]), ([^,]+), (gl\.\w+), 0\)", r"tl.full(\1, \2, \3)"),
    (r"gl\.to_tensor\(([^)]+\))\)", r"tl.full((), \1, tl.float32)"),
    (r"gl\.convert_layout\(", "_same("),
    (r"gl\.associative_scan\(taken, 0, _sum\)", "tl.cumsum(taken, 0)"),
    (
        ASM + r"\s*COUNTING_2, REGISTERS_2, \[codes, more, (.*?), (.*?)\], gl\.int32, True, 8\s*\)",
        r"_counted(codes, \1) + _counted(more, \2)",
    ),
    (ASM + r"COUNTING, REGISTERS, \[codes, (.*?)\], gl\.int32, True, 8\)", r"_counted(codes, \1)"),
    (r"from \.\.([\w.]*) import", r"from hf_longctx.ops.\1 import"),
    (r"from \. import", "from hf_longctx.ops.kernels import"),
    (r"\bgl\.", "tl."),
)


def interpreted(name: str, folder: Path) -> Any:
    """A module of `ops.kernels` whose Gluon kernels are Triton's, written to a folder; in place of the one imported."""
    text = (KERNELS / f"{name}.py").read_text(encoding="utf-8")
    for pattern, by in RULES:
        text = re.sub(pattern, by, text, flags=re.DOTALL if "COUNTING_2" in pattern else 0)
    first = text.index("@triton.jit")
    text = text[:first] + SAME.lstrip() + COUNTED.lstrip() + text[first:]
    file = folder / f"{name}.py"
    file.write_text(text, encoding="utf-8")
    spec = importlib.util.spec_from_file_location(f"hf_longctx.ops.kernels.{name}", file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    sys.modules["hf_longctx.ops.kernels"].__dict__[name] = module
    return module
