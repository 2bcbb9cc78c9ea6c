"""A model that is served: requests to an OpenAI-compatible endpoint, with timeouts and retries."""

from __future__ import annotations

import os
from typing import Any

from hf_longctx.upstream.installing import install_extra

from .replies import LeftOut, Reply, Unreachable

REFUSALS = (400, 413, 422)  # of a request, such as one longer than the context: others may be answered


class Endpoint:
    """Answers chats with a served model. The key is that of the environment variable OPENAI_API_KEY, if it has one.

    Args:
        url: The address up to and with /v1.
        model: The name that the server has for it; None: the only one that it serves.
        temperature: Of sampling; 0 is greedy.
        timeout: Seconds until a request counts as unanswered.
        retries: Of a request without an answer, or answered with "busy" or a fault of the server.

    Raises:
        ValueError: The address is none, or there is not one model only.
        Unreachable: The server does not say what it serves.
        ImportError: openai is not installed.
    """

    def __init__(
        self, url: str, model: str | None = None, *, temperature: float = 1.0, timeout: float = 600, retries: int = 4
    ) -> None:
        if not url.startswith(("http://", "https://")) or url.rstrip("/").endswith("/completions"):
            raise ValueError(f"--endpoint {url}: expected an address up to /v1, such as http://localhost:8000/v1.")
        try:
            from openai import OpenAI
        except ImportError as error:
            raise ImportError(f"An endpoint needs the package openai: {install_extra('serve')}.") from error
        self.url, self.temperature, self.timeout, self.tries = url, temperature, timeout, retries + 1
        key = os.environ.get("OPENAI_API_KEY") or "none"  # local servers ask for none, the package for one
        self.client = OpenAI(base_url=url, api_key=key, timeout=timeout, max_retries=retries)
        self.model = model or self._only_model()

    def __call__(self, messages: list[dict[str, str]], max_tokens: int, seed: int) -> Reply:
        """The reply to a chat.

        Raises:
            LeftOut: The server refuses this request.
            Unreachable: It does not answer, or not as an endpoint does.
        """
        found = self._asked(
            self.client.chat.completions.create,
            model=self.model, messages=messages, max_tokens=max_tokens, temperature=self.temperature, seed=seed,
        )  # fmt: skip
        choices = getattr(found, "choices", None)
        if not choices or getattr(choices[0], "message", None) is None:
            raise Unreachable(f"{self.url} answered with something that is no chat completion: {str(found)[:80]!r}.")
        return Reply(choices[0].message.content or "", choices[0].finish_reason == "stop")

    def _only_model(self) -> str:
        listed = self._asked(self.client.models.list)
        names = [getattr(one, "id", "") for one in getattr(listed, "data", None) or ()]
        if len(names) != 1:
            raise ValueError(f"{self.url} serves {', '.join(names) or 'no model'}: name one with --model.")
        return str(names[0])

    def _asked(self, request: Any, **what: Any) -> Any:
        import openai

        try:
            return request(**what)
        except openai.APITimeoutError:
            raise Unreachable(f"{self.url}: no answer in {self.timeout:g} seconds, {self.tries} times.") from None
        except openai.APIConnectionError as error:
            raise Unreachable(f"{self.url} cannot be reached ({error.__cause__ or error}).") from None
        except openai.APIStatusError as error:
            said = f"{self.url} answered with status {error.status_code}: {' '.join(error.response.text.split())[:300]}"
            raise (LeftOut if error.status_code in REFUSALS else Unreachable)(said) from None
        except (openai.OpenAIError, ValueError) as error:  # ValueError: what it calls JSON is none
            raise Unreachable(f"{self.url} answered with something that is no JSON ({error}).") from None
