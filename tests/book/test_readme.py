import copy
import re
from pathlib import Path

import nbformat
import numpy as np
import pytest
import torch
from scipy import stats
from torch import nn

from experiment import report, results
from experiment.evidence import archive, headline

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


def rows(spread):
    """Return the lines of README's table of results, and its sentences with numbers."""

    def span(name, form="{:.0f}"):
        return headline.span(spread, name, form)

    paper, paint = (
        " / ".join(span(f"{role} accuracy, {rule}", "{:.1f}") for role in ("supported", "patching"))
        for rule in ("the loss rule", "PAINT's rule")
    )
    return [
        f"| `micro`, {len(spread.columns) - 2} seeds |\n",
        f"| 34 of 36 | {span('quintic lower')} of 36 |\n",
        f"| not reported | {span('quintic lower on test images')} of 36 |\n",
        f"standard errors | not reported | {span('beyond sampling error')} of 36 |\n",
        f"| 2.1 % | {span('largest gain', '{:.2f}')} % |\n",
        f"| 36 of 36 | {span('quasi-convex')} of 36 |\n",
        f"| r = {span('correlation, CIFAR10', '{:.2f}')} |\n",
        f"| accuracy by the quintic's alpha, supported / patching twins | | {paper} % |\n",
        f"| accuracy by PAINT's rule, the mean accuracy on a grid | | {paint} % |\n",
        "| zero-shot accuracy of the supported twins | "
        f"| {span('supported accuracy, zero-shot')} % |\n",
        f"| patching twins, zero-shot → fine-tuned | | {span('patching accuracy, zero-shot')} % → "
        f"{span('patching accuracy, fine-tuned')} % |\n",
        f"known to {span('standard error of alpha', '{:.2f}')} (standard",
    ]


def test_readme_home_and_claims_begin_with_the_same_three_sentences():
    sentences = headline.sentences(headline.spread("results/micro"))
    assert len(sentences) == 3
    start = " ".join(README.partition("![")[0].split())
    home = (ROOT / "book/index.md").read_text("utf-8").partition("```{figure}")[0]
    claims = (ROOT / "book/results/claims.ipynb").read_text("utf-8")
    for number, sentence in enumerate(sentences, start=1):
        assert sentence in start
        assert f"{number}. [{{glue:text}}`results/claims.ipynb::sentence_{number}:s`]" in home
        assert f"{number}. {sentence}" in claims


def test_headline_is_the_first_figure_of_the_claims():
    page = nbformat.read(ROOT / "book/results/claims.ipynb", as_version=4)
    data = [output.get("data", {}) for cell in page.cells for output in cell.get("outputs", [])]
    first = next(d["image/svg+xml"] for d in data if "image/svg+xml" in d)
    assert (ROOT / "results/micro/headline.svg").read_text(encoding="utf-8") == first


def test_sentences_are_whole_where_gains_exceed_their_error():
    spread = headline.spread("results/micro")
    spread.loc["beyond sampling error", ["lowest", "highest"]] = 3, 5
    assert "3 to 5 of the gains exceed its own" in headline.sentences(spread)[0]


def test_numbers_are_the_ranges_over_the_seeds_of_the_reference():
    for shown in rows(headline.spread("results/micro")):
        assert shown in README, shown
    kept = archive.read_kept("results/micro", "seeds").values()
    alphas = [[p["solutions"]["quintic"]["alpha"] for p in seed["pairs"]] for seed in kept]
    assert f"pair moves by up to {np.ptp(alphas, axis=0).max():.2f} and" in README


def test_ranges_hold_the_reference(pairs):
    """Seed 0 is the reference, so what README says of seeds is true of it."""
    spread = headline.spread("results/micro")
    for name, value in headline.of(pairs).items():
        low, high = spread.loc[name, ["lowest", "highest"]]
        assert low - 1e-6 <= value <= high + 1e-6, name
    kept = archive.read("results/micro")
    for pair in pairs:  # the evidence is of the same weights
        length = pair["metrics"]["length"]
        assert kept[pair["patching"]]["length"] == pytest.approx(length, rel=1e-6)
    gains = [report.gain(p) for p in pairs]  # by another way
    assert 100 * max(gains) == pytest.approx(spread.loc["largest gain", "0"], rel=1e-6)
    assert sum(gain > 0 for gain in gains) == spread.loc["quintic lower", "0"]
    cifar = [p["metrics"] for p in pairs if p["supported"] == "CIFAR10"]
    r = stats.pearsonr(
        [m["gradient_similarity"] for m in cifar], [m["backward_transfer"]["value"] for m in cifar]
    ).statistic
    assert r == pytest.approx(spread.loc["correlation, CIFAR10", "0"], rel=1e-6)


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
