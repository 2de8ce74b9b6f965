import pytest
import torch
from torch import nn

from paintlib import PairObjective, TaskLoss, WeightPath


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
