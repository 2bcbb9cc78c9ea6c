"""A Hub for tests: what huggingface_hub 1.x and 2.x call to create, push to, and load from a model repository.

    with Hub() as hub:                                     # on 127.0.0.1 at a free port, everything in memory
        hub.users["good"] = "tester"                       # token -> user
        subprocess.run([...], env=hub.environment("good", home=tmp_path))
        hub.fail("PUT", "/_lfs/", after=1_000_000)         # drop one upload after that many bytes
        hub.fail("POST", "/commit/", after_answer=True)    # one commit lands, and its answer is lost
        hub.fail("POST", "/preupload/", status=503, times=2)
        hub.log                                            # (method, path, status or "dropped") of every request
        hub.repos["tester/x"].at("main").files

The client reads its environment when it is imported, so every use of it is a process of its own. It caches what it did
not find, so loads that may differ need a `home` each.
"""

from __future__ import annotations

import os
import re
import threading
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import TracebackType
from typing import Any
from urllib.parse import parse_qs, urlsplit

from tests.hub.server_paths import Paths, Reply, Request, refusal


@dataclass
class Fault:
    """What goes wrong with the next `times` requests that match, after `skip` that go well."""

    method: str
    path: str
    after: int
    status: int | None
    after_answer: bool
    times: int
    skip: int


class Hub(Paths):
    """The server, a context manager. See the module's docstring."""

    def __init__(self, part_size: int | None = None) -> None:
        super().__init__(part_size)
        self.log: list[tuple[str, str, int | str]] = []
        self.faults: list[Fault] = []
        hub = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            disable_nagle_algorithm = True  # headers and body are two writes

            def log_message(self, *args: Any) -> None:
                pass

            def answer(self) -> None:
                hub.answer(self)

            do_GET = do_HEAD = do_POST = do_PUT = do_DELETE = answer

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.server.server_port}"

    def __enter__(self) -> Hub:
        threading.Thread(target=self.server.serve_forever, args=(0.05,), daemon=True).start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.server.shutdown()
        self.server.server_close()

    def environment(self, token: str | None = "good", *, home: Path, offline: bool = False) -> dict[str, str]:
        """The environment of a child process that uses this Hub, with `home` as its cache, signed in or not."""
        theirs = ("HF_", "HUGGING", "TRANSFORMERS_")  # of whoever runs the tests: a cache, a token
        return {
            **{name: value for name, value in os.environ.items() if not name.startswith(theirs)},
            **({"HF_TOKEN": token} if token is not None else {}),
            "HF_ENDPOINT": self.url,
            "HF_HOME": str(home),
            "HF_HUB_OFFLINE": "1" if offline else "0",
            "HF_HUB_DISABLE_XET": "1",  # the client would ask for another kind of storage, and has no way back
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "HF_HUB_DISABLE_PROGRESS_BARS": "1",
            "NO_PROXY": "127.0.0.1,localhost",
            "OMP_NUM_THREADS": "1",
        }

    def fail(
        self,
        method: str,
        path: str,
        *,
        after: int = 0,
        status: int | None = None,
        after_answer: bool = False,
        times: int = 1,
        skip: int = 0,
    ) -> None:
        """Let requests of this method whose path has a match of the expression fail.

        The connection is dropped after `after` bytes of what is sent, or, for a GET, of what is answered. With `status`
        the request is answered with it. With `after_answer` it is carried out, and its answer is lost.
        That happens `times` times, after `skip` requests that are left alone.
        """
        self.faults.append(Fault(method, path, after, status, after_answer, times, skip))

    # -- one request ----------------------------------------------------------------------------------------------

    def answer(self, handler: BaseHTTPRequestHandler) -> None:
        url = urlsplit(handler.path)
        fault = self._fault(handler.command, url.path)
        try:
            body = self._body(handler, fault)
            if fault is not None and fault.status is not None:
                reply, dropped = refusal(fault.status, "a fault of the test"), False
            elif fault is not None and handler.command != "GET" and not fault.after_answer:
                reply, dropped = Reply(0), True
            else:
                queries = {name: values[-1] for name, values in parse_qs(url.query).items()}
                request = Request(handler.command, url.path, queries, handler.headers, body)
                reply, dropped = self.route(request), fault is not None
            self.log.append((handler.command, url.path, "dropped" if dropped else reply.status))
            if not dropped:
                self._send(handler, reply, len(reply.data))
            elif fault is not None and handler.command == "GET" and fault.after:
                self._send(handler, reply, fault.after)
            handler.close_connection = handler.close_connection or dropped
        except ConnectionError:
            handler.close_connection = True

    def _body(self, handler: BaseHTTPRequestHandler, fault: Fault | None) -> bytes:
        """What was sent, as far as it is read before the connection is dropped."""
        if handler.headers.get("Transfer-Encoding") == "chunked":
            return _chunks(handler)
        length = int(handler.headers.get("Content-Length") or 0)
        whole = fault is None or fault.status is not None or fault.after_answer
        return handler.rfile.read(length if whole else min(length, fault.after))

    def _fault(self, method: str, path: str) -> Fault | None:
        with self.lock:
            for fault in self.faults:
                if fault.times > 0 and fault.method == method and re.search(fault.path, path):
                    if fault.skip == 0:
                        fault.times -= 1
                        return fault
                    fault.skip -= 1
        return None

    def _send(self, handler: BaseHTTPRequestHandler, reply: Reply, size: int) -> None:
        handler.send_response(reply.status)
        kind = "application/octet-stream" if isinstance(reply.body, bytes) else "application/json"
        for name, value in {"Content-Type": kind, "Content-Length": str(len(reply.data)), **reply.headers}.items():
            handler.send_header(name, value)
        handler.end_headers()
        if handler.command != "HEAD":
            handler.wfile.write(reply.data[:size])


def _chunks(handler: BaseHTTPRequestHandler) -> bytes:
    """A body of unknown length, in chunks that each state their own."""
    body = b""
    while size := int(handler.rfile.readline().split(b";")[0], 16):
        body += handler.rfile.read(size)
        handler.rfile.readline()
    handler.rfile.readline()
    return body
