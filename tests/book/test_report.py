"""Figures and tables of the pages: repeatable bytes, honest labels, numbers that survive."""

import copy
import io
import math
import re
import subprocess
import sys
import urllib.parse
from pathlib import Path

import matplotlib
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest

from experiment import report
from paintlib.normalisation import NORMALISATIONS

matplotlib.use("Agg")
ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def pair():
    alphas = np.linspace(0, 1, 21)
    supported, patching = np.exp(alphas**2 - 1), 2 * np.exp(-2 * alphas)
    total = supported / supported[0] + patching / patching[0]
    best = {"alpha": float(alphas[total.argmin()]), "value": float(total.min())}
    lower = {"alpha": best["alpha"] + 0.01, "value": 0.99 * best["value"]}

    def task(loss):
        score = [0.5] * 21
        return {"classes": 10, "images": 100, "loss": loss.tolist(), "accuracy": score}

    score = {"supported": {"loss": float(supported[5])}, "patching": {"loss": float(patching[5])}}
    return {
        "supported": "A", "patching": "B", "labels": {"supported": "µA", "patching": "µ<B>"},
        "normalisation": "zero_shot",
        "curves": {"alphas": alphas.tolist(), "supported": task(supported),
                   "patching": task(patching)},
        "solutions": {"grid": best, "quintic": lower, "log_quintic": best},
        "test": {"quintic": score},
        "run": {"profile": "micro", "seed": 0, "limit": 0, "weights": "made here",
                "finetuned": "own"},
    }  # fmt: skip


def test_pages_import_no_torch():
    # all but the tutorial, which belongs to no run: it trains, and needs torch
    pages = set((ROOT / "notebooks").glob("*.md")) - {ROOT / "notebooks/your_checkpoints.md"}
    texts = [path.read_text(encoding="utf-8") for path in pages]
    own = r"^from (?:experiment|paintlib)[\w.]* import .+$|^import (?:experiment|paintlib).*$"
    imports = {line for text in texts for line in re.findall(own, text, flags=re.M)}
    assert len(imports) > 15
    code = "\n".join([*sorted(imports), "import sys", "print('torch' in sys.modules)"])
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.stdout == "False\n", done.stderr


def test_normalised_is_one_at_zero_shot_and_exact_at_samples(pair):
    rows = report.normalised(pair)
    assert rows[:, 0].tolist() == [1.0, 1.0]
    sampled = report.normalised(pair, at=pair["curves"]["alphas"])
    np.testing.assert_allclose(sampled, rows, rtol=1e-12)


def test_normalised_interpolates_log_polynomial_losses_exactly(pair):
    alpha = np.array([0.123, 0.777])
    expected = np.array([np.exp(alpha**2 - 1), 2 * np.exp(-2 * alpha)])
    np.testing.assert_allclose(report.normalised(pair, "none", alpha), expected, rtol=1e-10)


@pytest.mark.parametrize("kind", ["zero_shot", "log_classes", "minmax", "none"])
def test_test_sum_uses_the_scales_of_validation(pair, kind):
    pair["normalisation"] = kind
    assert report.test_sum(pair, "quintic") == pytest.approx(report.normalised(pair)[:, 5].sum())


def test_figures_have_the_same_bytes_twice(pair):
    files = []
    for _ in range(2):
        report.use_style()
        fig, ax = plt.subplots()
        report.draw_curves(ax, pair)
        file = io.BytesIO()
        fig.savefig(file, format="svg", metadata={"Date": None})
        plt.close(fig)
        files.append(file.getvalue())
    assert files[0] == files[1]


def test_draw_curves_shows_answers_only_under_their_own_normalisation(pair):
    for kind, lines in (("", 6), ("zero_shot", 6), ("minmax", 3)):
        fig, ax = plt.subplots()
        report.draw_curves(ax, pair, kind)
        assert len(ax.lines) == lines
        assert ax.get_xlabel() and ax.get_ylabel()
        plt.close(fig)


def test_gain_is_the_part_of_the_grid_s_sum_that_is_saved(pair):
    assert report.gain(pair) == pytest.approx(0.01)
    assert report.gain(pair, "log_quintic") == 0
    for found in pair["solutions"].values():
        found["value"] = 0.0  # as minmax can have it
    assert report.gain(pair) == 0


def test_every_normalisation_names_its_axis():
    assert set(report.AXES) == set(NORMALISATIONS)


def test_legend_below_shows_each_entry_once_and_covers_no_axes():
    report.use_style()
    fig, ax = plt.subplots()
    for label in "aab":
        ax.plot([0, 1], [0, 1], label=label)
    report.legend_below(ax)
    fig.canvas.draw()
    (legend,) = fig.legends
    assert [text.get_text() for text in legend.get_texts()] == ["a", "b"]
    assert legend.get_window_extent().y1 <= ax.get_tightbbox().y0
    plt.close(fig)


def test_drawn_holds_every_point_in_data_units_and_the_caption_offers_it():
    fig, (left, right) = plt.subplots(1, 2)
    left.plot([0, 1], [2, 3], label="line")
    left.axvline(0.5, label="here")
    left.axvspan(0.2, 0.3, label="box")
    left.set(xlabel="α", ylabel="loss,\nnats")
    right.plot([4], [5], "o", label="dot")
    right.hlines([6], 7, 8, label="range")
    right.set_title("second")
    frame = report.drawn(fig)
    plt.close(fig)
    assert list(frame) == ["panel", "series", "α", "loss, nats"]
    assert frame.fillna(-1).to_numpy().tolist() == [
        ["1", "line", 0, 2], ["1", "line", 1, 3], ["1", "here", 0.5, -1], ["1", "here", 0.5, -1],
        ["1", "box", 0.2, -1], ["1", "box", pytest.approx(0.3), -1], ["second", "dot", 4, 5],
        ["second", "range", 7, 6], ["second", "range", 8, 6],
    ]  # fmt: skip
    assert report.csv_link(frame, "f") in report.caption("Found.", fig, "f").data
    assert "csv" not in report.caption("Found.").data


def test_colours_differ_in_lightness_or_hue():
    assert len(set(report.COLOURS.values())) == len(report.COLOURS)
    assert set(report.ROLES) | set(report.MARKERS) < set(report.COLOURS)
    assert list(report.MARKERS) == list(report.SOLVERS)


def test_correlation_matches_a_line_and_refuses_two_points():
    found = report.Correlation.of([1, 2, 3, 4], [2, 4, 6, 8.5])
    assert found.spearman == pytest.approx(1) and 0.99 < found.pearson < 1
    for x in ([1, 2], [1, 1, 1]):
        none = report.Correlation.of(x, range(len(x)))
        assert math.isnan(none.pearson) and "not computable" in str(none)


def test_p_text_hides_meaningless_digits():
    assert [report.p_text(p) for p in (1e-30, 0.0123, math.nan)] == ["< 0.0001", "= 0.012", "–"]


def test_csv_link_holds_the_numbers_a_change_of_one_percent_shows_noise_does_not():
    link = report.csv_link(pd.DataFrame({"x": [1.0, 1 / 3]}), 'a"b')
    text = urllib.parse.unquote(link.split("utf-8,")[1].split('"')[0])
    assert pd.read_csv(io.StringIO(text))["x"].tolist() == [1.0, 0.33333333]
    assert 'download="a&quot;b.csv"' in link

    def of(x):
        return report.csv_link(pd.DataFrame({"x": [x]}), "n")

    assert of(0.25) == of(0.25 * (1 + 1e-10)) != of(0.25 * 1.01)


def test_table_escapes_names_and_shows_what_is_missing(pair):
    frame = pd.DataFrame({"pair": [report.name(pair)], "x": [math.nan], "hidden": [7]})
    text = report.table(frame, "t", {"x": "{:.1f}"}, [report.page(pair)], ["pair", "x"]).data
    body, download = text.split("</table>")
    assert '<a href="../pairs/A-B.html">µA + µ&lt;B&gt;</a>' in body and "–" in body
    assert "hidden" not in body and "hidden" in urllib.parse.unquote(download)


def test_answer_names_the_profile(pair):
    text = report.answer([pair], "Yes.").data
    assert text.startswith('> **Answer** <a class="run-badge"') and text.endswith("</a> Yes.")
    assert ">micro twins: not the paper's numbers<" in text


@pytest.mark.parametrize(
    ("typed", "set_"),
    [
        (
            "-0.2 % (-3, **-1.7**), µA-µB, 2-norm, `x=-1`",
            "−0.2\xa0% (−3, **−1.7**), µA-µB, 2-norm, `x=-1`",
        ),
        ("2.6e-08, 1e-10, 0.0e+00", "2.6·10⁻⁸, 10⁻¹⁰, 0.0"),
        ("57.6%, p < 0.05, r = -0.5, 3 ± 1", "57.6\xa0%, p <\xa00.05, r =\xa0−0.5, 3 ±\xa01"),
        ("data:text/csv,1%2C-2%0A", "data:text/csv,1%2C-2%0A"),
    ],
)
def test_typeset_sets_signs_powers_and_units_and_leaves_names_and_addresses(typed, set_):
    assert report.typeset(typed) == set_


def test_some_reads_well_for_none_one_and_all():
    counts = [(0, 36), (1, 36), (36, 36), (1, 1)]
    texts = ["none of the 36", "1 of 36", "all 36", "1 of 1"]
    assert [report.some(*count) for count in counts] == texts


def test_answer_says_when_no_number_means_anything(pair):
    dry, random = copy.deepcopy(pair), copy.deepcopy(pair)
    dry["run"] |= {"profile": "paper", "limit": 4}
    random["run"] |= {"profile": "paper", "weights": "random"}
    for means_nothing in (dry, random):
        assert "no number here means anything" in report.answer([means_nothing], "Yes.").data
    assert "means anything" not in report.answer([dry | {"run": pair["run"]}], "Yes.").data


def test_provenance_footer_names_the_run_and_warns_where_pairs_disagree(pair):
    other = copy.deepcopy(pair)
    other["run"] |= {"seed": 7}
    text = report.provenance_footer([pair, pair]).data
    assert "disagree" not in text and "weights made here" in text and "../status.html" in text
    text = report.provenance_footer([pair, other]).data
    assert "disagree in seed" in text and "seed 0 | 7" in text


def luminance(colour: str) -> float:
    parts = np.array([int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)])
    linear = np.where(parts <= 0.04045, parts / 12.92, ((parts + 0.055) / 1.055) ** 2.4)
    return float(linear @ [0.2126, 0.7152, 0.0722])


def test_colours_of_a_matrix_are_white_at_zero_signed_and_always_carry_black_text(pair):
    def colours(*values):
        pairs = [pair | {"patching": str(value)} for value in values]
        texts = [""] * len(values)
        return re.findall("background: (#.{6})", report.matrix(pairs, values, texts, "").data)

    assert colours(0.0) == ["#ffffff"]
    up, half_up, zero, half_down, down = map(luminance, colours(3.0, 1.5, 0.0, -1.5, -3.0))
    assert up < half_up < zero > half_down > down
    assert (min(up, down) + 0.05) / 0.05 >= 4.5
    assert len(set(colours(3.0, -3.0))) == 2


def test_matrix_links_and_leaves_missing_pairs_empty(pair):
    other = copy.deepcopy(pair)
    other |= {"supported": "C", "patching": "D", "labels": {"supported": "µC", "patching": "µD"}}
    text = report.matrix([pair, other], [0.5, -1.0], ["+0.5*", "-1.0"], "Gain").data
    assert 'href="../pairs/A-B.html" title="µA + µ&lt;B&gt;">+0.5*</a>' in text
    assert ">−1.0</a>" in text and text.count("<td></td>") == 3  # the corner and two gaps
    assert text.count('scope="row"') == text.count('scope="col"') == 2


@pytest.mark.parametrize(("difference", "apart"), [(1.95, False), (1.97, True), (-1.97, True)])
def test_told_apart_is_two_sided_at_five_per_cent(pair, difference, apart):
    other = {"difference": 0.0, "stderr": 0.0}  # where the grid's own alpha is returned
    pair["sampling"] = {
        "quintic": {"difference": difference, "stderr": 1.0},
        "log_quintic": other,
    }
    assert report.told_apart(pair) is apart and not report.told_apart(pair, "log_quintic")
    assert report.gain_error(pair) == 1 / pair["solutions"]["grid"]["value"]
