"""`hf-longctx push`: a model with its tokenizer and card on the Hub."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from . import options
from .options import MethodName, Model, Settings, chosen_of
from .save import BaseModel, Plugin, Results, tell


def _refuse_token(token: str | None) -> None:
    if token is not None:
        raise ValueError(
            "--token: everyone on this machine can read the arguments of a command. Give --token-file FILE, set "
            "HF_TOKEN, or run `hf auth login` once."
        )


def push(
    model: Model,
    repo_id: Annotated[
        str, typer.Argument(metavar="OWNER/NAME", help="The repository on the Hub.", show_default=False)
    ],
    method: MethodName = None,
    settings: Settings = None,
    plugin: Plugin = False,
    base_model: BaseModel = None,
    results: Results = None,
    private: Annotated[bool, typer.Option("--private", help="Make a new repository private.")] = False,
    revision: Annotated[str | None, typer.Option(help="A branch; made from main if there is none.")] = None,
    message: Annotated[str | None, typer.Option(help="First line of the commit.")] = None,
    tag: Annotated[str | None, typer.Option(help="A tag for the commit.")] = None,
    update: Annotated[bool, typer.Option("--update", help="Commit to a repository that exists.")] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Send nothing: list the files, and say what readers get.")
    ] = False,
    token_file: Annotated[
        Path | None,
        typer.Option(help="File with a token that may write; by default the token of `hf auth login` or HF_TOKEN."),
    ] = None,
    _token: Annotated[str | None, typer.Option("--token", hidden=True, callback=_refuse_token)] = None,
) -> None:
    """Publish a model with its tokenizer and a card on the Hub, in one commit."""
    chosen = chosen_of(method, settings)
    from ..hub.draft import drafted
    from ..hub.push import send
    from ..hub.upload import check_access, check_names, check_owner, named, planned

    check_names(repo_id, revision, tag, message)
    access = _token_in(token_file)
    if dry_run:
        check_owner(repo_id, "and --dry-run does not ask the Hub for the user of the token")
    else:
        repo_id = named(repo_id, check_access(access))  # before the model is prepared
    made_of: dict[str, Any] = {"method": chosen, "plugin": plugin, "base_model": base_model, "results": results or ()}
    with options.steps_told(), drafted(model, repo_id, **made_of) as draft:
        if dry_run:
            _list(planned(draft.folder))
            tell(draft)
            options.plain("Nothing was sent (--dry-run).")
            return
        sent = send(
            draft, repo_id, private=private, revision=revision, message=message, tag=tag, update=update, token=access
        )
    options.plain(sent.url)
    if sent.unchanged:
        options.plain(f"No new commit: {sent.revision} had exactly these files.")
    if sent.deleted:
        options.plain(f"Deleted there: {', '.join(sent.deleted)}.")
    tell(draft)


def _token_in(file: Path | None) -> str | None:
    from ..hub.upload import token_from

    try:
        return None if file is None else token_from(file)
    except OSError as error:
        raise ValueError(
            f"--token-file {file}: it cannot be read ({error.strerror}). Give a file that holds the token alone."
        ) from error


def _list(files: list[Any]) -> None:
    from ..console.units import show_bytes

    for path, size, lfs in files:
        options.plain(f"{show_bytes(size):>10}  {'LFS' if lfs else '   '}  {path}")
