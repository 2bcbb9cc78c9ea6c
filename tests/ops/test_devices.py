"""Triton takes the current device, not that of its tensors: every launch says which one."""

from __future__ import annotations

import ast
from pathlib import Path

import torch

import hf_longctx
from hf_longctx.ops.kernels.placed import on_device_of

KERNELS = Path(hf_longctx.__file__).parent / "ops/kernels"


def launches(tree: ast.AST) -> list[int]:
    """The lines of `kernel[grid](...)`."""
    found = (node for node in ast.walk(tree) if isinstance(node, ast.Call) and isinstance(node.func, ast.Subscript))
    return [
        node.lineno for node in found if isinstance(node.func.value, ast.Name) and node.func.value.id.startswith("_")
    ]  # type: ignore[attr-defined]


def test_every_launch_is_on_the_device_of_its_tensors() -> None:
    n_launches = 0
    for file in sorted(KERNELS.glob("triton_*.py")):
        tree = ast.parse(file.read_text(encoding="utf-8"))
        placed = [
            line
            for node in ast.walk(tree)
            if isinstance(node, ast.With) and "on_device_of" in ast.unparse(node.items[0].context_expr)
            for line in launches(node)
        ]
        assert sorted(placed) == sorted(launches(tree)), file.name
        n_launches += len(placed)
    assert n_launches >= 8


def test_on_a_cpu_nothing_changes() -> None:
    with on_device_of(torch.zeros(1)):
        assert torch.ones(1).device.type == "cpu"
