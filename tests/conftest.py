import numpy as np
import pytest
import torch


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)
    np.random.seed(0)
    yield
    # the steps of a run set these for their whole process
    torch.set_flush_denormal(False)
    torch.use_deterministic_algorithms(False)
