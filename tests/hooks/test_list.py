"""The list of hooks in the docstring of `hooks/transformers.py` is the table that installs them."""

from __future__ import annotations

import inspect
import re

from hf_longctx.hooks import startup
from hf_longctx.hooks import transformers as hooks


def test_every_hook_is_listed_with_its_reason_and_the_day_it_can_go() -> None:
    listed = re.findall(r"^(\d+)\. `([\w.]+)`: (.+?)(?=^\d|^$)", inspect.getdoc(hooks) or "", re.DOTALL | re.MULTILINE)
    table = [(str(i), f"{owner}.{name}") for i, (_, owner, name) in enumerate(startup.HOOKS, 1)]
    assert [(number, method) for number, method, _ in listed] == table
    for _, method, words in listed:
        assert re.search(r"\w+\. Can go\s+(when|with) .+\.$", " ".join(words.split())), method
    for number, function in enumerate(startup.HOOKS.values(), 1):
        assert (getattr(hooks, function).__doc__ or "").startswith(f"Hook {number}: "), function
