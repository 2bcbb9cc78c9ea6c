"""What an answer of the Hub, or its absence, means for who publishes: one line, and never the token."""

from __future__ import annotations

import json

SIGN_IN = "Sign in with `hf auth login`, set HF_TOKEN, or give --token-file"


class UploadError(OSError):
    """Publishing did not work out; the message is one line and says what is published now."""


def failures() -> tuple[type[Exception], ...]:
    """What huggingface_hub raises where a request fails.

    Its own errors and those of httpx or httpx2 alike are the `HTTPError` that it has; around an upload they are in a
    RuntimeError. The error of json is raised for the answer of something between here and the Hub.
    """
    from huggingface_hub.errors import HTTPError

    return HTTPError, OSError, RuntimeError, json.JSONDecodeError


def status_of(error: BaseException) -> int | None:
    """The status with which the Hub answered; None if it did not."""
    return getattr(getattr(error, "response", None), "status_code", None)


def why(error: BaseException, name: str) -> str:
    """What went wrong in a clause, and what to do where that is known. Without a full stop."""
    from huggingface_hub import constants
    from huggingface_hub.errors import HTTPError, OfflineModeIsEnabled

    status = status_of(error)
    if isinstance(error, OfflineModeIsEnabled):
        return "HF_HUB_OFFLINE is set, so the Hub is not asked. Unset it"
    if isinstance(error, RuntimeError):  # around the error of one upload
        return f"an upload was cut off ({error} {error.__cause__ or ''})"
    if isinstance(error, json.JSONDecodeError):
        return f"{constants.ENDPOINT} gave an answer that is not the Hub's ({error})"
    if status is None and isinstance(error, HTTPError):
        return f"the connection to {constants.ENDPOINT} failed ({error}); check the network"
    if status == 401:
        return f"the Hub does not accept the token (401). {SIGN_IN}, with a token that may write"
    if status == 403:
        owner = name.split("/")[0]
        return f"the token may not write to {owner!r} (403). Give a name of your own, or a token that may write there"
    if status == 404:
        return "the Hub does not find it, or the token may not see it (404)"
    if status == 412:
        return "the branch has moved on (412)"
    if status == 429:
        return "the Hub asks to wait (429, too many requests). Run it again in some minutes"
    if status is not None and status >= 500:
        return f"the Hub has a problem of its own ({status}); try it later"
    if status is not None:
        told = getattr(error, "server_message", None) or "no reason given"
        return f"the Hub refused it ({status}: {told})"
    return str(error)


def one_line(text: str, token: str) -> str:
    """The text on one line; should an answer of the Hub repeat the token, it does not go on."""
    return " ".join(text.replace(token, "***").split())
