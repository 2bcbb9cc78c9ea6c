"""Where a thing is, and where a person thinks that it is, after every step of a story."""

from __future__ import annotations

import random
from typing import ClassVar

from ..base import LongTask, Problem
from ..vocabulary import PEOPLE, ROOMS, THINGS


class BeliefTask(LongTask):
    """A person's belief about the place of a thing that three people carry through four rooms."""

    name: ClassVar[str] = "belief"
    tag: ClassVar[str] = "track"
    tokens_per_line: ClassVar[float] = 16.0

    def build(self, rng: random.Random, lines: int) -> Problem:
        """A line of the answer is the state after a step; the last one is the belief at the end."""
        people, rooms, thing = rng.sample(PEOPLE, 3), rng.sample(ROOMS, 4), rng.choice(THINGS)
        at, place, asked = {who: rng.choice(rooms) for who in people}, rng.choice(rooms), people[0]
        thinks = place if at[asked] == place else "unknown"

        def state(i: int) -> str:
            return f"{i}. {asked}: {at[asked]}; {thing}: {place}; thinks: {thinks}"

        where = ", ".join(f"{who} is in the {at[who]}" for who in people)
        story, out = [f"0. {where}. The {thing} is in the {place}."], [state(0)]
        for i in range(1, lines - 1):
            who = rng.choice(people)
            holders = [one for one in people if at[one] == place]
            carried = bool(holders) and rng.random() < 0.35
            if carried:
                who = rng.choice(holders)
            to = rng.choice([room for room in rooms if room != at[who]])
            story.append(f"{i}. {who} carries the {thing} to the {to}." if carried else f"{i}. {who} goes to the {to}.")
            at[who] = to
            place = to if carried else place
            thinks = place if at[asked] == place else thinks
            out.append(state(i))
        ask = (
            f"A person sees the {thing} when both are in the same room, and remembers where it was seen last. For "
            f"every step write its number, where {asked} is, where the {thing} is, and where {asked} thinks that it is "
            f"('unknown' until it is seen), as '0. {asked}: hall; {thing}: attic; thinks: attic'. At the end write a "
            f"line 'Last: ' and where {asked} thinks that it is."
        )
        return self.problem("\n".join(story), ask, [*out, f"Last: {thinks}"])


LONG_TASKS = {"belief": BeliefTask()}
