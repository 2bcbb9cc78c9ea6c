"""Lengths and batches far beyond anything real are answered at once: no search goes through them one by one."""

import re

import pytest

from hf_longctx import plan
from hf_longctx.planning import predict
from tests.planning.test_calibration import SMOLLM2

HUGE = "1" + 24 * "0"


def test_the_chunks_of_a_long_reading_are_sampled(monkeypatch: pytest.MonkeyPatch) -> None:
    """A few of them tell the same time as all of them, also where the last one is shorter."""

    def seconds() -> dict[str, float]:
        options = plan(SMOLLM2, 1_000_003, chunk=512).options
        return {option.name: option.prediction.read_seconds for option in options if option.prediction}

    monkeypatch.setattr(predict, "SAMPLED", 10**9)
    every = seconds()
    monkeypatch.setattr(predict, "SAMPLED", 100)
    assert len(every) > 3
    assert seconds() == pytest.approx(every, rel=1e-3)


@pytest.mark.parametrize("given", [{"length": HUGE}, {"length": "8k", "batch": int(HUGE)}])
def test_what_no_machine_can_read_is_answered(given: dict[str, int | str]) -> None:
    found = plan(SMOLLM2, **given)  # type: ignore[arg-type]
    assert found.chosen is None
    assert found.remedies


def test_the_batch_that_is_named_is_the_largest_that_fits() -> None:
    found = plan(SMOLLM2, "8k", "8GiB", batch=10**9)
    line = next(line for line in found.remedies if line.startswith("LMInfinite():"))
    named = re.search(r"--batch (\d+)", line)
    assert named
    most = int(named[1])
    for batch, fits in ((most, True), (most + 1, False)):
        options = plan(SMOLLM2, "8k", "8GiB", batch=batch).options
        assert next(one for one in options if one.name == "LMInfinite()").fits is fits


def test_a_method_that_serves_any_length_is_not_said_to_fit_none() -> None:
    found = plan(SMOLLM2, "1000M", "2GiB")
    line = next(line for line in found.remedies if line.startswith("LMInfinite():"))
    assert "more than 10,000,000 tokens fit" in line
