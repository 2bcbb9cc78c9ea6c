"""State dicts from files, without ever running code in them: safetensors, or torch's own tensors only."""

from __future__ import annotations

import os
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

WEIGHTS = (".safetensors", ".pt", ".pth", ".bin")
_WRAPPERS = ("state_dict", "model", "model_state_dict", "module")


def read_state(file: str | os.PathLike[str]) -> dict[str, Tensor]:
    """The tensors of a .safetensors, .pt, .pth or .bin file, on the CPU, by name."""
    path = Path(file).expanduser()
    if not path.is_file():
        raise FileNotFoundError(f"{str(file)!r}: there is no such file. Give a .pt or .safetensors file of weights.")
    found: Any = _read(path)
    for name in _WRAPPERS:  # training scripts save their weights beside other things
        if isinstance(found, Mapping) and isinstance(found.get(name), Mapping):
            found = found[name]
    tensors = {k: v for k, v in found.items() if isinstance(v, Tensor)} if isinstance(found, Mapping) else {}
    if not tensors:
        raise ValueError(
            f"{path.name}: expected a state dict, tensors by name; found {type(found).__name__} without any."
        )
    prefix = "module."  # DistributedDataParallel's
    if all(name.startswith(prefix) for name in tensors):
        tensors = {name.removeprefix(prefix): tensor for name, tensor in tensors.items()}
    return tensors


def write_state(state: Mapping[str, Tensor], file: Path) -> None:
    """Save tensors as safetensors."""
    from safetensors.torch import save_file

    # safetensors refuses tensors that share memory, as tied weights and slices do
    save_file({name: tensor.detach().clone().contiguous() for name, tensor in state.items()}, file, {"format": "pt"})


def _read(path: Path) -> Any:
    if path.suffix == ".safetensors":
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        try:
            return load_file(path)
        except SafetensorError as error:
            raise ValueError(
                f"{path.name}: cut short, damaged or no safetensors file ({error}). Get it again."
            ) from error
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError) as error:
        if "TorchScript" in str(error):
            raise ValueError(
                f"{path.name} is a TorchScript archive, a program with weights, as OpenAI's own downloads are; it is "
                f"not run. Give Long-CLIP's .pt, or save the model's state_dict() with safetensors."
            ) from error
        raise ValueError(
            f"{path.name}: it holds more than tensors, which means code that loading would run, or it is damaged; it "
            f"is refused. Save the model's state_dict() with safetensors in a place where you trust the file."
        ) from error
