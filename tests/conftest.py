import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from playwright.sync_api import sync_playwright
from torch import nn

from paintlib import PairObjective, TaskLoss, WeightPath

ROOT = Path(__file__).resolve().parent.parent


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


@pytest.fixture(scope="session")
def browser():
    """Chromium, as the system has it."""
    names = ("google-chrome", "chromium", "chromium-browser")
    path = next(filter(None, map(shutil.which, names)), None)
    if path is None:
        pytest.skip(f"none of {', '.join(names)} is installed; on Debian: apt install chromium")
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield chromium
        chromium.close()


@pytest.fixture(scope="session")
def book_html(tmp_path_factory):
    """The site of the committed book, built beside the one that is there."""
    return build_book(ROOT / "book", tmp_path_factory.mktemp("site"))


def build_book(book: Path, output: Path) -> Path:
    """Build a Jupyter Book as the workflow does, and return the folder of its pages."""
    command = [str(Path(sys.executable).with_name("jupyter-book")), "build", str(book), "--all",
               "-W", "-n", "--keep-going", "-q", "--path-output", str(output)]  # fmt: skip
    done = subprocess.run(
        command,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stdout[-4000:]
    return output / "_build" / "html"


def copy_project(folder: Path) -> Path:
    """Copy what a clone has into `folder`, without anything that was run here since."""
    unwanted = shutil.ignore_patterns("_build", "__pycache__", ".ipynb_checkpoints")
    for name in ("paintlib", "notebooks", "book", "results/micro", "results/bench"):
        shutil.copytree(ROOT / name, folder / name, ignore=unwanted, symlinks=True)
    for name in ("Snakefile", "_config.yml", "_toc.yml", "CITATION.cff"):
        shutil.copy(ROOT / name, folder / name)
    return folder
