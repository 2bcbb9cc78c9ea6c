"""A running balance."""

from __future__ import annotations

import random
from typing import ClassVar

from ..base import LongTask, Problem


class LedgerTask(LongTask):
    """The balance after every payment: each line needs one addition to the line before it."""

    name: ClassVar[str] = "ledger"
    tag: ClassVar[str] = "book"
    tokens_per_line: ClassVar[float] = 13.5

    def build(self, rng: random.Random, lines: int) -> Problem:
        """A line of the answer is a payment and the balance after it, which is never below 0."""
        balance = rng.randint(100, 999)
        told, book = [f"Start {balance}."], []
        for i in range(1, lines + 1):
            amount = rng.randint(1, 99)
            paid_in = rng.random() < 0.5 or amount > balance
            balance += amount if paid_in else -amount
            told.append(f"{i}. {'in' if paid_in else 'out'} {amount}")
            book.append(f"{told[-1]}: {balance}")
        ask = "Copy the numbered lines and add the balance after each, as '1. in 20: 320'."
        return self.problem("\n".join(told), ask, book)


LONG_TASKS = {"ledger": LedgerTask()}
