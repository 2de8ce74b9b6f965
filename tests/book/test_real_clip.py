"""The page on the real CLIP: its numbers, found again from its CSV by other means than its own."""

import io
import re
import urllib.parse
from pathlib import Path

import nbformat
import numpy as np
import pandas as pd
import pytest
from scipy.interpolate import CubicSpline

from experiment import report

ROOT = Path(__file__).resolve().parents[2]
PUBLISHED = ROOT / "book/published"
LOSSES = ["cifar10_loss", "mnist_loss"]
ACCURACIES = ["cifar10_accuracy", "mnist_accuracy"]
SCALES = {  # of a task's losses: what is taken off, what it is divided by
    "zero_shot": lambda losses: (0.0, losses[0]),
    "log_classes": lambda losses: (0.0, np.log(10)),
    "minmax": lambda losses: (losses.min(), np.ptp(losses)),
    "none": lambda losses: (0.0, 1.0),
}


@pytest.fixture(scope="module")
def demo():
    return pd.read_csv(PUBLISHED / "paint_demo_vitb32.csv", comment="#")


@pytest.fixture(scope="module")
def page():
    cells = nbformat.read(ROOT / "book/results/real_clip.ipynb", as_version=4).cells
    data = [output.get("data", {}) for cell in cells for output in cell.get("outputs", [])]
    return "\n".join(text for d in data for kind, text in d.items() if kind.startswith("text/"))


def download(page, name):
    (rows,) = re.findall(f'download="{name}.csv" href="data:text/csv;charset=utf-8,([^"]+)"', page)
    return pd.read_csv(io.StringIO(urllib.parse.unquote(rows)))


def total(demo, kind, at=None):
    """Return the sum of the normalised losses at the samples, or on a spline of log-losses."""
    parts = []
    for losses in demo[LOSSES].to_numpy().T:
        offset, unit = SCALES[kind](losses)
        curve = losses if at is None else np.exp(CubicSpline(demo["alpha"], np.log(losses))(at))
        parts.append((curve - offset) / unit)
    return sum(parts)


def quintic(alphas, sums):
    """Return the lowest point of the polynomial through the six samples around the lowest."""
    i = int(sums.argmin())
    six = slice(i - 3, i + 3) if sums[i - 3] <= sums[i + 3] else slice(i - 2, i + 4)
    slope = np.polyder(np.polyfit(alphas[six] - alphas[i], sums[six], 5))
    roots = np.roots(slope)
    roots = roots[np.isreal(roots)].real + alphas[i]
    (root,) = roots[(alphas[i - 1] <= roots) & (roots <= alphas[i + 1])]
    return root


def test_files_agree_where_both_have_an_alpha_and_hold_shares_of_10000_images(demo):
    fine = pd.read_csv(PUBLISHED / "paint_demo_vitb32_fine.csv", comment="#")
    assert demo["alpha"].tolist() == [i / 20 for i in range(21)]
    assert fine["alpha"].tolist() == [i / 100 for i in range(25, 46)]
    both = demo.merge(fine, on="alpha")
    assert len(both) == 5
    for column in LOSSES + ACCURACIES:
        assert (both[f"{column}_x"] == both[f"{column}_y"]).all()
    for file in (demo, fine):
        images = 1e4 * file[ACCURACIES].to_numpy()
        assert np.abs(images - images.round()).max() < 1e-6


@pytest.mark.parametrize("kind", SCALES)
def test_alphas_and_gains_are_found_again(demo, page, kind):
    row = download(page, "real_clip_gains").set_index("normalisation").loc[kind]
    for step, every in ((0.05, 1), (0.1, 2)):
        alphas, sums = demo["alpha"].to_numpy()[::every], total(demo, kind)[::every]
        root, lowest = quintic(alphas, sums), sums.min()
        assert row["α grid"] == alphas[sums.argmin()]
        assert row[f"α*, step {step}"] == pytest.approx(root, abs=1e-6)
        gain = 100 * (1 - total(demo, kind, root) / lowest)
        assert row[f"gain %, step {step}"] == pytest.approx(gain, abs=1e-6)
        near = np.array([root - 0.01, root, root + 0.01])
        bound = 100 * step**2 / 8 * np.diff(total(demo, kind, near), 2)[0] / 0.01**2 / lowest
        assert row[f"bound %, step {step}"] == pytest.approx(bound, rel=0.02)
        assert 0 < gain < bound


def test_answer_states_both_rules(demo, page):
    alphas, accuracies = demo["alpha"].to_numpy(), 100 * demo[ACCURACIES].to_numpy()
    paint = accuracies.sum(1).argmax()
    root = quintic(alphas, total(demo, "zero_shot"))
    change = [np.interp(root, alphas, column) - column[paint] for column in accuracies.T]
    (answer,) = re.findall(r"^> \*\*Answer.*$", page, flags=re.M)
    assert f"α* = **{root:.3f}**" in answer
    assert f"α = **{alphas[paint]:.2f}**" in answer
    said = f"CIFAR10 and MNIST by {change[0]:+.1f} and {change[1]:+.1f} points"
    assert report.typeset(said) in answer


def test_searches_end_at_the_same_minimum(demo, page):
    searches = download(page, "real_clip_searches").set_index("search")
    dense = np.linspace(0, 1, 100_001)
    sums = total(demo, "zero_shot", dense)
    for name, row in searches.iterrows():
        grid = name.startswith("exhaustive")
        assert row["α*"] == pytest.approx(0.3 if grid else dense[sums.argmin()], abs=1e-3)
        assert row["sum there"] == pytest.approx(total(demo, "zero_shot", row["α*"]), rel=1e-6)
        excess = 100 * (total(demo, "zero_shot", row["α*"]) / sums.min() - 1)
        assert row["excess %"] == pytest.approx(excess, abs=1e-6 if not grid else 1e-4)
    assert searches.loc["quintic, step 0.05", "evaluations"] == 20
    assert searches.loc["quintic, step 0.05, not verified", "evaluations"] == 19


def test_losses_and_sums_have_one_valley_and_every_curve_its_row(demo, page):
    valleys = download(page, "real_clip_valleys").set_index("curve")
    bumps = valleys.iloc[:, 0]
    for column, name in zip(
        LOSSES, ("supported loss, CIFAR10", "patching loss, MNIST"), strict=True
    ):
        turns = np.diff(np.sign(np.diff(demo[column])))
        assert (bumps[name] == 0) == (np.count_nonzero(turns) <= 1)
    for kind in SCALES:
        assert np.count_nonzero(np.diff(np.sign(np.diff(total(demo, kind))))) == 1
        assert bumps[f"sum, {kind}"] == 0
