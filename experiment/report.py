"""What the pages share: one palette, one way to draw a pair, tables that can be downloaded.

Nothing here computes a result; `normalised` and `Correlation` only put numbers of the results files
into the form that figures and tables show.
"""

from __future__ import annotations

import html
import math
import urllib.parse
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import matplotlib
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from cycler import cycler
from IPython.core.getipython import get_ipython
from IPython.display import HTML, Markdown
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from numpy.typing import ArrayLike, NDArray
from scipy import interpolate, stats

from paintlib.losses import normaliser

Pair = Mapping[str, Any]  # one results file, see experiment.results

COLOURS = {  # Okabe and Ito's palette: told apart with any common colour blindness
    "supported": "#0072B2",
    "patching": "#D55E00",
    "total": "#000000",
    "exhaustive": "#E69F00",
    "quintic": "#009E73",
    "accuracy": "#CC79A7",
    "muted": "#767676",
}
ROLES = ("supported", "patching")
MARKERS = {"exhaustive": "s", "quintic": "o"}  # never colour alone
AXES = {  # of a loss under each normalisation
    "zero_shot": "loss / zero-shot loss",
    "log_classes": "loss / ln(classes)",
    "minmax": "loss, from its minimum 0 to its maximum 1",
    "none": "loss, nats per image",
}
PROFILES = {
    "smoke": "a test of the machinery on four tiny pairs; its numbers mean nothing",
    "micro": "small rendered twins of the data sets, so no number here is a number of the paper",
    "paper": "CLIP ViT-B/32 on the paper's own data sets",
}


def use_style(image_format: str = "svg") -> None:
    """Set the look of every figure of the book, and make its bytes repeatable.

    Args:
        image_format: what a notebook stores; "svg" but for photographs, where "png" is smaller.
    """
    plt.rcParams.update(matplotlib.rcParamsDefault | {"backend": plt.rcParams["backend"]})
    plt.rcParams.update({
        # a phone shows 5.2 inches on 340 pixels: 11 points are then 10 pixels high
        "figure.figsize": (5.2, 3.6), "figure.dpi": 100, "savefig.bbox": "tight",
        "figure.facecolor": "white", "savefig.facecolor": "white",
        "figure.constrained_layout.use": True,
        "font.size": 11, "axes.titlesize": 11, "legend.fontsize": 11, "xtick.labelsize": 11,
        "ytick.labelsize": 11, "legend.frameon": False, "axes.spines.top": False,
        "axes.spines.right": False, "axes.grid": True, "grid.color": "#E6E6E6",
        "axes.axisbelow": True,
        "lines.linewidth": 1.8, "svg.hashsalt": "paintlib",
        "axes.prop_cycle": cycler(color=[*COLOURS.values()]),
    })  # fmt: skip
    if get_ipython() is not None:
        from matplotlib_inline.backend_inline import set_matplotlib_formats

        keep = {"metadata": {"Date": None}} if image_format == "svg" else {}
        set_matplotlib_formats(image_format, **keep)


def page(pair: Pair) -> str:
    """Return the address of a pair's own page, as seen from a page of results."""
    return f"../pairs/{pair['supported']}-{pair['patching']}.html"


def name(pair: Pair) -> str:
    """Return a pair's display name, say "µCIFAR10 + µGTSRB"."""
    return f"{pair['labels']['supported']} + {pair['labels']['patching']}"


def normalised(
    pair: Pair, kind: str | None = None, at: ArrayLike | None = None
) -> NDArray[np.float64]:
    """Return both normalised validation losses, shape `(2, alphas)`: supported, patching.

    Args:
        pair: one results file.
        kind: one of `losses.NORMALISATIONS`; by default the one the pair was solved with.
        at: alphas; by default the sampled ones. Between samples the logarithm of each loss is
            interpolated by a cubic spline, because losses along a path are close to log-polynomial.
    """
    rows = []
    for task in (pair["curves"][role] for role in ROLES):
        scale = normaliser(kind or pair["normalisation"], task["loss"], task["classes"])
        loss = np.asarray(task["loss"])
        if at is not None:
            loss = np.exp(interpolate.CubicSpline(pair["curves"]["alphas"], np.log(loss))(at))
        rows.append((loss - scale.offset) / scale.unit)
    return np.array(rows)


def test_sum(pair: Pair, at: str) -> float:
    """Return the sum of both test losses at one of the alphas in `pair["test"]`, say "quintic".

    The scales are those of the validation losses, so the number compares with a solution's value.
    """
    total = 0.0
    for role in ROLES:
        curve = pair["curves"][role]
        scale = normaliser(pair["normalisation"], curve["loss"], curve["classes"])
        total += scale(pair["test"][at][role]["loss"])
    return total


def told_apart(pair: Pair) -> bool:
    """Return whether the sums at the two solvers' alphas differ beyond their sampling error.

    That is by more than 1.96 standard errors of the difference, measured image by image.
    """
    sampling = pair["sampling"]
    return bool(abs(sampling["difference"]) > 1.96 * sampling["difference_stderr"])


def draw_curves(ax: Axes, pair: Pair, kind: str | None = None) -> None:
    """Draw a pair's two normalised losses, their sum, and the answers of both solvers on `ax`.

    The answers are drawn only where they belong: under the normalisation they were found with.
    """
    alphas, parts = pair["curves"]["alphas"], normalised(pair, kind)
    ax.plot(alphas, parts[0], color=COLOURS["supported"], ls="--", label="supported task")
    ax.plot(alphas, parts[1], color=COLOURS["patching"], ls="-.", label="patching task")
    ax.plot(alphas, parts.sum(0), color=COLOURS["total"], label="their sum")
    for solver in MARKERS if (kind or pair["normalisation"]) == pair["normalisation"] else ():
        answer_ = pair["solutions"][solver]
        ax.plot(answer_["alpha"], answer_["value"], MARKERS[solver], color=COLOURS[solver], ms=8,
                mec="white", ls="none", label=f"{solver}: α = {answer_['alpha']:.3f}")  # fmt: skip
    ax.set(xlabel="α (0 zero-shot, 1 fine-tuned)", ylabel=AXES[kind or pair["normalisation"]],
           xlim=(-0.02, 1.02))  # fmt: skip


def legend_below(*axes: Axes, columns: int = 2) -> None:
    """Put one legend for `axes` below their figure, where it hides no data and narrows no axes."""
    entries: dict[str, Artist] = {}
    for ax in axes:
        for handle, label in zip(*ax.get_legend_handles_labels(), strict=True):
            entries.setdefault(label, handle)
    place: dict[str, Any] = {"loc": "outside lower center", "ncols": columns}
    axes[0].figure.legend([*entries.values()], [*entries], **place)


def drawn(fig: Figure) -> pd.DataFrame:
    """Return what `fig` draws, one row for each point of a line or range and each corner of a box.

    Columns are the panel (its title or number), the series (its label), and two named like the
    axes; a coordinate that is not in data units, as the heights of a vertical line, is NaN.
    """
    rows = []
    for number, ax in enumerate(fig.axes, start=1):
        panel = ax.get_title().replace("\n", " ") or str(number)
        boxes = [box for box in ax.patches if isinstance(box, Rectangle)]
        found: list[tuple[ArrayLike, Artist]] = [(line.get_xydata(), line) for line in ax.lines]
        found += [(box.get_corners()[::2], box) for box in boxes]
        for ranges in (c for c in ax.collections if isinstance(c, LineCollection)):
            found += [(segment, ranges) for segment in ranges.get_segments()]
        for points, artist in found:
            known = artist.get_transform().contains_branch_seperately(ax.transData)
            for point in np.asarray(points, dtype=float):
                rows.append((panel, artist.get_label(), *np.where(known, point, np.nan)))
    return pd.DataFrame(rows, columns=["panel", "series", _axis(fig, "x"), _axis(fig, "y")])


def _axis(fig: Figure, side: str) -> str:
    common = fig.get_supxlabel() if side == "x" else fig.get_supylabel()
    labels = [
        common,
        *(str(ax.get_xlabel() if side == "x" else ax.get_ylabel()) for ax in fig.axes),
    ]
    return " | ".join(dict.fromkeys(filter(None, labels))).replace("\n", " ") or side


class Correlation(NamedTuple):
    """Pearson's and Spearman's coefficient with two-sided p-values; NaN below three points."""

    n: int
    pearson: float
    p: float
    spearman: float
    p_rank: float

    @classmethod
    def of(cls, x: ArrayLike, y: ArrayLike) -> Correlation:
        """Return the correlation of two samples of equal length n."""
        x, y = np.asarray(x, float), np.asarray(y, float)
        if len(x) < 3 or not (np.ptp(x) and np.ptp(y)):
            return cls(len(x), *[math.nan] * 4)
        linear, rank = stats.pearsonr(x, y), stats.spearmanr(x, y)
        numbers = (linear.statistic, linear.pvalue, rank.statistic, rank.pvalue)
        return cls(len(x), *(float(number) for number in numbers))

    def __str__(self) -> str:
        """Say the coefficients, or that they cannot be computed."""
        if math.isnan(self.pearson):
            return f"not computable from {self.n} points"
        return (
            f"Pearson r = {self.pearson:+.3f} (p {p_text(self.p)}), "
            f"Spearman ρ = {self.spearman:+.3f} (p {p_text(self.p_rank)}), n = {self.n}"
        )


def p_text(p: float) -> str:
    """Return a p-value for print; below 0.0001 its digits mean nothing."""
    return "–" if math.isnan(p) else "< 0.0001" if p < 1e-4 else f"= {p:.2g}"


def csv_link(frame: pd.DataFrame, name: str) -> str:
    """Return an HTML link that downloads `frame` as `name`.csv, without any server."""
    rows = frame.round(10).to_csv(index=False, float_format="%.8g", lineterminator="\n")
    data = urllib.parse.quote(rows)
    file = html.escape(name, quote=True)
    return f'<a download="{file}.csv" href="data:text/csv;charset=utf-8,{data}">{file}.csv</a>'


def table(frame: pd.DataFrame, name: str, formats: Mapping[str, str] | None = None,
          links: Sequence[str] = (), columns: Sequence[str] = ()) -> HTML:  # fmt: skip
    """Return `frame` as a table that scrolls sideways on a phone, with its CSV download below.

    Args:
        frame: the numbers at full precision, which is what the download holds.
        name: of the downloaded file, without ".csv".
        formats: per column a format such as "{:.2f}"; other columns are shown as they are.
        links: one address per row, put on the first column.
        columns: those to show; all by default. The download holds all in any case.
    """
    shown = frame[list(columns or frame.columns)].astype(object)
    for column in shown:
        form = (formats or {}).get(str(column), "{}")
        shown[column] = [html.escape(form.format(x)) if pd.notna(x) else "–" for x in frame[column]]
    if links:
        first = zip(links, shown.iloc[:, 0], strict=True)
        shown[shown.columns[0]] = [f'<a href="{html.escape(a)}">{x}</a>' for a, x in first]
    body = shown.to_html(index=False, border=0, escape=False, justify="left")
    body = body.replace("<td>", '<td style="padding: .2em .6em">')
    download = f"<p>Download: {csv_link(frame, name)}</p>"
    return HTML(f'<div style="overflow-x:auto">{body}</div>{download}')


def tint(value: float, largest: float) -> str:
    """Return the colour of `value`: white at 0, towards blue above it and towards orange below.

    The strongest colours, of `largest` and its negative, still carry black text.
    """
    colour = COLOURS["supported" if value > 0 else "patching"]
    strength = 0.7 * abs(value) / largest if largest else 0.0
    blend = 255 + strength * (np.array(matplotlib.colors.to_rgb(colour)) * 255 - 255)
    return "#" + "".join(f"{round(part):02x}" for part in blend)


def matrix(pairs: Sequence[Pair], values: Sequence[float], form: str, label: str,
           marked: Sequence[bool] | None = None) -> HTML:  # fmt: skip
    """Return one number per pair as a matrix: supported tasks down, patching tasks across.

    Each number links to its pair's page and is coloured by `tint`. A combination without a pair
    stays empty.

    Args:
        pairs: n results files.
        values: n numbers.
        form: such as "{:.2f}".
        label: what the numbers are, for those who do not see the table.
        marked: n truths, whether a number carries a star; none by default.
    """
    down, across = ({p[role]: html.escape(p["labels"][role]) for p in pairs} for role in ROLES)
    largest = max(map(abs, values))
    cells = {}
    marks = [False] * len(pairs) if marked is None else marked
    for pair, value, star in zip(pairs, values, marks, strict=True):
        text = form.format(value) + ("*" if star else "")
        cells[pair["supported"], pair["patching"]] = (
            f'<td style="background: {tint(value, largest)}">'
            f'<a href="{page(pair)}" title="{html.escape(name(pair))}">{text}</a></td>'
        )
    heads = "".join(f'<th scope="col"><span>{task}</span></th>' for task in across.values())
    rows = ""
    for supported, task in down.items():
        row = "".join(cells.get((supported, patching), "<td></td>") for patching in across)
        rows += f'<tr><th scope="row">{task}</th>{row}</tr>'
    return HTML(
        f'<table class="matrix" aria-label="{html.escape(label)}">'
        f"<thead><tr><td></td>{heads}</tr></thead><tbody>{rows}</tbody></table>"
    )


def answer(pairs: Sequence[Pair], text: str) -> Markdown:
    """Return a page's answer, marked with the profile it is true for."""
    profile, what = _common(pairs, "profile"), ""
    if any(pair["provenance"]["limit"] for pair in pairs):
        what = "a dry run on a few images, so no number here means anything; "
    elif any(pair["provenance"]["weights"] == "random" for pair in pairs):
        what = "random weights, so no number here means anything; "
    what += PROFILES.get(profile, profile)
    return Markdown(f"> **Answer, profile `{profile}`** ({what}). {text}")


def caption(text: str, fig: Figure | None = None, name: str = "") -> Markdown:
    """Return the caption of the figure or table above it: the finding, in a sentence.

    Args:
        text: the finding.
        fig: the figure; the caption then ends with a download of the numbers it draws.
        name: of the downloaded file, without ".csv".
    """
    data = f" Data of the figure: {csv_link(drawn(fig), name)}." if fig else ""
    return Markdown(f"**What it shows.** {text}{data}")


def provenance_footer(pairs: Sequence[Pair]) -> Markdown:
    """Return the line at the foot of a page: what its numbers were made from, and with what.

    Where the pairs disagree, all values are listed and a warning precedes them.
    """
    keys = ("profile", "seed", "weights", "finetuned", "limit", "commit", "device")
    facts = {key: _common(pairs, key) for key in keys}
    facts["fine-tuned weights"] = facts.pop("finetuned")
    facts["normalisation"] = " | ".join(sorted({str(pair["normalisation"]) for pair in pairs}))
    packages = sorted({k for pair in pairs for k in pair["provenance"]["versions"]})
    for package in packages:
        seen = {str(pair["provenance"]["versions"].get(package, "none")) for pair in pairs}
        facts[package] = " | ".join(sorted(seen))
    mixed = [key for key, value in facts.items() if " | " in value]
    line = " · ".join(f"{key} {value}" for key, value in facts.items())
    warning = f"**The pairs disagree in {', '.join(mixed)}: not one run.** " if mixed else ""
    return Markdown(f"{warning}*Provenance of {len(pairs)} pairs: {line}.*")


def _common(pairs: Sequence[Pair], key: str) -> str:
    seen = {str(pair["provenance"][key]) for pair in pairs}
    return " | ".join(sorted(seen))
