"""Choose the coefficient of model patching by its loss, and know how good the choice is."""

from paintlib.interpolation import WeightPath
from paintlib.losses import PairObjective, Score, TaskLoss, normaliser

__all__ = ["PairObjective", "Score", "TaskLoss", "WeightPath", "normaliser"]
