"""`hf-longctx serve`: transformers' server answers with the tokens of `generate`, method active, or does not start."""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import sys
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, GPT2Config, GPT2LMHeadModel

pytest.importorskip("fastapi")
pytest.importorskip("openai")
from openai import OpenAI
from typer.testing import CliRunner

import hf_longctx
from hf_longctx import LMInfinite, StreamingLLM
from hf_longctx.cli.main import app
from hf_longctx.generation.xl3m import XL3M
from hf_longctx.hub import load, save
from hf_longctx.hub.serve import _keeps_at_sign, described, methods_in, serve
from hf_longctx.method import write_key
from tests.children import python_path
from tests.tiny import VOCAB, tiny, tokenizer

ROOT = Path(__file__).parent.parent.parent
METHOD = LMInfinite(n_global=4, n_local=16)
LONG = [f"w{3 + (7 * i) % (VOCAB - 3)}" for i in range(70)]  # beyond the window
TOKENS = 12


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "hf_longctx.cli.main", "serve", *arguments]


def environment(home: Path) -> dict[str, str]:
    return {
        **os.environ,
        "PYTHONPATH": python_path(),
        "HF_HOME": str(home),
        "HF_HUB_OFFLINE": "1",
        "OMP_NUM_THREADS": "1",
    }


@dataclass
class Running:
    """A server in a process of its own."""

    url: str
    said: list[str]

    def ask(self, path: str, body: dict[str, Any] | None = None) -> tuple[int, Any]:
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self.url + path, data, {"Content-Type": "application/json"})
        try:
            with urllib.request.urlopen(request, timeout=60) as answer:
                return answer.status, json.load(answer)
        except urllib.error.HTTPError as error:
            return error.code, json.loads(error.read())


@contextmanager
def server(home: Path, *arguments: str) -> Iterator[Running]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    options = ["--host", "127.0.0.1", "--port", str(port), "--device", "cpu", "--dtype", "float32"]
    process = subprocess.Popen(
        command(*arguments, *options),
        env=environment(home),
        stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        text=True,
    )
    overdue = threading.Timer(120, process.kill)
    overdue.start()
    said: list[str] = []
    drained = threading.Thread(target=said.extend, args=(process.stderr,), daemon=True)
    try:
        for line in process.stderr:
            said.append(line)
            if "running on" in line:
                break
        else:
            pytest.fail("the server did not start: " + "".join(said))
        drained.start()  # a full pipe would stop the server
        yield Running(f"http://127.0.0.1:{port}", said)
    finally:
        overdue.cancel()
        process.kill()
        process.wait()
        if drained.ident is not None:
            drained.join()
        process.stderr.close()


def words() -> Any:
    made = tokenizer()
    made.chat_template = "{% for turn in messages %}{{ turn['content'] + ' ' }}{% endfor %}"
    return made


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model with a method in its config, and with settings of XL3M, which a server cannot reach."""
    model = tiny()
    METHOD.apply(model)
    XL3M().store_(model)
    return save(model, words(), tmp_path_factory.mktemp("serve") / "keyed")


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("home") / "hf"  # is not there


@pytest.fixture(scope="module")
def running(folder: Path, home: Path) -> Iterator[Running]:
    with server(home, str(folder)) as found:
        yield found


@pytest.fixture(scope="module")
def client(running: Running) -> OpenAI:
    return OpenAI(base_url=f"{running.url}/v1", api_key="none", max_retries=0)


@pytest.fixture(scope="module")
def expected(folder: Path) -> dict[int, str]:
    """What `generate` writes after so many words: with the method, which is not what the stock model writes."""
    made, answers = AutoTokenizer.from_pretrained(folder), {}
    extended, stock = AutoModelForCausalLM.from_pretrained(folder), AutoModelForCausalLM.from_pretrained(folder)
    hf_longctx.undo(stock)
    assert [patch.method for patch in hf_longctx.applied(extended)] == [METHOD.resolve(extended.config)]
    for length in range(40, 52):
        ids = made(" ".join(LONG[:length]), return_tensors="pt")["input_ids"]
        read = {"attention_mask": torch.ones_like(ids), "do_sample": False, "max_new_tokens": TOKENS}
        mine, theirs = (model.generate(ids, **read)[0, length:] for model in (extended, stock))
        assert not torch.equal(mine, theirs)
        answers[length] = made.decode(mine, skip_special_tokens=True)
    return answers


def with_key(folder: Path, key: Any) -> None:
    file = folder / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "hf_longctx": key}))


def question(folder: Path, length: int) -> dict[str, Any]:
    turns = [{"role": "user", "content": " ".join(LONG[:length])}]
    return {"model": str(folder), "messages": turns, "max_tokens": TOKENS, "temperature": 0}


def test_it_says_in_one_line_what_is_active(running: Running, folder: Path) -> None:
    line = next(line for line in running.said if line.startswith("Serving"))
    assert f"Serving at {running.url}/v1 LlamaForCausalLM with LMInfinite(n_global=4, n_local=16" in line
    assert "its XL3M settings are not used" in line
    assert f"model={str(folder)!r}" in line


def test_chat_with_the_openai_client(client: OpenAI, folder: Path, expected: dict[int, str]) -> None:
    answer = client.chat.completions.create(**question(folder, 40))
    assert answer.choices[0].message.content == expected[40]
    assert answer.usage is not None
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens) == (40, TOKENS)


def test_stream(client: OpenAI, folder: Path, expected: dict[int, str]) -> None:
    parts = [
        part.choices[0].delta.content
        for part in client.chat.completions.create(**question(folder, 41), stream=True)
        if part.choices and part.choices[0].delta.content
    ]
    assert len(parts) > 1
    assert "".join(parts) == expected[41]


def test_lines_of_the_guide_run_as_pasted(
    running: Running, folder: Path, expected: dict[int, str], capsys: pytest.CaptureFixture[str]
) -> None:
    guide = (ROOT / "docs" / "hub.md").read_text(encoding="utf-8")
    (code,) = [block for block in re.findall(r"```python\n(.*?)```", guide, re.DOTALL) if "OpenAI" in block]
    there = {
        "http://localhost:8000": running.url,
        "smollm2-long": str(folder),
        "stream=True": "stream=True, max_tokens=12",
    }
    there["What is the capital of France?"] = " ".join(LONG[:45])  # the tiny tokenizer's own words
    for usual, here in there.items():
        code = code.replace(usual, here)
    exec(code, {})
    assert capsys.readouterr().out == expected[45]


def test_completions(client: OpenAI, folder: Path, expected: dict[int, str]) -> None:
    prompt = " ".join(LONG[:42])
    answer = client.completions.create(model=str(folder), prompt=prompt, max_tokens=TOKENS, temperature=0)
    assert answer.choices[0].text == expected[42]


def test_chat_without_a_client(running: Running, folder: Path, expected: dict[int, str]) -> None:
    code, answer = running.ask("/v1/chat/completions", question(folder, 43))
    assert code == 200
    assert answer["choices"][0]["message"]["content"] == expected[43]


def test_twelve_requests_from_six_threads(running: Running, folder: Path, expected: dict[int, str]) -> None:
    with ThreadPoolExecutor(6) as threads:
        answers = list(threads.map(lambda n: running.ask("/v1/chat/completions", question(folder, n)), expected))
    assert [answer["choices"][0]["message"]["content"] for _, answer in answers] == list(expected.values())


def test_models_are_listed_where_nothing_was_downloaded(running: Running) -> None:
    code, listed = running.ask("/v1/models")
    assert code == 200
    assert isinstance(listed["data"], list)


def test_another_model_is_not_served(running: Running) -> None:
    code, answer = running.ask("/v1/chat/completions", {**question(Path("other"), 40)})
    assert code == 400
    assert "pinned" in answer["detail"]


def test_what_arrives_in_a_request_is_refused_with_its_reason(folder: Path, home: Path, tmp_path: Path) -> None:
    broken = save(tiny(), words(), tmp_path / "broken")
    with_key(broken, {"version": 1, "methods": [{"name": "x"}]})
    with server(home, "--continuous-batching") as running:
        assert any("the models that requests name" in line for line in running.said)
        for stream in (False, True):
            code, answer = running.ask("/v1/chat/completions", {**question(folder, 40), "stream": stream})
            assert code == 400
            assert "carries LMInfinite(n_global=4" in answer["detail"]
            assert "does not work with --continuous-batching" in answer["detail"]
        code, answer = running.ask("/v1/chat/completions", question(broken, 40))
        assert code == 400
        assert "hf_longctx: name='x'" in answer["detail"]
        assert running.ask("/health") == (200, {"status": "ok"})


def refused(home: Path, *arguments: str) -> str:
    done = subprocess.run(command(*arguments), env=environment(home), capture_output=True, text=True, timeout=100)
    assert done.returncode == 2, done.stderr
    return done.stderr


def test_continuous_batching_is_refused_at_the_start(folder: Path, home: Path) -> None:
    said = refused(home, str(folder), "--device", "cpu", "--continuous-batching")
    lines = [line for line in said.splitlines() if line.startswith("Error")]
    assert len(lines) == 1
    assert re.search(r"carries LMInfinite\(n_global=4.*does not work with --continuous-batching: .*Serve it", lines[0])


@pytest.fixture
def no_server(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Where a refusal is expected in this process, and does not come, the test fails instead of serving."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))  # it is created
    monkeypatch.setattr("uvicorn.Server.run", lambda _: pytest.fail("it serves"))


@pytest.mark.usefixtures("no_server")
def test_a_static_cache_is_refused_at_the_start(folder: Path) -> None:
    with pytest.raises(ValueError, match=r"carries LMInfinite.*work with --compile: it needs"):
        serve(str(folder), compile=True, device="cpu")
    from transformers.cli.serving import model_manager

    assert model_manager.ModelManager.__module__ == model_manager.__name__, "the stock class was not put back"


def test_a_model_that_the_method_does_not_fit(home: Path, tmp_path: Path) -> None:
    config = GPT2Config(vocab_size=VOCAB, n_embd=32, n_layer=1, n_head=4, n_positions=64)
    save(GPT2LMHeadModel(config), words(), tmp_path / "gpt2")
    with_key(tmp_path / "gpt2", write_key([METHOD]))
    said = refused(home, str(tmp_path / "gpt2"), "--device", "cpu")
    assert re.search("Error: .*GPT2", said)
    assert "Uvicorn" not in said


def test_an_adapter_and_the_way_to_serve_it(folder: Path, home: Path, tmp_path: Path) -> None:
    peft = pytest.importorskip("peft")
    base = AutoModelForCausalLM.from_pretrained(folder)
    adapted = peft.get_peft_model(base, peft.LoraConfig(target_modules=["q_proj"], init_lora_weights=False))
    adapted.save_pretrained(tmp_path / "adapter")
    words().save_pretrained(tmp_path / "adapter")
    said = refused(home, str(tmp_path / "adapter"))
    assert "is a PEFT adapter" in said
    # what the message says to do
    model, made = load(tmp_path / "adapter", dtype="checkpoint")
    save(model.merge_and_unload(), made, tmp_path / "merged")
    assert methods_in(str(tmp_path / "merged")) == [METHOD.resolve(base.config)]


@pytest.mark.usefixtures("no_server")
def test_names_and_options_that_there_are_not(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no such folder"):
        serve(str(tmp_path / "nowhere"))
    done = CliRunner().invoke(app, ["serve", str(tmp_path), "--prot", "80"])
    assert done.exit_code == 2
    assert "No such option: --prot" in done.output


@pytest.mark.usefixtures("no_server")
@pytest.mark.skipif(_keeps_at_sign(), reason="this transformers takes such names")
def test_a_folder_whose_name_would_be_cut(tmp_path: Path) -> None:
    save(tiny(), words(), tmp_path / "model@1000")
    with pytest.raises(ValueError, match=r"what follows '@' as a revision\. Rename"):
        serve(str(tmp_path / "model@1000"), device="cpu")


@pytest.mark.usefixtures("no_server")
def test_missing_packages_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("transformers.utils.import_utils.is_serve_available", lambda: False)
    done = CliRunner().invoke(app, ["serve", "model"])
    assert done.exit_code == 2
    assert "pip install '.[serve]' in a checkout" in done.output


def test_models_are_described() -> None:
    model = tiny()
    assert described(model) == "LlamaForCausalLM with no method: the stock model"
    with StreamingLLM(n_sink=4, window=16).on(model):
        assert described(model) == "LlamaForCausalLM with StreamingLLM(n_sink=4, window=16)"
    scaled = tiny(rope_parameters={"rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0})
    assert described(scaled) == "LlamaForCausalLM with no method: the stock model and its own RoPE scaling (yarn)"


def test_help_lists_the_options_of_transformers() -> None:
    done = CliRunner().invoke(app, ["serve", "--help"], env={"COLUMNS": "150"})
    assert done.exit_code == 0
    assert "smollm2-135m-instruct" in done.output
    for option in ("--port", "--attn-implementation", "--model-timeout", "--continuous-batching"):
        assert option in done.output


@pytest.mark.usefixtures("no_server")
def test_where_nothing_can_be_served_is_known_before_a_model_is_loaded(folder: Path) -> None:
    for port in (0, -1, 65536, 99_999_999):
        with pytest.raises(ValueError, match=f"--port {port}: expected a number from 1 to 65535"):
            serve(str(folder), port=port, device="cpu")
    with pytest.raises(OSError, match=r"--host no.such.host.invalid: there is no such address here"):
        serve(str(folder), host="no.such.host.invalid", device="cpu")
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        with pytest.raises(OSError, match=rf"--port {port}: something else listens at 127.0.0.1:{port}"):
            serve(str(folder), host="127.0.0.1", port=port, device="cpu")


@pytest.mark.usefixtures("no_server")
def test_a_model_that_writes_no_text_is_refused_at_the_start(tmp_path: Path) -> None:
    tiny().model.save_pretrained(tmp_path / "base")
    words().save_pretrained(tmp_path / "base")
    with pytest.raises(ValueError, match=r"is a LlamaModel, which writes no text"):
        serve(str(tmp_path / "base"), device="cpu")
