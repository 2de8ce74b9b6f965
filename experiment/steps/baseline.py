"""Score the supported tasks at the zero-shot weights, where all paths begin, once for all."""

import json

import torch

from experiment import weights
from experiment.progress import bar
from experiment.run import Run
from experiment.session import Session


def baseline(run: Run, *supported: str) -> None:
    """Write the tasks' losses and their gradients: only the direction differs by path."""
    session = Session(run)
    visual, parent = session.tower(), weights.metadata(run.zero_shot)["digest"]
    gpu = session.device.type == "cuda" and torch.cuda.get_device_name(session.device)
    for task in bar(supported, "baselines"):
        chosen = session.losses(visual, [task], run.choosing)[task]
        images, gradient = chosen.evaluate(), chosen.gradient()
        test = images.score
        if run.choosing != "test":
            test = session.losses(visual, [task], "test")[task].score()
        tensors = {name: torch.from_numpy(getattr(images, name)) for name in ("losses", "correct")}
        tensors |= {f"gradient.{name}": part for name, part in gradient.items()}
        score = json.dumps(test)
        weights.save(run.baseline(task), tensors, task=task, test=score, parent=parent,
                     gpu=gpu or "")  # fmt: skip
