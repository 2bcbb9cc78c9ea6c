"""`hf-longctx push`, `save` and `hub check` as commands, against a Hub: one commit, what it holds, what is refused."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from hf_longctx import XL3M, LMInfinite
from hf_longctx.hub import write_generate
from hf_longctx.hub.draft import save_for_hub
from hf_longctx.hub.outgoing import files_of
from tests.hub.lines import Lines
from tests.hub.server import Hub
from tests.tiny import tiny, tokenizer

TOKEN = "hf_" + "g" * 34
# the environment of the Hub's client is read when it is imported
COMMANDS = """
import json, sys, traceback
from typer.testing import CliRunner
from hf_longctx.cli.main import app
for line in sys.stdin:
    got = CliRunner().invoke(app, json.loads(line))
    if got.exception is not None and not isinstance(got.exception, SystemExit):
        traceback.print_exception(got.exception)
    print(json.dumps([got.exit_code, got.output]), flush=True)
"""


class Terminal(Lines):
    """A process in which commands are run one after another."""

    def run(self, *arguments: str | Path, code: int = 0) -> str:
        """What a command prints; its exit code must be `code`."""
        got, output = self.tell([str(argument) for argument in arguments])
        assert got == code, output + self.errors.read_text()
        return str(output)

    def refused(self, *arguments: str | Path) -> str:
        """The one line of a refusal."""
        output = self.run(*arguments, code=2).strip()
        assert output.startswith("Error: ")
        assert "\n" not in output
        return output


@pytest.fixture(scope="module")
def hub() -> Iterator[Hub]:
    with Hub() as hub:
        hub.users[TOKEN] = "tester"
        yield hub


@pytest.fixture(scope="module")
def terminal(hub: Hub, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Terminal]:
    home = tmp_path_factory.mktemp("home")
    terminal = Terminal(COMMANDS, hub.environment(TOKEN, home=home), home / "errors.txt", (TOKEN,))
    yield terminal
    terminal.end()


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    tiny().save_pretrained(folder / "stock")
    tokenizer().save_pretrained(folder / "stock")
    save_for_hub(folder / "stock", folder / "dual", method=LMInfinite(n_global=2, n_local=8))
    return folder


def files(hub: Hub, name: str, revision: str = "main") -> dict[str, bytes]:
    commit = hub.repos[name].at(revision)
    assert commit is not None
    return {path: file.data for path, file in commit.files.items()}


def commits(hub: Hub, name: str) -> int:
    return len(hub.repos[name].commits)


def test_a_model_becomes_one_commit_with_all_that_its_readers_need(hub: Hub, terminal: Terminal, models: Path) -> None:
    told = terminal.run("push", models / "stock", "tester/one", "--method", "lm_infinite", "--set", "n_local=8")
    assert f"{hub.url}/tester/one" in told
    assert "Tier: dual." in told
    assert "else: the stock model" in told
    assert commits(hub, "tester/one") == 2  # the repository's own, and this
    there = files(hub, "tester/one")
    assert {"config.json", "model.safetensors", "tokenizer.json", "modeling_hf_longctx.py", "README.md"} <= set(there)
    config: dict[str, Any] = json.loads(there["config.json"])
    assert config["architectures"] == ["LlamaForCausalLM"]
    assert config["auto_map"]["AutoModelForCausalLM"] == "modeling_hf_longctx.LongCtxLlamaForCausalLM"
    assert b'from_pretrained("tester/one", trust_remote_code=True)' in there["README.md"]
    checked = terminal.run("hub", "check", "tester/one")
    assert "LMInfinite(n_global=10, n_local=8" in checked
    assert "Tier: dual." in checked


def test_a_dry_run_sends_nothing(hub: Hub, terminal: Terminal, models: Path) -> None:
    before = len(hub.log)
    told = terminal.run("push", models / "dual", "tester/dry", "--plugin", "--dry-run")
    assert len(hub.log) == before
    assert "tester/dry" not in hub.repos
    assert "LFS  model.safetensors" in told
    assert "modeling_hf_longctx.py" not in told
    assert "Tier: plugin." in told
    assert "Nothing was sent" in told
    assert "'dry' has no owner, and --dry-run" in terminal.refused("push", models / "dual", "dry", "--dry-run")
    assert len(hub.log) == before


def test_a_repository_is_updated_only_when_asked_and_its_card_stays(hub: Hub, terminal: Terminal, models: Path) -> None:
    terminal.run("push", models / "dual", "tester/again", "--private")
    assert hub.repos["tester/again"].private
    assert "exists already" in terminal.refused("push", models / "dual", "tester/again")
    terminal.run("push", models / "dual", "tester/again", "--update", "--plugin", "--message", "No code", "--tag", "v1")
    there = files(hub, "tester/again")
    assert "modeling_hf_longctx.py" not in there
    assert b"trust_remote_code" not in there["README.md"]  # ours, and written again
    assert hub.repos["tester/again"].at("v1") is hub.repos["tester/again"].at("main")
    edited = hub.repos["tester/again"]
    file = edited.at("main").files["README.md"]
    edited.commit("main", "my words", {**edited.at("main").files, "README.md": type(file)(b"# Mine", False)})
    terminal.run("push", models / "dual", "tester/again", "--update")
    assert files(hub, "tester/again")["README.md"] == b"# Mine"
    assert "modeling_hf_longctx.py" in files(hub, "tester/again")
    terminal.run("push", models / "dual", "tester/again", "--update", "--revision", "native", "--plugin")
    assert "modeling_hf_longctx.py" in files(hub, "tester/again")
    assert "modeling_hf_longctx.py" not in files(hub, "tester/again", "native")
    assert "Tier: plugin." in terminal.run("hub", "check", "tester/again", "--revision", "native")


def test_what_is_wrong_with_a_model_is_told_before_anything_is_sent(
    hub: Hub, terminal: Terminal, models: Path, tmp_path: Path
) -> None:
    save_for_hub(models / "dual", tmp_path / "model")
    bad = tmp_path / "model"
    for name, text, words in (
        ("training_args.bin", "x", "training_args.bin is a pickle"),
        (".env", "x", ".env"),
        ("notes.txt", f"my token is {TOKEN}", "notes.txt"),
    ):
        (bad / name).write_text(text)
        assert words in terminal.refused("push", bad, "tester/bad")
        (bad / name).unlink()
    code = (bad / "modeling_hf_longctx.py").read_text()
    (bad / "modeling_hf_longctx.py").write_text(code + "import os\n")
    assert "edited by hand" in terminal.refused("push", bad, "tester/bad")
    (tmp_path / "empty").mkdir()
    assert "without a config.json" in terminal.refused("push", tmp_path / "empty", "tester/bad")
    assert "tester/bad" not in hub.repos


def test_names_and_tokens(hub: Hub, terminal: Terminal, models: Path, tmp_path: Path) -> None:
    dual = models / "dual"
    assert "cannot be a repository" in terminal.refused("push", dual, "tester/my model")
    assert "may not write to 'other'" in terminal.refused("push", dual, "other/model")
    assert "--token-file FILE" in terminal.refused("push", dual, "tester/token", "--token", TOKEN)
    (tmp_path / "token.txt").write_text("hf_" + "w" * 34 + "\n")
    (tmp_path / "token.txt").chmod(0o600)
    assert "does not accept the token" in terminal.refused(
        "push", dual, "tester/token", "--token-file", tmp_path / "token.txt"
    )
    assert "tester/token" not in hub.repos
    (tmp_path / "token.txt").write_text(f"{TOKEN}\n")
    terminal.run("push", dual, "tester/token", "--token-file", tmp_path / "token.txt")
    assert TOKEN.encode() not in b"".join(files(hub, "tester/token").values())
    assert "not a folder here" in terminal.refused("hub", "check", "tester/nothing")


def test_tokens_among_arguments_are_not_repeated(hub: Hub, terminal: Terminal, models: Path, tmp_path: Path) -> None:
    dual, before = models / "dual", len(hub.log)
    for arguments in (
        ("tester/token2", TOKEN),
        (TOKEN,),
        ("tester/token2", "--token-file", TOKEN),
        ("tester/token2", "--hf-token", TOKEN),
        ("tester/token2", f"--token={TOKEN}"),
        ("tester/token2", "--message", TOKEN),
    ):
        assert "--token-file FILE" in terminal.refused("push", dual, *arguments)
    assert "holds a token" in terminal.refused("push", dual, "tester/token2", "--message", f"with {TOKEN}")
    told = terminal.refused("push", dual, "tester/token2", "--token-file", tmp_path / "none")
    assert f"--token-file {tmp_path / 'none'}: it cannot be read (No such file" in told
    assert len(hub.log) == before


def test_a_name_alone_is_the_user_s_in_the_card_too(hub: Hub, terminal: Terminal, models: Path) -> None:
    terminal.run("push", models / "dual", "alone")
    assert b'from_pretrained("tester/alone", trust' in files(hub, "tester/alone")["README.md"]


def test_a_card_with_results_is_accepted_and_its_files_go_along(
    hub: Hub, terminal: Terminal, models: Path, tmp_path: Path
) -> None:
    row = {
        "what": "passkeys, 4k",
        "value": 0.9949999999,
        "unit": "",
        "beside": {"stock": 0.1},
        "detail": {"length": 4096},
    }
    made = {"command": "x", "commit": "abc", "hardware": "CPU", "date": "2026-01-01", "model": "base", "versions": {}}
    (tmp_path / "keys.json").write_text(json.dumps({**made, "rows": [row, {**row, "what": "needles, 4k"}]}))
    options = ("--results", tmp_path / "keys.json", "--base-model", "owner/base")
    terminal.run("push", models / "dual", "tester/measured", *options)
    there = files(hub, "tester/measured")
    assert there["measured/keys.json"] == (tmp_path / "keys.json").read_bytes()
    for told in (
        "value: 0.995",
        "url: https://huggingface.co/tester/measured/blob/main/measured/keys.json",
        "| needles, 4k | 0.995 | 0.1 |",
        "base_model: owner/base",
    ):
        assert told.encode() in there["README.md"], told
    copy = tmp_path / "copy"
    terminal.run("save", models / "dual", "--out", copy, *options)
    assert "the Hub has no such licence" in terminal.refused("card", copy, "--license", "no such")
    (copy / "README.md").write_text("---\nlicense: no such\n---\n# Mine\n")
    assert '"license" must be one of' in terminal.run("push", copy, "tester/refused", code=2)


def test_what_was_done_is_told(hub: Hub, terminal: Terminal, models: Path) -> None:
    told = terminal.run("push", models / "stock", "tester/told", "--method", "lm_infinite")
    for step in ("loading ", "saving ", "sending ", "as one commit"):
        assert step in told
    again = terminal.run("push", models / "stock", "tester/told", "--method", "lm_infinite", "--update")
    assert "No new commit: main had exactly these files." in again
    assert "sending" not in again
    told = terminal.run("push", models / "dual", "tester/told", "--update", "--plugin")
    assert "Deleted there: modeling_hf_longctx.py." in told


def test_models_and_ways_to_generate_do_not_share_a_repository(
    hub: Hub, terminal: Terminal, models: Path, tmp_path: Path
) -> None:
    procedure = write_generate(tmp_path / "xl3m", XL3M())
    assert "push_generate" in terminal.refused("push", procedure, "tester/xl3m")
    assert "holds a way to generate" in terminal.refused("hub", "check", procedure)
    terminal.run("push", models / "stock", "tester/ways")
    hub.repos["tester/ways"].commit("main", "both", {
        path: type(next(iter(hub.repos["tester/ways"].at("main").files.values())))(file.read_bytes(), False)
        for path, file in files_of(procedure).items()
    })  # fmt: skip
    told = terminal.refused("hub", "check", "tester/ways")
    assert told.startswith("Error: 'tester/ways' holds a way to generate")
    assert "take the place of every" in terminal.refused("push", models / "dual", "tester/ways", "--update")


def test_a_revision_that_is_not_there(terminal: Terminal, models: Path) -> None:
    terminal.run("push", models / "dual", "tester/revised")
    told = terminal.refused("hub", "check", "tester/revised", "--revision", "nope")
    assert "'tester/revised' is on the Hub, and has no revision 'nope'" in told


def test_a_folder_is_saved_checked_and_repaired(terminal: Terminal, models: Path, tmp_path: Path) -> None:
    told = terminal.run("save", models / "stock", "--out", tmp_path / "out", "--method", "streaming_llm")
    assert "Tier: dual." in told
    assert "is not empty" in terminal.refused("save", models / "stock", "--out", tmp_path / "out")
    (tmp_path / "out" / "modeling_hf_longctx.py").unlink()
    told = terminal.run("hub", "check", tmp_path / "out", code=1)
    assert "Tier: plugin." in told
    assert "hf-longctx hub repair" in told
    assert "modeling_hf_longctx.py: written" in terminal.run("hub", "repair", tmp_path / "out")
    assert "Tier: dual." in terminal.run("hub", "check", tmp_path / "out")
    assert "nothing to repair" in terminal.run("hub", "repair", tmp_path / "out")
