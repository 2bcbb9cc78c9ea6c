"""An OpenAI-compatible endpoint in a thread, which answers as a test says."""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Answer = str | tuple[int, Any] | None  # a reply's text; a status and a body; or the connection is closed without one
PLAN = "1. How it begins (250 words)\n2. How it ends (250 words)"


class Stub:
    """What was asked, and what is answered: `says` gets the text of the last message and the request."""

    def __init__(self) -> None:
        self.requests: list[dict[str, Any]] = []
        self.says: Callable[[str, dict[str, Any]], Answer] = well
        self.models = ["stub"]
        self.keys: set[str | None] = set()
        self.url = ""

    def prompts(self) -> list[str]:
        return [request["messages"][-1]["content"] for request in self.requests]


def well(prompt: str, request: dict[str, Any]) -> Answer:
    """A plan of two paragraphs, and paragraphs of the words asked for."""
    return paragraph(prompt) if "Now write paragraph" in prompt else PLAN


def paragraph(prompt: str) -> str:
    (number, words) = re.findall(r"Now write paragraph (\d+).*Write about (\d+) words", prompt)[-1]
    return " ".join(["tale" if number == "1" else "end"] * int(words))


@contextmanager
def endpoint() -> Iterator[Stub]:
    stub = Stub()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send(200, {"object": "list", "data": [{"id": one, "object": "model"} for one in stub.models]})

        def do_POST(self) -> None:
            request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            stub.requests.append(request)
            stub.keys.add(self.headers["Authorization"])
            answer = stub.says(request["messages"][-1]["content"], request)
            if isinstance(answer, tuple):
                self.send(*answer)
            elif answer is not None:
                self.send(200, completion(answer))

        def send(self, status: int, body: Any) -> None:
            data = body.encode() if isinstance(body, str) else json.dumps(body).encode()
            self.send_response(status)
            self.send_header("Content-Type", "text/html" if isinstance(body, str) else "application/json")
            self.send_header("retry-after-ms", "1")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    stub.url = f"http://127.0.0.1:{server.server_port}/v1"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield stub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def completion(text: str | None, finish: str = "stop") -> dict[str, Any]:
    message = {"role": "assistant", "content": text}
    choice = {"index": 0, "message": message, "finish_reason": finish}
    return {"id": "1", "object": "chat.completion", "created": 1, "model": "stub", "choices": [choice]}
