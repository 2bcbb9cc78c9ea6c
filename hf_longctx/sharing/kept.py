"""A document that was read is kept in a folder, and loaded the next time it is asked about."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from torch import Tensor

from ..storage.fingerprint import model_digest
from .file import make_folder
from .prefix import Prefix, load_prefix, shared_prefix

logger = logging.getLogger("hf_longctx")


@contextmanager
def cached_prefix(model: Any, ids: Tensor, folder: str | Path | None, chunk: int | None = None) -> Iterator[Prefix]:
    """`shared_prefix`, or `load_prefix` if `folder` has this prefix of this model; afterwards it has.

    A file that cannot be used or written causes a warning, and the document is read. OSError, before anything is read,
    if the folder cannot be made.
    """
    with ExitStack() as stack:
        if folder is None:
            yield stack.enter_context(shared_prefix(model, ids, chunk=chunk))
            return
        name = hashlib.sha256(model_digest(model).encode() + ids.cpu().long().numpy().tobytes()).hexdigest()[:24]
        path = Path(folder).expanduser() / f"{name}.safetensors"
        make_folder(path.parent)
        prefix = None
        if path.is_file():
            try:
                prefix = stack.enter_context(load_prefix(model, path, ids))
                logger.info("loaded %r from %s", prefix, path)
            except (ValueError, OSError) as error:
                logger.warning("reading the document again: %s", error)
        if prefix is None:
            prefix = stack.enter_context(shared_prefix(model, ids, chunk=chunk))
            try:
                prefix.save(path)
                logger.info("saved %r to %s", prefix, path)
            except OSError as error:
                logger.warning("the prefix is not kept for the next time: %s", error)
        yield prefix
