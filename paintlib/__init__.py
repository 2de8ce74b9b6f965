"""Choose the coefficient of model patching by its loss, and know how good the choice is."""

import importlib.metadata
from typing import TYPE_CHECKING, Any

from paintlib.normalisation import normaliser
from paintlib.objective import PairObjective, Score
from paintlib.store import Store

if TYPE_CHECKING:
    from paintlib.interpolation import WeightPath, reestimate_batchnorm
    from paintlib.losses import TaskLoss

__all__ = ["PairObjective", "Score", "Store", "TaskLoss", "WeightPath", "normaliser",
           "reestimate_batchnorm"]  # fmt: skip
__version__ = importlib.metadata.version("paintlib")


def __getattr__(name: str) -> Any:
    # torch takes seconds to import, and only the weights and the losses need it
    home = {"WeightPath": "interpolation", "TaskLoss": "losses",
            "reestimate_batchnorm": "interpolation"}.get(name)  # fmt: skip
    if home is None:
        raise AttributeError(f"module 'paintlib' has no attribute {name!r}")
    return getattr(importlib.import_module(f"paintlib.{home}"), name)
