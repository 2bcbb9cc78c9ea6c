"""Plans of AgentWrite as models write them: read, repaired, or refused with the reason."""

from __future__ import annotations

import pytest

from recipes.long_writer.agent_write_plan import Step, asked_words, plan_prompt, read_plan
from recipes.long_writer.agent_write_steps import read_paragraph, step_prompt
from recipes.long_writer.replies import Reply, Unusable

FORMS = {
    "as asked": "1. The storm (300 words)\n2. The calm (200 words)",
    "as in the paper": "Paragraph 1 - Main Point: The storm - Word Count: 300 words\n\n"
    "Paragraph 2 - Main Point: The calm - Word Count: 200 words",
    "Markdown, and talk around it": "Here is a 500-word plan in 2 parts:\n\n"
    "**1. The storm** (300 words)\n### 2) The calm *(200 words)*\n\nThis makes 500 words. 2.5 pages!",
    "a table": "| # | point | words |\n|---|---|---|\n| 1 | The storm | 300 words |\n| 2 | The calm | 200 words |",
    "a range": "1. The storm (250-350 words)\n2. The calm (150 to 250 words)",
    "after thinking": "<think>1. no\n2. no</think>1. The storm (300 words)\n2. The calm (200 words)",
    "numbers that leave a gap": "1. The storm (300 words)\n3. The calm (200 words)",
    "half as much as asked for": "1. The storm (150 words)\n2. The calm (100 words)",
}


@pytest.mark.parametrize("form", FORMS)
def test_forms_of_a_plan(form: str) -> None:
    assert read_plan(Reply(FORMS[form], True), 500) == [Step("The storm", 300), Step("The calm", 200)]


def test_a_plan_is_brought_to_the_words_asked_for() -> None:
    text = "1. a (200 words)\n2. b (300 words)\n3. c\n4. a poem of 9 words about d (400 words)"
    steps = read_plan(Reply(text, True), 1000)
    assert [step.words for step in steps] == [167, 250, 250, 333], "c gets the mean of the others"
    assert steps[3].point == "a poem of 9 words about d"
    assert [step.words for step in read_plan(Reply(text, True), None)] == [200, 300, 300, 400]


JUNK = {
    "": "no line begins with the number of a paragraph",
    "I would be glad to help you with this! Should it be funny?": "no line begins with the number",
    "1. The storm\n2. The calm": "no line says how many words",
    "1. (300 words)\n2. The calm (200 words)": "it does not say what paragraph 1 tells",
    "1. a (300 words)\n2. b (200 words)\n1. a (300 words)": "the numbers 1, 2, 1, which do not count up",
    "1. a (2,000 words)\n2. b (3,000 words)": "5000 words together, and 500 were asked for",
    "1. a (20 words)": "20 words together, and 500 were asked for",
    "1. a (5 words)\n2. b (495 words)": "a paragraph has 5 words",
    "\n".join(f"{i}. a (200 words)" for i in range(1, 60)): "it has 59 paragraphs, and 50 are the most",
    "1. " + "* " * 200_000: "it does not say what paragraph 1 tells",
    "9" * 300_000: "no line begins with the number",
    "1. a (" + "9" * 1000 + " words)": "no line says how many words",
    "1. a (1,000,000 words)": "1000000 words together, and 500 were asked for",
}


@pytest.mark.parametrize("text", JUNK, ids=lambda text: text[:20].replace("\n", " ") or "empty")
def test_junk_is_no_plan(text: str) -> None:
    with pytest.raises(Unusable, match=JUNK[text]):
        read_plan(Reply(text, True), 500)


def test_a_plan_that_was_cut_off_is_none() -> None:
    with pytest.raises(Unusable, match="not finished"):
        read_plan(Reply(FORMS["as asked"], False), 500)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("Write a 3,000-word story", 3000),
        ("Tell me of Rome in 2.5k words.", 2500),
        ("at least 800 words about 12 cats", 800),
        ("写一篇5000字的小说", 5000),
        ("Write about 12 cats", None),
        ("in 0 words", None),
        ("9" * 5000 + " words", None),
        ("between 1,200 and 1,500 words", 1500),
        ("Version 2.5 in 300 words", 300),
    ],
)
def test_words_that_an_instruction_asks_for(text: str, words: int | None) -> None:
    assert asked_words(text) == words
    assert (f"have {words} words" in plan_prompt(text, words)) == bool(words)


def test_paragraphs_are_held_to_their_words() -> None:
    assert read_paragraph(Reply("**Paragraph 2:**\n\nOn the way home.", True), 4) == "On the way home."
    assert read_paragraph(Reply("Step 3 - On the way home.", True), 4) == "On the way home."
    for text, ended, why in (
        (" \n", True, "it is empty"),
        ("<think>" + "w " * 9 + "</think>", True, "it is empty"),
        ("w " * 400, False, "it did not end after 400 words"),
        ("w " * 24, True, "it has 24 words, and about 100"),
        ("w " * 400_000, True, "it has 400000 words, and about 100"),
    ):
        with pytest.raises(Unusable, match=why):
            read_paragraph(Reply(text, ended), 100)


def test_requests_for_paragraphs_begin_alike() -> None:
    """So that a server reads the plan and the text once."""
    steps = [Step("The storm", 300), Step("The calm", 200)]
    first, second = step_prompt("Write!", steps, []), step_prompt("Write!", steps, ["It blew."])
    assert first.split("(Nothing is written")[0] == second.split("It blew.")[0]
    assert "goes on after it" in first
    assert "It ends the text." in second
