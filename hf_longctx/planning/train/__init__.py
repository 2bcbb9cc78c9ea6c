"""Predicts memory and time of a training step from a config, a length and the settings of a run."""

from .memory import Need, need
from .plan import TrainPlan, plan_train
from .preflight import Preflight, preflight
from .run import TrainingRun

__all__ = ["Need", "Preflight", "TrainPlan", "TrainingRun", "need", "plan_train", "preflight"]
