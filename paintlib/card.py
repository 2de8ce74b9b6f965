"""The certificate of a patch: what was measured, as text, metadata, picture and model card."""

import html
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from scipy.interpolate import PchipInterpolator

__all__ = ["metadata", "picture", "summary", "table", "write_card"]

Answer = Mapping[str, Any]  # of `paintlib.patch.choose`
PLACES = {"zero_shot": "zero-shot", "patched": "patched", "fine_tuned": "fine-tuned"}
COLOURS = ("#000", "#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00")
TAGS = "tags: [model-merging, model-patching, paintlib]"  # by which a card is known
SURE = 1.96  # standard errors


def summary(answer: Answer) -> str:
    """Return the answer as Markdown: alpha, why the search ended, what was measured, warnings."""
    goal = f"normalisation {answer['normalisation']}, solver {answer['solver']}"
    if len(set(answer["weights"].values())) > 1:
        goal += ", weights " + ", ".join(f"{x:g} {name}" for name, x in answer["weights"].items())
    numerical, error = answer["numerical_error"], answer["stderr"]
    errors = f"numerical error {_said(numerical)}, sampling error {_said(error)}"
    alpha = f"{answer['alpha']:.4f}"
    if error is not None:
        places = min(max(1 - math.floor(math.log10(error or 1e-5)), 1), 6)  # two digits of it
        alpha = f"{answer['alpha']:.{places}f} ± {error:.{places}f}"
    elif answer["bound"]:
        alpha += " (alpha* is {1} {0:.3f}, at 95 %)".format(*answer["bound"])
    parts = [f"**alpha = {alpha}** ({goal})", f"{answer['status']}: {answer['advice']}; {errors}."]
    for task, (rise, highest, probability) in answer["ceilings"].items():
        said = f"Task {task!r} must not rise by more than {rise:.2%}: it rises by {highest:.2%}"
        parts.append(f"{said} at most, with a probability of {probability:.0%}.")
    titles = {"On the images of the choice": answer, "On held-out images": answer["held_out"]}
    for title, measured in titles.items():
        if measured:
            gains = []
            for end, (fall, error) in measured["gain"].items():
                fell = f"{fall:.3f} ± {_said(error, '.3f')}"  # of one image: unknown
                said = f"- against the {PLACES[end]} end, the sum falls by {fell}"
                verdict = "better" if error is not None and fall > SURE * error else "not better"
                gains.append(f"{said}: {verdict} by more than {SURE} errors")
            parts += [f"## {title}", table(measured["tasks"]), "\n".join(gains)]
    if answer["warnings"]:
        parts += ["## Warnings", "\n".join(f"- {warning}" for warning in answer["warnings"])]
    return "\n\n".join(parts)


def table(tasks: Mapping[str, Any]) -> str:
    """Return loss (nats) and accuracy (fraction) of each task at both ends and patched, Markdown.

    In parentheses is what the patch changes an end's number by, ± the standard error of that
    difference on the same images.
    """
    rows = [["task", "images", "", *PLACES.values()], ["---"] * 6]
    for name, task in tasks.items():
        for kind in ("loss", "accuracy"):
            cells = [name.replace("|", r"\|"), str(task["images"]), kind]
            for place in PLACES:
                change, error = task[place]["change"][kind]
                told = error is not None and place != "patched"
                more = f" ({change:+.3f} ± {error:.3f})" if told else ""
                cells.append(_said(task[place][kind], ".3f") + more)
            rows.append(cells)
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    padded = (map(str.ljust, row, widths) for row in rows)
    return "\n".join(f"| {' | '.join(row)} |" for row in padded)


def metadata(answer: Answer) -> dict[str, str]:
    """Return what a safetensors file says of itself: strings, most of them JSON."""
    keys = ("alpha", "stderr", "status", "solver", "normalisation", "weights", "ceilings",
            "bracket", "batchnorm", "parents", "store", "versions")  # fmt: skip
    told = {key: answer[key] for key in keys if answer[key] is not None}
    told["scales"] = {name: task["scale"] for name, task in answer["tasks"].items()}
    text = {k: v if isinstance(v, str) else json.dumps(v, allow_nan=False) for k, v in told.items()}
    return {"format": "pt", **{f"paintlib.{key}": value for key, value in text.items()}}


def picture(answer: Answer) -> str:
    """Return as SVG the sum and each task along the path, evaluated or drawn, and alpha ± error."""
    alphas, *curves = np.array([(a, value, *parts) for a, value, parts in answer["trace"]]).T
    ends, heights = (alphas[0], alphas[-1]), (min(0.0, np.min(curves)), np.max(curves))

    def at(alpha: Any, value: Any) -> tuple[Any, Any]:
        x, y = np.interp(alpha, ends, (60, 480)), np.interp(value, heights, (260, 40))
        return x.round(1), y.round(1)

    def text(x: float, y: float, said: str, more: str = "") -> str:
        return f'<text x="{x:.0f}" y="{y:.0f}" {more}>{html.escape(said)}</text>'

    band = SURE * (answer["stderr"] or 0.0)
    (a, x, b), _ = at(answer["alpha"] + np.array([-band, 0.0, band]), 0.0)
    parts = [f'<path d="M{a} 40H{b}V260H{a}" fill="#ddd"/>', text(270, 297, "alpha"),
             text(8, 24, "normalised losses"),
             f'<path d="M{x} 40V260M60 40V260H480" fill="none" stroke="#000"/>']  # fmt: skip
    for tick in _round(*ends):
        parts.append(text(at(tick, 0)[0], 278, f"{tick:.4g}", 'text-anchor="middle"'))
    for tick in _round(*heights):
        parts.append(text(54, at(0, tick)[1] + 4, f"{tick:.4g}", 'text-anchor="end"'))
    dense = np.linspace(*ends, 101)
    for i, (name, curve) in enumerate(zip(["sum", *answer["tasks"]], curves, strict=True)):
        colour, drawn = COLOURS[i % len(COLOURS)], PchipInterpolator(alphas, curve)(dense)
        line = " ".join(f"{x},{y}" for x, y in zip(*at(dense, drawn), strict=True))
        parts.append(f'<polyline points="{line}" fill="none" stroke="{colour}"/>')
        dots = zip(*at(alphas, curve), strict=True)
        parts += [f'<circle cx="{x}" cy="{y}" r="3" fill="{colour}"/>' for x, y in dots]
        parts.append(text(490, 50 + 20 * i, name, f'fill="{colour}"'))
    size = 'viewBox="0 0 640 300" font-family="sans-serif" font-size="15"'
    return f'<svg xmlns="http://www.w3.org/2000/svg" {size}>{"".join(parts)}</svg>\n'


def _round(low: float, high: float) -> np.ndarray[Any, np.dtype[np.float64]]:
    """Return the multiples of 1, 2 or 5 times a power of ten from `low` to `high`, six at most."""
    rough = (high - low or 1.0) / 5
    power = 10 ** np.floor(np.log10(rough))
    step = power * next(few for few in (1, 2, 5, 10) if few * power > 0.999 * rough)
    return np.asarray(step * np.arange(np.ceil(low / step), np.floor(high / step + 1e-9) + 1) + 0.0)


def write_card(answer: Answer, folder: Path | str, parents: Sequence[str]) -> None:
    """Write `README.md`, a model card for the Hub, with `curve.svg` and `patch.json`.

    `parents` are both checkpoints as the user names them; what is no file is a name on the Hub.
    """
    start, end = (Path(name).name if Path(name).exists() else name for name in parents)
    rows = (f"| {key} | `{value}` |" for key, value in metadata(answer).items())
    card = "\n\n".join([
        f"---\nlibrary_name: pytorch\n{TAGS}\n---",
        f"# {end} patched into {start}",
        f"The weights are (1 - alpha) · `{start}` + alpha · `{end}`; alpha is chosen by the sum of "
        f"the normalised losses of {', '.join(answer['tasks'])}.",
        summary(answer), "![Normalised losses against alpha](curve.svg)",
        "In parentheses: what the patch changes, ± the standard error on the same images.",
        "## Certificate", "\n".join(["| | |", "|---|---|", *rows]),
    ])  # fmt: skip
    files = {"README.md": card + "\n", "curve.svg": picture(answer),
             "patch.json": json.dumps(answer, indent=1, allow_nan=False) + "\n"}  # fmt: skip
    Path(folder).mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        Path(folder, name).write_text(content, encoding="utf-8")


def _said(value: float | None, form: str = ".2g") -> str:
    return "unknown" if value is None else f"{value:{form}}"
