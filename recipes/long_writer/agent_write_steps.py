"""A long text by its plan, paragraph after paragraph, each with all before it in sight (AgentWrite, step II)."""

from __future__ import annotations

import functools
import re

from hf_longctx.evaluation.benchmarks.longwriter import n_words

from .agent_write_plan import LONGEST, TOKENS, Step, plan_prompt, plan_text, read_plan
from .replies import LeftOut, Model, Reply, Unusable, until_usable

_LABEL = re.compile(r"^\W*(?:paragraph|step)\s*\d+\W*\n|^\W*(?:paragraph|step)\s*\d+\s*[:.-]\s*", re.IGNORECASE)


def written(writer: Model, instruction: str, asked: int | None, tries: int = 3) -> str:
    """A text that an instruction asks for.

    Args:
        writer: Plans and writes.
        instruction: What is asked for.
        asked: Words in all; None: as many as the plan has.
        tries: Requests for the plan, and for each paragraph, until a reply can be used.

    Raises:
        LeftOut: There is no plan, or a paragraph, that can be used; or more is asked for than a plan holds.
    """
    if asked is not None and asked > LONGEST:
        raise LeftOut(f"{asked} words are asked for, and a plan has at most {LONGEST}")
    read = functools.partial(read_plan, asked=asked)
    steps = until_usable(writer, plan_prompt(instruction, asked), TOKENS, read, "the plan", tries)
    paragraphs: list[str] = []
    for number, step in enumerate(steps, 1):
        prompt = step_prompt(instruction, steps, paragraphs)
        check = functools.partial(read_paragraph, words=step.words)
        # three times the asked words have room: a text that is cut has no end to learn from
        most = max(512, 6 * step.words)
        paragraphs.append(until_usable(writer, prompt, most, check, f"paragraph {number}", tries))
    return "\n\n".join(paragraphs)


def step_prompt(instruction: str, steps: list[Step], paragraphs: list[str]) -> str:
    """The request for the paragraph after those that are written; its beginning is the same for all of a text."""
    number, step = len(paragraphs) + 1, steps[len(paragraphs)]
    last = number == len(steps)
    end = "It ends the text." if last else "The text goes on after it, so do not conclude it."
    so_far = "\n\n".join(paragraphs) or "(Nothing is written yet.)"
    return (
        f"You write a long text, one paragraph at a time. This is what was asked for:\n\n{instruction}\n\nThis is the "
        f"plan:\n\n{plan_text(steps)}\n\nThis is the text so far:\n\n{so_far}\n\n"
        f"Now write paragraph {number} of {len(steps)}: {step.point}. Write about {step.words} words. {end} Give "
        "nothing but the words of the paragraph, without its number, and repeat nothing of the text so far."
    )


def read_paragraph(reply: Reply, words: int) -> str:
    """A paragraph without a label such as "Paragraph 3:".

    Raises:
        Unusable: It is empty, has no end, or a quarter or three times of the words asked for.
    """
    text = _LABEL.sub("", reply.answer).strip()
    found = n_words(text)
    if not text:
        raise Unusable("it is empty")
    if not reply.ended:
        raise Unusable(f"it did not end after {found} words, and about {words} were asked for")
    if not words / 4 <= found <= words * 3:
        raise Unusable(f"it has {found} words, and about {words} were asked for")
    return text
