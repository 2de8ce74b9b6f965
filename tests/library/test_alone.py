"""The library by itself: what it imports, what it names, and the example of README."""

import importlib
import importlib.metadata
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import paintlib

ROOT = Path(__file__).resolve().parent.parent.parent
MODULES = sorted(path.stem for path in (ROOT / "paintlib").glob("[!_]*.py"))
NEED_TORCH = {"checkpoints", "interpolation", "losses", "patch"}

GUARD = """
import importlib.metadata, re, sys

def closure(names):  # distributions and all that they need
    found, left = set(), list(names)
    while left:
        name = re.match(r"[\\w.-]+", left.pop())[0].lower().replace("_", "-")
        if name not in found:
            found.add(name)
            try:
                needs = importlib.metadata.requires(name) or []
            except importlib.metadata.PackageNotFoundError:  # of another platform
                needs = []
            left += [need for need in needs if "extra ==" not in need]
    return found

needed = closure(ALLOWED) | {"paintlib"}
installed = importlib.metadata.packages_distributions().items()
refused = {"experiment"} | {
    top for top, dists in installed if not needed & {d.lower().replace("_", "-") for d in dists}}

class Guard:
    @staticmethod
    def find_spec(name, path=None, target=None):
        if name.partition(".")[0] in refused:
            raise ModuleNotFoundError(f"No module named {name!r}: not for the library")

sys.meta_path.insert(0, Guard)
"""


def alone(code, folder):
    """Run code in a process of its own, and return what it prints."""
    done = subprocess.run(
        [sys.executable, "-W", "error::ResourceWarning", "-c", code],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def guarded(allowed):
    """Return code after which nothing that is installed can be imported but what is allowed."""
    return GUARD.replace("ALLOWED", repr(allowed))


def test_all_but_three_modules_import_with_numpy_and_scipy_alone(tmp_path):
    names = ["paintlib", *(f"paintlib.{name}" for name in MODULES if name not in NEED_TORCH)]
    assert len(names) >= 9
    code = guarded(["numpy", "scipy"]) + "import " + ", ".join(names)
    code += "\nfrom paintlib import PairObjective, Score, Store, normaliser"
    alone(code + "\nassert 'torch' not in sys.modules", tmp_path)


def test_example_of_readme_runs_with_the_librarys_own_needs(tmp_path):
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    example = re.search(r"```python\n(.*?)```", readme, flags=re.S)[1]
    assert len(example.strip().splitlines()) <= 12
    before = """
import torch
from torch import nn

def network(seed):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(6, 4)).eval()

def labelled(teacher):  # each end of the path is right about one task, and the sum is convex
    images = 3 * torch.randn(60, 6, generator=torch.Generator().manual_seed(0))
    return [(images, teacher(images).argmax(1))]

torch.save(network(1).state_dict(), "zero_shot.pt")
torch.save(network(2).state_dict(), "fine_tuned.pt")
model = network(3)
supported_batches, patching_batches = labelled(network(1)), labelled(network(2))
"""
    after = """
assert solution.value == min(sample.value for sample in solution.trace)
patched, expected = torch.load("patched.pt"), torch.lerp(
    network(1)[0].weight, network(2)[0].weight, solution.alpha)
torch.testing.assert_close(patched["0.weight"], expected)
print(f"{solution.alpha:.4f}")
"""
    needs = ["numpy", "scipy", "torch", "safetensors", "tqdm"]
    printed = alone(guarded(needs) + before + example + after, tmp_path)
    assert f"alpha = {printed.split()[-1]} ± 0." in printed


TRIED = """
import numpy, scipy
for name in ("pytest", "experiment", "torch"):
    try: __import__(name)
    except ModuleNotFoundError as error: print(error)
"""


def test_guard_refuses_what_is_not_allowed(tmp_path):
    names = ("pytest", "experiment", "torch")
    expected = [f"No module named '{name}': not for the library" for name in names]
    assert alone(guarded(["numpy", "scipy"]) + TRIED, tmp_path).splitlines() == expected


def test_evaluations_are_replayed_without_torch(pair, tmp_path):
    from paintlib import Store, sampling, solver

    live = pair(store=Store(tmp_path / "s.npz", {"data": "small"}))
    solution = solver.quintic(live)
    error = sampling.standard_error(live, solution)
    code = guarded(["numpy", "scipy"]) + (
        "from paintlib import PairObjective, Store, sampling, solver\n"
        "store = Store('s.npz', {'data': 'small'}, writable=False)\n"
        "objective = PairObjective.replay(store, ['0', '1'], [4, 4])\n"
        "solution = solver.quintic(objective)\n"
        "print(repr((solution.alpha, solution.value, solution.evaluations)))\n"
        "print(repr(tuple(sampling.standard_error(objective, solution))))"
    )
    lines = alone(code, tmp_path).splitlines()
    nan = float("nan")
    assert eval(lines[0]) == (solution.alpha, solution.value, solution.evaluations)
    assert eval(lines[1], {"nan": nan}) == pytest.approx(tuple(error), rel=1e-9, nan_ok=True)


@pytest.mark.parametrize("name", MODULES)
def test_module_names_what_it_offers(name):
    module = importlib.import_module(f"paintlib.{name}")
    assert list(module.__all__) == sorted(module.__all__)
    assert all(getattr(module, public).__doc__ for public in module.__all__ if public.islower())


def test_package_offers_its_few_names_and_its_version():
    assert {"PairObjective", "Score", "Store", "TaskLoss", "WeightPath"} <= set(paintlib.__all__)
    assert all(hasattr(paintlib, name) for name in paintlib.__all__)
    assert paintlib.__version__ == importlib.metadata.version("paintlib")
    assert (ROOT / "paintlib" / "py.typed").exists()
    with pytest.raises(AttributeError, match="module 'paintlib' has no attribute 'WeightPaths'"):
        _ = paintlib.WeightPaths


def test_library_is_thin_and_knows_nothing_of_the_experiment():
    sources = {path: path.read_text("utf-8") for path in (ROOT / "paintlib").glob("*.py")}
    assert sum(len(text.splitlines()) for text in sources.values()) <= 3528
    for path, text in sources.items():
        assert not re.search(r"experiment|\bCLIP\b|ImageNet|profile|notebook", text), path
