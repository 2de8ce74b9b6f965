"""What the pages share: numbers of the results files are put into form, and no model is run."""

import html
import math
import re
import urllib.parse
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple, Self

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from IPython.core.getipython import get_ipython
from IPython.display import HTML, Markdown
from numpy.typing import ArrayLike, NDArray

from experiment.run import how
from paintlib.fits import log_spline
from paintlib.normalisation import Normaliser, normaliser

Pair = Mapping[str, Any]  # one results file, see experiment.results

COLOURS = {  # Okabe and Ito's palette: told apart with any common colour blindness
    "supported": "#0072B2", "patching": "#D55E00", "total": "#000000", "grid": "#E69F00",
    "quintic": "#009E73", "log_quintic": "#56B4E9", "accuracy": "#CC79A7", "muted": "#767676",
}  # fmt: skip
ROLES = ("supported", "patching")
SOLVERS = {"grid": "exhaustive search", "quintic": "quintic", "log_quintic": "log-quintic"}
JOINT = {
    "joint": "joint search", "coordinatewise": "one after the other", "shared": "one for both",
    "average": "simple average", "zero_shot": "zero-shot",
}  # fmt: skip
MARKERS = {"grid": "s", "quintic": "o", "log_quintic": "D"}  # never colour alone
AXES = {  # of a loss under each normalisation
    "zero_shot": "loss / zero-shot loss", "log_classes": "loss / ln(classes)",
    "minmax": "loss, from its minimum 0 to its maximum 1", "none": "loss, nats per image",
}  # fmt: skip
PROFILES = {  # the badge of an answer: what its numbers are of
    "smoke": "smoke test: no number here means anything",
    "micro": "micro twins: not the paper's numbers",
    "paper": "CLIP ViT-B/32 on the paper's data sets",
}
SUPERSCRIPT = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


def use_style(image_format: str = "svg") -> None:
    """Set the look of every figure, with repeatable bytes; for photographs "png" is smaller."""
    plt.style.use(["default", "experiment.report"])
    if get_ipython() is not None:
        from matplotlib_inline.backend_inline import set_matplotlib_formats

        set_matplotlib_formats(image_format, metadata={"Date": None})


def page(pair: Pair) -> str:
    """Return the address of a pair's own page, as seen from a page of results."""
    return f"../pairs/{pair['supported']}-{pair['patching']}.html"


def name(pair: Pair) -> str:
    """Return a pair's display name, say "µCIFAR10 + µGTSRB"."""
    return f"{pair['labels']['supported']} + {pair['labels']['patching']}"


def normalised(pair: Pair, kind: str = "", at: ArrayLike | None = None) -> NDArray[np.float64]:
    """Return both normalised validation losses, first axis; between samples as `curve`."""
    if at is not None:
        return curve(pair, kind)(at)
    losses = np.array([pair["curves"][role]["loss"] for role in ROLES])
    offset, unit = np.transpose([*_scales(pair, kind).values()])[:, :, None]
    return np.asarray((losses - offset) / unit)


def curve(pair: Pair, kind: str = "") -> Callable[[ArrayLike], NDArray[np.float64]]:
    """Return what gives both normalised losses, first axis, at any alpha, by `log_spline`."""
    losses = np.transpose([pair["curves"][role]["loss"] for role in ROLES])
    spline = log_spline(pair["curves"]["alphas"], losses)
    offset, unit = np.transpose([*_scales(pair, kind).values()])
    return lambda at: np.moveaxis((spline(at) - offset) / unit, -1, 0)


def test_sum(pair: Pair, at: str) -> float:
    """Return the sum of both test losses at a point of `pair["test"]`, by the validation scales."""
    return sum(scale(pair["test"][at][role]["loss"]) for role, scale in _scales(pair).items())


def _scales(pair: Pair, kind: str = "") -> dict[str, Normaliser]:
    kind, curves = kind or pair["normalisation"], pair["curves"]
    return {r: normaliser(kind, curves[r]["loss"], curves[r]["classes"]) for r in ROLES}


def gain(pair: Pair, solver: str = "quintic") -> float:
    """Return the fraction of the exhaustive search's loss sum that `solver` saves."""
    grid, found = (float(pair["solutions"][key]["value"]) for key in ("grid", solver))
    return 1 - found / grid if found != grid else 0.0  # under minmax both can be 0


def gain_error(pair: Pair) -> float:
    """Return the standard error of the quintic's `gain`: that of the difference."""
    grid = float(pair["solutions"]["grid"]["value"])
    return float(pair["sampling"]["quintic"]["stderr"]) / grid if grid else 0.0


def told_apart(pair: Pair, solver: str = "quintic") -> bool:
    """Return whether the solver's sum and the grid's are more than 1.96 standard errors apart."""
    found = pair["sampling"][solver]
    return bool(abs(found["difference"]) > 1.96 * found["stderr"])


def draw_curves(ax: mpl.axes.Axes, pair: Pair, kind: str = "") -> None:
    """Draw a pair's normalised losses, their sum and, if found under `kind`, the answers."""
    alphas, parts = pair["curves"]["alphas"], normalised(pair, kind)
    for role, style, part in zip(ROLES, ("--", "-."), parts, strict=True):
        ax.plot(alphas, part, style, color=COLOURS[role], label=f"{role} task")
    ax.plot(alphas, parts.sum(0), color=COLOURS["total"], label="their sum")
    for solver, marker in MARKERS.items() if kind in ("", pair["normalisation"]) else ():
        alpha, value = (pair["solutions"][solver][key] for key in ("alpha", "value"))
        size = 5 if solver == "log_quintic" else 9  # where both lie on one point, both are seen
        ax.plot(alpha, value, marker, color=COLOURS[solver], ms=size, mec="white",
                label=f"{SOLVERS[solver]}: α = {alpha:.3f}")  # fmt: skip
    ax.set(xlabel="α (0 zero-shot, 1 fine-tuned)", ylabel=AXES[kind or pair["normalisation"]],
           xlim=(-0.02, 1.02))  # fmt: skip


def draw_map(ax: mpl.axes.Axes, said: Mapping[str, Any], values: ArrayLike, at: ArrayLike) -> None:
    """Draw the sum of all losses over two coefficients, `(n, n)`, and the points of each search."""
    lines = ax.contourf(at, at, np.transpose(values), levels=20, cmap="cividis")
    ax.figure.colorbar(lines, label="sum of the normalised losses")
    visits, label = np.transpose(said["trace"]), "visits of the joint search"
    ax.plot(*visits, ".", ms=10, color="white", mec="black", mew=0.8, label=label, clip_on=False)
    ring: dict[str, Any] = {"mfc": "none", "mec": "#00b8d9", "ms": 15, "mew": 2}
    for (name, search), marker in zip(said["searches"].items(), "DsovX", strict=True):
        look = ring if name == "joint" else {"mec": "white", "ms": 9}
        ax.plot(*search["alpha"], marker, **look, label=JOINT[name], clip_on=False)
    ax.set(xlabel=f"α of {said['labels'][1]}", ylabel=f"α of {said['labels'][2]}")
    ax.set_aspect("equal")


def legend_below(ax: mpl.axes.Axes, columns: int = 2) -> None:
    """Put the legend of `ax` below its figure, each label once: it hides no data."""
    handles, labels = ax.get_legend_handles_labels()
    once = dict(zip(labels, handles, strict=True))
    ax.figure.legend([*once.values()], [*once], loc="outside lower center", ncols=columns)


def drawn(fig: mpl.figure.Figure) -> pd.DataFrame:
    """Return what `fig` draws: one row a point of a line or range, or a corner of a box."""
    rows = []
    for number, ax in enumerate(fig.axes, start=1):
        panel = ax.get_title().replace("\n", " ") or str(number)
        shapes: list[tuple[Any, Any]] = [(line, [line.get_xydata()]) for line in ax.lines]
        shapes += [(p, [p.get_corners()[::2]]) for p in ax.patches if hasattr(p, "get_corners")]
        shapes += [(c, c.get_segments()) for c in ax.collections if hasattr(c, "get_segments")]
        for artist, parts in shapes:
            # a coordinate may have no data units, as the heights of a vertical line: it is NaN
            known = artist.get_transform().contains_branch_seperately(ax.transData)
            points = (np.where(known, xy, np.nan) for part in parts for xy in np.array(part, float))
            rows += [(panel, artist.get_label(), *xy) for xy in points]
    x = [fig.get_supxlabel(), *(ax.get_xlabel() for ax in fig.axes)]
    y = [fig.get_supylabel(), *(ax.get_ylabel() for ax in fig.axes)]
    named = [" | ".join(filter(None, dict.fromkeys(own))).replace("\n", " ") for own in (x, y)]
    return pd.DataFrame(rows, columns=["panel", "series", named[0] or "x", named[1] or "y"])


class Correlation(NamedTuple):
    """Pearson's and Spearman's coefficient with two-sided p-values; NaN where there are none."""

    n: int
    pearson: float = np.nan
    p: float = np.nan
    spearman: float = np.nan
    p_rank: float = np.nan

    @classmethod
    def of(cls, x: ArrayLike, y: ArrayLike) -> Self:
        """Return the correlation of two samples of equal length, which varies in at least three."""
        pairs = np.column_stack([x, y])
        if len(pairs) < 3 or not np.ptp(pairs, axis=0).all():
            return cls(len(pairs))
        from scipy import stats  # takes as long to import as a page's figure to draw

        return cls(len(pairs), *map(float, (*stats.pearsonr(*pairs.T), *stats.spearmanr(pairs))))

    def __str__(self) -> str:
        if np.isnan(self.pearson):
            return f"not computable from {self.n} points"
        rank = f"Spearman ρ = {self.spearman:+.3f} (p {p_text(self.p_rank)}), n = {self.n}"
        return f"Pearson r = {self.pearson:+.3f} (p {p_text(self.p)}), {rank}"


def p_text(p: float) -> str:
    """Return a p-value for print; below 0.0001 its digits mean nothing."""
    return "–" if np.isnan(p) else "< 0.0001" if p < 1e-4 else f"= {p:.2g}"


def some(count: int, total: int) -> str:
    """Return how many of `total`, in words that a noun can follow: "none of the 36" pairs."""
    return f"none of the {total}" if not count else f"all {total}" if 1 < count == total else (
        f"{count} of {total}")  # fmt: skip


def typeset(text: str) -> str:
    """Return `text` with true minus signs and powers of ten, and no line break before a unit."""

    def power(exponent: re.Match[str]) -> str:
        one = exponent[0][0] == "1"
        if not int(exponent[1]):
            return "1" if one else ""
        return f"{'' if one else '·'}10{str(int(exponent[1])).translate(SUPERSCRIPT)}"

    text = re.sub(r"(?:(?<![\d.])1|(?<=\d))e([+-]\d+)\b", power, text)
    text = re.sub(r"(?<![^\s(*\[])-(?=0(\.0+)?(?![\d.]))", "", text)  # a rounded 0 has no sign
    text = re.sub(r"(?<![^\s(*\[])-(?=\d)", "\N{MINUS SIGN}", text)
    text = re.sub(r"(?<=\d) ?%(?!\w)", "\N{NO-BREAK SPACE}%", text)
    return re.sub(r"(?<=[<>≤≥=±]) (?=[+\N{MINUS SIGN}]?\d)", "\N{NO-BREAK SPACE}", text)


def plus_minus(value: float, error: float) -> str:
    """Return a signed value and its error with the digits that two digits of the error leave."""
    digits = max(0, 1 - math.floor(math.log10(error))) if error > 0 else 4
    gap = "\N{NO-BREAK SPACE}"
    return f"{value:+z.{digits}f}{gap}±{gap}{error:.{digits}f}"


def csv_link(frame: pd.DataFrame, name: str) -> str:
    """Return an HTML link that downloads `frame` as `name`.csv, without any server."""
    rows = frame.round(10).to_csv(index=False, float_format="%.8g", lineterminator="\n")
    file, data = html.escape(name), urllib.parse.quote(rows)
    return f'<a download="{file}.csv" href="data:text/csv;charset=utf-8,{data}">{file}.csv</a>'


def table(frame: pd.DataFrame, name: str, formats: Mapping[str, str] = {},
          links: Sequence[str] = (), columns: Sequence[str] = ()) -> HTML:  # fmt: skip
    """Return `frame` as a table that scrolls sideways on a phone, with its CSV download below.

    `formats` are per column, such as "{:.2f}"; `links` are addresses for the first column shown,
    one a row. The download `name`.csv holds all columns at full precision, not only `columns`.
    """
    shown = pd.DataFrame({
        column: [
            html.escape(typeset(form.format(x))) if pd.notna(x) else "–" for x in frame[column]
        ]
        for column, form in ((c, formats.get(c, "{}")) for c in columns or [*map(str, frame)])
    })  # fmt: skip
    if links:
        first = zip(links, shown.iloc[:, 0], strict=True)
        shown.iloc[:, 0] = [f'<a href="{html.escape(a)}">{x}</a>' for a, x in first]
    body = shown.to_html(index=False, border=0, escape=False, justify="left")
    body = body.replace("<td>", '<td style="padding: .2em .6em">')
    link = csv_link(frame, name)
    return HTML(f'<div style="overflow-x:auto">{body}</div><p>Download: {link}</p>')


def matrix(pairs: Sequence[Pair], values: Sequence[float], texts: Sequence[str], label: str
) -> HTML:  # fmt: skip
    """Return a text per pair, linked to its page, as a matrix: supported down, patching across.

    The value makes the colour: white at 0, blue above, orange below. `label` is for screen readers.
    """
    down, across = ({p[role]: html.escape(p["labels"][role]) for p in pairs} for role in ROLES)
    largest, cells = max(map(abs, values)) or 1.0, {}
    for pair, value, text in zip(pairs, values, texts, strict=True):
        hue = 255 * np.array(mpl.colors.to_rgb(COLOURS["supported" if value > 0 else "patching"]))
        tint = 255 - 0.7 * abs(value) / largest * (255 - hue)  # 0.7: black text stays legible
        link = f'<a href="{page(pair)}" title="{html.escape(name(pair))}">{typeset(text)}</a>'
        cell = f'<td style="background: #{bytes(map(round, tint)).hex()}">{link}</td>'
        cells[pair["supported"], pair["patching"]] = cell
    heads = "".join(f'<th scope="col"><span>{task}</span></th>' for task in across.values())
    rows = ""
    for supported, task in down.items():
        row = "".join(cells.get((supported, patching), "<td></td>") for patching in across)
        rows += f'<tr><th scope="row">{task}</th>{row}</tr>'
    body = f"<thead><tr><td></td>{heads}</tr></thead><tbody>{rows}</tbody>"
    return HTML(f'<table class="matrix" aria-label="{html.escape(label)}">{body}</table>')


def tested(pair: Pair) -> str:
    """Return what the test images of a pair's run have to do with the choice of alpha."""
    return {
        "test": "the test images, on which α was chosen",
        "halves": "the half of the test images on which α was not chosen, both ways averaged",
    }.get(pair["run"].get("choose_on", ""), "test images, which took no part in the choice")


def is_dry(pair: Pair) -> bool:
    """Return whether a pair's numbers mean nothing: few images, or random weights."""
    return bool(pair["run"]["limit"]) or pair["run"]["weights"] == "random"


def answer(pairs: Sequence[Pair], text: str) -> Markdown:
    """Return a page's answer, with a badge of the profile it is true for."""
    profile = _common(pair["run"]["profile"] for pair in pairs)
    marks = ["dry run: no number here means anything"] if any(map(is_dry, pairs)) else []
    badges = "".join(map(badge, [*marks, PROFILES.get(profile, f"profile {profile}")]))
    unusual = "; ".join(how(pairs[0]["run"]))
    return Markdown(f"> **Answer**{badges}{f' ({unusual}).' if unusual else ''} {typeset(text)}")


def badge(text: str) -> str:
    """Return a mark that leads to what a profile is."""
    address = "../chapters/glossary.html#term-profile"
    return f' <a class="run-badge" href="{address}">{html.escape(text, quote=False)}</a>'


def caption(text: str, fig: mpl.figure.Figure | None = None, name: str = "") -> Markdown:
    """Return the caption of what is above it; of a figure, with a download of what it draws."""
    data = f" Data of the figure: {csv_link(drawn(fig), name)}." if fig else ""
    return Markdown(f"**What it shows.** {typeset(text)}{data}")


def prose(text: str) -> Markdown:
    """Return a computed paragraph."""
    return Markdown(typeset(text))


def provenance_footer(pairs: Sequence[Pair]) -> Markdown:
    """Return the line at the foot of a page: which run its numbers are of, all where they mix."""
    keys = ["profile", "seed", "weights", "limit", "finetuned", "normalisation"]
    runs = [{**pair["run"], "normalisation": pair["normalisation"]} for pair in pairs]
    keys = [key for key in keys if key != "limit" or any(run.get(key) for run in runs)]
    keys += [key for key in ("sample", "choose_on", "variants") if any(key in run for run in runs)]
    named = {key: key.replace("finetuned", "fine-tuned weights") for key in keys}
    facts = {name: _common(run.get(key, "–") for run in runs) for key, name in named.items()}
    mixed = [key for key, value in facts.items() if " | " in value]
    line = " · ".join(f"{key} {value}" for key, value in facts.items())
    warning = f"**The pairs disagree in {', '.join(mixed)}: not one run.** " if mixed else ""
    status = "Commit, versions and times are on the page [Status](../status.html)"
    what = "this pair" if len(pairs) == 1 else f"these {len(pairs)} pairs"
    said = "".join(
        f" {text[0].upper() if text[0].isascii() else text[0]}{text[1:]}."
        for text in how(pairs[0]["run"])
    )
    return Markdown(f"{warning}*The run behind {what}: {line}.{said} {status}.*")


def _common(values: Iterable[object]) -> str:
    return " | ".join(sorted(set(map(str, values))))
