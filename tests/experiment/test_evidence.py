"""The pages' evidence: against closed forms, and from the stored files by other lines."""

import io
import json
import math
import re
import shutil
import urllib.parse
from pathlib import Path

import nbformat
import numpy as np
import pandas as pd
import pytest
import torch
from scipy import stats
from scipy.interpolate import CubicSpline

from experiment import replay, report, results
from experiment.evidence import archive, forgetting, measuring, regrets, resampling
from experiment.profiles import ALPHAS
from paintlib import WeightPath, sampling, solver
from paintlib.objective import ImageScores
from paintlib.store import Store

ROOT = Path(__file__).resolve().parents[2]
KEPT = ROOT / "results/micro"


class Parabolas:
    """Two tasks whose images cost 0.2 + scale (alpha - place)^2: all of it known in closed form."""

    images = 3000

    def __init__(self, shift=0.0):
        generator = np.random.default_rng(0)
        self.places = [generator.normal(m, 0.4, self.images) for m in (0.12, 0.85)]
        self.places = [
            place - place.mean() + m + shift
            for place, m in zip(self.places, (0.12, 0.85), strict=True)
        ]
        self.scales = [generator.gamma(8.0, 0.25, self.images) for _ in "ab"]

    def losses(self, task, alpha):
        return 0.2 + self.scales[task] * (alpha - self.places[task]) ** 2

    def populations(self, folder):
        store = Store(folder / "images.npz")
        hits = np.ones(self.images, bool)
        for alpha in ALPHAS:
            store.put(alpha, {str(t): ImageScores(self.losses(t, alpha), hits) for t in (0, 1)})
        return [resampling.Population(store, str(t)) for t in (0, 1)]

    def minimum(self):
        """Return alpha*, F, F'' and the standard error of alpha* for one image a task."""
        value = curvature = slope = variance = 0.0
        for scale, place in zip(self.scales, self.places, strict=True):
            first = (0.2 + scale * place**2).mean()
            curvature += 2 * scale.mean() / first
            slope += 2 * (scale * place).mean() / first
        alpha = slope / curvature
        for task, (scale, place) in enumerate(zip(self.scales, self.places, strict=True)):
            own, first = 2 * scale * (alpha - place), self.losses(task, 0.0)
            value += self.losses(task, alpha).mean() / first.mean()
            # slope of L(a)/L(0) when one image has more weight
            variance += ((own - own.mean() * first / first.mean()) / first.mean()).var()
        return alpha, value, curvature, math.sqrt(variance) / curvature


def test_study_knows_the_minimum_the_error_and_the_regret_in_closed_form(tmp_path):
    drawn, n, draws = Parabolas(), 400, 160
    alpha, value, curvature, unit = drawn.minimum()
    found = resampling.study(drawn.populations(tmp_path), [4, 4], sizes=(n,), draws=draws)
    assert found["alpha"] == pytest.approx(alpha, abs=2e-3)
    assert found["value"] == pytest.approx(value, rel=1e-4)
    assert found["curvature"] == pytest.approx(curvature, rel=0.02)
    sigma = unit / math.sqrt(n)
    assert found["stderr"][0] == pytest.approx(sigma, rel=0.05)
    cost = curvature * sigma**2 / 2 / value
    spread = math.sqrt(2 / draws)  # of a mean of squares of normal numbers
    for search in ("quintic", "unverified", "log_quintic"):
        assert found[search][0] == pytest.approx(cost, rel=3 * spread)
    assert found["coverage"][0] == pytest.approx(0.95, abs=3 * math.sqrt(0.95 * 0.05 / draws))
    assert found["grid"][0] > found["log_quintic"][0] and found["coarse"][0] > found["grid"][0]


def test_a_grid_keeps_its_own_regret_however_many_images_there_are(tmp_path):
    """On average over where alpha* lies between two points, h^2 F'' / 24 F; at most, / 8."""
    share = {"grid": [], "coarse": [], "log_quintic": []}
    for i in range(4):
        (tmp_path / str(i)).mkdir()
        drawn = Parabolas(shift=(i + 0.5) * 0.1 / 4)
        found = resampling.study(drawn.populations(tmp_path / str(i)), [4, 4], (10**5,), draws=1)
        _, value, curvature, _ = drawn.minimum()
        for search, step in (("grid", 0.05), ("coarse", 0.1), ("log_quintic", 0.1)):
            share[search].append(found[search][0] * value / (step**2 * curvature))
    assert np.mean(share["grid"]) == pytest.approx(1 / 24, rel=0.2)
    assert np.mean(share["coarse"]) == pytest.approx(1 / 24, rel=0.2)
    assert max(share["grid"] + share["coarse"]) <= 1.1 / 8
    assert max(share["log_quintic"]) < 5e-3


def test_an_alpha_between_the_samples_costs_what_a_spline_through_them_says(tmp_path):
    drawn = Parabolas()
    population = drawn.populations(tmp_path)[1]
    some = np.array([5, 5, 77])
    for alpha in (0.0, 0.35, 0.371, 1.0):
        row = population.images(alpha, some)
        assert row.losses == pytest.approx(drawn.losses(1, alpha)[some], abs=1e-9)
        assert row.correct.all()


def test_path_of_lines_starts_by_depth_and_ends_where_the_path_ends():
    names = ["conv1.weight", *(f"transformer.resblocks.{i}.mlp.weight" for i in range(5)), "proj"]
    generator = torch.Generator().manual_seed(0)
    start, end = ({n: torch.randn(3, 2, generator=generator) for n in names} for _ in "ab")
    path = WeightPath(start, end)
    lines = measuring.lines_path(path)
    assert torch.equal(lines.end, path.end)
    for gamma in (0.0, 0.3, 1.0):
        weights = path.unflatten(torch.lerp(lines.start, lines.end, gamma))
        for name in names:
            depth = int(name.split(".")[2]) / 4 if "resblocks" in name else 0.0
            share = gamma + (1 - gamma) * depth
            assert torch.allclose(
                weights[name], torch.lerp(start[name], end[name], share), atol=1e-6
            )


def test_samples_are_read_with_the_formula_beside_the_regrets(tmp_path):
    rows = {"stderr": [0.1, 0.02], "coverage": [0.9, 0.95], "grid": [0.03, 0.01]}
    inside = {"alpha": 0.4, "value": 2.0, "curvature": 8.0, "images": [900, 300], **rows}
    end = inside | {"alpha": 1.0, "stderr": [None, None], "coverage": [None, None]}
    told = {"sizes": [50, 500], "draws": 7, "pairs": {"A": inside, "B": end}}
    results.write_json(tmp_path / "samples" / "P.json", told)
    results.write_json(tmp_path / "run.json", {})
    frame = regrets.read(tmp_path).set_index(["supported", "images"])
    assert frame.loc[("A", 50), "cost of images"] == pytest.approx(8 / 2 * 0.1**2 / 2)
    assert frame.loc[("A", 500), ["grid", "coverage", "fresh images"]].tolist() == [0.01, 0.95, 300]
    assert frame.loc["B", ["curvature", "stderr", "cost of images"]].isna().all(axis=None)
    assert archive.find(tmp_path, "evidence").samefile(KEPT)  # this run has none
    assert "reference" in archive.whose(tmp_path, "evidence")


def test_evidence_of_other_weights_or_of_some_tasks_is_not_shown_as_the_runs_own(tmp_path):
    for kind in ("pairs", "evidence"):
        shutil.copytree(KEPT / kind, tmp_path / kind)
    shutil.copy(KEPT / "run.json", tmp_path)
    found = archive.read(tmp_path)
    assert len(found) == 9 and archive.find(tmp_path) == tmp_path
    assert archive.find(tmp_path, "samples").samefile(KEPT)  # it has no samples
    shutil.copytree(KEPT / "samples", tmp_path / "samples")
    assert archive.find(tmp_path, "samples") == tmp_path and not archive.whose(tmp_path, "samples")
    file = tmp_path / "evidence/DTD.json"
    results.write_json(file, found["DTD"] | {"length": 1.001 * found["DTD"]["length"]})
    for _ in range(2):
        assert archive.read(tmp_path) == {} and archive.find(tmp_path).samefile(KEPT)
        assert "reference" in archive.whose(tmp_path)
        file.unlink(missing_ok=True)


def test_pays_from_where_the_other_regret_is_twice_as_large():
    n = np.array([50, 100, 200, 500, 1000, 2000, 5000])
    exact = 3.0 / n
    assert regrets.pays_from(n, exact, exact + 3.0 / 730) == pytest.approx(730, rel=0.03)
    assert regrets.pays_from(n, exact, exact * (n / 300)) == pytest.approx(600)
    assert regrets.pays_from(n, exact, 2 * exact) == pytest.approx(50)
    assert regrets.pays_from(n, exact, 1.9 * exact) == math.inf
    noisy = exact * np.array([3, 1, 1, 3, 1, 1, 4])  # what counts is from where on it always pays
    assert regrets.pays_from(n, exact, noisy) == pytest.approx(2000 * 2.5**0.5)
    assert (
        regrets.pays_from(n, 0 * exact, 0 * exact) == math.inf
    )  # at an end that all searches find
    assert math.isnan(regrets.pays_from(n, exact * math.nan, exact))


def test_rank_correlation_is_that_of_scipy_ties_and_rows_included():
    generator = np.random.default_rng(0)
    x, y = generator.integers(0, 6, (7, 9)), generator.normal(size=(7, 9))
    expected = [stats.spearmanr(a, b).statistic for a, b in zip(x, y, strict=True)]
    assert forgetting.rank_correlation(x, y) == pytest.approx(expected)
    assert np.isnan(forgetting.rank_correlation([1, 1, 1], [1, 2, 3]))


def forgotten(supported=4, patching=9, seed=0, noise=0.0):
    """Return what `forgetting` would: a predictor that is the outcome but for noise, and noise."""
    generator, rows = np.random.default_rng(seed), []
    for s in range(supported):
        for p in range(patching):
            rise = generator.normal() + s + p / 3
            rows.append({
                "supported": f"s{s}", "patching": f"p{p}", "at": "1", "alpha": 1.0, "outcome": rise,
                **{name: generator.normal() for name in forgetting.PREDICTORS if name != "alpha"},
                "slope + Fisher": math.exp(rise + noise * generator.normal()),
                "path length": float(p),
            })  # fmt: skip
    return pd.DataFrame(rows)


def test_rank_correlations_know_a_perfect_predictor_and_a_useless_one():
    frame = forgotten()
    found = forgetting.rank_correlations(frame, draws=300).set_index("predictor")
    assert found.loc["alpha"].drop("at").isna().all()  # the same for all
    best = found.loc["slope + Fisher"]
    assert best.drop(["at", "lead, low", "lead, high"]).to_numpy(float) == pytest.approx(1.0)
    useless = found.loc["slope"]
    assert useless["low"] < 0 < useless["high"] and useless["lead, low"] > 0
    every = [forgetting.rank_correlation(frame["path length"], frame["outcome"])]
    assert found.loc["path length", "pooled"] == pytest.approx(every[0])
    left = [frame[frame["patching"] != p] for p in frame["patching"].unique()]
    rest = [stats.spearmanr(part["path length"], part["outcome"]).statistic for part in left]
    row = found.loc["path length", ["no patching task, low", "no patching task, high"]]
    assert row.tolist() == pytest.approx([min(rest), max(rest)])
    own = [stats.spearmanr(part["path length"], part["outcome"]).statistic
           for _, part in frame.groupby("supported")]  # fmt: skip
    assert found.loc["path length", "within"] == pytest.approx(np.mean(own))
    assert forgetting.rank_correlations(frame, draws=0)["low"].isna().all()


def test_interval_is_that_of_drawing_tasks_and_not_pairs():
    frame, draws = forgotten(noise=1.0), 1000
    ranked = forgetting.rank_correlations(frame, draws=draws).set_index("predictor")
    found = ranked.loc["path length"]
    table = {
        k: frame.pivot(index="supported", columns="patching", values=k)
        for k in ("path length", "outcome")
    }
    generator, values, pairs = np.random.default_rng(5), [], []
    for _ in range(draws):
        down, across = generator.integers(0, 4, 4), generator.integers(0, 9, 9)
        x, y = (t.iloc[down, across].to_numpy().ravel() for t in table.values())
        values.append(np.corrcoef(stats.rankdata(x), stats.rankdata(y))[0, 1])
        some = generator.integers(0, 36, 36)
        x, y = (stats.rankdata(t.to_numpy().ravel()[some]) for t in table.values())
        pairs.append(np.corrcoef(x, y)[0, 1])
    assert [found["low"], found["high"]] == pytest.approx(
        np.quantile(values, [0.025, 0.975]), abs=0.05
    )
    assert found["high"] - found["low"] > np.ptp(np.quantile(pairs, [0.025, 0.975]))


def test_calibration_is_the_median_ratio_of_what_rose():
    frame = pd.DataFrame({
        "at": "1", "alpha": 1.0, "outcome": [0.01, 0.1, 0.2, 0.4, -0.1],
        "slope + Fisher": [0.5, 0.1, 0.1, 0.1, -0.2], "error": 0.06,
    })  # fmt: skip
    (row,) = forgetting.calibration(frame).to_dict("records")
    assert (row["rose"], row["pairs"], row["same sign"], row["within"]) == (3, 5, 5, 3)
    assert [row["ratio, low"], row["ratio"], row["ratio, high"]] == pytest.approx([0.25, 0.5, 1.0])
    assert (row["observed"], row["predicted"]) == (0.1, 0.1)


def test_objective_between_the_samples_is_stored_at_them_and_smooth_between():
    pair = results.read_pair(KEPT / "pairs/CIFAR10-GTSRB.json")
    objective = replay.between(KEPT, pair, spline=CubicSpline)
    for alpha, _, parts in pair["solutions"]["grid"]["trace"]:
        assert objective(alpha) == pytest.approx(parts, rel=1e-9)
    for alpha, value, _ in pair["solutions"]["quintic"]["trace"]:
        assert math.fsum(objective(alpha)) == pytest.approx(value, rel=1e-4)
    error = sampling.standard_error(objective, solver.grid(objective))
    assert error.alpha == pytest.approx(pair["sampling"]["stderr"]["grid"][0], rel=1e-6)


def test_slope_error_is_that_of_the_images_slopes(tmp_path):
    drawn = Parabolas()
    store = Store(tmp_path / "evaluations" / "P.npz")
    hits = np.ones(drawn.images, bool)
    for alpha in ALPHAS:
        store.put(alpha, {"S": ImageScores(drawn.losses(0, alpha), hits)})
    (tmp_path / "run.json").write_text("{}")
    pair = {"supported": "S", "patching": "P", "curves": {"alphas": list(ALPHAS)}}
    expected = (2 * drawn.scales[0] * drawn.places[0]).std() / drawn.images**0.5
    assert forgetting.slope_error(tmp_path, pair) == pytest.approx(expected, rel=1e-6)


# --- the pages, from the stored files ---


def download(page, name):
    """Return a table of a committed page, from its download."""
    notebook = nbformat.read(ROOT / f"book/results/{page}.ipynb", as_version=4)
    texts = [
        t
        for cell in notebook.cells
        for o in cell.get("outputs", [])
        for t in o.get("data", {}).values()
    ]
    pattern = rf'download="{name}\.csv" href="data:text/csv;charset=utf-8,([^"]*)"'
    (found,) = {match for text in texts for match in re.findall(pattern, text)}
    return pd.read_csv(io.StringIO(urllib.parse.unquote(found)))


def stored(kind):
    return {
        file.stem: json.loads(file.read_text()) for file in sorted((KEPT / kind).glob("*.json"))
    }


def test_page_of_the_truth_shows_the_means_of_the_stored_samples():
    table = download("truth", "truth_table").set_index("images")
    files = stored("samples").values()
    sizes = next(iter(files))["sizes"]
    found = [pair for file in files for pair in file["pairs"].values()]
    assert table.index.tolist() == sizes and len(found) == 36
    for column, key in (("accuracy, grid 0.05", "accuracy"), ("loss, grid 0.1", "coarse"),
                        ("loss, grid 0.05", "grid"), ("quintic", "quintic"),
                        ("log-quintic", "log_quintic"), ("coverage %", "coverage")):  # fmt: skip
        expected = 100 * np.mean([pair[key] for pair in found], axis=0)
        assert table[column].tolist() == pytest.approx(expected.tolist(), rel=1e-6), column
    lower = np.sum([np.array(pair["quintic"]) < pair["grid"] for pair in found], axis=0)
    assert table["quintic below grid 0.05"].tolist() == lower.tolist()


def test_page_of_the_truth_shows_the_formulas_of_the_stored_samples():
    table = download("truth", "truth_needed_pairs").set_index(["pair", "step"])
    for patching, file in stored("samples").items():
        for supported, pair in file["pairs"].items():
            sigma = pair["stderr"][file["sizes"].index(500)]
            for step in (0.05, 0.1):
                row = table.loc[(f"µ{supported} + µ{patching}", step)]
                assert row["formula"] == pytest.approx(500 * 12 * sigma**2 / step**2, abs=1)
    checks = download("truth", "truth_checks")
    assert {"panel", "series"} <= set(checks)


def test_page_of_forgetting_shows_predictions_and_outcomes_of_the_stored_files():
    table = download("forgetting", "forgetting_pairs").set_index(["supported", "patching", "at"])
    found = stored("evidence")
    for (supported, patching, at), row in table.iterrows():
        told, truth = found[patching]["forgetting"][supported], found[patching]["truth"]
        expected = row["alpha"] * told["slope"] + row["alpha"] ** 2 / 2 * told["fisher"]
        assert row["slope + Fisher"] == pytest.approx(expected, rel=1e-6, abs=1e-7)
        if at != "α*":
            loss = truth["tasks"][supported]["loss"]
            came = loss[truth["alphas"].index(float(at))] / loss[0] - 1
            assert row["outcome"] == pytest.approx(came, rel=1e-6, abs=1e-7)
    ranks = download("forgetting", "forgetting_ranks_all").set_index(["at", "predictor"])
    for at, part in table.reset_index().groupby("at"):
        for name in ("slope + Fisher", "gradient similarity", "path length"):
            expected = stats.spearmanr(part[name], part["outcome"]).statistic
            assert ranks.loc[(at, name), "pooled"] == pytest.approx(expected, abs=1e-6)


def test_page_of_figure_2_shows_the_transfers_of_the_stored_files():
    table = download("figure2", "figure2_pairs").set_index(["supported", "patching"])
    assert len(table) == 36
    for pair in results.read_pairs(KEPT):
        row = table.loc[(pair["labels"]["supported"], pair["labels"]["patching"])]
        loss, length = pair["curves"]["supported"]["loss"], pair["metrics"]["length"]
        grid = [(loss[0] - x) / (a * length) for a, x in zip(ALPHAS[1:], loss[1:], strict=True)]
        assert row["grid points only"] == pytest.approx(max(grid), rel=1e-6)
        alpha = pair["solutions"]["quintic"]["alpha"]
        parts = {a: part for a, _, part in pair["solutions"]["quintic"]["trace"]}[alpha]
        assert row["at α*"] == pytest.approx(
            loss[0] * (1 - parts[0]) / (alpha * length), rel=0.01, abs=1e-5
        )
        assert row["error"] == pytest.approx(forgetting.slope_error(KEPT, pair) / length, rel=1e-6)
    assert report.ROLES == ("supported", "patching")
