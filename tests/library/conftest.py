import pytest
import torch
from hypothesis import HealthCheck, settings
from small import batches, network

from paintlib import PairObjective, TaskLoss, WeightPath

# the same examples everywhere and each time, however busy the machine: a red test means a change
settings.register_profile(
    "library", derandomize=True, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("library")


@pytest.fixture(autouse=True)
def _one_thread():
    """Keep tiny networks from waiting for each other's threads where tests run side by side."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def pair():
    """A pair in float64: path, model and the objective of two small tasks."""

    def build(normalisation: str = "zero_shot", **options) -> PairObjective:
        path = WeightPath(network(1, torch.float64), network(2, torch.float64))
        model = network(3, torch.float64)
        tasks = [TaskLoss(model, batches(seed, dtype=torch.float64)) for seed in (4, 5)]
        return PairObjective(path, tasks, [4, 4], normalisation, **options)

    return build
