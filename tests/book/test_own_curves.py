"""Curves of one's own: a CSV or a results file becomes a page; a file with a fault is refused."""

import re
from pathlib import Path

import nbformat
import numpy as np
import pandas as pd
import pytest
from scipy.optimize import brentq

from experiment import compare, curves, replay
from experiment.__main__ import main
from experiment.results import read_pair
from paintlib.solver import Status

from .test_real_clip import ACCURACIES, LOSSES, PUBLISHED, quintic, total

ROOT = Path(__file__).resolve().parents[2]
HEADER = "alpha,supported_loss,patching_loss,supported_accuracy,patching_accuracy"
# exponentials of polynomials, which the spline of logarithms meets exactly
GOOD = "\n".join([HEADER, *(
    f"{a:.2f},{np.exp(1.5 * a**2):.9f},{2 * np.exp(-2 * a):.9f},{0.9 - a / 5:.3f},{0.4 + a / 2:.3f}"
    for a in np.linspace(0, 1, 21))])  # fmt: skip
LOWEST = brentq(lambda a: 3 * a * np.exp(1.5 * a**2) - 2 * np.exp(-2 * a), 0, 1)
FIRST, SECOND = GOOD.splitlines()[1:3]


def with_classes(*counts: str) -> str:
    header, *rows = GOOD.splitlines()
    rows = [f"{row},{counts[min(i, len(counts) - 1)]},10" for i, row in enumerate(rows)]
    return "\n".join([f"{header},supported_classes,patching_classes", *rows])


BAD = {  # a file, and what is said of it: here, and by the page Explore alpha
    "nothing": ("", "line 1 lacks alpha, supported_loss, patching_loss, "),
    "semicolons": (GOOD.replace(",", ";").replace(".", ","), "line 1 has one column, 'alpha;sup"),
    "column": (GOOD.replace("patching_loss", "loss"), "line 1 lacks patching_loss; the header nam"),
    "decimal comma": (GOOD.replace("0.05", "0,05", 1), "line 3 has 6 fields, the header 5; write"),
    "quoted comma": (GOOD.replace("0.05", '"0,05"', 1), "line 3: alpha is '0,05'; give a plain"),
    "nan": (GOOD.replace(SECOND, "0.05,nan,1,.5,.5"), "line 3: supported_loss is 'nan'; give"),
    "hole": (GOOD.replace(SECOND, "0.05,1,,.5,.5"), "line 3: patching_loss is ''; give"),
    "per cent": (GOOD.replace("0.890", "89.0"), "line 3: supported_accuracy is 89; give a"),
    "sign": (GOOD.replace("0.890", "89%"), "line 3: supported_accuracy is '89%'; give a plain"),
    "zero": (GOOD.replace(SECOND, "0.05,1,0,.5,.5"), "line 3: patching_loss is 0; the curve"),
    "infinite": (GOOD.replace(SECOND, "0.05,1,1e999,.5,.5"), "line 3: patching_loss is inf"),
    "outside": (GOOD.replace("0.05,", "5,", 1), "line 3: alpha is 5; it goes from 0 (zero-shot)"),
    "order": (f"# note\n{GOOD}".replace(SECOND, FIRST), "line 4: alpha is 0 after 0; sort the"),
    "start": (GOOD.replace(f"{FIRST}\n", ""), "line 2: the first alpha is 0.05; add the zero-shot"),
    "end": (GOOD[: GOOD.rindex("\n")], "the last alpha is 0.95; add the fine-tuned end, 1"),
    "few": ("\n".join(GOOD.splitlines()[:6]), "there are 5 alphas; a quintic needs 6, so add some"),
    "classes": (with_classes("10", "100"), "line 3: supported_classes is 100; give one whole"),
    "class": (with_classes("1"), "line 2: supported_classes is 1; give one whole number above 1"),
}  # fmt: skip


def write(folder: Path, text: str, name: str = "mine.csv") -> Path:
    file = folder / name
    file.write_text(text, encoding="utf-8")
    return file


@pytest.mark.parametrize("name", BAD)
def test_fault_of_a_file_is_told_with_its_line_and_the_remedy(name, tmp_path, capsys):
    text, told = BAD[name]
    file = write(tmp_path, text)
    assert main(["curves", str(file), "--out", str(tmp_path / "page")]) == 1
    assert f"paintlib: {file}: {told}" in capsys.readouterr().err
    assert not (tmp_path / "page").exists()


def test_other_faults_are_told_too(tmp_path):
    with pytest.raises(ValueError, match="No such file or directory; give a file's path"):
        curves.read(tmp_path / "none.csv")
    (tmp_path / "wide.csv").write_text(GOOD, encoding="utf-16")
    with pytest.raises(ValueError, match="not UTF-8; save it as CSV in UTF-8"):
        curves.read(tmp_path / "wide.csv")
    for text, told in {
        "{}": "does not follow the schema at the top level",
        "{": "cannot be",
    }.items():
        with pytest.raises(ValueError, match=rf"pair\.json: {told}.*; give results/RUN/pairs/"):
            curves.read(write(tmp_path, text, "pair.json"))
    file = write(tmp_path, GOOD)
    with pytest.raises(ValueError, match="log_classes needs the columns supported_classes and"):
        curves.read(file, normalisation="log_classes")
    with pytest.raises(ValueError, match="unknown normalisation 'log'; choose from zero_shot"):
        curves.read(file, normalisation="log")


def test_file_as_spreadsheets_and_people_write_it_is_read(tmp_path):
    pair = curves.read(write(tmp_path, GOOD))
    rows = [row.split(",") for row in with_classes("10").splitlines()]
    odd = "\r\n".join(["# from the paper", *(", ".join(reversed(row)) for row in rows), ""])
    (tmp_path / "odd.csv").write_text(odd, encoding="utf-8-sig", newline="")
    again = curves.read(tmp_path / "odd.csv", normalisation="log_classes")
    assert [again["curves"][role].pop("classes") for role in ("supported", "patching")] == [10, 10]
    for role in ("supported", "patching"):
        assert np.isnan(pair["curves"][role].pop("classes"))
    assert again["curves"] == pair["curves"]


def test_blanks_quotes_and_every_end_of_a_line_are_read(tmp_path):
    lines = ['"' + line.replace(",", ' " , "') + '"' for line in GOOD.splitlines()]
    file = write(tmp_path, "\r\n".join(["# a note", *lines, "  ", ""]), "odd.csv")
    assert curves.read(file)["curves"] == curves.read(write(tmp_path, GOOD))["curves"]


def test_searches_find_a_minimum_that_is_known(tmp_path):
    found = compare.answers(*replay.on_curves(curves.read(write(tmp_path, GOOD)), "zero_shot"))
    assert found["grid"].alpha == pytest.approx(round(20 * LOWEST) / 20, abs=1e-12)
    assert found["grid"].evaluations == 0 and found["quintic"].evaluations == 1
    assert found["quintic"].alpha == pytest.approx(LOWEST, abs=1e-5)
    assert found["log_quintic"].alpha == pytest.approx(LOWEST, abs=1e-3)
    assert {answer.status for answer in found.values()} == {Status.CONVERGED}


def test_results_file_gives_what_the_run_found():
    file = ROOT / "results/micro/pairs/CIFAR10-GTSRB.json"
    pair, told = curves.read(file), read_pair(file)
    assert pair["labels"] == told["labels"]
    for name, answer in compare.answers(*replay.on_curves(pair, told["normalisation"])).items():
        assert answer.alpha == pytest.approx(told["solutions"][name]["alpha"], abs=2e-3)


def test_command_makes_the_page_of_published_curves(tmp_path, capsys, browser):
    demo = pd.read_csv(PUBLISHED / "paint_demo_vitb32.csv", comment="#")
    own = demo.rename(columns=dict(zip(LOSSES + ACCURACIES, HEADER.split(",")[1:], strict=True)))
    own.to_csv(tmp_path / "demo.csv", index=False)
    command = ["curves", str(tmp_path / "demo.csv"), "--out", str(tmp_path / "page")]
    assert main([*command, "-p", "supported", "CIFAR10", "-p", "patching", "MNIST"]) == 0
    assert f"the page is {tmp_path / 'page/demo.html'}" in capsys.readouterr().out
    files = {file.name for file in (tmp_path / "page").iterdir()}
    assert files == {"demo.html", "demo.ipynb", "demo.svg"}
    notebook = nbformat.read(tmp_path / "page/demo.ipynb", as_version=4)
    assert notebook.cells[0].source.startswith("# CIFAR10 + MNIST")
    requests, page = [], browser.new_page(viewport={"width": 390, "height": 800})
    page.on("request", lambda request: requests.append(request.url))
    page.goto((tmp_path / "page/demo.html").as_uri())
    root = quintic(demo["alpha"].to_numpy(), total(demo, "zero_shot"))
    text = page.locator("blockquote").text_content()
    assert f"puts α* at {root:.3f}" in text and "takes α = 0.35" in text
    assert page.locator("figure svg").is_visible()
    assert page.evaluate("document.documentElement.scrollWidth") == 390
    assert page.title() == "CIFAR10 + MNIST"
    assert [url for url in requests if not url.startswith(("file:", "data:"))] == []
    page.close()


@pytest.mark.parametrize("name", ["start", "flat"])
def test_page_is_whole_where_a_minimum_is_an_end_and_a_loss_constant(name, tmp_path, capsys):
    losses = {"start": lambda a: (1 + 3 * a, 1 - a / 4), "flat": lambda a: (1, 1)}[name]
    rows = (f"{a / 8},{','.join(map(str, losses(a / 8)))},0.5,0.5" for a in range(9))
    file = write(tmp_path, "\n".join([HEADER, *rows]))
    assert main(["curves", str(file), "--out", str(tmp_path / "page")]) == 0, capsys.readouterr()
    text = (tmp_path / "page/mine.html").read_text(encoding="utf-8")
    assert "puts α* at <strong>0.000</strong>" in text
    assert ("<code>log_classes</code> and <code>minmax</code> (" in text) == (name == "flat")


def test_unknown_setting_is_refused(tmp_path):
    with pytest.raises(ValueError, match="no setting 'step'; choose one of supported, patch"):
        curves.curves(None, write(tmp_path, GOOD), parameters=[("step", "0.1")])


@pytest.mark.parametrize("folder", ["book", "results/micro", "notebooks"])
def test_reference_is_never_written_to(folder, tmp_path):
    with pytest.raises(ValueError, match="belongs to the reference; give --out another folder"):
        curves.curves(None, write(tmp_path, GOOD), out=ROOT / folder)


def test_howto_names_the_columns_and_the_command():
    text = (ROOT / "book/howto.md").read_text(encoding="utf-8")
    assert HEADER in text and set(HEADER.split(",")) == set(curves.COLUMNS)
    assert re.search(r"^.venv/bin/python -m experiment curves \S+\.csv --out ", text, flags=re.M)
