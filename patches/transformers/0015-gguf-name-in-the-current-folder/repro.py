"""Is gguf_file looked for in the folder that is loaded before the current one? Exits 1 if not, 0 if it is."""

import os
import sys
import tempfile
from pathlib import Path

from transformers.modeling_utils import _get_resolved_checkpoint_files


def defect() -> str | None:
    """The file that is taken where both folders have one of that name."""
    before = os.getcwd()
    with tempfile.TemporaryDirectory() as model, tempfile.TemporaryDirectory() as current:
        for folder in (model, current):
            Path(folder, "model.gguf").touch()
        os.chdir(current)
        try:
            found, _ = _get_resolved_checkpoint_files(
                pretrained_model_name_or_path=model, variant=None, gguf_file="model.gguf", use_safetensors=None,
                user_agent={}, is_remote_code=False, transformers_explicit_filename=None, download_kwargs={},
            )  # fmt: skip
        finally:
            os.chdir(before)
        wrong = not Path(current, found[0]).resolve().is_relative_to(Path(model).resolve())
    return "the current folder's file is read in place of the one in the model's folder" if wrong else None


if __name__ == "__main__":
    sys.exit(defect())
