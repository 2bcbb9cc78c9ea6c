"""Does push_to_hub(revision=...) look for the card on that branch? Exits 1 if it takes main's, 0 if not."""

import contextlib
import inspect
import sys
from types import SimpleNamespace
from unittest import mock

from transformers.utils import hub


class Stopped(Exception):
    """The card has been asked for: nothing is sent."""


def defect() -> str | None:
    """The branch that the card is loaded from, in a push to another one."""
    asked = []

    def look(*args, revision=None, **kwargs):
        asked.append(revision)
        raise Stopped

    api = SimpleNamespace(create_repo=lambda *args, **kwargs: SimpleNamespace(repo_id="me/model"))
    assert "revision" in inspect.signature(hub.PushToHubMixin.push_to_hub).parameters
    by = {"hf_api": lambda: api} if hasattr(hub, "hf_api") else {"create_repo": api.create_repo}
    with (
        mock.patch.object(hub.ModelCard, "load", look),
        mock.patch.object(hub, "hf_hub_download", look),
        mock.patch.multiple(hub, **by),
        contextlib.suppress(Stopped),
    ):
        hub.PushToHubMixin().push_to_hub("me/model", revision="draft")
    return f"a push to 'draft' takes the card of {asked[0] or 'main'}" if asked != ["draft"] else None


if __name__ == "__main__":
    sys.exit(defect())
