"""The formula against peaks and seconds of one H200, torch 2.11.0+cu130, transformers 5.24, 2026-11-29.

By `recipes.far.predicted`, `recipes.far.ladder` (1.24B, 128k tokens) and `recipes.far.beside` (Trainer, fp32 weights
under autocast). The ladder of that day still had the weights of the rung before on the card, from its third rung on.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import pytest

from hf_longctx.planning.hardware import MACHINES
from hf_longctx.planning.train import TrainingRun, need
from hf_longctx.planning.train.seconds import step_seconds
from recipes.far.predicted import BYTES, CALIBRATED, SECONDS, SHARE
from recipes.far.settings import MODELS, K

from .models import sizes


class Measured(NamedTuple):
    """A setting, its bytes at the peak, and seconds of a step.

    Args:
        before: The peak has the weights of the rung before.
    """

    model: str
    settings: dict[str, Any]
    peak: int
    seconds: float
    before: bool = False

    @property
    def run(self) -> TrainingRun:
        """For the formula."""
        return TrainingRun(**({"kind": "stock"} | self.settings))


TILED = {"tokens": 128 * K, "kind": "auto", "tile": 8192}
MIXED = {"tokens": 64 * K, "precision": "mixed"}
RUNS = {
    "1.24B, 8k": Measured("1.24B", {"tokens": 8 * K}, 12403302400, 0.2537),
    "SmolLM2, 8k": Measured("SmolLM2-135M", {"tokens": 8 * K}, 2393404928, 0.1552),
    "1.24B, 128k": Measured("1.24B", {"tokens": 128 * K}, 35747492352, 14.574),
    "SmolLM2, 128k, kept": Measured("SmolLM2-135M", {"tokens": 128 * K, "remat": "attention"}, 14203613184, 5.551),
    "1.24B, 256k, mixed, tiles, offload": Measured(
        "1.24B", {"tokens": 256 * K, "tile": 8192, "offload": True, "precision": "mixed"}, 43315720704, 57.361
    ),
    "ladder: switch": Measured("1.24B", {"tokens": 128 * K, "kind": "auto"}, 38223315968, 14.704, True),
    "ladder: tiles": Measured("1.24B", TILED, 29701018624, 14.827, True),
    "ladder: offload": Measured("1.24B", TILED | {"offload": True}, 22938874880, 15.066, True),
    "ladder: kept": Measured("1.24B", TILED | {"offload": True, "remat": "attention"}, 29420000256, 12.596, True),
    "ladder: kept on the host": Measured(
        "1.24B", TILED | {"offload": True, "remat": "attention", "keep_on_host": True}, 22938874880, 12.835, True
    ),
    "SmolLM2, 64k, Trainer": Measured("SmolLM2-135M", MIXED | {"chunked_loss": False}, 45348427776, 1.957),
    "SmolLM2, 64k, tiles, kept": Measured(
        "SmolLM2-135M", MIXED | {"tile": 8192, "remat": "attention"}, 10504377344, 1.725
    ),
    "SmolLM2, 64k, offload, by TRL": Measured("SmolLM2-135M", MIXED | {"offload": True}, 4836190720, 2.120),
}


@pytest.mark.parametrize("name", RUNS)
def test_bytes(name: str) -> None:
    of = RUNS[name]
    found = need(sizes(MODELS[of.model]), of.run)
    said = found.peak + (found.weights if of.before else 0)
    assert said == pytest.approx(of.peak, abs=max(SHARE * of.peak, BYTES))
    assert said == pytest.approx(of.peak, rel=0.035), "seen when this was written, and no less since"


@pytest.mark.parametrize("name", RUNS)
def test_seconds(name: str) -> None:
    of = RUNS[name]
    time = step_seconds(sizes(MODELS[of.model]), of.run, MACHINES["h100"])
    assert of.run.tokens < CALIBRATED or time.step == pytest.approx(of.seconds, rel=SECONDS)
