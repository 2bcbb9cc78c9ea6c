"""Images and captions on disk: what is read, and which errors name missing or broken ones."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from hf_longctx.clip import Pair, read_pairs
from hf_longctx.clip.embed import encode_captions, read_image
from hf_longctx.clip.pairs import first_sentence
from recipes.long_clip.smoke import write_model


def picture(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (9, 7), (200, 20, 20)).save(path)
    return path


def lines(path: Path, *rows: Any) -> Path:
    path.write_text("\n".join(row if isinstance(row, str) else json.dumps(row) for row in rows))
    return path


def test_jsonl(tmp_path: Path) -> None:
    image = picture(tmp_path / "pictures/a.png")
    long = "A red field. It is small. It has 3.5 corners."
    file = lines(
        tmp_path / "x.jsonl",
        {"image": "a.png", "caption": long},
        "",
        {"image": "a.png", "caption": long, "short": "Red"},
    )
    first, second = read_pairs(file, images=tmp_path / "pictures")
    assert first == Pair(image, long, "A red field.")
    assert second.short == "Red"


def test_sharegpt4v(tmp_path: Path) -> None:
    picture(tmp_path / "coco/a.jpg")
    turns = [{"from": "human", "value": "<image>"}, {"from": "gpt", "value": "A field.\nIt is red."}]
    (tmp_path / "x.json").write_text(json.dumps([{"image": "coco/a.jpg", "conversations": turns}]))
    (pair,) = read_pairs(tmp_path / "x.json")
    assert (pair.long, pair.short) == ("A field. It is red.", "A field.")
    (tmp_path / "x.json").write_text(json.dumps([{"image": "coco/a.jpg"}]))
    with pytest.raises(ValueError, match="row 0: expected ShareGPT4V's"):
        read_pairs(tmp_path / "x.json")


def test_folder(tmp_path: Path) -> None:
    picture(tmp_path / "deep/b.JPG")
    (tmp_path / "deep/b.txt").write_text("A field. It is red.\nRed\n")
    assert [(p.image.name, p.long, p.short) for p in read_pairs(tmp_path)] == [("b.JPG", "A field. It is red.", "Red")]
    picture(tmp_path / "c.png")
    with pytest.raises(ValueError, match=r"1 of 2 images have no caption: .*c\.png"):
        read_pairs(tmp_path)


@pytest.mark.parametrize("inside", ["\u2028", "\u2029", "\x85", "\x0b", "\x0c", "\x1c", "\r"])
def test_lines_end_at_line_feeds_only(inside: str, tmp_path: Path) -> None:
    picture(tmp_path / "b.png")
    long = f"A field.{inside}It is red."
    (tmp_path / "b.txt").write_bytes(f"{long}\r\nRed\r\n".encode())
    assert [(p.long, p.short) for p in read_pairs(tmp_path)] == [(long, "Red")]
    row = json.dumps({"image": "b.png", "caption": long, "short": "Red"}, ensure_ascii=False)
    (tmp_path / "x.jsonl").write_bytes(f"{row}\r\n".encode())
    assert [(p.long, p.short) for p in read_pairs(tmp_path / "x.jsonl")] == [(long, "Red")]


def test_first_sentence() -> None:
    assert first_sentence(" It is 3.5 m long. It is red. ") == "It is 3.5 m long."
    assert first_sentence("no stop") == "no stop"


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        ([{"image": "a.png", "caption": " "}, {"image": "a.png"}], "2 of 2 images have no caption: line 1, line 2"),
        (["{"], "line 1: not JSON"),
        ([{"caption": "x"}], 'line 1: expected {"image": path'),
        ([{"image": "a.png", "caption": "x", "short": 3}], "1 of 1 images have no caption"),
    ],
)
def test_wrong_lines_are_named(rows: list[Any], words: str, tmp_path: Path) -> None:
    picture(tmp_path / "a.png")
    with pytest.raises(ValueError, match=words):
        read_pairs(lines(tmp_path / "x.jsonl", *rows))


def test_missing_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no such file or folder"):
        read_pairs(tmp_path / "none")
    with pytest.raises(FileNotFoundError, match="no images with captions"):
        read_pairs(tmp_path)
    rows = [{"image": f"{i}.png", "caption": "x"} for i in range(5)]
    with pytest.raises(FileNotFoundError, match=r"5 of the 5 images .*0\.png.* and 2 more.*`images` names another"):
        read_pairs(lines(tmp_path / "x.jsonl", *rows))


def test_unreadable_image_is_named(tmp_path: Path) -> None:
    whole = picture(tmp_path / "a.png")
    assert read_image(whole).size == (9, 7)
    (tmp_path / "cut.png").write_bytes(whole.read_bytes()[:40])
    (tmp_path / "text.png").write_text("not an image")
    for name in ("cut.png", "text.png"):
        with pytest.raises(ValueError, match=rf"{name}' cannot be read as an image"):
            read_image(tmp_path / name)
    with pytest.raises(FileNotFoundError, match=r"no image .*none\.png"):
        read_image(tmp_path / "none.png")


def test_captions_beyond_the_limit_are_cut_only_when_asked(tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    write_model(tmp_path / "clip")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "clip")
    captions = ["a red ring .", "a large red ring on a plain blue ground . " * 20]
    ids = encode_captions(tokenizer, captions, 248)
    assert ids.shape == (2, 202)
    assert ids[0, 6:].eq(tokenizer.pad_token_id).all()
    with pytest.raises(ValueError, match=r"1 of 2 captions have more than the model's 77 tokens.*has 202"):
        encode_captions(tokenizer, captions, 77)
    cut = encode_captions(tokenizer, captions, 77, truncate=True)
    assert cut.shape == (2, 77)
    assert cut[1, -1] == tokenizer.eos_token_id
    with pytest.raises(ValueError, match="caption 1 is empty"):
        encode_captions(tokenizer, ["a ring .", " "], 77)
