"""How a stock model gets its share of a batch on several ranks: `SequenceParallel` is the switch."""

from .calibration import calibrate
from .switch import SequenceParallel

__all__ = ["SequenceParallel", "calibrate"]
