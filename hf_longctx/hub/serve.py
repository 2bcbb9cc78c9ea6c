"""transformers' own OpenAI-compatible server, with the methods that models carry in their configs.

`transformers serve` builds the class that a config's `architectures` names, whatever `auto_map` says: without this
package imported it serves the stock model, silently. Here the hooks are in place, and what cannot work is refused.
"""

from __future__ import annotations

import errno
import inspect
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from ..attention.method import AttentionMethod
from ..method import LongContextMethod, read_key
from ..patch import applied
from ..registry import entries
from ..settings import KEY
from ..upstream.installing import install_extra
from .adapter import adapter_settings
from .resolve import hub_problem, locate, not_found

# options of transformers with which every request to a model with an attention method fails -> why
REFUSED = {
    "continuous_batching": "keeps the keys of all requests in one paged cache, which has no place for a method's own",
    "compile": "needs a static cache, and a method keeps a cache of its own",
}
# from_pretrained in several threads at once mixes up their dtypes and weights
_one_load = threading.Lock()


def options() -> inspect.Signature:
    """The arguments of `transformers serve`, with the annotations from which typer makes options.

    They are those of `serve`: the first, `force_model`, is its `model`.
    """
    return inspect.signature(_server())


def serve(model: str | None, say: Callable[[str], object] = print, **given: Any) -> None:
    """Serve a model, with the methods in its config, until the process is interrupted.

    Args:
        model: What `load` takes, but for an adapter; the only one that requests may then ask for. None: a request names
            the model that it wants, and gets an error of status 400 where that cannot be served.
        say: Gets one line about what is served and where, before requests are answered.
        **given: Arguments of `transformers serve` (see `options`), by the names that it has for them.

    Raises:
        ValueError: The model is an adapter or writes no text, its method does not fit it, or does not work with one of
            the arguments.
        OSError: The model cannot be read, or something else listens at the address.
        ImportError: A package of the extra `serve` is missing.
    """
    from transformers.utils.import_utils import is_serve_available

    server = _server()
    if not is_serve_available():
        raise ImportError(f"The server needs fastapi, uvicorn and openai: {install_extra('serve')}.")
    values = options().bind(force_model=None, **given)
    values.apply_defaults()
    arguments = values.arguments
    check_address(arguments["host"], arguments["port"])  # before a model is loaded
    _make_cache()
    location = None if model is None else _servable(model)
    arguments["force_model"] = location
    address = f"http://{arguments['host']}:{arguments['port']}/v1"
    if location is None:
        say(f"Serving at {address} the models that requests name, each with the methods in its config")
    with _managed(arguments, lambda loaded: say(f"Serving at {address} {described(loaded)}, model={location!r}")):
        server(**arguments)


def check_address(host: str, port: int) -> None:
    """Find out whether a server can listen there.

    Raises:
        ValueError: There is no such port.
        OSError: There is no such host, or something else listens there.
    """
    if not 1 <= port <= 65535:
        raise ValueError(f"--port {port}: expected a number from 1 to 65535.")
    try:
        for family, kind, protocol, _, address in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM):
            with socket.socket(family, kind, protocol) as tried:
                tried.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as asyncio does
                if family == socket.AF_INET6:
                    tried.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
                tried.bind(address)
    except socket.gaierror as error:
        raise OSError(
            f"--host {host}: there is no such address here ({error.strerror}). Give a name or an IP."
        ) from error
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            raise OSError(
                error.errno, f"--port {port}: something else listens at {host}:{port}. Choose another port, or end that"
            ) from error
        if error.errno in (errno.EACCES, errno.EPERM):
            raise OSError(
                error.errno, f"--port {port}: you may not listen at {host}:{port}. Choose a port above 1023"
            ) from error
        # what is left, as of a machine without IPv6, is the server's to judge


def described(model: Any) -> str:
    """A model in memory in a line: its class, the methods on it, and the settings in it that no request reaches."""
    methods = " and ".join(repr(patch.method) for patch in applied(model))
    line = f"{type(model).__name__} with {methods or 'no method: the stock model' + _scaling(model.config)}"
    for entry in entries().values():
        if entry["kind"] == "procedure" and getattr(model.generation_config, entry["name"], None) is not None:
            line += f" (its {entry['class']} settings are not used: no request can ask for a procedure)"
    return line


def _scaling(config: Any) -> str:
    rope = getattr(config.get_text_config(decoder=True), "rope_parameters", None) or {}
    layers = [entry for entry in rope.values() if isinstance(entry, dict)] or [rope]
    kinds = sorted({str(entry.get("rope_type", "default")) for entry in layers} - {"default"})
    return f" and its own RoPE scaling ({', '.join(kinds)})" if kinds else ""


def methods_in(name: str, **kwargs: Any) -> list[LongContextMethod]:
    """The methods in the config of a folder or Hub id; no weights are read. `kwargs` are `from_pretrained`'s."""
    from transformers import AutoConfig

    parts = _parts(AutoConfig.from_pretrained(name, **kwargs))
    entry = next((entry for part in parts if (entry := getattr(part, KEY, None))), None)
    return read_key(entry) if entry else []


def _parts(config: Any) -> Iterator[Any]:
    yield config
    for name in config.sub_configs:
        if (part := getattr(config, name, None)) is not None:
            yield from _parts(part)


def _server() -> Any:
    from transformers.cli.serve import Serve

    return Serve


def _make_cache() -> None:
    """Before 5.24, `/v1/models` fails where nothing was ever downloaded."""
    from huggingface_hub import constants

    with suppress(OSError):  # a home that cannot be written: only that list is missing
        Path(constants.HF_HUB_CACHE).mkdir(parents=True, exist_ok=True)


def _servable(model: str) -> str:
    """The name by which transformers' server loads a model and requests ask for it."""
    location = locate(model).location
    hub_id = None if Path(location).is_dir() else location.partition("@")[0]  # owner/name@revision
    if hub_id is not None and (problem := hub_problem(hub_id)):
        raise OSError(not_found(hub_id, problem))
    if hub_id is None and "@" in location and not _keeps_at_sign():
        raise ValueError(f"{location!r}: this transformers reads what follows '@' as a revision. Rename the folder.")
    if adapter_settings(hub_id or location, {}) is not None:
        raise ValueError(
            f"{model!r} is a PEFT adapter, and transformers' server loads whole models only. Merge it and serve that: "
            f"model, tokenizer = hf_longctx.hub.load({model!r}, dtype='checkpoint'), then "
            f"hf_longctx.hub.save(model.merge_and_unload(), tokenizer, 'merged')."
        )
    return location


def _keeps_at_sign() -> bool:
    from transformers.cli.serving import utils

    return hasattr(utils, "split_revision")  # since 5.24


@contextmanager
def _managed(arguments: dict[str, Any], ready: Callable[[Any], object]) -> Iterator[None]:
    """In the block, transformers' server loads models through our manager, and calls `ready` with a preloaded one."""
    from transformers.cli.serving import model_manager as module

    stock = module.ModelManager
    module.ModelManager = _manager(stock, [name for name in REFUSED if arguments.get(name)], ready)
    try:
        yield
    finally:
        module.ModelManager = stock


def _manager(stock: Any, asked: list[str], ready: Callable[[Any], object]) -> Any:
    """The manager of transformers' server, with one load at a time, and its errors told to the client.

    Args:
        stock: Its class, `ModelManager`.
        asked: The options of `REFUSED` that the server was started with.
        ready: Called with the preloaded model, if there is one.
    """

    class Manager(stock):
        """Loads what requests ask for."""

        _started = False

        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs)  # loads a forced model
            self._started = True
            for timed in self.loaded_models.values():
                ready(timed.model)

        def load_model_and_processor(self, name: str, *args: Any, **kwargs: Any) -> Any:
            from fastapi import HTTPException

            try:
                if name not in self.loaded_models and not kwargs.get("gguf_file"):
                    self._check(name)
                return super().load_model_and_processor(name, *args, **kwargs)
            except (ValueError, OSError, ImportError, NotImplementedError) as error:
                if not self._started:
                    raise
                # else the client is told "Internal Server Error"
                raise HTTPException(status_code=400, detail=" ".join(str(error).split())) from error

        def _load_model(self, *args: Any, **kwargs: Any) -> Any:
            with _one_load:
                model = super()._load_model(*args, **kwargs)
            if not model.can_generate():
                raise ValueError(
                    f"{model.name_or_path!r} is a {type(model).__name__}, which writes no text: its config names no "
                    f"language model (architectures). Give a causal language model."
                )
            return model

        def _check(self, name: str) -> None:
            """Before the tokenizer is loaded, whose error about a wrong key does not name the key."""
            folder, revision = (name, None) if Path(name).exists() else name.split("@", 1)
            for method in methods_in(folder, revision=revision, trust_remote_code=self.trust_remote_code):
                if asked and isinstance(method, AttentionMethod):
                    option = f"--{asked[0].replace('_', '-')}"
                    raise ValueError(
                        f"{folder!r} carries {method!r}, which does not work with {option}: it {REFUSED[asked[0]]}. "
                        f"Serve it without {option}; requests are then answered one after the other."
                    )

    return Manager
