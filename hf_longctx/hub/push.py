"""From a model to its repository on the Hub, in one commit."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .card import is_ours_or_blank
from .draft import Draft, drafted
from .upload import Uploaded, check_access, check_names, named, upload

if TYPE_CHECKING:
    from ..registry import Recorded


def push(
    model: Any,
    repo_id: str,
    *,
    tokenizer: Any = None,
    method: Recorded | None = None,
    plugin: bool = False,
    base_model: str | None = None,
    results: Sequence[str | Path] = (),
    files: Sequence[str | Path] = (),
    private: bool = False,
    revision: str | None = None,
    message: str | None = None,
    tag: str | None = None,
    update: bool = False,
    token: str | None = None,
) -> Uploaded:
    """Publish a model with its tokenizer and a card, in one commit.

    What transformers can express by itself (RoPE scaling, merged weights, stretched tables) loads everywhere. A model
    with attention methods becomes a dual-mode repository: the stock model by default, the extended one with
    `trust_remote_code=True` or once hf_longctx is imported.

    Args:
        model: A model in memory, with its methods applied; or the name of one: a folder, which is sent as it is without
            loading it, a Hub id, a `.gguf` file. A PEFT model or folder is published as an adapter.
        repo_id: `owner/name` on the Hub; a name alone is put under the user of the token.
        tokenizer: The tokenizer or processor of a model in memory.
        method: A method or procedure for a model that is given by name.
        plugin: No code in the repository: only readers who import hf_longctx get the extended model.
        base_model: The Hub id of the model that it was made from, for the card.
        results: Files of results for the card, see `card.write_card`.
        files: More files for the repository.
        private: Make a new repository private.
        revision: The branch, made from `main` if there is none; `main` by default.
        message: The commit's first line.
        tag: A tag for the commit.
        update: Commit to a repository that exists. Its card stays, unless the model has one of its own.
        token: A token with the right to write; the one of `hf auth login` by default.

    Returns:
        Where it is.

    Raises:
        ValueError: The model is not fit to be published, or a name is wrong; nothing was sent.
        OSError: The Hub refused it or could not be reached; the message says whether anything was published.
    """
    check_names(repo_id, revision, tag, message)
    repo_id = named(repo_id, check_access(token))
    with drafted(
        model, repo_id, tokenizer=tokenizer, method=method, plugin=plugin, base_model=base_model, results=results,
        files=files,
    ) as draft:  # fmt: skip
        return send(
            draft, repo_id, private=private, revision=revision, message=message, tag=tag, update=update, token=token
        )


def send(draft: Draft, repo_id: str, *, update: bool = False, **options: Any) -> Uploaded:
    """`upload` a draft. A card that someone has written in the repository stays, unless the model has its own."""
    keep = ("README.md",) if draft.own_card and update and _has_card(repo_id, options) else ()
    return upload(draft.folder, repo_id, update=update, keep=keep, **options)


def _has_card(repo_id: str, options: dict[str, Any]) -> bool:
    """Whether the repository has a card that is not just one of ours; what cannot be read is taken for one."""
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError, RepositoryNotFoundError

    try:
        path = hf_hub_download(repo_id, "README.md", revision=options.get("revision"), token=options.get("token"))
    except (EntryNotFoundError, RepositoryNotFoundError):
        return False
    except Exception:  # `upload` says what it is
        return True
    return not is_ours_or_blank(Path(path).read_text(encoding="utf-8", errors="replace"))
