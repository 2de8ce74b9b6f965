import os
from pathlib import Path

import numpy as np
import pytest
import torch


def pytest_xdist_auto_num_workers(config):
    """Test a folder by several processes, with a thread each; a file is sooner done by one."""
    if not any(Path(argument).is_dir() for argument in config.args):
        return 0
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    return min(os.cpu_count() or 1, 4)


def pytest_collection_modifyitems(items):
    """Start the files that take minutes first, so that no worker waits for them at the end."""
    items.sort(key=lambda item: "workflow" not in item.keywords)


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)
    np.random.seed(0)
    yield
    # the steps of a run set these for their whole process
    torch.set_flush_denormal(False)
    torch.use_deterministic_algorithms(False)
