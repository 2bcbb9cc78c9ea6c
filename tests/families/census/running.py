"""Goes through model types, in several processes, with a limit of time for each."""

from __future__ import annotations

import signal
import warnings
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from typing import Any

import torch
import transformers

from tests.families.census.building import build
from tests.families.census.looking import Verdict, look
from tests.families.census.scope import without_rotary, wrapped

DECODERS = ("served", "refused", "WRONG", "CRASH", "untried")  # states of what has a rotary embedding


class TooLong(BaseException):
    """The limit of time; no Exception, which a model or a method might catch."""


def judge(model_type: str, limit_s: int = 60) -> Verdict:
    """The verdict on a model type, at most `limit_s` after the call. What cannot be built is untried, not wrong."""
    if (tower := wrapped(model_type)) is not None:
        return Verdict("wrapper", tower)
    if (why := without_rotary(model_type)) is not None:
        return Verdict("no rotary decoder", why)
    previous = signal.signal(signal.SIGALRM, _too_long)
    signal.alarm(limit_s)
    try:
        return look(build(model_type))
    except TooLong:
        return Verdict("untried", f"not done after {limit_s} s")
    except Exception as error:
        return Verdict("untried", f"{type(error).__name__}: {error}"[:200])
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, previous)


def judge_all(model_types: Sequence[str], processes: int, limit_s: int) -> Iterator[tuple[str, Verdict]]:
    """Each model type with its verdict, in order, as they become known."""
    with ProcessPoolExecutor(processes, mp_context=get_context("spawn"), initializer=quiet) as pool:
        yield from zip(model_types, pool.map(partial(judge, limit_s=limit_s), model_types), strict=True)


def quiet() -> None:
    """One thread a process, and nothing of what tiny models make transformers say."""
    torch.set_num_threads(1)
    transformers.logging.set_verbosity(100)
    warnings.filterwarnings("ignore")


def _too_long(*_: Any) -> None:
    raise TooLong
