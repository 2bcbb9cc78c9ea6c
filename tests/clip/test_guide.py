"""The lines of docs/clip.md and of the card run as pasted, on rendered scenes; so does the recipe's smoke form."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import CLIPModel

from hf_longctx.clip import stretch_checkpoint
from hf_longctx.clip.embed import image_embeddings, text_embeddings
from recipes.long_clip import card, miniature, smoke, train
from recipes.long_clip.figures import main as draw
from tests.clip.two import parts
from tests.hub import validate_yaml

ROOT = Path(__file__).resolve().parents[2]


def blocks(path: str, since: str = "") -> list[str]:
    text = (ROOT / path).read_text(encoding="utf-8")
    return re.findall(r"```python\n(.*?)```", text[text.index(since) :], re.DOTALL)


@pytest.fixture
def pasted(scene_files: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with captions, a stretched model, a CLIP in the place of OpenAI's, and benchmarks."""
    monkeypatch.setattr(smoke, "SMOKE", miniature.Size(width=40, heads=2, layers=1))  # more than 32 components
    smoke.write_model(tmp_path / "openai/clip-vit-base-patch16")
    stretch_checkpoint(tmp_path / "openai/clip-vit-base-patch16", tmp_path / "clip-248")
    shutil.copytree(scene_files / "pairs", tmp_path, dirs_exist_ok=True)
    for number, word in enumerate(("ring", "square", "cross")):
        for place in (f"Urban1k/image/{number}.png", f"classes/{word}/1.png"):
            (tmp_path / place).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(tmp_path / f"{number}.png", tmp_path / place)
        (tmp_path / "Urban1k/caption").mkdir(exist_ok=True)
        (tmp_path / f"Urban1k/caption/{number}.txt").write_text(f"a large {word} .")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_guide_trains_and_evaluates(pasted: Path) -> None:
    training, loop, evaluation = blocks("docs/clip.md", since="## Train")
    names: dict[str, Any] = {"torch": torch}
    exec(training, names)
    assert CLIPModel.from_pretrained("clip-long").config.text_config.max_position_embeddings == 248
    assert len((pasted / "run/log.jsonl").read_text().splitlines()) == 6

    def embeddings(model: Any) -> tuple[torch.Tensor, ...]:
        pixels, ids = torch.randn(34, 3, 64, 64), torch.randint(2, 30, (2, 34, 30))
        ids[..., -1] = model.config.text_config.eos_token_id
        return image_embeddings(model, pixels), text_embeddings(model, ids[0]), text_embeddings(model, ids[1])

    names["embeddings"] = embeddings
    table = names["model"].text_model.embeddings.position_embedding.weight
    before = table.detach().clone()
    exec(loop, names)
    assert torch.equal(table[:20], before[:20])
    assert not torch.equal(table[20:30], before[20:30])
    exec(evaluation, names)


def test_lines_of_the_card(pasted: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pushed: list[str] = []
    monkeypatch.setattr("transformers.PreTrainedModel.push_to_hub", lambda self, name: pushed.append(name))
    (code,) = blocks("model_cards/long_clip.md")
    exec(code.replace("batch=256", "batch=34"), {})
    assert pushed == ["you/clip-long"]
    assert CLIPModel.from_pretrained(pasted / "clip-long").config.text_config.max_position_embeddings == 248


def test_the_recipe_writes_a_card(tmp_path: Path) -> None:
    smoke.write_model(tmp_path / "model")
    recall = {"text_to_image": {1: 0.5, 5: 0.75}, "image_to_text": {1: 0.25, 5: 1.0}, "images": 4, "captions": 4}
    bins = [{"low": 0, "high": 78, "share": None, "count": 0}, {"low": 78, "high": 249, "share": 0.5, "count": 4}]
    found = {"held out": {"long": recall, "short": recall, "by_length": bins}, "coco": recall, "classes": {1: 0.125}}
    report = {"before": {"held out": {"long": recall, "short": recall, "by_length": []}}, "after": found}
    card.write(report, {"model": "owner/clip"}, 248, tmp_path)
    text = (tmp_path / "model/README.md").read_text(encoding="utf-8")
    for line in (
        "| held out, long captions, text to image, R@1 | 50 | 50 % |",
        "| held out, R@1 of captions of 78 to 248 tokens | – | 50 % |",
        "| coco, image to text, R@5 | – | 100 % |",
        "| classes, top-1 | – | 12.5 % |",
        "pipeline_tag: zero-shot-image-classification",
        "base_model: owner/clip",
        "# clip-248",
    ):
        assert line in text, line
    assert validate_yaml.errors(text) == []


def test_recipe_smoke(capsys: pytest.CaptureFixture[str]) -> None:
    train.main(["--smoke"])
    assert '"positions": 248' in capsys.readouterr().out


def test_recipe_resumes_with_adapters(scene_files: Path, tmp_path: Path) -> None:
    config = {
        "model": str(scene_files / "clip"),
        "pairs": str(scene_files / "pairs/captions.jsonl"),
        "held_out": 8,
        "out": str(tmp_path),
        "training": {"batch": 16, "epochs": 2, "components": 8, "lora": 2, "save_every": 1},
    }
    before = train.run(config)["before"]
    again = train.run(config, resume=True)  # nothing left to train: measured and saved again
    assert again["before"] == json.loads(json.dumps(before, default=str))
    assert (tmp_path / "model/tokenizer_config.json").is_file()
    with pytest.raises(ValueError, match="speed: not settings of this recipe"):
        train.run(config | {"speed": 1})
    with pytest.raises(ValueError, match="the config lacks out"):
        train.run({"model": "x", "pairs": "y"})
    with pytest.raises(ValueError, match="held_out: 40 of 40 pairs"):
        train.run(config | {"held_out": 40})


def test_miniature_runs_and_is_drawn(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    miniature.main(["--smoke", "--out", str(tmp_path)])
    rows = json.loads((tmp_path / "long_clip.json").read_text(encoding="utf-8"))["rows"]
    assert [row["what"].split(",")[0] for row in rows if "path" in row.get("detail", {})] == list(miniature.NAMES)
    assert sum(row["bar"] is not None for row in rows) == 8
    draw(["--result", str(tmp_path / "long_clip.json"), "--out", str(tmp_path)])
    assert {file.name for file in tmp_path.glob("*.png")} == {"long_clip.png", "long_clip_scenes.png"}


def test_miniature_models_start_where_they_should(scene_files: Path) -> None:
    base = parts(scene_files)[0]  # any CLIP
    base = miniature.build(miniature.SMOKE, 77).to(base.device)
    table = base.text_model.embeddings.position_embedding.weight
    starts = {name: miniature.start(name, base, miniature.SMOKE) for name in miniature.NAMES}
    tables = {name: model.text_model.embeddings.position_embedding.weight for name, model in starts.items()}
    assert all(one.shape[0] == 248 for one in tables.values())
    assert torch.equal(tables["Long-CLIP"][:20], table[:20])
    assert torch.equal(tables["native"][:77], table)
    torch.testing.assert_close(tables["interpolated"][[0, -1]], table[[0, -1]])
    assert not torch.allclose(tables["interpolated"][1], table[1])
    ids = torch.randint(2, 30, (1, 12))
    assert torch.equal(base.text_model.embeddings(ids), starts["native"].text_model.embeddings(ids))
