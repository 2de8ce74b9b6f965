"""Choose the coefficient of model patching by its loss, and know how good the choice is."""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from paintlib.interpolation import WeightPath
    from paintlib.losses import PairObjective, Score, TaskLoss, normaliser

__all__ = ["PairObjective", "Score", "TaskLoss", "WeightPath", "normaliser"]


def __getattr__(name: str) -> Any:
    # torch takes seconds to import, and the solver, the metrics and the pages do not need it
    if name not in __all__:
        raise AttributeError(f"module 'paintlib' has no attribute {name!r}")
    home = "interpolation" if name == "WeightPath" else "losses"
    return getattr(importlib.import_module(f"paintlib.{home}"), name)
