"""The pages of runs that are unlike the reference: ends, valleys, halves, few tasks.

Their cells run here, in one process, on losses made up for it; a warning is an error, as it is in
a page.
"""

import json
import re
import shutil
import warnings
from pathlib import Path

import jupytext
import matplotlib.pyplot as plt
import numpy as np
import pytest

from experiment import results
from experiment.profiles import ALPHAS, PATCHING, SUPPORTED
from experiment.steps import solving
from paintlib.objective import ImageScores, PairObjective
from paintlib.store import Store

ROOT = Path(__file__).resolve().parents[2]
KEPT = ROOT / "results/micro"
IMAGES = 60


def said(notebook, folder, monkeypatch, **parameters):
    """Run the cells of a notebook on the results in `folder` and return the text it displays."""
    shown, glued = [], {}
    monkeypatch.setattr("IPython.display.display", lambda *things: shown.extend(things))
    monkeypatch.setattr(
        "myst_nb.glue", lambda name, value, display=True: glued.update({name: value})
    )
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(plt, "show", lambda: None)
    names = {"__name__": "__main__"}
    with warnings.catch_warnings(action="error"):
        for cell in jupytext.read(ROOT / f"notebooks/{notebook}.md").cells:
            if cell.cell_type == "code":
                exec(compile(cell.source, notebook, "exec"), names)
                if "parameters" in cell.metadata.get("tags", []):
                    names |= {"results": str(folder), **parameters}
    plt.close("all")
    texts = [str(getattr(thing, "data", thing)) for thing in [*shown, *glued.values()]]
    return " ".join(re.sub("<(script|a|table).*?</\\1>", "", text, flags=re.S) for text in texts)


def write_run(folder, losses, *, profile="micro", choose_on=""):
    """Write the results of a run: `losses` are those of each task as functions of alpha.

    Images share a curve, up to factors of their own at both ends.
    """
    about = results.read_json(KEPT / "run.json")
    choices = {"profile": profile, "seed": 0, "limit": 0, "weights": "mine", "finetuned": "own"}
    choices |= {"choose_on": choose_on} if choose_on else {}
    roles = {"supported": [task for task in losses if task in SUPPORTED]}
    roles["patching"] = [task for task in losses if task in PATCHING]
    count = {split: IMAGES for split in ("train", "validation", "test")}
    label = {task: task if profile == "paper" else f"µ{task}" for task in losses}
    told = {task: {"label": label[task], "classes": 10, "images": count} for task in losses}
    results.write_json(folder / "run.json", about | choices | roles | {"tasks": told})
    generator = np.random.default_rng(0)
    factors = {task: generator.normal(0, 0.2, (2, IMAGES)) for task in losses}
    right = np.arange(IMAGES) % 10
    for patching in roles["patching"]:
        store = Store(folder / f"evaluations/{patching}.npz", {"of": patching})

        def evaluate(alpha, names):
            each = (losses[t](alpha) * np.exp(factors[t][0] + alpha * factors[t][1]) for t in names)
            return [ImageScores(row, right < 4 + 4 * alpha) for row in each]

        for alpha in ALPHAS:
            names = [*roles["supported"], patching]
            store.put(alpha, dict(zip(names, evaluate(alpha, names), strict=True)))
        for supported in roles["supported"]:

            def kept(alpha, names, store=store):
                store.put(alpha, dict(zip(names, rows := evaluate(alpha, names), strict=True)))
                return rows

            pair = (supported, patching)
            objective = PairObjective.replay(store, pair, [10, 10], evaluate=kept)
            slope = (losses[supported](1e-4) - losses[supported](0.0)) / 1e-4
            similarity = float(np.clip(-slope / 5, -1, 1))
            gradient = {"norm": 0.5, "similarity": similarity, "slope": float(slope)}
            record = solving.solve_pair(objective, 10.0, gradient)
            if choose_on == "halves":
                record |= solving.cross_fit(objective, 0)
            else:
                answers = {name: found["alpha"] for name, found in record["solutions"].items()}
                record["test"] = solving._points(answers, objective.score)
            whose = {"supported": supported, "patching": patching}
            labels = {role: label[task] for role, task in whose.items()}
            record |= {"schema": 2, **whose, "labels": labels, "run": choices}
            results.write_pair(folder / f"pairs/{supported}-{patching}.json", record)
    return folder


def rises(rate, start=0.3):
    return lambda alpha: start * np.exp(rate * alpha)


def bends(alpha):
    return 0.3 * np.exp(2 * alpha**2)


RUNS = {
    "both rise": {"losses": {"CIFAR10": rises(5.0), "MNIST": rises(1.0, 2.0), "DTD": rises(2.0)}},
    "both fall": {"losses": {"CIFAR10": rises(-0.1), "STL10": rises(-1.0), "MNIST": rises(-3.0)}},
    "two valleys": {
        "losses": {"CIFAR10": lambda a: 0.6 + 0.4 * np.cos(11 * a), "MNIST": rises(0.3)},
        "profile": "paper",
    },
    "halves": {
        "losses": {"CIFAR10": bends, "MNIST": rises(-3.0, 2.0)},
        "profile": "paper", "choose_on": "halves",
    },
    "test": {
        "losses": {"CIFAR10": bends, "MNIST": rises(-3.0, 2.0)},
        "profile": "paper", "choose_on": "test",
    },
}  # fmt: skip
PAGES = (
    "all_pairs", "claims", "explore", "figure1", "figure2", "open_questions", "pair", "pictures",
    "reference", "solvers", "steps", "tradeoffs",
)  # fmt: skip


# of the run that chose on test images, the pages that speak of them
CASES = [(run, page) for run in RUNS for page in PAGES
         if run != "test" or page in ("all_pairs", "explore", "pair")]  # fmt: skip


@pytest.fixture(scope="module")
def odd(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("odd")
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(solving, "DRAWS", 20)
        return request.param, write_run(folder, **RUNS[request.param])


@pytest.mark.parametrize(("odd", "page"), CASES, indirect=["odd"])
def test_page_of_an_odd_run_says_nothing_that_its_numbers_contradict(page, odd, monkeypatch):
    name, folder = odd
    pair = results.read_pairs(folder)[0]
    which = {role: pair[role] for role in ("supported", "patching")} if page == "pair" else {}
    if page in ("explore", "pictures"):
        give_pictures(folder)
    text = said(page, folder, monkeypatch, **which)
    assert not re.search(r"\bnan\b", text, re.IGNORECASE), text
    if name in ("halves", "test"):
        assert "took no part" not in text and "no alpha was chosen" not in text
    if name == "both rise" and page in ("figure1", "pictures"):
        assert "calibration" not in text and "falls more steeply" not in text


def give_pictures(folder):
    """Write what the pages show of single images."""
    told = results.read_json(KEPT / "pictures/tasks.json")
    run = results.read_json(folder / "run.json")
    known = dict(zip(run["tasks"], told["tasks"].values(), strict=False))
    results.write_json(folder / "pictures/tasks.json", told | {"tasks": known})
    for strip in (KEPT / "pictures").glob("*.png"):
        shutil.copy(strip, folder / "pictures")
    shown = {"classes": [[[0] * 21] * 3] * 12, "probabilities": [[[0.3] * 21] * 3] * 12}
    for patching in run["patching"]:
        tasks = {task: shown for task in (*run["supported"], patching)}
        content = {"patching": patching, "alphas": ALPHAS, "tasks": tasks}
        results.write_json(folder / f"predictions/{patching}.json", content)


@pytest.mark.parametrize("tasks", [(["STL10"], ["DTD"]), (["CIFAR10", "STL10"], ["MNIST"])])
@pytest.mark.parametrize("page", ["claims", "forgetting", "reference", "rules", "truth"])
def test_page_of_few_tasks_with_evidence_of_their_own_is_whole(page, tasks, tmp_path, monkeypatch):
    """A part of the reference: its numbers are those of the whole, as far as it goes."""
    supported, patching = tasks
    run = results.read_json(KEPT / "run.json")
    results.write_json(tmp_path / "run.json", run | {"supported": supported, "patching": patching})
    for task in patching:
        for kind in ("evaluations", "evidence", "samples"):
            (tmp_path / kind).mkdir(exist_ok=True)
            for file in (KEPT / kind).glob(f"{task}.*"):
                shutil.copy(file, tmp_path / kind)
        for other in supported:
            pair = results.read_pair(KEPT / f"pairs/{other}-{task}.json")
            results.write_pair(tmp_path / f"pairs/{other}-{task}.json", pair)
        file = tmp_path / f"samples/{task}.json"
        told = json.loads(file.read_text())
        told["pairs"] = {other: told["pairs"][other] for other in supported}
        results.write_json(file, told)
    text = said(page, tmp_path, monkeypatch)
    assert not re.search(r"\bnan\b", text, re.IGNORECASE), text
    assert "evidence of the reference run" not in text
    if page == "reference":
        assert "**0 of 6** verdicts differ, and **0 of 21** headline numbers" in text
