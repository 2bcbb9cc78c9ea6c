"""Retrieval both ways by hand, the published protocols' files, zero-shot classes, bins, and a whole evaluation."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from hf_longctx.clip.evaluation import (
    Bin,
    Retrieval,
    by_bins,
    caption_lengths,
    class_embeddings,
    classify,
    evaluate_pairs,
    evaluate_retrieval,
    evaluate_zero_shot,
    found,
    read_classes,
    read_protocol,
    recall,
)
from tests.clip.test_pairs import picture
from tests.clip.two import parts


def test_recall_equals_counting_by_hand() -> None:
    images = F.normalize(torch.randn(20, 6), dim=-1)
    image_of = torch.arange(20).repeat_interleave(3)
    captions = F.normalize(images[image_of] + 0.8 * torch.randn(60, 6), dim=-1)
    shown = torch.randperm(60)
    image_of, captions = image_of[shown], captions[shown]
    ours = recall(images, captions, image_of, ks=(1, 5))
    for k in (1, 5):
        near = (captions @ images.T).topk(k).indices
        texts = sum(int(image_of[c]) in near[c].tolist() for c in range(60)) / 60
        near = (images @ captions.T).topk(k).indices
        pictures = sum(i in image_of[near[i]].tolist() for i in range(20)) / 20
        assert ours.text_to_image[k] == pytest.approx(texts)
        assert ours.image_to_text[k] == pytest.approx(pictures)
    assert (ours.images, ours.captions) == (20, 60)
    assert float(found(images, captions, image_of).double().mean()) == pytest.approx(ours.text_to_image[1])


def test_a_model_that_sees_nothing_finds_nothing() -> None:
    same = torch.ones(10, 4) / 2
    assert recall(same, same, ks=(1,)).text_to_image[1] == recall(same, same, ks=(1,)).image_to_text[1] == 0


@pytest.mark.parametrize(
    ("sizes", "image_of", "words"),
    [
        ((3, 4), None, "3 images and 4 captions: give image_of"),
        ((3, 4), [0, 1, 2, 3], "whole numbers from 0 to 2"),
        ((3, 4), [0, 0, 1, 1], "1 of 3 images have no caption"),
        ((0, 0), None, "at least one row"),
    ],
)
def test_wrong_embeddings_are_told(sizes: tuple[int, int], image_of: Any, words: str) -> None:
    owner = None if image_of is None else torch.tensor(image_of)
    with pytest.raises(ValueError, match=words):
        recall(torch.randn(sizes[0], 4), torch.randn(sizes[1], 4), owner)
    with pytest.raises(ValueError, match="not finite"):
        recall(torch.full((2, 4), torch.nan), torch.randn(2, 4))
    with pytest.raises(ValueError, match="expected whole numbers from 1"):
        recall(torch.randn(2, 4), torch.randn(2, 4), ks=(0,))


def test_bins() -> None:
    hits, lengths = torch.tensor([True, False, True]), torch.tensor([5, 25, 30])
    assert by_bins(hits, lengths, [0, 20, 40, 60]) == [Bin(0, 20, 1.0, 1), Bin(20, 40, 0.5, 2), Bin(40, 60, None, 0)]
    with pytest.raises(ValueError, match="each above the one before"):
        by_bins(hits, lengths, [20, 20])
    assert caption_lengths(torch.tensor([[1, 5, 9, 0], [1, 5, 5, 9]]), 9).tolist() == [3, 4]
    with pytest.raises(ValueError, match="without its end token"):
        caption_lengths(torch.tensor([[1, 5]]), 9)


def coco(root: Path) -> None:
    images = [{"id": 7, "file_name": "a.jpg"}, {"id": 3, "file_name": "b.jpg"}]
    notes = [{"image_id": one["id"], "caption": f" {one['file_name']} {i} "} for i in range(6) for one in images]
    (root / "annotations").mkdir()
    (root / "annotations/captions_val2017.json").write_text(json.dumps({"images": images, "annotations": notes}))


def flickr_token(root: Path) -> None:
    (root / "results_20130124.token").write_text("".join(f"{n}.jpg#{i}\t{n}.jpg {i}\n" for n in "ab" for i in range(5)))


def flickr_csv(root: Path) -> None:
    rows = "".join(f"{n}.jpg| {i}| {n}.jpg {i}\n" for n in "ab" for i in range(5))
    (root / "results.csv").write_text("image_name| comment_number| comment\n" + rows)


@pytest.mark.parametrize("write", [coco, flickr_token, flickr_csv])
def test_five_captions_an_image(write: Any, tmp_path: Path) -> None:
    write(tmp_path)
    data = read_protocol(write.__name__.split("_")[0].replace("flickr", "flickr30k"), tmp_path)
    assert [image.name for image in data.images] == ["a.jpg", "b.jpg"]
    assert data.image_of == [0] * 5 + [1] * 5
    assert data.captions == [f"{name}.jpg {i}" for name in "ab" for i in range(5)]


def test_urban1k_reads_first_lines_in_order_of_number(tmp_path: Path) -> None:
    for name in ("1", "2", "10"):
        picture(tmp_path / f"image/{name}.jpg")
        (tmp_path / "caption").mkdir(exist_ok=True)
        (tmp_path / f"caption/{name}.txt").write_text(f"street {name}\nmore")
    data = read_protocol("urban1k", tmp_path)
    assert data.captions == ["street 1", "street 2", "street 10"]
    assert data.truncate
    (tmp_path / "image/2.jpg").unlink()
    with pytest.raises(FileNotFoundError, match=r"no 2\.jpg or 2\.png"):
        read_protocol("urban1k", tmp_path)


@pytest.mark.parametrize("inside", ["\u2028", "\x85", "\x0b", "\x0c", "\r"])
def test_lines_of_captions_end_at_line_feeds_only(inside: str, tmp_path: Path) -> None:
    picture(tmp_path / "image/1.jpg")
    (tmp_path / "caption").mkdir()
    (tmp_path / "caption/1.txt").write_bytes(f"street{inside}1\r\nmore".encode())
    assert read_protocol("urban1k", tmp_path).captions == [f"street{inside}1"]
    rows = "".join(f"a.jpg#{i}\ta{inside}{i}\r\n" for i in range(5))
    (tmp_path / "results_20130124.token").write_bytes(rows.encode())
    assert read_protocol("flickr30k", tmp_path).captions == [f"a{inside}{i}" for i in range(5)]


def test_sharegpt4v_takes_the_first_thousand(tmp_path: Path) -> None:
    row = {"image": "a.jpg", "conversations": [{}, {"value": "A field."}]}
    (tmp_path / "share-captioner_coco_lcs_sam_1246k_1107.json").write_text(json.dumps([row] * 1003))
    assert len(read_protocol("sharegpt4v", tmp_path).captions) == 1000


def test_wrong_benchmarks_are_told(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="expected one of coco, flickr30k, urban1k, sharegpt4v"):
        read_protocol("imagenet", tmp_path)
    with pytest.raises(FileNotFoundError, match="no such folder"):
        read_protocol("coco", tmp_path / "none")
    with pytest.raises(FileNotFoundError, match=r"no annotations/captions_val2017\.json or captions_val2017\.json"):
        read_protocol("coco", tmp_path)
    (tmp_path / "results_20130124.token").write_text("a.jpg#0\tone\n")
    with pytest.raises(ValueError, match=r"a\.jpg has 1 captions; flickr30k's protocol takes 5"):
        read_protocol("flickr30k", tmp_path)


def test_classes_are_means_over_templates() -> None:
    seen: list[str] = []

    def embed(texts: list[str]) -> torch.Tensor:
        seen.extend(texts)
        return torch.eye(4)[: len(texts)]

    classes = class_embeddings(embed, ["cat", "dog"], ["a {}.", "the {}."])
    assert seen == ["a cat.", "the cat.", "a dog.", "the dog."]
    half = 0.5**0.5
    torch.testing.assert_close(classes, torch.tensor([[half, half, 0, 0], [0, 0, half, half]]))
    assert classify(torch.eye(4)[[0, 2, 3]], classes, torch.tensor([0, 1, 0])) == {1: pytest.approx(2 / 3)}
    with pytest.raises(ValueError, match=r"expected texts with one \{\}"):
        class_embeddings(embed, ["cat"], ["a cat"])
    with pytest.raises(ValueError, match="each once"):
        class_embeddings(embed, ["cat", "cat"])
    with pytest.raises(ValueError, match="numbers from 0 to 1"):
        classify(torch.eye(4), classes, torch.tensor([0, 1, 2, 0]))


def test_folders_of_classes(tmp_path: Path) -> None:
    picture(tmp_path / "fire_truck/1.png")
    with pytest.raises(ValueError, match="needs two at least"):
        read_classes(tmp_path)
    picture(tmp_path / "cat/2.png")
    images, labels, names = read_classes(tmp_path)
    assert ([image.name for image in images], labels.tolist(), names) == (
        ["2.png", "1.png"],
        [0, 1],
        ["cat", "fire truck"],
    )
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="has no images"):
        read_classes(tmp_path)


def test_a_model_is_evaluated_on_files(scene_files: Path, tmp_path: Path) -> None:
    model, tokenizer, processor, pairs = parts(scene_files)
    report = evaluate_pairs(model, tokenizer, processor, pairs, batch=16)
    assert report.long.captions == report.short.images == 40
    assert sum(one.count for one in report.by_length) == 40
    assert not model.training
    data = Retrieval(
        "own", [pair.image for pair in pairs], [pair.long for pair in pairs], list(range(40)), truncate=False
    )
    assert evaluate_retrieval(model, tokenizer, processor, data, batch=16) == report.long
    twice = dataclasses.replace(
        data, captions=[text for text in data.captions for _ in (0, 1)], image_of=[i // 2 for i in range(80)]
    )
    assert evaluate_retrieval(model, tokenizer, processor, twice).captions == 80
    for name in ("red_ring", "blue_cross"):
        picture(tmp_path / f"{name}/1.png")
    assert evaluate_zero_shot(model, tokenizer, processor, tmp_path, ["a large {} ."])[1] in (0.0, 0.5, 1.0)
