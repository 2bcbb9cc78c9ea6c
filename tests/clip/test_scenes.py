"""Rendered scenes and their captions: the captions describe the drawing and its places."""

from __future__ import annotations

import pytest
import torch

from recipes.long_clip import scene_captions as captions
from recipes.long_clip import tasks
from recipes.long_clip.scenes import BADGES, COLOURS, FRAMES, HOURS, SHAPES, draw, render


def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def test_captions_tell_what_is_there() -> None:
    scenes = draw(30, generator())
    told = captions.long(scenes, generator(), 248)
    for row in range(30):
        summary, *details = captions.text_of(told.ids[row]).removesuffix(" .").split(" . ")
        main = scenes.main[row].tolist()
        assert f"a large {list(COLOURS)[main[0]]} {SHAPES[main[1]]}" in summary
        assert f"{captions.PATTERNS[main[2]]} {list(COLOURS)[main[3]]} ground" in summary
        assert f"{list(FRAMES)[main[4]]} frame" in summary
        for detail in details:
            words = detail.split()
            hour = words[words.index("o'clock") - 1]
            badge = BADGES[HOURS.index(hour)][scenes.small[row, HOURS.index(hour)]]
            assert f"{hour} o'clock the badge of the {badge}" in detail
        assert 5 <= len(details) <= 6


def test_lengths_and_starts() -> None:
    told = captions.long(draw(2000, generator()), generator(), 248)
    assert told.lengths.min() >= 100
    assert told.lengths.max() <= 248
    assert ((told.ids != captions.PAD).sum(1) == told.lengths).all()
    for row in range(20):
        at = told.starts[row][told.starts[row] < told.lengths[row] - 1]
        assert (at[1:] == 1 + (told.ids[row] == captions.WORDS.index(".")).nonzero()[:-1, 0]).all()
    cut = captions.long(draw(50, generator()), generator(), 77)
    assert cut.ids.shape == (50, 77)
    assert (cut.ids == captions.END).sum(1).eq(1).all()
    web = captions.web(draw(2000, generator()), generator(), 77)
    assert web.lengths.max() <= 248
    assert web.lengths.float().median() < 30


def test_pictures_show_every_attribute() -> None:
    scenes = draw(1, generator())
    before = render(scenes)
    assert before.shape == (1, 3, 64, 64)
    for attribute in range(5):
        other = draw(1, generator())
        other.main[0, attribute] = (other.main[0, attribute] + 1) % 4
        assert not torch.equal(render(other), before)
    other = draw(1, generator())
    other.small[0, 2] = (other.small[0, 2] + 1) % 12  # four o'clock: the corner
    changed = (render(other) != before).any(1)[0].nonzero()
    assert (changed >= torch.tensor([48, 48])).all()
    assert (changed < torch.tensor([64, 64])).all()


@pytest.mark.parametrize("position", tasks.POSITIONS)
def test_one_sentence_decides_and_starts_where_it_should(position: int) -> None:
    _, told = tasks.deciding(200, position, generator(), 248)
    ids = told.ids.unflatten(0, (20, tasks.ALIKE))
    differs = (ids != ids[:, :1]).any(1)
    first = differs.int().argmax(1)
    last = differs.shape[1] - 1 - differs.flip(1).int().argmax(1)
    assert (last - first <= 4).all()  # one word of a badge, two of the large shape
    starts = told.starts.unflatten(0, (20, tasks.ALIKE))[:, 0]
    start = torch.where(starts <= first[:, None], starts, 0).amax(1)
    assert ((start - position).abs() <= (8 if position < 200 else 12)).all()
    assert all(len({tuple(row.tolist()) for row in family}) == tasks.ALIKE for family in ids)
    assert (told.lengths <= 248).all()


def test_scenes_come_in_groups() -> None:
    scenes = draw(40, generator(), alike=10, shared=0.75)
    assert (scenes.main[:10] == scenes.main[:1]).all()
    same = (scenes.small[:10] == scenes.small[:1]).float().mean()
    assert 0.5 < same < 0.95
    with pytest.raises(ValueError, match="groups of at least 1 that divide"):
        draw(41, generator(), alike=10)


def test_summaries_asked_for_are_all_different() -> None:
    scenes = tasks.distinct(1000, generator())
    assert len(scenes) == len(scenes.main.unique(dim=0)) == 1000
    assert scenes.small.shape == (1000, 6)
    with pytest.raises(ValueError, match="different summaries"):
        tasks.distinct(20_000, generator())
