import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from paintlib import PairObjective, TaskLoss, WeightPath


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)
    np.random.seed(0)
    yield
    # the steps of a run set these for their whole process
    torch.set_flush_denormal(False)
    torch.use_deterministic_algorithms(False)


def network(seed: int, dtype: torch.dtype = torch.float32) -> nn.Sequential:
    torch.manual_seed(seed)
    layers = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.LayerNorm(8), nn.Linear(8, 4))
    return layers.to(dtype).eval()


def batches(seed: int, count: int = 30, dtype: torch.dtype = torch.float32):
    generator = torch.Generator().manual_seed(seed)
    images = torch.randn(count, 6, generator=generator, dtype=dtype)
    labels = torch.randint(0, 4, (count,), generator=generator)
    return list(zip(images.split(7), labels.split(7), strict=True))


@pytest.fixture
def pair():
    """A pair in float64: path, model and the objective of two small tasks."""

    def build(normalisation: str = "zero_shot", **options) -> PairObjective:
        path = WeightPath(network(1, torch.float64), network(2, torch.float64))
        model = network(3, torch.float64)
        tasks = [TaskLoss(model, batches(seed, dtype=torch.float64)) for seed in (4, 5)]
        return PairObjective(path, tasks, [4, 4], normalisation, **options)

    return build


def copy_project(folder: Path) -> Path:
    """Copy what a clone has into `folder`, without anything that was run here since."""
    root = Path(__file__).resolve().parent.parent
    unwanted = shutil.ignore_patterns("_build", "__pycache__", ".ipynb_checkpoints")
    for name in ("paintlib", "notebooks", "book", "results/micro", "results/bench"):
        shutil.copytree(root / name, folder / name, ignore=unwanted, symlinks=True)
    for name in ("Snakefile", "_config.yml", "_toc.yml"):
        shutil.copy(root / name, folder / name)
    return folder
