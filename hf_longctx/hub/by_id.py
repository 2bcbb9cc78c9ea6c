"""Repositories of a procedure: `model.generate(..., custom_generate="you/xl3m", trust_remote_code=True)`.

transformers runs `custom_generate/generate.py` of the repository or folder that is named, with any model. Such a file
does not belong in the repository of a model. There, a load with trust puts it in the place of every `generate` of that
model, whatever the call asks for, and `save_pretrained` does not copy it, so that a saved copy of the model answers
otherwise. A model carries the settings instead: `XL3M(...).store_(model)`.
"""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .. import registry
from ..storage.files import write_whole
from .outgoing import MODEL
from .save import check_target

if TYPE_CHECKING:
    from ..generation.procedure import Procedure


def write_generate(
    folder: str | os.PathLike[str], procedure: Procedure, *, repo_id: str | None = None, overwrite: bool = False
) -> Path:
    """Write a repository of `procedure` into `folder`: `custom_generate/` and a README.

    The folder itself can be named in `custom_generate=`. `repo_id` is the name by which its README calls it.

    Raises:
        ValueError: `procedure` is none of hf_longctx's; the folder holds a model, or holds something and `overwrite`
            is not set.
        OSError: The folder cannot be written.
    """
    _check(procedure)
    target = Path(folder).expanduser()
    if any((target / name).exists() for name in MODEL):
        raise ValueError(
            f"{str(target)!r} holds a model, where custom_generate/ would replace every `generate` of it. Choose a "
            f"folder of its own; a model carries the settings by {type(procedure).__name__}(...).store_(model)."
        )
    check_target(target, overwrite=overwrite)
    from .by_id_texts import texts

    for name, text in texts(procedure, repo_id or f"you/{procedure.name}").items():
        write_whole(target / name, text.encode("utf-8"))
    return target


def push_generate(repo_id: str, procedure: Procedure, **options: Any) -> Any:
    """Push a repository of `procedure`, for `model.generate(..., custom_generate=repo_id, trust_remote_code=True)`.

    Args:
        repo_id: The repository, `owner/name`, without a model in it.
        procedure: `XL3M(...)`, `ShareBeginning()`, or another procedure of the registry, with the settings to publish.
        options: Those of `hub.upload.upload`: revision, private, message, tag, update, token.

    Returns:
        What `upload` returns.

    Raises:
        ValueError: `procedure` is none of hf_longctx's, or `repo_id` has no owner; else as `upload`.
    """
    if "/" not in repo_id:
        raise ValueError(f"repo_id={repo_id!r}: expected owner/name, as readers will write it in custom_generate=.")
    from .upload import upload

    with tempfile.TemporaryDirectory() as draft:
        return upload(write_generate(Path(draft) / "repository", procedure, repo_id=repo_id), repo_id, **options)


def _check(procedure: Any) -> None:
    if not isinstance(procedure, registry.Recorded) or procedure.kind != "procedure":
        raise ValueError(
            f"{procedure!r:.60}: expected a procedure with its settings, such as XL3M() or ShareBeginning(). A "
            f"method is part of a model: save it with one."
        )
    if procedure.name not in registry.modules():
        raise ValueError(
            f"{type(procedure).__name__} is not part of hf_longctx, so that nobody else could import it. Put its file "
            f"into hf_longctx/generation/."
        )
