import copy
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import stats
from torch import nn

from experiment import report, results

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def pairs():
    return results.read_pairs(ROOT / "results" / "micro")


def network(alpha):
    """Return a model on the line between two others."""
    torch.manual_seed(1)
    layers = (nn.Linear(6, 8), nn.Tanh(), nn.LayerNorm(8), nn.Linear(8, 4))
    start, end = (nn.Sequential(*copy.deepcopy(layers)).eval() for _ in range(2))
    nn.init.normal_(end[0].weight)
    nn.init.normal_(end[3].weight)
    with torch.no_grad():
        for weight, other in zip(start.parameters(), end.parameters(), strict=True):
            weight.lerp_(other, alpha)
    return start


def test_example_runs_and_patches(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    torch.save(network(0).state_dict(), "zero_shot.pt")
    torch.save(network(1).state_dict(), "fine_tuned.pt")

    def labelled(teacher):
        images = torch.randn(60, 6, generator=torch.Generator().manual_seed(0))
        return [(images, teacher(images).argmax(1))]

    space = {
        "model": network(3),
        "supported_batches": labelled(network(0.4)),
        "patching_batches": labelled(network(0.8)),
    }
    code = re.search(r"```python\n(.*?)```", README, flags=re.S)[1]
    assert len(code.strip().splitlines()) <= 12
    exec(code, space)
    alpha = space["solution"].alpha
    assert 0 < alpha < 1
    assert re.match(rf"alpha = {alpha:.4f} ± 0\.\d{{4}}: ", capsys.readouterr().out)
    torch.testing.assert_close(torch.load("patched.pt"), dict(network(alpha).state_dict()))


def test_numbers_are_those_of_the_reference(pairs):
    gains = [report.gain(p) for p in pairs]  # of the paper's quintic
    convex = [p["metrics"]["quasiconvexity_violation"]["sum"] <= 1e-6 for p in pairs]
    test_wins = sum(report.test_sum(p, "quintic") < report.test_sum(p, "grid") for p in pairs)
    cifar = [p["metrics"] for p in pairs if p["supported"] == "CIFAR10"]
    r = stats.pearsonr(
        [m["gradient_similarity"] for m in cifar], [m["backward_transfer"]["value"] for m in cifar]
    ).statistic
    accuracy = {(p["supported"], p["patching"]): p["test"] for p in pairs}
    supported = {s: t["zero_shot"]["supported"]["accuracy"] for (s, _), t in accuracy.items()}
    before = {p: t["zero_shot"]["patching"]["accuracy"] for (_, p), t in accuracy.items()}
    after = {p: t["fine_tuned"]["patching"]["accuracy"] for (_, p), t in accuracy.items()}
    means = [np.mean(list(values.values())) for values in (supported, before, after)]
    wins = sum(gain > 0 for gain in gains)
    told = sum(report.told_apart(p) for p in pairs)
    paid = np.mean([p["solutions"]["log_quintic"]["evaluations"] for p in pairs])
    error = np.median([p["sampling"]["stderr"]["log_quintic"][0] for p in pairs])
    for shown in (
        f"| {wins} of {len(pairs)} |\n",
        f"| not reported | {test_wins} of {len(pairs)} |\n",
        f"standard errors | not reported | {told} of {len(pairs)} |\n",
        f"| {max(gains):.2%} |\n".replace("%", " %"),
        f"| {sum(convex)} of {len(pairs)} |\n",
        f"| r = {r:.2f} |\n",
        f"| {means[0]:.0%} |\n".replace("%", " %"),
        f"| {means[1]:.0%} → {means[2]:.0%} |\n".replace("%", " %"),
        f"takes about {paid:.0f} in\nplace of 19",
        f"known to {error:.2f} or so",
    ):
        assert shown in README, shown


def test_twins_are_neither_solved_nor_hopeless(pairs):
    """What the design of the twins promises."""
    chance = {p["patching"]: 1 / p["curves"]["patching"]["classes"] for p in pairs}
    supported = {p["supported"]: p["test"]["zero_shot"]["supported"]["accuracy"] for p in pairs}
    before = {p["patching"]: p["test"]["zero_shot"]["patching"]["accuracy"] for p in pairs}
    after = {p["patching"]: p["test"]["fine_tuned"]["patching"]["accuracy"] for p in pairs}
    gains = [after[name] - before[name] for name in after]
    assert np.mean(list(supported.values())) >= 0.8
    assert np.mean(gains) >= 0.25 and min(gains) >= 0.10
    assert all(1.3 * chance[name] < value < 1 for name, value in {**before}.items())
    assert all(value < 1 for value in [*after.values(), *supported.values()])
