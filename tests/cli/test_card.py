"""`hf-longctx card`, as a user calls it."""

from __future__ import annotations

from pathlib import Path

import pytest
from huggingface_hub import ModelCard
from typer.testing import CliRunner

from hf_longctx import LMInfinite
from hf_longctx.cli.main import app
from hf_longctx.hub.draft import save_for_hub
from tests.tiny import tiny, tokenizer


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    tiny().save_pretrained(folder / "stock")
    tokenizer().save_pretrained(folder / "stock")
    return save_for_hub(folder / "stock", folder / "long", method=LMInfinite(n_local=8)).folder


def card(*arguments: object) -> tuple[int, str]:
    found = CliRunner().invoke(app, ["card", *map(str, arguments)])
    return found.exit_code, " ".join(found.output.split())


def test_a_card_of_a_folder(made: Path) -> None:
    code, told = card(made, "--base-model", "owner/base", "--language", "en", "--repo-id", "you/long")
    assert code == 0, told
    assert f"Wrote {made / 'README.md'}." in told
    assert "Note: it has no results." in told
    assert "Note: the Hub is not told the model's license. Give --license." in told
    text = (made / "README.md").read_text()
    assert 'from_pretrained("you/long", trust_remote_code=True)' in text
    assert ModelCard(text).data.language == "en"


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--license", "Apache 2"], "Did you mean 'apache-2.0'?"),
        (["--results", "nothing.json"], "'nothing.json': there is no such file of results."),
        (["--repo-id", "a/b/c"], "cannot be a repository"),
        (["--repo-id", "long"], "'long' has no owner, so that the commands in the card"),
        (["--language", "xx"], "language='xx': the Hub has no such language"),
    ],
)
def test_wrong_values(arguments: list[str], says: str, made: Path) -> None:
    code, told = card(made, *arguments)
    assert (code, says in told) == (2, True), told


def test_what_is_no_model_and_what_somebody_wrote(made: Path, tmp_path: Path) -> None:
    code, told = card(tmp_path)
    assert (code, "expected the folder of a saved model" in told) == (2, True), told
    (made / "README.md").write_text("# Mine\n")
    code, told = card(made)
    assert (code, "was written or edited by somebody, and stays" in told) == (2, True), told
    assert (made / "README.md").read_text() == "# Mine\n"
    assert card(made, "--force")[0] == 0
    assert "## Loading" in (made / "README.md").read_text()
